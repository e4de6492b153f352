// Requests out of bytes. http-parser keeps the grammar; limits and the request's storage are here.
#include <http_parser.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/base/mem.h"
#include "runtime/http/internal.h"

struct mob__parser {
  http_parser hp;
  http_parser_settings settings;
  size_t max_header, max_body;
  size_t header_bytes;
  mob_http_request_t *req; // being built
  size_t target_len;
  bool in_value;
  bool in_body; // the head is complete; fields that follow are trailers
  bool whole;
  int bad; // status to answer with
  void (*on_continue)(void *arg);
  void *arg;
};

static int refuse(mob__parser_t *p, int status) {
  p->bad = status;
  return -1;
}

static int count_header(mob__parser_t *p, size_t len) {
  p->header_bytes += len;
  return p->header_bytes > p->max_header ? refuse(p, 431) : 0;
}

static int on_begin(http_parser *hp) {
  mob__parser_t *p = hp->data;
  p->req = MOB_NEW(mob_http_request_t);
  p->header_bytes = p->target_len = 0;
  p->in_value = p->in_body = false;
  return 0;
}

static int on_url(http_parser *hp, const char *at, size_t len) {
  mob__parser_t *p = hp->data;
  mob_buf_append(&p->req->head, at, len);
  p->target_len += len;
  return count_header(p, len);
}

// Names and values arrive in pieces. Every text in `head` ends with a NUL as soon as the next one
// begins. Trailers of a chunked body are counted and dropped: nothing here knows a field that may
// come so late (RFC 9110, 6.5.1), and `head` must not move under req->query.
static int on_field(http_parser *hp, const char *at, size_t len) {
  mob__parser_t *p = hp->data;
  mob_http_request_t *req = p->req;
  if (p->in_body) return count_header(p, len);
  if (p->in_value || req->fields.len == 0) {
    if (req->fields.len == MOB__MAX_FIELDS) return refuse(p, 431);
    mob_buf_putc(&req->head, '\0');
    mob_vec_push(&req->fields)->name = req->head.len;
    p->in_value = false;
  }
  mob_buf_append(&req->head, at, len);
  return count_header(p, len);
}

static int on_value(http_parser *hp, const char *at, size_t len) {
  mob__parser_t *p = hp->data;
  mob_http_request_t *req = p->req;
  if (p->in_body) return count_header(p, len);
  if (!p->in_value) {
    mob_buf_putc(&req->head, '\0');
    req->fields.at[req->fields.len - 1].value = req->head.len;
    p->in_value = true;
    p->header_bytes += 4; // ": " and the line's end
  }
  mob_buf_append(&req->head, at, len);
  return count_header(p, len);
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// Percent-decodes in place; false for an encoded NUL.
static bool decode_path(char *path) {
  char *to = path;
  for (const char *from = path; *from; from++, to++) {
    *to = *from;
    if (*from != '%') continue;
    int hi = hex_digit(from[1]);
    int lo = hi < 0 ? -1 : hex_digit(from[2]);
    if (lo < 0) continue;
    *to = (char)(hi << 4 | lo);
    if (*to == '\0') return false;
    from += 2;
  }
  *to = '\0';
  return true;
}

static bool split_target(mob__parser_t *p) {
  mob_http_request_t *req = p->req;
  const char *target = (const char *)req->head.data;
  size_t len = p->target_len;
  struct http_parser_url url;
  http_parser_url_init(&url);
  req->query = "";
  if (len == 1 && target[0] == '*') { // OPTIONS *
    req->path = mob_strdup("*");
    return true;
  }
  if (http_parser_parse_url(target, len, 0, &url) != 0) return false;
  if (url.field_set & (1u << UF_PATH)) {
    req->path = mob_strndup(target + url.field_data[UF_PATH].off, url.field_data[UF_PATH].len);
  } else {
    req->path = mob_strdup("/");
  }
  if (!decode_path(req->path)) return false;
  if (url.field_set & (1u << UF_QUERY)) {
    size_t off = req->head.len; // a copy that ends with a NUL, behind everything else
    mob_buf_reserve(&req->head,
                    (size_t)url.field_data[UF_QUERY].len + 1); // `target` is stale from here
    mob_buf_append(&req->head, req->head.data + url.field_data[UF_QUERY].off,
                   url.field_data[UF_QUERY].len);
    mob_buf_putc(&req->head, '\0');
    req->query = (const char *)req->head.data + off;
  }
  return true;
}

static int on_headers(http_parser *hp) {
  mob__parser_t *p = hp->data;
  mob_http_request_t *req = p->req;
  p->in_body = true;
  mob_buf_putc(&req->head, '\0');
  req->method = http_method_str((enum http_method)hp->method);
  if (hp->http_major != 1) return refuse(p, 505);
  req->http10 = hp->http_minor == 0;
  if (hp->method == HTTP_CONNECT || !split_target(p)) return refuse(p, 400);
  if (!req->http10 && !mob_http_header(req, "host")) return refuse(p, 400);
  hp->upgrade = 0; // "Upgrade: h2c" and the like are an offer, which we do not take
  bool sized = hp->content_length != UINT64_MAX;
  if (sized && hp->content_length > p->max_body) return refuse(p, 413);
  const char *expect = mob_http_header(req, "expect");
  if (expect && !req->http10) {
    if (strcasecmp(expect, "100-continue") != 0) return refuse(p, 417);
    if ((sized && hp->content_length > 0) || hp->flags & F_CHUNKED) p->on_continue(p->arg);
  }
  return 0;
}

static int on_body(http_parser *hp, const char *at, size_t len) {
  mob__parser_t *p = hp->data;
  if (p->req->body.len + len > p->max_body) return refuse(p, 413);
  mob_buf_append(&p->req->body, at, len);
  return 0;
}

static int on_complete(http_parser *hp) {
  mob__parser_t *p = hp->data;
  p->req->keep_alive = http_should_keep_alive(hp) != 0;
  p->whole = true;
  http_parser_pause(hp, 1);
  return 0;
}

mob__parser_t *mob__parser_new(size_t max_header, size_t max_body, void (*on_continue)(void *arg),
                               void *arg) {
  mob__parser_t *p = MOB_NEW(mob__parser_t);
  http_parser_settings_init(&p->settings);
  p->settings.on_message_begin = on_begin;
  p->settings.on_url = on_url;
  p->settings.on_header_field = on_field;
  p->settings.on_header_value = on_value;
  p->settings.on_headers_complete = on_headers;
  p->settings.on_body = on_body;
  p->settings.on_message_complete = on_complete;
  p->max_header = max_header;
  p->max_body = max_body;
  p->on_continue = on_continue;
  p->arg = arg;
  // http-parser's own limit is one for the process and counts what never reaches a callback
  // (blanks, line ends); ours above is exact for each server.
  static uint32_t widest;
  uint32_t wanted = max_header > UINT32_MAX / 2 ? UINT32_MAX : (uint32_t)(2 * max_header + 1024);
  if (wanted > widest) http_parser_set_max_header_size(widest = wanted);
  http_parser_init(&p->hp, HTTP_REQUEST);
  p->hp.data = p;
  return p;
}

void mob__parser_free(mob__parser_t *p) {
  if (!p) return;
  if (p->req) mob__request_free(p->req);
  free(p);
}

bool mob__parser_idle(const mob__parser_t *p) {
  return p->req == NULL;
}

mob__parsed_t mob__parser_feed(mob__parser_t *p, const char *data, size_t len, size_t *used,
                               int *status) {
  *used = http_parser_execute(&p->hp, &p->settings, data, len);
  if (p->whole) return MOB__PARSE_WHOLE;
  enum http_errno err = HTTP_PARSER_ERRNO(&p->hp);
  if (err == HPE_OK) return MOB__PARSE_MORE;
  *status = p->bad ? p->bad : err == HPE_HEADER_OVERFLOW ? 431 : 400;
  return MOB__PARSE_BAD;
}

mob_http_request_t *mob__parser_take(mob__parser_t *p) {
  MOB_ASSERT(p->whole);
  mob_http_request_t *req = p->req;
  p->req = NULL;
  p->whole = false;
  http_parser_init(&p->hp, HTTP_REQUEST);
  mob_buf_cstr(&req->body);
  return req;
}

void mob__request_free(mob_http_request_t *req) {
  mob_buf_free(&req->head);
  mob_buf_free(&req->body);
  mob_vec_free(&req->fields);
  free(req->path);
  free(req);
}

const char *mob_http_header(const mob_http_request_t *req, const char *name) {
  const char *head = (const char *)req->head.data;
  for (size_t i = 0; i < req->fields.len; i++) {
    const mob__header_t *field = &req->fields.at[i];
    if (strcasecmp(head + field->name, name) == 0) return field->value ? head + field->value : "";
  }
  return NULL;
}

const char *mob_http_status_text(int status) {
  switch (status) {
#define XX(num, name, text)                                                                        \
  case num:                                                                                        \
    return #text;
    HTTP_STATUS_MAP(XX)
#undef XX
  default:
    return "Unknown";
  }
}
