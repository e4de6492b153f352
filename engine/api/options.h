// Command-line options from one table, with the rules of Python's argparse as vLLM uses it: `_` and
// `-` are equal in long names, `--k v` and `--k=v`, unambiguous prefixes, options that take several
// values.
#ifndef MOB_API_OPTIONS_H
#define MOB_API_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef MOB_VEC(char *) mob_strings_t; // owned texts
void mob_strings_add(mob_strings_t *strings, const char *text);
void mob_strings_free(mob_strings_t *strings);

typedef enum mob_opt_kind { // and the type of the field in the owner's struct
  MOB_OPT_HEAD,             // no option: a heading of --help
  MOB_OPT_FLAG,             // bool: --x
  MOB_OPT_PAIR,             // int (-1 not given): --x, --no-x
  MOB_OPT_BOOL,             // int (-1 not given): --x, --x true, --x=false
  MOB_OPT_INT,              // int64_t
  MOB_OPT_LENGTH,           // int64_t: also 1k = 1000, 1K = 1024, 25.6k; "auto" and -1 are -1
  MOB_OPT_FLOAT,            // double
  MOB_OPT_TEXT,             // char *; "None" and "" are NULL
  MOB_OPT_JSON,             // char *; checked to be JSON
  MOB_OPT_LIST,             // mob_strings_t: one or more values; the last occurrence counts
  MOB_OPT_APPEND,           // mob_strings_t: one value, repeatable
} mob_opt_kind_t;

typedef enum mob_opt_effect {
  MOB_OPT_ACTS,
  MOB_OPT_WARNS,   // accepted, has no effect here: one line says why
  MOB_OPT_REMOVED, // accepted, exists no more in newer vLLM and has no effect here
} mob_opt_effect_t;

enum { MOB_OPT_NO_FIELD = -1 };

typedef struct mob_option {
  const char *name;  // "--tensor-parallel-size"; a heading's text
  const char *brief; // "-tp", or NULL
  mob_opt_kind_t kind;
  mob_opt_effect_t effect;
  const char *initial; // default as text, parsed like a value; NULL: none (false, NULL, 0, -1 for
                       // the int kinds)
  int field;           // offset in the owner's struct, or MOB_OPT_NO_FIELD
  const char *choices; // "a|b|c", or NULL
  const char *help;    // for WARNS and REMOVED: why it has no effect
} mob_option_t;

typedef struct mob_options_parsed {
  mob_strings_t positionals;
  bool *given; // [count of the table]
  bool help;   // -h or --help was there
} mob_options_parsed_t;

// Sets every field to its default.
void mob_options_init(const mob_option_t *table, size_t count, void *owner);
void mob_options_clear(const mob_option_t *table, size_t count,
                       void *owner); // frees what the fields own
// MOB_E_INVALID with argparse's wording. May be called several times; later values win. All unknown
// arguments are named in one message, with the nearest option as a hint.
mob_status mob_options_parse(const mob_option_t *table, size_t count, void *owner, int argc,
                             char **argv, mob_options_parsed_t *parsed);
void mob_options_parsed_free(mob_options_parsed_t *parsed);
// One warning a given option that has no effect.
void mob_options_warn(const mob_option_t *table, size_t count, const mob_options_parsed_t *parsed);
void mob_options_help(const mob_option_t *table, size_t count, FILE *out);
bool mob_options_given(const mob_option_t *table, size_t count, const mob_options_parsed_t *parsed,
                       const char *name);

// A flat YAML map as command-line arguments: `port: 1` becomes "--port" "1", `x: true` becomes
// "--x", `x: false` nothing (for options that take a boolean value: the value), a list becomes
// several values. Appended to `out`.
mob_status mob_options_read_yaml(const char *path, const mob_option_t *table, size_t count,
                                 mob_strings_t *out);

#endif
