// Queued steps: checked and copied, so that the caller may forget its own at once.
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/exec.h"
#include "runtime/base/mem.h"

// Copies arrays one behind the other; the first pass (block NULL) only measures.
typedef struct packer {
  uint8_t *block;
  size_t used;
} packer_t;

static const void *pack(packer_t *p, const void *data, size_t count, size_t size) {
  size_t at = p->used;
  p->used += (count * size + 15) & ~(size_t)15;
  if (!p->block || !count) return NULL;
  memcpy(p->block + at, data, count * size);
  return p->block + at;
}

static void pack_open(packer_t *p, const mob_seq_open_t *from, mob_seq_open_t *to) {
  const mob_sampling_t *s = &from->sampling;
  const void *prompt = pack(p, from->prompt, from->prompt_count, sizeof *from->prompt);
  const void *stop = pack(p, s->stop_ids, s->stop_id_count, sizeof *s->stop_ids);
  const void *bias = pack(p, s->bias, s->bias_count, sizeof *s->bias);
  const void *allowed = pack(p, s->allowed, s->allowed_count, sizeof *s->allowed);
  if (!to) return;
  to->prompt = prompt;
  to->sampling.stop_ids = stop;
  to->sampling.bias = bias;
  to->sampling.allowed = allowed;
}

static void pack_step(packer_t *p, const mob_step_t *from, mob_step_t *to) {
  mob_seq_open_t *open = (mob_seq_open_t *)pack(p, from->open, from->open_count, sizeof *open);
  mob_seq_step_t *seqs = (mob_seq_step_t *)pack(p, from->seqs, from->seq_count, sizeof *seqs);
  const void *close = pack(p, from->close, from->close_count, sizeof *from->close);
  for (uint32_t i = 0; i < from->open_count; i++)
    pack_open(p, &from->open[i], open ? &open[i] : NULL);
  for (uint32_t i = 0; i < from->seq_count; i++) {
    const mob_seq_step_t *s = &from->seqs[i];
    const void *tokens = pack(p, s->tokens, s->count, sizeof *s->tokens);
    const void *pages = pack(p, s->pages, s->page_count, sizeof *s->pages);
    if (!seqs) continue;
    seqs[i].tokens = tokens;
    seqs[i].pages = pages;
  }
  if (!to) return;
  to->open = open;
  to->seqs = seqs;
  to->close = close;
}

mob_job_t *mob__job_new(const mob_step_t *step, mob_step_fn done, void *arg) {
  mob_job_t *job = MOB_NEW(mob_job_t);
  packer_t p = {0};
  pack_step(&p, step, NULL);
  p.block = job->copy = mob_malloc(p.used + 16);
  p.used = 0;
  job->step = *step;
  pack_step(&p, step, &job->step);
  job->done = done;
  job->arg = arg;
  size_t rows = step->token_count + 1;
  job->tokens = MOB_NEW_ARRAY(int32_t, rows);
  job->positions = MOB_NEW_ARRAY(uint32_t, rows);
  job->seq_of = MOB_NEW_ARRAY(uint32_t, rows);
  for (uint32_t i = 0; i < step->seq_count; i++) {
    const mob_seq_step_t *s = &job->step.seqs[i];
    for (uint32_t k = 0; k < s->count; k++) {
      job->tokens[s->row + k] = s->tokens[k];
      job->positions[s->row + k] = s->start + k;
      job->seq_of[s->row + k] = i;
    }
  }
  return job;
}

void mob__job_free(mob_job_t *job) {
  if (!job) return;
  free(job->copy);
  free(job->tokens);
  free(job->positions);
  free(job->seq_of);
  mob_vec_free(&job->logits);
  free(job->outputs);
  free(job);
}

static mob_status check_seq(const mob_exec_t *exec, const mob_step_t *step, uint32_t i,
                            uint32_t *row) {
  const mob_seq_step_t *s = &step->seqs[i];
  unsigned long long id = step->id;
  if (s->slot >= (uint32_t)exec->spec.max_seqs)
    return mob_fail(MOB_E_INVALID, "step %llu: slot %u is not below %d", id, s->slot,
                    exec->spec.max_seqs);
  if (s->count == 0 || s->row != *row)
    return mob_fail(MOB_E_INVALID,
                    "step %llu: sequence %u has %u tokens at row %u, expected row %u", id, i,
                    s->count, s->row, *row);
  uint64_t end = (uint64_t)s->start + s->count;
  if (end > (uint64_t)exec->spec.max_len)
    return mob_fail(MOB_E_INVALID, "step %llu: slot %u grows to %llu tokens, the limit is %d", id,
                    s->slot, (unsigned long long)end, exec->spec.max_len);
  if ((uint64_t)s->page_count * MOB_PAGE_TOKENS < end)
    return mob_fail(MOB_E_INVALID, "step %llu: slot %u: %u pages do not cover %llu tokens", id,
                    s->slot, s->page_count, (unsigned long long)end);
  for (uint32_t p = 0; p < s->page_count; p++)
    if (s->pages[p] >= (uint64_t)exec->pages)
      return mob_fail(MOB_E_INVALID, "step %llu: slot %u: page %u is not below %lld", id, s->slot,
                      s->pages[p], (long long)exec->pages);
  for (uint32_t k = 0; k < s->count; k++) {
    bool previous = s->tokens[k] == MOB_TOKEN_PREVIOUS && s->count == 1;
    if (!previous && (s->tokens[k] < 0 || s->tokens[k] >= exec->desc->vocab))
      return mob_fail(MOB_E_INVALID, "step %llu: token id %d is not in the vocabulary of %d", id,
                      s->tokens[k], exec->desc->vocab);
  }
  *row += s->count;
  return MOB_OK;
}

mob_status mob__job_check(const mob_exec_t *exec, const mob_step_t *step) {
  uint32_t row = 0;
  if (step->token_count > (uint32_t)exec->spec.max_tokens)
    return mob_fail(MOB_E_INVALID, "step %llu has %u tokens, the limit is %d",
                    (unsigned long long)step->id, step->token_count, exec->spec.max_tokens);
  for (uint32_t i = 0; i < step->open_count; i++) {
    const mob_seq_open_t *o = &step->open[i];
    if (o->slot >= (uint32_t)exec->spec.max_seqs || o->generated > o->prompt_count)
      return mob_fail(MOB_E_INVALID, "step %llu opens slot %u of %d", (unsigned long long)step->id,
                      o->slot, exec->spec.max_seqs);
  }
  for (uint32_t i = 0; i < step->close_count; i++)
    if (step->close[i] >= (uint32_t)exec->spec.max_seqs)
      return mob_fail(MOB_E_INVALID, "step %llu closes slot %u of %d", (unsigned long long)step->id,
                      step->close[i], exec->spec.max_seqs);
  for (uint32_t i = 0; i < step->seq_count; i++) MOB_TRY(check_seq(exec, step, i, &row));
  if (row != step->token_count)
    return mob_fail(MOB_E_INVALID, "step %llu: its sequences have %u tokens, it says %u",
                    (unsigned long long)step->id, row, step->token_count);
  return MOB_OK;
}
