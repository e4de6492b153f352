// The process log: one line a message, to stderr and, once mob_log_open_file() was called, to a file.
//   2026-05-04 10:11:12,131 INFO  gcs: node 3f2a joined (127 lines)
// The level comes from MOB_LOG_LEVEL (debug, info, warning, error), else info. Thread-safe.
#ifndef MOB_BASE_LOG_H
#define MOB_BASE_LOG_H

#include "runtime/base/status.h"

typedef enum mob_log_level { MOB_LOG_DEBUG, MOB_LOG_INFO, MOB_LOG_WARNING, MOB_LOG_ERROR } mob_log_level_t;

void mob_log_set_level(mob_log_level_t level);
mob_log_level_t mob_log_get_level(void);
// Component that stands before the text when MOB_LOG_COMPONENT is not defined in the file.
void mob_log_set_process(const char *name);
mob_status mob_log_open_file(const char *path); // appends; beside stderr
void mob_log(mob_log_level_t level, const char *component, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

// A file may define MOB_LOG_COMPONENT before it includes this header.
#ifndef MOB_LOG_COMPONENT
#define MOB_LOG_COMPONENT NULL
#endif
#define MOB_DEBUG(...)                                                                             \
  do {                                                                                             \
    if (mob_log_get_level() <= MOB_LOG_DEBUG) mob_log(MOB_LOG_DEBUG, MOB_LOG_COMPONENT, __VA_ARGS__); \
  } while (0)
#define MOB_INFO(...) mob_log(MOB_LOG_INFO, MOB_LOG_COMPONENT, __VA_ARGS__)
#define MOB_WARN(...) mob_log(MOB_LOG_WARNING, MOB_LOG_COMPONENT, __VA_ARGS__)
#define MOB_ERROR(...) mob_log(MOB_LOG_ERROR, MOB_LOG_COMPONENT, __VA_ARGS__)

#endif
