// Command lines: one table a sub-command, from which parsing and --help both come.
#ifndef MOB_LWS_OPTIONS_H
#define MOB_LWS_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/vec.h"

typedef MOB_VEC(const char *) mob_lws_words_t;

typedef enum mob_lws_option_kind {
  MOB_LWS_OPT_FLAG,   // bool *
  MOB_LWS_OPT_STRING, // const char **
  MOB_LWS_OPT_WORDS,  // mob_lws_words_t *, may stand several times
  MOB_LWS_OPT_INT,    // int64_t *, not negative
  MOB_LWS_OPT_NUMBER, // double *, positive
  MOB_LWS_OPT_MAYBE,  // double *: --x sets INFINITY, --x=N sets N
} mob_lws_option_kind_t;

typedef struct mob_lws_option {
  const char *name; // without the dashes
  const char *arg;  // its value's name in --help, NULL for a flag
  mob_lws_option_kind_t kind;
  void *value;
  const char *help;
  char letter; // -f for --follow; 0: none
} mob_lws_option_t;

typedef struct mob_lws_usage {
  const char *command; // "up"
  const char *args;    // "FILE.yaml [FILE...]"
  const char *about;
  const mob_lws_option_t *options;
  size_t count;
  bool stop_at_word; // what follows the first word (after "--" too) is no option
} mob_lws_usage_t;

// Options and words in any order. Returns -1 to go on, else the exit status: 0 after --help, 2
// after a wrong command line, which was told on stderr.
int mob__options_parse(const mob_lws_usage_t *usage, int argc, char **argv, mob_lws_words_t *words);

// For errors that the table cannot see: prints them with a pointer to --help and returns 2.
int mob__usage_error(const char *command, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

#endif
