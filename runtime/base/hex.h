// Bytes as lower-case hexadecimal digits, and random ids.
#ifndef MOB_BASE_HEX_H
#define MOB_BASE_HEX_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

// Writes 2 * len digits and a NUL to `out`; returns `out`.
char *mob_hex(const void *bytes, size_t len, char *out);
// MOB_E_FORMAT unless `text` is exactly 2 * len hexadecimal digits.
mob_status mob_unhex(const char *text, void *out, size_t len);
// From the kernel's generator.
void mob_random(void *out, size_t len);

#endif
