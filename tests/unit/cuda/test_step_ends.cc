// What stands at both ends of a step, on the emulated device: tables in turns; each row's best output of a linear and
// its id, told to the host.
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "engine/cuda/best.h"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>
}

#include "tests/unit/cuda/linear_case.h"

// Pinned, as the executor's; freed with it.
struct Pinned {
  StepTimes *times;
  int *ids;
  explicit Pinned(size_t rows) {
    cuda(cudaMallocHost(&times, sizeof *times));
    cuda(cudaMallocHost(&ids, rows * sizeof(int)));
    *times = {0, 0};
    for (size_t i = 0; i < rows; i++) ids[i] = -7;
  }
  ~Pinned() {
    cudaFreeHost(times);
    cudaFreeHost(ids);
  }
};

// Steps queued behind one another, of a few ints, of all that there is room for, and of as many as one load a thread brings.
static void tables_in_turns(void **) {
  constexpr int kSlots = 3, kInts = 24000;
  Pinned host(1);
  int *tables = device<int>((size_t)kSlots * kInts), *to = device<int>(kInts + 8), *turn = upload(std::vector<int>{0});
  const std::vector<int> used = {17, kInts, 4096, 4097, 31, 16, 20000, 4100};
  for (size_t step = 0; step < used.size(); step++) {
    std::vector<int> from;
    for (int i = 0; i < kInts; i++) from.push_back((int)(step + 1) * 100000 + i);
    *(StepHead *)from.data() = {5, used[step], host.times, host.ids, 0};
    cuda(cudaMemcpy(tables + step % kSlots * kInts, from.data(), from.size() * sizeof(int), cudaMemcpyHostToDevice));
    const std::vector<int> before = fetch(to, kInts + 8);
    take_tables({tables, kInts, kSlots, turn}, to, stream);
    cuda(cudaStreamSynchronize(stream));
    const std::vector<int> got = fetch(to, kInts + 8);
    const size_t words = ((size_t)used[step] + 3) / 4 * 4; // whole words of 16 bytes
    const size_t stamp = offsetof(StepHead, begun) / sizeof(int), behind = sizeof(StepHead) / sizeof(int);
    assert_memory_equal(got.data(), from.data(), stamp * sizeof(int));
    assert_memory_equal(got.data() + behind, from.data() + behind, ((size_t)used[step] - behind) * sizeof(int));
    assert_memory_equal(got.data() + words, before.data() + words, (got.size() - words) * sizeof(int));
    assert_true(((const StepHead *)got.data())->begun > 0);
  }
  free_all();
}

// A step's head on the device, as take_tables() leaves it.
static StepHead *head_of(const Pinned &host) {
  const StepHead head = {1, kStepHead, host.times, host.ids, 77};
  return upload(std::vector<StepHead>{head});
}

static void ids_and_the_time(void **) {
  Pinned host(3000);
  const StepHead *head = head_of(host);
  std::vector<int> ids;
  for (int i = 0; i < 2500; i++) ids.push_back(3 * i);
  tell_host(head, upload(ids), 2500, stream);
  cuda(cudaStreamSynchronize(stream));
  assert_memory_equal(host.ids, ids.data(), ids.size() * sizeof(int));
  assert_int_equal(host.ids[2500], -7);
  assert_true(host.times->ended > 0 && host.times->begun == 77);
  host.times->ended = 0;
  tell_host(head, nullptr, 0, stream); // a stage that samples nothing
  cuda(cudaStreamSynchronize(stream));
  assert_true(host.times->ended > 0);
  free_all();
}

static int best_of(const float *v, int n) { // the first of equals, numbers before NaN
  int at = 0;
  for (int i = 1; i < n; i++)
    if (v[i] > v[at] || (v[at] != v[at] && v[i] == v[i])) at = i;
  return at;
}

// Which of the outputs are equal, or no numbers.
static void repeat_rows(Case *c, bool none) {
  std::vector<uint8_t> w = fetch(c->w.data, c->w.stride);
  const int64_t pairs = (int64_t)column_pairs(c->w);
  for (int64_t row = 64; row < c->n; row++) // every second block is as the first one
    for (int64_t byte = 0; byte < 2 * c->k && row / 64 % 2; byte++)
      w[tile_offset(row, byte, pairs)] = none ? 0xff : w[tile_offset(row % 64, byte, pairs)];
  cuda(cudaMemcpy(c->w.data, w.data(), w.size(), cudaMemcpyHostToDevice));
}

static void check_best(const Case &c) {
  Pinned host(300);
  const int first = 3;
  float *y = device<float>((size_t)c.m * c.n);
  linear(c.w, c.x, y, c.n, true, c.m, 1, scratch, stream);
  unsigned long long *keys = device<unsigned long long>((size_t)c.m * kSampleParts + 4);
  std::vector<int> slots;
  for (int i = 0; i < c.m; i++) slots.push_back(i % 4 == 3 ? -1 : c.m - 1 - i);
  for (int way = 0; way < 2; way++) { // out of the linear itself, or of its outputs
    int *ids = device<int>((size_t)c.m), *last = device<int>((size_t)c.m);
    host.times->ended = 0;
    const RowKeys best = way ? logits_best(y, c.n, c.n, keys, c.m, stream) : linear_best(c.w, c.x, keys, c.m, scratch, stream);
    pick(best, upload(slots), ids, last, {head_of(host), first}, c.m, stream);
    cuda(cudaStreamSynchronize(stream));
    const std::vector<float> all = fetch(y, (size_t)c.m * c.n);
    const std::vector<int> got = fetch(ids, (size_t)c.m), stored = fetch(last, (size_t)c.m);
    for (int t = 0; t < c.m; t++) {
      int want = best_of(&all[(size_t)t * c.n], c.n);
      if (got[(size_t)t] != want && way == 0 && c.m > kFewRows) { // sums in another order
        const float a = all[(size_t)t * c.n + (size_t)got[(size_t)t]], b = all[(size_t)t * c.n + (size_t)want];
        if (std::fabs(a - b) <= 1e-4f * std::fabs(b)) want = got[(size_t)t];
      }
      assert_int_equal(got[(size_t)t], want);
      assert_int_equal(host.ids[first + t], want);
      if (slots[(size_t)t] >= 0) assert_int_equal(stored[(size_t)slots[(size_t)t]], want);
    }
    assert_int_equal(host.ids[first - 1], -7);
    assert_int_equal(host.ids[first + c.m], -7);
    assert_true(host.times->ended > 0);
    partials_are_clean();
  }
}

static void best_outputs(void **) {
  for (int m : {1, 2, 7, 8, 9, 16, 17, 64, 100, 128}) {
    check_best(Case(m, 1300, 256, false));  // whole tiles, then cut ones
    check_best(Case(m, 130, 1664, false));  // two tiles, cut over all CTAs
    check_best(Case(m, 61, 200, false));    // one CTA has all, the others none
    Case equal(m, 700, 256, false);
    repeat_rows(&equal, false);
    check_best(equal);
    repeat_rows(&equal, true);
    check_best(equal);
    free_all();
  }
}

// Nothing is told to a host that is not asked for it.
static void untold(void **) {
  const Case c(2, 200, 256, false);
  int *ids = device<int>(2), *last = device<int>(2);
  unsigned long long *keys = device<unsigned long long>(2 * kSampleParts);
  pick(linear_few_best(c.w, c.x, keys, 2, scratch, stream), upload(std::vector<int>{0, 1}), ids, last, {nullptr, 0}, 2, stream);
  cuda(cudaStreamSynchronize(stream));
  assert_true(fetch(ids, 2)[0] >= 0);
  free_all();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(tables_in_turns), cmocka_unit_test(ids_and_the_time), cmocka_unit_test(best_outputs), cmocka_unit_test(untold),
  };
  return cmocka_run_group_tests(tests, open_device, close_device);
}
