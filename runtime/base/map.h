// A hash map from byte strings to pointers. It copies its keys and does not own its values.
// All-zero is a valid empty map. Iteration follows the order of insertion; removing the entry under the
// iterator is allowed, inserting while iterating is not.
#ifndef MOB_BASE_MAP_H
#define MOB_BASE_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct mob_map_entry {
  uint64_t hash;
  void *key; // owned by the map, NUL behind it; NULL for a removed entry
  size_t key_len;
  void *value;
} mob_map_entry_t;

typedef struct mob_map {
  mob_map_entry_t *entries; // in order of insertion
  size_t used;              // entries in use, removed ones included
  size_t count;             // live entries
  uint32_t *slots;          // entry index + 1, 0 for a free slot
  size_t slot_count;        // a power of two
} mob_map_t;

void mob_map_free(mob_map_t *map); // leaves an empty map
void *mob_map_get(const mob_map_t *map, const void *key, size_t len); // NULL when absent
// Returns the former value, NULL when the key is new. `value` must not be NULL.
void *mob_map_put(mob_map_t *map, const void *key, size_t len, void *value);
void *mob_map_remove(mob_map_t *map, const void *key, size_t len); // the former value or NULL

void *mob_map_gets(const mob_map_t *map, const char *key);
void *mob_map_puts(mob_map_t *map, const char *key, void *value);
void *mob_map_removes(mob_map_t *map, const char *key);

// `for (mob_map_entry_t *e = NULL; (e = mob_map_next(&map, e));)`
mob_map_entry_t *mob_map_next(const mob_map_t *map, mob_map_entry_t *after);

#endif
