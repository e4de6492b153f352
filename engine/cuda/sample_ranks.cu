// Sampling where each rank has the logits of its part of the vocabulary.
//   plain rows  the ranks' best are exchanged, every rank picks the same
//   others      all logits go to rank 0, which samples, and sends the ids to all: each looks up the next token by itself
#include "best.h"
#include "comm.cuh"
#include "sample.cuh"

namespace mob {
namespace {

// A warp a row. `batch`: of this step's rows; a rank is at most one batch behind another.
__global__ void __launch_bounds__(32) pick_ranks_kernel(const Peers p, int batch, const RowKeys best, int vocab0,
                                                        const int *slots, int *ids, int *last_token, const Told told) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, lane = threadIdx.x;
  const Key own = warp_best(lane_best(best, row));
  const Key mine = own ? own - (Key)vocab0 : 0; // its low half is ~id: of the whole vocabulary now
  const size_t word = p.at.best + ((size_t)(batch % 2 * kMaxRanks) * kExchangeRows + row) * sizeof(Key), rank = kExchangeRows * sizeof(Key);
  Key key = 0;
  bool there = true;
  if (lane < p.ranks) {
    store_relaxed_sys_u64((uint64_t *)(inbox_of(p, lane) + word + p.rank * rank), mine);
    uint64_t *from = (uint64_t *)(p.inbox[0] + word + lane * rank);
    uint32_t start = 0;
    for (int tries = 0;; tries++) {
      key = load_relaxed_sys_u64(from);
      there = key != ~(Key)0;
      if (there || !look_again(p.waits, tries, &start, lane)) break;
    }
    store_relaxed_sys_u64(from, ~(Key)0);
    if (!there) key = 0;
  }
  key = warp_best(key);
  if (!__all_sync(~0u, there) || lane != 0 || halted(p.waits)) return;
  ids[row] = key_id(key);
  if (slots[row] >= 0) last_token[slots[row]] = key_id(key);
  tell_id(told, row, key_id(key));
}

// This rank's columns of the logits to rank 0's.
__global__ void __launch_bounds__(256) send_logits_kernel(const float *from, int columns, float *to, int vocab) {
  depend_launch();
  depend_wait();
  const size_t row = blockIdx.y;
  for (int i = blockIdx.x * 256 + threadIdx.x; i < columns; i += gridDim.x * 256) to[row * vocab + i] = from[row * columns + i];
}
__global__ void __launch_bounds__(32) say_ready_kernel(const Peers p) {
  depend_launch();
  depend_wait();
  if (threadIdx.x == 0) store_release_sys_int((int *)(inbox_of(p, 0) + p.at.ready) + p.rank, 1);
}
__global__ void __launch_bounds__(32) wait_ready_kernel(const Peers p) {
  depend_launch();
  depend_wait();
  const int lane = threadIdx.x;
  int *word = (int *)(p.inbox[0] + p.at.ready) + lane;
  if (lane == 0 || lane >= p.ranks) return;
  uint32_t start = 0;
  for (int tries = 0; load_acquire_sys_int(word) != 1; tries++)
    if (!look_again(p.waits, tries, &start, lane)) break;
  store_relaxed_sys_int(word, -1);
}

// Ids travel as they are: none has every bit set.
__global__ void __launch_bounds__(256) send_ids_kernel(const Peers p, const int *ids, int rows) {
  depend_launch();
  depend_wait();
  const int row = threadIdx.x;
  if (row >= rows) return;
#pragma unroll
  for (int i = 1; i < kMaxRanks; i++)
    if (i < p.ranks) store_relaxed_sys_int((int *)(p.inbox[i] + p.at.ids) + row, max(ids[row], 0));
}
__global__ void __launch_bounds__(256) take_ids_kernel(const Peers p, const int *slots, const int *wanted, int *ids,
                                                       int *last_token, int rows) {
  depend_launch();
  depend_wait();
  const int row = threadIdx.x;
  if (row >= rows) return;
  int *word = (int *)(p.inbox[0] + p.at.ids) + row, id;
  uint32_t start = 0;
  for (int tries = 0;; tries++) {
    id = load_relaxed_sys_int(word);
    if (id >= 0 || !look_again(p.waits, tries, &start, 0)) break;
  }
  store_relaxed_sys_int(word, -1);
  if (id < 0 || halted(p.waits)) return;
  ids[row] = id;
  if (slots[row] >= 0 && wanted[row] < 0) last_token[slots[row]] = id;
}

} // namespace

void pick_ranks(const Peers &p, int batch, const RowKeys &best, int vocab0, const int *slots, int *ids, int *last_token, const Told &told,
                int rows, cudaStream_t stream) {
  launch(pick_ranks_kernel, rows, 32, 0, stream, p, batch, best, vocab0, slots, ids, last_token, told);
}

void gather_logits(const Peers &p, const float *from, int columns, float *to, int vocab, int rows,
                   cudaStream_t stream) {
  if (p.rank == 0) {
    launch(wait_ready_kernel, 1, 32, 0, stream, p);
    return;
  }
  launch(send_logits_kernel, dim3((columns + 2047) / 2048, rows), 256, 0, stream, from, columns, to, vocab);
  launch(say_ready_kernel, 1, 32, 0, stream, p);
}

void share_ids(const Peers &p, const int *slots, const int *wanted, int *ids, int *last_token, int rows,
               cudaStream_t stream) {
  if (p.rank == 0) launch(send_ids_kernel, 1, 256, 0, stream, p, (const int *)ids, rows);
  else launch(take_ids_kernel, 1, 256, 0, stream, p, slots, wanted, ids, last_token, rows);
}

} // namespace mob
