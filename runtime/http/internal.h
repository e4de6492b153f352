// Shared by this folder's files.
#ifndef MOB_HTTP_INTERNAL_H
#define MOB_HTTP_INTERNAL_H

#include "runtime/base/buf.h"
#include "runtime/base/vec.h"
#include "runtime/http/http.h"

typedef struct mob__conn mob__conn_t;
typedef struct mob__parser mob__parser_t; // parser.c: the only file that sees http-parser
typedef struct mob__tls mob__tls_t;       // tls.c: one TLS session over memory BIOs
typedef struct mob__tls_ctx mob__tls_ctx_t;

enum {
  MOB__READ_CHUNK = 64 * 1024,
  MOB__PENDING_MAX = 256 * 1024, // bytes of pipelined requests kept while a reply is under way
  MOB__UNSENT_MAX = 1024 * 1024, // a pipelining client that does not read gets no further replies
  MOB__MAX_FIELDS = 256,
  MOB__LINGER_MS = 2000,
};

typedef struct mob__header {
  size_t name, value; // offsets of NUL-terminated texts in `head`
} mob__header_t;

struct mob_http_request {
  mob__conn_t *conn;
  mob_buf_t head; // target, names and values, each NUL-terminated
  MOB_VEC(mob__header_t) fields;
  const char *method;
  char *path;
  const char *query;
  mob_buf_t body;
  bool http10, keep_alive;
  bool begun, chunked;
  void *data;
};

// ---- parser.c
typedef enum mob__parsed {
  MOB__PARSE_MORE,  // everything was consumed, the request is not whole yet
  MOB__PARSE_WHOLE, // a request ended; take it with mob__parser_take(); bytes behind it were not
                    // consumed
  MOB__PARSE_BAD,   // *status is the reply to give before the connection closes
} mob__parsed_t;

// `on_continue` runs when a client waits for "100 Continue".
mob__parser_t *mob__parser_new(size_t max_header, size_t max_body, void (*on_continue)(void *arg),
                               void *arg);
void mob__parser_free(mob__parser_t *parser);
mob__parsed_t mob__parser_feed(mob__parser_t *parser, const char *data, size_t len, size_t *used,
                               int *status);
bool mob__parser_idle(const mob__parser_t *parser); // no byte of a next request was seen
mob_http_request_t *mob__parser_take(mob__parser_t *parser);
void mob__request_free(mob_http_request_t *req);

// ---- tls.c
mob_status mob__tls_ctx_new(const mob_http_config_t *config, mob__tls_ctx_t **out);
void mob__tls_ctx_free(mob__tls_ctx_t *ctx);
mob__tls_t *mob__tls_new(mob__tls_ctx_t *ctx);
void mob__tls_free(mob__tls_t *tls);
// Bytes from the wire become plain bytes; what TLS itself has to say goes to `wire`. False: the
// session is over.
bool mob__tls_read(mob__tls_t *tls, const void *data, size_t len, mob_buf_t *plain,
                   mob_buf_t *wire);
bool mob__tls_write(mob__tls_t *tls, const void *data, size_t len, mob_buf_t *wire);
void mob__tls_bye(mob__tls_t *tls, mob_buf_t *wire);

// ---- conn.c
struct mob__conn {
  uv_tcp_t tcp;
  uv_timer_t timer;
  uv_write_t write;
  uv_shutdown_t shutdown;
  mob_http_server_t *server;
  mob__conn_t *prev, *next; // all connections of the server
  mob__conn_t *dirty_next;
  bool dirty;
  int open_handles;
  mob__parser_t *parser;
  mob__tls_t *tls;
  mob_http_request_t *req; // under way: given to the handler, reply not ended
  mob_buf_t pending;       // received, not parsed
  size_t pending_at;
  mob_buf_t plain;    // to send, before TLS (which wants big pieces)
  mob_buf_t out;      // to send, bytes of the wire
  mob_buf_t inflight; // being sent
  bool writing;
  bool reading;
  bool advancing; // mob__conn_advance() is on the stack
  bool last;      // no further request: close once everything is sent
  bool unread;    // the client may still be sending: take its bytes for a while before closing
  bool finishing; // the sending side was shut
  bool closing;
  char peer[64];
};

void mob__conn_accept(mob_http_server_t *server);
void mob__conn_send(mob__conn_t *conn, const void *data, size_t len);
void mob__conn_reply_ended(mob__conn_t *conn); // frees the request; the next one follows
void mob__conn_service(mob__conn_t *conn);     // from the server's idle handle: send, go on, close
size_t mob__conn_unsent(const mob__conn_t *conn);
void mob__conn_drain(mob__conn_t *conn);
void mob__conn_close(mob__conn_t *conn);
void mob__conn_mark(mob__conn_t *conn); // wants mob__conn_service() in this turn of the loop

// ---- server.c
struct mob_http_server {
  uv_loop_t *loop;
  uv_tcp_t listener;
  uv_idle_t idle; // active while a connection is marked
  int fd;         // bound, before mob_http_listen()
  int port;
  bool listening, draining, closing;
  int open_handles;
  mob_http_config_t config; // its strings are not kept
  mob_http_handler_t handler;
  void *owner;
  mob__tls_ctx_t *tls;
  mob__conn_t *conns;
  size_t conn_count;
  mob__conn_t *dirty;
  void (*drained)(void *arg);
  void *drained_arg;
  char *read_buffer; // libuv reads into it and hands it over at once
  mob_buf_t plain;   // decrypted bytes of one read
};

void mob__server_conn_closed(mob_http_server_t *server); // after a connection left the list
void mob__server_wake(
    mob_http_server_t *server); // marked connections are served in this turn of the loop
void mob__server_release(mob_http_server_t *server); // one handle closed

#endif
