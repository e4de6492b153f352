// A node's life: start (as the head with the GCS inside), join, serve, end.
#define MOB_LOG_COMPONENT "node"
#include "runtime/node/node.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/node/address.h"
#include "runtime/node/internal.h"
#include "runtime/node/session.h"
#include "runtime/rpc/message.h"

#define STOP_GRACE_MS 7000 // actors have 5 s of it
#define CALL_TIMEOUT_MS 10000

static void finish(mob_node_t *node);

// -------------------------------------------------------------------------------------------------
// the end

static void on_all_closed(void *arg) {
  mob_node_t *node = arg;
  node->events->on_end(node->owner, node, node->exit_code, node->why ? node->why : "");
  mob_ledger_free(&node->ledger);
  mob_node_gpus_free(&node->gpus);
  mob_vec_free(&node->workers);
  for (size_t i = 0; i < node->unsent.len; i++) mob_pb_free(node->unsent.at[i]);
  mob_vec_free(&node->unsent);
  free(node->ip);
  free(node->node_name);
  free(node->temp_dir);
  free(node->session_dir);
  free(node->record_path);
  free(node->gcs_address);
  free(node->gcs_host);
  free(node->why);
  free(node);
}

static void close_step(void *arg) {
  mob_node_t *node = arg;
  if (--node->pending_closes) return;
  if (node->rpc) {
    mob_rpc_t *rpc = node->rpc;
    node->rpc = NULL;
    node->pending_closes = 1;
    mob_rpc_close(rpc, close_step, node);
    return;
  }
  on_all_closed(node);
}

static void on_handle_closed(uv_handle_t *handle) {
  close_step(handle->data);
}

// Forgets the cluster on this machine, unless another of its daemons still lives here.
static void clear_files(mob_node_t *node) {
  mob_node_records_t records = {0};
  bool others = false;
  if (node->record_path) unlink(node->record_path);
  if (!node->gcs_address || !node->temp_dir) return;
  if (mob_node_records_list(node->temp_dir, &records) == MOB_OK) {
    for (size_t i = 0; i < records.len; i++)
      others = others || !strcmp(records.at[i].address, node->gcs_address);
  }
  mob_node_records_free(&records);
  if (!others) mob_current_cluster_clear(node->temp_dir, node->gcs_address);
}

static void finish(mob_node_t *node) {
  if (node->phase == MOB_NODE_ENDING) return;
  node->phase = MOB_NODE_ENDING;
  if (node->events->on_ending) {
    node->events->on_ending(node->owner, node, node->exit_code, node->why ? node->why : "");
  }
  if (node->resolving) uv_cancel((uv_req_t *)&node->resolve);
  clear_files(node);
  mob__node_workers_free(node);
  if (node->children) mob_children_close(node->children);
  node->children = NULL;
  mob__sync_close(node);
  if (node->client) mob_gcs_client_close(node->client);
  node->client = NULL;
  node->pending_closes = 2 + node->resolving;
  if (node->telemetry) {
    node->pending_closes++;
    mob_telemetry_close(node->telemetry, close_step, node);
    node->telemetry = NULL;
  }
  if (node->gcs) {
    node->pending_closes++;
    mob_gcs_close(node->gcs, close_step, node);
    node->gcs = NULL;
  }
  uv_close((uv_handle_t *)&node->timer, on_handle_closed);
  uv_close((uv_handle_t *)&node->flush, on_handle_closed);
}

void mob__node_fail(mob_node_t *node, const char *why) {
  if (node->phase == MOB_NODE_ENDING) return;
  if (node->phase == MOB_NODE_STOPPING) { // it ends anyway
    finish(node);
    return;
  }
  MOB_ERROR("%s", why);
  node->exit_code = 1;
  free(node->why);
  node->why = mob_strdup(why);
  finish(node);
}

static void on_unregistered(void *arg, mob_status status, const char *why, const void *message) {
  mob_node_t *node = arg;
  (void)message;
  if (node->phase == MOB_NODE_ENDING) return;
  if (status != MOB_OK) MOB_WARN("the node could not be unregistered: %s", why);
  finish(node);
}

static void unregister(mob_node_t *node) {
  Ray__Rpc__UnregisterNodeRequest request = RAY__RPC__UNREGISTER_NODE_REQUEST__INIT;
  Ray__Rpc__NodeDeathInfo info = RAY__RPC__NODE_DEATH_INFO__INIT;
  info.reason = RAY__RPC__NODE_DEATH_INFO__REASON__EXPECTED_TERMINATION;
  info.reason_message = node->why;
  request.node_id = mob_pb_bytes(node->id, sizeof node->id);
  request.node_death_info = &info;
  mob_gcs_call(node->client, "/ray.rpc.NodeInfoGcsService/UnregisterNode", &request,
               &ray__rpc__unregister_node_reply__descriptor, 1000, on_unregistered, node);
}

void mob__node_workers_gone(mob_node_t *node) {
  if (node->phase != MOB_NODE_STOPPING) return;
  uv_timer_stop(&node->timer);
  unregister(node);
}

static void on_stop_time(uv_timer_t *timer) {
  mob__node_fail(timer->data, "the actors did not end in time");
}

void mob_node_stop(mob_node_t *node, const char *why) {
  if (node->phase >= MOB_NODE_STOPPING) return;
  mob_node_phase_t before = node->phase;
  MOB_INFO("the node ends: %s", why);
  node->phase = MOB_NODE_STOPPING;
  node->exit_code = 0;
  free(node->why);
  node->why = mob_strdup(why);
  if (before == MOB_NODE_JOINING) {
    finish(node);
    return;
  }
  if (!node->workers.len) {
    mob__node_workers_gone(node);
    return;
  }
  mob__node_workers_end_all(node, false, why);
  uv_timer_start(&node->timer, on_stop_time, STOP_GRACE_MS, 0);
}

// -------------------------------------------------------------------------------------------------
// serving

static void on_prepare(uv_prepare_t *handle) {
  mob__sync_flush(handle->data);
}

void mob__node_changed(mob_node_t *node) {
  node->view_queued = true;
}

static void on_tick(uv_timer_t *timer) {
  mob__sync_tick(timer->data);
}

static void on_lost(void *owner, const char *why) {
  mob_node_t *node = owner;
  char *text = mob_sprintf("the head at %s is gone: %s", node->gcs_address, why);
  mob__node_fail(node, text);
  free(text);
}

static const mob_gcs_client_events_t gcs_events = {on_lost, NULL, NULL};

// -------------------------------------------------------------------------------------------------
// joining

static void on_registered(void *arg, mob_status status, const char *why, const void *message) {
  mob_node_t *node = arg;
  (void)message;
  if (node->phase != MOB_NODE_JOINING) return;
  if (status != MOB_OK) {
    char *text = mob_sprintf("the head at %s did not accept this node: %s", node->gcs_address, why);
    mob__node_fail(node, text);
    free(text);
    return;
  }
  node->idle_since_ms = uv_now(node->loop);
  mob__sync_open(node);
  uv_timer_start(&node->timer, on_tick, MOB_NODE_HEARTBEAT_MS / 2, MOB_NODE_HEARTBEAT_MS / 2);
  uv_prepare_start(&node->flush, on_prepare);
  uv_unref((uv_handle_t *)&node->flush);
  if (mob_node_record_write(node->session_dir, node->id_hex, node->options->head, node->gcs_address,
                            &node->record_path) != MOB_OK ||
      mob_current_cluster_write(node->temp_dir, node->gcs_address) != MOB_OK) {
    MOB_WARN("`ray stop` and `ray status` will not find this node: %s", mob_errmsg());
  }
  node->phase = MOB_NODE_READY;
  MOB_INFO("node %s is up at %s:%d, head at %s", node->id_hex, node->ip, node->port,
           node->gcs_address);
  if (node->events->on_ready) node->events->on_ready(node->owner, node);
}

static void add_resource(mob_node_t *node, const char *name, double amount, int units) {
  if (amount > 0) mob_pool_add(&node->ledger.node, name, mob_fixed(amount), units);
}

static void detect_resources(mob_node_t *node) {
  const mob_start_options_t *options = node->options;
  int64_t available = mob_detect_free_memory();
  int64_t store = options->object_store_memory;
  if (store < 0) store = mob_default_object_store(available);
  int64_t memory = options->memory >= 0 ? options->memory : available - store;
  add_resource(node, "CPU", options->num_cpus >= 0 ? options->num_cpus : mob_detect_cpus(), 0);
  add_resource(node, "GPU", (double)node->gpus.names.len, (int)node->gpus.names.len);
  if (node->gpus.type[0]) {
    char *type = mob_sprintf("accelerator_type:%s", node->gpus.type);
    add_resource(node, type, 1, 0);
    free(type);
  }
  add_resource(node, "memory", (double)memory, 0);
  add_resource(node, "object_store_memory", (double)store, 0);
  char *own = mob_sprintf("node:%s", node->ip);
  add_resource(node, own, 1, 0);
  free(own);
  if (options->head) add_resource(node, "node:__internal_head__", 1, 0);
  for (size_t i = 0; i < options->resources.len; i++) {
    add_resource(node, options->resources.at[i].name, options->resources.at[i].amount, 0);
  }
}

static void put_total(void *arg, const char *name, double total, double free_now) {
  Ray__Rpc__GcsNodeInfo *info = arg;
  (void)free_now;
  mob_pb_double_put(&info->resources_total, &info->n_resources_total, name, total);
}

static const char *env_or(const char *name, const char *fallback) {
  const char *value = getenv(name);
  return value ? value : fallback;
}

static void register_node(mob_node_t *node) {
  const mob_start_options_t *options = node->options;
  Ray__Rpc__RegisterNodeRequest request = RAY__RPC__REGISTER_NODE_REQUEST__INIT;
  Ray__Rpc__GcsNodeInfo info = RAY__RPC__GCS_NODE_INFO__INIT;
  char hostname[256] = "";
  gethostname(hostname, sizeof hostname - 1);
  info.node_id = mob_pb_bytes(node->id, sizeof node->id);
  info.node_manager_address = node->ip;
  info.node_manager_port = node->port;
  info.node_manager_hostname = hostname;
  info.node_name = options->node_name ? options->node_name : node->ip;
  info.instance_id = (char *)env_or("RAY_CLOUD_INSTANCE_ID", "");
  info.node_type_name = (char *)env_or("RAY_NODE_TYPE_NAME", "");
  info.instance_type_name = (char *)env_or("RAY_CLOUD_INSTANCE_TYPE_NAME", "");
  info.start_time_ms = (uint64_t)mob_wall_ms();
  info.is_head_node = options->head;
  mob_ledger_view(&node->ledger, put_total, &info);
  mob_pb_string_put(&info.labels, &info.n_labels, "ray.io/node-id", node->id_hex);
  if (node->gpus.type[0])
    mob_pb_string_put(&info.labels, &info.n_labels, "ray.io/accelerator-type", node->gpus.type);
  for (size_t i = 0; i < options->labels.len; i++) {
    mob_pb_string_put(&info.labels, &info.n_labels, options->labels.at[i].key,
                      options->labels.at[i].value);
  }
  request.node_info = &info;
  mob_gcs_call(node->client, "/ray.rpc.NodeInfoGcsService/RegisterNode", &request,
               &ray__rpc__register_node_reply__descriptor, CALL_TIMEOUT_MS, on_registered, node);
  mob_pb_double_clear(&info.resources_total, &info.n_resources_total);
  mob_pb_string_clear(&info.labels, &info.n_labels);
}

// The address is known, the cluster too: serve, then register.
static void serve(mob_node_t *node, const char *towards) {
  mob_status status = MOB_OK;
  if (!node->ip) status = mob_node_ip(node->options->node_ip_address, towards, &node->ip);
  if (status == MOB_OK) {
    detect_resources(node);
    status = mob__agent_listen(node);
  }
  if (status != MOB_OK) {
    mob__node_fail(node, mob_errmsg());
    return;
  }
  register_node(node);
}

static void on_resolved(uv_getaddrinfo_t *request, int error, struct addrinfo *list) {
  mob_node_t *node = request->data;
  char text[64];
  node->resolving = false;
  if (node->phase == MOB_NODE_ENDING) {
    uv_freeaddrinfo(list);
    close_step(node);
    return;
  }
  const char *towards = NULL;
  if (!error && list &&
      getnameinfo(list->ai_addr, list->ai_addrlen, text, sizeof text, NULL, 0, NI_NUMERICHOST) ==
          0) {
    towards = text;
  }
  uv_freeaddrinfo(list);
  serve(node, towards);
}

static char *log_path(const mob_node_t *node) {
  return mob_sprintf("%s/logs/node-%s.log", node->session_dir, node->id_hex);
}

static mob_status open_session(mob_node_t *node, const char *name) {
  MOB_TRY(mob_session_open(node->temp_dir, name, &node->session_dir));
  char *path = log_path(node);
  mob_status status = MOB_OK;
  if (node->options->log_to_stderr) {
    status = mob_log_open_file(path);
  } else {
    // Detached: the file is the stderr, so that a crash leaves its words there too.
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0 || dup2(fd, STDERR_FILENO) < 0) {
      status = mob_fail(MOB_E_IO, "cannot open the log file %s: %s", path, strerror(errno));
    }
    if (fd >= 0) close(fd);
  }
  free(path);
  return status;
}

static void on_session(void *arg, mob_status status, const char *why, const void *message) {
  mob_node_t *node = arg;
  const Ray__Rpc__InternalKVGetReply *reply = message;
  if (node->phase != MOB_NODE_JOINING) return;
  if (status != MOB_OK) {
    char *text = mob_sprintf("the head at %s tells no session name: %s", node->gcs_address, why);
    mob__node_fail(node, text);
    free(text);
    return;
  }
  char *name = mob_strndup((const char *)reply->value.data, reply->value.len);
  status = open_session(node, name);
  if (status == MOB_OK) status = mob_session_set_latest(node->temp_dir, node->session_dir);
  free(name);
  if (status != MOB_OK) {
    mob__node_fail(node, mob_errmsg());
    return;
  }
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  node->resolve.data = node;
  node->resolving = true;
  int error = uv_getaddrinfo(node->loop, &node->resolve, on_resolved, node->gcs_host, NULL, &hints);
  if (error) {
    node->resolving = false;
    serve(node, NULL);
  }
}

static void on_connected(void *arg, mob_status status, const char *why) {
  mob_node_t *node = arg;
  if (node->phase != MOB_NODE_JOINING) return;
  if (status != MOB_OK) {
    char *text = mob_sprintf("Failed to connect to GCS at address %s: %s", node->gcs_address, why);
    mob__node_fail(node, text);
    free(text);
    return;
  }
  if (node->options->head) {
    serve(node, NULL);
    return;
  }
  Ray__Rpc__InternalKVGetRequest request = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
  request.key = mob_pb_bytes("session_name", 12);
  request.namespace_ = mob_pb_bytes("session", 7);
  mob_gcs_call(node->client, "/ray.rpc.InternalKVGcsService/InternalKVGet", &request,
               &ray__rpc__internal_kvget_reply__descriptor, CALL_TIMEOUT_MS, on_session, node);
}

// ------------------------------------------------------------------------------------------------
// starting

static char *join_address(const char *host, int port) {
  return strchr(host, ':') ? mob_sprintf("[%s]:%d", host, port) : mob_sprintf("%s:%d", host, port);
}

static mob_status open_store(mob_node_t *node, mob_store_t **out) {
  const mob_store_redis_t redis = {.username = node->options->redis_username,
                                   .password = node->options->redis_password};
  char *dir = mob_path_join(node->temp_dir, "gcs");
  mob_status status = mob_store_open(node->loop, &redis, dir, out);
  free(dir);
  return status;
}

static mob_status start_head(mob_node_t *node) {
  const mob_start_options_t *options = node->options;
  MOB_TRY(mob_node_ip(options->node_ip_address, NULL, &node->ip));
  char *name = mob_session_new_name();
  mob_status status = open_session(node, name);
  if (status == MOB_OK) {
    bool loopback = strncmp(node->ip, "127.", 4) == 0 || strcmp(node->ip, "::1") == 0;
    int port = options->port >= 0 ? options->port : MOB_GCS_DEFAULT_PORT;
    mob_gcs_config_t config = {
        .listen_ip = loopback                ? node->ip
                     : strchr(node->ip, ':') ? "::"
                                             : NULL,
        .port = port,
        .session_name = name,
        .session_dir = node->session_dir,
        .temp_dir = node->temp_dir,
    };
    int bound = 0;
    status = open_store(node, &config.store);
    if (status == MOB_OK) status = mob_gcs_start(node->rpc, &config, &node->gcs, &bound);
    if (status == MOB_OK) {
      node->gcs_address = join_address(node->ip, bound);
      node->gcs_host = mob_strdup(node->ip);
      status = mob_session_set_latest(node->temp_dir, node->session_dir);
    } else if (status == MOB_E_NO_RESOURCES && config.store) {
      char *address = join_address(node->ip, port);
      status =
          mob_fail(MOB_E_EXISTS,
                   "Ray is trying to start at %s, but is already running at %s. Please specify a "
                   "different port using the `--port` flag of `ray start` command.",
                   address, address);
      free(address);
    }
  }
  if (status != MOB_OK && node->session_dir) {
    char *path = log_path(node);
    unlink(path);
    free(path);
    mob_session_discard(node->session_dir);
  }
  free(name);
  return status;
}

static mob_status find_head(mob_node_t *node) {
  int port;
  const char *address = node->options->address;
  char *current = NULL;
  if (strcmp(address, "auto") == 0) {
    const char *env = getenv("RAY_ADDRESS");
    if (env && *env && strcmp(env, "auto") != 0) {
      current = mob_strdup(env);
    } else if (mob_current_cluster_read(node->temp_dir, &current) != MOB_OK) {
      return mob_fail(MOB_E_NOT_FOUND,
                      "Could not find any running Ray instance. Please specify the one to "
                      "connect to by setting the `--address` flag or `RAY_ADDRESS` "
                      "environment variable.");
    }
    address = current;
  }
  mob_status status = mob_split_address(address, &node->gcs_host, &port);
  if (status == MOB_OK && port < 0) {
    status = mob_fail(MOB_E_INVALID, "--address=%s has no port: write HOST:PORT", address);
  }
  if (status == MOB_OK) node->gcs_address = join_address(node->gcs_host, port);
  free(current);
  return status;
}

mob_node_t *mob_node_start(uv_loop_t *loop, const mob_start_options_t *options,
                           uint64_t connect_timeout_ms, const mob_node_events_t *events,
                           void *owner) {
  mob_node_t *node = MOB_NEW(mob_node_t);
  mob_status status;
  *node = (mob_node_t){.loop = loop, .options = options, .events = events, .owner = owner};
  mob_random(node->id, sizeof node->id);
  mob_hex(node->id, sizeof node->id, node->id_hex);
  node->temp_dir = mob_temp_dir(options->temp_dir);
  uv_timer_init(loop, &node->timer);
  uv_prepare_init(loop, &node->flush);
  node->timer.data = node->flush.data = node;
  // Before anything listens: NVML may take a second to start.
  MOB_TRY_GOTO(mob_detect_gpus(options->num_gpus, &node->gpus), status, failed);
  if (node->gpus.note[0]) MOB_WARN("%s", node->gpus.note);
  MOB_TRY_GOTO(mob_children_new(loop, &node->children), status, failed);
  MOB_TRY_GOTO(mob_rpc_new(loop, &node->rpc), status, failed);
  MOB_TRY_GOTO(options->head ? start_head(node) : find_head(node), status, failed);
  MOB_TRY_GOTO(mob_gcs_client_new(node->rpc, node->gcs_address, connect_timeout_ms, &gcs_events,
                                  node, on_connected, node, &node->client),
               status, failed);
  return node;
failed:
  node->exit_code = 1;
  node->why = mob_strdup(mob_errmsg());
  free(node->gcs_address); // not its to forget
  node->gcs_address = NULL;
  finish(node);
  return node;
}

const char *mob_node_ip_address(const mob_node_t *node) {
  return node->ip;
}

const char *mob_node_gcs_address(const mob_node_t *node) {
  return node->gcs_address;
}

const char *mob_node_session_dir(const mob_node_t *node) {
  return node->session_dir;
}

const char *mob_node_id_hex(const mob_node_t *node) {
  return node->id_hex;
}
