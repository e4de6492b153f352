// Typed fields of a JSON body, with the conversions and the error texts of pydantic v2 (FastAPI's
// validator): "5" is an integer, 1.0 too; every wrong field is named in one message.
#ifndef MOB_API_FIELDS_H
#define MOB_API_FIELDS_H

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine/api/options.h"
#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

#define MOB_UNSET INT64_MIN // an integer field that is null or absent; NAN for a float

typedef MOB_VEC(int32_t) mob_int_list_t;

typedef enum mob_field_kind {
  MOB_FIELD_INT,    // int64_t
  MOB_FIELD_FLOAT,  // double
  MOB_FIELD_BOOL,   // bool
  MOB_FIELD_TEXT,   // const char *, borrowed from the JSON
  MOB_FIELD_TEXTS,  // mob_strings_t: a text or a list of texts
  MOB_FIELD_IDS,    // mob_int_list_t
  MOB_FIELD_OBJECT, // json_t *, borrowed
  MOB_FIELD_ARRAY,  // json_t *, borrowed
  MOB_FIELD_ANY,    // json_t *, borrowed
} mob_field_kind_t;

typedef struct mob_field {
  const char *name;
  mob_field_kind_t kind;
  bool required, nullable;
  int offset;
} mob_field_t;

// The errors of a body, as str(RequestValidationError) writes them.
typedef struct mob_field_errors {
  mob_buf_t text;
  size_t count;
} mob_field_errors_t;

void mob_field_error(mob_field_errors_t *errors, const char *type, const char *loc, const char *msg,
                     const json_t *input);
// A model validator's ValueError.
void mob_field_value_error(mob_field_errors_t *errors, const char *msg, const json_t *input);
// The whole message, "[{...}, {...}]"; the caller frees.
char *mob_field_errors_take(mob_field_errors_t *errors);

// Reads the fields that `body` (an object) has. Absent ones keep their value; null ones do, when
// nullable.
void mob_fields_read(const mob_field_t *fields, size_t count, const json_t *body, void *owner,
                     mob_field_errors_t *errors);
// Names in `body` that no field has, joined with ", "; NULL when there is none. The caller frees.
char *mob_fields_unknown(const mob_field_t *fields, size_t count, const json_t *body);

#endif
