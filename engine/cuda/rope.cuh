// Rotary positions.
#pragma once
#include "kernels.h"

namespace mob {

// Cosine and sine of the k-th pair of columns at a position: the angle rounded to fp32 as the reference does, then exact (no fast-math).
__device__ __forceinline__ float2 angle_of(const Rope &rope, int position, int k) {
  float s, c;
  sincosf((float)position * rope.inv_freq[k], &s, &c);
  return make_float2(c * rope.factor, s * rope.factor);
}

} // namespace mob
