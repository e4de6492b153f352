// Which GPUs of its process a stage computes on.
#ifndef MOB_STAGE_DEVICES_H
#define MOB_STAGE_DEVICES_H

#include <stddef.h>

#include "runtime/base/status.h"

typedef struct mob__device_ask {
  const char *node; // for messages
  int stage;        // for messages
  int place, places; // of the processes that compute stages
  int tp;           // ranks in this one
  // The GPUs that the stage's process was leased, by their place in the node's list, ascending;
  // none when it runs outside a cluster.
  const int *leased;
  size_t leased_count;
  int visible; // devices that CUDA shows this process, > 0
} mob__device_ask_t;

// Fills out[tp] with CUDA's numbers. MOB_E_NO_RESOURCES when there are too few, MOB_E_INVALID when
// those of one stage are not alike: both name what is there and what to do.
mob_status mob__stage_devices(const mob__device_ask_t *ask, int *out);

#endif
