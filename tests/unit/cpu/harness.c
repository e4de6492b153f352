#include "harness.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine/cpu/exec.h"
#include "runtime/base/mem.h"

enum { MAX_STAGES = 8, PAGES = 256, SLOTS = 16 };

struct mob_link {
  int fd;
};

static mob_status link_send(mob_link_t *link, const void *data, size_t bytes) {
  const char *p = data;
  while (bytes) {
    ssize_t n = send(link->fd, p, bytes, MSG_NOSIGNAL);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return mob_fail(MOB_E_UNAVAILABLE, "the link is broken");
    p += n;
    bytes -= (size_t)n;
  }
  return MOB_OK;
}

static mob_status link_recv(mob_link_t *link, void *data, size_t bytes) {
  char *p = data;
  while (bytes) {
    ssize_t n = recv(link->fd, p, bytes, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return mob_fail(MOB_E_UNAVAILABLE, "the link is broken");
    p += n;
    bytes -= (size_t)n;
  }
  return MOB_OK;
}

static void link_abort(mob_link_t *link) {
  shutdown(link->fd, SHUT_RDWR);
}

static void link_close(mob_link_t *link) {
  if (link->fd >= 0) close(link->fd);
  link->fd = -1;
}

static const mob_link_ops_t socket_link = {"socketpair", link_send, link_recv, link_abort,
                                           link_close};

struct harness {
  harness_config_t config;
  mob_model_t *model;
  mob_exec_t *execs[MAX_STAGES];
  mob_link_t links[MAX_STAGES][2]; // between stage i and i + 1
  mob_link_t ids[2];
  pthread_mutex_t lock;
  pthread_cond_t wake;
  uint64_t done;      // steps that the last stage reported
  uint64_t finished;  // reports of all stages
  uint64_t submitted; // of all stages
  mob_status status;
  char why[512];
  int32_t *tokens[SLOTS];
  uint32_t counts[SLOTS];
  float *logits;
  mob_sampled_t last;
  mob_token_logprob_t last_top[MOB_MAX_LOGPROBS];
  MOB_VEC(mob_prompt_logprob_t) prompt;
};

static void on_step(void *arg, mob_status status, const char *why, const mob_step_result_t *result,
                    bool last) {
  harness_t *h = arg;
  pthread_mutex_lock(&h->lock);
  h->finished++;
  if (status != MOB_OK && h->status == MOB_OK) {
    h->status = status;
    snprintf(h->why, sizeof h->why, "%s", why);
  }
  if (last && result) {
    for (uint32_t i = 0; i < result->sampled_count; i++) {
      const mob_sampled_t *s = &result->sampled[i];
      h->tokens[s->slot] =
          mob_realloc(h->tokens[s->slot], (h->counts[s->slot] + 1) * sizeof(int32_t));
      h->tokens[s->slot][h->counts[s->slot]++] = s->token;
      h->last = *s;
      if (s->top_count) memcpy(h->last_top, s->top, s->top_count * sizeof *s->top);
      h->last.top = h->last_top;
    }
    for (uint32_t i = 0; i < result->prompt_count; i++) {
      mob_prompt_logprob_t *p = mob_vec_push(&h->prompt);
      *p = result->prompt[i];
      p->top = NULL;
    }
    mob_exec_t *exec = h->execs[h->config.pp - 1];
    if (result->sampled_count)
      memcpy(h->logits, exec->logits,
             (size_t)MOB_LOGIT_ROWS * (size_t)exec->desc->vocab * sizeof(float));
  }
  if (last) h->done++;
  pthread_cond_broadcast(&h->wake);
  pthread_mutex_unlock(&h->lock);
}

static void on_last(void *arg, mob_status status, const char *why,
                    const mob_step_result_t *result) {
  on_step(arg, status, why, result, true);
}

static void on_other(void *arg, mob_status status, const char *why,
                     const mob_step_result_t *result) {
  on_step(arg, status, why, result, false);
}

static mob_status make_pair(mob_link_t *pair) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0)
    return mob_fail(MOB_E_IO, "socketpair: %s", strerror(errno));
  pair[0].fd = fds[0];
  pair[1].fd = fds[1];
  return MOB_OK;
}

static mob_status open_stages(harness_t *h) {
  const harness_config_t *c = &h->config;
  mob_model_options_t options = {.dummy = c->dummy, .overrides = c->overrides};
  MOB_TRY(mob_model_open(c->dir, &options, &h->model));
  const mob_model_desc_t *desc = mob_model_desc(h->model);
  for (int i = 0; i + 1 < c->pp; i++) MOB_TRY(make_pair(h->links[i]));
  if (c->pp > 1) MOB_TRY(make_pair(h->ids));
  h->logits = mob_malloc((size_t)MOB_LOGIT_ROWS * (size_t)desc->vocab * sizeof(float));
  for (int i = 0; i < c->pp; i++) {
    mob_exec_spec_t spec = {.model = h->model,
                            .first_layer = desc->n_layers * i / c->pp,
                            .last_layer = desc->n_layers * (i + 1) / c->pp,
                            .tp = c->tp,
                            .expert_parallel = c->expert_parallel,
                            .threads = c->threads ? c->threads : 1,
                            .dtype = MOB_DT_F32,
                            .exact = !c->contract && !c->fast,
                            .contract = c->contract,
                            .eager = c->eager,
                            .kv_dtype = c->kv_dtype,
                            .max_tokens = c->max_tokens ? c->max_tokens : 512,
                            .max_seqs = SLOTS,
                            .max_len = 4096,
                            .memory_share = 0.5,
                            .prev = i ? &h->links[i - 1][1] : NULL,
                            .next = i + 1 < c->pp ? &h->links[i][0] : NULL,
                            .link = &socket_link,
                            .ids = c->pp == 1       ? NULL
                                   : i == 0         ? &h->ids[0]
                                   : i + 1 == c->pp ? &h->ids[1]
                                                    : NULL};
    MOB_TRY(mob_backend_cpu.open(&spec, &h->execs[i]));
    MOB_TRY(mob_backend_cpu.load(h->execs[i], NULL, NULL));
    MOB_TRY(mob_backend_cpu.alloc_kv(h->execs[i], PAGES));
  }
  return MOB_OK;
}

mob_status harness_open(const harness_config_t *config, harness_t **out) {
  harness_t *h = MOB_NEW(harness_t);
  h->config = *config;
  for (int i = 0; i < MAX_STAGES; i++) h->links[i][0].fd = h->links[i][1].fd = -1;
  h->ids[0].fd = h->ids[1].fd = -1;
  pthread_mutex_init(&h->lock, NULL);
  pthread_cond_init(&h->wake, NULL);
  mob_status status = open_stages(h);
  if (status != MOB_OK) {
    harness_close(h);
    return status;
  }
  *out = h;
  return MOB_OK;
}

void harness_close(harness_t *h) {
  if (!h) return;
  for (int i = 0; i < h->config.pp; i++) mob_backend_cpu.close(h->execs[i]);
  for (int i = 0; i < MAX_STAGES; i++) {
    link_close(&h->links[i][0]);
    link_close(&h->links[i][1]);
  }
  link_close(&h->ids[0]);
  link_close(&h->ids[1]);
  for (int i = 0; i < SLOTS; i++) free(h->tokens[i]);
  mob_vec_free(&h->prompt);
  free(h->logits);
  mob_model_close(h->model);
  pthread_mutex_destroy(&h->lock);
  pthread_cond_destroy(&h->wake);
  free(h);
}

const mob_model_desc_t *harness_desc(const harness_t *h) {
  return mob_model_desc(h->model);
}
mob_exec_t *harness_exec(harness_t *h, int stage) {
  return h->execs[stage];
}
const mob_sampled_t *harness_last(const harness_t *h) {
  return &h->last;
}

const int32_t *harness_tokens(const harness_t *h, uint32_t slot, uint32_t *count) {
  *count = h->counts[slot];
  return h->tokens[slot];
}

const mob_prompt_logprob_t *harness_prompt(const harness_t *h, uint32_t *count) {
  *count = (uint32_t)h->prompt.len;
  return h->prompt.at;
}

mob_status harness_submit(harness_t *h, const mob_step_t *step) {
  for (int i = 0; i < h->config.pp; i++) {
    h->submitted++;
    mob_status status =
        mob_backend_cpu.step(h->execs[i], step, i + 1 == h->config.pp ? on_last : on_other, h);
    if (status != MOB_OK) {
      h->submitted--;
      return status;
    }
  }
  return MOB_OK;
}

mob_status harness_submit_to(harness_t *h, int stage, const mob_step_t *step) {
  return mob_backend_cpu.step(h->execs[stage], step, stage + 1 == h->config.pp ? on_last : on_other,
                              h);
}

mob_status harness_wait(harness_t *h, uint64_t count) {
  pthread_mutex_lock(&h->lock);
  while (h->done < count && h->status == MOB_OK) pthread_cond_wait(&h->wake, &h->lock);
  mob_status status = h->status;
  pthread_mutex_unlock(&h->lock);
  return status == MOB_OK ? MOB_OK : mob_fail(status, "%s", h->why);
}

mob_status harness_generate(harness_t *h, const harness_run_t *run) {
  uint32_t pages[PAGES], chunk = run->chunk ? run->chunk : run->prompt_count;
  for (uint32_t i = 0; i < PAGES; i++)
    pages[i] = (run->first_page + i * 7) % PAGES; // scattered on purpose
  size_t vocab = (size_t)harness_desc(h)->vocab;
  uint64_t id = h->done;
  mob_sampling_t greedy = {
      .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1};
  mob_seq_open_t open = {.slot = run->slot,
                         .sampling = greedy,
                         .prompt = run->prompt,
                         .prompt_count = run->prompt_count};
  uint32_t before = h->counts[run->slot];
  for (uint32_t at = 0; at < run->prompt_count; at += chunk) {
    uint32_t n = run->prompt_count - at < chunk ? run->prompt_count - at : chunk;
    mob_seq_step_t seq = {.slot = run->slot,
                          .start = at,
                          .count = n,
                          .tokens = run->prompt + at,
                          .pages = pages,
                          .page_count = (at + n + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS,
                          .sample = at + n == run->prompt_count};
    mob_step_t step = {.id = ++id,
                       .token_count = n,
                       .seq_count = 1,
                       .seqs = &seq,
                       .open = &open,
                       .open_count = at == 0};
    MOB_TRY(harness_submit(h, &step));
    if (!run->queue) MOB_TRY(harness_wait(h, id));
  }
  for (uint32_t i = 0; i < run->generate; i++) {
    if (run->logits && !run->queue)
      memcpy(run->logits + i * vocab, h->logits, vocab * sizeof(float));
    if (i + 1 == run->generate) break;
    int32_t token = run->queue    ? MOB_TOKEN_PREVIOUS
                    : run->forced ? run->forced[i]
                                  : h->tokens[run->slot][before + i];
    uint32_t start = run->prompt_count + i;
    mob_seq_step_t seq = {.slot = run->slot,
                          .start = start,
                          .count = 1,
                          .tokens = &token,
                          .pages = pages,
                          .page_count = (start + MOB_PAGE_TOKENS) / MOB_PAGE_TOKENS,
                          .sample = true};
    mob_step_t step = {.id = ++id, .token_count = 1, .seq_count = 1, .seqs = &seq};
    MOB_TRY(harness_submit(h, &step));
    if (!run->queue) MOB_TRY(harness_wait(h, id));
  }
  uint32_t close = run->slot;
  mob_step_t end = {.id = ++id, .close = &close, .close_count = 1};
  MOB_TRY(harness_submit(h, &end));
  MOB_TRY(harness_wait(h, id));
  memcpy(run->tokens, h->tokens[run->slot] + before, run->generate * sizeof(int32_t));
  return MOB_OK;
}

float harness_max_error(const float *a, const float *b, size_t n) {
  float worst = 0;
  for (size_t i = 0; i < n; i++) {
    float d = fabsf(a[i] - b[i]);
    if (!(d <= worst)) worst = d; // a NaN stays
  }
  return worst;
}
