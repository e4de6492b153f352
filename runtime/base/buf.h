// A growable byte buffer. Also a growable string: mob_buf_cstr() puts a NUL behind the bytes.
// All-zero is a valid empty buffer.
#ifndef MOB_BASE_BUF_H
#define MOB_BASE_BUF_H

#include <stddef.h>
#include <stdint.h>

typedef struct mob_buf {
  uint8_t *data; // owned; NULL while nothing was ever reserved
  size_t len;    // bytes used
  size_t cap;    // bytes allocated
} mob_buf_t;

void mob_buf_free(mob_buf_t *buf);              // leaves an empty buffer
void mob_buf_reserve(mob_buf_t *buf, size_t n); // room for n more bytes
void mob_buf_append(mob_buf_t *buf, const void *data, size_t len);
void mob_buf_puts(mob_buf_t *buf, const char *text);
void mob_buf_putc(mob_buf_t *buf, char c);
void mob_buf_printf(mob_buf_t *buf, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void mob_buf_consume(mob_buf_t *buf, size_t n); // drops the first n bytes
const char *mob_buf_cstr(mob_buf_t *buf);       // NUL-terminated view; the NUL is not counted in len
char *mob_buf_steal(mob_buf_t *buf);            // the NUL-terminated bytes, now the caller's; empties buf

#endif
