// Where linear_short serves, and how it cuts a matrix.
#include "linear_short.cuh"
#include "linear_short.h"

#include <algorithm>

namespace mob {
namespace {

struct Cutting {
  int cuts, lanes, rounds, pairs, w_slots; // pairs: of the longest range
  double us;
};

int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <int Tokens> bool cut(const Matrix &w, int m, int cuts, int sms, Cutting *out) {
  using S = LinearShortShared<Tokens>;
  const int blocks = w.n / kTileRows, pairs = (int)column_pairs(w);
  if (cuts > sms || cuts > pairs || cuts > S::kMostCuts) return false;
  const int lanes = std::min(blocks, sms / cuts), rounds = ceil_div(blocks, lanes), most = ceil_div(pairs, cuts);
  if (most > S::kMostPairs || (cuts > 1 && rounds > 1)) return false; // sums between rounds cost more than they gain
  const int left = (S::kMost - S::fixed_bytes(most, rounds)) / S::kW, slots = std::min({left / 2 * 2, S::kMostSlots, ceil_div(rounds * most, 2) * 2});
  if (slots < std::min(4, ceil_div(rounds * most, 2) * 2)) return false;
  // What comes from the L2 (45 KB a microsecond and SM), and a trip through it for partial sums.
  const double kb = rounds * most * 16.5 + most * 0.264 * m;
  *out = {cuts, lanes, rounds, most, slots, kb / 45 + (cuts > 1 ? 1.5 : 0)};
  return true;
}

template <int Tokens> void run(const Matrix &w, const Records &x, void *y, int ldy, int m, const Cutting &c, const LinearScratch &s, cudaStream_t stream) {
  using S = LinearShortShared<Tokens>;
  const LinearShort p = {w.data, x.data, x.mp, (bf16 *)y, ldy, s.partial, m, w.n / kTileRows, (int)column_pairs(w), c.cuts, c.w_slots, s.waits};
  launch(linear_short_kernel<Tokens>, c.lanes * c.cuts, S::kThreads, S::fixed_bytes(c.pairs, c.rounds) + c.w_slots * S::kW, stream, p);
}

// Calls f with the instance for m tokens.
template <class F> auto with_tokens(int m, F f) {
  if (m <= 32) return f(std::integral_constant<int, 32>());
  if (m <= 64) return f(std::integral_constant<int, 64>());
  if (m <= 80) return f(std::integral_constant<int, 80>());
  return f(std::integral_constant<int, 96>());
}

bool serves(const Matrix &w, const Records &x, int ldy, int m) {
  return w.kind == Weights::F8 && w.n % kTileRows == 0 && ldy % 2 == 0 && m <= 96 && x.mp == padded_rows(m);
}

} // namespace

bool linear_short_cut(const Matrix &w, const Records &x, void *y, int ldy, int m, int cuts, const LinearScratch &s, cudaStream_t stream) {
  if (!serves(w, x, ldy, m)) return false;
  return with_tokens(m, [&](auto tokens) {
    Cutting c;
    if (!cut<tokens>(w, m, cuts, s.sms, &c)) return false;
    run<tokens>(w, x, y, ldy, m, c, s, stream);
    return true;
  });
}

bool linear_short(const Matrix &w, const Records &x, void *y, int ldy, int m, const LinearScratch &s, cudaStream_t stream) {
  constexpr double kMostUs = 9;
  if (!serves(w, x, ldy, m)) return false;
  return with_tokens(m, [&](auto tokens) {
    Cutting best = {};
    for (int cuts = 1; cuts <= LinearShortShared<tokens>::kMostCuts; cuts++) {
      Cutting c;
      if (cut<tokens>(w, m, cuts, s.sms, &c) && (!best.cuts || c.us < best.us)) best = c;
    }
    if (!best.cuts || best.us > kMostUs) return false;
    run<tokens>(w, x, y, ldy, m, best, s, stream);
    return true;
  });
}

void linear_short_prepare() {
  const auto limit = [](auto tokens) {
    using S = LinearShortShared<tokens>;
    cudaFuncSetAttribute(linear_short_kernel<tokens>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kMost);
  };
  limit(std::integral_constant<int, 32>());
  limit(std::integral_constant<int, 64>());
  limit(std::integral_constant<int, 80>());
  limit(std::integral_constant<int, 96>());
}

} // namespace mob
