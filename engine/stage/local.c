// Stages as threads of this process, each with a loop of its own, as a stage process has. For
// benches, for tests, and for serving without a cluster. Links between stages are the same TCP
// links, over the loopback address.
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/stage/runner.h"
#include "engine/stage/transport.h"
#include "runtime/base/mailbox.h"
#include "runtime/base/mem.h"

#define LOOPBACK "127.0.0.1"

typedef enum letter_kind { LETTER_DATA, LETTER_CLOSE, LETTER_FREEZE, LETTER_GONE } letter_kind_t;

typedef struct letter {
  letter_kind_t kind;
  int stage;
  size_t len;
  uint8_t data[];
} letter_t;

typedef struct local_stage {
  mob__transport_t *transport;
  int index;
  pthread_t thread;
  bool alive;          // the thread is to be joined; the gateway's side
  mob_mailbox_t *down; // to the stage's loop
  // The stage's side.
  uv_loop_t loop;
  mob__runner_t *runner;
  bool frozen, closing;
} local_stage_t;

struct mob__transport {
  mob__transport_events_t events;
  void *owner;
  mob_mailbox_t *up; // to the gateway's loop
  local_stage_t *stages;
  int count, alive;
  bool stopping;
  void (*done)(void *arg);
  void *done_arg;
};

static void post(mob_mailbox_t *box, letter_kind_t kind, int stage, mob_bytes_t data) {
  letter_t *letter = mob_malloc(sizeof *letter + data.len);
  letter->kind = kind;
  letter->stage = stage;
  letter->len = data.len;
  if (data.len) memcpy(letter->data, data.data, data.len);
  mob_mailbox_post(box, letter);
}

// -------------------------------------------------------------------------- on the stage's thread

static void on_runner_closed(void *arg) {
  local_stage_t *s = arg;
  s->runner = NULL;
  uv_stop(&s->loop);
}

static void close_stage(local_stage_t *s) {
  if (s->closing) return;
  s->closing = true;
  mob__runner_close(s->runner, on_runner_closed, s);
}

static void on_send(void *owner, mob_bytes_t message) {
  local_stage_t *s = owner;
  if (!s->frozen) post(s->transport->up, LETTER_DATA, s->index, message);
}

static void on_end(void *owner, bool lost, const char *why) {
  local_stage_t *s = owner;
  (void)lost;
  (void)why;
  if (!s->frozen) close_stage(s); // a stopped process would not act either
}

static void on_down(void *owner, void *message) {
  local_stage_t *s = owner;
  letter_t *letter = message;
  if (letter->kind == LETTER_CLOSE)
    close_stage(s);
  else if (letter->kind == LETTER_FREEZE)
    s->frozen = true;
  else if (!s->frozen && !s->closing)
    mob__runner_message(s->runner, (mob_bytes_t){letter->data, letter->len});
  free(letter);
}

static void *stage_main(void *arg) {
  local_stage_t *s = arg;
  mob__runner_start(s->runner);
  uv_run(&s->loop, UV_RUN_DEFAULT); // until the runner is closed
  // The gateway may still post: it closes the box after it has seen this.
  post(s->transport->up, LETTER_GONE, s->index, (mob_bytes_t){0});
  return NULL;
}

// ------------------------------------------------------------------------ on the gateway's thread

static void on_up_closed(mob__transport_t *t) {
  void (*done)(void *) = t->done;
  void *arg = t->done_arg;
  mob_mailbox_close(t->up);
  free(t->stages);
  free(t);
  done(arg);
}

// The thread has ended: what is left of its loop is now this thread's.
static void bury(local_stage_t *s) {
  pthread_join(s->thread, NULL);
  mob_mailbox_close(s->down);
  uv_run(&s->loop, UV_RUN_DEFAULT);
  uv_loop_close(&s->loop);
  s->alive = false;
  s->transport->alive--;
}

static void on_up(void *owner, void *message) {
  mob__transport_t *t = owner;
  letter_t *letter = message;
  local_stage_t *s = &t->stages[letter->stage];
  if (letter->kind == LETTER_GONE) {
    bury(s);
    if (!t->stopping)
      t->events.on_lost(t->owner, s->index, "actor_died", "its thread ended");
    else if (t->alive == 0)
      on_up_closed(t);
  } else if (!t->stopping) {
    t->events.on_message(t->owner, s->index, (mob_bytes_t){letter->data, letter->len});
  }
  free(letter);
}

static mob_status open_stage(mob__transport_t *t, int index, const mob__transport_spec_t *spec) {
  static const mob__runner_events_t events = {on_send, on_end};
  local_stage_t *s = &t->stages[index];
  s->transport = t;
  s->index = index;
  if (uv_loop_init(&s->loop) != 0) return mob_fail(MOB_E_NO_RESOURCES, "no event loop for a stage");
  mob__runner_spec_t runner = {.ip = LOOPBACK, .backend = spec->backend};
  mob_status status =
      mob__runner_new(&s->loop, &runner, spec->configs[index], &events, s, &s->runner);
  if (status != MOB_OK) {
    uv_loop_close(&s->loop);
    return status;
  }
  s->down = mob_mailbox_new(&s->loop, on_down, s);
  return MOB_OK;
}

// Before any thread was started.
static void drop_stage(local_stage_t *s) {
  close_stage(s);
  mob_mailbox_close(s->down);
  uv_run(&s->loop, UV_RUN_DEFAULT);
  uv_run(&s->loop, UV_RUN_DEFAULT); // the first ended with the runner
  uv_loop_close(&s->loop);
}

static mob_status local_start(uv_loop_t *loop, const mob__transport_spec_t *spec,
                              const mob__transport_events_t *events, void *owner,
                              mob__transport_t **out) {
  mob__transport_t *t = MOB_NEW(mob__transport_t);
  t->events = *events;
  t->owner = owner;
  t->count = spec->stages;
  t->stages = MOB_NEW_ARRAY(local_stage_t, (size_t)spec->stages);
  for (int i = 0; i < spec->stages; i++) {
    mob_status status = open_stage(t, i, spec);
    if (status == MOB_OK) continue;
    while (i-- > 0) drop_stage(&t->stages[i]);
    free(t->stages);
    free(t);
    return status;
  }
  t->up = mob_mailbox_new(loop, on_up, t);
  for (int i = 0; i < spec->stages; i++) {
    local_stage_t *s = &t->stages[i];
    int rc = pthread_create(&s->thread, NULL, stage_main, s);
    MOB_ASSERT(rc == 0);
    s->alive = true;
    t->alive++;
  }
  *out = t;
  return MOB_OK;
}

static void local_send(mob__transport_t *t, int stage, mob_bytes_t message) {
  local_stage_t *s = &t->stages[stage];
  if (s->alive) post(s->down, LETTER_DATA, stage, message);
}

static void local_describe(const mob__transport_t *t, int stage, char ip[64], int *pid) {
  (void)t;
  (void)stage;
  strcpy(ip, LOOPBACK);
  *pid = getpid();
}

static void local_stop(mob__transport_t *t, void (*done)(void *arg), void *arg) {
  t->stopping = true;
  t->done = done;
  t->done_arg = arg;
  for (int i = 0; i < t->count; i++)
    if (t->stages[i].alive) post(t->stages[i].down, LETTER_CLOSE, i, (mob_bytes_t){0});
  if (t->alive == 0) on_up_closed(t);
}

void mob__transport_local_fault(mob__transport_t *t, int stage, mob__fault_t fault) {
  letter_kind_t kind = fault == MOB__FAULT_DIE ? LETTER_CLOSE : LETTER_FREEZE;
  if (t->stages[stage].alive) post(t->stages[stage].down, kind, stage, (mob_bytes_t){0});
}

const mob__transport_ops_t mob__transport_local = {"local", local_start, local_send, local_describe,
                                                   local_stop};
