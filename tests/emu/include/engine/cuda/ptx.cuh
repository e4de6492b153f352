// What engine/cuda/ptx.cuh has, on the host.
#pragma once
#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#define DYNAMIC_SHARED(type, name) type *const name = (type *)emu::dynamic_shared()
#define DYNAMIC_SHARED_ALIGNED(bytes, type, name) DYNAMIC_SHARED(type, name)

namespace mob {

inline uint32_t smem_address(const void *p) { return emu::shared_address(p); }

inline int compute_here(int v) { return v; }

inline void mbar_init(uint64_t *bar, uint32_t arrivals) { emu::mbarrier_init(bar, arrivals); }
inline void mbar_init_fence() {}
inline void mbar_arrive_expect(uint64_t *bar, uint32_t bytes) { emu::mbarrier_arrive(bar, bytes); }
inline void mbar_arrive(uint64_t *bar) { emu::mbarrier_arrive(bar, 0); }
inline void mbar_wait(uint64_t *bar, uint32_t parity) { emu::mbarrier_wait(bar, parity); }

inline void bulk_load(void *dst, const void *src, uint32_t bytes, uint64_t *bar, uint64_t) { emu::copy_to_shared(dst, src, bytes, bar); }
inline void async_copy_16(void *dst, const void *src) { *(uint4 *)dst = *(const uint4 *)src; }
inline void async_copies_arrive(uint64_t *bar) { mbar_arrive(bar); }
inline uint64_t policy_evict_first() { return 0; }
inline uint64_t policy_evict_normal() { return 0; }
inline uint64_t policy_evict_last() { return 0; }

inline void store_policy(float *to, float v, uint64_t) { *to = v; }

inline int cluster_rank() { return emu::cluster_rank(); }
inline void cluster_sync() { emu::cluster_barrier(); }
inline uint32_t cluster_address(const void *p, int rank) { return emu::cluster_address(p, rank); }
inline void cluster_store(uint32_t to, float4 v) { *(float4 *)emu::cluster_pointer(to, 16) = v; }

// Kernels of a stream run one after the other.
inline void depend_wait() {}
inline void depend_launch() {}

// ---- words that others write and read at the same time
inline uint4 load_relaxed_gpu(const void *from) {
  const uint32_t *p = (const uint32_t *)from;
  return {__atomic_load_n(p, __ATOMIC_ACQUIRE), __atomic_load_n(p + 1, __ATOMIC_ACQUIRE), __atomic_load_n(p + 2, __ATOMIC_ACQUIRE),
          __atomic_load_n(p + 3, __ATOMIC_ACQUIRE)};
}
inline void store_relaxed_gpu(void *to, uint4 v) {
  uint32_t *p = (uint32_t *)to;
  __atomic_store_n(p, v.x, __ATOMIC_RELEASE);
  __atomic_store_n(p + 1, v.y, __ATOMIC_RELEASE);
  __atomic_store_n(p + 2, v.z, __ATOMIC_RELEASE);
  __atomic_store_n(p + 3, v.w, __ATOMIC_RELEASE);
}
inline void store_relaxed_gpu(void *to, float4 v) { store_relaxed_gpu(to, std::bit_cast<uint4>(v)); }
inline uint4 load_relaxed_sys(const void *from) { return load_relaxed_gpu(from); }
inline void store_relaxed_sys(void *to, uint4 v) { store_relaxed_gpu(to, v); }
inline uint64_t load_relaxed_sys_u64(const uint64_t *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
inline void store_relaxed_sys_u64(uint64_t *to, uint64_t v) { __atomic_store_n(to, v, __ATOMIC_RELEASE); }
inline int load_relaxed_sys_int(const int *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
inline void store_relaxed_sys_int(int *to, int v) { __atomic_store_n(to, v, __ATOMIC_RELEASE); }
inline void store_release_sys_int(int *to, int v) { __atomic_store_n(to, v, __ATOMIC_RELEASE); }
inline int load_acquire_sys_int(const int *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
inline void add_release_gpu_int(int *to, int v) { __atomic_fetch_add(to, v, __ATOMIC_ACQ_REL); }
inline int load_acquire_gpu_int(const int *from) { return __atomic_load_n(from, __ATOMIC_ACQUIRE); }
inline void spin_pause() { emu::spin(); }
inline uint64_t global_ns() { return (uint64_t)clock64(); }

inline float exp2_approx(float v) { return v < -126.0f ? 0.0f : std::exp2(v); }

inline uint32_t e4m3x2_to_half2(uint16_t pair) {
  const __half low = emu::e4m3_value((uint8_t)pair), high = emu::e4m3_value((uint8_t)(pair >> 8));
  return (uint32_t)high.bits << 16 | low.bits;
}

template <int Threads> inline void group_sync(int id) { emu::named_barrier(id, Threads); }
inline void async_fence() {}
inline void async_fence_all() {}
template <int Registers> inline void registers_grow() {}
template <int Registers> inline void registers_shrink() {}

inline void load_matrices(uint32_t d[4], const void *row) { emu::load_matrices(d, row, false); }
inline void load_matrices_turned(uint32_t d[4], const void *row) { emu::load_matrices(d, row, true); }
inline void store_matrices(void *row, const uint32_t d[4]) { emu::store_matrices(row, d); }
inline uint32_t turn_matrix(uint32_t v) { return emu::turn_matrix(v); }
inline void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2]) { emu::mma_16816(d, a, b, false); }
inline void mma_16816_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) { emu::mma_16816(d, a, b, true); }

} // namespace mob
