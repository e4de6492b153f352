// A growable array of any type: `MOB_VEC(int) v = {0}; *mob_vec_push(&v) = 3; v.at[0]; v.len`.
// Elements move when it grows, so no pointer into it may be kept across a push.
#ifndef MOB_BASE_VEC_H
#define MOB_BASE_VEC_H

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

#define MOB_VEC(type)                                                                              \
  struct {                                                                                         \
    type *at;                                                                                      \
    size_t len, cap;                                                                               \
  }

// Appends a zeroed element and gives its address.
#define mob_vec_push(v)                                                                            \
  (mob__vec_grow((void **)&(v)->at, &(v)->cap, (v)->len, sizeof *(v)->at),                         \
   memset(&(v)->at[(v)->len], 0, sizeof *(v)->at), &(v)->at[(v)->len++])

// Removes element i; the order of the others stays.
#define mob_vec_remove(v, i)                                                                       \
  do {                                                                                             \
    size_t mob_i_ = (size_t)(i);                                                                   \
    memmove(&(v)->at[mob_i_], &(v)->at[mob_i_ + 1], ((v)->len - mob_i_ - 1) * sizeof *(v)->at);    \
    (v)->len--;                                                                                    \
  } while (0)

#define mob_vec_free(v)                                                                            \
  do {                                                                                             \
    free((v)->at);                                                                                 \
    (v)->at = NULL;                                                                                \
    (v)->len = (v)->cap = 0;                                                                       \
  } while (0)

static inline void mob__vec_grow(void **at, size_t *cap, size_t len, size_t size) {
  if (len < *cap) return;
  *cap = *cap ? *cap * 2 : 8;
  *at = mob_realloc(*at, *cap * size);
}

#endif
