// The linear of few tokens on the emulated device, dense and by expert, against sums in double of the same quantised inputs: tiles dealt
// out whole and in runs that other CTAs add, shared experts in front of those that a router chose, columns that are read twice, records
// with room for more rows; and whether what is left between launches is clean and every launch gives the same.
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
#include "engine/cuda/linear_few.cuh"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "engine/model/model.h"
}

#include "tests/unit/cuda/linear_case.h"

static void check_dense(const Case &c, bool f32) {
  const size_t words = (size_t)c.m * c.n, guard = 64;
  float *y = device<float>(words + guard);
  linear(c.w, c.x, y, c.n, f32, c.m, 1, scratch, stream);
  cuda(cudaStreamSynchronize(stream));
  if (f32) c.check(fetch(y, words).data(), 0, 0, 1, 1e-5, "fp32");
  else c.check(fetch((const bf16 *)y, words).data(), 0, 0, 1, 3e-3, "dense");
  for (uint32_t word : fetch((const uint32_t *)y + (f32 ? words : words / 2 + 1), guard / 2)) assert_int_equal(word, ~0u);
  partials_are_clean();
}

static void dense(void **state) {
  (void)state;
  for (int m : {1, 3, 8, 9, 16}) {
    check_dense(Case(m, 1200, 512, true), false);  // whole tiles, then cut ones
    check_dense(Case(m, 130, 3328, true), false);  // two tiles, cut over all CTAs; the last block of 64 has two outputs
    check_dense(Case(m, 61, 200, true), false);    // one CTA has all
    check_dense(Case(m, 330, 1408, false), false);
    check_dense(Case(m, 200, 1408, false), true);
    free_all();
  }
}

// Rows that stand among more than the kernel takes.
static void rows_with_room(void **state) {
  (void)state;
  check_dense(Case(5, 200, 512, true, 1, 1, 8), false);
  check_dense(Case(5, 200, 256, false, 1, 1, 24), false);
  check_dense(Case(11, 200, 512, true, 1, 1, 8), false);
  free_all();
}

// x repeats the columns of w, as the high and low halves of a number do.
static void columns_again(void **state) {
  (void)state;
  const Case c(7, 200, 256, false);
  Records twice = {device<uint8_t>(2 * c.x_stride), c.x.mp, 0};
  const std::vector<uint8_t> once = fetch(c.x.data, c.x_stride);
  std::vector<uint8_t> both(once);
  both.insert(both.end(), once.begin(), once.end());
  cuda(cudaMemcpy(twice.data, both.data(), both.size(), cudaMemcpyHostToDevice));
  float *y = device<float>((size_t)c.m * c.n);
  linear(c.w, twice, y, c.n, true, c.m, 2, scratch, stream);
  cuda(cudaStreamSynchronize(stream));
  c.check(fetch(y, (size_t)c.m * c.n).data(), 0, 0, 2, 1e-5, "twice");
  partials_are_clean();
  free_all();
}

// The routed experts of `chosen`, then `shared` ones, which stand behind all routed ones. own: every expert of the list has rows of its own.
static void check_experts(int m, int n, int k, const std::vector<int> &chosen, int shared, bool f8, bool own) {
  const int routed = 5, active = (int)chosen.size() + shared;
  const Case c(m, n, k, f8, routed + shared, own ? active : 1);
  std::vector<int> list(chosen);
  for (int i = 0; i < shared; i++) list.push_back(routed + i);
  list.push_back(-1); // behind the last
  bf16 *y = device<bf16>((size_t)active * m * n + 1);
  linear_experts_few(c.w, upload(list), upload(std::vector<int>{active}), c.x, own ? c.x_stride : 0, y, m, routed, shared, scratch, stream);
  cuda(cudaStreamSynchronize(stream));
  const std::vector<bf16> all = fetch(y, (size_t)active * m * n + 1);
  for (int i = 0; i < active; i++) c.check(&all[(size_t)i * m * n], list[(size_t)i], own ? i : 0, 1, 3e-3, "expert");
  uint16_t behind;
  memcpy(&behind, &all.back(), 2);
  assert_int_equal(behind, 0xffff);
  partials_are_clean();
  free_all();
}

static void by_expert(void **state) {
  (void)state;
  check_experts(1, 192, 512, {0, 2, 4}, 1, true, false);
  check_experts(8, 192, 512, {1, 3}, 1, true, true);
  check_experts(2, 300, 768, {4}, 2, true, true);
  check_experts(12, 130, 512, {0, 1, 2, 3, 4}, 0, true, true); // none is known before the router
  check_experts(3, 130, 512, {}, 1, true, false);              // all others are elsewhere
  check_experts(4, 200, 384, {2, 3}, 1, false, true);
  check_experts(1, 64, 256, {}, 0, true, false);               // nothing to do
}

// 16 outputs a CTA: tiles of columns that are no multiple of four, rows with room, an odd number of outputs.
static void narrow(void **state) {
  (void)state;
  const int shapes[][3] = {{60, 256, 0}, {16, 768, 0}, {64, 2300, 8}, {33, 7168, 0}, {7, 1280, 0}};
  for (int m : {1, 3, 8})
    for (const int (&shape)[3] : shapes) {
      const Case c(m, shape[0], shape[1], true, 1, 1, shape[2]);
      assert_true(linear_narrow_serves(c.w, m, kSms));
      const size_t words = (size_t)m * c.n;
      bf16 *y = device<bf16>(words + 32);
      linear_narrow(c.w, c.x, y, c.n, m, stream);
      cuda(cudaStreamSynchronize(stream));
      c.check(fetch((const bf16 *)y, words).data(), 0, 0, 1, 3e-3, "narrow");
      for (uint16_t word : fetch((const uint16_t *)y + words, 32)) assert_int_equal(word, 0xffff);
    }
  free_all();
}

// All columns of 64 outputs a CTA: more pairs than the ring holds, an odd number of them, several blocks a CTA, rows with room.
static void whole(void **state) {
  (void)state;
  const int shapes[][3] = {{60, 256, 0}, {256, 3328, 0}, {200, 768, 8}, {600, 1280, 0}, {64, 5120, 0}};
  for (int m : {1, 2, 7})
    for (const int (&shape)[3] : shapes) {
      const Case c(m, shape[0], shape[1], true, 1, 1, shape[2]);
      const size_t words = (size_t)m * c.n;
      bf16 *y = device<bf16>(words + 32);
      linear_whole(c.w, c.x, y, c.n, m, kSms, stream);
      cuda(cudaStreamSynchronize(stream));
      c.check(fetch((const bf16 *)y, words).data(), 0, 0, 1, 3e-3, "whole");
      for (uint16_t word : fetch((const uint16_t *)y + words, 32)) assert_int_equal(word, 0xffff);
    }
  const Matrix few = {nullptr, 0, 7168, 4096, Weights::F8}, many = {nullptr, 0, 7168, 16384, Weights::F8}, low = {nullptr, 0, 2112, 4096, Weights::F8};
  assert_true(linear_whole_serves(few, 1, 132));
  assert_false(linear_whole_serves(many, 1, 132)); // equal bytes on all SMs count more
  assert_false(linear_whole_serves(low, 1, 132));
  free_all();
}

// A token's experts, some of them elsewhere, and what they give together.
static void check_down(int m, int count, int n, int inter, int routed, int chosen, int top_k, int shared, bool f8, bool elsewhere) {
  const int active = chosen + shared, slots = top_k + shared, up_at = (inter + 63) / 64 * 64, ld = up_at + inter + 8;
  Case c(m, n, inter, f8, routed + shared, 0);
  std::normal_distribution<float> normal;
  std::vector<int> list, row;
  for (int i = 0; i < chosen; i++) list.push_back(routed - chosen + i);
  for (int i = 0; i < shared; i++) list.push_back(routed + i);
  std::vector<float> weight;
  for (int t = 0; t < m; t++)
    for (int j = 0; j < slots; j++) {
      const int i = j < top_k ? (t + j) % chosen : chosen + j - top_k;
      const bool away = elsewhere && j < top_k && (t + j) % 3 == 0;
      row.push_back(t >= count || away ? (elsewhere ? -1 : t) : i * m + t);
      weight.push_back(j < top_k ? 0.1f + 0.05f * (float)j : 1.0f);
    }
  std::vector<bf16> y;
  for (int i = 0; i < active * m * ld; i++) y.push_back(__float2bfloat16(normal(rng)));
  for (int i = 0; i < active; i++) { // act, as numbers
    std::vector<float> all;
    for (int t = 0; t < m; t++) {
      std::vector<float> v;
      for (int k = 0; k < inter; k++) {
        const float gate = __bfloat162float(y[(size_t)(i * m + t) * ld + k]), up = __bfloat162float(y[(size_t)(i * m + t) * ld + up_at + k]);
        v.push_back(gate / (1 + std::exp(-gate)) * up);
      }
      for (int from = 0; f8 && from < inter; from += 128) {
        float amax = 1e-10f;
        const int end = std::min(inter, from + 128);
        for (int k = from; k < end; k++) amax = std::max(amax, std::fabs(v[(size_t)k]));
        const float scale = amax / 448.0f, inverse = 1 / scale;
        for (int k = from; k < end; k++) v[(size_t)k] = (float)__nv_fp8_e4m3(v[(size_t)k] * inverse) * scale;
      }
      all.insert(all.end(), v.begin(), v.end());
    }
    c.x_values.push_back(all);
  }
  bf16 *out = device<bf16>((size_t)m * n + 8);
  const ExpertsDown e = {upload(y), ld, up_at, inter, upload(std::vector<int>{active}), upload(list), upload(row), upload(weight),
                         upload(std::vector<int>{count}), slots, 0, false};
  for (int again = 0; again < 2; again++) {
    linear_experts_down(c.w, e, out, m, kSms, stream);
    cuda(cudaStreamSynchronize(stream));
    const std::vector<bf16> got = fetch(out, (size_t)m * n + 8);
    double difference = 0, size = 0;
    for (int t = 0; t < m; t++)
      for (int column = t % 3; column < n; column += 3) {
        double want = 0;
        for (int j = 0; j < slots && t < count; j++) {
          const int at = row[(size_t)(t * slots + j)];
          if (at >= 0) want += (double)weight[(size_t)(t * slots + j)] * c.dot(list[(size_t)(at / m)], at / m, t, column);
        }
        const double is = (double)__bfloat162float(got[(size_t)t * n + column]);
        difference += (is - want) * (is - want);
        size += want * want;
      }
    const double error = std::sqrt(difference / (size + 1e-30));
    if (!(error <= 4e-3)) fail_msg("down %d x %d, %d tokens: relative error %.1e", n, inter, m, error);
    for (int i = 0; i < 8; i++) assert_int_equal(((const uint16_t *)got.data())[(size_t)m * n + i], 0xffff);
  }
  free_all();
}
static void experts_down(void **state) {
  (void)state;
  check_down(1, 1, 192, 512, 6, 4, 4, 1, true, false);
  check_down(8, 8, 330, 384, 9, 7, 3, 1, true, false);
  check_down(4, 3, 130, 768, 9, 9, 4, 2, true, false); // a row of padding
  check_down(3, 3, 200, 200, 5, 4, 2, 0, true, true);
  check_down(2, 2, 200, 328, 5, 3, 2, 1, false, false);
}

static void same_every_time(void **state) {
  (void)state;
  const Case c(6, 130, 3328, true);
  std::vector<uint16_t> before;
  for (int i = 0; i < 3; i++) {
    bf16 *y = device<bf16>((size_t)c.m * c.n);
    linear(c.w, c.x, y, c.n, false, c.m, 1, scratch, stream);
    cuda(cudaStreamSynchronize(stream));
    const std::vector<uint16_t> now = fetch((const uint16_t *)y, (size_t)c.m * c.n);
    if (i) assert_memory_equal(now.data(), before.data(), now.size() * 2);
    before = now;
  }
  free_all();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(dense),     cmocka_unit_test(rows_with_room),  cmocka_unit_test(columns_again),
      cmocka_unit_test(by_expert), cmocka_unit_test(same_every_time), cmocka_unit_test(narrow),
      cmocka_unit_test(whole),
      cmocka_unit_test(experts_down),
  };
  return cmocka_run_group_tests(tests, open_device, close_device);
}
