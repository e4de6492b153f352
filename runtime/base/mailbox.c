#include "runtime/base/mailbox.h"

#include <pthread.h>
#include <stdlib.h>

#include "runtime/base/mem.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef MOB_VEC(void *) queue_t;

struct mob_mailbox {
  uv_async_t async;
  pthread_mutex_t lock; // held for a push or a swap only
  queue_t waiting;
  queue_t taken; // the loop's own; swapped with `waiting`
  mob_mailbox_fn fn;
  void *owner;
};

static void drain(mob_mailbox_t *box) {
  pthread_mutex_lock(&box->lock);
  queue_t full = box->waiting;
  box->waiting = box->taken;
  box->taken = (queue_t){0};
  pthread_mutex_unlock(&box->lock);
  for (size_t i = 0; i < full.len; i++) box->fn(box->owner, full.at[i]);
  full.len = 0;
  mob_vec_free(&box->taken); // not empty when `fn` closed the box, which drains it again
  box->taken = full;
}

static void on_async(uv_async_t *async) {
  drain((mob_mailbox_t *)async->data);
}

mob_mailbox_t *mob_mailbox_new(uv_loop_t *loop, mob_mailbox_fn fn, void *owner) {
  mob_mailbox_t *box = MOB_NEW(mob_mailbox_t);
  box->fn = fn;
  box->owner = owner;
  box->async.data = box;
  pthread_mutex_init(&box->lock, NULL);
  MOB_ASSERT(uv_async_init(loop, &box->async, on_async) == 0);
  return box;
}

void mob_mailbox_post(mob_mailbox_t *box, void *message) {
  pthread_mutex_lock(&box->lock);
  *mob_vec_push(&box->waiting) = message;
  // Inside the lock, so that the loop cannot take the message, close the box and free it in between.
  uv_async_send(&box->async);
  pthread_mutex_unlock(&box->lock);
}

static void on_closed(uv_handle_t *handle) {
  mob_mailbox_t *box = handle->data;
  mob_vec_free(&box->waiting);
  mob_vec_free(&box->taken);
  pthread_mutex_destroy(&box->lock);
  free(box);
}

void mob_mailbox_close(mob_mailbox_t *box) {
  drain(box);
  uv_close((uv_handle_t *)&box->async, on_closed);
}
