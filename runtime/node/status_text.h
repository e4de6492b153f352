// The text of `ray status`, from the report that the GCS keeps for it (KV "__autoscaling_status").
#ifndef MOB_NODE_STATUS_TEXT_H
#define MOB_NODE_STATUS_TEXT_H

#include <stdbool.h>
#include <stddef.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"

// MOB_E_FORMAT when the report is not the JSON that it should be.
mob_status mob_status_text(const char *json, size_t len, bool verbose, mob_buf_t *out);

#endif
