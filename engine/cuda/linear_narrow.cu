// The FP8 linear of up to 8 tokens whose outputs are at most 16 an SM (q_a and kv_a: 2,112 for 132 SMs): a CTA has 16 outputs with all
// their columns in shared memory before the kernel in front has ended. Behind the wait there are the rows of activations, a few products
// and one sum over warps; no partial sums leave the SM.
//
// 16 rows are a fourth of what wgmma takes as M, so one instruction has four tiles of columns: those rows of four tiles, one below the other,
// times the tokens of the same four tiles, one beside the other. Of the 4 x 4 products a warp keeps the one whose columns are the same.
#include "kernels.h"

namespace mob {
namespace {

constexpr int kOutputs = 16, kTokens = 8, kMostTiles = 64, kThreads = 288;

struct LinearNarrow {
  const uint8_t *w; // packed tiles
  const uint8_t *x; // records of mp rows
  int mp;
  bf16 *y;          // [m][ldy]
  int ldy, m, n, tiles; // tiles: of 128 columns
};

struct Narrow { // shared memory for so many tiles
  static constexpr int kW = kOutputs * 128, kX = kTokens * 128;
  static __host__ __device__ int padded(int tiles) { return (tiles + 3) / 4 * 4; }
  static __host__ __device__ int x(int tiles) { return padded(tiles) * kW; }
  static __host__ __device__ int sums(int tiles) { return x(tiles) + padded(tiles) * kX; }
  static __host__ __device__ int scales(int tiles) { return sums(tiles) + 8 * kOutputs * kTokens * 4; } // of a pair: two, 16 bytes
  static __host__ __device__ int x_scales(int tiles) { return scales(tiles) + padded(tiles) / 2 * 16; }
  static __host__ __device__ int bar(int tiles) { return x_scales(tiles) + padded(tiles) * kTokens * 4; }
  static int bytes(int tiles) { return 1024 + bar(tiles) + 16; }
};

struct NarrowProducts {
  float acc[16];
  __device__ __forceinline__ void start(const uint8_t *w, const uint8_t *x) {
    const uint64_t a = swizzled_operand(w), b = swizzled_operand(x);
    keep_registers(acc);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) WgmmaF8<32>::run(acc, a + 2 * k, b + 2 * k, k > 0);
    wgmma_commit();
  }
  // The warp's own tile of the four.
  __device__ __forceinline__ void add(float (&sum)[4], int tile, int tiles, const float *ws, const float *xs, int t4) {
    keep_registers(acc);
    if (tile >= tiles) return;
    const float w = ws[tile / 2 * 4 + tile % 2];
    const float2 v = *(const float2 *)(xs + tile * kTokens + 2 * t4);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const float low = tile & 1 ? acc[4 + i] : acc[i], high = tile & 1 ? acc[12 + i] : acc[8 + i];
      sum[i] += (tile & 2 ? high : low) * (w * (i % 2 ? v.y : v.x));
    }
  }
};

__global__ void __launch_bounds__(kThreads) linear_narrow_kernel(const LinearNarrow p) {
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *w = raw + (1024 - smem_address(raw) % 1024) % 1024, *x = w + Narrow::x(p.tiles);
  float *sums = (float *)(w + Narrow::sums(p.tiles)), *ws = (float *)(w + Narrow::scales(p.tiles)), *xs = (float *)(w + Narrow::x_scales(p.tiles));
  uint64_t *full = (uint64_t *)(w + Narrow::bar(p.tiles));
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, row0 = blockIdx.x * kOutputs, pairs = p.tiles / 2;
  depend_launch();
  if (tid == 0) {
    mbar_init(full, 1);
    mbar_init_fence();
  }
  __syncthreads();
  if (warp == 8) {
    const uint64_t once = policy_evict_first();
    const uint8_t *from = p.w + (size_t)(row0 / kTileRows) * pairs * kPairBytes;
    if (lane == 0) mbar_arrive_expect(full, p.tiles * Narrow::kW + pairs * 16);
    __syncwarp();
    for (int t = lane; t < p.tiles; t += 32)
      bulk_load(w + t * Narrow::kW, from + (size_t)(t / 2) * kPairBytes + t % 2 * kTileBytes + row0 % kTileRows * 128, Narrow::kW, full, once);
    for (int i = lane; i < pairs; i += 32) bulk_load(ws + i * 4, from + (size_t)i * kPairBytes + kPairScales, 16, full, once);
    return;
  }
  depend_wait();
  const size_t record = record_bytes(true, p.mp);
  const int rows = p.tiles * p.m;
#pragma unroll 4
  for (int i = tid; i < rows * 8; i += 256) {
    const int tile = i / 8 / p.m, t = i / 8 - tile * p.m, c = i % 8 * 16;
    *(uint4 *)(x + tile * Narrow::kX + t * 128 + c) = *(const uint4 *)(p.x + (size_t)(tile / 2) * record + ((size_t)(tile % 2) * p.mp + t) * 128 + c);
  }
  for (int i = tid; i < rows; i += 256) {
    const int tile = i / p.m, t = i - tile * p.m;
    xs[tile * kTokens + t] = *(const float *)(p.x + (size_t)(tile / 2) * record + (size_t)p.mp * 256 + ((size_t)(tile % 2) * p.mp + t) * 4);
  }
  async_fence();
  group_sync<256>(1);
  mbar_wait(full, 0);
  const int group = warp / 4, t4 = lane % 4, fours = (p.tiles + 3) / 4;
  float sum[4] = {};
  int i = group;
  for (; i + 2 < fours; i += 4) {
    NarrowProducts one, two;
    one.start(w + i * 4 * Narrow::kW, x + i * 4 * Narrow::kX);
    two.start(w + (i + 2) * 4 * Narrow::kW, x + (i + 2) * 4 * Narrow::kX);
    wgmma_wait<1>();
    one.add(sum, i * 4 + warp % 4, p.tiles, ws, xs, t4);
    wgmma_wait<0>();
    two.add(sum, (i + 2) * 4 + warp % 4, p.tiles, ws, xs, t4);
  }
  if (i < fours) {
    NarrowProducts one;
    one.start(w + i * 4 * Narrow::kW, x + i * 4 * Narrow::kX);
    wgmma_wait<0>();
    one.add(sum, i * 4 + warp % 4, p.tiles, ws, xs, t4);
  }
  float *mine = sums + warp * (kOutputs * kTokens) + lane / 4 * kTokens + 2 * t4; // [warp][output][token]
  *(float2 *)mine = make_float2(sum[0], sum[1]);
  *(float2 *)(mine + 8 * kTokens) = make_float2(sum[2], sum[3]);
  group_sync<256>(1);
  const int output = tid % kOutputs, token = tid / kOutputs;
  if (token >= p.m || row0 + output >= p.n) return;
  float all = 0;
#pragma unroll
  for (int v = 0; v < 8; v++) all += sums[v * (kOutputs * kTokens) + output * kTokens + token];
  p.y[(size_t)token * p.ldy + row0 + output] = __float2bfloat16(all);
}

} // namespace

void linear_narrow_prepare() {
  cudaFuncSetAttribute(linear_narrow_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Narrow::bytes(kMostTiles));
}

bool linear_narrow_serves(const Matrix &w, int m, int sms) {
  return w.kind == Weights::F8 && m <= kTokens && (w.n + kOutputs - 1) / kOutputs <= sms && w.k / 128 <= kMostTiles;
}

void linear_narrow(const Matrix &w, const Records &x, bf16 *y, int ldy, int m, cudaStream_t stream) {
  const LinearNarrow p = {w.data, x.data, x.mp, y, ldy, m, w.n, w.k / 128};
  launch(linear_narrow_kernel, (w.n + kOutputs - 1) / kOutputs, kThreads, Narrow::bytes(p.tiles), stream, p);
}

} // namespace mob
