// A server on its own thread, driven over real sockets by the test's thread.
#ifndef TEST_HTTP_HARNESS_H
#define TEST_HTTP_HARNESS_H

#include <pthread.h>
#include <stdatomic.h>

#include "runtime/base/buf.h"
#include "runtime/http/http.h"

typedef struct harness {
  uv_loop_t loop;
  pthread_t thread;
  uv_async_t control;
  mob_http_server_t *server;
  int port;
  atomic_int todo; // DRAIN, CLOSE, GO
  atomic_int requests, gone, waiting, drained;
  atomic_size_t unsent;
  mob_http_request_t *held; // of /hold
} harness_t;

enum { HARNESS_DRAIN = 1, HARNESS_CLOSE = 2, HARNESS_GO = 4 };

mob_http_config_t harness_config(void);
void harness_start(harness_t *h, const mob_http_config_t *config);
void harness_tell(harness_t *h, int what);
void harness_stop(harness_t *h);

int client_connect(int port);
void client_send(int fd, const void *data, size_t len);
void client_sends(int fd, const char *text);
// Reads one reply whole (by content-length, chunks or end of the connection); its status, head and
// decoded body.
int client_reply(int fd, mob_buf_t *head, mob_buf_t *body);
int client_ask(int fd, const char *request, mob_buf_t *body); // send and read, the head dropped
void client_expect_end(int fd);
void wait_for(atomic_int *counter, int value);

#endif
