// From ids back to text: the tokens' bytes in a row, read as UTF-8. A token may end inside a
// character; those bytes wait for the next token.
#include <stdlib.h>

#include "engine/text/tokenizer_internal.h"
#include "runtime/base/utf8.h"

struct mob_detok {
  const mob_tokenizer_t *tok;
  bool skip_special;
  mob_utf8_lossy_t state;
};

mob_detok_t *mob_detok_new(const mob_tokenizer_t *tok, bool skip_special) {
  mob_detok_t *d = MOB_NEW(mob_detok_t);
  d->tok = tok;
  d->skip_special = skip_special;
  return d;
}

void mob_detok_free(mob_detok_t *d) {
  free(d);
}

void mob_detok_push(mob_detok_t *d, int32_t id, mob_buf_t *out) {
  size_t len;
  const char *bytes = mob_tokenizer_bytes_of(d->tok, id, &len);
  if (!bytes || (d->skip_special && mob_tokenizer_is_special(d->tok, id))) return;
  mob_utf8_lossy_feed(&d->state, bytes, len, out);
}

void mob_detok_flush(mob_detok_t *d, mob_buf_t *out) {
  mob_utf8_lossy_end(&d->state, out);
}

mob_status mob_tokenizer_decode(const mob_tokenizer_t *tok, const int32_t *ids, size_t count,
                                bool skip_special, mob_buf_t *out) {
  size_t vocab = mob_tokenizer_vocab_size(tok);
  for (size_t i = 0; i < count; i++) {
    if (ids[i] < 0 || (size_t)ids[i] >= vocab) {
      return mob_fail(MOB_E_INVALID, "token id %d is out of range: the vocabulary has %zu tokens",
                      ids[i], vocab);
    }
  }
  mob_detok_t d = {.tok = tok, .skip_special = skip_special};
  for (size_t i = 0; i < count; i++) mob_detok_push(&d, ids[i], out);
  mob_detok_flush(&d, out);
  return MOB_OK;
}
