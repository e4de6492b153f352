// Services: a port of this machine that leads to the ready pods of a selector, one connection after
// the other to each. While no pod is ready the port refuses.
#ifndef MOB_LWS_SERVICE_H
#define MOB_LWS_SERVICE_H

#include "launcher/lws/kubelet.h"

typedef struct mob_lws_forward mob_lws_forward_t;

typedef struct mob_lws_services {
  uv_loop_t *loop;
  const mob_lws_manifest_t *manifest;
  mob_lws_kubelet_t *kubelet; // whose pods are the endpoints
  mob_lws_events_t *events;
  MOB_VEC(mob_lws_forward_t *) forwards;
} mob_lws_services_t;

// Binds 127.0.0.1 and, where there is IPv6, [::1] in the calling process's present network
// namespace.
mob_status mob__services_bind(mob_lws_services_t *services, const mob_lws_service_t *service,
                              const mob_lws_service_port_t *port, int local_port);
// In the pods' network: gives each Service an address that pods reach, under its name too.
mob_status mob__services_join(mob_lws_services_t *services, const mob_lws_network_t *net);
// Lines for the pods' /etc/hosts.
void mob__services_hosts(const mob_lws_services_t *services, mob_buf_t *out);

// Whenever pods changed: opens or closes the ports.
void mob__services_update(mob_lws_services_t *services);
void mob__services_pod_gone(mob_lws_services_t *services, const mob_lws_pod_t *pod);
void mob__services_close(mob_lws_services_t *services);

bool mob__service_selects(const mob_lws_service_t *service, const mob_lws_pod_t *pod);
json_t *mob__services_json(const mob_lws_services_t *services); // a new reference

#endif
