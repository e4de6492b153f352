// Finding NCCL on the host.
#include "engine/cuda/nccl.h"

#include <cstdlib>
#include <dlfcn.h>
#include <glob.h>
#include <mutex>
#include <string>

extern "C" {
#include "runtime/base/log.h"
}

namespace mob {
namespace {

// Where pip and the toolkit leave it, off the loader's path.
const char *const kPlaces[] = {
    "/usr/local/lib/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2",
    "/usr/lib/python3*/*-packages/nvidia/nccl/lib/libnccl.so.2",
    "/opt/*/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2",
    "/opt/*/*/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2",
    "/usr/local/cuda/lib64/libnccl.so.2",
};

void *first_of(const char *pattern) {
  glob_t found = {};
  void *library = nullptr;
  if (glob(pattern, 0, nullptr, &found) == 0)
    for (size_t i = 0; i < found.gl_pathc && !library; i++) library = dlopen(found.gl_pathv[i], RTLD_NOW | RTLD_LOCAL);
  globfree(&found);
  return library;
}

mob_status find_library(void **out) {
  const char *named = getenv("VLLM_NCCL_SO_PATH"), *venv = getenv("VIRTUAL_ENV");
  if (named && *named) {
    *out = dlopen(named, RTLD_NOW | RTLD_LOCAL);
    return *out ? MOB_OK : mob_fail(MOB_E_UNSUPPORTED, "NCCL, as VLLM_NCCL_SO_PATH names it, cannot be used: %s", dlerror());
  }
  *out = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
  if (!*out && venv && *venv) *out = first_of((std::string(venv) + "/lib/python3*/site-packages/nvidia/nccl/lib/libnccl.so.2").c_str());
  for (const char *place : kPlaces)
    if (!*out) *out = first_of(place);
  if (*out) return MOB_OK;
  return mob_fail(MOB_E_UNSUPPORTED,
                  "a stage whose tensor-parallel ranks are in several pods needs NCCL, and there is no libnccl.so.2 in this one: install "
                  "it in every pod (Debian's libnccl2, or pip install nvidia-nccl-cu13), name it in VLLM_NCCL_SO_PATH, or use "
                  "--pipeline-parallel-size between pods");
}

template <class F> mob_status take(void *library, const char *name, F *out) {
  *out = (F)dlsym(library, name);
  return *out ? MOB_OK : mob_fail(MOB_E_UNSUPPORTED, "NCCL 2.18 or later is needed between pods; the one here has no %s", name);
}

mob_status load(Nccl *n) {
  // The multicast of NVLink switches stays off unless somebody asks for it: the host's switches are shared by all its pods.
  setenv("NCCL_NVLS_ENABLE", "0", 0);
  void *library = nullptr;
  MOB_TRY(find_library(&library));
  MOB_TRY(take(library, "ncclGetVersion", &n->get_version));
  MOB_TRY(take(library, "ncclGetUniqueId", &n->get_unique_id));
  MOB_TRY(take(library, "ncclCommInitRankConfig", &n->init_rank));
  MOB_TRY(take(library, "ncclCommAbort", &n->abort));
  MOB_TRY(take(library, "ncclCommGetAsyncError", &n->async_error));
  MOB_TRY(take(library, "ncclAllReduce", &n->all_reduce));
  MOB_TRY(take(library, "ncclAllGather", &n->all_gather));
  MOB_TRY(take(library, "ncclBroadcast", &n->broadcast));
  MOB_TRY(take(library, "ncclGetErrorString", &n->error_string));
  MOB_TRY(take(library, "ncclGetLastError", &n->last_error));
  int version = 0;
  if (n->get_version(&version) != NCCL_SUCCESS || version < 21800)
    return mob_fail(MOB_E_UNSUPPORTED, "NCCL 2.18 or later is needed between pods; this is version code %d", version);
  mob_log(MOB_LOG_INFO, "cuda", "NCCL %d.%d.%d", version / 10000, version / 100 % 100, version % 100);
  return MOB_OK;
}

} // namespace

mob_status nccl_open(const Nccl **out) {
  static std::mutex lock;
  static Nccl nccl;
  static bool loaded = false;
  std::lock_guard<std::mutex> hold(lock);
  if (!loaded) MOB_TRY(load(&nccl));
  loaded = true;
  *out = &nccl;
  return MOB_OK;
}

} // namespace mob
