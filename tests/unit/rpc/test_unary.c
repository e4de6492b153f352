// Unary calls: answers now and later, deadlines, cancelling, refusals, big messages, dead peers.
#include "tests/unit/rpc/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

typedef struct service {
  mob_rpc_call_t *held;
  bool got, cancelled;
  size_t calls;
  char order[64];
  char metadata[64];
} service_t;

static void echo_reply(mob_rpc_call_t *call, ProtobufCBinaryData value) {
  Ray__Rpc__InternalKVGetReply reply = RAY__RPC__INTERNAL_KVGET_REPLY__INIT;
  reply.value = value;
  mob_rpc_reply(call, &reply);
}

static void on_echo(void *owner, mob_rpc_call_t *call, const void *request) {
  service_t *s = owner;
  const Ray__Rpc__InternalKVGetRequest *get = request;
  if (s->calls < sizeof s->order - 1 && get->key.len) s->order[s->calls] = (char)get->key.data[0];
  s->calls++;
  const char *value = mob_rpc_call_metadata(call, "ray_cluster_id");
  if (value) snprintf(s->metadata, sizeof s->metadata, "%s", value);
  assert_null(mob_rpc_call_metadata(call, "no_such_key"));
  assert_int_equal(strncmp(mob_rpc_call_peer(call), "ipv4:127.0.0.1:", 15), 0);
  echo_reply(call, get->key);
}

static void on_cancelled(void *arg, mob_rpc_call_t *call) {
  service_t *s = arg;
  assert_ptr_equal(call, s->held);
  s->cancelled = true;
}

static void on_hold(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  service_t *s = owner;
  s->held = call;
  s->got = true;
  mob_rpc_call_on_cancel(call, on_cancelled, s);
}

static void on_refuse(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)owner;
  (void)request;
  mob_rpc_reply_status(call, GRPC_STATUS_ALREADY_EXISTS, "there is one already");
}

static void on_named(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  ((service_t *)owner)->calls++;
  echo_reply(call, mob_pb_bytes("", 0));
}

#define KV(path, handler)                                                                          \
  {                                                                                                \
    path, &ray__rpc__internal_kvget_request__descriptor,                                           \
        &ray__rpc__internal_kvget_reply__descriptor, handler                                       \
  }
static const mob_rpc_method_t methods[] = {
    KV("/test.Echo/Echo", on_echo),
    KV("/test.Echo/Hold", on_hold),
    KV("/test.Echo/Refuse", on_refuse),
    {"/test.Echo/Named", &ray__rpc__get_named_actor_info_request__descriptor,
     &ray__rpc__internal_kvget_reply__descriptor, on_named},
};

static void test_echo(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  harness_listen(&h);
  mob_rpc_client_set_metadata(h.client, "ray_cluster_id", "first");
  mob_rpc_client_set_metadata(h.client, "ray_cluster_id", "abc");
  outcome_t out;
  call_get(&h, "/test.Echo/Echo", "hello", 5000, &out);
  assert_false(out.done); // never before the call returns
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_OK);
  assert_int_equal(out.value_len, 5);
  assert_memory_equal(out.value, "hello", 5);
  assert_string_equal(service.metadata, "abc");
  call_get(&h, "/test.Echo/Refuse", "x", 5000, &out);
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_ALREADY_EXISTS);
  assert_string_equal(out.why, "there is one already");
  call_get(&h, "/test.Echo/NoSuchMethod", "x", 5000, &out);
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_UNIMPLEMENTED);
  harness_close(&h);
}

static int by_letter(const void *a, const void *b) {
  return *(const char *)a - *(const char *)b;
}

// Calls made before the connection stands all go when it does, each once. They leave in their
// order; a server's threads may let one that has its message overtake one that has not.
static void test_waiting_calls(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  harness_listen(&h);
  outcome_t out[26];
  for (int i = 0; i < 26; i++) {
    char key[2] = {(char)('a' + i), 0};
    call_get(&h, "/test.Echo/Echo", key, 5000, &out[i]);
  }
  for (int i = 0; i < 26; i++) {
    wait_until(&h, &out[i].done);
    assert_int_equal(out[i].code, GRPC_STATUS_OK);
    assert_int_equal(out[i].value_len, 1);
    assert_int_equal(out[i].value[0], 'a' + i);
  }
  assert_int_equal(service.calls, 26);
  qsort(service.order, 26, 1, by_letter);
  assert_string_equal(service.order, "abcdefghijklmnopqrstuvwxyz");
  harness_close(&h);
}

static void test_deadline_and_cancel(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  harness_listen(&h);
  outcome_t out;
  uint64_t start = mob_now_ms();
  call_get(&h, "/test.Echo/Hold", "x", 150, &out);
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_DEADLINE_EXCEEDED);
  assert_in_range(mob_now_ms() - start, 100, 3000);
  wait_until(&h, &service.cancelled); // the server learns of it
  mob_rpc_reply_status(service.held, GRPC_STATUS_INTERNAL, "too late");

  service = (service_t){0};
  mob_rpc_pending_t *pending = call_get(&h, "/test.Echo/Hold", "x", 0, &out);
  wait_until(&h, &service.got);
  mob_rpc_cancel(pending);
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_CANCELLED);
  wait_until(&h, &service.cancelled);
  echo_reply(service.held, mob_pb_bytes("late", 4));

  service = (service_t){0}; // answered later, and not cancelled
  call_get(&h, "/test.Echo/Hold", "x", 5000, &out);
  wait_until(&h, &service.got);
  echo_reply(service.held, mob_pb_bytes("later", 5));
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_OK);
  assert_false(service.cancelled);
  harness_close(&h);
}

static void test_close_cancels(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  harness_listen(&h);
  outcome_t out, waiting;
  call_get(&h, "/test.Echo/Hold", "x", 0, &out);
  wait_until(&h, &service.got);
  mob_rpc_client_close(h.client);
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_CANCELLED);
  wait_until(&h, &service.cancelled);
  mob_rpc_reply_status(service.held, GRPC_STATUS_CANCELLED, "");
  // A client that never got a connection.
  assert_int_equal(mob_rpc_client_new(h.rpc, "127.0.0.1:1", NULL, &h.client), MOB_OK);
  call_get(&h, "/test.Echo/Echo", "x", 0, &waiting);
  mob_rpc_client_close(h.client);
  wait_until(&h, &waiting.done);
  assert_int_equal(waiting.code, GRPC_STATUS_CANCELLED);
  harness_close(&h);
}

// Holds a call open while its whole server is closed: the call ends at the client.
static void test_server_close(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  harness_listen(&h);
  outcome_t out;
  call_get(&h, "/test.Echo/Hold", "x", 0, &out);
  wait_until(&h, &service.got);
  mob_rpc_server_close(h.server, 50, NULL, NULL);
  wait_until(&h, &service.cancelled);
  mob_rpc_reply_status(service.held, GRPC_STATUS_UNAVAILABLE, "");
  wait_until(&h, &out.done);
  assert_int_not_equal(out.code, GRPC_STATUS_OK);
  harness_close(&h);
}

static void test_unreachable(void **state) {
  (void)state;
  harness_t h;
  harness_open(&h, NULL, 0, NULL);
  outcome_t out;
  assert_int_equal(mob_rpc_client_new(h.rpc, "127.0.0.1:1", NULL, &h.client), MOB_OK);
  call_get(&h, "/test.Echo/Echo", "x", 5000, &out);
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_UNAVAILABLE);
  assert_string_equal(out.why, "cannot connect to 127.0.0.1:1: Connection refused");
  mob_rpc_client_close(h.client);
  assert_int_equal(mob_rpc_client_new(h.rpc, "no-such-host.invalid:1", NULL, &h.client), MOB_OK);
  call_get(&h, "/test.Echo/Echo", "x", 8000, &out);
  wait_until(&h, &out.done);
  assert_int_not_equal(out.code, GRPC_STATUS_OK);
  assert_non_null(strstr(out.why, "no-such-host.invalid:1"));
  static const char *const bad[] = {"host", "host:", ":1", "host:12x", "host:123456"};
  mob_rpc_client_t *none = NULL;
  for (size_t i = 0; i < MOB_LEN(bad); i++) {
    assert_int_equal(mob_rpc_client_new(h.rpc, bad[i], NULL, &none), MOB_E_INVALID);
  }
  // A port that is taken.
  int port, again;
  assert_int_equal(mob_rpc_server_listen(h.server, "127.0.0.1", 0, &port), MOB_OK);
  mob_rpc_server_t *second;
  assert_int_equal(mob_rpc_server_new(h.rpc, &second), MOB_OK);
  assert_int_equal(mob_rpc_server_listen(second, "127.0.0.1", port, &again), MOB_E_NO_RESOURCES);
  assert_int_equal(mob_rpc_server_listen(second, "localhost", 0, &again), MOB_E_INVALID);
  harness_close(&h);
}

static void on_big(void *arg, grpc_status_code code, const char *why, const void *reply) {
  (void)why;
  const Ray__Rpc__InternalKVGetReply *get = reply;
  assert_int_equal(code, GRPC_STATUS_OK);
  assert_int_equal(get->value.len, 40 << 20);
  assert_int_equal(get->value.data[get->value.len - 1], 'q');
  *(bool *)arg = true;
}

static void test_big_message(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  harness_listen(&h);
  size_t len = 40 << 20;
  char *key = mob_malloc(len);
  memset(key, 'q', len);
  Ray__Rpc__InternalKVGetRequest request = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
  request.key = mob_pb_bytes(key, len);
  bool done = false;
  mob_rpc_call(h.client, "/test.Echo/Echo", &request, &ray__rpc__internal_kvget_reply__descriptor,
               9000, on_big, &done);
  free(key);
  wait_until(&h, &done);
  harness_close(&h);
}

// The bytes of one type sent where another is read: refused with a reason, and the server lives on.
static void test_garbage(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  harness_listen(&h);
  static const struct {
    const char *name;
    size_t len;
    bool good;
  } names[] = {
      {"plain", 5, true},
      {"gr\xc3\xbc\xc3\x9f", 6, true},
      {"\xe6\xb7\xb1\xe5\xba\xa6", 6, true},
      {"\xf0\x9f\x98\x80", 4, true},
      {"a\0b", 3, false},
      {"\xff", 1, false},
      {"\xc0\x80", 2, false},
      {"\xed\xa0\x80", 3, false},
      {"\xf4\x90\x80\x80", 4, false},
      {"\xe6\xb7", 2, false},
      {"\xe0\x80\x80", 3, false},
  };
  for (size_t i = 0; i < MOB_LEN(names); i++) {
    // Both messages have field 1 of wire type 2: bytes there, a string here.
    Ray__Rpc__InternalKVGetRequest request = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
    request.key = mob_pb_bytes(names[i].name, names[i].len);
    outcome_t out = {0};
    mob_rpc_call(h.client, "/test.Echo/Named", &request,
                 &ray__rpc__internal_kvget_reply__descriptor, 5000, on_outcome, &out);
    wait_until(&h, &out.done);
    assert_int_equal(out.code, names[i].good ? GRPC_STATUS_OK : GRPC_STATUS_INVALID_ARGUMENT);
    if (!names[i].good) {
      assert_string_equal(out.why,
                          "ray.rpc.GetNamedActorInfoRequest.name is not UTF-8 text without NUL");
    }
  }
  harness_close(&h);
}

static void test_check(void **state) {
  (void)state;
  const ProtobufCMessageDescriptor *desc = &ray__rpc__register_node_request__descriptor;
  // node_info (1) { node_manager_address (2) }
  assert_int_equal(mob_pb_check(desc,
                                "\x0a\x05\x12\x03"
                                "abc",
                                7),
                   MOB_OK);
  assert_int_equal(mob_pb_check(desc,
                                "\x0a\x05\x12\x03"
                                "a\xff"
                                "c",
                                7),
                   MOB_E_FORMAT);
  assert_string_equal(mob_errmsg(),
                      "ray.rpc.GcsNodeInfo.node_manager_address is not UTF-8 text without NUL");
  assert_int_equal(mob_pb_check(desc,
                                "\x0a\x09\x12\x03"
                                "abc",
                                7),
                   MOB_E_FORMAT); // longer than it is
  assert_int_equal(mob_pb_check(desc, "\x0a", 1), MOB_E_FORMAT);
  assert_int_equal(mob_pb_check(desc, "\x0b", 1), MOB_E_FORMAT);     // a group
  assert_int_equal(mob_pb_check(desc, "\x00\x00", 2), MOB_E_FORMAT); // field 0
  assert_int_equal(mob_pb_check(desc, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", 11),
                   MOB_E_FORMAT);
  assert_int_equal(mob_pb_check(desc, "\x92\x4e\x01z", 4), MOB_OK); // an unknown field
  Ray__Rpc__RegisterNodeRequest *request = NULL;
  // The length of a varint field's wire type: the check passes it, the reader refuses it.
  assert_int_equal(mob_pb_unpack(desc, "\x08\x01", 2, &request), MOB_E_FORMAT);
}

static grpc_status_code gate(void *owner, const mob_rpc_gate_info_t *info, const char **why) {
  char buf[64];
  const char *id = info->metadata(info, "ray_cluster_id", buf, sizeof buf);
  assert_string_equal(info->path, "/test.Echo/Echo");
  if (!id || strcmp(id, owner) == 0) return GRPC_STATUS_OK;
  *why = "WrongClusterID";
  return GRPC_STATUS_UNAUTHENTICATED;
}

static void test_gate(void **state) {
  (void)state;
  service_t service = {0};
  harness_t h;
  harness_open(&h, methods, MOB_LEN(methods), &service);
  mob_rpc_server_set_gate(h.server, gate, "right");
  harness_listen(&h);
  outcome_t out;
  static const char *const ids[] = {NULL, "right", "wrong"};
  for (size_t i = 0; i < MOB_LEN(ids); i++) {
    mob_rpc_client_set_metadata(h.client, "ray_cluster_id", ids[i]);
    call_get(&h, "/test.Echo/Echo", "x", 5000, &out);
    wait_until(&h, &out.done);
    assert_int_equal(out.code, i < 2 ? GRPC_STATUS_OK : GRPC_STATUS_UNAUTHENTICATED);
  }
  assert_string_equal(out.why, "WrongClusterID");
  assert_int_equal(service.calls, 2);
  harness_close(&h);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_echo),
      cmocka_unit_test(test_waiting_calls),
      cmocka_unit_test(test_deadline_and_cancel),
      cmocka_unit_test(test_close_cancels),
      cmocka_unit_test(test_server_close),
      cmocka_unit_test(test_unreachable),
      cmocka_unit_test(test_big_message),
      cmocka_unit_test(test_garbage),
      cmocka_unit_test(test_check),
      cmocka_unit_test(test_gate),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
