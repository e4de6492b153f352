#include "engine/api/fields.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "engine/api/json_out.h"
#include "runtime/base/mem.h"

void mob_field_error(mob_field_errors_t *errors, const char *type, const char *loc, const char *msg,
                     const json_t *input) {
  mob_buf_t *out = &errors->text;
  mob_buf_puts(out, errors->count++ ? ", " : "[");
  mob_buf_printf(out, "{'type': '%s', 'loc': ('body'%s%s), 'msg': ", type, *loc ? ", " : ",", loc);
  mob_py_repr_text(out, msg, strlen(msg));
  mob_buf_puts(out, ", 'input': ");
  if (input)
    mob_py_repr(out, input);
  else
    mob_buf_puts(out, "None");
  mob_buf_putc(out, '}');
}

void mob_field_value_error(mob_field_errors_t *errors, const char *msg, const json_t *input) {
  char *full = mob_sprintf("Value error, %s", msg);
  mob_field_error(errors, "value_error", "", full, input);
  errors->text.len--; // reopen the dict
  mob_buf_puts(&errors->text, ", 'ctx': {'error': ValueError(");
  mob_py_repr_text(&errors->text, msg, strlen(msg));
  mob_buf_puts(&errors->text, ")}}");
  free(full);
}

char *mob_field_errors_take(mob_field_errors_t *errors) {
  mob_buf_putc(&errors->text, ']');
  errors->count = 0;
  return mob_buf_steal(&errors->text);
}

static void wrong(mob_field_errors_t *errors, const char *name, const char *type, const char *msg,
                  const json_t *value) {
  mob_buf_t loc = {0};
  mob_py_repr_text(&loc, name, strlen(name));
  mob_field_error(errors, type, mob_buf_cstr(&loc), msg, value);
  mob_buf_free(&loc);
}

static bool read_int(const json_t *value, int64_t *out, const char **type, const char **msg) {
  *type = "int_type";
  *msg = "Input should be a valid integer";
  if (json_is_integer(value)) return *out = json_integer_value(value), true;
  if (json_is_boolean(value)) return *out = json_is_true(value), true;
  if (json_is_real(value)) {
    double real = json_real_value(value);
    *type = "int_from_float";
    *msg = "Input should be a valid integer, got a number with a fractional part";
    if (real != floor(real)) return false;
    *type = "int_parsing_size";
    *msg = "Unable to parse input string as an integer, exceeded maximum size";
    if (fabs(real) > 9e18) return false;
    return *out = (int64_t)real, true;
  }
  if (!json_is_string(value)) return false;
  *type = "int_parsing";
  *msg = "Input should be a valid integer, unable to parse string as an integer";
  char *end;
  errno = 0;
  *out = strtoll(json_string_value(value), &end, 10);
  return *json_string_value(value) && *end == '\0' && errno == 0;
}

static bool read_float(const json_t *value, double *out, const char **type, const char **msg) {
  *type = "float_type";
  *msg = "Input should be a valid number";
  if (json_is_number(value)) return *out = json_number_value(value), true;
  if (json_is_boolean(value)) return *out = json_is_true(value), true;
  if (!json_is_string(value)) return false;
  *type = "float_parsing";
  *msg = "Input should be a valid number, unable to parse string as a number";
  char *end;
  *out = strtod(json_string_value(value), &end);
  return *json_string_value(value) && *end == '\0' && !isnan(*out);
}

static bool read_bool(const json_t *value, bool *out, const char **type, const char **msg) {
  *type = "bool_type";
  *msg = "Input should be a valid boolean";
  if (json_is_boolean(value)) return *out = json_is_true(value), true;
  if (json_is_number(value)) {
    double number = json_number_value(value);
    *type = "bool_parsing";
    *msg = "Input should be a valid boolean, unable to interpret input";
    return *out = number == 1, number == 0 || number == 1;
  }
  if (!json_is_string(value)) return false;
  *type = "bool_parsing";
  *msg = "Input should be a valid boolean, unable to interpret input";
  static const char *const words[] = {"true",  "1", "yes", "on",  "t", "y",
                                      "false", "0", "no",  "off", "f", "n"};
  for (size_t i = 0; i < MOB_LEN(words); i++) {
    if (strcasecmp(words[i], json_string_value(value)) == 0) return *out = i < 6, true;
  }
  return false;
}

static bool read_texts(const json_t *value, mob_strings_t *out, const char **type,
                       const char **msg) {
  *type = "string_type";
  *msg = "Input should be a valid string";
  if (json_is_string(value)) {
    mob_strings_free(out);
    mob_strings_add(out, json_string_value(value));
    return true;
  }
  *type = "list_type";
  *msg = "Input should be a valid list";
  if (!json_is_array(value)) return false;
  mob_strings_free(out);
  size_t i;
  json_t *item;
  json_array_foreach((json_t *)value, i, item) {
    *type = "string_type";
    *msg = "Input should be a valid string";
    if (!json_is_string(item)) return false;
    mob_strings_add(out, json_string_value(item));
  }
  return true;
}

static bool read_ids(const json_t *value, mob_int_list_t *out, const char **type,
                     const char **msg) {
  *type = "list_type";
  *msg = "Input should be a valid list";
  if (!json_is_array(value)) return false;
  size_t i;
  json_t *item;
  json_array_foreach((json_t *)value, i, item) {
    int64_t id;
    if (!read_int(item, &id, type, msg)) return false;
    *mob_vec_push(out) =
        id < INT32_MIN || id > INT32_MAX ? -1 : (int32_t)id; // -1 is out of every vocabulary
  }
  return true;
}

static bool read_field(const mob_field_t *field, const json_t *value, void *at, const char **type,
                       const char **msg) {
  switch (field->kind) {
  case MOB_FIELD_INT:
    return read_int(value, at, type, msg);
  case MOB_FIELD_FLOAT:
    return read_float(value, at, type, msg);
  case MOB_FIELD_BOOL:
    return read_bool(value, at, type, msg);
  case MOB_FIELD_TEXTS:
    return read_texts(value, at, type, msg);
  case MOB_FIELD_IDS:
    return read_ids(value, at, type, msg);
  case MOB_FIELD_TEXT:
    *type = "string_type";
    *msg = "Input should be a valid string";
    return *(const char **)at = json_string_value(value), json_is_string(value);
  case MOB_FIELD_OBJECT:
    *type = "dict_type";
    *msg = "Input should be a valid dictionary";
    return *(const json_t **)at = value, json_is_object(value);
  case MOB_FIELD_ARRAY:
    *type = "list_type";
    *msg = "Input should be a valid list";
    return *(const json_t **)at = value, json_is_array(value);
  case MOB_FIELD_ANY:
    return *(const json_t **)at = value, true;
  }
  return false;
}

void mob_fields_read(const mob_field_t *fields, size_t count, const json_t *body, void *owner,
                     mob_field_errors_t *errors) {
  for (size_t i = 0; i < count; i++) {
    const mob_field_t *field = &fields[i];
    const json_t *value = json_object_get(body, field->name);
    if (!value) {
      if (field->required) wrong(errors, field->name, "missing", "Field required", body);
      continue;
    }
    if (json_is_null(value) && field->nullable) continue;
    const char *type = "", *msg = "";
    if (!read_field(field, value, (char *)owner + field->offset, &type, &msg)) {
      wrong(errors, field->name, type, msg, value);
    }
  }
}

char *mob_fields_unknown(const mob_field_t *fields, size_t count, const json_t *body) {
  mob_buf_t names = {0};
  const char *key;
  json_t *value;
  json_object_foreach((json_t *)body, key, value) {
    size_t i = 0;
    while (i < count && strcmp(fields[i].name, key) != 0) i++;
    if (i == count) mob_buf_printf(&names, "%s%.100s", names.len ? ", " : "", key);
  }
  if (names.len) return mob_buf_steal(&names);
  mob_buf_free(&names); // a field without a name reserved some
  return NULL;
}
