#include "runtime/gpu/visible.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static bool alike(const mob_nvml_t *nvml) {
  for (int i = 1; i < mob_nvml_count(nvml); i++)
    if (strcmp(mob_nvml_gpu(nvml, i)->name, mob_nvml_gpu(nvml, 0)->name) != 0) return false;
  return true;
}

static void add(mob_visible_gpus_t *out, const char *name, size_t len, int index) {
  mob_visible_gpu_t *gpu = mob_vec_push(&out->list);
  gpu->name = mob_strndup(name, len);
  gpu->index = index;
}

static void clear(mob_visible_gpus_t *out) {
  for (size_t i = 0; i < out->list.len; i++) free(out->list.at[i].name);
  out->list.len = 0;
}

enum { NO_GPU = -2, MIG_INSTANCE = -1 };

// A number as CUDA reads it: digits up to the end of the entry.
static int by_number(const mob_nvml_t *nvml, const char *entry, size_t len) {
  if (len > 6) return NO_GPU;
  int number = 0;
  for (size_t i = 0; i < len; i++) {
    if (!isdigit((unsigned char)entry[i])) return NO_GPU;
    number = number * 10 + entry[i] - '0';
  }
  return number < mob_nvml_count(nvml) ? number : NO_GPU;
}

static int by_uuid(const mob_nvml_t *nvml, const char *entry, size_t len) {
  int found = NO_GPU;
  for (int i = 0; i < mob_nvml_count(nvml); i++) {
    if (strncasecmp(mob_nvml_gpu(nvml, i)->uuid, entry, len) != 0) continue;
    if (found != NO_GPU) return NO_GPU; // more than one begins so
    found = i;
  }
  return found;
}

static bool seen(const mob_visible_gpus_t *out, const char *entry, size_t len, int index) {
  for (size_t i = 0; i < out->list.len; i++) {
    const mob_visible_gpu_t *gpu = &out->list.at[i];
    if (index >= 0 ? gpu->index == index
                   : strlen(gpu->name) == len && strncasecmp(gpu->name, entry, len) == 0)
      return true;
  }
  return false;
}

// Reads one entry; false ends the list.
static bool read_entry(const mob_nvml_t *nvml, const char *entry, size_t len,
                       mob_visible_gpus_t *out, bool *numbers) {
  int index = NO_GPU;
  if (len > 4 && strncasecmp(entry, "MIG-", 4) == 0)
    index = MIG_INSTANCE;
  else if (len > 4 && strncasecmp(entry, "GPU-", 4) == 0)
    index = by_uuid(nvml, entry, len);
  else if (len) {
    index = by_number(nvml, entry, len);
    *numbers = true;
  }
  if (index == NO_GPU) {
    bool wanted_none = out->list.len == 0 && (!len || strncmp(entry, "-1", 2) == 0 ||
                                              strncmp(entry, "NoDevFiles", 10) == 0);
    if (!wanted_none && strncmp(entry, "-1", 2) != 0)
      snprintf(out->note, sizeof out->note,
               "CUDA_VISIBLE_DEVICES: '%.*s' names no GPU of this machine; the list ends before it",
               len > 60 ? 60 : (int)len, entry);
    return false;
  }
  if (seen(out, entry, len, index)) {
    snprintf(out->note, sizeof out->note,
             "CUDA_VISIBLE_DEVICES names '%.*s' twice; CUDA gives no GPU then", (int)len, entry);
    clear(out);
    return false;
  }
  if (index >= 0 && mob_nvml_gpu(nvml, index)->mig) {
    snprintf(out->note, sizeof out->note,
             "GPU %d is partitioned (MIG): name its instances (MIG-...) in CUDA_VISIBLE_DEVICES",
             index);
    return false;
  }
  add(out, entry, len, index);
  return true;
}

static void read_list(const mob_nvml_t *nvml, const char *list, const char *order,
                      mob_visible_gpus_t *out) {
  bool numbers = false;
  for (const char *at = list;; at++) {
    while (*at == ' ') at++;
    size_t whole = strcspn(at, ","), len = whole;
    while (len && at[len - 1] == ' ') len--;
    if (!read_entry(nvml, at, len, out, &numbers)) return;
    at += whole;
    if (!*at) break;
  }
  if (numbers && !out->note[0] && !alike(nvml) && (!order || strcmp(order, "PCI_BUS_ID") != 0))
    snprintf(out->note, sizeof out->note,
             "the GPUs of this machine are not alike, and CUDA numbers the fastest first: set "
             "CUDA_DEVICE_ORDER=PCI_BUS_ID, or name them by UUID in CUDA_VISIBLE_DEVICES");
}

void mob_gpus_visible(const mob_nvml_t *nvml, const char *visible, const char *order,
                      mob_visible_gpus_t *out) {
  memset(out, 0, sizeof *out);
  if (visible) {
    read_list(nvml, visible, order, out);
    return;
  }
  out->bus_order = true;
  for (int i = 0; i < mob_nvml_count(nvml); i++) {
    char name[16];
    if (mob_nvml_gpu(nvml, i)->mig) {
      snprintf(out->note, sizeof out->note,
               "GPU %d is partitioned (MIG) and left out: name its instances (MIG-...) in "
               "CUDA_VISIBLE_DEVICES to use them",
               i);
      continue;
    }
    snprintf(name, sizeof name, "%d", i);
    add(out, name, strlen(name), i);
  }
}

void mob_visible_gpus_free(mob_visible_gpus_t *gpus) {
  clear(gpus);
  mob_vec_free(&gpus->list);
}
