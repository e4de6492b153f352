// Which instance of the kernel for few tokens computes a linear.
#include "linear_few.cuh"

#include "best.h"

namespace mob {
namespace {

template <bool Fp8, int Tokens, bool F32> void set_limit() {
  cudaFuncSetAttribute(linear_few_kernel<Fp8, Tokens, F32>, cudaFuncAttributeMaxDynamicSharedMemorySize, LinearFewShared<Fp8, Tokens>::kBytes);
}

template <bool Fp8, int Tokens, bool F32> void few(const LinearFew &p, int sms, cudaStream_t stream) {
  using S = LinearFewShared<Fp8, Tokens>;
  launch(linear_few_kernel<Fp8, Tokens, F32>, sms, S::kThreads, S::kBytes, stream, p);
}

template <bool Fp8, bool F32> void few_by_rows(const LinearFew &p, int sms, cudaStream_t stream) {
  if (p.m <= 8) few<Fp8, 8, F32>(p, sms, stream);
  else few<Fp8, 16, F32>(p, sms, stream);
}

LinearFew params(const Matrix &w, const Records &x, void *y, int ldy, int m, const LinearScratch &s) {
  LinearFew p = {};
  p.w = w.data;
  p.x = x.data;
  p.mp = x.mp;
  p.y = y;
  p.ldy = ldy;
  p.partial = s.partial;
  p.m = m;
  p.n = w.n;
  p.pairs = p.w_pairs = (int)column_pairs(w);
  p.waits = s.waits;
  p.min_run = 2;
  return p;
}

} // namespace

void linear_few_prepare() {
  set_limit<true, 8, false>();
  set_limit<true, 16, false>();
  set_limit<false, 8, false>();
  set_limit<false, 16, false>();
  set_limit<false, 8, true>();
  set_limit<false, 16, true>();
}

void linear_few(const Matrix &w, const Records &x, void *y, int ldy, bool f32, int m, int x_parts, const LinearScratch &s,
                cudaStream_t stream) {
  LinearFew p = params(w, x, y, ldy, m, s);
  p.pairs *= x_parts;
  // A short matrix with many columns is summed from few runs: each is more for the first CTA to add.
  if (w.n <= 256) p.min_run = 10;
  if (w.kind == Weights::F8) few_by_rows<true, false>(p, s.sms, stream);
  else if (f32) few_by_rows<false, true>(p, s.sms, stream);
  else few_by_rows<false, false>(p, s.sms, stream);
}

RowKeys linear_few_best(const Matrix &w, const Records &x, unsigned long long *keys, int m, const LinearScratch &s, cudaStream_t stream) {
  LinearFew p = params(w, x, nullptr, 0, m, s);
  p.best = keys;
  few_by_rows<false, true>(p, s.sms, stream);
  return {keys, s.sms};
}

void linear_few_gated(const Matrix &w, int inter, int up_at, const Records &x, const Records &act, int m, const LinearScratch &s,
                      cudaStream_t stream) {
  LinearFew p = params(w, x, act.data, 0, m, s);
  p.n = 2 * inter;
  p.up_block = up_at / kTileRows;
  p.act_rows = act.mp;
  few_by_rows<false, false>(p, s.sms, stream);
}

void linear_experts_few(const Matrix &w, const int *experts, const int *active, const Records &x, size_t x_stride, bf16 *y, int m,
                        int first_shared, int shared, const LinearScratch &s, cudaStream_t stream) {
  LinearFew p = params(w, x, y, w.n, m, s);
  p.w_stride = w.stride;
  p.experts = experts;
  p.active = active;
  p.x_stride = x_stride;
  p.first_shared = first_shared;
  p.shared = shared;
  if (w.kind == Weights::F8) few_by_rows<true, false>(p, s.sms, stream);
  else few_by_rows<false, false>(p, s.sms, stream);
}

} // namespace mob
