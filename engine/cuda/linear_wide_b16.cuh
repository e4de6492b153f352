// The bf16 linear of many tokens, dealt out as in linear_wide.cuh: wgmma with the tokens on the M side, one sum, the next products queued
// before the last are done.
//
// A tile in several runs is summed by all its CTAs, a share each: no atomics, the result does not depend on timing. The CTAs of a cluster
// send one another their sums into shared memory. Runs of any length go by way of the L2: every CTA leaves all of its sums, and when its run is
// at its end takes its share from all, in the order of columns.
//
// Gated: a tile's outputs are half of them gate's and half the same of up's; silu(gate) * up leaves as records of the next linear's input.
#pragma once
#include "linear_wide.cuh"

namespace mob {

struct LinearWideB16 : LinearWide {
  // Gated: n = 2 * inter, `y` the data of bf16 records of act_rows rows.
  int up_row;   // first of up's rows in w
  int act_rows;
};

enum class WideOut { kRows, kFloats, kGated };

template <int Groups, int Tall, int Outputs> struct WideB16Shared {
  static constexpr int kTokens = Groups * Tall * 64;
  static constexpr int kW = kTokens * 128, kStage = kW + Outputs * 128; // 64 columns of the tokens, of the weights
  static constexpr int kRest = 1024 + 256;
  static constexpr int kMost = (227 * 1024 - kRest) / kStage, kStages = kMost < 8 ? kMost : 8;
  static constexpr int kThreads = (Groups + 1) * 128, kBytes = kRest + kStages * kStage;
};

// What a thread that does nothing else copies of a tile, stage after stage: it has 300 clocks for one, so the places of the next are found by
// adding.
template <int Groups, int Tall, int Outputs, WideOut Out> struct WideB16Copies {
  using S = WideB16Shared<Groups, Tall, Outputs>;
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
template <int Groups, int Tall, int Outputs, WideOut Out>
__device__ __forceinline__ void wide_b16_fill(const LinearWideB16 &p, WidePieces &pieces, const WideRing &ring) {
  using S = WideB16Shared<Groups, Tall, Outputs>;
  WideB16Copies<Groups, Tall, Outputs, Out> copies;
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

// sum += the piece's products, of this warpgroup's tokens.
template <int Groups, int Tall, int Outputs>
__device__ __forceinline__ void wide_b16_sums(const WidePieces &pieces, WideRing &ring, int group, int lane, float (&sum)[Tall * Outputs / 2]) {
  using S = WideB16Shared<Groups, Tall, Outputs>;
  using Mma = WgmmaB16<Outputs>;
  constexpr int kWords = Outputs / 2;
  int last_stage = -1;
  for (int half = pieces.first * 2; half < pieces.last * 2; half++) {
    mbar_wait(&ring.full[ring.s], ring.phase);
    const uint8_t *stage = ring.data + ring.s * S::kStage;
#pragma unroll
    for (int part = 0; part < Tall; part++) keep_registers(part_of<kWords>(sum, part));
    wgmma_fence();
#pragma unroll
    for (int part = 0; part < Tall; part++) tile_group<Mma>(part_of<kWords>(sum, part), stage + (group * Tall + part) * 64 * 128, stage + S::kW, 1);
    wgmma_wait<Tall>();
    if (last_stage >= 0 && lane == 0) mbar_arrive(&ring.empty[last_stage]);
    last_stage = ring.s;
    ring.next(S::kStages);
  }
  wgmma_wait<0>();
#pragma unroll
  for (int part = 0; part < Tall; part++) keep_registers(part_of<kWords>(sum, part));
  if (lane == 0) mbar_arrive(&ring.empty[last_stage]);
}

// What a warp puts out at a time: 32 outputs of 16 tokens; of a lane, two columns of two tokens for each of four times eight outputs, as
// wgmma leaves them. Gated: of gate and of up.
template <int Groups, int Tall, int Outputs, WideOut Out> struct WideUnits {
  static constexpr bool kGated = Out == WideOut::kGated;
  static constexpr int kWarps = Groups * 4, kQuads = Outputs / (kGated ? 64 : 32), kUnits = kWarps * Tall * kQuads;
  static constexpr int kUp = kGated ? Outputs / 4 : 0; // words from gate to up

  // `row`: this lane's first token of the tile, `quad`: which 32 outputs.
  static __device__ __forceinline__ void put(const LinearWideB16 &p, const WidePlace &t, int row, int quad, const float *v, const float *up) {
    const int lane = threadIdx.x % 32, t4 = lane % 4;
    const int n0 = t.block * kTileRows / (kGated ? 2 : 1) + quad * 32, most = kGated ? p.n / 2 : p.n;
#pragma unroll
    for (int h = 0; h < 2; h++) { // tokens `row` and row + 8
      const int token = row + 8 * h;
      if constexpr (Out == WideOut::kFloats) {
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
        if (token >= t.tokens || n >= most) continue;
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
  static __device__ __forceinline__ void put_sums(const LinearWideB16 &p, const WidePlace &t, int part, int quad, const float *sum) {
    const int warp = threadIdx.x / 32, row = (warp / 4 * Tall + part) * 64 + warp % 4 * 16 + threadIdx.x % 32 / 4;
    const float *v = sum + part * (Outputs / 2) + quad * 16;
    put(p, t, row, quad, v, v + kUp);
  }
};

// This CTA's share of a tile that its cluster cuts: some parts of it, 32 outputs of 64 tokens for each warpgroup. The others' sums of these come
// to where the ring was, which is at its end, and are added to its own in the order of their ranks.
template <int Groups, int Tall, int Outputs, WideOut Out>
__device__ __forceinline__ void wide_b16_meet(const LinearWideB16 &p, const WidePlace &t, uint8_t *ring, float *sum) {
  using U = WideUnits<Groups, Tall, Outputs, Out>;
  constexpr int kParts = Tall * U::kQuads, kWords = U::kGated ? 8 : 4; // words of four floats
  constexpr int kStep = Groups * 128 * 16, kPart = kWords * kStep;     // from a thread's word to its next; to the next part
  static_assert(kParts * kPart <= WideB16Shared<Groups, Tall, Outputs>::kStages * WideB16Shared<Groups, Tall, Outputs>::kStage, "the others' sums fit");
  const int tid = threadIdx.x, rank = cluster_rank(), most = (kParts + p.cluster - 1) / p.cluster; // parts of a CTA
  auto word = [](int part, int j) { return part / U::kQuads * (Outputs / 2) + part % U::kQuads * 16 + (j < 4 ? 4 * j : U::kUp + 4 * j - 16); };
  cluster_sync(); // all have started, and their rings are free
#pragma unroll
  for (int part = 0, to = 0, of = 0; part < kParts; part++, of++) {
    if (of == most) to++, of = 0;
    if (to == rank) continue;
    const uint32_t at = cluster_address(ring, to) + ((rank < to ? rank : rank - 1) * most + of) * kPart + tid * 16;
#pragma unroll
    for (int j = 0; j < kWords; j++) {
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
        const float4 more = *(const float4 *)(from + j * kStep);
        float *v = sum + word(part, j);
        v[0] += more.x, v[1] += more.y, v[2] += more.z, v[3] += more.w;
      }
    }
    U::put_sums(p, t, part / U::kQuads, part % U::kQuads, sum);
  }
}

// Where a CTA leaves its sums of a tile that is cut: [0] of one that an earlier run began, [1] of one that goes on in later runs.
template <int Words> __device__ __forceinline__ float *wide_b16_place(const LinearWideB16 &p, int cta, bool begins) {
  return p.partial + ((size_t)cta * 2 + begins) * Words;
}

// This CTA's share of a tile that is cut.
template <int Groups, int Tall, int Outputs, WideOut Out>
__device__ __forceinline__ void wide_b16_share(const LinearWideB16 &p, int tile) {
  using S = WideB16Shared<Groups, Tall, Outputs>;
  using U = WideUnits<Groups, Tall, Outputs, Out>;
  constexpr int kWords = Outputs / 2, kStride = Groups * 512, kBatch = U::kGated ? 3 : 6; // runs whose words are in flight
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
    U::put(p, t, (of / 4 * Tall + part) * 64 + of % 4 * 16 + lane / 4, quad, v, up);
  }
}

template <int Groups, int Tall, int Outputs, WideOut Out>
__global__ void __launch_bounds__((Groups + 1) * 128, 1) linear_wide_b16_kernel(const LinearWideB16 p) {
  using S = WideB16Shared<Groups, Tall, Outputs>;
  using U = WideUnits<Groups, Tall, Outputs, Out>;
  constexpr int kWords = Outputs / 2;
  static_assert(Groups == 2, "the registers of two warpgroups and a producer");
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *data = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  uint64_t *full = (uint64_t *)(data + S::kStage * S::kStages);
  WideRing ring = {data, full, full + S::kStages, 0, 0};
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = warp / 4;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&ring.full[i], 1);
      mbar_init(&ring.empty[i], Groups * 4);
    }
    mbar_init_fence();
  }
  __syncthreads();
  WidePieces pieces(p);

  if (group == Groups) { // producer
    registers_shrink<40>();
    if (warp == Groups * 4 && lane == 0) wide_b16_fill<Groups, Tall, Outputs, Out>(p, pieces, ring);
    return;
  }

  registers_grow<232>();
  int ended = -1, begun = -1; // tiles whose sums are left in places 0 and 1
  while (pieces.next(p)) {
    float sum[Tall * kWords];
#pragma unroll
    for (int i = 0; i < Tall * kWords; i++) sum[i] = 0;
    wide_b16_sums<Groups, Tall, Outputs>(pieces, ring, group, lane, sum);
    const WidePlace t = wide_place<S::kTokens, Outputs>(p, pieces.tile);
    if (pieces.first > 0 || pieces.last < p.pairs) {
      if (p.cluster > 1) { // its last piece
        wide_b16_meet<Groups, Tall, Outputs, Out>(p, t, ring.data, sum);
        return;
      }
      const bool begins = pieces.first == 0;
      (begins ? begun : ended) = pieces.tile;
      give_partial<Tall * kWords, Groups * 512>(wide_b16_place<S::kTokens * Outputs>(p, blockIdx.x, begins) + tid * 4, sum);
      continue;
    }
#pragma unroll
    for (int part = 0; part < Tall; part++)
#pragma unroll
      for (int quad = 0; quad < U::kQuads; quad++) U::put_sums(p, t, part, quad, sum);
  }
#pragma unroll 1
  for (int i = 0; i < 2; i++) {
    const int tile = i ? begun : ended;
    if (tile >= 0) wide_b16_share<Groups, Tall, Outputs, Out>(p, tile);
  }
}

// ---- linear_wide_b16.cu
constexpr int kWideB16Tiles = 3;
void linear_wide_b16_prepare(); // once a device
// p: all but how the work is dealt out. The way that takes the least time is chosen.
void linear_wide_b16(const LinearWideB16 &p, WideOut out, int sms, cudaStream_t stream);
// A given way; false: these sizes or outputs have no such one.
// `cluster`: CTAs of one, WideDeal::kCluster's.
bool linear_wide_b16_try(LinearWideB16 p, WideOut out, int tile, WideDeal how, int cluster, int sms, cudaStream_t stream);

} // namespace mob
