// Steps of many rows on several ranks, GPUs of one process: between two sums a row of the residual stream is with one rank, its owner.
// Rank r has the rows [r * shard_each(), (r + 1) * shard_each()), in all sums of a step.
//
// A part travels to the row's owner once (bf16), who adds the parts to its row, norms it and sends finished records, of which each rank
// needs all rows: half of the bytes of a sum that all have, and the residual stream is read and written once.
#pragma once
#include "comm.cuh"
#include "kernels.h"

namespace mob {

bool shard_serves(int rows, int ranks); // a step of so many rows
inline int shard_first(int rows, int ranks, int rank) {
  const int first = rank * shard_each(rows, ranks);
  return first < rows ? first : rows;
}
inline int shard_rows(int rows, int ranks, int rank) { return shard_first(rows, ranks, rank + 1) - shard_first(rows, ranks, rank); }

// ---- norm_shard.cu
struct NormShard {
  // add and expert_y are this rank's parts; from as in norm_rows_ranks(). rows: of the step, instead of all, `count` of them, for
  // the last time: x stays as it is
  NormIn in;
  // Records of all rows (of `count` of them), here at .data; with a_own, b_own of the owner's rows alone, from row 0 on. No f32.
  NormOut out;
  bool a_own, b_own;
  // Of this rank, the next one, the one after it, ...: where their .data is; and, without a norm, where else x goes (nullptr: nowhere).
  uint8_t *a[kMaxRanks], *b[kMaxRanks];
  float *x[kMaxRanks];
  int total, count; // rows of the step; of `rows`
  bool sent;        // linear_parts() has left this rank's parts with the owners; `add` has its own rows
  bool meet;        // ends when everything that other ranks send is there; otherwise the next share_shards() does
};
void norm_shard(const NormShard &p, const Peers &peers, int sms, cudaStream_t stream);

// Where linear_parts() leaves them. own: this rank's row 0 of `add`.
PartsOut parts_out(const Peers &peers, bf16 *own, int hidden, int rows);
// ---- linear.cu: a linear of m rows whose results are parts, n = hidden: x w^T goes to the rows' owners, while it is computed.
bool linear_can_send(const Matrix &w, int m);
void linear_parts(const Matrix &w, const Records &x, const PartsOut &to, int m, const LinearScratch &s, cudaStream_t stream);

// ---- rope_kv.cu: mla_prepare() by the owners, whose own rows of p.a are there: what it writes goes to all ranks, who may read it behind
// the next meeting. False: these sizes are not served.
struct MlaShared {
  int first, rows, ranks;                       // this rank's rows
  uint8_t *q[kMaxRanks], *cache[kMaxRanks];     // p.q.data and p.cache of this rank, of the next one, ...
};
bool mla_prepare_can_share(const MlaPrepare &p);
void mla_prepare_shared(const MlaPrepare &p, const MlaShared &to, cudaStream_t stream);

// Ranges of bytes of this rank's memory to the same places of the others; ends when theirs are here, and all that they sent before.
struct ShareShards {
  int count;              // 0: only the meeting
  const uint8_t *from[2];
  uint8_t *to[2][kMaxRanks]; // of the next rank, the one after it, ...
  size_t bytes[2];        // multiples of 4, places at multiples of 16
  size_t most;            // bytes that a rank sends to another, the most of all
};
void share_shards(const ShareShards &s, const Peers &peers, int sms, cudaStream_t stream);

} // namespace mob
