// Startup, readiness and liveness probes with the kubelet's counting, and the network checks that
// probes and lifecycle hooks share.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/instance.h"
#include "launcher/lws/kubelet.h"
#include "runtime/base/clock.h"

static const char *const probe_names[] = {"Startup", "Readiness", "Liveness"};

// ---- httpGet and tcpSocket

typedef struct mob_lws_net_check {
  uv_loop_t *loop;
  int fd;
  bool http;
  mob_lws_watch_t *watch;
  mob_lws_timer_t *soon; // an outcome that is known at once is told from the loop all the same
  mob_buf_t out, in;
  size_t sent;
  bool ok;
  char why[160];
  void (*fn)(void *arg, bool ok, const char *why);
  void *arg;
} mob_lws_net_check_t;

static void free_check(mob_lws_net_check_t *check) {
  mob__watch_stop(&check->watch);
  mob__timer_cancel(&check->soon);
  if (check->fd >= 0) close(check->fd);
  mob_buf_free(&check->out);
  mob_buf_free(&check->in);
  free(check);
}

void mob__net_check_cancel(mob_lws_net_check_t **check) {
  if (*check) free_check(*check);
  *check = NULL;
}

static void finish(void *arg) {
  mob_lws_net_check_t *check = arg;
  void (*fn)(void *, bool, const char *) = check->fn;
  void *fn_arg = check->arg;
  bool ok = check->ok;
  char why[160];
  memcpy(why, check->why, sizeof why);
  free_check(check);
  fn(fn_arg, ok, why);
}

static void fail_errno(mob_lws_net_check_t *check, const char *what, int error) {
  snprintf(check->why, sizeof check->why, "%s: %s", what, strerror(error));
  finish(check);
}

static void on_reply(void *arg) {
  mob_lws_net_check_t *check = arg;
  mob_buf_reserve(&check->in, 4096);
  ssize_t n = read(check->fd, check->in.data + check->in.len, 4096);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n < 0) {
    fail_errno(check, "read", errno);
    return;
  }
  check->in.len += (size_t)n;
  int code = 0;
  const char *text = mob_buf_cstr(&check->in);
  if (n > 0 && !strstr(text, "\r\n") && check->in.len < 4096) return;
  if (sscanf(text, "HTTP/%*d.%*d %d", &code) != 1) {
    snprintf(check->why, sizeof check->why, "the reply is no HTTP");
  } else if (code < 200 || code >= 400) {
    snprintf(check->why, sizeof check->why, "HTTP probe failed with statuscode: %d", code);
  } else {
    check->ok = true;
  }
  finish(check);
}

static void on_writable(void *arg) {
  mob_lws_net_check_t *check = arg;
  int error = 0;
  socklen_t len = sizeof error;
  getsockopt(check->fd, SOL_SOCKET, SO_ERROR, &error, &len);
  if (error) {
    fail_errno(check, "dial tcp", error);
    return;
  }
  if (!check->http) {
    check->ok = true;
    finish(check);
    return;
  }
  ssize_t n =
      send(check->fd, check->out.data + check->sent, check->out.len - check->sent, MSG_NOSIGNAL);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n < 0) {
    fail_errno(check, "write", errno);
    return;
  }
  check->sent += (size_t)n;
  if (check->sent < check->out.len) return;
  mob__watch_start(&check->watch, check->loop, check->fd, UV_READABLE, on_reply, check);
}

static int port_of(const mob_lws_container_t *c, const mob_lws_handler_t *h) {
  if (!h->port_name) return h->port;
  for (size_t i = 0; i < c->port_count; i++) {
    if (c->ports[i].name && strcmp(c->ports[i].name, h->port_name) == 0) return c->ports[i].port;
  }
  return 0;
}

static void build_request(mob_lws_net_check_t *check, const mob_lws_handler_t *h, const char *host,
                          int port) {
  bool own_host = false;
  mob_buf_printf(&check->out, "GET %s%s HTTP/1.1\r\n", h->path[0] == '/' ? "" : "/", h->path);
  for (size_t i = 0; i < h->headers.len; i++) {
    if (strcasecmp(h->headers.at[i].key, "Host") == 0) own_host = true;
    mob_buf_printf(&check->out, "%s: %s\r\n", h->headers.at[i].key, h->headers.at[i].value);
  }
  if (!own_host) mob_buf_printf(&check->out, "Host: %s:%d\r\n", host, port);
  mob_buf_puts(&check->out,
               "User-Agent: kube-probe/mobula\r\nAccept: */*\r\nConnection: close\r\n\r\n");
}

mob_lws_net_check_t *mob__net_check(mob_lws_instance_t *c, const mob_lws_handler_t *h,
                                    void (*fn)(void *arg, bool ok, const char *why), void *arg) {
  mob_lws_net_check_t *check = MOB_NEW(mob_lws_net_check_t);
  check->fn = fn;
  check->arg = arg;
  check->http = h->kind == MOB_LWS_HANDLER_HTTP;
  uv_loop_t *loop = check->loop = c->pod->kubelet->loop;
  const char *host = h->host ? h->host : c->pod->address;
  struct sockaddr_in to = {.sin_family = AF_INET};
  int port = port_of(c->spec, h);
  to.sin_port = htons((uint16_t)port);
  check->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (port == 0) {
    snprintf(check->why, sizeof check->why, "the container has no port named \"%s\"", h->port_name);
  } else if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host,
                       &to.sin_addr) != 1) {
    snprintf(check->why, sizeof check->why, "the host \"%.60s\" is no IPv4 address", host);
  } else if (check->fd < 0 ||
             (connect(check->fd, (struct sockaddr *)&to, sizeof to) != 0 && errno != EINPROGRESS)) {
    snprintf(check->why, sizeof check->why, "dial tcp %s:%d: %s", host, port, strerror(errno));
  } else {
    if (check->http) build_request(check, h, host, port);
    mob__watch_start(&check->watch, loop, check->fd, UV_WRITABLE, on_writable, check);
    return check;
  }
  mob__timer_set(&check->soon, loop, 0, finish, check);
  return check;
}

// ---- probes

static void fire(void *arg);

static void schedule(mob_lws_prober_t *p, uint64_t ms) {
  mob__timer_set(&p->next, p->instance->pod->kubelet->loop, ms, fire, p);
}

static void begin_prober(mob_lws_prober_t *p) {
  const mob_lws_probe_t *spec = &p->instance->spec->probes[p->kind];
  p->successes = p->failures = 0;
  if (spec->handler.kind == MOB_LWS_HANDLER_NONE) return;
  mob_lws_instance_t *c = p->instance;
  uint64_t age = mob_now_ms() - c->started_ms, delay = (uint64_t)spec->initial_delay_s * 1000;
  schedule(p, delay > age ? delay - age : 0);
}

static void startup_passed(mob_lws_instance_t *c) {
  c->startup_passed = true;
  begin_prober(&c->probers[MOB_LWS_LIVENESS]);
  begin_prober(&c->probers[MOB_LWS_READINESS]);
  if (c->spec->probes[MOB_LWS_READINESS].handler.kind == MOB_LWS_HANDLER_NONE) c->ready = true;
  mob__kubelet_changed(c->pod);
}

void mob__probe_start_all(mob_lws_instance_t *c) {
  if (c->spec->probes[MOB_LWS_STARTUP].handler.kind == MOB_LWS_HANDLER_NONE) {
    startup_passed(c);
  } else {
    begin_prober(&c->probers[MOB_LWS_STARTUP]);
  }
}

static void stop_prober(mob_lws_prober_t *p) {
  mob__timer_cancel(&p->next);
  mob__timer_cancel(&p->timeout);
  mob__net_check_cancel(&p->check);
  if (p->exec_id) mob__kubelet_cancel_exec(p->instance, p->exec_id);
  p->exec_id = 0;
}

void mob__probe_stop_all(mob_lws_instance_t *c) {
  for (int i = 0; i < MOB_LWS_PROBES; i++) stop_prober(&c->probers[i]);
}

static void passed(mob_lws_prober_t *p) {
  mob_lws_instance_t *c = p->instance;
  if (p->kind == MOB_LWS_STARTUP) {
    stop_prober(p);
    startup_passed(c);
  } else if (p->kind == MOB_LWS_READINESS && !c->ready) {
    c->ready = true;
    mob__kubelet_changed(c->pod);
  }
}

static void too_many_failures(mob_lws_prober_t *p) {
  mob_lws_instance_t *c = p->instance;
  if (p->kind == MOB_LWS_READINESS) {
    if (!c->ready) return;
    c->ready = false;
    mob__kubelet_changed(c->pod);
    return;
  }
  char why[80];
  snprintf(why, sizeof why, "failed %s probe, will be restarted",
           p->kind == MOB_LWS_STARTUP ? "startup" : "liveness");
  mob__instance_stop(c, c->pod->grace_s, why);
  mob__kubelet_changed(c->pod);
}

static void result(mob_lws_prober_t *p, bool ok, const char *why) {
  const mob_lws_probe_t *spec = &p->instance->spec->probes[p->kind];
  mob__timer_cancel(&p->timeout);
  p->exec_id = 0;
  p->check = NULL;
  p->successes = ok ? p->successes + 1 : 0;
  p->failures = ok ? 0 : p->failures + 1;
  if (!ok)
    mob__pod_event(p->instance->pod, true, "Unhealthy", "%s probe failed: %s", probe_names[p->kind],
                   why);
  if (ok && p->successes >= spec->success_threshold) {
    passed(p);
  } else if (!ok && p->failures >= spec->failure_threshold) {
    too_many_failures(p);
  }
}

static void on_check(void *arg, bool ok, const char *why) {
  mob_lws_prober_t *p = arg;
  p->check = NULL;
  result(p, ok, why);
}

static void on_timeout(void *arg) {
  mob_lws_prober_t *p = arg;
  char why[60];
  snprintf(why, sizeof why, "no answer after %d s", p->instance->spec->probes[p->kind].timeout_s);
  mob__net_check_cancel(&p->check);
  if (p->exec_id) mob__kubelet_cancel_exec(p->instance, p->exec_id);
  result(p, false, why);
}

static void fire(void *arg) {
  mob_lws_prober_t *p = arg;
  mob_lws_instance_t *c = p->instance;
  const mob_lws_probe_t *spec = &c->spec->probes[p->kind];
  schedule(p, (uint64_t)spec->period_s * 1000);
  if (p->exec_id || p->check) return; // a period shorter than the timeout
  mob__timer_set(&p->timeout, c->pod->kubelet->loop, (uint64_t)spec->timeout_s * 1000, on_timeout,
                 p);
  if (spec->handler.kind == MOB_LWS_HANDLER_EXEC) {
    static const uint32_t handlers[] = {MOB_LWS_EXEC_STARTUP, MOB_LWS_EXEC_READINESS,
                                        MOB_LWS_EXEC_LIVENESS};
    p->exec_id = mob__kubelet_exec(c, handlers[p->kind]);
  } else {
    p->check = mob__net_check(c, &spec->handler, on_check, p);
  }
}

bool mob__probe_exec_done(mob_lws_instance_t *c, uint32_t id, int status) {
  for (int i = 0; i < MOB_LWS_PROBES; i++) {
    mob_lws_prober_t *p = &c->probers[i];
    if (p->exec_id != id) continue;
    char why[60];
    if (WIFEXITED(status)) {
      snprintf(why, sizeof why, "exit code %d", WEXITSTATUS(status));
    } else {
      snprintf(why, sizeof why, "ended by signal %d", WTERMSIG(status));
    }
    result(p, WIFEXITED(status) && WEXITSTATUS(status) == 0, why);
    return true;
  }
  return false;
}
