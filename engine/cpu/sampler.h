// From one row of logits to a token. Pure: the same row, parameters, history and index give the
// same token.
#ifndef MOB_CPU_SAMPLER_H
#define MOB_CPU_SAMPLER_H

#include "engine/step.h"

typedef struct mob_sample_input {
  const mob_sampling_t *params;
  const int32_t *prompt, *output;      // history, for the penalties
  uint32_t prompt_count, output_count; // output_count is also the index of the token to draw
} mob_sample_input_t;

typedef struct mob_sample_output {
  int32_t token;
  mob_token_logprob_t chosen;
  mob_token_logprob_t top[MOB_MAX_LOGPROBS];
  uint32_t top_count;
} mob_sample_output_t;

typedef struct mob_sampler mob_sampler_t; // working memory for one thread

mob_sampler_t *mob_sampler_new(int vocab);
void mob_sampler_free(mob_sampler_t *sampler);

// `logits` [vocab] are changed. Log probabilities are those of what the token was drawn from: after
// masks, penalties, temperature, top-k, top-p and min-p, as vLLM 0.7.2 reports them.
void mob_sampler_run(mob_sampler_t *sampler, float *logits, const mob_sample_input_t *in,
                     mob_sample_output_t *out);
// Of a prompt token: temperature, top-k, top-p and min-p act, masks and penalties do not (0.7.2
// too). `logits` are changed.
void mob_sampler_prompt(mob_sampler_t *sampler, float *logits, const mob_sampling_t *params,
                        int32_t token, mob_sample_output_t *out);
// Log probability and rank of `token`, and the `top` best, of these logits.
void mob_sampler_logprobs(mob_sampler_t *sampler, const float *logits, int32_t token, int top,
                          mob_sample_output_t *out);

// Philox 4x32-10 (Salmon et al., 2011): a uniform value in [0, 1) for (seed, index).
double mob_philox_uniform(uint64_t seed, uint64_t index);

#endif
