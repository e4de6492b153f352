// What a stage exchanges with its neighbours over TCP: rows of activations forwards, sampled ids from the last to the first.
#include <algorithm>
#include <cstring>

#include "engine/cuda/exec.h"

namespace mob {
namespace {

struct Header { // of a message between stages, as the CPU backend's
  uint64_t step;
  uint32_t rows, width;
};
constexpr size_t kMaxPending = 32;

size_t row_bytes(const Exec *exec, const Job *job) { return (size_t)job->step.token_count * (size_t)exec->desc->hidden * 4; }

mob_status receive_message(Exec *exec, mob_link_t *link, const Header &expected, const char *what, void *data, size_t bytes) {
  Header got;
  MOB_TRY(exec->spec.link->recv(link, &got, sizeof got));
  if (memcmp(&got, &expected, sizeof got) != 0)
    return mob_fail(MOB_E_INTERNAL, "%s of step %llu (%u x %u) arrived where step %llu (%u x %u) was expected", what,
                    (unsigned long long)got.step, got.rows, got.width, (unsigned long long)expected.step, expected.rows,
                    expected.width);
  return exec->spec.link->recv(link, data, bytes);
}

mob_status receive_ids(Exec *exec) {
  PendingIds pending = exec->pending.front();
  std::vector<int32_t> ids(pending.slots.size());
  MOB_TRY(receive_message(exec, exec->spec.ids, {pending.step, (uint32_t)ids.size(), 1}, "sampled ids", ids.data(), ids.size() * 4));
  for (size_t i = 0; i < ids.size(); i++) exec->slots[pending.slots[i]].last = ids[i];
  exec->pending.pop_front();
  return MOB_OK;
}

bool is_pending(const Exec *exec, uint32_t slot) {
  for (const PendingIds &p : exec->pending)
    if (std::find(p.slots.begin(), p.slots.end(), slot) != p.slots.end()) return true;
  return false;
}

} // namespace

mob_status resolve_tokens(Exec *exec, Job *job) {
  if (!exec->spec.ids) return MOB_OK;
  while (exec->pending.size() >= kMaxPending) MOB_TRY(receive_ids(exec));
  for (mob_seq_step_t &seq : job->seqs) {
    if (seq.tokens[0] != MOB_TOKEN_PREVIOUS) continue;
    while (is_pending(exec, seq.slot)) MOB_TRY(receive_ids(exec));
    const int32_t last = exec->slots[seq.slot].last;
    if (last < 0)
      return mob_fail(MOB_E_INVALID, "step %llu continues slot %u, for which nothing was sampled", (unsigned long long)job->step.id,
                      seq.slot);
    seq.tokens = keep_ints(job, &last, 1);
  }
  PendingIds pending = {job->step.id, {}};
  for (const mob_seq_step_t &seq : job->seqs)
    if (seq.sample) pending.slots.push_back(seq.slot);
  if (!pending.slots.empty()) exec->pending.push_back(pending);
  return MOB_OK;
}

mob_status receive_rows(Exec *exec, Job *job) {
  const uint32_t rows = job->step.token_count, hidden = (uint32_t)exec->desc->hidden;
  for (const Rank &rank : exec->ranks)
    if (rank.rows_taken) CU_TRY(cudaEventSynchronize(rank.rows_taken)); // the rows before have left the buffer
  return receive_message(exec, exec->spec.prev, {job->step.id, rows, hidden}, "activations", exec->host_x, row_bytes(exec, job));
}

// Every rank from the host's memory: a copy from rank 0's GPU would want its context, which the thread that launches there may hold until
// that GPU has this rank's part of a sum.
mob_status take_rows(Exec *exec, Rank *rank, const Job *job) {
  CU_TRY(cudaMemcpyAsync(rank->x, exec->host_x, row_bytes(exec, job), cudaMemcpyHostToDevice, rank->stream));
  CU_TRY(cudaEventRecord(rank->rows_taken, rank->stream));
  return MOB_OK;
}

mob_status send_rows(Exec *exec, Job *job) {
  const size_t bytes = row_bytes(exec, job);
  Header *header = (Header *)exec->host_x - 1;
  *header = {job->step.id, job->step.token_count, (uint32_t)exec->desc->hidden};
  CU_TRY(cudaMemcpyAsync(exec->host_x, exec->ranks[0].x, bytes, cudaMemcpyDeviceToHost, exec->ranks[0].stream));
  CU_TRY(cudaStreamSynchronize(exec->ranks[0].stream));
  MOB_TRY(comm_failure(exec));
  return exec->spec.link->send(exec->spec.next, header, sizeof *header + bytes);
}

mob_status send_ids(Exec *exec, const Job *job, const int32_t *ids) {
  if (!exec->spec.ids || exec->spec.first_layer == 0) return MOB_OK;
  std::vector<uint8_t> message(sizeof(Header));
  uint32_t count = 0;
  for (size_t i = 0; i < job->logits.size(); i++) {
    if (!job->logits[i].sample) continue;
    const uint8_t *id = (const uint8_t *)&ids[i];
    message.insert(message.end(), id, id + 4);
    count++;
  }
  const Header header = {job->step.id, count, 1};
  memcpy(message.data(), &header, sizeof header);
  return count ? exec->spec.link->send(exec->spec.ids, message.data(), message.size()) : MOB_OK;
}

} // namespace mob
