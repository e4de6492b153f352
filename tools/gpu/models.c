#include "tools/gpu/models.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/mem.h"
#include "tests/unit/cpu/golden_weights.h"

static const char *const goldens[] = {
    "deepseek_v3/base_fp8", "deepseek_v3/dense_bf16",   "deepseek_v3/mscale_f16", "deepseek_v3/odd_fp8", "deepseek_v3/plain_f32",
    "deepseek_v3/wide_bf16", "qwen2/qwen2_bf16",        "qwen2/qwen2_tied_yarn_f32", "qwen3/qwen3_bf16", "qwen3/qwen3_fp8",
    "qwen3_moe/qwen3_moe_bf16", "qwen3_moe/qwen3_moe_f32", "llama/llama3_bf16",   "llama/llama_f32",     NULL};

static const struct made {
  const char *name, *json;
} made[] = {
    {"mla_tiles",
     "{\"dtype\":\"fp8\",\"seed\":11,\"config\":{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\","
     "\"vocab_size\":256,\"hidden_size\":256,\"intermediate_size\":512,\"moe_intermediate_size\":512,\"num_hidden_layers\":3,"
     "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"q_lora_rank\":128,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"
     "\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":4,\"n_group\":1,\"topk_group\":1,\"num_experts_per_tok\":2,"
     "\"n_shared_experts\":1,\"first_k_dense_replace\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,"
     "\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\",\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-06,\"rope_theta\":10000.0,"
     "\"rope_scaling\":null,\"max_position_embeddings\":2560,\"attention_bias\":false,\"tie_word_embeddings\":false,"
     "\"bos_token_id\":0,\"eos_token_id\":1,\"torch_dtype\":\"bfloat16\",\"quantization_config\":{\"quant_method\":\"fp8\","
     "\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}}}"},
    {"moe_fp8",
     "{\"dtype\":\"fp8\",\"seed\":12,\"config\":{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"model_type\":\"qwen3_moe\","
     "\"vocab_size\":256,\"hidden_size\":256,\"intermediate_size\":512,\"moe_intermediate_size\":512,\"num_hidden_layers\":3,"
     "\"num_attention_heads\":8,\"num_key_value_heads\":4,\"head_dim\":64,\"num_experts\":8,\"num_experts_per_tok\":2,"
     "\"norm_topk_prob\":true,\"decoder_sparse_step\":1,\"mlp_only_layers\":[],\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-06,"
     "\"rope_theta\":1000000.0,\"max_position_embeddings\":2048,\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1,"
     "\"torch_dtype\":\"bfloat16\",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
     "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}}}"},
    {"gqa_128",
     "{\"dtype\":\"bf16\",\"seed\":13,\"config\":{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\","
     "\"vocab_size\":512,\"hidden_size\":256,\"intermediate_size\":512,\"num_hidden_layers\":3,\"num_attention_heads\":8,"
     "\"num_key_value_heads\":2,\"head_dim\":128,\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,"
     "\"max_position_embeddings\":2048,\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1,"
     "\"torch_dtype\":\"bfloat16\"}}"},
};

static const char *const made_names[] = {"mla_tiles", "moe_fp8", "gqa_128", NULL};

const char *const *check_golden_models(void) { return goldens; }
const char *const *check_made_models(void) { return made_names; }

static int32_t *ids_of(const json_t *array, uint32_t *count) {
  *count = (uint32_t)json_array_size(array);
  int32_t *ids = MOB_NEW_ARRAY(int32_t, (size_t)*count + 1);
  for (uint32_t i = 0; i < *count; i++) ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
  return ids;
}

mob_status check_model_open(const char *root, const char *name, check_model_t *out) {
  *out = (check_model_t){.memo = MOB_NEW(check_memo_t)};
  snprintf(out->name, sizeof out->name, "%s", name);
  json_error_t error;
  json_t *json = NULL;
  for (size_t i = 0; i < MOB_LEN(made) && !json; i++)
    if (strcmp(made[i].name, name) == 0) json = json_loads(made[i].json, 0, &error), out->made = true;
  if (!json) {
    char path[1024];
    snprintf(path, sizeof path, "%s/tests/golden/%s.json", root, name);
    json = json_load_file(path, 0, &error);
    if (!json) return mob_fail(MOB_E_FORMAT, "%s: %s", path, error.text);
  }
  out->prompt = ids_of(json_object_get(json, "prompt"), &out->prompt_count);
  out->tokens = ids_of(json_object_get(json, "tokens"), &out->token_count);
  const char *tmp = getenv("TMPDIR");
  snprintf(out->dir, sizeof out->dir, "%s/mobula-check-XXXXXX", tmp ? tmp : "/tmp");
  mob_status status = mkdtemp(out->dir) ? golden_write_model(json, out->dir) : mob_fail(MOB_E_IO, "no temporary folder %s", out->dir);
  json_decref(json);
  mob_model_options_t options = {0};
  if (status == MOB_OK) status = mob_model_open(out->dir, &options, &out->model);
  if (status != MOB_OK) {
    check_model_close(out);
    return mob_wrap(status, "%s", name);
  }
  out->desc = mob_model_desc(out->model);
  return MOB_OK;
}

mob_status check_model_open_dir(const char *dir, bool dummy, check_model_t *out) {
  const char *slash = strrchr(dir, '/');
  const mob_model_options_t options = {.dummy = dummy};
  *out = (check_model_t){0};
  MOB_TRY(mob_model_open(dir, &options, &out->model));
  snprintf(out->name, sizeof out->name, "%s", slash && slash[1] ? slash + 1 : dir);
  out->desc = mob_model_desc(out->model);
  out->memo = MOB_NEW(check_memo_t);
  return MOB_OK;
}

void check_model_close(check_model_t *m) {
  char file[300];
  if (m->memo && m->memo->data) m->memo->forget(m->memo->data);
  free(m->memo);
  if (m->model) mob_model_close(m->model);
  snprintf(file, sizeof file, "%s/model.safetensors", m->dir);
  unlink(file);
  snprintf(file, sizeof file, "%s/config.json", m->dir);
  unlink(file);
  if (m->dir[0]) rmdir(m->dir);
  free(m->prompt);
  free(m->tokens);
  *m = (check_model_t){0};
}
