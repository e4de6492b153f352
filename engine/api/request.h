// A request to generate, out of the JSON body: field by field as vLLM 0.7.2's ChatCompletionRequest
// and CompletionRequest have them, checked as its validators and SamplingParams check them.
#ifndef MOB_API_REQUEST_H
#define MOB_API_REQUEST_H

#include "engine/api/fields.h"
#include "engine/model/model.h"
#include "engine/step.h"

typedef enum mob_api_kind {
  MOB_API_CHAT,
  MOB_API_COMPLETION,
  MOB_API_TOKENIZE,
  MOB_API_DETOKENIZE
} mob_api_kind_t;

typedef struct mob_prompt {
  const char *text; // borrowed from the body; NULL when given as ids
  mob_int_list_t ids;
} mob_prompt_t;

typedef struct mob_api_request {
  mob_api_kind_t kind;
  json_t *body;  // owned; the borrowed pointers below point into it
  char *unknown; // names of fields that were ignored, or NULL; owned
  const char *model;
  // sampling
  double frequency_penalty, presence_penalty, temperature, top_p, min_p, repetition_penalty,
      length_penalty;
  int64_t n, best_of, top_k, seed, max_tokens, max_completion_tokens, min_tokens,
      truncate_prompt_tokens;
  int64_t logprobs;     // completions: of each token; chat: top_logprobs when `chat_logprobs`
  int64_t top_logprobs; // chat
  bool chat_logprobs;
  int64_t prompt_logprobs, priority;
  mob_strings_t stop;
  mob_int_list_t stop_token_ids, allowed_token_ids;
  bool has_allowed;
  MOB_VEC(mob_logit_bias_t) bias;
  bool ignore_eos, include_stop, skip_special, spaces_between, use_beam_search;
  // shape of the answer
  bool stream, include_usage, continuous_usage, echo, tokens_as_ids, return_token_ids;
  // prompt
  const json_t *prompt_json, *messages, *tools, *documents, *template_kwargs, *tool_choice;
  const json_t *tokens; // detokenize
  const char *chat_template, *request_id, *suffix;
  bool add_generation_prompt, continue_final, add_special;
  bool tools_auto;               // tool_choice is "auto"
  const char *tool_named;        // function of a named tool_choice
  MOB_VEC(mob_prompt_t) prompts; // completions
  // raw members that validators look at
  const json_t *logit_bias, *stream_options, *response_format, *guided_json, *guided_regex,
      *guided_choice, *guided_grammar, *guided_backend, *guided_pattern, *logits_processors, *user,
      *parallel_tools, *allowed_json;
} mob_api_request_t;

// What the server brings to a request.
typedef struct mob_api_limits {
  int vocab;        // ids below it exist
  int max_len;      // of prompt and answer together
  int max_logprobs; // --max-logprobs
  bool priority_policy;
  double temperature, top_p, repetition_penalty, min_p; // defaults; NAN: vLLM's own
  int64_t top_k;                                        // MOB_UNSET: vLLM's own
  int64_t max_new_tokens;                               // of generation_config; MOB_UNSET: none
} mob_api_limits_t;

// Takes the body's bytes. On failure *error is the message (owned by the caller) and the request is
// empty. Blocking, any thread.
mob_status mob__request_parse(mob_api_kind_t kind, const char *content_type, const char *body,
                              size_t len, mob_api_request_t *out, char **error);
// The fields that a body of this kind has, for the API's schema.
const mob_field_t *mob__request_fields(mob_api_kind_t kind, size_t *count);
void mob__request_clear(mob_api_request_t *request);

// What the engine gets for a prompt of `prompt_count` tokens, everything checked. MOB_E_INVALID
// with the message for the client. The arrays point into the request.
typedef struct mob_api_sampling {
  mob_sampling_t sampling;
  uint32_t max_tokens;
  uint32_t n, best_of; // best_of sequences are generated, the n best are answered
  bool has_seed;
} mob_api_sampling_t;
mob_status mob__request_sampling(const mob_api_request_t *request, const mob_api_limits_t *limits,
                                 const int32_t *prompt, size_t prompt_count,
                                 mob_api_sampling_t *out);

#endif
