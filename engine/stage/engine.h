// The engine as the gateway sees it: start a group of stage actors, generate, learn of its loss.
// Everything runs on the loop's thread; nothing blocks.
#ifndef MOB_STAGE_ENGINE_H
#define MOB_STAGE_ENGINE_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "engine/model/model.h"
#include "engine/step.h"

typedef struct mob_engine mob_engine_t;
typedef struct mob_gen mob_gen_t; // one sequence being generated

typedef struct mob_engine_config {
  const mob_model_t *model; // opened by the gateway; outlives the engine
  const char *model_dir;    // the path as every pod sees it
  const char *cluster;      // GCS address "host:port"; NULL: the stages are threads of this process
  const char *device;       // "auto", "cpu", "cuda"
  int tp, pp;
  int parts; // processes of a stage, each in a pod and with tp / parts ranks; 0: 1
  bool expert_parallel;
  // [pp] layers of each stage (VLLM_PP_LAYER_PARTITION); NULL: balanced by bytes.
  const int *layer_split;
  const char *dtype; // "auto", "float32", "bfloat16", "float16", ...
  const char *kv_cache_dtype;
  int max_len;            // --max-model-len, already derived and checked
  int max_seqs;           // --max-num-seqs
  int max_batched_tokens; // --max-num-batched-tokens
  double memory_share;    // --gpu-memory-utilization
  int64_t pages;          // 0: from the memory plan (--num-gpu-blocks-override)
  bool eager, prefix_cache, chunked_prefill, dummy;
  uint64_t seed;
  uint64_t start_timeout_ms; // for the placement group and the actors; 0: 300 s
  const char *overrides;     // --hf-overrides, as given to mob_model_open(); NULL for none
  bool priority_policy;      // --scheduling-policy priority
  int cpu_threads;           // of each stage on the CPU backend; 0: from the CPUs there are
} mob_engine_config_t;

typedef struct mob_engine_info {
  int64_t pages; // KV pages of MOB_PAGE_TOKENS tokens
  double load_seconds;
  uint64_t load_bytes;
} mob_engine_info_t;

typedef struct mob_stage_health { // of a process of a stage
  int stage;
  int first_layer, last_layer; // [first, last)
  int first_rank, ranks;       // tensor-parallel ones of this process
  char node_ip[64];
  int pid;
  bool alive;
  uint64_t heard_ms;    // age of the last sign of life
  uint64_t step_age_ms; // age of the oldest step not finished, 0 when idle
} mob_stage_health_t;

typedef struct mob_engine_events {
  // "placing", "starting actors", "loading", "ready": for the log; bytes are of all stages together
  // while loading.
  void (*on_progress)(void *owner, const char *phase, uint64_t bytes, uint64_t total);
  void (*on_ready)(void *owner, const mob_engine_info_t *info);
  // Exactly once, before or after on_ready: the group cannot serve (any more). Every generation has
  // ended with MOB_FINISH_LOST before. `cause` is one of "start_failed", "actor_died", "node_died",
  // "silent", "hung_step", "gcs_lost".
  void (*on_lost)(void *owner, const char *cause, const char *why);
} mob_engine_events_t;

mob_status mob_engine_start(uv_loop_t *loop, const mob_engine_config_t *config,
                            const mob_engine_events_t *events, void *owner, mob_engine_t **out);
// Aborts what runs, removes actors and placement group, then `done`. Also after on_lost.
void mob_engine_stop(mob_engine_t *engine, void (*done)(void *arg), void *arg);

// ------------------------------------------------------------------------------------- generation

typedef enum mob_finish {
  MOB_FINISH_NONE,
  MOB_FINISH_STOP,   // an eos id or one of stop_token_ids; `stop_id` names it
  MOB_FINISH_LENGTH, // max_tokens or max_len
  MOB_FINISH_ABORT,  // by mob_gen_abort() or shutdown
  MOB_FINISH_LOST,   // the group was lost
} mob_finish_t;

typedef struct mob_gen_request {
  const int32_t *prompt; // copied
  uint32_t prompt_count; // >= 1
  uint32_t max_tokens;   // >= 1; prompt + max_tokens may not exceed max_len
  bool ignore_eos;
  const int32_t *stop_token_ids; // beside the model's eos ids; copied
  uint32_t stop_token_count;
  int priority;            // lower runs first under --scheduling-policy priority
  mob_sampling_t sampling; // stop_ids/stop_id_count are filled by the engine; arrays are copied
  bool draw_seed; // the client asked for no seed: sampling.seed is drawn from the engine's stream
} mob_gen_request_t;

typedef struct mob_gen_events {
  // Before the first token when prompt logprobs were asked for, once per chunk, in order of
  // position.
  void (*on_prompt_logprobs)(void *owner, mob_gen_t *gen, const mob_prompt_logprob_t *items,
                             uint32_t count);
  // One sampled token. A final eos or stop token is delivered too, with `finish` set; the handle is
  // freed after the call with finish != MOB_FINISH_NONE. token is -1 when the end brings no token
  // (abort, lost).
  void (*on_token)(void *owner, mob_gen_t *gen, const mob_sampled_t *token, mob_finish_t finish,
                   const char *why);
} mob_gen_events_t;

mob_status mob_engine_generate(mob_engine_t *engine, const mob_gen_request_t *request,
                               const mob_gen_events_t *events, void *owner, mob_gen_t **out);
// Ends it and frees its pages within a step. No event follows; the handle is dead.
void mob_gen_abort(mob_gen_t *gen);
uint32_t mob_gen_cached_tokens(const mob_gen_t *gen); // prompt tokens found in the prefix cache

typedef struct mob_engine_stats {
  uint32_t running, waiting;
  int64_t pages_total, pages_used;
  uint64_t prompt_tokens, generated_tokens, preemptions, steps;
  uint64_t prefix_queries, prefix_hits; // in tokens
  uint64_t step_p50_us, step_p99_us;    // of the last 1,000
} mob_engine_stats_t;
void mob_engine_stats(const mob_engine_t *engine, mob_engine_stats_t *out);
// Every stage's processes, in order; returns the count.
int mob_engine_stages(const mob_engine_t *engine, mob_stage_health_t *out, int max);

#endif
