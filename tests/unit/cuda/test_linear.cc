// The linear kernels on the emulated device, dense and by expert, against sums in double of the same quantised inputs: every size of
// tile, ragged ends, matrices whose tiles are cut over CTAs (which then add partial sums) and such whose are not.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

#include "engine/cuda/kernels.h"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "engine/model/model.h"
}

using namespace mob;

static void cuda(cudaError_t error) {
  if (error != cudaSuccess) fail_msg("%s", cudaGetErrorString(error));
}

static cudaStream_t stream;
static LinearScratch scratch;
static std::mt19937_64 rng(7);
static std::vector<void *> blocks; // of the test that runs

template <class T> static T *device(size_t n) {
  T *p;
  cuda(cudaMalloc(&p, n * sizeof(T)));
  cuda(cudaMemset(p, 0xff, n * sizeof(T))); // NaN: what nobody writes is seen
  blocks.push_back(p);
  return p;
}
template <class T> static T *upload(const std::vector<T> &v) {
  T *p = device<T>(v.size());
  cuda(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
template <class T> static std::vector<T> fetch(const T *p, size_t n) {
  std::vector<T> out(n);
  cuda(cudaMemcpy(out.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return out;
}
static void free_all() {
  for (void *p : blocks) cuda(cudaFree(p));
  blocks.clear();
}

struct Source { // a matrix as a checkpoint has it, and its values
  int n, k;
  std::vector<float> values;
  std::vector<uint8_t> codes;
  std::vector<float> scales; // of 128 x 128
  std::vector<bf16> halves;
};

static Source make_source(int n, int k, bool f8) {
  std::normal_distribution<float> normal;
  Source s = {n, k, {}, {}, {}, {}};
  const int across = (k + 127) / 128;
  for (int i = 0; i < (n + 127) / 128 * across; i++) s.scales.push_back(0.001f + 0.0001f * (float)(rng() % 16));
  for (int i = 0; i < n * k; i++) {
    if (f8) {
      const __nv_fp8_e4m3 code(normal(rng) * 64);
      s.codes.push_back(code.__x);
      s.values.push_back((float)code * s.scales[(size_t)(i / k / 128 * across + i % k / 128)]);
    } else {
      s.halves.push_back(__float2bfloat16(normal(rng) * 0.1f));
      s.values.push_back(s.halves.back());
    }
  }
  return s;
}

static Matrix make_matrix(int n, int k, bool f8, int count) {
  const int unit = f8 ? 256 : 128;
  Matrix m = {nullptr, 0, n, (k + unit - 1) / unit * unit, f8 ? Weights::F8 : Weights::B16};
  m.stride = (size_t)((n + 63) / 64) * column_pairs(m) * kPairBytes;
  m.data = device<uint8_t>(m.stride * (size_t)count);
  cuda(cudaMemset(m.data, 0, m.stride * (size_t)count));
  return m;
}

static void pack_into(const Source &s, const Matrix &m, int index) {
  const bool f8 = m.kind == Weights::F8;
  PackSource from = {};
  from.src = f8 ? (const void *)upload(s.codes) : upload(s.halves);
  from.dtype = f8 ? MOB_DT_F8E4M3 : MOB_DT_BF16;
  from.rows = s.n;
  from.cols = s.k;
  from.scales = upload(s.scales);
  from.scale_ld = (s.k + 127) / 128;
  from.block_rows = from.block_cols = 128;
  from.bad = device<int>(1);
  pack_tiles(from, m.data + m.stride * (size_t)index, m.k, m.kind, stream);
}

// Rows as the kernels see them: e4m3 with a scale for 128 columns, or bf16.
static std::vector<float> seen(const std::vector<bf16> &x, int k, bool f8) {
  std::vector<float> out(x.begin(), x.end());
  for (size_t row = 0; f8 && row < x.size() / (size_t)k; row++) {
    for (int from = 0; from < k; from += 128) {
      float *v = &out[row * (size_t)k + (size_t)from], amax = 0;
      const int n = std::min(128, k - from);
      for (int i = 0; i < n; i++) amax = std::max(amax, std::fabs(v[i]));
      const float scale = std::max(amax, 1e-10f) / 448.0f, inverse = 1.0f / scale;
      for (int i = 0; i < n; i++) v[i] = (float)__nv_fp8_e4m3(v[i] * inverse) * scale;
    }
  }
  return out;
}

static double dot(const Source &w, int column, const std::vector<float> &x, int row) {
  double sum = 0;
  for (int i = 0; i < w.k; i++) sum += (double)w.values[(size_t)column * w.k + i] * x[(size_t)row * w.k + i];
  return sum;
}

struct Error { // relative, L2
  double difference = 0, all = 0;
  void add(double got, double want) {
    difference += (got - want) * (got - want);
    all += want * want;
  }
  void check(const char *what, double limit) const {
    const double error = std::sqrt(difference / all);
    if (!(error <= limit)) fail_msg("%s: relative error %.1e", what, error);
  }
};

static std::vector<bf16> random_rows(int m, int k) {
  std::normal_distribution<float> normal;
  std::vector<bf16> x;
  for (int i = 0; i < m * k; i++) x.push_back(__float2bfloat16(normal(rng)));
  return x;
}

static Records make_records(const std::vector<bf16> &x, int m, int k, const Matrix &w) {
  const bool f8 = w.kind == Weights::F8;
  const Records r = {device<uint8_t>(records_bytes(f8, padded_rows(m), w.k)), padded_rows(m), f8};
  pack_rows(upload(x), k, k, r, w.k, m, false, stream);
  return r;
}

static void check_dense(int m, int n, int k, bool f8, bool f32) {
  const Source s = make_source(n, k, f8);
  const Matrix w = make_matrix(n, k, f8, 1);
  pack_into(s, w, 0);
  const std::vector<bf16> x = random_rows(m, k);
  const Records records = make_records(x, m, k, w);
  float *y = device<float>((size_t)m * n);
  linear(w, records, y, n, f32, m, 1, scratch, stream);
  cuda(cudaStreamSynchronize(stream));
  const std::vector<float> rows = seen(x, k, f8), wide = fetch(y, (size_t)m * n);
  const std::vector<bf16> narrow = fetch((const bf16 *)y, (size_t)m * n);
  Error error;
  for (int t = 0; t < m; t++)
    for (int c = t % 3; c < n; c += n > 100 ? 3 : 1) error.add(f32 ? wide[(size_t)t * n + c] : (float)narrow[(size_t)t * n + c], dot(s, c, rows, t));
  char text[96];
  snprintf(text, sizeof text, "%d x %d, %d tokens, %s%s", n, k, m, f8 ? "e4m3" : "bf16", f32 ? ", fp32" : "");
  error.check(text, f32 ? 1e-5 : 3e-3);
  const std::vector<uint32_t> partial = fetch((const uint32_t *)scratch.partial, 3 * kPartialFloats);
  for (uint32_t word : partial) assert_int_equal(word, ~0u); // as the next launch expects them
  free_all();
}

static void every_tile(void **state) {
  (void)state;
  for (int m : {1, 8, 11, 16, 30, 64, 77, 96, 128, 133}) {
    check_dense(m, 136, 512, true, false);
    check_dense(m, 136, 256, false, false);
  }
}

static void ragged(void **state) {
  (void)state;
  check_dense(5, 61, 130, true, false);
  check_dense(5, 61, 130, false, false);
  check_dense(40, 200, 72, false, true);
  check_dense(3, 1000, 128, false, true);
}

static void cut_over_ctas(void **state) {
  (void)state;
  for (int m : {1, 24, 70}) {
    check_dense(m, 130, 3328, true, false);
    check_dense(m, 320, 1408, false, false);
  }
}

static void check_experts(int tokens, int experts, int top_k, int n, int k, int tile) {
  const bool few = tokens <= kFewTokens;
  const int slots = top_k + 1, capacity = tokens * slots + 8 * (experts + 1), rows_of_y = std::max(capacity, (experts + 1) * kFewTokens);
  std::vector<Source> sources;
  const Matrix w = make_matrix(n, k, true, experts + 1);
  for (int e = 0; e <= experts; e++) {
    sources.push_back(make_source(n, k, true));
    pack_into(sources.back(), w, e);
  }
  std::vector<int> ids;
  for (int t = 0; t < tokens; t++) {
    std::vector<int> all(experts);
    for (int e = 0; e < experts; e++) all[(size_t)e] = e;
    std::shuffle(all.begin(), all.end(), rng);
    if (t % 2 == 0) std::swap(all[0], *std::find(all.begin(), all.end(), 1)); // the second has most
    std::sort(all.begin(), all.begin() + top_k);
    ids.insert(ids.end(), all.begin(), all.begin() + top_k);
  }
  const std::vector<bf16> x = random_rows(tokens, k);
  const Records hidden = make_records(x, tokens, k, w);
  const int mp = (capacity + 7) / 8 * 8;
  const Records gathered = {device<uint8_t>(records_bytes(true, mp, w.k)), mp, 1};
  MoePlan p = {};
  p.ids = upload(ids);
  p.count = upload(std::vector<int>{tokens});
  p.top_k = top_k;
  p.experts = experts;
  p.shared = 1;
  p.rows = tokens;
  p.active = device<int>((size_t)experts + 2);
  p.active_ids = p.active + 1;
  p.expert_row = device<int>((size_t)tokens * slots);
  p.source = device<int>((size_t)capacity);
  p.gate_up = device<Segment>((size_t)experts + 2);
  p.down = device<Segment>((size_t)experts + 2);
  p.gate_up_blocks = p.down_blocks = (n + 127) / 128;
  p.tile = tile;
  bf16 *y = device<bf16>((size_t)rows_of_y * n);
  if (few) {
    moe_plan_few(p, stream);
    linear_experts_few(w, p.active_ids, p.active, hidden, 0, y, tokens, scratch, stream);
  } else {
    moe_plan_many(p, stream);
    moe_gather(hidden, p.source, p.gate_up, p.active, gathered, w.k, capacity, stream);
    linear_segments(w, p.gate_up, p.active, gathered, y, tile, scratch, stream);
  }
  cuda(cudaStreamSynchronize(stream));
  const std::vector<int> at = fetch(p.expert_row, (size_t)tokens * slots);
  const std::vector<bf16> all = fetch(y, (size_t)rows_of_y * n);
  const std::vector<float> rows = seen(x, k, true);
  Error error;
  for (int t = 0; t < tokens; t++)
    for (int j = 0; j < slots; j++) {
      const int e = j < top_k ? ids[(size_t)t * top_k + j] : experts;
      for (int c = (t + j) % 7; c < n; c += 7) error.add(all[(size_t)at[(size_t)t * slots + j] * n + c], dot(sources[(size_t)e], c, rows, t));
    }
  char text[64];
  snprintf(text, sizeof text, "%d experts, %d tokens, tiles of %d", experts, tokens, tile);
  error.check(text, 3e-3);
  free_all();
}

static void by_expert(void **state) {
  (void)state;
  check_experts(1, 6, 2, 192, 256, 8);
  check_experts(8, 6, 2, 192, 384, 8);
  check_experts(20, 6, 2, 192, 256, 8);
  check_experts(40, 6, 2, 128, 256, 16);
  check_experts(70, 5, 3, 128, 256, 32);
  check_experts(150, 4, 2, 72, 256, 96);
}

static int open_device(void **state) {
  (void)state;
  cuda(cudaStreamCreate(&stream));
  linear_prepare();
  scratch.sms = 3;
  cuda(cudaMalloc(&scratch.partial, (size_t)scratch.sms * kPartialFloats * 4));
  cuda(cudaMemset(scratch.partial, 0xff, (size_t)scratch.sms * kPartialFloats * 4));
  return 0;
}
static int close_device(void **state) {
  (void)state;
  cuda(cudaFree(scratch.partial));
  cuda(cudaStreamDestroy(stream));
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_tile),
      cmocka_unit_test(ragged),
      cmocka_unit_test(cut_over_ctas),
      cmocka_unit_test(by_expert),
  };
  return cmocka_run_group_tests(tests, open_device, close_device);
}
