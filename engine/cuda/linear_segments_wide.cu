// The experts' FP8 linears over gathered tokens where each expert has many (fewer: linear_segments.cuh, which this shares its products, its
// deal and its counts with): wgmma with the tokens on the M side, so that a thread's sums belong to two tokens of every 64 and take two
// of their scales. A tile is up to 128 tokens x 256 outputs; each of two warpgroups has 128 of the outputs and all tokens, 64 at a time. A
// tile of at most 64 is half the work. All tiles are whole: they are many, and those of down, which end the launch, are short.
//
// One ring of stages of 128 bytes of columns, filled by two producers, weights and activations, so that weights come while activations of
// down wait for gate and up.
#include "linear_segments.cuh"

namespace mob {
namespace {

struct SegmentsWideShared {
  static constexpr int kTokens = kWideTokens;
  static constexpr int kX = kTokens * 128, kW = kX, kXScales = kW + 4 * kTileBytes, kWScales = kXScales + kTokens * 4;
  static constexpr int kStage = (kWScales + 4 * 16 + 1023) / 1024 * 1024, kStages = 4, kRuns = 3;
  // Bytes from the first multiple of 1,024. Results: 16 tokens x 64 of a warp, or what a warpgroup has for the other one.
  static constexpr int kResults = kStages * kStage, kRun = kResults + 8 * 2048, kBars = kRun + kRuns * 40;
  static constexpr int kBytes = 1024 + kBars + 2 * (kStages + kRuns) * 8;
};

struct SegmentsWidePlaces { // in shared memory
  using S = SegmentsWideShared;
  uint8_t *base;
  __device__ explicit SegmentsWidePlaces(uint8_t *raw) : base(raw + (1024 - smem_address(raw) % 1024) % 1024) {}
  __device__ uint8_t *stage(int i) const { return base + i * S::kStage; }
  __device__ uint8_t *results() const { return base + S::kResults; }
  __device__ SegmentsRun *run(int slot) const { return (SegmentsRun *)(base + S::kRun) + slot; }
  __device__ uint64_t *bar(int i) const { return (uint64_t *)(base + S::kBars) + i; }
  __device__ uint64_t *full(int i) const { return bar(i); }
  __device__ uint64_t *empty(int i) const { return bar(S::kStages + i); }
  __device__ uint64_t *run_full(int slot) const { return bar(2 * S::kStages + slot); }
  __device__ uint64_t *run_empty(int slot) const { return bar(2 * S::kStages + S::kRuns + slot); }
};

// A run's products of this warpgroup's 128 outputs: sum[64 part + ..] of 64 tokens each.
template <int Tall>
__device__ __forceinline__ void segments_wide_sums(const SegmentsWidePlaces &at, RingAt &ring, int pairs, float (&sum)[Tall * 64]) {
  using S = SegmentsWideShared;
  const int tid = threadIdx.x, group = tid / 128, lane = tid % 32, row = tid % 128 / 32 * 16 + lane / 4;
#pragma unroll
  for (int i = 0; i < Tall * 64; i++) sum[i] = 0;
  float2 ws[2];
#pragma unroll 1
  for (int pair = 0; pair < pairs; pair++) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      mbar_wait(at.full(ring.slot()), ring.phase());
      const uint8_t *stage = at.stage(ring.slot());
#pragma unroll
      for (int part = 0; part < Tall; part++) {
        float acc[64];
        keep_registers(acc);
        wgmma_fence();
        tile_group<WgmmaF8<128>>(acc, stage + part * 8192, stage + S::kW + group * 2 * kTileBytes, 0);
        const float *xs = (const float *)(stage + S::kXScales) + part * 64 + row;
        const float x0 = xs[0], x1 = xs[8];
        float s0[2], s1[2];
#pragma unroll
        for (int b = 0; b < 2; b++) {
          if (half == 0 && part == 0) ws[b] = *(const float2 *)(stage + S::kWScales + (group * 2 + b) * 16);
          s0[b] = x0 * (half ? ws[b].y : ws[b].x);
          s1[b] = x1 * (half ? ws[b].y : ws[b].x);
        }
        wgmma_wait<0>();
        keep_registers(acc);
        if (part + 1 == Tall) {
          __syncwarp();
          if (lane == 0) mbar_arrive(at.empty(ring.slot()));
          ring.step(1, S::kStages);
        }
#pragma unroll
        for (int j = 0; j < 16; j++) {
          sum[part * 64 + 4 * j] += acc[4 * j] * s0[j / 8];
          sum[part * 64 + 4 * j + 1] += acc[4 * j + 1] * s0[j / 8];
          sum[part * 64 + 4 * j + 2] += acc[4 * j + 2] * s1[j / 8];
          sum[part * 64 + 4 * j + 3] += acc[4 * j + 3] * s1[j / 8];
        }
      }
    }
  }
}

// 64 x 128 sums as rows of y, 16 tokens x 64 outputs of a warp at a time.
__device__ __forceinline__ void segments_wide_rows(const LinearSegments &p, const SegmentsWidePlaces &at, const float *sum, int block, int first,
                                                   const SegmentsRun &run) {
  const int lane = threadIdx.x % 32;
  uint8_t *own = at.results() + threadIdx.x / 32 * 2048;
#pragma unroll
  for (int b = 0; b < 2; b++) {
    if (first >= run.tokens) break;
    __syncwarp(); // what was there is read
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const float *v = sum + b * 32 + j * 4;
      const uint32_t d[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
      const int place = lane % 16, chunk = j + lane / 16;
      store_matrices(own + place * 128 + ((chunk ^ (place & 7)) << 4), d);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int place = i * 4 + lane / 8, chunk = lane % 8, n = (block + b) * kTileRows + chunk * 8;
      if (first + place >= run.tokens) break;
      const uint4 *out = (const uint4 *)(own + place * 128 + ((chunk ^ (place & 7)) << 4));
      bf16 *to = p.y + (size_t)(run.row + first + place) * p.n + n;
      if (n + 8 <= p.n && p.n % 8 == 0) *(uint4 *)to = *out;
      else
        for (int k = 0; k < 8 && n + k < p.n; k++) to[k] = ((const bf16 *)out)[k];
    }
  }
}

// silu(gate) * up, of what is rounded to bf16. The first warpgroup has gate, the second one up; each finishes 64 of the tokens: it gets the
// other's values of those, in its own order, and gives its own of the others. `v`: this one's results.
__device__ __forceinline__ float segments_wide_act(float gate, float up) { return gate / (1.0f + __expf(-gate)) * up; }
__device__ __forceinline__ void segments_wide_give(uint4 *box, const float *v) {
  box[0] = make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
template <int Tall>
__device__ __forceinline__ void segments_wide_meet(const SegmentsWidePlaces &at, const float (&sum)[Tall * 64], float (&v)[64]) {
  const int group = threadIdx.x / 128, own = threadIdx.x % 128;
  uint4 *box = (uint4 *)at.results() + own;
  if constexpr (Tall == 1) { // the first warpgroup finishes all
    if (group == 1) {
#pragma unroll
      for (int i = 0; i < 8; i++) segments_wide_give(box + i * 128, sum + i * 8);
    }
    group_sync<256>(3);
#pragma unroll
    for (int i = 0; i < 8; i++) {
      float up[8];
      unpack_bf16(box[i * 128], up);
#pragma unroll
      for (int q = 0; q < 8; q++) v[i * 8 + q] = segments_wide_act(__bfloat162float(__float2bfloat16(sum[i * 8 + q])), up[q]);
    }
    group_sync<256>(3);
    return;
  } else {
#pragma unroll
    for (int turn = 0; turn < 2; turn++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float out[8];
#pragma unroll
        for (int q = 0; q < 8; q++) out[q] = group ? sum[turn * 32 + i * 8 + q] : sum[64 + turn * 32 + i * 8 + q];
        segments_wide_give(box + (group * 4 + i) * 128, out);
      }
      group_sync<256>(3);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float got[8];
        unpack_bf16(box[((group ^ 1) * 4 + i) * 128], got);
#pragma unroll
        for (int q = 0; q < 8; q++) {
          const int k = turn * 32 + i * 8 + q;
          const float mine = __bfloat162float(__float2bfloat16(group ? sum[64 + k] : sum[k]));
          v[k] = segments_wide_act(group ? got[q] : mine, group ? mine : got[q]);
        }
      }
      group_sync<256>(3);
    }
  }
}

// This warpgroup's 64 tokens x 128 columns as records.
__device__ __forceinline__ void segments_wide_records(const LinearSegments &p, const float (&v)[64], const SegmentsRun &run) {
  const int tid = threadIdx.x, lane = tid % 32, t4 = lane % 4, rows = (run.tokens + 7) / 8 * 8;
  const RecordRow to = tile_row(p.act, run.row, tile_place(run.row, rows));
  const int pair = run.row_tile / 2, second = run.row_tile % 2;
  uint8_t *data = to.data + pair * to.pair_bytes;
  float *scales = (float *)(to.scales + pair * to.pair_scales) + second * rows;
#pragma unroll
  for (int high = 0; high < 2; high++) {
    const int token = tid / 32 * 16 + lane / 4 + 8 * high;
    float most = 0;
#pragma unroll
    for (int j = 0; j < 16; j++) most = fmaxf(most, fmaxf(fabsf(v[4 * j + 2 * high]), fabsf(v[4 * j + 2 * high + 1])));
#pragma unroll
    for (int s = 1; s < 4; s <<= 1) most = fmaxf(most, __shfl_xor_sync(~0u, most, s));
    const float scale = quant_scale(most, p.ue8m0), inverse = 1.0f / scale;
    if (t4 == 0 && token < run.tokens) scales[token] = scale;
#pragma unroll
    for (int from = 0; from < 4; from += 2) { // 64 columns: four chunks of 16 bytes, one a lane
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float *a = v + 4 * (from * 4 + i * 2) + 2 * high, *b = a + 4;
        const uint32_t low = __nv_cvt_float2_to_fp8x2(make_float2(a[0] * inverse, a[1] * inverse), __NV_SATFINITE, __NV_E4M3);
        word[i] = low | (uint32_t)__nv_cvt_float2_to_fp8x2(make_float2(b[0] * inverse, b[1] * inverse), __NV_SATFINITE, __NV_E4M3) << 16;
      }
      turn_words(word);
      const int chunk = from * 2 + t4;
      if (token < run.tokens)
        *(uint4 *)(data + ((size_t)second * rows + token) * 128 + ((chunk ^ (token & 7)) << 4)) =
            make_uint4(__byte_perm(word[0], word[1], 0x5410), __byte_perm(word[2], word[3], 0x5410), __byte_perm(word[0], word[1], 0x7632),
                       __byte_perm(word[2], word[3], 0x7632));
    }
  }
}

// A run, by one of the two warpgroups.
template <int Tall> __device__ __forceinline__ void segments_wide_run(const LinearSegments &p, const SegmentsWidePlaces &at, int slot, RingAt &ring) {
  const SegmentsRun &run = *at.run(slot);
  const int group = threadIdx.x / 128;
  float sum[Tall * 64];
  segments_wide_sums<Tall>(at, ring, run.pairs, sum);
  if (run.down) {
    const int block = run.row_tile * 4 + group * 2, first = threadIdx.x % 128 / 32 * 16;
#pragma unroll
    for (int part = 0; part < Tall; part++) segments_wide_rows(p, at, sum + part * 64, block, part * 64 + first, run);
    return;
  }
  float v[64];
  segments_wide_meet<Tall>(at, sum, v);
  if (Tall == 2 || group == 0) segments_wide_records(p, v, run);
}

// The producer of weights, one thread, which deals the runs too.
__device__ __forceinline__ void segments_wide_load_w(const LinearSegments &p, const SegmentsWidePlaces &at) {
  using S = SegmentsWideShared;
  const uint64_t once = policy_evict_first(), keep = policy_evict_normal();
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  RingAt ring = {0, 1}, run_ring = {0, 1};
  SegmentsDeal<false> deal(p, *p.count, gridDim.x);
  int next = blockIdx.x;
  for (;;) {
    SegmentsTile tile;
    const bool more = deal.take(next);
    if (more) tile = segments_tile(p, deal);
    else tile = {};
    mbar_wait(at.run_empty(run_ring.slot()), run_ring.phase());
    *at.run(run_ring.slot()) = {tile.of.row, tile.of.tokens, tile.row_tile, tile.pairs, 0, 1, 0, 0, tile.listed, deal.down};
    mbar_arrive(at.run_full(run_ring.slot()));
    if (!more) return;
    run_ring.step(1, S::kRuns);
    const uint64_t policy = tile.of.across > 1 ? keep : once;
    const size_t block_bytes = (size_t)tile.pairs * kPairBytes;
    for (int half = 0; half < 2 * tile.pairs; half++) {
      if (half == 2 * tile.pairs - 2) next = gridDim.x + atomicAdd(p.dealt, 1); // as late as hides its way
      const int second = half % 2;
      const uint8_t *w = tile.w + (size_t)(half / 2) * kPairBytes;
      uint8_t *stage = at.stage(ring.slot());
      uint64_t *bar = at.full(ring.slot());
      mbar_wait(at.empty(ring.slot()), ring.phase());
      mbar_arrive_expect(bar, 4 * kTileBytes + (second ? 0 : 4 * 16));
#pragma unroll 1
      for (int k = 0; k < 4; k++) {
        // Blocks behind the last: the last again, whose results are not stored twice.
        const uint8_t *from = w + segments_block(p, tile.row_tile, k, blocks, deal.down) * block_bytes;
        bulk_load(stage + S::kW + k * kTileBytes, from + second * kTileBytes, kTileBytes, bar, policy);
        if (!second) bulk_load(stage + S::kWScales + k * 16, from + kPairScales, 16, bar, policy);
      }
      ring.step(1, S::kStages);
    }
  }
}

// The producer of activations, one thread.
__device__ __forceinline__ void segments_wide_load_x(const LinearSegments &p, const SegmentsWidePlaces &at) {
  using S = SegmentsWideShared;
  const uint64_t keep = policy_evict_normal();
  RingAt ring = {0, 1}, run_ring = {0, 0};
  for (;;) {
    mbar_wait(at.run_full(run_ring.slot()), run_ring.phase());
    const SegmentsRun run = *at.run(run_ring.slot());
    if (run.tokens == 0) return;
    mbar_arrive(at.run_empty(run_ring.slot()));
    run_ring.step(1, S::kRuns);
    if (run.down && p.up.row_tiles) segments_wait(p, run.listed);
    const int rows = (run.tokens + 7) / 8 * 8;
    const uint8_t *x = (run.down ? p.down.x.data : p.up.x.data) + (size_t)run.row * run.pairs * 264, *xs = x + (size_t)run.pairs * rows * 256;
    for (int half = 0; half < 2 * run.pairs; half++) {
      uint8_t *stage = at.stage(ring.slot());
      uint64_t *bar = at.full(ring.slot());
      mbar_wait(at.empty(ring.slot()), ring.phase());
      mbar_arrive_expect(bar, rows * 132);
      bulk_load(stage, x + (size_t)half * rows * 128, rows * 128, bar, keep);
      bulk_load(stage + S::kXScales, xs + (size_t)half * rows * 4, rows * 4, bar, keep);
      ring.step(1, S::kStages);
    }
  }
}

__global__ void __launch_bounds__(384, 1) linear_segments_wide_kernel(const LinearSegments p) {
  using S = SegmentsWideShared;
  DYNAMIC_SHARED(uint8_t, raw);
  const SegmentsWidePlaces at(raw);
  const int tid = threadIdx.x;
  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(at.full(i), 2);
      mbar_init(at.empty(i), 8);
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
    if (tid == 256) segments_wide_load_w(p, at);
    if (tid == 320) segments_publish<S::kRuns>(p, at);
    if (tid / 32 != 9) return;
    if (tid == 288) segments_wide_load_x(p, at);
    __syncwarp();
    segments_leave(p);
    return;
  }
  registers_grow<232>();
  RingAt ring = {0, 0};
  for (int turn = 0;; turn++) {
    const int slot = turn % S::kRuns;
    mbar_wait(at.run_full(slot), turn / S::kRuns & 1);
    const int tokens = at.run(slot)->tokens;
    if (tokens == 0) return;
    if (tokens <= 64) segments_wide_run<1>(p, at, slot, ring);
    else segments_wide_run<2>(p, at, slot, ring);
    __syncwarp();
    if (tid % 32 == 0) mbar_arrive(at.run_empty(slot));
  }
}

} // namespace

void linear_segments_wide_prepare() {
  cudaFuncSetAttribute(linear_segments_wide_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, SegmentsWideShared::kBytes);
}

void linear_segments_wide(LinearSegments p, int sms, cudaStream_t stream) {
  p.up.parts = p.down.parts = 1;
  launch(linear_segments_wide_kernel, sms, 384, SegmentsWideShared::kBytes, stream, p);
}

} // namespace mob
