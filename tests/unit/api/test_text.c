// The pieces between tokens and text: JSON out, stop strings, reasoning, metrics, the verdict on a
// group.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api/choice.h"
#include "engine/api/json_out.h"
#include "engine/api/metrics.h"
#include "engine/api/reasoning.h"
#include "engine/api/serve_cluster.h"
#include "engine/api/serve_env.h"
#include "runtime/base/mem.h"

static void expect_text(mob_buf_t *buf, const char *text) {
  assert_string_equal(mob_buf_cstr(buf), text);
  mob_buf_free(buf);
}

static void test_json_commas_and_escapes(void **state) {
  (void)state;
  mob_buf_t b = {0};
  mob_json_open(&b, '{');
  mob_json_put_text(&b, "a", "\"\\\n\t\x01\x7f 你");
  mob_json_key(&b, "b");
  mob_json_open(&b, '[');
  mob_json_int(&b, INT64_MIN);
  mob_json_bool(&b, true);
  mob_json_null(&b);
  mob_json_open(&b, '{');
  mob_json_close(&b, '}');
  mob_json_open(&b, '[');
  mob_json_close(&b, ']');
  mob_json_text(&b, "", 0);
  mob_json_double(&b, NAN);
  mob_json_close(&b, ']');
  mob_json_put_null(&b, "c");
  mob_json_close(&b, '}');
  expect_text(&b, "{\"a\":\"\\\"\\\\\\n\\t\\u0001\x7f "
                  "你\",\"b\":[-9223372036854775808,true,null,{},[],\"\",null],\"c\":null}");
}

static void test_floats_as_python_prints_them(void **state) {
  (void)state;
  static const struct {
    double value;
    const char *text;
  } cases[] = {{0, "0.0"},
               {-0.0, "-0.0"},
               {1, "1.0"},
               {-9999, "-9999.0"},
               {0.1, "0.1"},
               {1e-4, "0.0001"},
               {1e-5, "1e-05"},
               {1.5e-7, "1.5e-07"},
               {1e15, "1000000000000000.0"},
               {1e16, "1e+16"},
               {1.2345e22, "1.2345e+22"},
               {3.141592653589793, "3.141592653589793"},
               {(double)-0.1f, "-0.10000000149011612"},
               {5e-324, "5e-324"},
               {1.7976931348623157e308, "1.7976931348623157e+308"},
               {123456.75, "123456.75"},
               {100, "100.0"}};
  for (size_t i = 0; i < MOB_LEN(cases); i++) {
    mob_buf_t b = {0};
    mob_json_float(&b, cases[i].value);
    expect_text(&b, cases[i].text);
  }
}

static void test_ascii_and_repr(void **state) {
  (void)state;
  mob_buf_t b = {0};
  mob_json_ascii(&b, "a\"é你😀", strlen("a\"é你😀"));
  expect_text(&b, "a\\\"\\u00e9\\u4f60\\ud83d\\ude00");
  json_t *json = json_loads("{\"a\":[1,2.5,true,null,\"it's\"],\"b\":{}}", 0, NULL);
  mob_py_repr(&b, json);
  expect_text(&b, "{'a': [1, 2.5, True, None, \"it's\"], 'b': {}}");
  json_decref(json);
}

// -------------------------------------------------------------------------------------------
// choices

static mob_strings_t stops;

static void set_stops(const char *a, const char *b) {
  mob_strings_free(&stops);
  if (a) mob_strings_add(&stops, a);
  if (b) mob_strings_add(&stops, b);
}

// Tokens of the built-in tokenizer below are single letters: id 0 is "a".
static mob_tokenizer_t *letters(void) {
  mob_buf_t json = {0};
  mob_buf_puts(&json, "{\"version\":\"1.0\",\"added_tokens\":[{\"id\":26,\"content\":\"<eos>\","
                      "\"special\":true,\"single_word\":false,"
                      "\"lstrip\":false,\"rstrip\":false,\"normalized\":false}],\"normalizer\":"
                      "null,\"pre_tokenizer\":{\"type\":"
                      "\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":true,\"use_"
                      "regex\":true},\"post_processor\":null,"
                      "\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"type\":\"BPE\","
                      "\"dropout\":null,\"unk_token\":null,"
                      "\"continuing_subword_prefix\":null,\"end_of_word_suffix\":null,\"fuse_unk\":"
                      "false,\"byte_fallback\":false,"
                      "\"vocab\":{");
  for (int i = 0; i < 26; i++) mob_buf_printf(&json, "%s\"%c\":%d", i ? "," : "", 'a' + i, i);
  mob_buf_puts(&json, "},\"merges\":[]}}");
  mob_tokenizer_t *tok = NULL;
  if (mob_tokenizer_parse((char *)json.data, json.len, NULL, 0, &tok) != MOB_OK)
    fail_msg("%s", mob_errmsg());
  mob_buf_free(&json);
  return tok;
}

// Feeds letters until the sequence ends; returns what streaming gives out, piece by piece in
// brackets.
static char *stream(const mob_choice_rules_t *rules, const char *text, mob_finish_t last,
                    mob_choice_t *c) {
  mob_buf_t out = {0};
  mob__choice_init(c, rules);
  for (size_t i = 0; text[i] && c->finish == MOB_FINISH_NONE; i++) {
    mob_sampled_t token = {.token = text[i] == '$' ? 26 : text[i] - 'a'};
    mob__choice_push(c, rules, &token, text[i + 1] ? MOB_FINISH_NONE : last, false);
    size_t ready = mob__choice_ready(c, rules);
    assert_in_range(ready, c->sent, c->text.len);
    if (ready > c->sent)
      mob_buf_printf(&out, "[%.*s]", (int)(ready - c->sent), (char *)c->text.data + c->sent);
    c->sent = ready;
  }
  return mob_buf_steal(&out);
}

static void check_stream(mob_choice_rules_t *rules, const char *text, mob_finish_t last,
                         const char *pieces, const char *stop, mob_finish_t finish) {
  mob_choice_t c;
  char *got = stream(rules, text, last, &c);
  assert_string_equal(got, pieces);
  assert_int_equal(c.finish, finish);
  if (stop)
    assert_string_equal(c.stop_text, stop);
  else
    assert_null(c.stop_text);
  free(got);
  mob__choice_clear(&c);
}

static void test_stop_strings_and_hold_back(void **state) {
  (void)state;
  mob_tokenizer_t *tok = letters();
  mob_choice_rules_t rules = {.tokenizer = tok, .stop = &stops, .eos = 26, .skip_special = true};
  set_stops(NULL, NULL);
  check_stream(&rules, "abc", MOB_FINISH_LENGTH, "[a][b][c]", NULL, MOB_FINISH_LENGTH);
  check_stream(&rules, "ab$", MOB_FINISH_STOP, "[a][b]", NULL, MOB_FINISH_STOP);
  set_stops("cd", NULL);
  check_stream(&rules, "abcdef", MOB_FINISH_LENGTH, "[a][b]", "cd", MOB_FINISH_STOP);
  check_stream(&rules, "abcxcd", MOB_FINISH_LENGTH, "[a][b][cx]", "cd", MOB_FINISH_STOP);
  check_stream(&rules, "abc", MOB_FINISH_LENGTH, "[a][b][c]", NULL,
               MOB_FINISH_LENGTH); // the end gives back what was held
  set_stops("aab", "zz");
  check_stream(&rules, "aaab", MOB_FINISH_LENGTH, "[a]", "aab",
               MOB_FINISH_STOP); // a prefix inside a prefix
  check_stream(&rules, "yzz", MOB_FINISH_LENGTH, "[y]", "zz", MOB_FINISH_STOP);
  set_stops("bcd", "cd"); // the first in the request's order wins
  check_stream(&rules, "abcd", MOB_FINISH_LENGTH, "[a]", "bcd", MOB_FINISH_STOP);
  rules.include_stop = true;
  check_stream(&rules, "abcd", MOB_FINISH_LENGTH, "[a][b][c][d]", "bcd", MOB_FINISH_STOP);
  rules.include_stop = false;
  rules.min_tokens = 5;
  set_stops("cd", NULL);
  check_stream(&rules, "cdcdcdcd", MOB_FINISH_LENGTH, "[cd][cd]", "cd", MOB_FINISH_STOP);
  set_stops(NULL, NULL);
  mob_strings_free(&stops);
  mob_tokenizer_close(tok);
}

static void test_stop_ids(void **state) {
  (void)state;
  mob_choice_rules_t rules = {.stop = &stops, .eos = 26};
  mob_choice_t c;
  mob__choice_init(&c, &rules);
  mob__choice_push(&c, &rules, &(mob_sampled_t){.token = 7}, MOB_FINISH_STOP, false);
  assert_int_equal(c.stop_id, 7);
  mob__choice_clear(&c);
  mob__choice_init(&c, &rules);
  mob__choice_push(&c, &rules, &(mob_sampled_t){.token = 26}, MOB_FINISH_STOP, false);
  assert_int_equal(c.stop_id, -1);
  assert_int_equal(c.ids.len, 1);
  mob__choice_push(&c, &rules, &(mob_sampled_t){.token = -1}, MOB_FINISH_ABORT, false);
  assert_int_equal(c.ids.len, 1);
  assert_string_equal(mob__finish_name(c.finish), "abort");
  mob__choice_clear(&c);
}

// ------------------------------------------------------------------------------------------
// reasoning

static void check_reasoning(const char *prompt, const char *text, const char *reasoning,
                            const char *content) {
  for (size_t step = 1; step <= strlen(text); step++) { // however it is cut, the result is the same
    mob_reasoning_t r;
    mob_buf_t a = {0}, b = {0};
    mob__reasoning_init(&r, prompt, strlen(prompt));
    for (size_t len = 0;;) {
      len = len + step < strlen(text) ? len + step : strlen(text);
      mob_reasoning_delta_t d = mob__reasoning_next(&r, text, len, len == strlen(text));
      mob_buf_append(&a, d.reasoning, d.reasoning_len);
      mob_buf_append(&b, d.content, d.content_len);
      if (len == strlen(text)) break;
    }
    expect_text(&a, reasoning);
    expect_text(&b, content);
  }
}

static void test_reasoning(void **state) {
  (void)state;
  check_reasoning("x<think>\n", "because</think>answer", "because", "answer");
  check_reasoning("x<think>\n", "<think>because</think>answer", "because", "answer");
  check_reasoning("x", "<think>because</think>answer", "because", "answer");
  check_reasoning("x", "answer </think> more", "", "answer </think> more");
  check_reasoning("x<think>", "cut in the middle </thi", "cut in the middle </thi", "");
  check_reasoning("x<think>", "</think>now", "", "now");
  check_reasoning("x", "<thin", "", "<thin");
  check_reasoning("<think>", "a</b></think></think>c", "a</b>", "</think>c");
}

// --------------------------------------------------------------------------------------- metrics,
// group

static void test_histograms(void **state) {
  (void)state;
  mob_metrics_t m;
  mob__metrics_init(&m, 2048);
  mob__metrics_observe(&m, MOB_HIST_PARAM_N, 1);
  mob__metrics_observe(&m, MOB_HIST_PARAM_N, 3);
  mob__metrics_observe(&m, MOB_HIST_PARAM_N, 1000);
  mob_buf_t out = {0};
  mob__metrics_write(&m, "a\"b\\c\nd", NULL, 0.9, true, &out);
  const char *text = mob_buf_cstr(&out);
  assert_non_null(strstr(
      text, "vllm:request_params_n_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"1.0\"} 1.0\n"));
  assert_non_null(strstr(text, "le=\"5.0\"} 2.0\n"));
  assert_non_null(strstr(
      text, "vllm:request_params_n_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"+Inf\"} 3.0\n"));
  assert_non_null(
      strstr(text, "vllm:request_params_n_sum{model_name=\"a\\\"b\\\\c\\nd\"} 1004.0\n"));
  assert_non_null(strstr(
      text, "vllm:request_prompt_tokens_bucket{model_name=\"a\\\"b\\\\c\\nd\",le=\"2000.0\"}"));
  assert_null(strstr(text, "le=\"5000.0\""));
  mob_buf_free(&out);
}

static void judge(mob_status want, const char *part, size_t wanted, int tp, int pp, size_t count,
                  const double *gpus) {
  int parts = -1;
  mob_status got = mob__cluster_judge(gpus, count, wanted, tp, pp, false, &parts);
  if (got != want) fail_msg("tp %d pp %d: %s %s", tp, pp, mob_status_name(got), mob_errmsg());
  if (part && !strstr(mob_errmsg(), part)) fail_msg("no \"%s\" in \"%s\"", part, mob_errmsg());
}

static void test_group_verdicts(void **state) {
  (void)state;
  static const double two[] = {8, 8}, one[] = {8}, none[] = {0, 0};
  judge(MOB_OK, NULL, 2, 8, 2, 2, two);
  judge(MOB_OK, NULL, 2, 4, 2, 2, two);
  judge(MOB_OK, NULL, 2, 2, 8, 2, two);
  judge(MOB_OK, NULL, 0, 8, 1, 1, one);
  judge(MOB_OK, NULL, 2, 8, 2, 2, none); // on the CPUs
  judge(MOB_E_UNAVAILABLE, "1 of 2 nodes and 8 GPUs are there", 2, 8, 2, 1, one);
  judge(MOB_E_UNAVAILABLE, "8 of 16 GPUs are there", 0, 8, 2, 1, one);
  judge(MOB_E_INVALID, "use -tp 8 -pp 2", 2, 16, 1, 2, two);
  judge(MOB_E_INVALID, "no divisor of the group's 16", 2, 3, 2, 2, two);
  judge(MOB_E_INVALID, "8 x 4 = 32 GPUs, but the group has 16", 2, 8, 4, 2, two);
  judge(MOB_E_INVALID, "use -tp 8 -pp 2", 2, 3, 5, 2, two);
}

static void spans(int want, size_t wanted, int tp, int pp, size_t count, const double *gpus) {
  int parts = -1;
  mob_status got = mob__cluster_judge(gpus, count, wanted, tp, pp, true, &parts);
  if (got != (want ? MOB_OK : MOB_E_INVALID)) fail_msg("tp %d pp %d: %s", tp, pp, mob_errmsg());
  if (want) assert_int_equal(parts, want);
}

static void test_stages_that_span_pods(void **state) {
  (void)state;
  static const double two[] = {8, 8}, ones[] = {1, 1, 1, 1}, odd[] = {6, 2}, none[] = {0, 0};
  spans(1, 2, 8, 2, 2, two); // in one pod where it fits
  spans(2, 2, 16, 1, 2, two);
  spans(2, 4, 2, 2, 4, ones);
  spans(4, 4, 4, 1, 4, ones);
  spans(4, 2, 8, 1, 2, odd); // four processes of two: three in one pod
  spans(1, 2, 16, 1, 2, none);
  spans(0, 2, 8, 4, 2, two);
  spans(0, 2, 3, 5, 2, two);
}

static void test_layer_partition(void **state) {
  (void)state;
  int *split;
  unsetenv("VLLM_PP_LAYER_PARTITION");
  assert_int_equal(mob__env_layer_split(2, 4, &split), MOB_OK);
  assert_null(split);
  setenv("VLLM_PP_LAYER_PARTITION", "1,3", 1);
  assert_int_equal(mob__env_layer_split(2, 4, &split), MOB_OK);
  assert_int_equal(split[0], 1);
  assert_int_equal(split[1], 3);
  free(split);
  static const char *const bad[] = {"1,2", "4",    "1,2,1", "a,b",
                                    "0,4", "-1,5", "1,3,",  "2,99999999999999"};
  for (size_t i = 0; i < MOB_LEN(bad); i++) {
    setenv("VLLM_PP_LAYER_PARTITION", bad[i], 1);
    assert_int_equal(mob__env_layer_split(2, 4, &split), MOB_E_INVALID);
  }
  unsetenv("VLLM_PP_LAYER_PARTITION");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_json_commas_and_escapes),
      cmocka_unit_test(test_floats_as_python_prints_them),
      cmocka_unit_test(test_ascii_and_repr),
      cmocka_unit_test(test_stop_strings_and_hold_back),
      cmocka_unit_test(test_stop_ids),
      cmocka_unit_test(test_reasoning),
      cmocka_unit_test(test_histograms),
      cmocka_unit_test(test_group_verdicts),
      cmocka_unit_test(test_stages_that_span_pods),
      cmocka_unit_test(test_layer_partition),
  };
  return cmocka_run_group_tests_name("text", tests, NULL, NULL);
}
