#include "engine/api/gateway.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "api"
#include "runtime/base/log.h"

// ---------------------------------------------------------------------------- defaults of the
// sampling

static double number_of(const json_t *config, const char *key) {
  const json_t *value = json_object_get(config, key);
  return json_is_number(value) ? json_number_value(value) : NAN;
}

// What transformers calls the difference to the defaults: a top_k of 50 is its default and
// therefore says nothing.
static void take_defaults(const json_t *config, bool file, mob_api_limits_t *limits) {
  double temperature = number_of(config, "temperature"), top_p = number_of(config, "top_p");
  double penalty = number_of(config, "repetition_penalty"), min_p = number_of(config, "min_p");
  double top_k = number_of(config, "top_k"), longest = number_of(config, "max_new_tokens");
  if (!isnan(temperature)) limits->temperature = temperature;
  if (!isnan(top_p)) limits->top_p = top_p;
  if (!isnan(penalty)) limits->repetition_penalty = penalty;
  if (!isnan(min_p)) limits->min_p = min_p;
  if (!isnan(top_k) && !(file && top_k == 50)) limits->top_k = (int64_t)top_k;
  if (longest >= 1) limits->max_new_tokens = (int64_t)longest;
}

static mob_status read_generation_config(mob_gateway_t *gateway) {
  const mob_serve_options_t *o = gateway->options;
  mob_api_limits_t *limits = &gateway->limits;
  limits->temperature = limits->top_p = limits->repetition_penalty = limits->min_p = NAN;
  limits->top_k = limits->max_new_tokens = MOB_UNSET;
  if (o->generation_config && strcmp(o->generation_config, "vllm") != 0) {
    bool own = strcmp(o->generation_config, "auto") == 0;
    mob_buf_t text = {0};
    char *path = mob_path_join(own ? mob_model_dir(gateway->model) : o->generation_config,
                               "generation_config.json");
    mob_status status = mob_file_read(path, 1 << 20, &text);
    json_t *json = status == MOB_OK ? json_loadb((char *)text.data, text.len, 0, NULL) : NULL;
    if (json)
      take_defaults(json, true, limits);
    else if (status == MOB_OK)
      status = mob_fail(MOB_E_FORMAT, "%s is not JSON", path);
    json_decref(json);
    mob_buf_free(&text);
    free(path);
    if (status != MOB_OK && !(own && status == MOB_E_NOT_FOUND)) return status;
  }
  if (o->override_generation) {
    json_t *json = json_loads(o->override_generation, 0, NULL);
    if (!json) return mob_fail(MOB_E_INVALID, "--override-generation-config is not a JSON object");
    take_defaults(json, false, limits);
    json_decref(json);
  }
  return MOB_OK;
}

static mob_status read_cors(mob_gateway_t *gateway) {
  const mob_serve_options_t *o = gateway->options;
  gateway->origins = json_loads(o->allowed_origins, JSON_DECODE_ANY, NULL);
  gateway->methods = json_loads(o->allowed_methods, JSON_DECODE_ANY, NULL);
  gateway->headers = json_loads(o->allowed_headers, JSON_DECODE_ANY, NULL);
  if (!json_is_array(gateway->origins) || !json_is_array(gateway->methods) ||
      !json_is_array(gateway->headers)) {
    return mob_fail(MOB_E_INVALID,
                    "--allowed-origins, --allowed-methods and --allowed-headers are JSON arrays");
  }
  const json_t *lists[] = {gateway->origins, gateway->methods, gateway->headers};
  for (size_t k = 0; k < MOB_LEN(lists); k++) {
    for (size_t i = 0; i < json_array_size(lists[k]); i++) {
      const char *text = json_string_value(json_array_get(lists[k], i));
      if (!text) return mob_fail(MOB_E_INVALID, "--allowed-...: every element must be a text");
      if (strcmp(text, "*") != 0) continue;
      if (k == 0) gateway->all_origins = true;
      if (k == 2) gateway->all_headers = true;
    }
  }
  return MOB_OK;
}

mob_status mob_gateway_open(uv_loop_t *loop, const mob_gateway_config_t *config,
                            mob_gateway_t **out) {
  *out = NULL;
  mob_gateway_t *gateway = MOB_NEW(mob_gateway_t);
  const mob_serve_options_t *o = config->options;
  gateway->loop = loop;
  gateway->options = o;
  gateway->model = config->model;
  gateway->prefix_cache = config->prefix_cache;
  gateway->created = mob_wall_ms() / 1000;
  const char *env_key = getenv("VLLM_API_KEY");
  gateway->api_key = env_key && *env_key ? env_key : o->api_key;
  const mob_model_desc_t *desc = mob_model_desc(config->model);
  const mob_generation_defaults_t *generation = mob_model_generation(config->model);
  gateway->limits.vocab = desc->vocab;
  gateway->limits.max_len = config->max_len;
  gateway->limits.max_logprobs =
      o->max_logprobs < MOB_MAX_LOGPROBS ? (int)o->max_logprobs : MOB_MAX_LOGPROBS;
  if (o->max_logprobs > MOB_MAX_LOGPROBS)
    MOB_WARN("--max-logprobs %lld: a request can have %d", (long long)o->max_logprobs,
             MOB_MAX_LOGPROBS);
  gateway->limits.priority_policy = strcmp(o->scheduling_policy, "priority") == 0;
  gateway->eos = desc->eos_id >= 0       ? desc->eos_id
                 : generation->eos_count ? generation->eos_ids[0]
                                         : -1;
  mob__metrics_init(&gateway->metrics, config->max_len);
  const char *dir = o->tokenizer ? o->tokenizer : mob_model_dir(config->model);
  mob_status status = MOB_OK;
  MOB_TRY_GOTO(read_generation_config(gateway), status, fail);
  MOB_TRY_GOTO(read_cors(gateway), status, fail);
  MOB_TRY_GOTO(mob__prompter_open(dir, o->chat_template, o->content_format, o->skip_tokenizer,
                                  &gateway->prompter),
               status, fail);
  json_object_seed(
      0); // jansson does it on first use, which must not be on two worker threads at once
  *out = gateway;
  return MOB_OK;
fail:
  mob_gateway_close(gateway);
  return status;
}

void mob_gateway_set_engine(mob_gateway_t *gateway, mob_engine_t *engine) {
  gateway->engine = engine;
}

void mob_gateway_set_pods(mob_gateway_t *gateway, const mob_pods_t *pods) {
  gateway->pods = pods;
}

void mob_gateway_lost(mob_gateway_t *gateway, const char *cause, const char *why) {
  gateway->lost = true;
  gateway->metrics.lost = 1;
  snprintf(gateway->metrics.lost_cause, sizeof gateway->metrics.lost_cause, "%s", cause);
  free(gateway->lost_why);
  gateway->lost_why = mob_sprintf("%s: %s", cause, why);
  for (mob__task_t *task = gateway->tasks, *next; task; task = next) {
    next = task->next;
    mob__task_lost(task);
  }
}

void mob_gateway_end_all(mob_gateway_t *gateway, const char *message) {
  for (mob__task_t *task = gateway->tasks, *next; task; task = next) {
    next = task->next;
    mob__task_end(task, message);
  }
}

size_t mob_gateway_under_way(const mob_gateway_t *gateway) {
  return gateway->task_count;
}

void mob_gateway_log_stats(mob_gateway_t *gateway, double seconds) {
  if (!gateway->engine || gateway->lost) return;
  mob_engine_stats_t stats = {0};
  mob_engine_stats(gateway->engine, &stats);
  uint64_t prompt = stats.prompt_tokens - gateway->log_prompt;
  uint64_t generated = stats.generated_tokens - gateway->log_generated;
  gateway->log_prompt = stats.prompt_tokens;
  gateway->log_generated = stats.generated_tokens;
  bool busy = prompt || generated || stats.running || stats.waiting;
  if (!busy && !gateway->logged_busy) return;
  gateway->logged_busy = busy;
  MOB_INFO(
      "Avg prompt throughput: %.1f tokens/s, Avg generation throughput: %.1f tokens/s, Running: %u "
      "reqs, "
      "Swapped: 0 reqs, Pending: %u reqs, GPU KV cache usage: %.1f%%, CPU KV cache usage: 0.0%%.",
      (double)prompt / seconds, (double)generated / seconds, stats.running, stats.waiting,
      stats.pages_total > 0 ? 100.0 * (double)stats.pages_used / (double)stats.pages_total : 0.0);
  if (gateway->prefix_cache && stats.prefix_queries) {
    MOB_INFO("Prefix cache hit rate: GPU: %.2f%%, CPU: -100.00%%",
             100.0 * (double)stats.prefix_hits / (double)stats.prefix_queries);
  }
}

void mob_gateway_close(mob_gateway_t *gateway) {
  if (!gateway) return;
  mob__prompter_close(&gateway->prompter);
  json_decref(gateway->origins);
  json_decref(gateway->methods);
  json_decref(gateway->headers);
  free(gateway->lost_why);
  free(gateway);
}
