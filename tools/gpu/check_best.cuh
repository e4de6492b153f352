// The best logit of each row out of the head's linear itself (engine/cuda/best.h) against the logits that linear() writes and, for the
// outputs it names, products in double. A part of check.cu and of tests/unit/cuda/test_head_best.cc, whose helpers it uses (device
// memory, random values, packed weights, report).
#pragma once
#include <algorithm>
#include <cmath>

#include "engine/cuda/best.h"

namespace best {

// The value and id of a row's largest key (sample.cuh).
struct Top {
  float value;
  int64_t id;
};
inline Top top_of(const Key *keys, int parts) {
  const Key key = *std::max_element(keys, keys + parts);
  const uint32_t ordered = (uint32_t)(key >> 32), bits = ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered;
  Top top = {0, (int64_t) ~(uint32_t)key};
  memcpy(&top.value, &bits, 4);
  return top;
}

inline float dot(const Source &s, const std::vector<bf16> &x, int row, int64_t id) {
  const std::vector<bf16> w = fetch(s.values + id * s.k, (size_t)s.k);
  double sum = 0;
  for (size_t c = 0; c < w.size(); c++) sum += (double)__bfloat162float(w[c]) * (double)__bfloat162float(x[(size_t)row * w.size() + c]);
  return (float)sum;
}

// How far the output that was named stays behind the row's largest, in units of the largest: two that are nearly equal may change places.
inline double behind(const float *logits, int64_t n, int64_t id) {
  const float most = *std::max_element(logits, logits + n);
  return (most - logits[id]) / std::fabs(most);
}

} // namespace best

static void check_best(int m, int64_t n, int64_t k) {
  Source s = make_source(n, k, false);
  const Matrix w = pack(s, false, 1);
  pack_into(s, w, 0, false);
  bf16 *x = normal_bf16((size_t)(m * k));
  const Records records = {device<uint8_t>(records_bytes(false, padded_rows(m), w.k) + 4096), padded_rows(m), 0};
  pack_rows(x, (int)k, (int)k, records, w.k, m, false, stream);
  float *y = device<float>((size_t)(m * n));
  Key *keys = device<Key>((size_t)(m * scratch.sms));
  linear(w, records, y, (int)n, true, m, 1, scratch, stream);
  RowKeys found = {};
  auto run = [&](int) { found = linear_best(w, records, keys, m, scratch, stream); };
  run(0);
  CUDA(cudaStreamSynchronize(stream));
  const std::vector<Key> all = fetch(found.keys, (size_t)(m * found.parts));
  const std::vector<float> logits = fetch(y, (size_t)(m * n));
  const std::vector<bf16> rows = fetch(x, (size_t)(m * k));
  std::vector<float> got, want;
  double behind = 0;
  for (int t = 0; t < m; t++) {
    const best::Top top = best::top_of(&all[(size_t)(t * found.parts)], found.parts);
    if (top.id >= n) {
      behind = INFINITY;
      continue;
    }
    got.push_back(top.value);
    want.push_back(best::dot(s, rows, t, top.id));
    behind = std::max(behind, best::behind(&logits[(size_t)(t * n)], n, top.id));
  }
  char shape[64];
  snprintf(shape, sizeof shape, "%6lld x %5lld, %4d tokens", (long long)n, (long long)k, m);
  const double us = time_us(run, 20);
  report("head's best logits", shape, std::max(behind, relative_l2(got, want)), 1e-3, us, (double)w.stride, m >= 64 ? 2.0 * m * n * k : 0);
  free_source(s);
  for (void *p : {(void *)w.data, (void *)x, (void *)records.data, (void *)y, (void *)keys}) cudaFree(p);
}
