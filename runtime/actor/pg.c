// Placement groups: create and wait, with a message that says what is missing.

#include <stdlib.h>
#include <string.h>

#include "runtime/actor/internal.h"
#include "runtime/base/buf.h"
#include "runtime/base/hex.h"
#include "runtime/rpc/message.h"

#define CALL_TIMEOUT_MS 10000
#define SERVICE "/ray.rpc.PlacementGroupInfoGcsService/"

typedef struct pg_wait {
  mob_cluster_t *cluster;
  mob_done_fn done;
  void *arg;
  uint8_t id[MOB_PG_ID_LEN];
  char *asked; // "2 bundles: {GPU: 8} x 2, STRICT_SPREAD"
  char *why;
  uint64_t timeout_ms;
} pg_wait_t;

static void finish(pg_wait_t *wait, mob_status status, const char *why) {
  mob_cluster_t *cluster = wait->cluster;
  if (cluster->closing && status != MOB_OK) status = MOB_E_ABORTED;
  if (wait->done) wait->done(wait->arg, status, status == MOB_OK ? NULL : why);
  free(wait->asked);
  free(wait->why);
  free(wait);
  mob__cluster_leave(cluster);
}

static const char *const strategies[] = {"PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"};

static char *describe(mob_pg_strategy_t strategy, const mob_bundle_t *bundles, size_t count) {
  mob_buf_t text = {0};
  for (size_t i = 0; i < count;) {
    size_t same = 1;
    mob_buf_t one = {0};
    for (size_t r = 0; r < bundles[i].count; r++) {
      mob_buf_printf(&one, "%s%s: %g", r ? ", " : "", bundles[i].resources[r].name,
                     bundles[i].resources[r].amount);
    }
    for (; i + same < count && bundles[i + same].count == bundles[i].count; same++) {
      bool equal = true;
      for (size_t r = 0; r < bundles[i].count && equal; r++) {
        equal = bundles[i].resources[r].amount == bundles[i + same].resources[r].amount &&
                strcmp(bundles[i].resources[r].name, bundles[i + same].resources[r].name) == 0;
      }
      if (!equal) break;
    }
    mob_buf_printf(&text, "%s{%s} x %zu", i ? ", " : "", mob_buf_cstr(&one), same);
    mob_buf_free(&one);
    i += same;
  }
  mob_buf_printf(&text, " (%s)", strategies[strategy]);
  return mob_buf_steal(&text);
}

// -------------------------------------------------------------------- the time-out: what is
// missing?

static void on_nodes(void *arg, mob_status status, const char *why, const mob_node_info_t *nodes,
                     size_t count) {
  pg_wait_t *wait = arg;
  mob_buf_t text = {0};
  (void)why;
  mob_buf_printf(&text, "placement group not placed within %.1f s: asked %s; there ",
                 wait->timeout_ms / 1e3, wait->asked);
  size_t alive = 0;
  for (size_t i = 0; status == MOB_OK && i < count; i++) {
    if (!nodes[i].alive) continue;
    mob_buf_printf(&text, "%s%s: %g of %g GPU and %g of %g CPU free", alive ? "; " : "",
                   nodes[i].ip, nodes[i].gpus_free, nodes[i].gpus, nodes[i].cpus_free,
                   nodes[i].cpus);
    alive++;
  }
  if (!alive) mob_buf_puts(&text, "no node");
  if (wait->why && *wait->why) mob_buf_printf(&text, " (%s)", wait->why);
  finish(wait, MOB_E_TIMEOUT, mob_buf_cstr(&text));
  mob_buf_free(&text);
}

static void on_why(void *arg, mob_status status, const char *why, const void *message) {
  pg_wait_t *wait = arg;
  const Ray__Rpc__GetPlacementGroupReply *reply = message;
  (void)why;
  if (status == MOB_OK && reply->status) wait->why = mob_strdup(reply->status->message);
  if (!wait->cluster->closing) mob_pg_remove(wait->cluster, wait->id, NULL, NULL);
  mob_cluster_nodes(wait->cluster, on_nodes, wait);
}

static void on_ready(void *arg, mob_status status, const char *why, const void *message) {
  pg_wait_t *wait = arg;
  (void)message;
  if (status != MOB_E_TIMEOUT || wait->cluster->closing || mob__cluster_broken(wait->cluster)) {
    finish(wait, status, why);
    return;
  }
  Ray__Rpc__GetPlacementGroupRequest request = RAY__RPC__GET_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_id = mob_pb_bytes(wait->id, MOB_PG_ID_LEN);
  mob_gcs_call(wait->cluster->gcs, SERVICE "GetPlacementGroup", &request,
               &ray__rpc__get_placement_group_reply__descriptor, CALL_TIMEOUT_MS, on_why, wait);
}

static void on_created(void *arg, mob_status status, const char *why, const void *message) {
  pg_wait_t *wait = arg;
  (void)message;
  if (status == MOB_OK && wait->cluster->closing) {
    status = MOB_E_ABORTED;
    why = "the connection to the cluster was closed";
  }
  if (status != MOB_OK) {
    finish(wait, status, why);
    return;
  }
  Ray__Rpc__WaitPlacementGroupUntilReadyRequest request =
      RAY__RPC__WAIT_PLACEMENT_GROUP_UNTIL_READY_REQUEST__INIT;
  request.placement_group_id = mob_pb_bytes(wait->id, MOB_PG_ID_LEN);
  mob_gcs_call(wait->cluster->gcs, SERVICE "WaitPlacementGroupUntilReady", &request,
               &ray__rpc__wait_placement_group_until_ready_reply__descriptor, wait->timeout_ms,
               on_ready, wait);
}

static Ray__Rpc__PlacementGroupSpec *spec_of(mob_cluster_t *cluster, const uint8_t *id,
                                             const char *name, mob_pg_strategy_t strategy,
                                             const mob_bundle_t *bundles, size_t count) {
  Ray__Rpc__PlacementGroupSpec *spec = mob_malloc(sizeof *spec);
  ray__rpc__placement_group_spec__init(spec);
  spec->placement_group_id = mob_pb_bytes_dup(id, MOB_PG_ID_LEN);
  mob_pb_set_string(&spec->name, name ? name : "");
  spec->strategy = (Ray__Rpc__PlacementStrategy)strategy;
  spec->creator_job_id = mob_pb_bytes_dup(cluster->job_id, MOB_JOB_ID_LEN);
  spec->bundles = mob_calloc(count ? count : 1, sizeof *spec->bundles);
  spec->n_bundles = count;
  for (size_t i = 0; i < count; i++) {
    Ray__Rpc__Bundle *bundle = spec->bundles[i] = mob_malloc(sizeof *bundle);
    ray__rpc__bundle__init(bundle);
    bundle->bundle_id = mob_malloc(sizeof *bundle->bundle_id);
    ray__rpc__bundle__bundle_identifier__init(bundle->bundle_id);
    bundle->bundle_id->placement_group_id = mob_pb_bytes_dup(id, MOB_PG_ID_LEN);
    bundle->bundle_id->bundle_index = (int32_t)i;
    for (size_t r = 0; r < bundles[i].count; r++) {
      mob_pb_double_put(&bundle->unit_resources, &bundle->n_unit_resources,
                        bundles[i].resources[r].name, bundles[i].resources[r].amount);
    }
  }
  return spec;
}

// A cluster that is lost or closing does nothing any more; `done` hears of it later.
static bool refused(mob_cluster_t *cluster, mob_done_fn done, void *arg) {
  const char *broken = mob__cluster_broken(cluster);
  if (!broken) return false;
  mob__defer_done(cluster, done, arg, cluster->closing ? MOB_E_ABORTED : MOB_E_UNAVAILABLE, broken);
  return true;
}

void mob_pg_create(mob_cluster_t *cluster, const char *name, mob_pg_strategy_t strategy,
                   const mob_bundle_t *bundles, size_t count, uint64_t timeout_ms, mob_done_fn done,
                   void *arg, uint8_t id[MOB_PG_ID_LEN]) {
  mob_random(id, MOB_PG_ID_LEN);
  memcpy(id + MOB_PG_ID_LEN - MOB_JOB_ID_LEN, cluster->job_id, MOB_JOB_ID_LEN);
  if (refused(cluster, done, arg)) return;
  pg_wait_t *wait = MOB_NEW(pg_wait_t);
  *wait = (pg_wait_t){.cluster = cluster,
                      .done = done,
                      .arg = arg,
                      .timeout_ms = timeout_ms,
                      .asked = describe(strategy, bundles, count)};
  memcpy(wait->id, id, MOB_PG_ID_LEN);
  mob__cluster_enter(cluster);
  Ray__Rpc__CreatePlacementGroupRequest request = RAY__RPC__CREATE_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_spec = spec_of(cluster, id, name, strategy, bundles, count);
  mob_gcs_call(cluster->gcs, SERVICE "CreatePlacementGroup", &request,
               &ray__rpc__create_placement_group_reply__descriptor, CALL_TIMEOUT_MS, on_created,
               wait);
  mob_pb_free(request.placement_group_spec);
}

// ------------------------------------------------------------------------------------------------
// remove

static void on_removed(void *arg, mob_status status, const char *why, const void *message) {
  (void)message;
  finish(arg, status, why);
}

void mob_pg_remove(mob_cluster_t *cluster, const uint8_t id[MOB_PG_ID_LEN], mob_done_fn done,
                   void *arg) {
  if (refused(cluster, done, arg)) return;
  pg_wait_t *wait = MOB_NEW(pg_wait_t);
  *wait = (pg_wait_t){.cluster = cluster, .done = done, .arg = arg};
  mob__cluster_enter(cluster);
  Ray__Rpc__RemovePlacementGroupRequest request = RAY__RPC__REMOVE_PLACEMENT_GROUP_REQUEST__INIT;
  request.placement_group_id = mob_pb_bytes(id, MOB_PG_ID_LEN);
  mob_gcs_call(cluster->gcs, SERVICE "RemovePlacementGroup", &request,
               &ray__rpc__remove_placement_group_reply__descriptor, CALL_TIMEOUT_MS, on_removed,
               wait);
}
