// The completion queue, its thread, and the way from there to the loop.
#include <grpc/support/log.h>
#include <string.h>

#include "runtime/base/log.h"
#include "runtime/rpc/internal.h"

static void push(mob_rpc_t *rpc, mob__op_t *op) {
  mob__op_t *head = atomic_load_explicit(&rpc->done_ops, memory_order_relaxed);
  do {
    op->next = head;
  } while (!atomic_compare_exchange_weak_explicit(&rpc->done_ops, &head, op, memory_order_release,
                                                  memory_order_relaxed));
  // Whoever finds the stack empty wakes the loop; the others ride along.
  if (head == NULL) uv_async_send(&rpc->async);
}

static void *drain_queue(void *arg) {
  mob_rpc_t *rpc = arg;
  for (;;) {
    grpc_event event =
        grpc_completion_queue_next(rpc->cq, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    if (event.type == GRPC_QUEUE_SHUTDOWN) return NULL;
    if (event.type != GRPC_OP_COMPLETE) continue;
    mob__op_t *op = event.tag;
    op->ok = event.success != 0;
    if (op->early) op->early(op, op->ok);
    push(rpc, op);
  }
}

static void run_done(mob_rpc_t *rpc) {
  mob__op_t *op = atomic_exchange_explicit(&rpc->done_ops, NULL, memory_order_acquire);
  mob__op_t *ordered = NULL;
  while (op) {
    mob__op_t *next = op->next;
    op->next = ordered;
    ordered = op;
    op = next;
  }
  while (ordered) {
    mob__op_t *next = ordered->next; // the callback may free it
    ordered->fn(ordered, ordered->ok);
    ordered = next;
  }
}

static void on_async_closed(uv_handle_t *handle) {
  mob_rpc_t *rpc = handle->data;
  void (*closed)(void *) = rpc->closed;
  void *arg = rpc->closed_arg;
  free(rpc);
  grpc_shutdown();
  if (closed) closed(arg);
}

static void finish_close(mob_rpc_t *rpc) {
  rpc->draining = true;
  grpc_completion_queue_shutdown(rpc->cq);
  pthread_join(rpc->thread, NULL); // every operation is over: it returns at once
  grpc_completion_queue_destroy(rpc->cq);
  run_done(rpc);
  uv_close((uv_handle_t *)&rpc->async, on_async_closed);
}

static void on_async(uv_async_t *async) {
  mob_rpc_t *rpc = async->data;
  run_done(rpc);
  if (rpc->closing && rpc->live == 0 && !rpc->draining) finish_close(rpc);
}

void mob__rpc_post(mob_rpc_t *rpc, mob__op_t *op) {
  push(rpc, op);
}

void mob__rpc_hold(mob_rpc_t *rpc) {
  rpc->live++;
}

void mob__rpc_drop(mob_rpc_t *rpc) {
  MOB_ASSERT(rpc->live > 0);
  if (--rpc->live == 0 && rpc->closing) uv_async_send(&rpc->async);
}

static void grpc_says(gpr_log_func_args *args) {
  // What gRPC has to say is about connections, and the connections' owners report those themselves.
  MOB_DEBUG("grpc: %s", args->message);
}

mob_status mob_rpc_new(uv_loop_t *loop, mob_rpc_t **out) {
  gpr_set_log_function(grpc_says);
  grpc_init();
  mob_rpc_t *rpc = MOB_NEW(mob_rpc_t);
  rpc->loop = loop;
  mob__link_init(&rpc->servers);
  mob__link_init(&rpc->clients);
  rpc->async.data = rpc;
  MOB_ASSERT(uv_async_init(loop, &rpc->async, on_async) == 0);
  rpc->cq = grpc_completion_queue_create_for_next(NULL);
  pthread_attr_t attr;
  pthread_attr_init(&attr);
  pthread_attr_setstacksize(&attr, 1 << 20);
  int failed = pthread_create(&rpc->thread, &attr, drain_queue, rpc);
  pthread_attr_destroy(&attr);
  MOB_ASSERT(failed == 0);
  *out = rpc;
  return MOB_OK;
}

uv_loop_t *mob_rpc_loop(mob_rpc_t *rpc) {
  return rpc->loop;
}

void mob_rpc_close(mob_rpc_t *rpc, void (*done)(void *arg), void *arg) {
  MOB_ASSERT(!rpc->closing);
  rpc->closing = true;
  rpc->closed = done;
  rpc->closed_arg = arg;
  mob__rpc_close_all(rpc);
  uv_async_send(&rpc->async);
}

mob_status mob_rpc_to_status(grpc_status_code code) {
  switch (code) {
  case GRPC_STATUS_OK:
    return MOB_OK;
  case GRPC_STATUS_CANCELLED:
  case GRPC_STATUS_ABORTED:
    return MOB_E_ABORTED;
  case GRPC_STATUS_INVALID_ARGUMENT:
  case GRPC_STATUS_FAILED_PRECONDITION:
  case GRPC_STATUS_OUT_OF_RANGE:
  case GRPC_STATUS_UNAUTHENTICATED:
  case GRPC_STATUS_PERMISSION_DENIED:
    return MOB_E_INVALID;
  case GRPC_STATUS_DEADLINE_EXCEEDED:
    return MOB_E_TIMEOUT;
  case GRPC_STATUS_NOT_FOUND:
    return MOB_E_NOT_FOUND;
  case GRPC_STATUS_ALREADY_EXISTS:
    return MOB_E_EXISTS;
  case GRPC_STATUS_RESOURCE_EXHAUSTED:
    return MOB_E_NO_RESOURCES;
  case GRPC_STATUS_UNIMPLEMENTED:
    return MOB_E_UNSUPPORTED;
  case GRPC_STATUS_UNAVAILABLE:
    return MOB_E_UNAVAILABLE;
  case GRPC_STATUS_DATA_LOSS:
    return MOB_E_FORMAT;
  default:
    return MOB_E_INTERNAL;
  }
}

grpc_status_code mob_rpc_from_status(mob_status status) {
  switch (status) {
  case MOB_OK:
    return GRPC_STATUS_OK;
  case MOB_E_INVALID:
  case MOB_E_FORMAT:
    return GRPC_STATUS_INVALID_ARGUMENT;
  case MOB_E_NOT_FOUND:
    return GRPC_STATUS_NOT_FOUND;
  case MOB_E_EXISTS:
    return GRPC_STATUS_ALREADY_EXISTS;
  case MOB_E_UNSUPPORTED:
    return GRPC_STATUS_UNIMPLEMENTED;
  case MOB_E_NO_RESOURCES:
    return GRPC_STATUS_RESOURCE_EXHAUSTED;
  case MOB_E_TIMEOUT:
    return GRPC_STATUS_DEADLINE_EXCEEDED;
  case MOB_E_IO:
  case MOB_E_UNAVAILABLE:
    return GRPC_STATUS_UNAVAILABLE;
  case MOB_E_ABORTED:
    return GRPC_STATUS_CANCELLED;
  default:
    return GRPC_STATUS_INTERNAL;
  }
}
