// /openapi.json, made from the tables that the server itself works with.
#include <string.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"
#include "engine/api/version.h"

static void put_type(mob_buf_t *out, mob_field_kind_t kind) {
  static const char *const types[] = {
      [MOB_FIELD_INT] = "{\"type\":\"integer\"}",
      [MOB_FIELD_FLOAT] = "{\"type\":\"number\"}",
      [MOB_FIELD_BOOL] = "{\"type\":\"boolean\"}",
      [MOB_FIELD_TEXT] = "{\"type\":\"string\"}",
      [MOB_FIELD_TEXTS] = ("{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"array\",\"items\":{"
                           "\"type\":\"string\"}}]}"),
      [MOB_FIELD_IDS] = "{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}",
      [MOB_FIELD_OBJECT] = "{\"type\":\"object\"}",
      [MOB_FIELD_ARRAY] = "{\"type\":\"array\",\"items\":{}}",
      [MOB_FIELD_ANY] = "{}",
  };
  mob_json_raw(out, types[kind], strlen(types[kind]));
}

static void put_schema(mob_buf_t *out, const char *name, mob_api_kind_t kind) {
  size_t count;
  const mob_field_t *fields = mob__request_fields(kind, &count);
  mob_json_key(out, name);
  mob_json_open(out, '{');
  mob_json_put_text(out, "type", "object");
  mob_json_put_text(out, "title", name);
  mob_json_put_bool(out, "additionalProperties", true);
  mob_json_key(out, "properties");
  mob_json_open(out, '{');
  for (size_t i = 0; i < count; i++) {
    mob_json_key(out, fields[i].name);
    if (!fields[i].nullable) {
      put_type(out, fields[i].kind);
      continue;
    }
    mob_json_open(out, '{');
    mob_json_key(out, "anyOf");
    mob_json_open(out, '[');
    put_type(out, fields[i].kind);
    mob_json_raw(out, "{\"type\":\"null\"}", 15);
    mob_json_close(out, ']');
    mob_json_close(out, '}');
  }
  mob_json_close(out, '}');
  mob_json_key(out, "required");
  mob_json_open(out, '[');
  for (size_t i = 0; i < count; i++) {
    if (fields[i].required) mob_json_text(out, fields[i].name, strlen(fields[i].name));
  }
  mob_json_close(out, ']');
  mob_json_close(out, '}');
}

typedef struct operation {
  const char *path, *method, *summary, *schema; // schema of the body, or NULL
  const char *type;                             // of a 200 reply
} operation_t;

static const operation_t operations[] = {
    {"/health", "get", "200 while the whole group can serve, else 503", NULL, NULL},
    {"/ping", "get", "As /health", NULL, NULL},
    {"/tokenize", "post", "Token ids of a text or a chat", "TokenizeRequest", "application/json"},
    {"/detokenize", "post", "Text of token ids", "DetokenizeRequest", "application/json"},
    {"/v1/models", "get", "The served names", NULL, "application/json"},
    {"/version", "get", "The version", NULL, "application/json"},
    {"/v1/chat/completions", "post", "Answer a chat", "ChatCompletionRequest", "application/json"},
    {"/v1/completions", "post", "Continue a prompt", "CompletionRequest", "application/json"},
    {"/metrics", "get", "Prometheus metrics", NULL, "text/plain"},
};

static void put_reply(mob_buf_t *out, const char *status, const char *text, const char *type) {
  mob_json_key(out, status);
  mob_json_open(out, '{');
  mob_json_put_text(out, "description", text);
  if (type) {
    mob_json_key(out, "content");
    mob_json_open(out, '{');
    mob_json_key(out, type);
    mob_json_raw(out, "{\"schema\":{}}", 13);
    mob_json_close(out, '}');
  }
  mob_json_close(out, '}');
}

static void put_operation(mob_buf_t *out, const operation_t *op) {
  mob_json_key(out, op->path);
  mob_json_open(out, '{');
  mob_json_key(out, op->method);
  mob_json_open(out, '{');
  mob_json_put_text(out, "summary", op->summary);
  if (op->schema) {
    mob_json_key(out, "requestBody");
    mob_json_open(out, '{');
    mob_json_put_bool(out, "required", true);
    mob_json_key(out, "content");
    mob_buf_printf(out,
                   "{\"application/json\":{\"schema\":{\"$ref\":\"#/components/schemas/%s\"}}}",
                   op->schema);
    mob_json_close(out, '}');
  }
  mob_json_key(out, "responses");
  mob_json_open(out, '{');
  put_reply(out, "200", "Successful Response", op->type);
  if (op->schema)
    put_reply(out, "400", "The request is wrong; message says why", "application/json");
  if (op->schema) put_reply(out, "404", "The model does not exist", "application/json");
  put_reply(out, "503", "The group is lost", "application/json");
  mob_json_close(out, '}');
  mob_json_close(out, '}');
  mob_json_close(out, '}');
}

void mob__openapi(const mob_gateway_t *gateway, mob_buf_t *out) {
  (void)gateway;
  mob_json_open(out, '{');
  mob_json_put_text(out, "openapi", "3.1.0");
  mob_json_key(out, "info");
  mob_json_open(out, '{');
  mob_json_put_text(out, "title", "Mobula");
  mob_json_put_text(out, "version", MOB_VLLM_VERSION);
  mob_json_close(out, '}');
  mob_json_key(out, "paths");
  mob_json_open(out, '{');
  for (size_t i = 0; i < sizeof operations / sizeof *operations; i++)
    put_operation(out, &operations[i]);
  mob_json_close(out, '}');
  mob_json_key(out, "components");
  mob_json_open(out, '{');
  mob_json_key(out, "schemas");
  mob_json_open(out, '{');
  put_schema(out, "ChatCompletionRequest", MOB_API_CHAT);
  put_schema(out, "CompletionRequest", MOB_API_COMPLETION);
  put_schema(out, "TokenizeRequest", MOB_API_TOKENIZE);
  put_schema(out, "DetokenizeRequest", MOB_API_DETOKENIZE);
  mob_json_close(out, '}');
  mob_json_close(out, '}');
  mob_json_close(out, '}');
}
