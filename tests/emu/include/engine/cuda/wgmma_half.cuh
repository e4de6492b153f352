// What engine/cuda/wgmma_half.cuh has, on the host.
#pragma once
#include "engine/cuda/wgmma.cuh"

namespace mob {

template <int N> struct WgmmaF16R {
  static void run(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
    emu::wgmma_issue({emu::WgmmaOp::F16_REGISTERS, N, add, d, 0, b, {a[0], a[1], a[2], a[3]}, 0});
  }
};

inline void store_matrices_turned(void *row, const uint32_t d[4]) { emu::store_matrices(row, d, true); }

} // namespace mob
