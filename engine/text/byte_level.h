// GPT-2's byte alphabet: every byte is written as one printable character, so that a vocabulary of
// byte strings can be stored as text. Printable Latin-1 bytes stand for themselves, the 68 others
// are U+0100 onwards.
#ifndef MOB_TEXT_BYTE_LEVEL_H
#define MOB_TEXT_BYTE_LEVEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"

// The character that stands for a byte.
uint32_t mob__byte_level_char(uint8_t byte);

// Appends the bytes that `text` (well-formed UTF-8) stands for. When a character is outside the
// alphabet, appends nothing and returns false.
bool mob__byte_level_decode(const char *text, size_t len, mob_buf_t *out);

#endif
