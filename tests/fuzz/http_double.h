// runtime/http without a network, for fuzz targets: requests at hand, and replies that are looked
// at. It keeps http.h's promises to the letter (a request is gone with the end of its reply) and
// aborts where a reply is not what it says it is.
#ifndef MOB_FUZZ_HTTP_DOUBLE_H
#define MOB_FUZZ_HTTP_DOUBLE_H

#include "runtime/http/http.h"

typedef struct http_double_request {
  const char *method, *path, *query; // kept by the caller
  const mob_http_field_t *headers;
  size_t header_count;
  const char *body;
  size_t len;
} http_double_request_t;

void http_double_ask(const mob_http_handler_t *handler, void *owner,
                     const http_double_request_t *what);
size_t http_double_open(void); // requests without a whole reply
void http_double_leave(
    size_t which); // the client of one of them leaves; counts modulo how many there are
void http_double_stop_reading(bool stop); // what was sent then stays unsent

#endif
