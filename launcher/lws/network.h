// The pod network: how pods are kept apart on this machine, and the bridge they hang on.
//
// With namespaces the runner itself moves into a network namespace of its own that holds the
// bridge, so the host's interfaces, routes and firewall stay untouched and the kernel removes
// everything with the last process. What must be reachable from the caller's namespace (the
// Services' local ports) is bound before the move.
#ifndef MOB_LWS_NETWORK_H
#define MOB_LWS_NETWORK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/status.h"

typedef enum mob_lws_network_mode {
  MOB_LWS_NETNS,    // namespaces, as root
  MOB_LWS_USERNS,   // namespaces inside a user namespace, without root
  MOB_LWS_LOOPBACK, // no namespaces: an address of 127/8 for each pod
} mob_lws_network_mode_t;

typedef struct mob_lws_network {
  mob_lws_network_mode_t mode;
  int netlink;        // in the bridge's namespace; -1 in loopback mode
  uint32_t next_host; // of the next pod address
  char why[256];      // how the mode came about
} mob_lws_network_t;

#define MOB_LWS_BRIDGE "mob0"
#define MOB_LWS_POD_PREFIX 16

const char *mob__lws_network_name(mob_lws_network_mode_t mode);

// `wanted`: "auto", "netns", "userns" or "loopback". Tries in a child process what the mode needs;
// a mode asked for by name that does not work is an error that names the cause.
mob_status mob__lws_network_choose(const char *wanted, mob_lws_network_t *net);

// Moves the process (single-threaded still) into the bridge's namespace and makes the bridge.
mob_status mob__lws_network_enter(mob_lws_network_t *net);

void mob__lws_network_address(mob_lws_network_t *net,
                              char out[16]); // of a new pod; never given twice
uint32_t mob__lws_network_gateway(void);     // network byte order

// Wires the process's namespace: `index` names the pod's end here ("mob-INDEX").
mob_status mob__lws_network_attach(mob_lws_network_t *net, unsigned index, pid_t pid);
mob_status mob__lws_network_set_link(mob_lws_network_t *net, unsigned index, bool up);
void mob__lws_network_detach(mob_lws_network_t *net, unsigned index);

// Of the index-th Service, network byte order.
uint32_t mob__lws_network_service_address(uint32_t index);
mob_status mob__lws_network_add_address(const mob_lws_network_t *net,
                                        uint32_t address); // to the bridge

// In the pod's own namespace: loopback, eth0 with `address`, the default route.
mob_status mob__lws_network_configure_pod(const char *address);

#endif
