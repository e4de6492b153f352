#include "runtime/base/utf8.h"

#include <stdio.h>

#include <string.h>

#define REPLACEMENT "\xEF\xBF\xBD"

// Length of the character that `lead` starts, 0 when it starts none.
static size_t width_of(uint8_t lead) {
  if (lead < 0x80) return 1;
  if (lead < 0xC2) return 0;
  if (lead < 0xE0) return 2;
  if (lead < 0xF0) return 3;
  return lead < 0xF5 ? 4 : 0;
}

// Whether `next` may stand at `index` (1-3) of a character that starts with `lead`.
static int continues(uint8_t lead, size_t index, uint8_t next) {
  uint8_t low = 0x80, high = 0xBF;
  if (index == 1) {
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
  }
  return next >= low && next <= high;
}

size_t mob_utf8_valid_prefix(const void *text, size_t len) {
  const uint8_t *p = text;
  size_t i = 0;
  while (i < len) {
    uint64_t word;
    while (i + 8 <= len && (memcpy(&word, p + i, 8), (word & 0x8080808080808080u) == 0)) i += 8;
    if (i == len) break;
    size_t width = width_of(p[i]);
    if (width == 0 || width > len - i) return i;
    for (size_t k = 1; k < width; k++) {
      if (!continues(p[i], k, p[i + k])) return i;
    }
    i += width;
  }
  return len;
}

uint32_t mob_utf8_decode(const char *text, size_t *width) {
  const uint8_t *p = (const uint8_t *)text;
  if (p[0] < 0x80) return *width = 1, p[0];
  if (p[0] < 0xE0) return *width = 2, (uint32_t)(p[0] & 0x1F) << 6 | (p[1] & 0x3F);
  if (p[0] < 0xF0) {
    *width = 3;
    return (uint32_t)(p[0] & 0x0F) << 12 | (uint32_t)(p[1] & 0x3F) << 6 | (p[2] & 0x3F);
  }
  *width = 4;
  return (uint32_t)(p[0] & 0x07) << 18 | (uint32_t)(p[1] & 0x3F) << 12 |
         (uint32_t)(p[2] & 0x3F) << 6 | (p[3] & 0x3F);
}

size_t mob_utf8_encode(uint32_t cp, char out[4]) {
  if (cp < 0x80) {
    out[0] = (char)cp;
    return 1;
  }
  if (cp < 0x800) {
    out[0] = (char)(0xC0 | cp >> 6);
    out[1] = (char)(0x80 | (cp & 0x3F));
    return 2;
  }
  if (cp < 0x10000) {
    out[0] = (char)(0xE0 | cp >> 12);
    out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[2] = (char)(0x80 | (cp & 0x3F));
    return 3;
  }
  out[0] = (char)(0xF0 | cp >> 18);
  out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
  out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
  out[3] = (char)(0x80 | (cp & 0x3F));
  return 4;
}

size_t mob_utf8_count(const char *text, size_t len) {
  size_t n = 0;
  for (size_t i = 0; i < len; i++) n += ((uint8_t)text[i] & 0xC0) != 0x80;
  return n;
}

size_t mob_utf8_back(const char *text, size_t pos) {
  size_t n = 1;
  while (n < pos && ((uint8_t)text[pos - n] & 0xC0) == 0x80) n++;
  return n;
}

void mob_utf8_clean(char *text) {
  size_t len = strlen(text), good = 0;
  while ((good += mob_utf8_valid_prefix(text + good, len - good)) < len) text[good++] = '?';
}

void mob_utf8_vformat(char *to, size_t cap, const char *fmt, va_list args) {
  int wanted = vsnprintf(to, cap, fmt, args);
  if (wanted >= 0 && (size_t)wanted >= cap && cap > 1) {
    size_t last = cap - 1 - mob_utf8_back(to, cap - 1), width = cap - 1 - last;
    if ((uint8_t)to[last] >= 0xC0 && mob_utf8_valid_prefix(to + last, width) < width) to[last] = 0;
  }
  mob_utf8_clean(to);
}

void mob_utf8_format(char *to, size_t cap, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  mob_utf8_vformat(to, cap, fmt, args);
  va_end(args);
}

void mob_utf8_lossy_feed(mob_utf8_lossy_t *s, const void *bytes, size_t len, mob_buf_t *out) {
  const uint8_t *p = bytes;
  for (size_t i = 0; i < len;) {
    if (s->count == 0) {
      size_t good = mob_utf8_valid_prefix(p + i, len - i);
      if (good) mob_buf_append(out, p + i, good);
      i += good;
      if (i == len) break;
      if (width_of(p[i]) == 0) {
        mob_buf_puts(out, REPLACEMENT);
      } else {
        s->pending[s->count++] = p[i];
      }
      i++;
    } else if (continues(s->pending[0], s->count, p[i])) {
      s->pending[s->count++] = p[i++];
      if (s->count == width_of(s->pending[0])) {
        mob_buf_append(out, s->pending, s->count);
        s->count = 0;
      }
    } else { // this byte may start a character of its own: it is looked at again
      mob_buf_puts(out, REPLACEMENT);
      s->count = 0;
    }
  }
}

void mob_utf8_lossy_end(mob_utf8_lossy_t *s, mob_buf_t *out) {
  if (s->count) mob_buf_puts(out, REPLACEMENT);
  s->count = 0;
}
