// Actor processes of a node: leased by the GCS, started here, watched until they end.
#define MOB_LOG_COMPONENT "node"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/base/utf8.h"
#include "runtime/node/internal.h"
#include "runtime/rpc/message.h"

#define STARTUP_MS 60000 // until a started process must answer
#define GRACE_MS 5000    // between SIGTERM and SIGKILL
#define WORKER_ID_LEN 28
#define ACTOR_ID_LEN 16

extern char **environ;

typedef struct line_reader {
  uv_pipe_t pipe;
  mob_worker_t *worker;
  mob_buf_t text;
  void (*on_line)(mob_worker_t *worker, const char *line);
} line_reader_t;

struct mob_worker {
  mob_node_t *node;
  mob_child_t *child; // NULL once it has ended
  uint8_t id[WORKER_ID_LEN];
  uint8_t actor_id[ACTOR_ID_LEN];
  uint8_t lease_id[32];
  size_t lease_len;
  uint8_t job_id[4];
  char *title; // "stage0" or the class's name
  pid_t pid;
  int port;
  mob_holding_t holding;
  mob_rpc_call_t *call; // the lease's, until the process can be called
  line_reader_t control, output;
  uv_timer_t timer;
  int log_fd;
  bool stopping, force, said_exit;
  int said_code;
  char *why; // of its end
  char *last_line;
  int handles; // not closed yet
};

// ------------------------------------------------------------------------------------ leases and
// answers

static Ray__Rpc__ResourceMapEntry *map_entry(const mob_grant_t *grant, const char *name) {
  Ray__Rpc__ResourceMapEntry *entry = mob_malloc(sizeof *entry);
  ray__rpc__resource_map_entry__init(entry);
  mob_pb_set_string(&entry->name, name);
  size_t count = grant->shares.len ? grant->shares.len : 1;
  entry->resource_ids = mob_calloc(count, sizeof *entry->resource_ids);
  entry->n_resource_ids = count;
  for (size_t i = 0; i < count; i++) {
    Ray__Rpc__ResourceId *id = entry->resource_ids[i] = mob_malloc(sizeof *id);
    ray__rpc__resource_id__init(id);
    id->index = grant->shares.len ? grant->shares.at[i].index : 0;
    id->quantity = mob_unfixed(grant->shares.len ? grant->shares.at[i].amount : grant->amount);
  }
  return entry;
}

static void grant_lease(mob_worker_t *worker) {
  Ray__Rpc__RequestWorkerLeaseReply reply = RAY__RPC__REQUEST_WORKER_LEASE_REPLY__INIT;
  Ray__Rpc__Address address = RAY__RPC__ADDRESS__INIT;
  mob_node_t *node = worker->node;
  const mob_grants_t *sets[] = {&worker->holding.of_node, &worker->holding.of_bundle};
  address.node_id = mob_pb_bytes(node->id, sizeof node->id);
  address.ip_address = node->ip;
  address.port = worker->port;
  address.worker_id = mob_pb_bytes(worker->id, sizeof worker->id);
  reply.worker_address = &address;
  reply.worker_pid = (uint32_t)worker->pid;
  size_t n = sets[0]->len + sets[1]->len;
  reply.resource_mapping = mob_calloc(n + 1, sizeof *reply.resource_mapping);
  for (size_t s = 0; s < MOB_LEN(sets); s++) {
    for (size_t i = 0; i < sets[s]->len; i++) {
      reply.resource_mapping[reply.n_resource_mapping++] =
          map_entry(&sets[s]->at[i], sets[s]->at[i].name);
    }
  }
  mob_rpc_reply(worker->call, &reply);
  worker->call = NULL;
  for (size_t i = 0; i < n; i++) mob_pb_free(reply.resource_mapping[i]);
  free(reply.resource_mapping);
}

// `rejected`: it may be asked again, here or elsewhere. Otherwise it is a failure for good.
static void refuse_lease(mob_rpc_call_t *call, bool rejected, const char *why) {
  Ray__Rpc__RequestWorkerLeaseReply reply = RAY__RPC__REQUEST_WORKER_LEASE_REPLY__INIT;
  reply.rejected = rejected;
  reply.canceled = !rejected;
  if (!rejected) {
    reply.failure_type =
        RAY__RPC__REQUEST_WORKER_LEASE_REPLY__SCHEDULING_FAILURE_TYPE__SCHEDULING_CANCELLED_RUNTIME_ENV_SETUP_FAILED;
  }
  reply.scheduling_failure_message = (char *)why;
  mob_rpc_reply(call, &reply);
}

// ------------------------------------------------------------------------------------------ the
// process's end

static void on_handle_closed(uv_handle_t *handle) {
  mob_worker_t *worker = handle->data;
  if (--worker->handles) return;
  mob_buf_free(&worker->control.text);
  mob_buf_free(&worker->output.text);
  free(worker->title);
  free(worker->why);
  free(worker->last_line);
  free(worker);
}

static void close_worker(mob_worker_t *worker) {
  uv_handle_t *handles[] = {(uv_handle_t *)&worker->control.pipe,
                            (uv_handle_t *)&worker->output.pipe, (uv_handle_t *)&worker->timer};
  worker->handles = (int)MOB_LEN(handles);
  if (worker->log_fd >= 0) close(worker->log_fd);
  worker->log_fd = -1;
  for (size_t i = 0; i < MOB_LEN(handles); i++) {
    handles[i]->data = worker;
    uv_close(handles[i], on_handle_closed);
  }
}

static void set_why(mob_worker_t *worker, const char *why) {
  free(worker->why);
  worker->why = mob_strdup(why);
  mob_utf8_clean(worker->why); // perhaps the process's own words
}

static char *describe_end(const mob_worker_t *worker, int status) {
  char *text;
  if (WIFSIGNALED(status)) {
    const char *abbreviation = sigabbrev_np(WTERMSIG(status));
    text = mob_sprintf("process %d on %s was killed by signal %d (SIG%s)", worker->pid,
                       worker->node->ip, WTERMSIG(status), abbreviation ? abbreviation : "?");
  } else {
    text = mob_sprintf("process %d on %s exited with code %d", worker->pid, worker->node->ip,
                       WEXITSTATUS(status));
  }
  if (worker->why && *worker->why) {
    char *whole = mob_sprintf("%s: %s", text, worker->why);
    free(text);
    text = whole;
  }
  return text;
}

static Ray__Rpc__WorkerExitType exit_type(const mob_worker_t *worker, int status) {
  if (worker->stopping) return RAY__RPC__WORKER_EXIT_TYPE__INTENDED_SYSTEM_EXIT;
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
    return RAY__RPC__WORKER_EXIT_TYPE__INTENDED_USER_EXIT;
  return RAY__RPC__WORKER_EXIT_TYPE__SYSTEM_ERROR;
}

// A report on its way; kept for later when the head is away.
typedef struct report {
  mob_node_t *node;
  Ray__Rpc__ReportWorkerFailureRequest *request;
} report_t;

static void on_reported(void *arg, mob_status status, const char *why, const void *reply) {
  report_t *report = arg;
  mob_node_t *node = report->node;
  (void)why, (void)reply;
  bool again = status == MOB_E_UNAVAILABLE || status == MOB_E_TIMEOUT;
  if (again && node->patience_ms && node->phase == MOB_NODE_READY) {
    *mob_vec_push(&node->unsent) = report->request;
    if (!node->away_since && node->heard) mob__node_workers_report_unsent(node);
  } else {
    mob_pb_free(report->request);
  }
  free(report);
}

static void send_report(mob_node_t *node, Ray__Rpc__ReportWorkerFailureRequest *request) {
  report_t *report = MOB_NEW(report_t);
  *report = (report_t){node, request};
  mob_gcs_call(node->client, "/ray.rpc.WorkerInfoGcsService/ReportWorkerFailure", request,
               &ray__rpc__report_worker_failure_reply__descriptor, 10000, on_reported, report);
}

void mob__node_workers_report_unsent(mob_node_t *node) {
  size_t n = node->unsent.len;
  for (size_t i = 0; i < n; i++) send_report(node, node->unsent.at[i]);
  node->unsent.len = 0;
}

static void report_end(mob_worker_t *worker, int status, const char *detail) {
  mob_node_t *node = worker->node;
  Ray__Rpc__ReportWorkerFailureRequest request = RAY__RPC__REPORT_WORKER_FAILURE_REQUEST__INIT;
  Ray__Rpc__WorkerTableData data = RAY__RPC__WORKER_TABLE_DATA__INIT;
  Ray__Rpc__Address address = RAY__RPC__ADDRESS__INIT;
  address.node_id = mob_pb_bytes(node->id, sizeof node->id);
  address.worker_id = mob_pb_bytes(worker->id, sizeof worker->id);
  address.ip_address = node->ip;
  address.port = worker->port;
  data.worker_address = &address;
  data.timestamp = mob_wall_ms() / 1000;
  data.worker_type = RAY__RPC__WORKER_TYPE__WORKER;
  data.opt_exit_type_case = RAY__RPC__WORKER_TABLE_DATA__OPT_EXIT_TYPE_EXIT_TYPE;
  data.exit_type = exit_type(worker, status);
  data.opt_exit_detail_case = RAY__RPC__WORKER_TABLE_DATA__OPT_EXIT_DETAIL_EXIT_DETAIL;
  data.exit_detail = (char *)detail;
  data.pid = (uint32_t)worker->pid;
  data.end_time_ms = (uint64_t)mob_wall_ms();
  request.worker_failure = &data;
  send_report(node, mob_pb_clone(&request));
}

static void drain_pipe(line_reader_t *reader);

static void on_child_exit(void *owner, mob_child_t *child, int status) {
  mob_worker_t *worker = owner;
  mob_node_t *node = worker->node;
  (void)child;
  worker->child = NULL;
  // What it said last still lies in its pipes.
  drain_pipe(&worker->control);
  drain_pipe(&worker->output);
  char *detail = describe_end(worker, status);
  if (worker->stopping || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
    MOB_INFO("actor %s ended: %s", worker->title, detail);
  } else {
    MOB_ERROR("actor %s ended: %s", worker->title, detail);
  }
  if (worker->call) {
    char *text = mob_sprintf("actor %s did not start: %s%s%s", worker->title, detail,
                             worker->last_line ? "; its last words: " : "",
                             worker->last_line ? worker->last_line : "");
    refuse_lease(worker->call, false, text);
    worker->call = NULL;
    free(text);
  } else if (node->client && node->phase != MOB_NODE_ENDING) {
    report_end(worker, status, detail);
  }
  free(detail);
  mob_ledger_give(&node->ledger, &worker->holding);
  for (size_t i = 0; i < node->workers.len; i++) {
    if (node->workers.at[i] != worker) continue;
    mob_vec_remove(&node->workers, i);
    break;
  }
  close_worker(worker);
  mob__node_changed(node);
  if (!node->workers.len) mob__node_workers_gone(node);
}

static void on_kill_time(uv_timer_t *timer) {
  mob_worker_t *worker = timer->data;
  if (!worker->child) return;
  MOB_WARN("actor %s (process %d) did not %s in time and is killed", worker->title, worker->pid,
           worker->stopping ? "end" : "start");
  if (!worker->stopping) set_why(worker, "it did not start within 60 s");
  mob_child_kill(worker->child, SIGKILL);
}

void mob__node_worker_end(mob_worker_t *worker, bool force, const char *why) {
  if (!worker->child) return;
  if (!worker->stopping && why) set_why(worker, why);
  bool first = !worker->stopping;
  worker->stopping = true;
  if (force) {
    mob_child_kill(worker->child, SIGKILL);
  } else if (first) {
    mob_child_kill(worker->child, SIGTERM);
    uv_timer_start(&worker->timer, on_kill_time, GRACE_MS, 0);
  }
}

void mob__node_workers_end_all(mob_node_t *node, bool force, const char *why) {
  for (size_t i = 0; i < node->workers.len; i++)
    mob__node_worker_end(node->workers.at[i], force, why);
}

void mob__node_workers_free(mob_node_t *node) {
  for (size_t i = 0; i < node->workers.len; i++) {
    mob_worker_t *worker = node->workers.at[i];
    if (worker->child) kill(worker->pid, SIGKILL);
    worker->child = NULL; // reaped with the children's table
    if (worker->call) refuse_lease(worker->call, true, "the node is ending");
    worker->call = NULL;
    mob_holding_free(&worker->holding);
    close_worker(worker);
  }
  mob_vec_free(&node->workers);
}

// ------------------------------------------------------------------------------------------ what
// it says

static void give_line(line_reader_t *reader, size_t len) {
  char *line = mob_strndup((const char *)reader->text.data, len);
  reader->on_line(reader->worker, line);
  free(line);
}

static void feed(line_reader_t *reader, const char *data, size_t len) {
  mob_buf_append(&reader->text, data, len);
  uint8_t *end;
  while (reader->text.len && (end = memchr(reader->text.data, '\n', reader->text.len))) {
    size_t n = (size_t)(end - reader->text.data);
    give_line(reader, n);
    mob_buf_consume(&reader->text, n + 1);
  }
  if (reader->text.len > 64 << 10) { // a line without an end
    give_line(reader, reader->text.len);
    reader->text.len = 0;
  }
}

static void drain_pipe(line_reader_t *reader) {
  char data[4096];
  uv_os_fd_t fd;
  ssize_t n;
  if (uv_fileno((uv_handle_t *)&reader->pipe, &fd)) return;
  while ((n = read(fd, data, sizeof data)) > 0) feed(reader, data, (size_t)n);
  if (reader->text.len) {
    give_line(reader, reader->text.len);
    reader->text.len = 0;
  }
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *buf) {
  (void)handle;
  (void)size;
  *buf = uv_buf_init(mob_malloc(16384), 16384);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  line_reader_t *reader = stream->data;
  if (n > 0) feed(reader, buf->base, (size_t)n);
  if (n < 0) uv_read_stop(stream);
  free(buf->base);
}

static void on_control_line(mob_worker_t *worker, const char *line) {
  if (strncmp(line, "PORT ", 5) == 0 && worker->call) {
    worker->port = atoi(line + 5);
    uv_timer_stop(&worker->timer);
    grant_lease(worker);
  } else if (strncmp(line, "EXIT ", 5) == 0) {
    char *why;
    worker->said_exit = true;
    worker->said_code = (int)strtol(line + 5, &why, 10);
    if (!worker->stopping || !worker->why) set_why(worker, *why == ' ' ? why + 1 : why);
  }
}

// To the session's log, and to the pod's output with the actor in front.
static void on_output_line(mob_worker_t *worker, const char *line) {
  mob_buf_t text = {0};
  ssize_t ignored;
  free(worker->last_line);
  char last[301];
  mob_utf8_format(last, sizeof last, "%s", line);
  worker->last_line = mob_strdup(last);
  mob_buf_printf(&text, "%s\n", line);
  if (worker->log_fd >= 0) ignored = write(worker->log_fd, text.data, text.len);
  text.len = 0;
  mob_buf_printf(&text, "(%s pid=%d) %s\n", worker->title, worker->pid, line);
  ignored = write(STDERR_FILENO, text.data, text.len);
  (void)ignored;
  mob_buf_free(&text);
}

// ----------------------------------------------------------------------------------------------
// starting

typedef MOB_VEC(char *) strings_t;

static void set_env(strings_t *env, const char *name, const char *value) {
  size_t len = strlen(name);
  for (size_t i = 0; i < env->len; i++) {
    if (strncmp(env->at[i], name, len) || env->at[i][len] != '=') continue;
    free(env->at[i]);
    env->at[i] = mob_sprintf("%s=%s", name, value);
    return;
  }
  *mob_vec_push(env) = mob_sprintf("%s=%s", name, value);
}

// The names of the granted GPUs, for CUDA_VISIBLE_DEVICES.
static char *visible_gpus(const mob_worker_t *worker) {
  const mob_grants_t *sets[] = {&worker->holding.of_node, &worker->holding.of_bundle};
  const mob_gpu_names_t *names = &worker->node->gpus.names;
  mob_buf_t list = {0};
  for (size_t index = 0; index < names->len; index++) {
    bool held = false;
    for (size_t s = 0; s < MOB_LEN(sets); s++) {
      for (size_t i = 0; i < sets[s]->len; i++) {
        const mob_grant_t *grant = &sets[s]->at[i];
        if (strcmp(grant->name, "GPU") != 0) continue;
        for (size_t k = 0; k < grant->shares.len; k++)
          held = held || grant->shares.at[k].index == (int)index;
      }
    }
    if (held) mob_buf_printf(&list, "%s%s", list.len ? "," : "", names->at[index]);
  }
  return list.len ? mob_buf_steal(&list) : mob_strdup("");
}

static char **make_env(const mob_worker_t *worker, const char *runtime_env) {
  strings_t env = {0};
  for (char **e = environ; *e; e++) *mob_vec_push(&env) = mob_strdup(*e);
  // Real devices only: the indices of simulated ones mean nothing to CUDA.
  if (worker->node->gpus.source == MOB_GPUS_REAL &&
      !getenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES")) {
    char *list = visible_gpus(worker);
    set_env(&env, "CUDA_VISIBLE_DEVICES", list);
    if (worker->node->gpus.bus_order && !getenv("CUDA_DEVICE_ORDER"))
      set_env(&env, "CUDA_DEVICE_ORDER", "PCI_BUS_ID");
    free(list);
  }
  json_t *root = *runtime_env ? json_loads(runtime_env, 0, NULL) : NULL, *value;
  const char *name;
  json_object_foreach(json_object_get(root, "env_vars"), name, value) {
    if (json_is_string(value)) set_env(&env, name, json_string_value(value));
  }
  json_decref(root);
  *mob_vec_push(&env) = NULL;
  return env.at;
}

static void free_list(char **list) {
  for (char **e = list; e && *e; e++) free(*e);
  free(list);
}

static bool port_free(const char *ip, int port) {
  struct sockaddr_storage address = {0};
  struct sockaddr_in6 six;
  struct sockaddr_in four;
  socklen_t len = sizeof four;
  if (uv_ip4_addr(ip, port, &four) == 0) {
    memcpy(&address, &four, sizeof four);
  } else if (uv_ip6_addr(ip, port, &six) == 0) {
    memcpy(&address, &six, len = sizeof six);
  } else {
    return false;
  }
  int fd = socket(address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
  if (fd < 0) return false;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  bool ok = bind(fd, (struct sockaddr *)&address, len) == 0 && listen(fd, 1) == 0;
  close(fd);
  return ok;
}

// 0: any. -1: the ports that the user allowed are all taken.
static int pick_port(mob_node_t *node) {
  const mob_start_options_t *options = node->options;
  if (options->worker_ports.len) {
    for (size_t i = 0; i < options->worker_ports.len; i++) {
      size_t at = ((size_t)node->next_port + i) % options->worker_ports.len;
      if (!port_free(node->ip, options->worker_ports.at[at])) continue;
      node->next_port = (int)at + 1;
      return options->worker_ports.at[at];
    }
    return -1;
  }
  if (!options->max_worker_port) return 0;
  int count = options->max_worker_port - options->min_worker_port + 1;
  for (int i = 0; i < count; i++) {
    int offset = (node->next_port + i) % count;
    if (!port_free(node->ip, options->min_worker_port + offset)) continue;
    node->next_port = offset + 1;
    return options->min_worker_port + offset;
  }
  return -1;
}

static mob_status open_reader(mob_worker_t *worker, line_reader_t *reader, int fd,
                              void (*on_line)(mob_worker_t *worker, const char *line)) {
  reader->worker = worker;
  reader->on_line = on_line;
  reader->pipe.data = reader;
  int error = uv_pipe_open(&reader->pipe, fd);
  if (!error) error = uv_read_start((uv_stream_t *)&reader->pipe, on_alloc, on_read);
  return error ? mob_fail(MOB_E_IO, "pipe: %s", uv_strerror(error)) : MOB_OK;
}

static mob_status start(mob_worker_t *worker, const char *runtime_env) {
  mob_node_t *node = worker->node;
  char hex[2 * WORKER_ID_LEN + 1];
  int control[2] = {-1, -1}, output[2] = {-1, -1};
  mob_status status = MOB_OK;
  char **env = NULL, *log_path = NULL;
  mob_hex(worker->id, WORKER_ID_LEN, hex);
  int port = pick_port(node);
  if (port < 0) return mob_fail(MOB_E_NO_RESOURCES, "every port for actor processes is taken");
  char *argv[] = {mob_strdup("mobula"),
                  mob_strdup("actor-worker"),
                  mob_strdup("--control=3"),
                  mob_sprintf("--node-ip=%s", node->ip),
                  mob_sprintf("--node-id=%s", node->id_hex),
                  mob_sprintf("--worker-id=%s", hex),
                  mob_sprintf("--port=%d", port),
                  mob_sprintf("--title=%s", worker->title),
                  NULL};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, control) || pipe2(output, O_CLOEXEC)) {
    status = mob_fail(MOB_E_IO, "cannot make the actor's pipes: %s", strerror(errno));
    goto cleanup;
  }
  env = make_env(worker, runtime_env);
  mob_child_options_t options = {.file = "/proc/self/exe",
                                 .argv = argv,
                                 .env = env,
                                 .fds = {-1, output[1], output[1], control[1]},
                                 .fd_count = 4};
  MOB_TRY_GOTO(mob_child_spawn(node->children, &options, on_child_exit, worker, &worker->child),
               status, cleanup);
  worker->pid = mob_child_pid(worker->child);
  log_path = mob_sprintf("%s/logs/worker-%s-%d.log", node->session_dir, hex, worker->pid);
  worker->log_fd = open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  // From here on the process exists, and its end does the rest.
  if (open_reader(worker, &worker->control, control[0], on_control_line) == MOB_OK) control[0] = -1;
  if (open_reader(worker, &worker->output, output[0], on_output_line) == MOB_OK) output[0] = -1;
  if (control[0] >= 0 || output[0] >= 0) mob_child_kill(worker->child, SIGKILL);
  uv_timer_start(&worker->timer, on_kill_time, STARTUP_MS, 0);
cleanup:
  for (int i = 0; i < 2; i++) {
    if (control[i] >= 0) close(control[i]);
    if (output[i] >= 0) close(output[i]);
  }
  for (size_t i = 0; argv[i]; i++) free(argv[i]);
  free_list(env);
  free(log_path);
  return status;
}

static char *title_of(const Ray__Rpc__LeaseSpec *lease) {
  const Ray__Rpc__FunctionDescriptor *function = lease->function_descriptor;
  if (function &&
      function->function_descriptor_case ==
          RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_CPP_FUNCTION_DESCRIPTOR &&
      *function->cpp_function_descriptor->class_name) {
    return mob_strdup(function->cpp_function_descriptor->class_name);
  }
  return mob_strdup(*lease->task_name ? lease->task_name : "actor");
}

static mob_worker_t *new_worker(mob_node_t *node, const Ray__Rpc__LeaseSpec *lease) {
  mob_worker_t *worker = MOB_NEW(mob_worker_t);
  worker->node = node;
  worker->log_fd = -1;
  mob_random(worker->id, sizeof worker->id);
  if (lease->actor_id.len == ACTOR_ID_LEN)
    memcpy(worker->actor_id, lease->actor_id.data, ACTOR_ID_LEN);
  if (lease->job_id.len == sizeof worker->job_id) memcpy(worker->job_id, lease->job_id.data, 4);
  if (lease->lease_id.len <= sizeof worker->lease_id) {
    worker->lease_len = lease->lease_id.len;
    if (worker->lease_len) memcpy(worker->lease_id, lease->lease_id.data, worker->lease_len);
  }
  worker->title = title_of(lease);
  uv_pipe_init(node->loop, &worker->control.pipe, 0);
  uv_pipe_init(node->loop, &worker->output.pipe, 0);
  uv_timer_init(node->loop, &worker->timer);
  worker->timer.data = worker;
  return worker;
}

void mob__node_worker_lease(mob_node_t *node, mob_rpc_call_t *call,
                            const Ray__Rpc__RequestWorkerLeaseRequest *request) {
  const Ray__Rpc__LeaseSpec *lease = request->lease_spec;
  if (node->phase != MOB_NODE_READY || node->draining) {
    refuse_lease(call, true, node->draining ? "the node is draining" : "the node is ending");
    return;
  }
  if (!lease || lease->type != RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK) {
    refuse_lease(call, false, "this node runs actors, not tasks");
    return;
  }
  size_t n = lease->n_required_resources;
  mob_want_t *wants = MOB_NEW_ARRAY(mob_want_t, n + 1);
  for (size_t i = 0; i < n; i++) {
    wants[i] = (mob_want_t){lease->required_resources[i]->key, lease->required_resources[i]->value};
  }
  mob_worker_t *worker = new_worker(node, lease);
  mob_status status = mob_ledger_take(&node->ledger, wants, n, &worker->holding);
  free(wants);
  if (status == MOB_OK) {
    const char *env =
        lease->runtime_env_info ? lease->runtime_env_info->serialized_runtime_env : "";
    status = start(worker, env);
    if (status != MOB_OK) mob_ledger_give(&node->ledger, &worker->holding);
  }
  if (status != MOB_OK) {
    refuse_lease(call, status == MOB_E_NO_RESOURCES || status == MOB_E_NOT_FOUND, mob_errmsg());
    close_worker(worker);
    return;
  }
  worker->call = call;
  *mob_vec_push(&node->workers) = worker;
  MOB_INFO("actor %s starts as process %d", worker->title, worker->pid);
  mob__node_changed(node);
}

// ----------------------------------------------------------------------------------------------
// look-up

mob_worker_t *mob__node_worker_by_id(mob_node_t *node, ProtobufCBinaryData worker_id) {
  for (size_t i = 0; i < node->workers.len; i++) {
    mob_worker_t *worker = node->workers.at[i];
    if (mob_pb_bytes_equal(worker_id, worker->id, sizeof worker->id)) return worker;
  }
  return NULL;
}

mob_worker_t *mob__node_worker_by_lease(mob_node_t *node, ProtobufCBinaryData lease_id) {
  for (size_t i = 0; i < node->workers.len; i++) {
    mob_worker_t *worker = node->workers.at[i];
    if (worker->lease_len && mob_pb_bytes_equal(lease_id, worker->lease_id, worker->lease_len))
      return worker;
  }
  return NULL;
}

bool mob__node_worker_in_bundle(const mob_worker_t *worker, const uint8_t *pg, int index) {
  return worker->holding.in_bundle && worker->holding.index == index &&
         memcmp(worker->holding.pg, pg, MOB_NODE_PG_LEN) == 0;
}

pid_t mob__node_worker_pid(const mob_worker_t *worker) {
  return worker->pid;
}
