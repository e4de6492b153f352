#include "tests/fuzz/engine_double.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#include "runtime/base/vec.h"

struct mob_gen {
  mob_engine_t *engine;
  const mob_gen_events_t *events;
  void *owner;
  uint32_t prompt_count, max_tokens, generated;
  int32_t logprobs, prompt_logprobs;
  bool told_prompt;
  int32_t *prompt;
};

struct mob_engine {
  int max_len, vocab;
  mob_status refuse;
  MOB_VEC(mob_gen_t *) gens;
};

mob_engine_t *engine_double_new(int max_len, int vocab) {
  mob_engine_t *engine = MOB_NEW(mob_engine_t);
  engine->max_len = max_len;
  engine->vocab = vocab;
  return engine;
}

void engine_double_free(mob_engine_t *engine) {
  MOB_ASSERT(engine->gens.len == 0);
  mob_vec_free(&engine->gens);
  free(engine);
}

size_t engine_double_open(const mob_engine_t *engine) {
  return engine->gens.len;
}

void engine_double_refuse(mob_engine_t *engine, mob_status status) {
  engine->refuse = status;
}

static void check_sampling(const mob_engine_t *engine, const mob_sampling_t *s) {
  MOB_ASSERT(s->temperature >= 0 && isfinite(s->temperature) && s->top_p > 0 && s->top_p <= 1 &&
             s->min_p >= 0 && s->min_p <= 1);
  MOB_ASSERT(s->repetition_penalty > 0 && isfinite(s->frequency_penalty) &&
             isfinite(s->presence_penalty));
  MOB_ASSERT(s->logprobs >= -1 && s->logprobs <= MOB_MAX_LOGPROBS && s->prompt_logprobs >= -1 &&
             s->prompt_logprobs <= MOB_MAX_LOGPROBS);
  for (uint32_t i = 0; i < s->bias_count; i++)
    MOB_ASSERT(s->bias[i].token >= 0 && s->bias[i].token < engine->vocab);
  for (uint32_t i = 0; i < s->allowed_count; i++)
    MOB_ASSERT(s->allowed[i] >= 0 && s->allowed[i] < engine->vocab);
}

mob_status mob_engine_generate(mob_engine_t *engine, const mob_gen_request_t *request,
                               const mob_gen_events_t *events, void *owner, mob_gen_t **out) {
  if (engine->refuse != MOB_OK) return mob_fail(engine->refuse, "the engine has no room");
  MOB_ASSERT(request->prompt_count >= 1 && request->max_tokens >= 1);
  MOB_ASSERT((int64_t)request->prompt_count + request->max_tokens <= engine->max_len);
  for (uint32_t i = 0; i < request->prompt_count; i++)
    MOB_ASSERT(request->prompt[i] >= 0 && request->prompt[i] < engine->vocab);
  check_sampling(engine, &request->sampling);
  mob_gen_t *gen = MOB_NEW(mob_gen_t);
  gen->engine = engine;
  gen->events = events;
  gen->owner = owner;
  gen->prompt_count = request->prompt_count;
  gen->max_tokens = request->max_tokens;
  gen->logprobs = request->sampling.logprobs;
  gen->prompt_logprobs = request->sampling.prompt_logprobs;
  gen->prompt = MOB_NEW_ARRAY(int32_t, request->prompt_count);
  memcpy(gen->prompt, request->prompt, request->prompt_count * sizeof *gen->prompt);
  *mob_vec_push(&engine->gens) = gen;
  *out = gen;
  return MOB_OK;
}

static void forget(mob_gen_t *gen) {
  mob_engine_t *engine = gen->engine;
  for (size_t i = 0; i < engine->gens.len; i++) {
    if (engine->gens.at[i] != gen) continue;
    mob_vec_remove(&engine->gens, i);
    free(gen->prompt);
    free(gen);
    return;
  }
  MOB_ASSERT(!"a generation that there is");
}

void mob_gen_abort(mob_gen_t *gen) {
  forget(gen);
}

uint32_t mob_gen_cached_tokens(const mob_gen_t *gen) {
  return gen->prompt_count / 2;
}

// `count` likely ones beside `token`.
static void fill_top(const mob_engine_t *engine, int32_t token, int32_t count,
                     mob_token_logprob_t *top) {
  for (int32_t i = 0; i < count; i++)
    top[i] = (mob_token_logprob_t){(token + i) % engine->vocab, i ? -9999.0f : -0.25f, i + 1};
}

static void tell_prompt(mob_gen_t *gen) {
  gen->told_prompt = true;
  if (gen->prompt_logprobs < 0 || gen->prompt_count < 2) return;
  mob_token_logprob_t top[MOB_MAX_LOGPROBS];
  for (uint32_t i = 1; i < gen->prompt_count; i++) {
    fill_top(gen->engine, gen->prompt[i], gen->prompt_logprobs, top);
    mob_prompt_logprob_t item = {
        0, i, {gen->prompt[i], -1.5f, 2}, top, (uint32_t)gen->prompt_logprobs};
    gen->events->on_prompt_logprobs(gen->owner, gen, &item, 1);
  }
}

void engine_double_token(mob_engine_t *engine, size_t which, int32_t token, mob_finish_t finish) {
  if (engine->gens.len == 0) return;
  mob_gen_t *gen = engine->gens.at[which % engine->gens.len];
  if (token < 0) {
    const mob_gen_events_t *events = gen->events;
    void *owner = gen->owner;
    events->on_token(owner, gen, NULL, finish, "it was lost");
    forget(gen); // the handle is freed after the call
    return;
  }
  if (!gen->told_prompt) tell_prompt(gen);
  mob_token_logprob_t top[MOB_MAX_LOGPROBS];
  mob_sampled_t sampled = {.token = token % engine->vocab};
  if (gen->logprobs >= 0) {
    sampled.chosen = (mob_token_logprob_t){sampled.token, -0.25f, 1};
    fill_top(engine, sampled.token, gen->logprobs, top);
    sampled.top = top;
    sampled.top_count = (uint32_t)gen->logprobs;
  }
  if (++gen->generated == gen->max_tokens && finish == MOB_FINISH_NONE) finish = MOB_FINISH_LENGTH;
  size_t before = engine->gens.len;
  gen->events->on_token(gen->owner, gen, &sampled, finish, "");
  if (finish != MOB_FINISH_NONE) {
    forget(gen);
    MOB_ASSERT(engine->gens.len < before);
  }
}

void mob_engine_stats(const mob_engine_t *engine, mob_engine_stats_t *out) {
  *out = (mob_engine_stats_t){.running = (uint32_t)engine->gens.len, .pages_total = 10};
}

int mob_engine_stages(const mob_engine_t *engine, mob_stage_health_t *out, int max) {
  (void)engine;
  if (max < 1) return 0;
  *out = (mob_stage_health_t){
      .last_layer = 4, .ranks = 1, .node_ip = "127.0.0.1", .pid = 1, .alive = true};
  return 1;
}
