// The life of a request: body -> worker thread (parse, template, tokenize) -> engine -> reply.
#include <stdlib.h>
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"
#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/mem.h"
#include "runtime/base/utf8.h"
#define MOB_LOG_COMPONENT "api"
#include "runtime/base/log.h"

enum { UNSENT_MAX = 64 << 20 }; // a client that reads this far behind its stream is cut off

static bool generates(mob_api_kind_t kind) {
  return kind == MOB_API_CHAT || kind == MOB_API_COMPLETION;
}

static void free_task(mob__task_t *task) {
  mob_gateway_t *gateway = task->gateway;
  if (task->next) task->next->prev = task->prev;
  if (task->prev)
    task->prev->next = task->next;
  else
    gateway->tasks = task->next;
  gateway->task_count--;
  for (size_t i = 0; i < task->seq_count; i++) {
    mob__seq_t *seq = &task->seqs[i];
    mob__choice_clear(&seq->choice);
    for (size_t k = 0; k < seq->prompt.len; k++) free((void *)seq->prompt.at[k].top);
    mob_vec_free(&seq->prompt);
  }
  free(task->seqs);
  for (size_t i = 0; i < task->inputs.len; i++) {
    mob_vec_free(&task->inputs.at[i].ids);
    mob_buf_free(&task->inputs.at[i].text);
  }
  mob_vec_free(&task->inputs);
  mob__request_clear(&task->request);
  mob_buf_free(&task->body);
  free(task->content_type);
  free(task->error);
  free(task);
}

// The reply ends here: nothing of the client is touched any more.
static mob_http_request_t *take_http(mob__task_t *task) {
  mob_http_request_t *http = task->http;
  if (http) mob_http_set_data(http, NULL);
  task->http = NULL;
  return http;
}

// ------------------------------------------------------------------------------------- worker
// thread

static mob_status encode_prompt(mob__task_t *task, const mob_prompt_t *prompt) {
  const mob_prompter_t *prompter = &task->gateway->prompter;
  mob__input_t *input = mob_vec_push(&task->inputs);
  if (prompt->text) {
    mob_buf_puts(&input->text, prompt->text);
    input->has_text = true;
    return mob__prompt_encode(prompter, &task->request, prompt->text, strlen(prompt->text),
                              &input->ids);
  }
  int64_t keep = task->request.truncate_prompt_tokens;
  size_t skip =
      keep != MOB_UNSET && (int64_t)prompt->ids.len > keep ? prompt->ids.len - (size_t)keep : 0;
  for (size_t i = skip; i < prompt->ids.len; i++) *mob_vec_push(&input->ids) = prompt->ids.at[i];
  if (task->kind == MOB_API_DETOKENIZE && !prompter->tokenizer) {
    return mob_fail(MOB_E_INVALID, "This model has no tokenizer.");
  }
  if (!prompter->tokenizer || !(task->request.echo || task->kind == MOB_API_DETOKENIZE))
    return MOB_OK;
  input->has_text = true;
  mob_status status =
      mob_tokenizer_decode(prompter->tokenizer, input->ids.at, input->ids.len, false, &input->text);
  return status == MOB_OK
             ? MOB_OK
             : mob_fail(MOB_E_INVALID, "Token id is out of vocabulary: %s", mob_errmsg());
}

static mob_status build_prompts(mob__task_t *task) {
  const mob_api_request_t *r = &task->request;
  if (r->messages) {
    mob__input_t *input = mob_vec_push(&task->inputs);
    input->has_text = true;
    MOB_TRY(mob__prompt_render(&task->gateway->prompter, r, task->gateway->options->content_format,
                               &input->text));
    const char *text = mob_buf_cstr(&input->text);
    return mob__prompt_encode(&task->gateway->prompter, r, text, input->text.len, &input->ids);
  }
  if (r->prompts.len == 0) return mob_fail(MOB_E_INVALID, "please provide at least one prompt");
  for (size_t i = 0; i < r->prompts.len; i++) MOB_TRY(encode_prompt(task, &r->prompts.at[i]));
  return MOB_OK;
}

static void on_work(uv_work_t *work) {
  mob__task_t *task = work->data;
  mob_status status = mob__request_parse(task->kind, task->content_type, (char *)task->body.data,
                                         task->body.len, &task->request, &task->error);
  mob_buf_free(&task->body);
  if (status == MOB_OK && build_prompts(task) != MOB_OK) task->error = mob_strdup(mob_errmsg());
}

// -----------------------------------------------------------------------------------------
// refusals

static void refuse(mob__task_t *task, int code, const char *type, const char *message) {
  mob__reply_error(task->gateway, take_http(task), code, type, message);
}

static bool knows_model(const mob_gateway_t *gateway, const char *name) {
  const mob_strings_t *names = &gateway->options->served_names;
  for (size_t i = 0; i < names->len; i++) {
    if (strcmp(names->at[i], name) == 0) return true;
  }
  return names->len == 0 && strcmp(gateway->options->model, name) == 0;
}

// Replies and returns true when the request cannot be served.
static bool refused(mob__task_t *task) {
  mob_gateway_t *gateway = task->gateway;
  const mob_api_request_t *r = &task->request;
  if (!r->body) { // the body itself is wrong
    refuse(task, 400, "BadRequestError", task->error);
    return true;
  }
  if (r->unknown)
    MOB_WARN("The following fields were present in the request but ignored: {%s}", r->unknown);
  if (!knows_model(gateway, r->model)) {
    char *message = mob_sprintf("The model `%s` does not exist.", r->model);
    refuse(task, 404, "NotFoundError", message);
    free(message);
    return true;
  }
  if (r->tools_auto && !gateway->options->enable_auto_tools) {
    refuse(
        task, 400, "BadRequestError",
        "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set");
    return true;
  }
  if (r->tool_named) {
    refuse(
        task, 400, "BadRequestError",
        "tool_choice with a named function is not supported: this server has no guided decoding");
    return true;
  }
  if (task->error) {
    refuse(task, 400, "BadRequestError", task->error);
    return true;
  }
  return false;
}

// ----------------------------------------------------------------------------------- tokenize
// replies

static void reply_tokens(mob__task_t *task) {
  mob_buf_t out = {0};
  const mob__input_t *input = &task->inputs.at[0];
  mob_json_open(&out, '{');
  if (task->kind == MOB_API_TOKENIZE) {
    mob_json_put_int(&out, "count", (int64_t)input->ids.len);
    mob_json_put_int(&out, "max_model_len", task->gateway->limits.max_len);
    mob_json_key(&out, "tokens");
    mob_json_open(&out, '[');
    for (size_t i = 0; i < input->ids.len; i++) mob_json_int(&out, input->ids.at[i]);
    mob_json_close(&out, ']');
  } else {
    mob_json_key(&out, "prompt");
    mob_json_text(&out, input->text.data ? (char *)input->text.data : "", input->text.len);
  }
  mob_json_close(&out, '}');
  mob__reply_json(task->gateway, take_http(task), 200, &out);
  mob_buf_free(&out);
}

// --------------------------------------------------------------------------------------------
// replies

void mob__sse_event(mob__task_t *task, const mob_buf_t *json) {
  if (!task->http) return;
  if (!task->begun) {
    mob__begin_stream(task->gateway, task->http);
    task->begun = true;
  }
  mob_buf_t event = {0};
  mob_buf_reserve(&event, json->len + 8);
  mob_buf_puts(&event, "data: ");
  mob_buf_append(&event, json->data, json->len);
  mob_buf_puts(&event, "\n\n");
  mob_http_write(task->http, event.data, event.len);
  mob_buf_free(&event);
}

static void end_stream(mob__task_t *task) {
  mob_http_request_t *http = take_http(task);
  if (!http) return;
  mob_http_write(http, "data: [DONE]\n\n", 14);
  mob_http_end(http);
}

static bool streams(const mob__task_t *task) {
  return task->request.stream &&
         task->inputs.at[0].sampling.best_of == task->inputs.at[0].sampling.n;
}

static int by_logprob(const void *a, const void *b) {
  const mob__seq_t *x = *(mob__seq_t *const *)a, *y = *(mob__seq_t *const *)b;
  if (x->choice.logprob_sum != y->choice.logprob_sum)
    return x->choice.logprob_sum < y->choice.logprob_sum ? 1 : -1;
  return x->index < y->index ? -1 : 1;
}

void mob__chosen(const mob__task_t *task, size_t input, mob__seq_t **out) {
  const mob_api_sampling_t *s = &task->inputs.at[input].sampling;
  mob__seq_t **all = MOB_NEW_ARRAY(mob__seq_t *, s->best_of);
  for (uint32_t i = 0; i < s->best_of; i++) all[i] = &task->seqs[input * s->best_of + i];
  if (s->best_of > s->n) qsort(all, s->best_of, sizeof *all, by_logprob);
  memcpy(out, all, s->n * sizeof *all);
  free(all);
}

static void observe_end(mob__task_t *task) {
  mob_metrics_t *m = &task->gateway->metrics;
  double now = (double)mob_now_ns(), arrived = (double)task->arrived_ns,
         submitted = (double)task->submitted_ns;
  size_t longest = 0;
  mob__metrics_observe(m, MOB_HIST_E2E, (now - arrived) / 1e9);
  mob__metrics_observe(m, MOB_HIST_QUEUE, (submitted - arrived) / 1e9);
  mob__metrics_observe(m, MOB_HIST_INFERENCE, (now - submitted) / 1e9);
  if (task->first_ns) {
    mob__metrics_observe(m, MOB_HIST_PREFILL, ((double)task->first_ns - submitted) / 1e9);
    mob__metrics_observe(m, MOB_HIST_DECODE, (now - (double)task->first_ns) / 1e9);
  }
  for (size_t i = 0; i < task->inputs.len; i++) {
    mob__metrics_observe(m, MOB_HIST_PROMPT, (double)task->inputs.at[i].ids.len);
    mob__metrics_observe(m, MOB_HIST_PARAM_N, task->inputs.at[i].sampling.n);
    mob__metrics_observe(m, MOB_HIST_PARAM_MAX_TOKENS, task->inputs.at[i].sampling.max_tokens);
  }
  for (size_t i = 0; i < task->seq_count; i++) {
    const mob__seq_t *seq = &task->seqs[i];
    size_t tokens = seq->choice.ids.len;
    if (tokens > longest) longest = tokens;
    mob__metrics_observe(m, MOB_HIST_GENERATION, (double)tokens);
    if (tokens > 1 && seq->last_ns > task->first_ns) {
      mob__metrics_observe(m, MOB_HIST_TPOT,
                           (double)(seq->last_ns - task->first_ns) / 1e9 / (double)(tokens - 1));
    }
    if (seq->choice.finish == MOB_FINISH_STOP)
      m->finished_stop++;
    else if (seq->choice.finish == MOB_FINISH_LENGTH)
      m->finished_length++;
    else
      m->finished_abort++;
  }
  mob__metrics_observe(m, MOB_HIST_MAX_GENERATION, (double)longest);
}

static void complete(mob__task_t *task) {
  observe_end(task);
  if (!task->gateway->options->disable_log_requests) MOB_INFO("Finished request %s.", task->id);
  bool chat = task->kind == MOB_API_CHAT;
  if (streams(task)) {
    if (task->request.include_usage)
      (chat ? mob__chat_usage_event : mob__completion_usage_event)(task);
    end_stream(task);
  } else {
    mob_buf_t out = {0};
    (chat ? mob__chat_reply : mob__completion_reply)(task, &out);
    if (task->request.stream) { // best_of > n: one event with everything
      mob__sse_event(task, &out);
      end_stream(task);
    } else {
      mob__reply_json(task->gateway, take_http(task), 200, &out);
    }
    mob_buf_free(&out);
  }
  free_task(task);
}

static void abort_all(mob__task_t *task) {
  for (size_t i = 0; i < task->seq_count; i++) {
    mob_gen_t *gen = task->seqs[i].gen;
    task->seqs[i].gen = NULL;
    if (gen) mob_gen_abort(gen);
  }
  task->running = 0;
}

// Ends the reply with an error; what the engine still holds of the request is aborted unless the
// engine is lost.
static void fail_reply(mob__task_t *task, int code, const char *type, const char *message) {
  if (task->failed) return;
  task->failed = true;
  task->gateway->metrics.finished_abort += task->seq_count;
  if (!task->http) return;
  if (!task->begun) { // nothing was sent yet, so that a status can tell
    if (task->gateway->lost_why)
      mob__reply_lost(task->gateway, take_http(task));
    else
      refuse(task, code, type, message);
    return;
  }
  mob_buf_t event = {0};
  mob__error_event(&event, type, code, message);
  mob_http_write(task->http, event.data, event.len);
  mob_buf_free(&event);
  end_stream(task);
}

// --------------------------------------------------------------------------------- the engine's
// events

static void on_prompt_logprobs(void *owner, mob_gen_t *gen, const mob_prompt_logprob_t *items,
                               uint32_t count) {
  mob__seq_t *seq = owner;
  (void)gen;
  for (uint32_t i = 0; i < count; i++) {
    mob_prompt_logprob_t *kept = mob_vec_push(&seq->prompt);
    *kept = items[i];
    kept->top = NULL;
    if (items[i].top_count == 0) continue;
    mob_token_logprob_t *top = mob_malloc(items[i].top_count * sizeof *top);
    memcpy(top, items[i].top, items[i].top_count * sizeof *top);
    kept->top = top;
  }
}

static void note_times(mob__task_t *task, mob__seq_t *seq, mob_gen_t *gen) {
  uint64_t now = mob_now_ns();
  if (!task->first_ns) {
    task->first_ns = now;
    task->cached_tokens = mob_gen_cached_tokens(gen);
    mob__metrics_observe(&task->gateway->metrics, MOB_HIST_TTFT,
                         (double)(now - task->arrived_ns) / 1e9);
  }
  if (seq->last_ns)
    mob__metrics_observe(&task->gateway->metrics, MOB_HIST_ITL, (double)(now - seq->last_ns) / 1e9);
  seq->last_ns = now;
}

static void on_token(void *owner, mob_gen_t *gen, const mob_sampled_t *token, mob_finish_t finish,
                     const char *why) {
  mob__seq_t *seq = owner;
  mob__task_t *task = seq->task;
  if (finish != MOB_FINISH_NONE) {
    seq->gen = NULL;
    task->running--;
  }
  if (finish == MOB_FINISH_LOST) {
    mob_gateway_t *gateway = task->gateway;
    if (!gateway->lost_why)
      gateway->lost_why = mob_strdup(why && *why ? why : "the group was lost");
    fail_reply(task, 503, "group_lost", gateway->lost_why);
  }
  if (!task->failed) {
    if (token && token->token >= 0) note_times(task, seq, gen);
    bool stopped = mob__choice_push(&seq->choice, &task->rules, token, finish,
                                    task->inputs.at[seq->input].sampling.sampling.logprobs >= 0);
    if (stopped) {
      seq->gen = NULL;
      task->running--;
      mob_gen_abort(gen);
    }
    if (streams(task) && task->http) {
      if (task->kind == MOB_API_CHAT)
        mob__chat_event(task, seq);
      else
        mob__completion_event(task, seq);
      if (mob_http_unsent(task->http) > UNSENT_MAX) {
        fail_reply(task, 500, "InternalServerError", "the client does not read its stream");
        abort_all(task);
      }
    }
  }
  if (task->running > 0) return;
  if (task->failed)
    free_task(task);
  else
    complete(task);
}

static const mob_gen_events_t gen_events = {on_prompt_logprobs, on_token};

// ---------------------------------------------------------------------------------------------
// submit

static uint64_t mix(uint64_t seed, uint64_t index) { // splitmix64
  uint64_t z = seed + (index + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static void log_request(const mob__task_t *task) {
  if (task->gateway->options->disable_log_requests) return;
  enum { LONGEST = 100000 };
  int64_t most = task->gateway->options->max_log_len;
  if (most < 0 || most > LONGEST) most = LONGEST;
  for (size_t i = 0; i < task->inputs.len; i++) {
    const mob__input_t *input = &task->inputs.at[i];
    const mob_sampling_t *s = &input->sampling.sampling;
    mob_buf_t text = {0}, ids = {0};
    size_t len = input->text.len < (size_t)most ? input->text.len : (size_t)most;
    while (len > 0 && len < input->text.len && (input->text.data[len] & 0xc0) == 0x80) len--;
    if (input->has_text)
      mob_py_repr_text(&text, (char *)input->text.data, len);
    else
      mob_buf_puts(&text, "None");
    if (task->kind == MOB_API_CHAT)
      mob_buf_puts(&ids, "None");
    else {
      mob_buf_putc(&ids, '[');
      for (size_t k = 0; k < input->ids.len && (int64_t)k < most; k++) {
        mob_buf_printf(&ids, "%s%d", k ? ", " : "", input->ids.at[k]);
      }
      mob_buf_putc(&ids, ']');
    }
    char item[24] = "";
    if (task->kind == MOB_API_COMPLETION) snprintf(item, sizeof item, "-%zu", i);
    MOB_INFO(
        "Received request %s%s: prompt: %s, params: SamplingParams(n=%u, presence_penalty=%g, "
        "frequency_penalty=%g, repetition_penalty=%g, temperature=%g, top_p=%g, top_k=%d, "
        "min_p=%g, "
        "seed=%s%llu, max_tokens=%u, min_tokens=%u), prompt_token_ids: %s, lora_request: None, "
        "prompt_adapter_request: None.",
        task->id, item, mob_buf_cstr(&text), input->sampling.n, (double)s->presence_penalty,
        (double)s->frequency_penalty, (double)s->repetition_penalty, (double)s->temperature,
        (double)s->top_p, s->top_k, (double)s->min_p,
        input->sampling.has_seed ? "" : "None, drawn ", (unsigned long long)s->seed,
        input->sampling.max_tokens, s->min_tokens, mob_buf_cstr(&ids));
    mob_buf_free(&text);
    mob_buf_free(&ids);
  }
}

static bool prepare_inputs(mob__task_t *task) {
  mob_gateway_t *gateway = task->gateway;
  for (size_t i = 0; i < task->inputs.len; i++) {
    mob__input_t *input = &task->inputs.at[i];
    if (mob__request_sampling(&task->request, &gateway->limits, input->ids.at, input->ids.len,
                              &input->sampling) != MOB_OK) {
      refuse(task, 400, "BadRequestError", mob_errmsg());
      return false;
    }
  }
  return true;
}

static mob_status submit_seq(mob__task_t *task, mob__seq_t *seq) {
  const mob_api_request_t *r = &task->request;
  const mob__input_t *input = &task->inputs.at[seq->input];
  mob_gen_request_t request = {
      .prompt = input->ids.at,
      .prompt_count = (uint32_t)input->ids.len,
      .max_tokens = input->sampling.max_tokens,
      .ignore_eos = r->ignore_eos,
      .stop_token_ids = r->stop_token_ids.at,
      .stop_token_count = (uint32_t)r->stop_token_ids.len,
      .priority = (int)r->priority,
      .sampling = input->sampling.sampling,
      .draw_seed = !input->sampling.has_seed,
  };
  if (seq->index > 0) {
    request.sampling.seed = mix(request.sampling.seed, seq->index); // one seed, n different answers
    if (!(r->stream && r->echo))
      request.sampling.prompt_logprobs = -1; // the first one's are enough
  }
  return mob_engine_generate(task->gateway->engine, &request, &gen_events, seq, &seq->gen);
}

static void submit(mob__task_t *task) {
  const mob_api_request_t *r = &task->request;
  uint32_t each = task->inputs.at[0].sampling.best_of;
  enum { MOST = 4096 }; // sequences of one request
  if (task->inputs.len * each > MOST) {
    refuse(task, 400, "BadRequestError", "too many prompts: prompts x n may be at most 4096");
    free_task(task);
    return;
  }
  task->rules = (mob_choice_rules_t){.tokenizer = task->gateway->prompter.tokenizer,
                                     .stop = &r->stop,
                                     .eos = task->gateway->eos,
                                     .ignore_eos = r->ignore_eos,
                                     .include_stop = r->include_stop,
                                     .skip_special = r->skip_special,
                                     .min_tokens = r->min_tokens};
  task->seq_count = task->inputs.len * each;
  task->seqs = MOB_NEW_ARRAY(mob__seq_t, task->seq_count);
  task->submitted_ns = mob_now_ns();
  mob_status status = MOB_OK;
  for (size_t i = 0; i < task->seq_count; i++) {
    mob__seq_t *seq = &task->seqs[i];
    seq->task = task;
    seq->input = i / each;
    seq->index = (uint32_t)(i % each);
    mob__choice_init(&seq->choice, &task->rules);
    const mob_buf_t *text = &task->inputs.at[seq->input].text;
    mob__reasoning_init(&seq->reasoning, (const char *)text->data, text->len);
  }
  for (size_t i = 0; i < task->seq_count && status == MOB_OK; i++) {
    status = submit_seq(task, &task->seqs[i]);
    if (status == MOB_OK) task->running++;
  }
  if (status == MOB_OK) return;
  char *message = mob_strdup(mob_errmsg());
  bool unavailable = status == MOB_E_UNAVAILABLE;
  abort_all(task);
  refuse(task, status == MOB_E_INVALID ? 400 : 503,
         status == MOB_E_INVALID ? "BadRequestError"
         : unavailable           ? "group_lost"
                                 : "ServiceUnavailableError",
         message);
  free(message);
  free_task(task);
}

static void set_id(mob__task_t *task) {
  const char *given = mob_http_header(task->http, "x-request-id");
  if (!given || mob_utf8_valid_prefix(given, strlen(given)) < strlen(given))
    given = task->request.request_id;
  uint8_t random[16];
  char hex[33];
  mob_random(random, sizeof random);
  mob_utf8_format(task->id, sizeof task->id, "%s-%s",
                  task->kind == MOB_API_CHAT ? "chatcmpl" : "cmpl",
                  given ? given : mob_hex(random, sizeof random, hex));
}

static void after_work(uv_work_t *work, int status) {
  mob__task_t *task = work->data;
  (void)status;
  task->working = false;
  if (!task->http) {
    free_task(task);
    return;
  }
  if (task->gateway->lost && generates(task->kind)) {
    mob__reply_lost(task->gateway, take_http(task));
    free_task(task);
    return;
  }
  if (refused(task)) {
    free_task(task);
    return;
  }
  if (!generates(task->kind)) {
    reply_tokens(task);
    free_task(task);
    return;
  }
  task->created = mob_wall_ms() / 1000;
  set_id(task);
  const json_t *messages = task->request.messages;
  task->role = task->gateway->options->response_role;
  if (messages && !task->request.add_generation_prompt) {
    const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
    task->role = json_string_value(json_object_get(last, "role"));
  }
  if (!prepare_inputs(task)) {
    free_task(task);
    return;
  }
  log_request(task);
  submit(task);
}

void mob__task_start(mob_gateway_t *gateway, mob_http_request_t *http, mob_api_kind_t kind) {
  mob__task_t *task = MOB_NEW(mob__task_t);
  task->gateway = gateway;
  task->http = http;
  task->kind = kind;
  task->arrived_ns = mob_now_ns();
  task->next = gateway->tasks;
  if (task->next) task->next->prev = task;
  gateway->tasks = task;
  gateway->task_count++;
  size_t len;
  const char *body = mob_http_body(http, &len);
  mob_buf_append(&task->body, body,
                 len); // the client, and its bytes with it, may leave while a worker reads
  const char *type = mob_http_header(http, "content-type");
  task->content_type = type ? mob_strdup(type) : NULL;
  mob_http_set_data(http, task);
  task->work.data = task;
  task->working = true;
  uv_queue_work(gateway->loop, &task->work, on_work, after_work);
}

void mob__task_gone(mob__task_t *task) {
  task->http = NULL;
  if (task->working) return; // after_work() frees it
  MOB_INFO("Aborted request %s.", task->id);
  if (!task->failed) task->gateway->metrics.finished_abort += task->seq_count;
  abort_all(task);
  free_task(task);
}

void mob__task_end(mob__task_t *task, const char *message) {
  if (!task->http) return;
  fail_reply(task, 503, "ServiceUnavailableError", message);
  if (task->working) return;
  abort_all(task);
  free_task(task);
}

void mob__task_lost(mob__task_t *task) {
  if (task->working) return; // after_work() answers
  fail_reply(task, 503, "group_lost", task->gateway->lost_why);
}
