// Which tiles compute a bf16 linear of many tokens, and how they are dealt out, as linear_wide.cu does for FP8.
#include "linear_wide_b16.cuh"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace mob {
namespace {

template <int Above, int Tall, int Outputs, WideOut Out> void set_limit() {
  cudaFuncSetAttribute(linear_wide_b16_kernel<Above, Tall, Outputs, Out>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       WideB16Shared<Above, Tall, Outputs, Out>::kBytes);
}
template <int Above, int Tall, int Outputs, WideOut Out> void run(const LinearWideB16 &p, int ctas, cudaStream_t stream) {
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  launch_clusters(p.cluster, linear_wide_b16_kernel<Above, Tall, Outputs, Out>, ctas, S::kThreads, S::kBytes, stream, p);
}
// Clusters of so many CTAs that run at the same time: SMs lie in groups of unlike size, and no cluster reaches beyond one.
template <int Above, int Tall, int Outputs, WideOut Out> int most_clusters(int cluster) {
  using S = WideB16Shared<Above, Tall, Outputs, Out>;
  ClusterLaunch launch(cluster, cluster, S::kThreads, S::kBytes, nullptr);
  int count = 0;
  if (cudaOccupancyMaxActiveClusters(&count, linear_wide_b16_kernel<Above, Tall, Outputs, Out>, &launch.config) == cudaSuccess) return count;
  cudaGetLastError(); // a GPU on which no such cluster fits has the other ways
  return 0;
}

constexpr int kOuts = 4;
struct Tile {
  int tokens, outputs;
  double pair_us, end_us; // more than 64 tokens, all SMs at work
  double least_us;        // a column pair where few SMs are at work
  void (*set_limit)();
  void (*run)(const LinearWideB16 &p, int ctas, cudaStream_t stream);
  int (*most_clusters)(int cluster);
  bool cuts, runs;        // may be cut; in runs
};
#define TILE(above, tall, outputs, out, pair_us, end_us, least_us) \
  {(above) * (tall) * 64, outputs, pair_us, end_us, least_us, set_limit<above, tall, outputs, out>, run<above, tall, outputs, out>, \
   most_clusters<above, tall, outputs, out>, WideUnits<above, tall, outputs, out>::kCuts, WideUnits<above, tall, outputs, out>::kRuns}
#define TILES(out, twice_end_us) \
  TILE(2, 1, 128, out, 0.74, 0.8, 0.56), TILE(2, 2, 128, out, 1.37, twice_end_us, 1.12), TILE(1, 1, 128, out, 0, 0, 0.41)
const Tile kTiles[kOuts][kWideB16Tiles] = { // by WideOut
    {TILES(WideOut::kRows, 1.7), TILE(2, 1, 192, WideOut::kRows, 1.04, 1.2, 0.85)},
    {TILES(WideOut::kFloats, 1.9)},
    {TILES(WideOut::kGated, 1.7), TILE(2, 1, 192, WideOut::kGated, 1.04, 1.2, 0.85), TILE(1, 1, 192, WideOut::kGated, 0, 0, 0.55)},
    {TILE(2, 1, 128, WideOut::kBest, 0.74, 0.8, 0.56), {}, TILE(1, 1, 128, WideOut::kBest, 0, 0, 0.41)},
};
#undef TILES
#undef TILE

constexpr int kMostCluster = 4;
// By WideOut, tile and CTAs of one: clusters that run at the same time, on any device.
std::atomic<int> running[kOuts][kWideB16Tiles][kMostCluster + 1];

// Whole tiles for all CTAs of so many clusters, then at most one that is cut for each cluster. Returns how many CTAs; 0: there is no such way.
int cluster_deal(LinearWideB16 *p, const Tile &tile, int cluster, int clusters) {
  const int most = clusters * cluster;
  if (most < 1 || p->pairs < 2 * cluster) return 0;
  wide_deal(p, tile.tokens, tile.outputs, WideDeal::kWhole, most);
  p->cluster = cluster;
  p->waves = p->tiles / most;
  const int rest = p->tiles - p->waves * most;
  return rest == 0 || rest > clusters ? 0 : p->waves ? most : rest * cluster;
}

struct Way {
  int tile;
  WideDeal how;
  int cluster;
};

// Deals p out; returns how many CTAs, 0: there is no such way.
int deal(LinearWideB16 *p, WideOut out, const Way &way, int sms) {
  const Tile &tile = kTiles[(int)out][way.tile];
  if (!tile.run) return 0;
  if (way.how != WideDeal::kWhole && !(way.how == WideDeal::kCluster ? tile.cuts : tile.runs)) return 0;
  if (way.how == WideDeal::kCluster)
    return cluster_deal(p, tile, way.cluster, std::min(sms / way.cluster, running[(int)out][way.tile][way.cluster].load()));
  return wide_deal(p, tile.tokens, tile.outputs, way.how, sms) ? sms : 0;
}

// What a tile waits for is the L2, which gives more to each when not all ask.
double share_of(int ctas, int sms) { return 0.65 + 0.35 * std::min(1.0, (double)ctas / sms); }

// Of up to 64 tokens: weights from memory, weights and activations from the L2, or a CTA's column pairs one after the other, whatever takes
// longest, and something of the others.
double once_through(const LinearWide &p, const Tile &tile, WideDeal how, int ctas) {
  constexpr double kMemory = 4.75e6, kL2 = 7.3e6; // bytes a microsecond
  const auto part = [&](double tiles, double pairs) {
    const double weights = tiles * tile.outputs * p.pairs * 256, rows = tiles * p.m * p.pairs * 256;
    return std::cbrt(std::pow(std::max(weights / kMemory, (weights + rows) / kL2), 3) + std::pow(pairs * tile.least_us, 3));
  };
  if (how == WideDeal::kWhole) {
    const int waves = p.tiles / ctas, rest = p.tiles - waves * ctas;
    return 4 + part(waves * ctas, waves * p.pairs) + (rest ? part(rest, p.pairs) : 0);
  }
  const int rest = p.tiles - p.waves * ctas;
  const bool cluster = how == WideDeal::kCluster;
  const double run = cluster ? (p.pairs + p.cluster - 1) / p.cluster : (double)rest * p.pairs / p.sharers;
  const double size = tile.tokens * tile.outputs / 16384.0, sums = cluster ? 4.3 + 1.6 * size * size : 7 + 3 * size * size;
  return sums + part(p.waves * ctas, p.waves * p.pairs) + part(rest, run);
}

double microseconds(const LinearWide &p, const Tile &tile, WideDeal how, int ctas, int sms) {
  if (p.m <= 64) return once_through(p, tile, how, ctas);
  if (tile.tokens < 128) return 1e9; // weights would be read twice
  const double size = tile.tokens * tile.outputs / 16384.0;
  if (how == WideDeal::kWhole) return p.waves * (p.pairs * tile.pair_us * (p.across == 1 ? 1 : share_of(p.tiles, p.waves * sms)) + tile.end_us);
  const double whole = p.waves * (p.pairs * tile.pair_us + tile.end_us);
  if (how == WideDeal::kCluster) {
    const int pairs = (p.pairs + p.cluster - 1) / p.cluster, cut = (p.tiles - p.waves * ctas) * p.cluster;
    return whole + pairs * tile.pair_us * share_of(p.waves ? ctas : cut, sms) + tile.end_us + 1 + 0.7 * size + 0.6 * p.cluster;
  }
  const int tiles = (p.tiles - p.waves * sms) / p.beside;
  // CTAs that work at different columns of the same weights and tokens fetch them anew, unless all stay in the L2.
  const bool resident = (double)(p.n + p.m) * p.pairs * 256 < 36e6;
  const double apart = how == WideDeal::kBeside ? 1.25 : p.across == 1 || resident ? 1 : 1.45;
  const double shares = 8 + 3 * size; // sums of all CTAs to the L2 and back
  return whole + (double)tiles * p.pairs / p.sharers * tile.pair_us * apart + tile.end_us + shares;
}

} // namespace

void linear_wide_b16_prepare() {
  for (int out = 0; out < kOuts; out++)
    for (int i = 0; i < kWideB16Tiles; i++) {
      const Tile &tile = kTiles[out][i];
      if (!tile.run) continue;
      tile.set_limit();
      for (int cluster = 2; cluster <= kMostCluster; cluster++) {
        std::atomic<int> &most = running[out][i][cluster];
        const int here = tile.most_clusters(cluster);
        if (most == 0 || here < most) most = here;
      }
    }
}

int linear_wide_b16_try(LinearWideB16 p, WideOut out, int tile, WideDeal how, int cluster, int sms, cudaStream_t stream) {
  const int ctas = deal(&p, out, {tile, how, cluster}, sms);
  if (ctas) kTiles[(int)out][tile].run(p, ctas, stream);
  return ctas;
}

int linear_wide_b16(const LinearWideB16 &p, WideOut out, int sms, cudaStream_t stream) {
  double least = 0;
  Way best = {-1, WideDeal::kWhole, 1};
  auto consider = [&](const Way &way) {
    LinearWideB16 dealt = p;
    const int ctas = deal(&dealt, out, way, sms);
    if (!ctas) return;
    const double us = microseconds(dealt, kTiles[(int)out][way.tile], way.how, ctas, sms);
    if (best.tile >= 0 && us >= least) return;
    least = us;
    best = way;
  };
  for (int i = 0; i < kWideB16Tiles; i++) {
    for (WideDeal how : {WideDeal::kWhole, WideDeal::kCut, WideDeal::kBeside}) consider({i, how, 1});
    for (int cluster = 2; cluster <= kMostCluster; cluster++) consider({i, WideDeal::kCluster, cluster});
  }
  return linear_wide_b16_try(p, out, best.tile, best.how, best.cluster, sms, stream);
}

} // namespace mob
