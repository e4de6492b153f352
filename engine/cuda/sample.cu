// From logits to each row's best. Plain rows (greedy, nothing else asked for) end here; before that, bias, allowed ids, the
// min_tokens mask and penalties act on the rows of slots that have them. What is drawn from them: sample_filter.cu.
#include "best.h"
#include "sample.cuh"

namespace mob {
namespace {

constexpr int kParts = kSampleParts, kThreads = 256;

__device__ __forceinline__ void store_best(Key best, Key *warps, Key *out) {
  best = warp_best(best);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = best;
  __syncthreads();
  if (threadIdx.x < 32) {
    best = warp_best(threadIdx.x < kThreads / 32 ? warps[threadIdx.x] : 0);
    if (threadIdx.x == 0) *out = best;
  }
}

__global__ void __launch_bounds__(kThreads) best_kernel(const float *logits, int vocab, int ld, Key *best) {
  __shared__ Key warps[kThreads / 32];
  depend_launch();
  depend_wait();
  const int row = blockIdx.y, part = blockIdx.x;
  const float *from = logits + (size_t)row * ld;
  const int quads = ld % 4 ? 0 : vocab / 4, q1 = (int)((int64_t)quads * (part + 1) / kParts);
  const int first = (int)((int64_t)quads * part / kParts) + threadIdx.x;
  Key b = 0;
  if (first < q1) {
    constexpr int kBatch = 4; // loads in flight
    float top = NAN;
    int at = 4 * first;
    for (int q = first; q < q1; q += kThreads * kBatch) {
      float4 v[kBatch];
#pragma unroll
      for (int k = 0; k < kBatch; k++) {
        const int i = q + k * kThreads;
        v[k] = i < q1 ? *(const float4 *)(from + 4 * i) : make_float4(NAN, NAN, NAN, NAN);
      }
#pragma unroll
      for (int k = 0; k < kBatch; k++) {
        const float each[4] = {v[k].x, v[k].y, v[k].z, v[k].w};
#pragma unroll
        for (int j = 0; j < 4; j++) // the first of equals, numbers before NaN
          if (each[j] > top || (top != top && each[j] == each[j])) top = each[j], at = 4 * (q + k * kThreads) + j;
      }
    }
    b = key_of(top, at);
  }
  // What is no whole quad; all of a row when rows are not aligned.
  const int rest = vocab - 4 * quads, v1 = 4 * quads + (int)((int64_t)rest * (part + 1) / kParts);
  for (int i = 4 * quads + (int)((int64_t)rest * part / kParts) + threadIdx.x; i < v1; i += kThreads) {
    const Key key = key_of(from[i], i);
    b = key > b ? key : b;
  }
  store_best(b, warps, &best[(size_t)row * kParts + part]);
}

__global__ void __launch_bounds__(32) pick_kernel(const RowKeys best, const int *slots, int *ids, int *last_token, const Told told) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.x;
  const Key b = warp_best(lane_best(best, row));
  if (threadIdx.x != 0) return;
  const int id = key_id(b);
  ids[row] = id;
  if (slots[row] >= 0) last_token[slots[row]] = id;
  tell_id(told, row, id);
}

// Bias, then the min_tokens mask: lists of few ids. A masked logit stays what it is whatever is done to it later.
__device__ __forceinline__ void adjust_listed(const SlotSampling &s, float *logits, int v0, int v1) {
  for (int i = threadIdx.x; i < s.bias_count; i += kThreads) {
    const int id = s.bias_token[i];
    if (id >= v0 && id < v1) logits[id] += s.bias[i];
  }
  __syncthreads();
  if (s.drawn < s.min_tokens) {
    for (int i = threadIdx.x; i < s.stop_count; i += kThreads) {
      const int id = s.stop[i];
      if (id >= v0 && id < v1) logits[id] = -INFINITY;
    }
  }
  __syncthreads();
}

// Repetition looks at prompt and output, frequency and presence at the output alone.
__device__ __forceinline__ float penalised(float repetition, float frequency, float presence, float logit, uint32_t count) {
  const uint32_t times = count & ~kInPrompt;
  if (repetition != 1.0f) logit = logit > 0 ? logit / repetition : logit * repetition;
  if (times) logit -= frequency * (float)times + presence;
  return logit;
}

// A piece of a row: what changes its logits, their best, and the largest of each of 32 groups of them.
__global__ void __launch_bounds__(kThreads) adjust_kernel(SampleRows p) {
  __shared__ Key warps[kThreads / 32];
  depend_launch();
  depend_wait();
  const int row = blockIdx.y, part = blockIdx.x, slot = p.slots[row];
  const int v0 = (int)((int64_t)p.vocab * part / kParts), v1 = (int)((int64_t)p.vocab * (part + 1) / kParts);
  float *logits = p.logits + (size_t)row * p.ld;
  const bool adjust = slot >= 0 && p.wanted[row] == kSampleSlot;
  const SlotSampling *s = &p.slot[adjust ? slot : 0];
  const uint32_t *allowed = adjust && s->has_allowed ? p.allowed + (size_t)slot * p.allowed_words : nullptr;
  const uint32_t *counts = adjust && s->has_counts ? p.counts + (size_t)slot * p.vocab : nullptr;
  if (adjust) adjust_listed(*s, logits, v0, v1);
  const float repetition = counts ? s->repetition : 1, frequency = counts ? s->frequency : 0, presence = counts ? s->presence : 0;
  Key b = 0;
  for (int i = v0 + threadIdx.x; i < v1; i += kThreads) {
    float v = logits[i];
    if (allowed && !(allowed[i / 32] >> (i % 32) & 1)) logits[i] = v = -INFINITY;
    const uint32_t count = counts ? counts[i] : 0;
    if (count) logits[i] = v = penalised(repetition, frequency, presence, v, count);
    const Key key = key_of(v, i);
    b = key > b ? key : b;
  }
  uint32_t group = (uint32_t)(b >> 32);
#pragma unroll
  for (int i = 1; i < kThreads / kSampleGroups; i *= 2) {
    const uint32_t other = __shfl_xor_sync(~0u, group, i);
    group = other > group ? other : group;
  }
  constexpr int kEach = kThreads / kSampleGroups; // threads of a group
  if (threadIdx.x % kEach == 0)
    p.groups[((size_t)row * kParts + part) * kSampleGroups + threadIdx.x / kEach] = group;
  store_best(b, warps, &p.best[(size_t)row * kParts + part]);
}

// Ids of a slot's prompt, or of what it put out, into its counts.
__global__ void __launch_bounds__(kThreads) count_kernel(const int *ids, int n, int output, uint32_t *counts, int vocab) {
  depend_launch();
  depend_wait();
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= n || ids[i] < 0 || ids[i] >= vocab) return;
  if (output) atomicAdd(&counts[ids[i]], 1u);
  else atomicOr(&counts[ids[i]], kInPrompt);
}

} // namespace

RowKeys logits_best(const float *logits, int vocab, int ld, unsigned long long *keys, int rows, cudaStream_t stream) {
  launch(best_kernel, dim3(kParts, rows), kThreads, 0, stream, logits, vocab, ld, keys);
  return {keys, kParts};
}

void pick(const RowKeys &best, const int *slots, int *ids, int *last_token, const Told &told, int rows, cudaStream_t stream) {
  launch(pick_kernel, rows, 32, 0, stream, best, slots, ids, last_token, told);
}

void sample_rows(const SampleRows &p, int rows, cudaStream_t stream) {
  launch(adjust_kernel, dim3(kParts, rows), kThreads, 0, stream, p);
  sample_draw(p, rows, stream);
}

void sample_count(const int *ids, int n, bool output, uint32_t *counts, int vocab, cudaStream_t stream) {
  if (n > 0) launch(count_kernel, (n + kThreads - 1) / kThreads, kThreads, 0, stream, ids, n, (int)output, counts, vocab);
}

} // namespace mob
