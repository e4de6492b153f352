// The scheduler: which tokens of which sequences the group computes next. Pure state: events in,
// step plans out; no clock, no thread, no I/O, so that it can be tested and simulated without an
// engine.
//
// Several steps may be under way. The steps of a group are executed in the order of their planning
// on every stage, and completed in that order. A decode step may be planned before the token it
// continues is known (MOB_TOKEN_PREVIOUS); a stop that shows only when the token arrives makes
// later steps of that sequence worthless, and their tokens are dropped.
//
// With several stages the running sequences are spread over as many micro-batches; consecutive
// steps serve different micro-batches, so that all stages have work.
#ifndef MOB_SCHED_SCHED_H
#define MOB_SCHED_SCHED_H

#include <stdbool.h>
#include <stdint.h>

#include "engine/step.h"
#include "runtime/base/status.h"

typedef struct mob_sched mob_sched_t;
typedef struct mob_sched_seq mob_sched_seq_t;

typedef enum mob_sched_policy { MOB_SCHED_FCFS, MOB_SCHED_PRIORITY } mob_sched_policy_t;

typedef struct mob_sched_config {
  int64_t pages;        // of MOB_PAGE_TOKENS tokens, >= 1
  int max_seqs;         // sequences with a slot at one time
  int max_tokens;       // rows of one step
  int max_len;          // tokens of one sequence, prompt and output
  int stages;           // micro-batches
  int depth;            // steps under way, >= 1
  bool ids_on_device;   // MOB_TOKEN_PREVIOUS may be planned
  bool chunked_prefill; // else a prompt is computed in one step where max_tokens lets it, before
                        // any decode
  bool prefix_cache;
  mob_sched_policy_t policy;
  uint64_t hash_seed; // of the prefix cache's hashes
} mob_sched_config_t;

// Slots in plans are below this number: one more than sequences, so that a slot that is still to be
// closed never keeps the only new sequence waiting.
static inline uint32_t mob_sched_slots(const mob_sched_config_t *config) {
  return (uint32_t)config->max_seqs + 1;
}

typedef struct mob_sched_request {
  const int32_t *prompt; // copied
  uint32_t prompt_count;
  uint32_t max_tokens;
  bool ignore_eos;
  const int32_t *eos_ids; // copied
  uint32_t eos_count;
  const int32_t *stop_ids; // copied
  uint32_t stop_count;
  int priority;            // lower runs first
  mob_sampling_t sampling; // arrays copied; stop_ids and stop_id_count are filled here
} mob_sched_request_t;

typedef enum mob_sched_finish {
  MOB_SCHED_RUNNING,
  MOB_SCHED_STOP,   // an eos or stop id
  MOB_SCHED_LENGTH, // max_tokens, max_len or all of the cache
} mob_sched_finish_t;

// What a completed step brought to one sequence. `owner` is what mob_sched_add() got.
typedef struct mob_sched_event {
  void *owner;
  // NULL when the step only brought prompt logprobs. Points into the result.
  const mob_sampled_t *token;
  mob_sched_finish_t finish; // else than RUNNING: the sequence is gone
  // [prompt_count], in order of position. Points into the result.
  const mob_prompt_logprob_t *prompt;
  uint32_t prompt_count;
  uint32_t cached_tokens; // as mob_sched_cached_tokens(), for a sequence that is gone
} mob_sched_event_t;

typedef struct mob_sched_stats {
  uint32_t running, waiting; // preempted sequences wait
  uint32_t in_flight;        // steps
  int64_t pages_total, pages_used,
      pages_cached; // used: referenced; cached: unreferenced but findable
  uint64_t prompt_tokens, generated_tokens, preemptions, steps;
  uint64_t prefix_queries, prefix_hits; // in tokens
} mob_sched_stats_t;

mob_status mob_sched_new(const mob_sched_config_t *config, mob_sched_t **out);
void mob_sched_free(mob_sched_t *sched); // with all sequences

// MOB_E_INVALID, with the numbers, when the request can never run: empty prompt, longer than
// max_len or than the cache.
mob_status mob_sched_add(mob_sched_t *sched, const mob_sched_request_t *request, void *owner,
                         mob_sched_seq_t **out);
// The sequence ends and brings no further event. Its pages come free when no step under way uses
// them.
void mob_sched_abort(mob_sched_t *sched, mob_sched_seq_t *seq);
// Prompt tokens that the prefix cache held when the sequence first ran.
uint32_t mob_sched_cached_tokens(const mob_sched_seq_t *seq);

// The next step, or NULL when nothing can be planned before an event. Valid until the next call for
// the same scheduler. A returned step is under way until mob_sched_complete().
const mob_step_t *mob_sched_plan(mob_sched_t *sched);
// `result` is of the oldest step under way; its `events` live until the next call. MOB_E_FORMAT
// when it does not fit the step: the group is not to be trusted any more.
mob_status mob_sched_complete(mob_sched_t *sched, const mob_step_result_t *result,
                              const mob_sched_event_t **events, uint32_t *count);

void mob_sched_stats(const mob_sched_t *sched, mob_sched_stats_t *out);

#endif
