// Normalizing a text and cutting it into the words that are merged one by one.
#ifndef MOB_TEXT_PRETOKENIZE_H
#define MOB_TEXT_PRETOKENIZE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "engine/text/regex.h"
#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef enum mob__behavior {
  MOB__ISOLATED,
  MOB__REMOVED,
  MOB__MERGED_WITH_PREVIOUS,
  MOB__MERGED_WITH_NEXT,
  MOB__CONTIGUOUS,
} mob__behavior_t;

// One step: cut by a pattern, or (no pattern) put a space in front of a piece that has none.
typedef struct mob__step {
  mob__regex_t *regex; // owned
  mob__behavior_t behavior;
  bool invert;
} mob__step_t;

typedef struct mob__pretokenizer {
  MOB_VEC(mob__step_t) steps;
} mob__pretokenizer_t;

typedef enum mob__form { MOB__NFC, MOB__NFD, MOB__NFKC, MOB__NFKD } mob__form_t;
typedef struct mob__normalizer {
  MOB_VEC(mob__form_t) forms; // one after the other; none leaves the text alone
} mob__normalizer_t;

// From "pre_tokenizer" and "normalizer" of tokenizer.json. MOB_E_UNSUPPORTED names what is not
// supported.
mob_status mob__pretokenizer_load(mob__pretokenizer_t *p, const json_t *json);
void mob__pretokenizer_free(mob__pretokenizer_t *p);
mob_status mob__normalizer_load(mob__normalizer_t *n, const json_t *json);
void mob__normalizer_free(mob__normalizer_t *n);

// The normalized text: *out is `text` itself when nothing changes, else new memory in *owned.
mob_status mob__normalize(const mob__normalizer_t *n, const char *text, size_t len,
                          const char **out, size_t *out_len, char **owned);

typedef struct mob__piece {
  const char *text;
  size_t len;
} mob__piece_t;
typedef MOB_VEC(mob__piece_t) mob__pieces_t;

// One thread's memory for pretokenizing. The pieces of the last call point into its text and into
// `owned`.
typedef struct mob__pretokenize_scratch {
  mob__regex_scratch_t regex;
  mob__pieces_t pieces, next;
  MOB_VEC(char *) owned; // until the scratch is freed
} mob__pretokenize_scratch_t;

void mob__pretokenize_scratch_free(mob__pretokenize_scratch_t *s);
// Leaves the words of `text` in s->pieces.
mob_status mob__pretokenize(const mob__pretokenizer_t *p, mob__pretokenize_scratch_t *s,
                            const char *text, size_t len);

#endif
