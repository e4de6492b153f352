// norm_rows on the emulated device: the kernel of many rows against the one of few: the same bits.
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <random>
#include <vector>

#include <cuda_runtime.h>

#include "engine/cuda/kernels.h"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>
}

#include "tests/unit/cuda/device.h"

using namespace mob;

constexpr int kRows = 601, kPadded = 608, kHidden = 768, kColumns = 1024; // columns behind the last

static cudaStream_t stream;

struct Given {
  std::vector<float> x, w;
  std::vector<bf16> add;
};

// All that is written. from: the stream is read from a place of its own, which the kernel of many rows does not do.
static std::vector<uint8_t> written(const Given &given, bool from) {
  const size_t sizes[] = {given.x.size() * 4, records_bytes(true, kPadded, kColumns), records_bytes(false, kPadded, 2 * kColumns), given.x.size() * 4};
  NormIn in = {};
  in.x = upload(given.x);
  in.add = upload(given.add);
  in.w = upload(given.w);
  in.from = from ? in.x : nullptr;
  in.eps = 1e-6f;
  in.hidden = kHidden;
  const NormOut out = {{device<uint8_t>(sizes[1]), kPadded, 1}, kColumns, {device<uint8_t>(sizes[2]), kPadded, 0}, kColumns, true,
                       (float *)device<uint8_t>(sizes[3]), false};
  norm_rows(in, out, kRows, stream);
  cuda(cudaStreamSynchronize(stream));
  const void *places[] = {in.x, out.a.data, out.b.data, out.f32};
  std::vector<uint8_t> bytes;
  for (int i = 0; i < 4; i++) {
    const std::vector<uint8_t> part = fetch((const uint8_t *)places[i], sizes[i]);
    bytes.insert(bytes.end(), part.begin(), part.end());
  }
  free_all();
  return bytes;
}

static void many_rows(void **state) {
  (void)state;
  std::mt19937_64 rng(7);
  std::normal_distribution<float> value;
  Given given = {std::vector<float>((size_t)kRows * kHidden), std::vector<float>(kHidden), {}};
  for (float &v : given.x) v = value(rng);
  for (float &v : given.w) v = value(rng);
  for (size_t i = 0; i < given.x.size(); i++) given.add.push_back(__float2bfloat16(value(rng)));
  assert_true(written(given, false) == written(given, true));
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
  const struct CMUnitTest tests[] = {cmocka_unit_test(many_rows)};
  return cmocka_run_group_tests(tests, open_device, close_device);
}
