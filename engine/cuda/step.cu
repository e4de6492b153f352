// Running steps, one after the other: tables to the device, layers, head, ids back.
#include <algorithm>
#include <cstring>

#include "engine/cuda/exec.h"

namespace mob {
namespace {

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
  plan_prefill(exec, job, !graph && (exec->fast_gqa || (exec->fast_mla && r->layers[0].g[G_O].f8)), ring.meta);
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
  MOB_TRY(prepare_step(exec, job));
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
