#include "launcher/lws/loop.h"

#include <stdlib.h>

#include "runtime/base/mem.h"
#include "runtime/base/status.h"

struct mob_lws_timer {
  uv_timer_t handle; // first: the close callback frees by it
  mob_lws_timer_t **slot;
  void (*fn)(void *arg);
  void *arg;
};

struct mob_lws_watch {
  uv_poll_t handle;
  void (*fn)(void *arg);
  void *arg;
};

static void free_handle(uv_handle_t *handle) {
  free(handle);
}

static void on_timer(uv_timer_t *handle) {
  mob_lws_timer_t *timer = (mob_lws_timer_t *)handle;
  void (*fn)(void *) = timer->fn;
  void *arg = timer->arg;
  mob__timer_cancel(timer->slot);
  fn(arg);
}

void mob__timer_set(mob_lws_timer_t **slot, uv_loop_t *loop, uint64_t ms, void (*fn)(void *arg),
                    void *arg) {
  mob__timer_cancel(slot);
  mob_lws_timer_t *timer = MOB_NEW(mob_lws_timer_t);
  *timer = (mob_lws_timer_t){.slot = slot, .fn = fn, .arg = arg};
  uv_timer_init(loop, &timer->handle);
  uv_update_time(loop); // else the delay counts from the start of this turn
  uv_timer_start(&timer->handle, on_timer, ms, 0);
  *slot = timer;
}

void mob__timer_cancel(mob_lws_timer_t **slot) {
  if (!*slot) return;
  uv_close((uv_handle_t *)&(*slot)->handle, free_handle);
  *slot = NULL;
}

static void on_ready(uv_poll_t *handle, int status, int events) {
  (void)status, (void)events;
  mob_lws_watch_t *watch = (mob_lws_watch_t *)handle;
  watch->fn(watch->arg);
}

void mob__watch_start(mob_lws_watch_t **slot, uv_loop_t *loop, int fd, int events,
                      void (*fn)(void *arg), void *arg) {
  mob__watch_stop(slot);
  mob_lws_watch_t *watch = MOB_NEW(mob_lws_watch_t);
  watch->fn = fn;
  watch->arg = arg;
  int error = uv_poll_init(loop, &watch->handle, fd);
  MOB_ASSERT(error == 0);
  uv_poll_start(&watch->handle, events, on_ready);
  *slot = watch;
}

void mob__watch_stop(mob_lws_watch_t **slot) {
  if (!*slot) return;
  uv_close((uv_handle_t *)&(*slot)->handle, free_handle);
  *slot = NULL;
}
