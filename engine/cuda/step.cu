// Steps: checked and copied when they are queued; then, one after the other, tables to the device, layers, head, ids back.
#include <algorithm>
#include <cstring>

#include "engine/cuda/exec.h"

namespace mob {

// ------------------------------------------------------------------------------------------- copies

namespace {

const int32_t *keep_ints(Job *job, const int32_t *data, uint32_t count) {
  if (!count) return nullptr;
  job->ints.emplace_back(data, data + count);
  return job->ints.back().data();
}

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

bool is_plain(const mob_sampling_t &s) {
  return (s.temperature < 1e-5f || s.top_k == 1) && s.bias_count == 0 && s.allowed_count == 0 && s.min_tokens == 0 &&
         (s.repetition_penalty == 1.0f || s.repetition_penalty <= 0) && s.frequency_penalty == 0 && s.presence_penalty == 0 &&
         s.logprobs < 0 && s.prompt_logprobs < 0;
}

void open_slot(SlotState *slot, const mob_seq_open_t &o) {
  *slot = SlotState();
  slot->open = true;
  slot->sampling = o.sampling;
  slot->plain = is_plain(o.sampling);
  slot->prompt_count = o.prompt_count - o.generated;
  if (slot->plain) return; // nothing will look at its history
  slot->stop.assign(o.sampling.stop_ids, o.sampling.stop_ids + o.sampling.stop_id_count);
  slot->allowed.assign(o.sampling.allowed, o.sampling.allowed + o.sampling.allowed_count);
  slot->bias.assign(o.sampling.bias, o.sampling.bias + o.sampling.bias_count);
  slot->sampling.stop_ids = slot->stop.data();
  slot->sampling.allowed = slot->allowed.data();
  slot->sampling.bias = slot->bias.data();
  slot->history.assign(o.prompt, o.prompt + o.prompt_count);
}

// Opens slots and lists the rows whose logits are wanted.
mob_status prepare(Exec *exec, Job *job) {
  for (const mob_seq_open_t &o : job->open) open_slot(&exec->slots[o.slot], o);
  for (const mob_seq_step_t &seq : job->seqs) {
    const SlotState &slot = exec->slots[seq.slot];
    if (!slot.open)
      return mob_fail(MOB_E_INVALID, "step %llu uses slot %u, which no step opened", (unsigned long long)job->step.id, seq.slot);
    if (exec->spec.last_layer < exec->desc->n_layers) continue;
    for (uint32_t k = 0; slot.sampling.prompt_logprobs >= 0 && k < seq.count; k++)
      if (seq.start + k + 1 < slot.prompt_count) job->logits.push_back({seq.row + k, seq.slot, false, seq.start + k + 1});
    if (seq.sample) job->logits.push_back({seq.row + seq.count - 1, seq.slot, true, 0});
  }
  return MOB_OK;
}

// ------------------------------------------------------------------------------------------- stages

struct Header { // of a message between stages, as the CPU backend's
  uint64_t step;
  uint32_t rows, width;
};
constexpr size_t kMaxPending = 32;

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

// On the first of several stages: ids that the last one sampled take the place of MOB_TOKEN_PREVIOUS.
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
  const size_t bytes = (size_t)rows * hidden * 4;
  CU_TRY(cudaEventSynchronize(exec->host_x_free)); // the rows before have left the buffer
  MOB_TRY(receive_message(exec, exec->spec.prev, {job->step.id, rows, hidden}, "activations", exec->host_x, bytes));
  CU_TRY(cudaMemcpyAsync(exec->ranks[0].x, exec->host_x, bytes, cudaMemcpyHostToDevice, exec->ranks[0].stream));
  CU_TRY(cudaEventRecord(exec->host_x_free, exec->ranks[0].stream));
  return MOB_OK;
}

mob_status send_rows(Exec *exec, Job *job) {
  const size_t bytes = (size_t)job->step.token_count * (size_t)exec->desc->hidden * 4;
  Header *header = (Header *)exec->host_x - 1;
  *header = {job->step.id, job->step.token_count, (uint32_t)exec->desc->hidden};
  CU_TRY(cudaMemcpyAsync(exec->host_x, exec->ranks[0].x, bytes, cudaMemcpyDeviceToHost, exec->ranks[0].stream));
  CU_TRY(cudaStreamSynchronize(exec->ranks[0].stream));
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

// --------------------------------------------------------------------------------------- one step

// Rows of a graph: 1, 2, 4, 8, then every eighth up to 256.
int graph_rows(const Exec *exec, const Job *job) {
  const mob_step_t &step = job->step;
  if (exec->spec.eager || step.token_count > kGraphRows || step.seq_count != step.token_count) return 0;
  if (exec->spec.last_layer == exec->desc->n_layers && job->logits.size() != step.token_count) return 0;
  const int n = (int)step.token_count;
  return n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : (n + 7) / 8 * 8;
}

// Sequences with at least 64 rows have their keys expanded, as long as there is room for them.
void plan_prefill(Exec *exec, const Job *job, bool allowed, int *meta) {
  const MetaLayout &at = exec->layout;
  PrefillPlan plan;
  auto absorb = [&](int from, int to) {
    if (!plan.absorbed.empty() && plan.absorbed.back().second == from) plan.absorbed.back().second = to;
    else plan.absorbed.push_back({from, to});
  };
  for (const mob_seq_step_t &seq : job->seqs) {
    const int row = (int)seq.row, count = (int)seq.count, keys = (int)(seq.start + seq.count + 63) / 64;
    const int pairs = (count + 127) / 128;
    if (!allowed || count < 64 || plan.key_blocks + keys > exec->max_key_blocks || plan.pairs + pairs > exec->max_pairs) {
      absorb(row, row + count);
      for (int i = 0; allowed && i < count; i++) meta[at.tile_row + row + i] = -1;
      continue;
    }
    PrefillPair *out = (PrefillPair *)(meta + at.pairs) + plan.pairs;
    for (int i = 0; i < pairs; i++)
      out[i] = {plan.blocks + 2 * i, row + i * 128, std::min(128, count - i * 128), (int)seq.start + i * 128, plan.key_blocks};
    for (int i = 0; i < count; i++) meta[at.tile_row + row + i] = plan.blocks * 64 + i;
    for (int i = 0; i < keys; i++) meta[at.key_pages + plan.key_blocks + i] = (int)seq.pages[i];
    plan.pairs += pairs;
    plan.blocks += 2 * pairs;
    plan.key_blocks += keys;
  }
  exec->plan = plan;
}

// Fills the step's tables; returns how many ints of them are used.
int fill_tables(const Exec *exec, const Job *job, int rows, int *meta) {
  const MetaLayout &at = exec->layout;
  const int count = (int)job->step.token_count;
  meta[0] = count;
  for (int i = count; i < rows; i++) {
    meta[at.token + i] = 0;
    meta[at.position + i] = 0;
    meta[at.table + i] = -1;
  }
  int pages = 0;
  for (const mob_seq_step_t &seq : job->seqs) {
    for (uint32_t k = 0; k < seq.count; k++) {
      const int row = (int)(seq.row + k);
      meta[at.token + row] = seq.tokens[k] == MOB_TOKEN_PREVIOUS ? -1 - (int)seq.slot : seq.tokens[k];
      meta[at.position + row] = (int)(seq.start + k);
      meta[at.table + row] = pages;
    }
    const uint32_t used = (seq.start + seq.count + 63) / 64;
    for (uint32_t k = 0; k < used; k++) meta[at.pages + pages++] = (int)seq.pages[k];
  }
  return at.pages + pages;
}

// The rows of one batch of logits, and which of them the device samples for good.
void fill_logit_rows(const Exec *exec, const Job *job, size_t first, int n, int padded, int *meta) {
  for (int i = 0; i < padded; i++) {
    const bool real = i < n;
    const LogitRow *row = real ? &job->logits[first + (size_t)i] : nullptr;
    meta[exec->layout.row + i] = real ? (int)row->row : 0;
    meta[exec->layout.slot + i] = real && row->sample && exec->slots[row->slot].plain ? (int)row->slot : -1;
  }
}

void report(Job *job, const mob_sample_output_t *outputs, uint64_t compute_ns) {
  std::vector<mob_sampled_t> sampled;
  std::vector<mob_prompt_logprob_t> prompt;
  for (size_t i = 0; i < job->logits.size(); i++) {
    const LogitRow &row = job->logits[i];
    const mob_sample_output_t &o = outputs[i];
    if (row.sample) sampled.push_back({row.slot, o.token, o.chosen, o.top, o.top_count});
    else prompt.push_back({row.slot, row.position, o.chosen, o.top, o.top_count});
  }
  const mob_step_result_t result = {job->step.id, sampled.data(), (uint32_t)sampled.size(), prompt.data(), (uint32_t)prompt.size(),
                                    compute_ns};
  job->done(job->arg, MOB_OK, nullptr, &result);
}

void sample_rows(Exec *exec, const Job *job, size_t first, size_t count, mob_sample_output_t *outputs) {
  std::atomic<size_t> next{0};
  auto work = [&](mob_sampler_t *sampler) {
    size_t i;
    while ((i = next.fetch_add(1)) < count) {
      float *logits = exec->host_logits + i * (size_t)exec->desc->vocab;
      const LogitRow &row = job->logits[first + i];
      const SlotState &slot = exec->slots[row.slot];
      mob_sample_output_t *out = &outputs[first + i];
      if (!row.sample) {
        mob_sampler_prompt(sampler, logits, &slot.sampling, slot.history[row.position], out);
        continue;
      }
      const uint32_t total = (uint32_t)slot.history.size();
      const mob_sample_input_t in = {&slot.sampling, slot.history.data(), slot.plain ? nullptr : slot.history.data() + slot.prompt_count,
                                     slot.plain ? 0 : slot.prompt_count, slot.plain ? 0 : total - slot.prompt_count};
      mob_sampler_run(sampler, logits, &in, out);
    }
  };
  std::vector<std::thread> helpers;
  for (size_t t = 1; t < exec->samplers.size() && t < count; t++) helpers.emplace_back(work, exec->samplers[t]);
  work(exec->samplers[0]);
  for (std::thread &t : helpers) t.join();
}

constexpr size_t kHostRows = 32; // rows of logits brought to the host at a time

// Logits of all wanted rows, sampled on the host; the device is idle meanwhile.
mob_status sample_on_host(Exec *exec, Job *job, bool head_done, mob_sample_output_t *outputs) {
  Rank *r = &exec->ranks[0];
  const size_t vocab = (size_t)exec->desc->vocab, total = job->logits.size();
  for (size_t first = 0; first < total; first += kLogitRows) {
    const size_t n = std::min<size_t>(kLogitRows, total - first);
    if (!head_done) {
      int *meta = exec->ring[job->ring].meta;
      CU_TRY(cudaStreamSynchronize(r->stream)); // the last batch's copy has left the buffer
      fill_logit_rows(exec, job, first, (int)n, (int)n, meta);
      CU_TRY(cudaMemcpyAsync(r->meta + exec->layout.row, meta + exec->layout.row, 2 * kLogitRows * 4, cudaMemcpyHostToDevice, r->stream));
      MOB_TRY(head(exec, r, r->meta + exec->layout.row, r->meta + exec->layout.slot, (int)n));
    }
    for (size_t from = 0; from < n; from += kHostRows) {
      const size_t count = std::min(kHostRows, n - from);
      CU_TRY(cudaMemcpyAsync(exec->host_logits, r->logits + from * vocab, count * vocab * 4, cudaMemcpyDeviceToHost, r->stream));
      CU_TRY(cudaStreamSynchronize(r->stream));
      sample_rows(exec, job, first + from, count, outputs);
    }
  }
  for (size_t i = 0; i < total; i++) {
    if (!job->logits[i].sample) continue;
    SlotState *slot = &exec->slots[job->logits[i].slot];
    if (!slot->plain) slot->history.push_back(outputs[i].token);
    CU_TRY(cudaMemcpyAsync(r->last_token + job->logits[i].slot, &outputs[i].token, 4, cudaMemcpyHostToDevice, r->stream));
  }
  CU_TRY(cudaStreamSynchronize(r->stream));
  return MOB_OK;
}

void wait_idle(Exec *exec) {
  std::unique_lock<std::mutex> hold(exec->lock);
  exec->idle.wait(hold, [&] { return exec->under_way == 0; });
}

int take_ring(Exec *exec) {
  std::unique_lock<std::mutex> hold(exec->lock);
  int at = 0;
  exec->idle.wait(hold, [&] {
    for (at = 0; at < kRing; at++)
      if (!exec->ring[at].busy) return true;
    return false;
  });
  exec->ring[at].busy = true;
  return at;
}

void release_ring(Exec *exec, int at) {
  std::lock_guard<std::mutex> hold(exec->lock);
  exec->ring[at].busy = false;
  exec->idle.notify_all();
}

void close_slots(Exec *exec, const Job *job) {
  for (uint32_t slot : job->close) exec->slots[slot].open = false;
}

// Tables, layers and, where the last layer is here, the head of a step whose rows fit one batch of logits.
mob_status launch_step(Exec *exec, Job *job, int graph, bool *head_done) {
  Rank *r = &exec->ranks[0];
  RingSlot &ring = exec->ring[job->ring];
  const bool last = exec->spec.last_layer == exec->desc->n_layers;
  const int rows = graph ? graph : (int)job->step.token_count, logit_rows = (int)job->logits.size();
  const int used = fill_tables(exec, job, rows, ring.meta);
  plan_prefill(exec, job, exec->fast_mla && !graph && r->layers[0].g[G_O].f8, ring.meta);
  if (graph) exec->plan.absorbed = {{0, rows}};
  if (logit_rows <= kLogitRows) fill_logit_rows(exec, job, 0, logit_rows, graph ? graph : logit_rows, ring.meta);
  CU_TRY(cudaMemcpyAsync(r->meta, ring.meta, (size_t)used * 4, cudaMemcpyHostToDevice, r->stream));
  if (exec->spec.first_layer > 0) MOB_TRY(receive_rows(exec, job));
  CU_TRY(cudaEventRecord(ring.begin, r->stream));
  *head_done = false;
  if (graph) {
    MOB_TRY(forward_graph(exec, r, graph));
    *head_done = last;
  } else {
    MOB_TRY(forward(exec, r, rows));
    if (last && logit_rows > 0 && logit_rows <= kLogitRows) {
      MOB_TRY(head(exec, r, r->meta + exec->layout.row, r->meta + exec->layout.slot, logit_rows));
      *head_done = true;
    }
  }
  CU_TRY(cudaEventRecord(ring.end, r->stream));
  if (exec->profile) { // a table for every number of rows, of all steps but the first two
    if (rows != exec->profile_rows) {
      profile_print(exec->profile_steps);
      exec->profile_rows = rows;
      exec->profile_steps = -2;
      printf("profile: %d rows\n", rows);
    }
    profile_step(r->stream);
    if (++exec->profile_steps <= 0) profile_reset();
  }
  return MOB_OK;
}

uint64_t elapsed_ns(const RingSlot &ring) {
  float ms = 0;
  return cudaEventElapsedTime(&ms, ring.begin, ring.end) == cudaSuccess ? (uint64_t)((double)ms * 1e6) : 0;
}

// Queues the step and leaves its end to the reporter, or finishes it here when the host must sample or send.
mob_status run_step(Exec *exec, Job *job, bool *handed_over) {
  Rank *r = &exec->ranks[0];
  MOB_TRY(prepare(exec, job));
  if (job->step.token_count == 0) {
    wait_idle(exec);
    report(job, nullptr, 0);
    close_slots(exec, job);
    return MOB_OK;
  }
  if (exec->spec.first_layer == 0) MOB_TRY(resolve_tokens(exec, job));
  const bool last = exec->spec.last_layer == exec->desc->n_layers;
  bool plain = true;
  for (const LogitRow &row : job->logits) plain = plain && row.sample && exec->slots[row.slot].plain;
  job->ring = take_ring(exec);
  RingSlot &ring = exec->ring[job->ring];
  bool head_done;
  MOB_TRY(launch_step(exec, job, graph_rows(exec, job), &head_done));
  if (last && plain && (head_done || job->logits.empty())) {
    if (!job->logits.empty()) {
      CU_TRY(cudaMemcpyAsync(ring.ids, r->ids, job->logits.size() * 4, cudaMemcpyDeviceToHost, r->stream));
      CU_TRY(cudaEventRecord(ring.end, r->stream));
    }
    close_slots(exec, job);
    std::lock_guard<std::mutex> hold(exec->lock);
    exec->reports.push_back(job);
    exec->under_way++;
    exec->wake.notify_all();
    *handed_over = true;
    return MOB_OK;
  }
  std::vector<mob_sample_output_t> outputs(job->logits.size());
  mob_status status = MOB_OK;
  if (!last) status = send_rows(exec, job);
  else status = sample_on_host(exec, job, head_done && job->logits.size() <= kLogitRows, outputs.data());
  MOB_TRY(status);
  std::vector<int32_t> ids;
  for (const mob_sample_output_t &o : outputs) ids.push_back(o.token);
  wait_idle(exec); // ids and results leave in order
  if (last) MOB_TRY(send_ids(exec, job, ids.data()));
  report(job, outputs.data(), elapsed_ns(ring));
  close_slots(exec, job);
  release_ring(exec, job->ring);
  return MOB_OK;
}

void fail_exec(Exec *exec, mob_status status) {
  {
    std::lock_guard<std::mutex> hold(exec->lock);
    if (exec->failed == MOB_OK) {
      exec->failed = status;
      exec->why = mob_errmsg();
    }
  }
  exec_abort(exec);
}

void end_failed(Exec *exec, Job *job) {
  std::string why;
  mob_status status;
  {
    std::lock_guard<std::mutex> hold(exec->lock);
    why = exec->why;
    status = exec->failed;
  }
  job->done(job->arg, status, why.c_str(), nullptr);
  delete job;
}

} // namespace

void leader_main(Exec *exec) {
  cudaSetDevice(exec->ranks[0].device);
  for (;;) {
    Job *job = nullptr;
    {
      std::unique_lock<std::mutex> hold(exec->lock);
      exec->wake.wait(hold, [&] { return !exec->queue.empty() || exec->closing; });
      if (exec->queue.empty()) break;
      job = exec->queue.front();
      exec->queue.pop_front();
    }
    mob_status status = exec->failed;
    bool handed_over = false;
    if (status == MOB_OK) {
      status = exec->aborted ? mob_fail(MOB_E_ABORTED, "the executor was aborted") : run_step(exec, job, &handed_over);
      if (status != MOB_OK) fail_exec(exec, status);
    }
    if (status != MOB_OK) {
      wait_idle(exec);
      end_failed(exec, job);
    } else if (!handed_over) {
      delete job;
    }
  }
  std::lock_guard<std::mutex> hold(exec->lock);
  exec->reporting_ends = true;
  exec->wake.notify_all();
}

void reporter_main(Exec *exec) {
  cudaSetDevice(exec->ranks[0].device);
  for (;;) {
    Job *job = nullptr;
    {
      std::unique_lock<std::mutex> hold(exec->lock);
      exec->wake.wait(hold, [&] { return !exec->reports.empty() || exec->reporting_ends; });
      if (exec->reports.empty()) return;
      job = exec->reports.front();
      exec->reports.pop_front();
    }
    RingSlot &ring = exec->ring[job->ring];
    mob_status status = exec->failed;
    const cudaError_t error = cudaEventSynchronize(ring.end);
    if (status == MOB_OK && error != cudaSuccess) {
      status = cuda_failed(error, "a step");
      fail_exec(exec, status);
    }
    if (status == MOB_OK) {
      std::vector<mob_sample_output_t> outputs(job->logits.size());
      std::vector<int32_t> ids(ring.ids, ring.ids + job->logits.size());
      for (size_t i = 0; i < outputs.size(); i++) {
        outputs[i].token = ids[i];
        outputs[i].top_count = 0;
        outputs[i].chosen = {ids[i], 0, 0};
      }
      status = send_ids(exec, job, ids.data());
      if (status != MOB_OK) fail_exec(exec, status);
      else report(job, outputs.data(), elapsed_ns(ring));
    }
    {
      std::lock_guard<std::mutex> hold(exec->lock);
      ring.busy = false;
      exec->under_way--;
      exec->idle.notify_all();
    }
    if (status != MOB_OK) end_failed(exec, job);
    else delete job;
  }
}

} // namespace mob
