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

typedef struct listener {
  mob_lws_forward_t *forward;
  int fd; // -1: none
  mob_lws_watch_t *watch;
} listener_t;

enum { LOCAL_V4, LOCAL_V6, CLUSTER, LISTENERS };

struct mob_lws_forward {
  mob_lws_services_t *services;
  const mob_lws_service_t *service;
  const mob_lws_service_port_t *port;
  int local_port;      // 0: none
  int guard;           // keeps other runners off the local port while it refuses; -1: none
  char cluster_ip[16]; // "" where pods have no network of their own
  listener_t listeners[LISTENERS];
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

static void on_accept(void *arg) {
  listener_t *listener = arg;
  mob_lws_forward_t *f = listener->forward;
  for (int i = 0; i < 64; i++) {
    int fd = accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
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

// A socket that is bound and refuses.
static mob_status bind_one(const struct sockaddr *address, socklen_t len, int *out) {
  int one = 1;
  int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return mob_fail(MOB_E_UNSUPPORTED, "socket: %s", strerror(errno));
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (address->sa_family == AF_INET6) {
    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  }
  // Listening tells whether the port is free: with SO_REUSEADDR two sockets may bind one port.
  if (bind(fd, address, len) != 0 || listen(fd, 1024) != 0) {
    int error = errno;
    close(fd);
    return mob_fail(error == EADDRINUSE ? MOB_E_EXISTS : MOB_E_UNSUPPORTED, "%s", strerror(error));
  }
  shutdown(fd, SHUT_RD);
  *out = fd;
  return MOB_OK;
}

static mob_status bind_v4(uint32_t address, int port, int *out) {
  struct sockaddr_in to = {
      .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = address};
  return bind_one((const struct sockaddr *)&to, sizeof to, out);
}

static mob_status bind_v6_loopback(int port, int *out) {
  struct sockaddr_in6 to = {
      .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_loopback};
  return bind_one((const struct sockaddr *)&to, sizeof to, out);
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

static mob_status bind_local(mob_lws_forward_t *f) {
  int port = f->local_port;
  MOB_TRY(bind_guard(port, &f->guard));
  MOB_TRY(bind_v4(htonl(INADDR_LOOPBACK), port, &f->listeners[LOCAL_V4].fd));
  // A machine without IPv6 does without.
  return bind_v6_loopback(port, &f->listeners[LOCAL_V6].fd) == MOB_E_EXISTS ? MOB_E_EXISTS : MOB_OK;
}

mob_status mob__services_bind(mob_lws_services_t *services, const mob_lws_service_t *service,
                              const mob_lws_service_port_t *port, int local_port) {
  mob_lws_forward_t *f = MOB_NEW(mob_lws_forward_t);
  *f = (mob_lws_forward_t){.services = services,
                           .service = service,
                           .port = port,
                           .local_port = local_port,
                           .guard = -1};
  for (int i = 0; i < LISTENERS; i++) f->listeners[i] = (listener_t){.forward = f, .fd = -1};
  *mob_vec_push(&services->forwards) = f;
  if (local_port == 0 || bind_local(f) == MOB_OK) return MOB_OK;
  return mob_wrap(
      MOB_E_EXISTS,
      "cannot forward %s:%d: port %d of localhost (end its user, or choose another with "
      "--forward %s:%d=LOCALPORT)",
      service->name, port->port, local_port, service->name, port->port);
}

mob_status mob__services_join(mob_lws_services_t *services, const mob_lws_network_t *net) {
  if (net->mode == MOB_LWS_LOOPBACK) return MOB_OK;
  for (size_t i = 0; i < services->forwards.len; i++) {
    mob_lws_forward_t *f = services->forwards.at[i];
    uint32_t index = 0; // of the Service, whose ports share an address
    while (services->manifest->services.at[index] != f->service) index++;
    struct in_addr address = {mob__lws_network_service_address(index)};
    mob_status status = mob__lws_network_add_address(net, address.s_addr);
    if (status != MOB_OK && status != MOB_E_EXISTS) return status;
    inet_ntop(AF_INET, &address, f->cluster_ip, sizeof f->cluster_ip);
    status = bind_v4(address.s_addr, f->port->port, &f->listeners[CLUSTER].fd);
    if (status != MOB_OK) {
      return mob_wrap(status, "%s:%d: port %d twice in one Service", f->service->file,
                      f->service->line, f->port->port);
    }
  }
  return MOB_OK;
}

void mob__services_hosts(const mob_lws_services_t *services, mob_buf_t *out) {
  const mob_lws_service_t *last = NULL;
  for (size_t i = 0; i < services->forwards.len; i++) {
    const mob_lws_forward_t *f = services->forwards.at[i];
    const char *n = f->service->name, *ns = f->service->namespace_;
    if (f->service == last || !*f->cluster_ip) continue;
    last = f->service;
    mob_buf_printf(out, "%s\t%s.%s.svc.cluster.local %s.%s.svc %s.%s %s\n", f->cluster_ip, n, ns, n,
                   ns, n, ns, n);
  }
}

static bool has_endpoint(const mob_lws_forward_t *f) {
  const mob_lws_kubelet_t *k = f->services->kubelet;
  for (size_t i = 0; i < k->pods.len; i++) {
    if (is_endpoint(f, k->pods.at[i])) return true;
  }
  return false;
}

static void tell_open(const mob_lws_forward_t *f, const char *object) {
  mob_lws_events_t *events = f->services->events;
  int target = f->port->target ? f->port->target : f->port->port;
  if (!f->open) {
    mob__event(events, true, object, "NoEndpoints", "no ready pod: port %d refuses",
               f->local_port ? f->local_port : f->port->port);
  } else if (f->local_port) {
    mob__event(events, false, object, "Forwarding", "Forwarding from 127.0.0.1:%d -> %d",
               f->local_port, target);
  } else {
    mob__event(events, false, object, "Endpoints", "%s:%d leads to ready pods", f->cluster_ip,
               f->port->port);
  }
}

static void set_open(mob_lws_forward_t *f, bool open) {
  char object[96];
  f->open = open;
  snprintf(object, sizeof object, "service/%s", f->service->name);
  for (int i = 0; i < LISTENERS; i++) {
    listener_t *l = &f->listeners[i];
    if (l->fd < 0) continue;
    if (!open) {
      // The one way to make a listening socket refuse and keep its port: Linux takes it back to
      // bound.
      mob__watch_stop(&l->watch);
      shutdown(l->fd, SHUT_RD);
    } else if (listen(l->fd, 1024) == 0) {
      mob__watch_start(&l->watch, f->services->loop, l->fd, UV_READABLE, on_accept, l);
    } else {
      mob__event(f->services->events, true, object, "ForwardingFailed", "port %d: %s",
                 f->local_port, strerror(errno));
    }
  }
  tell_open(f, object);
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
    for (int k = 0; k < LISTENERS; k++) {
      mob__watch_stop(&f->listeners[k].watch);
      if (f->listeners[k].fd >= 0) close(f->listeners[k].fd);
    }
    if (f->guard >= 0) close(f->guard);
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
    json_array_append_new(list, json_pack("{s:s, s:i, s:i, s:s, s:b, s:I, s:I, s:s, s:o}", "name",
                                          f->service->name, "port", f->port->port, "local_port",
                                          f->local_port, "cluster_ip", f->cluster_ip, "open",
                                          (int)f->open, "connections", (json_int_t)f->connections,
                                          "active", (json_int_t)f->proxies.active, "last_pod",
                                          f->last_pod, "endpoints", endpoints));
  }
  return list;
}
