#include "engine/text/bpe.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/text/byte_level.h"
#include "runtime/base/utf8.h"

// Words of up to this many symbols are merged by looking at every pair each time: faster than a
// heap.
#define SHORT_WORD 40

static const mob__merge_t *merge_of(const mob__bpe_t *bpe, int32_t left, int32_t right) {
  uint64_t pair = (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
  size_t mask = ((size_t)1 << (64 - bpe->merge_shift)) - 1;
  size_t i = pair * 0x9E3779B97F4A7C15u >> bpe->merge_shift;
  while (bpe->merges[i].pair != UINT64_MAX) {
    if (bpe->merges[i].pair == pair) return &bpe->merges[i];
    i = (i + 1) & mask;
  }
  return NULL;
}

static void push(mob_ids_t *out, int32_t id) {
  *mob_vec_push(out) = id;
}

void mob__bpe_scratch_free(mob__bpe_scratch_t *s) {
  mob_vec_free(&s->symbols);
  mob_vec_free(&s->heap);
}

// The symbols of the bytes, before any merge. Bytes that are no token become the unknown token, a
// run of them one when fuse_unk is set, or vanish. Ends of characters are not symbols' ends here:
// in the byte alphabet every byte is a character.
static void first_symbols(const mob__bpe_t *bpe, mob__bpe_scratch_t *s, const char *word,
                          size_t len) {
  s->symbols.len = 0;
  bool after_unk = false;
  for (size_t i = 0; i < len; i++) {
    int32_t id = bpe->byte_id[(uint8_t)word[i]];
    bool unk = id < 0;
    if (unk && (bpe->unk < 0 || (after_unk && bpe->fuse_unk))) continue;
    after_unk = unk;
    int32_t at = (int32_t)s->symbols.len;
    *mob_vec_push(&s->symbols) =
        (mob__bpe_symbol_t){.id = unk ? bpe->unk : id, .prev = at - 1, .next = at + 1};
  }
  if (s->symbols.len) s->symbols.at[s->symbols.len - 1].next = -1;
}

static void merge_short(const mob__bpe_t *bpe, mob__bpe_symbol_t *symbols, size_t count,
                        mob_ids_t *out) {
  int32_t ids[SHORT_WORD];
  const mob__merge_t *pairs[SHORT_WORD]; // pairs[i]: the merge of ids[i] and ids[i + 1]
  for (size_t i = 0; i < count; i++) ids[i] = symbols[i].id;
  for (size_t i = 0; i + 1 < count; i++) pairs[i] = merge_of(bpe, ids[i], ids[i + 1]);
  for (;;) {
    const mob__merge_t *best = NULL;
    size_t at = 0;
    for (size_t i = 0; i + 1 < count; i++) {
      if (pairs[i] && (!best || pairs[i]->rank < best->rank)) {
        best = pairs[i];
        at = i;
      }
    }
    if (!best) break;
    ids[at] = (int32_t)best->id;
    memmove(ids + at + 1, ids + at + 2, (count - at - 2) * sizeof *ids);
    if (count > at + 2) memmove(pairs + at + 1, pairs + at + 2, (count - at - 3) * sizeof *pairs);
    count--;
    if (at > 0) pairs[at - 1] = merge_of(bpe, ids[at - 1], ids[at]);
    if (at + 1 < count) pairs[at] = merge_of(bpe, ids[at], ids[at + 1]);
  }
  for (size_t i = 0; i < count; i++) push(out, ids[i]);
}

static void heap_push(mob__bpe_scratch_t *s, uint64_t value) {
  size_t i = s->heap.len;
  *mob_vec_push(&s->heap) = value;
  while (i > 0 && s->heap.at[(i - 1) / 2] > value) {
    s->heap.at[i] = s->heap.at[(i - 1) / 2];
    i = (i - 1) / 2;
  }
  s->heap.at[i] = value;
}

static uint64_t heap_pop(mob__bpe_scratch_t *s) {
  uint64_t top = s->heap.at[0], last = s->heap.at[--s->heap.len];
  size_t n = s->heap.len, i = 0;
  while (i * 2 + 1 < n) {
    size_t child = i * 2 + 1;
    if (child + 1 < n && s->heap.at[child + 1] < s->heap.at[child]) child++;
    if (s->heap.at[child] >= last) break;
    s->heap.at[i] = s->heap.at[child];
    i = child;
  }
  if (n) s->heap.at[i] = last;
  return top;
}

static void offer(const mob__bpe_t *bpe, mob__bpe_scratch_t *s, int32_t left) {
  int32_t right = left < 0 ? -1 : s->symbols.at[left].next;
  if (right < 0) return;
  const mob__merge_t *m = merge_of(bpe, s->symbols.at[left].id, s->symbols.at[right].id);
  if (m) heap_push(s, (uint64_t)m->rank << 32 | (uint32_t)left);
}

static void merge_long(const mob__bpe_t *bpe, mob__bpe_scratch_t *s, mob_ids_t *out) {
  mob__bpe_symbol_t *symbols = s->symbols.at;
  s->heap.len = 0;
  for (size_t i = 0; i + 1 < s->symbols.len; i++) offer(bpe, s, (int32_t)i);
  while (s->heap.len) {
    uint64_t top = heap_pop(s);
    int32_t at = (int32_t)(uint32_t)top;
    mob__bpe_symbol_t *left = &symbols[at];
    if (left->id < 0 || left->next < 0) continue; // merged away since
    const mob__merge_t *m = merge_of(bpe, left->id, symbols[left->next].id);
    if (!m || m->rank != top >> 32) continue; // one side is another token now
    mob__bpe_symbol_t *right = &symbols[left->next];
    left->id = (int32_t)m->id;
    left->next = right->next;
    right->id = -1;
    if (left->next >= 0) symbols[left->next].prev = at;
    offer(bpe, s, left->prev);
    offer(bpe, s, at);
  }
  for (int32_t i = 0; i >= 0; i = symbols[i].next) push(out, symbols[i].id);
}

void mob__bpe_encode(const mob__bpe_t *bpe, mob__bpe_scratch_t *s, const char *word, size_t len,
                     mob_ids_t *out) {
  if (bpe->words) { // ignore_merges: a word that is a token is that token
    size_t i = XXH3_64bits(word, len) & bpe->word_mask;
    for (; bpe->words[i]; i = (i + 1) & bpe->word_mask) {
      const mob__token_t *t = &bpe->tokens.at[bpe->words[i] - 1];
      if (t->len == len && memcmp(bpe->bytes.data + t->offset, word, len) == 0) {
        push(out, (int32_t)bpe->words[i] - 1);
        return;
      }
    }
  }
  first_symbols(bpe, s, word, len);
  if (s->symbols.len == 0) return;
  if (s->symbols.len <= SHORT_WORD) {
    merge_short(bpe, s->symbols.at, s->symbols.len, out);
  } else {
    merge_long(bpe, s, out);
  }
}
