#include "engine/cpu/sampler.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"

typedef struct candidate {
  float logit;
  int32_t token;
} candidate_t;

struct mob_sampler {
  int vocab;
  uint32_t *counts; // [vocab], all zero between calls: bit 31 = in the prompt, below = times in the
                    // output
  candidate_t *items; // [vocab]
  double *weights;    // [vocab]
  uint8_t *allowed;   // [vocab], all zero between calls
};

mob_sampler_t *mob_sampler_new(int vocab) {
  mob_sampler_t *s = MOB_NEW(mob_sampler_t);
  s->vocab = vocab;
  s->counts = MOB_NEW_ARRAY(uint32_t, (size_t)vocab);
  s->items = MOB_NEW_ARRAY(candidate_t, (size_t)vocab);
  s->weights = MOB_NEW_ARRAY(double, (size_t)vocab);
  s->allowed = MOB_NEW_ARRAY(uint8_t, (size_t)vocab);
  return s;
}

void mob_sampler_free(mob_sampler_t *s) {
  if (!s) return;
  free(s->counts);
  free(s->items);
  free(s->weights);
  free(s->allowed);
  free(s);
}

double mob_philox_uniform(uint64_t seed, uint64_t index) {
  uint32_t c[4] = {(uint32_t)index, (uint32_t)(index >> 32), 0, 0};
  uint32_t k[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
  for (int round = 0; round < 10; round++) {
    uint64_t a = 0xD2511F53u * (uint64_t)c[0], b = 0xCD9E8D57u * (uint64_t)c[2];
    uint32_t next[4] = {(uint32_t)(b >> 32) ^ c[1] ^ k[0], (uint32_t)b,
                        (uint32_t)(a >> 32) ^ c[3] ^ k[1], (uint32_t)a};
    memcpy(c, next, sizeof c);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  return (double)(((uint64_t)c[0] << 32 | c[1]) >> 11) * 0x1p-53;
}

// Order of the best: higher logit first, then the smaller id. NaN counts as worst.
static bool better(candidate_t a, candidate_t b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

static int by_rank(const void *x, const void *y) {
  const candidate_t *a = x, *b = y;
  return better(*a, *b) ? -1 : better(*b, *a) ? 1 : 0;
}

// Moves the k best of items[0, n) to the front, in any order (quickselect).
static void select_best(candidate_t *items, int n, int k) {
  int low = 0, high = n - 1;
  while (low < high) {
    candidate_t pivot = items[low + (high - low) / 2];
    int i = low, j = high;
    while (i <= j) {
      while (better(items[i], pivot)) i++;
      while (better(pivot, items[j])) j--;
      if (i > j) break;
      candidate_t t = items[i];
      items[i++] = items[j];
      items[j--] = t;
    }
    if (k - 1 <= j)
      high = j;
    else if (k - 1 >= i)
      low = i;
    else
      return;
  }
}

static int32_t argmax(const float *logits, int vocab) {
  int32_t best = 0;
  float max = -INFINITY;
  for (int i = 0; i < vocab; i++) {
    if (logits[i] > max) {
      max = logits[i];
      best = i;
    }
  }
  return best;
}

void mob_sampler_logprobs(mob_sampler_t *s, const float *logits, int32_t token, int top,
                          mob_sample_output_t *out) {
  float max = -INFINITY;
  for (int i = 0; i < s->vocab; i++) max = logits[i] > max ? logits[i] : max;
  double sum = 0;
  for (int i = 0; i < s->vocab; i++) sum += expf(logits[i] - max);
  double log_sum = max + log(sum);
  int rank = 1;
  for (int i = 0; i < s->vocab; i++)
    rank += logits[i] > logits[token] || (logits[i] == logits[token] && i < token);
  double own = logits[token] - log_sum;
  out->chosen = (mob_token_logprob_t){token, own > -9999 ? (float)own : -9999.0f, rank};
  if (top > MOB_MAX_LOGPROBS) top = MOB_MAX_LOGPROBS;
  if (top > s->vocab) top = s->vocab;
  out->top_count = top > 0 ? (uint32_t)top : 0;
  if (top <= 0) return;
  for (int i = 0; i < s->vocab; i++) s->items[i] = (candidate_t){logits[i], i};
  select_best(s->items, s->vocab, top);
  qsort(s->items, (size_t)top, sizeof *s->items, by_rank);
  for (int i = 0; i < top; i++) {
    double p = s->items[i].logit - log_sum;
    out->top[i] = (mob_token_logprob_t){s->items[i].token, p > -9999 ? (float)p : -9999.0f, i + 1};
  }
}

static bool in_vocab(const mob_sampler_t *s, int32_t token) {
  return token >= 0 && token < s->vocab;
}

// Bias, allowed ids, the min_tokens mask.
static void apply_masks(mob_sampler_t *s, float *logits, const mob_sample_input_t *in) {
  const mob_sampling_t *p = in->params;
  for (uint32_t i = 0; i < p->bias_count; i++)
    if (in_vocab(s, p->bias[i].token)) logits[p->bias[i].token] += p->bias[i].bias;
  if (p->allowed_count) {
    for (uint32_t i = 0; i < p->allowed_count; i++)
      if (in_vocab(s, p->allowed[i])) s->allowed[p->allowed[i]] = 1;
    for (int i = 0; i < s->vocab; i++) {
      if (!s->allowed[i]) logits[i] = -INFINITY;
      s->allowed[i] = 0;
    }
  }
  if (in->output_count < p->min_tokens)
    for (uint32_t i = 0; i < p->stop_id_count; i++)
      if (in_vocab(s, p->stop_ids[i])) logits[p->stop_ids[i]] = -INFINITY;
}

// Repetition looks at prompt and output, frequency and presence at the output alone.
static void apply_penalties(mob_sampler_t *s, float *logits, const mob_sample_input_t *in) {
  const mob_sampling_t *p = in->params;
  bool repetition = p->repetition_penalty != 1.0f && p->repetition_penalty > 0;
  if (!repetition && p->frequency_penalty == 0 && p->presence_penalty == 0) return;
  const uint32_t in_prompt = 1u << 31;
  for (uint32_t i = 0; i < in->prompt_count; i++)
    if (in_vocab(s, in->prompt[i])) s->counts[in->prompt[i]] |= in_prompt;
  for (uint32_t i = 0; i < in->output_count; i++)
    if (in_vocab(s, in->output[i])) s->counts[in->output[i]]++;
  for (int pass = 0; pass < 2; pass++) {
    const int32_t *ids = pass ? in->output : in->prompt;
    uint32_t count = pass ? in->output_count : in->prompt_count;
    for (uint32_t i = 0; i < count; i++) {
      if (!in_vocab(s, ids[i]) || s->counts[ids[i]] == 0) continue;
      float *logit = &logits[ids[i]];
      uint32_t times = s->counts[ids[i]] & ~in_prompt;
      if (repetition)
        *logit = *logit > 0 ? *logit / p->repetition_penalty : *logit * p->repetition_penalty;
      if (times) *logit -= p->frequency_penalty * (float)times + p->presence_penalty;
      s->counts[ids[i]] = 0; // done: each token once
    }
  }
}

static bool is_greedy(const mob_sampling_t *p) {
  return p->temperature < 1e-5f;
}

// Divides by the temperature and keeps what top-k, top-p and min-p let through: items[0, kept),
// those of weight 0 left out by min-p. top_p keeps the smallest set of best tokens whose
// probability reaches it, min_p those not below that share of the best; both need the order, so
// only as many as carry the mass are sorted.
static int keep_likely(mob_sampler_t *s, const float *logits, const mob_sampling_t *p) {
  candidate_t *items = s->items;
  float max = -INFINITY;
  int n = 0;
  for (int i = 0; i < s->vocab; i++) {
    if (!(logits[i] > -INFINITY)) continue;
    items[n] = (candidate_t){logits[i] / p->temperature, i};
    max = items[n].logit > max ? items[n].logit : max;
    n++;
  }
  if (p->top_k > 0 && p->top_k < n) {
    select_best(items, n, p->top_k);
    n = p->top_k;
    qsort(items, (size_t)n, sizeof *items, by_rank); // a fixed order for the draw
  }
  double total = 0;
  for (int i = 0; i < n; i++) total += exp((double)items[i].logit - max);
  int kept = n;
  if (p->top_p < 1.0f) {
    // The nucleus is usually small: sort 64 best, then 8 times more until it is inside.
    int sorted = 0;
    double mass = 0;
    kept = 0;
    while (kept < n) {
      if (kept == sorted) {
        int more = sorted == 0 ? 64 : sorted * 8;
        if (more > n) more = n;
        if (more < n) select_best(items + sorted, n - sorted, more - sorted);
        qsort(items + sorted, (size_t)(more - sorted), sizeof *items, by_rank);
        sorted = more;
      }
      mass += exp((double)items[kept++].logit - max);
      if (mass >= p->top_p * total) break;
    }
  }
  double floor = p->min_p > 0 ? (double)p->min_p : 0;
  for (int i = 0; i < kept; i++) {
    double weight = exp((double)items[i].logit - max);
    s->weights[i] = weight >= floor ? weight : 0;
  }
  return kept;
}

static int32_t draw(const mob_sampler_t *s, int kept, double uniform) {
  double sum = 0;
  for (int i = 0; i < kept; i++) sum += s->weights[i];
  double target = uniform * sum;
  int last = 0;
  for (int i = 0; i < kept; i++) {
    if (s->weights[i] == 0) continue;
    last = i;
    target -= s->weights[i];
    if (target < 0) break;
  }
  return s->items[last].token;
}

// The logits that were drawn from: everything not kept is minus infinity.
static void leave_only_kept(const mob_sampler_t *s, int kept, float *logits) {
  for (int i = 0; i < s->vocab; i++) logits[i] = -INFINITY;
  for (int i = 0; i < kept; i++)
    if (s->weights[i] > 0) logits[s->items[i].token] = s->items[i].logit;
}

void mob_sampler_run(mob_sampler_t *s, float *logits, const mob_sample_input_t *in,
                     mob_sample_output_t *out) {
  const mob_sampling_t *p = in->params;
  apply_masks(s, logits, in);
  apply_penalties(s, logits, in);
  int32_t token = argmax(logits, s->vocab);
  if (!is_greedy(p)) {
    int kept = keep_likely(s, logits, p);
    if (kept > 0) token = draw(s, kept, mob_philox_uniform(p->seed, in->output_count));
    if (p->logprobs >= 0) leave_only_kept(s, kept, logits);
  }
  out->token = token;
  out->top_count = 0;
  out->chosen = (mob_token_logprob_t){token, 0, 0};
  if (p->logprobs >= 0) mob_sampler_logprobs(s, logits, token, p->logprobs, out);
}

void mob_sampler_prompt(mob_sampler_t *s, float *logits, const mob_sampling_t *p, int32_t token,
                        mob_sample_output_t *out) {
  if (!is_greedy(p)) leave_only_kept(s, keep_likely(s, logits, p), logits);
  mob_sampler_logprobs(s, logits, token, p->prompt_logprobs, out);
}
