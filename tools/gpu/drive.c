#include "tools/gpu/drive.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/cpus.h"
#include "runtime/base/mem.h"

enum { MAX_STAGES = 8 };

// A socket between two stages, or a tape between a stage and the caller.
struct mob_link {
  int fd;
  uint8_t *tape;
  size_t len, cap, at;
};

typedef struct header { // of a message between stages
  uint64_t step;
  uint32_t rows, width;
} header_t;

struct drive {
  drive_config_t config;
  int pp;
  mob_exec_t *execs[MAX_STAGES];
  mob_link_t links[MAX_STAGES][2]; // between stage i and i + 1
  mob_link_t ids[2], in, out;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  uint64_t step, queued, reported; // reports of all stages
  mob_status status;
  char why[512];
  drive_place_t *places[DRIVE_SLOTS];
  uint32_t expected[DRIVE_SLOTS]; // position of the next sampled token
  int32_t last[DRIVE_SLOTS];
  uint64_t compute_ns;
  int32_t *chosen, *given; // [layers of the model][max_tokens][top_k]
  int32_t *experts;        // [layers of the model]
  mob_routes_t routes[MAX_STAGES];
};

static mob_status link_send(mob_link_t *link, const void *data, size_t bytes) {
  const char *p = data;
  if (link->fd < 0) {
    if (link->len + bytes > link->cap) link->tape = mob_realloc(link->tape, link->cap = link->len + bytes);
    memcpy(link->tape + link->len, data, bytes);
    link->len += bytes;
    return MOB_OK;
  }
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
  if (link->fd < 0) {
    if (link->at + bytes > link->len) return mob_fail(MOB_E_UNAVAILABLE, "the tape has %zu bytes, %zu are wanted", link->len - link->at, bytes);
    memcpy(data, link->tape + link->at, bytes);
    link->at += bytes;
    return MOB_OK;
  }
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
  if (link->fd >= 0) shutdown(link->fd, SHUT_RDWR);
}

static void link_close(mob_link_t *link) {
  if (link->fd >= 0) close(link->fd);
  link->fd = -1;
  free(link->tape);
  *link = (mob_link_t){.fd = -1};
}

static const mob_link_ops_t link_ops = {"in process", link_send, link_recv, link_abort, link_close};

static mob_status make_pair(mob_link_t *pair) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) return mob_fail(MOB_E_IO, "socketpair: %s", strerror(errno));
  pair[0].fd = fds[0];
  pair[1].fd = fds[1];
  return MOB_OK;
}

static void note(drive_t *d, uint32_t slot, uint32_t position, const mob_token_logprob_t *chosen, const mob_token_logprob_t *top,
                 uint32_t count) {
  if (slot >= DRIVE_SLOTS || position >= (uint32_t)d->config.max_len) return;
  drive_place_t *to = &d->places[slot][position];
  to->known = true;
  to->chosen = *chosen;
  to->top_count = count < DRIVE_TOP ? count : DRIVE_TOP;
  if (count) memcpy(to->top, top, to->top_count * sizeof *top);
}

static void on_step(drive_t *d, mob_status status, const char *why, const mob_step_result_t *result, bool last) {
  pthread_mutex_lock(&d->lock);
  d->reported++;
  if (status != MOB_OK && d->status == MOB_OK) {
    d->status = status;
    snprintf(d->why, sizeof d->why, "%s", why ? why : "");
  }
  for (uint32_t i = 0; last && result && i < result->sampled_count; i++) {
    const mob_sampled_t *s = &result->sampled[i];
    if (s->slot >= DRIVE_SLOTS) continue;
    d->last[s->slot] = s->token;
    note(d, s->slot, d->expected[s->slot]++, &s->chosen, s->top, s->top_count);
  }
  for (uint32_t i = 0; last && result && i < result->prompt_count; i++) {
    const mob_prompt_logprob_t *p = &result->prompt[i];
    note(d, p->slot, p->position, &p->chosen, p->top, p->top_count);
  }
  if (last && result) d->compute_ns = result->compute_ns;
  pthread_cond_broadcast(&d->wake);
  pthread_mutex_unlock(&d->lock);
}

static void on_last(void *arg, mob_status status, const char *why, const mob_step_result_t *result) {
  on_step(arg, status, why, result, true);
}

static void on_other(void *arg, mob_status status, const char *why, const mob_step_result_t *result) {
  on_step(arg, status, why, result, false);
}

static int32_t *route_rows(const drive_t *d, int32_t *ids, int layer) {
  return ids + (size_t)layer * (size_t)d->config.max_tokens * (size_t)mob_model_desc(d->config.model)->top_k;
}

static mob_status open_stage(drive_t *d, int i) {
  const drive_config_t *c = &d->config;
  const int layers = mob_model_desc(c->model)->n_layers;
  const bool taped = c->last_layer > 0;
  // The models are small: on a host of 64 CPUs the reference's threads would mostly wait for each other.
  const int most = c->tp > 8 ? c->tp : 8, threads = mob_cpu_count() < most ? 0 : most;
  mob_exec_spec_t spec = {.model = c->model, .tp = c->tp, .expert_parallel = c->expert_parallel, .threads = threads, .dtype = MOB_DT_BF16,
                          .contract = c->contract, .tensor_sums = c->tensor_sums, .kv_dtype = c->kv_dtype == MOB_DT_F32 ? MOB_DT_COUNT : c->kv_dtype,
                          .max_tokens = c->max_tokens, .max_seqs = DRIVE_SLOTS, .max_len = c->max_len, .eager = c->eager,
                          .memory_share = 0.95, .link = &link_ops};
  spec.first_layer = taped ? c->first_layer : layers * i / d->pp;
  spec.last_layer = taped ? c->last_layer : layers * (i + 1) / d->pp;
  spec.prev = spec.first_layer == 0 ? NULL : taped ? &d->in : &d->links[i - 1][1];
  spec.next = spec.last_layer == layers ? NULL : taped ? &d->out : &d->links[i][0];
  spec.ids = taped || d->pp == 1 ? NULL : i == 0 ? &d->ids[0] : i + 1 == d->pp ? &d->ids[1] : NULL;
  spec.ranks = c->ranks;
  spec.first_rank = c->first_rank;
  if (d->chosen) {
    const int32_t *given = c->replay ? route_rows(d, d->given, spec.first_layer) : NULL;
    d->routes[i] = (mob_routes_t){true, route_rows(d, d->chosen, spec.first_layer), given, d->experts + spec.first_layer};
    spec.routes = &d->routes[i];
  }
  int devices[64];
  const int count = c->backend->device_count();
  for (int r = 0; r < c->tp && r < 64; r++) devices[r] = count > 0 ? (i * c->tp + c->first_rank + r) % count : r;
  spec.devices = devices;
  mob_memory_plan_t plan;
  MOB_TRY(c->backend->open(&spec, &d->execs[i]));
  if (c->group_id) MOB_TRY(c->backend->join(d->execs[i], c->group_id, (uint64_t)c->timeout_s * 1000));
  MOB_TRY(c->backend->plan(d->execs[i], &plan));
  MOB_TRY(c->backend->load(d->execs[i], NULL, NULL));
  return c->backend->alloc_kv(d->execs[i], c->pages);
}

mob_status drive_open(const drive_config_t *config, drive_t **out) {
  drive_t *d = MOB_NEW(drive_t);
  d->config = *config;
  drive_config_t *c = &d->config;
  if (!c->tp) c->tp = 1;
  if (!c->max_tokens) c->max_tokens = 512;
  if (!c->max_len) c->max_len = 1024;
  if (!c->pages) c->pages = 64;
  if (!c->timeout_s) c->timeout_s = 60;
  d->pp = c->pp > 1 ? c->pp : 1;
  MOB_ASSERT(d->pp <= MAX_STAGES);
  for (int i = 0; i < MAX_STAGES; i++) d->links[i][0].fd = d->links[i][1].fd = -1;
  d->ids[0].fd = d->ids[1].fd = d->in.fd = d->out.fd = -1;
  pthread_mutex_init(&d->lock, NULL);
  pthread_condattr_t monotonic;
  pthread_condattr_init(&monotonic);
  pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
  pthread_cond_init(&d->wake, &monotonic);
  pthread_condattr_destroy(&monotonic);
  for (int i = 0; i < DRIVE_SLOTS; i++) d->places[i] = MOB_NEW_ARRAY(drive_place_t, (size_t)c->max_len);
  const mob_model_desc_t *desc = mob_model_desc(c->model);
  const size_t ids = (size_t)desc->n_layers * (size_t)c->max_tokens * (size_t)desc->top_k;
  if ((c->routes || c->replay) && desc->n_experts) {
    d->chosen = MOB_NEW_ARRAY(int32_t, ids);
    d->given = MOB_NEW_ARRAY(int32_t, ids);
    d->experts = MOB_NEW_ARRAY(int32_t, (size_t)desc->n_layers);
  }
  mob_status status = MOB_OK;
  for (int i = 0; i + 1 < d->pp && status == MOB_OK; i++) status = make_pair(d->links[i]);
  if (d->pp > 1 && status == MOB_OK) status = make_pair(d->ids);
  for (int i = 0; i < d->pp && status == MOB_OK; i++) status = open_stage(d, i);
  if (status != MOB_OK) {
    drive_close(d);
    return status;
  }
  *out = d;
  return MOB_OK;
}

void drive_close(drive_t *d) {
  if (!d) return;
  // The stages end together: one that waits for another is woken by that one's end.
  for (int i = 0; i < d->pp; i++)
    if (d->execs[i] && d->queued > d->reported) d->config.backend->abort(d->execs[i]);
  for (int i = 0; i < d->pp; i++)
    if (d->execs[i]) d->config.backend->close(d->execs[i]);
  for (int i = 0; i < MAX_STAGES; i++) {
    link_close(&d->links[i][0]);
    link_close(&d->links[i][1]);
  }
  link_close(&d->ids[0]);
  link_close(&d->ids[1]);
  link_close(&d->in);
  link_close(&d->out);
  for (int i = 0; i < DRIVE_SLOTS; i++) free(d->places[i]);
  free(d->chosen);
  free(d->given);
  free(d->experts);
  pthread_mutex_destroy(&d->lock);
  pthread_cond_destroy(&d->wake);
  free(d);
}

mob_exec_t *drive_exec(drive_t *d, int stage) { return d->execs[stage]; }
void drive_abort(drive_t *d) {
  for (int i = 0; i < d->pp; i++) d->config.backend->abort(d->execs[i]);
}

mob_status drive_queue(drive_t *d, mob_step_t *step) {
  step->id = ++d->step;
  if (d->in.len) { // fed: the header wants the step's id
    header_t *header = (header_t *)d->in.tape;
    header->step = step->id;
  }
  d->out.len = 0;
  for (uint32_t i = 0; i < step->seq_count; i++) {
    const mob_seq_step_t *seq = &step->seqs[i];
    if (seq->sample && seq->slot < DRIVE_SLOTS && d->queued == d->reported) d->expected[seq->slot] = seq->start + seq->count;
  }
  for (int i = 0; i < d->pp; i++) {
    pthread_mutex_lock(&d->lock);
    d->queued++;
    pthread_mutex_unlock(&d->lock);
    mob_status status = d->config.backend->step(d->execs[i], step, i + 1 == d->pp ? on_last : on_other, d);
    if (status == MOB_OK) continue;
    pthread_mutex_lock(&d->lock);
    d->queued--;
    pthread_mutex_unlock(&d->lock);
    return status;
  }
  return MOB_OK;
}

mob_status drive_wait(drive_t *d) {
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  until.tv_sec += d->config.timeout_s;
  pthread_mutex_lock(&d->lock);
  int late = 0;
  while (d->reported < d->queued && late != ETIMEDOUT) late = pthread_cond_timedwait(&d->wake, &d->lock, &until);
  mob_status status = d->status;
  bool done = d->reported == d->queued;
  pthread_mutex_unlock(&d->lock);
  if (status != MOB_OK) return mob_fail(status, "%s", d->why);
  return done ? MOB_OK : mob_fail(MOB_E_TIMEOUT, "step %llu has not ended after %d s", (unsigned long long)d->step, d->config.timeout_s);
}

mob_status drive_step(drive_t *d, mob_step_t *step) {
  MOB_TRY(drive_queue(d, step));
  return drive_wait(d);
}

void drive_feed(drive_t *d, const float *x, uint32_t rows) {
  const uint32_t hidden = (uint32_t)mob_model_desc(d->config.model)->hidden;
  const header_t header = {0, rows, hidden};
  d->in.len = d->in.at = 0;
  link_send(&d->in, &header, sizeof header);
  link_send(&d->in, x, (size_t)rows * hidden * sizeof *x);
}

const float *drive_taken(const drive_t *d) { return (const float *)(d->out.tape + sizeof(header_t)); }
const int32_t *drive_chosen(const drive_t *d, int layer) { return d->chosen ? route_rows(d, d->chosen, layer) : NULL; }
int drive_experts(const drive_t *d, int layer) { return d->experts ? d->experts[layer] : 0; }
int32_t *drive_given(drive_t *d, int layer) { return d->given ? route_rows(d, d->given, layer) : NULL; }
const drive_place_t *drive_places(const drive_t *d, uint32_t slot) { return d->places[slot]; }
int32_t drive_last(const drive_t *d, uint32_t slot) { return d->last[slot]; }
uint64_t drive_compute_ns(const drive_t *d) { return d->compute_ns; }

void drive_forget(drive_t *d) {
  for (int i = 0; i < DRIVE_SLOTS; i++) memset(d->places[i], 0, (size_t)d->config.max_len * sizeof *d->places[i]);
}
