#include "runtime/gcs/base64.h"

#include <string.h>

static int digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '+') return 62;
  return c == '/' ? 63 : -1;
}

mob_status mob__base64_decode(const char *text, mob_buf_t *out) {
  size_t len = strlen(text);
  while (len > 0 && text[len - 1] == '=') len--;
  if (len % 4 == 1) return mob_fail(MOB_E_FORMAT, "the text is no base64: its length is wrong");
  unsigned bits = 0;
  int have = 0;
  for (size_t i = 0; i < len; i++) {
    int d = digit(text[i]);
    if (d < 0)
      return mob_fail(MOB_E_FORMAT, "the text is no base64: character %zu is '%c'", i, text[i]);
    bits = (bits << 6 | (unsigned)d) & 0xffffff;
    have += 6;
    if (have < 8) continue;
    have -= 8;
    mob_buf_putc(out, (char)(bits >> have & 0xff));
  }
  return MOB_OK;
}
