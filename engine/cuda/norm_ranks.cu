// norm.cu's work where a linear's results are partial, one part on each rank: the sum over ranks, the residual stream, the norm and
// the records in one kernel. Parts are bf16, summed in fp32 in the order of ranks: the residual stream has the same bits on all.
//   few rows   every rank sends its part of a row to all, each sums for itself: one trip
//   many rows  every rank sends its part to the row's owner, who sends the sum (as bf16) to all: two trips, but each part
//              travels once
// CTA b takes rows b, b + grid, ... on all ranks, and sends all it has before it waits: no wait depends on a CTA that could not begin.
#include <cstdlib>

#include "comm.cuh"
#include "norm.cuh"

namespace mob {
namespace {

struct Reduce {
  Peers peers;
  size_t inbox;     // byte of this collective's
  int row0, rows;
};

__device__ __forceinline__ int owner_of(const Reduce &c, int row) { return (row + row / (int)gridDim.x) % c.peers.ranks; }
// Of parts and sums: the place of a row's column, counted from `inbox`.
template <bool ByOwner> __device__ __forceinline__ size_t part_at(const NormIn &in, const Reduce &c, int rank, int row, int col) {
  const int each = ByOwner ? (c.rows + c.peers.ranks - 1) / c.peers.ranks : c.rows;
  return c.inbox + (((size_t)rank * each + (ByOwner ? row / c.peers.ranks : row)) * in.hidden + col) * 2;
}
__device__ __forceinline__ size_t sum_at(const NormIn &in, const Reduce &c, int row, int col) {
  const int parts = (c.rows + c.peers.ranks - 1) / c.peers.ranks * c.peers.ranks;
  return c.inbox + ((size_t)(parts + row) * in.hidden + col) * 2;
}

template <int Max, bool ByOwner> __device__ __forceinline__ void add_parts(const NormIn &in, const Reduce &c, int row, int col, float sum[8]) {
  uint4 parts[Max];
  take_all(c.peers, c.peers.inbox[0] + part_at<ByOwner>(in, c, 0, row, col),
           part_at<ByOwner>(in, c, 1, 0, 0) - part_at<ByOwner>(in, c, 0, 0, 0), c.peers.ranks, parts, 0);
  unpack_bf16(parts[0], sum);
#pragma unroll
  for (int r = 1; r < Max; r++) {
    if (r >= c.peers.ranks) break;
    float u[8];
    unpack_bf16(parts[r], u);
#pragma unroll
    for (int i = 0; i < 8; i++) sum[i] += u[i];
  }
}

template <int Max> __device__ __forceinline__ void send_all(const Peers &p, size_t at, uint4 word) {
#pragma unroll
  for (int i = 0; i < Max; i++)
    if (i < p.ranks) store_relaxed_sys(p.inbox[i] + at, word);
}

// Eight columns of x with all ranks' parts; x has them, too.
template <int Max, bool ByOwner> __device__ __forceinline__ void add_columns(const NormIn &in, const Reduce &c, int row, int col, float v[8]) {
  float *x = in.x + (size_t)(c.row0 + row) * in.hidden + col, u[8];
  if (ByOwner) {
    uint4 word[1];
    take_all(c.peers, c.peers.inbox[0] + sum_at(in, c, row, col), 0, 1, word, owner_of(c, row));
    unpack_bf16(word[0], v);
  } else {
    add_parts<Max, ByOwner>(in, c, row, col, v);
  }
  load8(x, u);
#pragma unroll
  for (int k = 0; k < 8; k++) v[k] += u[k];
  if (in.bias) {
    load8(in.bias + col, u);
#pragma unroll
    for (int k = 0; k < 8; k++) v[k] += u[k];
  }
  store8(x, v);
}

template <int Max, bool Long, int Threads, bool ByOwner>
__global__ void __launch_bounds__(Threads) norm_ranks_kernel(const NormIn in, const Reduce c, const NormOut out, int width) {
  __shared__ float scratch[33];
  depend_launch();
  depend_wait();
  const int columns = blockDim.x * 8;
  for (int row = blockIdx.x; row < c.rows; row += gridDim.x)
    for (int col = threadIdx.x * 8; col < in.hidden; col += columns) {
      const uint4 part = sealed(own_part(in, c.row0 + row, col));
      if (ByOwner) store_relaxed_sys(inbox_of(c.peers, owner_of(c, row)) + part_at<ByOwner>(in, c, c.peers.rank, row, col), part);
      else send_all<Max>(c.peers, part_at<ByOwner>(in, c, c.peers.rank, row, col), part);
    }
  for (int row = blockIdx.x; ByOwner && row < c.rows; row += gridDim.x) {
    if (owner_of(c, row) != c.peers.rank) continue;
    for (int col = threadIdx.x * 8; col < in.hidden; col += columns) {
      float sum[8];
      add_parts<Max, ByOwner>(in, c, row, col, sum);
      send_all<Max>(c.peers, sum_at(in, c, row, col), sealed(pack_bf16x8(sum)));
    }
  }
  for (int row = blockIdx.x; row < c.rows; row += gridDim.x) {
    float v[8] = {}, square = 0;
    auto take = [&](int col) {
      add_columns<Max, ByOwner>(in, c, row, col, v);
#pragma unroll
      for (int k = 0; k < 8; k++) square += v[k] * v[k];
    };
    if (!Long && threadIdx.x * 8 < in.hidden) take(threadIdx.x * 8);
#pragma unroll 1
    for (int col = threadIdx.x * 8; Long && col < in.hidden; col += columns) take(col);
    if (!in.w) continue;
    const int r = c.row0 + row;
    const float factor = norm_factor(in, square, scratch);
    if (Long) put_long(in, out, r, in.x + (size_t)r * in.hidden, width, factor);
    else put_normed(in, out, r, threadIdx.x * 8, factor, v);
  }
}

// Sending a part to all moves ranks - 1 times its bytes, by owner twice (ranks - 1) / ranks times; the second trip takes as long as
// about 1 MB on the way out of a GPU.
size_t one_trip_bytes() {
  static const char *wish = getenv("MOB_CUDA_ONE_TRIP"); // bytes more than by owner, for measurements
  return wish ? (size_t)strtoull(wish, nullptr, 10) : (size_t)1 << 20;
}
bool by_owner(int ranks, int rows, int hidden, size_t inbox_bytes) {
  const size_t part = (size_t)rows * (size_t)hidden * 2;
  if ((size_t)ranks * part > inbox_bytes) return true;
  return part * (size_t)(ranks - 1) * (size_t)(ranks - 2) / (size_t)ranks > one_trip_bytes();
}

template <int Max, bool ByOwner> void launch_ranks(const NormIn &in, const Reduce &c, const NormOut &out, int sms, cudaStream_t stream) {
  const int width = norm_width(in, out), threads = norm_threads(width), ranks = c.peers.ranks;
  // A multiple of the ranks, so that a CTA's rows have all owners in turn.
  const int wanted = (c.rows + ranks - 1) / ranks, most = sms < ranks ? 1 : sms / ranks, grid = (wanted < most ? wanted : most) * ranks;
  if (width > kShortRow) launch(norm_ranks_kernel<Max, true, 1024, ByOwner>, grid, threads, 0, stream, in, c, out, width);
  else if (threads <= 896) launch(norm_ranks_kernel<Max, false, 896, ByOwner>, grid, threads, 0, stream, in, c, out, width);
  else launch(norm_ranks_kernel<Max, false, 1024, ByOwner>, grid, threads, 0, stream, in, c, out, width);
}
template <int Max> void launch_way(bool owner, const NormIn &in, const Reduce &c, const NormOut &out, int sms, cudaStream_t stream) {
  if (owner) launch_ranks<Max, true>(in, c, out, sms, stream);
  else launch_ranks<Max, false>(in, c, out, sms, stream);
}

} // namespace

void norm_rows_ranks(const NormIn &in, const NormOut &out, const Peers &peers, int *turn, int rows, int sms, cudaStream_t stream) {
  for (int row = 0; row < rows; row += kReduceRows) {
    const Reduce c = {peers, (size_t)(*turn)++ % 2 * peers.at.reduce, row, rows - row < kReduceRows ? rows - row : kReduceRows};
    const bool owner = by_owner(peers.ranks, c.rows, in.hidden, peers.at.reduce);
    if (peers.ranks <= 2) launch_way<2>(owner, in, c, out, sms, stream);
    else if (peers.ranks <= 4) launch_way<4>(owner, in, c, out, sms, stream);
    else launch_way<8>(owner, in, c, out, sms, stream);
  }
}

} // namespace mob
