#include "runtime/base/hex.h"

#include <string.h>
#include <sys/random.h>

char *mob_hex(const void *bytes, size_t len, char *out) {
  const uint8_t *p = bytes;
  for (size_t i = 0; i < len; i++) {
    out[2 * i] = "0123456789abcdef"[p[i] >> 4];
    out[2 * i + 1] = "0123456789abcdef"[p[i] & 15];
  }
  out[2 * len] = 0;
  return out;
}

static int digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

mob_status mob_unhex(const char *text, void *out, size_t len) {
  uint8_t *p = out;
  if (strlen(text) != 2 * len) {
    return mob_fail(MOB_E_FORMAT, "'%s' is not %zu hexadecimal digits", text, 2 * len);
  }
  for (size_t i = 0; i < len; i++) {
    int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);
    if (high < 0 || low < 0) return mob_fail(MOB_E_FORMAT, "'%s' is not hexadecimal", text);
    p[i] = (uint8_t)(high << 4 | low);
  }
  return MOB_OK;
}

void mob_random(void *out, size_t len) {
  uint8_t *p = out;
  while (len > 0) {
    ssize_t n = getrandom(p, len, 0);
    if (n < 0) continue; // only EINTR is possible
    p += n;
    len -= (size_t)n;
  }
}
