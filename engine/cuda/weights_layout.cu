// Weights of the ranks: which matrices stand together, in which form, where.
//
// An FP8 matrix is packed as it is when every tile of 64 x 128 lies inside one block of scales. A shard or a head that
// begins elsewhere cannot keep its scales; the matrix is then dequantised to bf16 at load (never requantised).
#include <cstdlib>
#include <cstring>
#include <system_error>

#include "engine/cuda/weights.h"

namespace mob {

mob_status cuda_failed(cudaError_t error, const char *what) {
  cudaGetLastError();
  return mob_fail(error == cudaErrorMemoryAllocation ? MOB_E_NO_RESOURCES : MOB_E_INTERNAL, "CUDA: %s (%s)",
                  cudaGetErrorString(error), what);
}

namespace {

struct Place {
  GroupId group;
  int part;
  int matrix; // expert
};

// Shared experts stand behind the routed ones, n_shared of them, each as wide as a routed one. Where routed experts are whole on
// ranks, shared ones are still cut, so that they are narrower: they stand where a dense layer has its one network.
bool shared_with_routed(const Exec *exec, const mob_slot_t *slot) {
  return slot->expert == MOB_EXPERT_SHARED && !exec->spec.expert_parallel;
}

bool place_of(const Exec *exec, const Rank *rank, const mob_slot_t *slot, Place *out) {
  const mob_model_desc_t *d = exec->desc;
  *out = {G_COUNT, 0, 0};
  const bool dense = slot->expert < 0 && !shared_with_routed(exec, slot);
  switch (slot->id) {
  case MOB_W_Q_A: *out = {G_A, 0, 0}; break;
  case MOB_W_KV_A: *out = {G_A, 1, 0}; break;
  case MOB_W_Q: *out = {d->attn == MOB_ATTN_MLA ? G_Q : G_QKV, 0, 0}; break;
  case MOB_W_Q_B: *out = {G_Q, 0, 0}; break;
  case MOB_W_K: *out = {G_QKV, 1, 0}; break;
  case MOB_W_V: *out = {G_QKV, 2, 0}; break;
  case MOB_W_KV_B: *out = {G_KV_B, 0, 0}; break;
  case MOB_W_O: *out = {G_O, 0, 0}; break;
  case MOB_W_GATE: *out = {dense ? G_DENSE_UP : G_EXPERT_UP, 0, 0}; break;
  case MOB_W_UP: *out = {dense ? G_DENSE_UP : G_EXPERT_UP, 1, 0}; break;
  case MOB_W_DOWN: *out = {dense ? G_DENSE_DOWN : G_EXPERT_DOWN, 0, 0}; break;
  case MOB_W_ROUTER: *out = {G_ROUTER, 0, 0}; break;
  case MOB_W_HEAD: *out = {G_HEAD, 0, 0}; break;
  default: return false;
  }
  if (slot->expert >= 0) out->matrix = slot->expert - rank->first_expert;
  else if (!dense) out->matrix = rank->experts;
  return true;
}

bool keeps_f8(const mob_model_desc_t *d, const mob_tensor_t *tensor, const mob_shard_t *shard) {
  const char *wish = getenv("MOB_CUDA_F8"); // 0, for checks: every matrix as bf16, nothing is quantised
  if (wish && wish[0] == '0') return false;
  return tensor && tensor->dtype == MOB_DT_F8E4M3 && d->quant_block_rows % 64 == 0 && d->quant_block_cols % 128 == 0 &&
         d->quant_block_rows > 0 && d->quant_block_cols > 0 && shard->row0 % 64 == 0 && shard->col0 % 128 == 0;
}

struct Tensor { // of a slot
  mob_slot_t slot;
  const mob_tensor_t *tensor, *scales;
  bool again; // the embedding, come once more as the head
};

// Calls begin(tensor) for every slot of the stage, then part(rank, tensor, shard) for every rank that holds some of it, then
// end(tensor).
struct Visit {
  Exec *exec;
  std::function<void(const Tensor &t)> begin;
  std::function<void(Rank *rank, const Tensor &t, const mob_shard_t &shard)> part;
  std::function<mob_status(const Tensor &t)> end;
  mob_slot_t embed;
  const mob_tensor_t *embed_tensor;
};

mob_status visit_slot(void *arg, const mob_slot_t *slot) {
  Visit *v = (Visit *)arg;
  Exec *exec = v->exec;
  Tensor t = {*slot, nullptr, nullptr, false};
  MOB_TRY(mob_model_slot(exec->spec.model, slot, &t.tensor, &t.scales));
  if (slot->id == MOB_W_EMBED) {
    v->embed = *slot;
    v->embed_tensor = t.tensor;
  }
  if (!t.tensor) { // tied head
    t.tensor = v->embed_tensor;
    t.again = true;
  }
  if (v->begin) v->begin(t);
  for (Rank &rank : exec->ranks) {
    mob_slot_t named = t.slot;
    if (exec->spec.expert_parallel && slot->expert >= 0) {
      if (slot->expert < rank.first_expert || slot->expert >= rank.first_expert + rank.experts) continue;
      named.split = MOB_SPLIT_NONE;
    }
    mob_shard_t shard;
    MOB_TRY(mob_slot_shard(exec->desc, &named, rank.number, exec->spec.tp, &shard));
    v->part(&rank, t, shard);
  }
  // Dummy values of a tied head are the embedding's.
  if (t.again) t.slot = v->embed;
  return v->end ? v->end(t) : MOB_OK;
}

mob_status visit(Visit *v) {
  const mob_exec_spec_t &s = v->exec->spec;
  return mob_model_stage_slots(s.model, s.first_layer, s.last_layer, visit_slot, v);
}

Layer *layer_of(const Exec *exec, Rank *rank, int layer) {
  return layer < 0 ? &rank->outer : &rank->layers[(size_t)(layer - exec->spec.first_layer)];
}

void measure(const Exec *exec, Rank *rank, const Tensor &t, const mob_shard_t &shard) {
  const mob_model_desc_t *d = exec->desc;
  const mob_slot_t *slot = &t.slot;
  Layer *layer = layer_of(exec, rank, slot->layer);
  Place p;
  if (!place_of(exec, rank, slot, &p)) {
    layer->v_rows[slot->id] = slot->cols == 1 ? shard.rows : 0;
    return;
  }
  Group *g = &layer->g[p.group];
  const bool down = p.group == G_EXPERT_DOWN;
  const int64_t pieces = shared_with_routed(exec, slot) ? d->n_shared : 1;
  g->rows[p.part] = down ? shard.rows : shard.rows / pieces;
  g->cols = down ? shard.cols / pieces : shard.cols;
  if (p.group == G_EXPERT_UP || p.group == G_EXPERT_DOWN) g->count = rank->experts + (exec->spec.expert_parallel ? 0 : d->n_shared);
  const bool whole = pieces == 1 || (g->rows[p.part] % 64 == 0 && g->cols % 128 == 0);
  g->f8 = g->f8 && whole && p.group != G_ROUTER && p.group != G_HEAD && keeps_f8(d, t.tensor, &shard);
}

// Sizes of a group once all its parts are known.
void shape_group(Group *g) {
  int at = 0;
  for (int i = 0; i < 3; i++) {
    if (g->rows[i] == 0) continue;
    g->at[i] = (at + 63) / 64 * 64;
    at = g->at[i] + (int)g->rows[i];
  }
  if (at == 0) return;
  const int unit = g->f8 ? 256 : 128;
  g->m.kind = g->f8 ? Weights::F8 : Weights::B16;
  g->m.n = at;
  g->m.k = (int)((g->cols + unit - 1) / unit * unit);
  g->m.stride = (size_t)((at + 63) / 64) * column_pairs(g->m) * kPairBytes;
}

bool has_uk(const Exec *exec, const Layer &layer) { return exec->fast_mla && layer.g[G_KV_B].m.n > 0; }

uint64_t round_up(uint64_t bytes) { return (bytes + 255) / 256 * 256; }

// Calls take(pointer, bytes, zero) for every array of a layer.
template <class F> void arrays_of(const Exec *exec, const Rank *rank, Layer *layer, F take) {
  for (int i = 0; i < G_COUNT; i++) {
    Group *g = &layer->g[i];
    if (g->m.n == 0 || (i == G_KV_B && !exec->fast_mla)) continue;
    take((void **)&g->m.data, g->m.stride * (uint64_t)g->count, true);
  }
  if (has_uk(exec, *layer)) take((void **)&layer->uk, (uint64_t)rank->heads * 4 * kPairBytes, true);
  else if (layer->g[G_KV_B].m.n) take((void **)&layer->kv_b, (uint64_t)(layer->g[G_KV_B].rows[0] * layer->g[G_KV_B].cols) * 2, false);
  if (layer->g[G_ROUTER].m.n) take((void **)&layer->router, (uint64_t)(layer->g[G_ROUTER].rows[0] * layer->g[G_ROUTER].cols) * 2, false);
  for (int i = 0; i < MOB_W_COUNT; i++)
    if (layer->v_rows[i]) take((void **)&layer->v[i], (uint64_t)layer->v_rows[i] * 4, false);
  if (layer->v_rows[MOB_W_KV_A_BIAS]) take((void **)&layer->a_bias, (uint64_t)layer->g[G_A].m.n * 4, true);
}

// Of a rank's part of the vocabulary: the rows that the head has there, too.
uint64_t embed_bytes(const Exec *exec, const Rank *rank) {
  const int64_t vocab = exec->desc->vocab, tp = exec->spec.tp;
  const int64_t rows = vocab * (rank->number + 1) / tp - vocab * rank->number / tp;
  return exec->spec.first_layer == 0 ? (uint64_t)rows * (uint64_t)exec->desc->hidden * 2 : 0;
}

mob_status allocate(const Exec *exec, Rank *rank) {
  cudaError_t error = cudaSuccess;
  uint64_t total = 0;
  auto take = [&](void **out, uint64_t bytes, bool zero) {
    if (error != cudaSuccess) return;
    total += bytes;
    error = cudaMalloc(out, bytes);
    if (error != cudaSuccess) return;
    rank->blocks.push_back(*out);
    if (zero) error = cudaMemsetAsync(*out, 0, bytes, rank->stream);
  };
  if (embed_bytes(exec, rank)) take((void **)&rank->embed, embed_bytes(exec, rank), false);
  for (Layer &layer : rank->layers) arrays_of(exec, rank, &layer, take);
  arrays_of(exec, rank, &rank->outer, take);
  take((void **)&rank->bad, 4, true);
  take((void **)&rank->inv_freq, (uint64_t)exec->desc->rope.dim / 2 * 4 + 4, false);
  if (error != cudaSuccess)
    return mob_wrap(cuda_failed(error, "cudaMalloc"), "GPU %d, at %.2f GiB of weights", rank->device, (double)total / (1 << 30));
  CU_TRY(cudaMemcpyAsync(rank->inv_freq, exec->desc->rope.inv_freq, (size_t)exec->desc->rope.dim / 2 * 4,
                         cudaMemcpyHostToDevice, rank->stream));
  CU_TRY(cudaStreamSynchronize(rank->stream));
  return MOB_OK;
}

// Where a rank's shard of a tensor goes.
void add_targets(const Exec *exec, Rank *rank, const Tensor &t, const mob_shard_t &shard, std::vector<WeightTarget> *out) {
  const mob_model_desc_t *d = exec->desc;
  Layer *layer = layer_of(exec, rank, t.slot.layer);
  Place p;
  if (!place_of(exec, rank, &t.slot, &p)) {
    if (t.slot.cols == 1) out->push_back({WeightTarget::FLOAT, rank, shard, layer->v[t.slot.id], 0, 1, Weights::B16});
    else if (t.slot.id == MOB_W_EMBED && rank->embed)
      out->push_back({WeightTarget::PLAIN, rank, shard, rank->embed, 0, t.slot.cols, Weights::B16});
    return;
  }
  const Group *g = &layer->g[p.group];
  const int64_t first = g->at[p.part];
  const int pieces = shared_with_routed(exec, &t.slot) ? d->n_shared : 1;
  for (int i = 0; i < pieces; i++) { // of shared experts, each beside or below the other in the tensor
    mob_shard_t from = shard;
    if (p.group == G_EXPERT_DOWN) {
      from.cols /= pieces;
      from.col0 += i * from.cols;
    } else {
      from.rows /= pieces;
      from.row0 += i * from.rows;
    }
    if (g->m.data)
      out->push_back({WeightTarget::TILES, rank, from, g->m.data + (size_t)(p.matrix + i) * g->m.stride, first, g->m.k, g->m.kind});
  }
  bf16 *rows = p.group == G_KV_B ? layer->kv_b : p.group == G_ROUTER ? layer->router : nullptr;
  if (rows) out->push_back({WeightTarget::PLAIN, rank, shard, rows, 0, g->cols, Weights::B16});
}

} // namespace

mob_status on_ranks(Exec *exec, const std::function<mob_status(Rank *rank)> &fn) {
  struct Result {
    mob_status status = MOB_OK;
    std::string why;
  };
  std::vector<Result> results(exec->ranks.size());
  auto run = [&](size_t i) {
    Rank *rank = &exec->ranks[i];
    const cudaError_t error = cudaSetDevice(rank->device);
    results[i].status = error == cudaSuccess ? fn(rank) : cuda_failed(error, "cudaSetDevice");
    if (results[i].status != MOB_OK) results[i].why = mob_errmsg();
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < results.size(); i++) {
    try {
      threads.emplace_back(run, i);
    } catch (const std::system_error &) { // no thread to be had
      run(i);
    }
  }
  run(0);
  for (std::thread &t : threads) t.join();
  for (const Result &r : results)
    if (r.status != MOB_OK) return mob_fail(r.status, "%s", r.why.c_str());
  return MOB_OK;
}

mob_status weights_bind(Exec *exec) {
  const mob_model_desc_t *d = exec->desc;
  for (Rank &rank : exec->ranks) {
    rank.layers.assign((size_t)(exec->spec.last_layer - exec->spec.first_layer), Layer());
    rank.outer = Layer();
  }
  exec->file_bytes = 0;
  Visit v = {};
  v.exec = exec;
  v.begin = [&](const Tensor &t) {
    if (!t.again) exec->file_bytes += t.tensor->bytes + (t.scales ? t.scales->bytes : 0);
  };
  v.part = [&](Rank *rank, const Tensor &t, const mob_shard_t &shard) { measure(exec, rank, t, shard); };
  MOB_TRY(visit(&v));
  // A matrix has the same form on all ranks.
  for (size_t layer = 0; layer < exec->ranks[0].layers.size(); layer++)
    for (int g = 0; g < G_COUNT; g++) {
      bool f8 = true;
      for (const Rank &rank : exec->ranks) f8 = f8 && rank.layers[layer].g[g].f8;
      for (Rank &rank : exec->ranks) rank.layers[layer].g[g].f8 = f8;
    }
  exec->fast_mla = exec->mla && d->kv_lora == 512 && d->qk_rope == 64 && d->qk_nope == 128 && d->v_head_dim == 128 &&
                   d->quant_block_rows == 128 && d->quant_block_cols == 128;
  for (Layer &layer : exec->ranks[0].layers) exec->fast_mla = exec->fast_mla && layer.g[G_KV_B].f8;
  for (Rank &rank : exec->ranks) {
    for (Layer &layer : rank.layers)
      for (Group &g : layer.g) shape_group(&g);
    for (Group &g : rank.outer.g) shape_group(&g);
  }
  return MOB_OK;
}

uint64_t weights_bytes(const Exec *exec, const Rank *rank) {
  uint64_t total = round_up(embed_bytes(exec, rank));
  auto add = [&](void **, uint64_t bytes, bool) { total += round_up(bytes); };
  Rank *all = const_cast<Rank *>(rank); // whose pointers `add` leaves alone
  for (Layer &layer : all->layers) arrays_of(exec, all, &layer, add);
  arrays_of(exec, all, &all->outer, add);
  return total;
}

mob_status weights_allocate(Exec *exec) {
  return on_ranks(exec, [&](Rank *rank) { return allocate(exec, rank); });
}

mob_status weights_targets(Exec *exec, const WeightVisit &fn) {
  std::vector<WeightTarget> targets;
  Visit v = {};
  v.exec = exec;
  v.part = [&](Rank *rank, const Tensor &t, const mob_shard_t &shard) { add_targets(exec, rank, t, shard, &targets); };
  v.end = [&](const Tensor &t) {
    const mob_status status = fn(t.slot, t.tensor, t.scales, targets);
    targets.clear();
    return status;
  };
  return visit(&v);
}

} // namespace mob
