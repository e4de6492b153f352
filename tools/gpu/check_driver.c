// Holds the CUDA backend against the CPU backend and against itself, and times whole steps of a model's true shapes.
//   check_driver check [PART] [ROOT]  the checks of checks.h at every TP x PP that the host's GPUs allow, one table; PART: layers, cuts,
//                                     engines, graphs, failure, demo (default: all). ROOT: where tests/ and deploy/ lie (default .)
//   check_driver compare DIR [TOKENS [dummy]]  layers and engines of a model directory
//   check_driver bench DENSE MOE [MAX_TOKENS [BATCH [TP]]]  DeepSeek-R1's shapes with dummy weights: decode and prefill steps on TP GPUs
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/backend.h"
#include "runtime/base/mem.h"
#include "tools/gpu/checks.h"
#include "tools/gpu/r1_config.h"
#include "tools/gpu/steps.h"

#define CHECK STEPS_CHECK

// ------------------------------------------------------------------------------------------- bench

static int bench_main(int dense, int moe, int max_tokens, int only, int tp) {
  static const int batches[] = {1, 2, 4, 8, 16, 32, 64, 128, STEPS_BATCH};
  char config[4096];
  snprintf(config, sizeof config, r1_config, dense + moe, dense);
  mob_model_t *model = steps_model(config);
  printf("DeepSeek-R1 shapes, %d dense + %d MoE layers, TP %d, dummy weights\n", dense, moe, tp);
  steps_t *s = steps_open(model, tp, max_tokens);
  const double prefill = steps_prefill(s, only ? (only + 1) / 2 * 2 : STEPS_BATCH, max_tokens, true);
  if (prefill > 0) printf("prefill %5d tokens: %8.3f ms a step (median, prompts of %d)\n", max_tokens, prefill, STEPS_CONTEXT);
  for (size_t i = 0; i < MOB_LEN(batches); i++) {
    if (only && only < batches[i]) break;
    double device;
    const double wall = steps_decode(s, batches[i], only ? 20 : 60, &device);
    printf("decode B=%-4d %8.3f ms a step (wall, median of %d), %8.3f ms on the device\n", batches[i], wall, only ? 20 : 60, device);
    fflush(stdout);
  }
  steps_close(s);
  mob_model_close(model);
  return 0;
}

// ------------------------------------------------------------------------------------------- check

static void print_line(void *arg, const check_line_t *l) {
  (void)arg;
  char limit[16];
  snprintf(limit, sizeof limit, l->limit < 0 ? "-" : "%.1e", l->limit);
  printf("%-42s %-34s %8.1e %8s %-6s %s\n", l->what, l->where, l->error, limit, l->limit < 0 ? "" : l->ok ? "ok" : "WRONG", l->note);
  fflush(stdout);
}

typedef mob_status (*check_fn)(check_t *c, const check_model_t *m, check_shape_t s);
typedef struct part {
  const char *name;
  check_fn fn;
  bool made_only; // not on the goldens
} part_t;

static const part_t parts[] = {
    {"layers", check_layers, false},  {"layers", check_layers_tp, false}, {"cuts", check_layers_cuts, true},
    {"engines", check_engine, false}, {"engines", check_pipeline, true},  {"graphs", check_graph, true},
    {"graphs", check_queue, true},    {"failure", check_abort, true},
};

static void check_shape(check_t *c, const check_model_t *m, check_shape_t s, const char *wanted) {
  for (size_t i = 0; i < MOB_LEN(parts); i++) {
    const part_t *p = &parts[i];
    if ((strcmp(wanted, "all") != 0 && strcmp(wanted, p->name) != 0) || (p->made_only && !m->made)) continue;
    // A layer alone has no stages; a comparison with fewer ranks or stages needs more of them.
    const bool layers = p->fn == check_layers || p->fn == check_layers_tp || p->fn == check_layers_cuts;
    if ((layers && s.pp > 1) || (p->fn == check_layers_tp && s.tp == 1) || (p->fn == check_pipeline && s.pp == 1)) continue;
    const mob_status status = p->fn(c, m, s);
    if (status == MOB_OK) continue;
    printf("%s, TP %d PP %d: %s\n", m->name, s.tp, s.pp, mob_errmsg());
    c->failures++;
  }
}

// Texts of a model directory: layers and engines in every shape. The demo model is a trained one, whose routers do not hang on
// roundings as much as random ones.
static mob_status check_dir(check_t *c, const char *dir, uint32_t tokens, bool dummy) {
  check_model_t m = {.name = ""};
  const char *slash = strrchr(dir, '/');
  snprintf(m.name, sizeof m.name, "%s", slash && slash[1] ? slash + 1 : dir);
  mob_model_options_t options = {.dummy = dummy};
  MOB_TRY(mob_model_open(dir, &options, &m.model));
  m.desc = mob_model_desc(m.model);
  check_t with = *c;
  with.tokens = tokens;
  for (int tp = 1; tp <= 8; tp *= 2)
    for (int pp = 1; pp <= 4; pp *= 2)
      for (int ep = 0; ep < 2; ep++) {
        const check_shape_t s = {tp, pp, ep};
        if (!check_divides(&m, s, c->devices)) continue;
        check_shape(&with, &m, s, "layers");
        check_shape(&with, &m, s, "engines");
      }
  c->failures = with.failures;
  c->lines = with.lines;
  mob_model_close(m.model);
  return MOB_OK;
}

static mob_status open_check(check_t *c) {
  *c = (check_t){.line = print_line, .tokens = 200, .texts = 2};
  MOB_TRY(mob_backend_find("cuda", &c->backend));
  c->devices = c->backend->device_count();
  if (c->devices == 0) return MOB_E_UNSUPPORTED;
  printf("%d GPU%s\n%-42s %-34s %8s %8s\n", c->devices, c->devices > 1 ? "s" : "", "what", "model", "error", "limit");
  return MOB_OK;
}

static int compare_main(const char *dir, uint32_t tokens, bool dummy) {
  check_t c;
  CHECK(open_check(&c));
  CHECK(check_dir(&c, dir, tokens, dummy));
  printf("%d of %d lines wrong\n", c.failures, c.lines);
  return c.failures != 0;
}

static int check_main(const char *wanted, const char *root) {
  check_t c;
  CHECK(open_check(&c));
  const char *const *lists[] = {check_made_models(), check_golden_models()};
  for (size_t k = 0; k < MOB_LEN(lists); k++)
    for (int i = 0; lists[k][i]; i++) {
      check_model_t m;
      CHECK(check_model_open(root, lists[k][i], &m));
      for (int tp = 1; tp <= 8; tp *= 2)
        for (int pp = 1; pp <= 4; pp *= 2)
          for (int ep = 0; ep < 2; ep++) {
            const check_shape_t s = {tp, pp, ep};
            if (check_divides(&m, s, c.devices)) check_shape(&c, &m, s, wanted);
          }
      check_model_close(&m);
    }
  if (strcmp(wanted, "all") == 0 || strcmp(wanted, "demo") == 0) {
    const char *other = getenv("MOB_DEMO_MODEL");
    char dir[1024];
    snprintf(dir, sizeof dir, "%s/deploy/demo-model", root);
    if (check_dir(&c, other ? other : dir, 250, false) != MOB_OK) printf("demo model left out: %s\n", mob_errmsg());
  }
  printf("%d of %d lines wrong\n", c.failures, c.lines);
  return c.failures != 0;
}

int main(int argc, char **argv) {
  if (argc >= 2 && strcmp(argv[1], "check") == 0) return check_main(argc > 2 ? argv[2] : "all", argc > 3 ? argv[3] : ".");
  if (argc >= 3 && strcmp(argv[1], "compare") == 0)
    return compare_main(argv[2], argc > 3 ? (uint32_t)atoi(argv[3]) : 250, argc > 4 && strcmp(argv[4], "dummy") == 0);
  if (argc >= 4 && strcmp(argv[1], "bench") == 0)
    return bench_main(atoi(argv[2]), atoi(argv[3]), argc > 4 ? atoi(argv[4]) : 2048, argc > 5 ? atoi(argv[5]) : 0,
                      argc > 6 ? atoi(argv[6]) : 1);
  fprintf(stderr, "usage: check_driver check [PART [ROOT]] | compare DIR [TOKENS [dummy]] | bench DENSE MOE [max_tokens [batch [tp]]]\n");
  return 2;
}
