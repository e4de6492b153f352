#include "runtime/base/map.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "runtime/base/mem.h"
#include "runtime/base/status.h"

void mob_map_free(mob_map_t *map) {
  for (size_t i = 0; i < map->used; i++) free(map->entries[i].key);
  free(map->entries);
  free(map->slots);
  *map = (mob_map_t){0};
}

static mob_map_entry_t *find(const mob_map_t *map, uint64_t hash, const void *key, size_t len) {
  if (map->slot_count == 0) return NULL;
  size_t mask = map->slot_count - 1;
  for (size_t i = hash & mask; map->slots[i] != 0; i = (i + 1) & mask) {
    mob_map_entry_t *e = &map->entries[map->slots[i] - 1];
    if (!e->key || e->hash != hash || e->key_len != len) continue;
    if (len == 0 || memcmp(e->key, key, len) == 0) return e; // an empty key may be NULL
  }
  return NULL;
}

static void place(mob_map_t *map, size_t index) {
  size_t mask = map->slot_count - 1;
  size_t i = map->entries[index].hash & mask;
  while (map->slots[i] != 0) i = (i + 1) & mask;
  map->slots[i] = (uint32_t)index + 1;
}

// Drops removed entries and gives the live ones at least twice their number in slots.
static void rebuild(mob_map_t *map) {
  size_t live = 0;
  for (size_t i = 0; i < map->used; i++) {
    if (map->entries[i].key) map->entries[live++] = map->entries[i];
  }
  map->used = live;
  size_t slots = 16;
  while (slots < live * 4 + 4) slots *= 2;
  free(map->slots);
  map->slots = MOB_NEW_ARRAY(uint32_t, slots);
  map->slot_count = slots;
  map->entries = mob_realloc(map->entries, slots / 2 * sizeof *map->entries);
  for (size_t i = 0; i < live; i++) place(map, i);
}

void *mob_map_get(const mob_map_t *map, const void *key, size_t len) {
  mob_map_entry_t *e = find(map, XXH3_64bits(key, len), key, len);
  return e ? e->value : NULL;
}

void *mob_map_put(mob_map_t *map, const void *key, size_t len, void *value) {
  MOB_ASSERT(value != NULL);
  uint64_t hash = XXH3_64bits(key, len);
  mob_map_entry_t *e = find(map, hash, key, len);
  if (e) {
    void *former = e->value;
    e->value = value;
    return former;
  }
  if (map->used + 1 > map->slot_count / 2) rebuild(map);
  e = &map->entries[map->used++];
  *e = (mob_map_entry_t){hash, mob_malloc(len + 1), len, value};
  if (len) memcpy(e->key, key, len);
  ((char *)e->key)[len] = 0;
  place(map, map->used - 1);
  map->count++;
  return NULL;
}

// The slot stays: a dead entry (key NULL) keeps later ones of its probe sequence reachable.
void *mob_map_remove(mob_map_t *map, const void *key, size_t len) {
  mob_map_entry_t *e = find(map, XXH3_64bits(key, len), key, len);
  if (!e) return NULL;
  void *former = e->value;
  free(e->key);
  e->key = NULL;
  e->value = NULL;
  map->count--;
  return former;
}

void *mob_map_gets(const mob_map_t *map, const char *key) {
  return mob_map_get(map, key, strlen(key));
}

void *mob_map_puts(mob_map_t *map, const char *key, void *value) {
  return mob_map_put(map, key, strlen(key), value);
}

void *mob_map_removes(mob_map_t *map, const char *key) {
  return mob_map_remove(map, key, strlen(key));
}

mob_map_entry_t *mob_map_next(const mob_map_t *map, mob_map_entry_t *after) {
  for (size_t i = after ? (size_t)(after - map->entries) + 1 : 0; i < map->used; i++) {
    if (map->entries[i].key) return &map->entries[i];
  }
  return NULL;
}
