// IEEE half, rounded to nearest even.
#ifndef MOB_EMU_CUDA_FP16_H
#define MOB_EMU_CUDA_FP16_H

#include "emu/device.h"

namespace emu {
inline float half_value(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000) << 16, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return std::bit_cast<float>(sign | std::bit_cast<uint32_t>((float)fraction * 0x1p-24f));
  return std::bit_cast<float>(sign | (exponent + 112) << 23 | fraction << 13);
}
inline uint16_t half_bits(float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v), sign = u >> 16 & 0x8000, a = u & 0x7fffffff;
  if (a > 0x7f800000) return 0x7fff;
  if (a >= 0x477ff000) return (uint16_t)(sign | 0x7c00); // 65,520 and above
  if (a < 0x38800000)                                   // below 2^-14: in units of 2^-24
    return (uint16_t)(sign | (uint32_t)std::nearbyint(std::bit_cast<float>(a) * 0x1p24f));
  return (uint16_t)(sign | ((a - 0x38000000 + 0xfff + (a >> 13 & 1)) >> 13));
}
} // namespace emu

struct __half {
  uint16_t bits;
  __half() = default;
  __half(float v) : bits(emu::half_bits(v)) {} // NOLINT: CUDA's converts too
  operator float() const { return emu::half_value(bits); }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;
inline __half __float2half(float v) { return __half(v); }
inline __half __float2half_rn(float v) { return __half(v); }
inline float __half2float(__half v) { return v; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline float2 __half22float2(__half2 v) { return {v.x, v.y}; }
inline __half __ushort_as_half(unsigned short v) { return std::bit_cast<__half>(v); }
inline unsigned short __half_as_ushort(__half v) { return v.bits; }

#endif
