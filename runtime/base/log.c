#include "runtime/base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

static _Atomic int current_level = -1; // -1: not read from the environment yet
static _Atomic int log_fd = -1;
static char process_name[32] = "mobula";

void mob_log_set_level(mob_log_level_t level) {
  current_level = (int)level;
}

mob_log_level_t mob_log_get_level(void) {
  int level = current_level;
  if (level >= 0) return (mob_log_level_t)level;
  static const char *const names[] = {"debug", "info", "warning", "error"};
  const char *text = getenv("MOB_LOG_LEVEL");
  level = MOB_LOG_INFO;
  for (int i = 0; text && i < 4; i++) {
    if (strcasecmp(text, names[i]) == 0) level = i;
  }
  current_level = level;
  return (mob_log_level_t)level;
}

void mob_log_set_process(const char *name) {
  snprintf(process_name, sizeof process_name, "%s", name);
}

mob_status mob_log_open_file(const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (fd < 0) return mob_fail(MOB_E_IO, "cannot open the log file %s: %s", path, strerror(errno));
  int old = atomic_exchange(&log_fd, fd);
  if (old >= 0) close(old);
  return MOB_OK;
}

void mob_log(mob_log_level_t level, const char *component, const char *fmt, ...) {
  if (level < mob_log_get_level()) return;
  static const char *const names[] = {"DEBUG", "INFO ", "WARN ", "ERROR"};
  char line[2048];
  struct timespec now;
  struct tm tm;
  clock_gettime(CLOCK_REALTIME, &now);
  localtime_r(&now.tv_sec, &tm);
  size_t n = strftime(line, sizeof line, "%Y-%m-%d %H:%M:%S", &tm);
  n += (size_t)snprintf(line + n, sizeof line - n, ",%03ld %s %s: ", now.tv_nsec / 1000000, names[level],
                        component ? component : process_name);
  va_list args;
  va_start(args, fmt);
  int m = vsnprintf(line + n, sizeof line - n - 1, fmt, args);
  va_end(args);
  n += m < 0 ? 0 : (size_t)m;
  if (n > sizeof line - 2) n = sizeof line - 2;
  line[n++] = '\n';
  // One write a line keeps the lines of several processes on one stdout whole.
  ssize_t ignored = write(STDERR_FILENO, line, n);
  int fd = log_fd;
  if (fd >= 0) ignored = write(fd, line, n);
  (void)ignored;
}
