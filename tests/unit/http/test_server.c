#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "harness.h"
#include "runtime/base/mem.h"

static harness_t h;

static int set_up(void **state) {
  (void)state;
  mob_http_config_t config = harness_config();
  harness_start(&h, &config);
  return 0;
}

static int tear_down(void **state) {
  (void)state;
  harness_stop(&h);
  return 0;
}

static void expect_body(mob_buf_t *body, const char *text) {
  assert_string_equal(mob_buf_cstr(body), text);
  mob_buf_free(body);
}

static void test_parts_of_a_request(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  mob_buf_t head = {0}, body = {0};
  client_sends(
      fd, "POST /a%20b?x=%31 HTTP/1.1\r\nHost: y\r\nx-TOKEN: t 1\r\nContent-Length: 3\r\n\r\nabc");
  assert_int_equal(client_reply(fd, &head, &body), 200);
  expect_body(&body, "POST /a b ?x=%31 3 abc");
  assert_non_null(strstr(mob_buf_cstr(&head), "\r\nx-token: t 1\r\n"));
  assert_non_null(strstr(mob_buf_cstr(&head), "\r\ncontent-type: text/plain\r\n"));
  assert_null(strstr(mob_buf_cstr(&head), "connection:"));
  mob_buf_free(&head);
  assert_int_equal(client_ask(fd, "GET /again HTTP/1.1\r\nHost: y\r\n\r\n", &body),
                   200); // kept alive
  expect_body(&body, "GET /again ? 0 ");
  assert_int_equal(client_ask(fd, "GET /empty HTTP/1.1\r\nHost: y\r\n\r\n", &body), 204);
  assert_int_equal(client_ask(fd, "GET /x HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n", NULL),
                   200);
  client_expect_end(fd);
}

static void test_bytes_one_by_one(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  const char *request = "POST /p?q HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: "
                        "chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
  for (const char *at = request; *at; at++) client_send(fd, at, 1);
  mob_buf_t body = {0};
  assert_int_equal(client_reply(fd, NULL, &body), 200);
  expect_body(&body, "POST /p ?q 5 abcde");
  close(fd);
}

// Fields behind a chunked body are none of the request's, and what was parsed stays where it is.
static void test_trailers_are_dropped(void **state) {
  (void)state;
  mob_buf_t request = {0}, head = {0}, body = {0};
  mob_buf_puts(&request, "POST /p?query HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: "
                         "chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Token: late\r\n");
  for (int i = 0; i < 200; i++) mob_buf_printf(&request, "t%d: some value\r\n", i);
  mob_buf_puts(&request, "\r\n");
  int fd = client_connect(h.port);
  client_send(fd, request.data, request.len);
  assert_int_equal(client_reply(fd, &head, &body), 200);
  expect_body(&body, "POST /p ?query 3 abc");
  assert_non_null(strstr(mob_buf_cstr(&head), "\r\nx-token: none\r\n"));
  request.len = 0;
  mob_buf_puts(&request, "POST / HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n");
  for (int i = 0; i < 1000; i++) mob_buf_printf(&request, "t%d: sixteen letters.\r\n", i);
  client_send(fd, request.data, request.len);
  assert_int_equal(client_reply(fd, NULL, NULL), 431); // more than the largest head
  close(fd);
  mob_buf_free(&request);
  mob_buf_free(&head);
}

static void test_pipelined_requests_keep_their_order(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  mob_buf_t all = {0}, body = {0};
  mob_buf_puts(&all, "GET /hold HTTP/1.1\r\nHost: y\r\n\r\n");
  enum { N = 2000 };
  for (int i = 0; i < N; i++) mob_buf_printf(&all, "GET /%d HTTP/1.1\r\nHost: y\r\n\r\n", i);
  client_send(fd, all.data, all.len);
  wait_for(&h.waiting, 1);
  assert_int_equal(atomic_load(&h.requests), 1); // the others wait for the first one's reply
  harness_tell(&h, HARNESS_GO);
  assert_int_equal(client_reply(fd, NULL, &body), 200);
  expect_body(&body, "held");
  for (int i = 0; i < N; i++) {
    char want[32];
    snprintf(want, sizeof want, "GET /%d ? 0 ", i);
    assert_int_equal(client_reply(fd, NULL, &body), 200);
    expect_body(&body, want);
  }
  mob_buf_free(&all);
  close(fd);
}

static void test_a_pipeliner_that_does_not_read_is_held_back(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  struct timeval short_limit = {.tv_usec = 300000};
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &short_limit, sizeof short_limit);
  mob_buf_t all = {0}, body = {0};
  char target[4096];
  memset(target, 'a', sizeof target);
  enum { N = 10000 };
  for (int i = 0; i < N; i++)
    mob_buf_printf(&all, "GET /%.*s HTTP/1.1\r\nHost: y\r\n\r\n", 4000, target);
  size_t sent = 0;
  for (ssize_t n;
       sent < all.len && (n = send(fd, all.data + sent, all.len - sent, MSG_NOSIGNAL)) > 0;) {
    sent += (size_t)n;
  }
  assert_true(sent < all.len); // 40 MB did not fit: the server stopped reading
  size_t whole = sent / (all.len / N);
  for (size_t i = 0; i < whole; i++) {
    assert_int_equal(client_reply(fd, NULL, &body), 200);
    mob_buf_free(&body);
  }
  mob_buf_free(&all);
  close(fd);
}

static void test_streaming(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  mob_buf_t body = {0};
  assert_int_equal(client_ask(fd, "GET /stream HTTP/1.1\r\nHost: y\r\n\r\n", &body), 200);
  expect_body(&body, "piece piece piece ");
  mob_buf_t head = {0};
  client_sends(
      fd,
      "GET /stream HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"); // its end is the connection's end
  assert_int_equal(client_reply(fd, &head, &body), 200);
  assert_null(strstr(mob_buf_cstr(&head), "chunked"));
  assert_non_null(strstr(mob_buf_cstr(&head), "connection: close"));
  expect_body(&body, "piece piece piece ");
  mob_buf_free(&head);
  client_expect_end(fd);
}

static void test_http_1_0_and_head(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  mob_buf_t head = {0}, body = {0};
  client_sends(fd, "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  assert_int_equal(client_reply(fd, &head, &body), 200);
  assert_non_null(strstr(mob_buf_cstr(&head), "connection: keep-alive"));
  mob_buf_free(&head);
  expect_body(&body, "GET /a ? 0 ");
  client_sends(fd, "HEAD /abc HTTP/1.1\r\nHost: y\r\nConnection: close\r\n\r\n");
  char reply[2048] = {0};
  size_t n = 0;
  for (ssize_t got; (got = recv(fd, reply + n, sizeof reply - 1 - n, 0)) > 0;) n += (size_t)got;
  assert_non_null(strstr(reply, "content-length: 14\r\n"));
  assert_string_equal(strstr(reply, "\r\n\r\n"), "\r\n\r\n"); // no body
  close(fd);
  fd = client_connect(h.port);
  assert_int_equal(client_ask(fd, "GET /a HTTP/1.0\r\n\r\n", NULL), 200);
  client_expect_end(fd);
}

static void test_expect_continue(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  mob_buf_t body = {0};
  client_sends(fd,
               "POST /e HTTP/1.1\r\nHost: y\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  assert_int_equal(client_reply(fd, NULL, &body), 100);
  client_sends(fd, "ok");
  assert_int_equal(client_reply(fd, NULL, &body), 200);
  expect_body(&body, "POST /e ? 2 ok");
  close(fd);
  fd = client_connect(h.port); // too large: no "continue" before the refusal
  assert_int_equal(
      client_ask(
          fd,
          "POST /e HTTP/1.1\r\nHost: y\r\nContent-Length: 2000000\r\nExpect: 100-continue\r\n\r\n",
          NULL),
      413);
  client_expect_end(fd);
  fd = client_connect(h.port);
  assert_int_equal(
      client_ask(fd, "POST /e HTTP/1.1\r\nHost: y\r\nContent-Length: 2\r\nExpect: tea\r\n\r\n",
                 NULL),
      417);
  client_expect_end(fd);
}

static void test_limits(void **state) {
  (void)state;
  mob_buf_t all = {0};
  int fd =
      client_connect(h.port); // a body that comes although it was refused: the reply must survive
  mob_buf_puts(&all, "POST /e HTTP/1.1\r\nHost: y\r\nContent-Length: 4000000\r\n\r\n");
  char *block = calloc(1, 4000000);
  mob_buf_append(&all, block, 4000000);
  client_send(fd, all.data, all.len);
  assert_int_equal(client_reply(fd, NULL, NULL), 413);
  shutdown(fd, SHUT_WR);
  client_expect_end(fd);
  all.len = 0;
  mob_buf_puts(&all, "POST /e HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\n");
  for (int i = 0; i < 20; i++) {
    mob_buf_puts(&all, "10000\r\n");
    mob_buf_append(&all, block, 65536);
    mob_buf_puts(&all, "\r\n");
  }
  fd = client_connect(h.port);
  client_send(fd, all.data, all.len);
  assert_int_equal(client_reply(fd, NULL, NULL), 413);
  close(fd);
  memset(block, 'a', 20000);
  block[20000] = 0;
  static const char *const big[] = {"GET /%s HTTP/1.1\r\nHost: y\r\n\r\n",
                                    "GET / HTTP/1.1\r\nHost: y\r\nX: %s\r\n\r\n",
                                    "GET / HTTP/1.1\r\nHost: y\r\n%s: x\r\n\r\n"};
  for (size_t i = 0; i < MOB_LEN(big); i++) {
    all.len = 0;
    mob_buf_puts(&all, big[i]);
    char *text = mob_sprintf("%s", mob_buf_cstr(&all));
    char *at = strstr(text, "%s");
    *at = 0;
    fd = client_connect(h.port);
    client_sends(fd, text);
    client_sends(fd, block);
    client_sends(fd, at + 2);
    assert_int_equal(client_reply(fd, NULL, NULL), 431);
    free(text);
    close(fd);
  }
  all.len = 0;
  mob_buf_puts(&all, "GET / HTTP/1.1\r\nHost: y\r\n");
  for (int i = 0; i < 300; i++) mob_buf_printf(&all, "h%d: v\r\n", i);
  fd = client_connect(h.port);
  client_send(fd, all.data, all.len);
  assert_int_equal(client_reply(fd, NULL, NULL), 431);
  close(fd);
  free(block);
  mob_buf_free(&all);
}

static void test_garbage(void **state) {
  (void)state;
  static const char *const bad[] = {
      "hello\r\n\r\n",
      "GET\r\n\r\n",
      "GET / HTTP/1.1\r\n\r\n", // no Host
      "GET / HTTP/1.1\r\nHost: y\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: y\r\nContent-Length: 3\r\nTransfer-Encoding: "
      "chunked\r\n\r\n0\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: y\r\nContent-Length: -1\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: y\r\nContent-Length: 99999999999999999999999\r\n\r\n",
      "POST / HTTP/1.1\r\nHost: y\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
      "GET /%00 HTTP/1.1\r\nHost: y\r\n\r\n",
      "CONNECT a:1 HTTP/1.1\r\nHost: y\r\n\r\n",
      "GET / HTTP/1.1\r\nHost: y\r\nA\x01: b\r\n\r\n",
      "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", // TLS on a plain port
  };
  for (size_t i = 0; i < MOB_LEN(bad); i++) {
    int fd = client_connect(h.port);
    mob_buf_t body = {0};
    int status = client_ask(fd, bad[i], &body);
    if (status != 400) fail_msg("%d for %s", status, bad[i]);
    expect_body(&body, "Invalid HTTP request received.");
    shutdown(fd, SHUT_WR);
    client_expect_end(fd);
  }
  assert_int_equal(atomic_load(&h.requests), 0);
  int fd = client_connect(h.port); // an offer to upgrade is not an error
  assert_int_equal(
      client_ask(fd, "GET / HTTP/1.1\r\nHost: y\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n",
                 NULL),
      200);
  close(fd);
}

static void test_half_closed_client_gets_its_reply(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  client_sends(fd, "GET /a HTTP/1.1\r\nHost: y\r\n\r\nGET /b HTTP/1.1\r\nHost: y\r\n\r\n");
  shutdown(fd, SHUT_WR);
  mob_buf_t body = {0};
  assert_int_equal(client_reply(fd, NULL, &body), 200);
  expect_body(&body, "GET /a ? 0 ");
  assert_int_equal(client_reply(fd, NULL, &body), 200);
  expect_body(&body, "GET /b ? 0 ");
  client_expect_end(fd);
}

static void test_a_client_that_leaves_is_noticed(void **state) {
  (void)state;
  int fd = client_connect(h.port);
  client_sends(fd, "GET /hold HTTP/1.1\r\nHost: y\r\n\r\n");
  wait_for(&h.waiting, 1);
  close(fd);
  wait_for(&h.gone, 1);
  fd = client_connect(h.port); // by reset
  client_sends(fd, "GET /hold HTTP/1.1\r\nHost: y\r\n\r\n");
  wait_for(&h.waiting, 2);
  struct linger reset = {.l_onoff = 1};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  close(fd);
  wait_for(&h.gone, 2);
  fd = client_connect(h.port); // while a stream is on its way that nobody reads
  client_sends(fd, "GET /flood HTTP/1.1\r\nHost: y\r\n\r\n");
  wait_for(&h.waiting, 3);
  assert_true(atomic_load(&h.unsent) > 16u << 20); // the back-pressure figure
  close(fd);
  wait_for(&h.gone, 3);
}

static void test_drain(void **state) {
  (void)state;
  int busy = client_connect(h.port), idle = client_connect(h.port);
  assert_int_equal(client_ask(idle, "GET /a HTTP/1.1\r\nHost: y\r\n\r\n", NULL), 200);
  client_sends(busy, "GET /hold HTTP/1.1\r\nHost: y\r\n\r\n");
  wait_for(&h.waiting, 1);
  harness_tell(&h, HARNESS_DRAIN);
  client_expect_end(idle);
  assert_int_equal(atomic_load(&h.drained), 0);
  harness_tell(&h, HARNESS_GO);
  mob_buf_t head = {0}, body = {0};
  assert_int_equal(client_reply(busy, &head, &body), 200);
  assert_non_null(strstr(mob_buf_cstr(&head), "connection: close"));
  mob_buf_free(&head);
  expect_body(&body, "held");
  client_expect_end(busy);
  wait_for(&h.drained, 1);
}

static void test_close_tells_requests_under_way(void **state) {
  (void)state;
  mob_http_config_t config = harness_config();
  harness_t other;
  harness_start(&other, &config);
  int fd = client_connect(other.port);
  client_sends(fd, "GET /hold HTTP/1.1\r\nHost: y\r\n\r\n");
  wait_for(&other.waiting, 1);
  harness_stop(&other);
  assert_int_equal(atomic_load(&other.gone), 1);
  client_expect_end(fd);
}

static void test_timeouts(void **state) {
  (void)state;
  mob_http_config_t config = harness_config();
  config.request_ms = 150;
  config.keep_alive_ms = 100;
  harness_t slow;
  harness_start(&slow, &config);
  int fd = client_connect(slow.port);
  client_sends(fd, "POST / HTTP/1.1\r\nHost: y\r\nContent-Length: 10\r\n\r\nabc");
  assert_int_equal(client_reply(fd, NULL, NULL), 408);
  shutdown(fd, SHUT_WR);
  client_expect_end(fd);
  fd = client_connect(slow.port); // silent from the beginning
  client_expect_end(fd);
  fd = client_connect(slow.port); // silent after a reply
  assert_int_equal(client_ask(fd, "GET / HTTP/1.1\r\nHost: y\r\n\r\n", NULL), 200);
  client_expect_end(fd);
  fd = client_connect(slow.port); // a slow reply is no fault of the client's
  client_sends(fd, "GET /hold HTTP/1.1\r\nHost: y\r\n\r\n");
  usleep(400000);
  harness_tell(&slow, HARNESS_GO);
  assert_int_equal(client_reply(fd, NULL, NULL), 200);
  client_expect_end(fd);
  harness_stop(&slow);
}

static void test_port_clash_shows_at_bind(void **state) {
  (void)state;
  uv_loop_t loop;
  uv_loop_init(&loop);
  mob_http_handler_t handler = {0};
  mob_http_config_t config = harness_config();
  mob_http_server_t *first, *second;
  config.port = h.port; // taken by a listening server
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &first), MOB_E_NO_RESOURCES);
  assert_non_null(strstr(mob_errmsg(), "Address already in use"));
  config.port = 0;
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &first), MOB_OK);
  config.port = mob_http_port(first); // bound, not yet listening
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &second), MOB_E_NO_RESOURCES);
  mob_http_close(first);
  uv_run(&loop, UV_RUN_DEFAULT);
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &second), MOB_OK);
  mob_http_close(second);
  config.host = "no such host";
  assert_int_equal(mob_http_bind(&loop, &config, &handler, NULL, &first), MOB_E_INVALID);
  uv_run(&loop, UV_RUN_DEFAULT);
  assert_int_equal(uv_loop_close(&loop), 0);
}

static void test_port_is_free_again_after_connections(void **state) {
  (void)state;
  mob_http_config_t config = harness_config();
  harness_t one;
  harness_start(&one, &config);
  config.port = one.port;
  int fd = client_connect(one.port);
  assert_int_equal(client_ask(fd, "GET / HTTP/1.0\r\n\r\n", NULL),
                   200); // the server closes: TIME_WAIT is here
  client_expect_end(fd);
  harness_stop(&one);
  harness_start(&one, &config);
  harness_stop(&one);
}

static void test_many_connections(void **state) {
  (void)state;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max < 16384 ? limit.rlim_max : 16384;
  setrlimit(RLIMIT_NOFILE, &limit);
  enum { N = 1500 };
  int n = limit.rlim_cur > 2 * N + 100 ? N : (int)(limit.rlim_cur - 100) / 2;
  static int fds[N];
  for (int i = 0; i < n; i++) fds[i] = client_connect(h.port);
  for (int round = 0; round < 2; round++) {
    for (int i = 0; i < n; i++) client_sends(fds[i], "GET /m HTTP/1.1\r\nHost: y\r\n\r\n");
    for (int i = 0; i < n; i++) {
      mob_buf_t body = {0};
      assert_int_equal(client_reply(fds[i], NULL, &body), 200);
      expect_body(&body, "GET /m ? 0 ");
    }
  }
  for (int i = 0; i < n; i++) close(fds[i]);
}

int main(void) {
#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      WITH_SERVER(test_parts_of_a_request),
      WITH_SERVER(test_bytes_one_by_one),
      WITH_SERVER(test_trailers_are_dropped),
      WITH_SERVER(test_pipelined_requests_keep_their_order),
      WITH_SERVER(test_a_pipeliner_that_does_not_read_is_held_back),
      WITH_SERVER(test_streaming),
      WITH_SERVER(test_http_1_0_and_head),
      WITH_SERVER(test_expect_continue),
      WITH_SERVER(test_limits),
      WITH_SERVER(test_garbage),
      WITH_SERVER(test_half_closed_client_gets_its_reply),
      WITH_SERVER(test_a_client_that_leaves_is_noticed),
      WITH_SERVER(test_drain),
      cmocka_unit_test(test_close_tells_requests_under_way),
      cmocka_unit_test(test_timeouts),
      WITH_SERVER(test_port_clash_shows_at_bind),
      cmocka_unit_test(test_port_is_free_again_after_connections),
      WITH_SERVER(test_many_connections),
  };
  return cmocka_run_group_tests_name("http", tests, NULL, NULL);
}
