// DeepSeek-V3 / R1. Defaults of absent fields are those of transformers' DeepseekV3Config.
#include <math.h>
#include <stdio.h>

#include "engine/model/config.h"
#include "runtime/base/mem.h"

static const char *const architectures[] = {"DeepseekV3ForCausalLM", NULL};

static mob_status read_attention(const json_t *config, mob_model_desc_t *desc) {
  bool interleave;
  double m;
  desc->attn = MOB_ATTN_MLA;
  if (desc->n_kv_heads != desc->n_heads)
    return mob_fail(
        MOB_E_UNSUPPORTED,
        "config.json: num_key_value_heads %d differs from num_attention_heads %d, which latent "
        "attention does not know",
        desc->n_kv_heads, desc->n_heads);
  MOB_TRY(mob__config_int_or_null(config, "q_lora_rank", 1536, 0, 1, 1 << 20, &desc->q_lora));
  MOB_TRY(mob__config_int(config, "kv_lora_rank", 512, 1, 1 << 20, &desc->kv_lora));
  MOB_TRY(mob__config_int(config, "qk_nope_head_dim", 128, 1, 1 << 16, &desc->qk_nope));
  MOB_TRY(mob__config_int(config, "qk_rope_head_dim", 64, 2, 1 << 16, &desc->qk_rope));
  MOB_TRY(mob__config_int(config, "v_head_dim", 128, 1, 1 << 16, &desc->v_head_dim));
  desc->head_dim = desc->qk_nope + desc->qk_rope;
  bool bias;
  MOB_TRY(mob__config_bool(config, "attention_bias", false, &bias));
  desc->qkv_bias = desc->o_bias = bias;
  MOB_TRY(mob__config_bool(config, "rope_interleave", true, &interleave));
  MOB_TRY(mob__config_rope(config, desc->qk_rope, desc, &m));
  desc->rope.interleaved = interleave;
  desc->softmax_scale = (float)(pow(desc->head_dim, -0.5) * m * m);
  return MOB_OK;
}

static mob_status read_experts(const json_t *config, mob_model_desc_t *desc) {
  static const char *const methods[] = {"noaux_tc", NULL}, *const scorings[] = {"sigmoid", NULL};
  int first_dense, frequency;
  MOB_TRY(mob__config_int(config, "first_k_dense_replace", 3, 0, 1 << 20, &first_dense));
  MOB_TRY(mob__config_int(config, "moe_layer_freq", 1, 1, 1 << 20, &frequency));
  if (frequency != 1)
    return mob_fail(MOB_E_UNSUPPORTED, "config.json: moe_layer_freq %d is not supported (only 1)",
                    frequency);
  desc->is_moe = MOB_NEW_ARRAY(uint8_t, (size_t)desc->n_layers);
  for (int i = first_dense; i < desc->n_layers; i++) desc->is_moe[i] = 1;

  MOB_TRY(
      mob__config_int(config, "moe_intermediate_size", 2048, 1, 1 << 24, &desc->moe_intermediate));
  MOB_TRY(mob__config_int(config, "n_routed_experts", 256, 1, 1 << 16, &desc->n_experts));
  MOB_TRY(mob__config_int(config, "num_experts_per_tok", 8, 1, 1 << 10, &desc->top_k));
  MOB_TRY(mob__config_int_or_null(config, "n_group", 8, 1, 1, 1 << 16, &desc->n_group));
  MOB_TRY(mob__config_int_or_null(config, "topk_group", 4, desc->n_group, 1, 1 << 16,
                                  &desc->topk_group));
  MOB_TRY(mob__config_int_or_null(config, "n_shared_experts", 1, 0, 0, 1 << 10, &desc->n_shared));
  MOB_TRY(mob__config_bool(config, "norm_topk_prob", true, &desc->norm_topk_prob));
  MOB_TRY(mob__config_choice(config, "topk_method", methods));
  MOB_TRY(mob__config_choice(config, "scoring_func", scorings));
  double scale;
  MOB_TRY(mob__config_float(config, "routed_scaling_factor", 2.5, &scale));
  desc->routed_scale = (float)scale;
  desc->scoring = MOB_SCORE_SIGMOID;
  desc->router_bias = true;
  if (first_dense >= desc->n_layers) return MOB_OK; // no layer has experts
  if (desc->n_experts % desc->n_group != 0 || desc->n_experts / desc->n_group < 2)
    return mob_fail(MOB_E_INVALID,
                    "config.json: n_routed_experts %d must be n_group %d times at least 2",
                    desc->n_experts, desc->n_group);
  if (desc->topk_group > desc->n_group)
    return mob_fail(MOB_E_INVALID, "config.json: topk_group %d is more than n_group %d",
                    desc->topk_group, desc->n_group);
  if (desc->top_k > desc->n_experts / desc->n_group * desc->topk_group)
    return mob_fail(
        MOB_E_INVALID,
        "config.json: num_experts_per_tok %d is more than the %d experts of topk_group %d "
        "groups",
        desc->top_k, desc->n_experts / desc->n_group * desc->topk_group, desc->topk_group);
  return MOB_OK;
}

static mob_status describe(const json_t *config, mob_model_desc_t *desc) {
  static const mob_model_desc_t defaults = {.hidden = 7168,
                                            .n_layers = 61,
                                            .vocab = 129280,
                                            .max_position = 4096,
                                            .n_heads = 128,
                                            .n_kv_heads = 128,
                                            .intermediate = 18432,
                                            .rms_eps = 1e-6f,
                                            .bos_id = 0,
                                            .eos_id = 1};
  MOB_TRY(mob__config_common(config, &defaults, desc));
  desc->lora_rms_eps = 1e-6f;
  MOB_TRY(read_attention(config, desc));
  MOB_TRY(read_experts(config, desc));
  return mob__config_quant(config, desc);
}

static mob_status attention_slots(const mob__slots_t *to) {
  const mob_model_desc_t *d = to->desc;
  const int none = MOB_EXPERT_NONE;
  int64_t q = (int64_t)d->n_heads * d->head_dim;
  MOB_TRY(
      mob__slot(to, MOB_W_ATTN_NORM, none, MOB_SPLIT_NONE, d->hidden, 1, "input_layernorm.weight"));
  MOB_TRY(mob__slot(to, MOB_W_FFN_NORM, none, MOB_SPLIT_NONE, d->hidden, 1,
                    "post_attention_layernorm.weight"));
  if (d->q_lora) {
    MOB_TRY(mob__slot(to, MOB_W_Q_A, none, MOB_SPLIT_NONE, d->q_lora, d->hidden,
                      "self_attn.q_a_proj.weight"));
    if (d->qkv_bias)
      MOB_TRY(mob__slot(to, MOB_W_Q_A_BIAS, none, MOB_SPLIT_NONE, d->q_lora, 1,
                        "self_attn.q_a_proj.bias"));
    MOB_TRY(mob__slot(to, MOB_W_Q_A_NORM, none, MOB_SPLIT_NONE, d->q_lora, 1,
                      "self_attn.q_a_layernorm.weight"));
    MOB_TRY(
        mob__slot(to, MOB_W_Q_B, none, MOB_SPLIT_ROWS, q, d->q_lora, "self_attn.q_b_proj.weight"));
  } else {
    MOB_TRY(mob__slot(to, MOB_W_Q, none, MOB_SPLIT_ROWS, q, d->hidden, "self_attn.q_proj.weight"));
  }
  int64_t kv_a = d->kv_lora + d->qk_rope, kv_b = (int64_t)d->n_heads * (d->qk_nope + d->v_head_dim);
  MOB_TRY(mob__slot(to, MOB_W_KV_A, none, MOB_SPLIT_NONE, kv_a, d->hidden,
                    "self_attn.kv_a_proj_with_mqa.weight"));
  if (d->qkv_bias)
    MOB_TRY(mob__slot(to, MOB_W_KV_A_BIAS, none, MOB_SPLIT_NONE, kv_a, 1,
                      "self_attn.kv_a_proj_with_mqa.bias"));
  MOB_TRY(mob__slot(to, MOB_W_KV_A_NORM, none, MOB_SPLIT_NONE, d->kv_lora, 1,
                    "self_attn.kv_a_layernorm.weight"));
  MOB_TRY(mob__slot(to, MOB_W_KV_B, none, MOB_SPLIT_ROWS, kv_b, d->kv_lora,
                    "self_attn.kv_b_proj.weight"));
  MOB_TRY(mob__slot(to, MOB_W_O, none, MOB_SPLIT_COLS, d->hidden,
                    (int64_t)d->n_heads * d->v_head_dim, "self_attn.o_proj.weight"));
  if (d->o_bias)
    MOB_TRY(
        mob__slot(to, MOB_W_O_BIAS, none, MOB_SPLIT_NONE, d->hidden, 1, "self_attn.o_proj.bias"));
  return MOB_OK;
}

static mob_status slots(const mob_model_desc_t *desc, int layer, mob_slot_fn emit, void *arg) {
  mob__slots_t to = {desc, layer, emit, arg};
  if (layer < 0) return mob__slots_outer(&to);
  MOB_TRY(attention_slots(&to));
  if (!desc->is_moe[layer]) return mob__slots_mlp(&to, MOB_EXPERT_NONE, desc->intermediate, "mlp.");
  const int none = MOB_EXPERT_NONE;
  MOB_TRY(mob__slot(&to, MOB_W_ROUTER, none, MOB_SPLIT_NONE, desc->n_experts, desc->hidden,
                    "mlp.gate.weight"));
  MOB_TRY(mob__slot(&to, MOB_W_ROUTER_BIAS, none, MOB_SPLIT_NONE, desc->n_experts, 1,
                    "mlp.gate.e_score_correction_bias"));
  if (desc->n_shared)
    MOB_TRY(mob__slots_mlp(&to, MOB_EXPERT_SHARED, desc->n_shared * desc->moe_intermediate,
                           "mlp.shared_experts."));
  for (int e = 0; e < desc->n_experts; e++) {
    char prefix[48];
    snprintf(prefix, sizeof prefix, "mlp.experts.%d.", e);
    MOB_TRY(mob__slots_mlp(&to, e, desc->moe_intermediate, prefix));
  }
  return MOB_OK;
}

const mob_family_t mob_family_deepseek_v3 = {"deepseek_v3", architectures, describe, slots};
