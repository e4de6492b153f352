// Reading the tables back at start, and what a GCS does that finds itself restarted: see
// README.md, "State".
#define MOB_LOG_COMPONENT "gcs"
#include "runtime/gcs/restore.h"

#include "runtime/base/log.h"
#include "runtime/gcs/node_calls.h"

enum { TIMEOUT_MS = 30000 };

typedef void (*restore_fn)(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                           size_t value_len);

typedef struct reading {
  mob_gcs_t *gcs;
  restore_fn fn;
  size_t rows;
} reading_t;

static void on_row(void *arg, const void *key, size_t key_len, const void *value,
                   size_t value_len) {
  reading_t *reading = arg;
  reading->rows++;
  reading->fn(reading->gcs, key, key_len, value, value_len);
}

void *mob__restore_row(const char *table, const ProtobufCMessageDescriptor *type, const void *key,
                       size_t key_len, const void *value, size_t value_len) {
  void *row = NULL;
  if (mob_pb_unpack(type, value, value_len, &row) == MOB_OK) return row;
  MOB_ERROR("the %s %s in the store cannot be read and is left out: %s", table,
            mob_id_text_of(key, key_len).text, mob_errmsg());
  return NULL;
}

mob_status mob__gcs_restore(mob_gcs_t *gcs) {
  // In this order: later rows name earlier ones.
  static const struct {
    mob_table_t table;
    restore_fn fn;
  } tables[] = {
      {MOB_TABLE_KV, mob__kv_restore},
      {MOB_TABLE_META, mob__jobs_restore_counter},
      {MOB_TABLE_JOB, mob__jobs_restore},
      {MOB_TABLE_NODE, mob__nodes_restore},
      {MOB_TABLE_WORKERS, mob__workers_restore},
      {MOB_TABLE_ACTOR, mob__actors_restore},
      {MOB_TABLE_ACTOR_TASK_SPEC, mob__actors_restore_spec},
      {MOB_TABLE_PLACEMENT_GROUP, mob__pgs_restore},
  };
  size_t rows = 0;
  for (size_t i = 0; i < MOB_LEN(tables); i++) {
    reading_t reading = {gcs, tables[i].fn, 0};
    mob_status status = gcs->store->load(gcs->store, tables[i].table, on_row, &reading);
    if (status != MOB_OK) return mob_wrap(status, "the state of the GCS cannot be read");
    rows += reading.rows;
  }
  gcs->restored = rows > 0;
  if (rows) MOB_INFO("%zu rows of a former GCS are read back from the store", rows);
  return MOB_OK;
}

void mob__gcs_resume(mob_gcs_t *gcs) {
  if (!gcs->restored) return;
  mob__nodes_resume(gcs);
  mob__pgs_resume(gcs);
  mob__actors_resume(gcs);
  mob__jobs_resume(gcs);
  mob__gcs_schedule_soon(gcs);
}

static void on_answered(void *arg, grpc_status_code code, const char *why, const void *reply) {
  (void)reply;
  if (code != GRPC_STATUS_OK && code != GRPC_STATUS_CANCELLED)
    MOB_WARN("a node that lived through the restart did not take the news (%s): %s",
             (const char *)arg, why);
}

void mob__gcs_tell_restart(mob_gcs_t *gcs, mob__node_t *node) {
  mob_rpc_client_t *client = mob__node_client(gcs, node);
  Ray__Rpc__NotifyGCSRestartRequest notice = RAY__RPC__NOTIFY_GCSRESTART_REQUEST__INIT;
  mob_rpc_call(client, MOB__NODE_MANAGER "NotifyGCSRestart", &notice,
               &ray__rpc__notify_gcsrestart_reply__descriptor, TIMEOUT_MS, on_answered,
               "NotifyGCSRestart");
  // What a creation that was under way has left behind on the node is given up there.
  mob__used_workers_t workers = {0};
  mob__actors_used_workers(gcs, node, &workers);
  Ray__Rpc__ReleaseUnusedActorWorkersRequest used =
      RAY__RPC__RELEASE_UNUSED_ACTOR_WORKERS_REQUEST__INIT;
  used.worker_ids_in_use = workers.at;
  used.n_worker_ids_in_use = workers.len;
  mob_rpc_call(client, MOB__NODE_MANAGER "ReleaseUnusedActorWorkers", &used,
               &ray__rpc__release_unused_actor_workers_reply__descriptor, TIMEOUT_MS, on_answered,
               "ReleaseUnusedActorWorkers");
  mob_vec_free(&workers);
  mob__used_bundles_t bundles = {0};
  mob__pgs_used_bundles(gcs, node, &bundles);
  Ray__Rpc__ReleaseUnusedBundlesRequest held = RAY__RPC__RELEASE_UNUSED_BUNDLES_REQUEST__INIT;
  held.bundles_in_use = bundles.at;
  held.n_bundles_in_use = bundles.len;
  mob_rpc_call(client, MOB__NODE_MANAGER "ReleaseUnusedBundles", &held,
               &ray__rpc__release_unused_bundles_reply__descriptor, TIMEOUT_MS, on_answered,
               "ReleaseUnusedBundles");
  mob_vec_free(&bundles);
}
