// Latent attention of few rows: queries in one kernel, attention and the merge of its parts, against the kernels that many rows take (which gpu_check holds against references): query tiles and
// keys, with heads whole in a CTA, in two and in four, few and many columns, padding rows, biases, both orders of roped columns.
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
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "engine/model/model.h"
}

#include "tests/unit/cuda/device.h"

using namespace mob;

static cudaStream_t stream;
static std::mt19937_64 rng(29);

static std::vector<float> normals(size_t n, float scale = 1, float mean = 0) {
  std::normal_distribution<float> value;
  std::vector<float> v(n);
  for (float &x : v) x = mean + scale * value(rng);
  return v;
}
static bf16 *normal_bf16(size_t n) {
  std::vector<bf16> v;
  for (float x : normals(n)) v.push_back(__float2bfloat16(x));
  return upload(v);
}

static Matrix e4m3_matrix(int n, int k) {
  const int across = (k + 127) / 128;
  std::vector<float> scales;
  std::vector<uint8_t> codes;
  for (int i = 0; i < (n + 127) / 128 * across; i++) scales.push_back(0.0005f + 0.0001f * (float)(rng() % 16));
  for (float v : normals((size_t)n * k, 64)) codes.push_back(__nv_fp8_e4m3(v).__x);
  PackSource from = {};
  from.src = upload(codes);
  from.dtype = MOB_DT_F8E4M3;
  from.rows = n;
  from.cols = k;
  from.scales = upload(scales);
  from.scale_ld = across;
  from.block_rows = from.block_cols = 128;
  from.bad = device<int>(1);
  Matrix w = {nullptr, 0, n, k, Weights::F8};
  w.stride = (size_t)((n + 63) / 64) * column_pairs(w) * kPairBytes;
  w.data = device<uint8_t>(w.stride);
  cuda(cudaMemset(w.data, 0, w.stride));
  pack_tiles(from, w.data, k, w.kind, stream);
  return w;
}

static double relative_l2(const std::vector<bf16> &y, const std::vector<bf16> &ref) {
  double d = 0, r = 0;
  for (size_t i = 0; i < ref.size(); i++) {
    const double a = (float)y[i], b = (float)ref[i];
    d += (a - b) * (a - b);
    r += b * b;
  }
  return std::isfinite(d) ? std::sqrt(d / r) : INFINITY;
}

struct Outputs {
  uint8_t *tiles, *cache;
};

static void check(int heads, int rows, int q_lora, int sms, bool interleaved, bool biased) {
  constexpr int kPages = 40;
  const int lda = q_lora + 576, mp = padded_rows(rows), blocks = (heads + 63) / 64;
  const Matrix q_b = e4m3_matrix(heads * 192, q_lora), kv_b = e4m3_matrix(heads * 256, 512);
  uint8_t *uk = device<uint8_t>((size_t)heads * 4 * kPairBytes);
  pack_uk(kv_b.data, uk, heads, stream);
  std::vector<int> position, table, pages, count = {rows};
  for (int r = 0; r < rows; r++) {
    position.push_back((int)(rng() % 120));
    table.push_back(r == 2 ? -1 : (int)pages.size()); // padding
    pages.push_back(2 * r);
    pages.push_back(2 * r + 1);
  }
  std::vector<float> freq;
  for (int i = 0; i < 32; i++) freq.push_back((float)std::pow(10000.0, -i / 32.0));
  const StepRows step = {upload(count), nullptr, upload(position), upload(table), upload(pages), nullptr, nullptr};
  const Rope rope = {upload(freq), 64, interleaved, 1.1f};
  const size_t cache_bytes = kPages * page_bytes(576), tile_bytes = (size_t)rows * blocks * 9 * 8192;
  const Records records = {device<uint8_t>(records_bytes(true, mp, q_lora)), mp, 1};
  bf16 *q = device<bf16>((size_t)rows * heads * 192);
  LinearScratch scratch = {};
  scratch.sms = sms;
  scratch.partial = device<float>((size_t)sms * kPartialFloats);
  MlaPrepare prepare = {normal_bf16((size_t)rows * lda), lda, q_lora, q_lora, 512, 64, biased ? upload(normals((size_t)lda)) : nullptr,
                        upload(normals((size_t)q_lora, 0.2f, 1)), upload(normals(512, 0.2f, 1)), 1e-6f, records, q_lora, false, nullptr,
                        step, rope};
  Outputs out[3];
  for (Outputs &o : out) {
    o = {device<uint8_t>(tile_bytes), device<uint8_t>(cache_bytes)};
    cuda(cudaMemset(o.tiles, 0, tile_bytes));
    cuda(cudaMemset(o.cache, 0, cache_bytes));
  }
  prepare.cache = out[0].cache;
  mla_prepare(prepare, rows, stream);
  linear(q_b, records, q, heads * 192, false, rows, 1, scratch, stream);
  absorb_q_mla({uk, kv_b.data, heads, sms, step, rope}, q, out[0].tiles, rows, stream);
  for (int i = 1; i < 3; i++) {
    prepare.cache = out[i].cache;
    assert_true(mla_queries_few_serves(prepare, q_b, rows));
    mla_queries_few({prepare, q_b, uk, heads, sms, out[i].tiles, scratch.partial, nullptr}, rows, stream);
  }
  cuda(cudaStreamSynchronize(stream));
  const std::vector<bf16> tiles = fetch((bf16 *)out[1].tiles, tile_bytes / 2), cache = fetch((bf16 *)out[1].cache, cache_bytes / 2);
  const double t = relative_l2(tiles, fetch((bf16 *)out[0].tiles, tile_bytes / 2));
  const double c = relative_l2(cache, fetch((bf16 *)out[0].cache, cache_bytes / 2));
  print_message("%d heads, %d rows, %d columns: tiles %.2e, keys %.2e\n", heads, rows, q_lora, t, c);
  assert_true(t < 2e-3);
  assert_true(c < 1e-3);
  assert_memory_equal(tiles.data(), fetch((bf16 *)out[2].tiles, tile_bytes / 2).data(), tile_bytes); // and what is between launches is clean
  for (float v : fetch(scratch.partial, (size_t)sms * kPartialFloats)) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    assert_int_equal(bits, ~0u);
  }
  free_all();
}

// Parts of attention, to o_proj's input.
static void check_values(int heads, int sms, const std::vector<int> &counts) {
  const int rows = (int)counts.size(), mp = padded_rows(rows), padded = heads + heads % 2;
  const Matrix kv_b = e4m3_matrix(heads * 256, 512);
  std::vector<int> of;
  int all = 0;
  for (int n : counts) {
    of.push_back(all);
    of.push_back(n);
    all += n;
  }
  std::vector<__half> partial;
  for (float v : normals((size_t)all * heads * 512)) partial.push_back(__float2half(v));
  const MlaParts parts = {upload(partial), upload(normals((size_t)all * heads, 2)), upload(of)};
  const AbsorbMla p = {nullptr, kv_b.data, heads, sms, {}, {}};
  std::vector<std::vector<bf16>> got;
  const size_t bytes = records_bytes(false, mp, padded * 128);
  for (int i = 0; i < 3; i++) {
    const Records out = {device<uint8_t>(bytes), mp, 0};
    cuda(cudaMemset(out.data, 0, bytes));
    if (i == 0) absorb_v_mla(p, parts, out, 0, rows, false, stream);
    else mla_values_few(p, parts, out, rows, false, stream);
    cuda(cudaStreamSynchronize(stream));
    got.push_back(fetch((bf16 *)out.data, bytes / 2));
  }
  const double e = relative_l2(got[1], got[0]);
  print_message("%d heads, %d rows: %.2e\n", heads, rows, e);
  assert_true(e < 2e-3);
  assert_memory_equal(got[1].data(), got[2].data(), bytes);
  free_all();
}

// Attention over the cache: the parts of both, merged by the same kernel.
static void check_attend(int heads, int sms, const std::vector<int> &keys, bool single) {
  const int rows = (int)keys.size(), mp = padded_rows(rows), padded = heads + heads % 2, blocks = (heads + 63) / 64, most = mla_parts(rows, sms);
  const Matrix kv_b = e4m3_matrix(heads * 256, 512);
  std::vector<int> position, table, pages;
  for (int n : keys) {
    position.push_back(n ? n - 1 : 0);
    table.push_back(n ? (int)pages.size() : -1);
    for (int i = 0; i < n; i += 64) pages.push_back((int)pages.size());
  }
  std::shuffle(pages.begin(), pages.end(), rng);
  const StepRows step = {nullptr, nullptr, upload(position), upload(table), upload(pages), nullptr, nullptr};
  const uint8_t *cache = (uint8_t *)normal_bf16((pages.size() + 1) * page_bytes(576) / 2);
  std::vector<bf16> queries;
  for (float v : normals((size_t)rows * blocks * 9 * 4096, 0.5f)) queries.push_back(__float2bfloat16(v));
  const uint8_t *q = (uint8_t *)upload(queries);
  std::vector<std::vector<bf16>> got;
  const size_t bytes = records_bytes(false, mp, padded * 128);
  for (int i = 0; i < 3; i++) {
    const MlaParts parts = {device<__half>((size_t)most * heads * 512), device<float>((size_t)most * heads), device<int>((size_t)rows * 2)};
    const AttendMla attend = {q, heads, 0.1352338f, cache, step, single, parts, sms};
    const Records out = {device<uint8_t>(bytes), mp, 0};
    cuda(cudaMemset(out.data, 0, bytes));
    if (i == 0) attend_mla(attend, rows, stream);
    else mla_attend_few(attend, rows, stream);
    absorb_v_mla({nullptr, kv_b.data, heads, sms, {}, {}}, parts, out, 0, rows, false, stream);
    cuda(cudaStreamSynchronize(stream));
    got.push_back(fetch((bf16 *)out.data, bytes / 2));
  }
  const double e = relative_l2(got[1], got[0]);
  print_message("%d heads, %d rows: %.2e\n", heads, rows, e);
  assert_true(e < 3e-3);
  assert_memory_equal(got[1].data(), got[2].data(), bytes);
  free_all();
}

static void test_attend(void **) {
  check_attend(16, 5, {130}, true);                 // a tile a run
  check_attend(3, 2, {300}, false);                 // more tiles than stages
  check_attend(66, 6, {65, 0, 1}, true);            // more heads than a block of tiles has; padding
  check_attend(20, 12, {33, 400, 64, 31, 0}, true); // by length
  check_attend(32, 1, {70, 40, 10}, false);         // fewer CTAs than rows
}

static void test_values(void **) {
  check_values(3, 3, {17});
  check_values(1, 8, {5, 0, 70});           // a CTA a row; padding; more parts than are in flight
  check_values(2, 4, {1, 40, 3, 9, 2});     // two CTAs a head
  check_values(2, 2, std::vector<int>(16, 4));
  check_values(1, 1, {140, 3, 0, 8, 1, 2, 2, 2, 12});
}

static void test_whole_heads(void **) {
  check(3, 1, 256, 3, true, false);
  check(66, 3, 256, 3, true, true); // more heads than a block of tiles has
  check(2, 8, 1536, 3, false, false);
}

static void test_shared_heads(void **) {
  check(2, 5, 512, 4, true, false);  // two CTAs a head
  check(1, 1, 1536, 5, true, false); // four
  check(1, 7, 512, 4, false, true); // four, of one block of columns each
}

static void test_others_serve_the_rest(void **) {
  MlaPrepare p = {};
  p.q_lora = 1536;
  p.kv_lora = 512;
  p.rope_dim = p.rope.dim = 64;
  p.lda = 2112;
  p.kv_at = 1536;
  Matrix w = {nullptr, 0, 192, 1536, Weights::F8};
  assert_true(mla_queries_few_serves(p, w, 8));
  assert_false(mla_queries_few_serves(p, w, 9));
  w.kind = Weights::B16;
  assert_false(mla_queries_few_serves(p, w, 8));
  w.kind = Weights::F8;
  p.q_lora = w.k = 1280; // its rows do not fall on whole turns of threads
  assert_false(mla_queries_few_serves(p, w, 8));
  p.q_lora = 0;
  assert_false(mla_queries_few_serves(p, w, 8));
}

static int set_up(void **) {
  cuda(cudaStreamCreate(&stream));
  linear_prepare();
  absorb_prepare();
  attention_mla_prepare();
  return 0;
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_attend),
      cmocka_unit_test(test_values),
      cmocka_unit_test(test_whole_heads),
      cmocka_unit_test(test_shared_heads),
      cmocka_unit_test(test_others_serve_the_rest),
  };
  return cmocka_run_group_tests(tests, set_up, nullptr);
}
