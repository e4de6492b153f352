// The request parser on arbitrary bytes, whole and byte by byte: both must agree.
#include <stdint.h>
#include <stdlib.h>

#include "runtime/http/internal.h"

static void on_continue(void *arg) {
  (void)arg;
}

// Feeds everything in pieces of `step`; a hash of what came out.
static uint64_t feed(const char *data, size_t size, size_t step) {
  mob__parser_t *parser = mob__parser_new(4096, 65536, on_continue, NULL);
  uint64_t hash = 14695981039346656037u;
  for (size_t at = 0; at < size;) {
    size_t n = size - at < step ? size - at : step, used = 0;
    int status = 0;
    mob__parsed_t parsed = mob__parser_feed(parser, data + at, n, &used, &status);
    at += used;
    if (parsed == MOB__PARSE_BAD) {
      hash = hash * 31 + 7;
      break;
    }
    if (parsed != MOB__PARSE_WHOLE) continue;
    mob_http_request_t *req = mob__parser_take(parser);
    for (const char *c = req->path; *c; c++) hash = (hash ^ (uint8_t)*c) * 1099511628211u;
    for (const char *c = req->query; *c; c++) hash = (hash ^ (uint8_t)*c) * 1099511628211u;
    hash += req->body.len + req->fields.len + (mob_http_header(req, "host") != NULL);
    mob__request_free(req);
  }
  mob__parser_free(parser);
  return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  if (feed((const char *)data, size, size ? size : 1) != feed((const char *)data, size, 1)) abort();
  return 0;
}
