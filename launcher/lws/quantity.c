#include "launcher/lws/quantity.h"

#include <ctype.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

static bool suffix_factor(const char *suffix, long double *factor) {
  static const struct {
    const char *name;
    long double factor;
  } table[] = {{"", 1},         {"n", 1e-9L},    {"u", 1e-6L},    {"m", 1e-3L},
               {"k", 1e3L},     {"M", 1e6L},     {"G", 1e9L},     {"T", 1e12L},
               {"P", 1e15L},    {"E", 1e18L},    {"Ki", 0x1p10L}, {"Mi", 0x1p20L},
               {"Gi", 0x1p30L}, {"Ti", 0x1p40L}, {"Pi", 0x1p50L}, {"Ei", 0x1p60L}};
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    if (strcmp(suffix, table[i].name) == 0) {
      *factor = table[i].factor;
      return true;
    }
  }
  if ((suffix[0] == 'e' || suffix[0] == 'E') && suffix[1]) {
    char *end;
    long exponent = strtol(suffix + 1, &end, 10);
    if (*end || exponent < -18 || exponent > 18 || isspace((unsigned char)suffix[1])) return false;
    *factor = powl(10, exponent);
    return true;
  }
  return false;
}

bool mob__lws_quantity_millis(const char *text, int64_t *out) {
  size_t n = strspn(text + (*text == '-' || *text == '+'), "0123456789.");
  size_t sign = *text == '-' || *text == '+';
  if (n == 0 || n > 40) return false;
  char number[48];
  memcpy(number, text, n + sign);
  number[n + sign] = 0;
  char *end;
  long double value = strtold(number, &end);
  long double factor;
  if (*end || end == number + sign || !suffix_factor(text + n + sign, &factor)) return false;
  long double millis = value * factor * 1000;
  if (!(fabsl(millis) < 9e18L)) return false;
  // An amount such as 0.1 is not exact in binary; a hair above a whole number is that number.
  *out = (int64_t)ceill(millis - 1e-9L);
  return true;
}

bool mob__lws_quantity(const char *text, int64_t *out) {
  int64_t millis;
  if (mob__lws_quantity_millis(text, &millis)) {
    *out = millis / 1000 + (millis % 1000 > 0);
    return true;
  }
  return false;
}
