// Routers on the emulated device against sums in double: routes of several kinds of groups, logits in parts, and the kernels that
// also norm and plan.
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

#include "engine/cuda/route_many.h"
#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "engine/model/model.h"
}

#include "tests/unit/cuda/device.h"

using namespace mob;

static cudaStream_t stream;
static LinearScratch scratch;
static std::mt19937_64 rng(11);
static std::vector<float> normal(size_t n, float scale) {
  std::normal_distribution<float> d(0, scale);
  std::vector<float> v(n);
  for (float &f : v) f = d(rng);
  return v;
}
static std::vector<bf16> rounded(const std::vector<float> &v) {
  std::vector<bf16> out;
  for (float f : v) out.push_back(__float2bfloat16(f));
  return out;
}

// ------------------------------------------------------------------------------------------- routes

struct Routed {
  std::vector<int> ids; // ascending
  std::vector<double> weights;
  double margin;        // to the next choice; small: another order is as right
};

static Routed reference(const RouterSpec &s, const double *logits, const std::vector<float> &bias) {
  std::vector<double> score((size_t)s.experts), choice;
  double all = 0;
  for (int e = 0; e < s.experts; e++) all += std::exp(logits[e]);
  for (int e = 0; e < s.experts; e++) {
    score[(size_t)e] = s.sigmoid ? 1 / (1 + std::exp(-logits[e])) : std::exp(logits[e]) / all;
    choice.push_back(score[(size_t)e] + (bias.empty() ? 0 : bias[(size_t)e]));
  }
  Routed out = {{}, {}, 1};
  const int size = s.experts / s.groups;
  std::vector<std::pair<double, int>> groups;
  for (int g = 0; g < s.groups; g++) {
    std::vector<double> c(choice.begin() + g * size, choice.begin() + (g + 1) * size);
    std::sort(c.rbegin(), c.rend());
    groups.push_back({-(c[0] + (size > 1 ? c[1] : 0)), g});
  }
  std::sort(groups.begin(), groups.end());
  if (s.top_groups < s.groups) out.margin = groups[(size_t)s.top_groups].first - groups[(size_t)s.top_groups - 1].first;
  std::vector<std::pair<double, int>> order;
  for (int g = 0; g < s.top_groups; g++)
    for (int e = 0; e < size; e++) order.push_back({-choice[(size_t)(groups[(size_t)g].second * size + e)], groups[(size_t)g].second * size + e});
  std::sort(order.begin(), order.end());
  if ((size_t)s.top_k < order.size()) out.margin = std::min(out.margin, order[(size_t)s.top_k].first - order[(size_t)s.top_k - 1].first);
  double sum = 0;
  for (int k = 0; k < s.top_k; k++) out.ids.push_back(order[(size_t)k].second), sum += score[(size_t)order[(size_t)k].second];
  std::sort(out.ids.begin(), out.ids.end());
  for (int id : out.ids) out.weights.push_back((s.norm ? score[(size_t)id] / sum : score[(size_t)id]) * s.routed_scale);
  return out;
}

// Returns how many rows were told apart safely.
static int check_rows(const RouterSpec &s, const std::vector<double> &logits, const std::vector<float> &bias, const int *ids,
                      const float *weights, int weight_ld, int rows) {
  const std::vector<int> got = fetch(ids, (size_t)rows * s.top_k);
  const std::vector<float> w = fetch(weights, (size_t)rows * weight_ld);
  int safe = 0;
  for (int r = 0; r < rows; r++) {
    const Routed want = reference(s, &logits[(size_t)r * s.experts], bias);
    for (int k = s.top_k; k < weight_ld; k++) assert_true(w[(size_t)r * weight_ld + k] == 1);
    if (want.margin < 1e-5) continue;
    safe++;
    for (int k = 0; k < s.top_k; k++) {
      assert_int_equal(got[(size_t)r * s.top_k + k], want.ids[(size_t)k]);
      assert_true(std::fabs(w[(size_t)r * weight_ld + k] - want.weights[(size_t)k]) < 1e-4 * want.weights[(size_t)k]);
    }
  }
  return safe;
}

static void check_route(RouterSpec s, bool with_bias, int rows, int parts) {
  const size_t n = (size_t)rows * s.experts;
  const std::vector<float> bias = with_bias ? normal((size_t)s.experts, 0.1f) : std::vector<float>(), part = normal(n * parts, 1);
  std::vector<double> logits(n);
  for (int i = 0; i < parts; i++)
    for (size_t k = 0; k < n; k++) logits[k] += part[i * n + k];
  s.bias = with_bias ? upload(bias) : nullptr;
  const int ld = s.top_k + 1;
  int *ids = device<int>((size_t)rows * s.top_k);
  float *weights = device<float>((size_t)rows * ld);
  route(s, {upload(part), parts, n}, ids, weights, ld, rows, stream);
  assert_true(check_rows(s, logits, bias, ids, weights, ld, rows) > rows / 2);
  free_all();
}

static void routes(void **state) {
  (void)state;
  for (int parts : {1, 3, 28}) {
    check_route({256, 8, 8, 4, true, true, 2.5f, nullptr}, true, 9, parts);
    check_route({160, 6, 8, 3, false, false, 16.0f, nullptr}, false, 6, parts); // groups of 20: no whole lanes
    check_route({64, 6, 1, 1, false, false, 1.0f, nullptr}, false, 5, parts);
    check_route({512, 10, 64, 7, true, true, 1.0f, nullptr}, true, 7, parts); // groups of 8 within 16 of a lane
    check_route({384, 8, 1, 1, true, true, 2.8f, nullptr}, true, 3, parts);
    check_route({128, 8, 1, 1, false, true, 1.0f, nullptr}, false, 5, parts);
    check_route({250, 16, 1, 1, true, true, 1.0f, nullptr}, true, 5, parts);
    check_route({64, 20, 1, 1, true, false, 1.0f, nullptr}, true, 4, parts); // too many choices for a thread an expert
  }
  check_route({256, 8, 8, 4, true, true, 2.5f, nullptr}, true, 3, 61); // more parts than are read at once
}

// Equal scores: the smaller number first, in groups and between them.
static void equal_scores(void **state) {
  (void)state;
  for (int parts : {1, 2}) {
    RouterSpec s = {256, 8, 8, 4, true, true, 1.0f, nullptr};
    int *ids = device<int>(8);
    float *weights = device<float>(9);
    route(s, {upload(std::vector<float>(256 * parts, 0.0f)), parts, 256}, ids, weights, 9, 1, stream);
    const std::vector<int> got = fetch(ids, 8);
    for (int k = 0; k < 8; k++) assert_int_equal(got[(size_t)k], k);
    for (float w : fetch(weights, 8)) assert_true(std::fabs(w - 0.125f) < 1e-6);
    free_all();
  }
}

// Ids stay in bounds when nothing can be compared.
static void no_numbers(void **state) {
  (void)state;
  for (int parts : {1, 2}) {
    const RouterSpec s = {256, 8, 8, 4, true, true, 2.5f, nullptr};
    int *ids = device<int>(8);
    float *weights = device<float>(9);
    route(s, {upload(std::vector<float>(512, NAN)), parts, 256}, ids, weights, 9, 1, stream);
    for (int id : fetch(ids, 8)) assert_true(id >= 0 && id < 256);
    free_all();
  }
}

// --------------------------------------------------------------------------------------- few rows

static void check_plan(const MoePlan &p, const std::vector<int> &ids) {
  const int slots = p.top_k + p.shared, count = fetch(p.count, 1)[0], active = fetch(p.active, 1)[0];
  const std::vector<int> list = fetch(p.active_ids, (size_t)active), row = fetch(p.expert_row, (size_t)p.rows * slots);
  std::vector<int> want;
  for (int e = 0; e < p.experts + p.shared; e++)
    if (e >= p.experts || std::find(ids.begin(), ids.begin() + count * p.top_k, e + p.first) != ids.begin() + count * p.top_k) want.push_back(e);
  assert_true(list == want);
  for (int t = 0; t < count; t++)
    for (int j = 0; j < slots; j++) {
      const int e = j < p.top_k ? ids[(size_t)t * p.top_k + j] - p.first : p.experts + j - p.top_k, at = row[(size_t)t * slots + j];
      if (e < 0 || (j < p.top_k && e >= p.experts)) {
        assert_int_equal(at, p.elsewhere ? -1 : t);
        continue;
      }
      assert_int_equal(at % p.rows, t);
      assert_int_equal(list[(size_t)(at / p.rows)], e);
    }
}

static MoePlan make_plan(const int *ids, int count, int top_k, int first, int experts, int shared, int rows) {
  MoePlan p = {};
  p.ids = ids;
  p.count = upload(std::vector<int>{count});
  p.top_k = top_k;
  p.first = first;
  p.experts = experts;
  p.shared = shared;
  p.rows = rows;
  p.active = device<int>((size_t)experts + 2);
  p.active_ids = p.active + 1;
  p.expert_row = device<int>((size_t)rows * (top_k + shared));
  p.elsewhere = shared == 0;
  return p;
}

struct FewCase {
  RouterSpec spec;
  int hidden, rows, count, first, experts, shared; // experts that are here
  bool bias;
};

// Norm, router and plan at once, twice in a row; then without the norm, from what it left.
static void check_few(const FewCase &c) {
  RouterSpec s = c.spec;
  const size_t size = (size_t)c.rows * c.hidden;
  const std::vector<float> x = normal(size, 2), w = normal((size_t)c.hidden, 1), o_bias = normal((size_t)c.hidden, 0.5f),
                           bias = normal((size_t)s.experts, 0.05f);
  const std::vector<bf16> add = rounded(normal(size, 1)), router = rounded(normal((size_t)s.experts * c.hidden, 1 / std::sqrt((float)c.hidden)));
  s.bias = upload(bias);
  NormIn in = {};
  in.x = upload(x);
  in.add = upload(add);
  in.bias = c.bias ? upload(o_bias) : nullptr;
  in.w = upload(w);
  in.eps = 1e-6f;
  in.hidden = c.hidden;
  const int k = (c.hidden + 127) / 128 * 128;
  const Records records = {device<uint8_t>(records_bytes(false, 8, k)), 8, 0}, plain = {device<uint8_t>(records_bytes(false, 8, k)), 8, 0};
  const NormOut out = {records, k, {nullptr, 0, 0}, 0, false, nullptr, false};
  const int ld = s.top_k + c.shared;
  int *ids = device<int>((size_t)c.rows * s.top_k);
  float *weights = device<float>((size_t)c.rows * ld), *taken = device<float>(size), *words = device<float>((size_t)s.experts * 4);
  const MoePlan plan = make_plan(ids, c.count, s.top_k, c.first, c.experts, c.shared, c.rows);
  const RouteFew few = {s, upload(router), words, ids, weights, ld, plan, nullptr};
  assert_true(norm_route_serves(in, out));
  norm_route_few(few, in, out, taken, c.rows, stream);
  std::vector<double> logits;
  std::vector<float> normed;
  for (int r = 0; r < c.rows; r++) {
    std::vector<double> v;
    double square = 0;
    for (int i = 0; i < c.hidden; i++) {
      const size_t at = (size_t)r * c.hidden + i;
      v.push_back((double)x[at] + __bfloat162float(add[at]) + (c.bias ? o_bias[(size_t)i] : 0));
      square += v.back() * v.back();
    }
    for (int i = 0; i < c.hidden; i++) normed.push_back((float)(v[(size_t)i] * w[(size_t)i] / std::sqrt(square / c.hidden + 1e-6)));
    for (int e = 0; e < s.experts; e++) {
      double sum = 0;
      for (int i = 0; i < c.hidden; i++) sum += normed[(size_t)(r * c.hidden + i)] * __bfloat162float(router[(size_t)e * c.hidden + i]);
      logits.push_back(sum);
    }
  }
  check_rows(s, logits, bias, ids, weights, ld, c.rows);
  check_plan(plan, fetch(ids, (size_t)c.rows * s.top_k));
  const std::vector<uint32_t> marks = fetch((const uint32_t *)words, (size_t)s.experts * 4);
  for (uint32_t m : marks) assert_true(m == ~0u);
  // What norm_rows() leaves: the same stream, and records that differ by roundings at most.
  const std::vector<float> stream_then = fetch(taken, size), before = fetch(in.x, size);
  assert_memory_equal(before.data(), x.data(), size * 4);
  NormOut other = out;
  other.a = plain;
  norm_rows(in, other, c.rows, stream);
  const std::vector<float> stream_now = fetch(in.x, size);
  assert_memory_equal(stream_now.data(), stream_then.data(), size * 4);
  const std::vector<bf16> one = fetch((const bf16 *)records.data, records_bytes(false, 8, k) / 2),
                          two = fetch((const bf16 *)plain.data, records_bytes(false, 8, k) / 2);
  for (int r = 0; r < c.rows; r++)
    for (int col = 0; col < k; col++) {
      const size_t at = ((size_t)(col / 128) * 8 * 256 + ((size_t)(col / 64 % 2) * 8 + r) * 128 + (((col % 64 / 8) ^ (r & 7)) << 4)) / 2 + col % 8;
      const float a = __bfloat162float(one[at]), b = __bfloat162float(two[at]);
      assert_true(std::fabs(a - b) <= 0.01f * std::fabs(b));
    }
  // From normed rows.
  cuda(cudaMemset(ids, 0xff, (size_t)c.rows * s.top_k * 4));
  route_few(few, upload(normed), c.hidden, c.rows, stream);
  check_rows(s, logits, bias, ids, weights, ld, c.rows);
  check_plan(plan, fetch(ids, (size_t)c.rows * s.top_k));
  free_all();
}

static void few_rows(void **state) {
  (void)state;
  const RouterSpec groups = {32, 4, 4, 2, true, true, 2.5f, nullptr}, one = {7, 2, 1, 1, false, false, 1.0f, nullptr};
  check_few({groups, 256, 1, 1, 0, 32, 1, false});
  check_few({groups, 2304, 4, 3, 0, 32, 1, true});
  check_few({groups, 200, 2, 2, 8, 16, 0, false}); // the experts of one of two ranks
  check_few({one, 520, 3, 3, 0, 7, 0, true});
  check_few({{250, 6, 1, 1, true, true, 1.0f, nullptr}, 128, 4, 4, 0, 250, 2, false});
}

// ------------------------------------------------------------------------------------ on tensor cores

// Records of hi and lo halves, the product in parts, routes and plan.
static void check_parts(int rows, int hidden) {
  RouterSpec s = {192, 6, 1, 1, true, true, 2.5f, nullptr};
  const std::vector<float> x = normal((size_t)rows * hidden, 1), ones((size_t)hidden, 1.0f);
  const std::vector<bf16> router = rounded(normal((size_t)s.experts * hidden, 1 / std::sqrt((float)hidden)));
  const int k = (hidden + 127) / 128 * 128, mp = padded_rows(rows);
  Matrix w = {device<uint8_t>((size_t)(s.experts + 63) / 64 * (k / 128) * kPairBytes), 0, s.experts, k, Weights::B16};
  PackSource source = {};
  source.src = upload(router);
  source.dtype = MOB_DT_BF16;
  source.rows = s.experts;
  source.cols = source.ld = hidden;
  cuda(cudaMemset(w.data, 0, (size_t)(s.experts + 63) / 64 * (k / 128) * kPairBytes));
  pack_tiles(source, w.data, k, Weights::B16, stream);
  NormIn in = {};
  in.x = upload(x);
  in.w = upload(ones);
  in.hidden = hidden;
  const Records split = {device<uint8_t>(2 * records_bytes(false, mp, k)), mp, 0};
  cuda(cudaMemset(split.data, 0, 2 * records_bytes(false, mp, k)));
  norm_rows(in, {{nullptr, 0, 0}, 0, split, k, true, nullptr, false}, rows, stream);
  const int parts = router_parts(w), ld = s.top_k + 1;
  float *y = device<float>((size_t)parts * rows * s.experts), *weights = device<float>((size_t)rows * ld);
  int *ids = device<int>((size_t)rows * s.top_k);
  router_many(w, split, y, rows, stream);
  std::vector<double> logits;
  for (int r = 0; r < rows; r++) {
    double square = 0;
    for (int i = 0; i < hidden; i++) square += (double)x[(size_t)r * hidden + i] * x[(size_t)r * hidden + i];
    for (int e = 0; e < s.experts; e++) {
      double sum = 0;
      for (int i = 0; i < hidden; i++) sum += (double)x[(size_t)r * hidden + i] * __bfloat162float(router[(size_t)e * hidden + i]);
      logits.push_back(sum / std::sqrt(square / hidden));
    }
  }
  const std::vector<float> part = fetch(y, (size_t)parts * rows * s.experts);
  double difference = 0, all = 0;
  for (size_t i = 0; i < logits.size(); i++) {
    double sum = 0;
    for (int p = 0; p < parts; p++) sum += part[(size_t)p * logits.size() + i];
    difference += (sum - logits[i]) * (sum - logits[i]);
    all += logits[i] * logits[i];
  }
  assert_true(std::sqrt(difference / all) < 2e-5); // hi and lo: 16 bits
  const RouterParts from = {y, parts, (size_t)rows * s.experts};
  route(s, from, ids, weights, ld, rows, stream);
  const std::vector<int> got = fetch(ids, (size_t)rows * s.top_k);
  int same = 0;
  for (int r = 0; r < rows; r++) {
    const Routed want = reference(s, &logits[(size_t)r * s.experts], {});
    same += std::equal(want.ids.begin(), want.ids.end(), got.begin() + r * s.top_k);
  }
  assert_true(same >= rows - rows / 8); // some are close to another choice
  free_all();
}

static void parts_of_columns(void **state) {
  (void)state;
  check_parts(5, 640);
  check_parts(8, 1024);
  check_parts(40, 384);
  check_parts(100, 128);
  check_parts(150, 256);
}

// ------------------------------------------------------------------------------- plan and gathering at once

struct Gathered {
  MoePlan plan;
  TileRows rows;
  size_t bytes;
};

static Gathered make_gathered(const std::vector<int> &ids, int count, int top_k, int first, int experts, int shared, int rows, int most, int pairs) {
  Gathered g;
  g.plan = make_plan(upload(ids), count, top_k, first, experts, shared, rows);
  const size_t slots = (size_t)(top_k + shared), all = (size_t)(experts + shared), capacity = moe_rows((size_t)rows, slots, all);
  g.plan.gathered = g.plan.active + 1;
  g.plan.most = most;
  g.plan.tiles = device<TokenTile>(moe_tiles((size_t)rows, slots, all, (size_t)most));
  g.plan.place = device<int>(capacity);
  g.plan.rows_of = device<ExpertRows>(all);
  g.bytes = records_bytes(true, (int64_t)capacity, pairs * 256);
  g.rows = {device<uint8_t>(g.bytes), pairs, 1};
  cuda(cudaMemset(g.rows.data, 0, g.bytes));
  return g;
}

// The same tiles as two kernels make, and every row where it says, once.
static void check_gather(int count, int top_k, int first, int experts, int all_experts, int shared, int rows, int most) {
  const int pairs = 3, k = pairs * 256, slots = top_k + shared, mp = padded_rows(rows);
  std::vector<int> ids;
  for (int t = 0; t < rows; t++) {
    std::vector<int> order;
    for (int e = 0; e < all_experts; e++) order.push_back(e);
    std::shuffle(order.begin(), order.end(), rng);
    if (t % 2) std::swap(order[0], *std::find(order.begin(), order.end(), first + 1)); // it gets several tiles
    std::sort(order.begin(), order.begin() + top_k);
    ids.insert(ids.end(), order.begin(), order.begin() + top_k);
  }
  const Records x = {device<uint8_t>(records_bytes(true, mp, k)), mp, 1};
  pack_rows(upload(rounded(normal((size_t)rows * k, 1))), k, k, x, k, rows, false, stream);
  const Gathered one = make_gathered(ids, count, top_k, first, experts, shared, rows, most, pairs),
                 two = make_gathered(ids, count, top_k, first, experts, shared, rows, most, pairs);
  assert_true(moe_plan_gather_serves(one.plan));
  moe_plan_gather(x, one.plan, one.rows, stream);
  moe_plan_many(two.plan, stream);
  moe_gather(x, two.plan, two.rows, stream);
  const int tiles = fetch(two.plan.active, 1)[0], gathered = fetch(two.plan.gathered, 1)[0];
  assert_int_equal(fetch(one.plan.active, 1)[0], tiles);
  assert_int_equal(fetch(one.plan.gathered, 1)[0], gathered);
  const std::vector<TokenTile> a = fetch(one.plan.tiles, (size_t)tiles), b = fetch(two.plan.tiles, (size_t)tiles);
  assert_memory_equal(a.data(), b.data(), a.size() * sizeof a[0]);
  const std::vector<int> place = fetch(one.plan.place, (size_t)gathered), want_place = fetch(two.plan.place, (size_t)gathered);
  assert_true(place == want_place);
  const std::vector<int> row = fetch(one.plan.expert_row, (size_t)rows * slots);
  std::vector<uint8_t> from = fetch(x.data, records_bytes(true, mp, k)), to = fetch(one.rows.data, one.bytes);
  std::vector<int> seen((size_t)gathered);
  for (int t = 0; t < rows; t++)
    for (int j = 0; j < slots; j++) {
      const int e = j < top_k ? ids[(size_t)t * top_k + j] - first : experts + j - top_k, at = row[(size_t)t * slots + j];
      if (t >= count || (j < top_k && (e < 0 || e >= experts))) {
        assert_int_equal(at, one.plan.elsewhere ? -1 : 0);
        continue;
      }
      assert_true(at >= 0 && at < gathered && seen[(size_t)at]++ == 0);
      bool in_tile = false;
      for (const TokenTile &tile : a) in_tile = in_tile || (tile.matrix == e && at >= tile.row && at < tile.row + tile.tokens);
      assert_true(in_tile);
      const RecordRow source = record_row({from.data(), mp, 1}, t), target = tile_row({to.data(), pairs, 1}, at, place[(size_t)at]);
      for (int p = 0; p < pairs; p++)
        for (int half = 0; half < 2; half++) {
          const size_t s_row = (size_t)half * source.rows + t, t_row = (size_t)half * target.rows + target.row;
          assert_true(((float *)(source.scales + p * source.pair_scales))[s_row] == ((float *)(target.scales + p * target.pair_scales))[t_row]);
          for (int c = 0; c < 8; c++)
            assert_memory_equal(source.data + p * source.pair_bytes + s_row * 128 + ((c ^ (t & 7)) << 4),
                                target.data + p * target.pair_bytes + t_row * 128 + ((c ^ (target.row & 7)) << 4), 16);
        }
    }
  free_all();
}

static void plan_and_gather(void **state) {
  (void)state;
  check_gather(24, 4, 0, 16, 16, 1, 24, 64);
  check_gather(60, 8, 0, 64, 64, 2, 64, 16);  // padding rows, several tiles an expert
  check_gather(40, 6, 16, 16, 48, 0, 40, 64); // the experts of one of three ranks
  check_gather(130, 8, 0, 40, 40, 1, 136, 64);
}

static int open_device(void **state) {
  (void)state;
  cuda(cudaStreamCreate(&stream));
  linear_prepare();
  router_many_prepare();
  scratch.sms = 3;
  cuda(cudaMalloc(&scratch.partial, (size_t)scratch.sms * 128 * 128 * 4));
  cuda(cudaMemset(scratch.partial, 0xff, (size_t)scratch.sms * 128 * 128 * 4));
  return 0;
}
static int close_device(void **state) {
  (void)state;
  cuda(cudaFree(scratch.partial));
  cuda(cudaStreamDestroy(stream));
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(routes),
      cmocka_unit_test(equal_scores),
      cmocka_unit_test(no_numbers),
      cmocka_unit_test(few_rows),
      cmocka_unit_test(parts_of_columns),
      cmocka_unit_test(plan_and_gather),
  };
  return cmocka_run_group_tests(tests, open_device, close_device);
}
