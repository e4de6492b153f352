// The listening side: bind early, accept late, drain, close.
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "runtime/base/mem.h"
#include "runtime/http/internal.h"

static void on_idle(uv_idle_t *idle) {
  mob_http_server_t *server = idle->data;
  // A connection may be marked again meanwhile; it ends because each mark stands for work that was
  // done.
  while (server->dirty) {
    mob__conn_t *conn = server->dirty;
    server->dirty = conn->dirty_next;
    conn->dirty = false;
    mob__conn_service(conn);
  }
  uv_idle_stop(idle);
}

void mob__server_wake(mob_http_server_t *server) {
  if (!uv_is_active((uv_handle_t *)&server->idle)) uv_idle_start(&server->idle, on_idle);
}

// Without SO_REUSEADDR first: two sockets that both have it may share a port as long as neither
// listens, and then a clash would show only when the model has loaded. Connections of a former
// process in TIME_WAIT make that bind fail, so the second try has it. The listening socket gets it
// in any case, for the next process's sake.
static int bind_socket(const struct sockaddr *addr, socklen_t len, int *out) {
  for (int reuse = 0; reuse <= 1; reuse++) {
    int fd = socket(addr->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) return errno;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &reuse, sizeof reuse);
    if (bind(fd, addr, len) == 0) {
      *out = fd;
      return 0;
    }
    int err = errno;
    close(fd);
    if (err != EADDRINUSE || reuse) return err;
  }
  return EADDRINUSE;
}

static mob_status resolve(uv_loop_t *loop, const char *host, int port, struct sockaddr_storage *out,
                          socklen_t *len) {
  memset(out, 0, sizeof *out);
  if (!host || !*host) host = "0.0.0.0";
  if (uv_ip4_addr(host, port, (struct sockaddr_in *)out) == 0) {
    *len = sizeof(struct sockaddr_in);
    return MOB_OK;
  }
  if (uv_ip6_addr(host, port, (struct sockaddr_in6 *)out) == 0) {
    *len = sizeof(struct sockaddr_in6);
    return MOB_OK;
  }
  uv_getaddrinfo_t look_up;
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE};
  int rc = uv_getaddrinfo(loop, &look_up, NULL, host, service,
                          &hints); // no callback: it blocks, before the loop runs
  if (rc != 0) return mob_fail(MOB_E_INVALID, "host %s: %s", host, uv_strerror(rc));
  memcpy(out, look_up.addrinfo->ai_addr, look_up.addrinfo->ai_addrlen);
  *len = look_up.addrinfo->ai_addrlen;
  uv_freeaddrinfo(look_up.addrinfo);
  return MOB_OK;
}

mob_status mob_http_bind(uv_loop_t *loop, const mob_http_config_t *config,
                         const mob_http_handler_t *handler, void *owner, mob_http_server_t **out) {
  *out = NULL;
  if (config->port < 0 || config->port > 65535) {
    return mob_fail(MOB_E_INVALID, "port %d is not between 0 and 65535", config->port);
  }
  struct sockaddr_storage addr;
  socklen_t len = sizeof addr;
  MOB_TRY(resolve(loop, config->host, config->port, &addr, &len));
  mob__tls_ctx_t *tls = NULL;
  if (config->tls_cert) MOB_TRY(mob__tls_ctx_new(config, &tls));
  int fd = -1;
  int err = bind_socket((struct sockaddr *)&addr, len, &fd);
  if (err) {
    mob__tls_ctx_free(tls);
    return mob_fail(
        err == EADDRINUSE ? MOB_E_NO_RESOURCES : MOB_E_IO, "cannot bind %s port %d: %s%s",
        config->host ? config->host : "0.0.0.0", config->port, strerror(err),
        err == EADDRINUSE ? " (another process listens there; choose another port)" : "");
  }
  len = sizeof addr;
  getsockname(fd, (struct sockaddr *)&addr, &len);
  mob_http_server_t *server = MOB_NEW(mob_http_server_t);
  server->loop = loop;
  server->fd = fd;
  server->port = ntohs(addr.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&addr)->sin6_port
                                                  : ((struct sockaddr_in *)&addr)->sin_port);
  server->config = *config;
  server->handler = *handler;
  server->owner = owner;
  server->tls = tls;
  server->read_buffer = mob_malloc(MOB__READ_CHUNK);
  uv_tcp_init(loop, &server->listener);
  server->listener.data = server;
  uv_idle_init(loop, &server->idle);
  server->idle.data = server;
  server->open_handles = 2;
  *out = server;
  return MOB_OK;
}

static void on_connection(uv_stream_t *listener, int status) {
  if (status == 0) mob__conn_accept(listener->data);
}

mob_status mob_http_listen(mob_http_server_t *server) {
  MOB_ASSERT(!server->listening && server->fd >= 0);
  int on = 1;
  setsockopt(server->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  int rc = uv_tcp_open(&server->listener, server->fd);
  if (rc != 0) return mob_fail(MOB_E_IO, "listening on port %d: %s", server->port, uv_strerror(rc));
  server->fd = -1; // the listener's
  rc = uv_listen((uv_stream_t *)&server->listener, 2048, on_connection);
  if (rc != 0) return mob_fail(MOB_E_IO, "listening on port %d: %s", server->port, uv_strerror(rc));
  server->listening = true;
  return MOB_OK;
}

int mob_http_port(const mob_http_server_t *server) {
  return server->port;
}

static void on_handle_closed(uv_handle_t *handle) {
  mob__server_release(handle->data);
}

static void close_listener(mob_http_server_t *server) {
  if (!uv_is_closing((uv_handle_t *)&server->listener)) {
    uv_close((uv_handle_t *)&server->listener, on_handle_closed);
  }
  if (server->fd >= 0) close(server->fd);
  server->fd = -1;
}

static void check_drained(mob_http_server_t *server) {
  if (!server->draining || server->conn_count > 0 || !server->drained) return;
  void (*done)(void *) = server->drained;
  server->drained = NULL;
  done(server->drained_arg);
}

void mob__server_conn_closed(mob_http_server_t *server) {
  check_drained(server);
}

void mob__server_release(mob_http_server_t *server) {
  if (--server->open_handles > 0) return;
  mob__tls_ctx_free(server->tls);
  mob_buf_free(&server->plain);
  free(server->read_buffer);
  free(server);
}

void mob_http_drain(mob_http_server_t *server, void (*done)(void *arg), void *arg) {
  server->draining = true;
  server->drained = done;
  server->drained_arg = arg;
  close_listener(server);
  server->conn_count++; // so that closing the last one does not report before all were looked at
  for (mob__conn_t *conn = server->conns, *next; conn; conn = next) {
    next = conn->next;
    mob__conn_drain(conn);
  }
  server->conn_count--;
  check_drained(server);
}

void mob_http_close(mob_http_server_t *server) {
  if (server->closing) return;
  server->closing = true;
  server->drained = NULL;
  close_listener(server);
  while (server->conns) mob__conn_close(server->conns);
  uv_idle_stop(&server->idle);
  uv_close((uv_handle_t *)&server->idle, on_handle_closed);
}
