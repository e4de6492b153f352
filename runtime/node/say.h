// What commands print, in Ray's two styles. "record" (stdin is no terminal, as in pods) is one line
// a message; "pretty" is the plain text with empty lines and colours.
//   2026-05-04 10:11:12,131<TAB>INFO start.c:84 -- Local node IP: 10.0.0.1
// Warnings and errors go to stderr, the rest to stdout.
#ifndef MOB_NODE_SAY_H
#define MOB_NODE_SAY_H

#include <stdbool.h>

#include "runtime/node/options.h"

typedef enum mob_say_level {
  MOB_SAY_INFO,
  MOB_SAY_SUCC,
  MOB_SAY_WARN,
  MOB_SAY_ERR,
  MOB_SAY_PANIC
} mob_say_level_t;

// `color` -1: when the output is a terminal.
void mob_say_setup(mob_log_style_t style, int color);
void mob_say_at(mob_say_level_t level, const char *file, int line, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void mob_say_gap(void);           // an empty line; nothing in record style
void mob_say_indent(int columns); // of the lines that follow; nothing in record style

#define MOB_SAY(...) mob_say_at(MOB_SAY_INFO, __FILE__, __LINE__, __VA_ARGS__)
#define MOB_SAY_OK(...) mob_say_at(MOB_SAY_SUCC, __FILE__, __LINE__, __VA_ARGS__)
#define MOB_SAY_WARNING(...) mob_say_at(MOB_SAY_WARN, __FILE__, __LINE__, __VA_ARGS__)
#define MOB_SAY_ERROR(...) mob_say_at(MOB_SAY_ERR, __FILE__, __LINE__, __VA_ARGS__)
#define MOB_SAY_FATAL(...) mob_say_at(MOB_SAY_PANIC, __FILE__, __LINE__, __VA_ARGS__)

#endif
