// A step: what all ranks of all stages compute together, once. The scheduler plans it, the step stream carries it,
// backends execute it. A sequence lives in a slot from the step that opens it to the step that closes it.
//
// Tokens of a step stand one sequence after the other: sequence i owns rows [row, row + count) of the step's
// activations [token_count][hidden]. Position of its first token = `start`, the number of its tokens whose keys and
// values are already in the cache.
#ifndef MOB_ENGINE_STEP_H
#define MOB_ENGINE_STEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  MOB_PAGE_TOKENS = 64,     // tokens of a KV page = prefix-cache block
  MOB_TOKEN_PREVIOUS = -1,  // as a token id: the one sampled for this slot by its previous step
  MOB_MAX_LOGPROBS = 20,
};

typedef struct mob_logit_bias {
  int32_t token;
  float bias;
} mob_logit_bias_t;

// Sampling order (vLLM 0.7.2): bias and allowed ids, min_tokens mask, repetition / frequency / presence
// penalties, temperature, top-k, top-p, min-p, draw. temperature < 1e-5 is greedy.
typedef struct mob_sampling {
  float temperature, top_p, min_p;
  int32_t top_k; // <= 0: all
  float repetition_penalty, frequency_penalty, presence_penalty;
  uint64_t seed; // draws are keyed by (seed, index of the output token): the batch does not matter
  uint32_t min_tokens;              // before so many output tokens `stop_ids` are masked
  const int32_t *stop_ids;          // eos ids and stop_token_ids, for that mask
  uint32_t stop_id_count;
  const mob_logit_bias_t *bias;
  uint32_t bias_count;
  const int32_t *allowed;           // when not empty, every other id is masked
  uint32_t allowed_count;
  int32_t logprobs;                 // -1 none; else the chosen token's and that many best
  int32_t prompt_logprobs;          // -1 none; else of each prompt token but the first
} mob_sampling_t;

// First appearance of a sequence in a slot.
typedef struct mob_seq_open {
  uint32_t slot;
  mob_sampling_t sampling;
  const int32_t *prompt; // whole prompt: penalties look at it, prompt logprobs need the next id
  uint32_t prompt_count;
  // The last so many ids of `prompt` were generated before (a sequence that comes back after preemption): they
  // count as output for penalties, min_tokens and the index of the next draw. 0 for a new sequence.
  uint32_t generated;
} mob_seq_open_t;

typedef struct mob_seq_step {
  uint32_t slot;
  uint32_t row;   // first row of this sequence in the step
  uint32_t start; // tokens already in the cache
  uint32_t count; // tokens of this step
  const int32_t *tokens; // [count]; MOB_TOKEN_PREVIOUS only as the single token of a decode
  const uint32_t *pages; // block table so far: page ids, covering start + count tokens
  uint32_t page_count;
  bool sample;    // sample the next token after the last row
} mob_seq_step_t;

typedef struct mob_step {
  uint64_t id; // 1, 2, ... within an epoch
  uint32_t token_count, seq_count, open_count, close_count;
  const mob_seq_open_t *open;   // slots opened by this step
  const mob_seq_step_t *seqs;
  const uint32_t *close;        // slots that no later step uses; closed after the step
} mob_step_t;

typedef struct mob_token_logprob {
  int32_t token;
  float logprob; // natural log of the probability that it was drawn with (after all processing), floor -9999
  int32_t rank;  // 1 = most likely
} mob_token_logprob_t;

typedef struct mob_sampled {
  uint32_t slot;
  int32_t token;
  mob_token_logprob_t chosen;      // valid when logprobs >= 0
  const mob_token_logprob_t *top;  // [top_count], best first
  uint32_t top_count;
} mob_sampled_t;

// Log probabilities of prompt tokens: of the token at `position` given those before it.
typedef struct mob_prompt_logprob {
  uint32_t slot, position;
  mob_token_logprob_t chosen;
  const mob_token_logprob_t *top;
  uint32_t top_count;
} mob_prompt_logprob_t;

typedef struct mob_step_result {
  uint64_t id;
  const mob_sampled_t *sampled;
  uint32_t sampled_count;
  const mob_prompt_logprob_t *prompt;
  uint32_t prompt_count;
  uint64_t compute_ns; // of this stage, waiting for the previous stage not included
} mob_step_result_t;

#endif
