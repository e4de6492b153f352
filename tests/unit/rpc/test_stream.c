// Streams both ways, back-pressure, ends of every kind; and peers that die or fall silent, which
// are processes of their own: this program again, with --serve.
#include "tests/unit/rpc/harness.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

typedef struct side {
  mob_rpc_stream_t *stream;
  bool open, closed, got, drained, enough;
  grpc_status_code code;
  char why[256];
  size_t messages, bytes, expect;
  char last[64];
  bool echo, out_of_order;
  char metadata[64];
} side_t;

static void on_message(void *owner, mob_rpc_stream_t *stream, const uint8_t *data, size_t len) {
  side_t *side = owner;
  if (len >= sizeof(uint32_t)) {
    uint32_t number;
    memcpy(&number, data, sizeof number);
    if (number != side->messages) side->out_of_order = true;
  }
  side->messages++;
  side->bytes += len;
  size_t keep = len < sizeof side->last - 1 ? len : sizeof side->last - 1;
  memcpy(side->last, data, keep);
  side->last[keep] = 0;
  side->got = true;
  if (side->expect && side->messages >= side->expect) side->enough = true;
  if (side->echo) mob_rpc_stream_send(stream, data, len);
}

static void on_close(void *owner, mob_rpc_stream_t *stream, grpc_status_code code,
                     const char *why) {
  side_t *side = owner;
  assert_ptr_equal(side->stream, stream);
  assert_false(side->closed);
  side->closed = true;
  side->code = code;
  snprintf(side->why, sizeof side->why, "%s", why);
  side->stream = NULL;
}

static void on_drained(void *owner, mob_rpc_stream_t *stream) {
  (void)stream;
  ((side_t *)owner)->drained = true;
}

static const mob_rpc_stream_events_t events = {on_message, on_close, on_drained};

static void on_open(void *owner, mob_rpc_stream_t *stream) {
  side_t *side = owner;
  side->stream = stream;
  side->open = true;
  const char *value = mob_rpc_stream_metadata(stream, "node_id");
  snprintf(side->metadata, sizeof side->metadata, "%s", value ? value : "-");
  mob_rpc_stream_set_metadata(stream, "node_id", "server");
  mob_rpc_stream_listen(stream, &events, side);
}

static void open_pair(harness_t *h, side_t *server, side_t *client) {
  harness_open(h, NULL, 0, NULL);
  mob_rpc_server_add_stream(h->server, "/test.Stream/Open", on_open, server);
  harness_listen(h);
  mob_rpc_client_set_metadata(h->client, "node_id", "client");
  client->stream = mob_rpc_stream_open(h->client, "/test.Stream/Open", &events, client);
}

static void test_both_ways(void **state) {
  (void)state;
  side_t server = {.echo = true}, client = {.expect = 5000};
  harness_t h;
  open_pair(&h, &server, &client);
  char message[200] = {0};
  for (uint32_t i = 0; i < 5000; i++) { // the first ones before there is a connection
    memcpy(message, &i, sizeof i);
    mob_rpc_stream_send(client.stream, message, 4 + i % 190);
  }
  wait_until(&h, &client.enough);
  assert_false(server.out_of_order);
  assert_false(client.out_of_order);
  assert_int_equal(server.bytes, client.bytes);
  assert_string_equal(server.metadata, "client");
  assert_string_equal(mob_rpc_stream_metadata(client.stream, "node_id"), "server");
  assert_true(client.drained);
  mob_rpc_stream_close(client.stream, GRPC_STATUS_OK, NULL);
  wait_until(&h, &client.closed);
  wait_until(&h, &server.closed);
  assert_int_equal(client.code, GRPC_STATUS_OK);
  assert_int_equal(server.code, GRPC_STATUS_OK);
  harness_close(&h);
}

// What was sent before a close arrives before it.
static void test_server_closes(void **state) {
  (void)state;
  side_t server = {0}, client = {0};
  harness_t h;
  open_pair(&h, &server, &client);
  wait_until(&h, &server.open);
  mob_rpc_stream_send(server.stream, "last words", 10);
  mob_rpc_stream_close(server.stream, GRPC_STATUS_FAILED_PRECONDITION, "no more of this");
  mob_rpc_stream_send(server.stream, "ignored", 7);
  wait_until(&h, &client.closed);
  assert_string_equal(client.last, "last words");
  assert_int_equal(client.messages, 1);
  assert_int_equal(client.code, GRPC_STATUS_FAILED_PRECONDITION);
  assert_string_equal(client.why, "no more of this");
  wait_until(&h, &server.closed);
  assert_int_equal(server.code, GRPC_STATUS_FAILED_PRECONDITION);
  harness_close(&h);
}

static void test_client_gives_up(void **state) {
  (void)state;
  side_t server = {0}, client = {0};
  harness_t h;
  open_pair(&h, &server, &client);
  wait_until(&h, &server.open);
  mob_rpc_stream_close(client.stream, GRPC_STATUS_CANCELLED, "enough");
  wait_until(&h, &client.closed);
  assert_int_equal(client.code, GRPC_STATUS_CANCELLED);
  wait_until(&h, &server.closed);
  assert_int_equal(server.code, GRPC_STATUS_UNAVAILABLE);
  // Never connected, and closed before it could be.
  side_t early = {0};
  assert_int_equal(mob_rpc_client_new(h.rpc, "127.0.0.1:1", NULL, &h.client), MOB_OK);
  early.stream = mob_rpc_stream_open(h.client, "/test.Stream/Open", &events, &early);
  mob_rpc_stream_close(early.stream, GRPC_STATUS_CANCELLED, "never mind");
  assert_false(early.closed);
  wait_until(&h, &early.closed);
  assert_int_equal(early.code, GRPC_STATUS_CANCELLED);
  side_t refused = {0};
  refused.stream = mob_rpc_stream_open(h.client, "/test.Stream/Open", &events, &refused);
  wait_until(&h, &refused.closed);
  assert_int_equal(refused.code, GRPC_STATUS_UNAVAILABLE);
  assert_string_equal(refused.why, "cannot connect to 127.0.0.1:1: Connection refused");
  harness_close(&h);
}

static void test_unknown_stream(void **state) {
  (void)state;
  side_t server = {0}, client = {0}, other = {0};
  harness_t h;
  open_pair(&h, &server, &client);
  other.stream = mob_rpc_stream_open(h.client, "/test.Stream/NoSuch", &events, &other);
  wait_until(&h, &other.closed);
  assert_int_equal(other.code, GRPC_STATUS_UNIMPLEMENTED);
  mob_rpc_client_close(h.client); // takes the open stream with it
  wait_until(&h, &client.closed);
  assert_int_equal(client.code, GRPC_STATUS_CANCELLED);
  wait_until(&h, &server.closed);
  harness_close(&h);
}

// A reader that pauses makes the sender's queue grow instead of its own memory.
static void test_back_pressure(void **state) {
  (void)state;
  side_t server = {.expect = 64}, client = {0};
  harness_t h;
  open_pair(&h, &server, &client);
  wait_until(&h, &server.open);
  mob_rpc_stream_pause(server.stream);
  size_t len = 1 << 20;
  uint8_t *message = mob_calloc(1, len);
  for (uint32_t i = 0; i < 64; i++) {
    memcpy(message, &i, sizeof i);
    mob_rpc_stream_send(client.stream, message, len);
  }
  free(message);
  uint64_t until = mob_now_ms() + 300;
  while (mob_now_ms() < until) uv_run(&h.loop, UV_RUN_ONCE);
  assert_true(server.messages <= 1);
  assert_true(mob_rpc_stream_queued(client.stream) > 32 << 20);
  mob_rpc_stream_resume(server.stream);
  wait_until(&h, &server.enough);
  assert_false(server.out_of_order);
  wait_until(&h, &client.drained);
  assert_int_equal(mob_rpc_stream_queued(client.stream), 0);
  harness_close(&h);
  assert_true(client.closed && server.closed);
}

// ------------------------------------------------------------------------------ peers that go away

static void on_echo(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)owner;
  const Ray__Rpc__InternalKVGetRequest *get = request;
  Ray__Rpc__InternalKVGetReply reply = RAY__RPC__INTERNAL_KVGET_REPLY__INIT;
  reply.value = get->key;
  mob_rpc_reply(call, &reply);
}

static const mob_rpc_method_t echo[] = {{"/test.Echo/Echo",
                                         &ray__rpc__internal_kvget_request__descriptor,
                                         &ray__rpc__internal_kvget_reply__descriptor, on_echo}};

static int serve(int port) {
  uv_loop_t loop;
  mob_rpc_t *rpc;
  mob_rpc_server_t *server;
  side_t side = {.echo = true};
  uv_loop_init(&loop);
  if (mob_rpc_new(&loop, &rpc) != MOB_OK || mob_rpc_server_new(rpc, &server) != MOB_OK) return 1;
  mob_rpc_server_add(server, echo, 1, NULL);
  mob_rpc_server_add_stream(server, "/test.Stream/Open", on_open, &side);
  if (mob_rpc_server_listen(server, "127.0.0.1", port, &port) != MOB_OK) return 1;
  printf("%d\n", port);
  fflush(stdout);
  return uv_run(&loop, UV_RUN_DEFAULT);
}

static pid_t start_peer(int *port) {
  int fds[2];
  assert_int_equal(pipe(fds), 0);
  char wanted[16];
  snprintf(wanted, sizeof wanted, "%d", *port);
  pid_t pid = fork();
  if (pid == 0) {
    dup2(fds[1], 1);
    execl("/proc/self/exe", "test", "--serve", wanted, NULL);
    _exit(127);
  }
  close(fds[1]);
  char line[16] = {0};
  assert_true(read(fds[0], line, sizeof line - 1) > 0);
  close(fds[0]);
  *port = atoi(line);
  return pid;
}

typedef struct watched {
  bool up, down;
  int ups;
} watched_t;

static void on_state(void *owner, mob_rpc_client_t *client, bool up, const char *why) {
  (void)client;
  (void)why;
  watched_t *w = owner;
  w->up = up;
  w->down = !up;
  w->ups += up;
}

static void open_to_peer(harness_t *h, int port, side_t *side, watched_t *watched,
                         const mob_rpc_client_options_t *options) {
  harness_open(h, NULL, 0, NULL);
  char address[64];
  snprintf(address, sizeof address, "localhost:%d", port); // a name, for a change
  assert_int_equal(mob_rpc_client_new(h->rpc, address, options, &h->client), MOB_OK);
  mob_rpc_client_watch(h->client, on_state, watched);
  side->stream = mob_rpc_stream_open(h->client, "/test.Stream/Open", &events, side);
  mob_rpc_stream_send(side->stream, "\0\0\0\0", 4);
  wait_until(h, &side->got);
  assert_true(watched->up);
}

static void test_peer_killed(void **state) {
  (void)state;
  int port = 0;
  pid_t pid = start_peer(&port);
  harness_t h;
  side_t side = {0};
  watched_t watched = {0};
  open_to_peer(&h, port, &side, &watched, NULL);
  uint64_t start = mob_now_ms();
  kill(pid, SIGKILL);
  wait_until(&h, &side.closed);
  wait_until(&h, &watched.down);
  uint64_t took = mob_now_ms() - start;
  assert_int_equal(side.code, GRPC_STATUS_UNAVAILABLE);
  assert_true(took <= 100);
  print_message("a killed peer was noticed after %d ms\n", (int)took);
  waitpid(pid, NULL, 0);
  // It comes back on the same port: the watched client finds it by itself, within the longest
  // back-off.
  pid = start_peer(&port);
  start = mob_now_ms();
  wait_until(&h, &watched.up);
  assert_true(mob_now_ms() - start < 1500);
  assert_int_equal(watched.ups, 2);
  outcome_t out;
  call_get(&h, "/test.Echo/Echo", "again", 5000, &out);
  wait_until(&h, &out.done);
  assert_int_equal(out.code, GRPC_STATUS_OK);
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  harness_close(&h);
}

static void test_peer_frozen(void **state) {
  (void)state;
  int port = 0;
  pid_t pid = start_peer(&port);
  harness_t h;
  side_t side = {0};
  watched_t watched = {0};
  mob_rpc_client_options_t options = {.keepalive_ms = 1000, .keepalive_timeout_ms = 1500};
  open_to_peer(&h, port, &side, &watched, &options);
  uint64_t start = mob_now_ms();
  kill(pid, SIGSTOP);
  wait_until(&h, &side.closed);
  wait_until(&h, &watched.down);
  uint64_t took = mob_now_ms() - start;
  print_message("a frozen peer was noticed after %d ms\n", (int)took);
  assert_true(took <= 4000);
  assert_int_equal(side.code, GRPC_STATUS_UNAVAILABLE);
  kill(pid, SIGKILL);
  waitpid(pid, NULL, 0);
  harness_close(&h);
}

int main(int argc, char **argv) {
  if (argc == 3 && strcmp(argv[1], "--serve") == 0) return serve(atoi(argv[2]));
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_both_ways),       cmocka_unit_test(test_server_closes),
      cmocka_unit_test(test_client_gives_up), cmocka_unit_test(test_unknown_stream),
      cmocka_unit_test(test_back_pressure),   cmocka_unit_test(test_peer_killed),
      cmocka_unit_test(test_peer_frozen),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
