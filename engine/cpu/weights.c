#include "engine/cpu/weights.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/model/dummy.h"
#include "runtime/base/mem.h"

typedef struct binding {
  const mob_exec_spec_t *spec;
  const mob_model_desc_t *desc;
  mob_rank_weights_t *weights;
  mob_weight_store_t *store;
  bool vectors; // second pass: copy the vectors
} binding_t;

static mob_layer_t *layer_of(const binding_t *to, int rank, int layer) {
  return layer < 0 ? &to->weights[rank].outer
                   : &to->weights[rank].layers[layer - to->spec->first_layer];
}

static mob_mat_t *matrix_of(const binding_t *to, int rank, const mob_slot_t *slot) {
  mob_layer_t *layer = layer_of(to, rank, slot->layer);
  if (slot->id != MOB_W_GATE && slot->id != MOB_W_UP && slot->id != MOB_W_DOWN)
    return &layer->m[slot->id];
  mob_ffn_t *ffn = slot->expert == MOB_EXPERT_NONE     ? &layer->dense
                   : slot->expert == MOB_EXPERT_SHARED ? &layer->shared
                                                       : &layer->experts[slot->expert];
  return slot->id == MOB_W_GATE ? &ffn->gate : slot->id == MOB_W_UP ? &ffn->up : &ffn->down;
}

// Whole experts on ranks: rank r owns the experts [r, r + 1) * n / tp.
static bool owns_expert(const binding_t *to, int rank, const mob_slot_t *slot) {
  int64_t n = to->desc->n_experts, tp = to->spec->tp;
  return slot->expert >= n * rank / tp && slot->expert < n * (rank + 1) / tp;
}

static void *own(mob_weight_store_t *store, size_t bytes) {
  void *data = NULL;
  // Anonymous pages come from the kernel zeroed and only when touched: big allocations may fail
  // late, not here.
  if (posix_memalign(&data, 64, bytes ? bytes : 1) != 0) return NULL;
  *mob_vec_push(&store->owned) = data;
  return data;
}

// Bytes of a tensor: the mapping, or memory to be filled.
static mob_status source(const binding_t *to, const mob_slot_t *slot, const mob_tensor_t *tensor,
                         const uint8_t **out) {
  mob_region_t *region = mob_vec_push(&to->store->regions);
  region->bytes = tensor->bytes;
  region->name = tensor->name;
  region->check_nan = tensor->dtype == MOB_DT_F8E4M3;
  region->data = tensor->data;
  to->store->bytes += tensor->bytes;
  if (!tensor->data) {
    region->fill = own(to->store, tensor->bytes);
    if (!region->fill)
      return mob_fail(MOB_E_NO_RESOURCES, "no memory for the %zu bytes of %s", tensor->bytes,
                      tensor->name);
    region->data = region->fill;
    region->slot = *slot;
    region->dtype = tensor->dtype;
    region->shard = (mob_shard_t){0, slot->rows, 0, slot->cols};
  }
  *out = region->data;
  return MOB_OK;
}

static mob_status scale_source(const binding_t *to, const mob_slot_t *slot,
                               const mob_tensor_t *scales, const float **out) {
  const uint8_t *data = scales->data;
  to->store->bytes += scales->bytes;
  if (data && (uintptr_t)data % sizeof(float) == 0) {
    *out = (const float *)data;
    return MOB_OK;
  }
  float *copy = own(to->store, scales->bytes);
  if (!copy) return mob_fail(MOB_E_NO_RESOURCES, "no memory for the scales of %s", slot->name);
  if (data)
    memcpy(copy, data, scales->bytes);
  else
    for (size_t i = 0; i < scales->bytes / sizeof *copy; i++)
      copy[i] = mob_dummy_scale(to->desc, slot);
  *out = copy;
  return MOB_OK;
}

static mob_status bind_matrix(const binding_t *to, const mob_slot_t *slot) {
  const mob_tensor_t *tensor, *scales;
  MOB_TRY(mob_model_slot(to->spec->model, slot, &tensor, &scales));
  mob_mat_t whole = {0};
  mob_slot_t named = *slot;
  if (!tensor) { // tied head: the embedding, cut as the head
    whole = layer_of(to, 0, -1)->m[MOB_W_EMBED];
    MOB_ASSERT(whole.data);
  } else {
    whole.dtype = tensor->dtype;
    whole.stride = (size_t)slot->cols * mob_dtype_size(tensor->dtype);
    MOB_TRY(source(to, slot, tensor, &whole.data));
    if (scales) MOB_TRY(scale_source(to, slot, scales, &whole.scales));
    whole.block_rows = to->desc->quant_block_rows;
    whole.block_cols = to->desc->quant_block_cols;
    if (scales) whole.scale_stride = scales->shape[1];
  }
  // All ranks live in this process and look rows of the embedding up in the one mapping: no shard,
  // no reduction.
  if (slot->id == MOB_W_EMBED) named.split = MOB_SPLIT_NONE;
  for (int rank = 0; rank < to->spec->tp; rank++) {
    if (to->spec->expert_parallel && slot->expert >= 0) {
      named.split = MOB_SPLIT_NONE;
      if (!owns_expert(to, rank, slot)) continue;
    }
    mob_shard_t shard;
    MOB_TRY(mob_slot_shard(to->desc, &named, rank, to->spec->tp, &shard));
    mob_mat_t *mat = matrix_of(to, rank, slot);
    *mat = whole;
    mat->id = slot->id;
    mat->rows = shard.rows;
    mat->cols = shard.cols;
    mat->row0 = shard.row0;
    mat->col0 = shard.col0;
    mat->data += (size_t)shard.row0 * mat->stride + (size_t)shard.col0 * mob_dtype_size(mat->dtype);
  }
  return MOB_OK;
}

// Norms and biases: small, so every rank has its own fp32 copy of its part.
static mob_status bind_vector(const binding_t *to, const mob_slot_t *slot) {
  const mob_tensor_t *tensor, *scales;
  MOB_TRY(mob_model_slot(to->spec->model, slot, &tensor, &scales));
  if (!to->vectors) {
    to->store->bytes += tensor->bytes;
    return MOB_OK;
  }
  mob_mat_t whole = {.dtype = tensor->dtype, .rows = 1, .cols = slot->rows, .data = tensor->data};
  void *filled = NULL;
  if (!tensor->data) {
    mob_shard_t all = {0, slot->rows, 0, 1};
    filled = mob_malloc(tensor->bytes);
    mob_dummy_fill(slot, tensor->dtype, &all, filled);
    whole.data = filled;
  }
  float *values = mob_malloc((size_t)slot->rows * sizeof *values);
  mob_cpu_ops_scalar.row(&whole, 0, values);
  free(filled);
  mob_status status = MOB_OK;
  for (int rank = 0; rank < to->spec->tp && status == MOB_OK; rank++) {
    mob_shard_t shard;
    status = mob_slot_shard(to->desc, slot, rank, to->spec->tp, &shard);
    if (status != MOB_OK) break;
    float *part = mob_malloc((size_t)shard.rows * sizeof *part);
    memcpy(part, values + shard.row0, (size_t)shard.rows * sizeof *part);
    layer_of(to, rank, slot->layer)->v[slot->id] = part;
  }
  free(values);
  return status;
}

static mob_status bind_slot(void *arg, const mob_slot_t *slot) {
  const binding_t *to = arg;
  if (slot->cols == 1) return bind_vector(to, slot);
  return to->vectors ? MOB_OK : bind_matrix(to, slot);
}

mob_status mob_weights_bind(const mob_exec_spec_t *spec, mob_rank_weights_t *weights,
                            mob_weight_store_t *store) {
  binding_t to = {spec, mob_model_desc(spec->model), weights, store, false};
  for (int rank = 0; rank < spec->tp; rank++) {
    weights[rank].layers =
        MOB_NEW_ARRAY(mob_layer_t, (size_t)(spec->last_layer - spec->first_layer));
    for (int l = spec->first_layer; l < spec->last_layer; l++)
      if (to.desc->is_moe[l])
        layer_of(&to, rank, l)->experts = MOB_NEW_ARRAY(mob_ffn_t, (size_t)to.desc->n_experts);
  }
  return mob_model_stage_slots(spec->model, spec->first_layer, spec->last_layer, bind_slot, &to);
}

mob_status mob_weights_vectors(const mob_exec_spec_t *spec, mob_rank_weights_t *weights) {
  binding_t to = {spec, mob_model_desc(spec->model), weights, NULL, true};
  return mob_model_stage_slots(spec->model, spec->first_layer, spec->last_layer, bind_slot, &to);
}

static void free_layer(mob_layer_t *layer) {
  for (int i = 0; i < MOB_W_COUNT; i++) free(layer->v[i]);
  free(layer->experts);
  free(layer->shared_parts);
}

void mob_weights_free(const mob_exec_spec_t *spec, mob_rank_weights_t *weights,
                      mob_weight_store_t *store) {
  for (int rank = 0; rank < spec->tp; rank++) {
    for (int l = 0; weights[rank].layers && l < spec->last_layer - spec->first_layer; l++)
      free_layer(&weights[rank].layers[l]);
    free_layer(&weights[rank].outer);
    free(weights[rank].layers);
  }
  for (size_t i = 0; i < store->owned.len; i++) free(store->owned.at[i]);
  mob_vec_free(&store->owned);
  mob_vec_free(&store->regions);
}
