// The options of `vllm serve`: all of vLLM 0.7.2's, and those of newer releases that scripts use.
#include "engine/api/serve_options.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#define MOB_LOG_COMPONENT "vllm"
#include "runtime/base/log.h"

// clang-format off: a table, one option a line or two
#define AT(member) (int)offsetof(mob_serve_options_t, member)
#define HEAD(text)                                                                                 \
  { .name = text, .kind = MOB_OPT_HEAD }
#define ACTS(flag, kind_, member, initial_, help_)                                                 \
  { flag, NULL, MOB_OPT_##kind_, MOB_OPT_ACTS, initial_, AT(member), NULL, help_ }
#define PICK(flag, member, initial_, choices_, help_)                                              \
  { flag, NULL, MOB_OPT_TEXT, MOB_OPT_ACTS, initial_, AT(member), choices_, help_ }
#define BRIEF(flag, brief_, kind_, member, initial_, help_)                                        \
  { flag, brief_, MOB_OPT_##kind_, MOB_OPT_ACTS, initial_, AT(member), NULL, help_ }
#define WARNS(flag, kind_, why)                                                                    \
  { flag, NULL, MOB_OPT_##kind_, MOB_OPT_WARNS, NULL, MOB_OPT_NO_FIELD, NULL, why }
#define BRIEF_WARNS(flag, brief_, kind_, why)                                                      \
  { flag, brief_, MOB_OPT_##kind_, MOB_OPT_WARNS, NULL, MOB_OPT_NO_FIELD, NULL, why }
#define GONE(flag, kind_, why)                                                                     \
  { flag, NULL, MOB_OPT_##kind_, MOB_OPT_REMOVED, NULL, MOB_OPT_NO_FIELD, NULL, why }

#define WHY_LORA "LoRA adapters are not supported; the base model is served"
#define WHY_ADAPTER "prompt adapters are not supported; the base model is served"
#define WHY_SPEC "speculative decoding is not there; tokens are the same without it"
#define WHY_MEDIA "only text models are served"
#define WHY_HUB "models are local directories; nothing is fetched from a hub"
#define WHY_SWAP "a preempted request is recomputed; there is no swapping"
#define WHY_STEPS "every step is scheduled by itself and overlaps with the next one already"
#define WHY_DP                                                                                     \
  "one engine a server; more groups behind a Service are what scales (LeaderWorkerSet replicas)"
#define WHY_NODES "the nodes of the group come from the cluster that ray_init.sh started"
#define WHY_TRACES "traces are not exported"
#define WHY_GUIDED "guided decoding is not there; such requests are answered with 400"

const mob_option_t mob__serve_table[] = {
    HEAD("HTTP server"),
    ACTS("--host", TEXT, host, NULL,
         "Address to listen on; when not given MOBULA_BIND_ADDRESS, else all IPv4 interfaces."),
    ACTS("--port", INT, port, "8000",
         "Port. It is bound at once and accepts when the model can answer."),
    PICK("--uvicorn-log-level", uvicorn_log_level, "info",
         "debug|info|warning|error|critical|trace",
         "Level of the access log; it is written at info and below."),
    ACTS("--allow-credentials", FLAG, allow_credentials, NULL, "CORS: allow credentials."),
    ACTS("--allowed-origins", JSON, allowed_origins, "[\"*\"]", "CORS: allowed origins."),
    ACTS("--allowed-methods", JSON, allowed_methods, "[\"*\"]", "CORS: allowed methods."),
    ACTS("--allowed-headers", JSON, allowed_headers, "[\"*\"]", "CORS: allowed headers."),
    ACTS("--api-key", TEXT, api_key, NULL,
         "Key that /v1 requests must present (VLLM_API_KEY goes before it)."),
    ACTS("--ssl-keyfile", TEXT, ssl_keyfile, NULL, "PEM file of the TLS key."),
    ACTS("--ssl-certfile", TEXT, ssl_certfile, NULL, "PEM file of the TLS certificate chain."),
    ACTS("--ssl-ca-certs", TEXT, ssl_ca_certs, NULL,
         "PEM file of the CAs that sign client certificates."),
    ACTS("--ssl-cert-reqs", INT, ssl_cert_reqs, "0",
         "Client certificates: 0 none, 1 optional, 2 required."),
    ACTS("--root-path", TEXT, root_path, NULL, "Path prefix when behind a path-based proxy."),
    WARNS("--middleware", APPEND, "there is no Python here to run ASGI middleware in"),
    ACTS("--disable-fastapi-docs", FLAG, disable_docs, NULL,
         "Do not serve /openapi.json, /docs and /redoc."),
    ACTS("--enable-request-id-headers", FLAG, request_id_headers, NULL,
         "Answer with an X-Request-Id header."),
    ACTS("--enable-prompt-tokens-details", FLAG, prompt_tokens_details, NULL,
         "Report cached prompt tokens in usage.prompt_tokens_details."),
    ACTS("--return-tokens-as-token-ids", FLAG, tokens_as_ids, NULL,
         "Show tokens of logprobs as token_id:N."),
    ACTS("--disable-log-requests", FLAG, disable_log_requests, NULL, "Do not log requests."),
    WARNS("--enable-log-requests", FLAG,
          "requests are logged unless --disable-log-requests is given"),
    ACTS("--max-log-len", INT, max_log_len, "-1",
         "Characters or ids of a prompt in the log; -1: all of it."),
    ACTS("--disable-log-stats", FLAG, disable_log_stats, NULL, "Do not log throughput every 5 s."),
    ACTS("--disable-uvicorn-access-log", FLAG, disable_access_log, NULL,
         "Do not write the access log."),
    WARNS("--disable-access-log-for-endpoints", TEXT,
          "the access log is whole or off (--disable-uvicorn-access-log)"),
    GONE("--disable-frontend-multiprocessing", FLAG, "server and scheduler are one process here"),
    WARNS("--api-server-count", INT, "one process serves; it is not the bottleneck"),
    ACTS("--max-body-bytes", LENGTH, max_body, "64M", "Largest request body; larger ones get 413."),
    ACTS("--keep-alive-timeout", FLOAT, keep_alive, "5",
         "Seconds that an idle connection is kept "
         "(VLLM_HTTP_TIMEOUT_KEEP_ALIVE)."),
    ACTS("--request-timeout", FLOAT, request_timeout, "60",
         "Seconds in which a request must have arrived whole."),
    ACTS("--shutdown-timeout", FLOAT, shutdown_timeout, "25",
         "Seconds that requests under way get to finish after SIGTERM or SIGINT; a second signal "
         "ends at once."),
    WARNS("--h11-max-incomplete-event-size", INT,
          "headers are limited to 64 KiB, bodies by --max-body-bytes"),
    WARNS("--h11-max-header-count", INT, "256 header fields are allowed"),
    WARNS("--enable-ssl-refresh", FLAG, "certificates are read once"),
    WARNS("--ssl-ciphers", TEXT, "OpenSSL's default ciphers of TLS 1.2 and 1.3 are used"),
    WARNS("--grpc", FLAG, "the API is HTTP"),
    WARNS("--uds", TEXT, "the API listens on TCP"),
    WARNS("--headless", FLAG, WHY_NODES),

    HEAD("Chat"),
    ACTS("--served-model-name", LIST, served_names, NULL,
         "Names that requests may use; the first one is echoed. Default: the model argument."),
    ACTS("--chat-template", TEXT, chat_template, NULL,
         "File of a Jinja chat template, or its text."),
    PICK("--chat-template-content-format", content_format, "auto", "auto|string|openai",
         "How message content reaches the template: a text, or a list of parts."),
    ACTS("--response-role", TEXT, response_role, "assistant",
         "Role in replies when a generation prompt was added."),
    ACTS("--enable-auto-tool-choice", FLAG, enable_auto_tools, NULL,
         "Allow tool_choice \"auto\"; needs --tool-call-parser."),
    ACTS("--tool-call-parser", TEXT, tool_parser, NULL,
         "No parser is built in: calls come as text in `content`."),
    WARNS("--tool-parser-plugin", TEXT, "there is no Python here to load plug-ins in"),
    ACTS("--enable-reasoning", FLAG, enable_reasoning, NULL,
         "Split reasoning from the answer; needs --reasoning-parser."),
    ACTS("--reasoning-parser", TEXT, reasoning_parser, NULL, "deepseek_r1."),
    WARNS("--default-chat-template-kwargs", JSON, "requests carry their own chat_template_kwargs"),
    WARNS("--trust-request-chat-template", FLAG,
          "a request's chat_template is always rendered, within bounds"),

    HEAD("Model"),
    ACTS("--model", TEXT, model_flag, NULL,
         "Not with `serve`: give the model as the positional argument."),
    PICK("--task", task, "auto",
         "auto|generate|embedding|embed|classify|score|reward|transcription",
         "Only generation is served."),
    ACTS("--tokenizer", TEXT, tokenizer, NULL,
         "Directory of the tokenizer files; default: the model's."),
    ACTS("--skip-tokenizer-init", FLAG, skip_tokenizer, NULL, "Serve token-id prompts only."),
    WARNS("--tokenizer-mode", TEXT, "tokenizer.json is read by the built-in tokenizer"),
    WARNS("--revision", TEXT, WHY_HUB),
    WARNS("--code-revision", TEXT, WHY_HUB),
    WARNS("--tokenizer-revision", TEXT, WHY_HUB),
    {"--trust-remote-code", NULL, MOB_OPT_FLAG, MOB_OPT_ACTS, NULL, MOB_OPT_NO_FIELD, NULL,
     "Nothing to trust: code in a model directory is never run."},
    WARNS("--allowed-local-media-path", TEXT, WHY_MEDIA),
    WARNS("--download-dir", TEXT, WHY_HUB),
    PICK("--load-format", load_format, "auto",
         "auto|pt|safetensors|npcache|dummy|tensorizer|sharded_state|gguf|bitsandbytes|mistral|"
         "runai_streamer|"
         "fastsafetensors|instanttensor",
         "auto and safetensors read *.safetensors; dummy makes weights up."),
    WARNS("--model-loader-extra-config", TEXT,
          "safetensors files are mapped; there is nothing to configure"),
    WARNS("--safetensors-load-strategy", TEXT, "safetensors files are mapped and read once"),
    WARNS("--ignore-patterns", APPEND, WHY_HUB),
    PICK("--config-format", config_format, "auto", "auto|hf|mistral",
         "config.json is what is read."),
    PICK("--dtype", dtype, "auto", "auto|half|float16|bfloat16|float|float32",
         "Type of activations and of the KV cache; auto: the checkpoint's."),
    BRIEF("--quantization", "-q", TEXT, quantization, NULL,
          "Checked against config.json, where it is taken from."),
    ACTS("--rope-scaling", JSON, rope_scaling, NULL, "Replaces config.json's rope_scaling."),
    ACTS("--rope-theta", FLOAT, rope_theta, "0", "Replaces config.json's rope_theta; 0: does not."),
    ACTS("--hf-overrides", JSON, hf_overrides, NULL, "JSON object merged over config.json."),
    WARNS("--model-impl", TEXT, "there is one implementation"),
    ACTS("--generation-config", TEXT, generation_config, NULL,
         "auto: sampling defaults of the model's generation_config.json; a directory: of that "
         "one's."),
    ACTS("--override-generation-config", JSON, override_generation, NULL,
         "JSON object of sampling defaults."),
    WARNS("--max-parallel-loading-workers", INT,
          "ranks load side by side; nothing is copied twice in memory"),
    ACTS("--seed", INT, seed, "0", "Seed of requests that bring none."),
    ACTS("--max-model-len", LENGTH, max_model_len, "-1",
         "Context length, prompt and answer together; -1: from the model. 1k = 1000, 1K = 1024."),
    ACTS("--max-logprobs", INT, max_logprobs, "20",
         "Most log probabilities a token that a request may ask for, up to 20."),
    WARNS("--logprobs-mode", TEXT, "logprobs are those after processing, as in 0.7.2"),
    WARNS("--guided-decoding-backend", TEXT, WHY_GUIDED),
    WARNS("--structured-outputs-config", TEXT, WHY_GUIDED),
    WARNS("--logits-processor-pattern", TEXT,
          "there is no Python here to run logits processors in"),

    HEAD("Memory and scheduling"),
    ACTS("--gpu-memory-utilization", FLOAT, memory_share, "0.9",
         "Share of each GPU's memory for weights and KV cache."),
    WARNS("--kv-cache-memory-bytes", LENGTH,
          "--gpu-memory-utilization or --num-gpu-blocks-override set the cache"),
    ACTS("--block-size", INT, block_size, "0",
         "KV pages hold 64 tokens; other sizes are noted and not used."),
    PICK("--kv-cache-dtype", kv_cache_dtype, "auto", "auto|fp8|fp8_e5m2|fp8_e4m3",
         "Type of the KV cache."),
    WARNS("--calculate-kv-scales", FLAG, "the KV cache has no scales"),
    ACTS("--enable-prefix-caching", PAIR, prefix_cache, NULL,
         "Reuse the KV pages of equal prompt beginnings (default: on)."),
    WARNS("--prefix-caching-hash-algo", TEXT, "prefixes are compared by a 128-bit hash"),
    ACTS("--enable-chunked-prefill", BOOL, chunked_prefill, NULL,
         "Cut long prompts into steps (default: on)."),
    ACTS("--max-num-batched-tokens", INT, max_batched_tokens, "0",
         "Most tokens of one step; 0: 2048, or the context "
         "length without chunked prefill."),
    ACTS("--max-num-seqs", INT, max_seqs, "0", "Most sequences of one step; 0: 256."),
    ACTS("--num-gpu-blocks-override", INT, blocks_override, "0",
         "KV pages of 64 tokens, instead of the memory plan."),
    PICK("--scheduling-policy", scheduling_policy, "fcfs", "fcfs|priority",
         "Order of waiting requests."),
    ACTS("--enforce-eager", FLAG, eager, NULL, "Do not capture CUDA graphs."),
    WARNS("--max-seq-len-to-capture", INT, "graphs do not depend on the sequence length"),
    BRIEF_WARNS("--compilation-config", "-O", TEXT, "nothing is compiled at run time"),
    WARNS("--cpu-offload-gb", FLOAT, "weights stay where they are computed with"),
    WARNS("--long-prefill-token-threshold", INT, "prompts share a step in order of arrival"),
    WARNS("--async-scheduling", FLAG, WHY_STEPS),
    WARNS("--stream-interval", INT, "every token is streamed"),
    GONE("--swap-space", FLOAT, WHY_SWAP),
    GONE("--preemption-mode", TEXT, WHY_SWAP),
    GONE("--num-scheduler-steps", INT, WHY_STEPS),
    GONE("--multi-step-stream-outputs", BOOL, WHY_STEPS),
    GONE("--scheduler-delay-factor", FLOAT, "prompts are scheduled as soon as there is room"),
    GONE("--disable-async-output-proc", FLAG, WHY_STEPS),
    GONE("--use-v2-block-manager", FLAG, "there is one block manager"),
    GONE("--num-lookahead-slots", INT, WHY_SPEC),
    WARNS("--disable-sliding-window", FLAG, "models with a sliding window are not served"),

    HEAD("Parallelism"),
    BRIEF("--tensor-parallel-size", "-tp", INT, tp, "1",
          "GPUs that share each layer: of one pod, or of several, through NCCL."),
    BRIEF("--pipeline-parallel-size", "-pp", INT, pp, "1",
          "Stages that share the layers out, one or more a pod."),
    BRIEF("--enable-expert-parallel", "-ep", FLAG, expert_parallel, NULL,
          "Share experts out over the ranks instead of cutting each one."),
    PICK("--device", device, "auto", "auto|cuda|cpu|neuron|openvino|tpu|xpu|hpu",
         "auto, cuda or cpu."),
    WARNS("--distributed-executor-backend", TEXT,
          "the group's own runtime places the stages, as `ray` would"),
    WARNS("--disable-custom-all-reduce", FLAG, "the backend chooses its collectives"),
    WARNS("--worker-cls", TEXT, "there is no Python here to load classes in"),
    WARNS("--ray-workers-use-nsight", FLAG, "there are no Ray workers to profile"),
    WARNS("--kv-transfer-config", TEXT, "prefill and decode run in the same group"),
    WARNS("--kv-events-config", TEXT, "cache events are not published"),
    BRIEF_WARNS("--nnodes", "-n", INT, WHY_NODES),
    BRIEF_WARNS("--node-rank", "-r", INT, WHY_NODES),
    WARNS("--master-addr", TEXT, WHY_NODES),
    WARNS("--master-port", INT, WHY_NODES),
    WARNS("--distributed-timeout-seconds", INT, "a silent peer is noticed within 5 s"),
    BRIEF_WARNS("--data-parallel-size", "-dp", INT, WHY_DP),
    WARNS("--data-parallel-rank", INT, WHY_DP),
    WARNS("--data-parallel-size-local", INT, WHY_DP),
    WARNS("--data-parallel-address", TEXT, WHY_DP),
    WARNS("--data-parallel-rpc-port", INT, WHY_DP),
    WARNS("--data-parallel-backend", TEXT, WHY_DP),
    WARNS("--data-parallel-hybrid-lb", FLAG, WHY_DP),
    WARNS("--data-parallel-external-lb", FLAG, WHY_DP),
    WARNS("--all2all-backend", TEXT, "the backend chooses its collectives"),
    WARNS("--enable-dbo", FLAG, "stages overlap micro-batches by themselves"),
    WARNS("--enable-eplb", FLAG, "experts stay where they were loaded"),
    BRIEF_WARNS("--decode-context-parallel-size", "-dcp", INT, "a sequence's KV cache is not cut"),
    WARNS("--numa-bind", FLAG, "ranks bind to the NUMA node of their GPU by themselves"),
    WARNS("--attention-backend", TEXT, "there is one attention per device"),
    ACTS("--ready-timeout", FLOAT, ready_timeout, "300",
         "Seconds to wait until the group's nodes and GPUs are there "
         "(VLLM_ENGINE_READY_TIMEOUT_S)."),

    HEAD("Accepted for compatibility"),
    WARNS("--enable-lora", FLAG, WHY_LORA),
    WARNS("--enable-lora-bias", FLAG, WHY_LORA),
    WARNS("--lora-modules", LIST, WHY_LORA),
    WARNS("--max-loras", INT, WHY_LORA),
    WARNS("--max-lora-rank", INT, WHY_LORA),
    WARNS("--max-cpu-loras", INT, WHY_LORA),
    WARNS("--lora-extra-vocab-size", INT, WHY_LORA),
    WARNS("--lora-dtype", TEXT, WHY_LORA),
    WARNS("--long-lora-scaling-factors", TEXT, WHY_LORA),
    WARNS("--fully-sharded-loras", FLAG, WHY_LORA),
    WARNS("--qlora-adapter-name-or-path", TEXT, WHY_LORA),
    WARNS("--enable-prompt-adapter", FLAG, WHY_ADAPTER),
    WARNS("--prompt-adapters", LIST, WHY_ADAPTER),
    WARNS("--max-prompt-adapters", INT, WHY_ADAPTER),
    WARNS("--max-prompt-adapter-token", INT, WHY_ADAPTER),
    WARNS("--limit-mm-per-prompt", TEXT, WHY_MEDIA),
    WARNS("--mm-processor-kwargs", JSON, WHY_MEDIA),
    WARNS("--disable-mm-preprocessor-cache", FLAG, WHY_MEDIA),
    WARNS("--speculative-config", JSON, WHY_SPEC),
    WARNS("--speculative-model", TEXT, WHY_SPEC),
    WARNS("--speculative-model-quantization", TEXT, WHY_SPEC),
    WARNS("--num-speculative-tokens", INT, WHY_SPEC),
    WARNS("--speculative-disable-mqa-scorer", FLAG, WHY_SPEC),
    BRIEF_WARNS("--speculative-draft-tensor-parallel-size", "-spec-draft-tp", INT, WHY_SPEC),
    WARNS("--speculative-max-model-len", INT, WHY_SPEC),
    WARNS("--speculative-disable-by-batch-size", INT, WHY_SPEC),
    WARNS("--ngram-prompt-lookup-max", INT, WHY_SPEC),
    WARNS("--ngram-prompt-lookup-min", INT, WHY_SPEC),
    WARNS("--spec-decoding-acceptance-method", TEXT, WHY_SPEC),
    WARNS("--typical-acceptance-sampler-posterior-threshold", FLOAT, WHY_SPEC),
    WARNS("--typical-acceptance-sampler-posterior-alpha", FLOAT, WHY_SPEC),
    WARNS("--disable-logprobs-during-spec-decoding", BOOL, WHY_SPEC),
    GONE("--tokenizer-pool-size", INT, "prompts are tokenized on a pool of threads"),
    GONE("--tokenizer-pool-type", TEXT, "prompts are tokenized on a pool of threads"),
    GONE("--tokenizer-pool-extra-config", TEXT, "prompts are tokenized on a pool of threads"),
    WARNS("--otlp-traces-endpoint", TEXT, WHY_TRACES),
    WARNS("--collect-detailed-traces", TEXT, WHY_TRACES),
    WARNS("--override-neuron-config", JSON, "there is no Neuron device here"),
    WARNS("--override-pooler-config", TEXT, "only generation is served"),
    WARNS("--enable-sleep-mode", FLAG, "memory is given back by ending the process"),
    WARNS("--enable-server-load-tracking", FLAG, "the load is in /metrics"),
    WARNS("--enable-force-include-usage", FLAG,
          "usage is streamed when stream_options asks for it"),
    WARNS("--show-hidden-metrics-for-version", TEXT, "no metric is hidden"),
    WARNS("--config", TEXT, ""),
};
// clang-format on
const size_t mob__serve_table_len = MOB_LEN(mob__serve_table);

// Takes `--config FILE` (or --config=FILE) out of the arguments and puts the file's options in
// front.
static mob_status expand_config(int argc, char **argv, mob_strings_t *out) {
  const char *path = NULL;
  mob_strings_t rest = {0};
  mob_status status = MOB_OK;
  for (int i = 0; i < argc && status == MOB_OK; i++) {
    bool separate = strcmp(argv[i], "--config") == 0;
    if (!separate && strncmp(argv[i], "--config=", 9) != 0) {
      mob_strings_add(&rest, argv[i]);
      continue;
    }
    if (path)
      status = mob_fail(MOB_E_INVALID, "More than one config file specified!");
    else if (separate && i + 1 == argc) {
      status = mob_fail(MOB_E_INVALID,
                        "No config file specified! Please check your command-line arguments.");
    } else
      path = separate ? argv[++i] : argv[i] + 9;
  }
  if (status == MOB_OK && path)
    status = mob_options_read_yaml(path, mob__serve_table, mob__serve_table_len, out);
  for (size_t i = 0; i < rest.len; i++) mob_strings_add(out, rest.at[i]);
  mob_strings_free(&rest);
  return status;
}

static mob_status take_model(const mob_options_parsed_t *parsed, mob_serve_options_t *out) {
  if (out->model_flag) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "With `vllm serve`, you should provide the model as a positional argument "
                    "instead of via the `--model` option.");
  }
  if (parsed->positionals.len == 0) {
    const char *last =
        out->served_names.len > 1 ? out->served_names.at[out->served_names.len - 1] : NULL;
    if (last && mob_is_dir(last)) {
      return mob_fail(
          MOB_E_INVALID,
          "the following arguments are required: model_tag (--served-model-name takes every "
          "word behind it, `%s` too: put the model first)",
          last);
    }
    return mob_fail(MOB_E_INVALID, "the following arguments are required: model_tag");
  }
  if (parsed->positionals.len > 1) {
    return mob_fail(MOB_E_INVALID, "unrecognized arguments: %s", parsed->positionals.at[1]);
  }
  out->model = mob_strdup(parsed->positionals.at[0]);
  return MOB_OK;
}

// A variable of the environment stands in for an option that was not given.
static void take_env(const mob_options_parsed_t *parsed, const char *option, const char *variable,
                     double *out) {
  const char *text = getenv(variable);
  if (!text || mob_options_given(mob__serve_table, mob__serve_table_len, parsed, option)) return;
  char *end;
  double value = strtod(text, &end);
  if (end != text && !*end && value >= 0)
    *out = value;
  else
    MOB_WARN("%s=%s is not a number of seconds", variable, text);
}

mob_status mob__serve_parse(int argc, char **argv, mob_serve_options_t *out, bool *help) {
  memset(out, 0, sizeof *out);
  *help = false;
  mob_options_init(mob__serve_table, mob__serve_table_len, out);
  mob_options_parsed_t parsed = {0};
  mob_strings_t words = {0};
  mob_status status = expand_config(argc, argv, &words);
  if (status == MOB_OK) {
    status = mob_options_parse(mob__serve_table, mob__serve_table_len, out, (int)words.len,
                               words.at, &parsed);
  }
  if (status == MOB_OK && parsed.help)
    *help = true;
  else {
    if (status == MOB_OK) status = take_model(&parsed, out);
    if (status == MOB_OK) {
      take_env(&parsed, "--keep-alive-timeout", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE", &out->keep_alive);
      take_env(&parsed, "--ready-timeout", "VLLM_ENGINE_READY_TIMEOUT_S", &out->ready_timeout);
      mob_options_warn(mob__serve_table, mob__serve_table_len, &parsed);
      status = mob__serve_check(out);
    }
  }
  mob_strings_free(&words);
  mob_options_parsed_free(&parsed);
  if (status != MOB_OK) mob__serve_clear(out);
  return status;
}

void mob__serve_clear(mob_serve_options_t *options) {
  mob_options_clear(mob__serve_table, mob__serve_table_len, options);
  free(options->model);
  options->model = NULL;
}

// -------------------------------------------------------------------------------------------
// checks

// These end with exit code 1, as the original's exceptions do; MOB_E_INVALID means a usage error
// and exit code 2.
static mob_status refuse_chat(const mob_serve_options_t *o) {
  if (o->enable_auto_tools && !o->tool_parser) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "Error: --enable-auto-tool-choice requires --tool-call-parser");
  }
  if (o->enable_reasoning && !o->reasoning_parser) {
    return mob_fail(MOB_E_UNSUPPORTED, "Error: --enable-reasoning requires --reasoning-parser");
  }
  if (o->enable_auto_tools && o->enable_reasoning) {
    return mob_fail(MOB_E_UNSUPPORTED, "Error: --enable-auto-tool-choice and --enable-reasoning "
                                       "cannot be enabled at the same time");
  }
  if (o->reasoning_parser && strcmp(o->reasoning_parser, "deepseek_r1") != 0) {
    return mob_fail(MOB_E_UNSUPPORTED, "invalid reasoning parser: %s (chose from { deepseek_r1 })",
                    o->reasoning_parser);
  }
  if (o->chat_template && !strpbrk(o->chat_template, "{}\n") &&
      !mob_file_exists(o->chat_template)) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "The supplied chat template string (%s) appears path-like, but doesn't exist!",
                    o->chat_template);
  }
  return MOB_OK;
}

// Replies name these, and JSON is UTF-8.
static mob_status refuse_name(const char *what, const char *name) {
  if (!name || mob_utf8_valid_prefix(name, strlen(name)) == strlen(name)) return MOB_OK;
  return mob_fail(MOB_E_UNSUPPORTED, "%s is not UTF-8: %s", what, name);
}

static mob_status refuse_names(const mob_serve_options_t *o) {
  MOB_TRY(refuse_name("the model's path", o->model));
  MOB_TRY(refuse_name("--response-role", o->response_role));
  for (size_t i = 0; i < o->served_names.len; i++)
    MOB_TRY(refuse_name("--served-model-name", o->served_names.at[i]));
  return MOB_OK;
}

static mob_status refuse_model(const mob_serve_options_t *o) {
  if (strcmp(o->task, "auto") != 0 && strcmp(o->task, "generate") != 0) {
    return mob_fail(MOB_E_UNSUPPORTED, "--task %s is not supported: only generation is served",
                    o->task);
  }
  if (strcmp(o->load_format, "auto") != 0 && strcmp(o->load_format, "safetensors") != 0 &&
      strcmp(o->load_format, "dummy") != 0 && strcmp(o->load_format, "fastsafetensors") != 0 &&
      strcmp(o->load_format, "runai_streamer") != 0 &&
      strcmp(o->load_format, "instanttensor") != 0) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "--load-format %s is not supported: weights are read from safetensors files",
                    o->load_format);
  }
  if (strcmp(o->config_format, "mistral") == 0) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "--config-format mistral is not supported: config.json is what is read");
  }
  if (strcmp(o->device, "auto") != 0 && strcmp(o->device, "cuda") != 0 &&
      strcmp(o->device, "cpu") != 0) {
    return mob_fail(MOB_E_UNSUPPORTED, "--device %s is not supported: auto, cuda or cpu",
                    o->device);
  }
  if (o->max_model_len == 0 || o->max_model_len < -1 || o->max_model_len > INT32_MAX) {
    return mob_fail(MOB_E_UNSUPPORTED, "--max-model-len must be at least 1, got %lld",
                    (long long)o->max_model_len);
  }
  if (o->max_logprobs < 0)
    return mob_fail(MOB_E_UNSUPPORTED, "--max-logprobs must not be negative");
  return MOB_OK;
}

static mob_status refuse_memory(const mob_serve_options_t *o) {
  if (!(o->memory_share > 0) || o->memory_share > 1.0) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "GPU memory utilization must be greater than 0 and at most 1.0. Got %g.",
                    o->memory_share);
  }
  if (o->max_batched_tokens < 0 || o->max_seqs < 0 || o->blocks_override < 0 ||
      o->max_seqs > 65536 || o->max_batched_tokens > INT32_MAX) {
    return mob_fail(
        MOB_E_UNSUPPORTED,
        "--max-num-batched-tokens, --max-num-seqs and --num-gpu-blocks-override must be "
        "positive (and --max-num-seqs at most 65536)");
  }
  int64_t seqs = o->max_seqs ? o->max_seqs : 256;
  if (o->max_batched_tokens && o->max_batched_tokens < seqs) {
    return mob_fail(
        MOB_E_UNSUPPORTED,
        "max_num_batched_tokens (%lld) must be greater than or equal to max_num_seqs (%lld).",
        (long long)o->max_batched_tokens, (long long)seqs);
  }
  if (o->block_size && o->block_size != 8 && o->block_size != 16 && o->block_size != 32 &&
      o->block_size != 64 && o->block_size != 128) {
    return mob_fail(MOB_E_INVALID,
                    "argument --block-size: invalid choice: %lld (choose from 8, 16, 32, 64, 128)",
                    (long long)o->block_size);
  }
  if (o->block_size && o->block_size != 64)
    MOB_WARN("--block-size %lld: pages of 64 tokens are used", (long long)o->block_size);
  if (o->tp < 1 || o->pp < 1 || o->tp > 1024 || o->pp > 1024) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "--tensor-parallel-size and --pipeline-parallel-size must be at least 1, got "
                    "%lld and %lld",
                    (long long)o->tp, (long long)o->pp);
  }
  return MOB_OK;
}

mob_status mob__serve_check(const mob_serve_options_t *o) {
  if (o->port < 0 || o->port > 65535) {
    return mob_fail(MOB_E_UNSUPPORTED, "--port must be between 0 and 65535, got %lld",
                    (long long)o->port);
  }
  if (o->ssl_keyfile && !o->ssl_certfile) {
    return mob_fail(MOB_E_UNSUPPORTED, "--ssl-keyfile needs --ssl-certfile");
  }
  if (o->max_body < 1 || !(o->keep_alive >= 0) || !(o->request_timeout > 0) ||
      !(o->shutdown_timeout >= 0) || !(o->ready_timeout >= 0)) {
    return mob_fail(MOB_E_UNSUPPORTED, "--max-body-bytes and the timeouts must not be negative");
  }
  MOB_TRY(refuse_names(o));
  MOB_TRY(refuse_chat(o));
  MOB_TRY(refuse_model(o));
  return refuse_memory(o);
}
