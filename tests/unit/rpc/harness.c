#include "tests/unit/rpc/harness.h"

#include <stdio.h>
#include <string.h>

#include "runtime/base/clock.h"

static void on_tick(uv_timer_t *timer) {
  (void)timer;
}

void wait_until(harness_t *h, const bool *flag) {
  uint64_t deadline = mob_now_ms() + 10000;
  while (!*flag) {
    assert_true(mob_now_ms() < deadline);
    uv_run(&h->loop, UV_RUN_ONCE);
  }
}

void harness_open(harness_t *h, const mob_rpc_method_t *methods, size_t count, void *owner) {
  *h = (harness_t){0};
  uv_loop_init(&h->loop);
  uv_timer_init(&h->loop, &h->tick);
  uv_timer_start(&h->tick, on_tick, 20, 20);
  assert_int_equal(mob_rpc_new(&h->loop, &h->rpc), MOB_OK);
  assert_int_equal(mob_rpc_server_new(h->rpc, &h->server), MOB_OK);
  if (count) mob_rpc_server_add(h->server, methods, count, owner);
}

void harness_listen(harness_t *h) {
  assert_int_equal(mob_rpc_server_listen(h->server, "127.0.0.1", 0, &h->port), MOB_OK);
  assert_true(h->port > 0);
  char address[64];
  snprintf(address, sizeof address, "127.0.0.1:%d", h->port);
  assert_int_equal(mob_rpc_client_new(h->rpc, address, NULL, &h->client), MOB_OK);
}

static void on_closed(void *arg) {
  *(bool *)arg = true;
}

void harness_close(harness_t *h) {
  mob_rpc_close(h->rpc, on_closed, &h->closed);
  wait_until(h, &h->closed);
  uv_close((uv_handle_t *)&h->tick, NULL);
  uv_run(&h->loop, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&h->loop), 0);
}

void on_outcome(void *arg, grpc_status_code code, const char *why, const void *reply) {
  outcome_t *out = arg;
  assert_false(out->done);
  out->done = true;
  out->code = code;
  snprintf(out->why, sizeof out->why, "%s", why);
  const Ray__Rpc__InternalKVGetReply *get = reply;
  if (!get) return;
  out->value_len = get->value.len;
  size_t keep = get->value.len < sizeof out->value ? get->value.len : sizeof out->value;
  if (keep) memcpy(out->value, get->value.data, keep);
}

mob_rpc_pending_t *call_get(harness_t *h, const char *path, const char *key, uint64_t timeout_ms,
                            outcome_t *out) {
  Ray__Rpc__InternalKVGetRequest request = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
  request.key = mob_pb_bytes(key, strlen(key));
  *out = (outcome_t){0};
  return mob_rpc_call(h->client, path, &request, &ray__rpc__internal_kvget_reply__descriptor,
                      timeout_ms, on_outcome, out);
}
