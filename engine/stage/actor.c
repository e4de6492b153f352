// The stage as an actor. It lives for one gateway: when the gateway's stream ends, or the gateway
// falls silent, it aborts what runs and its process ends. Nobody waits for a gateway that is gone.
#include <stdlib.h>

#include "engine/stage/runner.h"
#include "engine/stage/stage.h"
#define MOB_LOG_COMPONENT "stage"
#include "runtime/base/log.h"
#include "runtime/base/utf8.h"

enum {
  FIRST_STREAM_MS = 60000, // from creation to the gateway's stream
  CLOSE_MS = 2000,         // for an executor to end; a hung one ends with the process
};

typedef struct stage_actor {
  mob_actor_ctx_t *ctx;
  mob__runner_t *runner;
  mob_stream_t *stream;
  uv_timer_t timer;
  bool ending;
  int code;
  char why[512];
} stage_actor_t;

static void exit_now(stage_actor_t *a) {
  mob_actor_exit(a->ctx, a->code, a->why);
}

static void on_runner_closed(void *arg) {
  exit_now(arg);
}

static void on_close_timeout(uv_timer_t *timer) {
  MOB_WARN("the executor did not end within %d ms; the process ends without it", CLOSE_MS);
  exit_now(timer->data);
}

static void end(stage_actor_t *a, int code, const char *why) {
  if (a->ending) return;
  a->ending = true;
  a->code = code;
  mob_utf8_format(a->why, sizeof a->why, "%s", why ? why : "");
  if (code) MOB_ERROR("ending: %s", a->why);
  uv_timer_start(&a->timer, on_close_timeout, CLOSE_MS, 0);
  mob__runner_close(a->runner, on_runner_closed, a);
}

// ----------------------------------------------------------------------------------- the runner's

static void on_send(void *owner, mob_bytes_t message) {
  stage_actor_t *a = owner;
  if (a->stream) mob_stream_send(a->stream, message);
}

static void on_end(void *owner, bool lost, const char *why) {
  end(owner, lost ? 1 : 0, why);
}

// ----------------------------------------------------------------------------------- the stream's

static void on_message(void *owner, mob_stream_t *stream, mob_bytes_t message) {
  stage_actor_t *a = owner;
  if (stream == a->stream && !a->ending) mob__runner_message(a->runner, message);
}

static void on_close(void *owner, mob_stream_t *stream, mob_status status, const char *why) {
  stage_actor_t *a = owner;
  if (stream != a->stream) return;
  a->stream = NULL;
  char text[600];
  mob_utf8_format(text, sizeof text, "the gateway's stream ended: %s", why ? why : "closed");
  end(a, status == MOB_OK ? 0 : 1, text);
}

static void on_refused_close(void *owner, mob_stream_t *stream, mob_status status,
                             const char *why) {
  (void)owner;
  (void)stream;
  (void)status;
  (void)why;
}

static void on_refused_message(void *owner, mob_stream_t *stream, mob_bytes_t message) {
  (void)owner;
  (void)stream;
  (void)message;
}

static const mob_stream_events_t stream_events = {on_message, on_close};
static const mob_stream_events_t refused_events = {on_refused_message, on_refused_close};

static void stage_stream(void *self, mob_stream_t *stream, const char *method) {
  stage_actor_t *a = self;
  const char *why = strcmp(method, "steps") != 0 ? "a stage has one stream, \"steps\""
                    : a->stream || a->ending     ? "the stage has its gateway already"
                                                 : NULL;
  if (why) {
    mob_stream_listen(stream, &refused_events, NULL);
    mob_stream_close(stream, MOB_E_INVALID, why);
    return;
  }
  a->stream = stream;
  mob_stream_listen(stream, &stream_events, a);
  uv_timer_stop(&a->timer);
  mob__runner_start(a->runner);
}

// ------------------------------------------------------------------------------------ the class's

static void on_no_gateway(uv_timer_t *timer) {
  end(timer->data, 1, "no gateway came");
}

static mob_status stage_create(mob_actor_ctx_t *ctx, mob_bytes_t args, void **self) {
  static const mob__runner_events_t events = {on_send, on_end};
  size_t gpus = 0;
  const int *ids = mob_actor_gpu_ids(ctx, &gpus);
  mob__runner_spec_t spec = {.ip = mob_actor_node_ip(ctx), .devices = ids, .device_count = gpus};
  stage_actor_t *a = MOB_NEW(stage_actor_t);
  a->ctx = ctx;
  mob_status status = mob__runner_new(mob_actor_loop(ctx), &spec, args, &events, a, &a->runner);
  if (status != MOB_OK) {
    free(a);
    return status;
  }
  uv_timer_init(mob_actor_loop(ctx), &a->timer);
  a->timer.data = a;
  uv_timer_start(&a->timer, on_no_gateway, FIRST_STREAM_MS, 0);
  *self = a;
  return MOB_OK;
}

static void stage_call(void *self, mob_call_t *call, const char *method, mob_bytes_t args) {
  (void)self;
  (void)method;
  (void)args;
  mob_call_fail(call, MOB_E_UNSUPPORTED, "a stage is driven over its stream \"steps\"");
}

static void stage_stop(void *self) {
  end(self, 0, "it was asked to stop");
}

static const mob_actor_class_t stage_class = {MOB_ACTOR_ABI, MOB_STAGE_CLASS, stage_create,
                                              stage_call,    stage_stream,    stage_stop};

void mob_stage_register(void) {
  mob_actor_register_builtin(&stage_class);
}
