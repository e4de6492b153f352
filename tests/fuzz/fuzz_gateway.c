// The API under arbitrary requests, tokens, ends, clients that leave and engines that are lost:
// every reply is whole, its JSON is JSON, and what the engine is asked for is what it can do.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "runtime/base/log.h"
#include "runtime/base/vec.h"
#include "tests/fuzz/engine_double.h"
#include "tests/fuzz/http_double.h"
#include "tests/fuzz/source.h"

enum { MAX_LEN = 256, MAX_STEPS = 200 };

// ------------------------------------------------------------------------- work on a later turn

// In place of the thread pool (the linker's --wrap): work is done at once, what follows it on the
// next turn.
typedef struct later {
  uv_work_t *work;
  uv_after_work_cb after;
} later_t;
static MOB_VEC(later_t) later;

int __wrap_uv_queue_work(uv_loop_t *loop, uv_work_t *work, uv_work_cb fn, uv_after_work_cb after);
int __wrap_uv_queue_work(uv_loop_t *loop, uv_work_t *work, uv_work_cb fn, uv_after_work_cb after) {
  (void)loop;
  fn(work);
  *mob_vec_push(&later) = (later_t){work, after};
  return 0;
}

static void turn(void) {
  while (later.len) {
    later_t first = later.at[0];
    mob_vec_remove(&later, 0);
    first.after(first.work, 0);
  }
}

// ------------------------------------------------------------------------------------------ bodies

static const char *const fields[] = {"stream",
                                     "stream_options",
                                     "max_tokens",
                                     "min_tokens",
                                     "n",
                                     "best_of",
                                     "stop",
                                     "include_stop_str_in_output",
                                     "logprobs",
                                     "top_logprobs",
                                     "prompt_logprobs",
                                     "echo",
                                     "ignore_eos",
                                     "skip_special_tokens",
                                     "spaces_between_special_tokens",
                                     "stop_token_ids",
                                     "return_tokens_as_token_ids",
                                     "return_token_ids",
                                     "temperature",
                                     "top_p",
                                     "top_k",
                                     "min_p",
                                     "seed",
                                     "presence_penalty",
                                     "frequency_penalty",
                                     "repetition_penalty",
                                     "logit_bias",
                                     "allowed_token_ids",
                                     "truncate_prompt_tokens",
                                     "add_generation_prompt",
                                     "continue_final_message",
                                     "add_special_tokens",
                                     "chat_template",
                                     "chat_template_kwargs",
                                     "messages",
                                     "prompt",
                                     "suffix",
                                     "tools",
                                     "tool_choice",
                                     "user",
                                     "request_id",
                                     "priority",
                                     "max_completion_tokens",
                                     "response_format",
                                     "tokens",
                                     "documents",
                                     "odd",
                                     "model",
                                     "use_beam_search",
                                     "length_penalty",
                                     "best"};
static const char *const values[] = {
    "true",
    "false",
    "null",
    "0",
    "1",
    "2",
    "3",
    "5",
    "20",
    "250",
    "-1",
    "1e3",
    "0.5",
    "1.5",
    "-2.0",
    "18446744073709551616",
    "\"\"",
    "\"a\"",
    "\"ab\"",
    "\"\\u00e9\\ud83d\\ude00\"",
    "\"\\u0000\"",
    "\"{{ messages[0]['content'] }}\"",
    "\"</think>\"",
    "[]",
    "{}",
    "[\"ab\",\"b\",\"aab\"]",
    "[1,2,3]",
    "[[5,6],[7]]",
    "[\"a\",\"bb\"]",
    "[0,-1]",
    "{\"include_usage\":true,\"continuous_usage_stats\":true}",
    "{\"include_usage\":true}",
    "{\"5\":1.5,\"7\":-100}",
    "{\"x\":1}",
    "{\"type\":\"json_object\"}",
    "\"auto\"",
    "\"none\"",
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\"}}]",
    "[{\"role\":\"user\",\"content\":\"hi\"}]",
    "[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"}]}]",
    "[{\"role\":\"assistant\",\"content\":\"<think>b\"}]",
    "[{\"role\":\"user\"}]",
    "[{\"content\":1}]"};

// A body that names the model and asks something, often as a stream and with stop strings, and any
// fields beside that; rarely no JSON.
static void make_body(source_t *in, mob_api_kind_t kind, mob_buf_t *out) {
  uint8_t count = take_byte(in) % 12;
  mob_buf_puts(out, "{");
  for (int i = 0; i < count; i++) {
    const char *name = fields[take_byte(in) % MOB_LEN(fields)];
    mob_buf_printf(out, "\"%s\":%s,", name, values[take_byte(in) % MOB_LEN(values)]);
  }
  uint8_t how = take_byte(in);
  if (how & 128) mob_buf_puts(out, "\"stream\":true,");
  if (how & 32)
    mob_buf_printf(out, "\"stop\":[\"ab\",\"cba\"],\"min_tokens\":%d,", take_byte(in) % 8);
  if (how % 16 != 1) mob_buf_puts(out, "\"model\":\"m\",");
  if (kind == MOB_API_CHAT)
    mob_buf_puts(out, "\"messages\":[{\"role\":\"user\",\"content\":\"a b\"}]");
  else if (kind == MOB_API_DETOKENIZE)
    mob_buf_puts(out, "\"tokens\":[1,2,300]");
  else
    mob_buf_puts(out, how & 64 ? "\"prompt\":[3,4,5]" : "\"prompt\":\"some words\"");
  mob_buf_puts(out, how % 16 == 2 ? "" : "}");
}

// -----------------------------------------------------------------------------------------
// gateways

// One with and one without a reasoning parser, opened once.
static mob_gateway_t *gateways[2];

static mob_gateway_t *open_gateway(const mob_model_t *model, bool reasoning) {
  char *argv[] = {"m",
                  "--tokenizer",
                  MOB_SOURCE_DIR "/deploy/demo-model",
                  "--disable-log-requests",
                  "--served-model-name",
                  "m",
                  "--enable-request-id-headers",
                  "--disable-uvicorn-access-log",
                  "--enable-reasoning",
                  "--reasoning-parser",
                  "deepseek_r1"};
  int argc = (int)MOB_LEN(argv) - (reasoning ? 0 : 3);
  mob_serve_options_t *options = MOB_NEW(mob_serve_options_t);
  bool help;
  mob_gateway_t *gateway = NULL;
  if (mob__serve_parse(argc, argv, options, &help) == MOB_OK) {
    const mob_gateway_config_t config = {options, model, MAX_LEN, true};
    if (mob_gateway_open(uv_default_loop(), &config, &gateway) == MOB_OK) return gateway;
  }
  fprintf(stderr, "%s\n", mob_errmsg());
  abort();
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv) {
  (void)argc, (void)argv;
  mob_log_set_level(MOB_LOG_ERROR + 1);
  mob_model_t *model;
  const mob_model_options_t options = {0};
  if (mob_model_open(MOB_SOURCE_DIR "/deploy/demo-model", &options, &model) != MOB_OK) {
    fprintf(stderr, "%s\n", mob_errmsg());
    abort();
  }
  for (int i = 0; i < 2; i++) gateways[i] = open_gateway(model, i == 1);
  return 0;
}

// --------------------------------------------------------------------------------------------
// steps

static void ask(mob_gateway_t *gateway, source_t *in) {
  static const struct {
    const char *method, *path;
    mob_api_kind_t kind;
  } routes[] = {{"POST", "/v1/chat/completions", MOB_API_CHAT},
                {"POST", "/v1/completions", MOB_API_COMPLETION},
                {"POST", "/v1/chat/completions", MOB_API_CHAT},
                {"POST", "/v1/completions", MOB_API_COMPLETION},
                {"POST", "/tokenize", MOB_API_TOKENIZE},
                {"POST", "/detokenize", MOB_API_DETOKENIZE},
                {"GET", "/metrics", MOB_API_CHAT},
                {"GET", "/v1/models", MOB_API_CHAT},
                {"GET", "/openapi.json", MOB_API_CHAT},
                {"OPTIONS", "/v1/completions", MOB_API_CHAT},
                {"PUT", "/nowhere", MOB_API_CHAT},
                {"GET", "/health", MOB_API_CHAT}};
  static const mob_http_field_t headers[] = {
      {"content-type", "application/json"}, {"x-request-id", "caf\xe9"}, {"origin", "http://a"}};
  size_t route = take_byte(in) % MOB_LEN(routes);
  mob_buf_t body = {0};
  make_body(in, routes[route].kind, &body);
  http_double_ask(&mob_gateway_handler, gateway,
                  &(http_double_request_t){routes[route].method, routes[route].path, "", headers,
                                           1 + take_byte(in) % 3, (const char *)body.data,
                                           body.len});
  mob_buf_free(&body);
}

// Few ids often, so that stop strings come about.
static int32_t make_token(source_t *in) {
  uint8_t b = take_byte(in);
  return b < 224 ? 67 + b % 4 : (int32_t)(b - 224) * 257; // a, b, c, d
}

static void step(mob_gateway_t *gateway, mob_engine_t *engine, source_t *in) {
  switch (take_byte(in) % 24) {
  case 0:
  case 1:
    ask(gateway, in);
    break;
  case 2:
    turn();
    break;
  case 3:
    http_double_leave(take_byte(in));
    break;
  case 4:
    engine_double_token(engine, take_byte(in), make_token(in), MOB_FINISH_STOP);
    break;
  case 5:
    engine_double_token(engine, take_byte(in), -1, MOB_FINISH_ABORT);
    break;
  case 6:
    engine_double_refuse(engine, take_byte(in) % 2 ? MOB_E_UNAVAILABLE : MOB_OK);
    break;
  case 7:
    http_double_stop_reading(take_byte(in) % 2);
    break;
  case 8:
    if (take_byte(in) % 8) break;
    while (engine_double_open(engine)) engine_double_token(engine, 0, -1, MOB_FINISH_LOST);
    mob_gateway_lost(gateway, "node_died", "its node is gone");
    break;
  case 9:
    mob_gateway_end_all(gateway, "the server is shutting down");
    break;
  default:
    engine_double_token(engine, take_byte(in), make_token(in), MOB_FINISH_NONE);
  }
}

static void end(mob_gateway_t *gateway, mob_engine_t *engine) {
  turn();
  for (int i = 0; engine_double_open(engine); i++)
    engine_double_token(engine, (size_t)i, 70, i > 20 ? MOB_FINISH_LENGTH : MOB_FINISH_NONE);
  MOB_ASSERT(http_double_open() == 0 &&
             mob_gateway_under_way(gateway) == 0); // a request without an answer
  gateway->lost = false;
  free(gateway->lost_why);
  gateway->lost_why = NULL;
  http_double_stop_reading(false);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  source_t in = {data, data + size};
  mob_gateway_t *gateway = gateways[take_byte(&in) % 2];
  mob_engine_t *engine = engine_double_new(MAX_LEN, gateway->limits.vocab);
  mob_gateway_set_engine(gateway, engine);
  for (int i = 0; i < MAX_STEPS && in.at < in.end; i++) step(gateway, engine, &in);
  end(gateway, engine);
  engine_double_free(engine);
  return 0;
}
