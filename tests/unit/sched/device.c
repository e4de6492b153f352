#include "device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

void device_init(device_t *d, const mob_sched_config_t *config) {
  *d = (device_t){.config = *config};
  d->kv = MOB_NEW_ARRAY(int32_t, (size_t)config->pages * MOB_PAGE_TOKENS);
  d->slots = MOB_NEW_ARRAY(device_slot_t, mob_sched_slots(config));
}

static void free_step(device_step_t *s) {
  mob_vec_free(&s->tokens);
  mob_vec_free(&s->pages);
  mob_vec_free(&s->seqs);
  mob_vec_free(&s->open);
  mob_vec_free(&s->close);
}

void device_free(device_t *d) {
  for (size_t i = 0; i < d->queue.len; i++) free_step(&d->queue.at[i]);
  mob_vec_free(&d->queue);
  mob_vec_free(&d->sampled);
  mob_vec_free(&d->prompt);
  free(d->kv);
  free(d->slots);
}

uint64_t device_hash(uint64_t hash, int32_t token) {
  hash ^= (uint64_t)(uint32_t)token + 0x9e3779b97f4a7c15u;
  hash *= 0xff51afd7ed558ccdu;
  return hash ^ (hash >> 32);
}

int32_t device_sample(uint64_t hash, uint64_t seed) {
  return (int32_t)(device_hash(hash, (int32_t)seed) % DEVICE_VOCAB);
}

// Pages this sequence writes in its step.
static bool writes(const mob_seq_step_t *q, uint32_t page) {
  for (uint32_t p = q->start / MOB_PAGE_TOKENS; p < q->page_count; p++)
    if (q->pages[p] == page) return true;
  return false;
}

static bool table_has(const mob_seq_step_t *q, uint32_t page) {
  for (uint32_t p = 0; p < q->page_count; p++)
    if (q->pages[p] == page) return true;
  return false;
}

static void check_no_conflict(const mob_seq_step_t *a, const mob_seq_step_t *b) {
  if (a->slot == b->slot) return;
  for (uint32_t p = 0; p < a->page_count; p++)
    assert_false(table_has(b, a->pages[p]) && (writes(a, a->pages[p]) || writes(b, a->pages[p])));
}

static void check_limits(const device_t *d, const mob_step_t *step) {
  uint32_t rows = 0;
  assert_true(step->seq_count > 0);
  assert_true(step->seq_count <= (uint32_t)d->config.max_seqs);
  assert_true(step->token_count <= (uint32_t)d->config.max_tokens);
  for (uint32_t i = 0; i < step->seq_count; i++) {
    const mob_seq_step_t *q = &step->seqs[i];
    assert_int_equal(q->row, rows);
    rows += q->count;
    assert_true(q->count > 0);
    assert_true(q->slot < mob_sched_slots(&d->config));
    assert_int_equal(q->page_count, (q->start + q->count + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS);
    for (uint32_t p = 0; p < q->page_count; p++) assert_true(q->pages[p] < d->config.pages);
    for (uint32_t j = 0; j < i; j++) {
      assert_int_not_equal(step->seqs[j].slot, q->slot);
      check_no_conflict(&step->seqs[j], q);
    }
    for (size_t f = 0; f < d->queue.len; f++)
      for (size_t j = 0; j < d->queue.at[f].seqs.len; j++)
        check_no_conflict(&d->queue.at[f].seqs.at[j], q);
  }
  assert_int_equal(rows, step->token_count);
}

void device_push(device_t *d, const mob_step_t *step) {
  check_limits(d, step);
  device_step_t c = {.step = *step};
  for (uint32_t i = 0; i < step->seq_count; i++) {
    const mob_seq_step_t *q = &step->seqs[i];
    for (uint32_t t = 0; t < q->count; t++) *mob_vec_push(&c.tokens) = q->tokens[t];
    for (uint32_t p = 0; p < q->page_count; p++) *mob_vec_push(&c.pages) = q->pages[p];
    *mob_vec_push(&c.seqs) = *q;
  }
  const int32_t *tokens = c.tokens.at;
  const uint32_t *pages = c.pages.at;
  for (size_t i = 0; i < c.seqs.len; i++) {
    c.seqs.at[i].tokens = tokens;
    c.seqs.at[i].pages = pages;
    tokens += c.seqs.at[i].count;
    pages += c.seqs.at[i].page_count;
  }
  for (uint32_t i = 0; i < step->open_count; i++) *mob_vec_push(&c.open) = step->open[i];
  for (uint32_t i = 0; i < step->close_count; i++) *mob_vec_push(&c.close) = step->close[i];
  *mob_vec_push(&d->queue) = c;
}

static int32_t *kv_at(device_t *d, const mob_seq_step_t *q, uint32_t position) {
  uint32_t page = q->pages[position / MOB_PAGE_TOKENS];
  return &d->kv[(size_t)page * MOB_PAGE_TOKENS + position % MOB_PAGE_TOKENS];
}

static void run_seq(device_t *d, const mob_seq_step_t *q) {
  device_slot_t *slot = &d->slots[q->slot];
  assert_true(slot->open);
  for (uint32_t t = 0; t < q->count; t++) {
    int32_t token = q->tokens[t];
    if (token == MOB_TOKEN_PREVIOUS) {
      assert_int_equal(q->count, 1);
      assert_true(slot->last >= 0);
      token = slot->last;
    }
    *kv_at(d, q, q->start + t) = token;
    if (slot->prompt_logprobs >= 0 && q->start + t > 0)
      *mob_vec_push(&d->prompt) = (mob_prompt_logprob_t){
          .slot = q->slot, .position = q->start + t, .chosen = {.token = token}};
  }
  if (!q->sample) return;
  uint64_t hash = 0;
  for (uint32_t t = 0; t < q->start + q->count; t++) hash = device_hash(hash, *kv_at(d, q, t));
  slot->last = device_sample(hash, slot->seed);
  *mob_vec_push(&d->sampled) = (mob_sampled_t){.slot = q->slot, .token = slot->last};
}

mob_step_result_t device_pop(device_t *d) {
  assert_true(d->queue.len > 0);
  device_step_t c = d->queue.at[0];
  mob_vec_remove(&d->queue, 0);
  d->sampled.len = d->prompt.len = 0;
  for (size_t i = 0; i < c.open.len; i++) {
    device_slot_t *slot = &d->slots[c.open.at[i].slot];
    assert_false(slot->open);
    *slot = (device_slot_t){.open = true,
                            .last = -1,
                            .seed = c.open.at[i].sampling.seed,
                            .prompt_logprobs = c.open.at[i].sampling.prompt_logprobs};
  }
  for (size_t i = 0; i < c.seqs.len; i++) run_seq(d, &c.seqs.at[i]);
  for (size_t i = 0; i < c.close.len; i++) {
    assert_true(d->slots[c.close.at[i]].open);
    d->slots[c.close.at[i]].open = false;
  }
  mob_step_result_t result = {.id = c.step.id,
                              .sampled = d->sampled.at,
                              .sampled_count = (uint32_t)d->sampled.len,
                              .prompt = d->prompt.at,
                              .prompt_count = (uint32_t)d->prompt.len};
  free_step(&c);
  return result;
}
