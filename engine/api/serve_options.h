// What `vllm serve` was told: one field an option that acts. The table is in serve_options.c.
#ifndef MOB_API_SERVE_OPTIONS_H
#define MOB_API_SERVE_OPTIONS_H

#include "engine/api/options.h"

typedef struct mob_serve_options {
  char *model; // the positional, as written: the default served name and the `root` of /v1/models
  // ---- HTTP
  char *host;
  int64_t port;
  char *uvicorn_log_level;
  bool allow_credentials;
  char *allowed_origins, *allowed_methods, *allowed_headers; // JSON arrays
  char *api_key;
  char *ssl_keyfile, *ssl_certfile, *ssl_ca_certs;
  int64_t ssl_cert_reqs;
  char *root_path;
  bool disable_docs, request_id_headers, disable_log_requests, disable_log_stats,
      disable_access_log;
  int64_t max_log_len; // -1: whole
  bool prompt_tokens_details, tokens_as_ids;
  int64_t max_body;                                     // bytes
  double keep_alive, request_timeout, shutdown_timeout; // seconds
  // ---- chat
  mob_strings_t served_names;
  char *chat_template, *content_format, *response_role;
  bool enable_auto_tools, enable_reasoning;
  char *tool_parser, *reasoning_parser;
  // ---- model
  char *model_flag; // --model: an error with `serve`, as in the original
  char *task, *tokenizer, *load_format, *config_format, *dtype, *quantization, *device;
  bool skip_tokenizer;
  char *rope_scaling, *hf_overrides, *generation_config, *override_generation;
  double rope_theta; // 0: the model's
  int64_t seed;
  int64_t max_model_len; // -1: derived
  int64_t max_logprobs;
  // ---- memory and scheduling
  double memory_share;
  char *kv_cache_dtype;
  int prefix_cache, chunked_prefill;    // -1: default
  int64_t max_batched_tokens, max_seqs; // 0: default
  int64_t blocks_override;
  int64_t block_size;
  char *scheduling_policy;
  bool eager;
  // ---- parallel
  int64_t tp, pp;
  bool expert_parallel;
  double ready_timeout;
} mob_serve_options_t;

extern const mob_option_t mob__serve_table[];
extern const size_t mob__serve_table_len;

// Parses `argv` (behind "serve"), with --config's file between the defaults and the command line.
// On MOB_OK either *help is true or the options passed mob__serve_check(). Prints warnings for
// options without effect.
mob_status mob__serve_parse(int argc, char **argv, mob_serve_options_t *out, bool *help);
void mob__serve_clear(mob_serve_options_t *options);
// What can be checked without the model: TP and PP, shares, combinations of flags.
mob_status mob__serve_check(const mob_serve_options_t *options);

#endif
