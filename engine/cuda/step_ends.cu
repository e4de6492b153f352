// How a step takes its tables, and what it tells the host.
#include "step_ends.h"

#include "common.cuh"

namespace mob {
namespace {

constexpr int kThreads = 1024, kBegunAt = offsetof(StepHead, begun) / 16; // the second half of these 16 bytes
static_assert(offsetof(StepHead, begun) % 16 == 8, "");

// One CTA. The first words of all slots are on their way before it is known whose turn it is, and how much there is.
__global__ void __launch_bounds__(kThreads) take_tables_kernel(const StepTables p, uint4 *to) {
  constexpr int kEach = kThreads / kTableSlots;
  __shared__ int words;
  depend_wait();
  const int turn = *p.turn, slot = threadIdx.x / kEach, at = threadIdx.x % kEach, most = p.ints / 4;
  const uint64_t now = global_ns();
  const bool mine = slot == turn;
  const uint4 *from = (const uint4 *)(p.tables + (size_t)turn * p.ints);
  uint4 v = {};
  if (slot < p.slots && at < most) v = ((const uint4 *)(p.tables + (size_t)slot * p.ints))[at];
  if (mine && at == 0) words = ((int)v.y + 3) / 4;
  __syncthreads();
  const int n = min(words, most);
  if (at == kBegunAt) v.z = (uint32_t)now, v.w = (uint32_t)(now >> 32);
  if (mine && at < n) to[at] = v;
  constexpr int kBatch = 4; // loads in flight
  for (int first = kEach + (int)threadIdx.x; first < n; first += kThreads * kBatch) {
    uint4 w[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; k++)
      if (first + k * kThreads < n) w[k] = from[first + k * kThreads];
#pragma unroll
    for (int k = 0; k < kBatch; k++)
      if (first + k * kThreads < n) to[first + k * kThreads] = w[k];
  }
  if (threadIdx.x == 0) *p.turn = turn + 1 < p.slots ? turn + 1 : 0; // all have read it
  // Kernels behind this one read tables before they wait for the one in front of them: none may begin before these are there.
  __threadfence();
  __syncthreads();
  depend_launch();
}

__global__ void __launch_bounds__(kThreads) tell_host_kernel(const StepHead *head, const int *ids, int rows) {
  depend_launch();
  depend_wait();
  for (int i = threadIdx.x; i < rows; i += kThreads) head->ids[i] = ids[i];
  if (threadIdx.x == 0) *head->times = {head->begun, global_ns()};
}

} // namespace

void take_tables(const StepTables &from, int *to, cudaStream_t stream) {
  launch(take_tables_kernel, 1, kThreads, 0, stream, from, (uint4 *)to);
}

void tell_host(const StepHead *head, const int *ids, int rows, cudaStream_t stream) {
  launch(tell_host_kernel, 1, kThreads, 0, stream, head, ids, rows);
}

} // namespace mob
