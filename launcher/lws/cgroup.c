#include "launcher/lws/cgroup.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime/base/mem.h"

#define PERIOD_US 100000
#define NAME_PREFIX "mobula-lws-" // then the runner's pid

static mob_status write_text(const char *dir, const char *file, const char *text) {
  char path[700];
  snprintf(path, sizeof path, "%s/%s", dir, file);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  ssize_t n = fd < 0 ? -1 : write(fd, text, strlen(text));
  int error = errno;
  if (fd >= 0) close(fd);
  if (n < 0)
    return mob_fail(MOB_E_IO, "cannot write \"%s\" to %s: %s", text, path, strerror(error));
  return MOB_OK;
}

// Where the cpu controller is mounted: v1's own hierarchy first, else v2 with cpu switched on for
// children.
static bool find_root(char *out, size_t size, bool *v2, char *why, size_t why_size) {
  FILE *mounts = fopen("/proc/self/mounts", "re");
  char line[1024], dir[512], type[64], options[512], unified[512] = "";
  bool found = false;
  while (mounts && !found && fgets(line, sizeof line, mounts)) {
    if (sscanf(line, "%*s %511s %63s %511s", dir, type, options) != 3) continue;
    if (strcmp(type, "cgroup2") == 0) snprintf(unified, sizeof unified, "%s", dir);
    if (strcmp(type, "cgroup") != 0) continue;
    for (char *save, *word = strtok_r(options, ",", &save); word;
         word = strtok_r(NULL, ",", &save)) {
      if (strcmp(word, "cpu") == 0) found = true;
    }
    if (found) snprintf(out, size, "%s", dir);
  }
  if (mounts) fclose(mounts);
  *v2 = !found;
  if (found) return true;
  if (!*unified) {
    snprintf(why, why_size, "neither the cgroup v1 controller cpu nor cgroup v2 is mounted");
    return false;
  }
  if (write_text(unified, "cgroup.subtree_control", "+cpu") != MOB_OK) {
    snprintf(why, why_size, "%.200s", mob_errmsg());
    return false;
  }
  snprintf(out, size, "%s", unified);
  return true;
}

static void remove_below(const char *dir) {
  DIR *entries = opendir(dir);
  for (struct dirent *e; entries && (e = readdir(entries));) {
    if (e->d_type != DT_DIR || e->d_name[0] == '.') continue;
    char path[800];
    snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
    rmdir(path);
  }
  if (entries) closedir(entries);
  rmdir(dir);
}

// A process that only waits for its parent to ask for its status is as good as gone.
static bool is_alive(pid_t pid) {
  char path[64], text[512] = "";
  snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
  FILE *file = fopen(path, "re");
  if (!file) return false;
  size_t n = fread(text, 1, sizeof text - 1, file);
  fclose(file);
  text[n] = 0;
  const char *after = strrchr(text, ')');
  return after && strncmp(after, ") Z", 3) != 0;
}

static void sweep(const char *root) {
  DIR *entries = opendir(root);
  for (struct dirent *e; entries && (e = readdir(entries));) {
    if (strncmp(e->d_name, NAME_PREFIX, strlen(NAME_PREFIX)) != 0) continue;
    pid_t pid = (pid_t)strtol(e->d_name + strlen(NAME_PREFIX), NULL, 10);
    if (pid <= 0 || is_alive(pid)) continue;
    char path[800];
    snprintf(path, sizeof path, "%s/%s", root, e->d_name);
    remove_below(path);
  }
  if (entries) closedir(entries);
}

void mob__cgroup_sweep(void) {
  char root[512], why[256];
  bool v2;
  if (find_root(root, sizeof root, &v2, why, sizeof why)) sweep(root);
}

mob_status mob__cgroup_open(double cpus, mob_lws_cgroup_t *out) {
  char root[400], why[256];
  if (!find_root(root, sizeof root, &out->v2, why, sizeof why)) {
    return mob_fail(MOB_E_UNSUPPORTED, "--cpu-per-pod: this machine cannot limit CPU: %s", why);
  }
  sweep(root);
  out->cpus = cpus;
  snprintf(out->dir, sizeof out->dir, "%s/" NAME_PREFIX "%d", root, (int)getpid());
  if (mkdir(out->dir, 0755) != 0 && errno != EEXIST) {
    return mob_fail(MOB_E_UNSUPPORTED, "--cpu-per-pod: cannot create %s: %s (run as root)",
                    out->dir, strerror(errno));
  }
  if (out->v2) {
    mob_status status = write_text(out->dir, "cgroup.subtree_control", "+cpu");
    if (status != MOB_OK) {
      rmdir(out->dir);
      return mob_wrap(status, "--cpu-per-pod");
    }
  }
  return MOB_OK;
}

static void pod_dir(const mob_lws_cgroup_t *group, const char *pod, unsigned link, char *out,
                    size_t size) {
  snprintf(out, size, "%s/%s-%u", group->dir, pod, link); // a replaced pod may still be ending
}

mob_status mob__cgroup_add(mob_lws_cgroup_t *group, const char *pod, unsigned link, pid_t pid) {
  char dir[620], text[64];
  pod_dir(group, pod, link, dir, sizeof dir);
  if (mkdir(dir, 0755) != 0 && errno != EEXIST)
    return mob_fail(MOB_E_IO, "cannot create %s: %s", dir, strerror(errno));
  long quota = (long)(group->cpus * PERIOD_US + 0.5);
  if (group->v2) {
    snprintf(text, sizeof text, "%ld %d", quota, PERIOD_US);
    MOB_TRY(write_text(dir, "cpu.max", text));
  } else {
    snprintf(text, sizeof text, "%d", PERIOD_US);
    MOB_TRY(write_text(dir, "cpu.cfs_period_us", text));
    snprintf(text, sizeof text, "%ld", quota);
    MOB_TRY(write_text(dir, "cpu.cfs_quota_us", text));
  }
  snprintf(text, sizeof text, "%d", (int)pid);
  return write_text(dir, "cgroup.procs", text);
}

void mob__cgroup_remove(mob_lws_cgroup_t *group, const char *pod, unsigned link) {
  char dir[620];
  pod_dir(group, pod, link, dir, sizeof dir);
  rmdir(dir);
}

void mob__cgroup_close(mob_lws_cgroup_t *group) {
  remove_below(group->dir);
}
