// PlacementGroupInfoGcsService: the table of placement groups.
#define MOB_LOG_COMPONENT "gcs"
#include "runtime/gcs/placement_groups.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/gcs/restore.h"

enum { REMOVED_KEPT = 1000, BACKOFF_FIRST_MS = 100 };

#define STATE(name) RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__PLACEMENT_GROUP_STATE__##name
#define SCHEDULING(name) RAY__RPC__PLACEMENT_GROUP_STATS__SCHEDULING_STATE__##name

struct mob__pgs {
  mob_gcs_t *gcs;
  mob_map_t all; // group id -> mob__pg_t, in the order of creation
  size_t removed;
};

mob__pg_t *mob__pg_find(mob_gcs_t *gcs, const void *id, size_t len) {
  return mob_map_get(&gcs->pgs->all, id, len);
}

mob__group_state_t mob__pg_state(mob_gcs_t *gcs, const void *id, size_t len) {
  mob__pg_t *pg = mob__pg_find(gcs, id, len);
  if (!pg) return MOB__GROUP_UNKNOWN;
  return pg->data->state == STATE(REMOVED) ? MOB__GROUP_REMOVED : MOB__GROUP_LIVE;
}

bool mob__pg_is_waiting(const mob__pg_t *pg) {
  return pg->under_way == 0 &&
         (pg->data->state == STATE(PENDING) || pg->data->state == STATE(RESCHEDULING));
}

void mob__pg_set_reason(mob__pg_t *pg, const char *reason) {
  char *copy = reason ? mob_strdup(reason) : NULL;
  if (copy && (!pg->reason || strcmp(copy, pg->reason) != 0)) {
    MOB_INFO("placement group %.8s (%s) waits: %s", pg->hex, pg->data->name, copy);
  }
  free(pg->reason);
  pg->reason = copy;
}

void mob__pg_store(mob__pg_t *pg) {
  mob__gcs_store_put(pg->gcs, MOB_TABLE_PLACEMENT_GROUP, pg->id, sizeof pg->id, pg->data);
}

static void free_pg(mob__pg_t *pg) {
  for (size_t i = 0; i < pg->data->n_bundles; i++) mob_resources_free(&pg->bundles[i].need);
  free(pg->bundles);
  mob_vec_free(&pg->waiters);
  free(pg->reason);
  mob_pb_free(pg->data);
  free(pg);
}

// ----------------------------------------------------------------------------------------- waiters

static void on_waiter_cancelled(void *arg, mob_rpc_call_t *call) {
  mob__pg_t *pg = arg;
  for (size_t i = 0; i < pg->waiters.len; i++) {
    if (pg->waiters.at[i] != call) continue;
    mob_vec_remove(&pg->waiters, i);
    break;
  }
  mob_rpc_reply_status(call, GRPC_STATUS_CANCELLED, "");
}

static void answer_waiters(mob__pg_t *pg, int code, const char *text) {
  Ray__Rpc__WaitPlacementGroupUntilReadyReply reply =
      RAY__RPC__WAIT_PLACEMENT_GROUP_UNTIL_READY_REPLY__INIT;
  reply.status = mob__gcs_status(pg->gcs, code, "%s", text);
  for (size_t i = 0; i < pg->waiters.len; i++) {
    mob_rpc_call_on_cancel(pg->waiters.at[i], NULL, NULL);
    mob__gcs_reply_stored(pg->gcs, pg->waiters.at[i], &reply);
  }
  pg->waiters.len = 0;
}

void mob__pg_created(mob__pg_t *pg) {
  pg->data->state = STATE(CREATED);
  Ray__Rpc__PlacementGroupStats *stats = pg->data->stats;
  stats->scheduling_state = SCHEDULING(FINISHED);
  uint64_t now = (uint64_t)mob_wall_ms();
  stats->scheduling_latency_us = (int64_t)now * 1000 - stats->scheduling_started_time_ns / 1000;
  stats->end_to_end_creation_latency_us =
      (int64_t)now * 1000 - stats->creation_request_received_ns / 1000;
  pg->data->placement_group_final_bundle_placement_timestamp_ms = (int64_t)now;
  pg->backoff_ms = BACKOFF_FIRST_MS;
  mob__pg_set_reason(pg, NULL);
  MOB_INFO("placement group %.8s (%s) is placed: %zu bundles", pg->hex, pg->data->name,
           pg->data->n_bundles);
  mob__pg_store(pg);
  answer_waiters(pg, MOB__GCS_OK, "");
  mob__gcs_schedule_soon(pg->gcs);
}

// ---------------------------------------------------------------------------------------- removing

static void forget_oldest(mob__pgs_t *pgs) {
  if (pgs->removed <= REMOVED_KEPT) return;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&pgs->all, e));) {
    mob__pg_t *pg = e->value;
    if (pg->data->state != STATE(REMOVED) || pg->under_way > 0) continue;
    mob__gcs_store_del(pgs->gcs, MOB_TABLE_PLACEMENT_GROUP, pg->id, sizeof pg->id);
    mob_map_remove(&pgs->all, pg->id, sizeof pg->id);
    free_pg(pg);
    pgs->removed--;
    return;
  }
}

static void remove_group(mob__pg_t *pg, const char *why) {
  if (pg->data->state == STATE(REMOVED)) return;
  MOB_INFO("placement group %.8s (%s) is removed: %s", pg->hex, pg->data->name, why);
  pg->data->state = STATE(REMOVED);
  pg->data->stats->scheduling_state = SCHEDULING(REMOVED);
  mob__pg_set_reason(pg, NULL);
  pg->gcs->pgs->removed++;
  mob__actors_group_removed(pg->gcs, pg->id);
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    // A node that is still to answer for a bundle is told when it has.
    if (pg->bundles[i].state == MOB__BUNDLE_PREPARED ||
        pg->bundles[i].state == MOB__BUNDLE_COMMITTED) {
      mob__pg_give_back(pg, i);
    }
  }
  mob__pg_store(pg);
  answer_waiters(pg, MOB__GCS_NOT_FOUND, "Placement group is removed.");
  forget_oldest(pg->gcs->pgs);
  mob__gcs_schedule_soon(pg->gcs);
}

static void remove_where(mob_gcs_t *gcs, bool (*match)(const mob__pg_t *, const void *),
                         const void *key, const char *why) {
  mob__pg_t *found;
  do { // one at a time: removing may forget another
    found = NULL;
    for (mob_map_entry_t *e = NULL; !found && (e = mob_map_next(&gcs->pgs->all, e));) {
      mob__pg_t *pg = e->value;
      if (pg->data->state != STATE(REMOVED) && !pg->data->is_detached && match(pg, key)) found = pg;
    }
    if (found) remove_group(found, why);
  } while (found);
}

static bool of_job(const mob__pg_t *pg, const void *job_id) {
  return mob_pb_bytes_equal(pg->data->creator_job_id, job_id, MOB_JOB_ID_SIZE);
}

static bool of_actor(const mob__pg_t *pg, const void *actor_id) {
  return mob_pb_bytes_equal(pg->data->creator_actor_id, actor_id, MOB_ACTOR_ID_SIZE);
}

void mob__pgs_job_finished(mob_gcs_t *gcs, const uint8_t *job_id) {
  remove_where(gcs, of_job, job_id, "its job ended");
}

void mob__pgs_actor_dead(mob_gcs_t *gcs, const uint8_t *actor_id) {
  remove_where(gcs, of_actor, actor_id, "the actor that made it died");
}

void mob__pgs_node_dead(mob_gcs_t *gcs, mob__node_t *node) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->pgs->all, e));) {
    mob__pg_t *pg = e->value;
    size_t lost = 0;
    for (size_t i = 0; i < pg->data->n_bundles; i++) {
      if (pg->bundles[i].state == MOB__BUNDLE_NONE ||
          !mob_pb_bytes_equal(pg->data->bundles[i]->node_id, node->id, sizeof node->id)) {
        continue;
      }
      pg->bundles[i].state = MOB__BUNDLE_NONE;
      mob_pb_set_bytes(&pg->data->bundles[i]->node_id, NULL, 0);
      pg->refused = true;
      lost++;
    }
    if (lost == 0 || pg->data->state != STATE(CREATED)) continue;
    MOB_INFO("placement group %.8s (%s) lost %zu bundles with node %.8s", pg->hex, pg->data->name,
             lost, node->hex);
    pg->data->state = STATE(RESCHEDULING);
    pg->data->stats->scheduling_state = SCHEDULING(QUEUED);
    mob__pg_store(pg);
  }
}

// -------------------------------------------------------------------------------------- scheduling

void mob__pgs_schedule(mob_gcs_t *gcs) {
  uint64_t now = mob_now_ms();
  bool expected = mob__nodes_expected(gcs); // the last to come or to die starts another pass
  for (int fresh = 0; fresh < 2; fresh++) { // groups that lost something come first
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->pgs->all, e));) {
      mob__pg_t *pg = e->value;
      if (!mob__pg_is_waiting(pg) || pg->not_before > now || (pg->restored && expected)) continue;
      if ((pg->data->state == STATE(PENDING)) != (fresh == 1)) continue;
      mob__pg_place(pg);
    }
  }
}

void mob__pgs_tick(mob_gcs_t *gcs) {
  uint64_t now = mob_now_ms();
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->pgs->all, e));) {
    mob__pg_t *pg = e->value;
    if (!mob__pg_is_waiting(pg) || pg->not_before == 0 || pg->not_before > now) continue;
    pg->not_before = 0;
    mob__gcs_schedule_soon(gcs);
  }
}

void mob__pgs_each_waiting(mob_gcs_t *gcs, mob__pg_fn fn, void *arg) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->pgs->all, e));) {
    mob__pg_t *pg = e->value;
    if (pg->data->state == STATE(PENDING) || pg->data->state == STATE(RESCHEDULING))
      fn(arg, pg->data);
  }
}

// ----------------------------------------------------------------------------------------- bundles

// NULL when they can be placed, else why not.
static const char *check_bundles(int strategy, Ray__Rpc__Bundle *const *bundles, size_t n) {
  if (n == 0) return "A placement group needs at least one bundle.";
  if ((unsigned)strategy > RAY__RPC__PLACEMENT_STRATEGY__STRICT_SPREAD) return "Unknown strategy.";
  for (size_t i = 0; i < n; i++) {
    bool any = false;
    for (size_t k = 0; k < bundles[i]->n_unit_resources; k++) {
      double value = bundles[i]->unit_resources[k]->value;
      if (!(value >= 0) || value > 1e14)
        return "A resource of a bundle is negative or out of range.";
      any = any || value > 0;
    }
    if (!any) return "A bundle asks for nothing: every bundle needs at least one resource above 0.";
  }
  return NULL;
}

// What each bundle of the table's row needs, and its id.
static void take_bundles(mob__pg_t *pg) {
  pg->bundles = MOB_NEW_ARRAY(mob__bundle_t, pg->data->n_bundles);
  for (size_t i = 0; i < pg->data->n_bundles; i++) {
    Ray__Rpc__Bundle *bundle = pg->data->bundles[i];
    mob_resources_read(&pg->bundles[i].need, bundle->unit_resources, bundle->n_unit_resources);
    if (!bundle->bundle_id) {
      bundle->bundle_id = MOB_NEW(Ray__Rpc__Bundle__BundleIdentifier);
      ray__rpc__bundle__bundle_identifier__init(bundle->bundle_id);
    }
    mob_pb_set_bytes(&bundle->bundle_id->placement_group_id, pg->id, sizeof pg->id);
    bundle->bundle_id->bundle_index = (int32_t)i;
  }
}

// --------------------------------------------------------------------------------- after a restart

// A reservation that was under way is begun anew: nodes give up the bundles that are not named to
// them as used.
void mob__pgs_restore(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                      size_t value_len) {
  mob__pgs_t *pgs = gcs->pgs;
  if (key_len != MOB_PG_ID_SIZE || mob__pg_find(gcs, key, key_len)) return;
  Ray__Rpc__PlacementGroupTableData *data =
      mob__restore_row("placement group", &ray__rpc__placement_group_table_data__descriptor, key,
                       key_len, value, value_len);
  if (!data) return;
  const char *bad = check_bundles((int)data->strategy, data->bundles, data->n_bundles);
  if (bad) {
    MOB_ERROR("the placement group %s in the store is left out: %s",
              mob_id_text_of(key, key_len).text, bad);
    mob_pb_free(data);
    return;
  }
  mob__pg_t *pg = MOB_NEW(mob__pg_t);
  pg->gcs = gcs;
  pg->restored = true;
  pg->data = data;
  memcpy(pg->id, key, key_len);
  mob_pb_set_bytes(&data->placement_group_id, key, key_len);
  mob_hex(pg->id, sizeof pg->id, pg->hex);
  pg->backoff_ms = BACKOFF_FIRST_MS;
  if (!data->stats) {
    data->stats = MOB_NEW(Ray__Rpc__PlacementGroupStats);
    ray__rpc__placement_group_stats__init(data->stats);
  }
  bool held = data->state == STATE(CREATED) || data->state == STATE(RESCHEDULING);
  if (data->state == STATE(PREPARED)) data->state = STATE(PENDING);
  take_bundles(pg);
  for (size_t i = 0; i < data->n_bundles; i++) {
    Ray__Rpc__Bundle *bundle = data->bundles[i];
    if (held && bundle->node_id.len == MOB_NODE_ID_SIZE) {
      pg->bundles[i].state = MOB__BUNDLE_COMMITTED;
    } else {
      mob_pb_set_bytes(&bundle->node_id, NULL, 0);
    }
  }
  if (data->state == STATE(REMOVED)) pgs->removed++;
  mob_map_put(&pgs->all, pg->id, sizeof pg->id, pg);
}

void mob__pgs_resume(mob_gcs_t *gcs) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->pgs->all, e));) {
    mob__pg_t *pg = e->value;
    for (size_t i = 0; i < pg->data->n_bundles; i++) {
      if (pg->bundles[i].state != MOB__BUNDLE_COMMITTED) continue;
      ProtobufCBinaryData id = pg->data->bundles[i]->node_id;
      mob__node_t *node = mob__node_find(gcs, id.data, id.len);
      if (node && (node->alive || node->expected_until)) continue;
      pg->bundles[i].state = MOB__BUNDLE_NONE; // the node died, and this was not stored any more
      mob_pb_set_bytes(&pg->data->bundles[i]->node_id, NULL, 0);
      pg->data->state = STATE(RESCHEDULING);
    }
  }
}

void mob__pgs_used_bundles(mob_gcs_t *gcs, const mob__node_t *node, mob__used_bundles_t *out) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->pgs->all, e));) {
    const mob__pg_t *pg = e->value;
    if (pg->data->state == STATE(REMOVED)) continue;
    for (size_t i = 0; i < pg->data->n_bundles; i++) {
      Ray__Rpc__Bundle *bundle = pg->data->bundles[i];
      if (pg->bundles[i].state == MOB__BUNDLE_NONE) continue;
      if (mob_pb_bytes_equal(bundle->node_id, node->id, sizeof node->id))
        *mob_vec_push(out) = bundle;
    }
  }
}

// ----------------------------------------------------------------------------------------- service

static mob__pg_t *find_named(mob_gcs_t *gcs, const char *name, const char *space) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->pgs->all, e));) {
    mob__pg_t *pg = e->value;
    if (pg->data->state != STATE(REMOVED) && strcmp(pg->data->name, name) == 0 &&
        strcmp(pg->data->ray_namespace, space) == 0) {
      return pg;
    }
  }
  return NULL;
}

// NULL when the specification is in order, else why not.
static const char *check_spec(const Ray__Rpc__PlacementGroupSpec *spec) {
  if (!spec) return "The request carries no specification.";
  if (spec->placement_group_id.len != MOB_PG_ID_SIZE)
    return "The placement group id is not 18 bytes long.";
  return check_bundles(spec->strategy, spec->bundles, spec->n_bundles);
}

static mob__pg_t *new_pg(mob_gcs_t *gcs, const Ray__Rpc__PlacementGroupSpec *spec) {
  mob__pg_t *pg = MOB_NEW(mob__pg_t);
  pg->gcs = gcs;
  memcpy(pg->id, spec->placement_group_id.data, sizeof pg->id);
  mob_hex(pg->id, sizeof pg->id, pg->hex);
  pg->backoff_ms = BACKOFF_FIRST_MS;
  Ray__Rpc__PlacementGroupStats stats = RAY__RPC__PLACEMENT_GROUP_STATS__INIT;
  stats.creation_request_received_ns = mob_wall_ms() * 1000000;
  Ray__Rpc__PlacementGroupTableData data = RAY__RPC__PLACEMENT_GROUP_TABLE_DATA__INIT;
  data.placement_group_id = spec->placement_group_id;
  data.name = spec->name;
  data.bundles = spec->bundles;
  data.n_bundles = spec->n_bundles;
  data.strategy = spec->strategy;
  data.creator_job_id = spec->creator_job_id;
  data.creator_actor_id = spec->creator_actor_id;
  data.creator_job_dead = spec->creator_job_dead;
  data.creator_actor_dead = spec->creator_actor_dead;
  data.is_detached = spec->is_detached;
  data.soft_target_node_id = spec->soft_target_node_id;
  data.ray_namespace =
      (char *)mob__job_namespace(gcs, spec->creator_job_id.data, spec->creator_job_id.len);
  data.placement_group_creation_timestamp_ms = mob_wall_ms();
  data.stats = &stats;
  pg->data = mob_pb_clone(&data);
  take_bundles(pg);
  for (size_t i = 0; i < spec->n_bundles; i++)
    mob_pb_set_bytes(&pg->data->bundles[i]->node_id, NULL, 0);
  return pg;
}

static void on_create(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__pgs_t *pgs = owner;
  mob_gcs_t *gcs = pgs->gcs;
  const Ray__Rpc__PlacementGroupSpec *spec =
      ((const Ray__Rpc__CreatePlacementGroupRequest *)request)->placement_group_spec;
  Ray__Rpc__CreatePlacementGroupReply reply = RAY__RPC__CREATE_PLACEMENT_GROUP_REPLY__INIT;
  const char *bad = check_spec(spec);
  if (bad) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_INVALID, "%s", bad);
    mob_rpc_reply(call, &reply);
    return;
  }
  if (mob__pg_find(gcs, spec->placement_group_id.data, MOB_PG_ID_SIZE)) { // asked again
    reply.status = MOB__OK(gcs);
    mob_rpc_reply(call, &reply);
    return;
  }
  const char *space = mob__job_namespace(gcs, spec->creator_job_id.data, spec->creator_job_id.len);
  if (spec->name[0] && find_named(gcs, spec->name, space)) {
    reply.status =
        mob__gcs_status(gcs, MOB__GCS_INVALID,
                        "Failed to create placement group '%s' because name '%s' already exists.",
                        mob_id_text(spec->placement_group_id).text, spec->name);
    mob_rpc_reply(call, &reply);
    return;
  }
  mob__pg_t *pg = new_pg(gcs, spec);
  mob_map_put(&pgs->all, pg->id, sizeof pg->id, pg);
  reply.status = MOB__OK(gcs);
  mob__gcs_put_reply(gcs, MOB_TABLE_PLACEMENT_GROUP, pg->id, sizeof pg->id, pg->data, call, &reply);
  mob__gcs_schedule_soon(gcs);
}

static void on_remove(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__pgs_t *)owner)->gcs;
  const Ray__Rpc__RemovePlacementGroupRequest *req = request;
  Ray__Rpc__RemovePlacementGroupReply reply = RAY__RPC__REMOVE_PLACEMENT_GROUP_REPLY__INIT;
  mob__pg_t *pg = mob__pg_find(gcs, req->placement_group_id.data, req->placement_group_id.len);
  if (pg) remove_group(pg, "asked for");
  reply.status = MOB__OK(gcs); // also for an unknown one, as Ray
  mob__gcs_reply_stored(gcs, call, &reply);
}

static void on_get(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__pgs_t *)owner)->gcs;
  const Ray__Rpc__GetPlacementGroupRequest *req = request;
  Ray__Rpc__GetPlacementGroupReply reply = RAY__RPC__GET_PLACEMENT_GROUP_REPLY__INIT;
  mob__pg_t *pg = mob__pg_find(gcs, req->placement_group_id.data, req->placement_group_id.len);
  reply.status = mob__gcs_status(gcs, MOB__GCS_OK, "%s", pg && pg->reason ? pg->reason : "");
  reply.placement_group_table_data = pg ? pg->data : NULL;
  mob_rpc_reply(call, &reply);
}

static void on_get_named(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__pgs_t *)owner)->gcs;
  const Ray__Rpc__GetNamedPlacementGroupRequest *req = request;
  Ray__Rpc__GetNamedPlacementGroupReply reply = RAY__RPC__GET_NAMED_PLACEMENT_GROUP_REPLY__INIT;
  mob__pg_t *pg = req->name[0] ? find_named(gcs, req->name, req->ray_namespace) : NULL;
  reply.status = MOB__OK(gcs);
  reply.placement_group_table_data = pg ? pg->data : NULL;
  mob_rpc_reply(call, &reply);
}

static void on_get_all(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__pgs_t *pgs = owner;
  const Ray__Rpc__GetAllPlacementGroupRequest *req = request;
  Ray__Rpc__GetAllPlacementGroupReply reply = RAY__RPC__GET_ALL_PLACEMENT_GROUP_REPLY__INIT;
  size_t limit = pgs->all.count;
  if (req->opt_limit_case && req->limit >= 0 && (size_t)req->limit < limit)
    limit = (size_t)req->limit;
  Ray__Rpc__PlacementGroupTableData **rows =
      MOB_NEW_ARRAY(Ray__Rpc__PlacementGroupTableData *, limit + 1);
  size_t n = 0;
  for (mob_map_entry_t *e = NULL; n < limit && (e = mob_map_next(&pgs->all, e));) {
    rows[n++] = ((mob__pg_t *)e->value)->data;
  }
  reply.status = MOB__OK(pgs->gcs);
  reply.placement_group_table_data = rows;
  reply.n_placement_group_table_data = n;
  reply.total = (int64_t)pgs->all.count;
  mob_rpc_reply(call, &reply);
  free(rows);
}

static void on_wait(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__pgs_t *)owner)->gcs;
  const Ray__Rpc__WaitPlacementGroupUntilReadyRequest *req = request;
  Ray__Rpc__WaitPlacementGroupUntilReadyReply reply =
      RAY__RPC__WAIT_PLACEMENT_GROUP_UNTIL_READY_REPLY__INIT;
  mob__pg_t *pg = mob__pg_find(gcs, req->placement_group_id.data, req->placement_group_id.len);
  if (pg && pg->data->state != STATE(CREATED) && pg->data->state != STATE(REMOVED)) {
    *mob_vec_push(&pg->waiters) = call;
    mob_rpc_call_on_cancel(call, on_waiter_cancelled, pg);
    return;
  }
  reply.status = !pg ? mob__gcs_status(gcs, MOB__GCS_NOT_FOUND, "Placement group is not found.")
                 : pg->data->state == STATE(REMOVED)
                     ? mob__gcs_status(gcs, MOB__GCS_NOT_FOUND, "Placement group is removed.")
                     : MOB__OK(gcs);
  mob_rpc_reply(call, &reply);
}

#define GROUPS "/ray.rpc.PlacementGroupInfoGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(GROUPS "CreatePlacementGroup", ray__rpc__create_placement_group, on_create),
    MOB_RPC_METHOD(GROUPS "RemovePlacementGroup", ray__rpc__remove_placement_group, on_remove),
    MOB_RPC_METHOD(GROUPS "GetPlacementGroup", ray__rpc__get_placement_group, on_get),
    MOB_RPC_METHOD(GROUPS "GetNamedPlacementGroup", ray__rpc__get_named_placement_group,
                   on_get_named),
    MOB_RPC_METHOD(GROUPS "GetAllPlacementGroup", ray__rpc__get_all_placement_group, on_get_all),
    MOB_RPC_METHOD(GROUPS "WaitPlacementGroupUntilReady",
                   ray__rpc__wait_placement_group_until_ready, on_wait),
};

mob__pgs_t *mob__pgs_new(mob_gcs_t *gcs) {
  mob__pgs_t *pgs = MOB_NEW(mob__pgs_t);
  pgs->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), pgs);
  return pgs;
}

void mob__pgs_close(mob__pgs_t *pgs) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&pgs->all, e));) {
    mob__pg_t *pg = e->value;
    for (size_t i = 0; i < pg->waiters.len; i++) {
      mob_rpc_call_on_cancel(pg->waiters.at[i], NULL, NULL);
      mob_rpc_reply_status(pg->waiters.at[i], GRPC_STATUS_UNAVAILABLE, "the GCS is shutting down");
    }
    pg->waiters.len = 0;
  }
}

void mob__pgs_free(mob__pgs_t *pgs) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&pgs->all, e));) free_pg(e->value);
  mob_map_free(&pgs->all);
  free(pgs);
}
