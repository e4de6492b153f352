// What tools/gpu/check_*.cuh want of the program that includes them, for tests on the emulated device: nothing is timed, and what is
// beyond its limit fails. Include it behind <cmocka.h>, with the test's own `stream` and `rng` declared before.
#ifndef MOB_TEST_CUDA_GPU_CHECK_H
#define MOB_TEST_CUDA_GPU_CHECK_H

#include <cmath>
#include <random>

#include "tests/unit/cuda/device.h"

#define CUDA(call) cuda(call)

static bf16 *normal_bf16(size_t n, float scale = 1) {
  std::normal_distribution<float> value;
  std::vector<bf16> v(n);
  for (bf16 &x : v) x = __float2bfloat16(value(rng) * scale);
  return upload(v);
}
template <class F> static double time_us(F, int) { return 0; }
static double relative_l2(const std::vector<float> &y, const std::vector<float> &ref) {
  double d = 0, r = 0;
  for (size_t i = 0; i < ref.size(); i++) d += ((double)y[i] - ref[i]) * ((double)y[i] - ref[i]), r += (double)ref[i] * ref[i];
  return std::isfinite(d) ? std::sqrt(d / r) : INFINITY;
}
static void report(const char *name, const char *shape, double error, double limit, double, double, double) {
  print_message("%s, %s: %.2e\n", name, shape, error);
  if (!(error <= limit)) fail_msg("%s, %s: error %.3e, limit %.0e", name, shape, error, limit);
}

#endif
