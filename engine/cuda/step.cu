// Running steps, one after the other: tables to the device, layers, head, ids back.
#include <algorithm>
#include <cstring>

#include "engine/cuda/across.h"

namespace mob {
namespace {

mob_token_logprob_t chosen(const SampleResult &r) { return {r.token, r.logprob, r.rank}; }

void report(Job *job, const RingSlot &ring, uint64_t compute_ns) {
  std::vector<mob_sampled_t> sampled;
  std::vector<mob_prompt_logprob_t> prompt;
  std::vector<mob_token_logprob_t> tops(job->logprobs ? job->logits.size() * MOB_MAX_LOGPROBS : 0);
  for (size_t i = 0; i < job->logits.size(); i++) {
    const LogitRow &row = job->logits[i];
    if (!row.logprobs) {
      const int32_t token = job->logprobs ? ring.results[i].token : ring.ids[i];
      sampled.push_back({row.slot, token, {token, 0, 0}, nullptr, 0});
      continue;
    }
    const SampleResult &r = ring.results[i];
    mob_token_logprob_t *top = &tops[i * MOB_MAX_LOGPROBS];
    for (int k = 0; k < r.top_count; k++) top[k] = {r.top_token[k], r.top_logprob[k], k + 1};
    if (row.sample) sampled.push_back({row.slot, r.token, chosen(r), top, (uint32_t)r.top_count});
    else prompt.push_back({row.slot, row.position, chosen(r), top, (uint32_t)r.top_count});
  }
  const mob_step_result_t result = {job->step.id, sampled.data(), (uint32_t)sampled.size(), prompt.data(), (uint32_t)prompt.size(),
                                    compute_ns};
  job->done(job->arg, MOB_OK, nullptr, &result);
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

void close_slots(Exec *exec, const Job *job) {
  for (uint32_t slot : job->close) exec->slots[slot].open = false;
}

// The step's tables to the device, while the step before may still run: its first kernel finds them there.
mob_status stage_tables(const Exec *exec, Rank *r, int used) {
  const size_t slot = (exec->tables_queued - 1) % kRing, at = slot * (size_t)exec->table_ints;
  CU_TRY(cudaMemcpyAsync(r->staged + at, exec->tables + at, (size_t)used * 4, cudaMemcpyHostToDevice, r->copies));
  CU_TRY(cudaEventRecord(r->staged_in[slot], r->copies));
  CU_TRY(cudaStreamWaitEvent(r->stream, r->staged_in[slot], 0));
  return MOB_OK;
}

// One rank's share of a step: tables, layers and, on the last stage, the head. `graph`: rows of the graph that serves it; 0: none.
mob_status launch_rank(Exec *exec, Rank *r, const Job *job, int graph, int used) {
  const bool last = exec->spec.last_layer == exec->desc->n_layers;
  MOB_TRY(stage_tables(exec, r, used));
  if (exec->across) step_begins(exec, r); // what is shared behind it is part of them
  if (exec->spec.prev && (!exec->across || r->index == 0)) MOB_TRY(take_rows(exec, r, job));
  if (exec->across && exec->spec.first_layer > 0) MOB_TRY(across_share_rows(exec, r, (int)job->step.token_count));
  else if (exec->across && !last) MOB_TRY(across_share_tokens(exec, r, (int)job->step.token_count));
  if (graph) return forward_graph(exec, r, graph, job->plain);
  return forward(exec, r, (int)job->step.token_count, (int)job->logits.size(), job->plain);
}

// What all ranks take of the step, and how many ints that is. Its place is free: of kRing steps under way the first one is over when there is another.
int write_tables(Exec *exec, Job *job, int graph) {
  RingSlot &ring = exec->ring[job->ring];
  const int rows = graph ? graph : (int)job->step.token_count, logit_rows = graph ? graph : (int)job->logits.size();
  int *meta = exec->tables + exec->tables_queued++ % kRing * (size_t)exec->table_ints;
  exec->layout = tables_layout(exec, rows, logit_rows, !graph);
  const int used = fill_tables(exec, job, rows, meta);
  plan_prefill(exec, job, !graph && (exec->fast_gqa || (exec->fast_mla && exec->ranks[0].layers[0].g[G_O].f8)), meta);
  if (graph) exec->plan.absorbed = {{0, rows}};
  fill_logit_rows(exec, job, logit_rows, meta);
  *(StepHead *)meta = {(int)job->step.token_count, used, ring.times, ring.ids, 0};
  return used;
}

mob_status launch_step(Exec *exec, Job *job, int graph) {
  Rank *r = &exec->ranks[0];
  const int rows = graph ? graph : (int)job->step.token_count;
  const int used = write_tables(exec, job, graph);
  if (exec->spec.prev) MOB_TRY(receive_rows(exec, job));
  MOB_TRY(each_rank(exec, [&](Rank *rank) { return launch_rank(exec, rank, job, graph, used); }));
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

// What was sampled, to the host, beyond the ids.
mob_status fetch_samples(Rank *r, const Job *job, RingSlot *ring) {
  const size_t count = job->logits.size();
  if (count == 0 || !job->logprobs) return MOB_OK;
  CU_TRY(cudaMemcpyAsync(ring->results, r->sampler.results, count * sizeof(SampleResult), cudaMemcpyDeviceToHost, r->stream));
  return MOB_OK;
}

mob_status await_end(Exec *exec, const RingSlot &ring) {
  if (exec->across) return across_wait(exec, ring.end);
  CU_TRY(cudaEventSynchronize(ring.end));
  return MOB_OK;
}

uint64_t elapsed_ns(const StepTimes &times) { return times.ended > times.begun && times.begun ? times.ended - times.begun : 0; }

// Queues the step and leaves its end to the reporter.
mob_status run_step(Exec *exec, Job *job) {
  Rank *r = &exec->ranks[0];
  const bool last = exec->spec.last_layer == exec->desc->n_layers, any = job->step.token_count > 0, samples = r->number == 0;
  MOB_TRY(prepare_step(exec, job));
  if (any && exec->spec.first_layer == 0) MOB_TRY(resolve_tokens(exec, job));
  job->ring = take_ring(exec);
  RingSlot &ring = exec->ring[job->ring];
  ring.stage.used = 0;
  *ring.times = {0, 0};
  for (const mob_seq_open_t &o : job->open)
    if (last && samples && !exec->slots[o.slot].plain) MOB_TRY(sampler_open(&r->sampler, o, &ring.stage, r->stream));
  if (any) MOB_TRY(launch_step(exec, job, graph_rows(exec, job)));
  if (!samples) job->logits.clear(); // rank 0's process tells what was sampled
  MOB_TRY(fetch_samples(r, job, &ring));
  CU_TRY(cudaEventRecord(ring.end, r->stream));
  if (any && exec->spec.next) MOB_TRY(send_rows(exec, job));
  close_slots(exec, job);
  std::lock_guard<std::mutex> hold(exec->lock);
  exec->reports.push_back(job);
  exec->under_way++;
  exec->wake.notify_all();
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
  profile_this_thread();
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
    if (status == MOB_OK) {
      status = exec->aborted ? mob_fail(MOB_E_ABORTED, "the executor was aborted") : run_step(exec, job);
      if (status != MOB_OK) fail_exec(exec, status);
    }
    if (status != MOB_OK) {
      wait_idle(exec);
      end_failed(exec, job);
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
    const mob_status ended = await_end(exec, ring);
    if (status == MOB_OK && ended != MOB_OK) {
      status = ended;
      fail_exec(exec, status);
    }
    if (status == MOB_OK && (status = comm_failure(exec)) != MOB_OK) fail_exec(exec, status);
    if (status == MOB_OK) {
      std::vector<int32_t> ids;
      for (size_t i = 0; i < job->logits.size(); i++) ids.push_back(job->logprobs ? ring.results[i].token : ring.ids[i]);
      status = send_ids(exec, job, ids.data());
      if (status != MOB_OK) fail_exec(exec, status);
      else report(job, ring, elapsed_ns(*ring.times));
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
