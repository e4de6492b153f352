// An HTTP/1.1 server on libuv, and streaming replies. All on the loop's thread.
#ifndef MOB_HTTP_HTTP_H
#define MOB_HTTP_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "runtime/base/status.h"

typedef struct mob_http_server mob_http_server_t;
typedef struct mob_http_request mob_http_request_t;

typedef struct mob_http_config {
  const char *host;         // NULL: all interfaces; an IPv6 literal listens on IPv6
  int port;                 // 0: any free one
  size_t max_body;          // bytes; larger bodies get 413
  size_t max_header;        // bytes of request line and headers; larger get 431
  uint64_t keep_alive_ms;   // idle connections end after this
  uint64_t request_ms;      // a request must have arrived whole after this (slow senders get 408)
  const char *tls_cert, *tls_key, *tls_ca; // PEM files; NULL without TLS
  int tls_cert_reqs;        // 0 none, 1 optional, 2 required
} mob_http_config_t;

typedef struct mob_http_handler {
  // The request arrived whole. The handler answers now or later with the functions below.
  void (*on_request)(void *owner, mob_http_request_t *req);
  // The client left before the reply ended: no reply function may be called any more, `req` is freed after this.
  // Called only for requests whose reply has not ended.
  void (*on_gone)(void *owner, mob_http_request_t *req);
} mob_http_handler_t;

// Binds the port and fails at once when it is taken, but accepts nobody before mob_http_listen().
mob_status mob_http_bind(uv_loop_t *loop, const mob_http_config_t *config, const mob_http_handler_t *handler,
                         void *owner, mob_http_server_t **out);
mob_status mob_http_listen(mob_http_server_t *server);
int mob_http_port(const mob_http_server_t *server);
// Stops accepting; idle connections close; `done` runs when the last request under way has ended.
void mob_http_drain(mob_http_server_t *server, void (*done)(void *arg), void *arg);
// Closes everything at once; on_gone runs for requests under way. The server is freed by later turns of the loop.
void mob_http_close(mob_http_server_t *server);

// ---- the request
const char *mob_http_method(const mob_http_request_t *req);
const char *mob_http_path(const mob_http_request_t *req);  // percent-decoded, without the query
const char *mob_http_query(const mob_http_request_t *req); // raw, "" when absent
const char *mob_http_header(const mob_http_request_t *req, const char *name); // case-insensitive; NULL when absent
const char *mob_http_body(const mob_http_request_t *req, size_t *len);       // NUL behind it
const char *mob_http_peer(const mob_http_request_t *req);                    // "ip:port"
void mob_http_set_data(mob_http_request_t *req, void *data);
void *mob_http_data(const mob_http_request_t *req);

// ---- the reply: either mob_http_reply(), or begin, any number of writes, end. Copies its input.
typedef struct mob_http_field {
  const char *name, *value;
} mob_http_field_t;
void mob_http_reply(mob_http_request_t *req, int status, const char *content_type, const void *body, size_t len,
                    const mob_http_field_t *extra, size_t extra_count);
void mob_http_begin(mob_http_request_t *req, int status, const char *content_type,
                    const mob_http_field_t *extra, size_t extra_count); // chunked
void mob_http_write(mob_http_request_t *req, const void *data, size_t len);
void mob_http_end(mob_http_request_t *req);
const char *mob_http_status_text(int status); // "OK", "Not Found", ...
size_t mob_http_unsent(const mob_http_request_t *req); // bytes queued in this process: back-pressure

#endif
