// Where the group's cluster is, and waiting until it is whole.
#ifndef MOB_API_SERVE_CLUSTER_H
#define MOB_API_SERVE_CLUSTER_H

#include <stdbool.h>
#include <uv.h>

#include "runtime/actor/actor.h"
#include "runtime/base/status.h"

// The GCS address from RAY_ADDRESS, or from the file that the node daemon of this machine left,
// when something answers there. *out is NULL when there is no cluster. The caller frees.
mob_status mob__cluster_find(char **out);

typedef struct mob__cluster_wait mob__cluster_wait_t;
// Waits until the cluster at `address` has the GPUs for tp x pp (and, in a LeaderWorkerSet group,
// its nodes). `done` runs once: MOB_OK, MOB_E_TIMEOUT naming what is missing, or MOB_E_INVALID when
// TP x PP cannot fit this group. Before MOB_OK, *parts is the number of pods that each stage takes,
// more than one only where one has too few GPUs and the backend of `device` can.
mob_status mob__cluster_wait(uv_loop_t *loop, const char *address, int tp, int pp,
                             const char *device, uint64_t timeout_ms, mob_done_fn done,
                             void *arg, int *parts, mob__cluster_wait_t **out);
// Gives up without calling `done`.
void mob__cluster_wait_cancel(mob__cluster_wait_t *wait);

// Ends the head daemon of this machine that hosts `address`: the group it held is lost.
void mob__cluster_end_head(const char *address);

// For tests: the verdict on a group of `count` living nodes with these GPUs, of which `wanted`
// nodes are expected (0: unknown). MOB_OK it fits, each stage in *parts pods; MOB_E_UNAVAILABLE
// more must come; MOB_E_INVALID it never will.
mob_status mob__cluster_judge(const double *gpus, size_t count, size_t wanted, int tp, int pp,
                              bool may_span, int *parts);

#endif
