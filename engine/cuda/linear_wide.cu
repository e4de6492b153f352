// Which tiles compute an FP8 linear of many tokens, and how they are dealt out: what takes the least time by the measured time of a tile's
// column pair and of its end.
#include "linear_wide.cuh"

#include <algorithm>
#include <cmath>

namespace mob {
namespace {

template <int Groups, int Tall, int Outputs> void set_limit() {
  cudaFuncSetAttribute(linear_wide_kernel<Groups, Tall, Outputs>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       WideShared<Groups, Tall, Outputs>::kBytes);
}
template <int Groups, int Tall, int Outputs> void run(const LinearWide &p, const PartsOut &parts, int sms, cudaStream_t stream) {
  using S = WideShared<Groups, Tall, Outputs>;
  launch(linear_wide_kernel<Groups, Tall, Outputs>, sms, S::kThreads, S::kBytes, stream, LinearWideOf<Groups>(LinearWideParts{p, parts}));
}

struct WideTile {
  int tokens, outputs;
  bool sends; // parts
  double pair_us, end_us; // all SMs at work
  void (*set_limit)();
  void (*run)(const LinearWide &p, const PartsOut &parts, int sms, cudaStream_t stream);
};
#define TILE(groups, tall, outputs, pair_us, end_us) \
  {(groups) * (tall) * 64, outputs, wide_sends(groups), pair_us, end_us, set_limit<groups, tall, outputs>, run<groups, tall, outputs>}
const WideTile kTiles[kWideTiles] = {TILE(2, 1, 128, 0.97, 0.9), TILE(2, 1, 192, 1.28, 1.4), TILE(3, 1, 128, 1.31, 1.4), TILE(2, 2, 128, 1.6, 2.1)};
#undef TILE

double microseconds(const LinearWide &p, const WideTile &tile, WideDeal how, int sms) {
  const double whole = p.waves * (p.pairs * tile.pair_us + tile.end_us);
  if (how == WideDeal::kWhole) return whole;
  const int tiles = (p.tiles - p.waves * sms) / p.beside;
  // CTAs that work at different columns of the same weights and tokens fetch them anew, unless all stay in the L2.
  const bool resident = (double)(p.n + p.m) * p.pairs * 256 < 36e6;
  const double apart = how == WideDeal::kBeside ? 1.05 : p.across == 1 || resident ? 1 : p.across <= 4 ? 1.15 : 1.45;
  const double run = (double)tiles * p.pairs / p.sharers * tile.pair_us * apart;
  const double sums = std::ceil((double)p.sharers / tiles) * tile.tokens * tile.outputs / 16384; // of 64 KiB, one after the other
  return whole + run + tile.end_us + 4 + 2 * sums;
}

} // namespace

// Tokens whose activations stay in the L2 while all outputs pass by.
constexpr int kSpanTokens = 2048;

static int ceil_div(int a, int b) { return (a + b - 1) / b; }

bool wide_deal(LinearWide *p, int tokens, int outputs, WideDeal how, int sms) {
  p->across = ceil_div(p->m, tokens);
  p->span = std::min(p->across, kSpanTokens / tokens);
  p->tiles = p->across * ceil_div(p->n, outputs);
  p->sharers = 0;
  p->beside = 1;
  p->waves = ceil_div(p->tiles, sms);
  if (how == WideDeal::kWhole) return true;
  const int rest = p->tiles % sms;
  if (rest == 0) return false;
  p->waves = p->tiles / sms;
  if (p->waves > 0 && rest * 2 < sms) p->waves--; // runs of a tile's half at least
  if (how == WideDeal::kBeside) {
    if (p->across == 1 || p->across > 4 || p->across > p->span || sms % p->across != 0) return false;
    p->beside = p->across;
  }
  constexpr int kLeastRun = 3;
  const int pairs = (p->tiles - p->waves * sms) / p->beside * p->pairs;
  p->sharers = std::min(sms / p->beside, std::max(1, pairs / kLeastRun));
  return true;
}

void linear_wide_prepare() {
  for (const WideTile &tile : kTiles) tile.set_limit();
}

bool linear_wide_try(LinearWide p, int tile, WideDeal how, int sms, cudaStream_t stream, const PartsOut &parts) {
  const WideTile &t = kTiles[tile];
  if (!wide_deal(&p, t.tokens, t.outputs, how, sms)) return false;
  t.run(p, parts, sms, stream);
  return true;
}

void linear_wide(const LinearWide &p, int sms, cudaStream_t stream, const PartsOut &parts) {
  double least = 0;
  int best = -1;
  WideDeal best_how = WideDeal::kWhole;
  for (int i = 0; i < kWideTiles; i++) {
    const WideTile &tile = kTiles[i];
    if (parts.each && !tile.sends) continue;
    for (WideDeal how : {WideDeal::kWhole, WideDeal::kCut, WideDeal::kBeside}) {
      LinearWide dealt = p;
      if (!wide_deal(&dealt, tile.tokens, tile.outputs, how, sms)) continue;
      const double us = microseconds(dealt, tile, how, sms);
      if (best >= 0 && us >= least) continue;
      least = us;
      best = i;
      best_how = how;
    }
  }
  linear_wide_try(p, best, best_how, sms, stream, parts);
}

} // namespace mob
