// --reasoning-parser deepseek_r1: what stands between <think> and </think> is reasoning, what
// follows is the answer.
//
// vLLM 0.7.2 wants both tags in the output; R1's own template puts <think> into the prompt, so
// there it never finds any reasoning. Later releases take the text before </think> for reasoning
// even without the opening tag, and all of the text when there is no closing tag either. Here the
// rule is: reasoning is open when the prompt ends with <think> or the output begins with it, and
// lasts until </think>, or to the end of an answer that was cut short. An output that neither opens
// is answer only. Streamed and whole replies agree.
#ifndef MOB_API_REASONING_H
#define MOB_API_REASONING_H

#include <stdbool.h>
#include <stddef.h>

typedef enum mob_think { MOB_THINK_START, MOB_THINK_INSIDE, MOB_THINK_DONE } mob_think_t;

typedef struct mob_reasoning {
  mob_think_t state;
  size_t at; // bytes of the text that were given out or are tags
} mob_reasoning_t;

typedef struct mob_reasoning_delta {
  const char *reasoning, *content; // into the text
  size_t reasoning_len, content_len;
} mob_reasoning_delta_t;

// `prompt` is the rendered chat.
void mob__reasoning_init(mob_reasoning_t *r, const char *prompt, size_t len);
// What is new in text[0, len), which only ever grows; `final`: it will not grow any more.
mob_reasoning_delta_t mob__reasoning_next(mob_reasoning_t *r, const char *text, size_t len,
                                          bool final);

#endif
