#include "runtime/base/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *checked(void *ptr, size_t size) {
  if (ptr == NULL && size != 0) {
    fprintf(stderr, "out of memory: %zu bytes\n", size);
    abort();
  }
  return ptr;
}

void *mob_malloc(size_t size) {
  return checked(malloc(size), size);
}

void *mob_calloc(size_t count, size_t size) {
  return checked(calloc(count, size), count * size);
}

void *mob_realloc(void *ptr, size_t size) {
  return checked(realloc(ptr, size), size);
}

char *mob_strdup(const char *text) {
  return text ? checked(strdup(text), 1) : NULL;
}

char *mob_strndup(const char *text, size_t len) {
  return checked(strndup(text, len), len + 1);
}

char *mob_sprintf(const char *fmt, ...) {
  char *text = NULL;
  va_list args;
  va_start(args, fmt);
  int n = vasprintf(&text, fmt, args);
  va_end(args);
  return checked(n < 0 ? NULL : text, 1);
}
