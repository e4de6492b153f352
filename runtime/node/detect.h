// What this machine has to offer: CPUs, memory, GPUs.
#ifndef MOB_NODE_DETECT_H
#define MOB_NODE_DETECT_H

#include <stdint.h>

#include "runtime/base/vec.h"

int mob_detect_cpus(void); // the affinity mask, cut by the cgroup's quota (rounded up); at least 1
int64_t mob_detect_memory(void);      // bytes in all: the machine's, cut by the cgroup's limit
int64_t mob_detect_free_memory(void); // bytes that can still be taken, within the same limit

// Ray's rule: 30 % of `available` bytes, at most 200 GB and the size of /dev/shm, at least 75 MiB.
int64_t mob_default_object_store(int64_t available);

// One name a GPU, as CUDA_VISIBLE_DEVICES of an actor shall name it.
typedef MOB_VEC(char *) mob_gpu_names_t;
typedef enum mob_gpu_source {
  MOB_GPUS_NONE,
  MOB_GPUS_REAL,
  MOB_GPUS_SIMULATED, // MOBULA_SIMULATED_GPUS: counted and handed out, computed on the CPU
  MOB_GPUS_DECLARED,  // --num-gpus beyond what is there
} mob_gpu_source_t;

// `wanted` is --num-gpus, -1 for what is there: MOBULA_SIMULATED_GPUS, else CUDA_VISIBLE_DEVICES,
// else the driver's list. The caller frees *names with mob_gpu_names_free().
mob_gpu_source_t mob_detect_gpus(int wanted, mob_gpu_names_t *names);
void mob_gpu_names_free(mob_gpu_names_t *names);

#endif
