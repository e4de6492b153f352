// Latent attention in absorbed form needs two small products per head and token:
//   before: q_lat = UK_h^T q_nope (nope -> kv_lora), beside it the roped part of q
//   after:  o = UV_h o_lat (kv_lora -> v), where o_lat first merges the parts of split keys by their log-sum-exp
// Activations are not quantised here: e4m3 weights are unpacked to half (exact) for mma.sync. A CTA has one head's weights in
// shared memory and walks over tokens, eight at a time.
#include "absorb.cuh"
#include "rope.cuh"

namespace mob {
namespace {

// ------------------------------------------------------------------------------- any dimensions

__global__ void __launch_bounds__(128) absorb_q_plain_kernel(const AbsorbPlain p, const bf16 *q, bf16 *out) {
  DYNAMIC_SHARED(float, qs); // [nope + rope]
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, head = blockIdx.y, dim = p.nope + p.rope_dim, width = p.kv_lora + p.rope_dim;
  const bf16 *from = q + ((size_t)row * p.heads + head) * dim;
  bf16 *to = out + ((size_t)row * p.heads + head) * width;
  for (int i = threadIdx.x; i < dim; i += 128) qs[i] = __bfloat162float(from[i]);
  __syncthreads();
  const bf16 *w = p.kv_b + (size_t)head * (p.nope + p.v) * p.kv_lora;
  for (int c = threadIdx.x; c < p.kv_lora; c += 128) {
    float sum = 0;
    for (int r = 0; r < p.nope; r++) sum += qs[r] * __bfloat162float(w[(size_t)r * p.kv_lora + c]);
    to[c] = __float2bfloat16(sum);
  }
  const int half = p.rope.dim / 2, position = p.step.position[row];
  for (int k = threadIdx.x; k < half; k += 128) {
    const int a = p.rope.interleaved ? 2 * k : k, b = p.rope.interleaved ? 2 * k + 1 : k + half;
    const float2 cs = angle_of(p.rope, position, k);
    const float u = qs[p.nope + a], v = qs[p.nope + b];
    to[p.kv_lora + a] = __float2bfloat16(u * cs.x - v * cs.y);
    to[p.kv_lora + b] = __float2bfloat16(v * cs.x + u * cs.y);
  }
}

__global__ void __launch_bounds__(128) absorb_v_plain_kernel(const AbsorbPlain p, const float *latent, bf16 *out) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, head = blockIdx.y, lane = threadIdx.x % 32;
  const float *x = latent + ((size_t)row * p.heads + head) * p.kv_lora;
  const bf16 *w = p.kv_b + ((size_t)head * (p.nope + p.v) + p.nope) * p.kv_lora;
  for (int r = threadIdx.x / 32; r < p.v; r += 4) {
    float sum = 0;
    for (int c = lane; c < p.kv_lora; c += 32) sum += x[c] * __bfloat162float(w[(size_t)r * p.kv_lora + c]);
    sum = warp_sum(sum);
    if (lane == 0) out[((size_t)row * p.heads + head) * p.v + r] = __float2bfloat16(sum);
  }
}

// --------------------------------------------------------------------- 128 + 64 -> 512 + 64 -> 128

__device__ __forceinline__ uint32_t bf16x2_to_half2(uint32_t v) {
  const __half2 h = __floats2half2_rn(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
  return *(const uint32_t *)&h;
}

template <int G>
__global__ void __launch_bounds__(256, G == 1 ? 1 : 2) absorb_q_mla_kernel(const AbsorbMla p, const bf16 *q, uint8_t *tiles, int rows) {
  DYNAMIC_SHARED_ALIGNED(128, uint8_t, smem);
  __shared__ uint64_t bar;
  depend_launch();
  const int head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  load_head(smem, p.uk + (size_t)head * kHeadBytes, &bar);
  depend_wait();
  mbar_wait(&bar, 0);
  const int blocks = (p.heads + 63) / 64;
  const uint8_t *pair = smem + warp / 2 * kPairBytes, *tile = pair + warp % 2 * kTileBytes; // 64 latent columns: box `warp`
  const float scale = *(const float *)(pair + kPairScales + warp % 2 * 4);
  for (int t0 = blockIdx.y * 8 * G; t0 < rows; t0 += gridDim.y * 8 * G) {
    uint32_t b[2][G][8];
#pragma unroll
    for (int half = 0; half < 2; half++) {
#pragma unroll
      for (int i = 0; i < G; i++) {
        const bf16 *x = q + (uint32_t)((min(t0 + i * 8 + g, rows - 1) * p.heads + head) * 192 + half * 64 + t4 * 16); // < 2^32
        const uint4 u = *(const uint4 *)x, v = *(const uint4 *)(x + 8);
        const uint32_t w[8] = {u.x, u.y, u.z, u.w, v.x, v.y, v.z, v.w};
#pragma unroll
        for (int k = 0; k < 8; k++) b[half][i][k] = bf16x2_to_half2(w[k]);
      }
    }
#pragma unroll 1
    for (int m = 0; m < 4; m += 2) {
      float acc[2][G][4] = {};
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int j = 0; j < 2; j++) tile_mma<G>(tile, (m + j) * 16 + g, t4, half, b[half], acc[j]);
      // A lane has columns g and g + 8 of each 16 of two tokens; it stores a chunk of eight of one.
#pragma unroll
      for (int i = 0; i < G; i++) {
        uint32_t word[4];
#pragma unroll
        for (int c = 0; c < 4; c++) word[c] = turn_matrix(pack_bf16(acc[c / 2][i][c % 2 * 2] * scale, acc[c / 2][i][c % 2 * 2 + 1] * scale));
        turn_words(word);
        const int to = t0 + i * 8 + g;
        if (to < rows)
          *(uint4 *)(tiles + (((size_t)to * blocks + head / 64) * 9 + warp) * 8192 + (head % 64) * 128 + (((2 * m + t4) ^ (head & 7)) << 4)) =
              make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }
  // the roped parts: 32 pairs of each token
  for (int t0 = blockIdx.y * 8; t0 < rows; t0 += gridDim.y * 8) {
    const int to = t0 + warp;
    if (to >= rows) break;
    const int a = p.rope.interleaved ? 2 * lane : lane, c = p.rope.interleaved ? 2 * lane + 1 : lane + 32;
    const bf16 *pe = q + ((size_t)to * p.heads + head) * 192 + 128;
    const float2 cs = angle_of(p.rope, p.step.position[to], lane);
    const float u = __bfloat162float(pe[a]), v = __bfloat162float(pe[c]);
    uint8_t *at = tiles + (((size_t)to * blocks + head / 64) * 9 + 8) * 8192 + (head % 64) * 128;
    *(bf16 *)(at + ((a / 8 ^ (head & 7)) << 4) + (a & 7) * 2) = __float2bfloat16(u * cs.x - v * cs.y);
    *(bf16 *)(at + ((c / 8 ^ (head & 7)) << 4) + (c & 7) * 2) = __float2bfloat16(v * cs.x + u * cs.y);
  }
}

// One warp merges the parts of one token: 16 columns a lane, as halves. Unroll: loads that are under way at the same time.
template <int Unroll>
__device__ __forceinline__ void merge_parts(const MlaParts &parts, int first, int count, int heads, int head, int lane, uint4 (&out)[2]) {
  const __half *from = parts.partial + ((size_t)first * heads + head) * 512 + lane * 16;
  auto weight_of = [&](int part) { return part < count ? parts.lse[(size_t)(first + part) * heads + head] : -INFINITY; };
  float v[16] = {}, top = -INFINITY, sum = 0;
  for (int at = lane; at < count; at += 32) top = fmaxf(top, weight_of(at));
  top = warp_max(top);
  for (int at = 0; at < count; at += 32) {
    const float mine = __expf(weight_of(at + lane) - top);
    const int n = min(32, count - at);
    sum += mine;
#pragma unroll Unroll
    for (int s = 0; s < n; s++) {
      const float weight = __shfl_sync(~0u, mine, s);
      const uint4 *part = (const uint4 *)(from + (size_t)(at + s) * heads * 512);
      const uint4 u[2] = {part[0], part[1]};
      const __half2 *h = (const __half2 *)u;
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float2 f = __half22float2(h[i]);
        v[2 * i] += weight * f.x;
        v[2 * i + 1] += weight * f.y;
      }
    }
  }
  const float inverse = 1.0f / warp_sum(sum);
  __half2 h[8];
#pragma unroll
  for (int i = 0; i < 8; i++) h[i] = __floats2half2_rn(v[2 * i] * inverse, v[2 * i + 1] * inverse);
  out[0] = *(const uint4 *)h;
  out[1] = *(const uint4 *)(h + 4);
}

constexpr int kMergedPitch = 528, kResultPitch = 132;
constexpr int absorb_v_bytes(int groups) { return (kHeadBytes + 127) / 128 * 128 + groups * 8 * kMergedPitch * 2; }

template <int G>
__global__ void __launch_bounds__(256, G == 1 ? 1 : 2)
absorb_v_mla_kernel(const AbsorbMla p, const MlaParts parts, const Records out, int row0, int rows, bool ue8m0) {
  DYNAMIC_SHARED_ALIGNED(128, uint8_t, smem);
  __shared__ uint64_t bar;
  __half *merged = (__half *)(smem + (kHeadBytes + 127) / 128 * 128); // [8 G tokens][512 + 16]
  float *result = (float *)merged;                                    // [8 G tokens][128 + 4], afterwards
  depend_launch();
  const int head = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  load_head(smem, p.kv_b + (size_t)(4 * head + 2) * 2 * kPairBytes, &bar);
  depend_wait();
  uint4 mine[G][2];
  auto parts_of = [&](int token) { return token < rows ? *(const int2 *)(parts.of_row + 2 * token) : make_int2(0, 0); };
  auto load = [&](int t0) {
#pragma unroll
    for (int i = 0; i < G; i++) {
      const int2 of = parts_of(t0 + i * 8 + warp);
      const uint4 *from = (const uint4 *)(parts.partial + ((size_t)of.x * p.heads + head) * 512 + lane * 16);
      mine[i][0] = of.y ? from[0] : make_uint4(0, 0, 0, 0);
      mine[i][1] = of.y ? from[1] : make_uint4(0, 0, 0, 0);
    }
  };
  int t0 = blockIdx.y * 8 * G;
  if (t0 < rows) load(t0);
  mbar_wait(&bar, 0);
  for (; t0 < rows; t0 += gridDim.y * 8 * G) {
    __syncthreads(); // the tokens before are done with the buffer
#pragma unroll
    for (int i = 0; i < G; i++) {
      uint4 *to = (uint4 *)(merged + (i * 8 + warp) * kMergedPitch + lane * 16);
      const int2 of = parts_of(t0 + i * 8 + warp);
      if (of.y > 1) merge_parts<G == 1 ? 8 : 2>(parts, of.x, of.y, p.heads, head, lane, mine[i]);
      to[0] = mine[i][0];
      to[1] = mine[i][1];
    }
    __syncthreads();
    if (t0 + (int)gridDim.y * 8 * G < rows) load(t0 + (int)gridDim.y * 8 * G);
    float total[G][4] = {};
    const int row = warp * 16 + g; // of 128 outputs: two row blocks of two pairs
#pragma unroll 1
    for (int kb = 0; kb < 4; kb++) {
      const uint8_t *pair = smem + (row / 64 * 2 + kb / 2) * kPairBytes, *tile = pair + kb % 2 * kTileBytes;
      float acc[G][4] = {};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        uint32_t b[G][8];
#pragma unroll
        for (int i = 0; i < G; i++) {
          const uint4 *from = (const uint4 *)(merged + (i * 8 + g) * kMergedPitch + kb * 128 + half * 64 + t4 * 16);
          *(uint4 *)b[i] = from[0];
          *(uint4 *)(b[i] + 4) = from[1];
        }
        tile_mma<G>(tile, row % 64, t4, half, b, acc);
      }
      const float scale = *(const float *)(pair + kPairScales + kb % 2 * 4);
#pragma unroll
      for (int i = 0; i < G; i++)
#pragma unroll
        for (int k = 0; k < 4; k++) total[i][k] += acc[i][k] * scale;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < G; i++)
#pragma unroll
      for (int k = 0; k < 4; k++) result[(i * 8 + 2 * t4 + k % 2) * kResultPitch + row + k / 2 * 8] = total[i][k];
    __syncthreads();
    // A half-warp writes a token, eight columns a lane.
#pragma unroll
    for (int i = 0; i < (G + 1) / 2; i++) {
      const int at = (i * 8 + warp) * 2 + lane / 16, token = t0 + at;
      float o[8];
#pragma unroll
      for (int k = 0; k < 8; k++) o[k] = result[min(at, 8 * G - 1) * kResultPitch + lane % 16 * 8 + k];
      put_record(out, row0 + token, head * 128 + lane % 16 * 8, o, ue8m0, at < 8 * G && token < rows);
    }
  }
}

} // namespace

void absorb_q_plain(const AbsorbPlain &p, const bf16 *q, bf16 *out, int rows, cudaStream_t stream) {
  launch(absorb_q_plain_kernel, dim3(rows, p.heads), 128, (p.nope + p.rope_dim) * sizeof(float), stream, p, q, out);
}

void absorb_v_plain(const AbsorbPlain &p, const float *latent, bf16 *out, int rows, cudaStream_t stream) {
  launch(absorb_v_plain_kernel, dim3(rows, p.heads), 128, 0, stream, p, latent, out);
}

// CTAs along tokens, so that few heads fill the device too: two CTAs an SM.
static int token_ctas(int heads, int rows, int tokens, int sms) {
  const int groups = (rows + tokens - 1) / tokens, want = 2 * sms / heads;
  return want < 1 ? 1 : groups < want ? groups : want;
}

// Groups of eight tokens that a CTA takes at once: the more, the less it unpacks weights; the fewer, the more SMs have work.
static int token_groups(int heads, int rows, int sms) {
  int groups = 1;
  while (groups < 4 && heads * ((rows + 8 * groups - 1) / (8 * groups)) > 2 * sms) groups *= 2;
  return groups;
}

void absorb_q_mla(const AbsorbMla &p, const bf16 *q, uint8_t *tiles, int rows, cudaStream_t stream) {
  const int groups = token_groups(p.heads, rows, p.sms);
  const dim3 grid(p.heads, token_ctas(p.heads, rows, 8 * groups, p.sms));
  if (groups == 1) launch(absorb_q_mla_kernel<1>, grid, 256, kHeadBytes, stream, p, q, tiles, rows);
  else if (groups == 2) launch(absorb_q_mla_kernel<2>, grid, 256, kHeadBytes, stream, p, q, tiles, rows);
  else launch(absorb_q_mla_kernel<4>, grid, 256, kHeadBytes, stream, p, q, tiles, rows);
}

void absorb_v_mla(const AbsorbMla &p, const MlaParts &parts, const Records &out, int row0, int rows, bool ue8m0, cudaStream_t stream) {
  const int groups = token_groups(p.heads, rows, p.sms);
  const dim3 grid(p.heads, token_ctas(p.heads, rows, 8 * groups, p.sms));
  if (groups == 1) launch(absorb_v_mla_kernel<1>, grid, 256, absorb_v_bytes(1), stream, p, parts, out, row0, rows, ue8m0);
  else if (groups == 2) launch(absorb_v_mla_kernel<2>, grid, 256, absorb_v_bytes(2), stream, p, parts, out, row0, rows, ue8m0);
  else launch(absorb_v_mla_kernel<4>, grid, 256, absorb_v_bytes(4), stream, p, parts, out, row0, rows, ue8m0);
}

void absorb_prepare() {
  mla_few_prepare();
  mla_values_few_prepare();
  cudaFuncSetAttribute(absorb_q_mla_kernel<1>, cudaFuncAttributeMaxDynamicSharedMemorySize, kHeadBytes);
  cudaFuncSetAttribute(absorb_q_mla_kernel<2>, cudaFuncAttributeMaxDynamicSharedMemorySize, kHeadBytes);
  cudaFuncSetAttribute(absorb_q_mla_kernel<4>, cudaFuncAttributeMaxDynamicSharedMemorySize, kHeadBytes);
  cudaFuncSetAttribute(absorb_v_mla_kernel<1>, cudaFuncAttributeMaxDynamicSharedMemorySize, absorb_v_bytes(1));
  cudaFuncSetAttribute(absorb_v_mla_kernel<2>, cudaFuncAttributeMaxDynamicSharedMemorySize, absorb_v_bytes(2));
  cudaFuncSetAttribute(absorb_v_mla_kernel<4>, cudaFuncAttributeMaxDynamicSharedMemorySize, absorb_v_bytes(4));
}

} // namespace mob
