// Byte-pair merging: the vocabulary, the merge table, and the tokens of one word.
#ifndef MOB_TEXT_BPE_H
#define MOB_TEXT_BPE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/text/tokenizer.h"
#include "runtime/base/map.h"

typedef struct mob__token {
  size_t offset; // of its bytes in the vocabulary's `bytes`
  uint32_t len;
  bool present; // false for a hole in the ids
  bool word;    // an entry of the model whose text is all byte alphabet: the only ones a word can
                // become
  bool added, special;
} mob__token_t;

typedef struct mob__merge {
  uint64_t pair; // left id << 32 | right id; UINT64_MAX for a free slot
  uint32_t rank, id;
} mob__merge_t;

typedef struct mob__bpe {
  MOB_VEC(mob__token_t) tokens; // by id, added ones included
  mob_buf_t bytes;              // every token's bytes, one after the other
  mob_map_t ids;                // token text -> id + 1, as pointers
  size_t model_count;           // entries of model.vocab
  mob__merge_t *merges;         // open addressing
  unsigned merge_shift;         // 64 - log2 of the number of slots
  uint32_t *words;              // bytes -> id + 1, open addressing; only with ignore_merges
  size_t word_mask;
  int32_t byte_id[256]; // the token of one byte; -1 when there is none
  int32_t unk;          // -1: bytes without a token vanish
  bool fuse_unk, ignore_merges;
} mob__bpe_t;

// From the "model" object of tokenizer.json.
mob_status mob__bpe_load(mob__bpe_t *bpe, const json_t *model);
void mob__bpe_free(mob__bpe_t *bpe);

int32_t mob__bpe_id_of(const mob__bpe_t *bpe, const char *text, size_t len); // -1 when absent
// Gives `id` the bytes of `text`; the id may be new.
mob_status mob__bpe_set_token(mob__bpe_t *bpe, int32_t id, const char *text, size_t len);

// One thread's memory for merging.
typedef struct mob__bpe_symbol {
  int32_t id, prev, next; // prev and next are indices; -1 at the ends
} mob__bpe_symbol_t;
typedef struct mob__bpe_scratch {
  MOB_VEC(mob__bpe_symbol_t) symbols;
  MOB_VEC(uint64_t) heap; // rank << 32 | index of the left symbol; the smallest is at 0
} mob__bpe_scratch_t;

void mob__bpe_scratch_free(mob__bpe_scratch_t *scratch);
// Appends the ids of one word. O(n log n) for n bytes.
void mob__bpe_encode(const mob__bpe_t *bpe, mob__bpe_scratch_t *scratch, const char *word,
                     size_t len, mob_ids_t *out);

#endif
