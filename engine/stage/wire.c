#include "engine/stage/wire.h"

#include <stdlib.h>
#include <string.h>

void mob__tables_init(mob__tables_t *tables, uint32_t slots) {
  tables->slot = MOB_NEW_ARRAY(mob__table_t, slots);
  tables->count = slots;
}

void mob__tables_free(mob__tables_t *tables) {
  for (uint32_t i = 0; i < tables->count; i++) mob_vec_free(&tables->slot[i].pages);
  free(tables->slot);
  *tables = (mob__tables_t){0};
}

static void pack(const ProtobufCMessage *message, mob_buf_t *out) {
  size_t size = protobuf_c_message_get_packed_size(message);
  mob_buf_reserve(out, size);
  protobuf_c_message_pack(message, out->data + out->len);
  out->len += size;
}

void mob__wire_down(const Mobula__StageDown *message, mob_buf_t *out) {
  pack(&message->base, out);
}

void mob__wire_up(const Mobula__StageUp *message, mob_buf_t *out) {
  pack(&message->base, out);
}

// Array of pointers to `count` messages of one type, as protobuf-c wants repeated fields.
#define POINTERS(arena, type, var, list, count)                                                    \
  type *var = MOB_ARENA_ARRAY(arena, type, (count) + 1);                                           \
  type **list = MOB_ARENA_ARRAY(arena, type *, (count) + 1);                                       \
  for (size_t i_ = 0; i_ < (count); i_++) list[i_] = &var[i_]

// ---------------------------------------------------------------------------------- plan, sending

static Mobula__Sampling *put_sampling(mob_arena_t *arena, const mob_sampling_t *s) {
  Mobula__Sampling *m = MOB_ARENA_NEW(arena, Mobula__Sampling);
  mobula__sampling__init(m);
  m->temperature = s->temperature;
  m->top_p = s->top_p;
  m->min_p = s->min_p;
  m->top_k = s->top_k;
  m->repetition_penalty = s->repetition_penalty;
  m->frequency_penalty = s->frequency_penalty;
  m->presence_penalty = s->presence_penalty;
  m->seed = s->seed;
  m->min_tokens = s->min_tokens;
  m->n_stop_ids = s->stop_id_count;
  m->stop_ids = (uint32_t *)s->stop_ids;
  POINTERS(arena, Mobula__LogitBias, bias, bias_list, s->bias_count);
  for (uint32_t i = 0; i < s->bias_count; i++) {
    mobula__logit_bias__init(&bias[i]);
    bias[i].token = (uint32_t)s->bias[i].token;
    bias[i].bias = s->bias[i].bias;
  }
  m->n_bias = s->bias_count;
  m->bias = bias_list;
  m->n_allowed = s->allowed_count;
  m->allowed = (uint32_t *)s->allowed;
  m->logprobs_plus_1 = (uint32_t)(s->logprobs + 1);
  m->prompt_logprobs_plus_1 = (uint32_t)(s->prompt_logprobs + 1);
  return m;
}

static void put_sequence(mob__tables_t *tables, const mob_seq_step_t *q, Mobula__SequenceStep *m) {
  mobula__sequence_step__init(m);
  m->slot = q->slot;
  m->start = q->start;
  m->sample = q->sample;
  m->previous = q->tokens[0] == MOB_TOKEN_PREVIOUS;
  if (!m->previous) {
    m->n_tokens = q->count;
    m->tokens = (uint32_t *)q->tokens;
  }
  mob__table_t *t = &tables->slot[q->slot];
  uint32_t keep = 0;
  while (keep < t->pages.len && keep < q->page_count && t->pages.at[keep] == q->pages[keep]) keep++;
  m->keep_pages = keep;
  m->n_new_pages = q->page_count - keep;
  m->new_pages = (uint32_t *)q->pages + keep;
  t->pages.len = keep;
  for (uint32_t i = keep; i < q->page_count; i++) *mob_vec_push(&t->pages) = q->pages[i];
}

void mob__wire_plan(mob__tables_t *tables, uint64_t epoch, const mob_step_t *step, mob_buf_t *out) {
  mob_arena_t arena = {0};
  Mobula__StepPlan plan = MOBULA__STEP_PLAN__INIT;
  plan.epoch = epoch;
  plan.id = step->id;
  POINTERS(&arena, Mobula__OpenSequence, open, open_list, step->open_count);
  for (uint32_t i = 0; i < step->open_count; i++) {
    mobula__open_sequence__init(&open[i]);
    open[i].slot = step->open[i].slot;
    open[i].sampling = put_sampling(&arena, &step->open[i].sampling);
    open[i].n_prompt = step->open[i].prompt_count;
    open[i].prompt = (uint32_t *)step->open[i].prompt;
    open[i].generated = step->open[i].generated;
    tables->slot[open[i].slot].pages.len = 0;
  }
  plan.n_open = step->open_count;
  plan.open = open_list;
  POINTERS(&arena, Mobula__SequenceStep, seqs, seq_list, step->seq_count);
  for (uint32_t i = 0; i < step->seq_count; i++) put_sequence(tables, &step->seqs[i], &seqs[i]);
  plan.n_sequences = step->seq_count;
  plan.sequences = seq_list;
  plan.n_close = step->close_count;
  plan.close = (uint32_t *)step->close;
  Mobula__StageDown down = MOBULA__STAGE_DOWN__INIT;
  down.message_case = MOBULA__STAGE_DOWN__MESSAGE_PLAN;
  down.plan = &plan;
  mob__wire_down(&down, out);
  mob_arena_free(&arena);
}

// ---------------------------------------------------------------------------------- plan, reading

typedef struct reader {
  mob__tables_t *tables;
  const mob__step_limits_t *limits;
  mob_arena_t *arena;
  uint64_t id;
} reader_t;

#define BAD(r, ...) bad((r)->id, __VA_ARGS__)
static mob_status bad(uint64_t id, const char *what, uint64_t value, uint64_t limit) {
  return mob_fail(MOB_E_FORMAT, "step %llu: %s %llu (limit %llu)", (unsigned long long)id, what,
                  (unsigned long long)value, (unsigned long long)limit);
}

static mob_status check_ids(const reader_t *r, const uint32_t *ids, size_t n, const char *what) {
  for (size_t i = 0; i < n; i++)
    if (ids[i] >= r->limits->vocab) return BAD(r, what, ids[i], r->limits->vocab);
  return MOB_OK;
}

static mob_status read_sampling(const reader_t *r, const Mobula__Sampling *m, mob_sampling_t *out) {
  *out = (mob_sampling_t){
      .temperature = m->temperature,
      .top_p = m->top_p,
      .min_p = m->min_p,
      .top_k = m->top_k,
      .repetition_penalty = m->repetition_penalty,
      .frequency_penalty = m->frequency_penalty,
      .presence_penalty = m->presence_penalty,
      .seed = m->seed,
      .min_tokens = m->min_tokens,
      .stop_ids = (const int32_t *)m->stop_ids,
      .stop_id_count = (uint32_t)m->n_stop_ids,
      .allowed = (const int32_t *)m->allowed,
      .allowed_count = (uint32_t)m->n_allowed,
      .logprobs = (int32_t)m->logprobs_plus_1 - 1,
      .prompt_logprobs = (int32_t)m->prompt_logprobs_plus_1 - 1,
  };
  if (m->logprobs_plus_1 > MOB_MAX_LOGPROBS + 1)
    return BAD(r, "logprobs", m->logprobs_plus_1 - 1, MOB_MAX_LOGPROBS);
  if (m->prompt_logprobs_plus_1 > MOB_MAX_LOGPROBS + 1)
    return BAD(r, "prompt logprobs", m->prompt_logprobs_plus_1 - 1, MOB_MAX_LOGPROBS);
  MOB_TRY(check_ids(r, m->stop_ids, m->n_stop_ids, "stop id"));
  MOB_TRY(check_ids(r, m->allowed, m->n_allowed, "allowed id"));
  mob_logit_bias_t *bias = MOB_ARENA_ARRAY(r->arena, mob_logit_bias_t, m->n_bias + 1);
  for (size_t i = 0; i < m->n_bias; i++) {
    MOB_TRY(check_ids(r, &m->bias[i]->token, 1, "biased id"));
    bias[i] = (mob_logit_bias_t){(int32_t)m->bias[i]->token, m->bias[i]->bias};
  }
  out->bias = bias;
  out->bias_count = (uint32_t)m->n_bias;
  return MOB_OK;
}

static mob_status read_open(const reader_t *r, const Mobula__OpenSequence *m, mob_seq_open_t *out) {
  if (m->slot >= r->tables->count) return BAD(r, "slot", m->slot, r->tables->count);
  mob__table_t *t = &r->tables->slot[m->slot];
  if (t->open) return BAD(r, "opens an open slot", m->slot, r->tables->count);
  if (!m->sampling || !m->n_prompt || m->n_prompt >= r->limits->max_len)
    return BAD(r, "prompt length", m->n_prompt, r->limits->max_len);
  if (m->generated >= m->n_prompt) return BAD(r, "generated ids", m->generated, m->n_prompt);
  MOB_TRY(check_ids(r, m->prompt, m->n_prompt, "prompt id"));
  t->open = true;
  t->pages.len = 0;
  *out = (mob_seq_open_t){.slot = m->slot,
                          .prompt = (const int32_t *)m->prompt,
                          .prompt_count = (uint32_t)m->n_prompt,
                          .generated = m->generated};
  return read_sampling(r, m->sampling, &out->sampling);
}

static mob_status read_table(const reader_t *r, const Mobula__SequenceStep *m, uint32_t tokens) {
  mob__table_t *t = &r->tables->slot[m->slot];
  if (m->keep_pages > t->pages.len) return BAD(r, "keeps pages", m->keep_pages, t->pages.len);
  uint64_t need = ((uint64_t)tokens + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS;
  if (m->keep_pages + m->n_new_pages != need)
    return BAD(r, "pages of a sequence", m->keep_pages + m->n_new_pages, need);
  t->pages.len = m->keep_pages;
  for (size_t i = 0; i < m->n_new_pages; i++) {
    if (m->new_pages[i] >= (uint64_t)r->limits->pages)
      return BAD(r, "page", m->new_pages[i], (uint64_t)r->limits->pages);
    *mob_vec_push(&t->pages) = m->new_pages[i];
  }
  return MOB_OK;
}

static const int32_t previous_token = MOB_TOKEN_PREVIOUS;

static mob_status read_sequence(const reader_t *r, const Mobula__SequenceStep *m, uint32_t row,
                                mob_seq_step_t *out) {
  if (m->slot >= r->tables->count) return BAD(r, "slot", m->slot, r->tables->count);
  mob__table_t *t = &r->tables->slot[m->slot];
  if (!t->open) return BAD(r, "uses a closed slot", m->slot, r->tables->count);
  uint64_t count = m->previous ? 1 : m->n_tokens;
  if (count == 0 || (m->previous && m->n_tokens) || row + count > r->limits->max_tokens)
    return BAD(r, "rows", row + count, r->limits->max_tokens);
  if (m->start + count > r->limits->max_len)
    return BAD(r, "length of a sequence", m->start + count, r->limits->max_len);
  MOB_TRY(check_ids(r, m->tokens, m->n_tokens, "token id"));
  MOB_TRY(read_table(r, m, (uint32_t)(m->start + count)));
  *out = (mob_seq_step_t){
      .slot = m->slot,
      .row = row,
      .start = m->start,
      .count = (uint32_t)count,
      .tokens = m->previous ? &previous_token : (const int32_t *)m->tokens,
      .pages = t->pages.at,
      .page_count = (uint32_t)t->pages.len,
      .sample = m->sample,
  };
  return MOB_OK;
}

static mob_status check_distinct(const reader_t *r, const mob_seq_step_t *seqs, size_t n) {
  uint8_t *seen = MOB_ARENA_ARRAY(r->arena, uint8_t, r->tables->count);
  for (size_t i = 0; i < n; i++) {
    if (seen[seqs[i].slot]) return BAD(r, "two parts of slot", seqs[i].slot, r->tables->count);
    seen[seqs[i].slot] = 1;
  }
  return MOB_OK;
}

mob_status mob__wire_read_plan(mob__tables_t *tables, const mob__step_limits_t *limits,
                               const Mobula__StepPlan *plan, mob_arena_t *arena, mob_step_t *out) {
  reader_t reader = {.tables = tables, .limits = limits, .arena = arena, .id = plan->id};
  reader_t *r = &reader;
  mob_seq_open_t *open = MOB_ARENA_ARRAY(arena, mob_seq_open_t, plan->n_open + 1);
  for (size_t i = 0; i < plan->n_open; i++) MOB_TRY(read_open(r, plan->open[i], &open[i]));
  mob_seq_step_t *seqs = MOB_ARENA_ARRAY(arena, mob_seq_step_t, plan->n_sequences + 1);
  uint32_t rows = 0;
  for (size_t i = 0; i < plan->n_sequences; i++) {
    MOB_TRY(read_sequence(r, plan->sequences[i], rows, &seqs[i]));
    rows += seqs[i].count;
  }
  if (rows == 0) return BAD(r, "rows", 0, limits->max_tokens);
  MOB_TRY(check_distinct(r, seqs, plan->n_sequences));
  for (size_t i = 0; i < plan->n_close; i++) {
    if (plan->close[i] >= tables->count || !tables->slot[plan->close[i]].open)
      return BAD(r, "closes a closed slot", plan->close[i], tables->count);
    tables->slot[plan->close[i]].open = false;
  }
  *out = (mob_step_t){
      .id = plan->id,
      .token_count = rows,
      .seq_count = (uint32_t)plan->n_sequences,
      .open_count = (uint32_t)plan->n_open,
      .close_count = (uint32_t)plan->n_close,
      .open = open,
      .seqs = seqs,
      .close = plan->close,
  };
  return MOB_OK;
}
