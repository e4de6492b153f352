// What a stage exchanges with its neighbours, by rank 0's thread. Messages begin with a header, so
// that a stage that lost count is noticed at once:
//   activations  rows = tokens of the step, then rows * hidden fp32: the exact bits, so that PP
//   does not change results ids          rows = sampled sequences of the step, then one int32 each,
//   in order of their rows
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/exec.h"
#include "runtime/base/mem.h"

typedef struct header {
  uint64_t step;
  uint32_t rows, width;
} header_t;

// Ids that nobody asked for are taken off the link when so many steps wait, before its buffers
// fill.
enum { MAX_PENDING = 32 };

static mob_status check_header(const header_t *got, const header_t *expected, const char *what) {
  if (memcmp(got, expected, sizeof *got) == 0) return MOB_OK;
  return mob_fail(MOB_E_INTERNAL,
                  "%s of step %llu (%u x %u) arrived where step %llu (%u x %u) was expected", what,
                  (unsigned long long)got->step, got->rows, got->width,
                  (unsigned long long)expected->step, expected->rows, expected->width);
}

static mob_status receive_ids(mob_exec_t *exec) {
  mob_pending_ids_t pending = exec->pending.at[0];
  header_t got, expected = {pending.step, pending.count, 1};
  int32_t *ids = mob_malloc(pending.count * sizeof *ids);
  mob_status status;
  MOB_TRY_GOTO(exec->spec.link->recv(exec->spec.ids, &got, sizeof got), status, done);
  MOB_TRY_GOTO(check_header(&got, &expected, "sampled ids"), status, done);
  MOB_TRY_GOTO(exec->spec.link->recv(exec->spec.ids, ids, pending.count * sizeof *ids), status,
               done);
  for (uint32_t i = 0; i < pending.count; i++) exec->slots[pending.slots[i]].last = ids[i];
  free(pending.slots);
  mob_vec_remove(&exec->pending, 0);
done:
  free(ids);
  return status;
}

static bool is_pending(const mob_exec_t *exec, uint32_t slot) {
  for (size_t p = 0; p < exec->pending.len; p++)
    for (uint32_t i = 0; i < exec->pending.at[p].count; i++)
      if (exec->pending.at[p].slots[i] == slot) return true;
  return false;
}

// Puts the ids sampled by earlier steps in the place of MOB_TOKEN_PREVIOUS.
static mob_status resolve_tokens(mob_exec_t *exec, mob_job_t *job) {
  for (uint32_t i = 0; i < job->step.seq_count; i++) {
    const mob_seq_step_t *seq = &job->step.seqs[i];
    if (seq->tokens[0] != MOB_TOKEN_PREVIOUS) continue;
    while (is_pending(exec, seq->slot)) MOB_TRY(receive_ids(exec));
    if (exec->slots[seq->slot].last < 0)
      return mob_fail(MOB_E_INVALID, "step %llu continues slot %u, for which nothing was sampled",
                      (unsigned long long)job->step.id, seq->slot);
    job->tokens[seq->row] = exec->slots[seq->slot].last;
  }
  return MOB_OK;
}

// Remembers which ids the last stage will send for this step.
static void expect_ids(mob_exec_t *exec, const mob_job_t *job) {
  mob_pending_ids_t pending = {.step = job->step.id,
                               .slots = MOB_NEW_ARRAY(uint32_t, job->step.seq_count + 1)};
  for (uint32_t i = 0; i < job->step.seq_count; i++)
    if (job->step.seqs[i].sample) pending.slots[pending.count++] = job->step.seqs[i].slot;
  if (pending.count)
    *mob_vec_push(&exec->pending) = pending;
  else
    free(pending.slots);
}

mob_status mob__stage_receive(mob_exec_t *exec, mob_job_t *job) {
  const mob_step_t *step = &job->step;
  if (step->token_count == 0) return MOB_OK;
  if (exec->spec.first_layer == 0) {
    while (exec->pending.len >= MAX_PENDING) MOB_TRY(receive_ids(exec));
    MOB_TRY(resolve_tokens(exec, job));
    if (exec->spec.ids) expect_ids(exec, job);
    return MOB_OK;
  }
  header_t got, expected = {step->id, step->token_count, (uint32_t)exec->desc->hidden};
  MOB_TRY(exec->spec.link->recv(exec->spec.prev, &got, sizeof got));
  MOB_TRY(check_header(&got, &expected, "activations"));
  return exec->spec.link->recv(exec->spec.prev, exec->input,
                               (size_t)step->token_count * (size_t)exec->desc->hidden *
                                   sizeof(float));
}

mob_status mob__stage_send(mob_exec_t *exec, const mob_job_t *job) {
  const mob_step_t *step = &job->step;
  if (step->token_count == 0) return MOB_OK;
  if (exec->spec.last_layer < exec->desc->n_layers) {
    // The header stands right in front of the rows: one write, one packet for a decode step.
    float *x = exec->ranks[0].x;
    header_t *header = (header_t *)x - 1;
    *header = (header_t){step->id, step->token_count, (uint32_t)exec->desc->hidden};
    return exec->spec.link->send(exec->spec.next, header,
                                 sizeof *header + (size_t)step->token_count *
                                                      (size_t)exec->desc->hidden * sizeof *x);
  }
  if (!exec->spec.ids || exec->spec.first_layer == 0) return MOB_OK;
  uint32_t count = 0;
  uint8_t *message = mob_malloc(sizeof(header_t) + job->logits.len * sizeof(int32_t));
  for (size_t i = 0; i < job->logits.len; i++)
    if (job->logits.at[i].sample)
      memcpy(message + sizeof(header_t) + sizeof(int32_t) * count++, &job->outputs[i].token,
             sizeof(int32_t));
  header_t header = {step->id, count, 1};
  memcpy(message, &header, sizeof header);
  mob_status status = MOB_OK;
  if (count)
    status =
        exec->spec.link->send(exec->spec.ids, message, sizeof header + count * sizeof(int32_t));
  free(message);
  return status;
}
