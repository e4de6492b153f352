// The GPUs of this machine as NVIDIA's management library (NVML) shows them, opened at run time.
//
// Calls may take milliseconds (the first one a second, without the persistence daemon), or hang
// with a broken GPU: nobody makes them on a loop that others depend on. A handle may be used by one
// thread at a time.
#ifndef MOB_GPU_NVML_H
#define MOB_GPU_NVML_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"

typedef struct mob_nvml mob_nvml_t;

typedef struct mob_gpu_info {
  int index; // in the order of the PCI bus, as nvidia-smi shows it
  char uuid[96], name[96];
  char pci[32];     // "00000000:1B:00.0"; "" when unknown
  uint64_t memory;  // bytes
  int major, minor; // compute capability; 0 when unknown
  bool mig;         // partitioned: CUDA sees its instances only
} mob_gpu_info_t;

// What a GPU does. Counters grow from an unknown start. The numbers are part of a message between
// nodes (proto/mobula/node.proto): new ones come at the end.
typedef enum mob_gpu_field {
  MOB_GPU_UTILIZATION,        // % of the last period in which a kernel ran
  MOB_GPU_MEMORY_UTILIZATION, // % of the last period in which memory was read or written
  MOB_GPU_MEMORY_USED,        // bytes
  MOB_GPU_MEMORY_TOTAL,       // bytes
  MOB_GPU_SM_CLOCK,           // Hz
  MOB_GPU_MEMORY_CLOCK,       // Hz
  MOB_GPU_POWER,              // mW
  MOB_GPU_POWER_LIMIT,        // mW
  MOB_GPU_TEMPERATURE,        // degrees Celsius
  MOB_GPU_THROTTLE,           // bits of nvmlClocksThrottleReason*
  MOB_GPU_ECC_ERRORS,         // counter of uncorrected ones, since the driver was loaded
  MOB_GPU_NVLINK_SENT,        // counter, bytes of data over all links
  MOB_GPU_NVLINK_RECEIVED,    // counter, bytes
  MOB_GPU_PCIE_SENT,          // counter, bytes; may wrap
  MOB_GPU_PCIE_RECEIVED,      // counter, bytes; may wrap
  MOB_GPU_FIELDS
} mob_gpu_field_t;

typedef struct mob_gpu_sample {
  int64_t value[MOB_GPU_FIELDS]; // -1: this GPU or its driver does not tell
  bool lost;                     // the GPU does not answer any more; everything is -1
} mob_gpu_sample_t;

// Opens the library (MOB_NVML_LIB, else libnvidia-ml.so.1) and lists the GPUs that this process may
// open. MOB_E_UNSUPPORTED, with the reason, where there is no library, no driver or no GPU: on most
// machines that is no error.
mob_status mob_nvml_open(mob_nvml_t **out);
void mob_nvml_close(mob_nvml_t *nvml); // may be NULL

int mob_nvml_count(const mob_nvml_t *nvml);
const mob_gpu_info_t *mob_nvml_gpu(const mob_nvml_t *nvml, int index);
const char *mob_nvml_driver(const mob_nvml_t *nvml); // "535.129.03"; "" when unknown

void mob_nvml_sample(mob_nvml_t *nvml, int index, mob_gpu_sample_t *out);

// Ray's name for a model, of what it calls accelerator types: the run of capitals and digits that
// begins the second word of its name ("NVIDIA H100 80GB HBM3": "H100"). `out` is "" when there is
// none.
void mob_gpu_type(const char *name, char *out, int cap);

#endif
