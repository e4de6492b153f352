// What the experts' linears over gathered tokens share (linear_segments.cuh: few tokens a tile, linear_segments_wide.cu: many): which work there
// is, how CTAs come by it, and how the threads of a CTA hand it to each other.
//
// A launch has up to two products. Gate and up: a tile's four blocks of 64 outputs are two of gate's and the same two of up's; silu(gate) * up
// of 128 columns leaves as e4m3 with its scale, or bf16, as records of the next linear. Down: rows of y, from those records where the launch
// made them. Then a tile of down waits for all of gate and up of its tokens, counted in `done`: only its activations do, its weights come
// meanwhile. With the experts in one order in both, hardly any wait blocks, and between the products no SM rests.
//
// Work is dealt as CTAs ask for it, because some SMs read faster than others, by a tenth and more: first whole tiles, then the last ones (as
// many as there are CTAs), cut into parts of their columns. Results do not depend on timing: which tiles are cut, and where, is known
// beforehand, and the CTA with a tile's first part adds the other parts in the order of their columns. The last parts of all tiles are dealt
// first and are the longest. So whoever has a first part finds the others done, and the launch ends with short runs. Every wait ends, because
// a run waits only for runs that were dealt before it, and a CTA does its runs in the order in which it got them.
//
// In prefill the shared expert has all tokens: arithmetic bounds its tiles, memory those of the other experts. So its tiles are dealt among
// theirs (`spread`), not behind them.
//
// A CTA has three warpgroups. Two compute. Of the third three threads work: one deals the runs and loads weights, one loads activations, one
// counts what is done.
#pragma once
#include "kernels.h"

namespace mob {

constexpr int kSegmentsRuns = 3; // of a CTA, on their way from the thread that deals them to all others

struct SegmentsProduct {
  const uint8_t *w;   // packed tiles; expert e begins at e * w_stride
  size_t w_stride;
  TileRows x;
  int row_tiles;      // tiles of 256 outputs; 0: there is no such product
  int parts;          // of a tile that is cut
};

struct LinearSegments {
  SegmentsProduct up, down;
  const TokenTile *tiles;
  const int *count;   // of them
  TileRows act;       // what gate and up make
  int up_block;       // first block of up's rows
  bool ue8m0;
  bf16 *y;            // [rows][n]: what down makes
  int n;
  float *partial;     // [2][gridDim.x][kSegmentsParts - 1][256 * kTileTokens]: of gate and up, of down; every bit set before and after
  int *dealt;         // [2] runs dealt, CTAs that asked in vain; 0 before and after
  int *done;          // [*count] of a tile of tokens: tiles of gate and up that are done; 0 before and after
  bool spread;        // the last expert's tiles, among the others'
  int slot_rows, w_slots; // tokens of a slot of activations; slots of weights
  int x_slot, w_ring;     // bytes of a slot of activations; where the ring of weights begins
  Waits *waits;       // may be null
};

// A run of column pairs of one tile, as the producer tells the consumers.
struct SegmentsRun {
  int row, tokens;    // of the tile; 0 tokens: there are no more
  int row_tile, pairs;
  int part, parts;    // of the tile
  int partial;        // where the tile's other parts leave their sums
  int first;          // pair
  int listed;         // the tile of tokens
  int down;           // of down, not of gate and up
};

// Of a CTA's shared memory, by what a kernel has there (Shared: kRun, kRunBars): its runs, each with two barriers.
template <class Shared> struct SegmentsRunPlaces {
  uint8_t *base; // the first multiple of 1,024
  __device__ explicit SegmentsRunPlaces(uint8_t *raw) : base(raw + (1024 - smem_address(raw) % 1024) % 1024) {}
  __device__ SegmentsRun *run(int slot) const { return (SegmentsRun *)(base + Shared::kRun) + slot; }
  __device__ uint64_t *run_full(int slot) const { return (uint64_t *)(base + Shared::kRunBars) + slot; }
  __device__ uint64_t *run_empty(int slot) const { return (uint64_t *)(base + Shared::kRunBars) + kSegmentsRuns + slot; }
};
constexpr int kSegmentsRunBytes = kSegmentsRuns * (int)sizeof(SegmentsRun), kSegmentsRunBars = 2 * kSegmentsRuns * 8;

template <class Places> __device__ __forceinline__ void segments_init_runs(const Places &at) {
  for (int i = 0; i < kSegmentsRuns; i++) {
    mbar_init(at.run_full(i), 1);
    mbar_init(at.run_empty(i), 10); // eight warps, two producers
  }
}

// Which run is the i-th. Whole: no tile is cut, and `spread` is not set.
template <bool Whole> struct SegmentsDeal {
  int tiles[2], cut[2], part_count[2]; // of gate and up, of down: how many; the last `cut` are
  int spread[2];                       // tiles of the last expert, dealt among the others
  int down, index, tile, part, parts;  // index: in the order they are dealt in

  __device__ SegmentsDeal(const LinearSegments &p, int count, int grid) {
    const int up = count * p.up.row_tiles, both = count * p.down.row_tiles;
    tiles[0] = up, tiles[1] = both;
    part_count[0] = p.up.parts, part_count[1] = p.down.parts;
    // Down fills what the last tiles of gate and up leave idle, unless it has to wait for them: where those are hardly more than one for
    // each CTA.
    cut[0] = !Whole && (both == 0 || up < 2 * grid) ? min(up, grid) : 0;
    cut[1] = Whole ? 0 : min(both, grid);
    const int last = !Whole && p.spread && count > 0 ? p.tiles[count - 1].across : 0;
    spread[0] = last * 2 <= count ? last * p.up.row_tiles : 0;
    spread[1] = last * 2 <= count ? last * p.down.row_tiles : 0;
  }
  // How many of `some` tiles are dealt before the i-th of `all`: those of gate and up early enough for down not to wait for them.
  __device__ int spread_before(int i, int all, int some) const {
    const int span = down ? all : all - all / 8;
    return min(some, (int)((int64_t)i * some / span));
  }
  __device__ bool take(int i) {
    const int first = tiles[0] - cut[0] + cut[0] * part_count[0];
    down = i >= first;
    if (down) i -= first;
    const int all = down ? tiles[1] : tiles[0], some = down ? cut[1] : cut[0], whole = all - some, rest = i - whole;
    index = i, part = 0, parts = 1;
    if (rest >= 0) {
      parts = down ? part_count[1] : part_count[0];
      if (rest >= some * parts) return false;
      index = whole + rest % some;
      part = parts - 1 - rest / some;
    }
    tile = index;
    const int last = down ? spread[1] : spread[0];
    if (!Whole && last > 0) {
      const int before = spread_before(index, all, last);
      tile = spread_before(index + 1, all, last) > before ? all - last + before : index - before;
    }
    return true;
  }
  // Where part `of` of so many column pairs begins. Four parts are as 4 : 6 : 8 : 10, those of few pairs equal.
  __device__ int first_pair(int pairs, int of) const {
    return Whole ? pairs * of : pairs < 16 ? pairs * of / parts : pairs * of * (of + 3) / (parts * (parts + 3));
  }
  // Where a cut tile's other parts leave their sums.
  __device__ int partial(int grid) const {
    if (Whole) return 0;
    return down ? (grid + index - tiles[1] + cut[1]) * (kSegmentsParts - 1) : (index - tiles[0] + cut[0]) * (kSegmentsParts - 1);
  }
};

struct SegmentsTile {
  TokenTile of;
  const uint8_t *w;
  int listed, row_tile, pairs;
};

// What was dealt. Tiles of the same expert that read the same weights are neighbours.
template <bool Whole> __device__ __forceinline__ SegmentsTile segments_tile(const LinearSegments &p, const SegmentsDeal<Whole> &deal) {
  const bool down = deal.down;
  const int row_tiles = down ? p.down.row_tiles : p.up.row_tiles;
  SegmentsTile t;
  t.listed = deal.tile / row_tiles;
  t.of = p.tiles[t.listed];
  t.row_tile = deal.tile % row_tiles;
  t.pairs = down ? p.down.x.pairs : p.up.x.pairs;
  if (t.of.across > 1) {
    const int first = t.listed - t.of.index, local = deal.tile - first * row_tiles;
    t.row_tile = local / t.of.across;
    t.listed = first + local % t.of.across;
    t.of = p.tiles[t.listed];
  }
  t.w = down ? p.down.w + (size_t)t.of.matrix * p.down.w_stride : p.up.w + (size_t)t.of.matrix * p.up.w_stride;
  return t;
}

// The k-th of a tile's four blocks of 64 outputs, of `blocks` of down. Behind its last: the last again, whose results are not stored twice.
__device__ __forceinline__ int segments_block(const LinearSegments &p, int row_tile, int k, int blocks, bool down) {
  return down ? min(4 * row_tile + k, blocks - 1) : (k / 2 ? p.up_block : 0) + 2 * row_tile + k % 2;
}

struct RingAt { // in one register
  int both; // slot + 64 * phase
  __device__ RingAt(int slot, int phase) : both(slot + phase * 64) {}
  __device__ int slot() const { return both & 63; }
  __device__ int phase() const { return both >> 6; }
  __device__ void step(int by, int slots) {
    both += by;
    if (slot() >= slots) both = (both - slots) ^ 64;
  }
};

// One thread: deals the runs, and has each one's weights loaded: load(tile, deal, first pair, the one behind the last, ask). `ask` is called
// once, as late as hides its way.
template <bool Whole, class Places, class Load>
__device__ __forceinline__ void segments_deal(const LinearSegments &p, const Places &at, const Load &load) {
  RingAt ring = {0, 1};
  SegmentsDeal<Whole> deal(p, *p.count, gridDim.x);
  int next = blockIdx.x;
  for (;;) {
    SegmentsTile tile = {};
    const bool more = deal.take(next);
    if (more) tile = segments_tile(p, deal);
    const int first = deal.first_pair(tile.pairs, deal.part), last = deal.first_pair(tile.pairs, deal.part + 1);
    mbar_wait(at.run_empty(ring.slot()), ring.phase());
    *at.run(ring.slot()) = {tile.of.row, tile.of.tokens, tile.row_tile, last - first, deal.part, deal.parts, deal.partial(gridDim.x), first,
                            tile.listed, deal.down};
    mbar_arrive(at.run_full(ring.slot()));
    if (!more) return;
    ring.step(1, kSegmentsRuns);
    load(tile, deal, first, last, [&] { next = gridDim.x + atomicAdd(p.dealt, 1); });
  }
}

// All of gate and up of a tile of tokens is done, or the step has failed. What follows are bulk copies of what threads stored.
__device__ __forceinline__ void segments_wait(const LinearSegments &p, int listed) {
  uint32_t start = 0;
  for (int tries = 0; load_acquire_gpu_int(&p.done[listed]) < p.up.row_tiles; tries++)
    if (!look_again_here(p.waits, tries, &start)) break;
  async_fence_all();
}

// One thread: the next run, which it gives back at once; false behind the last one.
template <class Places> __device__ __forceinline__ bool segments_take(const Places &at, const RingAt &ring, SegmentsRun *run) {
  mbar_wait(at.run_full(ring.slot()), ring.phase());
  *run = *at.run(ring.slot());
  if (run->tokens > 0) mbar_arrive(at.run_empty(ring.slot()));
  return run->tokens > 0;
}

// One thread: load(run) for every run, when its activations are there.
template <class Places, class Load> __device__ __forceinline__ void segments_feed(const LinearSegments &p, const Places &at, const Load &load) {
  RingAt ring = {0, 0};
  for (SegmentsRun run; segments_take(at, ring, &run); ring.step(1, kSegmentsRuns)) {
    if (run.down && p.up.row_tiles) segments_wait(p, run.listed);
    load(run);
  }
}

// Counts the tiles of gate and up that are done, one thread: their records are stored when all warps have given back the run.
template <class Places> __device__ __forceinline__ void segments_publish(const LinearSegments &p, const Places &at) {
  RingAt ring = {0, 0};
  for (SegmentsRun run; segments_take(at, ring, &run); ring.step(1, kSegmentsRuns)) {
    if (run.down || run.part > 0 || !p.down.row_tiles) continue;
    mbar_wait(at.run_empty(ring.slot()), ring.phase());
    async_fence_all();
    add_release_gpu_int(&p.done[run.listed], 1);
  }
}

// By the warp of the producer of activations, when that waits for nothing any more: the last one leaves everything as it was. Every count
// has come to its end by then, since each tile of tokens was waited for.
__device__ __forceinline__ void segments_leave(const LinearSegments &p) {
  const int lane = threadIdx.x % 32;
  int last = 0;
  if (lane == 0) {
    __threadfence();
    last = atomicAdd(p.dealt + 1, 1) == (int)gridDim.x - 1;
    __threadfence();
  }
  if (!__shfl_sync(~0u, last, 0)) return;
  if (p.up.row_tiles && p.down.row_tiles)
    for (int i = lane; i < *p.count; i += 32) p.done[i] = 0;
  if (lane < 2) p.dealt[lane] = 0;
}

// The third warpgroup.
template <class Places, class LoadW, class LoadX>
__device__ __forceinline__ void segments_produce(const LinearSegments &p, const Places &at, const LoadW &load_w, const LoadX &load_x) {
  const int tid = threadIdx.x;
  registers_shrink<40>();
  if (tid == 256) load_w();
  if (tid == 320) segments_publish(p, at);
  if (tid / 32 != 9) return;
  if (tid == 288) load_x();
  __syncwarp();
  segments_leave(p);
}

// The two warpgroups that compute: work(turn, tokens) for every run, the turn-th of this CTA.
template <class Places, class Work> __device__ __forceinline__ void segments_compute(const Places &at, const Work &work) {
  for (int turn = 0;; turn++) {
    mbar_wait(at.run_full(turn % kSegmentsRuns), turn / kSegmentsRuns & 1);
    const int tokens = at.run(turn % kSegmentsRuns)->tokens;
    if (tokens == 0) return;
    work(turn, tokens);
    __syncwarp();
    if (compute_here((int)threadIdx.x) % 32 == 0) mbar_arrive(at.run_empty(compute_here(turn) % kSegmentsRuns));
  }
}

// ---- linear_segments_wide.cu: e4m3, tiles of up to kWideTokens
void linear_segments_wide(LinearSegments p, int sms, cudaStream_t stream);
void linear_segments_wide_prepare();

} // namespace mob
