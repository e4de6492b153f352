// Attention of grouped queries against a reference in double on the same bf16 inputs. A part of check.cu and of
// tests/unit/cuda/test_attention_gqa.cc, whose helpers it uses (device memory, random values, report).
#pragma once
#include <algorithm>
#include <cmath>

#include "engine/cuda/kernels.h"

namespace gqa {

struct Shape {
  const char *model;
  int heads, kv_heads, dim;
};

// The cache as attention reads it: `pages` [of one sequence], keys [0, position] of key head `kv`.
inline void attend(const Shape &s, const std::vector<bf16> &q, const std::vector<uint8_t> &keys, int position, float scale, double *out) {
  std::vector<double> score((size_t)position + 1);
  double top = -INFINITY, sum = 0;
  auto value = [&](int key, int col) { // of the pair of boxes of a page's key head
    const uint8_t *page = keys.data() + (size_t)(key / 64) * (size_t)s.dim * 256;
    bf16 v;
    memcpy(&v, page + (size_t)(col / 64) * 8192 + key % 64 * 128 + ((col % 64 / 8 ^ (key & 7)) << 4) + col % 8 * 2, 2);
    return (double)__bfloat162float(v);
  };
  for (int j = 0; j <= position; j++) {
    double sum_of = 0;
    for (int c = 0; c < s.dim; c++) sum_of += (double)__bfloat162float(q[(size_t)c]) * value(j, c);
    score[(size_t)j] = sum_of * scale;
    top = std::max(top, score[(size_t)j]);
  }
  for (double &v : score) sum += v = std::exp(v - top);
  for (int c = 0; c < s.dim; c++) {
    double o = 0;
    for (int j = 0; j <= position; j++) o += score[(size_t)j] * value(j, s.dim + c);
    out[c] = o / sum;
  }
}

// What gqa_prepare_fast leaves of rows of queries: in place, or as tiles of 64.
inline std::vector<uint8_t> arrange(const Shape &s, const std::vector<bf16> &q, int rows, bool tiles) {
  std::vector<uint8_t> out(((size_t)rows + 127) / 128 * 128 * (size_t)(s.heads * s.dim) * 2);
  for (int row = 0; row < rows; row++)
    for (int h = 0; h < s.heads; h++)
      for (int c = 0; c < s.dim; c += 8) {
        const int group = s.heads / s.kv_heads, chunk = c / 8;
        const size_t plain = ((size_t)row * s.heads + h) * s.dim * 2 + (size_t)(chunk ^ (h % group & 7)) * 16;
        const size_t tile = (((size_t)(row / 64) * s.heads + h) * (s.dim / 64) + chunk / 8) * 8192 + (size_t)(row % 64) * 128 +
                            (size_t)((chunk % 8 ^ (row & 7)) << 4);
        memcpy(&out[tiles ? tile : plain], &q[((size_t)row * s.heads + h) * s.dim + c], 16);
      }
  return out;
}

inline float result(const HeadsOut &out, const std::vector<uint8_t> &data, int row, int col) {
  if (out.records.fp8) {
    const uint8_t *record = data.data() + (size_t)(col / 256) * out.records.mp * 264;
    const size_t line = (size_t)(col / 128 % 2) * out.records.mp + row;
    float scale;
    memcpy(&scale, record + (size_t)out.records.mp * 256 + line * 4, 4);
    __nv_fp8_e4m3 v;
    v.__x = record[line * 128 + (((col % 128 >> 4) ^ (row & 7)) << 4) + (col & 15)];
    return (float)v * scale;
  }
  const uint8_t *record = data.data() + (size_t)(col / 128) * out.records.mp * 256;
  bf16 v;
  memcpy(&v, record + ((size_t)(col / 64 % 2) * out.records.mp + row) * 128 + ((col % 64 / 8 ^ (row & 7)) << 4) + (col & 7) * 2, 2);
  return __bfloat162float(v);
}

} // namespace gqa

// decode: `rows` sequences of their own, at most `context` tokens; prefill: `rows` queries at the end of one sequence of `context`.
static void check_gqa(const gqa::Shape &s, int rows, int context, bool prefill, bool f8) {
  std::vector<int> position, table, pages;
  const int each = context / 64 + 1, sequences = prefill ? 1 : rows;
  std::vector<int> shuffled((size_t)(sequences * each));
  for (size_t i = 0; i < shuffled.size(); i++) shuffled[i] = (int)i;
  std::shuffle(shuffled.begin(), shuffled.end(), rng);
  for (int r = 0; r < rows; r++) {
    position.push_back(prefill ? context - rows + r : context - 1 - (int)(rng() % (uint64_t)(context / 4)));
    table.push_back(prefill ? 0 : r * each);
  }
  pages = shuffled;
  const size_t page = page_bytes(2 * s.kv_heads * s.dim), cache_bytes = shuffled.size() * page;
  const int copies = (int)std::min<size_t>(24, rotate_bytes / cache_bytes + 1);
  bf16 *cache = normal_bf16(cache_bytes / 2 * (size_t)copies), *raw = normal_bf16((size_t)rows * s.heads * s.dim);
  const std::vector<bf16> q = fetch(raw, (size_t)rows * s.heads * s.dim);
  uint8_t *dq = upload(gqa::arrange(s, q, rows, prefill));
  int *dp = upload(position), *dt = upload(table), *dg = upload(pages);
  std::vector<PrefillPair> list;
  for (int i = 0; i < (rows + 127) / 128; i++) list.push_back({2 * i, i * 128, std::min(128, rows - i * 128), context - rows + i * 128, 0});
  PrefillPair *dl = upload(list);
  const StepRows step = {nullptr, nullptr, dp, dt, dg, nullptr};
  const int unit = f8 ? 256 : 128, k = (s.heads * s.dim + unit - 1) / unit * unit, mp = padded_rows(rows);
  const size_t out_bytes = records_bytes(f8, mp, k);
  const HeadsOut out = {{device<uint8_t>(out_bytes), mp, f8}, k, false, nullptr, 0};
  float *partial = device<float>(gqa_partial_bytes(sms) / 4);
  CUDA(cudaMemset(partial, 0xff, gqa_partial_bytes(sms)));
  const float scale = 1 / std::sqrt((float)s.dim);
  auto run = [&](int i) {
    const uint8_t *at = (uint8_t *)cache + (size_t)(i % copies) * cache_bytes;
    if (prefill) attend_gqa_prefill({dq, s.heads, s.kv_heads, s.dim, scale, at, step, dl, out}, (int)list.size(), stream);
    else
      attend_gqa({(bf16 *)dq, s.heads * s.dim, s.heads, s.kv_heads, s.dim, scale, at, step, nullptr, true, out, partial, nullptr, sms},
                 rows, stream);
  };
  run(0);
  CUDA(cudaStreamSynchronize(stream));
  const std::vector<uint8_t> data = fetch(out.records.data, out_bytes);
  run(0);
  CUDA(cudaStreamSynchronize(stream));
  const bool same = data == fetch(out.records.data, out_bytes); // the order of sums does not depend on timing
  std::vector<float> got, want;
  const int samples = std::max(32, 4096 / s.dim);
  for (int i = 0; i < samples; i++) {
    const int row = i == 0 ? rows - 1 : (int)(rng() % (uint64_t)rows), h = (int)(rng() % (uint64_t)s.heads), kv = h / (s.heads / s.kv_heads);
    const int list_at = table[(size_t)row], n = position[(size_t)row] / 64 + 1, bytes = s.dim * 256;
    std::vector<uint8_t> keys((size_t)n * bytes);
    for (int j = 0; j < n; j++)
      CUDA(cudaMemcpy(&keys[(size_t)j * bytes], (uint8_t *)cache + (size_t)pages[(size_t)(list_at + j)] * page + (size_t)kv * bytes,
                      (size_t)bytes, cudaMemcpyDeviceToHost));
    const size_t from = ((size_t)row * s.heads + h) * s.dim;
    std::vector<double> o((size_t)s.dim);
    gqa::attend(s, std::vector<bf16>(q.begin() + (long)from, q.begin() + (long)from + s.dim), keys, position[(size_t)row], scale, o.data());
    for (int c = 0; c < s.dim; c++) {
      want.push_back((float)o[(size_t)c]);
      got.push_back(gqa::result(out, data, row, h * s.dim + c));
    }
  }
  for (int c = s.heads * s.dim; c < k; c++) want.push_back(0), got.push_back(gqa::result(out, data, rows - 1, c)); // padding
  const double us = time_us(run, 10);
  double keys = 0;
  for (int p : position) keys += p + 1;
  char shape[96];
  snprintf(shape, sizeof shape, "%s %d/%d x %d, %d rows, %d%s", s.model, s.heads, s.kv_heads, s.dim, rows, context, f8 ? ", e4m3" : "");
  report(prefill ? "grouped queries, prefill" : "grouped queries, decode", shape, same ? relative_l2(got, want) : INFINITY, f8 ? 3e-2 : 3e-3,
         us, prefill ? 0 : keys * s.kv_heads * s.dim * 4, prefill ? keys * s.heads * s.dim * 4 : 0);
  for (void *p : {(void *)cache, (void *)raw, (void *)dq, (void *)dp, (void *)dt, (void *)dg, (void *)dl, (void *)out.records.data,
                  (void *)partial})
    cudaFree(p);
}

// Biases, norms of heads, rotary positions, and where each value goes: queries in place or as tiles, keys and values to their page.
static void check_gqa_prepare(const gqa::Shape &s, int rows, bool norm, bool interleaved) {
  const int ld = (s.heads + 2 * s.kv_heads) * s.dim, width = 2 * s.kv_heads * s.dim, group = s.heads / s.kv_heads;
  bf16 *raw = normal_bf16((size_t)rows * ld);
  const std::vector<bf16> in = fetch(raw, (size_t)rows * ld);
  std::normal_distribution<float> value;
  std::vector<float> bias((size_t)ld), weight((size_t)(2 * s.dim)), freq;
  for (float &v : bias) v = value(rng);
  for (float &v : weight) v = 1 + 0.2f * value(rng);
  for (int i = 0; i < s.dim / 2; i++) freq.push_back((float)std::pow(1e6, -2.0 * i / s.dim));
  std::vector<int> position, table, pages, tile_row;
  for (int r = 0; r < rows; r++) { // each a sequence; every third of them has a tile
    position.push_back((int)(rng() % 4000));
    table.push_back((int)pages.size());
    for (int i = 0; i <= position.back() / 64; i++) pages.push_back((int)(rng() % 1000000));
    pages.back() = rows - 1 - r; // no two write to the same one
    tile_row.push_back(r % 3 == 2 ? rows + 5 - r : -1);
  }
  float *db = upload(bias), *dw = upload(weight), *df = upload(freq);
  int *dp = upload(position), *dt = upload(table), *dg = upload(pages), *dr = upload(tile_row);
  const size_t page = page_bytes(width), tile_bytes = (size_t)(rows / 64 + 1) * s.heads * s.dim * 128;
  uint8_t *cache = device<uint8_t>((size_t)rows * page), *tiles = device<uint8_t>(tile_bytes);
  GqaPrepare p = {raw, raw + s.heads * s.dim, raw + (s.heads + s.kv_heads) * s.dim, ld, ld, ld, s.heads, s.kv_heads, s.dim, db,
                  db + s.heads * s.dim, db + (s.heads + s.kv_heads) * s.dim, norm ? dw : nullptr, norm ? dw + s.dim : nullptr, 1e-6f,
                  cache, width, {nullptr, nullptr, dp, dt, dg, nullptr}, {df, s.dim, interleaved, 1.0f}};
  const HeadsOut none = {};
  gqa_prepare_fast(p, dr, tiles, none, rows, stream);
  CUDA(cudaStreamSynchronize(stream));
  const std::vector<bf16> out = fetch(raw, (size_t)rows * ld);
  const std::vector<uint8_t> written = fetch(cache, (size_t)rows * page), as_tiles = fetch(tiles, tile_bytes);
  std::vector<float> got, want;
  for (int r = 0; r < rows; r++)
    for (int h = 0; h < s.heads + 2 * s.kv_heads; h++) {
      const int kind = h < s.heads ? 0 : h < s.heads + s.kv_heads ? 1 : 2, head = kind ? (h - s.heads) % s.kv_heads : h;
      std::vector<double> x((size_t)s.dim), y((size_t)s.dim);
      double square = 0;
      for (int c = 0; c < s.dim; c++) {
        x[(size_t)c] = (double)__bfloat162float(in[(size_t)r * ld + h * s.dim + c]) + bias[(size_t)(h * s.dim + c)];
        square += x[(size_t)c] * x[(size_t)c];
      }
      for (int c = 0; norm && kind < 2 && c < s.dim; c++)
        x[(size_t)c] *= weight[(size_t)(kind * s.dim + c)] / std::sqrt(square / s.dim + 1e-6);
      y = x;
      for (int i = 0; kind < 2 && i < s.dim / 2; i++) {
        const size_t a = interleaved ? 2 * i : i, b = interleaved ? 2 * i + 1 : i + s.dim / 2;
        const double angle = (double)((float)position[(size_t)r] * freq[(size_t)i]);
        y[a] = x[a] * std::cos(angle) - x[b] * std::sin(angle);
        y[b] = x[b] * std::cos(angle) + x[a] * std::sin(angle);
      }
      for (int c = 0; c < s.dim; c++) {
        bf16 v;
        const int tile = tile_row[(size_t)r], offset = position[(size_t)r] % 64, col = (2 * head + (kind == 2)) * s.dim + c;
        if (kind)
          memcpy(&v, &written[(size_t)(rows - 1 - r) * page + (size_t)(col / 64) * 8192 + (size_t)offset * 128 +
                              (size_t)((col % 64 / 8 ^ (offset & 7)) << 4) + (size_t)(col % 8 * 2)], 2);
        else if (tile >= 0)
          memcpy(&v, &as_tiles[(((size_t)(tile / 64) * s.heads + head) * (s.dim / 64) + c / 64) * 8192 + (size_t)(tile % 64) * 128 +
                               (size_t)((c % 64 / 8 ^ (tile & 7)) << 4) + (size_t)(c % 8 * 2)], 2);
        else v = out[(size_t)r * ld + head * s.dim + (c / 8 ^ (head % group & 7)) * 8 + c % 8];
        want.push_back((float)y[(size_t)c]);
        got.push_back(__bfloat162float(v));
      }
    }
  char shape[96];
  snprintf(shape, sizeof shape, "%s %d/%d x %d, %d rows%s%s", s.model, s.heads, s.kv_heads, s.dim, rows, norm ? ", norms" : "",
           interleaved ? ", interleaved" : "");
  const double error = relative_l2(got, want);
  report("grouped queries, prepare", shape, error, 3e-3, time_us([&](int) { gqa_prepare_fast(p, dr, tiles, none, rows, stream); }, 20), 0, 0);
  for (void *q : {(void *)raw, (void *)db, (void *)dw, (void *)df, (void *)dp, (void *)dt, (void *)dg, (void *)dr, (void *)cache, (void *)tiles})
    cudaFree(q);
}

// A step of decodes in one kernel, from projected rows: the results and the cache of gqa_prepare_fast() and attend_gqa() after it, bit by bit.
static void check_gqa_one_kernel(const gqa::Shape &s, int rows, int context) {
  const int ld = (s.heads + 2 * s.kv_heads) * s.dim, unit = s.heads * s.dim, width = 2 * s.kv_heads * s.dim, each = context / 64 + 1;
  std::vector<int> position, table, pages((size_t)(rows * each));
  std::vector<float> bias((size_t)ld), freq;
  std::normal_distribution<float> value;
  for (size_t i = 0; i < pages.size(); i++) pages[i] = (int)i;
  std::shuffle(pages.begin(), pages.end(), rng);
  for (int r = 0; r < rows; r++) {
    position.push_back(context - 1 - (int)(rng() % (uint64_t)(context / 4)));
    table.push_back(r * each);
  }
  for (float &v : bias) v = value(rng);
  for (int i = 0; i < s.dim / 2; i++) freq.push_back((float)std::pow(1e6, -2.0 * i / s.dim));
  const size_t cache_bytes = pages.size() * page_bytes(width), out_bytes = (size_t)rows * unit * 2;
  bf16 *raw = normal_bf16((size_t)rows * ld), *before = normal_bf16(cache_bytes / 2), *q = device<bf16>((size_t)rows * ld);
  uint8_t *cache = device<uint8_t>(cache_bytes);
  bf16 *results = device<bf16>((size_t)rows * unit);
  float *db = upload(bias), *df = upload(freq), *partial = device<float>(gqa_partial_bytes(sms) / 4);
  CUDA(cudaMemset(partial, 0xff, gqa_partial_bytes(sms)));
  int *dp = upload(position), *dt = upload(table), *dg = upload(pages);
  const GqaPrepare fresh = {q, q + unit, q + unit + s.kv_heads * s.dim, ld, ld, ld, s.heads, s.kv_heads, s.dim, db, db + unit,
                            db + unit + s.kv_heads * s.dim, nullptr, nullptr, 1e-6f, cache, width, {nullptr, nullptr, dp, dt, dg, nullptr},
                            {df, s.dim, 0, 1.0f}};
  const HeadsOut out = {{}, unit, false, results, unit};
  auto run = [&](bool one) {
    if (!one) gqa_prepare_fast(fresh, nullptr, nullptr, out, rows, stream);
    attend_gqa({q, ld, s.heads, s.kv_heads, s.dim, 1 / std::sqrt((float)s.dim), cache, fresh.step, nullptr, true, out, partial, nullptr, sms, one, fresh},
               rows, stream);
  };
  std::vector<uint8_t> seen[2];
  for (int one = 0; one < 2; one++) {
    CUDA(cudaMemcpyAsync(q, raw, (size_t)rows * ld * 2, cudaMemcpyDeviceToDevice, stream));
    CUDA(cudaMemcpyAsync(cache, before, cache_bytes, cudaMemcpyDeviceToDevice, stream));
    run(one);
    CUDA(cudaStreamSynchronize(stream));
    seen[one] = fetch(cache, cache_bytes);
    const std::vector<uint8_t> y = fetch((const uint8_t *)results, out_bytes);
    seen[one].insert(seen[one].end(), y.begin(), y.end());
  }
  double keys = 0;
  for (int p : position) keys += p + 1;
  char shape[96];
  snprintf(shape, sizeof shape, "%s %d/%d x %d, %d rows, %d", s.model, s.heads, s.kv_heads, s.dim, rows, context);
  report("grouped queries, one kernel / two", shape, seen[0] == seen[1] ? 0 : INFINITY, 0, time_us([&](int) { run(true); }, 10),
         keys * s.kv_heads * s.dim * 4, 0);
  for (void *p : {(void *)raw, (void *)before, (void *)q, (void *)cache, (void *)results, (void *)db, (void *)df, (void *)partial, (void *)dp,
                  (void *)dt, (void *)dg})
    cudaFree(p);
}

static inline void check_gqa_all() {
  static const gqa::Shape shapes[] = {
      {"Qwen2.5-7B", 28, 4, 128},    {"Qwen2.5-7B, TP 2", 14, 2, 128},    {"Qwen2.5-7B, TP 4", 7, 1, 128},
      {"Qwen3-30B-A3B", 32, 4, 128}, {"Qwen3-30B-A3B, TP 2", 16, 2, 128}, {"Qwen3-30B-A3B, TP 4", 8, 1, 128},
      {"Qwen3-30B-A3B, TP 8", 4, 1, 128}, {"Llama-3-70B", 64, 8, 128},    {"Llama-3-70B, TP 2", 32, 4, 128},
      {"Llama-3-70B, TP 4", 16, 2, 128},  {"Llama-3-70B, TP 8", 8, 1, 128}, {"16 a group", 64, 4, 128},
      {"one a group", 8, 8, 128},    {"Qwen2.5-0.5B", 14, 2, 64},         {"Llama-3.2-1B", 32, 8, 64}, {"16 a group", 32, 2, 64}};
  for (const gqa::Shape &s : shapes) {
    for (int rows : {1, 8, 64, 256}) check_gqa(s, rows, 1024, false, false);
    check_gqa(s, 3, 9000, false, false);
    for (int rows : {40, 2048}) check_gqa(s, rows, rows == 40 ? 1500 : 2048, true, false);
    if (s.dim == 128) {
      check_gqa(s, 8, 1024, false, true);
      check_gqa(s, 300, 1024, true, true);
    }
  }
  for (int rows : {1, 8, 64, 256}) check_gqa_one_kernel(shapes[0], rows, 1024);
  check_gqa_one_kernel(shapes[3], 70, 1024);
  check_gqa_one_kernel(shapes[8], 3, 9000);
  check_gqa_one_kernel(shapes[14], 70, 1024);
  check_gqa_prepare(shapes[0], 70, false, false);
  check_gqa_prepare(shapes[0], 1, false, false);
  check_gqa_prepare(shapes[3], 70, true, false);
  check_gqa_prepare(shapes[8], 70, false, true);
  check_gqa_prepare(shapes[13], 70, true, false);
}
