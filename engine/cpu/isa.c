#include <cpuid.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/cpu/amx.h"
#include "engine/cpu/ops.h"
#include "runtime/base/log.h"

static bool has_f16c(void) { // clang 14's builtin does not know the name
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}

const mob_cpu_ops_t *mob_cpu_ops_named(const char *name) {
  if (strcmp(name, "scalar") == 0) return &mob_cpu_ops_scalar;
  bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  // The file is compiled for all that the build's _avx512 flags name, so all of it must be there.
  bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512bf16");
  if (avx2 && strcmp(name, "avx2") == 0) return &mob_cpu_ops_avx2;
  if (avx512 && strcmp(name, "avx512") == 0) return &mob_cpu_ops_avx512;
  return NULL;
}

// The kernel saves the tiles' state (8 KiB a thread) only for processes that ask for it.
static bool may_use_tiles(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

bool mob_amx_usable(void) {
  const char *wanted = getenv("MOB_CPU_ISA");
  unsigned a, b, c, d;
  enum { AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };
  if (wanted && mob_cpu_ops_named(wanted)) return false;
  if (!mob_cpu_ops_named("avx512") || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (d & AMX_BF16) && (d & AMX_TILE) && may_use_tiles();
}

const mob_cpu_ops_t *mob_cpu_ops_pick(void) {
  static const char *const best_first[] = {"avx512", "avx2", "scalar"};
  const char *wanted = getenv("MOB_CPU_ISA");
  if (wanted && *wanted && strcmp(wanted, "amx") != 0) { // tiles are used beside avx512

    const mob_cpu_ops_t *ops = mob_cpu_ops_named(wanted);
    if (ops) return ops;
    MOB_WARN("MOB_CPU_ISA=%s is not known or not on this CPU; taking the best there is", wanted);
  }
  for (int i = 0;; i++) {
    const mob_cpu_ops_t *ops = mob_cpu_ops_named(best_first[i]);
    if (ops) return ops;
  }
}
