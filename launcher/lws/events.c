#include "launcher/lws/events.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "runtime/base/clock.h"

void mob__event_time(int64_t at_ms, char out[16]) {
  time_t seconds = (time_t)(at_ms / 1000);
  struct tm tm;
  localtime_r(&seconds, &tm);
  size_t n = strftime(out, 16, "%H:%M:%S", &tm);
  snprintf(out + n, 16 - n, ".%03d", (int)(at_ms % 1000));
}

void mob__event(mob_lws_events_t *events, bool warning, const char *object, const char *reason,
                const char *fmt, ...) {
  mob_lws_event_t *e = &events->ring[events->count++ % MOB_LWS_EVENTS_KEPT];
  e->at_ms = mob_wall_ms();
  e->warning = warning;
  snprintf(e->object, sizeof e->object, "%s", object);
  snprintf(e->reason, sizeof e->reason, "%s", reason);
  va_list args;
  va_start(args, fmt);
  vsnprintf(e->text, sizeof e->text, fmt, args);
  va_end(args);
  for (char *p = e->text; *p; p++) {
    if (*p == '\n') *p = ' ';
  }
  if (events->quiet) return;
  char time[16];
  mob__event_time(e->at_ms, time);
  printf("%s %-7s %-20s %s: %s\n", time, warning ? "Warning" : "Normal", e->reason, e->object,
         e->text);
  fflush(stdout);
}

json_t *mob__events_json(const mob_lws_events_t *events, size_t last) {
  json_t *list = json_array();
  size_t kept = events->count < MOB_LWS_EVENTS_KEPT ? (size_t)events->count : MOB_LWS_EVENTS_KEPT;
  if (last > kept) last = kept;
  for (uint64_t i = events->count - last; i < events->count; i++) {
    const mob_lws_event_t *e = &events->ring[i % MOB_LWS_EVENTS_KEPT];
    // Cutting a long text may have split a character, which jansson refuses: cut before it.
    char text[sizeof e->text];
    snprintf(text, sizeof text, "%s", e->text);
    json_t *string = json_string(text);
    for (size_t n = strlen(text); !string && n > 0; string = json_string(text)) text[--n] = 0;
    json_array_append_new(
        list, json_pack("{s:I, s:s, s:s, s:s, s:o}", "time_ms", (json_int_t)e->at_ms, "type",
                        e->warning ? "Warning" : "Normal", "reason", e->reason, "object", e->object,
                        "message", string ? string : json_string("")));
  }
  return list;
}
