// A loop with one server and one client on it, and waiting with a deadline.
#ifndef TESTS_RPC_HARNESS_H
#define TESTS_RPC_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "ray/gcs_service.pb-c.h"
#include "runtime/rpc/message.h"
#include "runtime/rpc/rpc.h"

typedef struct harness {
  uv_loop_t loop;
  uv_timer_t tick; // lets wait_until() look at its deadline
  mob_rpc_t *rpc;
  mob_rpc_server_t *server;
  mob_rpc_client_t *client;
  int port;
  bool closed;
} harness_t;

// Runs the loop until `*flag`, or fails the test after 10 s.
void wait_until(harness_t *h, const bool *flag);
void harness_open(harness_t *h, const mob_rpc_method_t *methods, size_t count, void *owner);
void harness_listen(harness_t *h); // and connects the client
void harness_close(harness_t *h);  // closes everything and checks that the loop is empty

// What a unary call gave.
typedef struct outcome {
  bool done;
  grpc_status_code code;
  char why[256];
  char value[64]; // of an InternalKVGetReply
  size_t value_len;
} outcome_t;
void on_outcome(void *arg, grpc_status_code code, const char *why, const void *reply);
mob_rpc_pending_t *call_get(harness_t *h, const char *path, const char *key, uint64_t timeout_ms,
                            outcome_t *out);

#endif
