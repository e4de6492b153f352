// The linear of many experts, each over its own gathered tokens. Its unit is 256 outputs x the tokens of a tile (8 to 96): wgmma
// with the weights on the M side, two warpgroups of two 64-output blocks each, so that a tile's activations come to an SM once for 256
// outputs. FP8: y = sum_kb (sum_k W xq) ws xs, the inner sum on the tensor cores, promoted to fp32 every 128 columns. bf16: one sum.
//
// Two rings, each with a producer of its own, so that neither waits for the other's slots: weights, a block's column pair (16 KB) a slot,
// and activations, as many pairs a slot as fit. Gathered records therefore lie tile after tile (TileRows), so that a slot is one or two
// copies however few the tokens are. What is computed when, and by whom: segments.cuh.
#pragma once
#include "segments.cuh"

namespace mob {

struct SegmentsShared {
  static constexpr int kWSlot = 17408; // a pair, so that the next begins at 1,024 again
  static constexpr int kMostW = 12, kX = 2;
  // Bytes from the first multiple of 1,024: the rings are behind all that has one size.
  static constexpr int kAmax = 0, kInverse = kAmax + 8 * kTileTokens * 4, kRun = kInverse + kTileTokens * 4, kBars = kRun + kSegmentsRunBytes;
  static constexpr int kRunBars = kBars + 2 * (kMostW + kX) * 8;
  static constexpr int kRings = (kRunBars + kSegmentsRunBars + 1023) / 1024 * 1024;
  static constexpr int kMost = 232448;
  __host__ __device__ static int x_slot(int rows) { return (rows * 264 + 1023) / 1024 * 1024; }
  static int bytes(int slot_rows, int w_slots) { return 1024 + kRings + w_slots * kWSlot + kX * x_slot(slot_rows); }
};

struct SegmentsPlaces : SegmentsRunPlaces<SegmentsShared> { // in shared memory
  using S = SegmentsShared;
  using SegmentsRunPlaces::SegmentsRunPlaces;
  // Activations first: wgmma reads up to its N rows, so beyond those of a tile.
  __device__ uint8_t *x(const LinearSegments &p, int slot) const { return base + S::kRings + slot * p.x_slot; }
  __device__ uint8_t *w(const LinearSegments &p, int slot) const { return base + p.w_ring + slot * S::kWSlot; }
  __device__ float *amax() const { return (float *)(base + S::kAmax); } // gated: [8 warps][kTileTokens], then what to multiply with
  __device__ float *inverse() const { return (float *)(base + S::kInverse); }
  __device__ uint64_t *bar(int i) const { return (uint64_t *)(base + S::kBars) + i; }
  __device__ uint64_t *w_full(int slot) const { return bar(slot); }
  __device__ uint64_t *w_empty(int slot) const { return bar(S::kMostW + slot); }
  __device__ uint64_t *x_full(int slot) const { return bar(2 * S::kMostW + slot); }
  __device__ uint64_t *x_empty(int slot) const { return bar(2 * S::kMostW + S::kX + slot); }
};

// A CTA's results of a tile: 64 outputs of block `group` in `low`, of block group + 2 in `high`.
template <int N> struct SegmentsSums {
  float low[N / 2], high[N / 2];
};

// 64 outputs x 128 bytes of columns, of operands given as words.
template <class Mma, int Words> __device__ __forceinline__ void segments_group(float (&acc)[Words], uint32_t w, uint32_t x, int more) {
#pragma unroll
  for (int k = 0; k < 4; k++) Mma::run(acc, operand_of(w + 2 * k), operand_of(x + 2 * k), k == 0 ? more : 1);
  wgmma_commit();
}

// One pair of columns of both blocks of a warpgroup; slots of weights are given back when they are read.
template <int N> struct SegmentsPair {
  static constexpr int kHalf = kTileBytes / 16; // of operands' words: the second tile of a pair
  const LinearSegments &p;
  const SegmentsPlaces &at;
  const RingAt &ring;       // of weights: the first of the tile's four blocks
  const int group, rows, lane, t4;
  const float *xs;          // scales of the first tile's columns; `rows` further the second's
  uint32_t x_word, x1_word; // activations as operands

  __device__ __forceinline__ RingAt slot_of(int block) const {
    RingAt slot = ring;
    slot.step(group + 2 * block, p.w_slots);
    return slot;
  }
  __device__ __forceinline__ void give_back(const RingAt &slot) const {
    __syncwarp();
    if (lane == 0) mbar_arrive(at.w_empty(slot.slot()));
  }

  __device__ __forceinline__ void add_b16(SegmentsSums<N> &sum) const {
    using Mma = WgmmaB16<N>;
    auto issue = [&](float (&to)[N / 2], uint32_t w) {
      keep_registers(to);
      wgmma_fence();
      segments_group<Mma>(to, w, x_word, 1);
      segments_group<Mma>(to, w + kHalf, x1_word, 1);
    };
    const RingAt first = slot_of(0), second = slot_of(1);
    const uint8_t *w0 = at.w(p, first.slot()), *w1 = at.w(p, second.slot());
    mbar_wait(at.w_full(first.slot()), first.phase());
    issue(sum.low, operand_word(w0));
    mbar_wait(at.w_full(second.slot()), second.phase());
    issue(sum.high, operand_word(w1));
    wgmma_wait<2>();
    keep_registers(sum.low);
    give_back(first);
    wgmma_wait<0>();
    keep_registers(sum.high);
    give_back(second);
  }

  // A product is under way while the one before is promoted.
  __device__ __forceinline__ void add_e4m3(SegmentsSums<N> &sum) const {
    using Mma = WgmmaF8<N>;
    const RingAt first = slot_of(0), second = slot_of(1);
    const uint8_t *w0 = at.w(p, first.slot()), *w1 = at.w(p, second.slot());
    mbar_wait(at.w_full(first.slot()), first.phase());
    const uint32_t w0_word = operand_word(w0), w1_word = operand_word(w1);
    float acc[N / 2], acc2[N / 2];
    const float2 ws = *(const float2 *)(w0 + kPairScales);
    keep_registers(acc);
    wgmma_fence();
    segments_group<Mma>(acc, w0_word, x_word, 0);
    mbar_wait(at.w_full(second.slot()), second.phase());
    const float2 ws2 = *(const float2 *)(w1 + kPairScales);
    keep_registers(acc2);
    wgmma_fence();
    segments_group<Mma>(acc2, w1_word, x_word, 0);
    wgmma_wait<1>();
    keep_registers(acc);
    promote(sum.low, acc, ws.x, xs, t4);
    keep_registers(acc);
    wgmma_fence();
    segments_group<Mma>(acc, w0_word + kHalf, x1_word, 0);
    wgmma_wait<1>();
    keep_registers(acc2);
    promote(sum.high, acc2, ws2.x, xs, t4);
    keep_registers(acc2);
    wgmma_fence();
    segments_group<Mma>(acc2, w1_word + kHalf, x1_word, 0);
    wgmma_wait<1>();
    keep_registers(acc);
    give_back(first);
    promote(sum.low, acc, ws.y, xs + rows, t4);
    wgmma_wait<0>();
    keep_registers(acc2);
    give_back(second);
    promote(sum.high, acc2, ws2.y, xs + rows, t4);
  }

  // Too many sums for two products: the other warpgroup's is under way while this one's is promoted.
  __device__ __forceinline__ void add_e4m3_tall(SegmentsSums<N> &sum) const {
    float acc[N / 2];
    auto both = [&](float (&to)[N / 2], int block) {
      const RingAt slot = slot_of(block);
      const uint8_t *w = at.w(p, slot.slot());
      const uint32_t w_word = operand_word(w);
      mbar_wait(at.w_full(slot.slot()), slot.phase());
#pragma unroll
      for (int half = 0; half < 2; half++) {
        keep_registers(acc);
        wgmma_fence();
        segments_group<WgmmaF8<N>>(acc, w_word + half * kHalf, half ? x1_word : x_word, 0);
        // The first columns' scales are read while it runs.
        constexpr int kEarly = 6;
        const float *scales = (half ? xs + rows : xs) + 2 * t4, by = ((const float *)(w + kPairScales))[half];
        float2 early[kEarly];
#pragma unroll
        for (int j = 0; j < kEarly; j++) {
          const float2 v = *(const float2 *)(scales + 8 * j);
          early[j] = make_float2(by * v.x, by * v.y);
        }
        wgmma_wait<0>();
        keep_registers(acc);
        if (half) give_back(slot);
#pragma unroll
        for (int j = 0; j < N / 8; j++) {
          float2 v;
          if (j < kEarly) {
            v = early[j];
          } else {
            v = *(const float2 *)(scales + 8 * j);
            v = make_float2(by * v.x, by * v.y);
          }
          to[4 * j] += acc[4 * j] * v.x;
          to[4 * j + 1] += acc[4 * j + 1] * v.y;
          to[4 * j + 2] += acc[4 * j + 2] * v.x;
          to[4 * j + 3] += acc[4 * j + 3] * v.y;
        }
      }
    };
    both(sum.low, 0);
    both(sum.high, 1);
  }
};

template <bool Fp8, int N>
__device__ __forceinline__ void segments_pair(const LinearSegments &p, SegmentsSums<N> &sum, const SegmentsPlaces &at, RingAt &ring, int group,
                                              const uint8_t *x, const float *xs, int rows) {
  const int lane = compute_here((int)threadIdx.x) % 32;
  const uint32_t x_word = operand_word(x);
  const SegmentsPair<N> pair = {p, at, ring, group, rows, lane, lane % 4, xs, x_word, x_word + rows * 8};
  if constexpr (!Fp8) pair.add_b16(sum);
  else if constexpr (N <= 80) pair.add_e4m3(sum);
  else pair.add_e4m3_tall(sum);
  ring.step(4, p.w_slots);
}

// 16 tokens from `from` on of a warp's 16 outputs, as bf16: a lane gets eight outputs (t4 % 2: which) of one token (t4 / 2: of the first
// eight or the others), so that two lanes store a sector.
template <int Words> __device__ __forceinline__ uint4 segments_turned(const float (&sum)[Words], int from) {
  uint32_t word[4];
#pragma unroll
  for (int c = 0; c < 4; c++) {
    const int i = from / 2 + c / 2 * 4 + c % 2 * 2;
    word[c] = i < Words ? turn_matrix(pack_bf16(sum[i < Words ? i : 0], sum[i < Words ? i + 1 : 0])) : 0;
  }
  turn_words(word);
  return make_uint4(word[0], word[1], word[2], word[3]);
}

// A warp's 16 outputs from `n` on as rows of y.
template <int N>
__device__ __forceinline__ void segments_rows(const LinearSegments &p, const float (&sum)[N / 2], int n, int first_row, int tokens) {
  const int lane = compute_here((int)threadIdx.x) % 32, t4 = lane % 4, at = n + t4 % 2 * 8, ldy = compute_here(p.n);
  const bool whole = at + 8 <= ldy && ldy % 8 == 0;
#pragma unroll
  for (int from = 0; from < N; from += 16) {
    if (from >= tokens) break;
    const uint4 v = segments_turned(sum, from);
    const int token = from + t4 / 2 * 8 + lane / 4;
    if (token >= tokens) continue;
    bf16 *to = p.y + (size_t)(first_row + token) * ldy + at;
    if (whole) {
      *(uint4 *)to = v;
    } else {
      const uint32_t word[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
      for (int k = 0; k < 8; k++)
        if (at + k < ldy) *(uint16_t *)(to + k) = (uint16_t)(word[k / 2] >> k % 2 * 16);
    }
  }
}

// silu(gate) * up of 128 columns, whose values are bf16's as those of `y` would be, as records. A block of 128 columns is one of the
// CTA's tiles: its scale needs no other's.
template <int N>
__device__ __forceinline__ void segments_gated(const LinearSegments &p, const SegmentsPlaces &at, SegmentsSums<N> &sum, int block, int first_row,
                                               int tokens) {
  const int tid = compute_here((int)threadIdx.x), warp = tid / 32, lane = tid % 32, t4 = lane % 4;
#pragma unroll
  for (int i = 0; i < N / 2; i++) sum.low[i] = swiglu(round_bf16(sum.low[i]), round_bf16(sum.high[i]));
  const int rows = (tokens + 7) / 8 * 8;
  const TileRows act = {p.act.data, compute_here(p.act.pairs), compute_here(p.act.fp8)};
  const RecordRow to = tile_row(act, first_row, tile_place(first_row, rows));
  const int pair = act.fp8 ? block / 2 : block;
  uint8_t *data = to.data + pair * to.pair_bytes;
  if (!act.fp8) {
#pragma unroll
    for (int from = 0; from < N; from += 16) {
      if (from >= tokens) break;
      const uint4 v = segments_turned(sum.low, from);
      const int token = from + t4 / 2 * 8 + lane / 4, chunk = 2 * warp + t4 % 2;
      if (token < tokens) *(uint4 *)record_chunk(data, chunk / 8, rows, token, chunk % 8) = v;
    }
    return;
  }
  group_sync<256>(3); // what is there is read
#pragma unroll
  for (int j = 0; j < N / 8; j++) {
    const float *v = sum.low + 4 * j;
    float a = fmaxf(fabsf(v[0]), fabsf(v[2])), b = fmaxf(fabsf(v[1]), fabsf(v[3]));
#pragma unroll
    for (int s = 4; s < 32; s <<= 1) {
      a = fmaxf(a, __shfl_xor_sync(~0u, a, s));
      b = fmaxf(b, __shfl_xor_sync(~0u, b, s));
    }
    if (lane < 4) *(float2 *)(at.amax() + warp * kTileTokens + 8 * j + 2 * t4) = make_float2(a, b);
  }
  group_sync<256>(3);
  if (tid < N) {
    float most = 0;
#pragma unroll
    for (int w = 0; w < 8; w++) most = fmaxf(most, at.amax()[w * kTileTokens + tid]);
    const float scale = quant_scale(most, p.ue8m0);
    at.inverse()[tid] = 1.0f / scale;
    if (tid < tokens) ((float *)(to.scales + pair * to.pair_scales))[block % 2 * rows + tid] = scale;
  }
  group_sync<256>(3);
  // A warp's 16 columns are a chunk of 16 bytes of each token; a lane stores a token's of every 32.
#pragma unroll
  for (int from = 0; from < N; from += 32) {
    if (from >= tokens) break;
    uint32_t word[4];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      const int j = from / 8 + c;
      word[c] = 0;
      if (j >= N / 8) continue;
      const float *v = sum.low + 4 * j;
      const float2 inverse = *(const float2 *)(at.inverse() + 8 * j + 2 * t4);
      const uint32_t a = pack_e4m3(v[0] * inverse.x, v[2] * inverse.x), b = pack_e4m3(v[1] * inverse.y, v[3] * inverse.y);
      word[c] = turn_matrix(a | b << 16); // columns 2 t4, + 8, + 1, + 9 of token lane / 4
    }
    turn_words(word);
    const int token = from + t4 * 8 + lane / 4;
    if (token < tokens)
      *(uint4 *)record_chunk(data, block % 2, rows, token, warp) =
          make_uint4(__byte_perm(word[0], word[1], 0x6420), __byte_perm(word[2], word[3], 0x6420), __byte_perm(word[0], word[1], 0x7531),
                     __byte_perm(word[2], word[3], 0x7531));
  }
}

// A run, by one of the two warpgroups.
template <bool Fp8, int N>
__device__ __forceinline__ void segments_run(const LinearSegments &p, const SegmentsPlaces &at, int turn, RingAt &w_ring, RingAt &x_ring) {
  const SegmentsRun &begin = *at.run(compute_here(turn) % kSegmentsRuns); // whose address is not kept until the end
  const int group = compute_here((int)threadIdx.x) / 128, rows = (begin.tokens + 7) / 8 * 8;
  const int at_once = N > 80 ? 1 : p.slot_rows / rows; // 81 tokens: two such pairs fit no slot
  SegmentsSums<N> sum;
#pragma unroll
  for (int i = 0; i < N / 2; i++) sum.low[i] = sum.high[i] = 0;
  for (int left = begin.pairs; left > 0; left -= at_once) {
    mbar_wait(at.x_full(x_ring.slot()), x_ring.phase());
    const uint8_t *x = at.x(p, x_ring.slot());
    const float *xs = (const float *)(x + p.slot_rows * 256);
#pragma unroll 1
    for (int i = min(at_once, left); i > 0; i--) {
      segments_pair<Fp8, N>(p, sum, at, w_ring, group, x, xs, rows);
      x += rows * 256;
      xs += rows * 2;
    }
    __syncwarp();
    if (compute_here((int)threadIdx.x) % 32 == 0) mbar_arrive(at.x_empty(x_ring.slot()));
    x_ring.step(1, SegmentsShared::kX);
  }
  constexpr int words = 256 * kTileTokens;
  const SegmentsRun &run = *at.run(compute_here(turn) % kSegmentsRuns);
  const int tid = compute_here((int)threadIdx.x);
  float *partial = p.partial + (size_t)run.partial * words + tid * 4;
  if (run.part > 0) {
    partial += (run.part - 1) * words;
    give_partial<N / 2>(partial, sum.low);
    give_partial<N / 2>(partial + 128 * N, sum.high);
    return;
  }
#pragma unroll 1
  for (int part = 1; part < run.parts; part++) {
    take_partial<N / 2>(partial, sum.low, p.waits);
    take_partial<N / 2>(partial + 128 * N, sum.high, p.waits);
    partial += words;
  }
  if (!run.down) {
    segments_gated<N>(p, at, sum, run.row_tile, run.row, run.tokens);
  } else {
    const int n = (run.row_tile * 4 + tid / 128) * kTileRows + tid % 128 / 32 * 16;
    segments_rows<N>(p, sum.low, n, run.row, run.tokens);
    segments_rows<N>(p, sum.high, n + 2 * kTileRows, run.row, run.tokens);
  }
}

// A run's weights.
template <class Ask>
__device__ __forceinline__ void segments_load_w(const LinearSegments &p, const SegmentsPlaces &at, RingAt &ring, const SegmentsTile &tile, bool down,
                                                int first, int last, const Ask &ask) {
  const uint64_t policy = tile.of.across > 1 ? policy_evict_normal() : policy_evict_first();
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  for (int pair = first; pair < last; pair++) {
    if (pair + 1 == last) ask();
#pragma unroll 1
    for (int k = 0; k < 4; k++) {
      const int block = segments_block(p, tile.row_tile, k, blocks, down);
      mbar_wait(at.w_empty(ring.slot()), ring.phase());
      mbar_arrive_expect(at.w_full(ring.slot()), kPairUsed);
      bulk_load(at.w(p, ring.slot()), tile.w + (size_t)(block * tile.pairs + pair) * kPairBytes, kPairUsed, at.w_full(ring.slot()), policy);
      ring.step(1, p.w_slots);
    }
  }
}

// A run's activations.
template <bool Fp8>
__device__ __forceinline__ void segments_load_x(const LinearSegments &p, const SegmentsPlaces &at, RingAt &ring, const SegmentsRun &run) {
  constexpr int kRow = Fp8 ? 264 : 256;
  const uint64_t keep = policy_evict_normal();
  const int rows = (run.tokens + 7) / 8 * 8, at_once = p.slot_rows / rows, last = run.first + run.pairs;
  const int pairs = run.down ? p.down.x.pairs : p.up.x.pairs;
  const uint8_t *x = (run.down ? p.down.x.data : p.up.x.data) + (size_t)run.row * pairs * kRow;
  for (int pair = run.first; pair < last; pair += at_once) {
    const int here = min(at_once, last - pair);
    uint8_t *to = at.x(p, ring.slot());
    uint64_t *bar = at.x_full(ring.slot());
    mbar_wait(at.x_empty(ring.slot()), ring.phase());
    mbar_arrive_expect(bar, here * rows * kRow);
    bulk_load(to, x + pair * rows * 256, here * rows * 256, bar, keep);
    if (Fp8) bulk_load(to + p.slot_rows * 256, x + pairs * rows * 256 + pair * rows * 8, here * rows * 8, bar, keep);
    ring.step(1, SegmentsShared::kX);
  }
}

template <bool Fp8> __global__ void __launch_bounds__(384, 1) linear_segments_kernel(const LinearSegments p) {
  using S = SegmentsShared;
  DYNAMIC_SHARED(uint8_t, raw);
  const SegmentsPlaces at(raw);
  depend_launch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kMostW; i++) {
      mbar_init(at.w_full(i), 1);
      mbar_init(at.w_empty(i), 4);
    }
    for (int i = 0; i < S::kX; i++) {
      mbar_init(at.x_full(i), 1);
      mbar_init(at.x_empty(i), 8);
    }
    segments_init_runs(at);
    mbar_init_fence();
  }
  __syncthreads();
  depend_wait();
  if (threadIdx.x >= 256) {
    RingAt w_ring = {0, 1}, x_ring = {0, 1};
    segments_produce(
        p, at,
        [&] {
          segments_deal<false>(p, at, [&](const SegmentsTile &tile, const auto &deal, int first, int last, const auto &ask) {
            segments_load_w(p, at, w_ring, tile, deal.down, first, last, ask);
          });
        },
        [&] { segments_feed(p, at, [&](const SegmentsRun &run) { segments_load_x<Fp8>(p, at, x_ring, run); }); });
    return;
  }
  registers_grow<232>();
  RingAt w_ring = {0, 0}, x_ring = {0, 0};
  segments_compute(at, [&](int turn, int tokens) {
    if (tokens <= 8) segments_run<Fp8, 8>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 16) segments_run<Fp8, 16>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 32) segments_run<Fp8, 32>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 64) segments_run<Fp8, 64>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 80) segments_run<Fp8, 80>(p, at, turn, w_ring, x_ring);
    else segments_run<Fp8, 96>(p, at, turn, w_ring, x_ring);
  });
}

} // namespace mob
