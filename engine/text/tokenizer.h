// Byte-level BPE from a Hugging Face tokenizer.json, as `tokenizers` computes it.
// A loaded tokenizer is read-only and may be used by many threads; encoders' caches are per call.
#ifndef MOB_TEXT_TOKENIZER_H
#define MOB_TEXT_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef MOB_VEC(int32_t) mob_ids_t;
typedef struct mob_tokenizer mob_tokenizer_t;

// Reads DIR/tokenizer.json (and tokenizer_config.json for what only it knows: bos/eos,
// add_bos_token). MOB_E_NOT_FOUND when there is no tokenizer.json; MOB_E_UNSUPPORTED names the part
// that is not supported.
mob_status mob_tokenizer_open(const char *dir, mob_tokenizer_t **out);
// The same from memory; `config_json` may be NULL.
mob_status mob_tokenizer_parse(const char *tokenizer_json, size_t len, const char *config_json,
                               size_t config_len, mob_tokenizer_t **out);
void mob_tokenizer_close(mob_tokenizer_t *tok);

// Appends the ids of `text` (UTF-8; invalid UTF-8 is MOB_E_INVALID). `add_special` runs the
// post-processor (bos). Added tokens inside the text are recognised, as `tokenizers` does by
// default.
mob_status mob_tokenizer_encode(const mob_tokenizer_t *tok, const char *text, size_t len,
                                bool add_special, mob_ids_t *out);
// Appends the text of whole `ids` (invalid byte sequences become U+FFFD). MOB_E_INVALID for an id
// out of range.
mob_status mob_tokenizer_decode(const mob_tokenizer_t *tok, const int32_t *ids, size_t count,
                                bool skip_special, mob_buf_t *out);

size_t
mob_tokenizer_vocab_size(const mob_tokenizer_t *tok); // highest id + 1, added tokens included
int32_t mob_tokenizer_id_of(const mob_tokenizer_t *tok, const char *token); // -1 when absent
// Raw bytes of one token (byte-level decoded; an added token's content). NULL for a hole.
const char *mob_tokenizer_bytes_of(const mob_tokenizer_t *tok, int32_t id, size_t *len);
bool mob_tokenizer_is_special(const mob_tokenizer_t *tok, int32_t id);
int32_t mob_tokenizer_bos(const mob_tokenizer_t *tok); // -1 when there is none
int32_t mob_tokenizer_eos(const mob_tokenizer_t *tok);

// Incremental detokenizing: feeds ids one by one and gets text that is never cut inside a
// character. What the pieces add up to equals mob_tokenizer_decode() of all ids.
typedef struct mob_detok mob_detok_t;
mob_detok_t *mob_detok_new(const mob_tokenizer_t *tok, bool skip_special);
void mob_detok_free(mob_detok_t *d);
void mob_detok_push(mob_detok_t *d, int32_t id, mob_buf_t *out);
void mob_detok_flush(mob_detok_t *d, mob_buf_t *out); // the end: incomplete bytes become U+FFFD

#endif
