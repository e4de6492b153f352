// The two products of absorb.cu for DeepSeek-V3's 128 + 64 -> 512 + 64 -> 128. Activations are not quantised here: e4m3 weights are unpacked to
// half (exact), a weight once a CTA or a tile of tokens, and are the M side of wgmma from registers; tokens are N. A CTA has one head's weights in
// shared memory and tiles of N tokens beside them; with few heads several CTAs share a head's tokens.
//
// Order of K: ldmatrix gives a lane four e4m3 columns of 16, 4 t to 4 t + 3, where wgmma's fragment wants 2 t, 2 t + 1 and 8 + 2 t, 8 + 2 t + 1.
// So tokens are put to shared memory with the words of each 32 bytes in the order 0 2 4 6 1 3 5 7: the sum is the same.
#include "absorb.cuh"
#include "rope.cuh"
#include "engine/cuda/wgmma_half.cuh"

namespace mob {
namespace {

constexpr int kThreads = 512;

// 32 bytes of a token, columns 16 * part of its boxes of 64, to a tile of `boxes` x [N tokens][128 bytes].
template <int N> __device__ __forceinline__ void put_token(uint8_t *tile, int token, int part, const uint4 &u, const uint4 &v) {
  const int box = part / 4, odd = box & 1, chunk = part % 4 * 2;
  uint8_t *row = tile + (box * N + token) * 128;
  // Boxes have the same banks: every other one stores its second chunk first.
  const uint4 even = make_uint4(u.x, u.z, v.x, v.z), uneven = make_uint4(u.y, u.w, v.y, v.w);
  *(uint4 *)(row + (((chunk + odd) ^ (token & 7)) << 4)) = odd ? uneven : even;
  *(uint4 *)(row + (((chunk + 1 - odd) ^ (token & 7)) << 4)) = odd ? even : uneven;
}

// 16 rows of a warp x 128 columns of a tile of weights, as halves: fragments of eight steps of K. `row`: tile's row lane % 16 of them.
__device__ __forceinline__ void unpack(const uint8_t *tile, int warp, int lane, uint32_t (&a)[8][4]) {
  const uint8_t *row = tile + (warp * 16 + lane % 16) * 128;
#pragma unroll
  for (int j = 0; j < 4; j++) {
    uint32_t w[4];
    load_matrices(w, row + (((2 * j + lane / 16) ^ (lane & 7)) << 4));
#pragma unroll
    for (int i = 0; i < 4; i++) {
      a[2 * j + i / 2][i % 2] = e4m3x2_to_half2((uint16_t)w[i]);
      a[2 * j + i / 2][i % 2 + 2] = e4m3x2_to_half2((uint16_t)(w[i] >> 16));
    }
  }
}

// Eight steps of K: two boxes of tokens.
template <int N> __device__ __forceinline__ void multiply(float (&acc)[N / 2], const uint32_t (&a)[8][4], const uint8_t *tokens) {
  keep_registers(acc);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 8; k++) WgmmaF16R<N>::run(acc, a[k], swizzled_operand(tokens + k / 4 * N * 128) + 2 * (k % 4), k > 0);
  wgmma_commit();
}

__device__ __forceinline__ uint32_t bf16x2_to_half2(uint32_t v) {
  const __half2 h = __floats2half2_rn(__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u));
  return *(const uint32_t *)&h;
}
__device__ __forceinline__ uint4 to_halves(const uint4 &v) {
  return make_uint4(bf16x2_to_half2(v.x), bf16x2_to_half2(v.y), bf16x2_to_half2(v.z), bf16x2_to_half2(v.w));
}

// ------------------------------------------------------------------------------------------ queries

constexpr int kMostTokens = 256; // of a CTA

template <int N> constexpr int queries_bytes(int tokens) {
  return 1024 + (tokens + N - 1) / N * N * 256 + 4 * 2 * N * 128 + kHeadBytes;
}

// Where (token, head)'s 128 bytes of box 0 begin; the next box is 8,192 bytes further.
__device__ __forceinline__ uint8_t *query_line(uint8_t *tiles, int token, int head, int blocks) {
  return tiles + ((size_t)token * blocks + head / 64) * 9 * 8192 + head % 64 * 128;
}

// Roped parts of a token: 32 pairs of a head, a lane each, eight heads of a warp on their way at once. CTAs deal the tokens among them whatever
// their own head, so that an angle serves all heads.
struct Roped {
  static constexpr int kHeads = 8, kStep = kThreads / 32;
  uint32_t pairs[kHeads]; // of heads `first` + 16 i
  int token, first, position;

  __device__ __forceinline__ void load(const AbsorbMla &p, const bf16 *q, int rows, int lane) {
    position = token < rows ? p.step.position[token] : 0;
#pragma unroll
    for (int i = 0; i < kHeads; i++) {
      const int head = first + i * kStep;
      const bf16 *pe = q + ((size_t)token * p.heads + head) * 192 + 128;
      pairs[i] = 0;
      if (token >= rows || head >= p.heads) continue;
      if (p.rope.interleaved) pairs[i] = ((const uint32_t *)pe)[lane];
      else pairs[i] = (uint32_t)((const uint16_t *)pe)[lane] | (uint32_t)((const uint16_t *)pe)[lane + 32] << 16;
    }
  }
  __device__ __forceinline__ void store(const AbsorbMla &p, uint8_t *tiles, int rows, int blocks, int lane) const {
    const float2 cs = angle_of(p.rope, position, lane);
#pragma unroll
    for (int i = 0; i < kHeads; i++) {
      const int head = first + i * kStep;
      if (token >= rows || head >= p.heads) continue;
      uint8_t *at = query_line(tiles, token, head, blocks) + 8 * 8192;
      auto place = [&](int c) { return at + ((c / 8 ^ (head & 7)) << 4) + (c & 7) * 2; };
      const float u = __uint_as_float(pairs[i] << 16), v = __uint_as_float(pairs[i] & 0xffff0000u);
      const uint32_t turned = pack_bf16(u * cs.x - v * cs.y, v * cs.x + u * cs.y);
      if (p.rope.interleaved) *(uint32_t *)place(2 * lane) = turned;
      else *(uint16_t *)place(lane) = (uint16_t)turned, *(uint16_t *)place(lane + 32) = (uint16_t)(turned >> 16);
    }
  }
};

// grid: heads x shares of the tokens. Warpgroup w takes boxes w and w + 4 of 64 latent columns.
template <int N>
__global__ void __launch_bounds__(kThreads, 1) absorb_q_mla_kernel(const AbsorbMla p, const bf16 *q, uint8_t *tiles, int rows, int share) {
  DYNAMIC_SHARED(uint8_t, raw);
  __shared__ uint64_t bar;
  constexpr int kEach = kMostTokens * 8 / kThreads;
  uint8_t *tokens = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023);
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = warp / 4, head = blockIdx.x, blocks = (p.heads + 63) / 64;
  const int from = blockIdx.y * share, count = min(share, rows - from), padded = (count + N - 1) / N * N;
  uint8_t *staged = tokens + padded * 256 + group * 2 * N * 128, *weights = tokens + padded * 256 + 4 * 2 * N * 128;
  depend_launch();
  load_head(weights, p.uk + (size_t)head * kHeadBytes, &bar);
  depend_wait();
  uint4 x[kEach][2];
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    const int token = (tid + i * kThreads) / 8;
    const uint4 *at = (const uint4 *)(q + ((size_t)min(from + token, rows - 1) * p.heads + head) * 192 + tid % 8 * 16);
    if (token < padded) x[i][0] = at[0], x[i][1] = at[1];
  }
  const int ctas = gridDim.x * gridDim.y, own = blockIdx.x + gridDim.x * blockIdx.y;
  Roped roped;
  roped.token = own, roped.first = warp;
  roped.load(p, q, rows, lane);
#pragma unroll
  for (int i = 0; i < kEach; i++) {
    const int token = (tid + i * kThreads) / 8;
    if (token < padded) put_token<N>(tokens + token / N * N * 256, token % N, tid % 8, to_halves(x[i][0]), to_halves(x[i][1]));
  }
  while (roped.token < rows) {
    const Roped now = roped;
    roped.first += Roped::kHeads * Roped::kStep;
    if (roped.first >= p.heads) roped.first = warp, roped.token += ctas;
    roped.load(p, q, rows, lane);
    now.store(p, tiles, rows, blocks, lane);
  }
  async_fence();
  __syncthreads();
  mbar_wait(&bar, 0);
  int turn = 0;
#pragma unroll 1
  for (int box = group; box < 8; box += 4) {
    const uint8_t *pair = weights + box / 2 * kPairBytes;
    const float scale = *(const float *)(pair + kPairScales + box % 2 * 4);
    uint32_t a[8][4];
    unpack(pair + box % 2 * kTileBytes, warp % 4, lane, a);
#pragma unroll 1
    for (int t = 0; t < padded; t += N, turn ^= 1) {
      float acc[N / 2];
      multiply<N>(acc, a, tokens + t * 256);
      wgmma_wait<0>();
      keep_registers(acc);
      uint8_t *stage = staged + turn * N * 128;
#pragma unroll
      for (int j = 0; j < N / 8; j += 2) {
        const float *v = acc + 4 * j;
        const uint32_t d[4] = {pack_bf16(v[0] * scale, v[1] * scale), pack_bf16(v[2] * scale, v[3] * scale),
                               pack_bf16(v[4] * scale, v[5] * scale), pack_bf16(v[6] * scale, v[7] * scale)};
        const int token = 8 * (j + lane / 16) + lane % 8, chunk = warp % 4 * 2 + lane / 8 % 2;
        store_matrices_turned(stage + token * 128 + ((chunk ^ (token & 7)) << 4), d);
      }
      group_sync<128>(1 + group);
#pragma unroll
      for (int i = 0; i < N / 16; i++) {
        const int token = i * 16 + tid % 128 / 8, chunk = tid % 8;
        const uint4 v = *(const uint4 *)(stage + token * 128 + ((chunk ^ (token & 7)) << 4));
        if (t + token < count) *(uint4 *)(query_line(tiles, from + t + token, head, blocks) + box * 8192 + ((chunk ^ (head & 7)) << 4)) = v;
      }
    }
  }
}

// ------------------------------------------------------------------------------------------- values

constexpr int kResultPitch = 132;
template <int N> constexpr int values_bytes() { return 1024 + 2 * N * 1024 + kHeadBytes + N * kResultPitch * 4; }

// 16 columns a lane of one token's latent, as halves: its parts by their weights.
__device__ __forceinline__ void merge_token(const MlaParts &parts, int first, int count, int heads, int head, int lane, uint4 (&out)[2]) {
  const __half *from = parts.partial + ((size_t)first * heads + head) * 512 + lane * 16;
  auto weight_of = [&](int part) { return part < count ? parts.lse[(size_t)(first + part) * heads + head] : -INFINITY; };
  float v[16] = {}, top = -INFINITY, sum = 0;
  for (int at = lane; at < count; at += 32) top = fmaxf(top, weight_of(at));
  top = warp_max(top);
  for (int at = 0; at < count; at += 32) {
    const float mine = __expf(weight_of(at + lane) - top);
    const int n = min(32, count - at);
    sum += mine;
#pragma unroll 4
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

struct ValueBarriers {
  uint64_t weights, full[2], empty[2], result, stored; // of a tile's latents, of its results
};

// Eight warps bring tokens' latents to shared memory and store results, those of two tiles before.
template <int N> struct ValuePorters {
  static constexpr int kEach = N / 8, kBatch = kEach < 4 ? kEach : 4; // tokens of a warp; under way at once
  const AbsorbMla &p;
  const MlaParts &parts;
  const Records &out;
  int row0, rows, head, warp, lane;
  bool ue8m0;
  uint8_t *tiles;
  const float *results;
  ValueBarriers *bar;

  // Where the parts of a warp's tokens are, a lane each.
  __device__ __forceinline__ int2 find(int t0) const {
    const int own = t0 + warp * kEach + lane;
    return lane < kEach && own < rows ? *(const int2 *)(parts.of_row + 2 * own) : make_int2(0, 0);
  }
  __device__ __forceinline__ void bring(int t0, int turn, int step, int2 mine) const {
    uint8_t *tile = tiles + (turn & 1) * N * 1024;
#pragma unroll
    for (int b = 0; b < kEach; b += kBatch) {
      uint4 v[kBatch][2];
#pragma unroll
      for (int i = 0; i < kBatch; i++) {
        const int first = __shfl_sync(~0u, mine.x, b + i), count = __shfl_sync(~0u, mine.y, b + i);
        const uint4 *from = (const uint4 *)(parts.partial + ((size_t)first * p.heads + head) * 512 + lane * 16);
        v[i][0] = count == 1 ? from[0] : make_uint4(0, 0, 0, 0);
        v[i][1] = count == 1 ? from[1] : make_uint4(0, 0, 0, 0);
      }
      if (b == 0) {
        if (turn > 1) store(t0 - 2 * step, turn - 2);
        mbar_wait(&bar->empty[turn & 1], (turn >> 1 & 1) ^ 1);
      }
#pragma unroll
      for (int i = 0; i < kBatch; i++) put_token<N>(tile, warp * kEach + b + i, lane, v[i][0], v[i][1]);
    }
    if (__any_sync(~0u, mine.y > 1)) {
#pragma unroll 1
      for (int i = 0; i < kEach; i++) {
        const int first = __shfl_sync(~0u, mine.x, i), count = __shfl_sync(~0u, mine.y, i);
        uint4 v[2];
        if (count < 2) continue;
        merge_token(parts, first, count, p.heads, head, lane, v);
        put_token<N>(tile, warp * kEach + i, lane, v[0], v[1]);
      }
    }
    async_fence();
    __syncwarp();
    if (lane == 0) mbar_arrive(&bar->full[turn & 1]);
  }
  // A half-warp stores a token, eight columns a lane.
  __device__ __forceinline__ void store(int t0, int turn) const {
    mbar_wait(&bar->result, turn & 1);
#pragma unroll 2
    for (int i = 0; i < N / 16; i++) {
      const int token = (i * 8 + warp) * 2 + lane / 16;
      const float4 *from = (const float4 *)(results + token * kResultPitch + lane % 16 * 8);
      const float4 u = from[0], v = from[1];
      const float o[8] = {u.x, u.y, u.z, u.w, v.x, v.y, v.z, v.w};
      put_record(out, row0 + t0 + token, head * 128 + lane % 16 * 8, o, ue8m0, t0 + token < rows);
    }
    __syncwarp();
    if (lane == 0) mbar_arrive(&bar->stored);
  }
  __device__ __forceinline__ void run(int first, int step) const {
    int turn = 0, t0 = first;
    for (int2 next, mine = find(t0); t0 < rows; t0 += step, turn++, mine = next) {
      next = find(t0 + step); // there when it is wanted
      bring(t0, turn, step, mine);
    }
    for (int last = turn > 1 ? 2 : turn; last > 0; last--) store(t0 - last * step, turn - last);
  }
};

// grid: heads x shares of the tokens. Warpgroups 0 and 1 have 64 of the 128 outputs each; the others' warps are porters.
template <int N>
__global__ void __launch_bounds__(kThreads, 1)
absorb_v_mla_kernel(const AbsorbMla p, const MlaParts parts, const Records out, int row0, int rows, bool ue8m0) {
  DYNAMIC_SHARED(uint8_t, raw);
  __shared__ ValueBarriers bar;
  uint8_t *tiles = (uint8_t *)(((uintptr_t)raw + 1023) & ~(uintptr_t)1023), *weights = tiles + 2 * N * 1024;
  float *result = (float *)(weights + kHeadBytes); // [N tokens][128 + 4]
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, group = warp / 4, head = blockIdx.x, step = gridDim.y * N;
  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < 2; i++) mbar_init(&bar.full[i], 8), mbar_init(&bar.empty[i], 8);
    mbar_init(&bar.result, 8);
    mbar_init(&bar.stored, 8);
  }
  load_head(weights, p.kv_b + (size_t)(4 * head + 2) * 2 * kPairBytes, &bar.weights);
  depend_wait();
  if (warp >= 8) {
    registers_shrink<104>();
    ValuePorters<N>{p, parts, out, row0, rows, head, warp - 8, lane, ue8m0, tiles, result, &bar}.run(blockIdx.y * N, step);
    return;
  }
  registers_grow<152>();
  mbar_wait(&bar.weights, 0);
  const uint8_t *pairs = weights + group * 2 * kPairBytes;
  uint32_t a[2][8][4];
  unpack(pairs, warp % 4, lane, a[0]);
  int turn = 0;
#pragma unroll 1
  for (int t0 = blockIdx.y * N; t0 < rows; t0 += step, turn++) {
    const uint8_t *tile = tiles + (turn & 1) * N * 1024;
    float total[N / 2] = {}, acc[N / 2];
    mbar_wait(&bar.full[turn & 1], turn >> 1 & 1);
#pragma unroll
    for (int kb = 0; kb < 4; kb++) {
      const float scale = *(const float *)(pairs + kb / 2 * kPairBytes + kPairScales + kb % 2 * 4);
      multiply<N>(acc, a[kb % 2], tile + kb * 2 * N * 128);
      const int next = (kb + 1) % 4;
      unpack(pairs + next / 2 * kPairBytes + next % 2 * kTileBytes, warp % 4, lane, a[next % 2]);
      wgmma_wait<0>();
      keep_registers(acc);
#pragma unroll
      for (int i = 0; i < N / 2; i++) total[i] += acc[i] * scale;
    }
    __syncwarp();
    if (lane == 0) mbar_arrive(&bar.empty[turn & 1]);
    mbar_wait(&bar.stored, (turn & 1) ^ 1); // the tile before has left the results
    const int row = warp * 16 + lane / 4, t4 = lane % 4;
#pragma unroll
    for (int i = 0; i < N / 2; i++) result[(i / 4 * 8 + 2 * t4 + i % 2) * kResultPitch + row + i % 4 / 2 * 8] = total[i];
    __syncwarp();
    if (lane == 0) mbar_arrive(&bar.result);
  }
}

// How a launch's tokens are cut: in tiles of `n`, `shares` CTAs a head, so that one CTA an SM has them all.
struct Cut {
  int n, shares;
};
Cut cut_of(int heads, int rows, int sms) {
  const int most = sms > heads ? sms / heads : 1;
  int n = 16;
  while (n < 64 && (rows + n - 1) / n > most) n *= 2;
  const int tiles = (rows + n - 1) / n;
  return {n, tiles < most ? tiles : most};
}

template <int N> void queries(const AbsorbMla &p, const bf16 *q, uint8_t *tiles, int rows, int shares, cudaStream_t stream) {
  const int all = (rows + N - 1) / N, each = (all + shares - 1) / shares, most = kMostTokens / N, share = N * (each < most ? each : most);
  launch(absorb_q_mla_kernel<N>, dim3(p.heads, (rows + share - 1) / share), kThreads, queries_bytes<N>(share), stream, p, q, tiles, rows, share);
}
template <int N>
void values(const AbsorbMla &p, const MlaParts &parts, const Records &out, int row0, int rows, bool ue8m0, int shares, cudaStream_t stream) {
  launch(absorb_v_mla_kernel<N>, dim3(p.heads, shares), kThreads, values_bytes<N>(), stream, p, parts, out, row0, rows, ue8m0);
}
template <int N> void prepare() {
  cudaFuncSetAttribute(absorb_q_mla_kernel<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, queries_bytes<N>(kMostTokens));
  cudaFuncSetAttribute(absorb_v_mla_kernel<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, values_bytes<N>());
}

} // namespace

void absorb_q_mla(const AbsorbMla &p, const bf16 *q, uint8_t *tiles, int rows, cudaStream_t stream) {
  const Cut cut = cut_of(p.heads, rows, p.sms);
  if (cut.n == 16) queries<16>(p, q, tiles, rows, cut.shares, stream);
  else if (cut.n == 32) queries<32>(p, q, tiles, rows, cut.shares, stream);
  else queries<64>(p, q, tiles, rows, cut.shares, stream);
}

void absorb_v_mla(const AbsorbMla &p, const MlaParts &parts, const Records &out, int row0, int rows, bool ue8m0, cudaStream_t stream) {
  const Cut cut = cut_of(p.heads, rows, p.sms);
  if (cut.n == 16) values<16>(p, parts, out, row0, rows, ue8m0, cut.shares, stream);
  else if (cut.n == 32) values<32>(p, parts, out, row0, rows, ue8m0, cut.shares, stream);
  else values<64>(p, parts, out, row0, rows, ue8m0, cut.shares, stream);
}

void absorb_prepare() {
  mla_few_prepare();
  mla_values_few_prepare();
  prepare<16>();
  prepare<32>();
  prepare<64>();
}

} // namespace mob
