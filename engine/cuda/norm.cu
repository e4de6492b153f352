// What stands between two linears: the residual stream takes the results of the last one (a projection, or the weighted
// results of the experts), is normalised (x w / sqrt(mean(x^2) + eps), fp32) and leaves as records for the next one.
// One CTA a row.
#include "norm.cuh"

namespace mob {
namespace {

// Eight columns of a row of x with all that is added to it.
__device__ __forceinline__ void gather8(const NormIn &in, int row, const bf16 *begin, int col, float v[8]) {
  float u[8];
  if (begin) {
    unpack_bf16(*(const uint4 *)(begin + col), v);
    return;
  }
  load8((in.from ? in.from : in.x) + (size_t)row * in.hidden + col, v);
  if (in.add) {
    unpack_bf16(*(const uint4 *)(in.add + (size_t)row * in.hidden + col), u);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += u[i];
  }
  if (in.bias) {
    load8(in.bias + col, u);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += u[i];
  }
  if (in.expert_y) {
    float sum[8] = {};
    for (int j = 0; j < in.expert_slots; j++) {
      const int at = row * in.expert_slots + j;
      const float weight = in.expert_weight[at];
      unpack_bf16(*(const uint4 *)(in.expert_y + (size_t)in.expert_row[at] * in.hidden + col), u);
#pragma unroll
      for (int i = 0; i < 8; i++) sum[i] += weight * u[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += sum[i];
  }
}

template <bool Long, int Threads> __global__ void __launch_bounds__(Threads) norm_kernel(const NormIn in, const NormOut out, int width) {
  __shared__ float scratch[33];
  depend_launch();
  float w[8] = {}; // does not depend on the kernel before
  if (!Long && in.w && (int)threadIdx.x * 8 < in.hidden) load8(in.w + threadIdx.x * 8, w);
  depend_wait();
  const int r = blockIdx.x, row = in.rows ? in.rows[r] : r;
  const bf16 *begin = in.embed.part[0] ? embedded(in, row) : nullptr;
  const bool changed = begin || in.from || in.add || in.bias || in.expert_y;
  float *x = in.x + (size_t)row * in.hidden, v[8] = {}, square = 0;
  auto take = [&](int col) {
    gather8(in, row, begin, col, v);
    if (changed) store8(x + col, v);
#pragma unroll
    for (int k = 0; k < 8; k++) square += v[k] * v[k];
  };
  if (!Long && threadIdx.x * 8 < in.hidden) take(threadIdx.x * 8);
#pragma unroll 1
  for (int col = threadIdx.x * 8; Long && col < in.hidden; col += blockDim.x * 8) take(col);
  if (!in.w) return;
  const float factor = norm_factor(in, square, scratch);
  if (Long) put_long(in, out, r, x, width, factor);
  else put_normed(in, out, r, threadIdx.x * 8, factor, v, w);
}

constexpr int kManyRows = 512, kManyThreads = 896;

// Many rows to which a projection's results are added: two CTAs an SM, so that one's loads run while the other sums and stores. That leaves a
// thread 32 registers, for which weights come late.
__global__ void __launch_bounds__(kManyThreads, 2) norm_many_kernel(const NormIn in, const NormOut out) {
  __shared__ float scratch[33];
  depend_launch();
  depend_wait();
  const int r = blockIdx.x, row = in.rows ? in.rows[r] : r, col = threadIdx.x * 8;
  float *x = in.x + (size_t)row * in.hidden + col, v[8] = {}, square = 0;
  if (col < in.hidden) {
    float u[8];
    const uint4 added = *(const uint4 *)(in.add + (size_t)row * in.hidden + col);
    load8(x, v);
    unpack_bf16(added, u);
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] += u[k];
    store8(x, v);
#pragma unroll
    for (int k = 0; k < 8; k++) square += v[k] * v[k];
  }
  put_normed(in, out, r, col, norm_factor(in, square, scratch), v);
}
bool many_serves(const NormIn &in, int threads, int rows) {
  return rows > kManyRows && threads <= kManyThreads && in.w && in.add && !in.from && !in.bias && !in.expert_y && !in.embed.part[0];
}

__global__ void __launch_bounds__(256) pack_rows_kernel(const bf16 *x, int ld, int cols, const Records out, int k, bool ue8m0) {
  depend_launch();
  depend_wait();
  const int r = blockIdx.x;
  for (int from = 0; from < k; from += 256 * 8) {
    const int col = from + threadIdx.x * 8;
    float v[8] = {};
    if (col + 8 <= cols && ld % 8 == 0) {
      unpack_bf16(*(const uint4 *)(x + (size_t)r * ld + col), v);
    } else {
      for (int i = 0; i < 8; i++)
        if (col + i < cols) v[i] = __bfloat162float(x[(size_t)r * ld + col + i]);
    }
    put_record(out, r, col, v, ue8m0, col < k);
  }
}

} // namespace

void norm_rows(const NormIn &in, const NormOut &out, int rows, cudaStream_t stream) {
  const int width = norm_width(in, out), threads = norm_threads(width);
  if (many_serves(in, threads, rows)) launch(norm_many_kernel, rows, threads, 0, stream, in, out);
  else if (width > kShortRow) launch(norm_kernel<true, 1024>, rows, threads, 0, stream, in, out, width);
  else if (threads <= 896) launch(norm_kernel<false, 896>, rows, threads, 0, stream, in, out, width);
  else launch(norm_kernel<false, 1024>, rows, threads, 0, stream, in, out, width);
}

void pack_rows(const bf16 *x, int ld, int cols, const Records &out, int k, int m, bool ue8m0, cudaStream_t stream) {
  launch(pack_rows_kernel, m, 256, 0, stream, x, ld, cols, out, k, ue8m0);
}

} // namespace mob
