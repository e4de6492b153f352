// Launches of the experts' linears over gathered tokens.
#include "linear_segments.cuh"

namespace mob {
namespace {

using Shared = SegmentsShared;

SegmentsProduct product(const Matrix &w, uint8_t *x, int row_tiles) {
  const int pairs = (int)column_pairs(w);
  return {w.data, w.stride, {x, pairs, w.kind == Weights::F8}, row_tiles, segments_parts(pairs)};
}

void run(LinearSegments p, Weights kind, const TokenTile *tiles, const int *count, int most, const LinearScratch &s, cudaStream_t stream) {
  p.tiles = tiles;
  p.count = count;
  p.partial = s.segments_partial;
  p.dealt = s.dealt;
  p.done = s.segments_done;
  p.waits = s.waits;
  if (most == kWideTokens) {
    linear_segments_wide(p, s.sms, stream);
    return;
  }
  p.spread = most > kLeastTile;
  p.slot_rows = most;
  p.x_slot = Shared::x_slot(most);
  p.w_ring = Shared::kRings + Shared::kX * p.x_slot;
  const int left = Shared::kMost - Shared::bytes(most, 0);
  p.w_slots = left / Shared::kWSlot < Shared::kMostW ? left / Shared::kWSlot : Shared::kMostW;
  p.w_slots -= p.w_slots % 2; // a slot is always the same warpgroup's: else one that is ahead could mistake a phase for the next but one
  launch(kind == Weights::F8 ? linear_segments_kernel<true> : linear_segments_kernel<false>, s.sms, 384, Shared::bytes(most, p.w_slots), stream, p);
}

LinearSegments gate_and_up(const Matrix &up, int inter, int up_at, uint8_t *x, const TileRows &act, bool ue8m0) {
  LinearSegments p = {};
  p.up = product(up, x, inter / 128);
  p.act = act;
  p.up_block = up_at / kTileRows;
  p.ue8m0 = ue8m0;
  p.down.parts = 1;
  return p;
}

void then_down(LinearSegments *p, const Matrix &down, uint8_t *x, bf16 *y) {
  p->down = product(down, x, (down.n + 255) / 256);
  p->y = y;
  p->n = down.n;
}

} // namespace

void linear_segments_prepare() {
  linear_segments_wide_prepare();
  cudaFuncSetAttribute(linear_segments_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared::kMost);
  cudaFuncSetAttribute(linear_segments_kernel<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared::kMost);
}

void linear_segments(const Matrix &w, const TokenTile *tiles, const int *count, uint8_t *x, bf16 *y, int most, const LinearScratch &s,
                     cudaStream_t stream) {
  LinearSegments p = {};
  p.up.parts = 1;
  then_down(&p, w, x, y);
  run(p, w.kind, tiles, count, most, s, stream);
}

void linear_segments_gated(const Matrix &up, int inter, int up_at, const TokenTile *tiles, const int *count, uint8_t *x, const TileRows &act,
                           bool ue8m0, int most, const LinearScratch &s, cudaStream_t stream) {
  run(gate_and_up(up, inter, up_at, x, act, ue8m0), up.kind, tiles, count, most, s, stream);
}

void linear_segments_both(const Matrix &up, int inter, int up_at, const Matrix &down, const TokenTile *tiles, const int *count, uint8_t *x,
                          const TileRows &act, bool ue8m0, bf16 *y, int most, const LinearScratch &s, cudaStream_t stream) {
  LinearSegments p = gate_and_up(up, inter, up_at, x, act, ue8m0);
  then_down(&p, down, act.data, y);
  run(p, up.kind, tiles, count, most, s, stream);
}

} // namespace mob
