// wgmma of halves with A in registers (mma.sync's fragments) and B K-major in shared memory, and the way of its sums, as 16-bit words,
// to shared memory with rows and columns exchanged. The rest as in wgmma.cuh.
#pragma once
#include "engine/cuda/wgmma.cuh"

namespace mob {

template <int N> struct WgmmaF16R;

#define MOB_WGMMA_HALF(n, sums, a0, a1, a2, a3, b_number, add_number)                                                                \
  template <> struct WgmmaF16R<n> {                                                                                                   \
    static __device__ __forceinline__ void run(float (&d)[sums], const uint32_t (&a)[4], uint64_t b, int add) {                       \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_number ", 0;\n"                                                          \
                   "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.f16.f16 {" MOB_TEXT_##sums "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 \
                   "}, %" #b_number ", p, 1, 1, 0;\n}\n"                                                                              \
                   : MOB_OPERANDS_##sums                                                                                              \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                                   \
    }                                                                                                                                 \
  };
MOB_WGMMA_HALF(16, 8, 8, 9, 10, 11, 12, 13)
MOB_WGMMA_HALF(32, 16, 16, 17, 18, 19, 20, 21)
MOB_WGMMA_HALF(64, 32, 32, 33, 34, 35, 36, 37)
#undef MOB_WGMMA_HALF

// store_matrices() with each matrix's rows and columns exchanged: a lane's word holds two rows of one column [stmatrix.trans].
__device__ __forceinline__ void store_matrices_turned(void *row, const uint32_t d[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_address(row)), "r"(d[0]), "r"(d[1]),
               "r"(d[2]), "r"(d[3])
               : "memory");
}

} // namespace mob
