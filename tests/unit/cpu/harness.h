// Drives the CPU backend as the stages would: every pipeline stage an executor of its own in this
// process, joined by socket pairs, fed with the same steps.
#ifndef MOB_TESTS_CPU_HARNESS_H
#define MOB_TESTS_CPU_HARNESS_H

#include "engine/backend.h"

typedef struct harness harness_t;

typedef struct harness_config {
  const char *dir;
  const char *overrides; // of config.json
  bool dummy;
  int tp, pp, threads;
  bool expert_parallel;
  bool contract, eager; // engine/cpu/contract.h
  bool fast;            // `auto` instead of exact: on the tile unit where the CPU has one
  mob_dtype_t kv_dtype; // F32 by default
  int max_tokens;       // of a step; 0: 512
} harness_config_t;

mob_status harness_open(const harness_config_t *config, harness_t **out);
void harness_close(harness_t *h);
const mob_model_desc_t *harness_desc(const harness_t *h);
mob_exec_t *harness_exec(harness_t *h, int stage);

// Queues a step on all stages without waiting; harness_wait() waits until the last stage has
// reported `count` steps in all and returns the first failure.
mob_status harness_submit(harness_t *h, const mob_step_t *step);
mob_status harness_submit_to(harness_t *h, int stage, const mob_step_t *step);
mob_status harness_wait(harness_t *h, uint64_t count);
// What the last stage sampled for `slot` so far.
const int32_t *harness_tokens(const harness_t *h, uint32_t slot, uint32_t *count);
// The last sampled token's log probabilities, and those of prompt tokens, collected since the
// start.
const mob_sampled_t *harness_last(const harness_t *h);
const mob_prompt_logprob_t *harness_prompt(const harness_t *h, uint32_t *count);

typedef struct harness_run {
  const int32_t *prompt;
  uint32_t prompt_count;
  uint32_t chunk;        // tokens of a prefill step; 0: all at once
  const int32_t *forced; // NULL, or the tokens to feed instead of the sampled ones
  uint32_t generate;
  bool queue;      // decode with MOB_TOKEN_PREVIOUS, all steps queued at once
  float *logits;   // NULL, or [generate][vocab]
  int32_t *tokens; // [generate] what was sampled
  uint32_t slot, first_page;
} harness_run_t;

// Prefills and decodes one sequence greedily.
mob_status harness_generate(harness_t *h, const harness_run_t *run);

// The largest difference of two arrays; NaN where one has a NaN.
float harness_max_error(const float *a, const float *b, size_t n);

#endif
