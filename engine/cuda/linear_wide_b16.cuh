// The bf16 linear of more than 32 tokens (of fp32 results and of the best of them: 16), dealt out as in linear_wide.cuh: wgmma with the
// tokens on the M side, one sum, the next products queued before the last are done.
//
// A tile in several runs is summed by all its CTAs, a share each: no atomics, the result does not depend on timing. The CTAs of a cluster
// send one another their sums into shared memory. Runs of any length go by way of the L2: every CTA leaves all of its sums, and when its run is
// at its end takes its share from all, in the order of columns.
//
// Gated: a tile's outputs are half of them gate's and half the same of up's; silu(gate) * up leaves as records of the next linear's input.
#pragma once
#include "kernels.h"
#include "linear_wide.cuh"
#include "sample.cuh"

namespace mob {

struct LinearWideB16 : LinearWide {
  // Gated: n = 2 * inter, `y` the data of bf16 records of act_rows rows.
  int up_row;   // first of up's rows in w
  int act_rows;
  // Best, up to kBestRows tokens: the best of a CTA's outputs of each, [m][gridDim.x], 0: of none; no `y`.
  Key *best;
};

enum class WideOut { kRows, kFloats, kGated, kBest };

// Two warpgroups: above each other, each with its own tokens and all of a tile's outputs, or beside each other, with half of the outputs each
// of the same tokens.
template <int Above, int Tall, int Outputs, WideOut Out> struct WideB16Shared {
  static constexpr int kGroups = 2, kBeside = kGroups / Above, kOutputs = Outputs / kBeside; // a warpgroup's
  static constexpr int kTokens = Above * Tall * 64;
  static constexpr int kW = kTokens * 128, kStage = kW + Outputs * 128; // 64 columns of the tokens, of the weights
  static constexpr int kRest = 1024 + 256, kKeys = Out == WideOut::kBest ? kBestRows * 8 : 0;
  static constexpr int kMost = (227 * 1024 - kRest - kKeys) / kStage, kStages = kMost < 8 ? kMost : 8;
  static constexpr int kThreads = (kGroups + 1) * 128, kBytes = kRest + kKeys + kStages * kStage;
};

// What a thread that does nothing else copies of a tile, stage after stage: it has 300 clocks for one, so the places of the next are found by
// adding.
template <int Above, int Tall, int Outputs, WideOut Out> struct WideB16Copies {
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  static constexpr bool kGated = Out == WideOut::kGated;
  static constexpr int kHalf = Outputs / 2, kBlocks = kGated ? (kHalf + kTileRows - 1) / kTileRows : Outputs / kTileRows;
  const uint8_t *w, *x;
  size_t block_step, up_step; // from 64 outputs to the next; from gate's rows to up's
  size_t second_step;         // from the tile's first row to the next 64 outputs' first
  uint64_t w_policy, x_policy;
  int half, w_halves;         // the next 64 columns of the weights; how many there are
  uint32_t first, others;     // bytes of the first block of 64 outputs, of the second; not gated: `others` of all together
  uint32_t x_bytes, x_step;

  __device__ __forceinline__ void begin(const LinearWideB16 &p, const WidePlace &t, int pair) {
    const int at = t.block * kTileRows / (kGated ? 2 : 1), within = kGated ? at % kTileRows : 0; // gated: of gate's outputs
    const int count = kGated ? min(kHalf, p.n / 2 - at) : min(Outputs, (p.n - at + kTileRows - 1) / kTileRows * kTileRows);
    block_step = (size_t)p.w_pairs * kPairBytes;
    up_step = kGated ? (size_t)(p.up_row / kTileRows) * block_step : 0;
    second_step = block_step - within * 128;
    first = min(kTileRows - within, count) * 128;
    others = count * 128 - first;
    half = (pair >= p.w_pairs ? pair - p.w_pairs : pair) * 2;
    w_halves = p.w_pairs * 2;
    w = p.w + (size_t)(at / kTileRows) * block_step + (size_t)half / 2 * kPairBytes + within * 128;
    x_bytes = (t.tokens + 7) / 8 * 8 * 128;
    x_step = p.mp * 128;
    x = p.x + (size_t)pair * 2 * x_step + (size_t)t.row * 128;
  }
  __device__ __forceinline__ void next_w(uint8_t *stage, uint64_t *bar) {
    uint8_t *to = stage + S::kW;
    mbar_arrive_expect(bar, x_bytes + (kGated ? 2 : 1) * (first + others));
    if constexpr (kGated) {
      bulk_load(to, w, first, bar, w_policy);
      bulk_load(to + kHalf * 128, w + up_step, first, bar, w_policy);
      if (kBlocks > 1 && others) {
        const uint8_t *from = w + second_step; // its first row
        bulk_load(to + first, from, others, bar, w_policy);
        bulk_load(to + kHalf * 128 + first, from + up_step, others, bar, w_policy);
      }
    } else {
      const uint8_t *from = w;
#pragma unroll
      for (int b = 0; b < kBlocks; b++, from += block_step)
        if (b == 0 || (uint32_t)(b * kTileBytes) <= others) bulk_load(to + b * kTileBytes, from, kTileBytes, bar, w_policy);
    }
    w += half % 2 ? kPairBytes - kTileBytes : kTileBytes;
    if (++half == w_halves) half = 0, w -= block_step;
  }
  __device__ __forceinline__ void next_x(uint8_t *stage, uint64_t *bar) {
    bulk_load(stage, x, x_bytes, bar, x_policy);
    x += x_step;
  }
};

// The producer, one thread: all stages of all pieces.
template <int Above, int Tall, int Outputs, WideOut Out>
__device__ __forceinline__ void wide_b16_fill(const LinearWideB16 &p, WidePieces &pieces, const WideRing &ring) {
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  WideB16Copies<Above, Tall, Outputs, Out> copies;
  copies.x_policy = policy_evict_last();
  copies.w_policy = p.across > 1 ? copies.x_policy : policy_evict_first();
  int s = 0, phase = 1;
  bool waited = false;
  while (pieces.next(p)) {
    copies.begin(p, wide_place<S::kTokens, Outputs>(p, pieces.tile), pieces.first);
    int left = (pieces.last - pieces.first) * 2;
    if (!waited) { // weights do not depend on the kernel before
      const int ahead = min(S::kStages, left);
#pragma unroll 1
      for (int i = 0; i < ahead; i++) copies.next_w(ring.data + i * S::kStage, &ring.full[i]);
      depend_wait();
      waited = true;
#pragma unroll 1
      for (int i = 0; i < ahead; i++) copies.next_x(ring.data + i * S::kStage, &ring.full[i]);
      left -= ahead;
      s = ahead % S::kStages;
      if (ahead == S::kStages) phase = 0;
    }
#pragma unroll 1
    for (; left > 0; left--) {
      mbar_wait(&ring.empty[s], phase);
      copies.next_w(ring.data + s * S::kStage, &ring.full[s]);
      copies.next_x(ring.data + s * S::kStage, &ring.full[s]);
      if (++s == S::kStages) s = 0, phase ^= 1;
    }
  }
  if (!waited) depend_wait();
}

// sum += the piece's products, of this warpgroup's tokens and outputs. Beside each other and gated: first gate's, then up's.
template <int Above, int Tall, int Outputs, WideOut Out, int Words>
__device__ __forceinline__ void wide_b16_sums(const WidePieces &pieces, WideRing &ring, int group, int lane, float (&sum)[Words]) {
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  constexpr int kTimes = S::kBeside == 2 && Out == WideOut::kGated ? 2 : 1, kColumns = S::kOutputs / kTimes, kWords = kColumns / 2;
  using Mma = WgmmaB16<kColumns>;
  const int x_at = S::kBeside == 2 ? 0 : group * Tall * kTileBytes, w_at = S::kW + (S::kBeside == 2 ? group * kColumns * 128 : 0);
  int last_stage = -1;
  for (int half = pieces.first * 2; half < pieces.last * 2; half++) {
    mbar_wait(&ring.full[ring.s], ring.phase);
    const uint8_t *stage = ring.data + ring.s * S::kStage;
#pragma unroll
    for (int i = 0; i < Tall * kTimes; i++) keep_registers(part_of<kWords>(sum, i));
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < Tall * kTimes; i++)
      tile_group<Mma>(part_of<kWords>(sum, i), stage + x_at + i / kTimes * kTileBytes, stage + w_at + i % kTimes * (Outputs / 2 * 128), 1);
    wgmma_wait<Tall * kTimes>();
    if (last_stage >= 0 && lane == 0) mbar_arrive(&ring.empty[last_stage]);
    last_stage = ring.s;
    ring.next(S::kStages);
  }
  wgmma_wait<0>();
#pragma unroll
  for (int i = 0; i < Tall * kTimes; i++) keep_registers(part_of<kWords>(sum, i));
  if (lane == 0) mbar_arrive(&ring.empty[last_stage]);
}

// What a warp puts out at a time: 32 outputs of 16 tokens; of a lane, two columns of two tokens for each of four times eight outputs, as
// wgmma leaves them. Gated: of gate and of up.
template <int Above, int Tall, int Outputs, WideOut Out> struct WideUnits {
  static constexpr bool kGated = Out == WideOut::kGated;
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  static constexpr int kOut = S::kOutputs / (kGated ? 2 : 1); // columns that a warp puts out; of its last 32 maybe but the first eights
  static constexpr int kWarps = S::kGroups * 4, kQuads = (kOut + 31) / 32, kUnits = kWarps * Tall * kQuads;
  // Whether tiles may be cut; in runs, whose sums go by way of the L2. (The head's vocabulary is long: its code would be for nothing.)
  static constexpr bool kCuts = Out != WideOut::kBest, kRuns = kCuts && kOut % 32 == 0;
  static constexpr int kUp = kGated ? S::kOutputs / 4 : 0; // words from gate to up

  // Of a warp of the tile's: 64 tokens' `part`, 32 outputs' `quad`. `best`: of what this CTA has put out, by tokens, in shared memory.
  static __device__ __forceinline__ void put(const LinearWideB16 &p, const WidePlace &t, int warp, int part, int quad, const float *v,
                                             const float *up, Key *best) {
    const int lane = threadIdx.x % 32, t4 = lane % 4, group = warp / 4;
    const int row = ((S::kBeside == 2 ? 0 : group * Tall) + part) * 64 + warp % 4 * 16 + lane / 4;
    const int n0 = t.block * kTileRows / (kGated ? 2 : 1) + (S::kBeside == 2 ? group * kOut : 0) + quad * 32, most = kGated ? p.n / 2 : p.n;
    const int own = min(4, kOut / 8 - quad * 4); // eights of columns
#pragma unroll
    for (int h = 0; h < 2; h++) { // tokens `row` and row + 8
      const int token = row + 8 * h;
      if constexpr (Out == WideOut::kBest) {
        float most_here = v[2 * h]; // seldom better than what was
#pragma unroll
        for (int i = 1; i < 8; i++) most_here = fmaxf(most_here, v[i / 2 * 4 + 2 * h + i % 2]);
        const uint32_t before = ((const volatile uint32_t *)(best + t.row + token))[1];
        if (!__any_sync(~0u, n0 + 32 > most || ordered_of(most_here) >= before)) continue;
        float top = NAN;
        int at = -1;
#pragma unroll
        for (int i = 0; i < 8; i++) { // outputs rise: the first of equals, numbers before NaN
          const int n = n0 + i / 2 * 8 + t4 * 2 + i % 2;
          const float logit = v[i / 2 * 4 + 2 * h + i % 2];
          if (n < most && (at < 0 || logit > top || (top != top && logit == logit))) top = logit, at = n;
        }
        Key key = at < 0 ? 0 : key_of(top, at);
#pragma unroll
        for (int s = 1; s < 4; s *= 2) {
          const Key other = __shfl_xor_sync(~0u, key, s);
          key = other > key ? other : key;
        }
        if (t4 == 0 && token < t.tokens) atomicMax(best + t.row + token, key);
      } else if constexpr (Out == WideOut::kFloats) {
        if (token >= t.tokens) continue;
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const int n = n0 + j * 8 + t4 * 2;
          float *to = (float *)p.y + (size_t)(t.row + token) * p.ldy + n;
          if (n + 2 <= most && p.ldy % 2 == 0) *(float2 *)to = make_float2(v[4 * j + 2 * h], v[4 * j + 2 * h + 1]);
          else if (n < most) {
            to[0] = v[4 * j + 2 * h];
            if (n + 1 < most) to[1] = v[4 * j + 2 * h + 1];
          }
        }
      } else {
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          if (j >= own) {
            words[j] = 0;
            continue;
          }
          words[j] = pack_bf16(v[4 * j + 2 * h], v[4 * j + 2 * h + 1]);
          if constexpr (kGated) { // of bf16 values, as those of rows of y would be
            const uint32_t other = pack_bf16(up[4 * j + 2 * h], up[4 * j + 2 * h + 1]);
            const float g0 = __uint_as_float(words[j] << 16), g1 = __uint_as_float(words[j] & 0xffff0000u);
            // Exact divisions take long where a number is no common one, as in rows that there are not.
            words[j] = pack_bf16(__fdividef(g0, 1.0f + __expf(-g0)) * __uint_as_float(other << 16),
                                 __fdividef(g1, 1.0f + __expf(-g1)) * __uint_as_float(other & 0xffff0000u));
          }
        }
        turn_words(words); // eight columns of a token
        const int n = n0 + t4 * 8, at = t.row + token;
        if (token >= t.tokens || n >= most || t4 >= own) continue;
        const uint4 out = make_uint4(words[0], words[1], words[2], words[3]);
        if constexpr (kGated) {
          *(uint4 *)((uint8_t *)p.y + (size_t)(n / 128) * record_bytes(false, p.act_rows) + ((size_t)(n / 64 % 2) * p.act_rows + at) * 128 +
                     ((n % 64 / 8 ^ (at & 7)) << 4)) = out;
        } else {
          bf16 *to = (bf16 *)p.y + (size_t)at * p.ldy + n;
          if (n + 8 <= most && p.ldy % 8 == 0) *(uint4 *)to = out;
          else {
#pragma unroll
            for (int k = 0; k < 8; k++)
              if (n + k < most) to[k] = __ushort_as_bfloat16((unsigned short)(words[k / 2] >> k % 2 * 16));
          }
        }
      }
    }
  }

  // 32 outputs of one of this warp's `part`s, of all the sums of the tile.
  static __device__ __forceinline__ void put_sums(const LinearWideB16 &p, const WidePlace &t, int part, int quad, const float *sum, Key *best) {
    const float *v = sum + part * (S::kOutputs / 2) + quad * 16;
    put(p, t, threadIdx.x / 32, part, quad, v, v + kUp, best);
  }
};

// This CTA's share of a tile that its cluster cuts: some parts of it, 32 outputs of 64 tokens for each warpgroup. The others' sums of these come
// to where the ring was, which is at its end, and are added to its own in the order of their ranks.
template <int Above, int Tall, int Outputs, WideOut Out>
__device__ __forceinline__ void wide_b16_meet(const LinearWideB16 &p, const WidePlace &t, uint8_t *ring, float *sum) {
  using U = WideUnits<Above, Tall, Outputs, Out>;
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  constexpr int kParts = Tall * U::kQuads, kWords = U::kGated ? 8 : 4; // words of four floats
  constexpr int kStep = 256 * 16, kPart = kWords * kStep;              // from a thread's word to its next; to the next part
  static_assert((kParts > 3 ? kParts : 3) * kPart <= S::kStages * S::kStage, "the others' sums fit");
  const int tid = threadIdx.x, rank = cluster_rank(), most = (kParts + p.cluster - 1) / p.cluster; // parts of a CTA
  auto word = [](int part, int j) {
    return part / U::kQuads * (S::kOutputs / 2) + part % U::kQuads * 16 + (j < 4 ? 4 * j : U::kUp + 4 * j - 16);
  };
  cluster_sync(); // all have started, and their rings are free
#pragma unroll
  for (int part = 0, to = 0, of = 0; part < kParts; part++, of++) {
    if (of == most) to++, of = 0;
    if (to == rank) continue;
    const uint32_t at = cluster_address(ring, to) + ((rank < to ? rank : rank - 1) * most + of) * kPart + tid * 16;
#pragma unroll
    for (int j = 0; j < kWords; j++) {
      if (j % 4 >= U::kOut / 8 - part % U::kQuads * 4) continue;
      const float *v = sum + word(part, j);
      cluster_store(at + j * kStep, make_float4(v[0], v[1], v[2], v[3]));
    }
  }
  cluster_sync();
#pragma unroll
  for (int part = 0, of = 0; part < kParts; part++) {
    if (part < rank * most || of == most) continue;
    const uint8_t *from = ring + of++ * kPart + tid * 16;
#pragma unroll 1
    for (int other = 1; other < p.cluster; other++, from += most * kPart) {
#pragma unroll
      for (int j = 0; j < kWords; j++) {
        if (j % 4 >= U::kOut / 8 - part % U::kQuads * 4) continue;
        const float4 more = *(const float4 *)(from + j * kStep);
        float *v = sum + word(part, j);
        v[0] += more.x, v[1] += more.y, v[2] += more.z, v[3] += more.w;
      }
    }
    U::put_sums(p, t, part / U::kQuads, part % U::kQuads, sum, nullptr);
  }
}

// Where a CTA leaves its sums of a tile that is cut: [0] of one that an earlier run began, [1] of one that goes on in later runs.
template <int Words> __device__ __forceinline__ float *wide_b16_place(const LinearWideB16 &p, int cta, bool begins) {
  return p.partial + ((size_t)cta * 2 + begins) * Words;
}

// This CTA's share of a tile that is cut.
template <int Above, int Tall, int Outputs, WideOut Out>
__device__ __forceinline__ void wide_b16_share(const LinearWideB16 &p, int tile) {
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  using U = WideUnits<Above, Tall, Outputs, Out>;
  constexpr int kWords = S::kOutputs / 2, kStride = 1024, kBatch = U::kGated ? 3 : 6; // runs whose words are in flight
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, side = blockIdx.x % p.beside;
  const int rest = WidePieces::rest(p), begin = (tile - WidePieces::whole(p)) / p.beside * p.pairs;
  auto run_at = [&](int pair) { return (int)(((int64_t)(pair + 1) * p.sharers - 1) / rest); };
  const int first = run_at(begin), runs = run_at(begin + p.pairs - 1) - first + 1, own = (int)blockIdx.x / p.beside - first;
  const WidePlace t = wide_place<S::kTokens, Outputs>(p, tile);
  for (int unit = U::kUnits * own / runs + warp; unit < U::kUnits * (own + 1) / runs; unit += U::kWarps) {
    const int of = unit % U::kWarps, part = unit / U::kWarps % Tall, quad = unit / U::kWarps / Tall;
    const int at = (part * kWords / 4 + quad * 4) * kStride + (of * 32 + lane) * 4;
    float v[16], up[16];
#pragma unroll
    for (int i = 0; i < 16; i++) v[i] = up[i] = 0;
#pragma unroll 1
    for (int from = 0; from < runs; from += kBatch) {
      auto words = [&](int g, int j, bool second) {
        return wide_b16_place<S::kTokens * Outputs>(p, (first + from + g) * p.beside + side, from + g == 0) + at + (second ? U::kUp * kStride / 4 : 0) +
               j * kStride;
      };
      constexpr int kKinds = U::kGated ? 2 : 1;
      uint4 got[kBatch][kKinds][4];
      uint32_t start = 0;
      for (int tries = 0;; tries++) {
        bool there = true;
#pragma unroll
        for (int g = 0; g < kBatch; g++)
#pragma unroll
          for (int k = 0; k < kKinds; k++)
#pragma unroll
            for (int j = 0; j < 4; j++)
              if (from + g < runs) got[g][k][j] = load_relaxed_gpu(words(g, j, k));
#pragma unroll
        for (int g = 0; g < kBatch; g++)
#pragma unroll
          for (int k = 0; k < kKinds; k++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
              const uint4 w = got[g][k][j];
              if (from + g < runs) there = there && w.x != ~0u && w.y != ~0u && w.z != ~0u && w.w != ~0u;
            }
        if (there) break;
        spin_pause();
        if (tries % 1024 == 1023) {
          const uint32_t now = clock_ticks();
          if (!start) start = now;
          if (give_up_here(p.waits, now - start)) break;
        }
      }
#pragma unroll
      for (int g = 0; g < kBatch; g++) {
        if (from + g >= runs) break;
#pragma unroll
        for (int k = 0; k < kKinds; k++)
#pragma unroll
          for (int j = 0; j < 4; j++) {
            store_relaxed_gpu(words(g, j, k), make_uint4(~0u, ~0u, ~0u, ~0u));
            float *to = k ? up : v;
            to[4 * j] += __uint_as_float(got[g][k][j].x);
            to[4 * j + 1] += __uint_as_float(got[g][k][j].y);
            to[4 * j + 2] += __uint_as_float(got[g][k][j].z);
            to[4 * j + 3] += __uint_as_float(got[g][k][j].w);
          }
      }
    }
    U::put(p, t, of, part, quad, v, up, nullptr);
  }
}

template <int Above, int Tall, int Outputs, WideOut Out>
__global__ void __launch_bounds__(WideB16Shared<Above, Tall, Outputs, Out>::kThreads, 1) linear_wide_b16_kernel(const LinearWideB16 p) {
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  using U = WideUnits<Above, Tall, Outputs, Out>;
  constexpr int kWords = S::kOutputs / 2;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *data = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  uint64_t *full = (uint64_t *)(data + S::kStage * S::kStages);
  Key *best = (Key *)(data + S::kStage * S::kStages + 256);
  WideRing ring = {data, full, full + S::kStages, 0, 0};
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = warp / 4;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&ring.full[i], 1);
      mbar_init(&ring.empty[i], S::kGroups * 4);
    }
    mbar_init_fence();
  }
  if constexpr (Out == WideOut::kBest)
    if (tid < kBestRows) best[tid] = 0;
  __syncthreads();
  WidePieces pieces(p);

  if (group == S::kGroups) { // producer
    registers_shrink<40>();
    if (warp == S::kGroups * 4 && lane == 0) wide_b16_fill<Above, Tall, Outputs, Out>(p, pieces, ring);
    return;
  }

  registers_grow<232>();
  int ended = -1, begun = -1; // tiles whose sums are left in places 0 and 1
  while (pieces.next(p)) {
    float sum[Tall * kWords];
#pragma unroll
    for (int i = 0; i < Tall * kWords; i++) sum[i] = 0;
    wide_b16_sums<Above, Tall, Outputs, Out>(pieces, ring, group, lane, sum);
    const WidePlace t = wide_place<S::kTokens, Outputs>(p, pieces.tile);
    if constexpr (U::kCuts) {
      if (pieces.first > 0 || pieces.last < p.pairs) {
        if (p.cluster > 1) { // its last piece
          wide_b16_meet<Above, Tall, Outputs, Out>(p, t, ring.data, sum);
          break;
        }
        const bool begins = pieces.first == 0;
        (begins ? begun : ended) = pieces.tile;
        give_partial<Tall * kWords, 1024>(wide_b16_place<S::kTokens * Outputs>(p, blockIdx.x, begins) + tid * 4, sum);
        continue;
      }
    }
#pragma unroll
    for (int part = 0; part < Tall; part++)
#pragma unroll
      for (int quad = 0; quad < U::kQuads; quad++) U::put_sums(p, t, part, quad, sum, best);
  }
#pragma unroll 1
  for (int i = 0; i < 2; i++) {
    const int tile = i ? begun : ended;
    if constexpr (U::kRuns)
      if (tile >= 0) wide_b16_share<Above, Tall, Outputs, Out>(p, tile);
  }
  if constexpr (Out == WideOut::kBest) {
    depend_wait(); // a CTA without a tile comes here at once
    group_sync<256>(1);
    if (tid < p.m) p.best[(size_t)tid * gridDim.x + blockIdx.x] = best[tid];
  }
}

// ---- linear_wide_b16.cu
constexpr int kWideB16Tiles = 5;
void linear_wide_b16_prepare(); // once a device
// p: all but how the work is dealt out. The way that takes the least time is chosen.
// Returns the CTAs of its grid.
int linear_wide_b16(const LinearWideB16 &p, WideOut out, int sms, cudaStream_t stream);
// A given way; 0: these sizes or outputs have no such one. `cluster`: CTAs of one, WideDeal::kCluster's.
int linear_wide_b16_try(LinearWideB16 p, WideOut out, int tile, WideDeal how, int cluster, int sms, cudaStream_t stream);

} // namespace mob
