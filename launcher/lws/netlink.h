// The few rtnetlink requests a pod network needs. Each call opens no socket of its own: it acts in
// the network namespace in which the socket was made.
#ifndef MOB_LWS_NETLINK_H
#define MOB_LWS_NETLINK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/status.h"

mob_status mob__nl_open(int *fd); // in the calling thread's namespace; the caller closes it

mob_status mob__nl_add_bridge(int fd, const char *name);
// A pair of virtual Ethernet ends: `name` here, up and a port of `bridge`; `peer_name` in the
// namespace of process `peer_pid`.
mob_status mob__nl_add_veth(int fd, const char *name, const char *bridge, const char *peer_name,
                            pid_t peer_pid);
mob_status mob__nl_delete_link(int fd, const char *name);
mob_status mob__nl_set_link(int fd, const char *name, bool up);
// `address` as IPv4 in network byte order.
mob_status mob__nl_add_address(int fd, const char *name, uint32_t address, int prefix);
mob_status mob__nl_add_default_route(int fd, uint32_t gateway);

#endif
