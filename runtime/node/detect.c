#include "runtime/node/detect.h"

#include <dirent.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "runtime/base/file.h"
#define MOB_LOG_COMPONENT "node"
#include "runtime/base/log.h"
#include "runtime/gpu/visible.h"

// A file that holds one number or "max"; -1 when it does not. `second` may be NULL.
static int64_t read_number(const char *path, int64_t *second) {
  mob_buf_t text = {0};
  int64_t value = -1;
  if (mob_file_read(path, 4096, &text) == MOB_OK) {
    char *end;
    const char *start = mob_buf_cstr(&text);
    value = strtoll(start, &end, 10);
    if (end == start) {
      value = -1;
      end += strcspn(end, " \n");
    }
    if (second) *second = strtoll(end, NULL, 10);
  }
  mob_buf_free(&text);
  return value;
}

// "MemTotal", "MemAvailable" of /proc/meminfo, in bytes.
static int64_t meminfo(const char *name) {
  mob_buf_t text = {0};
  int64_t value = 0;
  if (mob_file_read("/proc/meminfo", 1 << 16, &text) == MOB_OK) {
    const char *line = strstr(mob_buf_cstr(&text), name);
    if (line) value = strtoll(line + strlen(name) + 1, NULL, 10) * 1024;
  }
  mob_buf_free(&text);
  return value;
}

int mob_detect_cpus(void) {
  cpu_set_t set;
  int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set)
                                                          : (int)sysconf(_SC_NPROCESSORS_ONLN);
  int64_t period = 0;
  int64_t quota = read_number("/sys/fs/cgroup/cpu.max", &period);
  if (quota < 0) {
    quota = read_number("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", NULL);
    period = read_number("/sys/fs/cgroup/cpu/cpu.cfs_period_us", NULL);
  }
  if (quota > 0 && period > 0) {
    int64_t share = (quota + period - 1) / period;
    if (share < count) count = (int)share;
  }
  return count < 1 ? 1 : count;
}

static int64_t cgroup_limit(void) {
  int64_t limit = read_number("/sys/fs/cgroup/memory.max", NULL);
  if (limit < 0) limit = read_number("/sys/fs/cgroup/memory/memory.limit_in_bytes", NULL);
  return limit;
}

int64_t mob_detect_memory(void) {
  int64_t total = meminfo("MemTotal"), limit = cgroup_limit();
  return limit > 0 && limit < total ? limit : total;
}

int64_t mob_detect_free_memory(void) {
  int64_t available = meminfo("MemAvailable"), limit = cgroup_limit();
  if (limit > 0 && limit < meminfo("MemTotal")) {
    int64_t used = read_number("/sys/fs/cgroup/memory.current", NULL);
    if (used < 0) used = read_number("/sys/fs/cgroup/memory/memory.usage_in_bytes", NULL);
    if (used >= 0 && limit - used < available) available = limit - used;
  }
  return available < 0 ? 0 : available;
}

int64_t mob_default_object_store(int64_t available) {
  int64_t size = available / 10 * 3;
  struct statvfs shm;
  const int64_t cap = 200LL * 1000 * 1000 * 1000, floor = 75LL << 20;
  if (size > cap) size = cap;
  if (statvfs("/dev/shm", &shm) == 0 && shm.f_blocks) {
    int64_t room = (int64_t)shm.f_bavail * (int64_t)shm.f_frsize;
    if (size > room) size = room;
  }
  return size < floor ? floor : size;
}

int64_t mob_detect_cpu_time_us(void) {
  mob_buf_t text = {0};
  int64_t us = -1;
  if (mob_file_read("/sys/fs/cgroup/cpu.stat", 1 << 16, &text) == MOB_OK) {
    const char *line = strstr(mob_buf_cstr(&text), "usage_usec ");
    if (line) us = strtoll(line + 11, NULL, 10);
  }
  if (us < 0) {
    us = read_number("/sys/fs/cgroup/cpuacct/cpuacct.usage", NULL);
    if (us > 0) us /= 1000;
  }
  text.len = 0;
  if (us < 0 && mob_file_read("/proc/stat", 1 << 20, &text) == MOB_OK) {
    long long user = 0, nice = 0, kernel = 0, idle, wait, irq = 0, soft = 0;
    if (sscanf(mob_buf_cstr(&text), "cpu %lld %lld %lld %lld %lld %lld %lld", &user, &nice, &kernel,
               &idle, &wait, &irq, &soft) == 7)
      us = (user + nice + kernel + irq + soft) * (1000000 / sysconf(_SC_CLK_TCK));
  }
  mob_buf_free(&text);
  return us < 0 ? 0 : us;
}

// ------------------------------------------------------------------------------------------- GPUs

void mob_node_gpus_free(mob_node_gpus_t *gpus) {
  for (size_t i = 0; i < gpus->names.len; i++) free(gpus->names.at[i]);
  mob_vec_free(&gpus->names);
}

static void count_up(mob_gpu_names_t *names, int count) {
  while ((int)names->len < count) {
    size_t next = names->len;
    *mob_vec_push(names) = mob_sprintf("%zu", next);
  }
}

// Without NVML: what CUDA would take of the list, as far as that can be known.
static void list_visible(const char *list, mob_gpu_names_t *names) {
  // CUDA stops at the first entry that is no device.
  while (*list && strncmp(list, "-1", 2) && strncmp(list, "NoDevFiles", 10)) {
    size_t len = strcspn(list, ",");
    if (len) *mob_vec_push(names) = mob_strndup(list, len);
    list += len + (list[len] != 0);
  }
}

static int driver_count(void) {
  int count = 0;
  DIR *dir = opendir("/proc/driver/nvidia/gpus");
  struct dirent *entry;
  while (dir && (entry = readdir(dir))) count += entry->d_name[0] != '.';
  if (dir) closedir(dir);
  if (!count) return 0;
  // A container sees every GPU of the host in /proc, yet only its own devices in /dev.
  int nodes = 0;
  for (int i = 0; i < 256; i++) {
    char path[32];
    snprintf(path, sizeof path, "/dev/nvidia%d", i);
    nodes += mob_file_exists(path);
  }
  return nodes && nodes < count ? nodes : count;
}

// False without NVML.
static bool ask_nvml(const char *visible, mob_node_gpus_t *out) {
  mob_nvml_t *nvml = NULL;
  mob_visible_gpus_t gpus;
  if (mob_nvml_open(&nvml) != MOB_OK) {
    MOB_DEBUG("%s", mob_errmsg());
    return false;
  }
  mob_gpus_visible(nvml, visible, getenv("CUDA_DEVICE_ORDER"), &gpus);
  int first = 0;
  for (size_t i = 0; i < gpus.list.len; i++) {
    *mob_vec_push(&out->names) = mob_strdup(gpus.list.at[i].name);
    if (i == 0 && gpus.list.at[i].index >= 0) first = gpus.list.at[i].index;
  }
  mob_gpu_type(mob_nvml_gpu(nvml, first)->name, out->type, sizeof out->type);
  out->bus_order = gpus.bus_order;
  snprintf(out->note, sizeof out->note, "%s", gpus.note);
  mob_visible_gpus_free(&gpus);
  mob_nvml_close(nvml);
  return true;
}

static mob_status too_many(int wanted, const char *visible) {
  mob_buf_t list = {0};
  for (const char *at = visible; *at;) {
    size_t len = strcspn(at, ",");
    mob_buf_printf(&list, "%s'%.*s'", list.len ? ", " : "", (int)len, at);
    at += len + (at[len] != 0);
  }
  mob_status status =
      mob_fail(MOB_E_INVALID,
               "ValueError: Attempting to start raylet with %d GPU, but CUDA_VISIBLE_DEVICES "
               "contains [%s].",
               wanted, mob_buf_cstr(&list));
  mob_buf_free(&list);
  return status;
}

mob_status mob_detect_gpus(int wanted, mob_node_gpus_t *out) {
  const char *simulated = getenv("MOBULA_SIMULATED_GPUS");
  const char *visible = getenv("CUDA_VISIBLE_DEVICES");
  bool real = false;
  memset(out, 0, sizeof *out);
  if (wanted == 0) return MOB_OK; // MOB_GPUS_NONE
  if (simulated && *simulated) {
    int count = atoi(simulated);
    count_up(&out->names, count > 0 && count <= 1024 ? count : 0);
    out->source = MOB_GPUS_SIMULATED;
  } else {
    real = ask_nvml(visible, out);
    int present = real ? 0 : driver_count();
    if (visible && present)
      list_visible(visible, &out->names);
    else
      count_up(&out->names, present);
    real = real || present > 0;
    out->source = MOB_GPUS_REAL;
  }
  if (wanted < 0 || (int)out->names.len == wanted) {
    if (!out->names.len) out->source = MOB_GPUS_NONE;
    if (!out->names.len) out->type[0] = '\0';
    return MOB_OK;
  }
  if ((int)out->names.len < wanted) {
    if (real && visible) return too_many(wanted, visible);
    if (real)
      snprintf(out->note, sizeof out->note,
               "--num-gpus=%d, but this machine shows %zu GPUs: actors are told nothing of which "
               "are theirs",
               wanted, out->names.len);
    count_up(&out->names, wanted);
    out->source = MOB_GPUS_DECLARED;
  }
  while ((int)out->names.len > wanted) free(out->names.at[--out->names.len]);
  return MOB_OK;
}
