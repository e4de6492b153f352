// How the stages of a group find each other: a ring of TCP connections, stage k to stage k + 1 and
// the last to the first. Forward links carry activations, the closing one carries sampled ids. See
// mob_link_tcp in comm.h for what a joined link does.
//
// Both ends say who they are before anything else: protocol version, group, epoch, model, and the
// two stages. An end that expects something else refuses, and both report both values: a process
// left over from an earlier life of the group cannot take part in this one.
#ifndef MOB_COMM_TCP_H
#define MOB_COMM_TCP_H

#include "engine/comm/comm.h"

enum { MOB_LINK_PROTOCOL = 1 };

typedef struct mob_ring_self {
  uint8_t group[16];
  uint64_t epoch;
  uint64_t model; // mob_model_fingerprint()
  uint32_t stage, stages;
} mob_ring_self_t;

typedef struct mob_ring mob_ring_t;

// Listens on a free port of `ip`, a numeric address of this node.
mob_status mob_ring_open(const char *ip, mob_ring_t **out, int *port);

// Blocking: connects to the next stage and waits for the previous one. Strangers are refused and do
// not end the wait. MOB_E_INVALID when the next stage refused us, MOB_E_TIMEOUT, MOB_E_ABORTED,
// MOB_E_UNAVAILABLE. `next` is for sending, `prev` for receiving; the caller closes both. A ring
// whose join failed is of no more use.
mob_status mob_ring_join(mob_ring_t *ring, const char *next_ip, int next_port,
                         const mob_ring_self_t *self, uint64_t timeout_ms, mob_link_t **next,
                         mob_link_t **prev);

void mob_ring_abort(mob_ring_t *ring); // from any thread: a join under way ends with MOB_E_ABORTED
void mob_ring_close(mob_ring_t *ring); // the listener; joined links stay

#endif
