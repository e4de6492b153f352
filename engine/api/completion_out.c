// Replies of /v1/completions.
#include <stdlib.h>
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"
#include "runtime/base/mem.h"

// `echo` with max_tokens 0 wants the prompt alone: the one token that was generated is dropped.
static bool echo_only(const mob__task_t *task) {
  return task->request.echo && task->request.max_tokens == 0;
}

static void put_text(const mob__task_t *task, const mob__seq_t *seq, bool echo, size_t from,
                     size_t to, mob_buf_t *out) {
  const mob__input_t *input = &task->inputs.at[seq->input];
  mob_buf_t text = {0};
  if (echo) mob_buf_append(&text, input->text.data, input->text.len);
  if (!echo_only(task) && to > from) mob_buf_append(&text, seq->choice.text.data + from, to - from);
  mob_json_key(out, "text");
  mob_json_text(out, text.data ? (char *)text.data : "", text.len);
  mob_buf_free(&text);
}

void mob__completion_event(mob__task_t *task, mob__seq_t *seq) {
  mob_choice_t *choice = &seq->choice;
  bool echo = task->request.echo && !seq->echoed;
  size_t ready = mob__choice_ready(choice, &task->rules);
  size_t tokens_end = echo_only(task) ? choice->tokens_sent : choice->tokens.len;
  mob_buf_t out = {0};
  seq->echoed = true;
  mob__reply_open(task, "text_completion", &out);
  mob_json_open(&out, '{');
  mob_json_put_int(&out, "index",
                   (int64_t)(seq->index + seq->input * task->inputs.at[0].sampling.n));
  put_text(task, seq, echo, choice->sent, ready, &out);
  mob_json_key(&out, "logprobs");
  if (task->request.logprobs != MOB_UNSET) {
    mob__completion_logprobs(task, choice, choice->tokens_sent, tokens_end, echo ? seq : NULL,
                             &seq->text_offset, &out);
  } else {
    mob_json_null(&out);
  }
  choice->sent = ready;
  choice->tokens_sent = tokens_end;
  mob_json_put_text(&out, "finish_reason",
                    choice->finish == MOB_FINISH_NONE ? NULL : mob__finish_name(choice->finish));
  mob__reply_stop_reason(choice, &out);
  if (task->request.return_token_ids) mob__reply_new_ids(choice, &out);
  mob_json_close(&out, '}');
  mob_json_close(&out, ']');
  if (task->request.include_usage && task->request.continuous_usage) {
    mob__reply_usage(task->inputs.at[seq->input].ids.len, choice->ids.len, 0, true, &out);
  } else {
    mob_json_put_null(&out, "usage");
  }
  mob_json_close(&out, '}');
  mob__sse_event(task, &out);
  mob_buf_free(&out);
}

static size_t prompt_tokens(const mob__task_t *task) {
  size_t total = 0;
  for (size_t i = 0; i < task->inputs.len; i++) total += task->inputs.at[i].ids.len;
  return total;
}

void mob__completion_usage_event(mob__task_t *task) {
  size_t tokens = 0;
  for (size_t i = 0; i < task->seq_count; i++) tokens += task->seqs[i].choice.ids.len;
  mob_buf_t out = {0};
  mob__reply_open(task, "text_completion", &out);
  mob_json_close(&out, ']');
  mob__reply_usage(prompt_tokens(task), tokens, 0, false, &out);
  mob_json_close(&out, '}');
  mob__sse_event(task, &out);
  mob_buf_free(&out);
}

void mob__completion_reply(mob__task_t *task, mob_buf_t *out) {
  uint32_t n = task->inputs.at[0].sampling.n;
  mob__seq_t **chosen = MOB_NEW_ARRAY(mob__seq_t *, n);
  size_t tokens = 0;
  mob__reply_open(task, "text_completion", out);
  for (size_t p = 0; p < task->inputs.len; p++) {
    mob__chosen(task, p, chosen);
    const mob__seq_t *first =
        &task->seqs[p * (task->seq_count / task->inputs.len)]; // has the prompt's logprobs
    for (uint32_t i = 0; i < n; i++) {
      mob__seq_t *seq = chosen[i];
      mob_choice_t *choice = &seq->choice;
      tokens += choice->ids.len;
      mob_json_open(out, '{');
      mob_json_put_int(out, "index", (int64_t)(p * n + i));
      put_text(task, seq, task->request.echo, 0, choice->text.len, out);
      mob_json_key(out, "logprobs");
      if (task->request.logprobs != MOB_UNSET) {
        size_t offset = 0;
        mob__completion_logprobs(task, choice, 0, echo_only(task) ? 0 : choice->tokens.len,
                                 task->request.echo ? first : NULL, &offset, out);
      } else {
        mob_json_null(out);
      }
      mob_json_put_text(out, "finish_reason", mob__finish_name(choice->finish));
      mob__reply_stop_reason(choice, out);
      mob_json_key(out, "prompt_logprobs");
      mob__prompt_logprobs(task, first, out);
      if (task->request.return_token_ids) {
        mob__reply_ids("token_ids", choice->ids.at, choice->ids.len, out);
        mob__reply_ids("prompt_token_ids", task->inputs.at[p].ids.at, task->inputs.at[p].ids.len,
                       out);
      }
      mob_json_close(out, '}');
    }
  }
  mob_json_close(out, ']');
  mob__reply_usage(prompt_tokens(task), tokens, 0, true, out);
  mob_json_close(out, '}');
  free(chosen);
}
