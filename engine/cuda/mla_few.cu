// From the down projections to queries in absorbed form, for up to 8 rows: what mla_prepare, q_b's linear and absorb_q_mla do, in one
// kernel. A head's rows of q_b (192) and its UK are one CTA's, or are shared by 2 or 4 where heads are few: then each has a part of
// q_b's columns, and the parts' sums go round through the L2 (words that are their own flag, in the order of columns, so that all have
// the same), and each multiplies by a part of UK. The latent query norm is computed by every CTA for itself. All weights depend on
// nothing and are in shared memory, or on their way, before the wait; few CTAs behind those of the heads write keys to the cache.
#include "absorb.cuh"
#include "norm.cuh"
#include "words.cuh"

namespace mob {
namespace {

constexpr int kWorkers = 384, kThreads = kWorkers + 32, kSlot = 17408; // a warpgroup for 64 of a head's outputs, and a producer
constexpr int kMostBlocks = 12, kMostSplit = 4;                        // of 128 columns of q_b; CTAs of a head
constexpr int kTokens = kFewQueries, kWords = kTokens / 2, kQueryPitch = 136;
// A multiple of 3: a slot is always the same warpgroup's. As few as keep the memory busy, so that attention's CTAs find room beside.
constexpr int kMostSlots = 6;
constexpr int shared_bytes(int slots, int blocks) { return 1024 + slots * kSlot + blocks * kTokens * 128; }

struct Few {
  MlaQueriesFew p;
  int rows, split, slots, extra; // CTAs of a head; pairs of tiles in shared memory; CTAs that write keys
};

__device__ __forceinline__ float2 angle_of(const Rope &rope, int position, int k) {
  float s, c;
  sincosf((float)position * rope.inv_freq[k], &s, &c);
  return make_float2(c * rope.factor, s * rope.factor);
}

__device__ __forceinline__ void load_bf16x8(const bf16 *x, const float *bias, float v[8]) {
  unpack_bf16(*(const uint4 *)x, v);
  if (!bias) return;
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] += bias[i];
}

// A warp writes a row's key: 16 of the latent's columns and a pair of the roped part a lane.
__device__ __forceinline__ void put_key(const MlaPrepare &p, int row) {
  const int lane = threadIdx.x % 32, col = lane * 16, table = p.step.table[row], position = p.step.position[row], offset = position % 64;
  const int u = p.rope.interleaved ? 2 * lane : lane, w = p.rope.interleaved ? 2 * lane + 1 : lane + 32;
  const bf16 *kv = p.a + (size_t)row * p.lda + p.kv_at;
  const float *bias = p.a_bias ? p.a_bias + p.kv_at : nullptr;
  const float2 cs = angle_of(p.rope, position, lane);
  uint8_t *page = table < 0 ? nullptr : p.cache + (size_t)p.step.pages[table + position / 64] * page_bytes(576);
  float norm[16], v[16], square = 0;
  load8(p.kv_norm + col, norm);
  load8(p.kv_norm + col + 8, norm + 8);
  depend_wait();
  const bool stays = p.step.waits && halted(p.step.waits);
  load_bf16x8(kv + col, bias ? bias + col : nullptr, v);
  load_bf16x8(kv + col + 8, bias ? bias + col + 8 : nullptr, v + 8);
  const float a = __bfloat162float(kv[512 + u]) + (bias ? bias[512 + u] : 0), b = __bfloat162float(kv[512 + w]) + (bias ? bias[512 + w] : 0);
#pragma unroll
  for (int i = 0; i < 16; i++) square += v[i] * v[i];
  const float factor = rsqrtf(warp_sum(square) / 512 + p.eps);
  if (!page || stays) return;
#pragma unroll
  for (int i = 0; i < 16; i++) v[i] = norm[i] * (v[i] * factor);
  *(uint4 *)(page + page_offset(offset, col)) = pack_bf16x8(v);
  *(uint4 *)(page + page_offset(offset, col + 8)) = pack_bf16x8(v + 8);
  *(bf16 *)(page + page_offset(offset, 512 + u)) = __float2bfloat16(a * cs.x - b * cs.y);
  *(bf16 *)(page + page_offset(offset, 512 + w)) = __float2bfloat16(b * cs.x + a * cs.y);
}

// What a CTA has of q_b's columns, in blocks of 128, and of the pairs that they lie in.
struct Columns {
  int first, last, pair, pairs;
  __device__ Columns(int blocks, int split, int part)
      : first(blocks * part / split), last(blocks * (part + 1) / split), pair(first / 2), pairs((last + 1) / 2 - pair) {}
  __device__ int begin(int i) const { return max(first - 2 * (pair + i), 0); } // tiles of its i-th pair
  __device__ int end(int i) const { return min(last - 2 * (pair + i), 2); }
};

struct Ring {
  uint64_t full[kMostSlots], empty[kMostSlots];
};

constexpr int kOnTheWay = 4; // slots that are asked for at a time, for the reason that linear_few.cuh gives

// One thread: for each pair of columns the head's three row blocks, then UK's tiles.
__device__ __forceinline__ void produce(const Few &f, const Columns &c, int head, int part, uint8_t *slots, Ring *ring) {
  const uint64_t once = policy_evict_first();
  const size_t pairs = (size_t)f.p.q_b.k / 256;
  const int products = 3 * c.pairs, uk_pairs = 4 / f.split;
  for (int l = 0; l < products + uk_pairs; l++) {
    const int s = l % f.slots;
    uint8_t *to = slots + s * kSlot;
    uint64_t *bar = &ring->full[s];
    if (l >= f.slots) mbar_wait(&ring->empty[s], (l / f.slots - 1) & 1);
    if (l >= kOnTheWay) mbar_wait(&ring->full[(l - kOnTheWay) % f.slots], (l - kOnTheWay) / f.slots & 1);
    if (l >= products) {
      mbar_arrive_expect(bar, kPairUsed);
      bulk_load(to, f.p.uk + ((size_t)head * 4 + part * uk_pairs + l - products) * kPairBytes, kPairUsed, bar, once);
      continue;
    }
    const int i = l / 3, begin = c.begin(i), end = c.end(i);
    const uint8_t *from = f.p.q_b.data + ((size_t)(head * 3 + l % 3) * pairs + (size_t)(c.pair + i)) * kPairBytes;
    if (end - begin == 2) {
      mbar_arrive_expect(bar, kPairUsed);
      bulk_load(to, from, kPairUsed, bar, once);
    } else {
      mbar_arrive_expect(bar, kTileBytes + 32);
      bulk_load(to + begin * kTileBytes, from + begin * kTileBytes, kTileBytes, bar, once);
      bulk_load(to + kPairScales, from + kPairScales, 32, bar, once);
    }
  }
}

// q_a's rows, normed, as e4m3 operands: [block of this CTA][kTokens][128], swizzled; xs: [block][kTokens].
__device__ __forceinline__ void norm_rows_to(const Few &f, const Columns &columns, uint8_t *x, float (*xs)[kTokens], float (*squares)[8]) {
  const MlaPrepare &p = f.p.prepare;
  constexpr int kItems = kTokens / 2; // where q_a has 1,536 columns; fewer else
  const int tid = threadIdx.x, lane = tid % 32, chunks = p.q_lora / 8, chunk = tid % chunks, first = tid / chunks, step = kWorkers / chunks;
  const float *bias = p.a_bias ? p.a_bias + chunk * 8 : nullptr;
  float w[8];
  load8(p.q_norm + chunk * 8, w);
  depend_wait();
  uint4 raw[kItems];
#pragma unroll
  for (int i = 0; i < kItems; i++)
    if (first + i * step < f.rows) raw[i] = *(const uint4 *)(p.a + (size_t)(first + i * step) * p.lda + chunk * 8);
  auto values = [&](int i, float (&v)[8]) {
    unpack_bf16(raw[i], v);
    if (!bias) return;
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] += bias[k];
  };
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    if (first + i * step >= f.rows) break;
    float v[8], square = 0;
    values(i, v);
#pragma unroll
    for (int k = 0; k < 8; k++) square += v[k] * v[k];
    square = warp_sum(square);
    if (lane == 0) squares[first + i * step][chunk / 32] = square;
  }
  group_sync<kWorkers>(1);
#pragma unroll
  for (int i = 0; i < kItems; i++) {
    const int row = first + i * step;
    if (row >= f.rows) break;
    float v[8], square = 0, amax = 0;
    for (int k = 0; k < chunks / 32; k++) square += squares[row][k];
    const float factor = rsqrtf(square / p.q_lora + p.eps);
    values(i, v);
#pragma unroll
    for (int k = 0; k < 8; k++) {
      v[k] = v[k] * factor * w[k];
      amax = fmaxf(amax, fabsf(v[k]));
    }
#pragma unroll
    for (int s = 8; s; s >>= 1) amax = fmaxf(amax, __shfl_xor_sync(~0u, amax, s));
    const int block = chunk / 16 - columns.first, c = chunk % 16 * 8;
    if (block < 0 || block >= columns.last - columns.first) continue;
    const float scale = quant_scale(amax, p.ue8m0);
    *(uint2 *)(x + (block * kTokens + row) * 128 + (((c >> 4) ^ (row & 7)) << 4) + (c & 15)) = pack_e4m3x8(v, 1.0f / scale);
    if (c == 0) xs[block][row] = scale;
  }
  async_fence();
  group_sync<kWorkers>(1);
}

// 32 latent columns of all tokens: rows 32 * half of a tile of UK. q: [token][128], halves.
__device__ __forceinline__ void absorb_columns(const uint8_t *tile, float scale, int half_box, const __half *q, uint8_t *tiles, size_t token_bytes,
                                               int rows, int head) {
  const int lane = threadIdx.x % 32, g = lane / 4, t4 = lane % 4;
  float acc[2][1][4] = {};
#pragma unroll
  for (int half = 0; half < 2; half++) {
    uint32_t b[1][8];
    const uint4 *from = (const uint4 *)(q + g * kQueryPitch + half * 64 + t4 * 16);
    *(uint4 *)b[0] = from[0];
    *(uint4 *)(b[0] + 4) = from[1];
#pragma unroll
    for (int j = 0; j < 2; j++) tile_mma<1>(tile, half_box * 32 + j * 16 + g, t4, half, b, acc[j]);
  }
  // A lane has columns g and g + 8 of each 16 of two tokens; it stores a chunk of eight of one.
  uint32_t word[4];
#pragma unroll
  for (int c = 0; c < 4; c++) word[c] = turn_matrix(pack_bf16(acc[c / 2][0][c % 2 * 2] * scale, acc[c / 2][0][c % 2 * 2 + 1] * scale));
  turn_words(word);
  if (g < rows)
    *(uint4 *)(tiles + (size_t)g * token_bytes + (head % 64) * 128 + (((4 * half_box + t4) ^ (head & 7)) << 4)) =
        make_uint4(word[0], word[1], word[2], word[3]);
}

__global__ void __launch_bounds__(kThreads, 1) mla_queries_few_kernel(const Few f) {
  using Mma = WgmmaF8<kTokens>;
  DYNAMIC_SHARED(uint8_t, raw);
  __shared__ Ring ring;
  __shared__ float xs[kMostBlocks][kTokens], squares[kTokens][8], pe[kTokens][64];
  __shared__ float2 angles[kTokens][32];
  __shared__ __align__(16) __half query[kTokens * kQueryPitch];
  uint8_t *slots = raw + (1024 - smem_address(raw) % 1024) % 1024, *x = slots + f.slots * kSlot;
  const MlaPrepare &p = f.p.prepare;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, g = lane / 4, t4 = lane % 4;
  const int head = blockIdx.x / f.split, part = blockIdx.x % f.split, extra = (int)blockIdx.x - f.p.heads * f.split;
  depend_launch();
  if (extra >= 0) {
    for (int row = extra + f.extra * warp; row < f.rows; row += f.extra * (kThreads / 32)) put_key(p, row);
    return;
  }
  if (tid == 0) {
    for (int i = 0; i < f.slots; i++) {
      mbar_init(&ring.full[i], 1);
      mbar_init(&ring.empty[i], 4);
    }
    mbar_init_fence();
  }
  __syncthreads();
  const Columns columns(p.q_lora / 128, f.split, part);
  const int products = 3 * columns.pairs;
  if (warp == kWorkers / 32) {
    if (lane == 0) produce(f, columns, head, part, slots, &ring);
    return;
  }
  for (int i = tid; part == 0 && i < f.rows * 32; i += kWorkers) angles[i / 32][i % 32] = angle_of(p.rope, p.step.position[i / 32], i % 32);
  norm_rows_to(f, columns, x, xs, squares);

  const int block = warp / 4; // 64 of the head's outputs
  float sum[kWords];
#pragma unroll
  for (int j = 0; j < kWords; j++) sum[j] = 0;
  for (int i = 0; i < columns.pairs; i++) {
    const int l = 3 * i + block, s = l % f.slots, begin = columns.begin(i), at = 2 * (columns.pair + i) - columns.first;
    const uint8_t *w = slots + s * kSlot;
    float acc[kWords], acc2[kWords];
    mbar_wait(&ring.full[s], l / f.slots & 1);
    const float2 ws = *(const float2 *)(w + kPairScales);
    keep_registers(acc);
    keep_registers(acc2);
    wgmma_fence();
    if (columns.end(i) - begin == 2) { // both tiles at once
      tile_group<Mma>(acc, w, x + at * kTokens * 128, 0);
      tile_group<Mma>(acc2, w + kTileBytes, x + (at + 1) * kTokens * 128, 0);
      wgmma_wait<0>();
      keep_registers(acc);
      keep_registers(acc2);
      promote(sum, acc, ws.x, xs[at], t4);
      promote(sum, acc2, ws.y, xs[at + 1], t4);
    } else {
      tile_group<Mma>(acc, w + begin * kTileBytes, x + (at + begin) * kTokens * 128, 0);
      wgmma_wait<0>();
      keep_registers(acc);
      promote(sum, acc, begin ? ws.y : ws.x, xs[at + begin], t4);
    }
    __syncwarp();
    if (lane == 0) mbar_arrive(&ring.empty[s]);
  }
  if (f.split > 1) {
    float *inbox = f.p.partial + (size_t)head * f.split * kPartialFloats + tid * 4;
    const int takers = block < 2 ? f.split : 1; // the roped part is the first one's
    for (int to = 0; to < takers; to++)
      give_partial<kWords, kWorkers * 4>(inbox + (size_t)to * kPartialFloats + part * kWords * kWorkers, sum);
    if (part < takers) {
#pragma unroll
      for (int j = 0; j < kWords; j++) sum[j] = 0;
      take_partials<kWords, kMostSplit>(inbox + (size_t)part * kPartialFloats, f.split, (size_t)kWorkers * 4, sum, f.p.waits);
    }
  }
  // As bf16, which is what another linear would leave.
  const int n = warp % 8 * 16 + g;
#pragma unroll
  for (int j = 0; j < kWords; j++) {
    const int token = j / 4 * 8 + 2 * t4 + j % 2, row = n + j % 4 / 2 * 8;
    const float v = __bfloat162float(__float2bfloat16(sum[j]));
    if (block < 2) query[token * kQueryPitch + row] = __float2half(v);
    else pe[token][row] = v;
  }
  group_sync<kWorkers>(1);
  const int blocks = (f.p.heads + 63) / 64, boxes = 8 / f.split;
  const size_t token_bytes = (size_t)blocks * 9 * 8192;
  uint8_t *out = f.p.tiles + (size_t)(head / 64) * 9 * 8192;
  for (int u = warp; u < 2 * boxes; u += kWorkers / 32) {
    const int l = products + u / 4, s = l % f.slots;
    const uint8_t *pair = slots + s * kSlot;
    mbar_wait(&ring.full[s], l / f.slots & 1);
    absorb_columns(pair + u / 2 % 2 * kTileBytes, *(const float *)(pair + kPairScales + u / 2 % 2 * 4), u % 2, query,
                               out + (size_t)(part * boxes + u / 2) * 8192, token_bytes, f.rows, head);
  }
  for (int i = kWorkers - 1 - tid; part == 0 && i < f.rows * 32; i += kWorkers) { // the last warps have less to do
    const int to = i / 32, k = i % 32, a = p.rope.interleaved ? 2 * k : k, c = p.rope.interleaved ? 2 * k + 1 : k + 32;
    const float2 cs = angles[to][k];
    uint8_t *at = out + (size_t)to * token_bytes + 8 * 8192 + (head % 64) * 128;
    *(bf16 *)(at + ((a / 8 ^ (head & 7)) << 4) + (a & 7) * 2) = __float2bfloat16(pe[to][a] * cs.x - pe[to][c] * cs.y);
    *(bf16 *)(at + ((c / 8 ^ (head & 7)) << 4) + (c & 7) * 2) = __float2bfloat16(pe[to][c] * cs.x + pe[to][a] * cs.y);
  }
}

} // namespace

bool mla_queries_few_serves(const MlaPrepare &p, const Matrix &q_b, int rows) {
  return rows <= kFewQueries && q_b.kind == Weights::F8 && p.q_lora > 0 && p.q_lora <= 128 * kMostBlocks && p.q_lora % 256 == 0 &&
         kWorkers % (p.q_lora / 8) == 0 && q_b.k == p.q_lora && p.kv_lora == 512 && p.rope_dim == 64 && p.rope.dim == 64 && p.lda % 8 == 0 &&
         p.kv_at % 8 == 0;
}

void mla_queries_few(const MlaQueriesFew &p, int rows, cudaStream_t stream) {
  const int blocks = p.prepare.q_lora / 128;
  Few f = {p, rows, kMostSplit, 0, 0};
  while (f.split > 1 && (p.heads * f.split > p.sms || blocks % f.split)) f.split /= 2;
  const int left = p.sms - p.heads * f.split;
  f.extra = left < 1 ? 1 : left < rows ? left : rows;
  const int each = blocks / f.split, loads = 3 * (each / 2 + each % 2) + 4 / f.split;
  f.slots = loads < kMostSlots ? loads : kMostSlots;
  launch(mla_queries_few_kernel, p.heads * f.split + f.extra, kThreads, shared_bytes(f.slots, each), stream, f);
}

void mla_few_prepare() {
  cudaFuncSetAttribute(mla_queries_few_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes(kMostSlots, kMostBlocks));
}

} // namespace mob
