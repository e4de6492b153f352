// A linear's matrices and rows for tests of single kernels, and the (emulated) device's scratch. Include it behind <cmocka.h>.
#ifndef MOB_TEST_CUDA_LINEAR_CASE_H
#define MOB_TEST_CUDA_LINEAR_CASE_H

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "engine/cuda/kernels.h"
extern "C" {
#include "engine/model/model.h"
}

#include "tests/unit/cuda/device.h"

using namespace mob;

constexpr int kSms = 4; // the emulation has places for six blocks
static cudaStream_t stream;
static LinearScratch scratch;
static std::mt19937_64 rng(23);

// As the kernels quantise rows of k columns: 1 x 128.
static inline void quantise(std::vector<float> *values, int k) {
  for (size_t at = 0; at < values->size();) {
    float *v = &(*values)[at], amax = 0;
    const int many = std::min(128, k - (int)(at % (size_t)k));
    for (int i = 0; i < many; i++) amax = std::max(amax, std::fabs(v[i]));
    const float scale = std::max(amax, 1e-10f) / 448.0f, inverse = 1.0f / scale;
    for (int i = 0; i < many; i++) v[i] = (float)__nv_fp8_e4m3(v[i] * inverse) * scale;
    at += (size_t)many;
  }
}

// Matrices of one shape and rows for them, as the kernels read them and as numbers.
struct Case {
  int m, n, k;
  bool f8;
  Matrix w;
  Records x; // [sets] of rows, one behind the other
  size_t x_stride;
  std::vector<std::vector<float>> w_values, x_values;

  Case(int m_, int n_, int k_, bool f8_, int matrices = 1, int sets = 1, int room = 0) : m(m_), n(n_), k(k_), f8(f8_) {
    const int unit = f8 ? 256 : 128, mp = padded_rows(m) + room;
    w = {nullptr, 0, n, (k + unit - 1) / unit * unit, f8 ? Weights::F8 : Weights::B16};
    w.stride = (size_t)((n + 63) / 64) * column_pairs(w) * kPairBytes;
    w.data = device<uint8_t>(w.stride * (size_t)matrices);
    cuda(cudaMemset(w.data, 0, w.stride * (size_t)matrices));
    for (int i = 0; i < matrices; i++) add_matrix(i);
    x_stride = records_bytes(f8, mp, w.k);
    x = {device<uint8_t>(x_stride * (size_t)sets), mp, f8};
    for (int i = 0; i < sets; i++) add_rows(i);
  }
  void add_matrix(int index) {
    std::normal_distribution<float> normal;
    const int across = (k + 127) / 128;
    std::vector<float> scales, values;
    std::vector<uint8_t> codes;
    std::vector<bf16> halves;
    for (int i = 0; i < (n + 127) / 128 * across; i++) scales.push_back(0.001f + 0.0001f * (float)(rng() % 16));
    for (int i = 0; i < n * k; i++) {
      const __nv_fp8_e4m3 code(normal(rng) * 64);
      codes.push_back(code.__x);
      halves.push_back(__float2bfloat16(normal(rng) * 0.1f));
      values.push_back(f8 ? (float)code * scales[(size_t)(i / k / 128 * across + i % k / 128)] : (float)halves.back());
    }
    PackSource from = {};
    from.src = f8 ? (const void *)upload(codes) : upload(halves);
    from.dtype = f8 ? MOB_DT_F8E4M3 : MOB_DT_BF16;
    from.rows = n;
    from.cols = k;
    from.scales = upload(scales);
    from.scale_ld = across;
    from.block_rows = from.block_cols = 128;
    from.bad = device<int>(1);
    pack_tiles(from, w.data + w.stride * (size_t)index, w.k, w.kind, stream);
    w_values.push_back(values);
  }
  void add_rows(int index) {
    std::normal_distribution<float> normal;
    std::vector<bf16> rows;
    for (int i = 0; i < m * k; i++) rows.push_back(__float2bfloat16(normal(rng)));
    pack_rows(upload(rows), k, k, {x.data + x_stride * (size_t)index, x.mp, x.fp8}, w.k, m, false, stream);
    std::vector<float> values(rows.begin(), rows.end());
    if (f8) quantise(&values, k);
    x_values.push_back(values);
  }
  double dot(int matrix, int set, int token, int column) const {
    double sum = 0;
    for (int i = 0; i < k; i++) sum += (double)w_values[(size_t)matrix][(size_t)column * k + i] * x_values[(size_t)set][(size_t)token * k + i];
    return sum;
  }
  // y [m][n] of one matrix and set
  template <class T> void check(const T *y, int matrix, int set, double factor, double limit, const char *what) const {
    double difference = 0, all = 0;
    for (int t = 0; t < m; t++)
      for (int c = t % 3; c < n; c += 3) {
        const double want = dot(matrix, set, t, c) * factor, got = (double)(float)y[(size_t)t * n + c];
        difference += (got - want) * (got - want);
        all += want * want;
      }
    const double error = std::sqrt(difference / all);
    if (!(error <= limit)) fail_msg("%s, %d x %d, %d tokens, %s: relative error %.1e", what, n, k, m, f8 ? "e4m3" : "bf16", error);
  }
};

static inline void partials_are_clean() {
  for (uint32_t word : fetch((const uint32_t *)scratch.partial, (size_t)kSms * kPartialFloats)) assert_int_equal(word, ~0u);
}

static inline int open_device(void **state) {
  (void)state;
  cuda(cudaStreamCreate(&stream));
  linear_prepare();
  scratch.sms = kSms;
  cuda(cudaMalloc(&scratch.partial, (size_t)kSms * kPartialFloats * 4));
  cuda(cudaMemset(scratch.partial, 0xff, (size_t)kSms * kPartialFloats * 4));
  cuda(cudaMalloc(&scratch.grid, sizeof(GridWords)));
  cuda(cudaMemset(scratch.grid, 0, sizeof(GridWords)));
  return 0;
}
static inline int close_device(void **state) {
  (void)state;
  cuda(cudaFree(scratch.partial));
  cuda(cudaFree(scratch.grid));
  cuda(cudaStreamDestroy(stream));
  return 0;
}

#endif
