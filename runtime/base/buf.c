#include "runtime/base/buf.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#include "runtime/base/status.h"

void mob_buf_free(mob_buf_t *buf) {
  free(buf->data);
  *buf = (mob_buf_t){0};
}

void mob_buf_reserve(mob_buf_t *buf, size_t n) {
  size_t need = buf->len + n;
  if (need <= buf->cap) return;
  size_t cap = buf->cap ? buf->cap * 2 : 64;
  if (cap < need) cap = need;
  buf->data = mob_realloc(buf->data, cap);
  buf->cap = cap;
}

void mob_buf_append(mob_buf_t *buf, const void *data, size_t len) {
  if (len == 0) return;
  mob_buf_reserve(buf, len);
  memcpy(buf->data + buf->len, data, len);
  buf->len += len;
}

void mob_buf_puts(mob_buf_t *buf, const char *text) {
  mob_buf_append(buf, text, strlen(text));
}

void mob_buf_putc(mob_buf_t *buf, char c) {
  mob_buf_append(buf, &c, 1);
}

void mob_buf_printf(mob_buf_t *buf, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  va_list again;
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, fmt, args);
  va_end(args);
  MOB_ASSERT(n >= 0);
  mob_buf_reserve(buf, (size_t)n + 1);
  vsnprintf((char *)buf->data + buf->len, (size_t)n + 1, fmt, again);
  va_end(again);
  buf->len += (size_t)n;
}

void mob_buf_consume(mob_buf_t *buf, size_t n) {
  MOB_ASSERT(n <= buf->len);
  if (n == 0) return;
  memmove(buf->data, buf->data + n, buf->len - n);
  buf->len -= n;
}

const char *mob_buf_cstr(mob_buf_t *buf) {
  mob_buf_reserve(buf, 1);
  buf->data[buf->len] = 0;
  return (const char *)buf->data;
}

char *mob_buf_steal(mob_buf_t *buf) {
  mob_buf_cstr(buf);
  char *text = (char *)buf->data;
  *buf = (mob_buf_t){0};
  return text;
}
