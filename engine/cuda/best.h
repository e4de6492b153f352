// Plain rows (greedy, nothing else asked for), from normed rows to ids: each row's best logit, as keys that order by value, then
// by falling id (sample.cuh).
#pragma once
#include "kernels.h"
#include "sample.cuh"
#include "step_ends.h"

namespace mob {

// The largest key of each piece of a row's logits: [rows][parts].
struct RowKeys {
  unsigned long long *keys;
  int parts;
};
// What a kernel tells the host that ends a step, of rows from `first` of the step's list on; nothing without `head`.
struct Told {
  const StepHead *head;
  int first;
};

// ---- w x^T of bf16 (linear.cu: of up to kBestRows rows; linear_few.cu: of up to kFewRows), of which only the best are kept. `keys` [m][s.sms].
RowKeys linear_best(const Matrix &w, const Records &x, unsigned long long *keys, int m, const LinearScratch &s, cudaStream_t stream);
RowKeys linear_few_best(const Matrix &w, const Records &x, unsigned long long *keys, int m, const LinearScratch &s, cudaStream_t stream);

// ---- sample.cu
// Of logits [rows][ld]. `keys` [rows][kSampleParts].
RowKeys logits_best(const float *logits, int vocab, int ld, unsigned long long *keys, int rows, cudaStream_t stream);
// Their ids; also stored at last_token[slots[r]] where slots[r] >= 0.
void pick(const RowKeys &best, const int *slots, int *ids, int *last_token, const Told &told, int rows, cudaStream_t stream);

// ---- sample_ranks.cu: the same of ranks that have a part of the vocabulary each, from vocab0 on; all end with the same ids. `batch`: of this
// step's rows of logits
void pick_ranks(const Peers &p, int batch, const RowKeys &best, int vocab0, const int *slots, int *ids, int *last_token, const Told &told,
                int rows, cudaStream_t stream);

// ---- what their kernels share
// A lane's share of a row's keys.
__device__ __forceinline__ Key lane_best(const RowKeys &best, int row) {
  Key most = 0;
#pragma unroll 8
  for (int i = threadIdx.x % 32; i < best.parts; i += 32) {
    const Key key = best.keys[(size_t)row * best.parts + i];
    most = key > most ? key : most;
  }
  return most;
}
// One thread a row.
__device__ __forceinline__ void tell_id(const Told &told, int row, int id) {
  if (!told.head) return;
  told.head->ids[told.first + row] = id;
  if (row == 0) *told.head->times = {told.head->begun, global_ns()};
}

} // namespace mob
