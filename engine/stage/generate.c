// Sequences and steps: requests into the scheduler, plans out to the stages, results back to their
// owners.
#include <stdlib.h>
#include <string.h>

#include "engine/stage/engine_internal.h"
#include "runtime/base/clock.h"
#define MOB_LOG_COMPONENT "engine"
#include "runtime/base/log.h"

static uint64_t next_seed(mob_engine_t *e) { // splitmix64
  uint64_t z = (e->seed_state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// --------------------------------------------------------------------------------------- requests

static mob_status check_ids(const char *what, const int32_t *ids, uint32_t count, int vocab) {
  for (uint32_t i = 0; i < count; i++)
    if (ids[i] < 0 || ids[i] >= vocab)
      return mob_fail(MOB_E_INVALID, "%s %d is out of vocabulary (%d ids)", what, ids[i], vocab);
  return MOB_OK;
}

static mob_status check_request(const mob_engine_t *e, const mob_gen_request_t *r) {
  int vocab = mob_model_desc(e->config.model)->vocab;
  MOB_TRY(check_ids("token id", r->prompt, r->prompt_count, vocab));
  MOB_TRY(check_ids("allowed token id", r->sampling.allowed, r->sampling.allowed_count, vocab));
  for (uint32_t i = 0; i < r->sampling.bias_count; i++)
    MOB_TRY(check_ids("token id of logit_bias", &r->sampling.bias[i].token, 1, vocab));
  if (r->sampling.logprobs > MOB_MAX_LOGPROBS || r->sampling.prompt_logprobs > MOB_MAX_LOGPROBS)
    return mob_fail(MOB_E_INVALID, "at most %d logprobs can be had", MOB_MAX_LOGPROBS);
  return MOB_OK;
}

// Ids that the model cannot produce end nothing and would only be refused by the stages.
static uint32_t known_ids(const int32_t *ids, uint32_t count, int vocab, int32_t *out) {
  uint32_t n = 0;
  for (uint32_t i = 0; i < count; i++)
    if (ids[i] >= 0 && ids[i] < vocab) out[n++] = ids[i];
  return n;
}

static void schedule_pump(mob_engine_t *e);

mob_status mob_engine_generate(mob_engine_t *e, const mob_gen_request_t *r,
                               const mob_gen_events_t *events, void *owner, mob_gen_t **out) {
  if (e->state != MOB__ENGINE_READY)
    return mob_fail(MOB_E_UNAVAILABLE, "the engine is not %s",
                    e->state < MOB__ENGINE_READY ? "ready yet" : "running any more");
  MOB_TRY(check_request(e, r));
  const mob_generation_defaults_t *defaults = mob_model_generation(e->config.model);
  int vocab = mob_model_desc(e->config.model)->vocab;
  int32_t eos[MOB_LEN(defaults->eos_ids)];
  int32_t *stops = mob_malloc((r->stop_token_count + 1) * sizeof *stops);
  mob_sched_request_t request = {
      .prompt = r->prompt,
      .prompt_count = r->prompt_count,
      .max_tokens = r->max_tokens,
      .ignore_eos = r->ignore_eos,
      .eos_ids = eos,
      .eos_count = known_ids(defaults->eos_ids, (uint32_t)defaults->eos_count, vocab, eos),
      .stop_ids = stops,
      .stop_count = known_ids(r->stop_token_ids, r->stop_token_count, vocab, stops),
      .priority = r->priority,
      .sampling = r->sampling,
  };
  if (r->draw_seed) request.sampling.seed = next_seed(e);
  mob_gen_t *gen = MOB_NEW(mob_gen_t);
  mob_status status = mob_sched_add(e->sched, &request, gen, &gen->seq);
  free(stops);
  if (status != MOB_OK) {
    free(gen);
    return status;
  }
  gen->engine = e;
  gen->events = *events;
  gen->owner = owner;
  gen->index = e->gens.len;
  *mob_vec_push(&e->gens) = gen;
  schedule_pump(e);
  *out = gen;
  return MOB_OK;
}

// From here on nobody finds it any more; the handle stays until its last event was delivered.
static void unlink_gen(mob_gen_t *gen) {
  mob_engine_t *e = gen->engine;
  gen->ended = true;
  mob_gen_t *last = e->gens.at[--e->gens.len];
  e->gens.at[gen->index] = last;
  last->index = gen->index;
  for (size_t i = 0; i < e->delivering.len; i++)
    if (e->delivering.at[i].owner == gen) e->delivering.at[i].owner = NULL;
}

void mob_gen_abort(mob_gen_t *gen) {
  mob_engine_t *e = gen->engine;
  if (gen->ended) return; // from its own last event
  if (gen->seq) {
    mob_sched_abort(e->sched, gen->seq);
    if (e->state == MOB__ENGINE_READY) schedule_pump(e); // somebody may take its place
  }
  unlink_gen(gen);
  free(gen);
}

uint32_t mob_gen_cached_tokens(const mob_gen_t *gen) {
  return gen->seq ? mob_sched_cached_tokens(gen->seq) : gen->cached_tokens;
}

void mob__engine_end_all(mob_engine_t *e, mob_finish_t finish, const char *why) {
  static const mob_sampled_t none = {.token = -1};
  while (e->gens.len) {
    mob_gen_t *gen = e->gens.at[e->gens.len - 1];
    if (gen->seq) mob_sched_abort(e->sched, gen->seq);
    gen->seq = NULL;
    unlink_gen(gen);
    gen->events.on_token(gen->owner, gen, &none, finish, why);
    free(gen);
  }
}

// ------------------------------------------------------------------------------------- plans, out

// Said at the first preemption and at every 50th: a cache that is too small costs speed quietly.
static void warn_of_preemptions(mob_engine_t *e) {
  mob_sched_stats_t stats;
  mob_sched_stats(e->sched, &stats);
  if (stats.preemptions < e->warn_preemptions) return;
  e->warn_preemptions = stats.preemptions / 50 * 50 + 50;
  MOB_WARN(
      "the KV cache is full: %llu times so far a sequence gave up its pages and is computed again "
      "later. More room (--gpu-memory-utilization) or fewer sequences at once (--max-num-seqs) "
      "help.",
      (unsigned long long)stats.preemptions);
}

void mob__engine_pump(mob_engine_t *e) {
  const mob_step_t *step;
  while (e->state == MOB__ENGINE_READY && (step = mob_sched_plan(e->sched))) {
    e->out.len = 0;
    mob__wire_plan(&e->tables, e->epoch, step, &e->out);
    mob__watch_sent(e, step);
    for (int s = 0; s < e->actors; s++)
      e->transport->send(e->link, s, (mob_bytes_t){e->out.data, e->out.len});
  }
  if (e->state == MOB__ENGINE_READY) warn_of_preemptions(e);
}

static void on_pump(uv_check_t *check) {
  mob_engine_t *e = check->data;
  uv_idle_stop(&e->pump_idle);
  uv_check_stop(&e->pump_check);
  mob__engine_pump(e);
}

static void on_idle(uv_idle_t *idle) {
  (void)idle; // keeps the loop from sleeping before the check
}

// Plans at the end of this turn of the loop, so that requests which came in together start
// together.
static void schedule_pump(mob_engine_t *e) {
  uv_idle_start(&e->pump_idle, on_idle);
  uv_check_start(&e->pump_check, on_pump);
}

// ------------------------------------------------------------------------------------ results, in

static mob_finish_t finish_of(mob_sched_finish_t finish) {
  switch (finish) {
  case MOB_SCHED_STOP:
    return MOB_FINISH_STOP;
  case MOB_SCHED_LENGTH:
    return MOB_FINISH_LENGTH;
  default:
    return MOB_FINISH_NONE;
  }
}

static void deliver(mob_engine_t *e, size_t i) {
  // The owner may abort any sequence from its callback: its entries lose their owner then.
  const mob_sched_event_t event = e->delivering.at[i];
  mob_gen_t *gen = event.owner;
  if (event.prompt_count && gen->events.on_prompt_logprobs)
    gen->events.on_prompt_logprobs(gen->owner, gen, event.prompt, event.prompt_count);
  if (!event.token || i >= e->delivering.len || e->delivering.at[i].owner != gen) return;
  mob_finish_t finish = finish_of(event.finish);
  if (finish != MOB_FINISH_NONE) unlink_gen(gen);
  gen->events.on_token(gen->owner, gen, event.token, finish, NULL);
  if (finish != MOB_FINISH_NONE) free(gen);
}

void mob__engine_result(mob_engine_t *e, int stage, const Mobula__StepResult *message) {
  if (message->epoch != e->epoch || e->state != MOB__ENGINE_READY) return;
  mob__watch_acked(e, stage, message->id);
  if (stage != e->actors - e->parts) return; // that with rank 0 of the last stage
  mob_arena_t arena = {0};
  mob_step_result_t result;
  const mob_sched_event_t *events = NULL;
  uint32_t count = 0;
  mob_status status = mob__wire_read_result(message, &arena, &result);
  if (status == MOB_OK) status = mob_sched_complete(e->sched, &result, &events, &count);
  if (status != MOB_OK) {
    mob__engine_lose(e, stage, "actor_died", mob_errmsg()); // it is not to be trusted
    mob_arena_free(&arena);
    return;
  }
  e->delivering.len = 0;
  for (uint32_t i = 0; i < count; i++) {
    *mob_vec_push(&e->delivering) = events[i];
    mob_gen_t *gen = events[i].owner;
    gen->cached_tokens = events[i].cached_tokens;
    if (events[i].finish != MOB_SCHED_RUNNING) gen->seq = NULL;
  }
  mob__engine_pump(e); // the stages first, the clients then
  for (size_t i = 0; i < e->delivering.len; i++)
    if (e->delivering.at[i].owner) deliver(e, i);
  e->delivering.len = 0;
  mob_arena_free(&arena);
}
