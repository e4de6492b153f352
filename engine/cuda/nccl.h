// What is used of NCCL, declared here: the library is opened when a stage needs it, nothing of it is needed to build. Values and
// layouts are those of nccl.h since 2.18, which later releases keep.
#ifndef MOB_CUDA_NCCL_H
#define MOB_CUDA_NCCL_H

#include <climits>
#include <cstddef>
#include <cuda_runtime.h>

#define _Noreturn [[noreturn]]
extern "C" {
#include "runtime/base/status.h"
}

namespace mob {

using NcclComm = void *;
enum NcclResult { NCCL_SUCCESS = 0, NCCL_SYSTEM_ERROR = 2, NCCL_REMOTE_ERROR = 6, NCCL_IN_PROGRESS = 7 };
enum NcclType { NCCL_INT32 = 2, NCCL_UINT64 = 5, NCCL_FLOAT32 = 7, NCCL_BFLOAT16 = 9 };
enum NcclOp { NCCL_SUM = 0, NCCL_MAX = 2 };
struct NcclId {
  char internal[128];
};
struct NcclConfig { // ncclConfig_t of 2.18, which every later release takes; INT_MIN: the library's choice
  size_t size = sizeof(NcclConfig);
  unsigned magic = 0xcafebeef, version = 21805;
  int blocking = 0;
  int cga_cluster_size = INT_MIN, min_ctas = INT_MIN, max_ctas = INT_MIN;
  const char *net_name = nullptr;
  int split_share = INT_MIN;
};

struct Nccl {
  int (*get_version)(int *version);
  int (*get_unique_id)(NcclId *id);
  int (*init_rank)(NcclComm *comm, int ranks, NcclId id, int rank, NcclConfig *config);
  int (*abort)(NcclComm comm);
  int (*async_error)(NcclComm comm, int *error);
  int (*all_reduce)(const void *from, void *to, size_t count, int type, int op, NcclComm comm, cudaStream_t stream);
  int (*all_gather)(const void *from, void *to, size_t count_each, int type, NcclComm comm, cudaStream_t stream);
  int (*broadcast)(const void *from, void *to, size_t count, int type, int root, NcclComm comm, cudaStream_t stream);
  const char *(*error_string)(int error);
  const char *(*last_error)(NcclComm comm);
};

// Opens the library once a process: VLLM_NCCL_SO_PATH where that is set, else libnccl.so.2 as the loader finds it, else of a Python
// package or a toolkit. MOB_E_UNSUPPORTED says what to install.
mob_status nccl_open(const Nccl **out);

} // namespace mob

#endif
