// Log probabilities in the shapes of the API.
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"
#include "runtime/base/utf8.h"

static double floored(float logprob) {
  return logprob > -9999.0f ? (double)logprob : -9999.0;
}

bool mob__tokens_as_ids(const mob__task_t *task) {
  return task->gateway->options->tokens_as_ids || task->request.tokens_as_ids ||
         !task->gateway->prompter.tokenizer;
}

void mob__token_text(const mob__task_t *task, int32_t token, mob_buf_t *out) {
  const mob_tokenizer_t *tokenizer = task->gateway->prompter.tokenizer;
  if (mob__tokens_as_ids(task))
    mob_buf_printf(out, "token_id:%d", token);
  else if (mob_tokenizer_decode(tokenizer, &token, 1, false, out) != MOB_OK)
    mob_buf_printf(out, "token_id:%d", token);
}

// token, logprob and bytes; the bytes are the token's own, so that those of several tokens join to
// whole characters.
static void put_chat_token(const mob__task_t *task, const mob_token_logprob_t *lp, mob_buf_t *out) {
  mob_buf_t text = {0};
  mob__token_text(task, lp->token, &text);
  mob_json_key(out, "token");
  mob_json_text(out, (char *)text.data, text.len);
  mob_json_key(out, "logprob");
  mob_json_double(out, floored(lp->logprob));
  mob_json_key(out, "bytes");
  size_t len = 0;
  const mob_tokenizer_t *tokenizer = task->gateway->prompter.tokenizer;
  const char *bytes = tokenizer ? mob_tokenizer_bytes_of(tokenizer, lp->token, &len) : NULL;
  if (bytes) {
    mob_json_open(out, '[');
    for (size_t i = 0; i < len; i++) mob_json_int(out, (unsigned char)bytes[i]);
    mob_json_close(out, ']');
  } else {
    mob_json_null(out);
  }
  mob_buf_free(&text);
}

void mob__chat_logprobs(const mob__task_t *task, const mob_choice_t *choice, size_t from, size_t to,
                        mob_buf_t *out) {
  mob_json_open(out, '{');
  mob_json_key(out, "content");
  mob_json_open(out, '[');
  for (size_t i = from; i < to && i < choice->tokens.len; i++) {
    const mob_choice_token_t *token = &choice->tokens.at[i];
    mob_json_open(out, '{');
    put_chat_token(task, &token->chosen, out);
    mob_json_key(out, "top_logprobs");
    mob_json_open(out, '[');
    for (uint32_t k = 0; k < token->top_count && k < (uint64_t)task->request.top_logprobs; k++) {
      mob_json_open(out, '{');
      put_chat_token(task, &token->top[k], out);
      mob_json_close(out, '}');
    }
    mob_json_close(out, ']');
    mob_json_close(out, '}');
  }
  mob_json_close(out, ']');
  mob_json_close(out, '}');
}

// ----------------------------------------------------------------------------------------
// completions

typedef struct columns { // of one logprobs object, filled side by side
  const mob__task_t *task;
  mob_buf_t offsets, logprobs, tokens, top;
  size_t offset;
} columns_t;

static void add_top(columns_t *c, const mob_token_logprob_t *lp, mob_buf_t *seen) {
  mob_buf_t text = {0}, quoted = {0};
  mob__token_text(c->task, lp->token, &text);
  mob_json_text(&quoted, (char *)text.data, text.len);
  mob_buf_puts(&quoted, ":");
  bool again = seen->len && memmem(seen->data, seen->len, quoted.data,
                                   quoted.len); // two tokens may look the same
  if (!again) {
    mob_buf_append(seen, quoted.data, quoted.len);
    mob_json_raw(&c->top, (char *)quoted.data, quoted.len);
    mob_json_double(&c->top, floored(lp->logprob));
  }
  mob_buf_free(&text);
  mob_buf_free(&quoted);
}

// `chosen` NULL: the first token of a prompt, which has no probability.
static void add_token(columns_t *c, int32_t token, const mob_token_logprob_t *chosen,
                      const mob_token_logprob_t *top, uint32_t top_count) {
  mob_buf_t text = {0}, seen = {0};
  mob__token_text(c->task, token, &text);
  mob_json_int(&c->offsets, (int64_t)c->offset);
  c->offset += mob_utf8_count((char *)text.data, text.len);
  mob_json_text(&c->tokens, (char *)text.data, text.len);
  if (chosen) {
    mob_json_double(&c->logprobs, floored(chosen->logprob));
    mob_json_open(&c->top, '{');
    add_top(c, chosen, &seen); // the chosen one first, whether it is among the best or not
    for (uint32_t k = 0; k < top_count && k < (uint64_t)c->task->request.logprobs; k++) {
      if (top[k].token != chosen->token) add_top(c, &top[k], &seen);
    }
    mob_json_close(&c->top, '}');
  } else {
    mob_json_null(&c->logprobs);
    mob_json_null(&c->top);
  }
  mob_buf_free(&text);
  mob_buf_free(&seen);
}

static void put_column(mob_buf_t *out, const char *name, mob_buf_t *column) {
  mob_json_key(out, name);
  mob_json_open(out, '[');
  if (column->len) mob_json_raw(out, (char *)column->data, column->len);
  mob_json_close(out, ']');
  mob_buf_free(column);
}

void mob__completion_logprobs(const mob__task_t *task, const mob_choice_t *choice, size_t from,
                              size_t to, const mob__seq_t *prompt, size_t *text_offset,
                              mob_buf_t *out) {
  columns_t c = {.task = task, .offset = *text_offset};
  if (prompt) {
    const mob_ids_t *ids = &task->inputs.at[prompt->input].ids;
    for (size_t i = 0, k = 0; i < ids->len; i++) {
      const mob_prompt_logprob_t *lp = k < prompt->prompt.len && prompt->prompt.at[k].position == i
                                           ? &prompt->prompt.at[k++]
                                           : NULL;
      add_token(&c, ids->at[i], lp ? &lp->chosen : NULL, lp ? lp->top : NULL,
                lp ? lp->top_count : 0);
    }
  }
  for (size_t i = from; i < to && i < choice->tokens.len; i++) {
    const mob_choice_token_t *token = &choice->tokens.at[i];
    add_token(&c, token->token, &token->chosen, token->top, token->top_count);
  }
  *text_offset = c.offset;
  mob_json_open(out, '{');
  put_column(out, "text_offset", &c.offsets);
  put_column(out, "token_logprobs", &c.logprobs);
  put_column(out, "tokens", &c.tokens);
  put_column(out, "top_logprobs", &c.top);
  mob_json_close(out, '}');
}

// ----------------------------------------------------------------------------------------
// prompt_logprobs

static void put_prompt_token(const mob__task_t *task, const mob_token_logprob_t *lp,
                             mob_buf_t *out) {
  char key[16];
  snprintf(key, sizeof key, "%d", lp->token);
  mob_buf_t text = {0};
  mob__token_text(task, lp->token, &text);
  mob_json_key(out, key);
  mob_json_open(out, '{');
  mob_json_key(out, "logprob");
  mob_json_double(out, floored(lp->logprob));
  mob_json_put_int(out, "rank", lp->rank);
  mob_json_key(out, "decoded_token");
  mob_json_text(out, (char *)text.data, text.len);
  mob_json_close(out, '}');
  mob_buf_free(&text);
}

void mob__prompt_logprobs(const mob__task_t *task, const mob__seq_t *seq, mob_buf_t *out) {
  const mob__input_t *input = &task->inputs.at[seq->input];
  if (input->sampling.sampling.prompt_logprobs < 0) {
    mob_json_null(out);
    return;
  }
  mob_json_open(out, '[');
  for (size_t i = 0, k = 0; i < input->ids.len; i++) {
    if (k >= seq->prompt.len || seq->prompt.at[k].position != i) {
      mob_json_null(out);
      continue;
    }
    const mob_prompt_logprob_t *lp = &seq->prompt.at[k++];
    mob_json_open(out, '{');
    put_prompt_token(task, &lp->chosen, out);
    for (uint32_t t = 0; t < lp->top_count; t++) {
      if (lp->top[t].token != lp->chosen.token) put_prompt_token(task, &lp->top[t], out);
    }
    mob_json_close(out, '}');
  }
  mob_json_close(out, ']');
}
