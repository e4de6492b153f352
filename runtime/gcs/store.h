// Where the GCS's state outlives its process. The GCS keeps its tables in memory and passes every
// change here before it acknowledges it; at start it reads them back.
//
// A table maps byte-string keys to byte-string values. Changes of one key take effect in the order
// in which they were asked for. `done` runs on the loop, perhaps before the call returns; it may be
// NULL. The key and value bytes belong to the caller and are copied when kept.
#ifndef MOB_GCS_STORE_H
#define MOB_GCS_STORE_H

#include <stddef.h>
#include <uv.h>

#include "runtime/base/status.h"

typedef enum mob_table {
  MOB_TABLE_NODE,
  MOB_TABLE_JOB,
  MOB_TABLE_ACTOR,
  MOB_TABLE_ACTOR_TASK_SPEC,
  MOB_TABLE_PLACEMENT_GROUP,
  MOB_TABLE_WORKERS,
  MOB_TABLE_KV,
  MOB_TABLE_META, // "job_counter"
  MOB_TABLE_COUNT
} mob_table_t;

typedef struct mob_store mob_store_t;
typedef void (*mob_store_done_fn)(void *arg, mob_status status);
typedef void (*mob_store_each_fn)(void *arg, const void *key, size_t key_len, const void *value,
                                  size_t value_len);

struct mob_store {
  const char *name; // "memory"
  void (*put)(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
              const void *value, size_t value_len, mob_store_done_fn done, void *arg);
  void (*del)(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
              mob_store_done_fn done, void *arg);
  // Calls `each` for every entry of the table, then `done`.
  void (*load)(mob_store_t *store, mob_table_t table, mob_store_each_fn each,
               mob_store_done_fn done, void *arg);
  void (*close)(mob_store_t *store); // frees it; nothing may be under way
};

// State that ends with the process: the GCS's own tables are all there is, so it keeps nothing and
// acknowledges at once.
mob_store_t *mob_store_memory(void);

#endif
