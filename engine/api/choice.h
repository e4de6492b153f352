// One generated sequence on its way to a client: its text with stop strings cut off and held back,
// its token ids, its log probabilities.
#ifndef MOB_API_CHOICE_H
#define MOB_API_CHOICE_H

#include "engine/api/options.h"
#include "engine/stage/engine.h"
#include "engine/text/tokenizer.h"

typedef struct mob_choice_rules {
  const mob_tokenizer_t *tokenizer; // NULL: no text
  const mob_strings_t *stop;
  int32_t eos; // the model's first eos id: no stop_reason
  bool ignore_eos, include_stop, skip_special;
  int64_t min_tokens;
} mob_choice_rules_t;

typedef struct mob_choice_token { // kept when logprobs were asked for
  int32_t token;
  mob_token_logprob_t chosen;
  mob_token_logprob_t *top; // owned
  uint32_t top_count;
} mob_choice_token_t;

typedef struct mob_choice {
  mob_detok_t *detok;
  mob_buf_t text; // all of it so far
  size_t sent;    // bytes of `text` already given out
  mob_ids_t ids;
  size_t ids_sent;
  MOB_VEC(mob_choice_token_t) tokens;
  size_t tokens_sent;
  double logprob_sum;
  mob_finish_t finish;
  const char *stop_text; // the stop string that ended it (of the rules), or NULL
  int32_t stop_id;       // the stop token that ended it, -1 for none and for eos
} mob_choice_t;

void mob__choice_init(mob_choice_t *choice, const mob_choice_rules_t *rules);
void mob__choice_clear(mob_choice_t *choice);
// Takes one event of the engine. True when a stop string ended the sequence: the caller aborts the
// generation.
bool mob__choice_push(mob_choice_t *choice, const mob_choice_rules_t *rules,
                      const mob_sampled_t *token, mob_finish_t finish, bool keep_logprobs);
// Bytes of `text` that may be given out: all but what could still become a stop string.
size_t mob__choice_ready(const mob_choice_t *choice, const mob_choice_rules_t *rules);
const char *mob__finish_name(mob_finish_t finish); // "stop", "length", "abort"

#endif
