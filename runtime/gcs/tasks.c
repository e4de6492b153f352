// TaskInfoGcsService, RuntimeEnvGcsService and RayEventExportGcsService. Task events are kept for
// the state API: the newest of each attempt, up to a bound, oldest dropped first.
#include <stdlib.h>
#include <string.h>

#include "runtime/gcs/internal.h"

enum { EVENTS_KEPT = 10000 };

struct mob__tasks {
  mob_gcs_t *gcs;
  mob_map_t attempts; // task id + attempt -> Ray__Rpc__TaskEvents, oldest first
  int64_t dropped_status, dropped_profile;
};

// Later news of an attempt are merged into the earlier, as protobuf merges messages: fields of the
// later win, times of states that only the earlier knows stay.
static void merge(mob__tasks_t *tasks, const Ray__Rpc__TaskEvents *news) {
  uint8_t key[MOB_TASK_ID_SIZE + sizeof(int32_t)] = {0};
  if (news->task_id.len != MOB_TASK_ID_SIZE) return;
  memcpy(key, news->task_id.data, MOB_TASK_ID_SIZE);
  memcpy(key + MOB_TASK_ID_SIZE, &news->attempt_number, sizeof news->attempt_number);
  Ray__Rpc__TaskEvents *known = mob_map_get(&tasks->attempts, key, sizeof key);
  if (!known) {
    mob_map_put(&tasks->attempts, key, sizeof key, mob_pb_clone(news));
  } else {
    // Serialized messages merge by concatenation.
    size_t a, b;
    uint8_t *first = mob_pb_pack(known, &a);
    uint8_t *second = mob_pb_pack(news, &b);
    first = mob_realloc(first, a + b + 1);
    memcpy(first + a, second, b);
    Ray__Rpc__TaskEvents *both = ray__rpc__task_events__unpack(NULL, a + b, first);
    free(first);
    free(second);
    if (!both) return;
    mob_map_put(&tasks->attempts, key, sizeof key, both);
    mob_pb_free(known);
  }
  if (tasks->attempts.count <= EVENTS_KEPT) return;
  mob_map_entry_t *oldest = mob_map_next(&tasks->attempts, NULL);
  mob_pb_free(oldest->value);
  mob_map_remove(&tasks->attempts, oldest->key, oldest->key_len);
  tasks->dropped_status++;
}

static void on_add(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__tasks_t *tasks = owner;
  const Ray__Rpc__AddTaskEventDataRequest *req = request;
  Ray__Rpc__AddTaskEventDataReply reply = RAY__RPC__ADD_TASK_EVENT_DATA_REPLY__INIT;
  if (req->data) {
    for (size_t i = 0; i < req->data->n_events_by_task; i++)
      merge(tasks, req->data->events_by_task[i]);
    tasks->dropped_status += (int64_t)req->data->n_dropped_task_attempts;
    tasks->dropped_profile += req->data->num_profile_events_dropped;
  }
  reply.status = MOB__OK(tasks->gcs);
  mob_rpc_reply(call, &reply);
}

static bool agrees(bool equal, Ray__Rpc__FilterPredicate predicate) {
  return predicate == RAY__RPC__FILTER_PREDICATE__EQUAL ? equal : !equal;
}

static const char *state_name(const Ray__Rpc__TaskEvents *events) {
  // The latest state: of those with a time, the one with the highest number.
  int32_t state = 0;
  if (events->state_updates) {
    for (size_t i = 0; i < events->state_updates->n_state_ts_ns; i++) {
      if (events->state_updates->state_ts_ns[i]->key > state)
        state = events->state_updates->state_ts_ns[i]->key;
    }
  }
  const ProtobufCEnumValue *value =
      protobuf_c_enum_descriptor_get_value(&ray__rpc__task_status__descriptor, state);
  return value ? value->name : "NIL";
}

static bool passes(const Ray__Rpc__TaskEvents *events,
                   const Ray__Rpc__GetTaskEventsRequest__Filters *f) {
  if (!f) return true;
  const Ray__Rpc__TaskInfoEntry *info = events->task_info;
  for (size_t i = 0; i < f->n_job_filters; i++) {
    ProtobufCBinaryData id = f->job_filters[i]->job_id;
    if (!agrees(mob_pb_bytes_equal(events->job_id, id.data, id.len), f->job_filters[i]->predicate))
      return false;
  }
  for (size_t i = 0; i < f->n_task_filters; i++) {
    ProtobufCBinaryData id = f->task_filters[i]->task_id;
    if (!agrees(mob_pb_bytes_equal(events->task_id, id.data, id.len),
                f->task_filters[i]->predicate))
      return false;
  }
  for (size_t i = 0; i < f->n_actor_filters; i++) {
    ProtobufCBinaryData id = f->actor_filters[i]->actor_id;
    bool equal =
        info && info->opt_actor_id_case && mob_pb_bytes_equal(info->actor_id, id.data, id.len);
    if (!agrees(equal, f->actor_filters[i]->predicate)) return false;
  }
  for (size_t i = 0; i < f->n_task_name_filters; i++) {
    bool equal = info && strcasecmp(info->name, f->task_name_filters[i]->task_name) == 0;
    if (!agrees(equal, f->task_name_filters[i]->predicate)) return false;
  }
  for (size_t i = 0; i < f->n_state_filters; i++) {
    bool equal = strcasecmp(state_name(events), f->state_filters[i]->state) == 0;
    if (!agrees(equal, f->state_filters[i]->predicate)) return false;
  }
  bool driver = info && info->type == RAY__RPC__TASK_TYPE__DRIVER_TASK;
  return !(driver && f->opt_exclude_driver_case && f->exclude_driver);
}

static void on_get(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__tasks_t *tasks = owner;
  const Ray__Rpc__GetTaskEventsRequest *req = request;
  Ray__Rpc__GetTaskEventsReply reply = RAY__RPC__GET_TASK_EVENTS_REPLY__INIT;
  size_t limit = tasks->attempts.count;
  if (req->opt_limit_case && req->limit >= 0 && (size_t)req->limit < limit)
    limit = (size_t)req->limit;
  Ray__Rpc__TaskEvents **rows = MOB_NEW_ARRAY(Ray__Rpc__TaskEvents *, limit + 1);
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&tasks->attempts, e));) {
    if (!passes(e->value, req->filters)) {
      reply.num_filtered_on_gcs++;
    } else if (reply.n_events_by_task < limit) {
      rows[reply.n_events_by_task++] = e->value;
    } else {
      reply.num_truncated++;
    }
  }
  reply.status = MOB__OK(tasks->gcs);
  reply.events_by_task = rows;
  reply.num_total_stored = (int64_t)tasks->attempts.count;
  reply.num_status_task_events_dropped = (int32_t)tasks->dropped_status;
  reply.num_profile_task_events_dropped = (int32_t)tasks->dropped_profile;
  mob_rpc_reply(call, &reply);
  free(rows);
}

// Nothing here unpacks runtime environments, so nothing is collected that a pin could save.
static void on_pin(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  Ray__Rpc__PinRuntimeEnvURIReply reply = RAY__RPC__PIN_RUNTIME_ENV_URIREPLY__INIT;
  reply.status = MOB__OK(((mob__tasks_t *)owner)->gcs);
  mob_rpc_reply(call, &reply);
}

static void on_events(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  Ray__Rpc__AddEventsReply reply = RAY__RPC__ADD_EVENTS_REPLY__INIT;
  reply.status = MOB__OK(((mob__tasks_t *)owner)->gcs);
  mob_rpc_reply(call, &reply);
}

static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD("/ray.rpc.TaskInfoGcsService/AddTaskEventData", ray__rpc__add_task_event_data,
                   on_add),
    MOB_RPC_METHOD("/ray.rpc.TaskInfoGcsService/GetTaskEvents", ray__rpc__get_task_events, on_get),
    {"/ray.rpc.RuntimeEnvGcsService/PinRuntimeEnvURI",
     &ray__rpc__pin_runtime_env_urirequest__descriptor,
     &ray__rpc__pin_runtime_env_urireply__descriptor, on_pin},
    MOB_RPC_METHOD("/ray.rpc.RayEventExportGcsService/AddEvents", ray__rpc__add_events, on_events),
};

mob__tasks_t *mob__tasks_new(mob_gcs_t *gcs) {
  mob__tasks_t *tasks = MOB_NEW(mob__tasks_t);
  tasks->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), tasks);
  return tasks;
}

void mob__tasks_free(mob__tasks_t *tasks) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&tasks->attempts, e));) mob_pb_free(e->value);
  mob_map_free(&tasks->attempts);
  free(tasks);
}
