// mla_prepare on the emulated device against sums in double: queries' records and what it writes to pages, for rows that are whole groups
// of eight columns and for such that are not.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cuda_runtime.h>

#include "engine/cuda/kernels.h"
#include "engine/cuda/norm_shard.h"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>
}

#include "tests/unit/cuda/device.h"

using namespace mob;

static cudaStream_t stream;
static std::mt19937 rng(23);

static std::vector<float> normal(size_t n) {
  std::normal_distribution<float> d;
  std::vector<float> v(n);
  for (float &f : v) f = d(rng);
  return v;
}

struct Case {
  int q_lora, kv_lora, rope, gap; // gap: columns of a row that are nobody's
  bool bias, interleaved;
};

static std::vector<double> normed(const double *x, const float *w, int n) {
  double square = 0;
  for (int i = 0; i < n; i++) square += x[i] * x[i];
  std::vector<double> out;
  for (int i = 0; i < n; i++) out.push_back(x[i] * w[i] / std::sqrt(square / n + 1e-6));
  return out;
}

// many: as many rows as the kernel for them takes, and one; else three. The last row is padding.
static void check(const Case &c, bool many = false) {
  const int rows = many ? 257 : 3, mp = (rows + 7) / 8 * 8, kv_at = c.q_lora, lda = kv_at + c.kv_lora + c.rope + c.gap, width = c.kv_lora + c.rope, half = c.rope / 2;
  std::vector<int> position = {5, 70, 9}, table = {0, 1, -1}, pages = {2, 0, 1};
  if (many) {
    position.clear();
    for (int r = 0; r < rows; r++) position.push_back(rows - 1 - r);
    table.assign((size_t)rows, 0);
    table.back() = -1;
    pages = {3, 4, 0, 2, 1};
  }
  std::vector<bf16> a;
  for (float v : normal((size_t)rows * lda)) a.push_back(__float2bfloat16(v));
  const std::vector<float> bias = normal((size_t)lda), q_norm = normal((size_t)c.q_lora + 1), kv_norm = normal((size_t)c.kv_lora);
  std::vector<float> frequency;
  for (int k = 0; k < half; k++) frequency.push_back(1 / std::pow(10000.0f, (float)k / (float)half));
  const int q_k = (c.q_lora + 255) / 256 * 256;
  MlaPrepare p = {};
  p.a = upload(a);
  p.lda = lda;
  p.q_lora = c.q_lora;
  p.kv_at = kv_at;
  p.kv_lora = c.kv_lora;
  p.rope_dim = c.rope;
  p.a_bias = c.bias ? upload(bias) : nullptr;
  p.q_norm = upload(q_norm);
  p.kv_norm = upload(kv_norm);
  p.eps = 1e-6f;
  p.q = {device<uint8_t>(records_bytes(true, mp, q_k) + 16), mp, 1};
  p.q_k = q_k;
  p.cache = device<uint8_t>(pages.size() * page_bytes(width));
  p.step.table = upload(table);
  p.step.position = upload(position);
  p.step.pages = upload(pages);
  p.rope = {upload(frequency), c.rope, c.interleaved, 1.25f};
  mla_prepare(p, rows, stream);
  cuda(cudaStreamSynchronize(stream));
  const std::vector<uint8_t> records = fetch(p.q.data, records_bytes(true, mp, q_k)), cache = fetch(p.cache, pages.size() * page_bytes(width));
  if (many && mla_prepare_can_share(p)) { // the same bytes from two owners in both ranks' memory
    MlaPrepare own = p;
    MlaShared to = {};
    to.ranks = 2;
    for (int i = 0; i < 2; i++) {
      to.q[i] = device<uint8_t>(records.size() + 16);
      to.cache[i] = device<uint8_t>(cache.size());
    }
    own.q.data = to.q[0];
    own.cache = to.cache[0];
    for (to.first = 0; to.first < rows; to.first += to.rows) {
      to.rows = to.first ? rows - to.first : 101;
      mla_prepare_shared(own, to, stream);
    }
    cuda(cudaStreamSynchronize(stream));
    for (int i = 0; i < 2; i++) assert_true(fetch(to.q[i], records.size()) == records && fetch(to.cache[i], cache.size()) == cache);
  }
  double difference = 0, all = 0;
  size_t written = 0;
  for (int r = 0; r < rows; r++) {
    std::vector<double> x;
    for (int i = 0; i < lda; i++) x.push_back((double)(float)a[(size_t)r * lda + i] + (c.bias ? bias[(size_t)i] : 0));
    const std::vector<double> q = normed(x.data(), q_norm.data(), c.q_lora), kv = normed(&x[(size_t)kv_at], kv_norm.data(), c.kv_lora);
    for (int i = 0; i < q_k; i++) {
      const uint8_t *record = &records[(size_t)(i / 256) * record_bytes(true, mp)];
      const int second = i / 128 % 2, at = i % 128;
      __nv_fp8_e4m3 code;
      code.__x = record[(second * mp + r) * 128 + (((at >> 4) ^ (r & 7)) << 4) + (at & 15)];
      const double got = (float)code * ((const float *)(record + (size_t)mp * 256))[second * mp + r];
      if (i >= c.q_lora) assert_true(got == 0);
      else difference += (got - q[(size_t)i]) * (got - q[(size_t)i]), all += q[(size_t)i] * q[(size_t)i];
    }
    if (table[(size_t)r] < 0) continue;
    const uint8_t *page = &cache[(size_t)pages[(size_t)(table[(size_t)r] + position[(size_t)r] / 64)] * page_bytes(width)];
    for (int i = 0; i < width; i++) {
      double want = i < c.kv_lora ? kv[(size_t)i] : 0;
      if (i >= c.kv_lora) {
        const int k = c.interleaved ? (i - c.kv_lora) / 2 : (i - c.kv_lora) % half, u = c.interleaved ? 2 * k : k, v = c.interleaved ? u + 1 : u + half;
        const double angle = (double)((float)position[(size_t)r] * frequency[(size_t)k]), first = x[(size_t)(kv_at + c.kv_lora + u)],
                     second = x[(size_t)(kv_at + c.kv_lora + v)];
        want = 1.25 * (i - c.kv_lora == u ? first * std::cos(angle) - second * std::sin(angle) : second * std::cos(angle) + first * std::sin(angle));
      }
      bf16 got;
      memcpy(&got, page + page_offset(position[(size_t)r] % 64, i), 2);
      assert_true(std::fabs((float)got - want) <= 0.005 * std::fabs(want) + 1e-5);
      written++;
    }
  }
  assert_true(all == 0 || std::sqrt(difference / all) < 0.04); // e4m3
  size_t untouched = 0;
  for (size_t i = 0; i + 1 < cache.size(); i += 2) untouched += cache[i] == 0xff && cache[i + 1] == 0xff;
  assert_true(untouched == cache.size() / 2 - written);
  free_all();
}

static void whole_groups(void **state) {
  (void)state;
  check({1536, 512, 64, 0, false, true});
  check({384, 256, 64, 8, true, false});
  check({0, 512, 64, 0, false, true});
  check({1536, 512, 64, 0, false, true}, true);
  check({384, 256, 96, 8, true, false}, true);
  check({0, 512, 64, 0, false, true}, true);
}

static void any_columns(void **state) {
  (void)state;
  check({100, 60, 20, 3, true, true});
  check({0, 36, 8, 1, false, false});
  check({2304, 512, 64, 0, false, true}); // more than a thread each takes
}

static int open_device(void **state) {
  (void)state;
  cuda(cudaStreamCreate(&stream));
  return 0;
}
static int close_device(void **state) {
  (void)state;
  cuda(cudaStreamDestroy(stream));
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(whole_groups), cmocka_unit_test(any_columns)};
  return cmocka_run_group_tests(tests, open_device, close_device);
}
