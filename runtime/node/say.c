#include "runtime/node/say.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static bool record = true;
static bool color;
static int indent;

void mob_say_setup(mob_log_style_t style, int want_color) {
  record = style == MOB_STYLE_RECORD || (style == MOB_STYLE_AUTO && !isatty(STDIN_FILENO));
  color = want_color < 0 ? isatty(STDOUT_FILENO) : want_color > 0;
}

void mob_say_gap(void) {
  if (!record) putchar('\n');
}

void mob_say_indent(int columns) {
  indent = columns;
}

void mob_say_at(mob_say_level_t level, const char *file, int line, const char *fmt, ...) {
  static const char *const names[] = {"INFO", "SUCC", "WARN", "ERR", "PANIC"};
  static const char *const colors[] = {NULL, "\033[32m", "\033[33m", "\033[31m", "\033[1;31m"};
  FILE *out = level >= MOB_SAY_WARN ? stderr : stdout;
  if (record) {
    struct timespec now;
    struct tm tm;
    char stamp[32];
    const char *slash = strrchr(file, '/');
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &tm);
    strftime(stamp, sizeof stamp, "%Y-%m-%d %H:%M:%S", &tm);
    fprintf(out, "%s,%03ld\t%s %s:%d -- ", stamp, now.tv_nsec / 1000000, names[level],
            slash ? slash + 1 : file, line);
  } else {
    fprintf(out, "%*s%s", indent, "", color && colors[level] ? colors[level] : "");
  }
  va_list args;
  va_start(args, fmt);
  vfprintf(out, fmt, args);
  va_end(args);
  if (!record && color && colors[level]) fputs("\033[0m", out);
  fputc('\n', out);
  fflush(out);
}
