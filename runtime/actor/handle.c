// A driver's handle of an actor: its life as the GCS tells it, calls and streams to its process.
#define MOB_LOG_COMPONENT "driver"

#include <stdlib.h>
#include <string.h>

#include "runtime/actor/task.h"
#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/rpc/message.h"

#define CALL_TIMEOUT_MS 10000
#define SERVICE "/ray.rpc.ActorInfoGcsService/"

typedef enum actor_state { STARTING, ALIVE, RESTARTING, DEAD } actor_state_t;

typedef struct pending_call {
  mob_actor_t *actor;
  struct pending_call *next, *prev; // in the list of those waiting, or of those sent
  bool sent;
  int64_t sequence; // of this life of the actor
  char *method;
  mob_buf_t args; // while waiting
  uint64_t timeout_ms, deadline_ms;
  mob_result_fn done;
  void *arg;
} pending_call_t;

typedef struct call_list {
  pending_call_t *first, *last;
} call_list_t;

struct mob_actor {
  mob_cluster_t *cluster;
  const mob_actor_events_t *events;
  void *owner;
  uint8_t id[MOB_ACTOR_ID_LEN];
  actor_state_t state;
  bool released, known; // known: the GCS has the actor
  char *name, *class_name, *ip, *why;
  int port, pid;
  int64_t restarts;
  uint8_t worker_id[MOB_WORKER_ID_LEN];
  mob_rpc_client_t *rpc; // to the living process
  int64_t next_sequence;
  call_list_t waiting, sent;
  uv_timer_t timer;         // of the nearest deadline among the waiting
  Ray__Rpc__TaskSpec *task; // between RegisterActor and CreateActor
  unsigned users;
};

// ---------------------------------------------------------------------------------------------
// lifetime

static void leave(mob_actor_t *actor) {
  if (--actor->users) return;
  mob_cluster_t *cluster = actor->cluster;
  for (size_t i = 0; i < cluster->actors.len; i++) {
    if (cluster->actors.at[i] != actor) continue;
    mob_vec_remove(&cluster->actors, i);
    break;
  }
  free(actor->name);
  free(actor->class_name);
  free(actor->ip);
  free(actor->why);
  mob_pb_free(actor->task);
  free(actor);
  mob__cluster_leave(cluster);
}

static void on_timer_closed(uv_handle_t *handle) {
  leave(handle->data);
}

static mob_actor_t *new_actor(mob_cluster_t *cluster, const mob_actor_events_t *events,
                              void *owner) {
  mob_actor_t *actor = MOB_NEW(mob_actor_t);
  *actor = (mob_actor_t){.cluster = cluster, .events = events, .owner = owner, .users = 1};
  actor->name = mob_strdup("");
  actor->class_name = mob_strdup("");
  actor->ip = mob_strdup("");
  uv_timer_init(cluster->loop, &actor->timer);
  actor->timer.data = actor;
  *mob_vec_push(&cluster->actors) = actor;
  mob__cluster_enter(cluster);
  return actor;
}

// ------------------------------------------------------------------------------------------------
// calls

static void list_push(call_list_t *list, pending_call_t *call) {
  call->prev = list->last;
  call->next = NULL;
  if (list->last) list->last->next = call;
  if (!list->first) list->first = call;
  list->last = call;
}

static void list_remove(call_list_t *list, pending_call_t *call) {
  if (call->prev) call->prev->next = call->next;
  if (call->next) call->next->prev = call->prev;
  if (list->first == call) list->first = call->next;
  if (list->last == call) list->last = call->prev;
}

static void finish_call(pending_call_t *call, mob_status status, const char *why,
                        mob_bytes_t result) {
  mob_actor_t *actor = call->actor;
  list_remove(call->sent ? &actor->sent : &actor->waiting, call);
  if (call->done) call->done(call->arg, status, status == MOB_OK ? NULL : why, result);
  mob_buf_free(&call->args);
  free(call->method);
  free(call);
  leave(actor);
}

static void on_pushed(void *arg, grpc_status_code code, const char *why, const void *message) {
  pending_call_t *call = arg;
  const Ray__Rpc__PushTaskReply *reply = message;
  mob_status status = mob_rpc_to_status(code);
  mob_bytes_t result = {0};
  mob_actor_t *actor = call->actor;
  char *text = NULL;
  if (status == MOB_OK && reply->is_application_error) {
    status = mob__error_status(reply->task_execution_error, &why);
  } else if (status == MOB_OK && reply->n_return_objects) {
    result = (mob_bytes_t){reply->return_objects[0]->data.data, reply->return_objects[0]->data.len};
  } else if (actor->cluster->closing || actor->released) {
    status = MOB_E_ABORTED;
    why = actor->released ? "the actor's handle was released"
                          : "the connection to the cluster was closed";
  } else if (status == MOB_E_ABORTED || status == MOB_E_UNAVAILABLE || status == MOB_E_INTERNAL) {
    // Its connection broke (gRPC has several codes for that), or the notice of its death was first
    // and cancelled the call.
    status = MOB_E_UNAVAILABLE;
    why = text = actor->why ? mob_strdup(actor->why)
                            : mob_sprintf("actor %s (process %d on %s) does not answer: %s",
                                          *actor->name ? actor->name : actor->class_name,
                                          actor->pid, actor->ip, why);
  }
  finish_call(call, status, why, result);
  free(text);
}

static void send_call(pending_call_t *call, mob_bytes_t args) {
  mob_actor_t *actor = call->actor;
  Ray__Rpc__PushTaskRequest request = RAY__RPC__PUSH_TASK_REQUEST__INIT;
  Ray__Rpc__TaskSpec task = RAY__RPC__TASK_SPEC__INIT;
  Ray__Rpc__FunctionDescriptor function = RAY__RPC__FUNCTION_DESCRIPTOR__INIT;
  Ray__Rpc__CppFunctionDescriptor cpp = RAY__RPC__CPP_FUNCTION_DESCRIPTOR__INIT;
  Ray__Rpc__ActorTaskSpec actor_task = RAY__RPC__ACTOR_TASK_SPEC__INIT;
  Ray__Rpc__TaskArg arg = RAY__RPC__TASK_ARG__INIT, *arg_list[] = {&arg};
  Ray__Rpc__Address caller;
  uint8_t task_id[MOB_TASK_ID_LEN];
  call->sent = true;
  call->sequence = actor->next_sequence++;
  for (int i = 0; i < MOB_TASK_ID_LEN - MOB_ACTOR_ID_LEN; i++) {
    task_id[i] = (uint8_t)((uint64_t)call->sequence >> (8 * i));
  }
  memcpy(task_id + MOB_TASK_ID_LEN - MOB_ACTOR_ID_LEN, actor->id, MOB_ACTOR_ID_LEN);
  mob__cluster_address(actor->cluster, &caller);
  cpp.function_name = call->method;
  cpp.class_name = actor->class_name;
  function.function_descriptor_case =
      RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_CPP_FUNCTION_DESCRIPTOR;
  function.cpp_function_descriptor = &cpp;
  actor_task.actor_id = mob_pb_bytes(actor->id, MOB_ACTOR_ID_LEN);
  actor_task.sequence_number = (uint64_t)call->sequence;
  arg.data = mob_pb_bytes(args.data, args.len);
  arg.is_inlined = true;
  task.type = RAY__RPC__TASK_TYPE__ACTOR_TASK;
  task.name = call->method;
  task.language = RAY__RPC__LANGUAGE__CPP;
  task.function_descriptor = &function;
  task.job_id = mob_pb_bytes(actor->cluster->job_id, MOB_JOB_ID_LEN);
  task.task_id = mob_pb_bytes(task_id, sizeof task_id);
  task.caller_address = &caller;
  task.args = arg_list;
  task.n_args = 1;
  task.num_returns = 1;
  task.actor_task_spec = &actor_task;
  request.intended_worker_id = mob_pb_bytes(actor->worker_id, MOB_WORKER_ID_LEN);
  request.task_spec = &task;
  request.sequence_number = call->sequence;
  // The list of sent calls is in order of sequence: all before its first have ended.
  request.client_processed_up_to =
      (actor->sent.first ? actor->sent.first->sequence : call->sequence) - 1;
  list_push(&actor->sent, call);
  mob_rpc_call(actor->rpc, MOB_PUSH_TASK, &request, &ray__rpc__push_task_reply__descriptor,
               call->timeout_ms, on_pushed, call);
}

static void arm_timer(mob_actor_t *actor);

static void on_deadline(uv_timer_t *timer) {
  mob_actor_t *actor = timer->data;
  uint64_t now = uv_now(actor->cluster->loop);
  actor->users++;
  for (pending_call_t *call = actor->waiting.first, *next; call; call = next) {
    next = call->next;
    if (!call->deadline_ms || call->deadline_ms > now) continue;
    finish_call(call, MOB_E_TIMEOUT, "the actor was not alive in time", (mob_bytes_t){0});
  }
  arm_timer(actor);
  leave(actor);
}

static void arm_timer(mob_actor_t *actor) {
  uint64_t nearest = 0, now = uv_now(actor->cluster->loop);
  if (uv_is_closing((uv_handle_t *)&actor->timer)) return;
  for (pending_call_t *call = actor->waiting.first; call; call = call->next) {
    if (call->deadline_ms && (!nearest || call->deadline_ms < nearest)) nearest = call->deadline_ms;
  }
  if (nearest) {
    uv_timer_start(&actor->timer, on_deadline, nearest > now ? nearest - now : 0, 0);
  } else {
    uv_timer_stop(&actor->timer);
  }
}

static void run_dead_call(void *arg) {
  pending_call_t *call = arg;
  mob_actor_t *actor = call->actor;
  finish_call(call, actor->cluster->closing ? MOB_E_ABORTED : MOB_E_UNAVAILABLE,
              actor->why ? actor->why : "the actor is dead", (mob_bytes_t){0});
}

void mob_actor_call(mob_actor_t *actor, const char *method, mob_bytes_t args, uint64_t timeout_ms,
                    mob_result_fn done, void *arg) {
  pending_call_t *call = MOB_NEW(pending_call_t);
  *call = (pending_call_t){.actor = actor,
                           .method = mob_strdup(method),
                           .timeout_ms = timeout_ms,
                           .done = done,
                           .arg = arg};
  actor->users++;
  if (actor->state == ALIVE) {
    send_call(call, args);
    return;
  }
  if (actor->state == DEAD) {
    call->sent = true; // in neither list's way: nothing is sent to the dead
    list_push(&actor->sent, call);
    mob__defer(actor->cluster, run_dead_call, call);
    return;
  }
  mob_buf_append(&call->args, args.data, args.len);
  if (timeout_ms) call->deadline_ms = uv_now(actor->cluster->loop) + timeout_ms;
  list_push(&actor->waiting, call);
  arm_timer(actor);
}

static void send_waiting(mob_actor_t *actor) {
  uint64_t now = uv_now(actor->cluster->loop);
  pending_call_t *call;
  while (actor->state == ALIVE && (call = actor->waiting.first)) {
    list_remove(&actor->waiting, call);
    if (call->deadline_ms) call->timeout_ms = call->deadline_ms > now ? call->deadline_ms - now : 1;
    send_call(call, (mob_bytes_t){call->args.data, call->args.len});
    mob_buf_free(&call->args);
  }
  arm_timer(actor);
}

static void fail_waiting(mob_actor_t *actor, mob_status status) {
  pending_call_t *call;
  while ((call = actor->waiting.first)) finish_call(call, status, actor->why, (mob_bytes_t){0});
  arm_timer(actor);
}

// -----------------------------------------------------------------------------------------------
// states

// Cancels the calls under way; streams close with UNAVAILABLE or ABORTED.
static void disconnect(mob_actor_t *actor) {
  mob_rpc_client_t *rpc = actor->rpc;
  actor->rpc = NULL;
  if (rpc) mob_rpc_client_close(rpc);
}

static void set_text(char **field, const char *text) {
  char *copy = mob_strdup(text);
  free(*field);
  *field = copy;
}

static void become_dead(mob_actor_t *actor, const char *why, bool restarting, mob_status status) {
  actor_state_t before = actor->state;
  if (before == DEAD) return;
  actor->users++;
  actor->state = restarting ? RESTARTING : DEAD;
  set_text(&actor->why, why);
  disconnect(actor);
  if (!restarting) {
    mob_gcs_client_t *gcs = actor->cluster->gcs;
    if (actor->known && !actor->cluster->closing) {
      mob_gcs_unsubscribe(gcs, RAY__RPC__CHANNEL_TYPE__GCS_ACTOR_CHANNEL, actor->id,
                          MOB_ACTOR_ID_LEN);
    }
    fail_waiting(actor, status);
  }
  if (!actor->released && actor->events && actor->events->on_dead &&
      !(restarting && before == RESTARTING)) {
    actor->events->on_dead(actor->owner, actor, restarting, actor->why);
  }
  leave(actor);
}

void mob__handle_lost(mob_actor_t *actor, mob_status status, const char *why) {
  become_dead(actor, why, false, status);
}

static void become_alive(mob_actor_t *actor, const Ray__Rpc__ActorTableData *data) {
  const Ray__Rpc__Address *address = data->address;
  if (!address || address->worker_id.len != MOB_WORKER_ID_LEN) return;
  bool same = memcmp(actor->worker_id, address->worker_id.data, MOB_WORKER_ID_LEN) == 0;
  if (actor->state == ALIVE && same) return;
  if (actor->state == RESTARTING && same) return; // old news
  actor->users++;
  disconnect(actor);
  memcpy(actor->worker_id, address->worker_id.data, MOB_WORKER_ID_LEN);
  set_text(&actor->ip, address->ip_address);
  actor->port = address->port;
  actor->pid = (int)data->pid;
  actor->next_sequence = 0;
  char *target = strchr(actor->ip, ':') ? mob_sprintf("[%s]:%d", actor->ip, actor->port)
                                        : mob_sprintf("%s:%d", actor->ip, actor->port);
  mob_rpc_client_options_t options = {1500, 3000, 0};
  mob_status status = mob_rpc_client_new(actor->cluster->rpc, target, &options, &actor->rpc);
  free(target);
  if (status != MOB_OK) {
    become_dead(actor, mob_errmsg(), false, status);
  } else {
    actor->state = ALIVE;
    free(actor->why);
    actor->why = NULL;
    send_waiting(actor);
    if (!actor->released && actor->events && actor->events->on_alive) {
      actor->events->on_alive(actor->owner, actor);
    }
  }
  leave(actor);
}

static void apply(mob_actor_t *actor, const Ray__Rpc__ActorTableData *data) {
  if (actor->state == DEAD || data->num_restarts < actor->restarts) return;
  if (*data->name) set_text(&actor->name, data->name);
  if (*data->class_name) set_text(&actor->class_name, data->class_name);
  switch (data->state) {
  case RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__ALIVE:
    actor->restarts = data->num_restarts;
    become_alive(actor, data);
    break;
  case RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__RESTARTING:
  case RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__DEAD: {
    bool restarting = data->state == RAY__RPC__ACTOR_TABLE_DATA__ACTOR_STATE__RESTARTING;
    char *why = mob__death_text(data);
    actor->restarts = data->num_restarts;
    become_dead(actor, why, restarting, MOB_E_UNAVAILABLE);
    free(why);
    break;
  }
  default:
    break;
  }
}

void mob__handle_on_table(mob_cluster_t *cluster, const Ray__Rpc__ActorTableData *data) {
  // Backwards, and by index: a handler may release handles, its own among them.
  for (size_t i = cluster->actors.len; i-- > 0;) {
    if (i >= cluster->actors.len) continue;
    mob_actor_t *actor = cluster->actors.at[i];
    if (mob_pb_bytes_equal(data->actor_id, actor->id, MOB_ACTOR_ID_LEN)) apply(actor, data);
  }
}

// ------------------------------------------------------------------------------------- create and
// find

static void on_info(void *arg, mob_status status, const char *why, const void *message) {
  mob_actor_t *actor = arg;
  const Ray__Rpc__GetActorInfoReply *reply = message;
  if (status == MOB_OK && reply->actor_table_data) {
    apply(actor, reply->actor_table_data);
  } else if (status != MOB_OK && !actor->cluster->lost) {
    become_dead(actor, why, false, status);
  }
  leave(actor);
}

static void ask_info(mob_actor_t *actor) {
  Ray__Rpc__GetActorInfoRequest request = RAY__RPC__GET_ACTOR_INFO_REQUEST__INIT;
  request.actor_id = mob_pb_bytes(actor->id, MOB_ACTOR_ID_LEN);
  actor->users++;
  mob_gcs_call(actor->cluster->gcs, SERVICE "GetActorInfo", &request,
               &ray__rpc__get_actor_info_reply__descriptor, CALL_TIMEOUT_MS, on_info, actor);
}

// Creation has no deadline here: an actor that cannot be placed waits, as its caller may.
static void on_create_reply(void *arg, mob_status status, const char *why, const void *message) {
  mob_actor_t *actor = arg;
  (void)message;
  // The published states carry more than this reply (process, cause of death); this makes sure that
  // none was missed.
  if (actor->state == STARTING) {
    if (status == MOB_OK || status == MOB_E_ABORTED) {
      if (!actor->cluster->closing && !actor->cluster->lost) ask_info(actor);
    } else {
      become_dead(actor, why, false, status);
    }
  }
  leave(actor);
}

static void on_registered(void *arg, mob_status status, const char *why, const void *message) {
  mob_actor_t *actor = arg;
  (void)message;
  if (status != MOB_OK) {
    become_dead(actor, why, false, status);
  } else if (actor->state == STARTING && !actor->cluster->closing) {
    Ray__Rpc__CreateActorRequest request = RAY__RPC__CREATE_ACTOR_REQUEST__INIT;
    request.task_spec = actor->task;
    actor->users++;
    mob_gcs_call(actor->cluster->gcs, SERVICE "CreateActor", &request,
                 &ray__rpc__create_actor_reply__descriptor, 0, on_create_reply, actor);
  }
  mob_pb_free(actor->task);
  actor->task = NULL;
  leave(actor);
}

mob_status mob_actor_create(mob_cluster_t *cluster, const mob_actor_options_t *options,
                            const mob_actor_events_t *events, void *owner, mob_actor_t **out) {
  const char *broken = mob__cluster_broken(cluster);
  if (broken) return mob_fail(MOB_E_UNAVAILABLE, "%s", broken);
  uint8_t id[MOB_ACTOR_ID_LEN];
  Ray__Rpc__TaskSpec *task;
  mob_random(id, sizeof id);
  memcpy(id + MOB_ACTOR_ID_LEN - MOB_JOB_ID_LEN, cluster->job_id, MOB_JOB_ID_LEN);
  MOB_TRY(mob__creation_task(cluster, options, id, &task));
  mob_actor_t *actor = new_actor(cluster, events, owner);
  memcpy(actor->id, id, sizeof id);
  set_text(&actor->name, options->name ? options->name : "");
  set_text(&actor->class_name, options->class_name);
  actor->task = task;
  actor->known = true;
  mob_gcs_subscribe(cluster->gcs, RAY__RPC__CHANNEL_TYPE__GCS_ACTOR_CHANNEL, id, sizeof id, NULL,
                    NULL);
  Ray__Rpc__RegisterActorRequest request = RAY__RPC__REGISTER_ACTOR_REQUEST__INIT;
  request.task_spec = task;
  actor->users++;
  mob_gcs_call(cluster->gcs, SERVICE "RegisterActor", &request,
               &ray__rpc__register_actor_reply__descriptor, CALL_TIMEOUT_MS, on_registered, actor);
  *out = actor;
  return MOB_OK;
}

static void on_found(void *arg, mob_status status, const char *why, const void *message) {
  mob_actor_t *actor = arg;
  const Ray__Rpc__GetNamedActorInfoReply *reply = message;
  const Ray__Rpc__ActorTableData *data = status == MOB_OK ? reply->actor_table_data : NULL;
  if (data && data->actor_id.len == MOB_ACTOR_ID_LEN && !actor->cluster->closing) {
    memcpy(actor->id, data->actor_id.data, MOB_ACTOR_ID_LEN);
    actor->known = true;
    mob_gcs_subscribe(actor->cluster->gcs, RAY__RPC__CHANNEL_TYPE__GCS_ACTOR_CHANNEL, actor->id,
                      MOB_ACTOR_ID_LEN, NULL, NULL);
    ask_info(actor);
  } else {
    char *text =
        mob_sprintf("there is no actor named '%s': %s", actor->name, why ? why : "not found");
    become_dead(actor, text, false, status == MOB_OK ? MOB_E_NOT_FOUND : status);
    free(text);
  }
  leave(actor);
}

mob_status mob_actor_find(mob_cluster_t *cluster, const char *name_space, const char *name,
                          const mob_actor_events_t *events, void *owner, mob_actor_t **out) {
  const char *broken = mob__cluster_broken(cluster);
  if (broken) return mob_fail(MOB_E_UNAVAILABLE, "%s", broken);
  mob_actor_t *actor = new_actor(cluster, events, owner);
  set_text(&actor->name, name);
  Ray__Rpc__GetNamedActorInfoRequest request = RAY__RPC__GET_NAMED_ACTOR_INFO_REQUEST__INIT;
  request.name = (char *)name;
  request.ray_namespace = (char *)(name_space ? name_space : cluster->name_space);
  actor->users++;
  mob_gcs_call(cluster->gcs, SERVICE "GetNamedActorInfo", &request,
               &ray__rpc__get_named_actor_info_reply__descriptor, CALL_TIMEOUT_MS, on_found, actor);
  *out = actor;
  return MOB_OK;
}

// ------------------------------------------------------------------------------------ the handle
// itself

const uint8_t *mob_actor_id(const mob_actor_t *actor) {
  return actor->id;
}

const char *mob_actor_ip(const mob_actor_t *actor) {
  return actor->ip;
}

int mob_actor_port(const mob_actor_t *actor) {
  return actor->port;
}

int mob_actor_pid(const mob_actor_t *actor) {
  return actor->pid;
}

mob_status mob_actor_stream(mob_actor_t *actor, const char *method,
                            const mob_stream_events_t *events, void *owner, mob_stream_t **out) {
  if (actor->state != ALIVE) {
    return mob_fail(MOB_E_UNAVAILABLE, "%s",
                    actor->why ? actor->why : "the actor is not alive yet");
  }
  *out = mob__stream_client(actor->rpc, actor->id, method, events, owner);
  return MOB_OK;
}

typedef struct kill_request {
  mob_cluster_t *cluster;
  mob_done_fn done;
  void *arg;
} kill_request_t;

static void on_killed(void *arg, mob_status status, const char *why, const void *message) {
  kill_request_t *kill = arg;
  (void)message;
  if (kill->done) kill->done(kill->arg, status, status == MOB_OK ? NULL : why);
  mob__cluster_leave(kill->cluster);
  free(kill);
}

void mob_actor_kill(mob_actor_t *actor, bool force, mob_done_fn done, void *arg) {
  mob_cluster_t *cluster = actor->cluster;
  const char *broken = mob__cluster_broken(cluster);
  if (broken || actor->state == DEAD || !actor->known) {
    mob_status status = broken ? (cluster->closing ? MOB_E_ABORTED : MOB_E_UNAVAILABLE)
                        : actor->state == DEAD ? MOB_OK
                                               : MOB_E_NOT_FOUND;
    mob__defer_done(cluster, done, arg, status, broken ? broken : "the actor is not known yet");
    return;
  }
  kill_request_t *kill = MOB_NEW(kill_request_t);
  *kill = (kill_request_t){cluster, done, arg};
  mob__cluster_enter(cluster);
  Ray__Rpc__KillActorViaGcsRequest request = RAY__RPC__KILL_ACTOR_VIA_GCS_REQUEST__INIT;
  request.actor_id = mob_pb_bytes(actor->id, MOB_ACTOR_ID_LEN);
  request.force_kill = force;
  request.no_restart = true;
  mob_gcs_call(cluster->gcs, SERVICE "KillActorViaGcs", &request,
               &ray__rpc__kill_actor_via_gcs_reply__descriptor, CALL_TIMEOUT_MS, on_killed, kill);
}

void mob_actor_release(mob_actor_t *actor) {
  mob_cluster_t *cluster = actor->cluster;
  if (actor->released) return;
  actor->released = true;
  actor->events = NULL;
  if (actor->known && actor->state != DEAD && !cluster->closing && !cluster->lost) {
    mob_gcs_unsubscribe(cluster->gcs, RAY__RPC__CHANNEL_TYPE__GCS_ACTOR_CHANNEL, actor->id,
                        MOB_ACTOR_ID_LEN);
  }
  actor->known = false;
  disconnect(actor);
  if (actor->state != DEAD) {
    set_text(&actor->why, "its handle was released");
    actor->state = DEAD;
    fail_waiting(actor, MOB_E_ABORTED);
  }
  uv_close((uv_handle_t *)&actor->timer, on_timer_closed);
}
