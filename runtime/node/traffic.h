// Counters of a pod's network: its interfaces, and the machine's RDMA ports where it sees them.
#ifndef MOB_NODE_TRAFFIC_H
#define MOB_NODE_TRAFFIC_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/vec.h"

typedef struct mob_interface_traffic {
  char name[32];
  uint64_t received, sent;  // bytes
  uint64_t errors, dropped; // packets, both ways
} mob_interface_traffic_t;

typedef struct mob_rdma_traffic {
  char device[64];
  int port;
  bool active;
  uint64_t received, sent; // bytes
} mob_rdma_traffic_t;

typedef MOB_VEC(mob_interface_traffic_t) mob_interfaces_t;
typedef MOB_VEC(mob_rdma_traffic_t) mob_rdma_ports_t;

// `path` is /proc/net/dev. Interfaces that never carried anything are left out.
void mob_traffic_interfaces(const char *path, mob_interfaces_t *out);
// `path` is /sys/class/infiniband.
void mob_traffic_rdma(const char *path, mob_rdma_ports_t *out);

#endif
