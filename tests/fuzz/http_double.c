#include "tests/fuzz/http_double.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"
#include "runtime/base/vec.h"

struct mob_http_request {
  const mob_http_handler_t *handler;
  void *owner;
  http_double_request_t what;
  char *body; // with a NUL behind it
  void *data;
  bool begun;
  mob_buf_t stream;
};

static MOB_VEC(mob_http_request_t *) requests;
static bool not_reading;

static void end(mob_http_request_t *req) {
  size_t i = 0;
  while (i < requests.len && requests.at[i] != req) i++;
  MOB_ASSERT(i < requests.len);
  mob_vec_remove(&requests, i);
  mob_buf_free(&req->stream);
  free(req->body);
  free(req);
}

void http_double_ask(const mob_http_handler_t *handler, void *owner,
                     const http_double_request_t *what) {
  mob_http_request_t *req = MOB_NEW(mob_http_request_t);
  req->handler = handler;
  req->owner = owner;
  req->what = *what;
  req->body = mob_malloc(what->len + 1);
  if (what->len) memcpy(req->body, what->body, what->len);
  req->body[what->len] = 0;
  *mob_vec_push(&requests) = req;
  handler->on_request(owner, req);
}

size_t http_double_open(void) {
  return requests.len;
}

void http_double_leave(size_t which) {
  if (requests.len == 0) return;
  mob_http_request_t *req = requests.at[which % requests.len];
  req->handler->on_gone(req->owner, req);
  end(req);
}

void http_double_stop_reading(bool stop) {
  not_reading = stop;
}

// ------------------------------------------------------------------------------------ the request

const char *mob_http_method(const mob_http_request_t *req) {
  return req->what.method;
}
const char *mob_http_path(const mob_http_request_t *req) {
  return req->what.path;
}
const char *mob_http_query(const mob_http_request_t *req) {
  return req->what.query;
}
const char *mob_http_header(const mob_http_request_t *req, const char *name) {
  for (size_t i = 0; i < req->what.header_count; i++)
    if (strcasecmp(req->what.headers[i].name, name) == 0) return req->what.headers[i].value;
  return NULL;
}
const char *mob_http_body(const mob_http_request_t *req, size_t *len) {
  *len = req->what.len;
  return req->body;
}
const char *mob_http_peer(const mob_http_request_t *req) {
  (void)req;
  return "127.0.0.1:1";
}
void mob_http_set_data(mob_http_request_t *req, void *data) {
  req->data = data;
}
void *mob_http_data(const mob_http_request_t *req) {
  return req->data;
}
const char *mob_http_status_text(int status) {
  return status == 200 ? "OK" : "?";
}

// -------------------------------------------------------------------------------------- the reply

static void check_json(const char *text, size_t len) {
  json_error_t error;
  json_t *json = json_loadb(text, len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
  if (!json) fprintf(stderr, "%s: %.*s\n", error.text, (int)len, text);
  MOB_ASSERT(json != NULL);
  json_decref(json);
}

static void check_fields(const mob_http_field_t *fields, size_t count) {
  for (size_t i = 0; i < count; i++)
    MOB_ASSERT(!strpbrk(fields[i].value, "\r\n") && fields[i].name[0]);
}

void mob_http_reply(mob_http_request_t *req, int status, const char *content_type, const void *body,
                    size_t len, const mob_http_field_t *extra, size_t extra_count) {
  MOB_ASSERT(!req->begun && status >= 200 && status < 600);
  check_fields(extra, extra_count);
  if (content_type && strncmp(content_type, "application/json", 16) == 0) check_json(body, len);
  end(req);
}

void mob_http_begin(mob_http_request_t *req, int status, const char *content_type,
                    const mob_http_field_t *extra, size_t extra_count) {
  MOB_ASSERT(!req->begun && status == 200 && strncmp(content_type, "text/event-stream", 17) == 0);
  check_fields(extra, extra_count);
  req->begun = true;
}

void mob_http_write(mob_http_request_t *req, const void *data, size_t len) {
  MOB_ASSERT(req->begun);
  mob_buf_append(&req->stream, data, len);
}

// Every event is `data: JSON`, and the last one `data: [DONE]`.
static void check_events(mob_buf_t *stream) {
  const char *at = mob_buf_cstr(stream), *done = "data: [DONE]\n\n";
  while (strcmp(at, done) != 0) {
    const char *next = strstr(at, "\n\n");
    MOB_ASSERT(strncmp(at, "data: ", 6) == 0 && next);
    check_json(at + 6, (size_t)(next - at - 6));
    at = next + 2;
  }
}

void mob_http_end(mob_http_request_t *req) {
  MOB_ASSERT(req->begun);
  check_events(&req->stream);
  end(req);
}

size_t mob_http_unsent(const mob_http_request_t *req) {
  (void)req;
  return not_reading ? (size_t)1 << 30 : 0;
}
