// From the parts of decode attention to o_proj's input, for up to 16 rows: absorb_v_mla where the chain of steps counts and not the
// arithmetic. A CTA has a head, and rows y, y + gridDim.y, ...; all its threads merge a row's parts: 64 of them have eight columns each of
// every eighth part (of every part of a row, where rows are many). Then eight warps have 16 outputs each over half of the columns, eight
// over the other half.
#include "absorb.cuh"

namespace mob {
namespace {

constexpr int kThreads = 512, kGroups = kThreads / 64, kAhead = 4; // of 64 threads; parts in flight
constexpr int kMostParts = 256, kMergedPitch = 528, kResultPitch = 132;

template <int Tokens> struct ValuesShared {
  static constexpr int kSums = (kHeadBytes + 127) / 128 * 128;           // [kGroups][512] floats
  static constexpr int kMerged = kSums + kGroups * 512 * 4;              // [Tokens][512 + 16] halves
  static constexpr int kResult = kMerged + Tokens * kMergedPitch * 2;    // [2][Tokens][128 + 4] floats
  static constexpr int kBytes = kResult + 2 * Tokens * kResultPitch * 4;
};

// What a row's parts count, to shared memory; by one warp.
__device__ __forceinline__ void weigh_parts(const MlaParts &parts, int2 of, int heads, int head, float *weights) {
  const int lane = threadIdx.x % 32;
  float lse[kMostParts / 32], top = -INFINITY, sum = 0;
#pragma unroll
  for (int i = 0; i < kMostParts / 32; i++) {
    const int at = i * 32 + lane;
    lse[i] = at < of.y ? parts.lse[(size_t)(of.x + at) * heads + head] : -INFINITY;
    top = fmaxf(top, lse[i]);
  }
  top = warp_max(top);
#pragma unroll
  for (int i = 0; i < kMostParts / 32; i++) {
    if (i * 32 >= of.y) break;
    lse[i] = __expf(lse[i] - top);
    sum += lse[i];
  }
  const float inverse = 1.0f / warp_sum(sum);
#pragma unroll
  for (int i = 0; i < kMostParts / 32; i++) {
    if (i * 32 >= of.y) break;
    weights[i * 32 + lane] = lse[i] * inverse;
  }
}

template <int Tokens>
__global__ void __launch_bounds__(kThreads, 1)
mla_values_few_kernel(const AbsorbMla p, const MlaParts parts, const Records out, int rows, bool ue8m0) {
  using S = ValuesShared<Tokens>;
  constexpr int kTokenGroups = Tokens / 8;
  DYNAMIC_SHARED_ALIGNED(128, uint8_t, smem);
  __shared__ uint64_t bar;
  __shared__ float weights[kGroups][kMostParts];
  float *sums = (float *)(smem + S::kSums), *result = (float *)(smem + S::kResult);
  __half *merged = (__half *)(smem + S::kMerged);
  depend_launch();
  const int head = blockIdx.x, tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t4 = lane % 4;
  const int first = blockIdx.y, step = gridDim.y, here = (rows - first + step - 1) / step;
  load_head(smem, p.kv_b + (size_t)(4 * head + 2) * 2 * kPairBytes, &bar);
  depend_wait();

  int slices = kGroups; // of a row's parts
  while (slices > 1 && slices * here > kGroups) slices /= 2;
  const int at_once = kGroups / slices, group = tid / 64, slice = group % slices, col = tid % 64 * 8;
#pragma unroll 1
  for (int from = 0; from < here; from += at_once) {
    const int i = from + group / slices;
    const int2 of = i < here ? *(const int2 *)(parts.of_row + 2 * (first + i * step)) : make_int2(0, 0);
    const __half *part = parts.partial + ((size_t)of.x * p.heads + head) * 512 + col;
    float v[8] = {}, *mine = weights[group / slices];
    uint4 ahead[kAhead];
    auto load = [&](int s) {
#pragma unroll
      for (int k = 0; k < kAhead; k++)
        if (s + k * slices < of.y) ahead[k] = *(const uint4 *)(part + (size_t)(s + k * slices) * p.heads * 512);
    };
    load(slice);
    if (slice == 0 && warp % 2 == 0) weigh_parts(parts, of, p.heads, head, mine);
    __syncthreads();
#pragma unroll 1
    for (int s = slice; s < of.y; s += kAhead * slices) {
#pragma unroll
      for (int k = 0; k < kAhead; k++) {
        if (s + k * slices >= of.y) break;
        const float weight = mine[s + k * slices];
        const __half2 *h = (const __half2 *)&ahead[k];
#pragma unroll
        for (int j = 0; j < 4; j++) {
          const float2 f = __half22float2(h[j]);
          v[2 * j] += weight * f.x;
          v[2 * j + 1] += weight * f.y;
        }
      }
      load(s + kAhead * slices);
    }
    *(float4 *)(sums + group * 512 + col) = make_float4(v[0], v[1], v[2], v[3]);
    *(float4 *)(sums + group * 512 + col + 4) = make_float4(v[4], v[5], v[6], v[7]);
    __syncthreads();
    for (int r = 0; r < at_once && from + r < here; r++) {
      float sum = 0;
#pragma unroll 1
      for (int s = 0; s < slices; s++) sum += sums[(r * slices + s) * 512 + tid];
      merged[(from + r) * kMergedPitch + tid] = __float2half(sum);
    }
  }
  mbar_wait(&bar, 0);
  __syncthreads();

  const int row = warp % 8 * 16 + g, half_columns = warp / 8; // of 128 outputs: two row blocks of two pairs
  float total[kTokenGroups][4] = {};
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const int kb = half_columns * 2 + k;
    const uint8_t *pair = smem + (row / 64 * 2 + half_columns) * kPairBytes, *tile = pair + k * kTileBytes;
    float acc[kTokenGroups][4] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t b[kTokenGroups][8];
#pragma unroll
      for (int i = 0; i < kTokenGroups; i++) {
        const uint4 *from = (const uint4 *)(merged + (i * 8 + g) * kMergedPitch + kb * 128 + half * 64 + t4 * 16);
        *(uint4 *)b[i] = from[0];
        *(uint4 *)(b[i] + 4) = from[1];
      }
      tile_mma<kTokenGroups>(tile, row % 64, t4, half, b, acc);
    }
    const float scale = *(const float *)(pair + kPairScales + k * 4);
#pragma unroll
    for (int i = 0; i < kTokenGroups; i++)
#pragma unroll
      for (int j = 0; j < 4; j++) total[i][j] += acc[i][j] * scale;
  }
#pragma unroll
  for (int i = 0; i < kTokenGroups; i++)
#pragma unroll
    for (int j = 0; j < 4; j++) result[(half_columns * Tokens + i * 8 + 2 * t4 + j % 2) * kResultPitch + row + j / 2 * 8] = total[i][j];
  __syncthreads();
  // A half-warp writes a token, eight columns a lane.
  const int at = tid / 16;
  if (warp * 2 >= here) return;
  float o[8];
#pragma unroll
  for (int k = 0; k < 8; k++) {
    const float *from = result + min(at, Tokens - 1) * kResultPitch + lane % 16 * 8 + k;
    o[k] = from[0] + from[Tokens * kResultPitch];
  }
  put_record(out, first + at * step, head * 128 + lane % 16 * 8, o, ue8m0, at < here);
}

template <int Tokens>
void values(const AbsorbMla &p, const MlaParts &parts, const Records &out, int rows, int step, bool ue8m0, cudaStream_t stream) {
  launch(mla_values_few_kernel<Tokens>, dim3(p.heads, step), kThreads, ValuesShared<Tokens>::kBytes, stream, p, parts, out, rows, ue8m0);
}

} // namespace

void mla_values_few(const AbsorbMla &p, const MlaParts &parts, const Records &out, int rows, bool ue8m0, cudaStream_t stream) {
  const int most = p.sms < p.heads ? 1 : p.sms / p.heads, step = most < rows ? most : rows;
  if ((rows + step - 1) / step <= 8) values<8>(p, parts, out, rows, step, ue8m0, stream);
  else values<16>(p, parts, out, rows, step, ue8m0, stream);
}

void mla_values_few_prepare() {
  cudaFuncSetAttribute(mla_values_few_kernel<8>, cudaFuncAttributeMaxDynamicSharedMemorySize, ValuesShared<8>::kBytes);
  cudaFuncSetAttribute(mla_values_few_kernel<16>, cudaFuncAttributeMaxDynamicSharedMemorySize, ValuesShared<16>::kBytes);
}

} // namespace mob
