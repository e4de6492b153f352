// Error bodies: vLLM 0.7.2's flat shape.
#include <stdlib.h>
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"
#include "runtime/base/utf8.h"

// Messages have a bounded length and may end inside a character.
static size_t whole(const char *message) {
  return mob_utf8_valid_prefix(message, strlen(message));
}

void mob__error_body(mob_buf_t *out, const char *type, int code, const char *message) {
  mob_json_open(out, '{');
  mob_json_put_text(out, "object", "error");
  mob_json_key(out, "message");
  mob_json_text(out, message, whole(message));
  mob_json_put_text(out, "type", type);
  mob_json_put_null(out, "param");
  mob_json_put_int(out, "code", code);
  mob_json_close(out, '}');
}

void mob__error_event(mob_buf_t *out, const char *type, int code, const char *message) {
  mob_buf_puts(out, "data: {\"error\": {\"object\": \"error\", \"message\": \"");
  mob_json_ascii(out, message, whole(message));
  mob_buf_printf(out, "\", \"type\": \"%s\", \"param\": null, \"code\": %d}}\n\n", type, code);
}

void mob__reply_error(mob_gateway_t *gateway, mob_http_request_t *http, int code, const char *type,
                      const char *message) {
  mob_buf_t body = {0};
  mob__error_body(&body, type, code, message);
  mob__reply_json(gateway, http, code, &body);
  mob_buf_free(&body);
}

void mob__reply_lost(mob_gateway_t *gateway, mob_http_request_t *http) {
  static const mob_http_field_t retry = {"retry-after", "10"};
  mob_buf_t body = {0};
  mob__error_body(&body, "group_lost", 503,
                  gateway->lost_why ? gateway->lost_why : "the group is not ready");
  mob__reply(gateway, http, 503, "application/json", body.data, body.len, &retry, 1);
  mob_buf_free(&body);
}
