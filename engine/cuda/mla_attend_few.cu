// Decode attention of 512 + 64 (DeepSeek-V3, absorbed form) for few rows and heads, where the chain of steps counts: so little shared memory
// that a CTA stands beside those of the kernel in front, with its first keys there before the queries are.
//
// A CTA has 16 M heads of a row and a run of tiles of 32 keys. The rows share the CTAs of a block of heads by their lengths, read on the
// device; run k of a row leaves the part first + k, which mla_values_few or absorb_v_mla merges. Per tile:
//   scores by eight warps: 16 keys, a quarter of the 576 columns each; their sums and the softmax by all threads, 2 M keys of a head each
//   output += P V, 64 of the 512 columns a warp
#include "kernels.h"

namespace mob {
namespace {

constexpr int kKeys = 32, kStages = 2, kWarps = 8, kThreads = kWarps * 32 + 32;
constexpr int kKeyBox = kKeys * 128, kTile = 9 * kKeyBox, kHeadBox = 16 * 128;
constexpr int kScorePitch = kKeys + 4, kProbPitch = kKeys + 8;
constexpr int shared_bytes(int m) { return 1024 + kStages * kTile + 9 * m * kHeadBox; }

struct Few {
  AttendMla p;
  int rows, most; // runs of a block of heads, at most
};

struct Run {
  int row, part, first, last, keys; // tiles of the row; its keys
};

// This CTA's run, number `index`; false: there is none. By a whole warp, a lane a row. Every row has one, and as many more as its length
// is worth. The CTA with `write` tells of row `index` which parts it has.
__device__ __forceinline__ bool find_run(const Few &f, int index, bool write, Run *run) {
  const int lane = threadIdx.x % 32;
  const int keys = lane < f.rows && f.p.step.table[lane] >= 0 ? f.p.step.position[lane] + 1 : 0, tiles = (keys + kKeys - 1) / kKeys;
  int total = tiles;
#pragma unroll
  for (int s = 16; s; s >>= 1) total += __shfl_xor_sync(~0u, total, s);
  const int spare = f.most - __popc(__ballot_sync(~0u, tiles > 0));
  const int runs = tiles == 0 ? 0 : min(tiles, 1 + (int)((int64_t)max(spare, 0) * tiles / total));
  int end = runs;
#pragma unroll
  for (int s = 1; s < 32; s *= 2) {
    const int v = __shfl_up_sync(~0u, end, s);
    if (lane >= s) end += v;
  }
  const int begin = end - runs;
  if (write && lane == index && lane < f.rows) *(int2 *)(f.p.parts.of_row + 2 * lane) = make_int2(begin, runs);
  const unsigned mine = __ballot_sync(~0u, index >= begin && index < end);
  if (mine == 0) return false;
  const int row = __ffs((int)mine) - 1, k = index - __shfl_sync(~0u, begin, row), n = __shfl_sync(~0u, runs, row);
  const int64_t all = __shfl_sync(~0u, tiles, row);
  *run = {row, index, (int)(all * k / n), (int)(all * (k + 1) / n), __shfl_sync(~0u, keys, row)};
  return true;
}

struct Bars {
  uint64_t q, full[kStages], empty[kStages];
};

// A warp: nine of its lanes copy a box each.
template <int M>
__device__ __forceinline__ void produce(const Few &f, const Run &run, int group, uint8_t *stages, uint8_t *q, Bars *bar) {
  const int lane = threadIdx.x % 32;
  const uint64_t keep = policy_evict_normal(); // other heads read the same keys
  const int *list = f.p.step.pages + f.p.step.table[run.row];
  auto load_tile = [&](int tile, int at) {
    const int s = at % kStages;
    if (at >= kStages) mbar_wait(&bar->empty[s], (at / kStages - 1) & 1);
    if (lane == 0) mbar_arrive_expect(&bar->full[s], kTile);
    __syncwarp();
    const uint8_t *page = f.p.cache + (size_t)list[tile * kKeys / 64] * page_bytes(576) + tile * kKeys % 64 * 128;
    if (lane < 9) bulk_load(stages + s * kTile + lane * kKeyBox, page + lane * 8192, kKeyBox, &bar->full[s], keep);
  };
  int tile = run.first;
  // What the step before left may come before the kernel in front is done: all but the tile with this step's token.
  for (; f.p.single && tile < run.last && tile - run.first < kStages && (tile + 1) * kKeys < run.keys; tile++) load_tile(tile, tile - run.first);
  depend_wait();
  if (lane == 0) mbar_arrive_expect(&bar->q, 9 * M * kHeadBox);
  __syncwarp();
  const int blocks = (f.p.heads + 63) / 64;
  const uint8_t *from = f.p.q + ((size_t)(run.row * blocks + group * M / 4) * 9) * 8192 + group * M % 4 * kHeadBox;
  if (lane < 9) bulk_load(q + lane * M * kHeadBox, from + lane * 8192, M * kHeadBox, &bar->q, keep);
  for (; tile < run.last; tile++) load_tile(tile, tile - run.first);
}

// Of a box of rows of 128 bytes, swizzled.
__device__ __forceinline__ const uint8_t *chunk_of(const uint8_t *box, int row, int chunk) { return box + row * 128 + ((chunk ^ (row & 7)) << 4); }

// 88 registers: with more, no CTA would find room beside mla_queries_few_kernel's (a quarter of an SM's registers is for seven of their warps).
template <int M> __global__ void __launch_bounds__(kThreads) __maxnreg__(M == 1 ? 88 : 168) mla_attend_few_kernel(const Few f) {
  constexpr int kHeads = 16 * M, kEach = 2 * M, kLanes = 16 / M; // keys of a thread, and threads of a head, in the softmax
  DYNAMIC_SHARED(uint8_t, raw);
  __shared__ Bars bar;
  __shared__ float scores[4][kHeads][kScorePitch], factors[kHeads], inverses[kHeads];
  __shared__ __align__(16) bf16 probs[kHeads * kProbPitch];
  uint8_t *stages = raw + (1024 - smem_address(raw) % 1024) % 1024, *q = stages + kStages * kTile;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t4 = lane % 4;
  const int groups = (f.p.heads + kHeads - 1) / kHeads, group = blockIdx.x % groups, index = blockIdx.x / groups;
  depend_launch();
  if (tid == 0) {
    mbar_init(&bar.q, 1);
    for (int i = 0; i < kStages; i++) {
      mbar_init(&bar.full[i], 1);
      mbar_init(&bar.empty[i], kWarps);
    }
    mbar_init_fence();
  }
  if (!f.p.single) depend_wait(); // of_row is the same in all of a step's launches, or else must be read first
  Run run;
  const bool any = find_run(f, index, group == 0 && warp == 0, &run);
  __syncthreads();
  if (!any) {
    depend_wait();
    return;
  }
  if (warp == kWarps) {
    produce<M>(f, run, group, stages, q, &bar);
    return;
  }
  depend_wait();
  const float scale = f.p.scale * 1.4426950408889634f; // of scores, for exp2
  const int head = tid / kLanes, each = tid % kLanes * kEach;
  float o[M][8][4] = {}, top = -INFINITY, sum = 0;
  mbar_wait(&bar.q, 0);
  for (int tile = run.first; tile < run.last; tile++) {
    const int at = tile - run.first, s = at % kStages;
    const uint8_t *keys = stages + s * kTile;
    mbar_wait(&bar.full[s], at / kStages & 1);
    {
      const int quarter = warp / 2, key = warp % 2 * 16 + lane / 16 * 8 + lane % 8, high = lane / 8 % 2; // of this lane's row of B
      float acc[M][2][4] = {};
#pragma unroll 3
      for (int k = 0; k < 9; k++) {
        const int step = quarter * 9 + k; // of 16 columns
        uint32_t b[4];
        load_matrices(b, chunk_of(keys + step / 4 * kKeyBox, key, step % 4 * 2 + high));
#pragma unroll
        for (int m = 0; m < M; m++) {
          uint32_t a[4];
          load_matrices(a, chunk_of(q + step / 4 * M * kHeadBox, m * 16 + lane % 16, step % 4 * 2 + lane / 16));
          mma_16816_bf16(acc[m][0], a, b);
          mma_16816_bf16(acc[m][1], a, b + 2);
        }
      }
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
          for (int h = 0; h < 2; h++)
            *(float2 *)&scores[quarter][m * 16 + g + 8 * h][warp % 2 * 16 + i * 8 + 2 * t4] = make_float2(acc[m][i][2 * h], acc[m][i][2 * h + 1]);
    }
    group_sync<kWarps * 32>(1);
    {
      float v[kEach] = {}, m = top;
#pragma unroll
      for (int i = 0; i < 4; i++)
#pragma unroll
        for (int k = 0; k < kEach; k += 2) {
          const float2 u = *(const float2 *)&scores[i][head][each + k];
          v[k] += u.x;
          v[k + 1] += u.y;
        }
      const int left = run.keys - tile * kKeys; // valid keys of this tile
#pragma unroll
      for (int k = 0; k < kEach; k++) {
        v[k] = each + k < left ? v[k] * scale : -INFINITY;
        m = fmaxf(m, v[k]);
      }
#pragma unroll
      for (int i = kLanes / 2; i; i >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, i));
      const float factor = exp2_approx(top - m);
      top = m;
      sum *= factor;
#pragma unroll
      for (int k = 0; k < kEach; k += 2) {
        const uint32_t p = pack_bf16(exp2_approx(v[k] - m), exp2_approx(v[k + 1] - m));
        sum += __uint_as_float(p << 16) + __uint_as_float(p & 0xffff0000u);
        *(uint32_t *)&probs[head * kProbPitch + each + k] = p;
      }
      if (each == 0) factors[head] = factor;
    }
    group_sync<kWarps * 32>(1);
    if (at > 0) {
#pragma unroll
      for (int m = 0; m < M; m++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
          const float factor = factors[m * 16 + g + 8 * h];
#pragma unroll
          for (int j = 0; j < 8; j++) {
            o[m][j][2 * h] *= factor;
            o[m][j][2 * h + 1] *= factor;
          }
        }
    }
#pragma unroll
    for (int k = 0; k < 2; k++) {
      uint32_t a[M][4];
#pragma unroll
      for (int m = 0; m < M; m++) load_matrices(a[m], probs + (m * 16 + lane % 16) * kProbPitch + k * 16 + lane / 16 * 8);
#pragma unroll
      for (int j = 0; j < 8; j += 2) {
        uint32_t b[4];
        load_matrices_turned(b, chunk_of(keys + warp * kKeyBox, k * 16 + lane % 16, j + lane / 16));
#pragma unroll
        for (int m = 0; m < M; m++) {
          mma_16816_bf16(o[m][j], a[m], b);
          mma_16816_bf16(o[m][j + 1], a[m], b + 2);
        }
      }
    }
    __syncwarp();
    if (lane == 0) mbar_arrive(&bar.empty[s]);
  }
#pragma unroll
  for (int i = kLanes / 2; i; i >>= 1) sum += __shfl_xor_sync(~0u, sum, i);
  const int first_head = group * kHeads;
  if (each == 0) {
    inverses[head] = 1.0f / sum;
    if (first_head + head < f.p.heads)
      f.p.parts.lse[(size_t)run.part * f.p.heads + first_head + head] = top * 0.6931471805599453f + logf(sum);
  }
  group_sync<kWarps * 32>(1);
#pragma unroll
  for (int m = 0; m < 2 * M; m++) { // rows of eight heads
    const float inverse = inverses[m * 8 + g];
    const int to = first_head + m * 8 + g;
    __half *out = f.p.parts.partial + ((size_t)run.part * f.p.heads + to) * 512 + warp * 64;
#pragma unroll
    for (int j = 0; j < 8; j += 4) {
      // Four lanes have two columns each of four chunks of eight; afterwards each has a chunk.
      uint32_t v[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const float *two = &o[m / 2][j + i][m % 2 * 2];
        const __half2 h = __floats2half2_rn(two[0] * inverse, two[1] * inverse);
        v[i] = *(const uint32_t *)&h;
      }
      turn_words(v);
      if (to < f.p.heads) *(uint4 *)(out + (j + t4) * 8) = make_uint4(v[0], v[1], v[2], v[3]);
    }
  }
}

template <int M> void launch_few(const AttendMla &p, int rows, cudaStream_t stream) {
  const int groups = (p.heads + 16 * M - 1) / (16 * M), fit = p.sms / groups, most = fit < rows ? rows : fit;
  launch(mla_attend_few_kernel<M>, groups * most, kThreads, shared_bytes(M), stream, Few{p, rows, most});
}

} // namespace

void mla_attend_few(const AttendMla &p, int rows, cudaStream_t stream) {
  if (rows == 1 && p.heads <= 32) launch_few<1>(p, rows, stream); // few tiles a CTA: they should be there early
  else launch_few<2>(p, rows, stream); // more: each should serve more heads
}

void mla_attend_few_prepare() {
  cudaFuncSetAttribute(mla_attend_few_kernel<1>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(1));
  cudaFuncSetAttribute(mla_attend_few_kernel<2>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(2));
}

} // namespace mob
