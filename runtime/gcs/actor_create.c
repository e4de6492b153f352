// From a queued actor to a running one: pick a node, lease a worker from it, send the creation task
// to the worker. Every step's answer carries the attempt's epoch; what comes back to a later epoch
// is undone.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/gcs/actors.h"
#include "runtime/gcs/labels.h"
#include "runtime/gcs/node_calls.h"
#include "runtime/gcs/placement.h"

enum { RETRY_MS = 200, REPORT_GRACE_MS = 500 };

#define STATE(name) RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__##name
#define STRATEGY(name) RAY__RPC__SCHEDULING_STRATEGY__SCHEDULING_STRATEGY_##name

typedef struct attempt {
  mob_gcs_t *gcs;
  uint8_t actor_id[MOB_ACTOR_ID_SIZE];
  uint8_t node_id[MOB_NODE_ID_SIZE];
  uint8_t lease_id[MOB_LEASE_ID_SIZE];
  uint64_t epoch;
  mob_resources_t promised; // while a lease is asked for
  int64_t promise;
} attempt_t;

static attempt_t *new_attempt(mob__actor_t *actor) {
  attempt_t *attempt = MOB_NEW(attempt_t);
  attempt->gcs = actor->gcs;
  memcpy(attempt->actor_id, actor->id, sizeof attempt->actor_id);
  memcpy(attempt->node_id, actor->node_id, sizeof attempt->node_id);
  memcpy(attempt->lease_id, actor->lease_id, sizeof attempt->lease_id);
  attempt->epoch = actor->epoch;
  mob__gcs_hold(actor->gcs);
  return attempt;
}

static void free_attempt(attempt_t *attempt) {
  mob_gcs_t *gcs = attempt->gcs;
  mob_resources_free(&attempt->promised);
  free(attempt);
  mob__gcs_release(gcs);
}

// The actor, if the attempt is still the current one.
static mob__actor_t *current(const attempt_t *attempt) {
  mob__actor_t *actor = mob__actor_find(attempt->gcs, attempt->actor_id, sizeof attempt->actor_id);
  return actor && actor->epoch == attempt->epoch && !attempt->gcs->closing ? actor : NULL;
}

static void set_reason(mob__actor_t *actor, const char *reason) {
  char *copy = reason ? mob_strdup(reason) : NULL;
  if (copy && (!actor->reason || strcmp(copy, actor->reason) != 0)) {
    MOB_INFO("actor %.8s (%s) waits: %s", actor->hex, actor->data->class_name, copy);
  }
  free(actor->reason);
  actor->reason = copy;
}

// ------------------------------------------------------------------------------------------ demand

static const Ray__Rpc__PlacementGroupSchedulingStrategy *group_of(const mob__actor_t *actor) {
  const Ray__Rpc__SchedulingStrategy *s = actor->spec->scheduling_strategy;
  if (!s || s->scheduling_strategy_case != STRATEGY(PLACEMENT_GROUP_SCHEDULING_STRATEGY))
    return NULL;
  return s->placement_group_scheduling_strategy;
}

static void in_group(mob__actor_t *actor, mob_resources_t *set) {
  const Ray__Rpc__PlacementGroupSchedulingStrategy *group = group_of(actor);
  if (!group || mob_id_is_nil(group->placement_group_id)) return;
  for (size_t i = 0; i < set->len; i++) {
    if (mob_resource_is_group(set->at[i].name)) return; // Ray's own drivers have done it
  }
  mob_resources_t named = {0};
  mob_resources_in_group(&named, set, mob_id_text(group->placement_group_id).text,
                         group->placement_group_bundle_index);
  mob_resources_free(set);
  *set = named;
}

void mob__actor_read_demand(mob__actor_t *actor) {
  const Ray__Rpc__TaskSpec *spec = actor->spec;
  mob_resources_read(&actor->held, spec->required_resources, spec->n_required_resources);
  in_group(actor, &actor->held);
  mob_resources_read(&actor->placed_by, spec->required_placement_resources,
                     spec->n_required_placement_resources);
  if (actor->placed_by.len == 0) {
    mob_resources_copy(&actor->placed_by, &actor->held);
  } else {
    in_group(actor, &actor->placed_by);
  }
}

void mob__actors_demand(mob_gcs_t *gcs, mob__demand_fn fn, void *arg) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->actors->all, e));) {
    mob__actor_t *actor = e->value;
    if (actor->phase == MOB__ACTOR_QUEUED) fn(arg, &actor->placed_by, 1);
  }
}

// ------------------------------------------------------------------------------------------- queue

void mob__actor_drop_worker(mob__actor_t *actor) {
  if (actor->worker_address) {
    ProtobufCBinaryData id = actor->worker_address->worker_id;
    if (mob_map_get(&actor->gcs->actors->workers, id.data, id.len) == actor) {
      mob_map_remove(&actor->gcs->actors->workers, id.data, id.len);
    }
    mob_pb_free(actor->worker_address);
    actor->worker_address = NULL;
  }
  if (actor->worker) mob_rpc_client_close(actor->worker);
  actor->worker = NULL;
  memset(actor->node_id, 0, sizeof actor->node_id);
  actor->lost_at = 0;
  actor->worker_gone = false;
}

void mob__actor_queue(mob__actor_t *actor, uint64_t delay_ms) {
  mob__actor_drop_worker(actor);
  actor->phase = MOB__ACTOR_QUEUED;
  actor->epoch++;
  actor->not_before = delay_ms ? mob_now_ms() + delay_ms : 0;
  mob__gcs_schedule_soon(actor->gcs);
}

// ---------------------------------------------------------------------------------------- creating

// The creation failed, and no better cause is to be had.
static void give_up(mob__actor_t *actor) {
  Ray__Rpc__ActorDeathCause cause = RAY__RPC__ACTOR_DEATH_CAUSE__INIT;
  if (actor->constructor_failed) {
    Ray__Rpc__RayException exception = RAY__RPC__RAY_EXCEPTION__INIT;
    exception.language = actor->spec->language;
    exception.formatted_exception_string = actor->lost_why;
    cause.context_case = RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_CREATION_TASK_FAILURE_CONTEXT;
    cause.creation_task_failure_context = &exception;
    mob__actor_die(actor, &cause);
    return;
  }
  char *text = mob_sprintf(
      "The actor died because its worker could not be reached while it was being created: %s",
      actor->lost_why);
  Ray__Rpc__ActorDiedErrorContext context;
  mob__actor_died(actor, &cause, &context, RAY__RPC__ACTOR_DIED_ERROR_CONTEXT__REASON__WORKER_DIED,
                  text);
  mob__actor_lost(actor, &cause, true);
  free(text);
}

static void on_created(void *arg, grpc_status_code code, const char *why, const void *reply) {
  attempt_t *attempt = arg;
  const Ray__Rpc__PushTaskReply *done = reply;
  mob__actor_t *actor = current(attempt);
  if (!actor) {
    free_attempt(attempt);
    return;
  }
  bool failed = code == GRPC_STATUS_OK && done->is_application_error;
  if (code != GRPC_STATUS_OK || failed) {
    actor->lost_at = mob_now_ms() + REPORT_GRACE_MS;
    actor->constructor_failed = failed;
    free(actor->lost_why);
    actor->lost_why = mob_strdup(failed ? done->task_execution_error : why);
    // An exception of Python or Java comes whole, as an object, with the report of the worker's
    // end.
    if (failed && actor->spec->language == RAY__RPC__LANGUAGE__CPP) give_up(actor);
  } else {
    actor->phase = MOB__ACTOR_RUNNING;
    mob_rpc_client_close(actor->worker);
    actor->worker = NULL;
    mob_pb_free(actor->data->address);
    actor->data->address = mob_pb_clone(actor->worker_address);
    actor->data->state = STATE(ALIVE);
    if (done->opt_actor_repr_name_case)
      mob_pb_set_string(&actor->data->repr_name, done->actor_repr_name);
    if (!actor->data->start_time) actor->data->start_time = (uint64_t)mob_wall_ms();
    set_reason(actor, NULL);
    MOB_INFO("actor %.8s (%s) runs on %s, process %u", actor->hex, actor->data->class_name,
             actor->data->address->ip_address, actor->data->pid);
    mob__actor_publish(actor);
    mob__actor_answer(actor, MOB__GCS_OK, "", done);
  }
  free_attempt(attempt);
}

static void create_on_worker(mob__actor_t *actor, const Ray__Rpc__RequestWorkerLeaseReply *lease) {
  mob_gcs_t *gcs = actor->gcs;
  const Ray__Rpc__Address *address = lease->worker_address;
  char *target = mob_sprintf(strchr(address->ip_address, ':') ? "[%s]:%d" : "%s:%d",
                             address->ip_address, address->port);
  mob_status status = mob_rpc_client_new(gcs->rpc, target, NULL, &actor->worker);
  free(target);
  if (status != MOB_OK) {
    mob__node_t *node = mob__node_alive(gcs, actor->node_id, sizeof actor->node_id);
    MOB_WARN("node %.8s leased a worker with a bad address: %s", node->hex, mob_errmsg());
    mob__node_return_lease(gcs, node, mob_pb_bytes(actor->lease_id, sizeof actor->lease_id),
                           address->port, true, "bad address");
    mob__actor_queue(actor, RETRY_MS);
    return;
  }
  mob_rpc_client_set_metadata(actor->worker, "ray_cluster_id", gcs->cluster_id_hex);
  actor->phase = MOB__ACTOR_CREATING;
  actor->worker_address = mob_pb_clone(address);
  mob_map_put(&gcs->actors->workers, address->worker_id.data, address->worker_id.len, actor);
  actor->data->pid = lease->worker_pid;
  actor->data->opt_node_id_case = RAY__RPC__ACTOR_TABLE_DATA__OPT_NODE_ID_NODE_ID;
  mob_pb_set_bytes(&actor->data->node_id, actor->node_id, sizeof actor->node_id);
  // Which of its node's instances it has, for those who list actors.
  Ray__Rpc__ActorTableData mapping = RAY__RPC__ACTOR_TABLE_DATA__INIT;
  mapping.resource_mapping = lease->resource_mapping;
  mapping.n_resource_mapping = lease->n_resource_mapping;
  Ray__Rpc__ActorTableData *copy = mob_pb_clone(&mapping);
  Ray__Rpc__ActorTableData former = *actor->data;
  actor->data->resource_mapping = copy->resource_mapping;
  actor->data->n_resource_mapping = copy->n_resource_mapping;
  copy->resource_mapping = former.resource_mapping;
  copy->n_resource_mapping = former.n_resource_mapping;
  mob_pb_free(copy);
  Ray__Rpc__PushTaskRequest request = RAY__RPC__PUSH_TASK_REQUEST__INIT;
  request.intended_worker_id = address->worker_id;
  request.task_spec = actor->spec;
  request.sequence_number = -1; // not one of a client's calls
  request.client_processed_up_to = -1;
  request.resource_mapping = lease->resource_mapping;
  request.n_resource_mapping = lease->n_resource_mapping;
  mob_rpc_call(actor->worker, MOB__CORE_WORKER "PushTask", &request,
               &ray__rpc__push_task_reply__descriptor, 0, on_created, new_attempt(actor));
}

// ----------------------------------------------------------------------------------------- leasing

static void lease_from(mob__actor_t *actor, mob__node_t *node);

static void on_lease_cancelled(mob__actor_t *actor,
                               const Ray__Rpc__RequestWorkerLeaseReply *lease) {
  Ray__Rpc__ActorDeathCause cause = RAY__RPC__ACTOR_DEATH_CAUSE__INIT;
  Ray__Rpc__RuntimeEnvFailedContext env = RAY__RPC__RUNTIME_ENV_FAILED_CONTEXT__INIT;
  switch (lease->failure_type) {
  case RAY__RPC__REQUEST_WORKER_LEASE_REPLY__SCHEDULING_FAILURE_TYPE__SCHEDULING_CANCELLED_RUNTIME_ENV_SETUP_FAILED:
    env.error_message = lease->scheduling_failure_message;
    cause.context_case = RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_RUNTIME_ENV_FAILED_CONTEXT;
    cause.runtime_env_failed_context = &env;
    mob__actor_die(actor, &cause);
    break;
  case RAY__RPC__REQUEST_WORKER_LEASE_REPLY__SCHEDULING_FAILURE_TYPE__SCHEDULING_CANCELLED_PLACEMENT_GROUP_REMOVED:
  case RAY__RPC__REQUEST_WORKER_LEASE_REPLY__SCHEDULING_FAILURE_TYPE__SCHEDULING_CANCELLED_UNSCHEDULABLE:
    mob__actor_die_unschedulable(actor, lease->scheduling_failure_message);
    break;
  default:
    set_reason(actor, lease->scheduling_failure_message);
    mob__actor_queue(actor, RETRY_MS);
    break;
  }
}

static bool has_address(const Ray__Rpc__Address *address) {
  return address && address->node_id.len == MOB_NODE_ID_SIZE;
}

static void on_leased(void *arg, grpc_status_code code, const char *why, const void *reply) {
  attempt_t *attempt = arg;
  const Ray__Rpc__RequestWorkerLeaseReply *lease = reply;
  mob_gcs_t *gcs = attempt->gcs;
  mob__node_t *node = mob__node_alive(gcs, attempt->node_id, sizeof attempt->node_id);
  mob__actor_t *actor = current(attempt);
  bool granted = code == GRPC_STATUS_OK && has_address(lease->worker_address) && !lease->rejected &&
                 !lease->canceled;
  if (node && !granted) mob__node_take_back(node, &attempt->promised, attempt->promise);
  if (!actor) { // not wanted any more
    if (granted && node && !gcs->closing) {
      mob__node_return_lease(gcs, node, mob_pb_bytes(attempt->lease_id, sizeof attempt->lease_id),
                             lease->worker_address->port, true, "the actor is not wanted any more");
    }
  } else if (!node) { // its death is dealt with where nodes die; this attempt is over
    mob__actor_queue(actor, 0);
  } else if (granted) {
    create_on_worker(actor, lease);
  } else if (code != GRPC_STATUS_OK) {
    char *text = mob_sprintf("node %s gave no worker: %s", node->info->node_manager_address, why);
    set_reason(actor, text);
    free(text);
    mob__actor_queue(actor, RETRY_MS);
  } else if (lease->canceled) {
    on_lease_cancelled(actor, lease);
  } else if (!lease->rejected && has_address(lease->retry_at_raylet_address)) {
    ProtobufCBinaryData other = lease->retry_at_raylet_address->node_id;
    mob__node_t *next = mob__node_alive(gcs, other.data, other.len);
    if (next) {
      lease_from(actor, next);
    } else {
      mob__actor_queue(actor, RETRY_MS);
    }
  } else {
    set_reason(actor, lease->scheduling_failure_message[0]
                          ? lease->scheduling_failure_message
                          : "the node has no room for it just now");
    mob__actor_queue(actor, RETRY_MS);
  }
  free_attempt(attempt);
}

static void fill_lease(mob__actor_t *actor, Ray__Rpc__LeaseSpec *lease) {
  Ray__Rpc__TaskSpec *spec = actor->spec;
  const Ray__Rpc__ActorCreationTaskSpec *creation = spec->actor_creation_task_spec;
  lease->lease_id = mob_pb_bytes(actor->lease_id, sizeof actor->lease_id);
  lease->job_id = spec->job_id;
  lease->caller_address = spec->caller_address;
  lease->type = RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK;
  lease->actor_id = creation->actor_id;
  lease->is_detached_actor = creation->is_detached;
  lease->root_detached_actor_id = spec->root_detached_actor_id;
  lease->max_actor_restarts = creation->max_actor_restarts;
  lease->scheduling_strategy = spec->scheduling_strategy;
  lease->label_selector = spec->label_selector;
  lease->fallback_strategy = spec->fallback_strategy;
  lease->depth = spec->depth;
  lease->runtime_env_info = spec->runtime_env_info;
  lease->parent_task_id = spec->parent_task_id;
  lease->language = spec->language;
  lease->function_descriptor = spec->function_descriptor;
  lease->dynamic_worker_options = creation->dynamic_worker_options;
  lease->n_dynamic_worker_options = creation->n_dynamic_worker_options;
  lease->max_retries = spec->max_retries;
  lease->attempt_number = (uint64_t)spec->attempt_number;
  lease->task_name = spec->name;
}

static void lease_from(mob__actor_t *actor, mob__node_t *node) {
  actor->phase = MOB__ACTOR_LEASING;
  actor->epoch++;
  memcpy(actor->node_id, node->id, sizeof actor->node_id);
  mob_random(actor->lease_id, sizeof actor->lease_id);
  Ray__Rpc__LeaseSpec lease = RAY__RPC__LEASE_SPEC__INIT;
  fill_lease(actor, &lease);
  mob_resources_write(&actor->held, &lease.required_resources, &lease.n_required_resources);
  mob_resources_write(&actor->placed_by, &lease.required_placement_resources,
                      &lease.n_required_placement_resources);
  Ray__Rpc__RequestWorkerLeaseRequest request = RAY__RPC__REQUEST_WORKER_LEASE_REQUEST__INIT;
  request.lease_spec = &lease;
  request.grant_or_reject = true;
  attempt_t *attempt = new_attempt(actor);
  mob_resources_copy(&attempt->promised, &actor->held);
  attempt->promise = mob__node_promise(node, &actor->held);
  mob_rpc_call(mob__node_client(actor->gcs, node), MOB__NODE_MANAGER "RequestWorkerLease", &request,
               &ray__rpc__request_worker_lease_reply__descriptor, 0, on_leased, attempt);
  mob_pb_double_clear(&lease.required_resources, &lease.n_required_resources);
  mob_pb_double_clear(&lease.required_placement_resources, &lease.n_required_placement_resources);
}

// ----------------------------------------------------------------------------------------- placing

static bool label_strategy_allows(const mob__actor_t *actor, const mob__node_t *node) {
  const Ray__Rpc__SchedulingStrategy *s = actor->spec->scheduling_strategy;
  if (!s || s->scheduling_strategy_case != STRATEGY(NODE_LABEL_SCHEDULING_STRATEGY)) return true;
  return mob_labels_match_expressions(node->info->labels, node->info->n_labels,
                                      s->node_label_scheduling_strategy->hard);
}

// The node that an affinity names. Ends the actor when the affinity is hard and the node is not
// there.
static bool affinity(mob__actor_t *actor, ProtobufCBinaryData *wanted, bool *soft) {
  const Ray__Rpc__SchedulingStrategy *s = actor->spec->scheduling_strategy;
  *wanted = (ProtobufCBinaryData){0};
  *soft = true;
  if (!s || s->scheduling_strategy_case != STRATEGY(NODE_AFFINITY_SCHEDULING_STRATEGY)) return true;
  *wanted = s->node_affinity_scheduling_strategy->node_id;
  *soft = s->node_affinity_scheduling_strategy->soft;
  if (*soft || mob__node_alive(actor->gcs, wanted->data, wanted->len)) return true;
  mob__actor_die_unschedulable(
      actor, "The node specified via NodeAffinitySchedulingStrategy doesn't exist any "
             "more or is infeasible, and soft=False was specified.");
  return false;
}

static void explain(mob__actor_t *actor, bool feasible, const mob_place_node_t *nodes, size_t n) {
  mob_buf_t why = {0};
  mob_buf_puts(&why, "it asks for ");
  mob_resources_print(&actor->placed_by, &why);
  mob_buf_puts(&why, feasible ? "; free now: " : "; the cluster's nodes have: ");
  for (size_t i = 0; i < n; i++) {
    mob_buf_printf(&why, "%s%s {", i ? ", " : "", nodes[i].name);
    for (size_t k = 0; k < actor->placed_by.len; k++) {
      const char *name = actor->placed_by.at[k].name;
      int64_t has = mob_resources_get(feasible ? nodes[i].available : nodes[i].total, name);
      mob_buf_printf(&why, "%s%s: %.15g", k ? ", " : "", name, mob_resource_double(has));
    }
    mob_buf_putc(&why, '}');
  }
  if (n == 0) mob_buf_puts(&why, "no node");
  set_reason(actor, mob_buf_cstr(&why));
  mob_buf_free(&why);
}

static void try_place(mob__actor_t *actor) {
  const Ray__Rpc__PlacementGroupSchedulingStrategy *group = group_of(actor);
  if (group && !mob_id_is_nil(group->placement_group_id) &&
      mob__pg_state(actor->gcs, group->placement_group_id.data, group->placement_group_id.len) !=
          MOB__GROUP_LIVE) {
    mob__actor_die_unschedulable(
        actor, "Could not create the actor because its associated placement group "
               "was removed.");
    return;
  }
  ProtobufCBinaryData wanted;
  bool soft;
  if (!affinity(actor, &wanted, &soft)) return;
  size_t n;
  mob__node_t **nodes = mob__nodes_alive(actor->gcs, &n);
  mob_place_node_t *described = MOB_NEW_ARRAY(mob_place_node_t, n + 1);
  ProtobufCBinaryData owner = actor->spec->caller_address->node_id;
  for (size_t i = 0; i < n; i++) {
    mob__node_t *node = nodes[i];
    bool is_wanted = wanted.len && mob_pb_bytes_equal(wanted, node->id, sizeof node->id);
    described[i] = (mob_place_node_t){
        .name = node->info->node_manager_address,
        .total = &node->total,
        .available = &node->available,
        .excluded = node->draining || (wanted.len && !soft && !is_wanted) ||
                    !mob_labels_match_selector(node->info->labels, node->info->n_labels,
                                               actor->spec->label_selector) ||
                    !label_strategy_allows(actor, node),
        .preferred = wanted.len ? is_wanted : mob_pb_bytes_equal(owner, node->id, sizeof node->id),
    };
  }
  bool feasible;
  size_t best = mob_place_task(described, n, &actor->placed_by, &feasible);
  if (best < n) {
    lease_from(actor, nodes[best]);
  } else {
    explain(actor, feasible, described, n);
  }
  free(described);
  free(nodes);
}

void mob__actors_schedule(mob_gcs_t *gcs) {
  uint64_t now = mob_now_ms();
  // Placing may end an actor, which may free another's entry, but inserts none.
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->actors->all, e));) {
    mob__actor_t *actor = e->value;
    if (actor->phase != MOB__ACTOR_QUEUED || actor->not_before > now) continue;
    if (!actor->restored || !mob__nodes_expected(gcs)) try_place(actor);
  }
}

void mob__actors_tick(mob_gcs_t *gcs) {
  uint64_t now = mob_now_ms();
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->actors->all, e));) {
    mob__actor_t *actor = e->value;
    if (actor->phase == MOB__ACTOR_QUEUED && actor->not_before && actor->not_before <= now) {
      actor->not_before = 0;
      mob__gcs_schedule_soon(gcs);
    }
    if (actor->phase == MOB__ACTOR_CREATING && actor->lost_at && actor->lost_at <= now)
      give_up(actor);
  }
}
