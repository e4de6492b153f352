// What a loaded tokenizer holds; shared by loading, encoding and decoding.
#ifndef MOB_TEXT_TOKENIZER_INTERNAL_H
#define MOB_TEXT_TOKENIZER_INTERNAL_H

#include "engine/text/added_tokens.h"
#include "engine/text/bpe.h"
#include "engine/text/pretokenize.h"
#include "engine/text/tokenizer.h"

struct mob_tokenizer {
  mob__bpe_t bpe;
  mob__normalizer_t normalizer;
  mob__pretokenizer_t pretokenizer;
  mob__added_tokens_t added;
  mob__trie_t raw;          // added tokens that are searched before normalizing
  mob__trie_t normalized;   // those searched after it
  mob_ids_t prefix, suffix; // what the post-processor puts around a text
  int32_t bos, eos;         // -1 when there is none
};

// Fills `tok` (all-zero) from parsed files; `config` may be NULL. tokenizer_load.c
mob_status mob__tokenizer_load(mob_tokenizer_t *tok, const json_t *json, const json_t *config);

#endif
