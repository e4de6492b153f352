// A fixed share of CPU for each pod, by cgroup v1 (cpu.cfs_quota_us) or v2 (cpu.max).
#ifndef MOB_LWS_CGROUP_H
#define MOB_LWS_CGROUP_H

#include <stdbool.h>
#include <sys/types.h>

#include "runtime/base/status.h"

typedef struct mob_lws_cgroup {
  char dir[512]; // of this runner's pods
  bool v2;
  double cpus; // for each pod
} mob_lws_cgroup_t;

// Finds where CPU can be limited; a failure names what is missing. Removes directories that runners
// which no longer exist left there.
mob_status mob__cgroup_open(double cpus, mob_lws_cgroup_t *out);
mob_status mob__cgroup_add(mob_lws_cgroup_t *group, const char *pod, unsigned link, pid_t pid);
void mob__cgroup_remove(mob_lws_cgroup_t *group, const char *pod, unsigned link);
void mob__cgroup_close(mob_lws_cgroup_t *group);
void mob__cgroup_sweep(void); // only the removal of left directories

#endif
