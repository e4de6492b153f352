// Matrices and rows for tests of linears, as a checkpoint has them, as the kernels read them and as numbers; and the (emulated) device's
// scratch. Include it behind <cmocka.h>.
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

// Of what a kernel gives: relative, L2.
struct Error {
  double difference = 0, all = 0;
  void add(double got, double want) {
    difference += (got - want) * (got - want);
    all += want * want;
  }
  double value() const { return std::sqrt(difference / all); }
};

// `count` matrices of n x k; the values of one: fill_matrix().
static inline Matrix make_matrix(int n, int k, bool f8, int count) {
  const int unit = f8 ? 256 : 128;
  Matrix w = {nullptr, 0, n, (k + unit - 1) / unit * unit, f8 ? Weights::F8 : Weights::B16};
  w.stride = (size_t)((n + 63) / 64) * column_pairs(w) * kPairBytes;
  w.data = device<uint8_t>(w.stride * (size_t)count);
  cuda(cudaMemset(w.data, 0, w.stride * (size_t)count));
  return w;
}

// Random values of k columns: e4m3 codes with a scale for each 128 x 128, or bf16. Returns them as numbers.
static inline std::vector<float> fill_matrix(const Matrix &w, int k, int index) {
  const bool f8 = w.kind == Weights::F8;
  const int across = (k + 127) / 128;
  std::normal_distribution<float> normal;
  std::vector<float> scales, values;
  std::vector<uint8_t> codes;
  std::vector<bf16> halves;
  for (int i = 0; i < (w.n + 127) / 128 * across; i++) scales.push_back(0.001f + 0.0001f * (float)(rng() % 16));
  for (int i = 0; i < w.n * k; i++) {
    const __nv_fp8_e4m3 code(normal(rng) * 64);
    codes.push_back(code.__x);
    halves.push_back(__float2bfloat16(normal(rng) * 0.1f));
    values.push_back(f8 ? (float)code * scales[(size_t)(i / k / 128 * across + i % k / 128)] : (float)halves.back());
  }
  PackSource from = {};
  from.src = f8 ? (const void *)upload(codes) : upload(halves);
  from.dtype = f8 ? MOB_DT_F8E4M3 : MOB_DT_BF16;
  from.rows = w.n;
  from.cols = k;
  from.scales = upload(scales);
  from.scale_ld = across;
  from.block_rows = from.block_cols = 128;
  from.bad = device<int>(1);
  pack_tiles(from, w.data + w.stride * (size_t)index, w.k, w.kind, stream);
  return values;
}

// m random rows of k columns to the records of a linear with `columns`; returns them as it sees them.
static inline std::vector<float> fill_rows(const Records &x, int m, int k, int columns) {
  std::normal_distribution<float> normal;
  std::vector<bf16> rows;
  for (int i = 0; i < m * k; i++) rows.push_back(__float2bfloat16(normal(rng)));
  pack_rows(upload(rows), k, k, x, columns, m, false, stream);
  std::vector<float> values(rows.begin(), rows.end());
  if (x.fp8) quantise(&values, k);
  return values;
}

// Column `column` of row `row`'s product.
static inline double dot(const std::vector<float> &w, int column, const std::vector<float> &x, int row, int k) {
  double sum = 0;
  for (int i = 0; i < k; i++) sum += (double)w[(size_t)column * k + i] * x[(size_t)row * k + i];
  return sum;
}

// Matrices of one shape and rows for them.
struct Case {
  int m, n, k;
  bool f8;
  Matrix w;
  Records x; // [sets] of rows, one behind the other
  size_t x_stride;
  std::vector<std::vector<float>> w_values, x_values;

  Case(int m_, int n_, int k_, bool f8_, int matrices = 1, int sets = 1, int room = 0) : m(m_), n(n_), k(k_), f8(f8_) {
    const int mp = padded_rows(m) + room;
    w = make_matrix(n, k, f8, matrices);
    for (int i = 0; i < matrices; i++) w_values.push_back(fill_matrix(w, k, i));
    x_stride = records_bytes(f8, mp, w.k);
    x = {device<uint8_t>(x_stride * (size_t)sets), mp, f8};
    for (int i = 0; i < sets; i++) x_values.push_back(fill_rows({x.data + x_stride * (size_t)i, mp, f8}, m, k, w.k));
  }
  double dot(int matrix, int set, int token, int column) const {
    return ::dot(w_values[(size_t)matrix], column, x_values[(size_t)set], token, k);
  }
  // y [m][ld] of one matrix and set; ld 0: n
  template <class T> void check(const T *y, int matrix, int set, double factor, double limit, const char *what, int ld = 0) const {
    Error error;
    for (int t = 0; t < m; t++)
      for (int c = t % 3; c < n; c += 3) error.add((double)(float)y[(size_t)t * (ld ? ld : n) + c], dot(matrix, set, t, c) * factor);
    if (!(error.value() <= limit)) fail_msg("%s, %d x %d, %d tokens, %s: relative error %.1e", what, n, k, m, f8 ? "e4m3" : "bf16", error.value());
  }
};

static inline void partials_are_clean() {
  for (uint32_t word : fetch((const uint32_t *)scratch.partial, (size_t)scratch.sms * kPartialFloats)) assert_int_equal(word, ~0u);
}

// Words of scratch that stay until the device is closed.
template <class T> static T *scratch_words(size_t n, int value) {
  T *p;
  cuda(cudaMalloc(&p, n * sizeof(T)));
  cuda(cudaMemset(p, value, n * sizeof(T)));
  return p;
}
static inline void open_scratch(int sms) {
  cuda(cudaStreamCreate(&stream));
  linear_prepare();
  scratch.sms = sms;
  scratch.partial = scratch_words<float>((size_t)sms * kPartialFloats, 0xff);
  scratch.grid = scratch_words<GridWords>(1, 0);
}
static inline int open_device(void **state) {
  (void)state;
  open_scratch(kSms);
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
