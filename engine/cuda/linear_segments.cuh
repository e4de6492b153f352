// The linear of many experts, each over its own gathered tokens. Its unit is 256 outputs x the tokens of a tile (8 to 96): wgmma
// with the weights on the M side, two warpgroups of two 64-output blocks each, so that a tile's activations come to an SM once for 256
// outputs. FP8: y = sum_kb (sum_k W xq) ws xs, the inner sum on the tensor cores, promoted to fp32 every 128 columns. bf16: one sum.
//
// Two rings, each with a producer of its own, so that neither waits for the other's slots: weights, a block's column pair (16 KB) a slot,
// and activations, as many pairs a slot as fit. Gathered records therefore lie tile after tile (TileRows), so that a slot is one or two
// copies however few the tokens are.
//
// A launch has up to two such products. Gate and up: the four blocks are two of gate's and the same two of up's; silu(gate) * up of 128
// columns leaves as e4m3 with its scale, or bf16, as records of the next linear. Down: rows of y, from those records where the launch made
// them. Then a tile of down waits for all of gate and up of its tokens, counted in `done`: only its activations do, its weights come
// meanwhile. With the experts in one order in both, hardly any wait blocks, and between the products no SM rests.
//
// Work is dealt as CTAs ask for it, because SMs do not read equally fast (by a tenth and more): whole tiles, then the last ones, one for
// each CTA, in parts of their columns. Which tiles are cut, and where, does not depend on timing, and a tile's parts are summed in the order
// of columns by the CTA with the first part: so is no result. Last parts are dealt first, for all tiles, and are longer: a first part finds
// the others done, and short runs end the launch. What waits, waits for runs dealt before it, and every CTA works its runs off in the order
// it got them: so each wait ends.
//
// In prefill tiles of the shared expert, which has all tokens, are bound by arithmetic, those of the others by the memory: so they are dealt
// between those (`spread`), not behind them.
#pragma once
#include "kernels.h"

namespace mob {

struct SegmentsProduct {
  const uint8_t *w;   // packed tiles; expert e begins at e * w_stride
  size_t w_stride;
  TileRows x;
  int row_tiles;      // tiles of 256 outputs; 0: there is no such product
  int parts;          // of a tile that is cut
};

struct LinearSegments {
  SegmentsProduct up, down;
  const TokenTile *tiles;
  const int *count;   // of them
  TileRows act;       // what gate and up make
  int up_block;       // first block of up's rows
  bool ue8m0;
  bf16 *y;            // [rows][n]: what down makes
  int n;
  float *partial;     // [2][gridDim.x][kSegmentsParts - 1][256 * kTileTokens]: of gate and up, of down; every bit set before and after
  int *dealt;         // [2] runs dealt, CTAs that asked in vain; 0 before and after
  int *done;          // [*count] of a tile of tokens: tiles of gate and up that are done; 0 before and after
  bool spread;        // the last expert's tiles, among the others'
  int slot_rows, w_slots; // tokens of a slot of activations; slots of weights
  int x_slot, w_ring;     // bytes of a slot of activations; where the ring of weights begins
  Waits *waits;       // may be null
};

struct SegmentsShared {
  static constexpr int kWSlot = 17408; // a pair, so that the next begins at 1,024 again
  static constexpr int kMostW = 12, kX = 2, kRuns = 3;
  // Bytes from the first multiple of 1,024: the rings are behind all that has one size.
  static constexpr int kAmax = 0, kInverse = kAmax + 8 * kTileTokens * 4, kRun = kInverse + kTileTokens * 4, kBars = kRun + kRuns * 40;
  static constexpr int kRings = (kBars + 2 * (kMostW + kX + kRuns) * 8 + 1023) / 1024 * 1024;
  static constexpr int kMost = 232448;
  __host__ __device__ static int x_slot(int rows) { return (rows * 264 + 1023) / 1024 * 1024; }
  static int bytes(int slot_rows, int w_slots) { return 1024 + kRings + w_slots * kWSlot + kX * x_slot(slot_rows); }
};

// A run of column pairs of one tile, as the producer tells the consumers.
struct SegmentsRun {
  int row, tokens;    // of the tile; 0 tokens: there are no more
  int row_tile, pairs;
  int part, parts;    // of the tile
  int partial;        // where the tile's other parts leave their sums
  int first;          // pair
  int listed;         // the tile of tokens
  int down;           // of down, not of gate and up
};

// Which run is the i-th. Spread: `spread` may be set.
template <bool Spread> struct SegmentsDeal {
  int tiles[2], cut[2], part_count[2]; // of gate and up, of down: how many; the last `cut` are
  int spread[2];                       // tiles of the last expert, dealt among the others
  int down, index, tile, part, parts;  // index: in the order they are dealt in

  __device__ SegmentsDeal(const LinearSegments &p, int count, int grid) {
    const int up = count * p.up.row_tiles, both = count * p.down.row_tiles;
    tiles[0] = up, tiles[1] = both;
    part_count[0] = p.up.parts, part_count[1] = p.down.parts;
    // Down fills what the last tiles of gate and up leave idle, unless it has to wait for them: where those are hardly more than one for
    // each CTA.
    cut[0] = both == 0 || up < 2 * grid ? min(up, grid) : 0;
    cut[1] = min(both, grid);
    const int last = Spread && p.spread && count > 0 ? p.tiles[count - 1].across : 0;
    spread[0] = last * 2 <= count ? last * p.up.row_tiles : 0;
    spread[1] = last * 2 <= count ? last * p.down.row_tiles : 0;
  }
  // How many of `some` tiles are dealt before the i-th of `all`: those of gate and up early enough for down not to wait for them.
  __device__ int spread_before(int i, int all, int some) const {
    const int span = down ? all : all - all / 8;
    return min(some, (int)((int64_t)i * some / span));
  }
  __device__ bool take(int i) {
    const int first = tiles[0] - cut[0] + cut[0] * part_count[0];
    down = i >= first;
    if (down) i -= first;
    const int all = down ? tiles[1] : tiles[0], some = down ? cut[1] : cut[0], whole = all - some, rest = i - whole;
    index = i, part = 0, parts = 1;
    if (rest >= 0) {
      parts = down ? part_count[1] : part_count[0];
      if (rest >= some * parts) return false;
      index = whole + rest % some;
      part = parts - 1 - rest / some;
    }
    tile = index;
    const int last = down ? spread[1] : spread[0];
    if (Spread && last > 0) {
      const int before = spread_before(index, all, last);
      tile = spread_before(index + 1, all, last) > before ? all - last + before : index - before;
    }
    return true;
  }
  // Where part `of` of so many column pairs begins. Four parts are as 4 : 6 : 8 : 10, those of few pairs equal.
  __device__ int first_pair(int pairs, int of) const {
    return pairs < 16 ? pairs * of / parts : pairs * of * (of + 3) / (parts * (parts + 3));
  }
  // Where a cut tile's other parts leave their sums.
  __device__ int partial(int grid) const {
    return down ? (grid + index - tiles[1] + cut[1]) * (kSegmentsParts - 1) : (index - tiles[0] + cut[0]) * (kSegmentsParts - 1);
  }
};

struct SegmentsTile {
  TokenTile of;
  const uint8_t *w;
  int listed, row_tile, pairs;
};

// What was dealt. Tiles of the same expert that read the same weights are neighbours.
template <class Deal> __device__ __forceinline__ SegmentsTile segments_tile(const LinearSegments &p, const Deal &deal) {
  const bool down = deal.down;
  const int row_tiles = down ? p.down.row_tiles : p.up.row_tiles;
  SegmentsTile t;
  t.listed = deal.tile / row_tiles;
  t.of = p.tiles[t.listed];
  t.row_tile = deal.tile % row_tiles;
  t.pairs = down ? p.down.x.pairs : p.up.x.pairs;
  if (t.of.across > 1) {
    const int first = t.listed - t.of.index, local = deal.tile - first * row_tiles;
    t.row_tile = local / t.of.across;
    t.listed = first + local % t.of.across;
    t.of = p.tiles[t.listed];
  }
  t.w = down ? p.down.w + (size_t)t.of.matrix * p.down.w_stride : p.up.w + (size_t)t.of.matrix * p.up.w_stride;
  return t;
}

// The k-th of a tile's four blocks of 64 outputs, of `blocks` of down. Behind its last: the last again, whose results are not stored twice.
__device__ __forceinline__ int segments_block(const LinearSegments &p, int row_tile, int k, int blocks, bool down) {
  return down ? min(4 * row_tile + k, blocks - 1) : (k / 2 ? p.up_block : 0) + 2 * row_tile + k % 2;
}

struct SegmentsPlaces { // in shared memory
  using S = SegmentsShared;
  uint8_t *base;
  __device__ explicit SegmentsPlaces(uint8_t *raw) : base(raw + (1024 - smem_address(raw) % 1024) % 1024) {}
  // Activations first: wgmma reads up to its N rows, so beyond those of a tile.
  __device__ uint8_t *x(const LinearSegments &p, int slot) const { return base + S::kRings + slot * p.x_slot; }
  __device__ uint8_t *w(const LinearSegments &p, int slot) const { return base + p.w_ring + slot * S::kWSlot; }
  __device__ float *amax() const { return (float *)(base + S::kAmax); } // gated: [8 warps][kTileTokens], then what to multiply with
  __device__ float *inverse() const { return (float *)(base + S::kInverse); }
  __device__ SegmentsRun *run(int slot) const { return (SegmentsRun *)(base + S::kRun) + slot; }
  __device__ uint64_t *bar(int i) const { return (uint64_t *)(base + S::kBars) + i; }
  __device__ uint64_t *w_full(int slot) const { return bar(slot); }
  __device__ uint64_t *w_empty(int slot) const { return bar(S::kMostW + slot); }
  __device__ uint64_t *x_full(int slot) const { return bar(2 * S::kMostW + slot); }
  __device__ uint64_t *x_empty(int slot) const { return bar(2 * S::kMostW + S::kX + slot); }
  __device__ uint64_t *run_full(int slot) const { return bar(2 * (S::kMostW + S::kX) + slot); }
  __device__ uint64_t *run_empty(int slot) const { return bar(2 * (S::kMostW + S::kX) + S::kRuns + slot); }
};

struct RingAt { // in one register
  int both; // slot + 64 * phase
  __device__ RingAt(int slot, int phase) : both(slot + phase * 64) {}
  __device__ int slot() const { return both & 63; }
  __device__ int phase() const { return both >> 6; }
  __device__ void step(int by, int slots) {
    both += by;
    if (slot() >= slots) both = (both - slots) ^ 64;
  }
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

// One pair of columns of both blocks of a warpgroup. Slots of weights are given back when read.
template <bool Fp8, int N>
__device__ __forceinline__ void segments_pair(const LinearSegments &p, SegmentsSums<N> &sum, const SegmentsPlaces &at, RingAt &ring, int group, const uint8_t *x,
                                              const float *xs, int rows) {
  const int lane = compute_here((int)threadIdx.x) % 32, t4 = lane % 4;
  constexpr int kHalf = kTileBytes / 16; // of operands' words: the second tile of a pair
  const uint32_t x_word = operand_word(x), x1_word = x_word + rows * 8;
  auto give_back = [&](const RingAt &slot) {
    __syncwarp();
    if (lane == 0) mbar_arrive(at.w_empty(slot.slot()));
  };
  if constexpr (!Fp8) {
    using Mma = WgmmaB16<N>;
    auto issue = [&](float (&to)[N / 2], uint32_t w) {
      keep_registers(to);
      wgmma_fence();
      segments_group<Mma>(to, w, x_word, 1);
      segments_group<Mma>(to, w + kHalf, x1_word, 1);
    };
    RingAt first = ring, second = ring;
    first.step(group, p.w_slots);
    second.step(group + 2, p.w_slots);
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
  } else if constexpr (N <= 80) { // a product is under way while the one before is promoted
    using Mma = WgmmaF8<N>;
    RingAt first = ring, second = ring;
    first.step(group, p.w_slots);
    second.step(group + 2, p.w_slots);
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
  } else { // too many sums for two products: the other warpgroup's is under way while this one's is promoted
    float acc[N / 2];
    auto both = [&](float (&to)[N / 2], int block) {
      RingAt slot = ring;
      slot.step(group + 2 * block, p.w_slots);
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
  for (int i = 0; i < N / 2; i++) {
    const float gate = __bfloat162float(__float2bfloat16(sum.low[i])), up = __bfloat162float(__float2bfloat16(sum.high[i]));
    sum.low[i] = gate / (1.0f + __expf(-gate)) * up;
  }
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
      if (token < tokens) *(uint4 *)(data + ((size_t)(chunk / 8) * rows + token) * 128 + ((chunk % 8 ^ (token & 7)) << 4)) = v;
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
      const uint32_t a = __nv_cvt_float2_to_fp8x2(make_float2(v[0] * inverse.x, v[2] * inverse.x), __NV_SATFINITE, __NV_E4M3);
      const uint32_t b = __nv_cvt_float2_to_fp8x2(make_float2(v[1] * inverse.y, v[3] * inverse.y), __NV_SATFINITE, __NV_E4M3);
      word[c] = turn_matrix(a | b << 16); // columns 2 t4, + 8, + 1, + 9 of token lane / 4
    }
    turn_words(word);
    const int token = from + t4 * 8 + lane / 4;
    if (token < tokens)
      *(uint4 *)(data + ((size_t)(block % 2) * rows + token) * 128 + ((warp ^ (token & 7)) << 4)) =
          make_uint4(__byte_perm(word[0], word[1], 0x6420), __byte_perm(word[2], word[3], 0x6420), __byte_perm(word[0], word[1], 0x7531),
                     __byte_perm(word[2], word[3], 0x7531));
  }
}

// A run, by one of the two warpgroups.
template <bool Fp8, int N>
__device__ __forceinline__ void segments_run(const LinearSegments &p, const SegmentsPlaces &at, int turn, RingAt &w_ring, RingAt &x_ring) {
  const SegmentsRun &begin = *at.run(compute_here(turn) % SegmentsShared::kRuns); // whose address is not kept until the end
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
  const SegmentsRun &run = *at.run(compute_here(turn) % SegmentsShared::kRuns);
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

// The producer of weights, one thread, which deals the runs too.
__device__ __forceinline__ void segments_load_w(const LinearSegments &p, const SegmentsPlaces &at) {
  const uint64_t once = policy_evict_first(), keep = policy_evict_normal();
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  RingAt w_ring = {0, 1}, run_ring = {0, 1};
  SegmentsDeal<true> deal(p, *p.count, gridDim.x);
  int next = blockIdx.x;
  for (;;) {
    SegmentsTile tile = {};
    const bool more = deal.take(next);
    if (more) tile = segments_tile(p, deal);
    const uint64_t policy = tile.of.across > 1 ? keep : once;
    const int last = deal.first_pair(tile.pairs, deal.part + 1);
    int pair = deal.first_pair(tile.pairs, deal.part);
    mbar_wait(at.run_empty(run_ring.slot()), run_ring.phase());
    *at.run(run_ring.slot()) = {tile.of.row, tile.of.tokens, tile.row_tile, last - pair, deal.part, deal.parts, deal.partial(gridDim.x), pair,
                                tile.listed, deal.down};
    mbar_arrive(at.run_full(run_ring.slot()));
    if (!more) return;
    run_ring.step(1, SegmentsShared::kRuns);
    for (; pair < last; pair++) {
      if (pair + 1 == last) next = gridDim.x + atomicAdd(p.dealt, 1); // as late as hides its way
#pragma unroll 1
      for (int k = 0; k < 4; k++) {
        const int block = segments_block(p, tile.row_tile, k, blocks, deal.down);
        mbar_wait(at.w_empty(w_ring.slot()), w_ring.phase());
        mbar_arrive_expect(at.w_full(w_ring.slot()), kPairUsed);
        bulk_load(at.w(p, w_ring.slot()), tile.w + (size_t)(block * tile.pairs + pair) * kPairBytes, kPairUsed, at.w_full(w_ring.slot()), policy);
        w_ring.step(1, p.w_slots);
      }
    }
  }
}

// All of gate and up of a tile of tokens is done, or the step has failed. What follows are bulk copies of what threads stored.
__device__ __forceinline__ void segments_wait(const LinearSegments &p, int listed) {
  uint32_t start = 0;
  for (int tries = 0; load_acquire_gpu_int(&p.done[listed]) < p.up.row_tiles; tries++) {
    spin_pause();
    if (tries % 1024 != 1023) continue;
    const uint32_t now = clock_ticks();
    if (!start) start = now;
    if (give_up_here(p.waits, now - start)) break;
  }
  async_fence_all();
}

// The producer of activations, one thread.
template <bool Fp8> __device__ __forceinline__ void segments_load_x(const LinearSegments &p, const SegmentsPlaces &at) {
  constexpr int kRow = Fp8 ? 264 : 256;
  const uint64_t keep = policy_evict_normal();
  RingAt x_ring = {0, 1}, run_ring = {0, 0};
  for (;;) {
    mbar_wait(at.run_full(run_ring.slot()), run_ring.phase());
    const SegmentsRun run = *at.run(run_ring.slot());
    if (run.tokens == 0) return;
    mbar_arrive(at.run_empty(run_ring.slot()));
    run_ring.step(1, SegmentsShared::kRuns);
    if (run.down && p.up.row_tiles) segments_wait(p, run.listed);
    const int rows = (run.tokens + 7) / 8 * 8, at_once = p.slot_rows / rows, last = run.first + run.pairs;
    const int pairs = run.down ? p.down.x.pairs : p.up.x.pairs;
    const uint8_t *x = (run.down ? p.down.x.data : p.up.x.data) + (size_t)run.row * pairs * kRow;
    for (int pair = run.first; pair < last; pair += at_once) {
      const int here = min(at_once, last - pair);
      uint8_t *to = at.x(p, x_ring.slot());
      uint64_t *bar = at.x_full(x_ring.slot());
      mbar_wait(at.x_empty(x_ring.slot()), x_ring.phase());
      mbar_arrive_expect(bar, here * rows * kRow);
      bulk_load(to, x + pair * rows * 256, here * rows * 256, bar, keep);
      if (Fp8) bulk_load(to + p.slot_rows * 256, x + pairs * rows * 256 + pair * rows * 8, here * rows * 8, bar, keep);
      x_ring.step(1, SegmentsShared::kX);
    }
  }
}

// Counts the tiles of gate and up that are done, one thread: their records are stored when all warps have given back the run.
template <int Runs, class Places> __device__ __forceinline__ void segments_publish(const LinearSegments &p, const Places &at) {
  RingAt ring = {0, 0};
  for (;;) {
    mbar_wait(at.run_full(ring.slot()), ring.phase());
    const SegmentsRun run = *at.run(ring.slot());
    if (run.tokens == 0) return;
    mbar_arrive(at.run_empty(ring.slot()));
    if (!run.down && run.part == 0 && p.down.row_tiles) {
      mbar_wait(at.run_empty(ring.slot()), ring.phase());
      async_fence_all();
      add_release_gpu_int(&p.done[run.listed], 1);
    }
    ring.step(1, Runs);
  }
}

// By the warp of the producer of activations, when that waits for nothing any more: the last one leaves everything as it was. Every count
// has come to its end by then, since each tile of tokens was waited for.
__device__ __forceinline__ void segments_leave(const LinearSegments &p) {
  const int lane = threadIdx.x % 32;
  int last = 0;
  if (lane == 0) {
    __threadfence();
    last = atomicAdd(p.dealt + 1, 1) == (int)gridDim.x - 1;
    __threadfence();
  }
  if (!__shfl_sync(~0u, last, 0)) return;
  if (p.up.row_tiles && p.down.row_tiles)
    for (int i = lane; i < *p.count; i += 32) p.done[i] = 0;
  if (lane < 2) p.dealt[lane] = 0;
}

template <bool Fp8> __global__ void __launch_bounds__(384, 1) linear_segments_kernel(const LinearSegments p) {
  using S = SegmentsShared;
  DYNAMIC_SHARED(uint8_t, raw);
  const SegmentsPlaces at(raw);
  const int tid = threadIdx.x;
  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kMostW; i++) {
      mbar_init(at.w_full(i), 1);
      mbar_init(at.w_empty(i), 4);
    }
    for (int i = 0; i < S::kX; i++) {
      mbar_init(at.x_full(i), 1);
      mbar_init(at.x_empty(i), 8);
    }
    for (int i = 0; i < S::kRuns; i++) {
      mbar_init(at.run_full(i), 1);
      mbar_init(at.run_empty(i), 10);
    }
    mbar_init_fence();
  }
  __syncthreads();
  depend_wait();
  if (tid >= 256) {
    registers_shrink<40>();
    if (tid == 256) segments_load_w(p, at);
    if (tid == 320) segments_publish<S::kRuns>(p, at);
    if (tid / 32 != 9) return;
    if (tid == 288) segments_load_x<Fp8>(p, at);
    __syncwarp();
    segments_leave(p);
    return;
  }
  registers_grow<232>();
  RingAt w_ring = {0, 0}, x_ring = {0, 0};
  for (int turn = 0;; turn++) {
    mbar_wait(at.run_full(turn % S::kRuns), turn / S::kRuns & 1);
    const int tokens = at.run(turn % S::kRuns)->tokens;
    if (tokens == 0) return;
    if (tokens <= 8) segments_run<Fp8, 8>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 16) segments_run<Fp8, 16>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 32) segments_run<Fp8, 32>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 64) segments_run<Fp8, 64>(p, at, turn, w_ring, x_ring);
    else if (tokens <= 80) segments_run<Fp8, 80>(p, at, turn, w_ring, x_ring);
    else segments_run<Fp8, 96>(p, at, turn, w_ring, x_ring);
    __syncwarp();
    if (compute_here((int)threadIdx.x) % 32 == 0) mbar_arrive(at.run_empty(compute_here(turn) % S::kRuns));
  }
}

// ---- linear_segments_wide.cu: e4m3, tiles of up to kWideTokens
void linear_segments_wide(LinearSegments p, int sms, cudaStream_t stream);
void linear_segments_wide_prepare();

} // namespace mob
