#define MOB_LOG_COMPONENT "driver"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/actor/internal.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/rpc/message.h"

#define CONNECT_TIMEOUT_MS 10000
#define CALL_TIMEOUT_MS 10000

// ---------------------------------------------------------------------------------------------
// lifetime

static void free_cluster(void *arg) {
  mob_cluster_t *cluster = arg;
  for (size_t i = 0; i < cluster->node_count; i++) free(cluster->nodes[i].ip);
  free(cluster->nodes);
  free(cluster->name_space);
  free(cluster->lost_why);
  free(cluster->ip);
  mob_vec_free(&cluster->actors);
  free(cluster);
}

static void on_timer_closed(uv_handle_t *handle) {
  mob__cluster_leave(handle->data);
}

void mob__cluster_enter(mob_cluster_t *cluster) {
  cluster->users++;
}

void mob__cluster_leave(mob_cluster_t *cluster) {
  if (--cluster->users == 0) free_cluster(cluster);
}

struct mob__deferred {
  uv_timer_t timer;
  mob_cluster_t *cluster;
  void (*fn)(void *arg);
  void *arg;
};

static void on_deferred_closed(uv_handle_t *handle) {
  mob__deferred_t *deferred = handle->data;
  mob_cluster_t *cluster = deferred->cluster;
  deferred->fn(deferred->arg);
  free(deferred);
  mob__cluster_leave(cluster);
}

void mob__defer(mob_cluster_t *cluster, void (*fn)(void *arg), void *arg) {
  mob__deferred_t *deferred = MOB_NEW(mob__deferred_t);
  *deferred = (mob__deferred_t){.cluster = cluster, .fn = fn, .arg = arg};
  mob__cluster_enter(cluster);
  uv_timer_init(cluster->loop, &deferred->timer);
  deferred->timer.data = deferred;
  uv_close((uv_handle_t *)&deferred->timer, on_deferred_closed); // its callback is the later turn
}

typedef struct failure {
  mob_done_fn done;
  void *arg;
  mob_status status;
  char *why;
} failure_t;

static void run_failure(void *arg) {
  failure_t *failure = arg;
  failure->done(failure->arg, failure->status, failure->why);
  free(failure->why);
  free(failure);
}

void mob__defer_done(mob_cluster_t *cluster, mob_done_fn done, void *arg, mob_status status,
                     const char *why) {
  if (!done) return;
  failure_t *failure = MOB_NEW(failure_t);
  *failure = (failure_t){done, arg, status, why ? mob_strdup(why) : NULL};
  mob__defer(cluster, run_failure, failure);
}

const char *mob__cluster_broken(const mob_cluster_t *cluster) {
  if (cluster->closing) return "the connection to the cluster is closed";
  if (cluster->lost) return cluster->lost_why;
  return cluster->connected ? NULL : "the cluster is not connected yet";
}

void mob__cluster_address(const mob_cluster_t *cluster, Ray__Rpc__Address *out) {
  ray__rpc__address__init(out);
  out->worker_id = mob_pb_bytes(cluster->worker_id, MOB_WORKER_ID_LEN);
  out->ip_address = cluster->ip;
}

// ------------------------------------------------------------------------------------------------
// nodes

static void set_node(mob_cluster_t *cluster, const ProtobufCBinaryData *id, const char *ip,
                     bool alive, const char *why, bool tell) {
  if (id->len != MOB_NODE_ID_LEN) return;
  mob__node_t *node = NULL;
  for (size_t i = 0; i < cluster->node_count && !node; i++) {
    if (memcmp(cluster->nodes[i].id, id->data, MOB_NODE_ID_LEN) == 0) node = &cluster->nodes[i];
  }
  if (!node) {
    cluster->nodes = mob_realloc(cluster->nodes, (cluster->node_count + 1) * sizeof *node);
    node = &cluster->nodes[cluster->node_count++];
    *node = (mob__node_t){.ip = mob_strdup(ip), .alive = !alive};
    memcpy(node->id, id->data, MOB_NODE_ID_LEN);
    if (!alive) node->alive = false; // news of a node that was never seen alive is no news
  }
  if (node->alive == alive) return;
  node->alive = alive;
  const mob_cluster_events_t *events = cluster->events;
  if (!tell || !events || cluster->closing) return;
  if (alive && events->on_node_alive) events->on_node_alive(cluster->owner, node->id, node->ip);
  if (!alive && events->on_node_dead) {
    events->on_node_dead(cluster->owner, node->id, node->ip, *why ? why : "the node is dead");
  }
}

static void on_message(void *owner, const Ray__Rpc__PubMessage *message) {
  mob_cluster_t *cluster = owner;
  if (message->inner_message_case == RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_NODE_INFO_MESSAGE) {
    const Ray__Rpc__GcsNodeInfo *node = message->node_info_message;
    set_node(cluster, &node->node_id, node->node_manager_address,
             node->state == RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE,
             node->death_info ? node->death_info->reason_message : "", true);
  } else if (message->inner_message_case == RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_ACTOR_MESSAGE) {
    mob__handle_on_table(cluster, message->actor_message);
  }
}

// ----------------------------------------------------------------------------------------------
// connect

static void close_hold(mob_cluster_t *cluster) {
  mob_rpc_stream_t *hold = cluster->hold;
  cluster->hold = NULL;
  uv_timer_stop(&cluster->heartbeat);
  if (hold) mob_rpc_stream_close(hold, GRPC_STATUS_OK, "");
}

static void fail_actors(mob_cluster_t *cluster, mob_status status, const char *why) {
  for (size_t i = cluster->actors.len; i-- > 0;) {
    if (i < cluster->actors.len) mob__handle_lost(cluster->actors.at[i], status, why);
  }
}

static void on_lost(void *owner, const char *why) {
  mob_cluster_t *cluster = owner;
  if (cluster->lost || cluster->closing) return;
  cluster->lost = true;
  uv_timer_stop(&cluster->heartbeat);
  cluster->lost_why = mob_sprintf("the cluster's head at %s is gone: %s",
                                  mob_gcs_client_address(cluster->gcs), why);
  mob__cluster_enter(cluster);
  if (cluster->events && cluster->events->on_lost)
    cluster->events->on_lost(cluster->owner, cluster->lost_why);
  if (!cluster->closing) fail_actors(cluster, MOB_E_UNAVAILABLE, cluster->lost_why);
  mob__cluster_leave(cluster);
}

static const mob_gcs_client_events_t gcs_events = {on_lost, NULL, on_message};

// The stream whose life is the job's.
static void on_hold_message(void *owner, mob_rpc_stream_t *stream, const uint8_t *data,
                            size_t len) {
  mob_cluster_t *cluster = owner;
  (void)stream;
  (void)data;
  (void)len;
  cluster->heard_ms = uv_now(cluster->loop);
}

static void on_hold_close(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                          const char *why) {
  mob_cluster_t *cluster = owner;
  (void)code;
  if (cluster->hold == stream) {
    cluster->hold = NULL;
    on_lost(cluster, *why ? why : "it ended this job");
  }
  mob__cluster_leave(cluster);
}

static const mob_rpc_stream_events_t hold_events = {on_hold_message, on_hold_close, NULL};

static void on_heartbeat(uv_timer_t *timer) {
  mob_cluster_t *cluster = timer->data;
  if (!cluster->hold) return;
  if (uv_now(cluster->loop) - cluster->heard_ms > MOB_SILENCE_MS) {
    mob_rpc_stream_t *hold = cluster->hold;
    cluster->hold = NULL;
    mob_rpc_stream_close(hold, GRPC_STATUS_CANCELLED, "silence");
    on_lost(cluster, "it kept silent for 4.5 s");
    return;
  }
  mob_rpc_stream_send(cluster->hold, NULL, 0);
}

static void open_hold(mob_cluster_t *cluster) {
  char hex[2 * MOB_JOB_ID_LEN + 1];
  mob_rpc_client_t *rpc = mob_gcs_client_rpc(cluster->gcs);
  mob_rpc_client_set_metadata(rpc, "job_id", mob_hex(cluster->job_id, MOB_JOB_ID_LEN, hex));
  cluster->heard_ms = uv_now(cluster->loop);
  mob__cluster_enter(cluster);
  cluster->hold = mob_rpc_stream_open(rpc, MOB_HOLD_PATH, &hold_events, cluster);
  mob_rpc_client_set_metadata(rpc, "job_id", NULL);
  uv_timer_start(&cluster->heartbeat, on_heartbeat, 0, MOB_HEARTBEAT_MS);
}

static void finish_connect(mob_cluster_t *cluster, mob_status status, const char *why) {
  mob_done_fn done = cluster->connect_done;
  cluster->connect_done = NULL;
  cluster->connected = status == MOB_OK;
  if (done) done(cluster->connect_arg, status, status == MOB_OK ? NULL : why);
}

static void on_first_nodes(void *arg, mob_status status, const char *why, const void *message) {
  mob_cluster_t *cluster = arg;
  const Ray__Rpc__GetAllNodeInfoReply *reply = message;
  for (size_t i = 0; status == MOB_OK && i < reply->n_node_info_list; i++) {
    const Ray__Rpc__GcsNodeInfo *node = reply->node_info_list[i];
    set_node(cluster, &node->node_id, node->node_manager_address,
             node->state == RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE, "", false);
  }
  if (!cluster->closing) finish_connect(cluster, status, why);
  mob__cluster_leave(cluster);
}

static void on_job_added(void *arg, mob_status status, const char *why, const void *message) {
  mob_cluster_t *cluster = arg;
  (void)message;
  if (cluster->closing) goto out;
  if (status != MOB_OK) {
    finish_connect(cluster, status, why);
    goto out;
  }
  cluster->end_job = true;
  open_hold(cluster);
  mob_gcs_subscribe(cluster->gcs, RAY__RPC__CHANNEL_TYPE__GCS_NODE_INFO_CHANNEL, NULL, 0, NULL,
                    NULL);
  Ray__Rpc__GetAllNodeInfoRequest request = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__INIT;
  mob__cluster_enter(cluster);
  mob_gcs_call(cluster->gcs, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", &request,
               &ray__rpc__get_all_node_info_reply__descriptor, CALL_TIMEOUT_MS, on_first_nodes,
               cluster);
out:
  mob__cluster_leave(cluster);
}

static char *command_line(void) {
  char text[512];
  FILE *file = fopen("/proc/self/cmdline", "re");
  size_t n = file ? fread(text, 1, sizeof text - 1, file) : 0;
  if (file) fclose(file);
  while (n && !text[n - 1]) n--;
  for (size_t i = 0; i < n; i++) {
    if ((unsigned char)text[i] < 0x20 || (unsigned char)text[i] > 0x7e)
      text[i] = text[i] ? '?' : ' ';
  }
  return mob_strndup(text, n);
}

static void on_job_id(void *arg, mob_status status, const char *why, const void *message) {
  mob_cluster_t *cluster = arg;
  const Ray__Rpc__GetNextJobIDReply *reply = message;
  if (cluster->closing) goto out;
  if (status != MOB_OK) {
    finish_connect(cluster, status, why);
    goto out;
  }
  uint32_t id = (uint32_t)reply->job_id;
  for (int i = 0; i < MOB_JOB_ID_LEN; i++) cluster->job_id[i] = (uint8_t)(id >> (8 * i));
  memset(cluster->worker_id, 0xff, MOB_WORKER_ID_LEN); // a driver's id: its job, then nil
  memcpy(cluster->worker_id, cluster->job_id, MOB_JOB_ID_LEN);
  Ray__Rpc__AddJobRequest request = RAY__RPC__ADD_JOB_REQUEST__INIT;
  Ray__Rpc__JobTableData job = RAY__RPC__JOB_TABLE_DATA__INIT;
  Ray__Rpc__JobConfig config = RAY__RPC__JOB_CONFIG__INIT;
  Ray__Rpc__Address address;
  mob__cluster_address(cluster, &address);
  char *entrypoint = command_line();
  config.ray_namespace = cluster->name_space;
  config.default_actor_lifetime = RAY__RPC__JOB_CONFIG__ACTOR_LIFETIME__NON_DETACHED;
  job.job_id = mob_pb_bytes(cluster->job_id, MOB_JOB_ID_LEN);
  job.timestamp = mob_wall_ms() / 1000;
  job.start_time = (uint64_t)mob_wall_ms();
  job.driver_ip_address = cluster->ip;
  job.driver_pid = getpid();
  job.driver_address = &address;
  job.entrypoint = entrypoint;
  job.config = &config;
  request.data = &job;
  mob__cluster_enter(cluster);
  mob_gcs_call(cluster->gcs, "/ray.rpc.JobInfoGcsService/AddJob", &request,
               &ray__rpc__add_job_reply__descriptor, CALL_TIMEOUT_MS, on_job_added, cluster);
  free(entrypoint);
out:
  mob__cluster_leave(cluster);
}

static void on_connected(void *arg, mob_status status, const char *why) {
  mob_cluster_t *cluster = arg;
  if (status != MOB_OK) {
    finish_connect(cluster, status, why);
    return;
  }
  Ray__Rpc__GetNextJobIDRequest request = RAY__RPC__GET_NEXT_JOB_IDREQUEST__INIT;
  mob__cluster_enter(cluster);
  mob_gcs_call(cluster->gcs, "/ray.rpc.JobInfoGcsService/GetNextJobID", &request,
               &ray__rpc__get_next_job_idreply__descriptor, CALL_TIMEOUT_MS, on_job_id, cluster);
}

// The address of this machine that the head sees: the one on the route to it. A head given by name
// is asked for with what the name resolves to later; until then the job's row has no address.
static char *own_ip(const char *address) {
  char *ip = NULL, *host = mob_strdup(address);
  char *colon = strrchr(host, ':');
  struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(53)}, own;
  socklen_t len = sizeof own;
  char text[INET_ADDRSTRLEN];
  if (colon) *colon = 0;
  int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd >= 0 &&
      inet_pton(AF_INET, strcmp(host, "localhost") ? host : "127.0.0.1", &peer.sin_addr) == 1 &&
      connect(fd, (struct sockaddr *)&peer, sizeof peer) == 0 &&
      getsockname(fd, (struct sockaddr *)&own, &len) == 0) {
    ip = mob_strdup(inet_ntop(AF_INET, &own.sin_addr, text, sizeof text));
  }
  if (fd >= 0) close(fd);
  free(host);
  return ip ? ip : mob_strdup("");
}

mob_status mob_cluster_connect(uv_loop_t *loop, const char *address,
                               const mob_cluster_events_t *events, void *owner, mob_done_fn done,
                               void *arg, mob_cluster_t **out) {
  mob_cluster_t *cluster = MOB_NEW(mob_cluster_t);
  uint8_t name[16];
  char hex[33];
  *cluster = (mob_cluster_t){.loop = loop,
                             .events = events,
                             .owner = owner,
                             .users = 1,
                             .connect_done = done,
                             .connect_arg = arg};
  mob_random(name, sizeof name);
  cluster->name_space = mob_strdup(mob_hex(name, sizeof name, hex));
  cluster->ip = own_ip(address);
  uv_timer_init(loop, &cluster->heartbeat);
  cluster->heartbeat.data = cluster;
  mob_status status = mob__actor_rpc_acquire(loop, &cluster->rpc);
  if (status != MOB_OK) goto failed;
  status = mob_gcs_client_new(cluster->rpc, address, CONNECT_TIMEOUT_MS, &gcs_events, cluster,
                              on_connected, cluster, &cluster->gcs);
  if (status != MOB_OK) {
    mob__actor_rpc_release(cluster->rpc);
    goto failed;
  }
  *out = cluster;
  return MOB_OK;
failed:
  uv_close((uv_handle_t *)&cluster->heartbeat, on_timer_closed);
  return status;
}

// ------------------------------------------------------------------------------------------------
// close

static void on_closed(void *arg) {
  mob_cluster_t *cluster = arg;
  mob_rpc_t *rpc = cluster->rpc;
  uv_close((uv_handle_t *)&cluster->heartbeat, on_timer_closed);
  if (cluster->close_done) cluster->close_done(cluster->close_arg, MOB_OK, NULL);
  mob__actor_rpc_release(rpc);
}

static void shut(mob_cluster_t *cluster) {
  close_hold(cluster);
  mob_gcs_client_close(cluster->gcs);
  mob__defer(cluster, on_closed, cluster);
}

static void on_job_finished(void *arg, mob_status status, const char *why, const void *message) {
  mob_cluster_t *cluster = arg;
  (void)message;
  if (status != MOB_OK) MOB_DEBUG("the job's end could not be told: %s", why);
  shut(cluster);
}

void mob_cluster_close(mob_cluster_t *cluster, mob_done_fn done, void *arg) {
  if (cluster->closing) {
    mob__defer_done(cluster, done, arg, MOB_OK, NULL);
    return;
  }
  cluster->closing = true;
  cluster->close_done = done;
  cluster->close_arg = arg;
  mob__cluster_enter(cluster);
  fail_actors(cluster, MOB_E_ABORTED, "the connection to the cluster was closed");
  if (cluster->connect_done) finish_connect(cluster, MOB_E_ABORTED, "the connection was closed");
  if (cluster->end_job && !cluster->lost) {
    Ray__Rpc__MarkJobFinishedRequest request = RAY__RPC__MARK_JOB_FINISHED_REQUEST__INIT;
    request.job_id = mob_pb_bytes(cluster->job_id, MOB_JOB_ID_LEN);
    mob_gcs_call(cluster->gcs, "/ray.rpc.JobInfoGcsService/MarkJobFinished", &request,
                 &ray__rpc__mark_job_finished_reply__descriptor, 2000, on_job_finished, cluster);
  } else {
    shut(cluster);
  }
  mob__cluster_leave(cluster);
}

// ------------------------------------------------------------------------------------------- node
// lists

typedef struct node_query {
  mob_cluster_t *cluster;
  mob_nodes_fn done;
  void *arg;
  void *nodes; // the unpacked GetAllNodeInfoReply, kept for the second answer
} node_query_t;

static void answer_nodes(node_query_t *query, mob_status status, const char *why,
                         const void *available) {
  const Ray__Rpc__GetAllNodeInfoReply *nodes = query->nodes;
  const Ray__Rpc__GetAllAvailableResourcesReply *free_now = available;
  size_t count = status == MOB_OK ? nodes->n_node_info_list : 0;
  mob_node_info_t *list = MOB_NEW_ARRAY(mob_node_info_t, count + 1);
  size_t n = 0;
  for (size_t i = 0; i < count; i++) {
    const Ray__Rpc__GcsNodeInfo *node = nodes->node_info_list[i];
    if (node->node_id.len != MOB_NODE_ID_LEN) continue;
    mob_node_info_t *out = &list[n++];
    memcpy(out->node_id, node->node_id.data, MOB_NODE_ID_LEN);
    out->ip = node->node_manager_address;
    out->hostname = node->node_manager_hostname;
    out->alive = node->state == RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE;
    out->is_head = node->is_head_node;
    out->cpus = mob_pb_double_get(node->resources_total, node->n_resources_total, "CPU");
    out->gpus = mob_pb_double_get(node->resources_total, node->n_resources_total, "GPU");
    for (size_t j = 0; j < free_now->n_resources_list; j++) {
      const Ray__Rpc__AvailableResources *entry = free_now->resources_list[j];
      if (!mob_pb_bytes_equal(entry->node_id, out->node_id, MOB_NODE_ID_LEN)) continue;
      out->cpus_free =
          mob_pb_double_get(entry->resources_available, entry->n_resources_available, "CPU");
      out->gpus_free =
          mob_pb_double_get(entry->resources_available, entry->n_resources_available, "GPU");
    }
  }
  query->done(query->arg, status, status == MOB_OK ? NULL : why, status == MOB_OK ? list : NULL, n);
  free(list);
  mob_pb_free(query->nodes);
  mob__cluster_leave(query->cluster);
  free(query);
}

static void on_available(void *arg, mob_status status, const char *why, const void *message) {
  answer_nodes(arg, status, why, message);
}

static void on_nodes(void *arg, mob_status status, const char *why, const void *message) {
  node_query_t *query = arg;
  if (status == MOB_OK && query->cluster->closing) {
    status = MOB_E_ABORTED;
    why = "the connection to the cluster was closed";
  }
  if (status != MOB_OK) {
    answer_nodes(query, status, why, NULL);
    return;
  }
  query->nodes = mob_pb_clone(message);
  Ray__Rpc__GetAllAvailableResourcesRequest request =
      RAY__RPC__GET_ALL_AVAILABLE_RESOURCES_REQUEST__INIT;
  mob_gcs_call(query->cluster->gcs, "/ray.rpc.NodeResourceInfoGcsService/GetAllAvailableResources",
               &request, &ray__rpc__get_all_available_resources_reply__descriptor, CALL_TIMEOUT_MS,
               on_available, query);
}

static void nodes_broken(void *arg) {
  node_query_t *query = arg;
  answer_nodes(query, query->cluster->closing ? MOB_E_ABORTED : MOB_E_UNAVAILABLE,
               mob__cluster_broken(query->cluster), NULL);
}

void mob_cluster_nodes(mob_cluster_t *cluster, mob_nodes_fn done, void *arg) {
  node_query_t *query = MOB_NEW(node_query_t);
  *query = (node_query_t){.cluster = cluster, .done = done, .arg = arg};
  mob__cluster_enter(cluster);
  if (mob__cluster_broken(cluster)) {
    mob__defer(cluster, nodes_broken, query);
    return;
  }
  Ray__Rpc__GetAllNodeInfoRequest request = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__INIT;
  mob_gcs_call(cluster->gcs, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", &request,
               &ray__rpc__get_all_node_info_reply__descriptor, CALL_TIMEOUT_MS, on_nodes, query);
}
