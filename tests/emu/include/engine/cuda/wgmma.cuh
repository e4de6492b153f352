// What engine/cuda/wgmma.cuh has, on the host.
#pragma once
#include <cstdint>

#include "engine/cuda/ptx.cuh"

namespace mob {

inline void wgmma_fence() {}
inline void wgmma_commit() { emu::wgmma_commit_group(); }
template <int Left> inline void wgmma_wait() { emu::wgmma_wait_groups(Left); }

inline uint64_t swizzled_operand(const void *p) {
  return (uint64_t)(smem_address(p) >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}
inline uint32_t operand_word(const void *p) { return smem_address(p) >> 4 | 1u << 16; }
inline uint64_t operand_of(uint32_t word) { return (uint64_t)(1u << 30 | 1024 >> 4) << 32 | word; }
inline uint64_t swizzled_operand_mn(const void *p, uint32_t box) {
  return (uint64_t)(smem_address(p) >> 4 & 0x3fff) | (uint64_t)(box >> 4) << 16 | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

template <int Words> inline void keep_registers(float (&)[Words]) {}

namespace wgmma_detail {
template <emu::WgmmaOp::Kind Kind, int N> struct Shared {
  static void run(float (&d)[N / 2], uint64_t a, uint64_t b, int add) { emu::wgmma_issue({Kind, N, add, d, a, b, {}, 0}); }
};
template <emu::WgmmaOp::Kind Kind, int N> struct Registers {
  static void run(float (&d)[N / 2], const uint32_t (&a)[4], uint64_t b, int add) {
    emu::wgmma_issue({Kind, N, add, d, 0, b, {a[0], a[1], a[2], a[3]}, 0});
  }
};
} // namespace wgmma_detail

template <int N> struct WgmmaF8 : wgmma_detail::Shared<emu::WgmmaOp::E4M3, N> {};
template <int N> struct WgmmaB16 : wgmma_detail::Shared<emu::WgmmaOp::BF16, N> {};
template <int N> struct WgmmaB16T : wgmma_detail::Shared<emu::WgmmaOp::BF16_TURNED, N> {};
template <int N> struct WgmmaB16A : wgmma_detail::Registers<emu::WgmmaOp::BF16_REGISTERS, N> {};
template <int N> struct WgmmaB16R : wgmma_detail::Registers<emu::WgmmaOp::BF16_REGISTERS_TURNED, N> {};

} // namespace mob
