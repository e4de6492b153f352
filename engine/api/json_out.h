// Writes JSON in the order it is called: compact, non-ASCII as it is, numbers as Python prints
// them. Commas come by themselves: a value or key that follows another one gets one in front.
#ifndef MOB_API_JSON_OUT_H
#define MOB_API_JSON_OUT_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"

void mob_json_open(mob_buf_t *out, char bracket); // '{' or '['
void mob_json_close(mob_buf_t *out, char bracket);
void mob_json_key(mob_buf_t *out, const char *key);
void mob_json_text(mob_buf_t *out, const char *text, size_t len); // UTF-8
void mob_json_int(mob_buf_t *out, int64_t value);
void mob_json_double(mob_buf_t *out, double value); // not finite: null
void mob_json_bool(mob_buf_t *out, bool value);
void mob_json_null(mob_buf_t *out);
void mob_json_raw(mob_buf_t *out, const char *json, size_t len); // a value that is JSON already

// Key and value in one; a NULL text writes null.
void mob_json_put_text(mob_buf_t *out, const char *key, const char *text);
void mob_json_put_int(mob_buf_t *out, const char *key, int64_t value);
void mob_json_put_bool(mob_buf_t *out, const char *key, bool value);
void mob_json_put_null(mob_buf_t *out, const char *key);

// The shortest decimal that reads back as `value`, written as Python's repr() does: "1.0", "1e-05",
// "-0.25".
void mob_json_float(mob_buf_t *out, double value);
// The text between the quotes of json.dumps(): everything but ASCII as \uXXXX.
void mob_json_ascii(mob_buf_t *out, const char *text, size_t len);
// Python's repr() of a JSON value: what a pydantic error shows as its input.
void mob_py_repr(mob_buf_t *out, const json_t *value);
void mob_py_repr_text(mob_buf_t *out, const char *text, size_t len);

#endif
