// Replies of /v1/chat/completions.
#include <stdlib.h>
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"
#include "runtime/base/mem.h"

static bool continuous(const mob__task_t *task) {
  return task->request.include_usage && task->request.continuous_usage;
}

static void close_chunk(mob__task_t *task, mob_buf_t *out, size_t completion) {
  mob_json_close(out, ']');
  if (continuous(task)) mob__reply_usage(task->inputs.at[0].ids.len, completion, 0, false, out);
  mob_json_close(out, '}');
  mob__sse_event(task, out);
  mob_buf_free(out);
}

// The content of the last message, when it has the role of the answer: what `echo` gives back.
static void last_content(const mob__task_t *task, mob_buf_t *out) {
  const json_t *messages = task->request.messages;
  const json_t *last = json_array_get(messages, json_array_size(messages) - 1);
  const char *role = json_string_value(json_object_get(last, "role"));
  const json_t *content = json_object_get(last, "content"), *part;
  if (!role || strcmp(role, task->role) != 0) return;
  if (json_is_string(content)) {
    mob_buf_append(out, json_string_value(content), json_string_length(content));
    return;
  }
  for (size_t i = 0, used = 0; i < json_array_size(content); i++) {
    part = json_array_get(content, i);
    const char *text = json_is_string(part) ? json_string_value(part)
                                            : json_string_value(json_object_get(part, "text"));
    if (text && *text) mob_buf_printf(out, "%s%s", used++ ? "\n" : "", text);
  }
}

// The first chunks: one with the role for each choice, then the echo.
static void start_stream(mob__task_t *task) {
  mob_buf_t echo = {0};
  if (task->request.echo) last_content(task, &echo);
  for (int pass = 0; pass <= (echo.len > 0); pass++) {
    for (size_t i = 0; i < task->seq_count; i++) {
      mob_buf_t out = {0};
      mob__reply_open(task, "chat.completion.chunk", &out);
      mob_json_open(&out, '{');
      mob_json_put_int(&out, "index", (int64_t)i);
      mob_json_key(&out, "delta");
      mob_json_open(&out, '{');
      if (pass == 0) mob_json_put_text(&out, "role", task->role);
      mob_json_key(&out, "content");
      mob_json_text(&out, pass ? (char *)echo.data : "", pass ? echo.len : 0);
      mob_json_close(&out, '}');
      mob_json_put_null(&out, "logprobs");
      mob_json_put_null(&out, "finish_reason");
      mob_json_close(&out, '}');
      close_chunk(task, &out, 0);
    }
  }
  mob_buf_free(&echo);
  task->started = true;
}

// False when a reasoning parser waits for more text: no chunk then.
static bool put_delta(mob__seq_t *seq, mob_buf_t *out) {
  mob_choice_t *choice = &seq->choice;
  size_t ready = mob__choice_ready(choice, &seq->task->rules);
  const char *text = choice->text.data ? (const char *)choice->text.data : "";
  bool final = choice->finish != MOB_FINISH_NONE;
  mob_json_key(out, "delta");
  mob_json_open(out, '{');
  if (seq->task->gateway->options->reasoning_parser) {
    mob_reasoning_delta_t delta = mob__reasoning_next(&seq->reasoning, text, ready, final);
    choice->sent = ready;
    if (delta.reasoning_len == 0 && delta.content_len == 0 && !final) return false;
    if (delta.content_len > 0 || delta.reasoning_len == 0) {
      mob_json_key(out, "content");
      mob_json_text(out, delta.content ? delta.content : "", delta.content_len);
    }
    if (delta.reasoning_len > 0) {
      mob_json_key(out, "reasoning_content");
      mob_json_text(out, delta.reasoning, delta.reasoning_len);
    }
  } else {
    mob_json_key(out, "content");
    mob_json_text(out, text + choice->sent, ready - choice->sent);
    choice->sent = ready;
  }
  mob_json_close(out, '}');
  return true;
}

void mob__chat_event(mob__task_t *task, mob__seq_t *seq) {
  if (!task->started) start_stream(task);
  mob_choice_t *choice = &seq->choice;
  mob_buf_t out = {0};
  mob__reply_open(task, "chat.completion.chunk", &out);
  mob_json_open(&out, '{');
  mob_json_put_int(&out, "index", (int64_t)(seq - task->seqs));
  if (!put_delta(seq, &out)) {
    mob_buf_free(&out);
    return;
  }
  mob_json_key(&out, "logprobs");
  if (task->request.chat_logprobs) {
    mob__chat_logprobs(task, choice, choice->tokens_sent, choice->tokens.len, &out);
    choice->tokens_sent = choice->tokens.len;
  } else {
    mob_json_null(&out);
  }
  if (choice->finish == MOB_FINISH_NONE) {
    mob_json_put_null(&out, "finish_reason");
  } else {
    mob_json_put_text(&out, "finish_reason", mob__finish_name(choice->finish));
    mob__reply_stop_reason(choice, &out);
  }
  if (task->request.return_token_ids) mob__reply_new_ids(choice, &out);
  mob_json_close(&out, '}');
  close_chunk(task, &out, choice->ids.len);
}

static size_t completion_tokens(const mob__task_t *task) {
  size_t total = 0;
  for (size_t i = 0; i < task->seq_count; i++) total += task->seqs[i].choice.ids.len;
  return total;
}

static int64_t cached(const mob__task_t *task) {
  return task->gateway->options->prompt_tokens_details ? (int64_t)task->cached_tokens : 0;
}

void mob__chat_usage_event(mob__task_t *task) {
  mob_buf_t out = {0};
  mob__reply_open(task, "chat.completion.chunk", &out);
  mob_json_close(&out, ']');
  mob__reply_usage(task->inputs.at[0].ids.len, completion_tokens(task), cached(task), false, &out);
  mob_json_close(&out, '}');
  mob__sse_event(task, &out);
  mob_buf_free(&out);
}

// ---------------------------------------------------------------------------------------- whole
// reply

static void put_message(mob__task_t *task, mob__seq_t *seq, const mob_buf_t *echo, mob_buf_t *out) {
  const mob_choice_t *choice = &seq->choice;
  const char *text = choice->text.data ? (const char *)choice->text.data : "";
  mob_reasoning_delta_t parts = {.content = text, .content_len = choice->text.len};
  bool split = task->gateway->options->reasoning_parser != NULL;
  if (split) parts = mob__reasoning_next(&seq->reasoning, text, choice->text.len, true);
  mob_json_key(out, "message");
  mob_json_open(out, '{');
  mob_json_put_text(out, "role", task->role);
  mob_json_key(out, "reasoning_content");
  if (parts.reasoning_len)
    mob_json_text(out, parts.reasoning, parts.reasoning_len);
  else
    mob_json_null(out);
  mob_json_key(out, "content");
  if (parts.reasoning_len && parts.content_len == 0 && echo->len == 0) {
    mob_json_null(out);
  } else {
    mob_buf_t content = {0};
    mob_buf_append(&content, echo->data, echo->len);
    mob_buf_append(&content, parts.content, parts.content_len);
    mob_json_text(out, content.data ? (char *)content.data : "", content.len);
    mob_buf_free(&content);
  }
  mob_json_key(out, "tool_calls");
  mob_json_open(out, '[');
  mob_json_close(out, ']');
  mob_json_close(out, '}');
}

void mob__chat_reply(mob__task_t *task, mob_buf_t *out) {
  uint32_t n = task->inputs.at[0].sampling.n;
  mob__seq_t **chosen = MOB_NEW_ARRAY(mob__seq_t *, n);
  mob__chosen(task, 0, chosen);
  mob_buf_t echo = {0};
  if (task->request.echo) last_content(task, &echo);
  size_t tokens = 0;
  mob__reply_open(task, "chat.completion", out);
  for (uint32_t i = 0; i < n; i++) {
    const mob_choice_t *choice = &chosen[i]->choice;
    tokens += choice->ids.len;
    mob_json_open(out, '{');
    mob_json_put_int(out, "index", i);
    put_message(task, chosen[i], &echo, out);
    mob_json_key(out, "logprobs");
    if (task->request.chat_logprobs)
      mob__chat_logprobs(task, choice, 0, choice->tokens.len, out);
    else
      mob_json_null(out);
    mob_json_put_text(out, "finish_reason", mob__finish_name(choice->finish));
    mob__reply_stop_reason(choice, out);
    if (task->request.return_token_ids)
      mob__reply_ids("token_ids", choice->ids.at, choice->ids.len, out);
    mob_json_close(out, '}');
  }
  mob_json_close(out, ']');
  mob__reply_usage(task->inputs.at[0].ids.len, tokens, cached(task), true, out);
  mob_json_key(out, "prompt_logprobs");
  mob__prompt_logprobs(task, &task->seqs[0], out);
  if (task->request.return_token_ids) {
    mob__reply_ids("prompt_token_ids", task->inputs.at[0].ids.at, task->inputs.at[0].ids.len, out);
  }
  mob_json_close(out, '}');
  mob_buf_free(&echo);
  free(chosen);
}
