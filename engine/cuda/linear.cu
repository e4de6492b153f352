// Which kernel computes a linear: by its weights' kind and the number of tokens.
#include "kernels.h"
#include "linear_few.cuh"

namespace mob {
namespace {

template <class K> void limit(K kernel, int bytes) {
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

template <bool Fp8, int Tokens, bool F32> void many(const LinearMany &p, int sms, cudaStream_t stream) {
  launch(linear_many_kernel<Fp8, Tokens, F32>, sms, 384, LinearManyShared<Fp8, Tokens>::kBytes, stream, p);
}

template <bool Fp8, bool F32> void many_by_tile(const LinearMany &p, int tile, int sms, cudaStream_t stream) {
  if (tile <= 16) many<Fp8, 16, F32>(p, sms, stream);
  else if (tile <= 32) many<Fp8, 32, F32>(p, sms, stream);
  else if (tile <= 64) many<Fp8, 64, F32>(p, sms, stream);
  else many<Fp8, 128, F32>(p, sms, stream);
}

void few(const LinearFew &p, const LinearScratch &s, cudaStream_t stream) {
  const dim3 threads((kFewConsumers + 1) * 32);
  if (p.m <= 8) launch(linear_few_kernel<1>, s.sms, threads, LinearFewShared<1>::kBytes, stream, p);
  else launch(linear_few_kernel<2>, s.sms, threads, LinearFewShared<2>::kBytes, stream, p);
}

} // namespace

void linear_prepare() {
  limit(linear_few_kernel<1>, LinearFewShared<1>::kBytes);
  limit(linear_few_kernel<2>, LinearFewShared<2>::kBytes);
  limit(linear_many_kernel<true, 16, false>, LinearManyShared<true, 16>::kBytes);
  limit(linear_many_kernel<true, 32, false>, LinearManyShared<true, 32>::kBytes);
  limit(linear_many_kernel<true, 64, false>, LinearManyShared<true, 64>::kBytes);
  limit(linear_many_kernel<true, 128, false>, LinearManyShared<true, 128>::kBytes);
  limit(linear_many_kernel<false, 16, false>, LinearManyShared<false, 16>::kBytes);
  limit(linear_many_kernel<false, 32, false>, LinearManyShared<false, 32>::kBytes);
  limit(linear_many_kernel<false, 64, false>, LinearManyShared<false, 64>::kBytes);
  limit(linear_many_kernel<false, 128, false>, LinearManyShared<false, 128>::kBytes);
  limit(linear_many_kernel<false, 16, true>, LinearManyShared<false, 16>::kBytes);
  limit(linear_many_kernel<false, 32, true>, LinearManyShared<false, 32>::kBytes);
  limit(linear_many_kernel<false, 64, true>, LinearManyShared<false, 64>::kBytes);
  limit(linear_many_kernel<false, 128, true>, LinearManyShared<false, 128>::kBytes);
}

void linear(const Matrix &w, const Records &x, void *y, int ldy, bool f32, int m, int x_parts, const LinearScratch &s,
            cudaStream_t stream) {
  const bool fp8 = w.kind == Weights::F8;
  if (fp8 && m <= kFewTokens && ldy == w.n && x.mp == padded_rows(m) && x_parts == 1) {
    few({w.data, 0, nullptr, nullptr, x.data, 0, (bf16 *)y, s.few, m, w.n, w.k}, s, stream);
    return;
  }
  const int kb = (int)column_blocks(w);
  const LinearMany p = {w.data, 0, nullptr, nullptr, x.data, x.mp, y, ldy, s.partial, s.flags, m, w.n, kb * x_parts, kb};
  // Tiles of 64 tokens only where they leave no more than half of a tile empty.
  const int tile = m <= 16 ? 16 : m <= 32 ? 32 : m <= 64 ? 64 : 128;
  if (fp8) many_by_tile<true, false>(p, tile, s.sms, stream);
  else if (f32) many_by_tile<false, true>(p, tile, s.sms, stream);
  else many_by_tile<false, false>(p, tile, s.sms, stream);
}

void linear_experts_few(const Matrix &w, const int *experts, const int *active, const Records &x, size_t x_stride, bf16 *y,
                        int m, const LinearScratch &s, cudaStream_t stream) {
  few({w.data, w.stride, experts, active, x.data, x_stride, y, s.few, m, w.n, w.k}, s, stream);
}

void linear_segments(const Matrix &w, const Segment *segments, const int *count, const Records &x, bf16 *y, int tile,
                     const LinearScratch &s, cudaStream_t stream) {
  const int kb = (int)column_blocks(w);
  const LinearMany p = {w.data, w.stride, segments, count, x.data, x.mp, y, w.n, s.partial, s.flags, 0, w.n, kb, kb};
  if (w.kind == Weights::F8) many_by_tile<true, false>(p, tile, s.sms, stream);
  else many_by_tile<false, false>(p, tile, s.sms, stream);
}

} // namespace mob
