// wgmma, both operands in shared memory, 128-byte swizzle, float sums in registers [wgmma.mma_async].
// A: 64 rows, B: N rows of 128 bytes (K-major). D of a warpgroup: register 4 j + q of a lane is row
// 16 warp + lane / 4 + 8 (q / 2), column 8 j + 2 (lane % 4) + q % 2. Lists of registers cannot be written by
// a template: macros write them.
#pragma once
#include <cstdint>

#include "engine/cuda/ptx.cuh"

namespace mob {

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Left> __device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Left) : "memory");
}

// Matrix descriptor of a 128-byte-swizzled operand whose rows are 128 bytes apart; 32 bytes of K further: + 2.
__device__ __forceinline__ uint64_t swizzled_operand(const void *p) {
  return (uint64_t)(smem_address(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

// The same as a word that alone depends on the address, where registers are dear; 16 bytes further: + 1.
__device__ __forceinline__ uint32_t operand_word(const void *p) { return smem_address(p) >> 4 | 1u << 16; }
__device__ __forceinline__ uint64_t operand_of(uint32_t word) { return (uint64_t)(1u << 30 | 1024 >> 4) << 32 | word; }

// B stored with N contiguous (64 columns of bf16 = 128 bytes a row, rows are K): boxes of 64 columns `box` bytes apart.
__device__ __forceinline__ uint64_t swizzled_operand_mn(const void *p, uint32_t box) {
  return (uint64_t)(smem_address(p) >> 4 & 0x3fff) | (uint64_t)(box >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 |
         (uint64_t)1 << 62;
}

// Keeps the compiler from moving the use of sums across the instructions that compute them.
template <int Words> __device__ __forceinline__ void keep_registers(float (&v)[Words]) {
#pragma unroll
  for (int i = 0; i < Words; i++) asm volatile("" : "+f"(v[i])::"memory");
}

template <int N> struct WgmmaF8;   // e4m3 x e4m3, 32 of K
template <int N> struct WgmmaB16;  // bf16 x bf16, 16 of K
template <int N> struct WgmmaB16T; // the same, B with N contiguous
template <int N> struct WgmmaB16R; // that with A in registers (mma.sync's fragments)
template <int N> struct WgmmaB16A; // bf16 x bf16, A in registers

// ---- the sums, N / 2 a lane: in the text of an instruction, and as its operands.
#define MOB_TEXT_4 "%0, %1, %2, %3"
#define MOB_TEXT_8 MOB_TEXT_4 ", %4, %5, %6, %7"
#define MOB_TEXT_16 MOB_TEXT_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define MOB_TEXT_24 MOB_TEXT_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define MOB_TEXT_32 MOB_TEXT_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define MOB_TEXT_40 MOB_TEXT_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define MOB_TEXT_48 MOB_TEXT_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define MOB_TEXT_64 MOB_TEXT_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MOB_TEXT_96 MOB_TEXT_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87" \
  ", %88, %89, %90, %91, %92, %93, %94, %95"
#define MOB_TEXT_128 MOB_TEXT_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115" \
  ", %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MOB_SUMS4(at) "+f"(d[at]), "+f"(d[at + 1]), "+f"(d[at + 2]), "+f"(d[at + 3])
#define MOB_SUMS8(at) MOB_SUMS4(at), MOB_SUMS4(at + 4)
#define MOB_SUMS16(at) MOB_SUMS8(at), MOB_SUMS8(at + 8)
#define MOB_SUMS32(at) MOB_SUMS16(at), MOB_SUMS16(at + 16)
#define MOB_SUMS64(at) MOB_SUMS32(at), MOB_SUMS32(at + 32)
#define MOB_OPERANDS_4 MOB_SUMS4(0)
#define MOB_OPERANDS_8 MOB_SUMS8(0)
#define MOB_OPERANDS_16 MOB_SUMS16(0)
#define MOB_OPERANDS_24 MOB_SUMS16(0), MOB_SUMS8(16)
#define MOB_OPERANDS_32 MOB_SUMS32(0)
#define MOB_OPERANDS_40 MOB_SUMS32(0), MOB_SUMS8(32)
#define MOB_OPERANDS_48 MOB_SUMS32(0), MOB_SUMS16(32)
#define MOB_OPERANDS_64 MOB_SUMS64(0)
#define MOB_OPERANDS_96 MOB_SUMS64(0), MOB_SUMS32(64)
#define MOB_OPERANDS_128 MOB_SUMS64(0), MOB_SUMS64(64)

// Family<n> with `sums` of them a lane. What follows those among the operands: a, b, add by their numbers. kind: K and the types; rest: how
// operands in shared memory lie.
#define MOB_WGMMA(Family, n, sums, a_number, b_number, add_number, kind, rest)                                                      \
  template <> struct Family<n> {                                                                                                    \
    static __device__ __forceinline__ void run(float (&d)[sums], uint64_t a, uint64_t b, int add) {                                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_number ", 0;\n"                                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #n kind " {" MOB_TEXT_##sums "}, %" #a_number ", %" #b_number ", p, 1, 1" rest ";\n}\n" \
                   : MOB_OPERANDS_##sums                                                                                            \
                   : "l"(a), "l"(b), "r"(add));                                                                                     \
    }                                                                                                                               \
  };
// The same with A in four registers.
#define MOB_WGMMA_REGISTERS(Family, n, sums, a0, a1, a2, a3, b_number, add_number, kind, rest)                                      \
  template <> struct Family<n> {                                                                                                    \
    static __device__ __forceinline__ void run(float (&d)[sums], const uint32_t (&a)[4], uint64_t b, int add) {                     \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #add_number ", 0;\n"                                                        \
                   "wgmma.mma_async.sync.aligned.m64n" #n kind " {" MOB_TEXT_##sums "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3       \
                   "}, %" #b_number ", p, 1, 1" rest ";\n}\n"                                                                       \
                   : MOB_OPERANDS_##sums                                                                                            \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                                                 \
    }                                                                                                                               \
  };

MOB_WGMMA(WgmmaF8, 8, 4, 4, 5, 6, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaF8, 16, 8, 8, 9, 10, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaF8, 32, 16, 16, 17, 18, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaF8, 64, 32, 32, 33, 34, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaF8, 80, 40, 40, 41, 42, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaF8, 96, 48, 48, 49, 50, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaF8, 128, 64, 64, 65, 66, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaF8, 192, 96, 96, 97, 98, "k32.f32.e4m3.e4m3", "")
MOB_WGMMA(WgmmaB16, 8, 4, 4, 5, 6, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 16, 8, 8, 9, 10, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 32, 16, 16, 17, 18, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 48, 24, 24, 25, 26, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 64, 32, 32, 33, 34, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 80, 40, 40, 41, 42, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 96, 48, 48, 49, 50, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 128, 64, 64, 65, 66, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16, 192, 96, 96, 97, 98, "k16.f32.bf16.bf16", ", 0, 0")
MOB_WGMMA(WgmmaB16T, 256, 128, 128, 129, 130, "k16.f32.bf16.bf16", ", 0, 1")
MOB_WGMMA_REGISTERS(WgmmaB16A, 64, 32, 32, 33, 34, 35, 36, 37, "k16.f32.bf16.bf16", ", 0")
MOB_WGMMA_REGISTERS(WgmmaB16R, 64, 32, 32, 33, 34, 35, 36, 37, "k16.f32.bf16.bf16", ", 1")
MOB_WGMMA_REGISTERS(WgmmaB16R, 128, 64, 64, 65, 66, 67, 68, 69, "k16.f32.bf16.bf16", ", 1")
MOB_WGMMA_REGISTERS(WgmmaB16R, 256, 128, 128, 129, 130, 131, 132, 133, "k16.f32.bf16.bf16", ", 1")

#undef MOB_WGMMA
#undef MOB_WGMMA_REGISTERS

} // namespace mob
