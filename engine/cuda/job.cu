// Steps as they are queued: checked and copied; then the slots they open and the rows whose logits they want.
#include <algorithm>
#include <cstring>

#include "engine/cuda/exec.h"

namespace mob {

// ------------------------------------------------------------------------------------------- copies

const int32_t *keep_ints(Job *job, const int32_t *data, uint32_t count) {
  if (!count) return nullptr;
  job->ints.emplace_back(data, data + count);
  return job->ints.back().data();
}

namespace {

mob_status check_seq(const Exec *exec, const mob_step_t *step, uint32_t i, uint32_t *row) {
  const mob_seq_step_t *s = &step->seqs[i];
  const unsigned long long id = step->id;
  if (s->slot >= (uint32_t)exec->spec.max_seqs)
    return mob_fail(MOB_E_INVALID, "step %llu: slot %u is not below %d", id, s->slot, exec->spec.max_seqs);
  if (s->count == 0 || s->row != *row)
    return mob_fail(MOB_E_INVALID, "step %llu: sequence %u has %u tokens at row %u, expected row %u", id, i, s->count, s->row, *row);
  const uint64_t end = (uint64_t)s->start + s->count;
  if (end > (uint64_t)exec->spec.max_len)
    return mob_fail(MOB_E_INVALID, "step %llu: slot %u grows to %llu tokens, the limit is %d", id, s->slot,
                    (unsigned long long)end, exec->spec.max_len);
  if ((uint64_t)s->page_count * MOB_PAGE_TOKENS < end)
    return mob_fail(MOB_E_INVALID, "step %llu: slot %u: %u pages do not cover %llu tokens", id, s->slot, s->page_count,
                    (unsigned long long)end);
  for (uint32_t p = 0; p < s->page_count; p++)
    if (s->pages[p] >= (uint64_t)exec->pages)
      return mob_fail(MOB_E_INVALID, "step %llu: slot %u: page %u is not below %lld", id, s->slot, s->pages[p],
                      (long long)exec->pages);
  for (uint32_t k = 0; k < s->count; k++) {
    const bool previous = s->tokens[k] == MOB_TOKEN_PREVIOUS && s->count == 1;
    if (!previous && (s->tokens[k] < 0 || s->tokens[k] >= exec->desc->vocab))
      return mob_fail(MOB_E_INVALID, "step %llu: token id %d is not in the vocabulary of %d", id, s->tokens[k], exec->desc->vocab);
  }
  *row += s->count;
  return MOB_OK;
}

} // namespace

mob_status check_step(const Exec *exec, const mob_step_t *step) {
  const unsigned long long id = step->id;
  uint32_t row = 0;
  if (step->token_count > (uint32_t)exec->spec.max_tokens)
    return mob_fail(MOB_E_INVALID, "step %llu has %u tokens, the limit is %d", id, step->token_count, exec->spec.max_tokens);
  for (uint32_t i = 0; i < step->open_count; i++)
    if (step->open[i].slot >= (uint32_t)exec->spec.max_seqs || step->open[i].generated > step->open[i].prompt_count)
      return mob_fail(MOB_E_INVALID, "step %llu opens slot %u of %d", id, step->open[i].slot, exec->spec.max_seqs);
  for (uint32_t i = 0; i < step->close_count; i++)
    if (step->close[i] >= (uint32_t)exec->spec.max_seqs)
      return mob_fail(MOB_E_INVALID, "step %llu closes slot %u of %d", id, step->close[i], exec->spec.max_seqs);
  for (uint32_t i = 0; i < step->seq_count; i++) MOB_TRY(check_seq(exec, step, i, &row));
  if (row != step->token_count)
    return mob_fail(MOB_E_INVALID, "step %llu: its sequences have %u tokens, it says %u", id, row, step->token_count);
  return MOB_OK;
}

Job *copy_step(const mob_step_t *step, mob_step_fn done, void *arg) {
  Job *job = new Job();
  job->step = *step;
  job->done = done;
  job->arg = arg;
  job->open.assign(step->open, step->open + step->open_count);
  job->seqs.assign(step->seqs, step->seqs + step->seq_count);
  job->close.assign(step->close, step->close + step->close_count);
  for (mob_seq_open_t &o : job->open) {
    o.prompt = keep_ints(job, o.prompt, o.prompt_count);
    o.sampling.stop_ids = keep_ints(job, o.sampling.stop_ids, o.sampling.stop_id_count);
    o.sampling.allowed = keep_ints(job, o.sampling.allowed, o.sampling.allowed_count);
    if (o.sampling.bias_count) {
      job->biases.emplace_back(o.sampling.bias, o.sampling.bias + o.sampling.bias_count);
      o.sampling.bias = job->biases.back().data();
    }
  }
  for (mob_seq_step_t &s : job->seqs) {
    s.tokens = keep_ints(job, s.tokens, s.count);
    s.pages = (const uint32_t *)keep_ints(job, (const int32_t *)s.pages, s.page_count);
  }
  job->step.open = job->open.data();
  job->step.seqs = job->seqs.data();
  job->step.close = job->close.data();
  return job;
}

// -------------------------------------------------------------------------------------------- slots

namespace {

void open_slot(SlotState *slot, const mob_seq_open_t &o) {
  *slot = SlotState();
  slot->open = true;
  slot->plain = sampling_is_plain(o.sampling);
  slot->logprobs = o.sampling.logprobs >= 0;
  if (o.sampling.prompt_logprobs >= 0) slot->prompt.assign(o.prompt, o.prompt + (o.prompt_count - o.generated));
}

} // namespace

mob_status prepare_step(Exec *exec, Job *job) {
  for (const mob_seq_open_t &o : job->open) open_slot(&exec->slots[o.slot], o);
  for (const mob_seq_step_t &seq : job->seqs) {
    const SlotState &slot = exec->slots[seq.slot];
    if (!slot.open)
      return mob_fail(MOB_E_INVALID, "step %llu uses slot %u, which no step opened", (unsigned long long)job->step.id, seq.slot);
    if (exec->spec.last_layer < exec->desc->n_layers) continue;
    for (uint32_t k = 0; k < seq.count; k++)
      if ((size_t)seq.start + k + 1 < slot.prompt.size()) job->logits.push_back({seq.row + k, seq.slot, false, seq.start + k + 1, true});
    if (seq.sample) job->logits.push_back({seq.row + seq.count - 1, seq.slot, true, 0, slot.logprobs});
  }
  for (const LogitRow &row : job->logits) {
    job->plain = job->plain && exec->slots[row.slot].plain;
    job->logprobs = job->logprobs || row.logprobs;
  }
  return MOB_OK;
}

} // namespace mob
