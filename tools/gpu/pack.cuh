// The one layout of FP8 matrices in device memory, made once at load, read by every kernel.
//
// Weight W [N][K] e4m3, row-major in the checkpoint, becomes tiles of 64 rows x 128 columns, 8,208 bytes each:
//   tile(rb, kb) at (rb * K/128 + kb) * 8208     rb = row / 64, kb = column / 128
//   inside: row r at r * 128, its 16-byte chunk c (0..7) at position c ^ (r & 7); then the tile's fp32 scale and 12 bytes of nothing
// This is wgmma's 128-byte swizzle (8 rows x 128 bytes), so that a tile is one contiguous bulk copy for the few-token
// kernels and an operand of wgmma as it lies. N is padded to 64 with zero rows, K to 256 with zero
// columns: two tiles, 16,416 bytes, are the unit of the bulk copies (the memory gives 4.6 TB/s to them and 4.2 to single tiles). The scale travels with its
// tile, because a load of its own would cost the latency of the memory once a tile.
//
// Activations X [M][K], quantised 1 x 128, become records of one column block for all tokens (Mp = M padded to 8):
//   record(kb) at kb * Mp * 132: Mp rows of 128 bytes, swizzled alike, then Mp fp32 scales
#pragma once
#include <cstddef>
#include <cstdint>

namespace mob {

constexpr int kTileRows = 64, kTileCols = 128, kTileBytes = kTileRows * kTileCols, kTilePitch = kTileBytes + 16;

__host__ __device__ inline size_t tile_offset(int64_t row, int64_t col, int64_t k) {
  int64_t r = row % kTileRows, c = col % kTileCols;
  return (size_t)((row / kTileRows) * (k / kTileCols) + col / kTileCols) * kTilePitch +
         (size_t)(r * 128 + (((c >> 4) ^ (r & 7)) << 4) + (c & 15));
}

__host__ __device__ inline size_t record_bytes(int padded_tokens) { return (size_t)padded_tokens * 132; }

__host__ __device__ inline size_t record_offset(int token, int64_t col, int padded_tokens) {
  int c = (int)(col % 128);
  return (size_t)(col / 128) * record_bytes(padded_tokens) +
         (size_t)(token * 128 + (((c >> 4) ^ (token & 7)) << 4) + (c & 15));
}

} // namespace mob
