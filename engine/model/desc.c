#include "engine/model/desc.h"

#include <stdlib.h>

size_t mob_dtype_size(mob_dtype_t dtype) {
  static const size_t sizes[MOB_DT_COUNT] = {4, 2, 2, 1};
  return dtype < MOB_DT_COUNT ? sizes[dtype] : 0;
}

const char *mob_dtype_name(mob_dtype_t dtype) {
  static const char *const names[MOB_DT_COUNT] = {"float32", "bfloat16", "float16", "float8_e4m3"};
  return dtype < MOB_DT_COUNT ? names[dtype] : "unknown";
}

void mob_model_desc_clear(mob_model_desc_t *desc) {
  free(desc->rope.inv_freq);
  free(desc->is_moe);
  desc->rope.inv_freq = NULL;
  desc->is_moe = NULL;
}

static bool is_attention(mob_slot_id_t id) {
  return (id >= MOB_W_Q && id <= MOB_W_O_BIAS) || id == MOB_W_Q_B || id == MOB_W_KV_B;
}

mob_status mob_slot_shard(const mob_model_desc_t *desc, const mob_slot_t *slot, int rank, int tp,
                          mob_shard_t *out) {
  *out = (mob_shard_t){0, slot->rows, 0, slot->cols};
  if (slot->split == MOB_SPLIT_NONE || tp == 1) return MOB_OK;
  if (is_attention(slot->id) && desc->n_heads % tp != 0)
    return mob_fail(MOB_E_INVALID,
                    "%s: %d attention heads do not divide over %d tensor-parallel ranks",
                    slot->name, desc->n_heads, tp);
  if (slot->split == MOB_SPLIT_KV) {
    int heads = desc->n_kv_heads;
    if (heads % tp != 0 && tp % heads != 0)
      return mob_fail(MOB_E_INVALID,
                      "%s: %d key/value heads do not divide over %d tensor-parallel ranks",
                      slot->name, heads, tp);
    int64_t rows = slot->rows / heads;
    int here = heads >= tp ? heads / tp : 1;
    out->row0 = (int64_t)rank * heads / tp * rows;
    out->rows = here * rows;
    return MOB_OK;
  }
  bool by_rows = slot->split == MOB_SPLIT_ROWS;
  int64_t size = by_rows ? slot->rows : slot->cols;
  // The vocabulary may be cut unevenly: nothing but the logits' columns depends on where.
  bool vocab = slot->id == MOB_W_EMBED || slot->id == MOB_W_HEAD;
  if (size % tp != 0 && !vocab)
    return mob_fail(MOB_E_INVALID, "%s: its %lld %s do not divide over %d tensor-parallel ranks",
                    slot->name, (long long)size, by_rows ? "rows" : "columns", tp);
  int64_t begin = size * rank / tp, end = size * (rank + 1) / tp;
  if (by_rows) {
    out->row0 = begin;
    out->rows = end - begin;
  } else {
    out->col0 = begin;
    out->cols = end - begin;
  }
  return MOB_OK;
}
