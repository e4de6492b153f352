// How actors end, and when they start again instead.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/gcs/actors.h"
#include "runtime/gcs/node_calls.h"

#define STATE(name) RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__##name
#define REASON(name) RAY__RPC__ACTOR_DIED_ERROR_CONTEXT__REASON__##name

void mob__actor_died(mob__actor_t *actor, Ray__Rpc__ActorDeathCause *cause,
                     Ray__Rpc__ActorDiedErrorContext *context,
                     Ray__Rpc__ActorDiedErrorContext__Reason reason, const char *text) {
  ray__rpc__actor_death_cause__init(cause);
  ray__rpc__actor_died_error_context__init(context);
  cause->context_case = RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_ACTOR_DIED_ERROR_CONTEXT;
  cause->actor_died_error_context = context;
  const Ray__Rpc__ActorTableData *data = actor->data;
  context->error_message = (char *)text;
  if (data->owner_address) {
    context->owner_id = data->owner_address->worker_id;
    context->owner_ip_address = data->owner_address->ip_address;
  }
  if (actor->worker_address) context->node_ip_address = actor->worker_address->ip_address;
  context->pid = data->pid;
  context->name = data->name;
  context->ray_namespace = data->ray_namespace;
  context->class_name = data->class_name;
  context->actor_id = data->actor_id;
  context->never_started = actor->phase < MOB__ACTOR_RUNNING && data->num_restarts == 0;
  context->reason = reason;
}

// A cause in words, for the log and for those who wait.
static const char *cause_text(const Ray__Rpc__ActorDeathCause *cause) {
  const char *text = mob_pb_death_text(cause);
  return text ? text : "unknown cause";
}

void mob__actor_kill_process(mob__actor_t *actor, bool force, Ray__Rpc__ActorDeathCause *cause) {
  mob_gcs_t *gcs = actor->gcs;
  mob__node_t *node = mob__node_alive(gcs, actor->node_id, sizeof actor->node_id);
  if (!node || actor->worker_gone || gcs->closing) return;
  if (actor->phase == MOB__ACTOR_LEASING) {
    mob__node_cancel_lease(gcs, node, mob_pb_bytes(actor->lease_id, sizeof actor->lease_id));
  } else if (actor->worker_address) {
    mob__node_kill_actor(gcs, node, actor->data->actor_id, actor->worker_address->worker_id,
                         force || actor->phase == MOB__ACTOR_CREATING, cause);
  }
}

static void no_address(Ray__Rpc__ActorTableData *data) {
  mob_pb_free(data->address);
  data->address = NULL;
}

void mob__actor_die(mob__actor_t *actor, const Ray__Rpc__ActorDeathCause *cause) {
  if (actor->phase == MOB__ACTOR_DEAD) return;
  mob_gcs_t *gcs = actor->gcs;
  Ray__Rpc__ActorDeathCause *copy = mob_pb_clone(cause); // `cause` may lie in the actor's own row
  mob_pb_free(actor->data->death_cause);
  actor->data->death_cause = copy;
  actor->data->state = STATE(DEAD);
  actor->data->end_time = (uint64_t)mob_wall_ms();
  MOB_INFO("actor %.8s (%s) is dead: %s", actor->hex, actor->data->class_name, cause_text(copy));
  // First the news, then the deed: whoever sees the process end can know why.
  mob__actor_publish(actor);
  mob__actor_kill_process(actor, !actor->kill_gently, copy);
  uint8_t id[MOB_ACTOR_ID_SIZE], worker_id[MOB_WORKER_ID_SIZE];
  bool has_worker =
      actor->worker_address && actor->worker_address->worker_id.len == sizeof worker_id;
  memcpy(id, actor->id, sizeof id);
  if (has_worker) memcpy(worker_id, actor->worker_address->worker_id.data, sizeof worker_id);
  mob__actor_drop_worker(actor);
  mob__actor_forget_owner(actor);
  actor->phase = MOB__ACTOR_DEAD;
  actor->epoch++;
  free(actor->reason);
  actor->reason = NULL;
  mob__actor_answer(actor, MOB__GCS_SCHEDULING_CANCELLED, cause_text(copy), NULL);
  bool may_return =
      cause->context_case == RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_ACTOR_DIED_ERROR_CONTEXT &&
      cause->actor_died_error_context->reason == REASON(OUT_OF_SCOPE);
  if (!may_return) {
    mob_pb_free(actor->spec);
    actor->spec = NULL;
    mob__gcs_store_del(gcs, MOB_TABLE_ACTOR_TASK_SPEC, actor->id, sizeof actor->id);
  }
  mob__actor_retire(actor);
  mob__pgs_actor_dead(gcs, id);
  if (has_worker) {
    mob__actor_owner_died(gcs, worker_id, sizeof worker_id,
                          "The actor is dead because its owner has died.");
  }
  mob__gcs_schedule_soon(gcs);
}

void mob__actor_die_unschedulable(mob__actor_t *actor, const char *text) {
  Ray__Rpc__ActorUnschedulableContext context = RAY__RPC__ACTOR_UNSCHEDULABLE_CONTEXT__INIT;
  context.error_message = (char *)text;
  Ray__Rpc__ActorDeathCause cause = RAY__RPC__ACTOR_DEATH_CAUSE__INIT;
  cause.context_case = RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_ACTOR_UNSCHEDULABLE_CONTEXT;
  cause.actor_unschedulable_context = &context;
  mob__actor_die(actor, &cause);
}

// Its process is gone, or its node.
void mob__actor_lost(mob__actor_t *actor, const Ray__Rpc__ActorDeathCause *cause,
                     bool may_restart) {
  Ray__Rpc__ActorTableData *data = actor->data;
  int64_t spent = data->num_restarts - (int64_t)data->num_restarts_due_to_node_preemption;
  bool budget = data->max_restarts < 0 || spent < data->max_restarts;
  if (!may_restart || (!budget && !(data->preempted && data->max_restarts > 0))) {
    mob__actor_die(actor, cause);
    return;
  }
  if (!budget) data->num_restarts_due_to_node_preemption++;
  data->num_restarts++;
  data->preempted = false;
  data->state = STATE(RESTARTING);
  Ray__Rpc__ActorDeathCause *copy = mob_pb_clone(cause);
  mob_pb_free(data->death_cause);
  data->death_cause = copy; // why it restarts, as Ray shows it
  no_address(data);
  MOB_INFO("actor %.8s (%s) starts again (%lld of %lld): %s", actor->hex, data->class_name,
           (long long)data->num_restarts, (long long)data->max_restarts, cause_text(cause));
  mob__actor_publish(actor);
  uint8_t worker_id[MOB_WORKER_ID_SIZE];
  bool has_worker =
      actor->worker_address && actor->worker_address->worker_id.len == sizeof worker_id;
  if (has_worker) memcpy(worker_id, actor->worker_address->worker_id.data, sizeof worker_id);
  mob_gcs_t *gcs = actor->gcs;
  mob__actor_queue(actor, 0);
  if (has_worker) { // what the former process owned ends with it
    mob__actor_owner_died(gcs, worker_id, sizeof worker_id,
                          "The actor is dead because its owner has died.");
  }
}

// ------------------------------------------------------------------------------------------ causes

void mob__actors_worker_dead(mob_gcs_t *gcs, const Ray__Rpc__WorkerTableData *worker) {
  ProtobufCBinaryData id = worker->worker_address->worker_id;
  mob__actor_t *actor = mob_map_get(&gcs->actors->workers, id.data, id.len);
  if (!actor) {
    mob__actor_owner_died(gcs, id.data, id.len, "The actor is dead because its owner has died.");
    return;
  }
  Ray__Rpc__ActorDeathCause cause = RAY__RPC__ACTOR_DEATH_CAUSE__INIT;
  Ray__Rpc__ActorDiedErrorContext context;
  bool may_restart = true;
  if (worker->opt_exit_type_case) {
    may_restart = worker->exit_type != RAY__RPC__WORKER_EXIT_TYPE__INTENDED_USER_EXIT &&
                  worker->exit_type != RAY__RPC__WORKER_EXIT_TYPE__USER_ERROR;
  }
  char *text = NULL;
  if (worker->creation_task_exception) {
    cause.context_case = RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_CREATION_TASK_FAILURE_CONTEXT;
    cause.creation_task_failure_context = worker->creation_task_exception;
    may_restart = false;
  } else {
    const char *detail = worker->opt_exit_detail_case ? worker->exit_detail : "";
    text =
        mob_sprintf("The actor is dead because its worker process has died. Process %u on %s: %s",
                    actor->data->pid, worker->worker_address->ip_address, detail);
    mob__actor_died(actor, &cause, &context, REASON(WORKER_DIED), text);
  }
  actor->worker_gone = true;
  mob__actor_lost(actor, &cause, may_restart);
  free(text);
}

static mob__actor_t *find_where(mob_gcs_t *gcs,
                                bool (*match)(const mob__actor_t *, const void *, size_t),
                                const void *key, size_t len) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->actors->all, e));) {
    mob__actor_t *actor = e->value;
    if (actor->phase != MOB__ACTOR_DEAD && match(actor, key, len)) return actor;
  }
  return NULL;
}

static bool on_node(const mob__actor_t *actor, const void *id, size_t len) {
  return actor->phase >= MOB__ACTOR_LEASING && memcmp(actor->node_id, id, len) == 0;
}

static bool owner_on_node(const mob__actor_t *actor, const void *id, size_t len) {
  return !actor->data->is_detached && actor->data->owner_address &&
         mob_pb_bytes_equal(actor->data->owner_address->node_id, id, len);
}

static bool owned_by(const mob__actor_t *actor, const void *id, size_t len) {
  return !actor->data->is_detached && actor->data->owner_address &&
         mob_pb_bytes_equal(actor->data->owner_address->worker_id, id, len);
}

static bool of_job(const mob__actor_t *actor, const void *id, size_t len) {
  return !actor->data->is_detached && mob_pb_bytes_equal(actor->data->job_id, id, len);
}

static bool in_group(const mob__actor_t *actor, const void *id, size_t len) {
  return actor->data->opt_placement_group_id_case &&
         mob_pb_bytes_equal(actor->data->placement_group_id, id, len);
}

static void die_all(mob_gcs_t *gcs, bool (*match)(const mob__actor_t *, const void *, size_t),
                    const void *key, size_t len, Ray__Rpc__ActorDiedErrorContext__Reason reason,
                    const char *text) {
  mob__actor_t *actor;
  while ((actor = find_where(gcs, match, key, len))) {
    Ray__Rpc__ActorDeathCause cause;
    Ray__Rpc__ActorDiedErrorContext context;
    mob__actor_died(actor, &cause, &context, reason, text);
    mob__actor_die(actor, &cause);
  }
}

void mob__actors_node_dead(mob_gcs_t *gcs, mob__node_t *node) {
  char *text =
      mob_sprintf("The actor died because its node has died. Node Id: %s, IP address: %s. %s",
                  node->hex, node->info->node_manager_address,
                  node->info->death_info ? node->info->death_info->reason_message : "");
  mob__actor_t *actor;
  while ((actor = find_where(gcs, on_node, node->id, sizeof node->id))) {
    if (actor->phase == MOB__ACTOR_LEASING) { // it was not there yet
      mob__actor_queue(actor, 0);
      continue;
    }
    Ray__Rpc__ActorDeathCause cause;
    Ray__Rpc__ActorDiedErrorContext context;
    mob__actor_died(actor, &cause, &context, REASON(NODE_DIED), text);
    context.node_death_info = node->info->death_info;
    if (node->info->death_info &&
        node->info->death_info->reason ==
            RAY__RPC__NODE_DEATH_INFO__REASON__AUTOSCALER_DRAIN_PREEMPTED) {
      actor->data->preempted = true;
    }
    mob__actor_lost(actor, &cause, true);
  }
  free(text);
  die_all(gcs, owner_on_node, node->id, sizeof node->id, REASON(OWNER_DIED),
          "The actor is dead because its owner's node has died.");
}

void mob__actor_owner_died(mob_gcs_t *gcs, const void *worker_id, size_t len, const char *text) {
  if (gcs->closing || len == 0) return;
  die_all(gcs, owned_by, worker_id, len, REASON(OWNER_DIED), text);
}

void mob__actors_job_finished(mob_gcs_t *gcs, const uint8_t *job_id) {
  die_all(gcs, of_job, job_id, MOB_JOB_ID_SIZE, REASON(OWNER_DIED),
          "The actor is dead because the job that created it has ended.");
}

void mob__actors_group_removed(mob_gcs_t *gcs, const uint8_t *group_id) {
  die_all(gcs, in_group, group_id, MOB_PG_ID_SIZE, REASON(UNSPECIFIED),
          "The actor is dead because its placement group was removed.");
}
