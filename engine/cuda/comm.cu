// The ranks of a stage, one GPU each: which GPUs can be, what they have of one another, and how a step fails on all of them at once.
#include <cstdlib>
#include <cstring>

#include "engine/cuda/exec.h"

namespace mob {
namespace {

// What a stage of several GPUs needs: different ones, of one kind, each reaching the memory of the others.
mob_status check_devices(const Exec *exec) {
  const std::vector<Rank> &ranks = exec->ranks;
  cudaDeviceProp first, other;
  CU_TRY(cudaGetDeviceProperties(&first, ranks[0].device));
  for (const Rank &rank : ranks) {
    CU_TRY(cudaGetDeviceProperties(&other, rank.device));
    if (strcmp(first.name, other.name) != 0 || first.multiProcessorCount != other.multiProcessorCount)
      return mob_fail(MOB_E_UNSUPPORTED,
                      "GPU %d (%s, %d SMs) and GPU %d (%s, %d SMs) cannot share the layers of a stage: tensor parallelism needs GPUs of "
                      "one kind; use --pipeline-parallel-size",
                      ranks[0].device, first.name, first.multiProcessorCount, rank.device, other.name, other.multiProcessorCount);
    for (const Rank &peer : ranks) {
      if (peer.index == rank.index) continue;
      if (peer.device == rank.device)
        return mob_fail(MOB_E_INVALID, "GPU %d is named for two tensor-parallel ranks", rank.device);
      int can = 0;
      CU_TRY(cudaDeviceCanAccessPeer(&can, rank.device, peer.device));
      if (!can)
        return mob_fail(MOB_E_UNSUPPORTED,
                        "GPU %d cannot reach the memory of GPU %d, which tensor parallelism needs (NVLink, or PCIe without an IOMMU "
                        "between them); use --pipeline-parallel-size",
                        rank.device, peer.device);
    }
  }
  return MOB_OK;
}

} // namespace

uint32_t comm_wait_ticks() {
  const char *wish = getenv("MOB_CUDA_WAIT_MS"); // for tests
  const long ms = wish ? atol(wish) : 0;
  return (uint32_t)((uint64_t)(ms > 0 ? ms : 5000) * 1000000 >> 16);
}

mob_status comm_open(Exec *exec) {
  const size_t tp = exec->ranks.size();
  CU_TRY(cudaHostAlloc(&exec->halt, (1 + tp) * sizeof(int), cudaHostAllocPortable | cudaHostAllocMapped));
  memset(exec->halt, 0, (1 + tp) * sizeof(int));
  MOB_TRY(check_devices(exec));
  for (Rank &rank : exec->ranks) {
    CU_TRY(cudaSetDevice(rank.device));
    CU_TRY(cudaMalloc(&rank.waits, sizeof(Waits)));
    for (const Rank &peer : exec->ranks) {
      if (peer.index == rank.index) continue;
      const cudaError_t error = cudaDeviceEnablePeerAccess(peer.device, 0);
      if (error == cudaErrorPeerAccessAlreadyEnabled) cudaGetLastError();
      else CU_TRY(error);
    }
  }
  for (Rank &rank : exec->ranks) {
    Waits waits = {};
    waits.rank = rank.index;
    waits.ranks = (int)tp;
    waits.limit = comm_wait_ticks();
    waits.host = exec->halt;
    waits.missing = exec->halt + 1 + rank.index;
    for (const Rank &peer : exec->ranks) waits.peers[peer.index] = &peer.waits->halt;
    CU_TRY(cudaSetDevice(rank.device));
    CU_TRY(cudaMemcpy(rank.waits, &waits, sizeof waits, cudaMemcpyHostToDevice));
  }
  return MOB_OK;
}

void comm_connect(Exec *exec) {
  const int tp = exec->spec.tp;
  for (Rank &rank : exec->ranks) {
    rank.peers = Peers();
    rank.peers.waits = rank.waits;
    rank.peers.rank = rank.index;
    rank.peers.ranks = tp;
    rank.peers.at = inbox_layout(exec->desc->hidden, exec->max_rows);
    for (int i = 0; i < tp; i++) rank.peers.inbox[i] = exec->ranks[(size_t)((rank.index + i) % tp)].inbox;
  }
}

void comm_halt(Exec *exec) {
  if (exec->halt) __atomic_store_n(&exec->halt[0], 1, __ATOMIC_RELEASE);
}

mob_status comm_failure(const Exec *exec) {
  if (__atomic_load_n(&exec->halt[0], __ATOMIC_ACQUIRE) == 0) {
    bool all = true; // a wait within a GPU says only here that it ran out
    for (const Rank &rank : exec->ranks) all = all && exec->halt[1 + rank.index] == 0;
    if (all) return MOB_OK;
  }
  const double seconds = comm_wait_ticks() * 65536e-9;
  for (const Rank &rank : exec->ranks) {
    const int missing = exec->halt[1 + rank.index] - 1;
    if (missing < 0) continue;
    const int device = exec->ranks[(size_t)missing].device;
    if (missing == rank.index)
      return mob_fail(MOB_E_TIMEOUT, "GPU %d did not finish a matrix product within %.1f s", device, seconds);
    return mob_fail(MOB_E_TIMEOUT, "rank %d (GPU %d) of the stage did not send its part of a sum within %.1f s; rank %d (GPU %d) waited",
                    missing, device, seconds, rank.index, rank.device);
  }
  return mob_fail(MOB_E_ABORTED, "the executor was aborted");
}

void comm_close(Exec *exec) {
  for (Rank &rank : exec->ranks) {
    cudaSetDevice(rank.device);
    cudaFree(rank.waits);
  }
  cudaFreeHost(exec->halt);
}

} // namespace mob
