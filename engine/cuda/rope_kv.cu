// From projections to cache and queries: norms of the latent parts (MLA) or of heads (q/k norm), rotary position, the write
// into the paged cache. One CTA a row; padding rows (table -1) write nothing to the cache.
#include "attention_gqa.cuh"
#include "norm.cuh"
#include "norm_shard.h"
#include "rope.cuh"

namespace mob {
namespace {

__device__ __forceinline__ uint8_t *cache_page(uint8_t *cache, const StepRows &step, int row, int width) {
  const int table = step.table[row];
  return table < 0 || (step.waits && halted(step.waits)) ? nullptr : cache + (size_t)step.pages[table + step.position[row] / 64] * page_bytes(width);
}

__global__ void __launch_bounds__(256) mla_prepare_kernel(const MlaPrepare p) {
  __shared__ float scratch[33];
  __shared__ float pe[256];
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, width = p.kv_lora + p.rope_dim;
  const bf16 *a = p.a + (size_t)row * p.lda;
  if (blockIdx.y == 1) { // the query's part
    float square = 0;
    for (int c = threadIdx.x; c < p.q_lora; c += 256) {
      const float v = __bfloat162float(a[c]) + (p.a_bias ? p.a_bias[c] : 0);
      square += v * v;
    }
    const float factor = rsqrtf(block_sum(square, scratch) / p.q_lora + p.eps);
    for (int from = 0; from < p.q_k; from += 256 * 8) {
      const int col = from + threadIdx.x * 8;
      float v[8];
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const int c = col + i;
        v[i] = c < p.q_lora ? (__bfloat162float(a[c]) + (p.a_bias ? p.a_bias[c] : 0)) * factor * p.q_norm[c] : 0;
      }
      put_record(p.q, row, col, v, p.ue8m0, col < p.q_k);
    }
    return;
  }
  uint8_t *page = cache_page(p.cache, p.step, row, width);
  const int position = p.step.position[row], offset = position % 64;
  const bf16 *kv = a + p.kv_at;
  const float *bias = p.a_bias ? p.a_bias + p.kv_at : nullptr;
  float square = 0;
  for (int c = threadIdx.x; c < p.kv_lora; c += 256) {
    const float v = __bfloat162float(kv[c]) + (bias ? bias[c] : 0);
    square += v * v;
  }
  const float factor = rsqrtf(block_sum(square, scratch) / p.kv_lora + p.eps);
  if (!page) return;
  for (int c = threadIdx.x; c < p.kv_lora; c += 256) {
    const float v = __bfloat162float(kv[c]) + (bias ? bias[c] : 0);
    *(bf16 *)(page + page_offset(offset, c)) = __float2bfloat16(p.kv_norm[c] * (v * factor));
  }
  const int half = p.rope.dim / 2;
  for (int c = threadIdx.x; c < p.rope_dim && c < 256; c += 256)
    pe[c] = __bfloat162float(kv[p.kv_lora + c]) + (bias ? bias[p.kv_lora + c] : 0);
  __syncthreads();
  for (int k = threadIdx.x; k < half; k += 256) {
    const int u = p.rope.interleaved ? 2 * k : k, w = p.rope.interleaved ? 2 * k + 1 : k + half;
    const float2 cs = angle_of(p.rope, position, k);
    *(bf16 *)(page + page_offset(offset, p.kv_lora + u)) = __float2bfloat16(pe[u] * cs.x - pe[w] * cs.y);
    *(bf16 *)(page + page_offset(offset, p.kv_lora + w)) = __float2bfloat16(pe[w] * cs.x + pe[u] * cs.y);
  }
}

// The same for up to 2,048 columns in whole groups of eight, a group a thread, and without a chain of loads behind the wait.
constexpr int kWholeRow = 2048;

__global__ void __launch_bounds__(256) mla_prepare_whole_kernel(const MlaPrepare p) {
  __shared__ float scratch[33];
  depend_launch();
  const int row = blockIdx.x, tid = threadIdx.x, col = tid * 8;
  const bf16 *a = p.a + (size_t)row * p.lda;
  const bool query = blockIdx.y == 1;
  const int width = query ? p.q_lora : p.kv_lora, at = query ? 0 : p.kv_at;
  const float *norm = query ? p.q_norm : p.kv_norm;
  float w[8] = {}, bias[8] = {}, v[8] = {};
  if (col < width) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
      w[i] = norm[col + i];
      if (p.a_bias) bias[i] = p.a_bias[at + col + i];
    }
  }
  // Of the cache's part: its page, and a pair of rotated columns for each of the last threads.
  const int pair = tid - (256 - p.rope.dim / 2), u = p.rope.interleaved ? 2 * pair : pair, x = p.rope.interleaved ? u + 1 : u + p.rope.dim / 2;
  uint8_t *page = nullptr;
  int offset = 0;
  float2 turn = {};
  if (!query && p.step.table[row] >= 0) {
    const int position = p.step.position[row];
    offset = position % 64;
    page = p.cache + (size_t)p.step.pages[p.step.table[row] + position / 64] * page_bytes(p.kv_lora + p.rope_dim);
    if (pair >= 0) turn = angle_of(p.rope, position, pair);
  }
  depend_wait();
  if (page && p.step.waits && halted(p.step.waits)) page = nullptr;
  float2 two = {};
  if (page && pair >= 0) {
    const int from = p.kv_at + p.kv_lora;
    two = make_float2(__bfloat162float(a[from + u]) + (p.a_bias ? p.a_bias[from + u] : 0),
                      __bfloat162float(a[from + x]) + (p.a_bias ? p.a_bias[from + x] : 0));
  }
  if (col < width) unpack_bf16(*(const uint4 *)(a + at + col), v);
  float square = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    v[i] += bias[i];
    square += v[i] * v[i];
  }
  const float factor = rsqrtf(block_sum(square, scratch) / width + p.eps);
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = w[i] * (v[i] * factor);
  if (query) {
    put_record(p.q, row, col, v, p.ue8m0, col < p.q_k);
    return;
  }
  if (!page) return;
  auto put = [&](int column, auto word) { *(decltype(word) *)(page + page_offset(offset, column)) = word; };
  if (col < width) put(col, pack_bf16x8(v));
  if (pair < 0) return;
  put(width + u, __float2bfloat16(two.x * turn.x - two.y * turn.y));
  put(width + x, __float2bfloat16(two.y * turn.x + two.x * turn.y));
}

// The same of many rows: a warp has a row's queries or its part of the cache, so that an SM has dozens of rows on their way.
constexpr int kManyRows = 256, kLoads = kWholeRow / 256;

template <bool Shared> __global__ void __launch_bounds__(256) mla_prepare_many_kernel(const MlaPrepare p, const MlaShared to, int rows) {
  depend_launch();
  depend_wait();
  const int lane = threadIdx.x % 32, parts = p.q_lora ? 2 : 1, work = blockIdx.x * 8 + threadIdx.x / 32, query = work % parts;
  if (work / parts >= rows) return;
  const int row = (Shared ? to.first : 0) + work / parts, width = query ? p.q_lora : p.kv_lora, at = query ? 0 : p.kv_at;
  const bf16 *a = p.a + (size_t)row * p.lda + at;
  const float *norm = query ? p.q_norm : p.kv_norm, *bias = p.a_bias ? p.a_bias + at : nullptr;
  auto biased = [&](uint4 raw, int col, float(&v)[8]) {
    unpack_bf16(raw, v);
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (bias && col < width) v[i] += bias[col + i];
  };
  uint4 raw[kLoads]; // all on their way at once; later they are read again, from the L1
  float square = 0;
#pragma unroll
  for (int j = 0; j < kLoads; j++) {
    const int col = j * 256 + lane * 8;
    raw[j] = col < width ? *(const uint4 *)(a + col) : make_uint4(0, 0, 0, 0);
  }
#pragma unroll
  for (int j = 0; j < kLoads; j++) {
    float v[8];
    biased(raw[j], j * 256 + lane * 8, v);
#pragma unroll
    for (int i = 0; i < 8; i++) square += v[i] * v[i];
  }
  const float factor = rsqrtf(warp_sum(square) / width + p.eps);
  const int position = p.step.position[row], offset = position % 64;
  uint8_t *page = query ? nullptr : cache_page(p.cache, p.step, row, p.kv_lora + p.rope_dim);
  if (!query && !page) return;
  auto put = [&](int column, auto word) {
    uint8_t *at = page + page_offset(offset, column);
    if (Shared) put_all(to.cache, to.ranks, at, word);
    else *(decltype(word) *)at = word;
  };
#pragma unroll 1
  for (int from = 0; from < (query ? p.q_k : width); from += 256) {
    const int col = from + lane * 8;
    float v[8];
    biased(col < width ? *(const uint4 *)(a + col) : make_uint4(0, 0, 0, 0), col, v);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = col < width ? norm[col + i] * (v[i] * factor) : 0;
    if (query) {
      put_record_by(record_row(p.q, row), col, v, p.ue8m0, col < p.q_k, [&](uint8_t *at, auto word) {
        if (Shared) put_all(to.q, to.ranks, at, word);
        else *(decltype(word) *)at = word;
      });
    } else if (col < width) {
      put(col, pack_bf16x8(v));
    }
  }
#pragma unroll 1
  for (int pair = lane; !query && pair < p.rope.dim / 2; pair += 32) {
    const int u = p.rope.interleaved ? 2 * pair : pair, x = p.rope.interleaved ? u + 1 : u + p.rope.dim / 2;
    const float2 turn = angle_of(p.rope, position, pair);
    const float a0 = __bfloat162float(a[width + u]) + (bias ? bias[width + u] : 0), a1 = __bfloat162float(a[width + x]) + (bias ? bias[width + x] : 0);
    put(width + u, __float2bfloat16(a0 * turn.x - a1 * turn.y));
    put(width + x, __float2bfloat16(a1 * turn.x + a0 * turn.y));
  }
}

bool whole_rows(const MlaPrepare &p) {
  const int sizes = p.lda | p.q_lora | p.kv_at | p.kv_lora;
  return sizes % 8 == 0 && p.q_k <= kWholeRow && p.kv_lora <= kWholeRow && p.rope_dim == p.rope.dim && p.rope.dim <= 256;
}

// A warp takes a head: of q in place, of k and v into the cache.
__global__ void __launch_bounds__(256) gqa_prepare_kernel(const GqaPrepare p) {
  __shared__ float heads[8][256];
  depend_launch();
  depend_wait();
  const int row = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x % 32, half = p.rope.dim / 2;
  const int position = p.step.position[row], offset = position % 64;
  uint8_t *page = cache_page(p.cache, p.step, row, p.width);
  float *x = heads[warp];
  for (int h = warp; h < p.heads + 2 * p.kv_heads; h += 8) {
    const int kind = h < p.heads ? 0 : h < p.heads + p.kv_heads ? 1 : 2, head = kind == 0 ? h : (h - p.heads) % p.kv_heads;
    bf16 *from = kind == 0 ? p.q + (size_t)row * p.ldq : kind == 1 ? p.k + (size_t)row * p.ldk : p.v + (size_t)row * p.ldv;
    const float *bias = kind == 0 ? p.q_bias : kind == 1 ? p.k_bias : p.v_bias;
    const float *norm = kind == 0 ? p.q_norm : kind == 1 ? p.k_norm : nullptr;
    from += head * p.head_dim;
    if (bias) bias += head * p.head_dim;
    __syncwarp();
    float square = 0;
    for (int c = lane; c < p.head_dim; c += 32) {
      x[c] = __bfloat162float(from[c]) + (bias ? bias[c] : 0);
      square += x[c] * x[c];
    }
    if (norm) {
      const float factor = rsqrtf(warp_sum(square) / p.head_dim + p.eps);
      for (int c = lane; c < p.head_dim; c += 32) x[c] = norm[c] * (x[c] * factor);
    }
    __syncwarp();
    if (kind < 2) {
      for (int k = lane; k < half; k += 32) {
        const int a = p.rope.interleaved ? 2 * k : k, b = p.rope.interleaved ? 2 * k + 1 : k + half;
        const float2 cs = angle_of(p.rope, position, k);
        const float u = x[a], w = x[b];
        x[a] = u * cs.x - w * cs.y;
        x[b] = w * cs.x + u * cs.y;
      }
      __syncwarp();
    }
    const int at = (2 * head + (kind == 2)) * p.head_dim;
    for (int c = lane; c < p.head_dim; c += 32) {
      if (kind == 0) from[c] = __float2bfloat16(x[c]);
      else if (page) *(bf16 *)(page + page_offset(offset, at + c)) = __float2bfloat16(x[c]);
    }
  }
}

// The same for heads of 64 or 128 that rotate as a whole: a warp has a head.
template <int Dim>
__global__ void __launch_bounds__(256) gqa_prepare_fast_kernel(const GqaPrepare p, const int *tile_row, uint8_t *tiles, const HeadsOut out) {
  constexpr int kColumns = Dim / 32;
  depend_launch();
  const int row = blockIdx.x, lane = threadIdx.x % 32, h = blockIdx.y * 8 + threadIdx.x / 32, col = lane * kColumns;
  const int position = p.step.position[row], group = p.heads / p.kv_heads;
  const bool padding = p.step.table[row] < 0;
  const int kind = h < p.heads ? 0 : h < p.heads + p.kv_heads ? 1 : 2, head = kind == 0 ? h : (h - p.heads) % p.kv_heads;
  __shared__ HeadTurns<Dim> turns;
  turns.compute(p.rope, position, threadIdx.x);
  __syncthreads();
  depend_wait();
  if (padding) { // linears compute these rows too: they must be numbers
    if (blockIdx.y == 0) clear_columns(out, row, 0, threadIdx.x, 256);
    return;
  }
  if (h >= p.heads + 2 * p.kv_heads) return;
  bf16 *from = (kind == 0 ? p.q + (size_t)row * p.ldq : kind == 1 ? p.k + (size_t)row * p.ldk : p.v + (size_t)row * p.ldv) + head * Dim;
  const float *bias = kind == 0 ? p.q_bias : kind == 1 ? p.k_bias : p.v_bias;
  float x[kColumns];
  head_load<Dim>(from, bias ? bias + head * Dim : nullptr, x);
  if (kind < 2) head_turn<Dim>(kind == 0 ? p.q_norm : p.k_norm, p.eps, p.rope.interleaved, turns, x);
  uint8_t *to;
  if (kind == 0) {
    const int tile = tile_row ? tile_row[row] : -1, chunk = col / 8, within = col % 8 * 2;
    if (tile < 0) to = (uint8_t *)(from + ((chunk ^ (head % group & 7)) * 8)) + within;
    else
      to = tiles + (((size_t)(tile / 64) * p.heads + head) * (Dim / 64) + chunk / 8) * 8192 + tile % 64 * 128 +
           ((chunk % 8 ^ (tile & 7)) << 4) + within;
    __syncwarp(); // its chunks change places
  } else {
    uint8_t *page = cache_page(p.cache, p.step, row, p.width);
    if (!page) return;
    to = page + page_offset(position % 64, (2 * head + (kind == 2)) * Dim + col);
  }
  head_store<Dim>(to, x);
}

} // namespace

void gqa_prepare_fast(const GqaPrepare &p, const int *tile_row, uint8_t *tiles, const HeadsOut &out, int rows, cudaStream_t stream) {
  const dim3 grid(rows, (p.heads + 2 * p.kv_heads + 7) / 8);
  if (p.head_dim == 128) launch(gqa_prepare_fast_kernel<128>, grid, 256, 0, stream, p, tile_row, tiles, out);
  else launch(gqa_prepare_fast_kernel<64>, grid, 256, 0, stream, p, tile_row, tiles, out);
}

static int many_ctas(const MlaPrepare &p, int rows) { return (rows * (p.q_lora ? 2 : 1) + 7) / 8; }
void mla_prepare(const MlaPrepare &p, int rows, cudaStream_t stream) {
  const dim3 grid(rows, p.q_lora ? 2 : 1);
  if (whole_rows(p) && rows > kManyRows) launch(mla_prepare_many_kernel<false>, many_ctas(p, rows), 256, 0, stream, p, MlaShared(), rows);
  else if (whole_rows(p)) launch(mla_prepare_whole_kernel, grid, 256, 0, stream, p);
  else launch(mla_prepare_kernel, grid, 256, 0, stream, p);
}
bool mla_prepare_can_share(const MlaPrepare &p) { return p.q_lora && whole_rows(p); }
void mla_prepare_shared(const MlaPrepare &p, const MlaShared &to, cudaStream_t stream) {
  if (to.rows) launch(mla_prepare_many_kernel<true>, many_ctas(p, to.rows), 256, 0, stream, p, to, to.rows);
}
void gqa_prepare(const GqaPrepare &p, int rows, cudaStream_t stream) { launch(gqa_prepare_kernel, rows, 256, 0, stream, p); }

} // namespace mob
