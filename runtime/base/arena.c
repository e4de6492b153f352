#include "runtime/base/arena.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#include "runtime/base/status.h"

#define BLOCK_SIZE ((size_t)16384)
#define ALIGN ((size_t)16)

struct mob_arena_block {
  struct mob_arena_block *next;
  size_t used, size; // of `bytes`
  _Alignas(16) unsigned char bytes[];
};

void *mob_arena_alloc(mob_arena_t *arena, size_t size) {
  size_t need = (size + ALIGN - 1) & ~(ALIGN - 1);
  MOB_ASSERT(need >= size);
  struct mob_arena_block *block = arena->blocks;
  if (!block || block->size - block->used < need) {
    size_t room = need > BLOCK_SIZE ? need : BLOCK_SIZE;
    block = mob_calloc(1, sizeof *block + room);
    block->size = room;
    block->next = arena->blocks;
    arena->blocks = block;
  }
  void *at = block->bytes + block->used;
  block->used += need;
  return at;
}

char *mob_arena_strndup(mob_arena_t *arena, const char *text, size_t len) {
  char *copy = mob_arena_alloc(arena, len + 1);
  memcpy(copy, text, len);
  return copy;
}

char *mob_arena_strdup(mob_arena_t *arena, const char *text) {
  return mob_arena_strndup(arena, text, strlen(text));
}

char *mob_arena_sprintf(mob_arena_t *arena, const char *fmt, ...) {
  va_list args, again;
  va_start(args, fmt);
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, fmt, args);
  va_end(args);
  MOB_ASSERT(n >= 0);
  char *text = mob_arena_alloc(arena, (size_t)n + 1);
  vsnprintf(text, (size_t)n + 1, fmt, again);
  va_end(again);
  return text;
}

void mob_arena_free(mob_arena_t *arena) {
  while (arena->blocks) {
    struct mob_arena_block *next = arena->blocks->next;
    free(arena->blocks);
    arena->blocks = next;
  }
}
