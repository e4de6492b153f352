#include "engine/backend.h"

#include <dlfcn.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/log.h"

static mob_status load_plugin(const char *path, const mob_backend_t **out) {
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL); // stays open: its code runs until the end
  *out = library ? dlsym(library, "mob_backend_cuda") : NULL;
  if (*out) return MOB_OK;
  const char *why = dlerror();
  return mob_fail(MOB_E_UNSUPPORTED, "the CUDA plug-in cannot be used: %s",
                  why ? why : "it exports no mob_backend_cuda");
}

// The plug-in lies beside the executable or in ../lib, or MOBULA_CUDA_PLUGIN names it; it exports
// `mob_backend_cuda`.
static mob_status open_plugin(const mob_backend_t **out) {
  static const char *const places[] = {"%s/libmobula_cuda.so", "%s/../lib/libmobula_cuda.so"};
  const char *named = getenv("MOBULA_CUDA_PLUGIN");
  if (named && *named) return load_plugin(named, out);
  char self[PATH_MAX], path[PATH_MAX + 32];
  ssize_t len = readlink("/proc/self/exe", self, sizeof self - 1);
  if (len < 0) return mob_fail(MOB_E_IO, "/proc/self/exe cannot be read");
  self[len] = 0;
  const char *dir = dirname(self);
  for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
    snprintf(path, sizeof path, places[i], dir);
    if (access(path, F_OK) != 0) continue;
    return load_plugin(path, out);
  }
  return mob_fail(MOB_E_UNSUPPORTED,
                  "this build has no CUDA plug-in (libmobula_cuda.so beside the executable)");
}

mob_status mob_backend_find(const char *name, const mob_backend_t **out) {
  bool automatic = strcmp(name, "auto") == 0;
  if (strcmp(name, "cpu") == 0) {
    *out = &mob_backend_cpu;
    return MOB_OK;
  }
  if (!automatic && strcmp(name, "cuda") != 0)
    return mob_fail(MOB_E_INVALID, "device \"%s\" is not one of auto, cpu, cuda", name);
  mob_status status = open_plugin(out);
  if (status == MOB_OK && (!automatic || (*out)->device_count() > 0)) return MOB_OK;
  if (!automatic) return status;
  MOB_DEBUG("no CUDA device: %s", mob_errmsg());
  *out = &mob_backend_cpu;
  return MOB_OK;
}
