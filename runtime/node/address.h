// Which of this machine's addresses its node is reached at.
#ifndef MOB_NODE_ADDRESS_H
#define MOB_NODE_ADDRESS_H

#include <stdbool.h>

#include "runtime/base/status.h"

// In this order: `option` (--node-ip-address); MOBULA_BIND_ADDRESS (a pod without a network of its
// own); VLLM_HOST_IP; the interface that NCCL_SOCKET_IFNAME names ("eth", "eth0,ib" prefixes,
// "=eth0" exact, "^lo,docker" all but these); the address from which `towards` ("host" as a literal
// address, or NULL) is reached; the one of the default route; 127.0.0.1. An address given by name
// that no interface of this machine has is refused with MOB_E_INVALID; a selector that matches
// nothing is passed over. The caller frees *ip.
mob_status mob_node_ip(const char *option, const char *towards, char **ip);

// Whether an interface name is selected by a value of NCCL_SOCKET_IFNAME.
bool mob_ifname_matches(const char *selector, const char *name);

bool mob_is_local_ip(
    const char *ip); // an interface of this machine has it (all of 127.0.0.0/8 too)

// The first address of a name, blocking, IPv4 before IPv6. The caller frees *ip.
mob_status mob_resolve(const char *host, char **ip);

#endif
