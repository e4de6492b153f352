// Qwen2 and Qwen2.5: biases on q, k and v. Defaults are those of transformers' Qwen2Config.
#include "engine/model/gqa.h"

static const char *const architectures[] = {"Qwen2ForCausalLM", NULL};

static mob_status describe(const json_t *config, mob_model_desc_t *desc) {
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
  MOB_TRY(mob__gqa_no_window(config));
  MOB_TRY(mob__gqa_describe(config, 0, desc));
  desc->qkv_bias = true;
  MOB_TRY(mob__gqa_dense(desc));
  return mob__config_quant(config, desc);
}

static mob_status slots(const mob_model_desc_t *desc, int layer, mob_slot_fn emit, void *arg) {
  mob__slots_t to = {desc, layer, emit, arg};
  if (layer < 0) return mob__slots_outer(&to);
  MOB_TRY(mob__slots_gqa(&to));
  return mob__slots_mlp(&to, MOB_EXPERT_NONE, desc->intermediate, "mlp.");
}

const mob_family_t mob_family_qwen2 = {"qwen2", architectures, describe, slots};
