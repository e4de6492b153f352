// The words of CUDA C++ that device code uses. What is missing here does not compile: it must be added with its true meaning.
#ifndef MOB_EMU_DEVICE_H
#define MOB_EMU_DEVICE_H

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "emu/block.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __grid_constant__
// A block is one OS thread. (A local thread_local variable is static.)
#define __shared__ thread_local
#define __ldg(p) (*(p))

constexpr int warpSize = 32;

// ---- vectors
#define EMU_VECTORS(name, type)                                                                                             \
  struct alignas(2 * sizeof(type)) name##2 { type x, y; };                                                                  \
  struct name##3 { type x, y, z; };                                                                                         \
  struct alignas(sizeof(type) < 8 ? 4 * sizeof(type) : 16) name##4 { type x, y, z, w; };                                    \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                                                          \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }                                               \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
EMU_VECTORS(float, float)
EMU_VECTORS(int, int)
EMU_VECTORS(uchar, unsigned char)
EMU_VECTORS(ushort, unsigned short)
EMU_VECTORS(double, double)
EMU_VECTORS(longlong, long long)
EMU_VECTORS(ulonglong, unsigned long long)
#undef EMU_VECTORS
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- arithmetic
template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin((T)a, (T)b);
  else return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax((T)a, (T)b);
  else return (T)a < (T)b ? (T)b : (T)a;
}
inline uint32_t __float_as_uint(float v) { return std::bit_cast<uint32_t>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(uint32_t v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
inline float __expf(float v) { return std::exp(v); }
inline float __logf(float v) { return std::log(v); }
inline float __log2f(float v) { return std::log2(v); }
inline float __exp2f(float v) { return std::exp2(v); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __frcp_rn(float v) { return 1.0f / v; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline float __saturatef(float v) { return v > 0 ? v < 1 ? v : 1 : 0; }
inline int __float2int_rn(float v) { return (int)std::nearbyint(v); }
inline int __float2int_rz(float v) { return (int)v; }
inline float __int2float_rn(int v) { return (float)v; }
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero((unsigned)v); }
inline int __clzll(long long v) { return std::countl_zero((unsigned long long)v); }
inline int __ffs(int v) { return v ? std::countr_zero((unsigned)v) + 1 : 0; }
inline int __ffsll(long long v) { return v ? std::countr_zero((unsigned long long)v) + 1 : 0; }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return (unsigned long long)((unsigned __int128)a * b >> 64);
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned pick) {
  const uint64_t both = (uint64_t)b << 32 | a;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) {
    const unsigned s = pick >> 4 * i & 15, byte = (unsigned)(both >> 8 * (s & 7)) & 255;
    out |= (s & 8 ? (byte & 128 ? 255u : 0u) : byte) << 8 * i;
  }
  return out;
}

// ---- lanes
namespace emu {
struct Shuffle {
  uint64_t value;
  int from;
};
inline void shuffle(void *const *args) {
  uint64_t values[32];
  for (int i = 0; i < 32; i++) values[i] = args[i] ? ((Shuffle *)args[i])->value : 0xdeadbeefdeadbeefull;
  for (int i = 0; i < 32; i++)
    if (args[i]) ((Shuffle *)args[i])->value = values[((Shuffle *)args[i])->from];
}
template <class T> T shuffled(uint32_t mask, const char *what, T v, int from) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Shuffle s = {0, from};
  memcpy(&s.value, &v, sizeof v);
  meet_warp(mask, what, &s, shuffle);
  memcpy(&v, &s.value, sizeof v);
  return v;
}
struct Vote {
  bool yes;
  uint32_t result;
};
inline void vote(void *const *args) {
  uint32_t result = 0;
  for (int i = 0; i < 32; i++) result |= (args[i] && ((Vote *)args[i])->yes ? 1u : 0u) << i;
  for (int i = 0; i < 32; i++)
    if (args[i]) ((Vote *)args[i])->result = result;
}
inline uint32_t voted(uint32_t mask, const char *what, bool yes) {
  Vote v = {yes, 0};
  meet_warp(mask, what, &v, vote);
  return v.result;
}
struct Sum {
  uint64_t value;
  int kind;
};
inline void combine(void *const *args) {
  bool first = true;
  uint64_t all = 0;
  for (int i = 0; i < 32; i++) {
    if (!args[i]) continue;
    const Sum *s = (Sum *)args[i];
    const uint32_t a = (uint32_t)all, v = (uint32_t)s->value;
    if (first) all = v;
    else if (s->kind == 0) all = a + v;
    else if (s->kind == 1) all = a > v ? a : v;
    else if (s->kind == 2) all = a < v ? a : v;
    else if (s->kind == 3) all = a | v;
    else if (s->kind == 4) all = a & v;
    else if (s->kind == 5) all = (uint32_t)((int)a > (int)v ? a : v);
    else all = (uint32_t)((int)a < (int)v ? a : v);
    first = false;
  }
  for (int i = 0; i < 32; i++)
    if (args[i]) ((Sum *)args[i])->value = all;
}
inline uint32_t combined(uint32_t mask, const char *what, uint32_t v, int kind) {
  Sum s = {v, kind};
  meet_warp(mask, what, &s, combine);
  return (uint32_t)s.value;
}
} // namespace emu

template <class T> T __shfl_sync(unsigned mask, T v, int from, int width = 32) {
  return emu::shuffled(mask, "__shfl_sync", v, (emu::here->lane & ~(width - 1)) | (from & (width - 1)));
}
template <class T> T __shfl_xor_sync(unsigned mask, T v, int with, int width = 32) {
  const int lane = emu::here->lane, from = lane ^ with;
  return emu::shuffled(mask, "__shfl_xor_sync", v, from / width > lane / width ? lane : from);
}
template <class T> T __shfl_up_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int lane = emu::here->lane;
  return emu::shuffled(mask, "__shfl_up_sync", v, lane % width < (int)by ? lane : lane - (int)by);
}
template <class T> T __shfl_down_sync(unsigned mask, T v, unsigned by, int width = 32) {
  const int lane = emu::here->lane;
  return emu::shuffled(mask, "__shfl_down_sync", v, lane % width + (int)by >= width ? lane : lane + (int)by);
}
inline unsigned __ballot_sync(unsigned mask, int yes) { return emu::voted(mask, "__ballot_sync", yes != 0); }
inline int __any_sync(unsigned mask, int yes) { return emu::voted(mask, "__any_sync", yes != 0) != 0; }
inline int __all_sync(unsigned mask, int yes) { return emu::voted(mask, "__all_sync", yes == 0) == 0; }
inline unsigned __reduce_add_sync(unsigned mask, unsigned v) { return emu::combined(mask, "__reduce_add_sync", v, 0); }
inline unsigned __reduce_max_sync(unsigned mask, unsigned v) { return emu::combined(mask, "__reduce_max_sync", v, 1); }
inline unsigned __reduce_min_sync(unsigned mask, unsigned v) { return emu::combined(mask, "__reduce_min_sync", v, 2); }
inline unsigned __reduce_or_sync(unsigned mask, unsigned v) { return emu::combined(mask, "__reduce_or_sync", v, 3); }
inline unsigned __reduce_and_sync(unsigned mask, unsigned v) { return emu::combined(mask, "__reduce_and_sync", v, 4); }
inline int __reduce_add_sync(unsigned mask, int v) { return (int)emu::combined(mask, "__reduce_add_sync", (uint32_t)v, 0); }
inline int __reduce_max_sync(unsigned mask, int v) { return (int)emu::combined(mask, "__reduce_max_sync", (uint32_t)v, 5); }
inline int __reduce_min_sync(unsigned mask, int v) { return (int)emu::combined(mask, "__reduce_min_sync", (uint32_t)v, 6); }
inline void __syncwarp(unsigned mask = ~0u) { emu::meet_warp(mask, "__syncwarp", nullptr, nullptr); }
inline void __syncthreads() { emu::block_barrier(); }
inline int __syncthreads_count(int yes) { return emu::block_vote(yes != 0); }
inline int __syncthreads_or(int yes) { return emu::block_vote(yes != 0) != 0; }
inline int __syncthreads_and(int yes) { return emu::block_vote(yes == 0) == 0; }

// ---- memory
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_system() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
template <class T> T __ldcg(const T *p) { return *p; }
template <class T> T __ldcs(const T *p) { return *p; }
template <class T> T __ldca(const T *p) { return *p; }
template <class T> T __ldcv(const T *p) { return *(const volatile T *)p; }
template <class T> void __stcg(T *p, std::type_identity_t<T> v) { *p = v; }
template <class T> void __stcs(T *p, std::type_identity_t<T> v) { *p = v; }

namespace emu {
template <class T, class F> T change(T *p, F f) {
  T old, now;
  __atomic_load(p, &old, __ATOMIC_SEQ_CST);
  do now = f(old);
  while (!__atomic_compare_exchange(p, &old, &now, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
  return old;
}
} // namespace emu
template <class T> T atomicAdd(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T old) { return (T)(old + v); }); }
template <class T> T atomicSub(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T old) { return (T)(old - v); }); }
template <class T> T atomicMax(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T old) { return old > v ? old : v; }); }
template <class T> T atomicMin(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T old) { return old < v ? old : v; }); }
template <class T> T atomicOr(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T old) { return (T)(old | v); }); }
template <class T> T atomicAnd(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T old) { return (T)(old & v); }); }
template <class T> T atomicXor(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T old) { return (T)(old ^ v); }); }
template <class T> T atomicExch(T *p, std::type_identity_t<T> v) { return emu::change(p, [&](T) { return v; }); }
template <class T> T atomicCAS(T *p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return emu::change(p, [&](T old) { return old == expected ? v : old; });
}

inline long long clock64() { return std::chrono::steady_clock::now().time_since_epoch().count(); }
inline void __nanosleep(unsigned) { emu::spin(); }

#endif
