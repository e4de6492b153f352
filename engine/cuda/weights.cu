// Weights of one rank: which matrices stand together, in which form, where; and their way from the files to the device.
//
// An FP8 matrix is packed as it is when every tile of 64 x 128 lies inside one block of scales. A shard or a head that
// begins elsewhere cannot keep its scales; the matrix is then dequantised to bf16 at load (never requantised).
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "engine/cuda/exec.h"

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
  case MOB_W_GATE: *out = {dense ? G_DENSE_UP : G_EXPERT_UP, 0, slot->expert}; break;
  case MOB_W_UP: *out = {dense ? G_DENSE_UP : G_EXPERT_UP, 1, slot->expert}; break;
  case MOB_W_DOWN: *out = {dense ? G_DENSE_DOWN : G_EXPERT_DOWN, 0, slot->expert}; break;
  case MOB_W_ROUTER: *out = {G_ROUTER, 0, 0}; break;
  case MOB_W_HEAD: *out = {G_HEAD, 0, 0}; break;
  default: return false;
  }
  out->matrix = dense ? 0 : slot->expert - rank->first_expert;
  return true;
}

bool keeps_f8(const mob_model_desc_t *d, const mob_tensor_t *tensor, const mob_shard_t *shard) {
  const char *wish = getenv("MOB_CUDA_F8"); // 0, for checks: every matrix as bf16, nothing is quantised
  if (wish && wish[0] == '0') return false;
  return tensor && tensor->dtype == MOB_DT_F8E4M3 && d->quant_block_rows % 64 == 0 && d->quant_block_cols % 128 == 0 &&
         d->quant_block_rows > 0 && d->quant_block_cols > 0 && shard->row0 % 64 == 0 && shard->col0 % 128 == 0;
}

struct Visit {
  Exec *exec;
  Rank *rank;
  mob_status (*fn)(Visit *v, const mob_slot_t *slot, const mob_tensor_t *tensor, const mob_tensor_t *scales,
                   const mob_shard_t *shard);
  void *arg;
  mob_slot_t embed;
  const mob_tensor_t *embed_tensor;
};

mob_status visit_slot(void *arg, const mob_slot_t *slot) {
  Visit *v = (Visit *)arg;
  const Exec *exec = v->exec;
  const mob_tensor_t *tensor, *scales;
  MOB_TRY(mob_model_slot(exec->spec.model, slot, &tensor, &scales));
  mob_slot_t named = *slot;
  if (slot->id == MOB_W_EMBED) {
    v->embed = *slot;
    v->embed_tensor = tensor;
    named.split = MOB_SPLIT_NONE; // every rank looks rows up in its own copy
  }
  if (!tensor) { // tied head
    tensor = v->embed_tensor;
    snprintf(named.name, sizeof named.name, "%s", v->embed.name);
  }
  if (exec->spec.expert_parallel && slot->expert >= 0) {
    if (slot->expert < v->rank->first_expert || slot->expert >= v->rank->first_expert + v->rank->experts) return MOB_OK;
    named.split = MOB_SPLIT_NONE;
  }
  mob_shard_t shard;
  MOB_TRY(mob_slot_shard(exec->desc, &named, v->rank->index, exec->spec.tp, &shard));
  return v->fn(v, &named, tensor, scales, &shard);
}

mob_status visit(Exec *exec, Rank *rank, decltype(Visit::fn) fn, void *arg) {
  Visit v = {exec, rank, fn, arg, {}, nullptr};
  return mob_model_stage_slots(exec->spec.model, exec->spec.first_layer, exec->spec.last_layer, visit_slot, &v);
}

Layer *layer_of(const Exec *exec, Rank *rank, int layer) {
  return layer < 0 ? &rank->outer : &rank->layers[(size_t)(layer - exec->spec.first_layer)];
}

mob_status measure_slot(Visit *v, const mob_slot_t *slot, const mob_tensor_t *tensor, const mob_tensor_t *scales,
                        const mob_shard_t *shard) {
  Exec *exec = v->exec;
  const mob_model_desc_t *d = exec->desc;
  Layer *layer = layer_of(exec, v->rank, slot->layer);
  const bool whole_expert = exec->spec.expert_parallel && slot->expert >= 0;
  if (whole_expert || v->rank->index == 0) exec->file_bytes += tensor->bytes + (scales ? scales->bytes : 0);
  Place p;
  if (!place_of(exec, v->rank, slot, &p)) {
    layer->v_rows[slot->id] = slot->cols == 1 ? shard->rows : 0;
    return MOB_OK;
  }
  Group *g = &layer->g[p.group];
  const bool shared = shared_with_routed(exec, slot), down = p.group == G_EXPERT_DOWN;
  const int64_t pieces = shared ? d->n_shared : 1;
  g->rows[p.part] = down ? shard->rows : shard->rows / pieces;
  g->cols = down ? shard->cols / pieces : shard->cols;
  if (p.group == G_EXPERT_UP || p.group == G_EXPERT_DOWN) g->count = v->rank->experts + (exec->spec.expert_parallel ? 0 : d->n_shared);
  const bool whole = pieces == 1 || (g->rows[p.part] % 64 == 0 && g->cols % 128 == 0);
  g->f8 = g->f8 && whole && p.group != G_ROUTER && p.group != G_HEAD && keeps_f8(d, tensor, shard);
  return MOB_OK;
}

// Sizes of a group once all its parts are known; bytes in all.
uint64_t shape_group(Group *g) {
  int at = 0;
  for (int i = 0; i < 3; i++) {
    if (g->rows[i] == 0) continue;
    g->at[i] = (at + 63) / 64 * 64;
    at = g->at[i] + (int)g->rows[i];
  }
  if (at == 0) return 0;
  const int unit = g->f8 ? 256 : 128;
  g->m.kind = g->f8 ? Weights::F8 : Weights::B16;
  g->m.n = at;
  g->m.k = (int)((g->cols + unit - 1) / unit * unit);
  g->m.stride = (size_t)((at + 63) / 64) * column_pairs(g->m) * kPairBytes;
  return g->m.stride * (uint64_t)g->count;
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

uint64_t embed_bytes(const Exec *exec) {
  const mob_model_desc_t *d = exec->desc;
  return exec->spec.first_layer == 0 ? (uint64_t)d->vocab * (uint64_t)d->hidden * 2 : 0;
}

} // namespace

mob_status weights_bind(Exec *exec) {
  const mob_model_desc_t *d = exec->desc;
  for (Rank &rank : exec->ranks) {
    rank.layers.assign((size_t)(exec->spec.last_layer - exec->spec.first_layer), Layer());
    rank.outer = Layer();
    MOB_TRY(visit(exec, &rank, measure_slot, nullptr));
  }
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
  uint64_t total = round_up(embed_bytes(exec));
  auto add = [&](void **, uint64_t bytes, bool) { total += round_up(bytes); };
  Rank *all = const_cast<Rank *>(rank); // whose pointers `add` leaves alone
  for (Layer &layer : all->layers) arrays_of(exec, all, &layer, add);
  arrays_of(exec, all, &all->outer, add);
  return total;
}

// ------------------------------------------------------------------------------------------ loading

namespace {

constexpr size_t kChunk = (size_t)16 << 20;

struct Piece { // rows of a slot for one rank
  Rank *rank;
  mob_slot_t slot;
  const mob_tensor_t *tensor, *scales;
  mob_shard_t shard;         // what this piece takes of the whole tensor
  int64_t row0, col0;        // where its first element lands in the packed matrix
  Layer *layer;
  Place place;
  bool vector, embed;
};

struct Loading { // of one rank
  Exec *exec;
  Rank *rank;
  std::vector<Piece> pieces;
  std::atomic<size_t> next{0};
  std::atomic<uint64_t> done{0};
  uint64_t before = 0; // bytes of the ranks before
  void (*progress)(void *arg, const mob_load_progress_t *p);
  void *arg;
  float *quantile;
  uint8_t *quantile_f8;
  size_t scale_bytes = 16; // the largest tensor of scales
  std::mutex lock;
  mob_status status = MOB_OK;
  std::string why, bad;
};

mob_status list_slot(Visit *v, const mob_slot_t *slot, const mob_tensor_t *tensor, const mob_tensor_t *scales,
                     const mob_shard_t *shard) {
  Loading *l = (Loading *)v->arg;
  Exec *exec = v->exec;
  const mob_model_desc_t *d = exec->desc;
  Piece p = {v->rank, *slot, tensor, scales, *shard, 0, 0, layer_of(exec, v->rank, slot->layer), {G_COUNT, 0, 0}, false, false};
  if (scales && scales->bytes > l->scale_bytes) l->scale_bytes = scales->bytes;
  if (slot->cols == 1) {
    p.vector = true;
    l->pieces.push_back(p);
    return MOB_OK;
  }
  if (slot->id == MOB_W_EMBED) {
    p.embed = true;
    if (v->rank->embed) l->pieces.push_back(p);
    return MOB_OK;
  }
  place_of(exec, v->rank, slot, &p.place);
  const Group *g = &p.layer->g[p.place.group];
  const int64_t first = g->at[p.place.part];
  if (shared_with_routed(exec, slot)) {
    for (int s = 0; s < d->n_shared; s++) {
      Piece part = p;
      part.place.matrix = d->n_experts + s;
      if (p.place.group == G_EXPERT_DOWN) {
        part.shard.cols = g->cols;
        part.shard.col0 += s * g->cols;
      } else {
        part.shard.rows = g->rows[p.place.part];
        part.shard.row0 += s * g->rows[p.place.part];
      }
      part.row0 = first;
      l->pieces.push_back(part);
    }
    return MOB_OK;
  }
  p.row0 = first;
  // Rows in runs that fill a chunk, so that several threads share a big tensor.
  const int64_t row_bytes = p.shard.cols * (int64_t)mob_dtype_size(tensor->dtype);
  int64_t step = (int64_t)kChunk / row_bytes / 64 * 64;
  if (step < 1) step = 1;
  for (int64_t r = 0; r < shard->rows; r += step) {
    Piece part = p;
    part.shard.row0 += r;
    part.shard.rows = shard->rows - r < step ? shard->rows - r : step;
    part.row0 += r;
    l->pieces.push_back(part);
  }
  return MOB_OK;
}

struct Reader {
  Loading *l;
  cudaStream_t stream;
  uint8_t *host, *device; // a chunk and a tensor of scales
  size_t cap;
};

mob_status ensure(Reader *r, size_t bytes) {
  if (bytes <= r->cap) return MOB_OK;
  CU_TRY(cudaStreamSynchronize(r->stream));
  cudaFreeHost(r->host);
  cudaFree(r->device);
  r->host = r->device = nullptr;
  CU_TRY(cudaMallocHost(&r->host, bytes));
  CU_TRY(cudaMalloc(&r->device, bytes));
  r->cap = bytes;
  return MOB_OK;
}

// Brings the piece's elements, row-major and dense, to r->device, its scales behind them.
mob_status stage(Reader *r, const Piece *p, const float **scales) {
  const size_t size = mob_dtype_size(p->tensor->dtype), row = (size_t)p->shard.cols * size, bytes = row * (size_t)p->shard.rows;
  const size_t at = (bytes + 255) / 256 * 256, extra = p->scales ? p->scales->bytes : 0;
  MOB_TRY(ensure(r, at + extra));
  CU_TRY(cudaStreamSynchronize(r->stream)); // the last piece has left both buffers
  *scales = p->scales ? (const float *)(r->device + at) : nullptr;
  const bool dummy = p->tensor->data == nullptr;
  if (dummy) {
    mob_dummy_rule_t rule;
    mob_dummy_rule(&p->slot, &rule);
    const DummySource d = {rule.key, p->shard.row0, p->shard.col0, p->slot.cols, std::isnan(rule.constant) ? rule.std : NAN,
                           rule.constant, r->l->quantile, r->l->quantile_f8};
    fill_dummy(d, r->device, p->tensor->dtype, p->shard.rows, p->shard.cols, r->stream);
  } else {
    const size_t stride = (size_t)p->slot.cols * size;
    const uint8_t *from = (const uint8_t *)p->tensor->data + (size_t)p->shard.row0 * stride + (size_t)p->shard.col0 * size;
    if (row == stride) memcpy(r->host, from, bytes);
    else
      for (int64_t i = 0; i < p->shard.rows; i++) memcpy(r->host + (size_t)i * row, from + (size_t)i * stride, row);
    CU_TRY(cudaMemcpyAsync(r->device, r->host, bytes, cudaMemcpyHostToDevice, r->stream));
  }
  if (extra) {
    float *to = (float *)(r->host + at);
    if (p->scales->data) memcpy(to, p->scales->data, extra);
    else
      for (size_t i = 0; i < extra / 4; i++) to[i] = mob_dummy_scale(r->l->exec->desc, &p->slot);
    CU_TRY(cudaMemcpyAsync(r->device + at, to, extra, cudaMemcpyHostToDevice, r->stream));
  }
  return MOB_OK;
}

mob_status load_piece(Reader *r, const Piece *p) {
  Exec *exec = r->l->exec;
  const mob_model_desc_t *d = exec->desc;
  const float *scales;
  MOB_TRY(stage(r, p, &scales));
  PackSource s = {r->device, p->tensor->dtype, p->shard.rows, p->shard.cols, p->row0, p->col0, scales,
                  p->scales ? p->scales->shape[1] : 0, p->shard.row0, p->shard.col0,
                  d->quant_block_rows ? d->quant_block_rows : 1, d->quant_block_cols ? d->quant_block_cols : 1, p->rank->bad};
  if (p->vector) {
    pack_float(s, p->layer->v[p->slot.id], r->stream);
  } else if (p->embed) {
    pack_plain(s, p->rank->embed, p->slot.cols, r->stream);
  } else {
    const Group *g = &p->layer->g[p->place.group];
    if (g->m.data) pack_tiles(s, g->m.data + (size_t)p->place.matrix * g->m.stride, g->m.k, g->m.kind, r->stream);
    if (p->place.group == G_KV_B && p->layer->kv_b) pack_plain(s, p->layer->kv_b, g->cols, r->stream);
    if (p->place.group == G_ROUTER) pack_plain(s, p->layer->router, g->cols, r->stream);
  }
  CU_TRY(cudaGetLastError());
  return MOB_OK;
}

mob_status reader_run(Reader *r) {
  Loading *l = r->l;
  CU_TRY(cudaSetDevice(l->rank->device));
  CU_TRY(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking));
  MOB_TRY(ensure(r, kChunk + l->scale_bytes + 256));
  size_t i;
  while ((i = l->next.fetch_add(1)) < l->pieces.size() && l->status == MOB_OK) {
    const Piece *p = &l->pieces[i];
    MOB_TRY(load_piece(r, p));
    const uint64_t bytes = (uint64_t)(p->shard.rows * p->shard.cols) * mob_dtype_size(p->tensor->dtype);
    const uint64_t done = (l->before + l->done.fetch_add(bytes) + bytes) / (uint64_t)l->exec->spec.tp;
    const mob_load_progress_t now = {done < l->exec->file_bytes ? done : l->exec->file_bytes, l->exec->file_bytes};
    if (l->progress) l->progress(l->arg, &now);
  }
  CU_TRY(cudaStreamSynchronize(r->stream));
  return MOB_OK;
}

void reader_main(Loading *l) {
  Reader r = {l, nullptr, nullptr, nullptr, 0};
  const mob_status status = reader_run(&r);
  if (status != MOB_OK) {
    std::lock_guard<std::mutex> hold(l->lock);
    if (l->status == MOB_OK) {
      l->why = mob_errmsg();
      l->status = status;
    }
  }
  if (r.stream) cudaStreamDestroy(r.stream);
  cudaFreeHost(r.host);
  cudaFree(r.device);
}

mob_status allocate(Exec *exec, Rank *rank) {
  cudaError_t error = cudaSuccess;
  auto take = [&](void **out, uint64_t bytes, bool zero) {
    if (error == cudaSuccess) error = cudaMalloc(out, bytes);
    if (error != cudaSuccess) return;
    rank->blocks.push_back(*out);
    if (zero) error = cudaMemsetAsync(*out, 0, bytes, rank->stream);
  };
  if (embed_bytes(exec)) take((void **)&rank->embed, embed_bytes(exec), false);
  for (Layer &layer : rank->layers) arrays_of(exec, rank, &layer, take);
  arrays_of(exec, rank, &rank->outer, take);
  take((void **)&rank->bad, 4, true);
  take((void **)&rank->inv_freq, (uint64_t)exec->desc->rope.dim / 2 * 4 + 4, false);
  CU_TRY(error);
  CU_TRY(cudaMemcpyAsync(rank->inv_freq, exec->desc->rope.inv_freq, (size_t)exec->desc->rope.dim / 2 * 4,
                         cudaMemcpyHostToDevice, rank->stream));
  CU_TRY(cudaStreamSynchronize(rank->stream));
  return MOB_OK;
}

// What is made from loaded weights: transposed UK, merged biases.
mob_status finish(Exec *exec, Rank *rank) {
  for (Layer &layer : rank->layers) {
    if (layer.uk) pack_uk(layer.g[G_KV_B].m.data, layer.uk, rank->heads, rank->stream);
    if (!layer.a_bias) continue;
    const Group &a = layer.g[G_A];
    if (layer.v[MOB_W_Q_A_BIAS])
      CU_TRY(cudaMemcpyAsync(layer.a_bias + a.at[0], layer.v[MOB_W_Q_A_BIAS], (size_t)a.rows[0] * 4, cudaMemcpyDeviceToDevice,
                             rank->stream));
    CU_TRY(cudaMemcpyAsync(layer.a_bias + a.at[1], layer.v[MOB_W_KV_A_BIAS], (size_t)a.rows[1] * 4, cudaMemcpyDeviceToDevice,
                           rank->stream));
  }
  int bad = 0;
  CU_TRY(cudaMemcpyAsync(&bad, rank->bad, 4, cudaMemcpyDeviceToHost, rank->stream));
  CU_TRY(cudaStreamSynchronize(rank->stream));
  if (bad)
    return mob_fail(MOB_E_FORMAT, "a weight holds the FP8 code 0x7F or 0xFF, which is not a number: the files in %s are damaged",
                    mob_model_dir(exec->spec.model));
  return MOB_OK;
}

} // namespace

namespace {

mob_status load_rank(Exec *exec, Rank *rank, void (*progress)(void *arg, const mob_load_progress_t *p), void *arg) {
  CU_TRY(cudaSetDevice(rank->device));
  MOB_TRY(allocate(exec, rank));
  Loading l;
  l.exec = exec;
  l.rank = rank;
  l.progress = progress;
  l.arg = arg;
  l.before = (uint64_t)rank->index * exec->file_bytes;
  MOB_TRY(visit(exec, rank, list_slot, &l));
  mob_slot_t any = {};
  mob_dummy_rule_t rule;
  mob_dummy_rule(&any, &rule);
  void *tables = nullptr;
  CU_TRY(cudaMalloc(&tables, 65536 * 5));
  l.quantile = (float *)tables;
  l.quantile_f8 = (uint8_t *)tables + 65536 * 4;
  cudaMemcpy(l.quantile, rule.quantile, 65536 * 4, cudaMemcpyHostToDevice);
  cudaMemcpy(l.quantile_f8, rule.quantile_f8, 65536, cudaMemcpyHostToDevice);
  unsigned threads = std::thread::hardware_concurrency();
  threads = threads < 4 ? 4 : threads > 16 ? 16 : threads;
  std::vector<std::thread> readers;
  for (unsigned i = 0; i < threads; i++) readers.emplace_back(reader_main, &l);
  for (std::thread &t : readers) t.join();
  cudaFree(tables);
  if (l.status != MOB_OK) return mob_fail(l.status, "%s", l.why.c_str());
  return finish(exec, rank);
}

} // namespace

mob_status weights_load(Exec *exec, void (*progress)(void *arg, const mob_load_progress_t *p), void *arg) {
  for (Rank &rank : exec->ranks) MOB_TRY(load_rank(exec, &rank, progress, arg));
  if (progress) {
    const mob_load_progress_t all = {exec->file_bytes, exec->file_bytes};
    progress(arg, &all);
  }
  exec->loaded = true;
  return MOB_OK;
}

} // namespace mob
