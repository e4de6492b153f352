// Final norm, head and sampling on the last stage. Every rank computes its part of the vocabulary
// into one shared buffer, then the rows are sampled in parallel: row i by rank i mod tp.
#include <string.h>

#include "engine/cpu/exec.h"

typedef struct sampling {
  mob_rank_t *rank;
  mob_job_t *job;
  size_t first, count; // rows of this batch
} sampling_t;

static void sample_row(void *arg, int64_t unit, int thread) {
  const sampling_t *s = arg;
  mob_rank_t *rank = s->rank;
  mob_exec_t *exec = rank->exec;
  size_t i = (size_t)unit * (size_t)exec->spec.tp + (size_t)rank->index;
  float *logits = exec->logits + i * (size_t)exec->desc->vocab;
  const mob_logit_row_t *row = &s->job->logits.at[s->first + i];
  mob_sample_output_t *out = &s->job->outputs[s->first + i];
  const mob_slot_state_t *slot = &exec->slots[row->slot];
  if (!row->sample) {
    mob_sampler_prompt(rank->samplers[thread], logits, &slot->sampling,
                       slot->history[row->position], out);
    return;
  }
  mob_sample_input_t in = {&slot->sampling, slot->history, slot->history + slot->prompt_count,
                           slot->prompt_count, slot->count - slot->prompt_count};
  mob_sampler_run(rank->samplers[thread], logits, &in, out);
}

mob_status mob__sample(mob_rank_t *rank, mob_job_t *job) {
  mob_exec_t *exec = rank->exec;
  const mob_model_desc_t *d = exec->desc;
  const mob_mat_t *head = &rank->weights.outer.m[MOB_W_HEAD];
  size_t total = job->logits.len, tp = (size_t)exec->spec.tp;
  for (size_t first = 0; first < total; first += MOB_LOGIT_ROWS) {
    size_t count = total - first < MOB_LOGIT_ROWS ? total - first : MOB_LOGIT_ROWS;
    for (size_t i = 0; i < count; i++)
      exec->ops->rmsnorm(rank->x + (size_t)job->logits.at[first + i].row * (size_t)d->hidden,
                         rank->weights.outer.v[MOB_W_FINAL_NORM], d->rms_eps,
                         rank->norm + i * (size_t)d->hidden, d->hidden);
    mob__linear(rank, head, NULL, rank->norm, d->hidden, exec->logits + head->row0, d->vocab,
                (int)count);
    MOB_TRY(mob_comm_host.barrier(exec->comm, rank->index));
    size_t mine = count > (size_t)rank->index ? (count - (size_t)rank->index + tp - 1) / tp : 0;
    sampling_t s = {rank, job, first, count};
    mob_team_run(rank->team, (int64_t)mine, (double)mine * d->vocab * 8, sample_row, &s);
    // A single row is rank 0's alone: it reports, and nobody touches the buffer before its next
    // step.
    if (total > 1) MOB_TRY(mob_comm_host.barrier(exec->comm, rank->index));
  }
  return MOB_OK;
}
