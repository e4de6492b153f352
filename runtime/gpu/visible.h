// CUDA_VISIBLE_DEVICES: which of a machine's GPUs a process gets, and in which order.
//
// CUDA's rules ("CUDA environment variables" of the CUDA C++ programming guide): a comma-separated
// list of numbers, UUIDs (GPU-...; MIG-... for an instance of a partitioned one) or beginnings of a
// UUID that only one GPU has. The first entry that names no GPU ends the list; so "" and "-1" give
// none. A GPU named twice makes the whole list invalid.
#ifndef MOB_GPU_VISIBLE_H
#define MOB_GPU_VISIBLE_H

#include "runtime/base/vec.h"
#include "runtime/gpu/nvml.h"

typedef struct mob_visible_gpu {
  char *name; // to name it in another process's CUDA_VISIBLE_DEVICES
  int index;  // for mob_nvml_gpu(); -1: an instance of a partitioned GPU, which is not looked into
} mob_visible_gpu_t;

typedef struct mob_visible_gpus {
  MOB_VEC(mob_visible_gpu_t) list;
  // The names are places on the PCI bus: a process that gets them needs
  // CUDA_DEVICE_ORDER=PCI_BUS_ID.
  bool bus_order;
  char note[256]; // what the user should know of the list; "" mostly
} mob_visible_gpus_t;

// `visible` is the variable's value, NULL when it is not set; `order` is CUDA_DEVICE_ORDER's, or
// NULL. Without a list everything that is not partitioned is visible.
void mob_gpus_visible(const mob_nvml_t *nvml, const char *visible, const char *order,
                      mob_visible_gpus_t *out);
void mob_visible_gpus_free(mob_visible_gpus_t *gpus);

#endif
