// The experts of few tokens in one launch on the emulated device, against sums in double of the same quantised inputs: tiles dealt out
// whole and in runs that other CTAs add, one and several column pairs of activations, experts that are elsewhere, rows of padding; and
// whether what is left between launches is clean and every launch gives the same.
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>

#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>
}

#include "engine/cuda/experts_few.h"
#include "tests/unit/cuda/linear_case.h"

// What a router chose: of each of `count` tokens out of m, `top_k` experts (in ascending order), some of them on other ranks.
struct Choice {
  int m, count, top_k, shared;
  std::vector<int> list, row; // active experts; [m][top_k + shared] place in the list * m + token
  std::vector<float> weight;
  int slots() const { return top_k + shared; }
};

static Choice choose(int m, int count, int routed, int chosen, int top_k, int shared, bool elsewhere) {
  Choice c = {m, count, top_k, shared, {}, {}, {}};
  for (int i = 0; i < chosen; i++) c.list.push_back(routed - chosen + i);
  for (int i = 0; i < shared; i++) c.list.push_back(routed + i);
  for (int t = 0; t < m; t++)
    for (int j = 0; j < top_k + shared; j++) {
      const bool away = elsewhere && j < top_k && (chosen == 0 || (t + j) % 3 == 0);
      const int i = j >= top_k ? chosen + j - top_k : chosen ? (t + j) % chosen : 0;
      c.row.push_back(t >= count || away ? (elsewhere ? -1 : t) : i * m + t);
      c.weight.push_back(j < top_k ? 0.1f + 0.05f * (float)j : 1.0f);
    }
  return c;
}

// act [m][inter] of an expert
static std::vector<float> activations(const Case &up, int matrix, int inter, int up_at) {
  std::vector<float> v;
  for (int t = 0; t < up.m; t++)
    for (int i = 0; i < inter; i++) {
      const float gate = __bfloat162float(__float2bfloat16((float)up.dot(matrix, 0, t, i)));
      const float other = __bfloat162float(__float2bfloat16((float)up.dot(matrix, 0, t, up_at + i)));
      v.push_back(gate / (1 + std::exp(-gate)) * other);
    }
  if (up.f8) quantise(&v, inter);
  for (float &value : v)
    if (!up.f8) value = __bfloat162float(__float2bfloat16(value));
  return v;
}

static void check(int hidden, int inter, int gap, int routed, const Choice &choice, bool f8) {
  const int m = choice.m, up_at = inter + gap, matrices = routed + choice.shared, active = (int)choice.list.size();
  const Case up(m, up_at + inter, hidden, f8, matrices);
  Case down(m, hidden, inter, f8, matrices, 0);
  for (int matrix : choice.list) down.x_values.push_back(activations(up, matrix, inter, up_at));
  std::vector<int> list(choice.list);
  list.push_back(-1); // behind the last
  bf16 *y = device<bf16>((size_t)m * hidden + 8);
  const ExpertsFew e = {up.w, down.w, inter, up_at, up.x, device<uint8_t>((size_t)active * records_bytes(f8, 8, down.w.k) + 16),
                        upload(std::vector<int>{active}), upload(list), routed, choice.shared, upload(choice.row), upload(choice.weight),
                        upload(std::vector<int>{choice.count}), choice.slots(), false};
  assert_true(experts_few_serves(e, m, active));
  std::vector<bf16> before;
  for (int again = 0; again < 3; again++) {
    experts_few(e, y, m, active, scratch, stream);
    cuda(cudaStreamSynchronize(stream));
    const std::vector<bf16> got = fetch(y, (size_t)m * hidden + 8);
    for (int i = 0; i < 8; i++) assert_int_equal(((const uint16_t *)got.data())[(size_t)m * hidden + i], 0xffff);
    if (again) assert_memory_equal(got.data(), before.data(), got.size() * 2);
    before = got;
    partials_are_clean();
    for (int word : fetch((const int *)scratch.grid, sizeof(GridWords) / sizeof(int))) assert_int_equal(word, 0);
  }
  double difference = 0, size = 0;
  for (int t = 0; t < m; t++)
    for (int column = t % 3; column < hidden; column += 3) {
      double want = 0;
      for (int j = 0; j < choice.slots() && t < choice.count; j++) {
        const int at = choice.row[(size_t)(t * choice.slots() + j)];
        if (at >= 0) want += (double)choice.weight[(size_t)(t * choice.slots() + j)] * down.dot(choice.list[(size_t)(at / m)], at / m, t, column);
      }
      const double is = (double)__bfloat162float(before[(size_t)t * hidden + column]);
      difference += (is - want) * (is - want);
      size += want * want;
    }
  const double error = std::sqrt(difference / (size + 1e-30));
  if (!(error <= 4e-3)) fail_msg("%d of %d experts, hidden %d, inter %d, %d tokens: relative error %.1e", active, routed, hidden, inter, m, error);
  free_all();
}

static void few(void **state) {
  (void)state;
  check(512, 256, 0, 6, choose(3, 3, 6, 4, 4, 1, false), true);
  check(330, 512, 64, 5, choose(4, 4, 5, 5, 3, 1, false), true);
  check(512, 256, 0, 5, choose(3, 1, 5, 2, 2, 2, false), true); // rows of padding
  check(256, 128, 0, 5, choose(3, 3, 5, 3, 3, 1, false), false);
  check(300, 384, 128, 5, choose(4, 4, 5, 3, 2, 0, false), false); // nothing is known before the router
}

static void more(void **state) {
  (void)state;
  check(512, 256, 0, 9, choose(8, 8, 9, 9, 3, 1, false), true);
  check(330, 512, 0, 5, choose(5, 4, 5, 5, 3, 1, false), true);
  check(2304, 256, 0, 4, choose(6, 6, 4, 3, 2, 1, false), true);
  check(200, 256, 0, 4, choose(7, 7, 4, 4, 2, 1, false), false);
}

static void elsewhere(void **state) {
  (void)state;
  check(256, 256, 0, 4, choose(3, 3, 4, 3, 3, 0, true), true);
  check(256, 256, 0, 4, choose(4, 4, 4, 0, 2, 0, true), true); // all of them: zeros
  check(256, 256, 0, 4, choose(8, 8, 4, 0, 2, 1, true), true); // the shared one alone
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(few), cmocka_unit_test(more), cmocka_unit_test(elsewhere)};
  return cmocka_run_group_tests(tests, open_device, close_device);
}
