// linear_short on the emulated device against sums in double of the same quantised inputs: every size of tile, K in one range and in
// several, CTAs with one block of outputs and with many.
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cuda_runtime.h>

#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>
}

#include "engine/cuda/linear_short.h"
#include "tests/unit/cuda/linear_case.h"

// `cuts` 0: as the kernel's own choice is.
static void check(int m, int n, int k, int cuts) {
  const Case c(m, n, k, true);
  const int ldy = n + 8;
  bf16 *y = device<bf16>((size_t)m * ldy);
  assert_true(cuts ? linear_short_cut(c.w, c.x, y, ldy, m, cuts, scratch, stream) : linear_short(c.w, c.x, y, ldy, m, scratch, stream));
  cuda(cudaStreamSynchronize(stream));
  char what[16];
  snprintf(what, sizeof what, "%d cuts", cuts);
  c.check(fetch(y, (size_t)m * ldy).data(), 0, 0, 1, 3e-3, what, ldy);
  partials_are_clean();
  free_all();
}

static void one_range(void **state) {
  (void)state;
  for (int m : {17, 32, 40, 64, 77, 96}) check(m, 192, 512, 1);
}

static void ranges(void **state) {
  (void)state;
  for (int m : {24, 64, 80, 90}) {
    check(m, 64, 1024, 4);
    check(m, 128, 1280, 2);
    check(m, 64, 1792, 3);
  }
}

static void many_blocks(void **state) {
  (void)state;
  check(64, 1088, 768, 1);  // 17 blocks of eight CTAs
  check(33, 1536, 1536, 1);
  check(96, 832, 512, 1);
}

static void its_own_choice(void **state) {
  (void)state;
  check(48, 128, 2560, 0);
  check(64, 512, 256, 0);
}

static void not_served(void **state) {
  (void)state;
  const Matrix ragged = {nullptr, 0, 100, 256, Weights::F8}, wide = {nullptr, 0, 64 * 4096, 1024, Weights::F8},
               half = {nullptr, 0, 128, 256, Weights::B16};
  const Records x = {nullptr, 64, 1}, more = {nullptr, 72, 1};
  assert_false(linear_short(ragged, x, nullptr, 100, 64, scratch, stream));
  assert_false(linear_short(wide, x, nullptr, 64 * 4096, 64, scratch, stream));
  assert_false(linear_short(half, x, nullptr, 128, 64, scratch, stream));
  assert_false(linear_short({nullptr, 0, 128, 256, Weights::F8}, more, nullptr, 128, 64, scratch, stream));
  assert_false(linear_short_cut({nullptr, 0, 1024, 1024, Weights::F8}, x, nullptr, 1024, 64, 2, scratch, stream)); // rounds of sums
}

static int open_eight(void **state) {
  (void)state;
  open_scratch(8);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(one_range),   cmocka_unit_test(ranges),     cmocka_unit_test(many_blocks),
      cmocka_unit_test(its_own_choice), cmocka_unit_test(not_served),
  };
  return cmocka_run_group_tests(tests, open_eight, close_device);
}
