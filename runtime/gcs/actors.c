// ActorInfoGcsService: the table of actors.
#define MOB_LOG_COMPONENT "gcs"
#include "runtime/gcs/actors.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/gcs/restore.h"

enum { DEAD_KEPT = 10000 };

#define STATE(name) RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__##name

mob__actor_t *mob__actor_find(mob_gcs_t *gcs, const void *id, size_t len) {
  return mob_map_get(&gcs->actors->all, id, len);
}

void mob__actor_publish(mob__actor_t *actor) {
  actor->data->timestamp = mob_wall_seconds() * 1000;
  mob__gcs_store_put(actor->gcs, MOB_TABLE_ACTOR, actor->id, sizeof actor->id, actor->data);
  Ray__Rpc__PubMessage message = RAY__RPC__PUB_MESSAGE__INIT;
  message.inner_message_case = RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_ACTOR_MESSAGE;
  message.actor_message = actor->data;
  mob__publish(actor->gcs, RAY__RPC__CHANNEL_TYPE__GCS_ACTOR_CHANNEL, actor->id, sizeof actor->id,
               &message);
}

static void free_actor(mob__actor_t *actor) {
  mob_pb_free(actor->data);
  mob_pb_free(actor->spec);
  mob_pb_free(actor->worker_address);
  mob_resources_free(&actor->held);
  mob_resources_free(&actor->placed_by);
  mob_vec_free(&actor->waiters);
  free(actor->reason);
  free(actor->lost_why);
  free(actor);
}

// The key of a named actor; the caller frees it.
static char *name_key(const char *space, const char *name, size_t *len) {
  size_t a = strlen(space) + 1, b = strlen(name);
  char *key = mob_malloc(a + b + 1);
  memcpy(key, space, a);
  memcpy(key + a, name, b + 1);
  *len = a + b;
  return key;
}

static void add_name(mob__actor_t *actor) {
  if (!actor->data->name[0]) return;
  size_t len;
  char *key = name_key(actor->data->ray_namespace, actor->data->name, &len);
  mob_map_put(&actor->gcs->actors->named, key, len, actor);
  free(key);
}

static mob__actor_t *find_named(mob_gcs_t *gcs, const char *space, const char *name) {
  size_t len;
  char *key = name_key(space, name, &len);
  mob__actor_t *actor = mob_map_get(&gcs->actors->named, key, len);
  free(key);
  return actor;
}

// ---------------------------------------------------------------------------------------- creation

void mob__actor_answer(mob__actor_t *actor, int code, const char *text,
                       const Ray__Rpc__PushTaskReply *created) {
  Ray__Rpc__CreateActorReply reply = RAY__RPC__CREATE_ACTOR_REPLY__INIT;
  reply.status = mob__gcs_status(actor->gcs, code, "%s", text);
  reply.actor_address = actor->data->address;
  if (code != MOB__GCS_OK) reply.death_cause = actor->data->death_cause;
  if (created) {
    reply.borrowed_refs = created->borrowed_refs;
    reply.n_borrowed_refs = created->n_borrowed_refs;
  }
  for (size_t i = 0; i < actor->waiters.len; i++) {
    mob_rpc_call_on_cancel(actor->waiters.at[i], NULL, NULL);
    mob__gcs_reply_stored(actor->gcs, actor->waiters.at[i], &reply);
  }
  actor->waiters.len = 0;
}

static void on_waiter_cancelled(void *arg, mob_rpc_call_t *call) {
  mob__actor_t *actor = arg;
  for (size_t i = 0; i < actor->waiters.len; i++) {
    if (actor->waiters.at[i] != call) continue;
    mob_vec_remove(&actor->waiters, i);
    break;
  }
  mob_rpc_reply_status(call, GRPC_STATUS_CANCELLED, "");
}

static const char *class_of(const Ray__Rpc__FunctionDescriptor *f) {
  if (!f) return "";
  switch (f->function_descriptor_case) {
  case RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_JAVA_FUNCTION_DESCRIPTOR:
    return f->java_function_descriptor->class_name;
  case RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_PYTHON_FUNCTION_DESCRIPTOR:
    return f->python_function_descriptor->class_name;
  case RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_CPP_FUNCTION_DESCRIPTOR:
    return f->cpp_function_descriptor->class_name[0] ? f->cpp_function_descriptor->class_name
                                                     : f->cpp_function_descriptor->function_name;
  default:
    return "";
  }
}

static Ray__Rpc__ActorTableData *table_row(const Ray__Rpc__TaskSpec *spec) {
  const Ray__Rpc__ActorCreationTaskSpec *creation = spec->actor_creation_task_spec;
  Ray__Rpc__ActorTableData row = RAY__RPC__ACTOR_TABLE_DATA__INIT;
  row.actor_id = creation->actor_id;
  row.job_id = spec->job_id;
  row.max_restarts = creation->max_actor_restarts;
  row.is_detached = creation->is_detached;
  row.name = creation->name;
  row.ray_namespace = creation->ray_namespace;
  row.owner_address = spec->caller_address;
  row.function_descriptor = spec->function_descriptor;
  row.class_name = (char *)class_of(spec->function_descriptor);
  row.required_resources = spec->required_resources;
  row.n_required_resources = spec->n_required_resources;
  row.serialized_runtime_env =
      spec->runtime_env_info ? spec->runtime_env_info->serialized_runtime_env : (char *)"";
  row.state = STATE(DEPENDENCIES_UNREADY);
  if (spec->opt_call_site_case) {
    row.opt_call_site_case = RAY__RPC__ACTOR_TABLE_DATA__OPT_CALL_SITE_CALL_SITE;
    row.call_site = spec->call_site;
  }
  const Ray__Rpc__SchedulingStrategy *s = spec->scheduling_strategy;
  if (s &&
      s->scheduling_strategy_case ==
          RAY__RPC__SCHEDULING_STRATEGY__SCHEDULING_STRATEGY_PLACEMENT_GROUP_SCHEDULING_STRATEGY) {
    row.opt_placement_group_id_case =
        RAY__RPC__ACTOR_TABLE_DATA__OPT_PLACEMENT_GROUP_ID_PLACEMENT_GROUP_ID;
    row.placement_group_id = s->placement_group_scheduling_strategy->placement_group_id;
  }
  return mob_pb_clone(&row);
}

static void set_spec(mob__actor_t *actor, const Ray__Rpc__TaskSpec *spec) {
  Ray__Rpc__TaskSpec *copy = mob_pb_clone(spec);
  mob_pb_free(actor->spec);
  actor->spec = copy;
  mob__actor_read_demand(actor);
  // The row shows what it takes, under the names of its placement group.
  mob_resources_write(&actor->held, &actor->data->required_resources,
                      &actor->data->n_required_resources);
}

// NULL when the specification is in order, else why not.
static const char *check_spec(const Ray__Rpc__TaskSpec *spec) {
  if (!spec || !spec->actor_creation_task_spec)
    return "The request carries no actor creation task.";
  if (spec->actor_creation_task_spec->actor_id.len != MOB_ACTOR_ID_SIZE)
    return "The actor id is not 16 bytes long.";
  if (spec->job_id.len != MOB_JOB_ID_SIZE) return "The job id is not 4 bytes long.";
  if (!spec->caller_address) return "The request names no owner (caller_address).";
  for (size_t i = 0; i < spec->n_required_resources; i++) {
    if (!(spec->required_resources[i]->value >= 0)) return "A required resource is negative.";
  }
  return NULL;
}

static void on_register(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__actors_t *actors = owner;
  mob_gcs_t *gcs = actors->gcs;
  const Ray__Rpc__TaskSpec *spec = ((const Ray__Rpc__RegisterActorRequest *)request)->task_spec;
  Ray__Rpc__RegisterActorReply reply = RAY__RPC__REGISTER_ACTOR_REPLY__INIT;
  const char *bad = check_spec(spec);
  const Ray__Rpc__ActorCreationTaskSpec *creation = bad ? NULL : spec->actor_creation_task_spec;
  if (bad) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_INVALID, "%s", bad);
  } else if (mob__actor_find(gcs, creation->actor_id.data, MOB_ACTOR_ID_SIZE)) { // asked again
    reply.status = MOB__OK(gcs);
  } else if (creation->name[0] && find_named(gcs, creation->ray_namespace, creation->name)) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_ALREADY_EXISTS,
                                   "Actor with name '%s' already exists in the namespace %s",
                                   creation->name, creation->ray_namespace);
  }
  if (reply.status) {
    mob_rpc_reply(call, &reply);
    return;
  }
  mob__actor_t *actor = MOB_NEW(mob__actor_t);
  actor->gcs = gcs;
  memcpy(actor->id, creation->actor_id.data, sizeof actor->id);
  mob_hex(actor->id, sizeof actor->id, actor->hex);
  actor->data = table_row(spec);
  set_spec(actor, spec);
  mob_map_put(&actors->all, actor->id, sizeof actor->id, actor);
  add_name(actor);
  mob__gcs_store_put(gcs, MOB_TABLE_ACTOR_TASK_SPEC, actor->id, sizeof actor->id, actor->spec);
  reply.status = MOB__OK(gcs);
  mob__gcs_put_reply(gcs, MOB_TABLE_ACTOR, actor->id, sizeof actor->id, actor->data, call, &reply);
  if (!actor->data->is_detached) mob__actor_watch_owner(actor);
}

static void on_create(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__actors_t *)owner)->gcs;
  const Ray__Rpc__TaskSpec *spec = ((const Ray__Rpc__CreateActorRequest *)request)->task_spec;
  const char *bad = check_spec(spec);
  mob__actor_t *actor =
      bad ? NULL
          : mob__actor_find(gcs, spec->actor_creation_task_spec->actor_id.data, MOB_ACTOR_ID_SIZE);
  if (!actor) {
    Ray__Rpc__CreateActorReply reply = RAY__RPC__CREATE_ACTOR_REPLY__INIT;
    reply.status =
        mob__gcs_status(gcs, MOB__GCS_INVALID, "%s",
                        bad ? bad : "The actor is not registered: it may be destroyed already.");
    mob_rpc_reply(call, &reply);
    return;
  }
  *mob_vec_push(&actor->waiters) = call;
  if (actor->phase == MOB__ACTOR_RUNNING) {
    mob__actor_answer(actor, MOB__GCS_OK, "", NULL);
    return;
  }
  if (actor->phase == MOB__ACTOR_DEAD) {
    mob__actor_answer(actor, MOB__GCS_SCHEDULING_CANCELLED, "The actor is dead.", NULL);
    return;
  }
  mob_rpc_call_on_cancel(call, on_waiter_cancelled, actor);
  if (actor->phase != MOB__ACTOR_REGISTERED) return;
  set_spec(actor, spec); // its arguments are complete now
  mob__gcs_store_put(gcs, MOB_TABLE_ACTOR_TASK_SPEC, actor->id, sizeof actor->id, actor->spec);
  actor->data->state = STATE(PENDING_CREATION);
  mob__actor_publish(actor);
  mob__actor_queue(actor, 0);
}

static void on_restart(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__actors_t *)owner)->gcs;
  const Ray__Rpc__RestartActorForLineageReconstructionRequest *req = request;
  Ray__Rpc__RestartActorForLineageReconstructionReply reply =
      RAY__RPC__RESTART_ACTOR_FOR_LINEAGE_RECONSTRUCTION_REPLY__INIT;
  mob__actor_t *actor = mob__actor_find(gcs, req->actor_id.data, req->actor_id.len);
  bool out_of_scope = actor && actor->phase == MOB__ACTOR_DEAD && actor->spec &&
                      actor->data->death_cause &&
                      actor->data->death_cause->context_case ==
                          RAY__RPC__ACTOR_DEATH_CAUSE__CONTEXT_ACTOR_DIED_ERROR_CONTEXT &&
                      actor->data->death_cause->actor_died_error_context->reason ==
                          RAY__RPC__ACTOR_DIED_ERROR_CONTEXT__REASON__OUT_OF_SCOPE;
  if (!actor) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_INVALID, "Actor is permanently dead.");
  } else if (req->num_restarts_due_to_lineage_reconstruction <=
             actor->data->num_restarts_due_to_lineage_reconstruction) {
    reply.status = MOB__OK(gcs); // a repeated or late request
  } else if (!out_of_scope) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_INVALID, "Actor is permanently dead.");
  } else {
    actor->data->num_restarts++;
    actor->data->num_restarts_due_to_lineage_reconstruction++;
    actor->data->state = STATE(RESTARTING);
    mob_pb_free(actor->data->death_cause);
    actor->data->death_cause = NULL;
    gcs->actors->dead--;
    mob__actor_publish(actor);
    mob__actor_queue(actor, 0);
    reply.status = MOB__OK(gcs);
  }
  mob__gcs_reply_stored(gcs, call, &reply);
}

// ----------------------------------------------------------------------------------------- queries

static void on_get(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__actors_t *)owner)->gcs;
  const Ray__Rpc__GetActorInfoRequest *req = request;
  Ray__Rpc__GetActorInfoReply reply = RAY__RPC__GET_ACTOR_INFO_REPLY__INIT;
  mob__actor_t *actor = mob__actor_find(gcs, req->actor_id.data, req->actor_id.len);
  reply.status =
      mob__gcs_status(gcs, MOB__GCS_OK, "%s", actor && actor->reason ? actor->reason : "");
  reply.actor_table_data = actor ? actor->data : NULL;
  mob_rpc_reply(call, &reply);
}

static void on_get_named(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__actors_t *)owner)->gcs;
  const Ray__Rpc__GetNamedActorInfoRequest *req = request;
  Ray__Rpc__GetNamedActorInfoReply reply = RAY__RPC__GET_NAMED_ACTOR_INFO_REPLY__INIT;
  mob__actor_t *actor = find_named(gcs, req->ray_namespace, req->name);
  if (actor) {
    reply.status = MOB__OK(gcs);
    reply.actor_table_data = actor->data;
    reply.task_spec = actor->spec;
  } else {
    reply.status =
        mob__gcs_status(gcs, MOB__GCS_NOT_FOUND, "Actor with name '%s' was not found.", req->name);
  }
  mob_rpc_reply(call, &reply);
}

static void on_list_named(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__actors_t *actors = owner;
  const Ray__Rpc__ListNamedActorsRequest *req = request;
  Ray__Rpc__ListNamedActorsReply reply = RAY__RPC__LIST_NAMED_ACTORS_REPLY__INIT;
  size_t count = actors->named.count;
  Ray__Rpc__NamedActorInfo *rows = MOB_NEW_ARRAY(Ray__Rpc__NamedActorInfo, count + 1);
  Ray__Rpc__NamedActorInfo **list = MOB_NEW_ARRAY(Ray__Rpc__NamedActorInfo *, count + 1);
  size_t n = 0;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&actors->named, e));) {
    mob__actor_t *actor = e->value;
    if (!req->all_namespaces && strcmp(actor->data->ray_namespace, req->ray_namespace) != 0)
      continue;
    ray__rpc__named_actor_info__init(&rows[n]);
    rows[n].ray_namespace = actor->data->ray_namespace;
    rows[n].name = actor->data->name;
    list[n] = &rows[n];
    n++;
  }
  reply.status = MOB__OK(actors->gcs);
  reply.named_actors_list = list;
  reply.n_named_actors_list = n;
  mob_rpc_reply(call, &reply);
  free(list);
  free(rows);
}

static bool filtered_out(const mob__actor_t *actor,
                         const Ray__Rpc__GetAllActorInfoRequest__Filters *f) {
  if (!f) return false;
  if (f->opt_actor_id_case && !mob_pb_bytes_equal(f->actor_id, actor->id, sizeof actor->id))
    return true;
  if (f->opt_job_id_case &&
      !mob_pb_bytes_equal(f->job_id, actor->data->job_id.data, actor->data->job_id.len)) {
    return true;
  }
  return f->opt_state_case && f->state != actor->data->state;
}

static void on_get_all(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__actors_t *actors = owner;
  const Ray__Rpc__GetAllActorInfoRequest *req = request;
  Ray__Rpc__GetAllActorInfoReply reply = RAY__RPC__GET_ALL_ACTOR_INFO_REPLY__INIT;
  size_t limit = actors->all.count;
  if (req->opt_limit_case && req->limit >= 0 && (size_t)req->limit < limit)
    limit = (size_t)req->limit;
  Ray__Rpc__ActorTableData **rows = MOB_NEW_ARRAY(Ray__Rpc__ActorTableData *, limit + 1);
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&actors->all, e));) {
    if (filtered_out(e->value, req->filters)) {
      reply.num_filtered++;
    } else if (reply.n_actor_table_data < limit) {
      rows[reply.n_actor_table_data++] = ((mob__actor_t *)e->value)->data;
    }
  }
  reply.status = MOB__OK(actors->gcs);
  reply.actor_table_data = rows;
  reply.total = (int64_t)actors->all.count;
  mob_rpc_reply(call, &reply);
  free(rows);
}

// ------------------------------------------------------------------------------------------ ending

static void on_kill(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__actors_t *)owner)->gcs;
  const Ray__Rpc__KillActorViaGcsRequest *req = request;
  Ray__Rpc__KillActorViaGcsReply reply = RAY__RPC__KILL_ACTOR_VIA_GCS_REPLY__INIT;
  mob__actor_t *actor = mob__actor_find(gcs, req->actor_id.data, req->actor_id.len);
  if (!actor) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_NOT_FOUND, "Actor with ID %s is not found.",
                                   mob_id_text(req->actor_id).text);
    mob_rpc_reply(call, &reply);
    return;
  }
  if (actor->phase != MOB__ACTOR_DEAD) {
    Ray__Rpc__ActorDeathCause cause;
    Ray__Rpc__ActorDiedErrorContext context;
    mob__actor_died(actor, &cause, &context, RAY__RPC__ACTOR_DIED_ERROR_CONTEXT__REASON__RAY_KILL,
                    "The actor is dead because it was killed by `ray.kill`.");
    if (req->no_restart) {
      actor->kill_gently = !req->force_kill;
      mob__actor_die(actor, &cause);
    } else {
      mob__actor_kill_process(actor, req->force_kill,
                              &cause); // its end is reported: it starts again, or not
    }
  }
  reply.status = MOB__OK(gcs);
  mob__gcs_reply_stored(gcs, call, &reply);
}

static void on_out_of_scope(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__actors_t *)owner)->gcs;
  const Ray__Rpc__ReportActorOutOfScopeRequest *req = request;
  Ray__Rpc__ReportActorOutOfScopeReply reply = RAY__RPC__REPORT_ACTOR_OUT_OF_SCOPE_REPLY__INIT;
  mob__actor_t *actor = mob__actor_find(gcs, req->actor_id.data, req->actor_id.len);
  // A report older than the actor's last reconstruction is stale.
  if (actor && actor->phase != MOB__ACTOR_DEAD &&
      req->num_restarts_due_to_lineage_reconstruction >=
          actor->data->num_restarts_due_to_lineage_reconstruction) {
    Ray__Rpc__ActorDeathCause cause;
    Ray__Rpc__ActorDiedErrorContext context;
    mob__actor_died(actor, &cause, &context,
                    RAY__RPC__ACTOR_DIED_ERROR_CONTEXT__REASON__OUT_OF_SCOPE,
                    "The actor is dead because all references to the actor were removed.");
    actor->kill_gently = true;
    mob__actor_die(actor, &cause);
  }
  reply.status = MOB__OK(gcs);
  mob__gcs_reply_stored(gcs, call, &reply);
}

// Called by actor_death.c when an actor has become DEAD: frees its name, and makes room.
void mob__actor_retire(mob__actor_t *actor) {
  mob__actors_t *actors = actor->gcs->actors;
  if (actor->data->name[0]) {
    size_t len;
    char *key = name_key(actor->data->ray_namespace, actor->data->name, &len);
    if (mob_map_get(&actors->named, key, len) == actor) mob_map_remove(&actors->named, key, len);
    free(key);
  }
  if (++actors->dead <= DEAD_KEPT) return;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&actors->all, e));) {
    mob__actor_t *old = e->value;
    if (old->phase != MOB__ACTOR_DEAD || old == actor) continue;
    mob__gcs_store_del(actors->gcs, MOB_TABLE_ACTOR, old->id, sizeof old->id);
    mob__gcs_store_del(actors->gcs, MOB_TABLE_ACTOR_TASK_SPEC, old->id, sizeof old->id);
    mob_map_remove(&actors->all, old->id, sizeof old->id);
    free_actor(old);
    actors->dead--;
    return;
  }
}

// --------------------------------------------------------------------------------- after a restart

// Of a row: restarts, and those of them that the budget does not pay.
static bool counts_fit(const Ray__Rpc__ActorTableData *data) {
  return data->num_restarts >= 0 && data->num_restarts < INT64_MAX / 2 &&
         data->num_restarts_due_to_node_preemption <= (uint64_t)data->num_restarts;
}

void mob__actors_restore(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                         size_t value_len) {
  mob__actors_t *actors = gcs->actors;
  if (key_len != MOB_ACTOR_ID_SIZE || mob__actor_find(gcs, key, key_len)) return;
  Ray__Rpc__ActorTableData *data = mob__restore_row(
      "actor", &ray__rpc__actor_table_data__descriptor, key, key_len, value, value_len);
  if (!data) return;
  if (!counts_fit(data)) {
    MOB_ERROR("the actor %s in the store is left out: its restarts are out of range",
              mob_id_text_of(key, key_len).text);
    mob_pb_free(data);
    return;
  }
  mob__actor_t *actor = MOB_NEW(mob__actor_t);
  actor->gcs = gcs;
  actor->restored = true;
  actor->data = data;
  memcpy(actor->id, key, key_len);
  mob_pb_set_bytes(&data->actor_id, key, key_len);
  mob_hex(actor->id, sizeof actor->id, actor->hex);
  mob_map_put(&actors->all, actor->id, sizeof actor->id, actor);
  if (data->state == STATE(DEAD)) {
    actor->phase = MOB__ACTOR_DEAD;
    actors->dead++;
    return;
  }
  add_name(actor);
  const Ray__Rpc__Address *address = data->address;
  bool runs = data->state == STATE(ALIVE) && address &&
              address->worker_id.len == MOB_WORKER_ID_SIZE &&
              address->node_id.len == MOB_NODE_ID_SIZE;
  if (!runs) return; // REGISTERED, or taken up by mob__actors_resume()
  actor->phase = MOB__ACTOR_RUNNING;
  memcpy(actor->node_id, address->node_id.data, sizeof actor->node_id);
  actor->worker_address = mob_pb_clone(address);
  mob_map_put(&actors->workers, address->worker_id.data, address->worker_id.len, actor);
}

void mob__actors_restore_spec(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                              size_t value_len) {
  mob__actor_t *actor = mob__actor_find(gcs, key, key_len);
  if (!actor || actor->spec) return;
  Ray__Rpc__TaskSpec *spec = mob__restore_row(
      "specification of actor", &ray__rpc__task_spec__descriptor, key, key_len, value, value_len);
  if (spec && !check_spec(spec)) set_spec(actor, spec);
  mob_pb_free(spec);
}

// What became of an actor while no GCS was there to note it; NULL when it goes on.
static const char *lost_meanwhile(mob__actor_t *actor) {
  if (!actor->spec || !actor->data->owner_address) return "The GCS's store lost its specification.";
  if (actor->phase != MOB__ACTOR_RUNNING) return NULL;
  const mob__node_t *node = mob__node_find(actor->gcs, actor->node_id, sizeof actor->node_id);
  bool may_live = node && (node->alive || node->expected_until);
  return may_live ? NULL : "The actor died with its node, while the GCS was restarted.";
}

void mob__actors_resume(mob_gcs_t *gcs) {
  // Ends and losses only turn actors into dead or queued ones, which may free dead ones' entries.
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->actors->all, e));) {
    mob__actor_t *actor = e->value;
    if (actor->phase == MOB__ACTOR_DEAD) continue;
    const char *why = lost_meanwhile(actor);
    if (why) {
      Ray__Rpc__ActorDeathCause cause;
      Ray__Rpc__ActorDiedErrorContext context;
      mob__actor_died(actor, &cause, &context,
                      RAY__RPC__ACTOR_DIED_ERROR_CONTEXT__REASON__NODE_DIED, why);
      mob__actor_lost(actor, &cause, actor->spec != NULL);
    } else {
      if (!actor->data->is_detached) mob__actor_watch_owner(actor);
      if (actor->phase == MOB__ACTOR_RUNNING || actor->data->state == STATE(DEPENDENCIES_UNREADY))
        continue;
      mob__actor_queue(actor, 0); // its creation was under way: begun anew
    }
  }
}

void mob__actors_used_workers(mob_gcs_t *gcs, const mob__node_t *node, mob__used_workers_t *out) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->actors->all, e));) {
    const mob__actor_t *actor = e->value;
    if (actor->phase != MOB__ACTOR_RUNNING || !actor->worker_address) continue;
    if (memcmp(actor->node_id, node->id, sizeof node->id) != 0) continue;
    *mob_vec_push(out) = actor->worker_address->worker_id;
  }
}

// ----------------------------------------------------------------------------------------- service

#define ACTORS "/ray.rpc.ActorInfoGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(ACTORS "RegisterActor", ray__rpc__register_actor, on_register),
    MOB_RPC_METHOD(ACTORS "CreateActor", ray__rpc__create_actor, on_create),
    MOB_RPC_METHOD(ACTORS "RestartActorForLineageReconstruction",
                   ray__rpc__restart_actor_for_lineage_reconstruction, on_restart),
    MOB_RPC_METHOD(ACTORS "GetActorInfo", ray__rpc__get_actor_info, on_get),
    MOB_RPC_METHOD(ACTORS "GetNamedActorInfo", ray__rpc__get_named_actor_info, on_get_named),
    MOB_RPC_METHOD(ACTORS "ListNamedActors", ray__rpc__list_named_actors, on_list_named),
    MOB_RPC_METHOD(ACTORS "GetAllActorInfo", ray__rpc__get_all_actor_info, on_get_all),
    MOB_RPC_METHOD(ACTORS "KillActorViaGcs", ray__rpc__kill_actor_via_gcs, on_kill),
    MOB_RPC_METHOD(ACTORS "ReportActorOutOfScope", ray__rpc__report_actor_out_of_scope,
                   on_out_of_scope),
};

mob__actors_t *mob__actors_new(mob_gcs_t *gcs) {
  mob__actors_t *actors = MOB_NEW(mob__actors_t);
  actors->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), actors);
  return actors;
}

void mob__actors_close(mob__actors_t *actors) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&actors->all, e));) {
    mob__actor_t *actor = e->value;
    for (size_t i = 0; i < actor->waiters.len; i++) {
      mob_rpc_call_on_cancel(actor->waiters.at[i], NULL, NULL);
      mob_rpc_reply_status(actor->waiters.at[i], GRPC_STATUS_UNAVAILABLE,
                           "the GCS is shutting down");
    }
    actor->waiters.len = 0;
    if (actor->worker) mob_rpc_client_close(actor->worker);
    actor->worker = NULL;
    mob__actor_forget_owner(actor);
  }
}

void mob__actors_free(mob__actors_t *actors) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&actors->all, e));) free_actor(e->value);
  mob_map_free(&actors->all);
  mob_map_free(&actors->named);
  mob_map_free(&actors->workers);
  free(actors);
}
