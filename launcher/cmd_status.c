// `mobula status`: the group on one screen, or as JSON.

#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <unistd.h>

#include "launcher/cmd_ray.h"
#include "launcher/cmd_status.h"
#include "launcher/status.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/node/session.h"
#include "runtime/rpc/message.h"

enum { CONNECT_MS = 5000, FETCH_MS = 1000, TWO_LOOKS_MS = 600 };
#define DEFAULT_API "http://127.0.0.1:8000"

typedef struct view {
  uv_loop_t loop;
  mob_telemetry_watch_t *watch; // NULL without a cluster
  uv_timer_t patience, look;    // look: without a cluster
  uv_signal_t interrupt;
  const char *api; // --api
  char *address, *url;
  bool json, watching, terminal, asking;
  int rounds, code;
  json_t *last;
} view_t;

static const char help[] =
    "Usage: mobula status [OPTIONS]\n\n"
    "  Show the group on one screen: pods, stages, GPUs, network, requests, tokens per second.\n\n"
    "Options:\n"
    "  --address HOST:PORT  the cluster's head (default: $RAY_ADDRESS, else the cluster of this\n"
    "                       machine)\n"
    "  --api URL            the server's API (default: what the cluster knows; without a cluster\n"
    "                       " DEFAULT_API ")\n"
    "  --watch [SECONDS]    again and again, every 2 seconds or as given, until Ctrl-C\n"
    "  --json               one JSON object, a line each time with --watch\n"
    "  --help               Show this message and exit.\n\n"
    "Rates are taken over the time between two looks. Exit codes: 0; 1 nothing answers; 2 wrong "
    "usage.\n";

// ------------------------------------------------------------------------------------------- HTTP

static mob_status wait_for(int fd, short events, uint64_t deadline) {
  struct pollfd p = {.fd = fd, .events = events};
  uint64_t now = mob_now_ms();
  int rc = poll(&p, 1, deadline > now ? (int)(deadline - now) : 0);
  return rc > 0 ? MOB_OK : mob_fail(MOB_E_TIMEOUT, "no answer in time");
}

static mob_status open_socket(const char *host, const char *port, uint64_t deadline, int *out) {
  struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list;
  int rc = getaddrinfo(host, port, &hints, &list), error = 0;
  if (rc != 0) return mob_fail(MOB_E_UNAVAILABLE, "%s", gai_strerror(rc));
  *out = -1;
  for (struct addrinfo *each = list; each && *out < 0; each = each->ai_next) {
    int fd = socket(each->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    socklen_t size = sizeof error;
    if (fd < 0) continue;
    error = connect(fd, each->ai_addr, each->ai_addrlen) == 0 ? 0 : errno;
    if (error == EINPROGRESS) {
      error = ETIMEDOUT;
      if (wait_for(fd, POLLOUT, deadline) == MOB_OK)
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size);
    }
    if (error)
      close(fd);
    else
      *out = fd;
  }
  freeaddrinfo(list);
  return *out >= 0 ? MOB_OK : mob_fail(MOB_E_UNAVAILABLE, "%s", strerror(error));
}

static mob_status exchange(int fd, const mob_buf_t *request, uint64_t deadline, mob_buf_t *reply) {
  size_t sent = 0;
  while (sent < request->len) {
    MOB_TRY(wait_for(fd, POLLOUT, deadline));
    ssize_t n = send(fd, request->data + sent, request->len - sent, MSG_NOSIGNAL);
    if (n < 0 && errno != EAGAIN) return mob_fail(MOB_E_UNAVAILABLE, "%s", strerror(errno));
    if (n > 0) sent += (size_t)n;
  }
  for (;;) {
    MOB_TRY(wait_for(fd, POLLIN, deadline));
    mob_buf_reserve(reply, 65536);
    ssize_t n = recv(fd, reply->data + reply->len, 65536, 0);
    if (n == 0) return MOB_OK;
    if (n < 0 && errno != EAGAIN) return mob_fail(MOB_E_UNAVAILABLE, "%s", strerror(errno));
    if (n > 0) reply->len += (size_t)n;
    if (reply->len > 64u << 20) return mob_fail(MOB_E_FORMAT, "the answer does not end");
  }
}

mob_status mob__status_fetch(const char *base, uint64_t timeout_ms, mob_buf_t *body) {
  uint64_t deadline = mob_now_ms() + timeout_ms;
  char *host = NULL;
  int port = -1, fd = -1;
  mob_buf_t request = {0};
  if (strncasecmp(base, "http://", 7) != 0)
    return mob_fail(MOB_E_UNSUPPORTED,
                    "only http:// is spoken here; a server with TLS is not read");
  char *authority = mob_strndup(base + 7, strcspn(base + 7, "/"));
  mob_status status = mob_split_address(authority, &host, &port);
  char number[16];
  snprintf(number, sizeof number, "%d", port < 0 ? 80 : port);
  if (status == MOB_OK) status = open_socket(host, number, deadline, &fd);
  // HTTP/1.0: the reply ends with the connection.
  mob_buf_printf(&request, "GET /metrics HTTP/1.0\r\nHost: %s\r\n\r\n", authority);
  if (status == MOB_OK) status = exchange(fd, &request, deadline, body);
  if (status == MOB_OK) {
    const char *text = mob_buf_cstr(body), *end = strstr(text, "\r\n\r\n");
    if (strncmp(text, "HTTP/1.", 7) != 0 || strncmp(text + 8, " 200", 4) != 0 || !end)
      status = mob_fail(MOB_E_FORMAT, "GET /metrics was answered with \"%.*s\"",
                        (int)strcspn(text, "\r\n"), text);
    else
      mob_buf_consume(body, (size_t)(end + 4 - text));
  }
  if (fd >= 0) close(fd);
  mob_buf_free(&request);
  free(authority);
  free(host);
  return status;
}

// ------------------------------------------------------------------------------------------ views

static void finish(view_t *v, int code) {
  v->code = code;
  uv_stop(&v->loop);
}

static void print(view_t *v, const json_t *status) {
  if (v->json) {
    char *text =
        json_dumps(status, JSON_REAL_PRECISION(15) | (v->watching ? JSON_COMPACT : JSON_INDENT(2)));
    puts(text);
    free(text);
  } else {
    mob_buf_t text = {0};
    if (v->watching && v->terminal) mob_buf_puts(&text, "\033[H\033[2J");
    mob__status_screen(status, &text);
    if (v->watching && !v->terminal) mob_buf_putc(&text, '\n');
    fputs(mob_buf_cstr(&text), stdout);
    mob_buf_free(&text);
  }
  fflush(stdout);
}

// Adds what the gateway tells to the nodes, and shows it. Takes over `nodes` (NULL: the gateway's).
static void show(view_t *v, json_t *nodes, const char *error) {
  mob_buf_t body = {0};
  json_t *status = json_pack("{s:s?, s:s?}", "address", v->address, "error", error);
  json_t *told = NULL;
  if (v->url) {
    if (mob__status_fetch(v->url, FETCH_MS, &body) == MOB_OK)
      told = mob__status_metrics((char *)mob_buf_cstr(&body), v->url);
    else
      told = json_pack("{s:{s:s, s:b, s:s}}", "gateway", "url", v->url, "up", 0, "error",
                       mob_errmsg());
  }
  mob_buf_free(&body);
  json_t *gateway = json_object_get(told, "gateway");
  json_object_set(status, "gateway", gateway ? gateway : json_null());
  if (!nodes) nodes = json_incref(json_object_get(told, "nodes"));
  json_object_set_new(status, "nodes", nodes ? nodes : json_array());
  json_decref(told);
  bool nothing = !v->address && !json_is_true(json_object_get(gateway, "up"));
  if (nothing && !v->rounds) {
    fprintf(
        stderr,
        "mobula status: nothing runs here: no cluster was started on this machine (ray_init.sh, "
        "ray start), and\nno server answers at %s (%s). Name the head of a cluster with "
        "--address HOST:PORT, or a server\nwith --api URL.\n",
        v->url, json_string_value(json_object_get(gateway, "error")));
    json_decref(status);
    finish(v, 1);
    return;
  }
  mob__status_rates(status, v->last);
  json_decref(v->last);
  v->last = status;
  // One look tells no rates.
  if (v->rounds++ || v->watching) print(v, status);
  if (!v->watching && v->rounds > 1) finish(v, 0);
}

static void read_gateway(view_t *v, const void *data, size_t len) {
  json_t *json = json_loadb(data, len, 0, NULL);
  const char *host = json_string_value(json_object_get(json, "host"));
  if (host) {
    free(v->url);
    v->url = mob_sprintf(strchr(host, ':') ? "%s://[%s]:%lld" : "%s://%s:%lld",
                         json_is_true(json_object_get(json, "tls")) ? "https" : "http", host,
                         json_integer_value(json_object_get(json, "port")));
  }
  json_decref(json);
}

static json_t *nodes_now(view_t *v) {
  size_t count;
  const mob_watched_node_t *nodes = mob_telemetry_watch_nodes(v->watch, &count);
  return mob__status_nodes(nodes, count);
}

static void on_gateway(void *arg, mob_status status, const char *why, const void *message) {
  view_t *v = arg;
  const Ray__Rpc__InternalKVGetReply *reply = message;
  v->asking = false;
  if (status == MOB_E_ABORTED) return;
  (void)why; // not found: nobody serves yet
  if (status == MOB_OK) read_gateway(v, reply->value.data, reply->value.len);
  show(v, nodes_now(v), NULL);
}

static void on_round(void *owner, const char *why) {
  view_t *v = owner;
  uv_timer_stop(&v->patience);
  mob_gcs_client_t *gcs = mob_telemetry_watch_gcs(v->watch);
  if (why || v->api || !gcs) {
    show(v, nodes_now(v), why);
    return;
  }
  if (v->asking) return;
  Ray__Rpc__InternalKVGetRequest request = RAY__RPC__INTERNAL_KVGET_REQUEST__INIT;
  request.namespace_ = mob_pb_bytes("mobula", 6);
  request.key = mob_pb_bytes("gateway", 7);
  v->asking = true;
  mob_gcs_call(gcs, "/ray.rpc.InternalKVGcsService/InternalKVGet", &request,
               &ray__rpc__internal_kvget_reply__descriptor, 2000, on_gateway, v);
}

static void on_patience(uv_timer_t *timer) {
  view_t *v = timer->data;
  fprintf(stderr, "mobula status: the cluster at %s does not answer within %d s\n", v->address,
          CONNECT_MS / 1000);
  finish(v, 1);
}

static void on_look(uv_timer_t *timer) {
  show(timer->data, NULL, NULL);
}

static void on_interrupt(uv_signal_t *handle, int number) {
  (void)number;
  finish(handle->data, 0);
}

// --------------------------------------------------------------------------------------- the start

static char *find_cluster(const char *address) {
  char *current = NULL;
  if (!address || !strcmp(address, "auto")) address = getenv("RAY_ADDRESS");
  if (address && *address && strcmp(address, "auto") != 0) return mob_strdup(address);
  char *temp_dir = mob_temp_dir(NULL);
  if (mob_current_cluster_read(temp_dir, &current) != MOB_OK) current = NULL;
  free(temp_dir);
  return current;
}

static mob_status begin(view_t *v, uint64_t period_ms) {
  v->loop.data = v;
  uv_timer_init(&v->loop, &v->patience);
  uv_timer_init(&v->loop, &v->look);
  uv_signal_init(&v->loop, &v->interrupt);
  v->patience.data = v->look.data = v->interrupt.data = v;
  uv_signal_start(&v->interrupt, on_interrupt, SIGINT);
  if (v->api) v->url = mob_strdup(v->api);
  if (!v->address) {
    if (!v->url) v->url = mob_strdup(DEFAULT_API);
    uv_timer_start(&v->look, on_look, 0, period_ms);
    return MOB_OK;
  }
  uv_timer_start(&v->patience, on_patience, CONNECT_MS, 0);
  return mob_telemetry_watch_new(&v->loop, v->address, period_ms, on_round, v, &v->watch);
}

static void end(view_t *v) {
  uv_close((uv_handle_t *)&v->patience, NULL);
  uv_close((uv_handle_t *)&v->look, NULL);
  uv_close((uv_handle_t *)&v->interrupt, NULL);
  if (v->watch) mob_telemetry_watch_close(v->watch, NULL, NULL);
  uv_run(&v->loop, UV_RUN_DEFAULT);
  uv_loop_close(&v->loop);
  json_decref(v->last);
  free(v->address);
  free(v->url);
}

int mob_status_main(int argc, char **argv) {
  const char *address = NULL, *api = NULL, *seconds = NULL;
  bool watching = false, json = false;
  const mob_cli_flag_t flags[] = {{"--address", &address, NULL},
                                  {"--api", &api, NULL},
                                  {"--watch", NULL, &watching},
                                  {"--json", NULL, &json}};
  // The value of --watch may be left out: "--watch=2" is read as "--watch 2".
  char **args = MOB_NEW_ARRAY(char *, (size_t)argc * 2 + 1);
  int n = 0;
  for (int i = 0; i < argc; i++) {
    bool joined = strncmp(argv[i], "--watch=", 8) == 0;
    if (joined) args[n++] = "--watch";
    args[n++] = joined ? argv[i] + 8 : argv[i];
  }
  size_t given = 0;
  int code =
      mob_cli_parse(n, args, "mobula status", help, flags, MOB_LEN(flags), &seconds, 1, &given);
  free(args);
  if (code >= 0) return code;
  char *rest = NULL;
  double period = given ? strtod(seconds, &rest) : 2;
  if ((given && !watching) ||
      (given && (rest == seconds || *rest || period < .5 || period > 3600))) {
    fprintf(stderr, "Error: %s '%s'\n",
            watching ? "--watch takes a number of seconds from 0.5 to 3600, not"
                     : "Got unexpected extra argument",
            seconds);
    return 2;
  }
  view_t v = {.api = api, .json = json, .watching = watching, .terminal = isatty(STDOUT_FILENO)};
  v.address = find_cluster(address);
  mob_log_set_level(MOB_LOG_ERROR); // what it meets is on the screen
  uv_loop_init(&v.loop);
  if (begin(&v, watching ? (uint64_t)(period * 1000) : TWO_LOOKS_MS) == MOB_OK) {
    uv_run(&v.loop, UV_RUN_DEFAULT);
  } else {
    fprintf(stderr, "mobula status: %s\n", mob_errmsg());
    v.code = 1;
  }
  end(&v);
  return v.code;
}
