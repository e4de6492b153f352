// From a placement to bundles held on nodes: prepare on all, then commit on all.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/gcs/labels.h"
#include "runtime/gcs/node_calls.h"
#include "runtime/gcs/placement.h"
#include "runtime/gcs/placement_groups.h"

enum { NODE_TIMEOUT_MS = 15000, BACKOFF_FIRST_MS = 100, BACKOFF_MAX_MS = 1000 };

// One request to one node, about those of the group's bundles that it was given.
typedef struct batch {
  mob_gcs_t *gcs;
  uint8_t group_id[MOB_PG_ID_SIZE];
  uint8_t node_id[MOB_NODE_ID_SIZE];
  MOB_VEC(size_t) bundles;
  mob_resources_t promised;
  int64_t promise;
} batch_t;

static void free_batch(batch_t *batch) {
  mob_gcs_t *gcs = batch->gcs;
  mob_vec_free(&batch->bundles);
  mob_resources_free(&batch->promised);
  free(batch);
  mob__gcs_release(gcs);
}

static void clear_node(mob__pg_t *pg, size_t i) {
  pg->bundles[i].state = MOB__BUNDLE_NONE;
  mob_pb_set_bytes(&pg->data->bundles[i]->node_id, NULL, 0);
}

void mob__pg_give_back(mob__pg_t *pg, size_t i) {
  Ray__Rpc__Bundle *bundle = pg->data->bundles[i];
  mob__node_t *node = mob__node_alive(pg->gcs, bundle->node_id.data, bundle->node_id.len);
  if (node && !pg->gcs->closing) mob__node_cancel_bundle(pg->gcs, node, bundle);
  clear_node(pg, i);
}

static void retry_later(mob__pg_t *pg) {
  pg->not_before = mob_now_ms() + pg->backoff_ms;
  pg->backoff_ms =
      pg->backoff_ms * 3 / 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : pg->backoff_ms * 3 / 2;
  if ((double)pg->backoff_ms > pg->data->stats->highest_retry_delay_ms) {
    pg->data->stats->highest_retry_delay_ms = (double)pg->backoff_ms;
  }
}

// The batches of all bundles in `state`, one for each node.
typedef MOB_VEC(batch_t *) batches_t;

static batches_t batches_of(mob__pg_t *pg, mob__bundle_state_t state) {
  batches_t list = {0};
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    if (pg->bundles[i].state != state) continue;
    ProtobufCBinaryData node = pg->data->bundles[i]->node_id;
    batch_t *batch = NULL;
    for (size_t k = 0; k < list.len; k++) {
      if (mob_pb_bytes_equal(node, list.at[k]->node_id, sizeof list.at[k]->node_id))
        batch = list.at[k];
    }
    if (!batch) {
      batch = MOB_NEW(batch_t);
      batch->gcs = pg->gcs;
      memcpy(batch->group_id, pg->id, sizeof pg->id);
      memcpy(batch->node_id, node.data, sizeof batch->node_id);
      *mob_vec_push(&list) = batch;
      mob__gcs_hold(pg->gcs);
    }
    *mob_vec_push(&batch->bundles) = i;
  }
  return list;
}

static Ray__Rpc__Bundle **bundles_of(mob__pg_t *pg, const batch_t *batch) {
  Ray__Rpc__Bundle **list = MOB_NEW_ARRAY(Ray__Rpc__Bundle *, batch->bundles.len + 1);
  for (size_t i = 0; i < batch->bundles.len; i++) list[i] = pg->data->bundles[batch->bundles.at[i]];
  return list;
}

// A node that is asked or has answered for bundles of a group that is no longer wanted gives them
// back.
static mob__pg_t *still_wanted(batch_t *batch, bool holds) {
  mob__pg_t *pg = mob__pg_find(batch->gcs, batch->group_id, sizeof batch->group_id);
  MOB_ASSERT(pg != NULL); // removed groups are kept while answers are under way
  pg->under_way--;
  if (pg->data->state != RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__REMOVED)
    return pg;
  for (size_t i = 0; i < batch->bundles.len; i++) {
    if (holds) {
      mob__pg_give_back(pg, batch->bundles.at[i]);
    } else {
      clear_node(pg, batch->bundles.at[i]);
    }
  }
  return NULL;
}

// -------------------------------------------------------------------------------------- committing

static void after_commits(mob__pg_t *pg) {
  if (pg->under_way > 0 || pg->gcs->closing) return;
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    if (pg->bundles[i].state == MOB__BUNDLE_COMMITTED) continue;
    // A node died or refused meanwhile: what stands stays, the rest is placed anew.
    pg->data->state = RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__RESCHEDULING;
    pg->data->stats->scheduling_state =
        RAY__RPC__PLACEMENT_GROUP_STATS__SCHEDULING_STATE__FAILED_TO_COMMIT_RESOURCES;
    retry_later(pg);
    mob__pg_store(pg);
    mob__gcs_schedule_soon(pg->gcs);
    return;
  }
  mob__pg_created(pg);
}

static void on_committed(void *arg, grpc_status_code code, const char *why, const void *reply) {
  (void)reply;
  batch_t *batch = arg;
  mob__pg_t *pg = still_wanted(batch, true);
  if (pg) {
    for (size_t i = 0; i < batch->bundles.len; i++) {
      size_t b = batch->bundles.at[i];
      if (pg->bundles[b].state != MOB__BUNDLE_COMMITTING) continue; // its node died
      if (code == GRPC_STATUS_OK) {
        pg->bundles[b].state = MOB__BUNDLE_COMMITTED;
      } else {
        mob__pg_give_back(pg, b);
      }
    }
    if (code != GRPC_STATUS_OK) {
      MOB_WARN("placement group %.8s: node %.8s did not commit: %s", pg->hex,
               mob_id_text_of(batch->node_id, sizeof batch->node_id).text, why);
    }
    after_commits(pg);
  }
  free_batch(batch);
}

static void commit(mob__pg_t *pg) {
  pg->data->state = RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__PREPARED;
  mob__pg_store(pg);
  batches_t batches = batches_of(pg, MOB__BUNDLE_PREPARED);
  pg->under_way += batches.len;
  for (size_t k = 0; k < batches.len; k++) {
    batch_t *batch = batches.at[k];
    for (size_t i = 0; i < batch->bundles.len; i++) {
      pg->bundles[batch->bundles.at[i]].state = MOB__BUNDLE_COMMITTING;
    }
    mob__node_t *node = mob__node_alive(pg->gcs, batch->node_id, sizeof batch->node_id);
    MOB_ASSERT(node != NULL); // a dead node's bundles are not PREPARED
    Ray__Rpc__CommitBundleResourcesRequest request =
        RAY__RPC__COMMIT_BUNDLE_RESOURCES_REQUEST__INIT;
    request.bundle_specs = bundles_of(pg, batch);
    request.n_bundle_specs = batch->bundles.len;
    mob_rpc_call(mob__node_client(pg->gcs, node), MOB__NODE_MANAGER "CommitBundleResources",
                 &request, &ray__rpc__commit_bundle_resources_reply__descriptor, NODE_TIMEOUT_MS,
                 on_committed, batch);
    free(request.bundle_specs);
  }
  mob_vec_free(&batches);
}

// --------------------------------------------------------------------------------------- preparing

static void after_prepares(mob__pg_t *pg) {
  if (pg->under_way > 0 || pg->gcs->closing) return;
  bool all = true;
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    all = all && pg->bundles[i].state != MOB__BUNDLE_NONE;
  }
  if (all && !pg->refused) {
    commit(pg);
    return;
  }
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    if (pg->bundles[i].state == MOB__BUNDLE_PREPARED) mob__pg_give_back(pg, i);
  }
  pg->data->stats->scheduling_state =
      RAY__RPC__PLACEMENT_GROUP_STATS__SCHEDULING_STATE__NO_RESOURCES;
  mob__pg_set_reason(pg,
                     "a node refused or died while its bundles were being set aside; trying again");
  retry_later(pg);
  mob__gcs_schedule_soon(pg->gcs);
}

static void on_prepared(void *arg, grpc_status_code code, const char *why, const void *reply) {
  batch_t *batch = arg;
  const Ray__Rpc__PrepareBundleResourcesReply *answer = reply;
  bool success = code == GRPC_STATUS_OK && answer->success;
  // A time-out may have prepared them all the same: only a clear no means that nothing is held.
  bool may_hold = code != GRPC_STATUS_OK || answer->success;
  mob__node_t *node = mob__node_alive(batch->gcs, batch->node_id, sizeof batch->node_id);
  if (node && !success) mob__node_take_back(node, &batch->promised, batch->promise);
  mob__pg_t *pg = still_wanted(batch, may_hold);
  if (pg) {
    for (size_t i = 0; i < batch->bundles.len; i++) {
      size_t b = batch->bundles.at[i];
      if (pg->bundles[b].state != MOB__BUNDLE_PREPARING) continue; // its node died
      if (success) {
        pg->bundles[b].state = MOB__BUNDLE_PREPARED;
      } else if (may_hold) {
        mob__pg_give_back(pg, b);
      } else {
        clear_node(pg, b);
      }
    }
    if (!success) {
      pg->refused = true;
      MOB_INFO("placement group %.8s: node %.8s did not set its bundles aside: %s", pg->hex,
               mob_id_text_of(batch->node_id, sizeof batch->node_id).text, code ? why : "no room");
    }
    after_prepares(pg);
  }
  free_batch(batch);
}

static void prepare(mob__pg_t *pg) {
  batches_t batches = batches_of(pg, MOB__BUNDLE_PREPARING);
  pg->under_way += batches.len;
  for (size_t k = 0; k < batches.len; k++) {
    batch_t *batch = batches.at[k];
    mob__node_t *node = mob__node_alive(pg->gcs, batch->node_id, sizeof batch->node_id);
    for (size_t i = 0; i < batch->bundles.len; i++) {
      mob_resources_add(&batch->promised, &pg->bundles[batch->bundles.at[i]].need);
    }
    batch->promise = mob__node_promise(node, &batch->promised);
    Ray__Rpc__PrepareBundleResourcesRequest request =
        RAY__RPC__PREPARE_BUNDLE_RESOURCES_REQUEST__INIT;
    request.bundle_specs = bundles_of(pg, batch);
    request.n_bundle_specs = batch->bundles.len;
    mob_rpc_call(mob__node_client(pg->gcs, node), MOB__NODE_MANAGER "PrepareBundleResources",
                 &request, &ray__rpc__prepare_bundle_resources_reply__descriptor, NODE_TIMEOUT_MS,
                 on_prepared, batch);
    free(request.bundle_specs);
  }
  mob_vec_free(&batches);
}

// ----------------------------------------------------------------------------------------- placing

// Label conditions as resources: a node that meets those of bundle i has plenty of "labels of
// bundle i", which the bundle needs. So placement knows nothing of labels.
typedef struct view {
  mob_resources_t total, available;
} view_t;

static void add_labels(const Ray__Rpc__Bundle *bundle, size_t i, mob_resources_t *need,
                       mob__node_t **nodes, size_t n, view_t *views) {
  if (bundle->n_label_selector == 0) return;
  char name[48];
  snprintf(name, sizeof name, "labels of bundle %zu", i);
  mob_resources_set(need, name, 1);
  for (size_t k = 0; k < n; k++) {
    const Ray__Rpc__GcsNodeInfo *info = nodes[k]->info;
    if (!mob_labels_match(info->labels, info->n_labels, bundle->label_selector,
                          bundle->n_label_selector)) {
      continue;
    }
    mob_resources_set(&views[k].total, name, INT32_MAX);
    mob_resources_set(&views[k].available, name, INT32_MAX);
  }
}

static bool holds_bundle(const mob__pg_t *pg, const mob__node_t *node) {
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    if (pg->bundles[i].state != MOB__BUNDLE_NONE &&
        mob_pb_bytes_equal(pg->data->bundles[i]->node_id, node->id, sizeof node->id)) {
      return true;
    }
  }
  return false;
}

static void describe_nodes(mob__pg_t *pg, mob__node_t **nodes, size_t n, const view_t *views,
                           mob_place_node_t *out) {
  bool apart = pg->data->strategy == RAY__RPC__PLACEMENT_STRATEGY__STRICT_SPREAD;
  for (size_t k = 0; k < n; k++) {
    out[k] = (mob_place_node_t){
        .name = nodes[k]->info->node_manager_address,
        .total = &views[k].total,
        .available = &views[k].available,
        .excluded = apart && holds_bundle(pg, nodes[k]),
        .preferred =
            mob_pb_bytes_equal(pg->data->soft_target_node_id, nodes[k]->id, sizeof nodes[k]->id),
    };
  }
}

static void give_nodes(mob__pg_t *pg, mob__node_t **nodes, const size_t *missing, size_t n,
                       const size_t *chosen) {
  for (size_t i = 0; i < n; i++) {
    mob__node_t *node = nodes[chosen[i]];
    pg->bundles[missing[i]].state = MOB__BUNDLE_PREPARING;
    mob_pb_set_bytes(&pg->data->bundles[missing[i]]->node_id, node->id, sizeof node->id);
  }
}

void mob__pg_place(mob__pg_t *pg) {
  size_t n, missing_count = 0;
  mob__node_t **nodes = mob__nodes_alive(pg->gcs, &n);
  size_t usable = 0;
  for (size_t k = 0; k < n; k++) {
    if (!nodes[k]->draining) nodes[usable++] = nodes[k];
  }
  n = usable;
  view_t *views = MOB_NEW_ARRAY(view_t, n + 1);
  for (size_t k = 0; k < n; k++) {
    mob_resources_copy(&views[k].total, &nodes[k]->total);
    mob_resources_copy(&views[k].available, &nodes[k]->available);
  }
  size_t *missing = MOB_NEW_ARRAY(size_t, pg->data->n_bundles + 1);
  mob_resources_t *needs = MOB_NEW_ARRAY(mob_resources_t, pg->data->n_bundles + 1);
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    if (pg->bundles[i].state != MOB__BUNDLE_NONE) continue;
    mob_resources_copy(&needs[missing_count], &pg->bundles[i].need);
    add_labels(pg->data->bundles[i], i, &needs[missing_count], nodes, n, views);
    missing[missing_count++] = i;
  }
  mob_place_node_t *described = MOB_NEW_ARRAY(mob_place_node_t, n + 1);
  describe_nodes(pg, nodes, n, views, described);
  size_t *chosen = MOB_NEW_ARRAY(size_t, missing_count + 1);
  mob_buf_t why = {0};
  Ray__Rpc__PlacementGroupStats *stats = pg->data->stats;
  stats->scheduling_attempt++;
  if (stats->scheduling_attempt == 1) stats->scheduling_started_time_ns = mob_wall_ms() * 1000000;
  mob_place_result_t result = mob_place_bundles((mob_placement_strategy_t)pg->data->strategy,
                                                described, n, needs, missing_count, chosen, &why);
  if (result == MOB_PLACED) {
    stats->scheduling_state = RAY__RPC__PLACEMENT_GROUP_STATS__SCHEDULING_STATE__SCHEDULING_STARTED;
    pg->refused = false;
    give_nodes(pg, nodes, missing, missing_count, chosen);
    prepare(pg);
  } else {
    bool infeasible = result == MOB_PLACE_INFEASIBLE;
    stats->scheduling_state = infeasible
                                  ? RAY__RPC__PLACEMENT_GROUP_STATS__SCHEDULING_STATE__INFEASIBLE
                                  : RAY__RPC__PLACEMENT_GROUP_STATS__SCHEDULING_STATE__NO_RESOURCES;
    mob__pg_set_reason(pg, mob_buf_cstr(&why));
  }
  mob_buf_free(&why);
  free(chosen);
  free(described);
  for (size_t i = 0; i < missing_count; i++) mob_resources_free(&needs[i]);
  free(needs);
  free(missing);
  for (size_t k = 0; k < n; k++) {
    mob_resources_free(&views[k].total);
    mob_resources_free(&views[k].available);
  }
  free(views);
  free(nodes);
}
