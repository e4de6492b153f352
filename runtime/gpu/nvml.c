#include "runtime/gpu/nvml.h"

#include <ctype.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/mem.h"
#include "runtime/base/vec.h"
#include "runtime/gpu/nvml_abi.h"

// Traffic over NVLink of a GPU whose links cannot be asked (in a virtual machine): rates between
// two samples of its performance monitor, added up.
typedef struct nvlink_rates {
  bool absent; // it has no such monitor
  mob_nvml_gpm_sample_t last, next;
  double last_s, sent, received; // seconds; bytes
} nvlink_rates_t;

typedef struct nvml_gpu {
  mob_nvml_handle_t handle;
  mob_gpu_info_t info;
  nvlink_rates_t rates;
} nvml_gpu_t;

struct mob_nvml {
  void *library;
  bool started;
  char driver[96];
  MOB_VEC(nvml_gpu_t) gpus;
#define MOB_NVML_MEMBER(result, name, parameters) result(*name) parameters;
  MOB_NVML_REQUIRED(MOB_NVML_MEMBER)
  MOB_NVML_OPTIONAL(MOB_NVML_MEMBER)
#undef MOB_NVML_MEMBER
};

static mob_status load(mob_nvml_t *n) {
  const char *path = getenv("MOB_NVML_LIB");
  if (!path || !*path) path = "libnvidia-ml.so.1";
  n->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!n->library) {
    return mob_fail(MOB_E_UNSUPPORTED, "NVIDIA's management library cannot be opened: %s",
                    dlerror());
  }
#define MOB_NVML_FIND(result, name, parameters) *(void **)&n->name = dlsym(n->library, #name);
  MOB_NVML_REQUIRED(MOB_NVML_FIND)
  MOB_NVML_OPTIONAL(MOB_NVML_FIND)
#undef MOB_NVML_FIND
#define MOB_NVML_CHECK(result, name, parameters)                                                   \
  if (!n->name)                                                                                    \
    return mob_fail(MOB_E_UNSUPPORTED, "%s has no %s: the driver is too old", path, #name);
  MOB_NVML_REQUIRED(MOB_NVML_CHECK)
#undef MOB_NVML_CHECK
  return MOB_OK;
}

// A GPU that cannot be asked is left out: CUDA could not use it either.
static void add_gpu(mob_nvml_t *n, unsigned index) {
  mob_nvml_handle_t handle;
  mob_nvml_memory_v1_t memory = {0};
  mob_nvml_pci_t pci = {0};
  unsigned mig = 0, pending = 0;
  if (n->nvmlDeviceGetHandleByIndex_v2(index, &handle) != MOB_NVML_SUCCESS) return;
  nvml_gpu_t gpu = {.handle = handle, .info = {.index = (int)index}};
  mob_gpu_info_t *info = &gpu.info;
  if (n->nvmlDeviceGetUUID(handle, info->uuid, sizeof info->uuid) != MOB_NVML_SUCCESS ||
      n->nvmlDeviceGetName(handle, info->name, sizeof info->name) != MOB_NVML_SUCCESS)
    return;
  if (n->nvmlDeviceGetMemoryInfo(handle, &memory) == MOB_NVML_SUCCESS) info->memory = memory.total;
  if (n->nvmlDeviceGetPciInfo_v3 && n->nvmlDeviceGetPciInfo_v3(handle, &pci) == MOB_NVML_SUCCESS)
    snprintf(info->pci, sizeof info->pci, "%s", pci.bus_id);
  if (!n->nvmlDeviceGetCudaComputeCapability ||
      n->nvmlDeviceGetCudaComputeCapability(handle, &info->major, &info->minor) != MOB_NVML_SUCCESS)
    info->major = info->minor = 0;
  info->mig = n->nvmlDeviceGetMigMode &&
              n->nvmlDeviceGetMigMode(handle, &mig, &pending) == MOB_NVML_SUCCESS && mig == 1;
  *mob_vec_push(&n->gpus) = gpu;
}

mob_status mob_nvml_open(mob_nvml_t **out) {
  mob_nvml_t *n = MOB_NEW(mob_nvml_t);
  mob_status status;
  unsigned count = 0;
  MOB_TRY_GOTO(load(n), status, fail);
  mob_nvml_result_t result = n->nvmlInit_v2();
  if (result != MOB_NVML_SUCCESS) {
    status = mob_fail(MOB_E_UNSUPPORTED, "NVML does not start: %s", n->nvmlErrorString(result));
    goto fail;
  }
  n->started = true;
  if (n->nvmlSystemGetDriverVersion &&
      n->nvmlSystemGetDriverVersion(n->driver, sizeof n->driver) != MOB_NVML_SUCCESS)
    n->driver[0] = '\0';
  result = n->nvmlDeviceGetCount_v2(&count);
  for (unsigned i = 0; result == MOB_NVML_SUCCESS && i < count; i++) add_gpu(n, i);
  if (!n->gpus.len) {
    status = mob_fail(MOB_E_UNSUPPORTED, "NVML shows no GPU%s%s", result ? ": " : "",
                      result ? n->nvmlErrorString(result) : "");
    goto fail;
  }
  *out = n;
  return MOB_OK;
fail:
  mob_nvml_close(n);
  return status;
}

void mob_nvml_close(mob_nvml_t *n) {
  if (!n) return;
  for (size_t i = 0; i < n->gpus.len; i++) {
    nvlink_rates_t *rates = &n->gpus.at[i].rates;
    if (rates->last) n->nvmlGpmSampleFree(rates->last);
    if (rates->next) n->nvmlGpmSampleFree(rates->next);
  }
  if (n->started) n->nvmlShutdown();
  if (n->library) dlclose(n->library);
  mob_vec_free(&n->gpus);
  free(n);
}

int mob_nvml_count(const mob_nvml_t *n) {
  return (int)n->gpus.len;
}

const mob_gpu_info_t *mob_nvml_gpu(const mob_nvml_t *n, int index) {
  return &n->gpus.at[index].info;
}

const char *mob_nvml_driver(const mob_nvml_t *n) {
  return n->driver;
}

// ---------------------------------------------------------------------------------------- samples

// -1 when the call is missing or failed; notes that the GPU is gone.
typedef struct reading {
  mob_gpu_sample_t *out;
} reading_t;

static bool good(reading_t *r, mob_nvml_result_t result) {
  if (result == MOB_NVML_GPU_IS_LOST) r->out->lost = true;
  return result == MOB_NVML_SUCCESS;
}

static void read_memory(mob_nvml_t *n, mob_nvml_handle_t gpu, reading_t *r) {
  int64_t *value = r->out->value;
  mob_nvml_memory_t two = {.version = MOB_NVML_MEMORY_V2};
  mob_nvml_memory_v1_t one = {0};
  // The second version counts what the driver keeps for itself apart, as nvidia-smi does.
  if (n->nvmlDeviceGetMemoryInfo_v2 && good(r, n->nvmlDeviceGetMemoryInfo_v2(gpu, &two))) {
    value[MOB_GPU_MEMORY_USED] = (int64_t)two.used;
    value[MOB_GPU_MEMORY_TOTAL] = (int64_t)two.total;
  } else if (good(r, n->nvmlDeviceGetMemoryInfo(gpu, &one))) {
    value[MOB_GPU_MEMORY_USED] = (int64_t)one.used;
    value[MOB_GPU_MEMORY_TOTAL] = (int64_t)one.total;
  }
}

static void read_state(mob_nvml_t *n, mob_nvml_handle_t gpu, reading_t *r) {
  int64_t *value = r->out->value;
  mob_nvml_utilization_t busy;
  unsigned u;
  unsigned long long bits;
  if (n->nvmlDeviceGetUtilizationRates && good(r, n->nvmlDeviceGetUtilizationRates(gpu, &busy))) {
    value[MOB_GPU_UTILIZATION] = busy.gpu;
    value[MOB_GPU_MEMORY_UTILIZATION] = busy.memory;
  }
  if (n->nvmlDeviceGetClockInfo && good(r, n->nvmlDeviceGetClockInfo(gpu, MOB_NVML_CLOCK_SM, &u)))
    value[MOB_GPU_SM_CLOCK] = (int64_t)u * 1000000;
  if (n->nvmlDeviceGetClockInfo && good(r, n->nvmlDeviceGetClockInfo(gpu, MOB_NVML_CLOCK_MEM, &u)))
    value[MOB_GPU_MEMORY_CLOCK] = (int64_t)u * 1000000;
  if (n->nvmlDeviceGetPowerUsage && good(r, n->nvmlDeviceGetPowerUsage(gpu, &u)))
    value[MOB_GPU_POWER] = u;
  if (n->nvmlDeviceGetEnforcedPowerLimit && good(r, n->nvmlDeviceGetEnforcedPowerLimit(gpu, &u)))
    value[MOB_GPU_POWER_LIMIT] = u;
  if (n->nvmlDeviceGetTemperature &&
      good(r, n->nvmlDeviceGetTemperature(gpu, MOB_NVML_TEMPERATURE_GPU, &u)))
    value[MOB_GPU_TEMPERATURE] = u;
  if (n->nvmlDeviceGetCurrentClocksThrottleReasons &&
      good(r, n->nvmlDeviceGetCurrentClocksThrottleReasons(gpu, &bits)))
    value[MOB_GPU_THROTTLE] = (int64_t)bits;
  if (n->nvmlDeviceGetTotalEccErrors &&
      good(r, n->nvmlDeviceGetTotalEccErrors(gpu, MOB_NVML_ERROR_UNCORRECTED, MOB_NVML_ECC_VOLATILE,
                                             &bits)))
    value[MOB_GPU_ECC_ERRORS] = (int64_t)bits;
}

static int64_t field_value(const mob_nvml_field_t *field) {
  if (field->result != MOB_NVML_SUCCESS) return -1;
  switch (field->type) {
  case MOB_NVML_VALUE_DOUBLE:
    return (int64_t)field->value.d;
  case MOB_NVML_VALUE_UINT:
    return field->value.ui;
  case MOB_NVML_VALUE_ULONG:
    return (int64_t)field->value.ul;
  case MOB_NVML_VALUE_ULLONG:
    return (int64_t)field->value.ull;
  case MOB_NVML_VALUE_LLONG:
    return field->value.ll;
  default:
    return -1;
  }
}

// Fields only: nvmlDeviceGetPcieThroughput would measure for 20 ms a direction.
static void read_traffic(mob_nvml_t *n, mob_nvml_handle_t gpu, reading_t *r) {
  static const struct {
    unsigned field, scope;
    mob_gpu_field_t out;
    int64_t unit;
  } wanted[] = {
      {MOB_NVML_FI_NVLINK_DATA_TX, MOB_NVML_ALL_LINKS, MOB_GPU_NVLINK_SENT, 1024},
      {MOB_NVML_FI_NVLINK_DATA_RX, MOB_NVML_ALL_LINKS, MOB_GPU_NVLINK_RECEIVED, 1024},
      {MOB_NVML_FI_PCIE_TX_BYTES, 0, MOB_GPU_PCIE_SENT, 1},
      {MOB_NVML_FI_PCIE_RX_BYTES, 0, MOB_GPU_PCIE_RECEIVED, 1},
  };
  mob_nvml_field_t fields[MOB_LEN(wanted)] = {0};
  if (!n->nvmlDeviceGetFieldValues) return;
  for (size_t i = 0; i < MOB_LEN(wanted); i++) {
    fields[i].field = wanted[i].field;
    fields[i].scope = wanted[i].scope;
    fields[i].result = MOB_NVML_NOT_SUPPORTED;
  }
  if (!good(r, n->nvmlDeviceGetFieldValues(gpu, (int)MOB_LEN(wanted), fields))) return;
  for (size_t i = 0; i < MOB_LEN(wanted); i++) {
    int64_t value = field_value(&fields[i]);
    if (value >= 0) r->out->value[wanted[i].out] = value * wanted[i].unit;
  }
}

static double monotonic_s(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static bool open_rates(mob_nvml_t *n, mob_nvml_handle_t gpu, nvlink_rates_t *rates) {
  mob_nvml_gpm_support_t support = {.version = MOB_NVML_GPM_VERSION};
  if (rates->last || rates->absent) return !rates->absent;
  rates->absent = !n->nvmlGpmQueryDeviceSupport || !n->nvmlGpmSampleAlloc ||
                  !n->nvmlGpmSampleFree || !n->nvmlGpmSampleGet || !n->nvmlGpmMetricsGet ||
                  n->nvmlGpmQueryDeviceSupport(gpu, &support) != MOB_NVML_SUCCESS ||
                  !support.supported || n->nvmlGpmSampleAlloc(&rates->last) != MOB_NVML_SUCCESS ||
                  n->nvmlGpmSampleAlloc(&rates->next) != MOB_NVML_SUCCESS ||
                  n->nvmlGpmSampleGet(gpu, rates->last) != MOB_NVML_SUCCESS;
  rates->last_s = monotonic_s();
  return !rates->absent;
}

static void read_nvlink_rates(mob_nvml_t *n, nvml_gpu_t *gpu, reading_t *r) {
  nvlink_rates_t *rates = &gpu->rates;
  bool first = !rates->last;
  if (!open_rates(n, gpu->handle, rates)) return;
  if (!first && good(r, n->nvmlGpmSampleGet(gpu->handle, rates->next))) {
    const double now = monotonic_s(), bytes = (now - rates->last_s) * 1048576;
    mob_nvml_gpm_metrics_t get = {.version = MOB_NVML_GPM_VERSION, .count = 2};
    get.from = rates->last;
    get.to = rates->next;
    get.metrics[0].metric = MOB_NVML_GPM_NVLINK_TX;
    get.metrics[1].metric = MOB_NVML_GPM_NVLINK_RX;
    if (!good(r, n->nvmlGpmMetricsGet(&get))) return;
    if (get.metrics[0].result != MOB_NVML_SUCCESS || get.metrics[1].result != MOB_NVML_SUCCESS) {
      rates->absent = true;
      return;
    }
    rates->sent += get.metrics[0].value * bytes;
    rates->received += get.metrics[1].value * bytes;
    rates->next = get.from;
    rates->last = get.to;
    rates->last_s = now;
  }
  r->out->value[MOB_GPU_NVLINK_SENT] = (int64_t)rates->sent;
  r->out->value[MOB_GPU_NVLINK_RECEIVED] = (int64_t)rates->received;
}

void mob_nvml_sample(mob_nvml_t *n, int index, mob_gpu_sample_t *out) {
  reading_t reading = {out};
  nvml_gpu_t *at = &n->gpus.at[index];
  mob_nvml_handle_t gpu = at->handle;
  out->lost = false;
  for (int i = 0; i < MOB_GPU_FIELDS; i++) out->value[i] = -1;
  read_memory(n, gpu, &reading);
  if (!out->lost) read_state(n, gpu, &reading);
  if (!out->lost) read_traffic(n, gpu, &reading);
  if (!out->lost && out->value[MOB_GPU_NVLINK_SENT] < 0) read_nvlink_rates(n, at, &reading);
  for (int i = 0; out->lost && i < MOB_GPU_FIELDS; i++) out->value[i] = -1;
}

void mob_gpu_type(const char *name, char *out, int cap) {
  int n = 0;
  while (isalnum((unsigned char)*name) || *name == '_') name++;
  bool space = isspace((unsigned char)*name);
  while (isspace((unsigned char)*name)) name++;
  while (space && n < cap - 1 && (isupper((unsigned char)*name) || isdigit((unsigned char)*name)))
    out[n++] = *name++;
  out[n] = '\0';
}
