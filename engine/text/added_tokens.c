#include "engine/text/added_tokens.h"

#include <string.h>
#include <utf8proc.h>

#include "runtime/base/utf8.h"

void mob__trie_init(mob__trie_t *trie) {
  memset(trie, 0, sizeof *trie);
  mob_vec_push(&trie->nodes)->token = -1; // index 0 means "none"
}

void mob__trie_free(mob__trie_t *trie) {
  mob_vec_free(&trie->nodes);
}

static int32_t new_node(mob__trie_t *trie, uint8_t byte, int32_t sibling) {
  *mob_vec_push(&trie->nodes) = (mob__trie_node_t){.byte = byte, .sibling = sibling, .token = -1};
  return (int32_t)trie->nodes.len - 1;
}

static int32_t child_of(const mob__trie_t *trie, int32_t node, uint8_t byte) {
  int32_t child = trie->nodes.at[node].child;
  while (child && trie->nodes.at[child].byte != byte) child = trie->nodes.at[child].sibling;
  return child;
}

void mob__trie_add(mob__trie_t *trie, const char *text, size_t len, int32_t token) {
  if (len == 0) return;
  uint8_t byte = (uint8_t)text[0];
  if (!trie->first[byte]) trie->first[byte] = new_node(trie, byte, 0);
  int32_t node = trie->first[byte];
  for (size_t i = 1; i < len; i++) {
    byte = (uint8_t)text[i];
    int32_t child = child_of(trie, node, byte);
    if (!child) {
      child = new_node(trie, byte, trie->nodes.at[node].child);
      trie->nodes.at[node].child = child;
    }
    node = child;
  }
  trie->nodes.at[node].token = token;
}

// The longest token that starts at text[0]; -1 for none.
static int32_t longest(const mob__trie_t *trie, const char *text, size_t len, size_t *match) {
  int32_t best = -1;
  int32_t node = trie->first[(uint8_t)text[0]];
  for (size_t i = 1; node; i++) {
    if (trie->nodes.at[node].token >= 0) {
      best = trie->nodes.at[node].token;
      *match = i;
    }
    node = i < len ? child_of(trie, node, (uint8_t)text[i]) : 0;
  }
  return best;
}

static bool is_space(uint32_t c) {
  if ((c >= 9 && c <= 13) || c == 0x85) return true;
  utf8proc_category_t cat = utf8proc_category((utf8proc_int32_t)c);
  return cat == UTF8PROC_CATEGORY_ZS || cat == UTF8PROC_CATEGORY_ZL || cat == UTF8PROC_CATEGORY_ZP;
}

// \w of Unicode regular expressions: letters, marks, decimal and letter numbers, connectors,
// joiners. (Alphabetic holds a few symbols more, U+24B6-24E9 and U+1F130-1F189.)
static bool is_word(uint32_t c) {
  switch (utf8proc_category((utf8proc_int32_t)c)) {
  case UTF8PROC_CATEGORY_LU:
  case UTF8PROC_CATEGORY_LL:
  case UTF8PROC_CATEGORY_LT:
  case UTF8PROC_CATEGORY_LM:
  case UTF8PROC_CATEGORY_LO:
  case UTF8PROC_CATEGORY_MN:
  case UTF8PROC_CATEGORY_MC:
  case UTF8PROC_CATEGORY_ME:
  case UTF8PROC_CATEGORY_ND:
  case UTF8PROC_CATEGORY_NL:
  case UTF8PROC_CATEGORY_PC:
    return true;
  default:
    return c == 0x200C || c == 0x200D || (c >= 0x24B6 && c <= 0x24E9) ||
           (c >= 0x1F130 && c <= 0x1F149) || (c >= 0x1F150 && c <= 0x1F169) ||
           (c >= 0x1F170 && c <= 0x1F189);
  }
}

static bool word_before(const char *text, size_t pos) {
  size_t width;
  return pos > 0 && is_word(mob_utf8_decode(text + pos - mob_utf8_back(text, pos), &width));
}

static bool word_after(const char *text, size_t len, size_t pos) {
  size_t width;
  return pos < len && is_word(mob_utf8_decode(text + pos, &width));
}

static void add_text(mob__segments_t *out, const char *text, size_t len) {
  if (len) *mob_vec_push(out) = (mob__segment_t){.text = text, .len = len, .id = -1};
}

void mob__added_tokens_split(const mob__added_tokens_t *tokens, const mob__trie_t *trie,
                             const char *text, size_t len, mob__segments_t *out) {
  size_t done = 0; // everything before is in `out`
  for (size_t i = 0; i < len;) {
    size_t match = 0;
    int32_t index = trie->first[(uint8_t)text[i]] ? longest(trie, text + i, len - i, &match) : -1;
    if (index < 0) {
      i++;
      continue;
    }
    const mob__added_token_t *t = &tokens->at[index];
    size_t start = i, end = i + match;
    i = end; // even a match that does not count hides what it covers
    if (t->single_word && (word_before(text, start) || word_after(text, len, end))) continue;
    size_t width;
    if (t->lstrip) {
      while (start > done) {
        size_t back = mob_utf8_back(text, start);
        if (!is_space(mob_utf8_decode(text + start - back, &width))) break;
        start -= back;
      }
    }
    if (t->rstrip) {
      while (end < len && is_space(mob_utf8_decode(text + end, &width))) end += width;
    }
    if (start > done) add_text(out, text + done, start - done);
    *mob_vec_push(out) = (mob__segment_t){.text = text + start, .len = end - start, .id = t->id};
    if (end > done) done = end;
  }
  if (done < len) add_text(out, text + done, len - done);
}
