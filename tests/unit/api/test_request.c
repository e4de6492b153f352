// Bodies into requests: conversions, refusals and their texts, limits.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api/request.h"
#include "runtime/base/mem.h"

static mob_api_request_t r;
static const mob_api_limits_t limits = {.vocab = 1000,
                                        .max_len = 100,
                                        .max_logprobs = 20,
                                        .temperature = NAN,
                                        .top_p = NAN,
                                        .repetition_penalty = NAN,
                                        .min_p = NAN,
                                        .top_k = MOB_UNSET,
                                        .max_new_tokens = MOB_UNSET};
static mob_api_sampling_t s;

static void parse(mob_api_kind_t kind, const char *body) {
  char *error;
  mob__request_clear(&r);
  if (mob__request_parse(kind, "application/json", body, strlen(body), &r, &error) != MOB_OK)
    fail_msg("%s", error);
}

static void refuse(mob_api_kind_t kind, const char *body, const char *part) {
  char *error = NULL;
  mob__request_clear(&r);
  mob_status status = mob__request_parse(kind, NULL, body, strlen(body), &r, &error);
  assert_int_equal(status, MOB_E_INVALID);
  if (!strstr(error, part)) fail_msg("no \"%s\" in %s", part, error);
  free(error);
}

static mob_status sample(size_t prompt_count) {
  static int32_t prompt[200];
  return mob__request_sampling(&r, &limits, prompt, prompt_count, &s);
}

#define COMPLETION(more) "{\"model\":\"m\",\"prompt\":\"x\"" more "}"
#define CHAT(more) "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]" more "}"

static void test_defaults(void **state) {
  (void)state;
  parse(MOB_API_COMPLETION, COMPLETION());
  assert_true(r.add_special);
  assert_int_equal(sample(10), MOB_OK);
  assert_int_equal(s.max_tokens, 16);
  assert_true(s.sampling.temperature == 1 && s.sampling.top_p == 1 && s.sampling.top_k == -1 &&
              s.sampling.min_p == 0);
  assert_int_equal(s.sampling.logprobs, -1);
  assert_int_equal(s.sampling.prompt_logprobs, -1);
  assert_int_equal(s.n, 1);
  assert_false(s.has_seed);
  parse(MOB_API_CHAT, CHAT());
  assert_false(r.add_special);
  assert_int_equal(sample(10), MOB_OK);
  assert_int_equal(s.max_tokens, 90); // what is left
  parse(MOB_API_CHAT,
        CHAT(",\"temperature\":null,\"n\":null,\"stop\":null,\"max_tokens\":null,\"stream\":null"));
  assert_int_equal(sample(10), MOB_OK);
  mob_api_limits_t own = limits;
  own.temperature = 0.6;
  own.max_new_tokens = 5;
  assert_int_equal(mob__request_sampling(&r, &own, (int32_t[]){1, 2}, 2, &s), MOB_OK);
  assert_true(s.sampling.temperature == 0.6f);
  assert_int_equal(s.max_tokens, 5);
}

static void test_conversions(void **state) {
  (void)state;
  parse(MOB_API_COMPLETION,
        COMPLETION(
            ",\"max_tokens\":\"7\",\"temperature\":\"0.5\",\"n\":2.0,\"stream\":\"yes\",\"echo\":1,"
            "\"stop\":\"a\",\"stop_token_ids\":[5,\"6\"],\"seed\":-1"));
  assert_int_equal(sample(1), MOB_OK);
  assert_int_equal(s.max_tokens, 7);
  assert_true(s.sampling.temperature == 0.5f);
  assert_int_equal(s.n, 2);
  assert_true(r.stream && r.echo && !s.has_seed);
  assert_int_equal(r.stop.len, 1);
  assert_int_equal(r.stop_token_ids.at[1], 6);
  parse(MOB_API_COMPLETION,
        COMPLETION(",\"seed\":9223372036854775807,\"logit_bias\":{\"5\":500,\"6\":-1.5}"));
  assert_int_equal(sample(1), MOB_OK);
  assert_true(s.sampling.seed == INT64_MAX && s.has_seed);
  assert_int_equal(s.sampling.bias_count, 2);
  assert_true(s.sampling.bias[0].bias == 100);
  parse(MOB_API_COMPLETION,
        "{\"model\":\"m\",\"prompt\":\"x\",\"model\":\"n\"}"); // the last one counts, as in Python
  assert_string_equal(r.model, "n");
  parse(MOB_API_COMPLETION, COMPLETION(",\"bogus\":1,\"user\":\"u\",\"also\":2"));
  assert_string_equal(r.unknown, "bogus, also");
}

static void test_prompt_forms(void **state) {
  (void)state;
  parse(MOB_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[\"a\",\"b\"]}");
  assert_int_equal(r.prompts.len, 2);
  assert_string_equal(r.prompts.at[1].text, "b");
  parse(MOB_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,2,3]}");
  assert_int_equal(r.prompts.len, 1);
  assert_int_equal(r.prompts.at[0].ids.len, 3);
  parse(MOB_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[[1],[2,99999999999]]}");
  assert_int_equal(r.prompts.at[1].ids.at[1], -1);
  refuse(MOB_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1,\"a\"]}", "'prompt'");
  refuse(MOB_API_COMPLETION, "{\"model\":\"m\",\"prompt\":[1.5]}", "'prompt'");
  refuse(MOB_API_COMPLETION, "{\"model\":\"m\",\"prompt\":{}}", "'prompt'");
  refuse(MOB_API_COMPLETION, "{\"model\":\"m\",\"prompt\":null}", "'prompt'");
}

static void test_every_wrong_field_is_named(void **state) {
  (void)state;
  char *error;
  const char *body = "{\"prompt\":\"x\",\"n\":\"a\",\"temperature\":[],\"stream\":5,\"stop\":[1]}";
  mob__request_clear(&r);
  assert_int_equal(mob__request_parse(MOB_API_COMPLETION, NULL, body, strlen(body), &r, &error),
                   MOB_E_INVALID);
  assert_true(error[0] == '[' && error[strlen(error) - 1] == ']');
  static const char *const parts[] = {"{'type': 'missing', 'loc': ('body', 'model'), 'msg': 'Field "
                                      "required', 'input': {'prompt': 'x', 'n': 'a'",
                                      "{'type': 'int_parsing', 'loc': ('body', 'n'), 'msg': 'Input "
                                      "should be a valid integer, unable to parse string as an "
                                      "integer', 'input': 'a'}",
                                      "{'type': 'float_type', 'loc': ('body', 'temperature'), "
                                      "'msg': 'Input should be a valid number', 'input': []}",
                                      "{'type': 'bool_parsing', 'loc': ('body', 'stream')",
                                      "{'type': 'string_type', 'loc': ('body', 'stop')"};
  for (size_t i = 0; i < MOB_LEN(parts); i++) {
    if (!strstr(error, parts[i])) fail_msg("no \"%s\" in %s", parts[i], error);
  }
  free(error);
  refuse(MOB_API_CHAT, CHAT(",\"stream_options\":{\"include_usage\":true}"),
         "'ctx': {'error': ValueError('Stream options can only be defined when `stream=True`.')}");
}

static void test_bodies_that_are_no_json(void **state) {
  (void)state;
  refuse(MOB_API_CHAT, "", "'msg': 'Field required'");
  refuse(MOB_API_CHAT, "{", "JSON decode error");
  refuse(MOB_API_CHAT, "[]", "valid dictionary");
  refuse(MOB_API_CHAT, "{\"model\":\"\xff\"}", "JSON decode error");
  refuse(MOB_API_CHAT, "{\"model\":\"\\ud800\"}", "JSON decode error");
  refuse(MOB_API_CHAT, "{\"n\":1e999}", "JSON decode error");
  refuse(MOB_API_CHAT, "{\"n\":99999999999999999999}", "JSON decode error");
  refuse(MOB_API_CHAT, "{\"n\":NaN}", "JSON decode error");
  char *deep = malloc(200001);
  memset(deep, '[', 200000);
  deep[200000] = 0;
  refuse(MOB_API_CHAT, deep, "JSON decode error");
  free(deep);
  char *error;
  mob__request_clear(&r);
  assert_int_equal(
      mob__request_parse(MOB_API_CHAT, "text/plain", CHAT(), strlen(CHAT()), &r, &error),
      MOB_E_INVALID);
  assert_non_null(strstr(error, "Only 'application/json' is allowed"));
  free(error);
  const char *types[] = {"Application/JSON", "application/json ; charset=utf-8",
                         "application/vnd.x+json", ""};
  for (size_t i = 0; i < MOB_LEN(types); i++) {
    mob__request_clear(&r);
    assert_int_equal(mob__request_parse(MOB_API_CHAT, types[i], CHAT(), strlen(CHAT()), &r, &error),
                     MOB_OK);
  }
}

static void test_tools(void **state) {
  (void)state;
#define TOOL ",\"tools\":[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]"
  parse(MOB_API_CHAT, CHAT(TOOL));
  assert_true(r.tools_auto);
  parse(MOB_API_CHAT, CHAT(TOOL ",\"tool_choice\":\"none\""));
  assert_true(!r.tools_auto && !r.tools);
  parse(MOB_API_CHAT,
        CHAT(TOOL ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"f\"}}"));
  assert_string_equal(r.tool_named, "f");
  refuse(MOB_API_CHAT,
         CHAT(TOOL ",\"tool_choice\":{\"type\":\"function\",\"function\":{\"name\":\"g\"}}"),
         "does not match any");
  refuse(MOB_API_CHAT, CHAT(TOOL ",\"tool_choice\":\"required\""), "named tool");
  refuse(MOB_API_CHAT, CHAT(TOOL ",\"tool_choice\":{}"), "Expected field `function`");
  refuse(MOB_API_CHAT, CHAT(",\"tool_choice\":\"auto\""), "`tools` must be set");
  refuse(MOB_API_CHAT, CHAT(",\"tools\":[{}]"), "'tools', 0, 'function', 'name'");
}

static void refuse_sampling(const char *body, size_t prompt, const char *part) {
  parse(MOB_API_COMPLETION, body);
  mob_status status = sample(prompt);
  if (status != MOB_E_INVALID || !strstr(mob_errmsg(), part))
    fail_msg("%s: %s", body, mob_errmsg());
}

static void test_length_policy(void **state) {
  (void)state;
  parse(MOB_API_COMPLETION, COMPLETION(",\"max_tokens\":90"));
  assert_int_equal(sample(10), MOB_OK);
  assert_int_equal(sample(11), MOB_E_INVALID);
  assert_string_equal(
      mob_errmsg(),
      "This model's maximum context length is 100 tokens. However, you requested 101 tokens (11 in "
      "the messages, 90 in the completion). Please reduce the length of the messages or "
      "completion.");
  parse(MOB_API_CHAT, CHAT());
  assert_int_equal(sample(99), MOB_OK);
  assert_int_equal(s.max_tokens, 1);
  assert_int_equal(sample(100), MOB_E_INVALID);
  assert_string_equal(
      mob_errmsg(),
      "This model's maximum context length is 100 tokens. However, you requested 100 tokens in the "
      "messages, Please reduce the length of the messages.");
  parse(MOB_API_CHAT, CHAT(",\"max_tokens\":50,\"max_completion_tokens\":5"));
  assert_int_equal(sample(10), MOB_OK);
  assert_int_equal(s.max_tokens, 5); // the newer name wins
  refuse_sampling(COMPLETION(",\"max_tokens\":0"), 10, "max_tokens must be at least 1, got 0.");
  refuse_sampling(COMPLETION(",\"max_tokens\":-5"), 10, "max_tokens must be at least 1, got -5.");
  refuse_sampling(COMPLETION(), 0, "cannot be empty");
  parse(MOB_API_COMPLETION, COMPLETION(",\"max_tokens\":0,\"echo\":true"));
  assert_int_equal(sample(10), MOB_OK);
  assert_int_equal(s.max_tokens, 1);
}

static void test_sampling_limits(void **state) {
  (void)state;
  refuse_sampling(COMPLETION(",\"n\":2,\"temperature\":0"), 1,
                  "n must be 1 when using greedy sampling, got 2.");
  refuse_sampling(COMPLETION(",\"n\":1000"), 1, "at most");
  refuse_sampling(COMPLETION(",\"logprobs\":21"), 1, "greater than max allowed: 20");
  refuse_sampling(COMPLETION(",\"prompt_logprobs\":21"), 1, "greater than max allowed: 20");
  refuse_sampling(COMPLETION(",\"temperature\":1e30,\"top_p\":2"), 1,
                  "top_p must be in (0, 1], got 2.0.");
  refuse_sampling(COMPLETION(",\"stop_token_ids\":[1000]"), 1, "out-of-vocab");
  refuse_sampling(COMPLETION(",\"use_beam_search\":true"), 1, "use_beam_search");
  parse(MOB_API_COMPLETION, COMPLETION(",\"temperature\":0.001"));
  assert_int_equal(sample(1), MOB_OK);
  assert_true(s.sampling.temperature == 0.01f);
  parse(MOB_API_COMPLETION, COMPLETION(",\"temperature\":0,\"top_p\":0.5,\"top_k\":5"));
  assert_int_equal(sample(1), MOB_OK);
  assert_true(s.sampling.top_p == 1 && s.sampling.top_k == -1);
  parse(MOB_API_COMPLETION, COMPLETION(",\"best_of\":3"));
  assert_int_equal(sample(1), MOB_OK);
  assert_true(s.best_of == 3 && s.n == 1 && s.sampling.logprobs == 0);
}

static int clear(void **state) {
  (void)state;
  mob__request_clear(&r);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_defaults),
      cmocka_unit_test(test_conversions),
      cmocka_unit_test(test_prompt_forms),
      cmocka_unit_test(test_every_wrong_field_is_named),
      cmocka_unit_test(test_bodies_that_are_no_json),
      cmocka_unit_test(test_tools),
      cmocka_unit_test(test_length_policy),
      cmocka_unit_test(test_sampling_limits),
  };
  return cmocka_run_group_tests_name("request", tests, NULL, clear);
}
