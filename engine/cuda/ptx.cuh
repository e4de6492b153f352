// The Hopper instructions that CUDA C++ has no word for, one thin function each (PTX ISA 8.x names in brackets).
#pragma once
#include <cstdint>
#include <cuda_fp16.h>

// A kernel's dynamic shared memory, declared within the kernel.
#define DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#define DYNAMIC_SHARED_ALIGNED(bytes, type, name) extern __shared__ __align__(bytes) type name[]

namespace mob {

__device__ __forceinline__ uint32_t smem_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// The compiler does not compute what follows from `v` before this point: not once for several branches, which then hold it for long.
__device__ __forceinline__ int compute_here(int v) {
  asm volatile("" : "+r"(v));
  return v;
}

// ---- mbarrier: counts arrivals and bytes of bulk copies; a phase completes when both are there.
__device__ __forceinline__ void mbar_init(uint64_t *bar, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)), "r"(arrivals) : "memory");
}
// Makes initialised barriers visible to the bulk-copy engine.
__device__ __forceinline__ void mbar_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
__device__ __forceinline__ void mbar_arrive_expect(uint64_t *bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(bar)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void mbar_arrive(uint64_t *bar) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(bar)) : "memory");
}
__device__ __forceinline__ void mbar_wait(uint64_t *bar, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1, 0x989680;\n"
      "@done bra ready;\n"
      "bra again;\n"
      "ready:\n"
      "}\n" ::"r"(smem_address(bar)),
      "r"(parity)
      : "memory");
}

// ---- bulk copy, global to shared: 16-byte aligned, a multiple of 16 bytes [cp.async.bulk].
__device__ __forceinline__ void bulk_load(void *dst, const void *src, uint32_t bytes, uint64_t *bar, uint64_t policy) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::
                   "r"(smem_address(dst)),
               "l"(src), "r"(bytes), "r"(smem_address(bar)), "l"(policy)
               : "memory");
}
// 16 bytes, global to shared, by the threads' own way; the barrier counts a thread when all copies that it asked for before are there
// [cp.async, cp.async.mbarrier.arrive].
__device__ __forceinline__ void async_copy_16(void *dst, const void *src) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem_address(dst)), "l"(src) : "memory");
}
__device__ __forceinline__ void async_copies_arrive(uint64_t *bar) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(smem_address(bar)) : "memory");
}
// Weights are read once a step: they should not push activations out of the L2 [createpolicy].
__device__ __forceinline__ uint64_t policy_evict_first() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t policy_evict_normal() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}
__device__ __forceinline__ uint64_t policy_evict_last() {
  uint64_t policy;
  asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// A word that stays in the L2, of which its neighbours are written later: a sector that leaves in part is read again.
__device__ __forceinline__ void store_policy(float *to, float v, uint64_t policy) {
  asm volatile("st.global.L2::cache_hint.f32 [%0], %1, %2;" ::"l"(to), "f"(v), "l"(policy) : "memory");
}

// ---- clusters: CTAs that run at the same time and reach one another's shared memory. A CTA of a launch without is a cluster of its own.
__device__ __forceinline__ int cluster_rank() {
  int rank;
  asm volatile("mov.u32 %0, %cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Meeting of the cluster's threads that still run, with all that they stored before; whole warps [barrier.cluster].
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// Where CTA `rank` has what this one has at `p` of its shared memory [mapa].
__device__ __forceinline__ uint32_t cluster_address(const void *p, int rank) {
  uint32_t out;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(smem_address(p)), "r"(rank));
  return out;
}
__device__ __forceinline__ void cluster_store(uint32_t to, float4 v) {
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}

// ---- programmatic dependent launch: work before depend_wait() overlaps the previous kernel [griddepcontrol].
__device__ __forceinline__ void depend_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ __forceinline__ void depend_launch() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

// ---- words that another kernel, GPU or the host writes or reads at the same time. Each 32-bit (`u64`: 64-bit) word arrives whole; in
// which order they arrive is not promised. `gpu`: this GPU's kernels; `sys`: other GPUs and the host too [ld.relaxed, st.relaxed].
__device__ __forceinline__ uint4 load_relaxed_gpu(const void *from) {
  uint4 v;
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed_gpu(void *to, uint4 v) {
  asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ void store_relaxed_gpu(void *to, float4 v) {
  asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(to), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w) : "memory");
}
__device__ __forceinline__ uint4 load_relaxed_sys(const void *from) {
  uint4 v;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed_sys(void *to, uint4 v) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1,%2,%3,%4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ uint64_t load_relaxed_sys_u64(const uint64_t *from) {
  uint64_t v;
  asm volatile("ld.relaxed.sys.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed_sys_u64(uint64_t *to, uint64_t v) {
  asm volatile("st.relaxed.sys.global.u64 [%0], %1;" ::"l"(to), "l"(v) : "memory");
}
__device__ __forceinline__ int load_relaxed_sys_int(const int *from) {
  int v;
  asm volatile("ld.relaxed.sys.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ void store_relaxed_sys_int(int *to, int v) {
  asm volatile("st.relaxed.sys.global.s32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
// With everything that this thread, and kernels before this one, stored or saw before [st.release, ld.acquire].
__device__ __forceinline__ void store_release_sys_int(int *to, int v) {
  asm volatile("st.release.sys.global.s32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
__device__ __forceinline__ int load_acquire_sys_int(const int *from) {
  int v;
  asm volatile("ld.acquire.sys.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
// The same among this GPU's kernels [red.release, ld.acquire].
__device__ __forceinline__ void add_release_gpu_int(int *to, int v) {
  asm volatile("red.release.gpu.global.add.s32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
__device__ __forceinline__ int load_acquire_gpu_int(const int *from) {
  int v;
  asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
  return v;
}
// Between two looks at such a word.
__device__ __forceinline__ void spin_pause() {}
// The GPU's clock in nanoseconds [globaltimer].
__device__ __forceinline__ uint64_t global_ns() {
  uint64_t t;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(t));
  return t;
}

// ---- 2^v to 2 ulp; results below 2^-126 are 0 [ex2.approx.ftz].
__device__ __forceinline__ float exp2_approx(float v) {
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(v));
  return out;
}

// ---- e4m3 pairs to half pairs: exact.
__device__ __forceinline__ uint32_t e4m3x2_to_half2(uint16_t pair) {
  uint32_t out;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(pair));
  return out;
}

// ---- meeting of some of a block's warps; ids 1 to 15 [bar.sync].
template <int Threads> __device__ __forceinline__ void group_sync(int id) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "n"(Threads) : "memory");
}
// This thread's writes to shared memory, seen by wgmma and bulk copies that follow a meeting [fence.proxy.async].
__device__ __forceinline__ void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// The same of global memory too: by the threads that write, before they say so, and by the one that copies, when it has heard of it.
__device__ __forceinline__ void async_fence_all() { asm volatile("fence.proxy.async;" ::: "memory"); }
// ---- a warpgroup's registers a thread, a multiple of 8 [setmaxnreg].
template <int Registers> __device__ __forceinline__ void registers_grow() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers> __device__ __forceinline__ void registers_shrink() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

// ---- four 8 x 8 matrices of 16-bit words: lane 8 i + r brings the address of row r of matrix i, 16 bytes. Word i of a lane is
// row lane / 4, columns 2 (lane % 4) and the next of matrix i; turned: rows and columns exchanged [ldmatrix].
__device__ __forceinline__ void load_matrices(uint32_t d[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(smem_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrices_turned(uint32_t d[4], const void *row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(smem_address(row))
               : "memory");
}

// The way back [stmatrix].
__device__ __forceinline__ void store_matrices(void *row, const uint32_t d[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(smem_address(row)), "r"(d[0]), "r"(d[1]),
               "r"(d[2]), "r"(d[3])
               : "memory");
}

// An 8 x 8 matrix of 16-bit words, two a lane as above, rows and columns exchanged [movmatrix].
__device__ __forceinline__ uint32_t turn_matrix(uint32_t v) {
  uint32_t out;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(v));
  return out;
}

// ---- D += A(16x16, row) * B(16x8, col), half inputs, float sums [mma.sync.m16n8k16].
__device__ __forceinline__ void mma_16816(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The same with bf16 inputs.
__device__ __forceinline__ void mma_16816_bf16(float d[4], const uint32_t a[4], const uint32_t b[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

} // namespace mob
