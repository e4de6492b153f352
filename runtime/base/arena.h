// Many small allocations with one lifetime: nothing is freed alone, everything at once.
// All-zero is a valid empty arena. Memory comes zeroed.
#ifndef MOB_BASE_ARENA_H
#define MOB_BASE_ARENA_H

#include <stddef.h>

typedef struct mob_arena {
  struct mob_arena_block *blocks; // newest first
} mob_arena_t;

void *mob_arena_alloc(mob_arena_t *arena, size_t size); // aligned for every type
char *mob_arena_strdup(mob_arena_t *arena, const char *text);
char *mob_arena_strndup(mob_arena_t *arena, const char *text, size_t len);
char *mob_arena_sprintf(mob_arena_t *arena, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void mob_arena_free(mob_arena_t *arena); // leaves an empty arena

#define MOB_ARENA_NEW(arena, type) ((type *)mob_arena_alloc((arena), sizeof(type)))
#define MOB_ARENA_ARRAY(arena, type, count)                                                        \
  ((type *)mob_arena_alloc((arena), (count) * sizeof(type)))

#endif
