// The experts of up to 8 tokens, whole, in one launch: gate + up, silu(gate) * up, down and the sum over a token's experts.
//
// Persistent CTAs, one an SM. A producer thread fills one ring of weights for both products: the shared experts' gate and up before the
// router is known, then the chosen ones', then, without waiting for anybody, down's; so the memory does not rest while the last tiles of
// gate and up are summed and their activations go from CTA to CTA. Two warpgroups consume. A tile of gate and up is 128 columns of an
// expert's activations, which are quantised by the CTA that has its first columns; when all tiles of all CTAs are there, the producers
// fetch activations behind the weights that wait for them. Down's columns are those of all experts one behind the other: the
// sum over experts is weighted where a pair's products are promoted, and what leaves is what the layer adds to the residual stream.
// Both products are dealt out as in linear_many.cuh, in whole tiles and equal runs of columns; a tile in several runs is summed by the
// CTA with its first columns, in the order of columns: no atomics, the result does not depend on timing.
#include "experts_few.h"
#include "linear_few.cuh"

namespace mob {
namespace {

constexpr int kTokens = 8; // of a product

struct Few {
  ExpertsFew e;
  bf16 *y;
  int m, most;               // tokens; active experts at most
  int act_tiles;             // tiles of 128 columns of an expert's activations
  int up_pairs, down_pairs;  // column pairs of a matrix
  size_t record;             // bytes of a pair's activations
  size_t act_stride;         // from an expert's to the next
  int down_tiles;            // of 128 outputs
  int up_run;                // column pairs of gate and up that a CTA takes at least of a tile that is cut
  float *partial;
  Waits *waits;
  GridWords *grid;
};

struct FewShared {
  static constexpr int kSlot = 17408, kX = 2 * kSlot, kXSlot = 3072; // a pair of weights, of activations: what follows begins at 1,024 again
  static constexpr int kStage = kX + kXSlot, kStages = 5, kOnTheWay = 3, kThreads = 288;
  static constexpr int kPitch = 132, kResults = 2 * kTokens * kPitch; // gate's and up's of a tile, in floats
  static constexpr int kTable = kMostExperts * kTokens;               // a token's weight of an expert; 0: the router did not choose it
  static constexpr int kBytes = 1024 + kStage * kStages + (kResults + kTable + kMostExperts) * 4 + 3 * kStages * 8;
};
// Floats of a CTA's part of a cut tile: of the shared experts' gate and up, of the chosen ones', of down.
constexpr int kUpPart = 256 * kTokens, kDownPart = 128 * kTokens;

// A stage has barriers for its weights and for the activations beside them, which come later where the router or other CTAs make them.
struct Ring {
  uint8_t *stages;
  uint64_t *full, *full_x, *empty;
};
struct Place {
  int stage = 0, phase = 0;
  __device__ void step() {
    if (++stage == FewShared::kStages) stage = 0, phase ^= 1;
  }
};

// A CTA's tiles and parts of tiles of gate and up, as Pieces deals them, but that the first CTAs, `heavy` ones, which have columns of the
// shared experts' tiles already, get that much less of the chosen experts' cut tiles.
struct UpPieces {
  int kb, waves, wave = 0;
  int heavy, light, mine, rest; // CTAs of both kinds that share the rest; column pairs of the rest that the heavy ones share; of the rest
  int at, end;
  int tile, first, last; // the current piece

  // known: column pairs of shared experts' tiles, which are dealt out too; 0: these are they.
  __device__ UpPieces(const Few &p, int tiles, int known) : kb(p.up_pairs), mine(0) {
    const int grid = gridDim.x, cta = blockIdx.x;
    heavy = known < grid * kb ? min(grid, known / p.up_run) : 0;
    if (heavy == grid) heavy = 0;
    waves = tiles % grid == 0 && !heavy ? tiles / grid : max(0, tiles / grid - 1);
    rest = (tiles - waves * grid) * kb;
    if (heavy) mine = max(0, heavy * (known + rest) / grid - known);
    if (mine < heavy) mine = 0;
    light = min(grid - heavy, max(1, (rest - mine) / p.up_run));
    at = begin(cta);
    end = begin(cta + 1);
  }
  __device__ int begin(int cta) const {
    return cta < heavy ? mine * cta / heavy : mine + (rest - mine) * min(cta - heavy, light) / light;
  }
  __device__ bool next() {
    if (wave < waves) {
      tile = wave++ * gridDim.x + blockIdx.x;
      first = 0;
      last = kb;
      return true;
    }
    if (at >= end) return false;
    const int t = at / kb;
    tile = waves * gridDim.x + t;
    first = at - t * kb;
    last = min(kb, end - t * kb);
    at += last - first;
    return true;
  }
  // CTAs behind this one with columns of the current tile.
  __device__ int givers() const {
    const int tile_end = (tile - waves * (int)gridDim.x + 1) * kb;
    const int cta = tile_end <= mine ? (tile_end * heavy - 1) / mine : heavy + ((tile_end - mine) * light - 1) / (rest - mine);
    return cta - (int)blockIdx.x;
  }
};
__device__ __forceinline__ UpPieces shared_pieces(const Few &p) { return UpPieces(p, p.e.shared * p.act_tiles, 0); }
__device__ __forceinline__ UpPieces chosen_pieces(const Few &p, int chosen) {
  return UpPieces(p, chosen * p.act_tiles, p.e.shared * p.act_tiles * p.up_pairs);
}

// Steps of gate and up: a column pair of 64 outputs of each, a tile's first 64 and its last in turns.
struct UpSteps {
  UpPieces pieces;
  int pair = 0, half = 1, per_expert;
  bool fresh = false; // first of a piece
  __device__ UpSteps(const Few &p, const UpPieces &dealt) : pieces(dealt), per_expert(p.act_tiles) { pieces.last = 0; }
  __device__ bool next() {
    fresh = false;
    half ^= 1;
    if (half || ++pair < pieces.last) return true;
    if (!pieces.next()) return false;
    pair = pieces.first;
    fresh = true;
    return true;
  }
  __device__ int expert() const { return pieces.tile / per_expert; }
  __device__ int block() const { return pieces.tile % per_expert * 2; } // of gate's, its first
};

// A column pair among those of all experts.
struct FlatPair {
  int expert, pair;
  __device__ void set(int flat, int pairs) { expert = flat / pairs, pair = flat % pairs; }
  __device__ void step(int pairs) {
    if (++pair == pairs) pair = 0, expert++;
  }
};

__device__ __forceinline__ Pieces down_pieces(const Few &p, int experts) {
  return Pieces(experts ? p.down_tiles : 0, experts * p.down_pairs, gridDim.x, blockIdx.x, 1);
}

struct DownSteps { // a column pair of 128 outputs
  Pieces pieces;
  int step = 0;
  FlatPair at;
  __device__ DownSteps(const Few &p, int experts) : pieces(down_pieces(p, experts)) { pieces.last = 0; }
  __device__ bool next(const Few &p) {
    if (++step < pieces.last) {
      at.step(p.down_pairs);
      return true;
    }
    if (!pieces.next()) return false;
    step = pieces.first;
    at.set(step, p.down_pairs);
    return true;
  }
};

// ---- the producer

template <bool Fp8> struct Producer {
  const Few &p;
  const Ring &ring;
  const int *list;
  int active, down_blocks;
  uint64_t once, keep;
  const uint8_t *up_w = nullptr; // of the current tile
  static constexpr uint32_t kRecord = kTokens * (Fp8 ? 264 : 256);

  __device__ void up_weights(const UpSteps &u, int matrix, int stage) {
    if (u.fresh) up_w = p.e.up.data + (size_t)matrix * p.e.up.stride + (size_t)u.block() * p.up_pairs * kPairBytes;
    const uint8_t *from = up_w + ((size_t)u.half * p.up_pairs + u.pair) * kPairBytes;
    uint8_t *to = ring.stages + stage * FewShared::kStage;
    mbar_arrive_expect(&ring.full[stage], 2 * kPairUsed);
    bulk_load(to, from, kPairUsed, &ring.full[stage], once);
    bulk_load(to + FewShared::kSlot, from + (size_t)(p.e.up_at / kTileRows) * p.up_pairs * kPairBytes, kPairUsed, &ring.full[stage], once);
  }
  __device__ void up_x(const UpSteps &u, int stage) {
    mbar_arrive_expect(&ring.full_x[stage], kRecord);
    bulk_load(ring.stages + stage * FewShared::kStage + FewShared::kX, p.e.x.data + (size_t)u.pair * kRecord, kRecord, &ring.full_x[stage], keep);
  }
  __device__ void down_weights(const DownSteps &d, int stage) {
    uint8_t *to = ring.stages + stage * FewShared::kStage;
    const int block = 2 * d.pieces.tile;
    const bool both = block + 1 < down_blocks;
    const uint8_t *from = p.e.down.data + (size_t)list[d.at.expert] * p.e.down.stride + ((size_t)block * p.down_pairs + d.at.pair) * kPairBytes;
    mbar_arrive_expect(&ring.full[stage], (both ? 2 : 1) * kPairUsed);
    bulk_load(to, from, kPairUsed, &ring.full[stage], once);
    if (both) bulk_load(to + FewShared::kSlot, from + (size_t)p.down_pairs * kPairBytes, kPairUsed, &ring.full[stage], once);
  }
  __device__ void down_x(const DownSteps &d, int stage) {
    const uint8_t *from = p.e.act + (size_t)d.at.expert * p.act_stride + (size_t)d.at.pair * kRecord;
    mbar_arrive_expect(&ring.full_x[stage], kRecord);
    bulk_load(ring.stages + stage * FewShared::kStage + FewShared::kX, from, kRecord, &ring.full_x[stage], keep);
  }
};

// All of a CTA's steps, by a warp of which one lane copies. Returns behind the last copy.
template <bool Fp8> __device__ __forceinline__ void produce(const Few &p, const Ring &ring, int *list) {
  const int lane = threadIdx.x % 32;
  Producer<Fp8> to = {p, ring, list, 0, (p.e.down.n + kTileRows - 1) / kTileRows, policy_evict_first(), policy_evict_last()};
  UpSteps known(p, shared_pieces(p)), same = known;
  int ahead = 0;
  // Weights of no more than kOnTheWay stages are asked for at a time: what stands in the memory's queues delays all that CTAs say to each other.
  Place late;
  auto pace = [&](int issued) {
    if (issued < FewShared::kOnTheWay) return;
    mbar_wait(&ring.full[late.stage], late.phase);
    late.step();
  };
  if (lane == 0)
    for (; ahead < FewShared::kStages && known.next(); ahead++) {
      pace(ahead);
      to.up_weights(known, known.fresh ? p.e.first_shared + known.expert() : 0, ahead);
    }
  depend_wait();
  const int active = to.active = *p.e.active;
  for (int i = lane; i < p.most; i += 32) list[i] = p.e.ids[i]; // what lies behind the last is not used: no wait for how many there are
  __syncwarp();
  if (lane != 0) return;
  Place at;
  for (int i = 0; i < ahead; i++, at.step()) {
    same.next();
    to.up_x(same, i);
  }
  int issued = ahead;
  auto free_stage = [&] {
    mbar_wait(&ring.empty[at.stage], at.phase ^ 1);
    pace(issued++);
  };
  while (ahead == FewShared::kStages && known.next()) {
    free_stage();
    to.up_weights(known, known.fresh ? p.e.first_shared + known.expert() : 0, at.stage);
    to.up_x(known, at.stage);
    at.step();
  }
  UpSteps chosen(p, chosen_pieces(p, active - p.e.shared));
  while (chosen.next()) {
    free_stage();
    to.up_weights(chosen, chosen.fresh ? list[chosen.expert()] : 0, at.stage);
    to.up_x(chosen, at.stage);
    at.step();
  }
  DownSteps down(p, active), behind = down;
  Place first = at;
  int begun = 0;
  for (; begun < FewShared::kStages && down.next(p); begun++, at.step()) {
    free_stage();
    to.down_weights(down, at.stage);
  }
  grid_wait_for(p.grid, active * p.act_tiles * ((p.m + 1) / 2), p.waits);
  async_fence_all();
  for (int i = 0; i < begun; i++, first.step()) {
    behind.next(p);
    to.down_x(behind, first.stage);
  }
  while (begun == FewShared::kStages && down.next(p)) {
    free_stage();
    to.down_weights(down, at.stage);
    to.down_x(down, at.stage);
    at.step();
  }
  grid_leave(p.grid);
}

// ---- gate and up

// A pair's products of 64 outputs, on their way until they are waited for.
template <bool Fp8> struct Products {
  float acc[2][4]; // bf16: both tiles' in the first
  __device__ __forceinline__ void start(const uint8_t *w, const uint8_t *x) {
    using Mma = typename WgmmaOf<Fp8, kTokens>::Type;
    keep_registers(acc[0]);
    if (Fp8) keep_registers(acc[1]);
    wgmma_fence();
    const uint64_t w0 = swizzled_operand(w), x0 = swizzled_operand(x), w1 = swizzled_operand(w + kTileBytes), x1 = swizzled_operand(x + kTokens * 128);
#pragma unroll
    for (int k = 0; k < 4; k++) Mma::run(acc[0], w0 + 2 * k, x0 + 2 * k, k > 0);
#pragma unroll
    for (int k = 0; k < 4; k++) Mma::run(acc[Fp8], w1 + 2 * k, x1 + 2 * k, !Fp8 || k > 0);
    wgmma_commit();
  }
  // Waited for: sum += what they are times the scales. Weighted: times the tokens' `weights` too; what has none may be no number.
  template <bool Weighted>
  __device__ __forceinline__ void add(float (&sum)[4], const uint8_t *w, const uint8_t *x, const float *weights, int t4) {
    keep_registers(acc[0]);
    if (Fp8) keep_registers(acc[1]);
    const float2 ws = *(const float2 *)(w + kPairScales), weight = Weighted ? *(const float2 *)(weights + 2 * t4) : make_float2(1, 1);
    const float *xs = (const float *)(x + kTokens * 256);
#pragma unroll
    for (int half = 0; half <= Fp8; half++) {
      float s0 = weight.x, s1 = weight.y;
      if (Fp8) {
        const float2 v = *(const float2 *)(xs + half * kTokens + 2 * t4);
        s0 *= (half ? ws.y : ws.x) * v.x, s1 *= (half ? ws.y : ws.x) * v.y;
      }
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        sum[i] += !Weighted || weight.x != 0 ? acc[half][i] * s0 : 0;
        sum[i + 1] += !Weighted || weight.y != 0 ? acc[half][i + 1] * s1 : 0;
      }
    }
  }
};

__device__ __forceinline__ void await(const Ring &ring, const Place &at) {
  mbar_wait(&ring.full[at.stage], at.phase);
  mbar_wait(&ring.full_x[at.stage], at.phase);
}
// This warp's part of a stage is used.
__device__ __forceinline__ void give_back(const Ring &ring, int stage) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) mbar_arrive(&ring.empty[stage]);
}

// A tile's activations: products rounded to bf16 as rows of them would be, silu(gate) * up, quantised; each warp that stores says so.
template <bool Fp8> __device__ __forceinline__ void put_act(const Few &p, const float (&sum)[2 * 4], int expert, int tile, float *results) {
  using S = FewShared;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid % 32, t4 = lane % 4, row = warp % 4 * 16 + lane / 4;
  group_sync<256>(1); // what was there is read
#pragma unroll
  for (int i = 0; i < 8; i++)
    results[(warp / 4 * kTokens + 2 * t4 + i % 2) * S::kPitch + i / 4 * 64 + row + i % 4 / 2 * 8] = __bfloat162float(__float2bfloat16(sum[i]));
  group_sync<256>(1);
  if (2 * warp >= p.m) return;
  const int token = tid / 16, col = tid % 16 * 8;
  const float *gate = results + token * S::kPitch + col, *up = gate + kTokens * S::kPitch;
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = swiglu(gate[i], up[i]);
  put_record({p.e.act + (size_t)expert * p.act_stride, kTokens, Fp8}, token, tile * 128 + col, v, p.e.ue8m0, token < p.m);
  async_fence_all(); // bulk copies read it
  __syncwarp();
  if (lane == 0) grid_arrive(p.grid);
}

// Products of a piece's columns: 64 outputs of gate or of up, the tile's first and its last.
template <bool Fp8> __device__ __forceinline__ void up_sums(float (&both)[8], const UpPieces &piece, const Ring &ring, Place &at) {
  using S = FewShared;
  const int tid = threadIdx.x, t4 = tid % 4;
  float sum[2][4] = {};
  for (int pair = piece.first; pair < piece.last; pair++) {
    Products<Fp8> products[2];
    const uint8_t *w[2], *x[2];
    int stage[2];
#pragma unroll
    for (int half = 0; half < 2; half++, at.step()) {
      stage[half] = at.stage;
      w[half] = ring.stages + at.stage * S::kStage + tid / 128 * S::kSlot;
      x[half] = ring.stages + at.stage * S::kStage + S::kX;
      await(ring, at);
      products[half].start(w[half], x[half]);
    }
    wgmma_wait<1>();
    products[0].template add<false>(sum[0], w[0], x[0], nullptr, t4);
    give_back(ring, stage[0]);
    wgmma_wait<0>();
    products[1].template add<false>(sum[1], w[1], x[1], nullptr, t4);
    give_back(ring, stage[1]);
  }
#pragma unroll
  for (int i = 0; i < 8; i++) both[i] = sum[i / 4][i % 4];
}

// Two of a product's 8 columns are a lane's: are there such tokens?
__device__ __forceinline__ bool lane_is_used(const Few &p) { return (int)threadIdx.x % 4 * 2 < p.m; }

// The shared experts' tiles, then the chosen ones'. What other CTAs have of a shared expert's tile is taken later than it could be: it has come
// by then, and nobody waits for it.
template <bool Fp8> __device__ __forceinline__ void up_consume(const Few &p, int chosen, const Ring &ring, Place &at, float *results) {
  float *shared_part = p.partial + (size_t)blockIdx.x * kUpPart + threadIdx.x * 4, *part = shared_part + (size_t)gridDim.x * kUpPart;
  float kept[8], sum[8];
  int kept_tile = -1, kept_givers = 0;
  const bool used = lane_is_used(p);
  UpPieces shared = shared_pieces(p), pieces = chosen_pieces(p, chosen);
  while (shared.next()) {
    up_sums<Fp8>(kept, shared, ring, at);
    if (shared.first > 0) { // another CTA has the first columns
      if (used) give_partial<8>(shared_part, kept);
    } else if (shared.last < p.up_pairs) { // no piece comes behind it
      kept_tile = shared.tile;
      kept_givers = shared.givers();
    } else {
      put_act<Fp8>(p, kept, chosen + shared.tile / p.act_tiles, shared.tile % p.act_tiles, results);
    }
  }
  for (bool more = true; more;) {
    more = pieces.next();
    if (more) up_sums<Fp8>(sum, pieces, ring, at);
    if (more && pieces.first > 0 && used) give_partial<8>(part, sum);
    if (kept_tile >= 0) {
      if (used) take_partials<8, 8>(shared_part + kUpPart, kept_givers, (size_t)kUpPart, kept, p.waits);
      put_act<Fp8>(p, kept, chosen + kept_tile / p.act_tiles, kept_tile % p.act_tiles, results);
      kept_tile = -1;
    }
    if (!more || pieces.first > 0) continue;
    if (pieces.last < p.up_pairs && used) take_partials<8, 8>(part + kUpPart, pieces.givers(), (size_t)kUpPart, sum, p.waits);
    put_act<Fp8>(p, sum, pieces.tile / p.act_tiles, pieces.tile % p.act_tiles, results);
  }
}

// ---- down

// Of every token, its weights of the active experts.
__device__ __forceinline__ void fill_table(const Few &p, float *table) {
  const int count = *p.e.count;
  for (int i = threadIdx.x; i < FewShared::kTable; i += 256) table[i] = 0;
  group_sync<256>(1);
  for (int i = threadIdx.x; i < p.m * p.e.slots; i += 256) {
    const int t = i / p.e.slots, row = p.e.row[i];
    if (t < count && row >= 0) table[row / p.m * kTokens + t] = p.e.weight[i];
  }
  group_sync<256>(1);
}

__device__ __forceinline__ void put_down(const Few &p, const float (&sum)[4], int block) {
  const int tid = threadIdx.x, row = block * kTileRows + tid % 128 / 32 * 16 + tid % 32 / 4;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const int token = 2 * (tid % 4) + i % 2, n = row + i / 2 * 8;
    if (token < p.m && n < p.e.down.n) p.y[(size_t)token * p.e.down.n + n] = __float2bfloat16(sum[i]);
  }
}

template <bool Fp8>
__device__ __forceinline__ void down_consume(const Few &p, int active, float *partial, const Ring &ring, Place &at, const float *table) {
  using S = FewShared;
  const int tid = threadIdx.x, group = tid / 128, t4 = tid % 4;
  auto w_of = [&](int stage) { return ring.stages + stage * S::kStage + group * S::kSlot; };
  auto x_of = [&](int stage) { return ring.stages + stage * S::kStage + S::kX; };
  Pieces pieces = down_pieces(p, active);
  while (pieces.next()) {
    float sum[4] = {};
    FlatPair flat;
    flat.set(pieces.first, p.down_pairs);
    int step = pieces.first;
    for (; step + 1 < pieces.last; step += 2) { // two at a time
      Products<Fp8> one, two;
      const int first = at.stage;
      const float *weights = table + flat.expert * kTokens;
      await(ring, at);
      one.start(w_of(first), x_of(first));
      at.step();
      flat.step(p.down_pairs);
      const int second = at.stage;
      await(ring, at);
      two.start(w_of(second), x_of(second));
      wgmma_wait<1>();
      one.template add<true>(sum, w_of(first), x_of(first), weights, t4);
      give_back(ring, first);
      weights = table + flat.expert * kTokens;
      wgmma_wait<0>();
      two.template add<true>(sum, w_of(second), x_of(second), weights, t4);
      give_back(ring, second);
      at.step();
      flat.step(p.down_pairs);
    }
    if (step < pieces.last) {
      Products<Fp8> one;
      await(ring, at);
      one.start(w_of(at.stage), x_of(at.stage));
      wgmma_wait<0>();
      one.template add<true>(sum, w_of(at.stage), x_of(at.stage), table + flat.expert * kTokens, t4);
      give_back(ring, at.stage);
      at.step();
    }
    float *mine = partial + (size_t)blockIdx.x * kDownPart + tid * 4;
    if (pieces.first > 0) {
      if (lane_is_used(p)) give_partial<4>(mine, sum);
      continue;
    }
    if (pieces.last < pieces.kb && lane_is_used(p)) take_partials<4, 16>(mine + kDownPart, pieces.last_cta() - (int)blockIdx.x, (size_t)kDownPart, sum, p.waits);
    put_down(p, sum, 2 * pieces.tile + group);
  }
}

// Where no expert of a token is here.
__device__ __forceinline__ void put_nothing(const Few &p) {
  for (int i = blockIdx.x * 256 + threadIdx.x; i < p.m * p.e.down.n; i += gridDim.x * 256) p.y[i] = __float2bfloat16(0.0f);
}

template <bool Fp8> __global__ void __launch_bounds__(FewShared::kThreads) experts_few_kernel(const Few p) {
  using S = FewShared;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *stages = raw + (1024 - smem_address(raw) % 1024) % 1024;
  float *results = (float *)(stages + S::kStage * S::kStages), *table = results + S::kResults;
  int *list = (int *)(table + S::kTable);
  uint64_t *bars = (uint64_t *)(list + kMostExperts);
  const Ring ring = {stages, bars, bars + S::kStages, bars + 2 * S::kStages};

  depend_launch();
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; i++) {
      mbar_init(&ring.full[i], 1);
      mbar_init(&ring.full_x[i], 1);
      mbar_init(&ring.empty[i], 8);
    }
    mbar_init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= 256) {
    produce<Fp8>(p, ring, list);
    return;
  }
  depend_wait();
  const int active = *p.e.active, chosen = active - p.e.shared;
  Place at;
  up_consume<Fp8>(p, chosen, ring, at, results);
  if (active == 0) {
    put_nothing(p);
    return;
  }
  fill_table(p, table);
  down_consume<Fp8>(p, active, p.partial + 2 * (size_t)gridDim.x * kUpPart, ring, at, table);
}

} // namespace

bool experts_few_serves(const ExpertsFew &e, int m, int most_active) {
  return m > kFewDown && m <= kTokens && e.x.mp == kTokens && most_active <= kMostExperts && e.inter % 128 == 0 && e.inter == e.down.k && e.up_at % kTileRows == 0 &&
         e.up.kind == e.down.kind;
}

void experts_few(const ExpertsFew &e, bf16 *y, int m, int most_active, const LinearScratch &s, cudaStream_t stream) {
  const bool f8 = e.up.kind == Weights::F8;
  const int blocks = (e.down.n + kTileRows - 1) / kTileRows;
  Few p = {};
  p.e = e;
  p.y = y;
  p.m = m;
  p.most = most_active;
  p.act_tiles = e.inter / 128;
  p.up_pairs = (int)column_pairs(e.up);
  p.down_pairs = (int)column_pairs(e.down);
  p.act_stride = records_bytes(f8, kTokens, e.down.k);
  p.down_tiles = (blocks + 1) / 2;
  p.up_run = 7; // so that the partial sums of a tile are taken all at once
  p.partial = s.partial;
  p.waits = s.waits;
  p.grid = s.grid;
  if (f8) launch(experts_few_kernel<true>, s.sms, FewShared::kThreads, FewShared::kBytes, stream, p);
  else launch(experts_few_kernel<false>, s.sms, FewShared::kThreads, FewShared::kBytes, stream, p);
}

void experts_few_prepare() {
  cudaFuncSetAttribute(experts_few_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, FewShared::kBytes);
  cudaFuncSetAttribute(experts_few_kernel<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, FewShared::kBytes);
}

} // namespace mob
