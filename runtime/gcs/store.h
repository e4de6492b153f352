// Where the GCS's state outlives its process. The GCS keeps its tables in memory and passes every
// change here before it acknowledges it; at start it reads them back.
//
// A table maps byte-string keys to byte-string values. Changes take effect in the order in which
// they were asked for. `done` runs on the loop, perhaps before the call returns; it may be NULL.
// The key and value bytes belong to the caller and are copied when kept.
//
// A change whose `done` says MOB_E_UNAVAILABLE is not known to be stored; the store goes on trying,
// so that what it holds becomes what the GCS has in memory once it can be written again.
#ifndef MOB_GCS_STORE_H
#define MOB_GCS_STORE_H

#include <stdbool.h>
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
  MOB_TABLE_META, // MOB_STORE_JOB_COUNTER alone
  MOB_TABLE_COUNT
} mob_table_t;

// The number of the newest job, as decimal text.
#define MOB_STORE_JOB_COUNTER "JobCounter"

typedef struct mob_store mob_store_t;
typedef void (*mob_store_done_fn)(void *arg, mob_status status);
typedef void (*mob_store_each_fn)(void *arg, const void *key, size_t key_len, const void *value,
                                  size_t value_len);

struct mob_store {
  const char *name; // "memory", "file", "redis"
  bool persistent;  // outlives the process
  void (*put)(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
              const void *value, size_t value_len, mob_store_done_fn done, void *arg);
  void (*del)(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
              mob_store_done_fn done, void *arg);
  // `done` comes once all changes asked for before are stored.
  void (*sync)(mob_store_t *store, mob_store_done_fn done, void *arg);
  // Calls `each` for every entry of the table; one entry may come twice. Only before the first
  // change, while nothing is served yet: it blocks.
  mob_status (*load)(mob_store_t *store, mob_table_t table, mob_store_each_fn each, void *arg);
  // Finishes what is under way as far as it can be, and frees the store. `done` may be NULL; the
  // loop must run until then.
  void (*close)(mob_store_t *store, void (*done)(void *arg), void *arg);
};

// State that ends with the process: the GCS's own tables are all there is, so it keeps nothing and
// acknowledges at once.
mob_store_t *mob_store_memory(void);

// A log of changes in the folder `dir` (made when missing), which belongs to one process at a time.
// A change is acknowledged once fdatasync has returned; changes that come meanwhile share the next
// one. MOB_E_FORMAT names file and offset of what is damaged, MOB_E_EXISTS who else uses it.
mob_status mob_store_file(uv_loop_t *loop, const char *dir, mob_store_t **out);

typedef struct mob_store_redis {
  // "host:port", "redis://[user:password@]host:port", "[v6]:port" or "unix:///path/of.sock".
  const char *address;
  const char *username, *password; // win over those of the address; NULL or "": none
  const char *name_space;          // NULL: "default"; holds no '@'
} mob_store_redis_t;

// Hashes `RAY<namespace>@<TABLE>` in Redis, as Ray keeps them. Blocks until Redis answers, 60 s at
// the longest (RAY_redis_db_connect_retries x RAY_redis_db_connect_wait_milliseconds).
mob_status mob_store_redis(uv_loop_t *loop, const mob_store_redis_t *config, mob_store_t **out);

// The store that flags and environment ask for (README.md, "State"). `redis` is what flags say; its
// address NULL: RAY_REDIS_ADDRESS. `default_dir` is for a file store without a path.
mob_status mob_store_open(uv_loop_t *loop, const mob_store_redis_t *redis, const char *default_dir,
                          mob_store_t **out);

#endif
