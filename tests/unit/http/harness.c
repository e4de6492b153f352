#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "harness.h"
#include "runtime/base/clock.h"

// What the server answers: the path is the command.
static void on_request(void *owner, mob_http_request_t *req) {
  harness_t *h = owner;
  atomic_fetch_add(&h->requests, 1);
  const char *path = mob_http_path(req);
  size_t len;
  const char *body = mob_http_body(req, &len);
  mob_buf_t out = {0};
  if (strcmp(path, "/hold") == 0) { // until HARNESS_GO
    h->held = req;
    atomic_fetch_add(&h->waiting, 1);
  } else if (strcmp(path, "/stream") == 0) {
    mob_http_begin(req, 200, "text/plain", NULL, 0);
    for (int i = 0; i < 3; i++) mob_http_write(req, "piece ", 6);
    mob_http_write(req, "", 0);
    mob_http_end(req);
  } else if (strcmp(path, "/flood") == 0) { // more than the sockets hold
    mob_http_begin(req, 200, "text/plain", NULL, 0);
    char *block = calloc(1, 1 << 20);
    for (int i = 0; i < 32; i++) mob_http_write(req, block, 1 << 20);
    free(block);
    atomic_store(&h->unsent, mob_http_unsent(req));
    h->held = req;
    atomic_fetch_add(&h->waiting, 1);
  } else {
    const char *token = mob_http_header(req, "X-Token");
    mob_http_field_t extra = {"x-token", token ? token : "none"};
    mob_buf_printf(&out, "%s %s ?%s %zu ", mob_http_method(req), path, mob_http_query(req), len);
    if (len < 100) mob_buf_append(&out, body, len);
    mob_http_reply(req, strcmp(path, "/empty") == 0 ? 204 : 200, "text/plain", out.data, out.len,
                   &extra, 1);
    mob_buf_free(&out);
  }
}

static void on_gone(void *owner, mob_http_request_t *req) {
  harness_t *h = owner;
  if (h->held == req) h->held = NULL;
  atomic_fetch_add(&h->gone, 1);
}

static void on_drained(void *arg) {
  atomic_store(&((harness_t *)arg)->drained, 1);
}

static void on_control(uv_async_t *async) {
  harness_t *h = async->data;
  int todo = atomic_exchange(&h->todo, 0);
  if (todo & HARNESS_GO && h->held) {
    mob_http_request_t *req = h->held;
    h->held = NULL;
    mob_http_reply(req, 200, "text/plain", "held", 4, NULL, 0);
  }
  if (todo & HARNESS_DRAIN) mob_http_drain(h->server, on_drained, h);
  if (todo & HARNESS_CLOSE) {
    mob_http_close(h->server);
    uv_close((uv_handle_t *)async, NULL);
  }
}

static void *run(void *arg) {
  harness_t *h = arg;
  uv_run(&h->loop, UV_RUN_DEFAULT);
  return NULL;
}

mob_http_config_t harness_config(void) {
  return (mob_http_config_t){.host = "127.0.0.1",
                             .max_body = 1 << 20,
                             .max_header = 16 * 1024,
                             .keep_alive_ms = 5000,
                             .request_ms = 5000};
}

void harness_start(harness_t *h, const mob_http_config_t *config) {
  memset(h, 0, sizeof *h);
  uv_loop_init(&h->loop);
  static const mob_http_handler_t handler = {on_request, on_gone};
  if (mob_http_bind(&h->loop, config, &handler, h, &h->server) != MOB_OK)
    fail_msg("%s", mob_errmsg());
  assert_int_equal(mob_http_listen(h->server), MOB_OK);
  h->port = mob_http_port(h->server);
  h->control.data = h;
  uv_async_init(&h->loop, &h->control, on_control);
  pthread_create(&h->thread, NULL, run, h);
}

void harness_tell(harness_t *h, int what) {
  atomic_fetch_or(&h->todo, what);
  uv_async_send(&h->control);
}

void harness_stop(harness_t *h) {
  harness_tell(h, HARNESS_CLOSE);
  pthread_join(h->thread, NULL);
  assert_int_equal(uv_loop_close(&h->loop), 0); // no handle was left
}

int client_connect(int port) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  struct sockaddr_in addr = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  struct timeval limit = {.tv_sec = 20};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  if (connect(fd, (struct sockaddr *)&addr, sizeof addr) != 0)
    fail_msg("connect: %s", strerror(errno));
  return fd;
}

void client_send(int fd, const void *data, size_t len) {
  const char *from = data;
  while (len > 0) {
    ssize_t n = send(fd, from, len, MSG_NOSIGNAL);
    if (n <= 0) return; // the server may refuse early; the reply tells
    from += n;
    len -= (size_t)n;
  }
}

void client_sends(int fd, const char *text) {
  client_send(fd, text, strlen(text));
}

static bool more(int fd, mob_buf_t *in) {
  char block[4096];
  ssize_t n = recv(fd, block, sizeof block, 0);
  if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) fail_msg("no answer");
  if (n <= 0) return false;
  mob_buf_append(in, block, (size_t)n);
  return true;
}

// Bytes one by one would be slow for big bodies, so the rest of what was read is kept for each
// descriptor.
static mob_buf_t rest[4096];

int client_reply(int fd, mob_buf_t *head, mob_buf_t *body) {
  if (!body) {
    mob_buf_t dropped = {0};
    int result = client_reply(fd, head, &dropped);
    mob_buf_free(&dropped);
    return result;
  }
  mob_buf_t *in = &rest[fd % 4096];
  const char *end;
  while (!(end = in->len ? memmem(in->data, in->len, "\r\n\r\n", 4) : NULL)) {
    if (!more(fd, in)) {
      mob_buf_free(in);
      return -1;
    }
  }
  size_t head_len = (size_t)(end - (const char *)in->data) + 4;
  mob_buf_t h = {0};
  mob_buf_append(&h, in->data, head_len);
  const char *text = mob_buf_cstr(&h);
  int status = atoi(text + 9);
  mob_buf_consume(in, head_len);
  const char *at = strcasestr(text, "\ncontent-length: ");
  if (status == 204 || status == 100) {
  } else if (strcasestr(text, "\ntransfer-encoding: chunked")) {
    for (;;) {
      const char *line;
      while (!(line = in->len ? memmem(in->data, in->len, "\r\n", 2) : NULL))
        assert_true(more(fd, in));
      size_t size = strtoul((const char *)in->data, NULL, 16);
      mob_buf_consume(in, (size_t)(line - (const char *)in->data) + 2);
      while (in->len < size + 2) assert_true(more(fd, in));
      mob_buf_append(body, in->data, size);
      mob_buf_consume(in, size + 2);
      if (size == 0) break;
    }
  } else if (at) {
    size_t size = strtoul(at + 17, NULL, 10);
    while (in->len < size) assert_true(more(fd, in));
    mob_buf_append(body, in->data, size);
    mob_buf_consume(in, size);
  } else {
    while (more(fd, in)) {
    }
    mob_buf_append(body, in->data, in->len);
    in->len = 0;
  }
  if (head) mob_buf_append(head, h.data, h.len);
  mob_buf_free(&h);
  if (in->len == 0) mob_buf_free(in);
  return status;
}

int client_ask(int fd, const char *request, mob_buf_t *body) {
  client_sends(fd, request);
  return client_reply(fd, NULL, body);
}

void client_expect_end(int fd) {
  char c;
  ssize_t n = recv(fd, &c, 1, 0);
  if (n > 0) fail_msg("a byte came where the end was expected: %d", c);
  if (n < 0 && errno != ECONNRESET) fail_msg("the connection stayed open: %s", strerror(errno));
  close(fd);
  mob_buf_free(&rest[fd % 4096]);
}

void wait_for(atomic_int *counter, int value) {
  for (uint64_t end = mob_now_ms() + 20000; atomic_load(counter) < value;) {
    if (mob_now_ms() > end) fail_msg("waited in vain: %d < %d", atomic_load(counter), value);
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
}
