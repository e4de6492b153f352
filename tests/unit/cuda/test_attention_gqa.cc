// Attention of grouped queries on the emulated device, against a reference in double: tools/gpu/check_gqa.cuh's checks with small
// shapes, and how lists of pages are cut: few and many SMs, pairs in one run and in many, ragged rows, padding, rows left to prefill.
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
#include "engine/cuda/waits.cuh"
extern "C" {
#include <cmocka.h>
}

using namespace mob;

static int sms = 3;
static cudaStream_t stream;
static std::mt19937_64 rng(20250807);
static const size_t rotate_bytes = 0;

#include "tests/unit/cuda/gpu_check.h"

#include "tools/gpu/check_gqa.cuh"

static void test_decode(void **) {
  for (int of : {1, 3, 40}) { // runs of many pairs; of parts of pairs
    sms = of;
    check_gqa({"narrow", 14, 2, 128}, 1, 200, false, false);
    check_gqa({"narrow", 14, 2, 128}, 5, 700, false, false);
    check_gqa({"wide", 22, 2, 128}, 3, 500, false, false);
    check_gqa({"half", 7, 1, 64}, 9, 300, false, false);
    check_gqa({"half, wide", 16, 1, 64}, 2, 900, false, false);
    check_gqa({"one a group", 3, 3, 128}, 2, 300, false, true);
    check_gqa({"wide", 9, 1, 128}, 2, 300, false, true);
  }
}

// More runs of one pair than a row has lanes.
static void test_long(void **) {
  sms = 40;
  check_gqa({"narrow", 4, 1, 128}, 1, 2600, false, false);
  check_gqa({"wide", 12, 1, 128}, 1, 2600, false, false);
  check_gqa({"half", 3, 1, 64}, 2, 2600, false, false);
}

static void test_prefill(void **) {
  sms = 3;
  check_gqa({"whole", 4, 2, 128}, 200, 200, true, false);
  check_gqa({"behind others", 3, 1, 128}, 150, 500, true, false);
  check_gqa({"short", 2, 1, 128}, 33, 133, true, false);
  check_gqa({"half", 5, 1, 64}, 130, 300, true, false);
  check_gqa({"e4m3", 3, 1, 128}, 70, 170, true, true);
}

static void test_prepare(void **) {
  check_gqa_prepare({"7 a group", 14, 2, 128}, 20, false, false);
  check_gqa_prepare({"norms", 5, 1, 128}, 7, true, true);
  check_gqa_prepare({"half", 7, 1, 64}, 9, true, false);
  check_gqa_prepare({"half", 4, 4, 64}, 3, false, true);
}

// In a step that has failed nothing is written to the cache, which outlives it.
static void test_halted(void **) {
  const int heads = 4, kv_heads = 1, dim = 128, ld = (heads + 2 * kv_heads) * dim;
  bf16 *raw = normal_bf16((size_t)2 * ld);
  int *dp = upload(std::vector<int>{70, 5}), *dt = upload(std::vector<int>{0, 2}), *dg = upload(std::vector<int>{0, 1, 2});
  float *df = upload(std::vector<float>((size_t)dim / 2, 0.5f));
  const size_t bytes = 3 * page_bytes(2 * kv_heads * dim);
  bf16 *out = device<bf16>((size_t)2 * heads * dim);
  sms = 2;
  float *partial = device<float>(gqa_partial_bytes(sms) / 4);
  for (bool one : {false, true}) { // in the kernel of its own, in attention's
    uint8_t *cache = device<uint8_t>(bytes);
    for (int halt = 1; halt >= 0; halt--) {
      std::vector<Waits> words(1);
      words[0].halt = halt;
      Waits *waits = upload(words);
      const GqaPrepare p = {raw, raw + heads * dim, raw + (heads + kv_heads) * dim, ld, ld, ld, heads, kv_heads, dim, nullptr, nullptr, nullptr,
                            nullptr, nullptr, 1e-6f, cache, 2 * kv_heads * dim, {nullptr, nullptr, dp, dt, dg, nullptr, waits},
                            {df, dim, 0, 1.0f}};
      if (one)
        attend_gqa({p.q, ld, heads, kv_heads, dim, 0.09f, cache, p.step, nullptr, true, {{}, heads * dim, false, out, heads * dim}, partial, waits, sms,
                    true, p},
                   2, stream);
      else gqa_prepare_fast(p, nullptr, nullptr, HeadsOut(), 2, stream);
      CUDA(cudaStreamSynchronize(stream));
      const std::vector<uint8_t> all = fetch(cache, bytes);
      const long written = (long)bytes - std::count(all.begin(), all.end(), 0xff);
      if (halt) assert_int_equal(written, 0);
      else assert_true(written > 2 * 2 * dim); // two tokens of 512 bytes
      cudaFree(waits);
    }
    cudaFree(cache);
  }
  for (void *v : {(void *)raw, (void *)dp, (void *)dt, (void *)dg, (void *)df, (void *)out, (void *)partial}) cudaFree(v);
}

// Rows of very different lengths, padding, and rows that the prefill kernel has: each result equals the row's own, alone.
static void test_ragged(void **) {
  const int heads = 8, kv_heads = 2, dim = 128, rows = 12, unit = heads * dim;
  const std::vector<int> position = {0, 63, 64, 1000, 0, 5, 700, 127, 128, 3, 0, 0}, tile_row = {-1, -1, -1, -1, 64, -1, -1, 3, -1, -1, -1, -1};
  std::vector<int> table, pages;
  for (int r = 0; r < rows; r++) {
    table.push_back(r == 2 || r >= 10 ? -1 : (int)pages.size());
    for (int i = 0; i <= position[(size_t)r] / 64; i++) pages.push_back((int)pages.size());
  }
  bf16 *cache = normal_bf16(pages.size() * page_bytes(2 * kv_heads * dim) / 2), *q = normal_bf16((size_t)rows * unit);
  int *dp = upload(position), *dt = upload(table), *dg = upload(pages), *dr = upload(tile_row);
  bf16 *out = device<bf16>((size_t)rows * unit), *alone = device<bf16>((size_t)rows * unit);
  float *partial = device<float>(gqa_partial_bytes(128) / 4);
  for (int of : {1, 2, 7, 60}) {
    AttendGqa p = {q, unit, heads, kv_heads, dim, 0.09f, (uint8_t *)cache, {nullptr, nullptr, dp, dt, dg, nullptr}, dr, false,
                   {{}, unit, false, out, unit}, partial, nullptr, of};
    CUDA(cudaMemset(out, 0xff, (size_t)rows * unit * 2));
    attend_gqa(p, rows, stream);
    for (int r = 0; r < rows; r++) {
      AttendGqa one = p;
      one.q = q + (size_t)r * unit;
      one.step.position = dp + r;
      one.step.table = dt + r;
      one.tile_row = nullptr;
      one.out.rows = alone + (size_t)r * unit;
      one.sms = 2;
      attend_gqa(one, 1, stream);
    }
    CUDA(cudaStreamSynchronize(stream));
    const std::vector<bf16> got = fetch(out, (size_t)rows * unit), want = fetch(alone, (size_t)rows * unit);
    for (int r = 0; r < rows; r++) {
      const bool mine = table[(size_t)r] >= 0 && tile_row[(size_t)r] < 0;
      std::vector<float> a, b;
      for (int c = 0; c < unit; c++) {
        a.push_back(__bfloat162float(got[(size_t)(r * unit + c)]));
        b.push_back(__bfloat162float(want[(size_t)(r * unit + c)]));
        if (!mine) assert_true(std::isnan(a.back())); // nobody's, or another kernel's
      }
      if (mine) assert_true(relative_l2(a, b) < 4e-3);
    }
    for (uint32_t v : fetch((const uint32_t *)partial, gqa_partial_bytes(128) / 4)) assert_int_equal(v, ~0u);
  }
  for (void *v : {(void *)cache, (void *)q, (void *)dp, (void *)dt, (void *)dg, (void *)dr, (void *)out, (void *)alone, (void *)partial})
    cudaFree(v);
}

// What is projected goes in, and all is done in one kernel: the same bits as two kernels leave, in the results and in the cache.
static void test_one_kernel(void **) {
  const struct { int heads, kv_heads, dim; bool norm, interleaved, bias; } shapes[] = {
      {14, 2, 128, false, false, true}, {22, 2, 128, true, true, false}, {7, 1, 64, true, false, true}, {12, 1, 64, false, true, false}};
  for (const auto &s : shapes)
    for (int of : {1, 3, 40}) {
      const std::vector<int> position = {0, 63, 64, 1000, 15, 5, 700, 127, 128, 3, 48, 0};
      const int rows = (int)position.size(), unit = s.heads * s.dim, ld = (s.heads + 2 * s.kv_heads) * s.dim, width = 2 * s.kv_heads * s.dim;
      std::vector<int> table, pages;
      for (int r = 0; r < rows; r++) {
        table.push_back(r == 2 || r >= 10 ? -1 : (int)pages.size());
        for (int i = 0; i <= position[(size_t)r] / 64; i++) pages.push_back((int)pages.size());
      }
      std::shuffle(pages.begin(), pages.end(), rng);
      const size_t cache_bytes = pages.size() * page_bytes(width);
      bf16 *raw = normal_bf16((size_t)rows * ld), *before = normal_bf16(cache_bytes / 2), *raws[2], *caches[2], *outs[2];
      std::vector<float> bias((size_t)ld), weight((size_t)(2 * s.dim)), freq;
      std::normal_distribution<float> value;
      for (float &v : bias) v = value(rng);
      for (float &v : weight) v = 1 + 0.2f * value(rng);
      for (int i = 0; i < s.dim / 2; i++) freq.push_back((float)std::pow(1e6, -2.0 * i / s.dim));
      float *db = upload(bias), *dw = upload(weight), *df = upload(freq), *partial = device<float>(gqa_partial_bytes(of) / 4);
      int *dp = upload(position), *dt = upload(table), *dg = upload(pages);
      sms = of;
      for (int one = 0; one < 2; one++) {
        raws[one] = upload(fetch(raw, (size_t)rows * ld));
        caches[one] = upload(fetch(before, cache_bytes / 2));
        outs[one] = device<bf16>((size_t)rows * unit);
        bf16 *q = raws[one];
        const GqaPrepare fresh = {q, q + unit, q + unit + s.kv_heads * s.dim, ld, ld, ld, s.heads, s.kv_heads, s.dim, s.bias ? db : nullptr,
                                  s.bias ? db + unit : nullptr, s.bias ? db + unit + s.kv_heads * s.dim : nullptr, s.norm ? dw : nullptr,
                                  s.norm ? dw + s.dim : nullptr, 1e-6f, (uint8_t *)caches[one], width, {nullptr, nullptr, dp, dt, dg, nullptr},
                                  {df, s.dim, s.interleaved, 1.0f}};
        const HeadsOut out = {{}, unit, false, outs[one], unit};
        if (!one) gqa_prepare_fast(fresh, nullptr, nullptr, out, rows, stream);
        attend_gqa({q, ld, s.heads, s.kv_heads, s.dim, 0.09f, (uint8_t *)caches[one], fresh.step, nullptr, true, out, partial, nullptr, of, one != 0,
                    fresh},
                   rows, stream);
        CUDA(cudaStreamSynchronize(stream));
      }
      const std::vector<bf16> want = fetch(outs[0], (size_t)rows * unit), got = fetch(outs[1], (size_t)rows * unit);
      const std::vector<bf16> want_cache = fetch(caches[0], cache_bytes / 2), got_cache = fetch(caches[1], cache_bytes / 2);
      assert_memory_equal(got.data(), want.data(), got.size() * 2);
      assert_memory_equal(got_cache.data(), want_cache.data(), cache_bytes);
      for (const bf16 &v : got) assert_true(std::isfinite(__bfloat162float(v)));
      for (void *v : {(void *)raw, (void *)before, (void *)db, (void *)dw, (void *)df, (void *)partial, (void *)dp, (void *)dt, (void *)dg,
                      (void *)raws[0], (void *)raws[1], (void *)caches[0], (void *)caches[1], (void *)outs[0], (void *)outs[1]})
        cudaFree(v);
    }
}

static int set_up(void **) {
  CUDA(cudaStreamCreate(&stream));
  attention_gqa_prepare();
  return 0;
}

int main() {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_decode), cmocka_unit_test(test_long), cmocka_unit_test(test_prefill),
                                     cmocka_unit_test(test_prepare), cmocka_unit_test(test_halted), cmocka_unit_test(test_ragged),
                                     cmocka_unit_test(test_one_kernel)};
  return cmocka_run_group_tests(tests, set_up, nullptr);
}
