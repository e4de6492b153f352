#include "engine/model/config.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "runtime/base/buf.h"

mob_status mob__config_int(const json_t *config, const char *key, int fallback, int min, int max,
                           int *out) {
  const json_t *value = json_object_get(config, key);
  json_int_t n = fallback;
  if (value) {
    if (!json_is_integer(value))
      return mob_fail(MOB_E_INVALID, "config.json: %s is not an integer", key);
    n = json_integer_value(value);
  }
  if (n < min || n > max)
    return mob_fail(MOB_E_INVALID, "config.json: %s is %lld, but must be from %d to %d", key,
                    (long long)n, min, max);
  *out = (int)n;
  return MOB_OK;
}

mob_status mob__config_int_or_null(const json_t *config, const char *key, int fallback, int if_null,
                                   int min, int max, int *out) {
  if (json_is_null(json_object_get(config, key))) {
    *out = if_null;
    return MOB_OK;
  }
  return mob__config_int(config, key, fallback, min, max, out);
}

mob_status mob__config_float(const json_t *config, const char *key, double fallback, double *out) {
  const json_t *value = json_object_get(config, key);
  *out = fallback;
  if (!value) return MOB_OK;
  if (!json_is_number(value) || !isfinite(json_number_value(value)))
    return mob_fail(MOB_E_INVALID, "config.json: %s is not a number", key);
  *out = json_number_value(value);
  return MOB_OK;
}

mob_status mob__config_bool(const json_t *config, const char *key, bool fallback, bool *out) {
  const json_t *value = json_object_get(config, key);
  *out = fallback;
  if (!value) return MOB_OK;
  if (!json_is_boolean(value))
    return mob_fail(MOB_E_INVALID, "config.json: %s is not true or false", key);
  *out = json_is_true(value);
  return MOB_OK;
}

mob_status mob__config_choice(const json_t *config, const char *key, const char *const *allowed) {
  const json_t *value = json_object_get(config, key);
  if (!value || json_is_null(value)) return MOB_OK;
  if (!json_is_string(value))
    return mob_fail(MOB_E_INVALID, "config.json: %s is not a string", key);
  mob_buf_t list = {0};
  for (int i = 0; allowed[i]; i++) {
    if (strcmp(allowed[i], json_string_value(value)) == 0) {
      mob_buf_free(&list);
      return MOB_OK;
    }
    mob_buf_printf(&list, "%s\"%s\"", i ? ", " : "", allowed[i]);
  }
  mob_status status =
      mob_fail(MOB_E_UNSUPPORTED, "config.json: %s \"%.64s\" is not supported (supported: %s)", key,
               json_string_value(value), mob_buf_cstr(&list));
  mob_buf_free(&list);
  return status;
}

static mob_status read_dtype(const json_t *config, mob_dtype_t *out) {
  const json_t *value = json_object_get(config, "dtype");
  if (!value) value = json_object_get(config, "torch_dtype");
  *out = MOB_DT_F32; // as transformers loads a checkpoint that does not say
  if (!value || json_is_null(value)) return MOB_OK;
  const char *text = json_is_string(value) ? json_string_value(value) : "";
  if (strncmp(text, "torch.", 6) == 0) text += 6;
  for (int i = MOB_DT_F32; i <= MOB_DT_F16; i++) {
    if (strcmp(text, mob_dtype_name((mob_dtype_t)i)) == 0) {
      *out = (mob_dtype_t)i;
      return MOB_OK;
    }
  }
  return mob_fail(
      MOB_E_UNSUPPORTED,
      "config.json: torch_dtype \"%.64s\" is not supported (supported: float32, bfloat16, float16)",
      text);
}

// An id, or the first of a list of ids; -1 for null and absent.
static mob_status read_id(const json_t *config, const char *key, int fallback, int *out) {
  const json_t *value = json_object_get(config, key);
  *out = fallback;
  if (!value) return MOB_OK;
  *out = -1;
  if (json_is_array(value) && json_array_size(value) > 0) value = json_array_get(value, 0);
  if (json_is_null(value) || json_is_array(value)) return MOB_OK;
  if (!json_is_integer(value) || json_integer_value(value) < -1 ||
      json_integer_value(value) > INT32_MAX)
    return mob_fail(MOB_E_INVALID, "config.json: %s is not a token id", key);
  *out = (int)json_integer_value(value);
  return MOB_OK;
}

mob_status mob__config_common(const json_t *config, const mob_model_desc_t *defaults,
                              mob_model_desc_t *desc) {
  static const char *const activations[] = {"silu", "swish", NULL};
  const mob_model_desc_t *d = defaults;
  MOB_TRY(mob__config_int(config, "hidden_size", d->hidden, 1, 1 << 20, &desc->hidden));
  MOB_TRY(mob__config_int(config, "num_hidden_layers", d->n_layers, 1, 4096, &desc->n_layers));
  MOB_TRY(mob__config_int(config, "vocab_size", d->vocab, 1, 1 << 24, &desc->vocab));
  MOB_TRY(mob__config_int(config, "max_position_embeddings", d->max_position, 1, 1 << 30,
                          &desc->max_position));
  MOB_TRY(mob__config_int(config, "num_attention_heads", d->n_heads, 1, 1 << 14, &desc->n_heads));
  // Absent: the family's default; null: as many as heads.
  MOB_TRY(mob__config_int_or_null(config, "num_key_value_heads",
                                  d->n_kv_heads ? d->n_kv_heads : desc->n_heads, desc->n_heads, 1,
                                  1 << 14, &desc->n_kv_heads));
  MOB_TRY(mob__config_int(config, "intermediate_size", d->intermediate, 1, 1 << 24,
                          &desc->intermediate));
  MOB_TRY(
      mob__config_bool(config, "tie_word_embeddings", d->tie_embeddings, &desc->tie_embeddings));
  MOB_TRY(mob__config_choice(config, "hidden_act", activations));
  double eps;
  MOB_TRY(mob__config_float(config, "rms_norm_eps", d->rms_eps, &eps));
  if (eps < 0) return mob_fail(MOB_E_INVALID, "config.json: rms_norm_eps is negative");
  desc->rms_eps = (float)eps;
  MOB_TRY(read_dtype(config, &desc->dtype));
  MOB_TRY(read_id(config, "bos_token_id", d->bos_id, &desc->bos_id));
  MOB_TRY(read_id(config, "eos_token_id", d->eos_id, &desc->eos_id));
  return MOB_OK;
}

mob_status mob__config_quant(const json_t *config, mob_model_desc_t *desc) {
  static const char *const methods[] = {"fp8", NULL}, *const formats[] = {"e4m3", "float8_e4m3fn",
                                                                          NULL};
  static const char *const schemes[] = {"dynamic", NULL}, *const scales[] = {"ue8m0", "float",
                                                                             "fp32", NULL};
  const json_t *quant = json_object_get(config, "quantization_config");
  if (json_object_get(config, "compression_config"))
    return mob_fail(MOB_E_UNSUPPORTED, "config.json: compression_config is not supported");
  if (!quant || json_is_null(quant)) return MOB_OK;
  if (!json_is_object(quant))
    return mob_fail(MOB_E_INVALID, "config.json: quantization_config is not an object");
  if (!json_is_string(json_object_get(quant, "quant_method")))
    return mob_fail(MOB_E_INVALID, "config.json: quantization_config has no quant_method");
  mob_status status = mob__config_choice(quant, "quant_method", methods);
  if (status == MOB_OK) status = mob__config_choice(quant, "fmt", formats);
  if (status == MOB_OK) status = mob__config_choice(quant, "activation_scheme", schemes);
  if (status == MOB_OK) status = mob__config_choice(quant, "scale_fmt", scales);
  if (status != MOB_OK) return mob_wrap(status, "quantization_config");
  const json_t *block = json_object_get(quant, "weight_block_size");
  const json_t *rows = json_array_get(block, 0), *cols = json_array_get(block, 1);
  if (json_array_size(block) != 2 || !json_is_integer(rows) || !json_is_integer(cols) ||
      json_integer_value(rows) < 1 || json_integer_value(rows) > 65536 ||
      json_integer_value(cols) < 1 || json_integer_value(cols) > 65536)
    return mob_fail(MOB_E_UNSUPPORTED,
                    "config.json: quantization_config: FP8 needs weight_block_size "
                    "[rows, columns]; per-tensor and per-channel scales are not supported");
  desc->quant_block_rows = (int)json_integer_value(rows);
  desc->quant_block_cols = (int)json_integer_value(cols);
  const char *format = json_string_value(json_object_get(quant, "scale_fmt"));
  desc->quant_ue8m0 = format && strcmp(format, "ue8m0") == 0;
  return MOB_OK;
}

mob_status mob__slot(const mob__slots_t *to, mob_slot_id_t id, int expert, mob_split_t split,
                     int64_t rows, int64_t cols, const char *fmt, ...) {
  mob_slot_t slot = {
      .id = id, .layer = to->layer, .expert = expert, .rows = rows, .cols = cols, .split = split};
  int at = to->layer < 0 ? 0 : snprintf(slot.name, sizeof slot.name, "model.layers.%d.", to->layer);
  va_list args;
  va_start(args, fmt);
  vsnprintf(slot.name + at, sizeof slot.name - (size_t)at, fmt, args);
  va_end(args);
  slot.optional = id == MOB_W_HEAD && to->desc->tie_embeddings;
  return to->emit(to->arg, &slot);
}

mob_status mob__slots_outer(const mob__slots_t *to) {
  const mob_model_desc_t *d = to->desc;
  MOB_TRY(mob__slot(to, MOB_W_EMBED, MOB_EXPERT_NONE, MOB_SPLIT_ROWS, d->vocab, d->hidden,
                    "model.embed_tokens.weight"));
  MOB_TRY(mob__slot(to, MOB_W_FINAL_NORM, MOB_EXPERT_NONE, MOB_SPLIT_NONE, d->hidden, 1,
                    "model.norm.weight"));
  return mob__slot(to, MOB_W_HEAD, MOB_EXPERT_NONE, MOB_SPLIT_ROWS, d->vocab, d->hidden,
                   "lm_head.weight");
}

mob_status mob__slots_mlp(const mob__slots_t *to, int expert, int intermediate,
                          const char *prefix) {
  int64_t hidden = to->desc->hidden;
  MOB_TRY(mob__slot(to, MOB_W_GATE, expert, MOB_SPLIT_ROWS, intermediate, hidden,
                    "%sgate_proj.weight", prefix));
  MOB_TRY(mob__slot(to, MOB_W_UP, expert, MOB_SPLIT_ROWS, intermediate, hidden, "%sup_proj.weight",
                    prefix));
  return mob__slot(to, MOB_W_DOWN, expert, MOB_SPLIT_COLS, hidden, intermediate,
                   "%sdown_proj.weight", prefix);
}

mob_status mob__slots_gqa(const mob__slots_t *to) {
  const mob_model_desc_t *d = to->desc;
  int64_t q = (int64_t)d->n_heads * d->head_dim, kv = (int64_t)d->n_kv_heads * d->head_dim;
  const int none = MOB_EXPERT_NONE;
  MOB_TRY(
      mob__slot(to, MOB_W_ATTN_NORM, none, MOB_SPLIT_NONE, d->hidden, 1, "input_layernorm.weight"));
  MOB_TRY(mob__slot(to, MOB_W_FFN_NORM, none, MOB_SPLIT_NONE, d->hidden, 1,
                    "post_attention_layernorm.weight"));
  MOB_TRY(mob__slot(to, MOB_W_Q, none, MOB_SPLIT_ROWS, q, d->hidden, "self_attn.q_proj.weight"));
  MOB_TRY(mob__slot(to, MOB_W_K, none, MOB_SPLIT_KV, kv, d->hidden, "self_attn.k_proj.weight"));
  MOB_TRY(mob__slot(to, MOB_W_V, none, MOB_SPLIT_KV, kv, d->hidden, "self_attn.v_proj.weight"));
  MOB_TRY(mob__slot(to, MOB_W_O, none, MOB_SPLIT_COLS, d->hidden, q, "self_attn.o_proj.weight"));
  if (d->qkv_bias) {
    MOB_TRY(mob__slot(to, MOB_W_Q_BIAS, none, MOB_SPLIT_ROWS, q, 1, "self_attn.q_proj.bias"));
    MOB_TRY(mob__slot(to, MOB_W_K_BIAS, none, MOB_SPLIT_KV, kv, 1, "self_attn.k_proj.bias"));
    MOB_TRY(mob__slot(to, MOB_W_V_BIAS, none, MOB_SPLIT_KV, kv, 1, "self_attn.v_proj.bias"));
  }
  if (d->o_bias)
    MOB_TRY(
        mob__slot(to, MOB_W_O_BIAS, none, MOB_SPLIT_NONE, d->hidden, 1, "self_attn.o_proj.bias"));
  if (d->qk_norm) {
    MOB_TRY(mob__slot(to, MOB_W_Q_NORM, none, MOB_SPLIT_NONE, d->head_dim, 1,
                      "self_attn.q_norm.weight"));
    MOB_TRY(mob__slot(to, MOB_W_K_NORM, none, MOB_SPLIT_NONE, d->head_dim, 1,
                      "self_attn.k_norm.weight"));
  }
  return MOB_OK;
}
