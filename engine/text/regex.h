// The regular expressions of tokenizer.json. `tokenizers` runs them with Oniguruma (Ruby syntax,
// UTF-8); here PCRE2 runs them after a translation of what the two read differently:
//   \s \S     Unicode White_Space (PCRE2 adds U+180E)
//   \w \W     Alphabetic, M, Nd, Pc (PCRE2 10.42: L, N and the underscore)
//   \h \H     a hexadecimal digit (PCRE2: horizontal space)
//   ^ $       always at line ends too
//   \p{Han}   the script (PCRE2: the script extensions)
//   x{1,3}+   a repeated group (PCRE2: possessive)
// What cannot be translated (class intersections and the like) is refused by name.
#ifndef MOB_TEXT_REGEX_H
#define MOB_TEXT_REGEX_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/status.h"

typedef struct mob__regex mob__regex_t;
// What one thread needs to match: scratch memory, no result. NULL-initialise; grows on first use.
typedef struct mob__regex_scratch {
  void *match_data, *context, *stack;
} mob__regex_scratch_t;

// `literal`: the pattern is a plain string.
mob_status mob__regex_compile(const char *pattern, size_t len, bool literal, mob__regex_t **out);
void mob__regex_free(mob__regex_t *re);
void mob__regex_scratch_free(mob__regex_scratch_t *scratch);

// The first match at or after byte `from` of `text` (well-formed UTF-8). *found tells whether there
// is one; it is text[*start..*end). MOB_E_FORMAT when the pattern costs too much on this text.
mob_status mob__regex_search(const mob__regex_t *re, mob__regex_scratch_t *scratch,
                             const char *text, size_t len, size_t from, bool *found, size_t *start,
                             size_t *end);

#endif
