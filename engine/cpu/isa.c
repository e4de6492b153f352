#include <stdlib.h>
#include <string.h>

#include "engine/cpu/ops.h"
#include "runtime/base/log.h"

const mob_cpu_ops_t *mob_cpu_ops_named(const char *name) {
  if (strcmp(name, "scalar") == 0) return &mob_cpu_ops_scalar;
  return NULL;
}

const mob_cpu_ops_t *mob_cpu_ops_pick(void) {
  static const char *const best_first[] = {"avx512", "avx2", "scalar"};
  const char *wanted = getenv("MOB_CPU_ISA");
  if (wanted && *wanted) {
    const mob_cpu_ops_t *ops = mob_cpu_ops_named(wanted);
    if (ops) return ops;
    MOB_WARN("MOB_CPU_ISA=%s is not known or not on this CPU; taking the best there is", wanted);
  }
  for (int i = 0;; i++) {
    const mob_cpu_ops_t *ops = mob_cpu_ops_named(best_first[i]);
    if (ops) return ops;
  }
}
