// Which kernel computes a dense linear, and which instance: by its weights' kind and the number of tokens.
#include "best.h"
#include "experts_few.h"
#include "linear_short.h"
#include "norm_shard.h"
#include "route_many.h"
#include "linear_wide_b16.cuh"

namespace mob {
namespace {

template <bool Fp8, int Tokens> void set_limit() {
  cudaFuncSetAttribute(linear_many_kernel<Fp8, Tokens>, cudaFuncAttributeMaxDynamicSharedMemorySize, LinearManyShared<Fp8, Tokens>::kBytes);
}

template <bool Fp8, int Tokens> void many(const LinearMany &p, int sms, cudaStream_t stream) {
  launch(linear_many_kernel<Fp8, Tokens>, sms, 384, LinearManyShared<Fp8, Tokens>::kBytes, stream, p);
}

void many_by_tile(const LinearMany &p, int tile, int sms, cudaStream_t stream) {
  if (tile <= 32) many<true, 32>(p, sms, stream);
  else if (tile <= 64) many<true, 64>(p, sms, stream);
  else if (tile <= 80) many<true, 80>(p, sms, stream);
  else if (tile <= 96) many<true, 96>(p, sms, stream);
  else many<true, 128>(p, sms, stream);
}

// bf16 of more rows: linear_wide_b16. With so few, activations take little of the way to the SMs, and no cluster is to be waited for.
constexpr int kManyB16 = 32;

} // namespace

void linear_prepare() {
  linear_few_prepare();
  linear_whole_prepare();
  experts_few_prepare();
  linear_narrow_prepare();
  linear_wide_prepare();
  linear_wide_b16_prepare();
  linear_segments_prepare();
  linear_short_prepare();
  router_many_prepare();
  set_limit<true, 32>();
  set_limit<true, 64>();
  set_limit<true, 80>();
  set_limit<true, 96>();
  set_limit<true, 128>();
  set_limit<false, kManyB16>();
}

// FP8: above this many tokens the tensor cores are the bound of all but short matrices, not the weights' bytes.
static bool is_wide(const Matrix &w, int m) { return m > 96 && w.n > 256; }

// What the kernels' parameters have in common.
template <class Params> static Params params(const Matrix &w, const Records &x, void *y, int m, int n, const LinearScratch &s) {
  Params p = {};
  p.w = w.data;
  p.x = x.data;
  p.mp = x.mp;
  p.y = y;
  p.partial = s.partial;
  p.waits = s.waits;
  p.m = m;
  p.n = n;
  p.pairs = p.w_pairs = (int)column_pairs(w);
  return p;
}

void linear(const Matrix &w, const Records &x, void *y, int ldy, bool f32, int m, int x_parts, const LinearScratch &s,
            cudaStream_t stream) {
  if (m <= kFewRows) {
    if (!f32 && x_parts == 1 && linear_narrow_serves(w, m, s.sms)) linear_narrow(w, x, (bf16 *)y, ldy, m, stream);
    else if (!f32 && x_parts == 1 && linear_whole_serves(w, m, s.sms)) linear_whole(w, x, (bf16 *)y, ldy, m, s.sms, stream);
    else linear_few(w, x, y, ldy, f32, m, x_parts, s, stream);
    return;
  }
  if (!f32 && x_parts == 1 && linear_short(w, x, y, ldy, m, s, stream)) return;
  const bool f8 = w.kind == Weights::F8;
  if (f8 ? is_wide(w, m) : f32 || m > kManyB16) {
    LinearWide p = params<LinearWide>(w, x, y, m, w.n, s);
    p.ldy = ldy;
    p.pairs *= x_parts;
    if (f8) linear_wide(p, s.sms, stream);
    else linear_wide_b16({p}, f32 ? WideOut::kFloats : WideOut::kRows, s.sms, stream);
    return;
  }
  LinearMany p = params<LinearMany>(w, x, y, m, w.n, s);
  p.ldy = ldy;
  p.pairs *= x_parts;
  // A short matrix with many columns is summed from few runs: each costs the first CTA a trip through the L2.
  p.min_run = w.n <= 256 ? 10 : 3;
  if (f8) many_by_tile(p, m <= 96 ? m : 128, s.sms, stream);
  else many<false, kManyB16>(p, s.sms, stream);
}

RowKeys linear_best(const Matrix &w, const Records &x, unsigned long long *keys, int m, const LinearScratch &s, cudaStream_t stream) {
  if (m <= kFewRows) return linear_few_best(w, x, keys, m, s, stream);
  LinearWideB16 p = {params<LinearWide>(w, x, nullptr, m, w.n, s)};
  p.best = keys;
  return {keys, linear_wide_b16(p, WideOut::kBest, s.sms, stream)};
}

bool linear_can_send(const Matrix &w, int m) { return w.kind == Weights::F8 && w.n % kTileRows == 0 && is_wide(w, m); }

void linear_parts(const Matrix &w, const Records &x, const PartsOut &to, int m, const LinearScratch &s, cudaStream_t stream) {
  LinearWide p = params<LinearWide>(w, x, nullptr, m, w.n, s);
  p.ldy = w.n;
  linear_wide(p, s.sms, stream, to);
}

bool linear_can_gate(const Matrix &w, int64_t inter, int up_at, int act_k) {
  return w.kind == Weights::B16 && inter % 128 == 0 && up_at % kTileRows == 0 && act_k == inter;
}

void linear_gated(const Matrix &w, int inter, int up_at, const Records &x, const Records &act, int m, const LinearScratch &s,
                  cudaStream_t stream) {
  if (m <= kFewRows) {
    linear_few_gated(w, inter, up_at, x, act, m, s, stream);
    return;
  }
  if (m > kManyB16) {
    linear_wide_b16({params<LinearWide>(w, x, act.data, m, 2 * inter, s), up_at, act.mp}, WideOut::kGated, s.sms, stream);
    return;
  }
  LinearMany p = params<LinearMany>(w, x, act.data, m, 2 * inter, s);
  p.min_run = 3;
  p.up_block = up_at / kTileRows;
  p.act_rows = act.mp;
  many<false, kManyB16>(p, s.sms, stream);
}

void linear_kv_tiles(const Matrix &w, const Records &x, uint8_t *tiles, int key_blocks, int keys, const LinearScratch &s,
                     cudaStream_t stream) {
  if (is_wide(w, keys)) {
    LinearWide p = params<LinearWide>(w, x, tiles, keys, w.n, s);
    p.key_blocks = key_blocks;
    linear_wide(p, s.sms, stream);
    return;
  }
  LinearMany p = params<LinearMany>(w, x, tiles, keys, w.n, s);
  p.key_blocks = key_blocks;
  p.min_run = 2;
  many_by_tile(p, keys <= 64 ? 64 : 128, s.sms, stream);
}

} // namespace mob
