// Which tiles compute a linear of many tokens, and how they are dealt out: what takes the least time by the measured time of a tile's
// column pair and of its end.
#include "linear_wide.cuh"

#include <algorithm>
#include <cmath>

namespace mob {
namespace {

template <bool Fp8, int Groups, int Tall, int Outputs, bool F32> void set_limit() {
  cudaFuncSetAttribute(linear_wide_kernel<Fp8, Groups, Tall, Outputs, F32>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       WideShared<Fp8, Groups, Tall, Outputs>::kBytes);
}
template <bool Fp8, int Groups, int Tall, int Outputs, bool F32> void run(const LinearWide &p, int sms, cudaStream_t stream) {
  using S = WideShared<Fp8, Groups, Tall, Outputs>;
  launch(linear_wide_kernel<Fp8, Groups, Tall, Outputs, F32>, sms, S::kThreads, S::kBytes, stream, p);
}

struct WideTile {
  int tokens, outputs;
  double pair_us, end_us; // all SMs at work
  void (*set_limit)();
  void (*run)(const LinearWide &p, int sms, cudaStream_t stream);
};
#define TILE(fp8, groups, tall, outputs, f32, pair_us, end_us) \
  {(groups) * (tall) * 64, outputs, pair_us, end_us, set_limit<fp8, groups, tall, outputs, f32>, run<fp8, groups, tall, outputs, f32>}
const WideTile kTiles[3][kWideTiles] = {
    {TILE(true, 2, 1, 128, false, 0.97, 0.9), TILE(true, 2, 1, 192, false, 1.28, 1.4), TILE(true, 3, 1, 128, false, 1.31, 1.4),
     TILE(true, 2, 2, 128, false, 1.6, 2.1)},
    {TILE(false, 2, 1, 128, false, 0.74, 0.8), TILE(false, 2, 1, 192, false, 1.04, 1.4), TILE(false, 2, 2, 128, false, 1.37, 1.9)},
    {TILE(false, 2, 1, 128, true, 0.74, 0.8), TILE(false, 2, 2, 128, true, 1.37, 1.9)},
};
#undef TILE

// Tokens whose activations stay in the L2 while all outputs pass by.
constexpr int kSpanTokens = 2048;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Tiles of p's tokens and outputs, all of them whole, or those of the last waves cut into runs. False: there is no such way.
bool deal(LinearWide *p, const WideTile &tile, WideDeal how, int sms) {
  p->across = ceil_div(p->m, tile.tokens);
  p->span = std::min(p->across, kSpanTokens / tile.tokens);
  p->tiles = p->across * ceil_div(p->n, tile.outputs);
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

double microseconds(const LinearWide &p, const WideTile &tile, WideDeal how, int sms, bool f8) {
  // What a bf16 tile waits for is the L2, which gives more to each when not all ask.
  const double share = f8 ? 1 : 0.65 + 0.35 * std::min(1.0, (double)p.tiles / sms);
  const double whole = p.waves * (p.pairs * tile.pair_us * share + tile.end_us);
  if (how == WideDeal::kWhole) return whole;
  const int tiles = (p.tiles - p.waves * sms) / p.beside;
  // CTAs that work at different columns of the same weights and tokens fetch them anew, unless all stay in the L2.
  const bool resident = (double)(p.n + p.m) * p.pairs * 256 < 36e6;
  const double apart = how == WideDeal::kBeside ? (f8 ? 1.05 : 1.25) : p.across == 1 || resident ? 1 : f8 && p.across <= 4 ? 1.15 : 1.45;
  const double run = (double)tiles * p.pairs / p.sharers * tile.pair_us * share * apart;
  const double sums = std::ceil((double)p.sharers / tiles) * tile.tokens * tile.outputs / 16384; // of 64 KiB, one after the other
  return whole + run + tile.end_us + 4 + 2 * sums;
}

} // namespace

void linear_wide_prepare() {
  for (const auto &kind : kTiles)
    for (const WideTile &tile : kind)
      if (tile.run) tile.set_limit();
}

bool linear_wide_try(LinearWide p, bool f8, bool f32, int tile, WideDeal how, int sms, cudaStream_t stream) {
  const WideTile &t = kTiles[f8 ? 0 : f32 ? 2 : 1][tile];
  if (!t.run || !deal(&p, t, how, sms)) return false;
  t.run(p, sms, stream);
  return true;
}

void linear_wide(const LinearWide &p, bool f8, bool f32, int sms, cudaStream_t stream) {
  double least = 0;
  int best = -1;
  WideDeal best_how = WideDeal::kWhole;
  for (int i = 0; i < kWideTiles; i++) {
    const WideTile &tile = kTiles[f8 ? 0 : f32 ? 2 : 1][i];
    for (WideDeal how : {WideDeal::kWhole, WideDeal::kCut, WideDeal::kBeside}) {
      LinearWide dealt = p;
      if (!tile.run || !deal(&dealt, tile, how, sms)) continue;
      const double us = microseconds(dealt, tile, how, sms, f8);
      if (best >= 0 && us >= least) continue;
      least = us;
      best = i;
      best_how = how;
    }
  }
  linear_wide_try(p, f8, f32, best, best_how, sms, stream);
}

} // namespace mob
