// The part of NVML's binary interface that is used: names, numbers and layouts as in NVIDIA's
// nvml.h (API version 12). Own declarations, because the header is there only where a CUDA toolkit
// is.
#ifndef MOB_GPU_NVML_ABI_H
#define MOB_GPU_NVML_ABI_H

#include <stdint.h>

typedef struct mob_nvml_device *mob_nvml_handle_t; // nvmlDevice_t
typedef int mob_nvml_result_t;                     // nvmlReturn_t

enum {
  MOB_NVML_SUCCESS = 0,
  MOB_NVML_NOT_SUPPORTED = 3,
  MOB_NVML_DRIVER_NOT_LOADED = 9,
  MOB_NVML_GPU_IS_LOST = 15,

  MOB_NVML_CLOCK_SM = 1,
  MOB_NVML_CLOCK_MEM = 2,
  MOB_NVML_TEMPERATURE_GPU = 0,
  MOB_NVML_ERROR_UNCORRECTED = 1,
  MOB_NVML_ECC_VOLATILE = 0, // since the driver was loaded

  // Fields of nvmlDeviceGetFieldValues.
  MOB_NVML_FI_NVLINK_DATA_TX = 138, // KiB; scope: a link
  MOB_NVML_FI_NVLINK_DATA_RX = 139,
  MOB_NVML_FI_PCIE_TX_BYTES = 197,
  MOB_NVML_FI_PCIE_RX_BYTES = 198,

  // Metrics of nvmlGpmMetricsGet, MiB a second.
  MOB_NVML_GPM_NVLINK_RX = 60,
  MOB_NVML_GPM_NVLINK_TX = 61,

  MOB_NVML_VALUE_DOUBLE = 0,
  MOB_NVML_VALUE_UINT = 1,
  MOB_NVML_VALUE_ULONG = 2,
  MOB_NVML_VALUE_ULLONG = 3,
  MOB_NVML_VALUE_LLONG = 4,
};

#define MOB_NVML_ALL_LINKS UINT32_MAX // as a scope: the sum

typedef struct mob_nvml_memory { // nvmlMemory_v2_t
  unsigned version;
  unsigned long long total, reserved, free, used;
} mob_nvml_memory_t;
#define MOB_NVML_MEMORY_V2 ((unsigned)sizeof(mob_nvml_memory_t) | 2u << 24)

typedef struct mob_nvml_memory_v1 { // nvmlMemory_t
  unsigned long long total, free, used;
} mob_nvml_memory_v1_t;

typedef struct mob_nvml_utilization { // nvmlUtilization_t, per cent
  unsigned gpu, memory;
} mob_nvml_utilization_t;

typedef struct mob_nvml_pci { // nvmlPciInfo_t
  char bus_id_legacy[16];
  unsigned domain, bus, device, device_id, subsystem_id;
  char bus_id[32];
} mob_nvml_pci_t;

typedef union mob_nvml_value { // nvmlValue_t
  double d;
  int si;
  unsigned ui;
  unsigned long ul;
  unsigned long long ull;
  long long ll;
} mob_nvml_value_t;

typedef struct mob_nvml_field { // nvmlFieldValue_t
  unsigned field, scope;
  long long timestamp, latency_us;
  int type;
  mob_nvml_result_t result;
  mob_nvml_value_t value;
} mob_nvml_field_t;

typedef struct mob_nvml_gpm_sample *mob_nvml_gpm_sample_t; // nvmlGpmSample_t

typedef struct mob_nvml_gpm_support { // nvmlGpmSupport_t
  unsigned version, supported;
} mob_nvml_gpm_support_t;

typedef struct mob_nvml_gpm_metric { // nvmlGpmMetric_t
  unsigned metric;
  mob_nvml_result_t result;
  double value;
  char *short_name, *long_name, *unit;
} mob_nvml_gpm_metric_t;

typedef struct mob_nvml_gpm_metrics { // nvmlGpmMetricsGet_t, whose last array grows from version to
                                      // version
  unsigned version, count;
  mob_nvml_gpm_sample_t from, to;
  mob_nvml_gpm_metric_t metrics[512];
} mob_nvml_gpm_metrics_t;
#define MOB_NVML_GPM_VERSION 1 // of both

_Static_assert(sizeof(mob_nvml_field_t) == 40 && sizeof(mob_nvml_memory_t) == 40 &&
                   sizeof(mob_nvml_pci_t) == 68 && sizeof(mob_nvml_gpm_metric_t) == 40,
               "layouts of nvml.h");

// X(result type, name, parameters): looked up by name. The first group must be there, the second
// is missing in some libraries.
#define MOB_NVML_REQUIRED(X)                                                                       \
  X(mob_nvml_result_t, nvmlInit_v2, (void))                                                        \
  X(mob_nvml_result_t, nvmlShutdown, (void))                                                       \
  X(const char *, nvmlErrorString, (mob_nvml_result_t result))                                     \
  X(mob_nvml_result_t, nvmlDeviceGetCount_v2, (unsigned *count))                                   \
  X(mob_nvml_result_t, nvmlDeviceGetHandleByIndex_v2, (unsigned index, mob_nvml_handle_t *gpu))    \
  X(mob_nvml_result_t, nvmlDeviceGetUUID, (mob_nvml_handle_t gpu, char *uuid, unsigned size))      \
  X(mob_nvml_result_t, nvmlDeviceGetName, (mob_nvml_handle_t gpu, char *name, unsigned size))      \
  X(mob_nvml_result_t, nvmlDeviceGetMemoryInfo, (mob_nvml_handle_t gpu, mob_nvml_memory_v1_t * out))
#define MOB_NVML_OPTIONAL(X)                                                                       \
  X(mob_nvml_result_t, nvmlSystemGetDriverVersion, (char *version, unsigned size))                 \
  X(mob_nvml_result_t, nvmlDeviceGetMemoryInfo_v2,                                                 \
    (mob_nvml_handle_t gpu, mob_nvml_memory_t * out))                                              \
  X(mob_nvml_result_t, nvmlDeviceGetPciInfo_v3, (mob_nvml_handle_t gpu, mob_nvml_pci_t * out))     \
  X(mob_nvml_result_t, nvmlDeviceGetCudaComputeCapability,                                         \
    (mob_nvml_handle_t gpu, int *major, int *minor))                                               \
  X(mob_nvml_result_t, nvmlDeviceGetMigMode,                                                       \
    (mob_nvml_handle_t gpu, unsigned *now, unsigned *pending))                                     \
  X(mob_nvml_result_t, nvmlDeviceGetUtilizationRates,                                              \
    (mob_nvml_handle_t gpu, mob_nvml_utilization_t * out))                                         \
  X(mob_nvml_result_t, nvmlDeviceGetClockInfo, (mob_nvml_handle_t gpu, int which, unsigned *mhz))  \
  X(mob_nvml_result_t, nvmlDeviceGetPowerUsage, (mob_nvml_handle_t gpu, unsigned *milliwatts))     \
  X(mob_nvml_result_t, nvmlDeviceGetEnforcedPowerLimit,                                            \
    (mob_nvml_handle_t gpu, unsigned *milliwatts))                                                 \
  X(mob_nvml_result_t, nvmlDeviceGetTemperature, (mob_nvml_handle_t gpu, int sensor, unsigned *c)) \
  X(mob_nvml_result_t, nvmlDeviceGetTotalEccErrors,                                                \
    (mob_nvml_handle_t gpu, int type, int counter, unsigned long long *count))                     \
  X(mob_nvml_result_t, nvmlDeviceGetCurrentClocksThrottleReasons,                                  \
    (mob_nvml_handle_t gpu, unsigned long long *reasons))                                          \
  X(mob_nvml_result_t, nvmlDeviceGetFieldValues,                                                   \
    (mob_nvml_handle_t gpu, int count, mob_nvml_field_t *fields))                                  \
  X(mob_nvml_result_t, nvmlGpmQueryDeviceSupport,                                                  \
    (mob_nvml_handle_t gpu, mob_nvml_gpm_support_t * out))                                         \
  X(mob_nvml_result_t, nvmlGpmSampleAlloc, (mob_nvml_gpm_sample_t * out))                          \
  X(mob_nvml_result_t, nvmlGpmSampleFree, (mob_nvml_gpm_sample_t sample))                          \
  X(mob_nvml_result_t, nvmlGpmSampleGet, (mob_nvml_handle_t gpu, mob_nvml_gpm_sample_t sample))    \
  X(mob_nvml_result_t, nvmlGpmMetricsGet, (mob_nvml_gpm_metrics_t * metrics))

#endif
