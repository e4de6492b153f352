// Times whole steps of Qwen2.5-7B's shapes (BF16, dummy weights) on one GPU, through the backend: tables to the device, graph, ids
// back. Decode at context 1k, greedy, distinct prompts, two steps queued as the scheduler does; prefill in steps of 2,048 tokens.
//   bench_dense [LAYERS [BATCH[,BATCH ...] [STEPS]]]    28, 1,8,64,256, 120
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#include "tools/gpu/qwen_config.h"
#include "tools/gpu/steps.h"

enum { PREFILL = 2048, WHOLE = 28, MOST_STEPS = STEPS_MOST, MOST_BATCHES = 32 };

// Milliseconds a step of all 28 layers on one H200: what is wanted, what vLLM 0.26.0 takes, what reading weights and cache takes.
typedef struct goal {
  int batch;
  double wanted, vllm, floor;
} goal_t;
static const goal_t goals[] = {{1, 3.35, 4.457, 3.05}, {8, 3.5, 4.608, 3.14}, {64, 4.4, 5.699, 3.85}, {256, 9.0, 10.76, 7.8}};

static void decode(steps_t *s, int batch, int layers, int steps) {
  double device;
  const double ms = steps_decode(s, batch, steps, &device);
  printf("decode B=%-4d %8.3f ms a step (median of %d), %8.3f ms on the device", batch, ms, steps, device);
  for (size_t i = 0; layers == WHOLE && i < MOB_LEN(goals); i++)
    if (goals[i].batch == batch)
      printf("   goal %.2f %s, vLLM %.3f, floor %.2f", goals[i].wanted, ms <= goals[i].wanted ? "met" : "MISSED", goals[i].vllm, goals[i].floor);
  printf("\n");
  fflush(stdout);
}

// Batches of a list with commas; none: those of the goals. Returns how many, 0: a list of something else.
static int batches(const char *list, int *batch) {
  int n = 0;
  for (size_t i = 0; !list && i < MOB_LEN(goals); i++) batch[n++] = goals[i].batch;
  while (list && *list) {
    char *end;
    const long value = strtol(list, &end, 10);
    if (end == list || value < 1 || value > STEPS_BATCH || n == MOST_BATCHES || (*end && *end != ',')) return 0;
    batch[n++] = (int)value;
    list = *end ? end + 1 : end;
  }
  return n;
}

int main(int argc, char **argv) {
  int batch[MOST_BATCHES];
  const int layers = argc > 1 ? atoi(argv[1]) : WHOLE, steps = argc > 3 ? atoi(argv[3]) : 120;
  const int count = batches(argc > 2 && strcmp(argv[2], "0") != 0 ? argv[2] : NULL, batch);
  if (layers < 1 || steps < 1 || steps > MOST_STEPS || count == 0) {
    fprintf(stderr, "usage: bench_dense [LAYERS [BATCH,... up to %d (0: 1,8,64,256) [STEPS up to %d]]]\n", STEPS_BATCH, MOST_STEPS);
    return 2;
  }
  char config[4096];
  snprintf(config, sizeof config, qwen_config, layers);
  mob_model_t *model = steps_model(config);
  printf("Qwen2.5-7B shapes, %d layers, BF16, dummy weights, context %d\n", layers, STEPS_CONTEXT);
  steps_t *s = steps_open(model, 1, PREFILL);
  int most = 0;
  for (int i = 0; i < count; i++)
    if (batch[i] > most) most = batch[i];
  const double prefill = steps_prefill(s, most, PREFILL, true);
  if (prefill > 0) printf("prefill %d tokens %9.3f ms a step (median)\n", PREFILL, prefill);
  for (int i = 0; i < count; i++) decode(s, batch[i], layers, steps);
  steps_close(s);
  mob_model_close(model);
  return 0;
}
