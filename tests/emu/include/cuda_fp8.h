// e4m3 (finite, one NaN): to and from float.
#ifndef MOB_EMU_CUDA_FP8_H
#define MOB_EMU_CUDA_FP8_H

#include "emu/device.h"

enum __nv_saturation_t { __NV_NOSAT, __NV_SATFINITE };
enum __nv_fp8_interpretation_t { __NV_E4M3, __NV_E5M2 };
using __nv_fp8_storage_t = unsigned char;
using __nv_fp8x2_storage_t = unsigned short;

namespace emu {
inline float e4m3_value(uint8_t v) {
  const int exponent = v >> 3 & 15, fraction = v & 7;
  float a;
  if ((v & 0x7f) == 0x7f) a = std::bit_cast<float>(0x7fc00000u);
  else if (exponent == 0) a = (float)fraction * 0x1p-9f;
  else a = std::bit_cast<float>((uint32_t)(exponent + 120) << 23 | (uint32_t)fraction << 20);
  return v & 0x80 ? -a : a;
}
inline uint8_t e4m3_bits(float v) { // above 448: 448
  const uint32_t u = std::bit_cast<uint32_t>(v), sign = u >> 24 & 0x80, a = u & 0x7fffffff;
  if (a > 0x7f800000) return (uint8_t)0x7f;
  if (a >= 0x43e00000) return (uint8_t)(sign | 0x7e);
  if (a < 0x3c800000) return (uint8_t)(sign | (uint32_t)std::nearbyint(std::bit_cast<float>(a) * 0x1p9f)); // below 2^-6
  const uint32_t rounded = (a - 0x3c000000 + 0x7ffff + (a >> 20 & 1)) >> 20;
  return (uint8_t)(sign | (rounded > 0x7e ? 0x7e : rounded));
}
} // namespace emu

struct __nv_fp8_e4m3 {
  __nv_fp8_storage_t __x;
  __nv_fp8_e4m3() = default;
  explicit __nv_fp8_e4m3(float v) : __x(emu::e4m3_bits(v)) {}
  operator float() const { return emu::e4m3_value(__x); }
};
inline __nv_fp8_storage_t __nv_cvt_float_to_fp8(float v, __nv_saturation_t saturation, __nv_fp8_interpretation_t kind) {
  if (saturation != __NV_SATFINITE || kind != __NV_E4M3) emu::broken("a conversion to FP8 that is not emulated");
  return emu::e4m3_bits(v);
}
inline __nv_fp8x2_storage_t __nv_cvt_float2_to_fp8x2(float2 v, __nv_saturation_t saturation, __nv_fp8_interpretation_t kind) {
  return (__nv_fp8x2_storage_t)(__nv_cvt_float_to_fp8(v.x, saturation, kind) |
                                __nv_cvt_float_to_fp8(v.y, saturation, kind) << 8);
}

#endif
