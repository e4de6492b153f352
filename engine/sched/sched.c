// Sequences: their arrival, what completed steps bring them, and their end. Planning is in plan.c.
#include "engine/sched/internal.h"

#include <stdlib.h>
#include <string.h>

static mob_status check_config(const mob_sched_config_t *c) {
  if (c->pages < 1 || c->pages >= MOB_PAGE_NONE)
    return mob_fail(MOB_E_INVALID, "a KV cache of %lld pages", (long long)c->pages);
  if (c->max_seqs < 1 || c->max_tokens < 1 || c->max_len < 2 || c->stages < 1 || c->depth < 1)
    return mob_fail(MOB_E_INVALID,
                    "scheduler limits: max_seqs %d, max_tokens %d, max_len %d, stages %d, depth %d",
                    c->max_seqs, c->max_tokens, c->max_len, c->stages, c->depth);
  return MOB_OK;
}

mob_status mob_sched_new(const mob_sched_config_t *config, mob_sched_t **out) {
  MOB_TRY(check_config(config));
  mob_sched_t *s = MOB_NEW(mob_sched_t);
  s->config = *config;
  mob_pages_init(&s->pages, (uint32_t)config->pages);
  for (uint32_t i = mob_sched_slots(config); i-- > 0;) *mob_vec_push(&s->free_slots) = i;
  s->batch_size = MOB_NEW_ARRAY(uint32_t, (size_t)config->stages);
  s->flights = MOB_NEW_ARRAY(mob__flight_t, (size_t)config->depth);
  s->next_step = 1;
  *out = s;
  return MOB_OK;
}

static void free_seq(mob_sched_seq_t *seq) {
  mob_vec_free(&seq->tokens);
  mob_vec_free(&seq->pages);
  free((void *)seq->sampling.bias);
  free((void *)seq->sampling.allowed);
  free(seq->stops);
  free(seq);
}

static void free_seqs(mob__seqs_t *list) {
  for (size_t i = 0; i < list->len; i++) free_seq(list->at[i]);
  mob_vec_free(list);
}

void mob_sched_free(mob_sched_t *s) {
  if (!s) return;
  free_seqs(&s->running);
  free_seqs(&s->waiting);
  free_seqs(&s->preempting);
  free_seqs(&s->ended);
  for (int i = 0; i < s->config.depth; i++) mob_vec_free(&s->flights[i].rows);
  free(s->flights);
  free(s->batch_size);
  mob_vec_free(&s->free_slots);
  mob_vec_free(&s->closing);
  mob_vec_free(&s->open);
  mob_vec_free(&s->seqs);
  mob_vec_free(&s->close);
  mob_vec_free(&s->events);
  mob_pages_free(&s->pages);
  free(s);
}

// ----------------------------------------------------------------------------------- ranked lists

bool mob__ranks_before(const mob_sched_t *s, const mob_sched_seq_t *a, const mob_sched_seq_t *b) {
  if (s->config.policy == MOB_SCHED_PRIORITY && a->priority != b->priority)
    return a->priority < b->priority;
  return a->arrival < b->arrival;
}

void mob__insert_ranked(mob_sched_t *s, mob__seqs_t *list, mob_sched_seq_t *seq) {
  *mob_vec_push(list) = seq;
  size_t i = list->len - 1;
  for (; i > 0 && mob__ranks_before(s, seq, list->at[i - 1]); i--) list->at[i] = list->at[i - 1];
  list->at[i] = seq;
}

void mob__remove(mob__seqs_t *list, const mob_sched_seq_t *seq) {
  for (size_t i = 0; i < list->len; i++) {
    if (list->at[i] != seq) continue;
    mob_vec_remove(list, i);
    return;
  }
  MOB_ASSERT(!"the sequence is not in its list");
}

// ---------------------------------------------------------------------------------------- arrival

static void *copy(const void *data, size_t count, size_t size) {
  if (!count) return NULL;
  void *mine = mob_malloc(count * size);
  memcpy(mine, data, count * size);
  return mine;
}

static void copy_sampling(mob_sched_seq_t *seq, const mob_sched_request_t *r) {
  seq->sampling = r->sampling;
  seq->sampling.bias = copy(r->sampling.bias, r->sampling.bias_count, sizeof *r->sampling.bias);
  seq->sampling.allowed = copy(r->sampling.allowed, r->sampling.allowed_count, sizeof(int32_t));
  seq->stop_count = r->eos_count + r->stop_count;
  seq->stops = mob_malloc((seq->stop_count + 1) * sizeof(int32_t));
  if (r->eos_count) memcpy(seq->stops, r->eos_ids, r->eos_count * sizeof(int32_t));
  if (r->stop_count)
    memcpy(seq->stops + r->eos_count, r->stop_ids, r->stop_count * sizeof(int32_t));
  seq->check_from = r->ignore_eos ? r->eos_count : 0;
  // The min_tokens mask covers eos ids even when they do not end the sequence, as in vLLM.
  seq->sampling.stop_ids = seq->stops;
  seq->sampling.stop_id_count = seq->stop_count;
}

mob_status mob_sched_add(mob_sched_t *s, const mob_sched_request_t *r, void *owner,
                         mob_sched_seq_t **out) {
  if (r->prompt_count < 1) return mob_fail(MOB_E_INVALID, "the prompt has no tokens");
  if (r->max_tokens < 1) return mob_fail(MOB_E_INVALID, "max_tokens must be at least 1");
  if (r->prompt_count >= (uint32_t)s->config.max_len)
    return mob_fail(MOB_E_INVALID,
                    "the prompt has %u tokens; with at least one to generate that is more than the "
                    "maximum model length of %d",
                    r->prompt_count, s->config.max_len);
  // The last sampled token is never computed, so a sequence may be one longer than the cache.
  uint64_t capacity = (uint64_t)s->config.pages * MOB_PAGE_TOKENS;
  if (r->prompt_count > capacity)
    return mob_fail(MOB_E_INVALID, "the prompt has %u tokens, the whole KV cache holds %llu",
                    r->prompt_count, (unsigned long long)capacity);

  mob_sched_seq_t *seq = MOB_NEW(mob_sched_seq_t);
  seq->owner = owner;
  seq->priority = r->priority;
  seq->arrival = s->next_arrival++;
  seq->slot = MOB__NO_SLOT;
  for (uint32_t i = 0; i < r->prompt_count; i++) *mob_vec_push(&seq->tokens) = r->prompt[i];
  seq->prompt_count = r->prompt_count;
  uint64_t room = (uint64_t)s->config.max_len - r->prompt_count;
  if (room > capacity + 1 - r->prompt_count) room = capacity + 1 - r->prompt_count;
  seq->max_outputs = r->max_tokens < room ? r->max_tokens : (uint32_t)room;
  copy_sampling(seq, r);
  mob__insert_ranked(s, &s->waiting, seq);
  *out = seq;
  return MOB_OK;
}

uint32_t mob_sched_cached_tokens(const mob_sched_seq_t *seq) {
  return seq->cached_tokens;
}

// -------------------------------------------------------------------------------------------- end

static void release_pages(mob_sched_t *s, mob_sched_seq_t *seq) {
  // Last page first, so that the end of a chain leaves the prefix cache before its beginning.
  for (size_t i = seq->pages.len; i-- > 0;) mob_pages_unref(&s->pages, seq->pages.at[i]);
  seq->pages.len = 0;
  seq->published = 0;
  seq->chain = (mob_chain_t){0};
  seq->planned = seq->computed = 0;
}

void mob__settle(mob_sched_t *s, mob_sched_seq_t *seq) {
  if (seq->in_flight > 0) return;
  if (seq->state == MOB__PREEMPTING) {
    mob__remove(&s->preempting, seq);
    release_pages(s, seq);
    seq->state = MOB__WAITING;
    mob__insert_ranked(s, &s->waiting, seq);
  } else if (seq->state == MOB__ENDED) {
    mob__remove(&s->ended, seq);
    release_pages(s, seq);
    free_seq(seq);
  }
}

static void leave_running(mob_sched_t *s, mob_sched_seq_t *seq) {
  mob__remove(&s->running, seq);
  s->batch_size[seq->batch]--;
}

static void give_slot_back(mob_sched_t *s, mob_sched_seq_t *seq) {
  if (seq->slot == MOB__NO_SLOT) return;
  *mob_vec_push(&s->closing) = seq->slot;
  s->slots_used--;
  seq->slot = MOB__NO_SLOT;
}

void mob__preempt(mob_sched_t *s, mob_sched_seq_t *seq) {
  leave_running(s, seq);
  give_slot_back(s, seq);
  seq->state = MOB__PREEMPTING;
  *mob_vec_push(&s->preempting) = seq;
  s->stats.preemptions++;
  mob__settle(s, seq);
}

static void end_seq(mob_sched_t *s, mob_sched_seq_t *seq) {
  if (seq->state == MOB__RUNNING)
    leave_running(s, seq);
  else
    mob__remove(seq->state == MOB__WAITING ? &s->waiting : &s->preempting, seq);
  give_slot_back(s, seq);
  seq->owner = NULL;
  seq->state = MOB__ENDED;
  *mob_vec_push(&s->ended) = seq;
  mob__settle(s, seq);
}

void mob_sched_abort(mob_sched_t *s, mob_sched_seq_t *seq) {
  MOB_ASSERT(seq->state != MOB__ENDED);
  end_seq(s, seq);
}

// ---------------------------------------------------------------------------------------- results

// Offers the pages that completed steps have filled to the prefix cache.
static void publish(mob_sched_t *s, mob_sched_seq_t *seq) {
  if (!s->config.prefix_cache) return;
  size_t ready = seq->computed < seq->tokens.len ? seq->computed : seq->tokens.len;
  while ((size_t)(seq->published + 1) * MOB_PAGE_TOKENS <= ready) {
    seq->chain = mob_chain_next(
        seq->chain, &seq->tokens.at[(size_t)seq->published * MOB_PAGE_TOKENS], s->config.hash_seed);
    mob_pages_publish(&s->pages, seq->pages.at[seq->published], seq->chain);
    seq->published++;
  }
}

static mob_sched_finish_t finish_of(const mob_sched_seq_t *seq, int32_t token) {
  uint32_t outputs = (uint32_t)seq->tokens.len - seq->prompt_count;
  if (outputs > seq->sampling.min_tokens)
    for (uint32_t i = seq->check_from; i < seq->stop_count; i++)
      if (seq->stops[i] == token) return MOB_SCHED_STOP;
  return outputs >= seq->max_outputs ? MOB_SCHED_LENGTH : MOB_SCHED_RUNNING;
}

// The entries of `slot`, which stand together. After a preemption some were delivered before, and
// outputs are part of what the executor takes for the prompt: both are left out.
static void take_prompt_logprobs(mob_sched_seq_t *seq, uint32_t slot,
                                 const mob_step_result_t *result, mob_sched_event_t *event) {
  uint32_t first = 0;
  while (first < result->prompt_count && result->prompt[first].slot != slot) first++;
  uint32_t end = first;
  while (end < result->prompt_count && result->prompt[end].slot == slot) end++;
  while (first < end && result->prompt[first].position < seq->prompt_logprobs_seen) first++;
  while (first < end && result->prompt[end - 1].position >= seq->prompt_count) end--;
  if (first == end) return;
  event->prompt = &result->prompt[first];
  event->prompt_count = end - first;
  seq->prompt_logprobs_seen = result->prompt[end - 1].position + 1;
}

static mob_status find_sampled(const mob_step_result_t *result, uint32_t slot, uint32_t *cursor,
                               const mob_sampled_t **out) {
  for (uint32_t tries = 0; tries < result->sampled_count; tries++) {
    uint32_t i = (*cursor + tries) % result->sampled_count;
    if (result->sampled[i].slot != slot) continue;
    if (result->sampled[i].token < 0)
      return mob_fail(MOB_E_FORMAT, "step %llu: slot %u got token %d",
                      (unsigned long long)result->id, slot, result->sampled[i].token);
    *cursor = i + 1;
    *out = &result->sampled[i];
    return MOB_OK;
  }
  return mob_fail(MOB_E_FORMAT, "step %llu: no token for slot %u", (unsigned long long)result->id,
                  slot);
}

static mob_status complete_row(mob_sched_t *s, const mob__row_t *row,
                               const mob_step_result_t *result, uint32_t *cursor) {
  mob_sched_seq_t *seq = row->seq;
  const mob_sampled_t *token = NULL;
  if (row->sample) MOB_TRY(find_sampled(result, row->slot, cursor, &token));
  seq->in_flight--;
  if (row->sample) seq->sampling_in_flight--;
  seq->computed = row->end;
  if (seq->state == MOB__ENDED) {
    publish(s, seq);
    mob__settle(s, seq);
    return MOB_OK;
  }
  mob_sched_event_t event = {
      .owner = seq->owner, .token = token, .cached_tokens = seq->cached_tokens};
  if (seq->sampling.prompt_logprobs >= 0) take_prompt_logprobs(seq, row->slot, result, &event);
  if (token) {
    if (seq->tokens.len == seq->prompt_count) s->stats.prompt_tokens += seq->prompt_count;
    *mob_vec_push(&seq->tokens) = token->token;
    s->stats.generated_tokens++;
    event.finish = finish_of(seq, token->token);
  }
  publish(s, seq);
  if (token || event.prompt_count) *mob_vec_push(&s->events) = event;
  if (event.finish != MOB_SCHED_RUNNING)
    end_seq(s, seq);
  else
    mob__settle(s, seq);
  return MOB_OK;
}

mob_status mob_sched_complete(mob_sched_t *s, const mob_step_result_t *result,
                              const mob_sched_event_t **events, uint32_t *count) {
  s->events.len = 0;
  *events = NULL;
  *count = 0;
  if (!s->flight_count)
    return mob_fail(MOB_E_FORMAT, "a result of step %llu while none is under way",
                    (unsigned long long)result->id);
  mob__flight_t *flight = &s->flights[s->flight_first];
  if (flight->id != result->id)
    return mob_fail(MOB_E_FORMAT, "a result of step %llu where step %llu was due",
                    (unsigned long long)result->id, (unsigned long long)flight->id);
  uint32_t cursor = 0;
  for (size_t i = 0; i < flight->rows.len; i++)
    MOB_TRY(complete_row(s, &flight->rows.at[i], result, &cursor));
  flight->rows.len = 0;
  s->flight_first = (s->flight_first + 1) % (uint32_t)s->config.depth;
  s->flight_count--;
  *events = s->events.at;
  *count = (uint32_t)s->events.len;
  return MOB_OK;
}

void mob_sched_stats(const mob_sched_t *s, mob_sched_stats_t *out) {
  *out = s->stats;
  out->running = (uint32_t)s->running.len;
  out->waiting = (uint32_t)(s->waiting.len + s->preempting.len);
  out->in_flight = s->flight_count;
  out->pages_total = s->config.pages;
  out->pages_used = mob_pages_used(&s->pages);
  out->pages_cached = s->pages.cached;
}
