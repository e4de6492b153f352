// Qwen3, dense and mixture of experts: RMSNorm over each head of q and k. Defaults are those of
// transformers' Qwen3Config and Qwen3MoeConfig.
#include <stdio.h>

#include "engine/model/gqa.h"
#include "runtime/base/mem.h"

static const char *const dense_architectures[] = {"Qwen3ForCausalLM", NULL};
static const char *const moe_architectures[] = {"Qwen3MoeForCausalLM", NULL};

static mob_status read_attention(const json_t *config, int head_dim, mob_model_desc_t *desc) {
  bool bias;
  MOB_TRY(mob__gqa_no_window(config));
  MOB_TRY(mob__gqa_describe(config, head_dim, desc));
  MOB_TRY(mob__config_bool(config, "attention_bias", false, &bias));
  desc->qkv_bias = desc->o_bias = bias;
  desc->qk_norm = true;
  return MOB_OK;
}

static mob_status describe_dense(const json_t *config, mob_model_desc_t *desc) {
  static const mob_model_desc_t defaults = {.hidden = 4096,
                                            .n_layers = 32,
                                            .vocab = 151936,
                                            .max_position = 32768,
                                            .n_heads = 32,
                                            .n_kv_heads = 32,
                                            .intermediate = 22016,
                                            .rms_eps = 1e-6f,
                                            .bos_id = -1,
                                            .eos_id = -1};
  MOB_TRY(mob__config_common(config, &defaults, desc));
  MOB_TRY(read_attention(config, 128, desc));
  MOB_TRY(mob__gqa_dense(desc));
  return mob__config_quant(config, desc);
}

// mlp_only_layers and decoder_sparse_step say which layers have experts.
static mob_status read_sparse_layers(const json_t *config, mob_model_desc_t *desc) {
  int step;
  MOB_TRY(mob__config_int(config, "decoder_sparse_step", 1, 1, 1 << 16, &step));
  MOB_TRY(mob__gqa_dense(desc));
  for (int i = 0; i < desc->n_layers; i++) desc->is_moe[i] = (i + 1) % step == 0;
  const json_t *dense = json_object_get(config, "mlp_only_layers");
  if (dense && !json_is_null(dense) && !json_is_array(dense))
    return mob_fail(MOB_E_INVALID, "config.json: mlp_only_layers is not a list");
  for (size_t i = 0; i < json_array_size(dense); i++) {
    const json_t *layer = json_array_get(dense, i);
    if (!json_is_integer(layer))
      return mob_fail(MOB_E_INVALID, "config.json: mlp_only_layers holds no integers");
    json_int_t n = json_integer_value(layer);
    if (n >= 0 && n < desc->n_layers) desc->is_moe[n] = 0;
  }
  return MOB_OK;
}

static mob_status describe_moe(const json_t *config, mob_model_desc_t *desc) {
  static const mob_model_desc_t defaults = {.hidden = 2048,
                                            .n_layers = 24,
                                            .vocab = 151936,
                                            .max_position = 32768,
                                            .n_heads = 32,
                                            .n_kv_heads = 4,
                                            .intermediate = 6144,
                                            .rms_eps = 1e-6f,
                                            .bos_id = -1,
                                            .eos_id = -1};
  MOB_TRY(mob__config_common(config, &defaults, desc));
  MOB_TRY(read_attention(config, 0, desc));
  MOB_TRY(
      mob__config_int(config, "moe_intermediate_size", 768, 1, 1 << 24, &desc->moe_intermediate));
  const char *experts =
      json_object_get(config, "num_experts") ? "num_experts" : "num_local_experts";
  MOB_TRY(mob__config_int(config, experts, 128, 1, 1 << 16, &desc->n_experts));
  MOB_TRY(mob__config_int(config, "num_experts_per_tok", 8, 1, 1 << 10, &desc->top_k));
  if (desc->top_k > desc->n_experts)
    return mob_fail(MOB_E_INVALID,
                    "config.json: num_experts_per_tok %d is more than num_experts %d", desc->top_k,
                    desc->n_experts);
  MOB_TRY(mob__config_bool(config, "norm_topk_prob", false, &desc->norm_topk_prob));
  desc->n_group = desc->topk_group = 1;
  desc->routed_scale = 1.0f;
  desc->scoring = MOB_SCORE_SOFTMAX;
  MOB_TRY(read_sparse_layers(config, desc));
  return mob__config_quant(config, desc);
}

static mob_status slots(const mob_model_desc_t *desc, int layer, mob_slot_fn emit, void *arg) {
  mob__slots_t to = {desc, layer, emit, arg};
  if (layer < 0) return mob__slots_outer(&to);
  MOB_TRY(mob__slots_gqa(&to));
  if (!desc->is_moe[layer]) return mob__slots_mlp(&to, MOB_EXPERT_NONE, desc->intermediate, "mlp.");
  MOB_TRY(mob__slot(&to, MOB_W_ROUTER, MOB_EXPERT_NONE, MOB_SPLIT_NONE, desc->n_experts,
                    desc->hidden, "mlp.gate.weight"));
  for (int e = 0; e < desc->n_experts; e++) {
    char prefix[48];
    snprintf(prefix, sizeof prefix, "mlp.experts.%d.", e);
    MOB_TRY(mob__slots_mlp(&to, e, desc->moe_intermediate, prefix));
  }
  return MOB_OK;
}

const mob_family_t mob_family_qwen3 = {"qwen3", dense_architectures, describe_dense, slots};
const mob_family_t mob_family_qwen3_moe = {"qwen3_moe", moe_architectures, describe_moe, slots};
