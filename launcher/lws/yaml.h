// A YAML stream as trees that keep their line numbers, for messages that point at the place.
//
// Read like the Kubernetes API server's front end does: YAML 1.1 scalars, no duplicate keys,
// aliases allowed but bounded. Everything lives in the caller's arena.
#ifndef MOB_LWS_YAML_H
#define MOB_LWS_YAML_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/arena.h"
#include "runtime/base/status.h"

typedef enum mob_yaml_kind { MOB_YAML_SCALAR, MOB_YAML_MAP, MOB_YAML_SEQ } mob_yaml_kind_t;

// What a scalar means; quoted scalars are always strings.
typedef enum mob_yaml_type {
  MOB_YAML_NULL,
  MOB_YAML_BOOL,
  MOB_YAML_INT,
  MOB_YAML_FLOAT,
  MOB_YAML_STRING,
} mob_yaml_type_t;

typedef struct mob_yaml_node mob_yaml_node_t;

typedef struct mob_yaml_entry {
  const char *key;
  int line;
  const mob_yaml_node_t *value;
} mob_yaml_entry_t;

struct mob_yaml_node {
  mob_yaml_kind_t kind;
  int line; // from 1
  // scalar
  const char *text; // NUL-terminated, without NUL inside
  bool plain;       // written without quotes
  // map: `entries`, sequence: `items`; `count` of either
  size_t count;
  const mob_yaml_entry_t *entries;
  const mob_yaml_node_t **items;
  uint64_t weight; // nodes below and including this one, aliases counted as often as they stand
};

// `*docs` gets one root a document; documents without content are left out. A failure's message
// begins with "FILE:LINE: ".
mob_status mob__yaml_parse(mob_arena_t *arena, const char *file, const void *data, size_t len,
                           const mob_yaml_node_t ***docs, size_t *count);

// NULL when the map lacks the key or `map` is no map.
const mob_yaml_node_t *mob__yaml_get(const mob_yaml_node_t *map, const char *key);

mob_yaml_type_t mob__yaml_type(const mob_yaml_node_t *scalar);
bool mob__yaml_bool(const mob_yaml_node_t *scalar); // of a MOB_YAML_BOOL
bool mob__yaml_int(const mob_yaml_node_t *scalar,
                   int64_t *out); // false when it is none or does not fit
const char *mob__yaml_describe(const mob_yaml_node_t *node); // "a string", "a list", ...

#endif
