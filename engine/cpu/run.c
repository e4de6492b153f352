// The ranks' threads: rank 0 takes steps from the queue, the others follow it.
#include <linux/futex.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "engine/cpu/exec.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

void mob__wait_word(const mob_exec_t *exec, _Atomic uint32_t *word, uint32_t seen) {
  while (atomic_load(word) == seen && !atomic_load(&exec->aborted))
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

void mob__wake_word(_Atomic uint32_t *word) {
  atomic_fetch_add(word, 1);
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

// ------------------------------------------------------------------------------------------ one
// step

static void embed(mob_rank_t *rank, const mob_job_t *job) {
  const mob_exec_t *exec = rank->exec;
  for (uint32_t i = 0; i < job->step.token_count; i++)
    exec->ops->row(&rank->weights.outer.m[MOB_W_EMBED], job->tokens[i],
                   rank->x + (size_t)i * (size_t)exec->desc->hidden);
}

static mob_status run_layers(mob_rank_t *rank, mob_job_t *job) {
  mob_exec_t *exec = rank->exec;
  size_t rows = job->step.token_count;
  if (rows == 0) return MOB_OK;
  if (exec->spec.first_layer == 0)
    embed(rank, job);
  else
    memcpy(rank->x, exec->input, rows * (size_t)exec->desc->hidden * sizeof *rank->x);
  mob__rope_table(exec->desc, job->positions, (int)rows, rank->cos_sin);
  for (int layer = 0; layer < exec->spec.last_layer - exec->spec.first_layer; layer++) {
    if (atomic_load(&exec->aborted)) return mob_fail(MOB_E_ABORTED, "the executor was aborted");
    MOB_TRY(mob__attention(rank, job, layer));
    MOB_TRY(mob__ffn(rank, job, layer));
  }
  if (exec->spec.last_layer == exec->desc->n_layers) MOB_TRY(mob__sample(rank, job));
  return MOB_OK;
}

// Opens slots and lists the rows whose logits are wanted.
static void prepare(mob_exec_t *exec, mob_job_t *job) {
  const mob_step_t *step = &job->step;
  for (uint32_t i = 0; i < step->open_count; i++)
    mob__slot_open(&exec->slots[step->open[i].slot], &step->open[i]);
  if (exec->spec.last_layer < exec->desc->n_layers) return;
  for (uint32_t i = 0; i < step->seq_count; i++) {
    const mob_seq_step_t *seq = &step->seqs[i];
    const mob_slot_state_t *slot = &exec->slots[seq->slot];
    for (uint32_t k = 0; slot->sampling.prompt_logprobs >= 0 && k < seq->count; k++)
      if (seq->start + k + 1 < slot->prompt_count)
        *mob_vec_push(&job->logits) =
            (mob_logit_row_t){seq->row + k, seq->slot, false, seq->start + k + 1};
    if (seq->sample)
      *mob_vec_push(&job->logits) =
          (mob_logit_row_t){seq->row + seq->count - 1, seq->slot, true, 0};
  }
  job->outputs = MOB_NEW_ARRAY(mob_sample_output_t, job->logits.len + 1);
}

static mob_status check_slots(const mob_exec_t *exec, const mob_job_t *job) {
  for (uint32_t i = 0; i < job->step.seq_count; i++)
    if (!exec->slots[job->step.seqs[i].slot].open)
      return mob_fail(MOB_E_INVALID, "step %llu uses slot %u, which no step opened",
                      (unsigned long long)job->step.id, job->step.seqs[i].slot);
  return MOB_OK;
}

// Remembers what was sampled and hands the result out.
static void report(mob_exec_t *exec, mob_job_t *job, uint64_t compute_ns) {
  const mob_step_t *step = &job->step;
  mob_sampled_t *sampled = MOB_NEW_ARRAY(mob_sampled_t, job->logits.len + 1);
  mob_prompt_logprob_t *prompt = MOB_NEW_ARRAY(mob_prompt_logprob_t, job->logits.len + 1);
  mob_step_result_t result = {
      .id = step->id, .sampled = sampled, .prompt = prompt, .compute_ns = compute_ns};
  for (size_t i = 0; i < job->logits.len; i++) {
    const mob_logit_row_t *row = &job->logits.at[i];
    const mob_sample_output_t *out = &job->outputs[i];
    if (row->sample) {
      sampled[result.sampled_count++] =
          (mob_sampled_t){row->slot, out->token, out->chosen, out->top, out->top_count};
      mob__slot_append(&exec->slots[row->slot], out->token);
    } else {
      prompt[result.prompt_count++] =
          (mob_prompt_logprob_t){row->slot, row->position, out->chosen, out->top, out->top_count};
    }
  }
  for (uint32_t i = 0; i < step->close_count; i++) mob__slot_close(&exec->slots[step->close[i]]);
  job->done(job->arg, MOB_OK, NULL, &result);
  free(sampled);
  free(prompt);
}

static mob_status run_step(mob_rank_t *rank, mob_job_t *job) {
  mob_exec_t *exec = rank->exec;
  prepare(exec, job);
  MOB_TRY(check_slots(exec, job));
  MOB_TRY(mob__stage_receive(exec, job));
  uint64_t begin = mob_now_ns();
  if (exec->spec.tp > 1 && job->step.token_count > 0) {
    atomic_store(&exec->active, job);
    mob__wake_word(&exec->released);
  }
  MOB_TRY(run_layers(rank, job));
  uint64_t compute = mob_now_ns() - begin;
  MOB_TRY(mob__stage_send(exec, job));
  report(exec, job, compute);
  return MOB_OK;
}

// ------------------------------------------------------------------------------------------
// threads

// The first failure is kept, and everything that waits is woken.
static void fail_exec(mob_exec_t *exec, mob_status status) {
  pthread_mutex_lock(&exec->lock);
  if (exec->failed == MOB_OK) {
    exec->failed = status;
    snprintf(exec->why, sizeof exec->why, "%s", mob_errmsg());
  }
  pthread_mutex_unlock(&exec->lock);
  mob_backend_cpu.abort(exec);
}

static mob_job_t *next_job(mob_exec_t *exec) {
  pthread_mutex_lock(&exec->lock);
  while (!exec->first && !exec->closing) pthread_cond_wait(&exec->wake, &exec->lock);
  mob_job_t *job = exec->first;
  if (job) {
    exec->first = job->next;
    if (!exec->first) exec->tail = &exec->first;
  }
  pthread_mutex_unlock(&exec->lock);
  return job;
}

static void leader(mob_rank_t *rank) {
  mob_exec_t *exec = rank->exec;
  mob_job_t *job, *previous = NULL;
  mob_status failed = MOB_OK;
  while ((job = next_job(exec))) {
    if (failed != MOB_OK) {
      job->done(job->arg, exec->failed, exec->why, NULL);
      mob__job_free(job);
      continue;
    }
    failed = atomic_load(&exec->aborted) ? mob_fail(MOB_E_ABORTED, "the executor was aborted")
                                         : run_step(rank, job);
    if (failed == MOB_OK) {
      // Followers may still look at this job, but not at the one before: they have met rank 0 in
      // this one.
      mob__job_free(previous);
    } else {
      job->next = previous; // nobody knows where the followers are: both stay until the end
      fail_exec(exec, failed);
      job->done(job->arg, exec->failed, exec->why, NULL);
    }
    previous = job;
    if (failed == MOB_OK) job->next = NULL;
  }
  exec->retired = previous;
}

static void follower(mob_rank_t *rank) {
  mob_exec_t *exec = rank->exec;
  uint32_t seen = 0;
  for (;;) {
    mob__wait_word(exec, &exec->released, seen);
    if (atomic_load(&exec->aborted)) return;
    seen++;
    mob_job_t *job = atomic_load(&exec->active);
    if (!job) return; // closing
    mob_status status = run_layers(rank, job);
    if (status != MOB_OK) {
      fail_exec(exec, status);
      return;
    }
  }
}

void *mob__rank_main(void *arg) {
  mob_rank_t *rank = arg;
  if (rank->index == 0)
    leader(rank);
  else
    follower(rank);
  return NULL;
}
