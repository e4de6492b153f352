// FP32 to FP16, nearest with ties to even. (_Float16 would do it, but not every compiler has it.)
#ifndef MOB_MODEL_HALF_H
#define MOB_MODEL_HALF_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline uint16_t mob_f32_to_f16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  float magnitude = fabsf(value);
  if (value != value) return sign | 0x7e00;
  if (magnitude >= 65520.0f) return sign | 0x7c00; // infinity, and what rounds to it
  if (magnitude < 0x1p-14f) return sign | (uint16_t)nearbyintf(magnitude * 0x1p24f); // subnormal; may round to 2^-14
  bits = (bits & 0x7fffffff) - (112u << 23);
  return sign | (uint16_t)((bits + 0xfff + (bits >> 13 & 1)) >> 13);
}

#endif
