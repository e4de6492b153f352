// UTF-8: checking, single characters, and decoding that replaces what is broken.
#ifndef MOB_BASE_UTF8_H
#define MOB_BASE_UTF8_H

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"

// The number of leading bytes that are well-formed UTF-8 (Unicode 15, table 3-7: no surrogates, no
// overlong forms, nothing above U+10FFFF); `len` when all are.
size_t mob_utf8_valid_prefix(const void *text, size_t len);

// The character at `text`, which must be well-formed, and its length in bytes.
uint32_t mob_utf8_decode(const char *text, size_t *width);
// The bytes of a character; returns how many (1-4).
size_t mob_utf8_encode(uint32_t cp, char out[4]);
size_t mob_utf8_count(const char *text, size_t len); // characters of well-formed text
// Bytes from `pos` back to the start of the character that ends there (`pos` > 0).
size_t mob_utf8_back(const char *text, size_t pos);
// What is not UTF-8 becomes '?', byte by byte: texts of other programs and names of files, before
// they go into JSON or protobuf, whose readers refuse the rest.
void mob_utf8_clean(char *text);
// snprintf() whose result is UTF-8 whatever the arguments are: cut between characters, and cleaned.
void mob_utf8_format(char *to, size_t cap, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void mob_utf8_vformat(char *to, size_t cap, const char *fmt, va_list args)
    __attribute__((format(printf, 3, 0)));

// Decoding in pieces. Ill-formed bytes become U+FFFD, one for each maximal subpart (Unicode 15,
// §3.9), as Python's bytes.decode('utf-8', 'replace') and Rust's String::from_utf8_lossy do it.
// All-zero starts.
typedef struct mob_utf8_lossy {
  uint8_t pending[4]; // the well-formed beginning of a character
  uint8_t count;
} mob_utf8_lossy_t;

void mob_utf8_lossy_feed(mob_utf8_lossy_t *s, const void *bytes, size_t len, mob_buf_t *out);
void mob_utf8_lossy_end(mob_utf8_lossy_t *s, mob_buf_t *out);

#endif
