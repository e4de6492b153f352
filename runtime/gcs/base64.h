// Base64 as RFC 4648 writes it, with padding.
#ifndef MOB_GCS_BASE64_H
#define MOB_GCS_BASE64_H

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

// Appends the decoded bytes. MOB_E_FORMAT for anything that is no base64.
mob_status mob__base64_decode(const char *text, mob_buf_t *out);

#endif
