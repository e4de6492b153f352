// The CUDA executor on emulated GPUs, by the checks that tools/gpu/check_driver runs on real ones: layers against the CPU's contract
// mode at several numbers of ranks and ways of cutting prompts, engines over stages, graphs, queues of steps, and ends in the middle.
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "tools/gpu/checks.h"
#include "tools/gpu/runs.h"

extern const mob_backend_t mob_backend_cuda;
}

static check_t check;

static void on_line(void *, const check_line_t *l) {
  print_message("%-40s %-28s %.1e, limit %.1e  %s\n", l->what, l->where, l->error, l->limit, l->note);
  if (!l->ok) print_error("%s, %s: error %.3e, limit %.1e\n", l->what, l->where, l->error, l->limit);
}

struct Model {
  check_model_t m;
  explicit Model(const char *name) {
    if (check_model_open(MOB_SOURCE_DIR, name, &m) != MOB_OK) fail_msg("%s", mob_errmsg());
    check.failures = 0;
  }
  ~Model() { check_model_close(&m); }
  void run(mob_status (*fn)(check_t *, const check_model_t *, check_shape_t), check_shape_t s) {
    if (fn(&check, &m, s) != MOB_OK) fail_msg("%s: %s", m.name, mob_errmsg());
    assert_int_equal(check.failures, 0);
  }
};

static void layers_of_grouped_queries(void **) {
  Model("moe_fp8").run(check_layers, {1, 1, false});
}
static void layers_of_several_ranks(void **) {
  Model("mla_tiles").run(check_layers, {2, 1, false});
  Model("moe_fp8").run(check_layers, {4, 1, true});
}
static void layers_of_one_and_several_ranks(void **) { Model("gqa_128").run(check_layers_tp, {2, 1, false}); }
static void ways_of_cutting(void **) { Model("gqa_128").run(check_layers_cuts, {1, 1, false}); }
// One head a rank: half a pair of o_proj's columns is no head's, and steps of other sizes left something there.
static void odd_heads(void **) {
  check.cuts = 1u << CUT_MIXED;
  Model("mla_tiles").run(check_layers_cuts, {4, 1, false});
  check.cuts = 0;
}

// Experts that no router chose: a prompt of 24 tokens, then a decode. What is said of tokens, and what the first router chose of the
// prompt's rows.
struct Given {
  drive_place_t places[25];
  int32_t chosen[24 * 8];
};
static Given with_experts(const check_model_t &m, const mob_backend_t *backend, int tp, bool replay) {
  drive_config_t config = {};
  config.backend = backend;
  config.model = m.model;
  config.tp = tp;
  config.contract = backend == &mob_backend_cpu;
  config.routes = true;
  config.replay = replay;
  config.max_tokens = 24;
  config.max_len = 64;
  drive_t *d;
  if (drive_open(&config, &d) != MOB_OK) fail_msg("%s", mob_errmsg());
  const mob_model_desc_t *desc = m.desc;
  int first = 0; // layer with a router
  while (!desc->is_moe[first]) first++;
  int32_t tokens[25];
  uint32_t pages[1] = {3};
  for (int i = 0; i < 25; i++) tokens[i] = (i * 37 + 5) % desc->vocab;
  Given out = {};
  for (uint32_t start : {0u, 24u}) {
    const uint32_t count = start ? 1 : 24;
    for (int l = 0; l < desc->n_layers && replay; l++)
      for (uint32_t row = 0; row < count; row++) // ascending, from another one on in every row and layer
        for (int k = 0; k < desc->top_k; k++)
          drive_given(d, l)[row * (uint32_t)desc->top_k + (uint32_t)k] = (int)((start + row) * 5 + (uint32_t)l * 3) % (desc->n_experts - desc->top_k + 1) + k;
    mob_seq_open_t open = {};
    open.prompt = tokens;
    open.prompt_count = 25;
    open.sampling.top_p = 1;
    open.sampling.top_k = -1;
    open.sampling.repetition_penalty = 1;
    open.sampling.logprobs = DRIVE_TOP;
    open.sampling.prompt_logprobs = DRIVE_TOP;
    mob_seq_step_t seq = {};
    seq.start = start;
    seq.count = count;
    seq.tokens = tokens + start;
    seq.pages = pages;
    seq.page_count = 1;
    mob_step_t step = {};
    step.token_count = count;
    step.seqs = &seq;
    step.seq_count = 1;
    step.open = &open;
    step.open_count = start ? 0 : 1;
    if (drive_step(d, &step) != MOB_OK) fail_msg("%s", mob_errmsg());
    for (int l = 0; l < desc->n_layers; l++) {
      if (!replay || !desc->is_moe[l]) continue;
      bool has[64] = {};
      for (uint32_t i = 0; i < count * (uint32_t)desc->top_k; i++) has[drive_given(d, l)[i]] = true;
      assert_int_equal(drive_experts(d, l), std::count(has, has + 64, true));
    }
    if (!start) memcpy(out.chosen, drive_chosen(d, first), 24 * (size_t)desc->top_k * 4);
  }
  memcpy(out.places, drive_places(d, 0), sizeof out.places);
  drive_close(d);
  return out;
}
static float furthest(const Given &a, const Given &b) {
  float most = 0;
  for (int i = 1; i < 25; i++) {
    assert_true(a.places[i].known && b.places[i].known);
    most = fmaxf(most, fabsf(a.places[i].chosen.logprob - b.places[i].chosen.logprob));
  }
  return most;
}
static void experts_given(void **) {
  Model model("qwen3_moe/qwen3_moe_bf16");
  const Given own = with_experts(model.m, &mob_backend_cuda, 1, false);
  for (int tp : {1, 2}) {
    const Given cpu = with_experts(model.m, &mob_backend_cpu, tp, true);
    assert_true(furthest(own, cpu) > 0.2f);
    const Given cuda = with_experts(model.m, &mob_backend_cuda, tp, true);
    print_message("TP %d: %.4f from the CPU, %.4f from its own choice\n", tp, furthest(cuda, cpu), furthest(cuda, own));
    assert_true(furthest(cuda, cpu) < 0.05f);
    assert_memory_equal(cuda.chosen, own.chosen, 24 * (size_t)model.m.desc->top_k * 4); // what is given changes no choice
  }
}
static void engines_by_the_same_experts(void **) { Model("qwen3_moe/qwen3_moe_bf16").run(check_engine, {2, 1, false}); }

static void stages(void **) { Model("gqa_128").run(check_pipeline, {2, 2, false}); }
static void graphs(void **) { Model("gqa_128").run(check_graph, {1, 1, false}); }
static void queues(void **) {
  Model("gqa_128").run(check_queue, {2, 1, false});
  Model("gqa_128").run(check_queue, {1, 2, false});
}
static void ends(void **) {
  Model("gqa_128").run(check_abort, {1, 1, false});
  Model("gqa_128").run(check_abort, {2, 2, false});
}

static int set_up(void **) {
  setenv("MOB_EMU_DEVICES", "4", 1);
  setenv("MOB_CUDA_SHARD_ROWS", "9", 1);   // where real steps have 257
  setenv("MOB_CUDA_WAIT_MS", "60000", 1); // of a busy machine's few cores
  check.backend = &mob_backend_cuda;
  check.devices = mob_backend_cuda.device_count();
  check.line = on_line;
  check.exact_sums = true;
  check.tokens = 72;
  check.texts = 2;
  return check.devices == 4 ? 0 : -1;
}

int main() {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(layers_of_grouped_queries),
      cmocka_unit_test(experts_given),
      cmocka_unit_test(stages),
      cmocka_unit_test(ends),
#ifndef MOB_ASAN // ten times slower
      cmocka_unit_test(layers_of_several_ranks),
      cmocka_unit_test(layers_of_one_and_several_ranks),
      cmocka_unit_test(engines_by_the_same_experts),
      cmocka_unit_test(ways_of_cutting),
      cmocka_unit_test(odd_heads),
      cmocka_unit_test(graphs),
      cmocka_unit_test(queues),
#endif
  };
  return cmocka_run_group_tests(tests, set_up, nullptr);
}
