// Routes, authentication, CORS, access log, and the small endpoints.
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "engine/api/gateway_internal.h"
#include "engine/api/json_out.h"
#include "engine/api/version.h"
#include "runtime/base/hex.h"
#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "api"
#include "runtime/base/log.h"

enum { GET = 1, POST = 2 };

typedef void (*handler_fn)(mob_gateway_t *gateway, mob_http_request_t *http);

typedef struct route {
  const char *path;
  int methods;
  handler_fn handle;
  bool docs; // left out with --disable-fastapi-docs
} route_t;

// ---------------------------------------------------------------------------------------- all
// replies

static bool listed(const json_t *array, const char *text) {
  for (size_t i = 0; i < json_array_size(array); i++) {
    const char *each = json_string_value(json_array_get(array, i));
    if (each && (strcmp(each, "*") == 0 || strcmp(each, text) == 0)) return true;
  }
  return false;
}

// Header values that come from a request go back only when they are plain text.
static bool is_plain(const char *text) {
  for (; *text; text++) {
    if ((unsigned char)*text < 0x20 || (unsigned char)*text == 0x7f) return false;
  }
  return true;
}

typedef struct common_headers {
  mob_http_field_t fields[8];
  size_t count;
  char id[33];
} common_headers_t;

static void add_header(common_headers_t *h, const char *name, const char *value) {
  h->fields[h->count++] = (mob_http_field_t){name, value};
}

static void common(const mob_gateway_t *gateway, const mob_http_request_t *http,
                   common_headers_t *h) {
  h->count = 0;
  const char *origin = mob_http_header(http, "origin");
  if (origin && is_plain(origin)) {
    bool allow_credentials = gateway->options->allow_credentials;
    bool any = gateway->all_origins && !(allow_credentials && mob_http_header(http, "cookie"));
    if (any)
      add_header(h, "access-control-allow-origin", "*");
    else if (listed(gateway->origins, origin)) {
      add_header(h, "access-control-allow-origin", origin);
      add_header(h, "vary", "Origin");
    }
    if (allow_credentials) add_header(h, "access-control-allow-credentials", "true");
  }
  if (gateway->options->request_id_headers) {
    const char *id = mob_http_header(http, "x-request-id");
    if (!id || !*id || !is_plain(id)) {
      uint8_t random[16];
      mob_random(random, sizeof random);
      id = mob_hex(random, sizeof random, h->id);
    }
    add_header(h, "x-request-id", id);
  }
}

// uvicorn's line, which log scrapers know.
static void log_access(mob_gateway_t *gateway, const mob_http_request_t *http, int status) {
  if (status >= 200 && status < 600) gateway->metrics.http_requests[status / 100]++;
  const mob_serve_options_t *o = gateway->options;
  bool wanted = strcmp(o->uvicorn_log_level, "info") == 0 ||
                strcmp(o->uvicorn_log_level, "debug") == 0 ||
                strcmp(o->uvicorn_log_level, "trace") == 0;
  if (o->disable_access_log || !wanted) return;
  mob_buf_t target = {0};
  for (const char *at = mob_http_path(http); *at; at++) {
    if ((unsigned char)*at <= 0x20 || *at == '"' || (unsigned char)*at >= 0x7f) {
      mob_buf_printf(&target, "%%%02X", (unsigned char)*at);
    } else {
      mob_buf_putc(&target, *at);
    }
  }
  const char *query = mob_http_query(http);
  printf("INFO:     %s - \"%s %s%s%s HTTP/1.1\" %d %s\n", mob_http_peer(http),
         mob_http_method(http), mob_buf_cstr(&target), *query ? "?" : "", query, status,
         mob_http_status_text(status));
  fflush(stdout);
  mob_buf_free(&target);
}

void mob__reply(mob_gateway_t *gateway, mob_http_request_t *http, int status,
                const char *content_type, const void *body, size_t len,
                const mob_http_field_t *extra, size_t extra_count) {
  common_headers_t h;
  common(gateway, http, &h);
  for (size_t i = 0; i < extra_count && h.count < MOB_LEN(h.fields); i++)
    h.fields[h.count++] = extra[i];
  log_access(gateway, http, status);
  mob_http_reply(http, status, content_type, body, len, h.fields, h.count);
}

void mob__reply_json(mob_gateway_t *gateway, mob_http_request_t *http, int status,
                     const mob_buf_t *body) {
  mob__reply(gateway, http, status, "application/json", body->data, body->len, NULL, 0);
}

void mob__begin_stream(mob_gateway_t *gateway, mob_http_request_t *http) {
  common_headers_t h;
  common(gateway, http, &h);
  log_access(gateway, http, 200);
  mob_http_begin(http, 200, "text/event-stream; charset=utf-8", h.fields, h.count);
}

static void reply_text(mob_gateway_t *gateway, mob_http_request_t *http, int status,
                       const char *type, const char *text) {
  mob__reply(gateway, http, status, type, text, strlen(text), NULL, 0);
}

const char *mob__served_name(const mob_gateway_t *gateway) {
  const mob_serve_options_t *o = gateway->options;
  return o->served_names.len ? o->served_names.at[0] : o->model;
}

// ------------------------------------------------------------------------------------ small
// endpoints

static void on_health(mob_gateway_t *gateway, mob_http_request_t *http) {
  if (gateway->lost)
    mob__reply_lost(gateway, http);
  else
    mob__reply(gateway, http, 200, NULL, NULL, 0, NULL, 0);
}

static void on_version(mob_gateway_t *gateway, mob_http_request_t *http) {
  reply_text(gateway, http, 200, "application/json", "{\"version\":\"" MOB_VLLM_VERSION "\"}");
}

static void put_permission(mob_buf_t *out, int64_t created) {
  uint8_t random[16];
  char hex[33], id[48];
  mob_random(random, sizeof random);
  snprintf(id, sizeof id, "modelperm-%s", mob_hex(random, sizeof random, hex));
  mob_json_open(out, '{');
  mob_json_put_text(out, "id", id);
  mob_json_put_text(out, "object", "model_permission");
  mob_json_put_int(out, "created", created);
  mob_json_put_bool(out, "allow_create_engine", false);
  mob_json_put_bool(out, "allow_sampling", true);
  mob_json_put_bool(out, "allow_logprobs", true);
  mob_json_put_bool(out, "allow_search_indices", false);
  mob_json_put_bool(out, "allow_view", true);
  mob_json_put_bool(out, "allow_fine_tuning", false);
  mob_json_put_text(out, "organization", "*");
  mob_json_put_null(out, "group");
  mob_json_put_bool(out, "is_blocking", false);
  mob_json_close(out, '}');
}

static void on_models(mob_gateway_t *gateway, mob_http_request_t *http) {
  const mob_serve_options_t *o = gateway->options;
  size_t count = o->served_names.len ? o->served_names.len : 1;
  mob_buf_t out = {0};
  mob_json_open(&out, '{');
  mob_json_put_text(&out, "object", "list");
  mob_json_key(&out, "data");
  mob_json_open(&out, '[');
  for (size_t i = 0; i < count; i++) {
    mob_json_open(&out, '{');
    mob_json_put_text(&out, "id", o->served_names.len ? o->served_names.at[i] : o->model);
    mob_json_put_text(&out, "object", "model");
    mob_json_put_int(&out, "created", gateway->created);
    mob_json_put_text(&out, "owned_by", "vllm");
    mob_json_put_text(&out, "root", o->model);
    mob_json_put_null(&out, "parent");
    mob_json_put_int(&out, "max_model_len", gateway->limits.max_len);
    mob_json_key(&out, "permission");
    mob_json_open(&out, '[');
    put_permission(&out, gateway->created);
    mob_json_close(&out, ']');
    mob_json_close(&out, '}');
  }
  mob_json_close(&out, ']');
  mob_json_close(&out, '}');
  mob__reply_json(gateway, http, 200, &out);
  mob_buf_free(&out);
}

static void on_metrics(mob_gateway_t *gateway, mob_http_request_t *http) {
  mob_buf_t out = {0};
  mob__metrics_write(&gateway->metrics, mob__served_name(gateway), gateway->engine,
                     gateway->options->memory_share, gateway->prefix_cache, &out);
  if (gateway->pods) mob_pods_write(gateway->pods, &out);
  mob__reply(gateway, http, 200, "text/plain; version=0.0.4; charset=utf-8", out.data, out.len,
             NULL, 0);
  mob_buf_free(&out);
}

static void on_generate(mob_gateway_t *gateway, mob_http_request_t *http, mob_api_kind_t kind) {
  if (gateway->lost)
    mob__reply_lost(gateway, http);
  else
    mob__task_start(gateway, http, kind);
}

static void on_chat(mob_gateway_t *g, mob_http_request_t *http) {
  on_generate(g, http, MOB_API_CHAT);
}
static void on_completion(mob_gateway_t *g, mob_http_request_t *http) {
  on_generate(g, http, MOB_API_COMPLETION);
}
static void on_tokenize(mob_gateway_t *g, mob_http_request_t *http) {
  mob__task_start(g, http, MOB_API_TOKENIZE);
}
static void on_detokenize(mob_gateway_t *g, mob_http_request_t *http) {
  mob__task_start(g, http, MOB_API_DETOKENIZE);
}

// SageMaker's one path for everything: a chat when there are messages.
static void on_invocations(mob_gateway_t *gateway, mob_http_request_t *http) {
  size_t len;
  const char *body = mob_http_body(http, &len);
  json_t *json = json_loadb(body, len, 0, NULL);
  bool chat = json_object_get(json, "messages") != NULL;
  json_decref(json);
  on_generate(gateway, http, chat ? MOB_API_CHAT : MOB_API_COMPLETION);
}

static void refuse_api(mob_gateway_t *gateway, mob_http_request_t *http, const char *api) {
  char *message = mob_sprintf("The model does not support %s API", api);
  mob__reply_error(gateway, http, 400, "BadRequestError", message);
  free(message);
}

static void on_embeddings(mob_gateway_t *g, mob_http_request_t *http) {
  refuse_api(g, http, "Embeddings");
}
static void on_pooling(mob_gateway_t *g, mob_http_request_t *http) {
  refuse_api(g, http, "Pooling");
}
static void on_score(mob_gateway_t *g, mob_http_request_t *http) {
  refuse_api(g, http, "Score");
}
static void on_rerank(mob_gateway_t *g, mob_http_request_t *http) {
  refuse_api(g, http, "Rerank (Score)");
}

static void on_openapi(mob_gateway_t *gateway, mob_http_request_t *http) {
  mob_buf_t out = {0};
  mob__openapi(gateway, &out);
  mob__reply_json(gateway, http, 200, &out);
  mob_buf_free(&out);
}

static void on_docs(mob_gateway_t *gateway, mob_http_request_t *http);

static const route_t routes[] = {
    {"/openapi.json", GET, on_openapi, true},
    {"/docs", GET, on_docs, true},
    {"/redoc", GET, on_docs, true},
    {"/health", GET, on_health, false},
    {"/ping", GET | POST, on_health, false},
    {"/tokenize", POST, on_tokenize, false},
    {"/detokenize", POST, on_detokenize, false},
    {"/v1/models", GET, on_models, false},
    {"/version", GET, on_version, false},
    {"/v1/chat/completions", POST, on_chat, false},
    {"/v1/completions", POST, on_completion, false},
    {"/v1/embeddings", POST, on_embeddings, false},
    {"/pooling", POST, on_pooling, false},
    {"/score", POST, on_score, false},
    {"/v1/score", POST, on_score, false},
    {"/rerank", POST, on_rerank, false},
    {"/v1/rerank", POST, on_rerank, false},
    {"/v2/rerank", POST, on_rerank, false},
    {"/invocations", POST, on_invocations, false},
    {"/metrics", GET, on_metrics, false},
};

static const char *method_names(int methods) {
  return methods == (GET | POST) ? "GET, POST" : methods == GET ? "GET" : "POST";
}

static void on_docs(mob_gateway_t *gateway, mob_http_request_t *http) {
  mob_buf_t out = {0};
  mob_buf_puts(
      &out,
      "<!DOCTYPE html><html><head><meta charset=\"utf-8\"><title>API</title></head><body>"
      "<h1>Routes</h1><p>The schema is at <a href=\"openapi.json\">openapi.json</a>.</p><ul>");
  for (size_t i = 0; i < MOB_LEN(routes); i++) {
    mob_buf_printf(&out, "<li><code>%s %s</code></li>", method_names(routes[i].methods),
                   routes[i].path);
  }
  mob_buf_puts(&out, "</ul></body></html>");
  mob__reply(gateway, http, 200, "text/html; charset=utf-8", out.data, out.len, NULL, 0);
  mob_buf_free(&out);
}

void mob_gateway_log_routes(const mob_gateway_t *gateway) {
  MOB_INFO("Available routes are:");
  for (size_t i = 0; i < MOB_LEN(routes); i++) {
    if (routes[i].docs && gateway->options->disable_docs) continue;
    MOB_INFO("Route: %s, Methods: %s", routes[i].path, method_names(routes[i].methods));
  }
}

// ------------------------------------------------------------------------------------------
// dispatch

static void on_preflight(mob_gateway_t *gateway, mob_http_request_t *http, const char *origin,
                         const char *method) {
  const char *asked = mob_http_header(http, "access-control-request-headers");
  bool origin_ok = listed(gateway->origins, origin), method_ok = listed(gateway->methods, method);
  mob_buf_t methods = {0}, headers = {0};
  if (listed(gateway->methods, "*"))
    mob_buf_puts(&methods, "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT");
  else {
    for (size_t i = 0; i < json_array_size(gateway->methods); i++) {
      mob_buf_printf(&methods, "%s%s", i ? ", " : "",
                     json_string_value(json_array_get(gateway->methods, i)));
    }
  }
  if (gateway->all_headers && asked && is_plain(asked))
    mob_buf_puts(&headers, asked);
  else {
    mob_buf_puts(&headers, "Accept, Accept-Language, Content-Language, Content-Type");
    for (size_t i = 0; !gateway->all_headers && i < json_array_size(gateway->headers); i++) {
      mob_buf_printf(&headers, ", %s", json_string_value(json_array_get(gateway->headers, i)));
    }
  }
  mob_http_field_t extra[] = {{"access-control-allow-methods", mob_buf_cstr(&methods)},
                              {"access-control-max-age", "600"},
                              {"access-control-allow-headers", mob_buf_cstr(&headers)}};
  const char *text = !origin_ok   ? "Disallowed CORS origin"
                     : !method_ok ? "Disallowed CORS method"
                                  : "OK";
  mob__reply(gateway, http, origin_ok && method_ok ? 200 : 400, "text/plain; charset=utf-8", text,
             strlen(text), extra, MOB_LEN(extra));
  mob_buf_free(&methods);
  mob_buf_free(&headers);
}

// Compares without telling by its duration how much was right.
static bool same_secret(const char *given, const char *prefix, const char *key) {
  size_t skip = strlen(prefix), len = strlen(key);
  if (!given || strncmp(given, prefix, skip) != 0) return false;
  size_t given_len = strlen(given + skip);
  unsigned char diff = given_len != len;
  for (size_t i = 0; i < given_len; i++)
    diff |= (unsigned char)(given[skip + i] ^ (len ? key[i % len] : 0));
  return diff == 0;
}

static const route_t *find_route(const mob_gateway_t *gateway, const char *path, size_t len) {
  for (size_t i = 0; i < MOB_LEN(routes); i++) {
    if (routes[i].docs && gateway->options->disable_docs) continue;
    bool any = routes[i].handle == on_metrics &&
               strncmp(path, "/metrics", 8) == 0; // any suffix, as the original
    if (any || (strncmp(routes[i].path, path, len) == 0 && !routes[i].path[len])) return &routes[i];
  }
  return NULL;
}

static void on_request(void *owner, mob_http_request_t *http) {
  mob_gateway_t *gateway = owner;
  const char *method = mob_http_method(http), *path = mob_http_path(http);
  const char *origin = mob_http_header(http, "origin");
  const char *wanted = mob_http_header(http, "access-control-request-method");
  bool options = strcmp(method, "OPTIONS") == 0;
  if (options && origin && wanted) {
    on_preflight(gateway, http, origin, wanted);
    return;
  }
  const char *root = gateway->options->root_path;
  size_t root_len = root ? strlen(root) : 0;
  while (root_len > 0 && root[root_len - 1] == '/') root_len--;
  if (root_len && strncmp(path, root, root_len) == 0 && (path[root_len] == '/' || !path[root_len]))
    path += root_len;
  if (gateway->api_key && !options && strncmp(path, "/v1", 3) == 0 &&
      !same_secret(mob_http_header(http, "authorization"), "Bearer ", gateway->api_key)) {
    reply_text(gateway, http, 401, "application/json", "{\"error\":\"Unauthorized\"}");
    return;
  }
  const route_t *route = find_route(gateway, path, strlen(path));
  if (!route) {
    size_t len = strlen(path);
    if (len > 1 && path[len - 1] == '/' &&
        find_route(gateway, path, len - 1)) { // as Starlette does
      mob_http_field_t location = {"location", find_route(gateway, path, len - 1)->path};
      mob__reply(gateway, http, 307, NULL, NULL, 0, &location, 1);
      return;
    }
    reply_text(gateway, http, 404, "application/json", "{\"detail\":\"Not Found\"}");
    return;
  }
  int bit = strcmp(method, "GET") == 0 ? GET : strcmp(method, "POST") == 0 ? POST : 0;
  if (!(route->methods & bit)) {
    mob_http_field_t allow = {"allow", method_names(route->methods)};
    const char *body = "{\"detail\":\"Method Not Allowed\"}";
    mob__reply(gateway, http, 405, "application/json", body, strlen(body), &allow, 1);
    return;
  }
  route->handle(gateway, http);
}

static void on_gone(void *owner, mob_http_request_t *http) {
  (void)owner;
  mob__task_t *task = mob_http_data(http);
  if (task) mob__task_gone(task);
}

const mob_http_handler_t mob_gateway_handler = {on_request, on_gone};
