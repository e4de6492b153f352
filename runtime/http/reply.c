// The request as the handler sees it, and replies.
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "runtime/http/internal.h"

const char *mob_http_method(const mob_http_request_t *req) {
  return req->method;
}
const char *mob_http_path(const mob_http_request_t *req) {
  return req->path;
}
const char *mob_http_query(const mob_http_request_t *req) {
  return req->query;
}
const char *mob_http_peer(const mob_http_request_t *req) {
  return req->conn->peer;
}
void mob_http_set_data(mob_http_request_t *req, void *data) {
  req->data = data;
}
void *mob_http_data(const mob_http_request_t *req) {
  return req->data;
}

const char *mob_http_body(const mob_http_request_t *req, size_t *len) {
  *len = req->body.len;
  return (const char *)req->body.data;
}

static bool is_head(const mob_http_request_t *req) {
  return strcmp(req->method, "HEAD") == 0;
}

static const char *http_date(void) {
  static time_t made;
  static char text[64];
  time_t now = time(NULL);
  if (now != made) {
    struct tm tm;
    gmtime_r(&now, &tm);
    strftime(text, sizeof text, "%a, %d %b %Y %H:%M:%S GMT", &tm);
    made = now;
  }
  return text;
}

static void put_head(mob_buf_t *buf, mob_http_request_t *req, int status, const char *content_type,
                     const mob_http_field_t *extra, size_t extra_count) {
  mob_buf_printf(buf, "HTTP/1.1 %d %s\r\ndate: %s\r\nserver: mobula\r\n", status,
                 mob_http_status_text(status), http_date());
  if (content_type) mob_buf_printf(buf, "content-type: %s\r\n", content_type);
  for (size_t i = 0; i < extra_count; i++) {
    mob_buf_printf(buf, "%s: %s\r\n", extra[i].name, extra[i].value);
  }
  if (!req->keep_alive || req->conn->server->draining) {
    req->keep_alive = false;
    mob_buf_puts(buf, "connection: close\r\n");
  } else if (req->http10) {
    mob_buf_puts(buf, "connection: keep-alive\r\n");
  }
}

void mob_http_reply(mob_http_request_t *req, int status, const char *content_type, const void *body,
                    size_t len, const mob_http_field_t *extra, size_t extra_count) {
  MOB_ASSERT(!req->begun);
  mob_buf_t head = {0};
  put_head(&head, req, status, content_type, extra, extra_count);
  bool bodiless = status < 200 || status == 204 || status == 304;
  if (!bodiless) mob_buf_printf(&head, "content-length: %zu\r\n", len);
  mob_buf_puts(&head, "\r\n");
  mob__conn_send(req->conn, head.data, head.len);
  if (!bodiless && !is_head(req)) mob__conn_send(req->conn, body, len);
  mob_buf_free(&head);
  mob__conn_reply_ended(req->conn);
}

void mob_http_begin(mob_http_request_t *req, int status, const char *content_type,
                    const mob_http_field_t *extra, size_t extra_count) {
  MOB_ASSERT(!req->begun);
  req->begun = true;
  if (req->http10)
    req->keep_alive = false; // its end is the connection's
  else
    req->chunked = true;
  mob_buf_t head = {0};
  put_head(&head, req, status, content_type, extra, extra_count);
  mob_buf_puts(&head, req->chunked ? "transfer-encoding: chunked\r\n\r\n" : "\r\n");
  mob__conn_send(req->conn, head.data, head.len);
  mob_buf_free(&head);
}

void mob_http_write(mob_http_request_t *req, const void *data, size_t len) {
  MOB_ASSERT(req->begun);
  if (len == 0 || is_head(req)) return; // an empty chunk would end the reply
  if (!req->chunked) {
    mob__conn_send(req->conn, data, len);
    return;
  }
  char size[24];
  mob__conn_send(req->conn, size, (size_t)snprintf(size, sizeof size, "%zx\r\n", len));
  mob__conn_send(req->conn, data, len);
  mob__conn_send(req->conn, "\r\n", 2);
}

void mob_http_end(mob_http_request_t *req) {
  MOB_ASSERT(req->begun);
  if (req->chunked && !is_head(req)) mob__conn_send(req->conn, "0\r\n\r\n", 5);
  mob__conn_reply_ended(req->conn);
}

size_t mob_http_unsent(const mob_http_request_t *req) {
  return mob__conn_unsent(req->conn);
}
