// What this machine has to offer: CPUs, memory, GPUs.
#ifndef MOB_NODE_DETECT_H
#define MOB_NODE_DETECT_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/base/vec.h"

int mob_detect_cpus(void); // the affinity mask, cut by the cgroup's quota (rounded up); at least 1
int64_t mob_detect_memory(void);      // bytes in all: the machine's, cut by the cgroup's limit
int64_t mob_detect_free_memory(void); // bytes that can still be taken, within the same limit

// Ray's rule: 30 % of `available` bytes, at most 200 GB and the size of /dev/shm, at least 75 MiB.
int64_t mob_default_object_store(int64_t available);

// CPU time used, in microseconds: of the cgroup, else of the machine.
int64_t mob_detect_cpu_time_us(void);

// One name a GPU, as CUDA_VISIBLE_DEVICES of an actor shall name it.
typedef MOB_VEC(char *) mob_gpu_names_t;
typedef enum mob_gpu_source {
  MOB_GPUS_NONE,
  MOB_GPUS_REAL,
  MOB_GPUS_SIMULATED, // MOBULA_SIMULATED_GPUS: counted and handed out, computed on the CPU
  MOB_GPUS_DECLARED,  // --num-gpus beyond what is there
} mob_gpu_source_t;

typedef struct mob_node_gpus {
  mob_gpu_names_t names;
  mob_gpu_source_t source;
  bool bus_order; // the names are places on the PCI bus: CUDA_DEVICE_ORDER has to say so
  char type[32];  // Ray's accelerator type, "H200"; "" without a GPU that NVML shows
  char note[256]; // what the user should know; "" mostly
} mob_node_gpus_t;

// `wanted` is --num-gpus, -1 for what is there: MOBULA_SIMULATED_GPUS, else what NVML (or without
// it the driver's list in /proc) shows, as far as CUDA_VISIBLE_DEVICES lets it through.
// MOB_E_INVALID, in Ray's words, when more are wanted than CUDA_VISIBLE_DEVICES lists. May take a
// second. The caller frees *out with mob_node_gpus_free(), also after a failure.
mob_status mob_detect_gpus(int wanted, mob_node_gpus_t *out);
void mob_node_gpus_free(mob_node_gpus_t *gpus);

#endif
