// What tests of kernels of several ranks share: work on all (emulated) devices at once, random bf16. Includes <cmocka.h>, whose fail() no
// header of C++ may follow: so include those before.
#ifndef MOB_TEST_CUDA_RANKS_CASE_H
#define MOB_TEST_CUDA_RANKS_CASE_H

#include <cmath>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "tools/gpu/mesh.cuh"

#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>
}
#include "tests/unit/cuda/device.h"

using namespace mob;

static inline float to_float(uint16_t bits) {
  const uint32_t word = (uint32_t)bits << 16;
  float f;
  memcpy(&f, &word, 4);
  return f;
}
static inline std::vector<uint16_t> random_bf16(std::mt19937 &rng, size_t n) {
  std::uniform_real_distribution<float> value(-2, 2);
  std::vector<uint16_t> v(n);
  for (uint16_t &bits : v) {
    const float f = value(rng);
    uint32_t word;
    memcpy(&word, &f, 4);
    bits = (uint16_t)(word >> 16);
  }
  return v;
}
static inline std::vector<float> random_floats(std::mt19937 &rng, size_t n, float low, float high) {
  std::uniform_real_distribution<float> value(low, high);
  std::vector<float> v(n);
  for (float &f : v) f = value(rng);
  return v;
}

// A thread a rank, with its device; returns when all streams have ended.
static inline void on_devices(mesh::Mesh *m, const std::function<void(int)> &work) {
  std::vector<std::thread> threads;
  for (int r = 0; r < (int)m->ranks.size(); r++)
    threads.emplace_back([&, r] {
      MESH_OK(cudaSetDevice(r));
      work(r);
      MESH_OK(cudaStreamSynchronize(m->ranks[(size_t)r].stream));
    });
  for (std::thread &t : threads) t.join();
}

// Of two ranks, the second did not come: the first one's wait ran out, it says for whom, and all know that the step has failed.
static inline void second_was_missed(const mesh::Mesh &m) {
  assert_int_equal(m.words[0], 1);
  assert_int_equal(m.words[1], 1 + 1);
  assert_int_equal(m.words[2], 0);
  for (const mesh::Rank &r : m.ranks) {
    Waits waits;
    MESH_OK(cudaMemcpy(&waits, r.waits, sizeof waits, cudaMemcpyDeviceToHost));
    assert_int_equal(waits.halt, 1);
  }
}

#endif
