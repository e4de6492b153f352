// The experts' FP8 linears over gathered tokens where each expert has many (fewer: linear_segments.cuh; what both share: segments.cuh): wgmma with the tokens on the M side, so that a thread's sums belong to two tokens of every 64 and take two
// of their scales. A tile is up to 128 tokens x 256 outputs; each of two warpgroups has 128 of the outputs and all tokens, 64 at a time. A
// tile of at most 64 is half the work. All tiles are whole: they are many, and those of down, which end the launch, are short.
//
// One ring of stages of 128 bytes of columns, filled by two producers, weights and activations, so that weights come while activations of
// down wait for gate and up.
#include "segments.cuh"
#include "wide_tiles.cuh"

namespace mob {
namespace {

struct SegmentsWideShared {
  static constexpr int kTokens = kWideTokens;
  static constexpr int kX = kTokens * 128, kW = kX, kXScales = kW + 4 * kTileBytes, kWScales = kXScales + kTokens * 4;
  static constexpr int kStage = (kWScales + 4 * 16 + 1023) / 1024 * 1024, kStages = 4;
  // Bytes from the first multiple of 1,024. Results: 16 tokens x 64 of a warp, or what a warpgroup has for the other one.
  static constexpr int kResults = kStages * kStage, kRun = kResults + 8 * 2048, kBars = kRun + kSegmentsRunBytes;
  static constexpr int kRunBars = kBars + 2 * kStages * 8, kBytes = 1024 + kRunBars + kSegmentsRunBars;
};

struct SegmentsWidePlaces : SegmentsRunPlaces<SegmentsWideShared> { // in shared memory
  using S = SegmentsWideShared;
  using SegmentsRunPlaces::SegmentsRunPlaces;
  __device__ uint8_t *stage(int i) const { return base + i * S::kStage; }
  __device__ uint8_t *results() const { return base + S::kResults; }
  __device__ uint64_t *bar(int i) const { return (uint64_t *)(base + S::kBars) + i; }
  __device__ uint64_t *full(int i) const { return bar(i); }
  __device__ uint64_t *empty(int i) const { return bar(S::kStages + i); }
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
      wide_products<Tall>(sum, stage, stage + S::kW + group * 2 * kTileBytes, (const float *)(stage + S::kXScales) + row,
                          stage + S::kWScales + group * 2 * 16, ws, half, [&] {
                            if (lane == 0) mbar_arrive(at.empty(ring.slot()));
                            ring.step(1, S::kStages);
                          });
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
    wide_stage(sum + b * 32, own, lane);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const int place = i * 4 + lane / 8, chunk = lane % 8, n = (block + b) * kTileRows + chunk * 8;
      if (first + place >= run.tokens) break;
      put_eight(p.y + (size_t)(run.row + first + place) * p.n + n, n, p.n, p.n, wide_staged(own, place, chunk));
    }
  }
}

// silu(gate) * up, of what is rounded to bf16. The first warpgroup has gate, the second one up; each finishes 64 of the tokens: it gets the
// other's values of those, in its own order, and gives its own of the others. `v`: this one's results.
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
      for (int q = 0; q < 8; q++) v[i * 8 + q] = swiglu(round_bf16(sum[i * 8 + q]), up[q]);
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
          const float mine = round_bf16(group ? sum[64 + k] : sum[k]);
          v[k] = swiglu(group ? got[q] : mine, group ? mine : got[q]);
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
        word[i] = pack_e4m3(a[0] * inverse, a[1] * inverse) | pack_e4m3(b[0] * inverse, b[1] * inverse) << 16;
      }
      turn_words(word);
      const int chunk = from * 2 + t4;
      if (token < run.tokens)
        *(uint4 *)record_chunk(data, second, rows, token, chunk) =
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

// A run's weights.
template <class Ask>
__device__ __forceinline__ void segments_wide_load_w(const LinearSegments &p, const SegmentsWidePlaces &at, RingAt &ring, const SegmentsTile &tile,
                                                     bool down, const Ask &ask) {
  using S = SegmentsWideShared;
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  const uint64_t policy = tile.of.across > 1 ? policy_evict_normal() : policy_evict_first();
  const size_t block_bytes = (size_t)tile.pairs * kPairBytes;
  for (int half = 0; half < 2 * tile.pairs; half++) {
    if (half == 2 * tile.pairs - 2) ask();
    const int second = half % 2;
    const uint8_t *w = tile.w + (size_t)(half / 2) * kPairBytes;
    uint8_t *stage = at.stage(ring.slot());
    uint64_t *bar = at.full(ring.slot());
    mbar_wait(at.empty(ring.slot()), ring.phase());
    mbar_arrive_expect(bar, 4 * kTileBytes + (second ? 0 : 4 * 16));
#pragma unroll 1
    for (int k = 0; k < 4; k++) {
      // Blocks behind the last: the last again, whose results are not stored twice.
      const uint8_t *from = w + segments_block(p, tile.row_tile, k, blocks, down) * block_bytes;
      bulk_load(stage + S::kW + k * kTileBytes, from + second * kTileBytes, kTileBytes, bar, policy);
      if (!second) bulk_load(stage + S::kWScales + k * 16, from + kPairScales, 16, bar, policy);
    }
    ring.step(1, S::kStages);
  }
}

// A run's activations.
__device__ __forceinline__ void segments_wide_load_x(const LinearSegments &p, const SegmentsWidePlaces &at, RingAt &ring, const SegmentsRun &run) {
  using S = SegmentsWideShared;
  const uint64_t keep = policy_evict_normal();
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

__global__ void __launch_bounds__(384, 1) linear_segments_wide_kernel(const LinearSegments p) {
  using S = SegmentsWideShared;
  DYNAMIC_SHARED(uint8_t, raw);
  const SegmentsWidePlaces at(raw);
  depend_launch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(at.full(i), 2);
      mbar_init(at.empty(i), 8);
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
          segments_deal<true>(p, at, [&](const SegmentsTile &tile, const auto &deal, int, int, const auto &ask) {
            segments_wide_load_w(p, at, w_ring, tile, deal.down, ask);
          });
        },
        [&] { segments_feed(p, at, [&](const SegmentsRun &run) { segments_wide_load_x(p, at, x_ring, run); }); });
    return;
  }
  registers_grow<232>();
  RingAt ring = {0, 0};
  segments_compute(at, [&](int turn, int tokens) {
    if (tokens <= 64) segments_wide_run<1>(p, at, turn % kSegmentsRuns, ring);
    else segments_wide_run<2>(p, at, turn % kSegmentsRuns, ring);
  });
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
