#include "runtime/base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/utf8.h"

static _Thread_local char message[1024];

mob_status mob_fail(mob_status code, const char *fmt, ...) {
  // Formatted beside the message, because the arguments may point into it.
  char text[sizeof message];
  va_list args;
  va_start(args, fmt);
  mob_utf8_vformat(text, sizeof text, fmt, args);
  va_end(args);
  memcpy(message, text, sizeof text);
  return code;
}

mob_status mob_wrap(mob_status code, const char *fmt, ...) {
  char former[sizeof message], around[sizeof message];
  memcpy(former, message, sizeof message);
  va_list args;
  va_start(args, fmt);
  mob_utf8_vformat(around, sizeof around, fmt, args);
  va_end(args);
  return mob_fail(code, "%s: %s", around, former);
}

const char *mob_errmsg(void) {
  return message;
}

const char *mob_status_name(mob_status code) {
  static const char *const names[] = {
      "OK", "INVALID", "NOT_FOUND", "EXISTS",      "UNSUPPORTED", "NO_RESOURCES",
      "IO", "FORMAT",  "TIMEOUT",   "UNAVAILABLE", "ABORTED",     "INTERNAL"};
  return (size_t)code < sizeof names / sizeof *names ? names[code] : "?";
}

_Noreturn void mob_assert_failed(const char *expr, const char *file, int line) {
  fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, expr);
  abort();
}
