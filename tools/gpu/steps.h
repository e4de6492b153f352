// Whole steps of a model with dummy weights on the CUDA backend, timed: tables to the device, graph, ids back on the host; two steps
// queued, as the scheduler does. Context 1k, greedy, distinct prompts. For benches: whatever fails ends the process.
#ifndef MOB_TOOLS_GPU_STEPS_H
#define MOB_TOOLS_GPU_STEPS_H

#include "engine/backend.h"

enum { STEPS_CONTEXT = 1024, STEPS_BATCH = 256, STEPS_PAGES = 20, STEPS_COUNTED = 16, STEPS_MOST = 230 };

#define STEPS_CHECK(expr)                                                                          \
  do {                                                                                             \
    if ((expr) != MOB_OK) {                                                                        \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, mob_errmsg());                            \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

typedef struct steps steps_t;

// A model of a config.json's text.
mob_model_t *steps_model(const char *config_json);
// Opens, plans, loads and makes pages for 256 sequences; says so in two lines.
steps_t *steps_open(const mob_model_t *model, int tp, int max_tokens);
void steps_close(steps_t *s);
// Prompts of 1,024 random tokens into the slots [0, count), `per_step` tokens a step; the median of all steps but the first, in ms, 0
// where they are fewer than four. `keep`: the slots stay open.
double steps_prefill(steps_t *s, int count, int per_step, bool keep);
// `count` steps (up to STEPS_MOST) of the slots [0, batch): median ms a step on the host's clock, and on the device.
double steps_decode(steps_t *s, int batch, int count, double *device);
// STEPS_COUNTED more steps behind them: routed experts of a layer that have tokens, as the dispatch plans on the device have them, mean over
// steps and MoE layers; of rank 0. 0 in a model without experts.
double steps_experts(steps_t *s, int batch);

#endif
