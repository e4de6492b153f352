// WorkerInfoGcsService: worker processes, and the news of their end.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/gcs/ids.h"
#include "runtime/gcs/internal.h"
#include "runtime/gcs/restore.h"

enum { DEAD_KEPT = 1000 };

struct mob__workers {
  mob_gcs_t *gcs;
  mob_map_t all; // worker id -> Ray__Rpc__WorkerTableData
  size_t dead;
};

static void put(mob__workers_t *workers, Ray__Rpc__WorkerTableData *data) {
  ProtobufCBinaryData id = data->worker_address->worker_id;
  Ray__Rpc__WorkerTableData *former = mob_map_put(&workers->all, id.data, id.len, data);
  if (!data->is_alive && (!former || former->is_alive)) workers->dead++;
  if (data->is_alive && former && !former->is_alive) workers->dead--;
  mob_pb_free(former);
  mob__gcs_store_put(workers->gcs, MOB_TABLE_WORKERS, id.data, id.len, data);
  if (workers->dead <= DEAD_KEPT) return;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&workers->all, e));) {
    Ray__Rpc__WorkerTableData *old = e->value;
    if (old->is_alive || old == data) continue;
    ProtobufCBinaryData old_id = old->worker_address->worker_id;
    mob__gcs_store_del(workers->gcs, MOB_TABLE_WORKERS, old_id.data, old_id.len);
    mob_map_remove(&workers->all, old_id.data, old_id.len);
    mob_pb_free(old);
    workers->dead--;
    return;
  }
}

static bool has_id(const Ray__Rpc__WorkerTableData *data) {
  return data && data->worker_address && data->worker_address->worker_id.len == MOB_WORKER_ID_SIZE;
}

static void publish_delta(mob_gcs_t *gcs, const Ray__Rpc__Address *address) {
  Ray__Rpc__WorkerDeltaData delta = RAY__RPC__WORKER_DELTA_DATA__INIT;
  delta.node_id = address->node_id;
  delta.worker_id = address->worker_id;
  Ray__Rpc__PubMessage message = RAY__RPC__PUB_MESSAGE__INIT;
  message.inner_message_case = RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_WORKER_DELTA_MESSAGE;
  message.worker_delta_message = &delta;
  mob__publish(gcs, RAY__RPC__CHANNEL_TYPE__GCS_WORKER_DELTA_CHANNEL, address->worker_id.data,
               address->worker_id.len, &message);
}

static void on_failure(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__workers_t *workers = owner;
  mob_gcs_t *gcs = workers->gcs;
  const Ray__Rpc__ReportWorkerFailureRequest *req = request;
  Ray__Rpc__ReportWorkerFailureReply reply = RAY__RPC__REPORT_WORKER_FAILURE_REPLY__INIT;
  if (!has_id(req->worker_failure)) {
    reply.status = mob__gcs_status(gcs, MOB__GCS_INVALID, "The report names no worker.");
    mob_rpc_reply(call, &reply);
    return;
  }
  Ray__Rpc__WorkerTableData *data = mob_pb_clone(req->worker_failure);
  ProtobufCBinaryData id = data->worker_address->worker_id;
  // What is known of its start is kept.
  const Ray__Rpc__WorkerTableData *known = mob_map_get(&workers->all, id.data, id.len);
  if (known) {
    if (!data->start_time_ms) data->start_time_ms = known->start_time_ms;
    if (!data->pid) data->pid = known->pid;
    if (data->worker_type == RAY__RPC__WORKER_TYPE__WORKER) data->worker_type = known->worker_type;
  }
  data->is_alive = false;
  if (!data->end_time_ms) data->end_time_ms = (uint64_t)mob_wall_ms();
  MOB_INFO("worker %.8s (process %u) of node %.8s ended: %s", mob_id_text(id).text, data->pid,
           mob_id_text(data->worker_address->node_id).text,
           data->opt_exit_detail_case ? data->exit_detail : "no detail");
  put(workers, data);
  publish_delta(gcs, data->worker_address);
  mob__gcs_worker_dead(gcs, data);
  reply.status = MOB__OK(gcs);
  mob__gcs_reply_stored(gcs, call, &reply); // with what became of its actor
}

static void on_get(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__workers_t *workers = owner;
  const Ray__Rpc__GetWorkerInfoRequest *req = request;
  Ray__Rpc__GetWorkerInfoReply reply = RAY__RPC__GET_WORKER_INFO_REPLY__INIT;
  reply.status = MOB__OK(workers->gcs);
  reply.worker_table_data = mob_map_get(&workers->all, req->worker_id.data, req->worker_id.len);
  mob_rpc_reply(call, &reply);
}

static bool filtered_out(const Ray__Rpc__WorkerTableData *data,
                         const Ray__Rpc__GetAllWorkerInfoRequest__Filters *filters) {
  if (!filters) return false;
  if (filters->opt_is_alive_case && filters->is_alive && !data->is_alive) return true;
  bool paused = data->opt_num_paused_threads_case && data->num_paused_threads > 0;
  return filters->opt_exist_paused_threads_case && filters->exist_paused_threads && !paused;
}

static void on_get_all(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__workers_t *workers = owner;
  const Ray__Rpc__GetAllWorkerInfoRequest *req = request;
  Ray__Rpc__GetAllWorkerInfoReply reply = RAY__RPC__GET_ALL_WORKER_INFO_REPLY__INIT;
  size_t limit = workers->all.count;
  if (req->opt_limit_case && req->limit >= 0 && (size_t)req->limit < limit)
    limit = (size_t)req->limit;
  Ray__Rpc__WorkerTableData **rows = MOB_NEW_ARRAY(Ray__Rpc__WorkerTableData *, limit + 1);
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&workers->all, e));) {
    if (filtered_out(e->value, req->filters)) {
      reply.num_filtered++;
    } else if (reply.n_worker_table_data < limit) {
      rows[reply.n_worker_table_data++] = e->value;
    }
  }
  reply.status = MOB__OK(workers->gcs);
  reply.total = (int64_t)workers->all.count;
  reply.worker_table_data = rows;
  mob_rpc_reply(call, &reply);
  free(rows);
}

static void on_add(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__workers_t *workers = owner;
  const Ray__Rpc__AddWorkerInfoRequest *req = request;
  Ray__Rpc__AddWorkerInfoReply reply = RAY__RPC__ADD_WORKER_INFO_REPLY__INIT;
  if (has_id(req->worker_data)) {
    put(workers, mob_pb_clone(req->worker_data));
    reply.status = MOB__OK(workers->gcs);
  } else {
    reply.status = mob__gcs_status(workers->gcs, MOB__GCS_INVALID, "The request names no worker.");
  }
  mob__gcs_reply_stored(workers->gcs, call, &reply);
}

static Ray__Rpc__GcsStatus *unknown(mob__workers_t *workers, ProtobufCBinaryData id) {
  return mob__gcs_status(workers->gcs, MOB__GCS_NOT_FOUND, "There is no worker %s.",
                         mob_id_text(id).text);
}

static void on_debugger(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__workers_t *workers = owner;
  const Ray__Rpc__UpdateWorkerDebuggerPortRequest *req = request;
  Ray__Rpc__UpdateWorkerDebuggerPortReply reply = RAY__RPC__UPDATE_WORKER_DEBUGGER_PORT_REPLY__INIT;
  Ray__Rpc__WorkerTableData *data =
      mob_map_get(&workers->all, req->worker_id.data, req->worker_id.len);
  if (data) {
    data->opt_debugger_port_case = RAY__RPC__WORKER_TABLE_DATA__OPT_DEBUGGER_PORT_DEBUGGER_PORT;
    data->debugger_port = req->debugger_port;
  }
  reply.status = data ? MOB__OK(workers->gcs) : unknown(workers, req->worker_id);
  mob_rpc_reply(call, &reply);
}

static void on_paused(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__workers_t *workers = owner;
  const Ray__Rpc__UpdateWorkerNumPausedThreadsRequest *req = request;
  Ray__Rpc__UpdateWorkerNumPausedThreadsReply reply =
      RAY__RPC__UPDATE_WORKER_NUM_PAUSED_THREADS_REPLY__INIT;
  Ray__Rpc__WorkerTableData *data =
      mob_map_get(&workers->all, req->worker_id.data, req->worker_id.len);
  if (data) {
    int64_t now = data->opt_num_paused_threads_case ? data->num_paused_threads : 0;
    now += req->num_paused_threads_delta;
    data->opt_num_paused_threads_case =
        RAY__RPC__WORKER_TABLE_DATA__OPT_NUM_PAUSED_THREADS_NUM_PAUSED_THREADS;
    data->num_paused_threads = now > 0 ? (uint32_t)now : 0;
  }
  reply.status = data ? MOB__OK(workers->gcs) : unknown(workers, req->worker_id);
  mob_rpc_reply(call, &reply);
}

void mob__workers_node_dead(mob_gcs_t *gcs, mob__node_t *node) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->workers->all, e));) {
    Ray__Rpc__WorkerTableData *data = e->value;
    if (!data->is_alive ||
        !mob_pb_bytes_equal(data->worker_address->node_id, node->id, sizeof node->id)) {
      continue;
    }
    data->is_alive = false;
    data->end_time_ms = (uint64_t)mob_wall_ms();
    data->opt_exit_type_case = RAY__RPC__WORKER_TABLE_DATA__OPT_EXIT_TYPE_EXIT_TYPE;
    data->exit_type = RAY__RPC__WORKER_EXIT_TYPE__SYSTEM_ERROR;
    gcs->workers->dead++;
  }
}

#define WORKERS "/ray.rpc.WorkerInfoGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(WORKERS "ReportWorkerFailure", ray__rpc__report_worker_failure, on_failure),
    MOB_RPC_METHOD(WORKERS "GetWorkerInfo", ray__rpc__get_worker_info, on_get),
    MOB_RPC_METHOD(WORKERS "GetAllWorkerInfo", ray__rpc__get_all_worker_info, on_get_all),
    MOB_RPC_METHOD(WORKERS "AddWorkerInfo", ray__rpc__add_worker_info, on_add),
    MOB_RPC_METHOD(WORKERS "UpdateWorkerDebuggerPort", ray__rpc__update_worker_debugger_port,
                   on_debugger),
    MOB_RPC_METHOD(WORKERS "UpdateWorkerNumPausedThreads",
                   ray__rpc__update_worker_num_paused_threads, on_paused),
};

mob__workers_t *mob__workers_new(mob_gcs_t *gcs) {
  mob__workers_t *workers = MOB_NEW(mob__workers_t);
  workers->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), workers);
  return workers;
}

void mob__workers_restore(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                          size_t value_len) {
  mob__workers_t *workers = gcs->workers;
  if (mob_map_get(&workers->all, key, key_len)) return;
  Ray__Rpc__WorkerTableData *data = mob__restore_row(
      "worker", &ray__rpc__worker_table_data__descriptor, key, key_len, value, value_len);
  if (!data) return;
  if (!has_id(data)) {
    mob_pb_free(data);
    return;
  }
  mob_map_put(&workers->all, key, key_len, data);
  if (!data->is_alive) workers->dead++;
}

void mob__workers_free(mob__workers_t *workers) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&workers->all, e));) mob_pb_free(e->value);
  mob_map_free(&workers->all);
  free(workers);
}
