// An actor class as a shared object: the smallest complete example, and what the tests create.

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/actor/actor.h"

typedef struct echo {
  mob_actor_ctx_t *ctx;
  char log[4096]; // the arguments of every "note", in the order in which they came
  char greeting[64];
} echo_t;

static mob_bytes_t text_bytes(const char *text) {
  return (mob_bytes_t){text, strlen(text)};
}

static void text_of(mob_bytes_t bytes, char *out, size_t cap) {
  size_t n = bytes.len < cap - 1 ? bytes.len : cap - 1;
  if (n) memcpy(out, bytes.data, n);
  out[n] = 0;
}

static mob_status create(mob_actor_ctx_t *ctx, mob_bytes_t args, void **self) {
  echo_t *echo = calloc(1, sizeof *echo);
  echo->ctx = ctx;
  text_of(args, echo->greeting, sizeof echo->greeting);
  printf("hello from %s\n", mob_actor_name(ctx));
  fflush(stdout);
  *self = echo;
  return MOB_OK;
}

typedef struct later {
  uv_timer_t timer;
  mob_call_t *call;
} later_t;

static void free_later(uv_handle_t *handle) {
  free(handle->data);
}

static void on_later(uv_timer_t *timer) {
  later_t *later = timer->data;
  mob_call_reply(later->call, text_bytes("late"));
  uv_close((uv_handle_t *)timer, free_later);
}

static void call(void *self, mob_call_t *call, const char *method, mob_bytes_t args) {
  echo_t *echo = self;
  char text[256];
  text_of(args, text, sizeof text);
  if (!strcmp(method, "echo")) {
    mob_call_reply(call, args);
  } else if (!strcmp(method, "greeting")) {
    mob_call_reply(call, text_bytes(echo->greeting));
  } else if (!strcmp(method, "note")) {
    snprintf(echo->log + strlen(echo->log), sizeof echo->log - strlen(echo->log), "%s,", text);
    mob_call_reply(call, (mob_bytes_t){0});
  } else if (!strcmp(method, "log")) {
    mob_call_reply(call, text_bytes(echo->log));
  } else if (!strcmp(method, "fail")) {
    mob_call_fail(call, MOB_E_INVALID, "as asked");
  } else if (!strcmp(method, "slow")) {
    later_t *later = calloc(1, sizeof *later);
    later->call = call;
    uv_timer_init(mob_actor_loop(echo->ctx), &later->timer);
    later->timer.data = later;
    uv_timer_start(&later->timer, on_later, strtoull(text, NULL, 10), 0);
  } else if (!strcmp(method, "exit")) {
    mob_call_reply(call, (mob_bytes_t){0});
    mob_actor_exit(echo->ctx, atoi(text), "it was asked to");
  } else if (!strcmp(method, "exit_because")) {
    mob_call_reply(call, (mob_bytes_t){0});
    mob_actor_exit(echo->ctx, 1, text);
  } else if (!strcmp(method, "fail_because")) {
    mob_call_fail(call, MOB_E_INVALID, text);
  } else if (!strcmp(method, "abort")) {
    abort();
  } else if (!strcmp(method, "env")) {
    const char *value = getenv(text);
    mob_call_reply(call, text_bytes(value ? value : "(unset)"));
  } else if (!strcmp(method, "gpus")) {
    size_t n;
    const int *ids = mob_actor_gpu_ids(echo->ctx, &n);
    char list[128] = "";
    for (size_t i = 0; i < n; i++) {
      snprintf(list + strlen(list), sizeof list - strlen(list), "%s%d", i ? "," : "", ids[i]);
    }
    mob_call_reply(call, text_bytes(list));
  } else if (!strcmp(method, "where")) {
    mob_call_reply(call, text_bytes(mob_actor_node_ip(echo->ctx)));
  } else {
    mob_call_fail(call, MOB_E_NOT_FOUND, "the class has no such method");
  }
}

static void on_message(void *owner, mob_stream_t *stream, mob_bytes_t message) {
  (void)owner;
  if (message.len == 4 && !memcmp(message.data, "stop", 4)) {
    mob_stream_close(stream, MOB_OK, NULL);
  } else {
    mob_stream_send(stream, message);
  }
}

static void on_close(void *owner, mob_stream_t *stream, mob_status status, const char *why) {
  (void)owner;
  (void)stream;
  printf("stream closed: %s %s\n", mob_status_name(status), why ? why : "");
  fflush(stdout);
}

static const mob_stream_events_t events = {on_message, on_close};

static void stream(void *self, mob_stream_t *s, const char *method) {
  mob_stream_listen(s, &events, self);
  if (strcmp(method, "echo") != 0) mob_stream_close(s, MOB_E_NOT_FOUND, "there is no such stream");
}

static void stop(void *self) {
  echo_t *echo = self;
  mob_actor_ctx_t *ctx = echo->ctx;
  free(echo);
  mob_actor_exit(ctx, 0, "stopped");
}

static mob_status create_broken(mob_actor_ctx_t *ctx, mob_bytes_t args, void **self) {
  (void)ctx;
  (void)args;
  (void)self;
  return mob_fail(MOB_E_NO_RESOURCES, "this class never works");
}

static const mob_actor_class_t echo_class = {MOB_ACTOR_ABI, "Echo", create, call, stream, stop};
static const mob_actor_class_t broken_class = {MOB_ACTOR_ABI, "Broken", create_broken,
                                               call,          NULL,     NULL};
static const mob_actor_class_t old_class = {MOB_ACTOR_ABI + 1, "Old", create, call, NULL, NULL};

const mob_actor_class_t *const *mob_actor_classes(void);
const mob_actor_class_t *const *mob_actor_classes(void) {
  static const mob_actor_class_t *const list[] = {&echo_class, &broken_class, &old_class, NULL};
  return list;
}
