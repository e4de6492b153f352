// What happened, as Kubernetes events: printed as they come and kept for `lws status`.
#ifndef MOB_LWS_EVENTS_H
#define MOB_LWS_EVENTS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

#define MOB_LWS_EVENTS_KEPT 256

typedef struct mob_lws_event {
  int64_t at_ms; // since 1970
  bool warning;
  char object[96]; // "pod/NAME", "lws/NAME", ...
  char reason[40];
  char text[400];
} mob_lws_event_t;

typedef struct mob_lws_events {
  mob_lws_event_t ring[MOB_LWS_EVENTS_KEPT];
  uint64_t count; // ever
  bool quiet;     // do not print
} mob_lws_events_t;

void mob__event(mob_lws_events_t *events, bool warning, const char *object, const char *reason,
                const char *fmt, ...) __attribute__((format(printf, 5, 6)));
json_t *mob__events_json(const mob_lws_events_t *events,
                         size_t last); // newest last; a new reference
// "15:04:05.123" of a time in milliseconds since 1970.
void mob__event_time(int64_t at_ms, char out[16]);

#endif
