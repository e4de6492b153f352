// Llama 3.x. Defaults are those of transformers' LlamaConfig.
#include "engine/model/gqa.h"

static const char *const architectures[] = {"LlamaForCausalLM", NULL};

static mob_status describe(const json_t *config, mob_model_desc_t *desc) {
  static const mob_model_desc_t defaults = {.hidden = 4096,
                                            .n_layers = 32,
                                            .vocab = 32000,
                                            .max_position = 2048,
                                            .n_heads = 32,
                                            .intermediate = 11008,
                                            .rms_eps = 1e-6f,
                                            .bos_id = 1,
                                            .eos_id = 2};
  bool bias;
  MOB_TRY(mob__config_common(config, &defaults, desc));
  MOB_TRY(mob__gqa_describe(config, 0, desc));
  MOB_TRY(mob__config_bool(config, "attention_bias", false, &bias));
  desc->qkv_bias = desc->o_bias = bias;
  MOB_TRY(mob__config_bool(config, "mlp_bias", false, &desc->mlp_bias));
  if (desc->mlp_bias)
    return mob_fail(MOB_E_UNSUPPORTED, "config.json: mlp_bias true is not supported");
  MOB_TRY(mob__gqa_dense(desc));
  return mob__config_quant(config, desc);
}

static mob_status slots(const mob_model_desc_t *desc, int layer, mob_slot_fn emit, void *arg) {
  mob__slots_t to = {desc, layer, emit, arg};
  if (layer < 0) return mob__slots_outer(&to);
  MOB_TRY(mob__slots_gqa(&to));
  return mob__slots_mlp(&to, MOB_EXPERT_NONE, desc->intermediate, "mlp.");
}

const mob_family_t mob_family_llama = {"llama", architectures, describe, slots};
