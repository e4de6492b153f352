// Launches of the experts' linears over gathered tokens.
#include "linear_segments.cuh"

namespace mob {
namespace {

using Shared = SegmentsShared;

template <bool Fp8, bool Gated> void run(const LinearSegments &p, int sms, cudaStream_t stream) {
  launch(linear_segments_kernel<Fp8, Gated>, sms, 384, Shared::bytes(p.slot_rows, p.w_slots), stream, p);
}
template <bool Fp8, bool Gated> void set_limit() {
  cudaFuncSetAttribute(linear_segments_kernel<Fp8, Gated>, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared::kMost);
}

LinearSegments params(const Matrix &w, const TokenTile *tiles, const int *count, uint8_t *x, int tile, const LinearScratch &s) {
  LinearSegments p = {};
  p.w = w.data;
  p.w_stride = w.stride;
  p.tiles = tiles;
  p.count = count;
  p.x = {x, (int)column_pairs(w), w.kind == Weights::F8};
  p.partial = s.segments_partial;
  p.dealt = s.dealt;
  p.waits = s.waits;
  p.n = w.n;
  p.parts = segments_parts(p.x.pairs);
  p.slot_rows = tile;
  p.x_slot = Shared::x_slot(tile);
  p.w_ring = Shared::kRings + Shared::kX * p.x_slot;
  const int left = Shared::kMost - Shared::bytes(p.slot_rows, 0);
  p.w_slots = left / Shared::kWSlot < Shared::kMostW ? left / Shared::kWSlot : Shared::kMostW;
  p.w_slots -= p.w_slots % 2; // a slot is always the same warpgroup's: else one that is ahead could mistake a phase for the next but one
  return p;
}

} // namespace

void linear_segments_prepare() {
  set_limit<true, false>();
  set_limit<true, true>();
  set_limit<false, false>();
  set_limit<false, true>();
}

void linear_segments(const Matrix &w, const TokenTile *tiles, const int *count, uint8_t *x, bf16 *y, int tile, const LinearScratch &s,
                     cudaStream_t stream) {
  LinearSegments p = params(w, tiles, count, x, tile, s);
  p.y = y;
  p.ldy = w.n;
  p.row_tiles = (w.n + 255) / 256;
  if (w.kind == Weights::F8) run<true, false>(p, s.sms, stream);
  else run<false, false>(p, s.sms, stream);
}

void linear_segments_gated(const Matrix &w, int inter, int up_at, const TokenTile *tiles, const int *count, uint8_t *x, const TileRows &act,
                           bool ue8m0, int tile, const LinearScratch &s, cudaStream_t stream) {
  LinearSegments p = params(w, tiles, count, x, tile, s);
  p.act = act;
  p.ue8m0 = ue8m0;
  p.up_block = up_at / kTileRows;
  p.row_tiles = inter / 128;
  if (w.kind == Weights::F8) run<true, true>(p, s.sms, stream);
  else run<false, true>(p, s.sms, stream);
}

} // namespace mob
