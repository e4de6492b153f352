#include "engine/api/request.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/base/mem.h"

#define AT(member) (int)offsetof(mob_api_request_t, member)
#define F(name_, kind_, member)                                                                    \
  { name_, MOB_FIELD_##kind_, false, false, AT(member) }
#define OPT(name_, kind_, member)                                                                  \
  { name_, MOB_FIELD_##kind_, false, true, AT(member) }
#define MUST(name_, kind_, member)                                                                 \
  { name_, MOB_FIELD_##kind_, true, false, AT(member) }

// Of chat completions and completions alike.
#define COMMON_FIELDS                                                                              \
  MUST("model", TEXT, model), OPT("frequency_penalty", FLOAT, frequency_penalty),                  \
      OPT("logit_bias", OBJECT, logit_bias), OPT("max_tokens", INT, max_tokens),                   \
      OPT("presence_penalty", FLOAT, presence_penalty), OPT("seed", INT, seed),                    \
      OPT("stop", TEXTS, stop), OPT("stream", BOOL, stream),                                       \
      OPT("stream_options", OBJECT, stream_options), OPT("temperature", FLOAT, temperature),       \
      OPT("top_p", FLOAT, top_p), OPT("user", ANY, user), OPT("best_of", INT, best_of),            \
      F("use_beam_search", BOOL, use_beam_search), OPT("top_k", INT, top_k),                       \
      OPT("min_p", FLOAT, min_p), OPT("repetition_penalty", FLOAT, repetition_penalty),            \
      F("length_penalty", FLOAT, length_penalty), OPT("stop_token_ids", IDS, stop_token_ids),      \
      F("include_stop_str_in_output", BOOL, include_stop), F("ignore_eos", BOOL, ignore_eos),      \
      F("min_tokens", INT, min_tokens), F("skip_special_tokens", BOOL, skip_special),              \
      F("spaces_between_special_tokens", BOOL, spaces_between),                                    \
      OPT("truncate_prompt_tokens", INT, truncate_prompt_tokens),                                  \
      OPT("prompt_logprobs", INT, prompt_logprobs), F("add_special_tokens", BOOL, add_special),    \
      OPT("response_format", OBJECT, response_format), OPT("guided_json", ANY, guided_json),       \
      OPT("guided_regex", ANY, guided_regex), OPT("guided_choice", ANY, guided_choice),            \
      OPT("guided_grammar", ANY, guided_grammar),                                                  \
      OPT("guided_decoding_backend", ANY, guided_backend),                                         \
      OPT("guided_whitespace_pattern", ANY, guided_pattern), F("priority", INT, priority),         \
      OPT("logits_processors", ANY, logits_processors),                                            \
      OPT("allowed_token_ids", ARRAY, allowed_json),                                               \
      OPT("return_tokens_as_token_ids", BOOL, tokens_as_ids),                                      \
      OPT("return_token_ids", BOOL, return_token_ids)

static const mob_field_t chat_fields[] = {
    MUST("messages", ARRAY, messages),
    COMMON_FIELDS,
    OPT("logprobs", BOOL, chat_logprobs),
    OPT("top_logprobs", INT, top_logprobs),
    OPT("max_completion_tokens", INT, max_completion_tokens),
    OPT("n", INT, n),
    OPT("tools", ARRAY, tools),
    OPT("tool_choice", ANY, tool_choice),
    OPT("parallel_tool_calls", ANY, parallel_tools),
    F("echo", BOOL, echo),
    F("add_generation_prompt", BOOL, add_generation_prompt),
    F("continue_final_message", BOOL, continue_final),
    OPT("documents", ARRAY, documents),
    OPT("chat_template", TEXT, chat_template),
    OPT("chat_template_kwargs", OBJECT, template_kwargs),
    OPT("request_id", TEXT, request_id),
};

static const mob_field_t completion_fields[] = {
    COMMON_FIELDS,           MUST("prompt", ANY, prompt_json),
    OPT("echo", BOOL, echo), OPT("logprobs", INT, logprobs),
    F("n", INT, n),          OPT("suffix", TEXT, suffix),
};

static const mob_field_t tokenize_fields[] = {
    MUST("model", TEXT, model),
    OPT("prompt", ANY, prompt_json),
    OPT("messages", ARRAY, messages),
    F("add_generation_prompt", BOOL, add_generation_prompt),
    F("continue_final_message", BOOL, continue_final),
    F("add_special_tokens", BOOL, add_special),
    OPT("chat_template", TEXT, chat_template),
    OPT("chat_template_kwargs", OBJECT, template_kwargs),
    OPT("tools", ARRAY, tools),
};

static const mob_field_t detokenize_fields[] = {
    MUST("model", TEXT, model),
    MUST("tokens", ARRAY, tokens),
};

static const struct {
  const mob_field_t *fields;
  size_t count;
} tables[] = {
    [MOB_API_CHAT] = {chat_fields, MOB_LEN(chat_fields)},
    [MOB_API_COMPLETION] = {completion_fields, MOB_LEN(completion_fields)},
    [MOB_API_TOKENIZE] = {tokenize_fields, MOB_LEN(tokenize_fields)},
    [MOB_API_DETOKENIZE] = {detokenize_fields, MOB_LEN(detokenize_fields)},
};

const mob_field_t *mob__request_fields(mob_api_kind_t kind, size_t *count) {
  *count = tables[kind].count;
  return tables[kind].fields;
}

static void set_defaults(mob_api_kind_t kind, mob_api_request_t *r) {
  memset(r, 0, sizeof *r);
  r->kind = kind;
  r->temperature = r->top_p = r->min_p = r->repetition_penalty = NAN;
  r->length_penalty = 1;
  r->n = 1;
  r->best_of = r->top_k = r->seed = r->max_completion_tokens = MOB_UNSET;
  r->max_tokens = kind == MOB_API_COMPLETION ? 16 : MOB_UNSET;
  r->truncate_prompt_tokens = r->logprobs = r->prompt_logprobs = MOB_UNSET;
  r->skip_special = r->spaces_between = r->add_generation_prompt = true;
  r->include_usage = true; // when stream_options is there
  r->add_special = kind != MOB_API_CHAT;
}

// ------------------------------------------------------------------------------------ model
// validators

static bool present(const json_t *body, const char *name) { // Python's truth of data.get(name)
  const json_t *v = json_object_get(body, name);
  if (!v || json_is_null(v) || json_is_false(v)) return false;
  if (json_is_string(v)) return json_string_length(v) > 0;
  if (json_is_array(v)) return json_array_size(v) > 0;
  if (json_is_object(v)) return json_object_size(v) > 0;
  return !json_is_number(v) || json_number_value(v) != 0;
}

static bool negative(const json_t *value) {
  return json_is_number(value) && json_number_value(value) < 0;
}

static void check_logprobs(mob_api_kind_t kind, const json_t *body, mob_field_errors_t *errors) {
  const json_t *prompt = json_object_get(body, "prompt_logprobs");
  if (json_is_number(prompt) && json_number_value(prompt) > 0 && present(body, "stream")) {
    mob_field_value_error(errors, "`prompt_logprobs` are not available when `stream=True`.", body);
  }
  if (negative(prompt))
    mob_field_value_error(errors, "`prompt_logprobs` must be a positive value.", body);
  if (kind == MOB_API_COMPLETION) {
    if (negative(json_object_get(body, "logprobs"))) {
      mob_field_value_error(errors, "`logprobs` must be a positive value.", body);
    }
    return;
  }
  const json_t *top = json_object_get(body, "top_logprobs");
  if (!top || json_is_null(top)) return;
  if (negative(top))
    mob_field_value_error(errors, "`top_logprobs` must be a positive value.", body);
  else if (!present(body, "logprobs")) {
    mob_field_value_error(errors, "when using `top_logprobs`, `logprobs` must be set to true.",
                          body);
  }
}

static const char *tool_problem(const json_t *body) {
  const json_t *choice = json_object_get(body, "tool_choice"),
               *tools = json_object_get(body, "tools");
  if (!choice) return NULL;
  const char *word = json_string_value(choice);
  if (json_is_null(choice) || (word && strcmp(word, "none") == 0)) return NULL;
  if (!json_is_array(tools)) return "When using `tool_choice`, `tools` must be set.";
  if (word && strcmp(word, "auto") == 0) return NULL;
  if (!json_is_object(choice)) {
    return "`tool_choice` must either be a named tool, \"auto\", or \"none\".";
  }
  const json_t *function = json_object_get(choice, "function");
  if (!json_is_object(function) || json_object_size(function) == 0) {
    return "Expected field `function` in `tool_choice`. Correct usage: `{\"type\": \"function\", "
           "\"function\": "
           "{\"name\": \"my_function\"}}`";
  }
  const char *name = json_string_value(json_object_get(function, "name"));
  if (!name || !*name) {
    return "Expected field `name` in `function` in `tool_choice`.Correct usage: `{\"type\": "
           "\"function\", "
           "\"function\": {\"name\": \"my_function\"}}`";
  }
  size_t i;
  json_t *tool;
  json_array_foreach((json_t *)tools, i, tool) {
    const char *each =
        json_string_value(json_object_get(json_object_get(tool, "function"), "name"));
    if (each && strcmp(each, name) == 0) return NULL;
  }
  return "The tool specified in `tool_choice` does not match any of the specified `tools`";
}

static void check_tools(const json_t *body, mob_field_errors_t *errors) {
  const char *problem = tool_problem(body);
  if (problem) mob_field_value_error(errors, problem, body);
  const json_t *tools = json_object_get(body, "tools");
  size_t i;
  json_t *tool;
  if (!json_is_array(tools)) return;
  json_array_foreach((json_t *)tools, i, tool) {
    if (json_is_string(json_object_get(json_object_get(tool, "function"), "name"))) continue;
    char *loc = mob_sprintf("'tools', %zu, 'function', 'name'", i);
    mob_field_error(errors, "missing", loc, "Field required", tool);
    free(loc);
  }
}

static void check_messages(const json_t *messages, mob_field_errors_t *errors) {
  size_t i;
  json_t *message;
  json_array_foreach((json_t *)messages, i, message) {
    char *loc = mob_sprintf("'messages', %zu", i);
    const json_t *content = json_object_get(message, "content");
    if (!json_is_object(message)) {
      mob_field_error(errors, "dict_type", loc, "Input should be a valid dictionary", message);
    } else if (!json_is_string(json_object_get(message, "role"))) {
      char *role = mob_sprintf("%s, 'role'", loc);
      mob_field_error(errors, json_object_get(message, "role") ? "string_type" : "missing", role,
                      json_object_get(message, "role") ? "Input should be a valid string"
                                                       : "Field required",
                      message);
      free(role);
    } else if (content && !json_is_null(content) && !json_is_string(content) &&
               !json_is_array(content)) {
      char *at = mob_sprintf("%s, 'content'", loc);
      mob_field_error(errors, "string_type", at, "Input should be a valid string", content);
      free(at);
    }
    free(loc);
  }
}

static void check_guided(const json_t *body, mob_field_errors_t *errors) {
  int kinds =
      present(body, "guided_json") + present(body, "guided_regex") + present(body, "guided_choice");
  if (kinds > 1) {
    mob_field_value_error(
        errors,
        "You can only use one kind of guided decoding ('guided_json', 'guided_regex' or "
        "'guided_choice').",
        body);
  }
}

static void check_generate(mob_api_request_t *r, mob_field_errors_t *errors) {
  const json_t *body = r->body;
  if (present(body, "stream_options") && !present(body, "stream")) {
    mob_field_value_error(errors, "Stream options can only be defined when `stream=True`.", body);
  }
  check_logprobs(r->kind, body, errors);
  check_guided(body, errors);
  if (r->stream_options) {
    static const mob_field_t options[] = {OPT("include_usage", BOOL, include_usage),
                                          OPT("continuous_usage_stats", BOOL, continuous_usage)};
    mob_fields_read(options, MOB_LEN(options), r->stream_options, r, errors);
  } else {
    r->include_usage = false;
  }
  if (r->truncate_prompt_tokens != MOB_UNSET && r->truncate_prompt_tokens < 1) {
    mob_field_error(errors, "greater_than_equal", "'truncate_prompt_tokens'",
                    "Input should be greater than or equal to 1",
                    json_object_get(body, "truncate_prompt_tokens"));
  }
  if (r->allowed_json) {
    static const mob_field_t ids[] = {OPT("allowed_token_ids", IDS, allowed_token_ids)};
    mob_fields_read(ids, 1, body, r, errors);
    r->has_allowed = true;
  }
  const json_t *format = r->response_format;
  if (format) {
    const char *type = json_string_value(json_object_get(format, "type"));
    if (!type || (strcmp(type, "text") != 0 && strcmp(type, "json_object") != 0 &&
                  strcmp(type, "json_schema") != 0)) {
      mob_field_error(errors, "literal_error", "'response_format', 'type'",
                      "Input should be 'text', 'json_object' or 'json_schema'",
                      json_object_get(format, "type"));
    }
  }
  if (r->kind != MOB_API_CHAT) return;
  if (r->messages) check_messages(r->messages, errors);
  check_tools(body, errors);
  if (r->continue_final && present(body, "add_generation_prompt")) {
    mob_field_value_error(
        errors, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
        body);
  }
}

// ---------------------------------------------------------------------------------------------
// prompts

static bool all_ints(const json_t *array) {
  size_t i;
  json_t *item;
  json_array_foreach((json_t *)array, i, item) {
    if (!json_is_integer(item)) return false;
  }
  return true;
}

static void add_ids(mob_api_request_t *r, const json_t *array) {
  mob_prompt_t *prompt = mob_vec_push(&r->prompts);
  size_t i;
  json_t *item;
  json_array_foreach((json_t *)array, i, item) {
    json_int_t id = json_integer_value(item);
    *mob_vec_push(&prompt->ids) = id < 0 || id > INT32_MAX ? -1 : (int32_t)id;
  }
}

static void read_prompts(mob_api_request_t *r, const json_t *json, mob_field_errors_t *errors) {
  size_t i;
  json_t *item;
  bool good = json_is_string(json) || json_is_array(json);
  if (json_is_string(json))
    mob_vec_push(&r->prompts)->text = json_string_value(json);
  else if (json_is_array(json) && json_array_size(json) > 0 && all_ints(json))
    add_ids(r, json);
  else if (json_is_array(json)) {
    bool texts = json_is_string(json_array_get(json, 0));
    json_array_foreach((json_t *)json, i, item) {
      if (texts && json_is_string(item))
        mob_vec_push(&r->prompts)->text = json_string_value(item);
      else if (!texts && json_is_array(item) && all_ints(item))
        add_ids(r, item);
      else
        good = false;
    }
  }
  if (!good) {
    mob_field_error(errors, "list_type", "'prompt'",
                    "Input should be a valid string, a list of strings, a list of integers or a "
                    "list of lists of "
                    "integers",
                    json);
  }
}

// -----------------------------------------------------------------------------------------------
// parse

static bool is_json_type(const char *content_type) {
  if (!content_type || !*content_type) return true;
  size_t len = strcspn(content_type, ";");
  while (len > 0 && (content_type[len - 1] == ' ' || content_type[len - 1] == '\t')) len--;
  if (len == 16 && strncasecmp(content_type, "application/json", 16) == 0) return true;
  return len > 17 && strncasecmp(content_type, "application/", 12) == 0 &&
         strncasecmp(content_type + len - 5, "+json", 5) == 0;
}

static json_t *load_body(const char *body, size_t len, mob_field_errors_t *errors) {
  if (len == 0) {
    mob_field_error(errors, "missing", "", "Field required", NULL);
    return NULL;
  }
  json_error_t error;
  json_t *json = json_loadb(body, len, JSON_DECODE_ANY, &error);
  if (!json) {
    char *loc = mob_sprintf("%d", error.position);
    char *msg = mob_sprintf("JSON decode error: %s", error.text);
    mob_field_error(errors, "json_invalid", loc, msg, NULL);
    free(loc);
    free(msg);
    return NULL;
  }
  if (!json_is_object(json)) {
    mob_field_error(errors, "model_attributes_type", "",
                    "Input should be a valid dictionary or object to extract fields from", json);
    json_decref(json);
    return NULL;
  }
  return json;
}

static void read_tokenize(mob_api_request_t *r, mob_field_errors_t *errors) {
  if (r->kind == MOB_API_DETOKENIZE) {
    if (r->tokens && !all_ints(r->tokens)) {
      mob_field_error(errors, "int_type", "'tokens'", "Input should be a valid integer", r->tokens);
    } else if (r->tokens) {
      add_ids(r, r->tokens);
    }
    return;
  }
  if (r->messages) {
    const json_t *special = json_object_get(r->body, "add_special_tokens");
    if (!special) r->add_special = false; // the template brings them
    check_messages(r->messages, errors);
    if (r->continue_final && present(r->body, "add_generation_prompt")) {
      mob_field_value_error(
          errors, "Cannot set both `continue_final_message` and `add_generation_prompt` to True.",
          r->body);
    }
  } else if (!r->prompt_json) {
    mob_field_error(errors, "missing", "'prompt'", "Field required", r->body);
  } else if (!json_is_string(r->prompt_json)) {
    mob_field_error(errors, "string_type", "'prompt'", "Input should be a valid string",
                    r->prompt_json);
  } else {
    read_prompts(r, r->prompt_json, errors);
  }
}

static void resolve_tool_choice(mob_api_request_t *r) {
  const json_t *choice = json_object_get(r->body, "tool_choice");
  const char *word = json_string_value(choice);
  bool has_tools = r->tools && json_array_size(r->tools) > 0;
  r->tools_auto = has_tools && (!choice || (word && strcmp(word, "auto") == 0));
  if (word && strcmp(word, "none") == 0) r->tools = NULL;
  if (json_is_object(choice)) {
    r->tool_named = json_string_value(json_object_get(json_object_get(choice, "function"), "name"));
  }
}

mob_status mob__request_parse(mob_api_kind_t kind, const char *content_type, const char *body,
                              size_t len, mob_api_request_t *out, char **error) {
  set_defaults(kind, out);
  mob_field_errors_t errors = {0};
  *error = NULL;
  if (!is_json_type(content_type)) {
    mob_field_value_error(&errors, "Unsupported Media Type: Only 'application/json' is allowed",
                          NULL);
  } else if ((out->body = load_body(body, len, &errors))) {
    mob_fields_read(tables[kind].fields, tables[kind].count, out->body, out, &errors);
    if (kind == MOB_API_CHAT || kind == MOB_API_COMPLETION)
      check_generate(out, &errors);
    else
      read_tokenize(out, &errors);
    if (kind == MOB_API_COMPLETION && out->prompt_json)
      read_prompts(out, out->prompt_json, &errors);
    if (kind == MOB_API_CHAT) resolve_tool_choice(out);
  }
  if (errors.count > 0) {
    *error = mob_field_errors_take(&errors);
    mob__request_clear(out);
    return MOB_E_INVALID;
  }
  out->unknown = mob_fields_unknown(tables[kind].fields, tables[kind].count, out->body);
  return MOB_OK;
}

void mob__request_clear(mob_api_request_t *r) {
  for (size_t i = 0; i < r->prompts.len; i++) mob_vec_free(&r->prompts.at[i].ids);
  mob_vec_free(&r->prompts);
  mob_strings_free(&r->stop);
  mob_vec_free(&r->stop_token_ids);
  mob_vec_free(&r->allowed_token_ids);
  mob_vec_free(&r->bias);
  free(r->unknown);
  json_decref(r->body);
  memset(r, 0, sizeof *r);
}
