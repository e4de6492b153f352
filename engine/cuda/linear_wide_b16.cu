// Which tiles compute a bf16 linear of many tokens, and how they are dealt out, as linear_wide.cu does for FP8.
#include "linear_wide_b16.cuh"

#include <algorithm>
#include <cmath>

namespace mob {
namespace {

template <int Tall, int Outputs, WideOut Out> void set_limit() {
  cudaFuncSetAttribute(linear_wide_b16_kernel<2, Tall, Outputs, Out>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       WideB16Shared<2, Tall, Outputs>::kBytes);
}
template <int Tall, int Outputs, WideOut Out> void run(const LinearWideB16 &p, int sms, cudaStream_t stream) {
  using S = WideB16Shared<2, Tall, Outputs>;
  launch(linear_wide_b16_kernel<2, Tall, Outputs, Out>, sms, S::kThreads, S::kBytes, stream, p);
}

struct Tile {
  int tokens, outputs;
  double pair_us, end_us; // all SMs at work
  void (*set_limit)();
  void (*run)(const LinearWideB16 &p, int sms, cudaStream_t stream);
};
#define TILE(tall, outputs, out, pair_us, end_us) {(tall) * 128, outputs, pair_us, end_us, set_limit<tall, outputs, out>, run<tall, outputs, out>}
const Tile kTiles[3][kWideB16Tiles] = { // by WideOut
    {TILE(1, 128, WideOut::kRows, 0.74, 0.8), TILE(1, 192, WideOut::kRows, 1.04, 1.2), TILE(2, 128, WideOut::kRows, 1.37, 1.7)},
    {TILE(1, 128, WideOut::kFloats, 0.74, 0.8), {}, TILE(2, 128, WideOut::kFloats, 1.37, 1.9)},
    {TILE(1, 128, WideOut::kGated, 0.74, 0.8), TILE(1, 192, WideOut::kGated, 1.04, 1.2), TILE(2, 128, WideOut::kGated, 1.37, 1.7)},
};
#undef TILE

double microseconds(const LinearWide &p, const Tile &tile, WideDeal how, int sms) {
  if (how == WideDeal::kWhole) { // what a tile waits for is the L2, which gives more to each when not all ask
    const double share = p.across == 1 ? 1 : 0.65 + 0.35 * std::min(1.0, (double)p.tiles / sms);
    return p.waves * (p.pairs * tile.pair_us * share + tile.end_us);
  }
  const int tiles = (p.tiles - p.waves * sms) / p.beside;
  // CTAs that work at different columns of the same weights and tokens fetch them anew, unless all stay in the L2.
  const bool resident = (double)(p.n + p.m) * p.pairs * 256 < 36e6;
  const double apart = how == WideDeal::kBeside ? 1.25 : p.across == 1 || resident ? 1 : 1.45;
  const double shares = 8 + 3.0 * tile.tokens * tile.outputs / 16384; // sums of all CTAs to the L2 and back
  return p.waves * (p.pairs * tile.pair_us + tile.end_us) + (double)tiles * p.pairs / p.sharers * tile.pair_us * apart + tile.end_us + shares;
}

} // namespace

void linear_wide_b16_prepare() {
  for (const auto &out : kTiles)
    for (const Tile &tile : out)
      if (tile.run) tile.set_limit();
}

bool linear_wide_b16_try(LinearWideB16 p, WideOut out, int tile, WideDeal how, int sms, cudaStream_t stream) {
  const Tile &t = kTiles[(int)out][tile];
  if (!t.run || !wide_deal(&p, t.tokens, t.outputs, how, sms)) return false;
  t.run(p, sms, stream);
  return true;
}

void linear_wide_b16(const LinearWideB16 &p, WideOut out, int sms, cudaStream_t stream) {
  double least = 0;
  int best = -1;
  WideDeal best_how = WideDeal::kWhole;
  for (int i = 0; i < kWideB16Tiles; i++) {
    const Tile &tile = kTiles[(int)out][i];
    for (WideDeal how : {WideDeal::kWhole, WideDeal::kCut, WideDeal::kBeside}) {
      LinearWide dealt = p;
      if (!tile.run || !wide_deal(&dealt, tile.tokens, tile.outputs, how, sms)) continue;
      const double us = microseconds(dealt, tile, how, sms);
      if (best >= 0 && us >= least) continue;
      least = us;
      best = i;
      best_how = how;
    }
  }
  linear_wide_b16_try(p, out, best, best_how, sms, stream);
}

} // namespace mob
