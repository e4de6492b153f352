#include "engine/api/serve_plan.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api/serve_env.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "vllm"
#include "runtime/base/log.h"

// --rope-scaling and --rope-theta are overrides of config.json too.
static mob_status join_overrides(const mob_serve_options_t *o, char **out) {
  *out = NULL;
  if (!o->hf_overrides && !o->rope_scaling && o->rope_theta == 0) return MOB_OK;
  json_t *all = o->hf_overrides ? json_loads(o->hf_overrides, 0, NULL) : json_object();
  if (!json_is_object(all)) {
    json_decref(all);
    return mob_fail(MOB_E_INVALID, "--hf-overrides must be a JSON object");
  }
  if (o->rope_scaling)
    json_object_set_new(all, "rope_scaling", json_loads(o->rope_scaling, JSON_DECODE_ANY, NULL));
  if (o->rope_theta != 0) json_object_set_new(all, "rope_theta", json_real(o->rope_theta));
  *out = json_dumps(all, JSON_COMPACT);
  json_decref(all);
  return MOB_OK;
}

static mob_status derive_length(const mob_serve_options_t *o, const mob_model_desc_t *desc,
                                int *out) {
  *out = o->max_model_len > 0 ? (int)o->max_model_len : desc->max_position;
  if (*out <= desc->max_position) return MOB_OK;
  if (mob__env_true("VLLM_ALLOW_LONG_MAX_MODEL_LEN")) {
    MOB_WARN("max_model_len %d is greater than the %d positions of the model's config.json: "
             "outputs may be wrong",
             *out, desc->max_position);
    return MOB_OK;
  }
  return mob_fail(MOB_E_INVALID,
                  "User-specified max_model_len (%d) is greater than the derived max_model_len "
                  "(max_position_embeddings=%d in model's config.json). This may lead to incorrect "
                  "model outputs. To "
                  "allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1",
                  *out, desc->max_position);
}

static mob_status check_parallel(const mob_serve_options_t *o, const mob_model_desc_t *desc) {
  if (desc->n_heads % o->tp != 0) {
    return mob_fail(
        MOB_E_INVALID,
        "Total number of attention heads (%d) must be divisible by tensor parallel size "
        "(%lld).",
        desc->n_heads, (long long)o->tp);
  }
  if (o->pp > desc->n_layers) {
    return mob_fail(MOB_E_INVALID, "--pipeline-parallel-size %lld: the model has only %d layers",
                    (long long)o->pp, desc->n_layers);
  }
  return MOB_OK;
}

static mob_status check_quantization(const mob_serve_options_t *o, const mob_model_desc_t *desc) {
  if (!o->quantization) return MOB_OK;
  bool fp8 = desc->quant_block_rows > 0;
  if (fp8 && strcmp(o->quantization, "fp8") == 0) return MOB_OK;
  if (fp8) {
    return mob_fail(MOB_E_INVALID,
                    "Quantization method specified in the model config (fp8) does not match the "
                    "quantization method specified in the `quantization` argument (%s).",
                    o->quantization);
  }
  return mob_fail(
      MOB_E_UNSUPPORTED,
      "--quantization %s: the checkpoint is not quantized, and weights are not quantized "
      "while loading",
      o->quantization);
}

static mob_status plan_batch(const mob_serve_options_t *o, mob_engine_config_t *e) {
  e->chunked_prefill = o->chunked_prefill != 0;
  e->prefix_cache = o->prefix_cache != 0;
  e->max_seqs = o->max_seqs ? (int)o->max_seqs : 256;
  int64_t batched = o->max_batched_tokens;
  if (!batched) batched = e->chunked_prefill ? 2048 : e->max_len > 2048 ? e->max_len : 2048;
  if (!o->max_batched_tokens && batched < e->max_seqs) batched = e->max_seqs;
  if (!e->chunked_prefill && batched < e->max_len) {
    return mob_fail(MOB_E_INVALID,
                    "max_num_batched_tokens (%lld) is smaller than max_model_len (%d). This "
                    "effectively limits the "
                    "maximum sequence length to max_num_batched_tokens and makes vLLM reject "
                    "longer sequences. Please "
                    "increase max_num_batched_tokens or decrease max_model_len.",
                    (long long)batched, e->max_len);
  }
  e->max_batched_tokens = (int)batched;
  return MOB_OK;
}

static mob_status open_model(const mob_serve_options_t *o, mob_serve_plan_t *plan) {
  if (!mob_is_dir(o->model)) {
    return mob_fail(
        MOB_E_NOT_FOUND,
        "%s is not a directory. Models are served from local directories in the Hugging "
        "Face layout (config.json, *.safetensors, tokenizer.json); nothing is fetched from a hub.",
        o->model);
  }
  mob_model_options_t options = {.dummy = strcmp(o->load_format, "dummy") == 0,
                                 .trust_lookup = true,
                                 .overrides = plan->overrides};
  MOB_TRY(mob_model_open(o->model, &options, &plan->model));
  size_t len = strlen(o->model);
  while (len > 1 && o->model[len - 1] == '/') len--;
  const char *found = mob_model_dir(plan->model);
  size_t found_len = strlen(found);
  while (found_len > 1 && found[found_len - 1] == '/') found_len--;
  if (found_len != len || strncmp(found, o->model, len) != 0) {
    MOB_INFO("no config.json in %s; the one model below it is %s", o->model, found);
  }
  return MOB_OK;
}

mob_status mob__serve_plan(const mob_serve_options_t *o, mob_serve_plan_t *plan) {
  memset(plan, 0, sizeof *plan);
  mob_engine_config_t *e = &plan->engine;
  mob_status status = MOB_OK;
  MOB_TRY_GOTO(join_overrides(o, &plan->overrides), status, fail);
  MOB_TRY_GOTO(open_model(o, plan), status, fail);
  const mob_model_desc_t *desc = mob_model_desc(plan->model);
  MOB_TRY_GOTO(check_parallel(o, desc), status, fail);
  MOB_TRY_GOTO(check_quantization(o, desc), status, fail);
  MOB_TRY_GOTO(derive_length(o, desc, &e->max_len), status, fail);
  MOB_TRY_GOTO(plan_batch(o, e), status, fail);
  MOB_TRY_GOTO(mob__env_layer_split((int)o->pp, desc->n_layers, &plan->layer_split), status, fail);
  e->model = plan->model;
  e->model_dir = mob_model_dir(plan->model);
  e->device = o->device;
  e->tp = (int)o->tp;
  e->pp = (int)o->pp;
  e->expert_parallel = o->expert_parallel;
  e->layer_split = plan->layer_split;
  e->dtype = strcmp(o->dtype, "half") == 0    ? "float16"
             : strcmp(o->dtype, "float") == 0 ? "float32"
                                              : o->dtype;
  e->kv_cache_dtype = o->kv_cache_dtype;
  e->memory_share = o->memory_share;
  e->pages = o->blocks_override;
  e->eager = o->eager;
  e->dummy = strcmp(o->load_format, "dummy") == 0;
  e->seed = (uint64_t)o->seed;
  e->overrides = plan->overrides;
  e->priority_policy = strcmp(o->scheduling_policy, "priority") == 0;
  return MOB_OK;
fail:
  mob__serve_plan_clear(plan);
  return status;
}

void mob__serve_plan_clear(mob_serve_plan_t *plan) {
  if (plan->model) mob_model_close(plan->model);
  free(plan->overrides);
  free(plan->layer_split);
  memset(plan, 0, sizeof *plan);
}
