// JSON values as the text of Ray's listings: one cell of a table, or YAML as PyYAML writes it
// (indent 4).
#ifndef MOB_NODE_YAML_TEXT_H
#define MOB_NODE_YAML_TEXT_H

#include <jansson.h>

#include "runtime/base/buf.h"

// "True", "4.0", "a: 1.0\nb: 2.0"; NULL for null and for "". The caller frees.
char *mob_cell_text(const json_t *value);

// "---", the rows, "...".
void mob_yaml_list(mob_buf_t *out, const json_t *rows);

#endif
