// The CUDA executor on emulated GPUs, by the checks that tools/gpu/check_driver runs on real ones: layers against the CPU's contract
// mode at several numbers of ranks and ways of cutting prompts, engines over stages, graphs, queues of steps, and ends in the middle.
#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "tools/gpu/checks.h"

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
      cmocka_unit_test(stages),
      cmocka_unit_test(ends),
#ifndef MOB_ASAN // ten times slower
      cmocka_unit_test(layers_of_several_ranks),
      cmocka_unit_test(layers_of_one_and_several_ranks),
      cmocka_unit_test(ways_of_cutting),
      cmocka_unit_test(graphs),
      cmocka_unit_test(queues),
#endif
  };
  return cmocka_run_group_tests(tests, set_up, nullptr);
}
