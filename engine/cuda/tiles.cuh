// The one layout of matrices in device memory, made once at load, read by every kernel: pairs of tiles.
//
// A tile is 64 rows of 128 bytes (128 e4m3 or 64 bf16 columns); row r at r * 128, its 16-byte chunk c (0..7) at position
// c ^ (r & 7): wgmma's 128-byte swizzle. Two tiles beside each other make a pair, the unit of the bulk copies (the
// memory gives 4.6 TB/s to them and 4.2 to single tiles):
//   first tile 8,192 | second tile 8,192 | their two fp32 scales | 24 bytes of nothing | 96 that no copy needs
// so that both tiles lie at multiples of 1,024 when the copy does, as operands of wgmma must, and a scale costs no load of its own.
// A pair begins at a multiple of 128: else most lines of the L2 are asked for twice, by each of the 128-byte steps of a copy they lie in.
//   pair(rb, p) at (rb * pairs + p) * 16512     rb = row / 64, p = column / (2 * columns of a tile), pairs = K / (2 * columns of a tile)
// N is padded to 64 with zero rows, K to a whole pair with zero columns.
//
// Activations are records of the same column pairs for all rows (mp = rows padded to 8):
//   record(p) at p * mp * 264 (e4m3) or p * mp * 256 (bf16): mp rows of the first tile's columns, swizzled alike, mp rows of the
//   second's, then (e4m3) mp scales of the first, mp of the second
#pragma once
#include <cstddef>
#include <cstdint>

namespace mob {

constexpr int kTileRows = 64, kTileBytes = 8192, kPairScales = 2 * kTileBytes;
constexpr int kPairUsed = kPairScales + 32, kPairBytes = kPairScales + 128; // of a copy; from a pair to the next

// Byte of (row, byte column) of a matrix of `pairs` pairs a row block; a byte column is the column for e4m3, twice it for bf16.
__host__ __device__ inline size_t tile_offset(int64_t row, int64_t byte, int64_t pairs) {
  const int64_t r = row % kTileRows, c = byte % 128;
  return (size_t)((row / kTileRows) * pairs + byte / 256) * kPairBytes + (size_t)(byte / 128 % 2) * kTileBytes +
         (size_t)(r * 128 + (((c >> 4) ^ (r & 7)) << 4) + (c & 15));
}
__host__ __device__ inline size_t scale_offset(int64_t row, int64_t byte, int64_t pairs) {
  return (size_t)((row / kTileRows) * pairs + byte / 256) * kPairBytes + kPairScales + (size_t)(byte / 128 % 2) * 4;
}

} // namespace mob
