// The control socket: one JSON object a line in, one a line out.
//   {"op":"status","events":N}                      -> the status
//   {"op":"wait"}                                   -> the status, once all groups are ready
//   {"op":"scale","name":S,"replicas":N}            -> {"ok":true,"text":...}
//   {"op":"fault","pod":P,"action":A,...}           -> {"ok":true,"text":...}
//   {"op":"down","now":B}                           -> {"ok":true,...}, when every pod is gone
// A failure is {"ok":false,"error":TEXT}.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "launcher/lws/runner.h"
#include "launcher/lws/state.h"
#include "runtime/base/file.h"

#define MAX_REQUEST 65536

struct mob_lws_client {
  mob_lws_runner_t *runner;
  mob_lws_client_t *next;
  int fd;
  mob_lws_watch_t *read_watch, *write_watch;
  mob_buf_t in, out;
  bool waits_ready, waits_down, waits_fault, gone;
};

mob_status mob__control_listen(const char *state_dir, int *fd) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  char *path = mob_path_join(state_dir, MOB_LWS_CONTROL);
  // Under another name until it listens, so that whoever sees the socket can connect.
  snprintf(address.sun_path, sizeof address.sun_path, "%s/c.new", state_dir);
  unlink(address.sun_path);
  *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  mode_t mask = umask(077); // who may speak here may kill processes
  bool ok = *fd >= 0 && bind(*fd, (struct sockaddr *)&address, sizeof address) == 0 &&
            listen(*fd, 64) == 0 && rename(address.sun_path, path) == 0;
  umask(mask);
  mob_status status =
      ok ? MOB_OK : mob_fail(MOB_E_IO, "cannot listen on %s: %s", path, strerror(errno));
  free(path);
  return status;
}

static void free_client(mob_lws_client_t *client) {
  mob_lws_client_t **link = &client->runner->clients;
  while (*link != client) link = &(*link)->next;
  *link = client->next;
  mob__watch_stop(&client->read_watch);
  mob__watch_stop(&client->write_watch);
  close(client->fd);
  mob_buf_free(&client->in);
  mob_buf_free(&client->out);
  free(client);
}

static void drop(mob_lws_client_t *client) {
  if (client->waits_fault) { // the fault's answer comes back here
    client->gone = true;
    mob__watch_stop(&client->read_watch);
    return;
  }
  free_client(client);
}

static void flush(void *arg) {
  mob_lws_client_t *client = arg;
  while (client->out.len > 0) {
    ssize_t n = send(client->fd, client->out.data, client->out.len, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {
      if (!client->write_watch) {
        mob__watch_start(&client->write_watch, &client->runner->loop, client->fd, UV_WRITABLE,
                         flush, client);
      }
      return;
    }
    if (n < 0) {
      client->out.len = 0; // its end is seen by the reader
      break;
    }
    mob_buf_consume(&client->out, (size_t)n);
  }
  mob__watch_stop(&client->write_watch);
}

static void reply(mob_lws_client_t *client, json_t *json) {
  char *text = json_dumps(json, JSON_COMPACT);
  json_decref(json);
  mob_buf_puts(&client->out,
               text ? text : "{\"ok\":false,\"error\":\"the answer is not valid UTF-8\"}");
  mob_buf_putc(&client->out, '\n');
  free(text);
  if (!client->write_watch) flush(client);
}

static void reply_text(mob_lws_client_t *client, mob_status status, const char *text) {
  json_t *value = json_string(text);
  if (!value) value = json_string("?");
  reply(client, json_pack("{s:b, s:o}", "ok", (int)(status == MOB_OK),
                          status == MOB_OK ? "text" : "error", value));
}

static void on_fault_done(void *arg, mob_status status, const char *text) {
  mob_lws_client_t *client = arg;
  client->waits_fault = false;
  if (client->gone) {
    free_client(client);
  } else {
    reply_text(client, status, text);
  }
}

static void scale(mob_lws_client_t *client, const json_t *request) {
  mob_lws_runner_t *r = client->runner;
  const char *name = json_string_value(json_object_get(request, "name"));
  const json_t *replicas = json_object_get(request, "replicas");
  mob_lws_controlled_set_t *set = name ? mob__controller_find(&r->controller, name)
                                  : r->controller.sets.len == 1 ? r->controller.sets.at[0]
                                                                : NULL;
  char text[200];
  if (r->ending) {
    reply_text(client, MOB_E_UNAVAILABLE, "the runner is ending");
  } else if (!set) {
    snprintf(text, sizeof text, "there is no LeaderWorkerSet \"%.80s\" here", name ? name : "");
    reply_text(client, MOB_E_NOT_FOUND, text);
  } else if (!json_is_integer(replicas) || json_integer_value(replicas) < 0 ||
             json_integer_value(replicas) > 1000) {
    reply_text(client, MOB_E_INVALID, "replicas must be from 0 to 1000 on one machine");
  } else {
    snprintf(text, sizeof text, "leaderworkerset %s scaled to %lld", set->set->name,
             (long long)json_integer_value(replicas));
    mob__controller_scale(&r->controller, set, json_integer_value(replicas));
    reply_text(client, MOB_OK, text);
  }
}

static void handle(mob_lws_client_t *client, const char *line, size_t len) {
  mob_lws_runner_t *r = client->runner;
  json_error_t error;
  json_t *request = json_loadb(line, len, 0, &error);
  const char *op = json_string_value(json_object_get(request, "op"));
  if (!op) {
    reply_text(client, MOB_E_INVALID, "a request is one JSON object with an \"op\"");
  } else if (strcmp(op, "status") == 0) {
    json_int_t events = json_integer_value(json_object_get(request, "events"));
    reply(client, mob__runner_status(r, events > 0 ? (size_t)events : 0));
  } else if (strcmp(op, "wait") == 0) {
    client->waits_ready = true;
    mob__control_changed(r);
  } else if (strcmp(op, "scale") == 0) {
    scale(client, request);
  } else if (strcmp(op, "fault") == 0) {
    client->waits_fault = true;
    mob__fault_apply(r, request, on_fault_done, client);
  } else if (strcmp(op, "down") == 0) {
    client->waits_down = true;
    mob__runner_end(r, json_is_true(json_object_get(request, "now")));
  } else {
    reply_text(client, MOB_E_INVALID, "unknown op; known are status, wait, scale, fault, down");
  }
  json_decref(request);
}

static void on_readable(void *arg) {
  mob_lws_client_t *client = arg;
  mob_buf_reserve(&client->in, 4096);
  ssize_t n = read(client->fd, client->in.data + client->in.len, 4096);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n <= 0 || client->in.len > MAX_REQUEST) {
    drop(client);
    return;
  }
  client->in.len += (size_t)n;
  const uint8_t *nl;
  while (client->in.len > 0 && (nl = memchr(client->in.data, '\n', client->in.len))) {
    size_t len = (size_t)(nl - client->in.data);
    char *line = mob_strndup((const char *)client->in.data, len);
    mob_buf_consume(&client->in, len + 1);
    handle(client, line, len);
    free(line);
  }
}

static void on_connection(void *arg) {
  mob_lws_runner_t *r = arg;
  int fd = accept4(r->control, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  mob_lws_client_t *client = MOB_NEW(mob_lws_client_t);
  client->runner = r;
  client->fd = fd;
  client->next = r->clients;
  r->clients = client;
  mob__watch_start(&client->read_watch, &r->loop, fd, UV_READABLE, on_readable, client);
}

void mob__control_start(mob_lws_runner_t *r) {
  mob__watch_start(&r->control_watch, &r->loop, r->control, UV_READABLE, on_connection, r);
}

void mob__control_changed(mob_lws_runner_t *r) {
  bool ready = mob__runner_all_ready(r);
  for (mob_lws_client_t *c = r->clients; c; c = c->next) {
    if (c->waits_ready && (ready || r->ending)) {
      c->waits_ready = false;
      reply(c, mob__runner_status(r, 0));
    }
  }
}

void mob__control_close(mob_lws_runner_t *r) {
  while (r->clients) {
    mob_lws_client_t *c = r->clients;
    if (c->waits_down) reply_text(c, MOB_OK, "all pods are gone");
    c->waits_fault = false;
    free_client(c);
  }
  mob__watch_stop(&r->control_watch);
  close(r->control);
}
