// Results of steps as messages.
#include "engine/stage/wire.h"

static Mobula__TokenLogprob *put_logprob(mob_arena_t *arena, const mob_token_logprob_t *l) {
  Mobula__TokenLogprob *m = MOB_ARENA_NEW(arena, Mobula__TokenLogprob);
  mobula__token_logprob__init(m);
  m->token = (uint32_t)l->token;
  m->logprob = l->logprob;
  m->rank = l->rank;
  return m;
}

static Mobula__TokenLogprob **put_logprobs(mob_arena_t *arena, const mob_token_logprob_t *l,
                                           uint32_t n) {
  Mobula__TokenLogprob **list = MOB_ARENA_ARRAY(arena, Mobula__TokenLogprob *, n + 1);
  for (uint32_t i = 0; i < n; i++) list[i] = put_logprob(arena, &l[i]);
  return list;
}

static void put_sampled(mob_arena_t *arena, const mob_sampled_t *s, Mobula__SampledToken *m) {
  mobula__sampled_token__init(m);
  m->slot = s->slot;
  m->token = (uint32_t)s->token;
  // Without logprobs nothing of it is worth the bytes.
  if (s->chosen.rank > 0) m->chosen = put_logprob(arena, &s->chosen);
  m->n_top = s->top_count;
  m->top = put_logprobs(arena, s->top, s->top_count);
}

void mob__wire_result(uint64_t epoch, const mob_step_result_t *result, mob_buf_t *out) {
  mob_arena_t arena = {0};
  Mobula__StepResult m = MOBULA__STEP_RESULT__INIT;
  m.epoch = epoch;
  m.id = result->id;
  m.compute_ns = result->compute_ns;
  m.n_sampled = result->sampled_count;
  m.sampled = MOB_ARENA_ARRAY(&arena, Mobula__SampledToken *, result->sampled_count + 1);
  for (uint32_t i = 0; i < result->sampled_count; i++) {
    m.sampled[i] = MOB_ARENA_NEW(&arena, Mobula__SampledToken);
    put_sampled(&arena, &result->sampled[i], m.sampled[i]);
  }
  m.n_prompt = result->prompt_count;
  m.prompt = MOB_ARENA_ARRAY(&arena, Mobula__PromptLogprob *, result->prompt_count + 1);
  for (uint32_t i = 0; i < result->prompt_count; i++) {
    const mob_prompt_logprob_t *p = &result->prompt[i];
    Mobula__PromptLogprob *q = MOB_ARENA_NEW(&arena, Mobula__PromptLogprob);
    mobula__prompt_logprob__init(q);
    q->slot = p->slot;
    q->position = p->position;
    q->chosen = put_logprob(&arena, &p->chosen);
    q->n_top = p->top_count;
    q->top = put_logprobs(&arena, p->top, p->top_count);
    m.prompt[i] = q;
  }
  Mobula__StageUp up = MOBULA__STAGE_UP__INIT;
  up.message_case = MOBULA__STAGE_UP__MESSAGE_RESULT;
  up.result = &m;
  mob__wire_up(&up, out);
  mob_arena_free(&arena);
}

static mob_token_logprob_t read_logprob(const Mobula__TokenLogprob *m) {
  if (!m) return (mob_token_logprob_t){0};
  return (mob_token_logprob_t){(int32_t)m->token, m->logprob, m->rank};
}

static const mob_token_logprob_t *read_logprobs(mob_arena_t *arena, Mobula__TokenLogprob *const *m,
                                                size_t n) {
  mob_token_logprob_t *list = MOB_ARENA_ARRAY(arena, mob_token_logprob_t, n + 1);
  for (size_t i = 0; i < n; i++) list[i] = read_logprob(m[i]);
  return list;
}

mob_status mob__wire_read_result(const Mobula__StepResult *m, mob_arena_t *arena,
                                 mob_step_result_t *out) {
  mob_sampled_t *sampled = MOB_ARENA_ARRAY(arena, mob_sampled_t, m->n_sampled + 1);
  for (size_t i = 0; i < m->n_sampled; i++) {
    const Mobula__SampledToken *s = m->sampled[i];
    if (s->token > INT32_MAX)
      return mob_fail(MOB_E_FORMAT, "step %llu: sampled token %u", (unsigned long long)m->id,
                      s->token);
    sampled[i] = (mob_sampled_t){.slot = s->slot,
                                 .token = (int32_t)s->token,
                                 .chosen = read_logprob(s->chosen),
                                 .top = read_logprobs(arena, s->top, s->n_top),
                                 .top_count = (uint32_t)s->n_top};
  }
  mob_prompt_logprob_t *prompt = MOB_ARENA_ARRAY(arena, mob_prompt_logprob_t, m->n_prompt + 1);
  for (size_t i = 0; i < m->n_prompt; i++) {
    const Mobula__PromptLogprob *p = m->prompt[i];
    prompt[i] = (mob_prompt_logprob_t){.slot = p->slot,
                                       .position = p->position,
                                       .chosen = read_logprob(p->chosen),
                                       .top = read_logprobs(arena, p->top, p->n_top),
                                       .top_count = (uint32_t)p->n_top};
  }
  *out = (mob_step_result_t){.id = m->id,
                             .sampled = sampled,
                             .sampled_count = (uint32_t)m->n_sampled,
                             .prompt = prompt,
                             .prompt_count = (uint32_t)m->n_prompt,
                             .compute_ns = m->compute_ns};
  return MOB_OK;
}
