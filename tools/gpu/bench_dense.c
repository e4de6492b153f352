// Times whole steps of Qwen2.5-7B's shapes (BF16, dummy weights) on one GPU, through the backend: tables to the device, graph, ids
// back. Decode at context 1k, greedy, distinct prompts, two steps queued as the scheduler does; prefill in steps of 2,048 tokens.
//   bench_dense [LAYERS [BATCH [STEPS]]]    28, all of 1 8 64 256, 120
#include <stdio.h>
#include <stdlib.h>

#include "runtime/base/mem.h"
#include "tools/gpu/qwen_config.h"
#include "tools/gpu/steps.h"

enum { PREFILL = 2048, WHOLE = 28, MOST_STEPS = STEPS_MOST };

// Milliseconds a step of all 28 layers on one H200: what is wanted, what vLLM 0.26.0 takes, what reading weights and cache takes.
typedef struct goal {
  int batch;
  double wanted, vllm, floor;
} goal_t;
static const goal_t goals[] = {{1, 3.35, 4.457, 3.05}, {8, 3.5, 4.608, 3.14}, {64, 4.4, 5.699, 3.85}, {256, 9.0, 10.76, 7.8}};

static void decode(steps_t *s, const goal_t *goal, int layers, int steps) {
  double device;
  const double ms = steps_decode(s, goal->batch, steps, &device);
  printf("decode B=%-4d %8.3f ms a step (median of %d), %8.3f ms on the device", goal->batch, ms, steps, device);
  if (layers == WHOLE)
    printf("   goal %.2f %s, vLLM %.3f, floor %.2f", goal->wanted, ms <= goal->wanted ? "met" : "MISSED", goal->vllm, goal->floor);
  printf("\n");
  fflush(stdout);
}

int main(int argc, char **argv) {
  const int layers = argc > 1 ? atoi(argv[1]) : WHOLE, only = argc > 2 ? atoi(argv[2]) : 0, steps = argc > 3 ? atoi(argv[3]) : 120;
  if (layers < 1 || steps < 1 || steps > MOST_STEPS) {
    fprintf(stderr, "usage: bench_dense [LAYERS [BATCH (0: 1, 8, 64, 256) [STEPS (up to %d)]]]\n", MOST_STEPS);
    return 2;
  }
  char config[4096];
  snprintf(config, sizeof config, qwen_config, layers);
  mob_model_t *model = steps_model(config);
  printf("Qwen2.5-7B shapes, %d layers, BF16, dummy weights, context %d\n", layers, STEPS_CONTEXT);
  steps_t *s = steps_open(model, 1, PREFILL);
  int most = 0;
  for (size_t i = 0; i < MOB_LEN(goals); i++)
    if (!only || only == goals[i].batch) most = goals[i].batch;
  const double prefill = steps_prefill(s, most, PREFILL, true);
  if (prefill > 0) printf("prefill %d tokens %9.3f ms a step (median)\n", PREFILL, prefill);
  for (size_t i = 0; i < MOB_LEN(goals); i++)
    if (!only || only == goals[i].batch) decode(s, &goals[i], layers, steps);
  steps_close(s);
  mob_model_close(model);
  return 0;
}
