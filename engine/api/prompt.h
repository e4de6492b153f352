// From messages or text to token ids. Everything here blocks and runs on a worker thread.
#ifndef MOB_API_PROMPT_H
#define MOB_API_PROMPT_H

#include "engine/api/request.h"
#include "engine/text/template.h"
#include "engine/text/tokenizer.h"

// What of the model's directory turns requests into prompts. Read-only once opened.
typedef struct mob_prompter {
  mob_tokenizer_t *tokenizer; // NULL: token-id prompts only
  mob_template_t *chat;       // NULL: none in the directory and none given
  bool parts_to_list;         // the template iterates over message content
  json_t *special;            // bos_token, eos_token, ... as the template sees them
} mob_prompter_t;

// `template_option` is --chat-template (a file, or literal Jinja), `format`
// --chat-template-content-format.
mob_status mob__prompter_open(const char *dir, const char *template_option, const char *format,
                              bool skip_tokenizer, mob_prompter_t *out);
void mob__prompter_close(mob_prompter_t *prompter);

// The chat's text: the template over the messages. `format` as above.
mob_status mob__prompt_render(const mob_prompter_t *prompter, const mob_api_request_t *request,
                              const char *format, mob_buf_t *out);
// Ids of one prompt, cut to the last truncate_prompt_tokens.
mob_status mob__prompt_encode(const mob_prompter_t *prompter, const mob_api_request_t *request,
                              const char *text, size_t len, mob_ids_t *out);

#endif
