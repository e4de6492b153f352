// tokenizer.json and a text to encode with it: the input is the file, a NUL byte, and the text.
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  const uint8_t *nul = memchr(data, 0, size);
  size_t len = nul ? (size_t)(nul - data) : size;
  const char *text = nul ? (const char *)nul + 1 : "";
  size_t text_len = nul ? size - len - 1 : 0;
  mob_tokenizer_t *tok;
  // The file serves as tokenizer_config.json too: it has members of both.
  if (mob_tokenizer_parse((const char *)data, len, size & 1 ? (const char *)data : NULL, len,
                          &tok) != MOB_OK) {
    return 0;
  }
  mob_ids_t ids = {0};
  mob_buf_t whole = {0}, pieces = {0};
  if (mob_tokenizer_encode(tok, text, text_len, true, &ids) == MOB_OK) {
    for (int skip = 0; skip < 2; skip++) {
      whole.len = pieces.len = 0;
      if (mob_tokenizer_decode(tok, ids.at, ids.len, skip, &whole) != MOB_OK) abort();
      mob_detok_t *d = mob_detok_new(tok, skip);
      for (size_t i = 0; i < ids.len; i++) mob_detok_push(d, ids.at[i], &pieces);
      mob_detok_flush(d, &pieces);
      mob_detok_free(d);
      if (whole.len != pieces.len || (whole.len && memcmp(whole.data, pieces.data, whole.len) != 0))
        abort();
    }
  }
  mob_vec_free(&ids);
  mob_buf_free(&whole);
  mob_buf_free(&pieces);
  mob_tokenizer_close(tok);
  return 0;
}
