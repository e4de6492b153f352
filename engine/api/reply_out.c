// What replies of both kinds have in common.
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"

void mob__reply_open(const mob__task_t *task, const char *object, mob_buf_t *out) {
  mob_json_open(out, '{');
  mob_json_put_text(out, "id", task->id);
  mob_json_put_text(out, "object", object);
  mob_json_put_int(out, "created", task->created);
  mob_json_put_text(out, "model", mob__served_name(task->gateway));
  mob_json_key(out, "choices");
  mob_json_open(out, '[');
}

void mob__reply_usage(size_t prompt, size_t completion, int64_t cached, bool nulls,
                      mob_buf_t *out) {
  mob_json_key(out, "usage");
  mob_json_open(out, '{');
  mob_json_put_int(out, "prompt_tokens", (int64_t)prompt);
  mob_json_put_int(out, "total_tokens", (int64_t)(prompt + completion));
  mob_json_put_int(out, "completion_tokens", (int64_t)completion);
  if (cached > 0) {
    mob_json_key(out, "prompt_tokens_details");
    mob_json_open(out, '{');
    mob_json_put_int(out, "cached_tokens", cached);
    mob_json_close(out, '}');
  } else if (nulls) {
    mob_json_put_null(out, "prompt_tokens_details");
  }
  mob_json_close(out, '}');
}

void mob__reply_stop_reason(const mob_choice_t *choice, mob_buf_t *out) {
  mob_json_key(out, "stop_reason");
  if (choice->stop_text)
    mob_json_text(out, choice->stop_text, strlen(choice->stop_text));
  else if (choice->stop_id >= 0)
    mob_json_int(out, choice->stop_id);
  else
    mob_json_null(out);
}

void mob__reply_ids(const char *key, const int32_t *ids, size_t count, mob_buf_t *out) {
  mob_json_key(out, key);
  mob_json_open(out, '[');
  for (size_t i = 0; i < count; i++) mob_json_int(out, ids[i]);
  mob_json_close(out, ']');
}

void mob__reply_new_ids(mob_choice_t *choice, mob_buf_t *out) {
  size_t count = choice->ids.len - choice->ids_sent;
  mob__reply_ids("token_ids", count ? choice->ids.at + choice->ids_sent : NULL, count, out);
  choice->ids_sent = choice->ids.len;
}
