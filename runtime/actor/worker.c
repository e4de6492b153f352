#define MOB_LOG_COMPONENT "actor"
#include "runtime/actor/worker.h"

#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/actor/task.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/base/utf8.h"
#include "runtime/rpc/message.h"

// A call that its caller sent before this one may still be on its way; when it has not come by
// then, it will not come (it was given up), and the later ones go on.
#define GAP_MS 2000
// What is queued when the actor ends has this long to leave.
#define FLUSH_MS 1000

// Calls of one caller, brought into the order of their sequence numbers.
typedef struct caller {
  mob_actor_ctx_t *ctx;
  uint8_t id[MOB_WORKER_ID_LEN];
  int64_t next;
  MOB_VEC(mob_call_t *) early; // arrived before one they must follow; by sequence
  uv_timer_t gap;
} caller_t;

struct mob_call {
  mob_rpc_call_t *rpc;
  const Ray__Rpc__PushTaskRequest *request;
  int64_t sequence;
};

struct mob_actor_ctx {
  uv_loop_t loop;
  mob_rpc_t *rpc;
  mob_rpc_server_t *server;
  uv_pipe_t control;
  uv_signal_t sigterm, sigint;
  uv_timer_t flush;
  char *node_ip, *name;
  uint8_t actor_id[MOB_ACTOR_ID_LEN], worker_id[MOB_WORKER_ID_LEN];
  int *gpu_ids;
  size_t gpu_count;
  const mob_actor_class_t *cls;
  void *self;
  bool created, exiting;
  int exit_code;
  MOB_VEC(caller_t *) callers;
};

static MOB_VEC(const mob_actor_class_t *) builtins;

void mob_actor_register_builtin(const mob_actor_class_t *cls) {
  *mob_vec_push(&builtins) = cls;
}

// --------------------------------------------------------------------------------------- what
// classes use

uv_loop_t *mob_actor_loop(mob_actor_ctx_t *ctx) {
  return &ctx->loop;
}

const char *mob_actor_name(mob_actor_ctx_t *ctx) {
  return ctx->name;
}

const char *mob_actor_node_ip(mob_actor_ctx_t *ctx) {
  return ctx->node_ip;
}

const int *mob_actor_gpu_ids(mob_actor_ctx_t *ctx, size_t *n) {
  *n = ctx->gpu_count;
  return ctx->gpu_ids;
}

static void end_now(mob_actor_ctx_t *ctx) {
  fflush(NULL);
  _exit(ctx->exit_code);
}

static void on_flushed(void *arg) {
  end_now(arg);
}

static void on_flush_timeout(uv_timer_t *timer) {
  end_now(timer->data);
}

void mob_actor_exit(mob_actor_ctx_t *ctx, int code, const char *why) {
  char line[1024];
  if (ctx->exiting) return;
  ctx->exiting = true;
  ctx->exit_code = code;
  mob_utf8_format(line, sizeof line - 1, "EXIT %d %s", code, why ? why : "");
  for (char *c = line; (c = strchr(c, '\n'));) *c = ' ';
  strcat(line, "\n");
  uv_buf_t buf = uv_buf_init(line, (unsigned)strlen(line));
  uv_try_write((uv_stream_t *)&ctx->control, &buf, 1);
  uv_timer_start(&ctx->flush, on_flush_timeout, FLUSH_MS, 0);
  mob_rpc_server_close(ctx->server, FLUSH_MS / 2, on_flushed, ctx);
}

static void reply_error(mob_call_t *call, mob_status code, const char *message) {
  Ray__Rpc__PushTaskReply reply = RAY__RPC__PUSH_TASK_REPLY__INIT;
  char *text = mob__error_text(code, message);
  mob_utf8_clean(text); // the class's own words
  reply.is_application_error = true;
  reply.task_execution_error = text;
  mob_rpc_reply(call->rpc, &reply);
  free(text);
  free(call);
}

void mob_call_reply(mob_call_t *call, mob_bytes_t result) {
  Ray__Rpc__PushTaskReply reply = RAY__RPC__PUSH_TASK_REPLY__INIT;
  Ray__Rpc__ReturnObject object = RAY__RPC__RETURN_OBJECT__INIT, *objects[] = {&object};
  object.data = mob_pb_bytes(result.data, result.len);
  object.size = (int64_t)result.len;
  reply.return_objects = objects;
  reply.n_return_objects = 1;
  mob_rpc_reply(call->rpc, &reply);
  free(call);
}

void mob_call_fail(mob_call_t *call, mob_status code, const char *message) {
  reply_error(call, code == MOB_OK ? MOB_E_INTERNAL : code, message ? message : "");
}

// -----------------------------------------------------------------------------------------------
// creation

static const mob_actor_class_t *pick(const mob_actor_class_t *const *list, const char *name) {
  for (; list && *list; list++) {
    if (strcmp((*list)->name, name) == 0) return *list;
  }
  return NULL;
}

static mob_status find_class(const char *library, const char *name, const mob_actor_class_t **out) {
  *out = NULL;
  if (library) {
    void *handle = dlopen(library, RTLD_NOW | RTLD_LOCAL);
    if (!handle) return mob_fail(MOB_E_NOT_FOUND, "cannot load %s: %s", library, dlerror());
    mob_actor_classes_fn classes = NULL;
    *(void **)&classes = dlsym(handle, MOB_ACTOR_CLASSES_SYMBOL);
    if (!classes) {
      return mob_fail(MOB_E_FORMAT, "%s holds no actor classes (it does not export %s)", library,
                      MOB_ACTOR_CLASSES_SYMBOL);
    }
    *out = pick(classes(), name);
    if (!*out) return mob_fail(MOB_E_NOT_FOUND, "%s has no actor class '%s'", library, name);
  } else {
    for (size_t i = 0; i < builtins.len && !*out; i++) {
      if (strcmp(builtins.at[i]->name, name) == 0) *out = builtins.at[i];
    }
    if (!*out) return mob_fail(MOB_E_NOT_FOUND, "there is no built-in actor class '%s'", name);
  }
  if ((*out)->abi != MOB_ACTOR_ABI) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "actor class '%s' was built for version %u of the actor interface; "
                    "this node has version %d",
                    name, (*out)->abi, MOB_ACTOR_ABI);
  }
  return MOB_OK;
}

static int by_value(const void *a, const void *b) {
  return *(const int *)a - *(const int *)b;
}

// The GPUs of the lease, ascending, each once.
static void read_gpus(mob_actor_ctx_t *ctx, const Ray__Rpc__PushTaskRequest *request) {
  MOB_VEC(int) ids = {0};
  for (size_t i = 0; i < request->n_resource_mapping; i++) {
    const Ray__Rpc__ResourceMapEntry *entry = request->resource_mapping[i];
    if (strcmp(entry->name, "GPU") != 0 && strncmp(entry->name, "GPU_group_", 10) != 0) continue;
    for (size_t j = 0; j < entry->n_resource_ids; j++) {
      int id = (int)entry->resource_ids[j]->index;
      bool seen = false;
      for (size_t k = 0; k < ids.len; k++) seen = seen || ids.at[k] == id;
      if (!seen) *mob_vec_push(&ids) = id;
    }
  }
  if (ids.len) qsort(ids.at, ids.len, sizeof *ids.at, by_value);
  ctx->gpu_ids = ids.at;
  ctx->gpu_count = ids.len;
}

static mob_status create(mob_actor_ctx_t *ctx, const Ray__Rpc__PushTaskRequest *request) {
  const Ray__Rpc__TaskSpec *task = request->task_spec;
  const Ray__Rpc__ActorCreationTaskSpec *spec = task->actor_creation_task_spec;
  const Ray__Rpc__FunctionDescriptor *function = task->function_descriptor;
  if (ctx->cls) return mob_fail(MOB_E_EXISTS, "this process holds an actor already");
  if (!spec || spec->actor_id.len != MOB_ACTOR_ID_LEN || !function ||
      function->function_descriptor_case !=
          RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_CPP_FUNCTION_DESCRIPTOR) {
    return mob_fail(MOB_E_INVALID, "the creation task names no actor or no C++ class");
  }
  if (task->n_args && !task->args[0]->is_inlined && task->args[0]->object_ref) {
    return mob_fail(MOB_E_UNSUPPORTED, "arguments must be inline");
  }
  const char *library = task->job_config && task->job_config->n_code_search_path
                            ? task->job_config->code_search_path[0]
                            : NULL;
  MOB_TRY(find_class(library, function->cpp_function_descriptor->class_name, &ctx->cls));
  memcpy(ctx->actor_id, spec->actor_id.data, MOB_ACTOR_ID_LEN);
  free(ctx->name);
  ctx->name = mob_strdup(spec->name);
  mob_log_set_process(*ctx->name ? ctx->name : ctx->cls->name);
  read_gpus(ctx, request);
  mob_bytes_t args = {0};
  if (task->n_args) args = (mob_bytes_t){task->args[0]->data.data, task->args[0]->data.len};
  MOB_TRY(ctx->cls->create(ctx, args, &ctx->self));
  ctx->created = true;
  return MOB_OK;
}

// --------------------------------------------------------------------------------------------------
// calls

static void run_call(mob_actor_ctx_t *ctx, mob_call_t *call) {
  const Ray__Rpc__TaskSpec *task = call->request->task_spec;
  const Ray__Rpc__FunctionDescriptor *function = task->function_descriptor;
  mob_bytes_t args = {0};
  if (!function || function->function_descriptor_case !=
                       RAY__RPC__FUNCTION_DESCRIPTOR__FUNCTION_DESCRIPTOR_CPP_FUNCTION_DESCRIPTOR) {
    reply_error(call, MOB_E_INVALID, "the call names no C++ function");
    return;
  }
  if (task->n_args) args = (mob_bytes_t){task->args[0]->data.data, task->args[0]->data.len};
  ctx->cls->call(ctx->self, call, function->cpp_function_descriptor->function_name, args);
}

static void run_ready(caller_t *caller) {
  while (caller->early.len && caller->early.at[0]->sequence <= caller->next) {
    mob_call_t *call = caller->early.at[0];
    mob_vec_remove(&caller->early, 0);
    if (call->sequence == caller->next) caller->next++;
    run_call(caller->ctx, call);
  }
}

static void on_gap(uv_timer_t *timer) {
  caller_t *caller = timer->data;
  if (!caller->early.len) return;
  caller->next = caller->early.at[0]->sequence;
  run_ready(caller);
  if (caller->early.len) uv_timer_start(&caller->gap, on_gap, GAP_MS, 0);
}

static caller_t *caller_of(mob_actor_ctx_t *ctx, const Ray__Rpc__TaskSpec *task) {
  uint8_t id[MOB_WORKER_ID_LEN] = {0};
  if (task->caller_address && task->caller_address->worker_id.len == sizeof id) {
    memcpy(id, task->caller_address->worker_id.data, sizeof id);
  }
  for (size_t i = 0; i < ctx->callers.len; i++) {
    if (memcmp(ctx->callers.at[i]->id, id, sizeof id) == 0) return ctx->callers.at[i];
  }
  caller_t *caller = MOB_NEW(caller_t);
  caller->ctx = ctx;
  memcpy(caller->id, id, sizeof id);
  uv_timer_init(&ctx->loop, &caller->gap);
  caller->gap.data = caller;
  *mob_vec_push(&ctx->callers) = caller;
  return caller;
}

static void order_call(mob_actor_ctx_t *ctx, mob_call_t *call) {
  caller_t *caller = caller_of(ctx, call->request->task_spec);
  int64_t processed = call->request->client_processed_up_to;
  if (processed >= caller->next) caller->next = processed + 1;
  if (call->sequence <= caller->next && !caller->early.len) { // the common case
    if (call->sequence == caller->next) caller->next++;
    run_call(ctx, call);
    return;
  }
  size_t at = caller->early.len;
  while (at && caller->early.at[at - 1]->sequence > call->sequence) at--;
  (void)mob_vec_push(&caller->early);
  memmove(&caller->early.at[at + 1], &caller->early.at[at],
          (caller->early.len - 1 - at) * sizeof call);
  caller->early.at[at] = call;
  run_ready(caller);
  if (caller->early.len) {
    if (!uv_is_active((uv_handle_t *)&caller->gap)) uv_timer_start(&caller->gap, on_gap, GAP_MS, 0);
  } else {
    uv_timer_stop(&caller->gap);
  }
}

static void on_push_task(void *owner, mob_rpc_call_t *rpc, const void *message) {
  mob_actor_ctx_t *ctx = owner;
  const Ray__Rpc__PushTaskRequest *request = message;
  const Ray__Rpc__TaskSpec *task = request->task_spec;
  mob_call_t *call = MOB_NEW(mob_call_t);
  *call = (mob_call_t){rpc, request, request->sequence_number};
  if (!task) {
    reply_error(call, MOB_E_INVALID, "the request has no task");
  } else if (request->intended_worker_id.len &&
             !mob_pb_bytes_equal(request->intended_worker_id, ctx->worker_id, MOB_WORKER_ID_LEN)) {
    free(call);
    mob_rpc_reply_status(rpc, GRPC_STATUS_UNAVAILABLE, "the task is for another worker process");
  } else if (ctx->exiting) {
    free(call);
    mob_rpc_reply_status(rpc, GRPC_STATUS_UNAVAILABLE, "the actor is ending");
  } else if (task->type == RAY__RPC__TASK_TYPE__ACTOR_CREATION_TASK) {
    mob_status status = create(ctx, request);
    if (status == MOB_OK) {
      mob_call_reply(call, (mob_bytes_t){0});
    } else {
      char *why = mob_strdup(mob_errmsg());
      MOB_ERROR("the actor could not be created: %s", why);
      mob_call_fail(call, status, why);
      mob_actor_exit(ctx, 1, why);
      free(why);
    }
  } else if (!ctx->created) {
    reply_error(call, MOB_E_UNAVAILABLE, "the actor was not created yet");
  } else if (!task->actor_task_spec || !mob_pb_bytes_equal(task->actor_task_spec->actor_id,
                                                           ctx->actor_id, MOB_ACTOR_ID_LEN)) {
    reply_error(call, MOB_E_NOT_FOUND, "this process holds another actor");
  } else {
    order_call(ctx, call);
  }
}

// ----------------------------------------------------------------------------------------------
// streams

static const uint8_t *stream_actor_id(void *host) {
  mob_actor_ctx_t *ctx = host;
  return ctx->created ? ctx->actor_id : NULL;
}

static const char *stream_accept(void *host, mob_stream_t *stream, const char *method) {
  mob_actor_ctx_t *ctx = host;
  if (!ctx->cls->stream) return "the actor's class takes no streams";
  ctx->cls->stream(ctx->self, stream, method);
  return NULL;
}

static void on_stream(void *owner, mob_rpc_stream_t *rpc) {
  mob__stream_host_t host = {stream_actor_id, stream_accept, owner};
  mob__stream_serve(rpc, &host);
}

// --------------------------------------------------------------------------------------------------
// ending

static void stop_actor(mob_actor_ctx_t *ctx, const char *why) {
  if (ctx->created && ctx->cls->stop) {
    ctx->cls->stop(ctx->self);
  } else {
    mob_actor_exit(ctx, 0, why);
  }
}

static void on_signal(uv_signal_t *signal, int number) {
  stop_actor(signal->data, number == SIGTERM ? "SIGTERM" : "SIGINT");
}

static void on_kill_actor(void *owner, mob_rpc_call_t *rpc, const void *message) {
  mob_actor_ctx_t *ctx = owner;
  const Ray__Rpc__KillActorRequest *request = message;
  Ray__Rpc__KillActorReply reply = RAY__RPC__KILL_ACTOR_REPLY__INIT;
  if (!ctx->created ||
      !mob_pb_bytes_equal(request->intended_actor_id, ctx->actor_id, MOB_ACTOR_ID_LEN)) {
    mob_rpc_reply_status(rpc, GRPC_STATUS_NOT_FOUND, "this process holds another actor");
    return;
  }
  mob_rpc_reply(rpc, &reply);
  if (request->force_kill) {
    mob_actor_exit(ctx, 1, "killed");
  } else {
    stop_actor(ctx, "killed");
  }
}

static void on_exit_request(void *owner, mob_rpc_call_t *rpc, const void *message) {
  (void)message;
  Ray__Rpc__ExitReply reply = RAY__RPC__EXIT_REPLY__INIT;
  reply.success = true;
  mob_rpc_reply(rpc, &reply);
  stop_actor(owner, "asked to exit");
}

// The agent is gone. The kernel kills this process with it (PDEATHSIG); this is the second net.
static void on_control(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  (void)stream;
  free(buf->base);
  if (n < 0) _exit(1);
}

static void on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *buf) {
  (void)handle;
  (void)size;
  *buf = uv_buf_init(mob_malloc(256), 256);
}

static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(MOB_PUSH_TASK, ray__rpc__push_task, on_push_task),
    MOB_RPC_METHOD("/ray.rpc.CoreWorkerService/KillActor", ray__rpc__kill_actor, on_kill_actor),
    MOB_RPC_METHOD("/ray.rpc.CoreWorkerService/Exit", ray__rpc__exit, on_exit_request),
};

static const char *flag(int argc, char **argv, const char *name) {
  size_t len = strlen(name);
  for (int i = 1; i < argc; i++) {
    if (strncmp(argv[i], name, len) == 0 && argv[i][len] == '=') return argv[i] + len + 1;
  }
  return NULL;
}

static mob_status setup(mob_actor_ctx_t *ctx, int argc, char **argv) {
  const char *control = flag(argc, argv, "--control"), *ip = flag(argc, argv, "--node-ip");
  const char *worker_id = flag(argc, argv, "--worker-id"), *port = flag(argc, argv, "--port");
  if (!control || !ip || !worker_id || !port) {
    return mob_fail(MOB_E_INVALID, "actor-worker is started by a node agent, not by hand");
  }
  MOB_TRY(mob_unhex(worker_id, ctx->worker_id, MOB_WORKER_ID_LEN));
  ctx->node_ip = mob_strdup(ip);
  ctx->name = mob_strdup("");
  uv_loop_init(&ctx->loop);
  uv_timer_init(&ctx->loop, &ctx->flush);
  ctx->flush.data = ctx;
  uv_pipe_init(&ctx->loop, &ctx->control, 0);
  int error = uv_pipe_open(&ctx->control, atoi(control));
  if (error) return mob_fail(MOB_E_INVALID, "--control=%s: %s", control, uv_strerror(error));
  uv_read_start((uv_stream_t *)&ctx->control, on_alloc, on_control);
  uv_signal_init(&ctx->loop, &ctx->sigterm);
  uv_signal_init(&ctx->loop, &ctx->sigint);
  ctx->sigterm.data = ctx->sigint.data = ctx;
  uv_signal_start(&ctx->sigterm, on_signal, SIGTERM);
  uv_signal_start(&ctx->sigint, on_signal, SIGINT);
  signal(SIGPIPE, SIG_IGN);
  MOB_TRY(mob__actor_rpc_acquire(&ctx->loop, &ctx->rpc));
  MOB_TRY(mob_rpc_server_new(ctx->rpc, &ctx->server));
  mob_rpc_server_add(ctx->server, methods, MOB_LEN(methods), ctx);
  mob_rpc_server_add_stream(ctx->server, MOB_STREAM_PATH, on_stream, ctx);
  int bound = 0;
  MOB_TRY(mob_rpc_server_listen(ctx->server, ip, atoi(port), &bound));
  char line[32];
  int n = snprintf(line, sizeof line, "PORT %d\n", bound);
  uv_buf_t buf = uv_buf_init(line, (unsigned)n);
  if (uv_try_write((uv_stream_t *)&ctx->control, &buf, 1) != n) {
    return mob_fail(MOB_E_IO, "the agent's socket takes nothing");
  }
  return MOB_OK;
}

int mob_actor_worker_main(int argc, char **argv) {
  mob_actor_ctx_t *ctx = MOB_NEW(mob_actor_ctx_t);
  mob_log_set_process("worker");
  if (setup(ctx, argc, argv) != MOB_OK) {
    fprintf(stderr, "%s\n", mob_errmsg());
    return 1;
  }
  // Ends by _exit(): mob_actor_exit(), a signal, or the end of the agent.
  uv_run(&ctx->loop, UV_RUN_DEFAULT);
  return 1;
}
