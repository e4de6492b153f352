// The linear of many tokens on the emulated device: every tile, dealt out in every way, against sums in double of the same quantised
// inputs; ragged tokens and outputs, columns that are read twice, key and value tiles; and whether what is left between launches is clean.
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
#include "engine/cuda/linear_wide_b16.cuh"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "engine/model/model.h"
}

#include "tests/unit/cuda/device.h"

using namespace mob;

constexpr int kSms = 4; // the emulation has places for six blocks
static cudaStream_t stream;
static float *partial;
static std::mt19937_64 rng(11);

// A matrix, rows for it, both as the kernel reads them and as numbers.
struct Case {
  int m, n, k;
  bool f8;
  Matrix w;
  Records x;
  std::vector<float> w_values, x_values;

  Case(int m_, int n_, int k_, bool f8_) : m(m_), n(n_), k(k_), f8(f8_) {
    std::normal_distribution<float> normal;
    const int unit = f8 ? 256 : 128, across = (k + 127) / 128;
    w = {nullptr, 0, n, (k + unit - 1) / unit * unit, f8 ? Weights::F8 : Weights::B16};
    w.stride = (size_t)((n + 63) / 64) * column_pairs(w) * kPairBytes;
    w.data = device<uint8_t>(w.stride);
    cuda(cudaMemset(w.data, 0, w.stride));
    std::vector<float> scales;
    std::vector<uint8_t> codes;
    std::vector<bf16> halves, rows;
    for (int i = 0; i < (n + 127) / 128 * across; i++) scales.push_back(0.001f + 0.0001f * (float)(rng() % 16));
    for (int i = 0; i < n * k; i++) {
      const __nv_fp8_e4m3 code(normal(rng) * 64);
      codes.push_back(code.__x);
      halves.push_back(__float2bfloat16(normal(rng) * 0.1f));
      w_values.push_back(f8 ? (float)code * scales[(size_t)(i / k / 128 * across + i % k / 128)] : (float)halves.back());
    }
    for (int i = 0; i < m * k; i++) rows.push_back(__float2bfloat16(normal(rng)));
    PackSource from = {};
    from.src = f8 ? (const void *)upload(codes) : upload(halves);
    from.dtype = f8 ? MOB_DT_F8E4M3 : MOB_DT_BF16;
    from.rows = n;
    from.cols = k;
    from.scales = upload(scales);
    from.scale_ld = across;
    from.block_rows = from.block_cols = 128;
    from.bad = device<int>(1);
    pack_tiles(from, w.data, w.k, w.kind, stream);
    x = {device<uint8_t>(records_bytes(f8, padded_rows(m), w.k)), padded_rows(m), f8};
    pack_rows(upload(rows), k, k, x, w.k, m, false, stream);
    x_values.assign(rows.begin(), rows.end());
    for (size_t at = 0; f8 && at < x_values.size(); at += (size_t)std::min(128, k - (int)(at % (size_t)k))) {
      float *v = &x_values[at], amax = 0;
      const int many = std::min(128, k - (int)(at % (size_t)k));
      for (int i = 0; i < many; i++) amax = std::max(amax, std::fabs(v[i]));
      const float scale = std::max(amax, 1e-10f) / 448.0f, inverse = 1.0f / scale;
      for (int i = 0; i < many; i++) v[i] = (float)__nv_fp8_e4m3(v[i] * inverse) * scale;
    }
  }
  LinearWide params(void *y, int times = 1) const {
    const int pairs = (int)column_pairs(w);
    return {w.data, x.data, y, partial, nullptr, x.mp, n, 0, m, n, pairs * times, pairs};
  }
  double dot(int token, int column) const {
    double sum = 0;
    for (int i = 0; i < k; i++) sum += (double)w_values[(size_t)column * k + i] * x_values[(size_t)token * k + i];
    return sum;
  }
  // at(token, column): where y has it
  template <class T, class At> void check(const std::vector<T> &y, At at, double factor, double limit, const char *what) const {
    double difference = 0, all = 0;
    for (int t = 0; t < m; t++)
      for (int c = t % 5; c < n; c += 5) {
        const double want = dot(t, c) * factor, got = (double)(float)y[at(t, c)];
        difference += (got - want) * (got - want);
        all += want * want;
      }
    const double error = std::sqrt(difference / all);
    if (!(error <= limit)) fail_msg("%s, %d x %d, %d tokens, %s: relative error %.1e", what, n, k, m, f8 ? "e4m3" : "bf16", error);
  }
};

static void partials_are_clean() {
  for (uint32_t word : fetch((const uint32_t *)partial, (size_t)kSms * kPartialFloats)) assert_int_equal(word, ~0u);
}

static bool try_way(const Case &c, const LinearWide &p, bool f32, int tile, WideDeal how, int cluster = 1) {
  if (c.f8) return tile < kWideTiles && linear_wide_try(p, tile, how, kSms, stream);
  return tile < kWideB16Tiles && linear_wide_b16_try({p}, f32 ? WideOut::kFloats : WideOut::kRows, tile, how, cluster, kSms, stream);
}

// Every tile that these inputs have, dealt out in `how`; returns how many there were.
static int run_all(const Case &c, bool f32, WideDeal how, int cluster = 1) {
  int count = 0;
  for (int tile = 0; tile < std::max(kWideTiles, kWideB16Tiles); tile++) {
    const size_t words = (size_t)c.m * c.n, guard = 64;
    float *y = device<float>(words + guard);
    if (!try_way(c, c.params(y), f32, tile, how, cluster)) continue;
    cuda(cudaStreamSynchronize(stream));
    count++;
    char what[48];
    snprintf(what, sizeof what, "tile %d, way %d, clusters of %d", tile, (int)how, cluster);
    const auto at = [&](int t, int col) { return (size_t)t * c.n + col; };
    const std::vector<uint32_t> behind = fetch((const uint32_t *)y + (f32 ? words : words / 2 + 1), guard / 2);
    if (f32) c.check(fetch(y, words), at, 1, 1e-5, what);
    else c.check(fetch((const bf16 *)y, words), at, 1, 3e-3, what);
    for (uint32_t word : behind) assert_int_equal(word, ~0u);
    partials_are_clean();
  }
  return count;
}

static void whole_tiles(void **state) {
  (void)state;
  for (bool f8 : {true, false}) {
    assert_int_equal(run_all(Case(133, 584, 320, f8), false, WideDeal::kWhole), 4);
    run_all(Case(270, 71, 128, f8), false, WideDeal::kWhole); // outputs that are no multiple of 8
  }
  assert_int_equal(run_all(Case(150, 331, 200, false), true, WideDeal::kWhole), 3);
  free_all();
}

static void cut_tiles(void **state) {
  (void)state;
  for (bool f8 : {true, false}) {
    assert_in_range(run_all(Case(100, 130, f8 ? 3328 : 1408, f8), false, WideDeal::kCut), 3, 4); // few tiles, each in runs of several CTAs
    run_all(Case(130, 450, 1024, f8), false, WideDeal::kCut);                                  // whole ones before
  }
  run_all(Case(97, 300, 1024, false), true, WideDeal::kCut);
  free_all();
}

// Two tiles of tokens side by side: two CTAs have the same columns of the weights.
static void cut_side_by_side(void **state) {
  (void)state;
  assert_in_range(run_all(Case(200, 530, 1024, true), false, WideDeal::kBeside), 2, 4);
  assert_in_range(run_all(Case(200, 530, 640, false), false, WideDeal::kBeside), 2, 4);
  free_all();
}

// Tiles cut among the CTAs of a cluster: alone, behind whole ones, with shares of unlike size, ragged in tokens and outputs.
static void cut_by_clusters(void **state) {
  (void)state;
  assert_int_equal(run_all(Case(200, 120, 1152, false), false, WideDeal::kCluster, 2), 3);
  assert_int_equal(run_all(Case(100, 190, 640, false), false, WideDeal::kCluster, 2), 3);
  assert_int_equal(run_all(Case(130, 71, 1408, false), false, WideDeal::kCluster, 4), 1);  // four CTAs: one cluster
  assert_int_equal(run_all(Case(120, 130, 1408, false), false, WideDeal::kCluster, 3), 2); // ... of three, which have 3, 4 and 4 pairs
  assert_int_equal(run_all(Case(250, 640, 512, false), false, WideDeal::kCluster, 2), 2);  // behind two waves of whole tiles, and one
  assert_int_equal(run_all(Case(140, 300, 640, false), true, WideDeal::kCluster, 2), 2);
  assert_int_equal(run_all(Case(100, 120, 384, false), false, WideDeal::kCluster, 2), 0); // a CTA would have less than two pairs
  free_all();
}

// x repeats the columns of w, as the high and low halves of a number do.
static void columns_again(void **state) {
  (void)state;
  const Case c(120, 200, 256, false);
  Records twice = {device<uint8_t>(2 * records_bytes(false, c.x.mp, c.w.k)), c.x.mp, 0};
  const std::vector<uint8_t> once = fetch(c.x.data, records_bytes(false, c.x.mp, c.w.k));
  std::vector<uint8_t> both(once);
  both.insert(both.end(), once.begin(), once.end());
  cuda(cudaMemcpy(twice.data, both.data(), both.size(), cudaMemcpyHostToDevice));
  float *y = device<float>((size_t)c.m * c.n);
  LinearWide p = c.params(y, 2);
  p.x = twice.data;
  assert_true(try_way(c, p, true, 0, WideDeal::kCut));
  cuda(cudaStreamSynchronize(stream));
  c.check(fetch(y, (size_t)c.m * c.n), [&](int t, int col) { return (size_t)t * c.n + col; }, 2, 1e-5, "twice");
  free_all();
}

// silu(gate) * up as records: whole and cut tiles, the last ones ragged in tokens and outputs, rows of up behind others.
static void gated(void **state) {
  (void)state;
  for (int m : {150, 200}) {
    const int inter = m == 150 ? 384 : 256, up_at = inter + 64;
    const Case c(m, up_at + inter, m == 150 ? 256 : 1664, false);
    const Records act = {nullptr, padded_rows(m) + 8, 0};
    const size_t bytes = records_bytes(false, act.mp, inter);
    int ways = 0;
    for (int tile = 0; tile < kWideB16Tiles; tile++)
      for (WideDeal how : {WideDeal::kWhole, WideDeal::kCut, WideDeal::kBeside, WideDeal::kCluster}) {
        uint8_t *out = device<uint8_t>(bytes);
        LinearWide p = c.params(out);
        p.n = 2 * inter;
        if (!linear_wide_b16_try({p, up_at, act.mp}, WideOut::kGated, tile, how, 2, kSms, stream)) continue;
        cuda(cudaStreamSynchronize(stream));
        ways++;
        const std::vector<uint8_t> got = fetch(out, bytes);
        double difference = 0, all = 0;
        for (int t = 0; t < act.mp; t++)
          for (int col = t % 3; col < inter; col += 3) {
            const size_t at = (size_t)(col / 128) * record_bytes(false, act.mp) + ((size_t)(col / 64 % 2) * act.mp + t) * 128 +
                              ((col % 64 / 8 ^ (t & 7)) << 4) + col % 8 * 2;
            uint16_t word;
            memcpy(&word, &got[at], 2);
            if (t >= m) {
              assert_int_equal(word, 0xffff); // nobody's
              continue;
            }
            const double g = c.dot(t, col), want = g / (1 + std::exp(-g)) * c.dot(t, up_at + col);
            const double value = (double)__bfloat162float(__ushort_as_bfloat16(word));
            difference += (value - want) * (value - want);
            all += want * want;
          }
        if (!(std::sqrt(difference / all) <= 6e-3)) fail_msg("gated, tile %d, way %d: relative error %.1e", tile, (int)how, std::sqrt(difference / all));
        partials_are_clean();
      }
    assert_true(ways >= (m == 150 ? 3 : 5));
  }
  free_all();
}

// The best output of each row, of every tile, the first one where outputs are equal: rows in two tiles, outputs that end within eight.
static void best_outputs(void **state) {
  (void)state;
  int tiles = 0;
  for (int m : {30, 64, 100, 128}) {
    Case c(m, m == 64 ? 700 : 330, 384, false);
    std::vector<uint8_t> w = fetch(c.w.data, c.w.stride);
    const int64_t pairs = (int64_t)column_pairs(c.w);
    for (int64_t row = 192; row < c.n; row++) // as the 192 in front
      for (int64_t byte = 0; byte < 2 * c.k; byte++) w[tile_offset(row, byte, pairs)] = w[tile_offset(row - 192, byte, pairs)];
    cuda(cudaMemcpy(c.w.data, w.data(), w.size(), cudaMemcpyHostToDevice));
    for (int tile = 0; tile < kWideB16Tiles; tile++) {
      Key *keys = device<Key>((size_t)m * kSms);
      LinearWideB16 p = {c.params(nullptr)};
      p.best = keys;
      assert_int_equal(linear_wide_b16_try(p, WideOut::kBest, tile, WideDeal::kCut, 1, kSms, stream), 0); // these are never cut
      const int ctas = linear_wide_b16_try(p, WideOut::kBest, tile, WideDeal::kWhole, 1, kSms, stream);
      if (!ctas) continue;
      cuda(cudaStreamSynchronize(stream));
      tiles++;
      const std::vector<Key> got = fetch(keys, (size_t)m * (size_t)ctas);
      for (int t = 0; t < m; t++) {
        const Key top = *std::max_element(got.begin() + t * ctas, got.begin() + (t + 1) * ctas);
        int want = 0;
        for (int col = 1; col < 192; col++)
          if (c.dot(t, col) > c.dot(t, want)) want = col;
        const int id = (int)~(uint32_t)top;
        const uint32_t bits = (uint32_t)(top >> 32), value = bits & 0x80000000u ? bits & 0x7fffffffu : ~bits;
        float logit;
        memcpy(&logit, &value, 4);
        assert_in_range(id, 0, 191);
        if (std::fabs(logit - c.dot(t, want)) > 1e-4 || std::fabs(c.dot(t, id) - c.dot(t, want)) > 1e-4)
          fail_msg("row %d of %d, tile %d: output %d with %g in place of %d with %g", t, m, tile, id, (double)logit, want, c.dot(t, want));
      }
    }
  }
  assert_int_equal(tiles, 2 * 4);
  free_all();
}

// As linear() and linear_kv_tiles() choose.
static void key_and_value_tiles(void **state) {
  (void)state;
  const Case c(192, 512, 256, true);
  const int key_blocks = 4; // one more than there are keys
  uint8_t *tiles = device<uint8_t>((size_t)c.n / 256 * key_blocks * 4 * 8192);
  const LinearScratch scratch = {.partial = partial, .sms = kSms};
  linear_kv_tiles(c.w, c.x, tiles, key_blocks, c.m, scratch, stream);
  cuda(cudaStreamSynchronize(stream));
  c.check(fetch((const bf16 *)tiles, (size_t)c.n / 256 * key_blocks * 4 * 4096), [&](int t, int col) {
    return ((((size_t)(col / 256) * key_blocks + t / 64) * 4 + col % 256 / 64) * 8192 + t % 64 * 128 + ((col % 64 / 8 ^ (t & 7)) << 4)) / 2 + col % 8;
  }, 1, 3e-3, "kv tiles");
  bf16 *y = device<bf16>((size_t)c.m * c.n);
  linear(c.w, c.x, y, c.n, false, c.m, 1, scratch, stream);
  cuda(cudaStreamSynchronize(stream));
  c.check(fetch(y, (size_t)c.m * c.n), [&](int t, int col) { return (size_t)t * c.n + col; }, 1, 3e-3, "chosen");
  partials_are_clean();
  free_all();
}

// However it is dealt out, the sums of a way are the same every time.
static void same_every_time(void **state) {
  (void)state;
  const Case c(140, 130, 2048, true), half(120, 250, 1408, false);
  std::vector<uint16_t> before;
  for (int i = 0; i < 3; i++) {
    bf16 *y = device<bf16>((size_t)c.m * c.n);
    assert_true(linear_wide_try(c.params(y), 1, WideDeal::kCut, kSms, stream));
    cuda(cudaStreamSynchronize(stream));
    const std::vector<uint16_t> now = fetch((const uint16_t *)y, (size_t)c.m * c.n);
    if (i) assert_memory_equal(now.data(), before.data(), now.size() * 2);
    before = now;
  }
  before.clear();
  for (int i = 0; i < 3; i++) {
    bf16 *y = device<bf16>((size_t)half.m * half.n);
    assert_true(try_way(half, half.params(y), false, 0, WideDeal::kCluster, 2));
    cuda(cudaStreamSynchronize(stream));
    const std::vector<uint16_t> now = fetch((const uint16_t *)y, (size_t)half.m * half.n);
    if (i) assert_memory_equal(now.data(), before.data(), now.size() * 2);
    before = now;
  }
  free_all();
}

static int open_device(void **state) {
  (void)state;
  cuda(cudaStreamCreate(&stream));
  linear_prepare();
  cuda(cudaMalloc(&partial, (size_t)kSms * kPartialFloats * 4));
  cuda(cudaMemset(partial, 0xff, (size_t)kSms * kPartialFloats * 4));
  return 0;
}
static int close_device(void **state) {
  (void)state;
  cuda(cudaFree(partial));
  cuda(cudaStreamDestroy(stream));
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(whole_tiles),   cmocka_unit_test(cut_tiles),           cmocka_unit_test(cut_side_by_side),
      cmocka_unit_test(columns_again), cmocka_unit_test(key_and_value_tiles), cmocka_unit_test(same_every_time),
      cmocka_unit_test(gated),         cmocka_unit_test(cut_by_clusters),     cmocka_unit_test(best_outputs),
  };
  return cmocka_run_group_tests(tests, open_device, close_device);
}
