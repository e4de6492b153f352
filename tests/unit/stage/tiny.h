// A tiny DeepSeek-V3 model with made-up weights, and an engine on it that a test can drive.
#ifndef TEST_STAGE_TINY_H
#define TEST_STAGE_TINY_H

#include "engine/stage/engine_internal.h"

enum { TINY_MOST = 40 };

// Writes config.json to a new folder, opens it, and removes the folder at tiny_close_model().
typedef struct tiny_model {
  char dir[64];
  mob_model_t *model;
} tiny_model_t;
tiny_model_t tiny_open_model(void);
void tiny_close_model(tiny_model_t *model);

typedef struct tiny_gen {
  struct tiny *tiny;
  mob_gen_t *gen; // NULL when ended
  int32_t tokens[512];
  uint32_t count;
  mob_finish_t finish;
  uint32_t cached;
  uint32_t prompt_logprobs; // positions seen
  uint32_t abort_after;     // tokens; 0: never
  char why[512];
} tiny_gen_t;

typedef struct tiny {
  uv_loop_t loop;
  tiny_model_t model;
  mob_engine_t *engine;
  bool ready, lost, stopped, timeout;
  int alive; // generations
  char cause[32], why[1024];
  mob_engine_info_t info;
  tiny_gen_t gens[TINY_MOST];
  int gen_count;
} tiny_t;

mob_engine_config_t tiny_config(void); // tp 1, pp 1, float32, 64 pages
// Starts and waits until it is ready or lost.
void tiny_start(tiny_t *t, mob_engine_config_t config);
void tiny_start_on(tiny_t *t, mob_engine_config_t config, const mob_backend_t *backend);
void tiny_stop(tiny_t *t);
// Turns the loop until *flag, or fails the test after 60 s.
void tiny_wait(tiny_t *t, const bool *flag);
// A request with a prompt of `count` tokens made from `kind`.
tiny_gen_t *tiny_add(tiny_t *t, uint32_t count, uint32_t kind, uint32_t max_tokens);
tiny_gen_t *tiny_request(tiny_t *t, const mob_gen_request_t *request);
void tiny_wait_all(tiny_t *t); // until no generation is alive

#endif
