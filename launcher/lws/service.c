#include "launcher/lws/service.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "launcher/lws/proxy.h"

struct mob_lws_forward {
  mob_lws_services_t *services;
  const mob_lws_service_t *service;
  const mob_lws_service_port_t *port;
  int local_port;
  int fds[2]; // 127.0.0.1 and [::1], -1 when there is none
  int guard;  // keeps other runners off the port while it refuses
  mob_lws_watch_t *watches[2];
  bool open;
  size_t next; // endpoint, round robin
  uint64_t connections;
  char last_pod[80]; // to which the latest connection went
  mob_lws_proxies_t proxies;
};

bool mob__service_selects(const mob_lws_service_t *service, const mob_lws_pod_t *pod) {
  if (service->selector.len == 0 || strcmp(service->namespace_, pod->id.set->namespace_) != 0)
    return false;
  for (size_t i = 0; i < service->selector.len; i++) {
    bool found = false;
    for (size_t k = 0; k < pod->labels.len; k++) {
      found |= strcmp(pod->labels.at[k].key, service->selector.at[i].key) == 0 &&
               strcmp(pod->labels.at[k].value, service->selector.at[i].value) == 0;
    }
    if (!found) return false;
  }
  return true;
}

static int target_port(const mob_lws_service_port_t *port, const mob_lws_pod_t *pod) {
  if (port->target) return port->target;
  for (size_t i = 0; i < pod->instance_count; i++) {
    const mob_lws_container_t *c = pod->instances[i].spec;
    for (size_t k = 0; k < c->port_count; k++) {
      if (c->ports[k].name && strcmp(c->ports[k].name, port->target_name) == 0)
        return c->ports[k].port;
    }
  }
  return 0;
}

static bool is_endpoint(const mob_lws_forward_t *f, const mob_lws_pod_t *pod) {
  if (pod->deleting || !mob__service_selects(f->service, pod)) return false;
  return (mob__pod_ready(pod) || (f->service->publish_not_ready && pod->set_up)) &&
         target_port(f->port, pod) != 0;
}

static const mob_lws_pod_t *pick(mob_lws_forward_t *f) {
  const mob_lws_kubelet_t *k = f->services->kubelet;
  size_t count = 0;
  for (size_t i = 0; i < k->pods.len; i++) count += is_endpoint(f, k->pods.at[i]);
  if (count == 0) return NULL;
  // Pods are listed in order of creation; a group that was recreated moves to the end, which keeps
  // the turn of the others.
  size_t turn = f->next++ % count;
  for (size_t i = 0; i < k->pods.len; i++) {
    if (is_endpoint(f, k->pods.at[i]) && turn-- == 0) return k->pods.at[i];
  }
  return NULL;
}

static void accept_all(mob_lws_forward_t *f, int listener) {
  for (int i = 0; i < 64; i++) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    const mob_lws_pod_t *pod = pick(f);
    if (!pod) { // between the last pod's end and the port's closing
      struct linger reset = {1, 0};
      setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
      close(fd);
      continue;
    }
    f->connections++;
    snprintf(f->last_pod, sizeof f->last_pod, "%s", pod->id.name);
    mob__proxy_start(&f->proxies, f->services->loop, fd, pod->address, target_port(f->port, pod));
  }
}

static void on_accept4(void *arg) {
  accept_all(arg, ((mob_lws_forward_t *)arg)->fds[0]);
}
static void on_accept6(void *arg) {
  accept_all(arg, ((mob_lws_forward_t *)arg)->fds[1]);
}

static mob_status bind_one(int family, int port, int *out) {
  int one = 1;
  struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  struct sockaddr_in6 v6 = {
      .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_loopback};
  v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return mob_fail(MOB_E_UNSUPPORTED, "socket: %s", strerror(errno));
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  const struct sockaddr *address =
      family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;
  // Listening tells whether the port is free: with SO_REUSEADDR two sockets may bind one port.
  if (bind(fd, address, family == AF_INET ? sizeof v4 : sizeof v6) != 0 || listen(fd, 1024) != 0) {
    int error = errno;
    close(fd);
    return mob_fail(error == EADDRINUSE ? MOB_E_EXISTS : MOB_E_UNSUPPORTED, "%s", strerror(error));
  }
  shutdown(fd, SHUT_RD); // bound, but refusing
  *out = fd;
  return MOB_OK;
}

// A port that is bound but refuses does not keep others from binding it, too. A name that the
// network namespace knows once does.
static mob_status bind_guard(int port, int *out) {
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int n = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "mobula-lws-port-%d", port);
  *out = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  socklen_t len = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)n);
  if (*out >= 0 && bind(*out, (struct sockaddr *)&name, len) == 0) return MOB_OK;
  int error = errno;
  if (*out >= 0) close(*out);
  *out = -1;
  return mob_fail(MOB_E_EXISTS, "%s",
                  error == EADDRINUSE ? "a runner forwards it already" : strerror(error));
}

mob_status mob__services_bind(mob_lws_services_t *services, const mob_lws_service_t *service,
                              const mob_lws_service_port_t *port, int local_port) {
  int guard = -1, v4 = -1, v6 = -1;
  mob_status status = bind_guard(local_port, &guard);
  if (status == MOB_OK) status = bind_one(AF_INET, local_port, &v4);
  // A machine without IPv6 does without.
  if (status == MOB_OK && bind_one(AF_INET6, local_port, &v6) == MOB_E_EXISTS)
    status = MOB_E_EXISTS;
  if (status != MOB_OK) {
    if (v4 >= 0) close(v4);
    if (guard >= 0) close(guard);
    return mob_wrap(
        status,
        "cannot forward %s:%d: port %d of localhost (end its user, or choose another with "
        "--forward %s:%d=LOCALPORT)",
        service->name, port->port, local_port, service->name, port->port);
  }
  mob_lws_forward_t *f = MOB_NEW(mob_lws_forward_t);
  *f = (mob_lws_forward_t){.services = services,
                           .service = service,
                           .port = port,
                           .local_port = local_port,
                           .fds = {v4, v6},
                           .guard = guard};
  *mob_vec_push(&services->forwards) = f;
  return MOB_OK;
}

static bool has_endpoint(const mob_lws_forward_t *f) {
  const mob_lws_kubelet_t *k = f->services->kubelet;
  for (size_t i = 0; i < k->pods.len; i++) {
    if (is_endpoint(f, k->pods.at[i])) return true;
  }
  return false;
}

static void set_open(mob_lws_forward_t *f, bool open) {
  char object[96];
  f->open = open;
  snprintf(object, sizeof object, "service/%s", f->service->name);
  for (int i = 0; i < 2; i++) {
    if (f->fds[i] < 0) continue;
    if (open) {
      if (listen(f->fds[i], 1024) != 0) {
        mob__event(f->services->events, true, object, "ForwardingFailed", "port %d: %s",
                   f->local_port, strerror(errno));
        continue;
      }
      mob__watch_start(&f->watches[i], f->services->loop, f->fds[i], UV_READABLE,
                       i ? on_accept6 : on_accept4, f);
    } else {
      // The one way to make a listening socket refuse and keep its port: Linux takes it back to
      // bound.
      mob__watch_stop(&f->watches[i]);
      shutdown(f->fds[i], SHUT_RD);
    }
  }
  if (open) {
    mob__event(f->services->events, false, object, "Forwarding",
               "Forwarding from 127.0.0.1:%d -> %d", f->local_port,
               f->port->target ? f->port->target : f->port->port);
  } else {
    mob__event(f->services->events, true, object, "NoEndpoints",
               "no ready pod: 127.0.0.1:%d refuses", f->local_port);
  }
}

void mob__services_update(mob_lws_services_t *services) {
  for (size_t i = 0; i < services->forwards.len; i++) {
    mob_lws_forward_t *f = services->forwards.at[i];
    bool open = has_endpoint(f);
    if (open != f->open) set_open(f, open);
  }
}

void mob__services_pod_gone(mob_lws_services_t *services, const mob_lws_pod_t *pod) {
  for (size_t i = 0; i < services->forwards.len; i++) {
    mob__proxy_close_address(&services->forwards.at[i]->proxies, pod->address);
  }
}

void mob__services_close(mob_lws_services_t *services) {
  for (size_t i = 0; i < services->forwards.len; i++) {
    mob_lws_forward_t *f = services->forwards.at[i];
    for (int k = 0; k < 2; k++) {
      mob__watch_stop(&f->watches[k]);
      if (f->fds[k] >= 0) close(f->fds[k]);
    }
    close(f->guard);
    mob__proxy_close_all(&f->proxies);
    free(f);
  }
  mob_vec_free(&services->forwards);
}

json_t *mob__services_json(const mob_lws_services_t *services) {
  json_t *list = json_array();
  for (size_t i = 0; i < services->forwards.len; i++) {
    const mob_lws_forward_t *f = services->forwards.at[i];
    json_t *endpoints = json_array();
    for (size_t k = 0; k < services->kubelet->pods.len; k++) {
      const mob_lws_pod_t *pod = services->kubelet->pods.at[k];
      if (!is_endpoint(f, pod)) continue;
      json_array_append_new(endpoints, json_pack("{s:s, s:s, s:i}", "pod", pod->id.name, "address",
                                                 pod->address, "port", target_port(f->port, pod)));
    }
    json_array_append_new(list, json_pack("{s:s, s:i, s:i, s:b, s:I, s:I, s:s, s:o}", "name",
                                          f->service->name, "port", f->port->port, "local_port",
                                          f->local_port, "open", (int)f->open, "connections",
                                          (json_int_t)f->connections, "active",
                                          (json_int_t)f->proxies.active, "last_pod", f->last_pod,
                                          "endpoints", endpoints));
  }
  return list;
}
