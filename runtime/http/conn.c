// One connection: bytes in, one request at a time to the handler, replies out in the same order.
//
// Reading goes on while a reply is under way, so that a client that leaves is noticed at once; what
// it sends meanwhile waits in `pending`. Everything to send is gathered during a turn of the loop
// and goes out with one system call from the server's idle handle (mob__conn_service).
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <arpa/inet.h>

#include "runtime/base/mem.h"
#include "runtime/http/internal.h"

static void advance(mob__conn_t *conn);

static mob__conn_t *conn_of(void *handle) {
  return ((uv_handle_t *)handle)->data;
}

void mob__conn_mark(mob__conn_t *conn) {
  if (conn->dirty || conn->closing) return;
  conn->dirty = true;
  conn->dirty_next = conn->server->dirty;
  conn->server->dirty = conn;
  mob__server_wake(conn->server);
}

// ------------------------------------------------------------------------------------------
// closing

static void on_handle_closed(uv_handle_t *handle) {
  mob__conn_t *conn = handle->data;
  if (--conn->open_handles > 0) return;
  mob_http_server_t *server = conn->server;
  mob__parser_free(conn->parser);
  mob__tls_free(conn->tls);
  mob_buf_free(&conn->pending);
  mob_buf_free(&conn->plain);
  mob_buf_free(&conn->out);
  mob_buf_free(&conn->inflight);
  free(conn);
  mob__server_release(server);
}

static void forget_dirty(mob__conn_t *conn) {
  if (!conn->dirty) return;
  for (mob__conn_t **at = &conn->server->dirty; *at; at = &(*at)->dirty_next) {
    if (*at != conn) continue;
    *at = conn->dirty_next;
    break;
  }
  conn->dirty = false;
}

void mob__conn_close(mob__conn_t *conn) {
  if (conn->closing) return;
  conn->closing = true;
  mob_http_server_t *server = conn->server;
  forget_dirty(conn);
  if (conn->next) conn->next->prev = conn->prev;
  if (conn->prev)
    conn->prev->next = conn->next;
  else
    server->conns = conn->next;
  server->conn_count--;
  uv_close((uv_handle_t *)&conn->tcp, on_handle_closed);
  uv_close((uv_handle_t *)&conn->timer, on_handle_closed);
  mob_http_request_t *req = conn->req;
  if (req) {
    conn->req = NULL;
    server->handler.on_gone(server->owner, req);
    mob__request_free(req);
  }
  mob__server_conn_closed(server);
}

static void on_timeout(uv_timer_t *timer);

static void set_timer(mob__conn_t *conn, uint64_t ms) {
  if (ms)
    uv_timer_start(&conn->timer, on_timeout, ms, 0);
  else
    uv_timer_stop(&conn->timer);
}

// A reply that the connection itself gives: malformed, too large, too slow. The client may still be
// sending.
static void refuse(mob__conn_t *conn, int status) {
  const char *text =
      status == 400 ? "Invalid HTTP request received." : mob_http_status_text(status);
  char reply[512];
  int n = snprintf(
      reply, sizeof reply,
      "HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %zu\r\n"
      "connection: close\r\n\r\n%s",
      status, mob_http_status_text(status), strlen(text), text);
  mob__conn_send(conn, reply, (size_t)n);
  conn->last = conn->unread = true;
  set_timer(conn, MOB__LINGER_MS);
}

static void on_timeout(uv_timer_t *timer) {
  mob__conn_t *conn = conn_of(timer);
  if (conn->last || conn->finishing || mob__parser_idle(conn->parser))
    mob__conn_close(conn);
  else
    refuse(conn, 408);
}

// ------------------------------------------------------------------------------------------
// sending

void mob__conn_send(mob__conn_t *conn, const void *data, size_t len) {
  if (conn->closing || len == 0) return;
  mob_buf_append(conn->tls ? &conn->plain : &conn->out, data, len);
  mob__conn_mark(conn);
}

size_t mob__conn_unsent(const mob__conn_t *conn) {
  return conn->plain.len + conn->out.len + conn->inflight.len;
}

static void on_written(uv_write_t *write, int rc) {
  mob__conn_t *conn = write->data;
  conn->writing = false;
  if (conn->closing) return;
  if (rc < 0) {
    mob__conn_close(conn);
    return;
  }
  conn->inflight.len = 0;
  if (conn->inflight.cap > 64 * 1024) mob_buf_free(&conn->inflight);
  mob__conn_mark(conn);
}

static void on_shut(uv_shutdown_t *shut, int rc) {
  mob__conn_t *conn = shut->data;
  (void)rc;
  if (!conn->closing && !conn->unread) mob__conn_close(conn);
}

// Everything is sent and nothing follows. Closing while the client still sends would reset the
// connection and take our last reply with it, so in that case its bytes are read and dropped for a
// moment.
static void finish(mob__conn_t *conn) {
  conn->finishing = true;
  conn->shutdown.data = conn;
  if (uv_shutdown(&conn->shutdown, (uv_stream_t *)&conn->tcp, on_shut) != 0) {
    mob__conn_close(conn);
    return;
  }
  set_timer(conn, MOB__LINGER_MS);
}

void mob__conn_service(mob__conn_t *conn) {
  if (conn->closing) return;
  advance(conn);
  if (conn->closing || conn->writing) return;
  if (conn->plain.len) {
    mob__tls_write(conn->tls, conn->plain.data, conn->plain.len, &conn->out);
    conn->plain.len = 0;
  }
  if (conn->last && !conn->req && !conn->finishing && conn->tls)
    mob__tls_bye(conn->tls, &conn->out);
  if (conn->out.len == 0) {
    if (conn->last && !conn->req && !conn->finishing) finish(conn);
    return;
  }
  mob_buf_t swap = conn->inflight;
  conn->inflight = conn->out;
  conn->out = swap;
  conn->writing = true;
  conn->write.data = conn;
  uv_buf_t buf = {.base = (char *)conn->inflight.data, .len = conn->inflight.len};
  if (uv_write(&conn->write, (uv_stream_t *)&conn->tcp, &buf, 1, on_written) != 0) {
    conn->writing = false;
    mob__conn_close(conn);
  }
}

// ------------------------------------------------------------------------------------------
// reading

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *buf) {
  (void)suggested;
  buf->base = conn_of(handle)->server->read_buffer;
  buf->len = MOB__READ_CHUNK;
}

static void deliver(mob__conn_t *conn) {
  mob_http_server_t *server = conn->server;
  mob_http_request_t *req = mob__parser_take(conn->parser);
  req->conn = conn;
  conn->req = req;
  set_timer(conn, 0);
  server->handler.on_request(server->owner, req);
}

// Feeds bytes as long as no request is under way. Returns how many were taken; the connection may
// be closing after.
static size_t feed(mob__conn_t *conn, const char *data, size_t len) {
  size_t taken = 0;
  while (taken < len && !conn->closing && !conn->last && !conn->req &&
         mob__conn_unsent(conn) < MOB__UNSENT_MAX) {
    bool was_idle = mob__parser_idle(conn->parser);
    size_t used = 0;
    int status = 400;
    mob__parsed_t parsed =
        mob__parser_feed(conn->parser, data + taken, len - taken, &used, &status);
    taken += used;
    if (parsed == MOB__PARSE_WHOLE) {
      deliver(conn);
    } else if (parsed == MOB__PARSE_BAD) {
      refuse(conn, status);
    } else if (was_idle && !mob__parser_idle(conn->parser)) {
      set_timer(conn, conn->server->config.request_ms);
    }
  }
  return conn->last || conn->closing ? len : taken; // behind the last request nothing counts
}

static void start_reading(mob__conn_t *conn);

static void advance(mob__conn_t *conn) {
  if (conn->advancing || conn->closing) return;
  conn->advancing = true;
  if (conn->pending.len > conn->pending_at) {
    conn->pending_at += feed(conn, (const char *)conn->pending.data + conn->pending_at,
                             conn->pending.len - conn->pending_at);
  }
  conn->advancing = false;
  if (conn->closing) return;
  if (conn->pending_at == conn->pending.len) {
    conn->pending.len = conn->pending_at = 0;
    if (conn->pending.cap > 64 * 1024) mob_buf_free(&conn->pending);
  } else if (conn->pending_at >
             conn->pending.len / 2) { // rarely, so that moving costs less than parsing did
    mob_buf_consume(&conn->pending, conn->pending_at);
    conn->pending_at = 0;
  }
  if (conn->pending.len - conn->pending_at < MOB__PENDING_MAX) start_reading(conn);
  if (!conn->req && !conn->last && mob__parser_idle(conn->parser) &&
      !uv_is_active((uv_handle_t *)&conn->timer)) {
    set_timer(conn, conn->server->config.keep_alive_ms);
  }
}

static void take_bytes(mob__conn_t *conn, const char *data, size_t len) {
  if (conn->last && !conn->req) return; // lingering
  size_t taken = 0;
  if (conn->pending.len == 0) {
    conn->advancing = true;
    taken = feed(conn, data, len);
    conn->advancing = false;
  }
  if (conn->closing) return;
  if (taken < len) mob_buf_append(&conn->pending, data + taken, len - taken);
  if (conn->pending.len - conn->pending_at >= MOB__PENDING_MAX && conn->reading) {
    uv_read_stop((uv_stream_t *)&conn->tcp);
    conn->reading = false;
  }
  mob__conn_mark(conn);
}

// The client sends no more. One that shut its sending side after the request still gets the reply that is ready;
// one for whom the reply is under way counts as gone.
static void sending_ended(mob__conn_t *conn) {
  if (conn->req || conn->finishing || mob__conn_unsent(conn) == 0) {
    mob__conn_close(conn);
    return;
  }
  uv_read_stop((uv_stream_t *)&conn->tcp);
  conn->last = true;
  conn->unread = false;
  set_timer(conn, MOB__LINGER_MS);
  mob__conn_mark(conn);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
  mob__conn_t *conn = conn_of(stream);
  if (conn->closing || n == 0) return;
  if (n < 0) {
    if (n == UV_EOF) sending_ended(conn);
    else mob__conn_close(conn);
    return;
  }
  if (!conn->tls) {
    take_bytes(conn, buf->base, (size_t)n);
    return;
  }
  mob_buf_t *plain = &conn->server->plain;
  plain->len = 0;
  bool alive = mob__tls_read(conn->tls, buf->base, (size_t)n, plain, &conn->out);
  if (plain->len) take_bytes(conn, (const char *)plain->data, plain->len);
  else mob__conn_mark(conn);
  if (!alive && !conn->closing) sending_ended(conn); // its goodbye, or no TLS at all: then `out` holds the alert
}

static void start_reading(mob__conn_t *conn) {
  if (conn->reading) return;
  conn->reading = true;
  if (uv_read_start((uv_stream_t *)&conn->tcp, on_alloc, on_read) != 0) mob__conn_close(conn);
}

void mob__conn_reply_ended(mob__conn_t *conn) {
  mob_http_request_t *req = conn->req;
  conn->req = NULL;
  if (!req->keep_alive || conn->server->draining) {
    conn->last = true;
    conn->unread = conn->pending.len > conn->pending_at;
  }
  mob__request_free(req);
  mob__conn_mark(conn);
}

void mob__conn_drain(mob__conn_t *conn) {
  if (conn->req || !mob__parser_idle(conn->parser) || conn->pending.len > conn->pending_at) return;
  if (mob__conn_unsent(conn) == 0) {
    mob__conn_close(conn);
    return;
  }
  conn->last = true;
  mob__conn_mark(conn);
}

// ---------------------------------------------------------------------------------------
// connecting

static void note_peer(mob__conn_t *conn) {
  struct sockaddr_storage addr;
  int len = sizeof addr;
  char ip[INET6_ADDRSTRLEN] = "?";
  int port = 0;
  if (uv_tcp_getpeername(&conn->tcp, (struct sockaddr *)&addr, &len) == 0) {
    if (addr.ss_family == AF_INET6) {
      struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&addr;
      uv_ip6_name(in6, ip, sizeof ip);
      port = ntohs(in6->sin6_port);
    } else if (addr.ss_family == AF_INET) {
      struct sockaddr_in *in4 = (struct sockaddr_in *)&addr;
      uv_ip4_name(in4, ip, sizeof ip);
      port = ntohs(in4->sin_port);
    }
  }
  snprintf(conn->peer, sizeof conn->peer, "%s:%d", ip, port);
}

static void on_continue(void *arg) {
  mob__conn_send(arg, "HTTP/1.1 100 Continue\r\n\r\n", 25);
}

void mob__conn_accept(mob_http_server_t *server) {
  mob__conn_t *conn = MOB_NEW(mob__conn_t);
  conn->server = server;
  uv_tcp_init(server->loop, &conn->tcp);
  uv_timer_init(server->loop, &conn->timer);
  conn->tcp.data = conn->timer.data = conn;
  conn->open_handles = 2;
  server->open_handles++;
  conn->next = server->conns;
  if (conn->next) conn->next->prev = conn;
  server->conns = conn;
  server->conn_count++;
  conn->parser =
      mob__parser_new(server->config.max_header, server->config.max_body, on_continue, conn);
  if (server->tls) conn->tls = mob__tls_new(server->tls);
  if (uv_accept((uv_stream_t *)&server->listener, (uv_stream_t *)&conn->tcp) != 0) {
    mob__conn_close(conn);
    return;
  }
  uv_tcp_nodelay(&conn->tcp, 1);
  uv_tcp_keepalive(&conn->tcp, 1, 60);
  note_peer(conn);
  set_timer(conn, server->config.request_ms);
  start_reading(conn);
}
