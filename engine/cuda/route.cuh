// What the kernels of routers share: from a row's logits to its experts (DeepSeek-V3's noaux_tc; softmax routers have one group),
// and the dispatch plan of few rows.
#pragma once
#include "kernels.h"
#include "sample.cuh"

namespace mob {

constexpr uint32_t kNotChosen = 0x007fffff; // ordered_of(-INFINITY); those of numbers are larger, that of NaN is 0

// The best groups of experts by the sum of their two best: choices in other groups become -INFINITY. `all` [kPer * 32] of this warp.
template <int kPer> __device__ __forceinline__ void keep_groups(const RouterSpec &spec, float (&choice)[kPer], float *all) {
  const int lane = threadIdx.x % 32, first = lane * kPer, size = spec.experts / spec.groups, lanes = size / kPer;
  if (size % kPer == 0 && (lanes & (lanes - 1)) == 0) { // a group is whole lanes: 1, 2, 4, ... of them
    float best = -INFINITY, second = -INFINITY;
#pragma unroll
    for (int i = 0; i < kPer; i++) {
      second = fmaxf(second, fminf(best, choice[i]));
      best = fmaxf(best, choice[i]);
    }
    for (int s = 1; s < lanes; s *= 2) {
      const float b = __shfl_xor_sync(~0u, best, s), c = __shfl_xor_sync(~0u, second, s);
      second = fmaxf(fminf(best, b), fmaxf(second, c));
      best = fmaxf(best, b);
    }
    const float mine = best + second;
    const int group = lane / lanes;
    int ahead = 0;
    for (int o = 0; o < spec.groups; o++) {
      const float other = __shfl_sync(~0u, mine, o * lanes);
      ahead += other > mine || (other == mine && o < group);
    }
#pragma unroll
    for (int i = 0; i < kPer; i++) choice[i] = ahead < spec.top_groups ? choice[i] : -INFINITY;
    return;
  }
#pragma unroll
  for (int i = 0; i < kPer; i++) all[first + i] = choice[i];
  __syncwarp();
  float mine[2]; // at most 64 groups
#pragma unroll
  for (int i = 0; i < 2; i++) {
    const int group = lane + 32 * i;
    float best = -INFINITY, second = -INFINITY;
    if (group < spec.groups) {
#pragma unroll 8
      for (int k = 0; k < size; k++) { // lanes begin at different experts: no two in one bank
        const float c = all[group * size + (k + lane) % size];
        second = fmaxf(second, fminf(best, c));
        best = fmaxf(best, c);
      }
    }
    mine[i] = group < spec.groups ? best + second : -INFINITY;
  }
  int ahead[2] = {0, 0}; // groups before mine
  for (int o = 0; o < spec.groups; o++) {
    const float low = __shfl_sync(~0u, mine[0], o % 32), high = __shfl_sync(~0u, mine[1], o % 32);
    const float other = o < 32 ? low : high;
#pragma unroll
    for (int i = 0; i < 2; i++) ahead[i] += other > mine[i] || (other == mine[i] && o < lane + 32 * i);
  }
  const unsigned kept_low = __ballot_sync(~0u, ahead[0] < spec.top_groups), kept_high = __ballot_sync(~0u, ahead[1] < spec.top_groups);
#pragma unroll
  for (int i = 0; i < kPer; i++) {
    const int group = min((first + i) / size, 63);
    if (!((group < 32 ? kept_low : kept_high) >> group % 32 & 1)) choice[i] = -INFINITY;
  }
}

__device__ __forceinline__ float sigmoid(float logit) { return 1.0f / (1.0f + expf(-logit)); }

// Logits to scores, by a warp that has the row's: those behind the last expert are -INFINITY.
template <int kPer> __device__ __forceinline__ void softmax_row(float (&score)[kPer]) {
  float top = -INFINITY, sum = 0;
#pragma unroll
  for (int i = 0; i < kPer; i++) top = fmaxf(top, score[i]);
  top = warp_max(top);
#pragma unroll
  for (int i = 0; i < kPer; i++) sum += score[i] = expf(score[i] - top);
  const float inverse = 1.0f / warp_sum(sum);
#pragma unroll
  for (int i = 0; i < kPer; i++) score[i] *= inverse;
}
template <int kPer> __device__ __forceinline__ void score_row(const RouterSpec &spec, float (&score)[kPer]) {
  if (!spec.sigmoid) {
    softmax_row(score);
    return;
  }
#pragma unroll
  for (int i = 0; i < kPer; i++) score[i] = sigmoid(score[i]);
}

// A warp routes a row: lane l brings the scores and biases of the experts [l * kPer, (l + 1) * kPer). Ids leave in ascending order, so
// that results are summed in the order of experts. `all` [kPer * 32] of this warp.
template <int kPer>
__device__ __forceinline__ void route_row(const RouterSpec &spec, const float (&score)[kPer], const float (&bias)[kPer], float *all, int *ids,
                                          float *weights, int weight_ld) {
  const int lane = threadIdx.x % 32, n = spec.experts, first = lane * kPer;
  float choice[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) choice[i] = first + i < n ? score[i] + bias[i] : -INFINITY;
  if (spec.top_groups < spec.groups) keep_groups<kPer>(spec, choice, all);
  uint32_t key[kPer];
#pragma unroll
  for (int i = 0; i < kPer; i++) key[i] = ordered_of(choice[i]);
  uint32_t chosen = 0; // bits of this lane's experts
  float sum = 0;
  int numbers = 0;
  for (; numbers < spec.top_k; numbers++) {
    uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < kPer; i++) best = max(best, key[i]);
    const uint32_t top = __reduce_max_sync(~0u, best);
    if (top <= kNotChosen) break; // only when scores are not numbers
    if (lane != __ffs(__ballot_sync(~0u, best == top)) - 1) continue; // the first of equals
#pragma unroll
    for (int i = kPer - 1; i >= 0; i--) best = key[i] == top ? (uint32_t)i : best;
#pragma unroll
    for (int i = 0; i < kPer; i++)
      if ((int)best == i) key[i] = 0, sum += score[i];
    chosen |= 1u << best;
  }
  sum = warp_sum(sum) + (spec.sigmoid ? 1e-20f : 0.0f);
  const float factor = spec.norm ? spec.routed_scale / sum : spec.routed_scale;
  int before = 0; // of chosen experts
#pragma unroll
  for (int i = 0; i < kPer; i++) before += __popc(__ballot_sync(~0u, chosen >> i & 1) & ((1u << lane) - 1));
#pragma unroll
  for (int i = 0; i < kPer; i++) {
    if (!(chosen >> i & 1)) continue;
    ids[before] = first + i;
    weights[before++] = score[i] * factor;
  }
  if (lane >= numbers && lane < spec.top_k) { // stays in bounds
    ids[lane] = lane;
    weights[lane] = 0;
  } else if (lane >= spec.top_k && lane < weight_ld) {
    weights[lane] = 1.0f; // shared experts
  }
}

// Of a routed expert among those that are here; -1: it is elsewhere.
__device__ __forceinline__ int expert_here(const MoePlan &p, int id) {
  return id >= p.first && id < p.first + p.experts ? id - p.first : -1;
}

// Few tokens: every active expert computes all of them; row of y = (index among the active) * tokens + token, nothing moves.
struct PlanFewShared {
  int index[kMaxExperts];
  int counts[(kMaxExperts + 255) / 256][8];
};
// A block of 256 threads; `ids` [count][top_k] may be shared memory, written before a meeting of the block.
__device__ __forceinline__ void plan_few(const MoePlan &p, const int *ids, int count, PlanFewShared &sh) {
  constexpr int kTurns = (kMaxExperts + 255) / 256;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, experts = p.experts + p.shared, slots = p.top_k + p.shared;
  for (int e = tid; e < experts; e += 256) sh.index[e] = e >= p.experts;
  __syncthreads();
  for (int i = tid; i < count * p.top_k; i += 256) {
    const int e = expert_here(p, ids[i]);
    if (e >= 0) sh.index[e] = 1;
  }
  __syncthreads();
  unsigned on[kTurns];
#pragma unroll
  for (int t = 0; t < kTurns; t++) {
    on[t] = __ballot_sync(~0u, t * 256 + tid < experts && sh.index[t * 256 + tid]);
    if (lane == 0) sh.counts[t][warp] = __popc(on[t]);
  }
  __syncthreads();
  int before = 0;
#pragma unroll
  for (int t = 0; t < kTurns; t++) {
#pragma unroll
    for (int w = 0; w < 8; w++) {
      if (w == warp && on[t] >> lane & 1) {
        const int at = before + __popc(on[t] & ((1u << lane) - 1));
        p.active_ids[at] = t * 256 + tid;
        sh.index[t * 256 + tid] = at;
      }
      before += sh.counts[t][w];
    }
  }
  if (tid == 0) *p.active = before;
  __syncthreads();
  for (int i = tid; i < p.rows * slots; i += 256) {
    const int t = i / slots, j = i % slots;
    const int e = j >= p.top_k ? p.experts + j - p.top_k : t < count ? expert_here(p, ids[t * p.top_k + j]) : -1;
    p.expert_row[i] = e >= 0 ? sh.index[e] * p.rows + t : p.elsewhere ? -1 : t;
  }
}

} // namespace mob
