// The backend table: devices, opening and closing an executor.
#include <cstdlib>
#include <cstring>

#include "engine/cuda/across.h"
#include "engine/cuda/weights.h"

namespace mob {
namespace {

// Kernels are loaded when a device is opened, not each at its first launch, which waits until the device rests and holds its context
// meanwhile: whoever needs that context to let the device rest (a copy from it to another rank, say) would wait until the wait's limit. To be
// asked before the process first uses CUDA; what the user says counts.
void load_kernels_at_open() {
  static const int asked = setenv("CUDA_MODULE_LOADING", "EAGER", 0);
  (void)asked;
}

int device_count() {
  load_kernels_at_open();
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    cudaGetLastError();
    mob_fail(MOB_E_UNSUPPORTED, "no CUDA device can be used: %s", cudaGetErrorString(error));
    return 0;
  }
  int usable = 0;
  for (int i = 0; i < count; i++) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, i);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, i);
    if (major == 9 && minor == 0) usable++;
    else mob_fail(MOB_E_UNSUPPORTED, "GPU %d has compute capability %d.%d; this build's kernels are for 9.0 (H100, H200)", i, major, minor);
  }
  return usable;
}

mob_status check_spec(const mob_exec_spec_t *spec) {
  const mob_model_desc_t *d = mob_model_desc(spec->model);
  if (spec->first_layer < 0 || spec->last_layer <= spec->first_layer || spec->last_layer > d->n_layers)
    return mob_fail(MOB_E_INVALID, "layers [%d, %d) are not a stage of a model with %d", spec->first_layer, spec->last_layer, d->n_layers);
  if (spec->tp < 1 || spec->max_tokens < 1 || spec->max_seqs < 1 || spec->max_len < 1)
    return mob_fail(MOB_E_INVALID, "tp, max_tokens, max_seqs and max_len must be positive");
  if (spec->ranks > kMaxRanks)
    return mob_fail(MOB_E_UNSUPPORTED, "the CUDA backend drives up to %d GPUs of a stage in one process, not %d; use "
                                       "--pipeline-parallel-size for more", kMaxRanks, spec->ranks);
  if (spec->ranks < 1 || spec->first_rank < 0 || spec->first_rank + spec->ranks > spec->tp)
    return mob_fail(MOB_E_INVALID, "ranks [%d, %d) are not among the %d of a stage", spec->first_rank, spec->first_rank + spec->ranks,
                    spec->tp);
  if (d->n_heads % spec->tp != 0)
    return mob_fail(MOB_E_INVALID, "%d attention heads do not divide over %d tensor-parallel ranks", d->n_heads, spec->tp);
  if (spec->expert_parallel && d->n_experts % spec->tp != 0)
    return mob_fail(MOB_E_INVALID, "%d experts do not divide over %d ranks", d->n_experts, spec->tp);
  if (d->vocab > kMaxSampleVocab)
    return mob_fail(MOB_E_UNSUPPORTED, "the CUDA backend samples from up to %d ids, this model has %d; use --device cpu", kMaxSampleVocab,
                    d->vocab);
  if (spec->exact)
    return mob_fail(MOB_E_UNSUPPORTED, "the CUDA backend computes in bfloat16 and FP8; --dtype float32 needs --device cpu");
  if (spec->kv_dtype == MOB_DT_F8E4M3)
    return mob_fail(MOB_E_UNSUPPORTED, "the CUDA backend keeps keys and values in bfloat16; use --kv-cache-dtype auto");
  if (d->hidden % 8 != 0 || d->hidden > 32768)
    return mob_fail(MOB_E_UNSUPPORTED, "hidden size %d: the CUDA backend needs a multiple of 8 up to 32768", d->hidden);
  if (d->n_experts + d->n_shared > kMaxExperts || d->n_experts > 512 || d->top_k + d->n_shared > 32 || d->n_group > 64)
    return mob_fail(MOB_E_UNSUPPORTED, "%d experts in %d groups, %d a token: the CUDA backend takes up to 512, 64 and 31", d->n_experts,
                    d->n_group, d->top_k);
  if (d->attn == MOB_ATTN_GQA && (d->head_dim % 8 != 0 || d->head_dim > 256))
    return mob_fail(MOB_E_UNSUPPORTED, "head size %d: the CUDA backend needs a multiple of 8 up to 256", d->head_dim);
  if (d->attn == MOB_ATTN_MLA && (d->kv_lora % 8 != 0 || d->qk_rope % 8 != 0 || d->kv_lora > 1024 || d->qk_rope > 256))
    return mob_fail(MOB_E_UNSUPPORTED, "latent sizes %d + %d are not supported by the CUDA backend", d->kv_lora, d->qk_rope);
  if (d->mlp_bias)
    return mob_fail(MOB_E_UNSUPPORTED, "mlp_bias is not supported by the CUDA backend");
  return MOB_OK;
}

void set_sizes(Exec *exec) {
  const mob_exec_spec_t &s = exec->spec;
  const int graph = s.max_seqs < kGraphRows ? s.max_seqs : kGraphRows;
  const int rows = (s.max_tokens > kGraphRows ? s.max_tokens : kGraphRows) + 8;
  exec->max_rows = padded_rows(s.max_tokens) > padded_rows(graph) + 8 ? padded_rows(s.max_tokens) : padded_rows(graph) + 8;
  exec->max_logit_rows = rows > kLogitRows ? rows : kLogitRows;
  // A sequence of a plan has 64 rows at least.
  exec->max_pairs = s.max_tokens / 64 + 1;
  exec->max_key_blocks = s.max_tokens < 64 ? 0 : s.max_tokens / 64 * 2 < 128 ? 128 : s.max_tokens / 64 * 2;
  exec->table_ints = tables_most(exec);
}

void close_exec(Exec *exec);

mob_status open_rank(const Exec *exec, Rank *r) {
  const mob_exec_spec_t &s = exec->spec;
  const mob_model_desc_t *d = exec->desc;
  r->heads = d->n_heads / s.tp;
  r->kv_heads = d->n_kv_heads >= s.tp ? d->n_kv_heads / s.tp : 1;
  r->first_expert = s.expert_parallel ? d->n_experts * r->number / s.tp : 0;
  r->experts = s.expert_parallel ? d->n_experts / s.tp : d->n_experts;
  CU_TRY(cudaDeviceGetAttribute(&r->sms, cudaDevAttrMultiProcessorCount, r->device));
  CU_TRY(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
  linear_prepare();
  absorb_prepare();
  attention_mla_prepare();
  attention_prefill_prepare();
  attention_gqa_prepare();
  CU_TRY(cudaGetLastError());
  return MOB_OK;
}

mob_status open_exec(Exec *exec) {
  const mob_exec_spec_t &s = exec->spec;
  const mob_model_desc_t *d = exec->desc;
  const int devices = device_count();
  if (devices == 0) return MOB_E_UNSUPPORTED;
  if (devices < s.ranks)
    return mob_fail(MOB_E_NO_RESOURCES, "%d tensor-parallel ranks in one pod need as many GPUs there; this one has %d", s.ranks, devices);
  exec->spec.expert_parallel = s.expert_parallel && s.tp > 1;
  exec->ranks.resize((size_t)s.ranks);
  for (int i = 0; i < s.ranks; i++) {
    exec->ranks[(size_t)i].index = i;
    exec->ranks[(size_t)i].number = s.first_rank + i;
    exec->ranks[(size_t)i].device = s.devices ? s.devices[i] : i;
  }
  MOB_TRY(on_ranks(exec, [&](Rank *r) { return open_rank(exec, r); })); // side by side: a device's context takes its time
  MOB_TRY(comm_open(exec));
  if (s.ranks < s.tp) MOB_TRY(across_open(exec));
  exec->mla = d->attn == MOB_ATTN_MLA;
  exec->fast_gqa = !exec->mla && gqa_is_fast(exec->ranks[0].heads, exec->ranks[0].kv_heads, d->head_dim, d->v_head_dim, d->rope.dim);
  exec->kv_width = exec->mla ? d->kv_lora + d->qk_rope : 2 * exec->ranks[0].kv_heads * d->head_dim;
  exec->profile = profile_start();
  if (exec->profile) exec->spec.eager = true;
  exec->slots.resize((size_t)s.max_seqs);
  set_sizes(exec);
  return weights_bind(exec);
}

mob_status cuda_open(const mob_exec_spec_t *spec, mob_exec_t **out) {
  mob_exec_spec_t wanted = *spec;
  if (wanted.ranks == 0) wanted.ranks = wanted.tp;
  MOB_TRY(check_spec(&wanted));
  Exec *exec = new Exec();
  exec->spec = wanted;
  exec->desc = mob_model_desc(spec->model);
  const mob_status status = open_exec(exec);
  if (status != MOB_OK) {
    close_exec(exec);
    return status;
  }
  *out = (mob_exec_t *)exec;
  return MOB_OK;
}

mob_status alloc_rank(Exec *exec, Rank *r, int64_t pages) {
  r->layer_cache = (size_t)pages * page_bytes(exec->kv_width);
  const size_t bytes = r->layer_cache * r->layers.size();
  CU_TRY(cudaMalloc(&r->cache, bytes));
  CU_TRY(cudaMemset(r->cache, 0, bytes)); // a masked key's value is multiplied by 0: it must be a number
  MOB_TRY(workspace_alloc(exec, r));
  CU_TRY(cudaStreamCreateWithFlags(&r->copies, cudaStreamNonBlocking));
  for (cudaEvent_t &event : r->staged_in) CU_TRY(cudaEventCreateWithFlags(&event, cudaEventDisableTiming));
  if (exec->spec.prev) CU_TRY(cudaEventCreateWithFlags(&r->rows_taken, cudaEventDisableTiming));
  CU_TRY(cudaDeviceSynchronize());
  return MOB_OK;
}

mob_status alloc_pages(Exec *exec, int64_t pages) {
  const mob_exec_spec_t &s = exec->spec;
  MOB_TRY(on_ranks(exec, [&](Rank *r) { return alloc_rank(exec, r, pages); }));
  if (!exec->across) comm_connect(exec);
  CU_TRY(cudaSetDevice(exec->ranks[0].device));
  CU_TRY(cudaMallocHost(&exec->tables, (size_t)kRing * (size_t)exec->table_ints * 4));
  for (RingSlot &ring : exec->ring) {
    CU_TRY(cudaMallocHost(&ring.times, sizeof(StepTimes)));
    CU_TRY(cudaMallocHost(&ring.ids, (size_t)exec->max_logit_rows * 4));
    CU_TRY(cudaMallocHost(&ring.results, (size_t)exec->max_logit_rows * sizeof(SampleResult)));
    CU_TRY(cudaMallocHost(&ring.stage.data, kSampleStage));
    CU_TRY(cudaEventCreateWithFlags(&ring.end, cudaEventDisableTiming));
  }
  if (s.prev || s.next) {
    uint8_t *host = nullptr;
    CU_TRY(cudaMallocHost(&host, 64 + (size_t)s.max_tokens * (size_t)exec->desc->hidden * 4));
    exec->host_x = (float *)(host + 64);
  }
  CU_TRY(cudaDeviceSynchronize());
  return MOB_OK;
}

mob_status cuda_alloc_kv(mob_exec_t *handle, int64_t pages) {
  Exec *exec = (Exec *)handle;
  if (pages < 1) return mob_fail(MOB_E_INVALID, "%lld pages for keys and values", (long long)pages);
  if (exec->across && !across_joined(exec)) return mob_fail(MOB_E_INVALID, "the stage's other processes must be joined first");
  if (!exec->loaded) return mob_fail(MOB_E_INVALID, "weights must be loaded before pages are allocated");
  if (exec->pages) return mob_fail(MOB_E_INVALID, "pages are allocated already");
  MOB_TRY(alloc_pages(exec, pages));
  exec->pages = pages;
  ranks_start(exec);
  exec->leader = std::thread(leader_main, exec);
  exec->reporter = std::thread(reporter_main, exec);
  return MOB_OK;
}

mob_status cuda_step(mob_exec_t *handle, const mob_step_t *step, mob_step_fn done, void *arg) {
  Exec *exec = (Exec *)handle;
  if (!exec->pages) return mob_fail(MOB_E_INVALID, "a step before pages are allocated");
  MOB_TRY(check_step(exec, step));
  Job *job = copy_step(step, done, arg);
  std::lock_guard<std::mutex> hold(exec->lock);
  exec->queue.push_back(job);
  exec->wake.notify_all();
  return MOB_OK;
}

void close_rank(Rank *r) {
  cudaSetDevice(r->device);
  for (void *block : r->blocks) cudaFree(block);
  cudaFree(r->cache);
  sampler_close(&r->sampler);
  cudaFree(r->workspace);
  if (r->rows_taken) cudaEventDestroy(r->rows_taken);
  for (cudaEvent_t event : r->staged_in)
    if (event) cudaEventDestroy(event);
  if (r->copies) cudaStreamDestroy(r->copies);
  if (r->stream) cudaStreamDestroy(r->stream);
}

void close_exec(Exec *exec) {
  if (!exec) return;
  {
    std::lock_guard<std::mutex> hold(exec->lock);
    exec->closing = true;
    exec->wake.notify_all();
  }
  if (exec->leader.joinable()) exec->leader.join();
  if (exec->reporter.joinable()) exec->reporter.join();
  ranks_end(exec);
  across_abort(exec);
  if (!across_close(exec)) {
    mob_log(MOB_LOG_WARNING, "cuda", "the stage's GPUs still wait for ranks in other pods: what is on them is freed by the end of this process");
    return;
  }
  across_free(exec);
  for (Rank &rank : exec->ranks) {
    if (!rank.stream) continue;
    cudaSetDevice(rank.device);
    cudaStreamSynchronize(rank.stream);
    for (auto &graph : rank.graphs) cudaGraphExecDestroy(graph.second);
  }
  if (exec->profile) profile_print(exec->profile_steps);
  for (RingSlot &ring : exec->ring) {
    if (ring.end) cudaEventDestroy(ring.end);
    cudaFreeHost(ring.times);
    cudaFreeHost(ring.ids);
    cudaFreeHost(ring.results);
    cudaFreeHost(ring.stage.data);
  }
  cudaFreeHost(exec->tables);
  if (exec->host_x) cudaFreeHost((uint8_t *)exec->host_x - 64);
  for (Rank &rank : exec->ranks) close_rank(&rank);
  comm_close(exec);
  delete exec;
}

mob_status cuda_join(mob_exec_t *handle, const uint8_t id[MOB_GROUP_ID], uint64_t timeout_ms) {
  Exec *exec = (Exec *)handle;
  if (!exec->across) return MOB_OK; // all ranks are here
  return across_join(exec, id, timeout_ms);
}

mob_status cuda_plan(mob_exec_t *exec, mob_memory_plan_t *out) { return memory_plan((Exec *)exec, out); }

mob_status cuda_load(mob_exec_t *handle, void (*progress)(void *arg, const mob_load_progress_t *p), void *arg) {
  Exec *exec = (Exec *)handle;
  mob_memory_plan_t plan;
  MOB_TRY(memory_plan(exec, &plan));
  if (plan.pages < 1) return mob_fail(MOB_E_NO_RESOURCES, "the model does not fit: %s", plan.text);
  return weights_load(exec, progress, arg);
}

} // namespace

void exec_abort(Exec *exec) {
  exec->aborted = true;
  comm_halt(exec);
  across_abort(exec);
  if (!exec->spec.link) return;
  if (exec->spec.prev) exec->spec.link->abort(exec->spec.prev);
  if (exec->spec.next) exec->spec.link->abort(exec->spec.next);
  if (exec->spec.ids) exec->spec.link->abort(exec->spec.ids);
}

namespace {
void cuda_abort(mob_exec_t *exec) { exec_abort((Exec *)exec); }
void cuda_close(mob_exec_t *exec) { close_exec((Exec *)exec); }
} // namespace
} // namespace mob

extern "C" {
__attribute__((visibility("default"))) extern const mob_backend_t mob_backend_cuda;
const mob_backend_t mob_backend_cuda = {"cuda",         mob::device_count,  mob::cuda_open, mob::across_id,  mob::cuda_join, mob::cuda_plan,
                                        mob::cuda_load, mob::cuda_alloc_kv, mob::cuda_step, mob::cuda_abort, mob::cuda_close};
}
