// Planning one step: decodes, prompt chunks of running sequences, then new sequences, under the row
// budget.
#include "engine/sched/internal.h"

static const int32_t previous_token = MOB_TOKEN_PREVIOUS;

typedef struct plan {
  mob_sched_t *s;
  mob__flight_t *flight;
  int batch;
  uint32_t budget; // rows left
  uint32_t rows;
  bool blocked; // a better-ranked sequence waits for pages: nobody else may take any in this step
} plan_t;

static uint32_t pages_for(size_t tokens) {
  return (uint32_t)((tokens + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS);
}

// Tokens, known or being sampled, that no planned step computes yet. 0 when nothing may be planned.
static uint32_t remaining(const mob_sched_t *s, const mob_sched_seq_t *seq) {
  uint32_t outputs = (uint32_t)seq->tokens.len - seq->prompt_count + seq->sampling_in_flight;
  if (outputs >= seq->max_outputs) return 0;    // its last token is on the way
  if (seq->last_step == s->next_step) return 0; // has its rows in this step
  if (seq->sampling_in_flight > 0 && !s->config.ids_on_device) return 0;
  return (uint32_t)seq->tokens.len + seq->sampling_in_flight - seq->planned;
}

// Pages that come free by themselves when the steps under way are complete.
static uint32_t pages_coming(const mob_sched_t *s) {
  uint32_t n = 0;
  const mob__seqs_t *lists[] = {&s->preempting, &s->ended};
  for (size_t l = 0; l < MOB_LEN(lists); l++)
    for (size_t i = 0; i < lists[l]->len; i++) {
      const mob_sched_seq_t *seq = lists[l]->at[i];
      for (size_t p = 0; p < seq->pages.len; p++) n += s->pages.page[seq->pages.at[p]].refs == 1;
    }
  return n;
}

// True when `need` pages can be taken now. Else makes worse-ranked sequences give theirs up, or
// `seq` itself when there is none, and the pages are there in a later step. The best-ranked
// sequence can always go on in the end, and what it has computed stays: that rules out a livelock.
static bool make_room(plan_t *p, const mob_sched_seq_t *seq, uint32_t need) {
  mob_sched_t *s = p->s;
  if (mob_pages_available(&s->pages) >= need) return true;
  p->blocked = true;
  while (mob_pages_available(&s->pages) + pages_coming(s) < need) {
    mob_sched_seq_t *victim = s->running.at[s->running.len - 1];
    mob__preempt(s, victim);
    if (victim == seq) return false;
  }
  if (mob_pages_available(&s->pages) < need) return false;
  p->blocked = false;
  return true;
}

// Adds `count` rows of the sequence, whose new pages are available.
static void add_rows(plan_t *p, mob_sched_seq_t *seq, uint32_t count) {
  mob_sched_t *s = p->s;
  if (seq->slot == MOB__NO_SLOT) {
    seq->slot = s->free_slots.at[--s->free_slots.len];
    s->slots_used++;
    *mob_vec_push(&s->open) =
        (mob_seq_open_t){.slot = seq->slot,
                         .sampling = seq->sampling,
                         .prompt = seq->tokens.at,
                         .prompt_count = (uint32_t)seq->tokens.len,
                         .generated = (uint32_t)seq->tokens.len - seq->prompt_count};
  }
  uint32_t end = seq->planned + count;
  while (seq->pages.len < pages_for(end)) {
    uint32_t page = mob_pages_take(&s->pages);
    MOB_ASSERT(page != MOB_PAGE_NONE);
    *mob_vec_push(&seq->pages) = page;
  }
  bool unknown = seq->planned >= seq->tokens.len;
  bool sample = end == seq->tokens.len + seq->sampling_in_flight;
  *mob_vec_push(&s->seqs) = (mob_seq_step_t){
      .slot = seq->slot,
      .row = p->rows,
      .start = seq->planned,
      .count = count,
      .tokens = unknown ? &previous_token : &seq->tokens.at[seq->planned],
      .pages = seq->pages.at,
      .page_count = pages_for(end),
      .sample = sample,
  };
  *mob_vec_push(&p->flight->rows) =
      (mob__row_t){.seq = seq, .slot = seq->slot, .end = end, .sample = sample};
  seq->planned = end;
  seq->in_flight++;
  seq->last_step = s->next_step;
  seq->sampling_in_flight += sample;
  p->rows += count;
  p->budget -= count;
}

// Rows the sequence gets in this step, 0 when it has to wait. Pages for them are available then.
static uint32_t fit(plan_t *p, const mob_sched_seq_t *seq, uint32_t want) {
  mob_sched_t *s = p->s;
  uint32_t count = want < p->budget ? want : p->budget;
  if (count < want && !s->config.chunked_prefill && p->budget < (uint32_t)s->config.max_tokens)
    return 0; // waits for a step of its own, and only there is cut if it is longer than any step
  uint32_t have = (uint32_t)seq->pages.len;
  uint32_t need = pages_for((size_t)seq->planned + count);
  if (need <= have) return count;
  if (p->blocked) return 0;
  need -= have;
  uint32_t available = mob_pages_available(&s->pages);
  if (need > available && s->config.chunked_prefill && want > 1) {
    // A shorter chunk goes on without taking pages from others.
    size_t room = ((size_t)have + available) * MOB_PAGE_TOKENS - seq->planned;
    if (room > 0) return (uint32_t)room;
    need = 1;
    if (count > MOB_PAGE_TOKENS) count = MOB_PAGE_TOKENS;
  }
  return make_room(p, seq, need) ? count : 0;
}

static void plan_running(plan_t *p, bool decodes) {
  mob_sched_t *s = p->s;
  for (size_t i = 0; i < s->running.len && p->budget > 0;) {
    mob_sched_seq_t *seq = s->running.at[i];
    uint32_t want = seq->batch == p->batch ? remaining(s, seq) : 0;
    if (want > 0 && (want == 1) == decodes) {
      uint32_t count = fit(p, seq, want);
      if (count > 0) add_rows(p, seq, count);
    }
    // Whatever was preempted stood behind this sequence or was itself.
    if (i < s->running.len && s->running.at[i] == seq) i++;
  }
}

// -------------------------------------------------------------------------------------- admission

// Pages that running sequences still need for the tokens they have.
static uint32_t pages_promised(const mob_sched_t *s) {
  uint32_t n = 0;
  for (size_t i = 0; i < s->running.len; i++) {
    const mob_sched_seq_t *seq = s->running.at[i];
    uint32_t need = pages_for(seq->tokens.len);
    if (need > seq->pages.len) n += need - (uint32_t)seq->pages.len;
  }
  return n;
}

static bool uses_prefix_cache(const mob_sched_t *s, const mob_sched_seq_t *seq) {
  return s->config.prefix_cache && seq->sampling.prompt_logprobs < 0;
}

// Takes the pages of the longest cached prefix; at least one token is left to compute.
static void take_prefix(mob_sched_t *s, mob_sched_seq_t *seq) {
  if (!uses_prefix_cache(s, seq)) return;
  size_t most = (seq->tokens.len - 1) / MOB_PAGE_TOKENS;
  while (seq->published < most) {
    mob_chain_t next = mob_chain_next(
        seq->chain, &seq->tokens.at[(size_t)seq->published * MOB_PAGE_TOKENS], s->config.hash_seed);
    uint32_t page = mob_pages_find(&s->pages, next);
    if (page == MOB_PAGE_NONE) break;
    mob_pages_ref(&s->pages, page);
    *mob_vec_push(&seq->pages) = page;
    seq->chain = next;
    seq->published++;
  }
  seq->planned = seq->computed = seq->published * MOB_PAGE_TOKENS;
}

static void give_prefix_back(mob_sched_t *s, mob_sched_seq_t *seq) {
  for (size_t i = seq->pages.len; i-- > 0;) mob_pages_unref(&s->pages, seq->pages.at[i]);
  seq->pages.len = 0;
  seq->chain = (mob_chain_t){0};
  seq->published = seq->planned = seq->computed = 0;
}

static bool has_pages(const mob_sched_t *s, const mob_sched_seq_t *seq) {
  uint64_t need = pages_for(seq->tokens.len) - seq->pages.len;
  if (s->running.len) { // a little is kept for those that run, else they are preempted at once
    uint32_t reserve = s->pages.count / 100;
    need += pages_promised(s) + (reserve ? reserve : 1);
  }
  return need <= mob_pages_available(&s->pages);
}

static bool smallest_batch(const mob_sched_t *s, int batch) {
  for (int b = 0; b < s->config.stages; b++)
    if (s->batch_size[b] < s->batch_size[batch]) return false;
  return true;
}

static void count_prefix(mob_sched_t *s, mob_sched_seq_t *seq) {
  if (seq->prefix_counted) return;
  seq->prefix_counted = true;
  seq->cached_tokens = seq->planned < seq->prompt_count ? seq->planned : seq->prompt_count;
  if (!uses_prefix_cache(s, seq)) return;
  s->stats.prefix_queries += seq->prompt_count;
  s->stats.prefix_hits += seq->cached_tokens;
}

// A sequence of a higher priority class does not wait until lower ones are done.
static void push_aside(plan_t *p, const mob_sched_seq_t *seq) {
  mob_sched_t *s = p->s;
  if (s->config.policy != MOB_SCHED_PRIORITY || !s->running.len) return;
  mob_sched_seq_t *worst = s->running.at[s->running.len - 1];
  if (worst->priority <= seq->priority || s->preempting.len || s->closing.len) return;
  mob__preempt(s, worst);
}

// A preempted sequence does not wait yet while its last steps are under way, but keeps its place.
static bool overtakes(const mob_sched_t *s, const mob_sched_seq_t *seq) {
  for (size_t i = 0; i < s->preempting.len; i++)
    if (mob__ranks_before(s, s->preempting.at[i], seq)) return true;
  return false;
}

static void admit(plan_t *p) {
  mob_sched_t *s = p->s;
  while (s->waiting.len && p->budget > 0 && !p->blocked) {
    mob_sched_seq_t *seq = s->waiting.at[0];
    if (overtakes(s, seq)) return;
    if (s->slots_used >= (uint32_t)s->config.max_seqs || !s->free_slots.len) {
      push_aside(p, seq);
      return;
    }
    if (!smallest_batch(s, p->batch)) return;
    take_prefix(s, seq);
    uint32_t count = 0;
    if (has_pages(s, seq))
      count = fit(p, seq, remaining(s, seq));
    else
      push_aside(p, seq);
    if (count == 0) {
      give_prefix_back(s, seq);
      return;
    }
    count_prefix(s, seq);
    mob__remove(&s->waiting, seq);
    seq->state = MOB__RUNNING;
    seq->batch = p->batch;
    s->batch_size[p->batch]++;
    mob__insert_ranked(s, &s->running, seq);
    add_rows(p, seq, count);
  }
}

// ------------------------------------------------------------------------------------------------

// Sequences have no state that belongs to a micro-batch, so moving one costs nothing.
static void balance(mob_sched_t *s) {
  for (;;) {
    int least = 0, most = 0;
    for (int b = 1; b < s->config.stages; b++) {
      if (s->batch_size[b] < s->batch_size[least]) least = b;
      if (s->batch_size[b] > s->batch_size[most]) most = b;
    }
    if (s->batch_size[most] <= s->batch_size[least] + 1) return;
    size_t i = s->running.len;
    while (s->running.at[--i]->batch != most) {
    }
    s->running.at[i]->batch = least;
    s->batch_size[most]--;
    s->batch_size[least]++;
  }
}

static void plan_batch(plan_t *p) {
  if (p->s->config.chunked_prefill) {
    plan_running(p, true);
    plan_running(p, false);
    admit(p);
  } else { // prompts first: behind a full batch of decodes a long one might never fit
    plan_running(p, false);
    admit(p);
    plan_running(p, true);
  }
}

static void close_slots(mob_sched_t *s) {
  s->close.len = 0;
  for (size_t i = 0; i < s->closing.len; i++) {
    *mob_vec_push(&s->close) = s->closing.at[i];
    *mob_vec_push(&s->free_slots) = s->closing.at[i]; // for later steps
  }
  s->closing.len = 0;
}

const mob_step_t *mob_sched_plan(mob_sched_t *s) {
  if (s->flight_count == (uint32_t)s->config.depth) return NULL;
  balance(s);
  uint32_t place = (s->flight_first + s->flight_count) % (uint32_t)s->config.depth;
  plan_t p = {.s = s, .flight = &s->flights[place]};
  s->open.len = s->seqs.len = 0;
  for (int i = 0; i < s->config.stages && p.rows == 0; i++) {
    p.batch = (s->next_batch + i) % s->config.stages;
    p.budget = (uint32_t)s->config.max_tokens;
    p.blocked = false;
    plan_batch(&p);
  }
  if (p.rows == 0) return NULL;
  s->next_batch = (p.batch + 1) % s->config.stages;
  close_slots(s);
  p.flight->id = s->next_step++;
  s->flight_count++;
  s->stats.steps++;
  s->step = (mob_step_t){
      .id = p.flight->id,
      .token_count = p.rows,
      .seq_count = (uint32_t)s->seqs.len,
      .open_count = (uint32_t)s->open.len,
      .close_count = (uint32_t)s->close.len,
      .open = s->open.at,
      .seqs = s->seqs.at,
      .close = s->close.at,
  };
  return &s->step;
}
