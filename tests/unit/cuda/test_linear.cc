// The linear kernels on the emulated device, dense and by expert, against sums in double of the same quantised inputs: every size of
// tile, ragged ends, matrices whose tiles are cut over CTAs (which then add partial sums) and such whose are not.
#include <cstring>

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

#include "tests/unit/cuda/linear_case.h"

static void check_error(const Error &error, const char *what, double limit) {
  if (!(error.value() <= limit)) fail_msg("%s: relative error %.1e", what, error.value());
}

static void check_dense(int m, int n, int k, bool f8, bool f32) {
  const Case c(m, n, k, f8);
  float *y = device<float>((size_t)m * n);
  linear(c.w, c.x, y, n, f32, m, 1, scratch, stream);
  cuda(cudaStreamSynchronize(stream));
  if (f32) c.check(fetch(y, (size_t)m * n).data(), 0, 0, 1, 1e-5, "fp32");
  else c.check(fetch((const bf16 *)y, (size_t)m * n).data(), 0, 0, 1, 3e-3, "dense");
  partials_are_clean();
  free_all();
}

static void every_tile(void **state) {
  (void)state;
  for (int m : {1, 8, 11, 16, 30, 64, 77, 96, 128, 133}) {
    check_dense(m, 136, 512, true, false);
    check_dense(m, 136, 256, false, false);
  }
}

static void ragged(void **state) {
  (void)state;
  check_dense(5, 61, 130, true, false);
  check_dense(5, 61, 130, false, false);
  check_dense(40, 200, 72, false, true);
  check_dense(3, 1000, 128, false, true);
}

static void cut_over_ctas(void **state) {
  (void)state;
  for (int m : {1, 24, 70}) {
    check_dense(m, 130, 3328, true, false);
    check_dense(m, 320, 1408, false, false);
  }
}

// silu(gate) * up in one kernel is what the linear and activate() give: the same columns, each sum perhaps cut elsewhere.
static void dense_gated(void **state) {
  (void)state;
  for (int m : {3, 16, 17, 40, 77, 96, 130}) {
    const int inter = 384, up_at = 448, k = m == 40 ? 1408 : 256, n = up_at + inter;
    const Case c(m, n, k, false);
    const size_t bytes = records_bytes(false, padded_rows(m), inter);
    const Records act[2] = {{device<uint8_t>(bytes), padded_rows(m), 0}, {device<uint8_t>(bytes), padded_rows(m), 0}};
    bf16 *y = device<bf16>((size_t)m * n);
    linear(c.w, c.x, y, n, false, m, 1, scratch, stream);
    activate({y, n, up_at, inter, inter, act[0], 0, 0, nullptr, false}, m, stream);
    assert_true(linear_can_gate(c.w, inter, up_at, inter));
    linear_gated(c.w, inter, up_at, c.x, act[1], m, scratch, stream);
    cuda(cudaStreamSynchronize(stream));
    const std::vector<bf16> want = fetch((const bf16 *)act[0].data, bytes / 2), got = fetch((const bf16 *)act[1].data, bytes / 2);
    Error error;
    for (size_t i = 0; i < want.size(); i++) {
      const bool nobodys = std::isnan((float)want[i]);
      assert_int_equal(std::isnan((float)got[i]), nobodys);
      if (!nobodys) error.add((float)got[i], (float)want[i]);
    }
    char text[64];
    snprintf(text, sizeof text, "gated, %d tokens", m);
    check_error(error, text, 4e-3);
    partials_are_clean();
    free_all();
  }
}

// Plan, gather and linear of experts over tokens that each chose `top_k` of them; a shared one takes all.
struct Experts {
  int tokens, experts, top_k, slots, most;
  std::vector<int> ids;
  MoePlan plan = {};
  size_t capacity;

  Experts(int tokens_, int experts_, int top_k_, int most_) : tokens(tokens_), experts(experts_), top_k(top_k_), slots(top_k_ + 1), most(most_) {
    for (int t = 0; t < tokens; t++) {
      std::vector<int> all(experts);
      for (int e = 0; e < experts; e++) all[(size_t)e] = e;
      std::shuffle(all.begin(), all.end(), rng);
      if (t % 2 == 0) std::swap(all[0], *std::find(all.begin(), all.end(), 1)); // the second has most
      std::sort(all.begin(), all.begin() + top_k);
      ids.insert(ids.end(), all.begin(), all.begin() + top_k);
    }
    capacity = moe_rows((size_t)tokens, (size_t)slots, (size_t)experts + 1);
    plan.ids = upload(ids);
    plan.count = upload(std::vector<int>{tokens});
    plan.top_k = top_k;
    plan.experts = experts;
    plan.shared = 1;
    plan.rows = tokens;
    plan.active = device<int>((size_t)experts + 2);
    plan.active_ids = plan.gathered = plan.active + 1;
    plan.expert_row = device<int>((size_t)tokens * slots);
    plan.most = most;
    plan.tiles = device<TokenTile>(moe_tiles((size_t)tokens, (size_t)slots, (size_t)experts + 1, (size_t)most));
    plan.place = device<int>(capacity);
    plan.rows_of = device<ExpertRows>((size_t)experts + 1);
  }
  int expert(int t, int j) const { return j < top_k ? ids[(size_t)t * top_k + j] : experts; }
  TileRows rows(const Matrix &w) const {
    const bool f8 = w.kind == Weights::F8;
    return {device<uint8_t>(records_bytes(f8, (int64_t)capacity, w.k)), (int)column_pairs(w), f8};
  }
};

static Matrix make_experts(const Experts &e, int n, int k, bool f8, std::vector<std::vector<float>> *values) {
  const Matrix w = make_matrix(n, k, f8, e.experts + 1);
  for (int i = 0; i <= e.experts; i++) values->push_back(fill_matrix(w, k, i));
  return w;
}

static Records make_records(int m, const Matrix &w) {
  const bool f8 = w.kind == Weights::F8;
  return {device<uint8_t>(records_bytes(f8, padded_rows(m), w.k)), padded_rows(m), f8};
}

constexpr int kMostTiles = 64; // of tokens, in these tests

static void as_the_next_launch_expects() {
  for (uint32_t word : fetch((const uint32_t *)scratch.segments_partial, segments_partial_floats(scratch.sms))) assert_int_equal(word, ~0u);
  for (int word : fetch(scratch.dealt, 2)) assert_int_equal(word, 0);
  for (int word : fetch(scratch.segments_done, kMostTiles)) assert_int_equal(word, 0);
}

static void check_experts(int tokens, int experts, int top_k, int n, int k, int most, bool f8 = true) {
  const bool few = tokens <= kFewTokens;
  const Experts e(tokens, experts, top_k, most);
  std::vector<std::vector<float>> values;
  const Matrix w = make_experts(e, n, k, f8, &values);
  const Records hidden = make_records(tokens, w);
  const std::vector<float> rows = fill_rows(hidden, tokens, k, w.k);
  const size_t rows_of_y = std::max(e.capacity, (size_t)(experts + 1) * kFewTokens);
  bf16 *y = device<bf16>(rows_of_y * n);
  if (few) {
    moe_plan_few(e.plan, stream);
    linear_experts_few(w, e.plan.active_ids, e.plan.active, hidden, 0, y, tokens, experts, 1, scratch, stream);
  } else {
    const TileRows gathered = e.rows(w);
    moe_plan_many(e.plan, stream);
    moe_gather(hidden, e.plan, gathered, stream);
    linear_segments(w, e.plan.tiles, e.plan.active, gathered.data, y, most, scratch, stream);
  }
  cuda(cudaStreamSynchronize(stream));
  const std::vector<int> at = fetch(e.plan.expert_row, (size_t)tokens * e.slots);
  const std::vector<bf16> all = fetch(y, rows_of_y * n);
  Error error;
  for (int t = 0; t < tokens; t++)
    for (int j = 0; j < e.slots; j++)
      for (int c = (t + j) % 7; c < n; c += 7)
        error.add(all[(size_t)at[(size_t)t * e.slots + j] * n + c], dot(values[(size_t)e.expert(t, j)], c, rows, t, k));
  char text[64];
  snprintf(text, sizeof text, "%d experts, %d tokens, tiles up to %d", experts, tokens, most);
  check_error(error, text, 3e-3);
  as_the_next_launch_expects();
  free_all();
}

// Gate and up with the activation in the same kernel, then down, against the same with the activation by itself and against the values.
// Where both are of one kind, the same in one launch, too.
static void check_gated(int tokens, int inter, int k, bool f8, bool act_f8, bool ue8m0, int experts = 3, int hidden = 136,
                        int most = 64) {
  const int top_k = 1, n = 2 * inter;
  const Experts e(tokens, experts, top_k, most);
  std::vector<std::vector<float>> up_values, down_values;
  const Matrix up = make_experts(e, n, k, f8, &up_values), down = make_experts(e, hidden, inter, act_f8, &down_values);
  assert_true(segments_can_gate(inter, inter, down.k));
  const Records records = make_records(tokens, up);
  const std::vector<float> rows = fill_rows(records, tokens, k, up.k);
  const TileRows gathered = e.rows(up), act = e.rows(down), act_alone = e.rows(down);
  bf16 *wide = device<bf16>(e.capacity * n), *y = device<bf16>(e.capacity * hidden), *y_alone = device<bf16>(e.capacity * hidden);
  bf16 *y_both[2] = {device<bf16>(e.capacity * hidden), device<bf16>(e.capacity * hidden)};
  moe_plan_many(e.plan, stream);
  moe_gather(records, e.plan, gathered, stream);
  linear_segments_gated(up, inter, inter, e.plan.tiles, e.plan.active, gathered.data, act, ue8m0, most, scratch, stream);
  linear_segments(down, e.plan.tiles, e.plan.active, act.data, y, most, scratch, stream);
  linear_segments(up, e.plan.tiles, e.plan.active, gathered.data, wide, most, scratch, stream);
  activate({wide, n, inter, inter, down.k, {nullptr, 0, act_f8}, 0, 0, nullptr, ue8m0, e.plan.gathered, e.plan.place, act_alone}, (int)e.capacity,
           stream);
  linear_segments(down, e.plan.tiles, e.plan.active, act_alone.data, y_alone, most, scratch, stream);
  const bool one_launch = f8 == act_f8;
  for (int again = 0; one_launch && again < 2; again++) {
    const TileRows between = e.rows(down);
    linear_segments_both(up, inter, inter, down, e.plan.tiles, e.plan.active, gathered.data, between, ue8m0, y_both[again], most, scratch, stream);
  }
  cuda(cudaStreamSynchronize(stream));
  as_the_next_launch_expects();
  const std::vector<int> at = fetch(e.plan.expert_row, (size_t)tokens * e.slots);
  const std::vector<bf16> got = fetch(y, e.capacity * hidden), alone = fetch(y_alone, e.capacity * hidden), gate_up = fetch(wide, e.capacity * n);
  const std::vector<bf16> launch[2] = {fetch(y_both[0], e.capacity * hidden), fetch(y_both[1], e.capacity * hidden)};
  Error both, product, result, joined;
  for (int t = 0; t < tokens; t++)
    for (int j = 0; j < e.slots; j++) {
      const size_t row = (size_t)at[(size_t)t * e.slots + j];
      std::vector<float> values;
      for (int c = 0; c < inter; c++) {
        const float gate = gate_up[row * n + c];
        values.push_back(__float2bfloat16(gate / (1 + std::exp(-gate)) * (float)gate_up[row * n + inter + c]));
      }
      for (int c = (t + j) % 7; c < n; c += 7) product.add(gate_up[row * n + c], dot(up_values[(size_t)e.expert(t, j)], c, rows, t, k));
      for (int c = 0; c < hidden; c++) both.add(got[row * hidden + c], alone[row * hidden + c]);
      for (int c = 0; one_launch && c < hidden; c++) {
        joined.add(launch[0][row * hidden + c], got[row * hidden + c]);
        assert_true((float)launch[1][row * hidden + c] == (float)launch[0][row * hidden + c]);
      }
      for (int c = (t + j) % 7; c < hidden; c += 7) result.add(got[row * hidden + c], dot(down_values[(size_t)e.expert(t, j)], c, values, 0, inter));
    }
  check_error(product, "gate and up", 3e-3);
  check_error(both, "activation in the kernel, and alone", 2e-3);
  if (one_launch) check_error(joined, "both in one launch, and in two", 2e-3);
  check_error(result, "down", act_f8 ? ue8m0 ? 6e-2 : 4e-2 : 5e-3); // e4m3's own error
  free_all();
}

static void by_expert(void **state) {
  (void)state;
  check_experts(1, 6, 2, 192, 256, 8);
  check_experts(8, 6, 2, 192, 384, 8);
  check_experts(20, 6, 2, 192, 256, 64);
  check_experts(40, 6, 2, 320, 2304, 64);
  check_experts(70, 5, 3, 128, 1024, 96);
  check_experts(150, 4, 2, 72, 256, 96);
  check_experts(30, 4, 2, 300, 1100, 64, false);
  check_experts(150, 4, 2, 300, 1100, kWideTokens);
  check_experts(300, 3, 1, 512, 256, kWideTokens);
}

static void gated(void **state) {
  (void)state;
  check_gated(20, 256, 2048, true, true, false);
  check_gated(90, 256, 512, true, true, true);
  check_gated(70, 128, 300, true, false, false);
  check_gated(12, 128, 600, false, false, false);
  check_gated(40, 256, 1024, true, true, false, 12, 600); // more tiles than are cut, experts without tokens
  check_gated(30, 128, 256, false, false, false, 9, 300);
  check_gated(100, 256, 512, true, true, false, 8, 600, 96); // the last expert's tiles among the others'
  check_gated(150, 256, 512, true, true, false, 3, 300, kWideTokens);
  check_gated(70, 512, 300, true, true, true, 5, 600, kWideTokens); // tiles of half the tokens, too
}

static int open_experts(void **state) {
  (void)state;
  open_scratch(3);
  scratch.segments_partial = scratch_words<float>(segments_partial_floats(scratch.sms), 0xff);
  scratch.segments_done = scratch_words<int>(kMostTiles, 0);
  scratch.dealt = scratch_words<int>(2, 0);
  return 0;
}
static int close_experts(void **state) {
  for (void *p : {(void *)scratch.segments_partial, (void *)scratch.segments_done, (void *)scratch.dealt}) cuda(cudaFree(p));
  return close_device(state);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(every_tile),
      cmocka_unit_test(ragged),
      cmocka_unit_test(cut_over_ctas),
      cmocka_unit_test(dense_gated),
      cmocka_unit_test(by_expert),
      cmocka_unit_test(gated),
  };
  return cmocka_run_group_tests(tests, open_experts, close_experts);
}
