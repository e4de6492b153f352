#include "engine/model/gqa.h"

#include <math.h>
#include <string.h>

#include "runtime/base/mem.h"

mob_status mob__gqa_describe(const json_t *config, int fallback, mob_model_desc_t *desc) {
  double unused;
  desc->attn = MOB_ATTN_GQA;
  desc->lora_rms_eps = desc->rms_eps;
  if (desc->n_heads % desc->n_kv_heads != 0)
    return mob_fail(
        MOB_E_INVALID,
        "config.json: num_attention_heads %d is not a multiple of num_key_value_heads %d",
        desc->n_heads, desc->n_kv_heads);
  int derived = desc->hidden / desc->n_heads;
  MOB_TRY(mob__config_int_or_null(config, "head_dim", fallback ? fallback : derived, derived, 1,
                                  1 << 16, &desc->head_dim));
  desc->v_head_dim = desc->head_dim;
  desc->softmax_scale = (float)pow(desc->head_dim, -0.5);
  return mob__config_rope(config, desc->head_dim, desc, &unused);
}

mob_status mob__gqa_no_window(const json_t *config) {
  bool used;
  MOB_TRY(mob__config_bool(config, "use_sliding_window", false, &used));
  if (used)
    return mob_fail(MOB_E_UNSUPPORTED, "config.json: use_sliding_window true is not supported");
  const json_t *types = json_object_get(config, "layer_types");
  for (size_t i = 0; i < json_array_size(types); i++) {
    const char *type = json_string_value(json_array_get(types, i));
    if (!type || strcmp(type, "full_attention") != 0)
      return mob_fail(MOB_E_UNSUPPORTED,
                      "config.json: layer_types: \"%.64s\" is not supported (only full_attention)",
                      type ? type : "?");
  }
  return MOB_OK;
}

mob_status mob__gqa_dense(mob_model_desc_t *desc) {
  desc->is_moe = MOB_NEW_ARRAY(uint8_t, (size_t)desc->n_layers);
  return MOB_OK;
}
