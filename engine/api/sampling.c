// From a request's fields to the engine's sampling parameters: defaults, then the checks of vLLM's
// SamplingParams and of its engine, with their messages.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api/json_out.h"
#include "engine/api/request.h"
#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "api"
#include "runtime/base/log.h"

#define REFUSE(...) mob_fail(MOB_E_INVALID, __VA_ARGS__)

static mob_status refuse_float(const char *text, double got) {
  mob_buf_t number = {0};
  mob_json_float(&number, got);
  mob_status status = REFUSE("%s, got %s.", text, mob_buf_cstr(&number));
  mob_buf_free(&number);
  return status;
}

static double first_set(double a, double b, double c) {
  return !isnan(a) ? a : !isnan(b) ? b : c;
}

static mob_status check_prompt(const mob_api_limits_t *limits, const int32_t *prompt,
                               size_t count) {
  if (count == 0) return REFUSE("The decoder prompt cannot be empty");
  for (size_t i = 0; i < count; i++) {
    if (prompt[i] < 0 || prompt[i] >= limits->vocab) {
      return REFUSE("Token id %d is out of vocabulary (%d tokens)", prompt[i], limits->vocab);
    }
  }
  return MOB_OK;
}

static mob_status check_length(const mob_api_request_t *r, const mob_api_limits_t *limits,
                               size_t prompt_count, int64_t *max_tokens) {
  int64_t max = r->kind == MOB_API_CHAT && r->max_completion_tokens != MOB_UNSET &&
                        r->max_completion_tokens != 0
                    ? r->max_completion_tokens
                    : r->max_tokens;
  long long prompt = (long long)prompt_count;
  if (max == MOB_UNSET) {
    if (prompt >= limits->max_len) {
      return REFUSE("This model's maximum context length is %d tokens. However, you requested %lld "
                    "tokens in the "
                    "messages, Please reduce the length of the messages.",
                    limits->max_len, prompt);
    }
  } else if (max > limits->max_len - prompt) {
    long long total = max > INT64_MAX - prompt ? INT64_MAX : max + prompt;
    return REFUSE("This model's maximum context length is %d tokens. However, you requested %lld "
                  "tokens (%lld in the "
                  "messages, %lld in the completion). Please reduce the length of the messages or "
                  "completion.",
                  limits->max_len, total, prompt, (long long)max);
  }
  int64_t left = limits->max_len - prompt;
  if (max == MOB_UNSET || max > left) max = left;
  if (limits->max_new_tokens != MOB_UNSET && max > limits->max_new_tokens)
    max = limits->max_new_tokens;
  bool echo_only = r->kind == MOB_API_COMPLETION && r->echo && r->max_tokens == 0;
  if (echo_only) max = 1; // one token is generated and dropped
  if (max < 1) {
    if (left < 1) {
      return REFUSE("This model's maximum context length is %d tokens. However, you requested %lld "
                    "tokens in the "
                    "messages, Please reduce the length of the messages.",
                    limits->max_len, prompt);
    }
    return REFUSE("max_tokens must be at least 1, got %lld.", (long long)max);
  }
  *max_tokens = max;
  return MOB_OK;
}

static mob_status check_unsupported(const mob_api_request_t *r, const mob_api_limits_t *limits) {
  if (r->suffix) return REFUSE("suffix is not currently supported");
  if (r->use_beam_search) return REFUSE("use_beam_search is not supported");
  if (json_is_array(r->logits_processors) && json_array_size(r->logits_processors) > 0) {
    return REFUSE("The `logits_processors` argument is not supported by this server. See "
                  "--logits-processor-pattern engine argugment for more information.");
  }
  const char *format = json_string_value(json_object_get(r->response_format, "type"));
  if (format && strcmp(format, "text") != 0) {
    return REFUSE("response_format %s is not supported: this server has no guided decoding",
                  format);
  }
  if ((r->guided_json && !json_is_null(r->guided_json)) ||
      (r->guided_regex && !json_is_null(r->guided_regex)) ||
      (r->guided_choice && !json_is_null(r->guided_choice)) ||
      (r->guided_grammar && !json_is_null(r->guided_grammar))) {
    return REFUSE("guided_json, guided_regex, guided_choice and guided_grammar are not supported: "
                  "this server has no "
                  "guided decoding");
  }
  if (r->priority != 0 && !limits->priority_policy) {
    return REFUSE("Got priority %lld but Priority scheduling is not enabled.",
                  (long long)r->priority);
  }
  if (r->priority > INT32_MAX || r->priority < INT32_MIN)
    return REFUSE("priority must fit 32 bits");
  return MOB_OK;
}

static mob_status check_numbers(const mob_api_request_t *r, const mob_sampling_t *s,
                                int64_t top_k) {
  if (r->n < 1) return REFUSE("n must be at least 1, got %lld.", (long long)r->n);
  if (r->best_of != MOB_UNSET && r->best_of != 0) {
    if (r->best_of < r->n) {
      return REFUSE("best_of must be greater than or equal to n, got n=%lld and best_of=%lld.",
                    (long long)r->n, (long long)r->best_of);
    }
    if (r->best_of != r->n && r->stream && r->kind == MOB_API_CHAT) {
      return REFUSE("best_of must equal n to use output_kind=DELTA");
    }
  }
  enum { MOST = 256 }; // of sequences that one request makes; a bound of ours
  if (r->n > MOST || (r->best_of != MOB_UNSET && r->best_of > MOST)) {
    return REFUSE("n and best_of must be at most %d", MOST);
  }
  if (!(s->presence_penalty >= -2 && s->presence_penalty <= 2)) {
    return refuse_float("presence_penalty must be in [-2, 2]", r->presence_penalty);
  }
  if (!(s->frequency_penalty >= -2 && s->frequency_penalty <= 2)) {
    return refuse_float("frequency_penalty must be in [-2, 2]", r->frequency_penalty);
  }
  if (!(s->repetition_penalty > 0 && s->repetition_penalty <= 2)) {
    return refuse_float("repetition_penalty must be in (0, 2]", r->repetition_penalty);
  }
  if (!(s->temperature >= 0))
    return refuse_float("temperature must be non-negative", r->temperature);
  if (!(s->top_p > 0 && s->top_p <= 1)) return refuse_float("top_p must be in (0, 1]", r->top_p);
  if (top_k < -1 || top_k == 0) {
    return REFUSE("top_k must be -1 (disable), or at least 1, got %lld.", (long long)top_k);
  }
  if (!(s->min_p >= 0 && s->min_p <= 1)) return refuse_float("min_p must be in [0, 1]", r->min_p);
  return MOB_OK;
}

static mob_status check_counts(const mob_api_request_t *r, const mob_api_limits_t *limits,
                               int64_t max_tokens, int64_t logprobs, int64_t prompt_logprobs) {
  if (r->min_tokens < 0) {
    return REFUSE("min_tokens must be greater than or equal to 0, got %lld.",
                  (long long)r->min_tokens);
  }
  if (r->min_tokens > max_tokens) {
    return REFUSE("min_tokens must be less than or equal to max_tokens=%lld, got %lld.",
                  (long long)max_tokens, (long long)r->min_tokens);
  }
  for (size_t i = 0; i < r->stop.len; i++) {
    if (!r->stop.at[i][0]) return REFUSE("stop cannot contain an empty string.");
  }
  if (logprobs > limits->max_logprobs) {
    return REFUSE("Requested sample logprobs of %lld, which is greater than max allowed: %d",
                  (long long)logprobs, limits->max_logprobs);
  }
  if (prompt_logprobs > limits->max_logprobs) {
    return REFUSE("Requested prompt logprobs of %lld, which is greater than max allowed: %d",
                  (long long)prompt_logprobs, limits->max_logprobs);
  }
  for (size_t i = 0; i < r->stop_token_ids.len; i++) {
    if (r->stop_token_ids.at[i] < 0 || r->stop_token_ids.at[i] >= limits->vocab) {
      return REFUSE("stop_token_ids contains out-of-vocab token id");
    }
  }
  if (r->has_allowed && r->allowed_token_ids.len == 0)
    return REFUSE("Empty allowed_token_ids provided");
  for (size_t i = 0; i < r->allowed_token_ids.len; i++) {
    if (r->allowed_token_ids.at[i] < 0 || r->allowed_token_ids.at[i] >= limits->vocab) {
      return REFUSE("allowed_token_ids contains out-of-vocab token id");
    }
  }
  return MOB_OK;
}

// Keys are ids as text; values are clamped to [-100, 100]. Filled once, into the request.
static mob_status read_bias(mob_api_request_t *r, const mob_api_limits_t *limits) {
  const char *key;
  json_t *value;
  if (!r->logit_bias || r->bias.len > 0) return MOB_OK;
  json_object_foreach((json_t *)r->logit_bias, key, value) {
    char *end;
    errno = 0;
    long id = strtol(key, &end, 10);
    if (!*key || *end || errno || !json_is_number(value)) {
      return REFUSE("Found token_id %s in logit_bias that is not an integer or string representing "
                    "an integer",
                    key);
    }
    if (id < 0 || id >= limits->vocab)
      return REFUSE("token_id %ld in logit_bias contains out-of-vocab token id", id);
    double bias = json_number_value(value);
    *mob_vec_push(&r->bias) = (mob_logit_bias_t){(int32_t)id, (float)fmin(100, fmax(-100, bias))};
  }
  return MOB_OK;
}

mob_status mob__request_sampling(const mob_api_request_t *r, const mob_api_limits_t *limits,
                                 const int32_t *prompt, size_t prompt_count,
                                 mob_api_sampling_t *out) {
  memset(out, 0, sizeof *out);
  mob_sampling_t *s = &out->sampling;
  MOB_TRY(check_unsupported(r, limits));
  MOB_TRY(check_prompt(limits, prompt, prompt_count));
  int64_t max_tokens = 0;
  MOB_TRY(check_length(r, limits, prompt_count, &max_tokens));
  s->temperature = (float)first_set(r->temperature, limits->temperature, 1);
  s->top_p = (float)first_set(r->top_p, limits->top_p, 1);
  s->min_p = (float)first_set(r->min_p, limits->min_p, 0);
  s->repetition_penalty = (float)first_set(r->repetition_penalty, limits->repetition_penalty, 1);
  s->frequency_penalty = (float)r->frequency_penalty;
  s->presence_penalty = (float)r->presence_penalty;
  int64_t top_k = r->top_k != MOB_UNSET        ? r->top_k
                  : limits->top_k != MOB_UNSET ? limits->top_k
                                               : -1;
  if (r->top_k == MOB_UNSET && top_k == 0) top_k = -1; // generation_config's way to say "off"
  MOB_TRY(check_numbers(r, s, top_k));
  s->top_k = top_k > INT32_MAX ? INT32_MAX : (int32_t)top_k;

  int64_t logprobs = r->kind == MOB_API_COMPLETION ? r->logprobs
                     : r->chat_logprobs            ? r->top_logprobs
                                                   : MOB_UNSET;
  int64_t prompt_logprobs = r->prompt_logprobs;
  if (prompt_logprobs == MOB_UNSET && r->echo) prompt_logprobs = logprobs;
  MOB_TRY(check_counts(r, limits, max_tokens, logprobs, prompt_logprobs));
  MOB_TRY(read_bias((mob_api_request_t *)r, limits));
  out->n = (uint32_t)r->n;
  out->best_of = r->best_of != MOB_UNSET && r->best_of > 0 ? (uint32_t)r->best_of : out->n;
  s->logprobs = logprobs == MOB_UNSET ? -1 : (int32_t)logprobs;
  if (s->logprobs < 0 && out->best_of > out->n) s->logprobs = 0; // the sum ranks the sequences
  s->prompt_logprobs = prompt_logprobs == MOB_UNSET ? -1 : (int32_t)prompt_logprobs;
  s->min_tokens = (uint32_t)r->min_tokens;
  s->bias = r->bias.at;
  s->bias_count = (uint32_t)r->bias.len;
  s->allowed = r->allowed_token_ids.at;
  s->allowed_count = (uint32_t)r->allowed_token_ids.len;
  out->max_tokens = (uint32_t)max_tokens;
  out->has_seed = r->seed != MOB_UNSET && r->seed != -1;
  s->seed = out->has_seed ? (uint64_t)r->seed : 0;
  if (s->temperature > 0 && s->temperature < 0.01f) {
    MOB_WARN("temperature %g is less than 0.01, which may cause numerical errors; 0.01 is used",
             (double)s->temperature);
    s->temperature = 0.01f;
  }
  if (s->temperature < 1e-5f) {
    if (out->best_of > 1)
      return REFUSE("n must be 1 when using greedy sampling, got %u.", out->best_of);
    s->top_p = 1;
    s->top_k = -1;
    s->min_p = 0;
  }
  return MOB_OK;
}
