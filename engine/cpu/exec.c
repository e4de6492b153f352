#include "engine/cpu/amx.h"
#include "engine/cpu/contract.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "runtime/base/mem.h"

static int cpu_device_count(void) {
  return 1;
}

static mob_status check_spec(const mob_exec_spec_t *spec) {
  const mob_model_desc_t *d = mob_model_desc(spec->model);
  if (spec->first_layer < 0 || spec->last_layer <= spec->first_layer ||
      spec->last_layer > d->n_layers)
    return mob_fail(MOB_E_INVALID, "layers [%d, %d) are not a stage of a model with %d",
                    spec->first_layer, spec->last_layer, d->n_layers);
  if (spec->tp < 1 || spec->max_tokens < 1 || spec->max_seqs < 1 || spec->max_len < 1)
    return mob_fail(MOB_E_INVALID, "tp, max_tokens, max_seqs and max_len must be positive");
  if (spec->ranks && spec->ranks != spec->tp)
    return mob_fail(MOB_E_UNSUPPORTED, "the CPU backend computes all %d tensor-parallel ranks of a stage in one pod, not %d of them; use "
                                       "--pipeline-parallel-size between pods", spec->tp, spec->ranks);
  if (spec->kv_dtype == MOB_DT_F8E4M3)
    return mob_fail(MOB_E_UNSUPPORTED,
                    "the CPU backend keeps keys and values in float32, bfloat16 or float16, not %s",
                    mob_dtype_name(spec->kv_dtype));
  if (spec->expert_parallel && d->n_experts > 0 && d->n_experts % spec->tp != 0)
    return mob_fail(MOB_E_INVALID, "%d experts do not divide over %d ranks", d->n_experts,
                    spec->tp);
  if ((spec->first_layer > 0 && !spec->prev) || (spec->last_layer < d->n_layers && !spec->next))
    return mob_fail(MOB_E_INVALID, "a stage in the middle needs its links");
  return MOB_OK;
}

static void set_sizes(mob_exec_t *exec) {
  const mob_model_desc_t *d = exec->desc;
  int tp = exec->spec.tp, kv_heads = d->n_kv_heads >= tp ? d->n_kv_heads / tp : 1;
  exec->kv_width = d->attn == MOB_ATTN_MLA ? d->kv_lora + d->qk_rope : 2 * kv_heads * d->head_dim;
  size_t attention = mob__attention_scratch(exec), ffn = mob__ffn_scratch(exec);
  exec->scratch_floats = attention > ffn ? attention : ffn;
  const char *mla = getenv("MOB_CPU_MLA"); // for tests and measurements
  exec->mla = mla && strcmp(mla, "absorbed") == 0 ? 1 : mla && strcmp(mla, "expanded") == 0 ? 2 : 0;
  exec->threads = exec->spec.threads > 0 ? exec->spec.threads : mob__cpu_count();
  exec->team = exec->threads / tp < 1 ? 1 : exec->threads / tp;
  for (int r = 0; r < tp; r++) {
    exec->ranks[r].exec = exec;
    exec->ranks[r].index = r;
    exec->ranks[r].heads = d->n_heads / tp;
    exec->ranks[r].kv_heads = kv_heads;
  }
}

static mob_status start_ranks(mob_exec_t *exec) {
  const mob_model_desc_t *d = exec->desc;
  bool spin = exec->spec.tp * exec->team <= mob__cpu_count();
  bool last = exec->spec.last_layer == d->n_layers;
  if (exec->spec.first_layer > 0)
    exec->input = mob_malloc((size_t)exec->spec.max_tokens * (size_t)d->hidden * sizeof(float));
  if (last) exec->logits = mob_malloc((size_t)MOB_LOGIT_ROWS * (size_t)d->vocab * sizeof(float));
  for (int r = 0; r < exec->spec.tp; r++) {
    mob_rank_t *rank = &exec->ranks[r];
    MOB_TRY(mob__rank_alloc(rank));
    rank->team = mob_team_new(exec->team, spin);
    if (last) {
      rank->samplers = MOB_NEW_ARRAY(mob_sampler_t *, (size_t)exec->team);
      for (int t = 0; t < exec->team; t++) rank->samplers[t] = mob_sampler_new(d->vocab);
    }
  }
  return MOB_OK;
}

static void cpu_abort(mob_exec_t *exec) {
  atomic_store(&exec->aborted, true);
  mob_comm_host.abort(exec->comm);
  if (exec->spec.link) {
    if (exec->spec.prev) exec->spec.link->abort(exec->spec.prev);
    if (exec->spec.next) exec->spec.link->abort(exec->spec.next);
    if (exec->spec.ids) exec->spec.link->abort(exec->spec.ids);
  }
  mob__wake_word(&exec->released); // followers look at the flag before they take it for a step
}

static void cpu_close(mob_exec_t *exec) {
  if (!exec) return;
  pthread_mutex_lock(&exec->lock);
  exec->closing = true;
  pthread_cond_signal(&exec->wake);
  pthread_mutex_unlock(&exec->lock);
  if (exec->ranks[0].started) {
    cpu_abort(exec); // steps still under way may wait for a peer that is gone: they end with
                     // MOB_E_ABORTED
    pthread_join(exec->ranks[0].thread, NULL);
  }
  atomic_store(&exec->active, NULL);
  mob__wake_word(&exec->released);
  for (int r = 1; r < exec->spec.tp; r++)
    if (exec->ranks[r].started) pthread_join(exec->ranks[r].thread, NULL);
  for (mob_job_t *job = exec->retired, *next; job; job = next) {
    next = job->next;
    mob__job_free(job);
  }
  for (int r = 0; r < exec->spec.tp; r++) {
    mob_team_free(exec->ranks[r].team);
    mob__rank_free(&exec->ranks[r]);
  }
  mob_rank_weights_t *weights = MOB_NEW_ARRAY(mob_rank_weights_t, (size_t)exec->spec.tp);
  for (int r = 0; r < exec->spec.tp; r++) weights[r] = exec->ranks[r].weights;
  mob_weights_free(&exec->spec, weights, &exec->store);
  free(weights);
  for (int i = 0; exec->slots && i < exec->spec.max_seqs; i++) mob__slot_close(&exec->slots[i]);
  for (size_t i = 0; i < exec->pending.len; i++) free(exec->pending.at[i].slots);
  mob_vec_free(&exec->pending);
  mob_comm_host.close(exec->comm);
  pthread_mutex_destroy(&exec->lock);
  pthread_cond_destroy(&exec->wake);
  free(exec->slots);
  free(exec->input);
  free(exec->logits);
  free(exec->ranks);
  free(exec);
}

static mob_status cpu_open(const mob_exec_spec_t *spec, mob_exec_t **out) {
  MOB_TRY(check_spec(spec));
  mob_exec_t *exec = MOB_NEW(mob_exec_t);
  exec->spec = *spec;
  // Rounding the cache tips the router's near ties, and its memory is little beside the weights:
  // auto is fp32.
  if (spec->kv_dtype == MOB_DT_COUNT)
    exec->spec.kv_dtype = spec->contract ? MOB_DT_BF16 : MOB_DT_F32;
  exec->desc = mob_model_desc(spec->model);
  exec->ops = mob_cpu_ops_pick();
  exec->tiles = !spec->exact && !spec->contract && mob_amx_usable();
  exec->ranks = MOB_NEW_ARRAY(mob_rank_t, (size_t)spec->tp);
  exec->slots = MOB_NEW_ARRAY(mob_slot_state_t, (size_t)spec->max_seqs);
  exec->tail = &exec->first;
  pthread_mutex_init(&exec->lock, NULL);
  pthread_cond_init(&exec->wake, NULL);
  set_sizes(exec);
  mob_status status = mob_comm_host.open(spec->tp, &exec->comm);
  if (status == MOB_OK) {
    mob_rank_weights_t *weights = MOB_NEW_ARRAY(mob_rank_weights_t, (size_t)spec->tp);
    status = mob_weights_bind(&exec->spec, weights, &exec->store);
    for (int r = 0; r < spec->tp; r++) exec->ranks[r].weights = weights[r];
    free(weights);
  }
  if (status != MOB_OK) {
    cpu_close(exec);
    return status;
  }
  *out = exec;
  return MOB_OK;
}

static mob_status cpu_plan(mob_exec_t *exec, mob_memory_plan_t *out) {
  const double gib = 1024.0 * 1024 * 1024;
  const mob_exec_spec_t *s = &exec->spec;
  uint64_t tp = (uint64_t)s->tp, layers = (uint64_t)(s->last_layer - s->first_layer);
  double share = s->memory_share > 0 && s->memory_share <= 1 ? s->memory_share : 0.9;
  *out = (mob_memory_plan_t){0};
  out->weights = exec->store.bytes / tp;
  out->workspace = mob__workspace_bytes(exec);
  out->page_bytes =
      layers * MOB_PAGE_TOKENS * (uint64_t)exec->kv_width * mob_dtype_size(s->kv_dtype);
  out->available = (uint64_t)((double)mob__memory_available() * share) / tp;
  int64_t left = (int64_t)out->available - (int64_t)out->weights - (int64_t)out->workspace;
  // More than every slot at its longest is never used.
  int64_t useful = (int64_t)s->max_seqs * ((s->max_len + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS);
  out->pages = left <= 0 ? 0 : left / (int64_t)out->page_bytes;
  bool all = out->pages >= useful;
  if (all) out->pages = useful;
  snprintf(out->text, sizeof out->text,
           "memory of each of %d ranks: %.2f GiB (%.0f%% of what is available) - weights %.2f GiB "
           "- workspace %.2f GiB "
           "= %.2f GiB for keys and values; a page of %d tokens takes %.1f KiB: %lld pages%s",
           s->tp, (double)out->available / gib, share * 100, (double)out->weights / gib,
           (double)out->workspace / gib, (double)left / gib, MOB_PAGE_TOKENS,
           (double)out->page_bytes / 1024, (long long)out->pages,
           all ? " (enough for every sequence at its longest)" : "");
  return MOB_OK;
}

static mob_status cpu_load(mob_exec_t *exec,
                           void (*progress)(void *arg, const mob_load_progress_t *p), void *arg) {
  // More threads than CPUs: they wait for the disk.
  int threads = exec->threads < 4 ? 4 : exec->threads;
  MOB_TRY(mob_weights_read(&exec->store, threads, progress, arg));
  mob_rank_weights_t *weights = MOB_NEW_ARRAY(mob_rank_weights_t, (size_t)exec->spec.tp);
  for (int r = 0; r < exec->spec.tp; r++) weights[r] = exec->ranks[r].weights;
  mob_status status = mob_weights_vectors(&exec->spec, weights);
  for (int r = 0; r < exec->spec.tp; r++) exec->ranks[r].weights = weights[r];
  free(weights);
  MOB_TRY(status);
  if (exec->spec.contract) MOB_TRY(mob__contract_weights(exec));
  exec->loaded = true;
  if (progress) progress(arg, &(mob_load_progress_t){exec->store.bytes, exec->store.bytes});
  return MOB_OK;
}

static mob_status alloc_rank_kv(mob_exec_t *exec, mob_rank_t *rank) {
  size_t bytes = exec->kv_layer_bytes * (size_t)(exec->spec.last_layer - exec->spec.first_layer);
  void *kv =
      mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (kv == MAP_FAILED)
    return mob_fail(MOB_E_NO_RESOURCES, "no memory for %zu bytes of keys and values", bytes);
  rank->kv = kv;
  return MOB_OK;
}

static mob_status cpu_alloc_kv(mob_exec_t *exec, int64_t pages) {
  if (pages < 1) return mob_fail(MOB_E_INVALID, "%lld pages for keys and values", (long long)pages);
  if (!exec->loaded)
    return mob_fail(MOB_E_INVALID, "weights must be loaded before pages are allocated");
  if (exec->pages) return mob_fail(MOB_E_INVALID, "pages are allocated already");
  exec->kv_layer_bytes = (size_t)pages * MOB_PAGE_TOKENS * (size_t)exec->kv_width *
                         mob_dtype_size(exec->spec.kv_dtype);
  for (int r = 0; r < exec->spec.tp; r++) MOB_TRY(alloc_rank_kv(exec, &exec->ranks[r]));
  MOB_TRY(start_ranks(exec));
  exec->pages = pages;
  for (int r = 0; r < exec->spec.tp; r++) {
    if (pthread_create(&exec->ranks[r].thread, NULL, mob__rank_main, &exec->ranks[r]) != 0)
      return mob_fail(MOB_E_NO_RESOURCES, "cannot start a thread for rank %d", r);
    exec->ranks[r].started = true;
  }
  return MOB_OK;
}

static mob_status cpu_step(mob_exec_t *exec, const mob_step_t *step, mob_step_fn done, void *arg) {
  if (!exec->pages) return mob_fail(MOB_E_INVALID, "no step before pages are allocated");
  MOB_TRY(mob__job_check(exec, step));
  mob_job_t *job = mob__job_new(step, done, arg);
  pthread_mutex_lock(&exec->lock);
  *exec->tail = job;
  exec->tail = &job->next;
  pthread_cond_signal(&exec->wake);
  pthread_mutex_unlock(&exec->lock);
  return MOB_OK;
}

const mob_backend_t mob_backend_cpu = {
    .name = "cpu",
    .device_count = cpu_device_count,
    .open = cpu_open,
    .plan = cpu_plan,
    .load = cpu_load,
    .alloc_kv = cpu_alloc_kv,
    .step = cpu_step,
    .abort = cpu_abort,
    .close = cpu_close,
};
