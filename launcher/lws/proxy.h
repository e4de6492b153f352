// Copies bytes between a client's connection and a pod's, half-closes and resets included.
#ifndef MOB_LWS_PROXY_H
#define MOB_LWS_PROXY_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

typedef struct mob_lws_proxies {
  struct mob_lws_proxy *first;
  size_t active;
} mob_lws_proxies_t;

// Takes over `client`, a connected socket, and connects to the address. The socket towards the pod
// is made in the process's present network namespace.
void mob__proxy_start(mob_lws_proxies_t *list, uv_loop_t *loop, int client, const char *address,
                      int port);
// Resets the connections to a pod that is gone: nothing else would tell their clients.
void mob__proxy_close_address(mob_lws_proxies_t *list, const char *address);
void mob__proxy_close_all(mob_lws_proxies_t *list); // resets every connection

#endif
