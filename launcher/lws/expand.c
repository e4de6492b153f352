#include "launcher/lws/expand.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/mem.h"

char *mob__lws_expand(const char *text, const char *(*lookup)(void *arg, const char *name),
                      void *arg) {
  mob_buf_t out = {0};
  for (const char *p = text; *p; p++) {
    if (*p != '$' || !p[1]) {
      mob_buf_putc(&out, *p);
      continue;
    }
    const char *close = p[1] == '(' ? strchr(p + 2, ')') : NULL;
    if (p[1] == '$') {
      mob_buf_putc(&out, '$');
      p++;
    } else if (close) {
      char *name = mob_strndup(p + 2, (size_t)(close - p - 2));
      const char *value = lookup(arg, name);
      if (value) {
        mob_buf_puts(&out, value);
      } else {
        mob_buf_append(&out, p, (size_t)(close - p + 1));
      }
      free(name);
      p = close;
    } else { // "$x", or "$(" without an end: both characters stay
      mob_buf_putc(&out, *p);
      mob_buf_putc(&out, *++p);
    }
  }
  return mob_buf_steal(&out);
}
