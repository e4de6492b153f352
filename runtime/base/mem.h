// Allocation of small host memory: never fails, because a process that cannot get a few bytes cannot
// go on. Big buffers (weights, KV cache) are taken where the failure can be reported.
#ifndef MOB_BASE_MEM_H
#define MOB_BASE_MEM_H

#include <stddef.h>

void *mob_malloc(size_t size);
void *mob_calloc(size_t count, size_t size);
void *mob_realloc(void *ptr, size_t size);
char *mob_strdup(const char *text);
char *mob_strndup(const char *text, size_t len);
char *mob_sprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#define MOB_NEW(type) ((type *)mob_calloc(1, sizeof(type)))
#define MOB_NEW_ARRAY(type, count) ((type *)mob_calloc((count), sizeof(type)))
#define MOB_LEN(array) (sizeof(array) / sizeof *(array))

#endif
