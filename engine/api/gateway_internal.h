// Shared by the gateway's files.
#ifndef MOB_API_GATEWAY_INTERNAL_H
#define MOB_API_GATEWAY_INTERNAL_H

#include "engine/api/choice.h"
#include "engine/api/gateway.h"
#include "engine/api/metrics.h"
#include "engine/api/prompt.h"
#include "engine/api/reasoning.h"
#include "engine/api/request.h"

typedef struct mob__task mob__task_t;

struct mob_gateway {
  uv_loop_t *loop;
  const mob_serve_options_t *options;
  const mob_model_t *model;
  mob_engine_t *engine;
  const mob_pods_t *pods;
  mob_prompter_t prompter;
  mob_api_limits_t limits;
  mob_metrics_t metrics;
  const char *api_key;
  json_t *origins, *methods, *headers; // CORS
  bool all_origins, all_headers;
  int32_t eos;
  int64_t created;
  bool prefix_cache;
  bool lost;
  char *lost_why;
  mob__task_t *tasks;
  size_t task_count;
  uint64_t log_prompt, log_generated; // token counters at the last log_stats()
  bool logged_busy;
};

typedef MOB_VEC(mob_prompt_logprob_t) mob_prompt_logprobs_t; // `top` is owned

// One prompt of a request.
typedef struct mob__input {
  mob_ids_t ids;
  mob_buf_t text; // of chat: the rendered template; of completions: the prompt
  bool has_text;
  mob_api_sampling_t sampling;
} mob__input_t;

// One sequence of a request.
typedef struct mob__seq {
  mob__task_t *task;
  size_t input;
  uint32_t index; // among the sequences of its prompt
  mob_gen_t *gen; // NULL once it ended
  mob_choice_t choice;
  mob_prompt_logprobs_t prompt;
  mob_reasoning_t reasoning;
  bool echoed;
  size_t text_offset; // completions' logprobs, streaming
  uint64_t last_ns;   // of its last token
} mob__seq_t;

struct mob__task { // a request under way
  mob_gateway_t *gateway;
  mob__task_t *prev, *next;
  mob_http_request_t *http; // NULL once the client left or the reply ended
  uv_work_t work;
  bool working; // a worker thread has it
  mob_api_kind_t kind;
  char *content_type;
  mob_buf_t body;
  mob_api_request_t request;
  char *error; // of the worker
  MOB_VEC(mob__input_t) inputs;
  mob__seq_t *seqs;
  size_t seq_count, running;
  mob_choice_rules_t rules;
  char id[160];
  int64_t created;
  const char *role;
  bool begun;   // the stream's head is sent
  bool started; // the role chunk is sent
  bool failed;  // a reply was given; what still comes from the engine is dropped
  uint32_t cached_tokens;
  uint64_t arrived_ns, submitted_ns, first_ns;
};

// ---- api_error.c
enum { MOB__BAD_REQUEST = 400 };
void mob__error_body(mob_buf_t *out, const char *type, int code, const char *message);
// The `data: {"error": {...}}` event, as json.dumps() writes it.
void mob__error_event(mob_buf_t *out, const char *type, int code, const char *message);
void mob__reply_error(mob_gateway_t *gateway, mob_http_request_t *http, int code, const char *type,
                      const char *message);
void mob__reply_lost(mob_gateway_t *gateway, mob_http_request_t *http);

// ---- routes.c
// All replies go through these: they add CORS and request id headers and write the access log.
void mob__reply(mob_gateway_t *gateway, mob_http_request_t *http, int status,
                const char *content_type, const void *body, size_t len,
                const mob_http_field_t *extra, size_t extra_count);
void mob__reply_json(mob_gateway_t *gateway, mob_http_request_t *http, int status,
                     const mob_buf_t *body);
void mob__begin_stream(mob_gateway_t *gateway, mob_http_request_t *http);

const char *mob__served_name(const mob_gateway_t *gateway);

// ---- task.c
void mob__task_start(mob_gateway_t *gateway, mob_http_request_t *http, mob_api_kind_t kind);
void mob__task_gone(mob__task_t *task);
void mob__task_lost(mob__task_t *task);
void mob__task_end(mob__task_t *task,
                   const char *message); // shutdown: 503, and its sequences are aborted

// ---- chat_out.c, completion_out.c: one event of a stream, or the whole reply
void mob__chat_event(mob__task_t *task, mob__seq_t *seq);
void mob__chat_usage_event(mob__task_t *task);
void mob__chat_reply(mob__task_t *task, mob_buf_t *out);
void mob__completion_event(mob__task_t *task, mob__seq_t *seq);
void mob__completion_usage_event(mob__task_t *task);
void mob__completion_reply(mob__task_t *task, mob_buf_t *out);
void mob__sse_event(mob__task_t *task, const mob_buf_t *json); // sends "data: JSON\n\n"
// The sequences that are answered for prompt `input`: all, or the n best of best_of. `out` has room
// for n.
void mob__chosen(const mob__task_t *task, size_t input, mob__seq_t **out);

// ---- reply_out.c
// What a reply of `object`'s kind begins with: everything up to its first choice.
void mob__reply_open(const mob__task_t *task, const char *object, mob_buf_t *out);
// nulls: details that there are not are written as null, not left out.
void mob__reply_usage(size_t prompt, size_t completion, int64_t cached, bool nulls, mob_buf_t *out);
void mob__reply_stop_reason(const mob_choice_t *choice, mob_buf_t *out);
void mob__reply_ids(const char *key, const int32_t *ids, size_t count, mob_buf_t *out);
// "token_ids" of a stream's event: those that no event has had.
void mob__reply_new_ids(mob_choice_t *choice, mob_buf_t *out);

// ---- logprob_out.c
bool mob__tokens_as_ids(const mob__task_t *task);
void mob__token_text(const mob__task_t *task, int32_t token, mob_buf_t *out);
// chat: {"content":[...]} of tokens [from, to)
void mob__chat_logprobs(const mob__task_t *task, const mob_choice_t *choice, size_t from, size_t to,
                        mob_buf_t *out);
// completions: {"text_offset":...}; with the prompt's tokens in front when `prompt` is not NULL
void mob__completion_logprobs(const mob__task_t *task, const mob_choice_t *choice, size_t from,
                              size_t to, const mob__seq_t *prompt, size_t *text_offset,
                              mob_buf_t *out);
void mob__prompt_logprobs(const mob__task_t *task, const mob__seq_t *seq,
                          mob_buf_t *out); // [null,{...},...] or null

// ---- openapi.c
void mob__openapi(const mob_gateway_t *gateway, mob_buf_t *out);

#endif
