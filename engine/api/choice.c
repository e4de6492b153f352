#include "engine/api/choice.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

void mob__choice_init(mob_choice_t *choice, const mob_choice_rules_t *rules) {
  memset(choice, 0, sizeof *choice);
  choice->stop_id = -1;
  if (rules->tokenizer) choice->detok = mob_detok_new(rules->tokenizer, rules->skip_special);
}

void mob__choice_clear(mob_choice_t *choice) {
  if (choice->detok) mob_detok_free(choice->detok);
  for (size_t i = 0; i < choice->tokens.len; i++) free(choice->tokens.at[i].top);
  mob_vec_free(&choice->tokens);
  mob_vec_free(&choice->ids);
  mob_buf_free(&choice->text);
  memset(choice, 0, sizeof *choice);
}

static void keep(mob_choice_t *choice, const mob_sampled_t *token) {
  mob_choice_token_t *kept = mob_vec_push(&choice->tokens);
  kept->token = token->token;
  kept->chosen = token->chosen;
  kept->top_count = token->top_count;
  if (token->top_count) {
    kept->top = mob_malloc(token->top_count * sizeof *kept->top);
    memcpy(kept->top, token->top, token->top_count * sizeof *kept->top);
  }
}

// The first stop string, in the request's order, in the text that the last token may have
// completed. As vLLM looks, it may end just before that token: where min_tokens let it pass, and a
// stream has given it out. What was given out stays.
static bool find_stop(mob_choice_t *choice, const mob_choice_rules_t *rules, size_t new_bytes) {
  const char *text = (const char *)choice->text.data;
  size_t len = choice->text.len;
  for (size_t i = 0; new_bytes > 0 && i < rules->stop->len; i++) {
    const char *stop = rules->stop->at[i];
    size_t stop_len = strlen(stop);
    size_t back = new_bytes + stop_len;
    size_t from = back < len ? len - back : 0;
    const char *hit = memmem(text + from, len - from, stop, stop_len);
    if (!hit) continue;
    size_t end = (size_t)(hit - text) + (rules->include_stop ? stop_len : 0);
    choice->stop_text = stop;
    choice->text.len = end > choice->sent ? end : choice->sent;
    return true;
  }
  return false;
}

bool mob__choice_push(mob_choice_t *choice, const mob_choice_rules_t *rules,
                      const mob_sampled_t *token, mob_finish_t finish, bool keep_logprobs) {
  choice->finish = finish;
  if (!token || token->token < 0) return false;
  *mob_vec_push(&choice->ids) = token->token;
  choice->logprob_sum += token->chosen.logprob;
  if (keep_logprobs) keep(choice, token);
  size_t before = choice->text.len;
  if (choice->detok) mob_detok_push(choice->detok, token->token, &choice->text);
  if (finish == MOB_FINISH_STOP) {
    if (!rules->include_stop) choice->text.len = before; // the eos or stop token is not shown
    if (token->token != rules->eos || rules->ignore_eos) choice->stop_id = token->token;
    return false;
  }
  if ((int64_t)choice->ids.len < rules->min_tokens) return false;
  if (!find_stop(choice, rules, choice->text.len - before)) return false;
  choice->finish = MOB_FINISH_STOP;
  return finish == MOB_FINISH_NONE;
}

size_t mob__choice_ready(const mob_choice_t *choice, const mob_choice_rules_t *rules) {
  size_t len = choice->text.len;
  if (choice->finish != MOB_FINISH_NONE || rules->include_stop) return len;
  const char *text = (const char *)choice->text.data;
  size_t held = 0; // the longest end of the text that a stop string begins with
  for (size_t i = 0; i < rules->stop->len; i++) {
    const char *stop = rules->stop->at[i];
    size_t most = strlen(stop) - 1;
    if (most > len) most = len;
    size_t n = most;
    while (n > held && memcmp(text + len - n, stop, n) != 0) n--;
    if (n > held) held = n;
  }
  return len - held > choice->sent ? len - held : choice->sent;
}

const char *mob__finish_name(mob_finish_t finish) {
  switch (finish) {
  case MOB_FINISH_STOP:
    return "stop";
  case MOB_FINISH_LENGTH:
    return "length";
  default:
    return "abort";
  }
}
