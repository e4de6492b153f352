#include "engine/text/byte_level.h"

#include "runtime/base/utf8.h"

static bool stands_for_itself(uint32_t c) {
  return (c >= 0x21 && c <= 0x7E) || (c >= 0xA1 && c <= 0xFF && c != 0xAD);
}

// The bytes that do not stand for themselves are, in order, 00-20, 7F-A0 and AD.
uint32_t mob__byte_level_char(uint8_t byte) {
  if (stands_for_itself(byte)) return byte;
  if (byte <= 0x20) return 0x100u + byte;
  if (byte <= 0xA0) return 0x100u + 0x21 + (byte - 0x7Fu);
  return 0x100u + 0x21 + 0x22;
}

static int byte_of(uint32_t c) {
  if (c < 0x100) return stands_for_itself(c) ? (int)c : -1;
  c -= 0x100;
  if (c <= 0x20) return (int)c;
  c -= 0x21;
  if (c < 0x22) return (int)(0x7F + c);
  return c == 0x22 ? 0xAD : -1;
}

bool mob__byte_level_decode(const char *text, size_t len, mob_buf_t *out) {
  size_t before = out->len;
  for (size_t i = 0; i < len;) {
    size_t width;
    int byte = byte_of(mob_utf8_decode(text + i, &width));
    if (byte < 0) {
      out->len = before;
      return false;
    }
    mob_buf_putc(out, (char)byte);
    i += width;
  }
  return true;
}
