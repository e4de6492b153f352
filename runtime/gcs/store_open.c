// Which store flags and environment ask for.
#include <stdlib.h>
#include <string.h>

#include "runtime/gcs/store.h"

static const char *env(const char *name) {
  const char *text = getenv(name);
  return text && *text ? text : NULL;
}

mob_status mob_store_open(uv_loop_t *loop, const mob_store_redis_t *redis, const char *default_dir,
                          mob_store_t **out) {
  const char *kind = env("RAY_gcs_storage"), *path = env("RAY_gcs_storage_path");
  mob_store_redis_t config = *redis;
  if (!config.address || !*config.address) config.address = env("RAY_REDIS_ADDRESS");
  if (!config.name_space) config.name_space = env("RAY_external_storage_namespace");
  // As with Ray, an address alone asks for Redis, also beside its default "memory".
  if (!kind || strcmp(kind, "memory") == 0)
    kind = config.address ? "redis" : !kind && path ? "file" : "memory";
  if (strcmp(kind, "memory") == 0) {
    *out = mob_store_memory();
    return MOB_OK;
  }
  // RocksDB is Ray's embedded store: manifests written for it find one here.
  if (strcmp(kind, "file") == 0 || strcmp(kind, "rocksdb") == 0)
    return mob_store_file(loop, path ? path : default_dir, out);
  if (strcmp(kind, "redis") != 0) {
    return mob_fail(MOB_E_INVALID, "RAY_gcs_storage=%s is no store: it is memory, file or redis",
                    kind);
  }
  if (!config.address) {
    return mob_fail(MOB_E_INVALID, "RAY_gcs_storage=redis needs RAY_REDIS_ADDRESS=HOST:PORT");
  }
  return mob_store_redis(loop, &config, out);
}
