// A double of NVIDIA's management library, for machines without a GPU: it shows what the file
// $MOB_NVML_DOUBLE says. One line a GPU, read anew at every call, so that a test can change it:
//
//   gpu uuid=GPU-1 name=NVIDIA_H200 memory=150754820096 used=1024 busy=40 sm=1980 nvtx=7 ...
//
// `gpmtx`, `gpmrx`: MiB a second over NVLink, as the performance monitor says. `_` in a name is a
// space. Keys that are not there are "not supported", as on older GPUs. `lost=1`: the GPU has
// fallen off the bus. `hang=1`: a question about its state is never answered. Without the file
// there is no driver.
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/gpu/nvml_abi.h"

enum { MAX_GPUS = 16, LINE = 1024 };

typedef struct mob_nvml_device {
  unsigned index;
} device_t;

static device_t devices[MAX_GPUS];

// The line of GPU `index`; false when there is none. `index` -1 counts into *count.
static bool find_line(int index, char line[LINE], unsigned *count) {
  const char *path = getenv("MOB_NVML_DOUBLE");
  FILE *file = path ? fopen(path, "r") : NULL;
  int seen = 0;
  bool found = false;
  while (file && !found && fgets(line, LINE, file)) {
    if (strncmp(line, "gpu ", 4) != 0) continue;
    found = seen++ == index;
  }
  if (file) fclose(file);
  if (count) *count = (unsigned)seen;
  return found;
}

static bool text_of(const device_t *gpu, const char *key, char *out, size_t size) {
  char line[LINE], wanted[40];
  if (!find_line((int)gpu->index, line, NULL)) return false;
  snprintf(wanted, sizeof wanted, " %s=", key);
  const char *at = strstr(line, wanted);
  if (!at) return false;
  at += strlen(wanted);
  snprintf(out, size, "%.*s", (int)strcspn(at, " \n"), at);
  for (char *c = out; *c; c++)
    if (*c == '_') *c = ' ';
  return true;
}

static mob_nvml_result_t number_of(const device_t *gpu, const char *key, unsigned long long *out) {
  char text[64];
  if (text_of(gpu, "hang", text, sizeof text))
    for (;;) pause();
  if (text_of(gpu, "lost", text, sizeof text)) return MOB_NVML_GPU_IS_LOST;
  if (!text_of(gpu, key, text, sizeof text)) return MOB_NVML_NOT_SUPPORTED;
  *out = strtoull(text, NULL, 10);
  return MOB_NVML_SUCCESS;
}

static mob_nvml_result_t unsigned_of(const device_t *gpu, const char *key, unsigned *out) {
  unsigned long long value = 0;
  mob_nvml_result_t result = number_of(gpu, key, &value);
  if (result == MOB_NVML_SUCCESS) *out = (unsigned)value;
  return result;
}

#define DECLARE(result, name, parameters) result name parameters;
MOB_NVML_REQUIRED(DECLARE)
MOB_NVML_OPTIONAL(DECLARE)

mob_nvml_result_t nvmlInit_v2(void) {
  const char *path = getenv("MOB_NVML_DOUBLE");
  return path && access(path, R_OK) == 0 ? MOB_NVML_SUCCESS : MOB_NVML_DRIVER_NOT_LOADED;
}

mob_nvml_result_t nvmlShutdown(void) {
  return MOB_NVML_SUCCESS;
}

const char *nvmlErrorString(mob_nvml_result_t result) {
  return result == MOB_NVML_DRIVER_NOT_LOADED ? "Driver Not Loaded" : "Unknown Error";
}

mob_nvml_result_t nvmlSystemGetDriverVersion(char *version, unsigned size) {
  snprintf(version, size, "550.54.15");
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlDeviceGetCount_v2(unsigned *count) {
  char line[LINE];
  find_line(-1, line, count);
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlDeviceGetHandleByIndex_v2(unsigned index, mob_nvml_handle_t *gpu) {
  if (index >= MAX_GPUS) return MOB_NVML_NOT_SUPPORTED;
  devices[index].index = index;
  *gpu = &devices[index];
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlDeviceGetUUID(mob_nvml_handle_t gpu, char *uuid, unsigned size) {
  return text_of(gpu, "uuid", uuid, size) ? MOB_NVML_SUCCESS : MOB_NVML_NOT_SUPPORTED;
}

mob_nvml_result_t nvmlDeviceGetName(mob_nvml_handle_t gpu, char *name, unsigned size) {
  return text_of(gpu, "name", name, size) ? MOB_NVML_SUCCESS : MOB_NVML_NOT_SUPPORTED;
}

mob_nvml_result_t nvmlDeviceGetMemoryInfo(mob_nvml_handle_t gpu, mob_nvml_memory_v1_t *out) {
  char text[64];
  if (!text_of(gpu, "memory", text, sizeof text)) return MOB_NVML_NOT_SUPPORTED;
  *out = (mob_nvml_memory_v1_t){.total = strtoull(text, NULL, 10)};
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlDeviceGetMemoryInfo_v2(mob_nvml_handle_t gpu, mob_nvml_memory_t *out) {
  if (out->version != MOB_NVML_MEMORY_V2) return MOB_NVML_NOT_SUPPORTED;
  mob_nvml_result_t result = number_of(gpu, "memory", &out->total);
  return result == MOB_NVML_SUCCESS ? number_of(gpu, "used", &out->used) : result;
}

mob_nvml_result_t nvmlDeviceGetPciInfo_v3(mob_nvml_handle_t gpu, mob_nvml_pci_t *out) {
  memset(out, 0, sizeof *out);
  snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", 0x1b + gpu->index);
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlDeviceGetCudaComputeCapability(mob_nvml_handle_t gpu, int *major,
                                                     int *minor) {
  char text[16];
  *major = text_of(gpu, "major", text, sizeof text) ? atoi(text) : 9;
  *minor = 0;
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlDeviceGetMigMode(mob_nvml_handle_t gpu, unsigned *now, unsigned *pending) {
  char text[16];
  *now = *pending = text_of(gpu, "mig", text, sizeof text) ? (unsigned)atoi(text) : 0;
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlDeviceGetUtilizationRates(mob_nvml_handle_t gpu,
                                                mob_nvml_utilization_t *out) {
  out->memory = 0;
  unsigned_of(gpu, "membusy", &out->memory);
  return unsigned_of(gpu, "busy", &out->gpu);
}

mob_nvml_result_t nvmlDeviceGetClockInfo(mob_nvml_handle_t gpu, int which, unsigned *mhz) {
  return unsigned_of(gpu, which == MOB_NVML_CLOCK_SM ? "sm" : "memclock", mhz);
}

mob_nvml_result_t nvmlDeviceGetPowerUsage(mob_nvml_handle_t gpu, unsigned *milliwatts) {
  return unsigned_of(gpu, "power", milliwatts);
}

mob_nvml_result_t nvmlDeviceGetEnforcedPowerLimit(mob_nvml_handle_t gpu, unsigned *milliwatts) {
  return unsigned_of(gpu, "limit", milliwatts);
}

mob_nvml_result_t nvmlDeviceGetTemperature(mob_nvml_handle_t gpu, int sensor, unsigned *c) {
  (void)sensor;
  return unsigned_of(gpu, "temp", c);
}

mob_nvml_result_t nvmlDeviceGetTotalEccErrors(mob_nvml_handle_t gpu, int type, int counter,
                                              unsigned long long *count) {
  (void)type;
  (void)counter;
  return number_of(gpu, "ecc", count);
}

mob_nvml_result_t nvmlDeviceGetCurrentClocksThrottleReasons(mob_nvml_handle_t gpu,
                                                            unsigned long long *reasons) {
  return number_of(gpu, "throttle", reasons);
}

mob_nvml_result_t nvmlDeviceGetFieldValues(mob_nvml_handle_t gpu, int count,
                                           mob_nvml_field_t *fields) {
  for (int i = 0; i < count; i++) {
    mob_nvml_field_t *f = &fields[i];
    const char *key = f->field == MOB_NVML_FI_NVLINK_DATA_TX   ? "nvtx"
                      : f->field == MOB_NVML_FI_NVLINK_DATA_RX ? "nvrx"
                      : f->field == MOB_NVML_FI_PCIE_TX_BYTES  ? "pcietx"
                                                               : "pcierx";
    bool links = f->field == MOB_NVML_FI_NVLINK_DATA_TX || f->field == MOB_NVML_FI_NVLINK_DATA_RX;
    f->type = MOB_NVML_VALUE_ULLONG;
    f->result = links && f->scope != MOB_NVML_ALL_LINKS ? MOB_NVML_NOT_SUPPORTED
                                                        : number_of(gpu, key, &f->value.ull);
  }
  return MOB_NVML_SUCCESS;
}

// A sample remembers its GPU; what a metric says is what the file says then.
struct mob_nvml_gpm_sample {
  mob_nvml_handle_t gpu;
};

mob_nvml_result_t nvmlGpmQueryDeviceSupport(mob_nvml_handle_t gpu, mob_nvml_gpm_support_t *out) {
  unsigned rate;
  out->supported = unsigned_of(gpu, "gpmtx", &rate) == MOB_NVML_SUCCESS;
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlGpmSampleAlloc(mob_nvml_gpm_sample_t *out) {
  *out = calloc(1, sizeof **out);
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlGpmSampleFree(mob_nvml_gpm_sample_t sample) {
  free(sample);
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlGpmSampleGet(mob_nvml_handle_t gpu, mob_nvml_gpm_sample_t sample) {
  sample->gpu = gpu;
  return MOB_NVML_SUCCESS;
}

mob_nvml_result_t nvmlGpmMetricsGet(mob_nvml_gpm_metrics_t *get) {
  if (get->from->gpu != get->to->gpu) return MOB_NVML_NOT_SUPPORTED;
  for (unsigned i = 0; i < get->count; i++) {
    mob_nvml_gpm_metric_t *m = &get->metrics[i];
    unsigned rate = 0;
    m->result =
        unsigned_of(get->to->gpu, m->metric == MOB_NVML_GPM_NVLINK_TX ? "gpmtx" : "gpmrx", &rate);
    m->value = rate;
  }
  return MOB_NVML_SUCCESS;
}
