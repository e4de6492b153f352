// Added tokens: strings that are found in a text before anything else looks at it.
#ifndef MOB_TEXT_ADDED_TOKENS_H
#define MOB_TEXT_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/vec.h"

typedef struct mob__added_token {
  char *content; // owned
  size_t len;
  int32_t id;
  bool special, single_word, lstrip, rstrip, normalized;
} mob__added_token_t;
typedef MOB_VEC(mob__added_token_t) mob__added_tokens_t;

// A prefix tree over bytes.
typedef struct mob__trie_node {
  uint8_t byte;
  int32_t child, sibling; // indices, 0 for none
  int32_t token;          // index of the added token that ends here, -1 for none
} mob__trie_node_t;
typedef struct mob__trie {
  MOB_VEC(mob__trie_node_t) nodes;
  int32_t first[256]; // node of a string's first byte, 0 for none
} mob__trie_t;

void mob__trie_init(mob__trie_t *trie);
void mob__trie_free(mob__trie_t *trie);
void mob__trie_add(mob__trie_t *trie, const char *text, size_t len, int32_t token);

// A part of a text: an added token, or (id -1) the text between two.
typedef struct mob__segment {
  const char *text;
  size_t len;
  int32_t id;
} mob__segment_t;
typedef MOB_VEC(mob__segment_t) mob__segments_t;

// Appends the segments of `text`. Of the tokens that match, the leftmost counts, of those the
// longest.
void mob__added_tokens_split(const mob__added_tokens_t *tokens, const mob__trie_t *trie,
                             const char *text, size_t len, mob__segments_t *out);

#endif
