#include "engine/stage/devices.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/gpu/visible.h"
#define MOB_LOG_COMPONENT "stage"
#include "runtime/base/log.h"

// A node daemon shows an actor its own GPUs only, and CUDA numbers what it is shown from 0.
static bool renumbered(void) {
  return getenv("CUDA_VISIBLE_DEVICES") && !getenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES");
}

static mob_status choose(const mob__device_ask_t *ask, int *out) {
  bool leased = ask->leased_count > 0;
  if (leased && ask->leased_count < (size_t)ask->tp)
    return mob_fail(MOB_E_NO_RESOURCES,
                    "stage %d on %s was given %zu GPUs of its node, and its %d tensor-parallel "
                    "ranks need one each",
                    ask->stage, ask->node, ask->leased_count, ask->tp);
  int first = ask->place * ask->tp;
  if (!leased && ask->visible < ask->places * ask->tp) {
    if (ask->places > 1 && ask->visible >= ask->tp)
      MOB_WARN("%d stages of %d GPUs, and this process sees %d: stages share GPUs", ask->places,
               ask->tp, ask->visible);
    first = 0;
  }
  for (int i = 0; i < ask->tp; i++) {
    out[i] = !leased ? first + i : renumbered() ? i : ask->leased[i];
    if (out[i] < ask->visible) continue;
    return mob_fail(MOB_E_NO_RESOURCES,
                    "stage %d on %s needs %d GPUs (--tensor-parallel-size), and its process sees "
                    "%d%s%s: give the pod more (nvidia.com/gpu, CUDA_VISIBLE_DEVICES), or use "
                    "--tensor-parallel-size %d",
                    ask->stage, ask->node, ask->tp, ask->visible,
                    getenv("CUDA_VISIBLE_DEVICES") ? " of CUDA_VISIBLE_DEVICES=" : "",
                    getenv("CUDA_VISIBLE_DEVICES") ? getenv("CUDA_VISIBLE_DEVICES") : "",
                    ask->visible);
  }
  return MOB_OK;
}

static bool differ(const mob_gpu_info_t *a, const mob_gpu_info_t *b) {
  uint64_t more = a->memory > b->memory ? a->memory : b->memory;
  uint64_t less = a->memory > b->memory ? b->memory : a->memory;
  return strcmp(a->name, b->name) != 0 || a->major != b->major || a->minor != b->minor ||
         more - less > more / 50; // boards of one model differ by a few MiB
}

// Without NVML nobody can say, and CUDA is believed.
static mob_status check_alike(const mob__device_ask_t *ask, const int *devices) {
  mob_nvml_t *nvml = NULL;
  mob_visible_gpus_t gpus;
  mob_status status = MOB_OK;
  if (mob_nvml_open(&nvml) != MOB_OK) return MOB_OK;
  mob_gpus_visible(nvml, getenv("CUDA_VISIBLE_DEVICES"), getenv("CUDA_DEVICE_ORDER"), &gpus);
  const mob_gpu_info_t *first = NULL;
  for (int i = 0; i < ask->tp && status == MOB_OK; i++) {
    if ((size_t)devices[i] >= gpus.list.len || gpus.list.at[devices[i]].index < 0) continue;
    const mob_gpu_info_t *gpu = mob_nvml_gpu(nvml, gpus.list.at[devices[i]].index);
    if (!first) first = gpu;
    if (!differ(first, gpu)) continue;
    status = mob_fail(
        MOB_E_INVALID,
        "the GPUs of stage %d on %s are not alike: GPU %d is %s (%.0f GiB), GPU %d is "
        "%s (%.0f GiB). The ranks of a stage compute in step: choose GPUs of one "
        "model with CUDA_VISIBLE_DEVICES, or a smaller --tensor-parallel-size",
        ask->stage, ask->node, first->index, first->name, (double)first->memory / (1 << 30),
        gpu->index, gpu->name, (double)gpu->memory / (1 << 30));
  }
  mob_visible_gpus_free(&gpus);
  mob_nvml_close(nvml);
  return status;
}

mob_status mob__stage_devices(const mob__device_ask_t *ask, int *out) {
  MOB_TRY(choose(ask, out));
  return ask->tp > 1 ? check_alike(ask, out) : MOB_OK;
}
