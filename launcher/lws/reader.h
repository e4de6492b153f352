// Typed reading of YAML maps: each function takes the field's type from the caller, and puts a
// message with file, line, field, cause and fix into the manifest when the document says otherwise.
#ifndef MOB_LWS_READER_H
#define MOB_LWS_READER_H

#include "launcher/lws/manifest.h"
#include "launcher/lws/yaml.h"

typedef struct mob_lws_reader {
  mob_lws_manifest_t *manifest;
  const char *file;
} mob_lws_reader_t;

// A node and the path that leads to it. `node` is NULL for an absent field.
typedef struct mob_lws_at {
  const mob_yaml_node_t *node;
  const char *path;
  int line;
} mob_lws_at_t;

void mob__rd_error(mob_lws_reader_t *r, mob_lws_at_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void mob__rd_warn(mob_lws_reader_t *r, mob_lws_at_t at, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

mob_lws_at_t mob__rd_field(mob_lws_reader_t *r, mob_lws_at_t map,
                           const char *key); // a null counts as absent
mob_lws_at_t mob__rd_item(mob_lws_reader_t *r, mob_lws_at_t list, size_t i);

// The field as a map or a list; absent (node NULL) also when it has another type, which is
// reported.
mob_lws_at_t mob__rd_map(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool required);
mob_lws_at_t mob__rd_list(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool required);

const char *mob__rd_string(mob_lws_reader_t *r, mob_lws_at_t map, const char *key,
                           bool required); // or NULL
int64_t mob__rd_int(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, int64_t min,
                    int64_t max, int64_t fallback);
bool mob__rd_bool(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, bool fallback);
// Index of the field's value in `names` (ends with NULL); `fallback` when absent or wrong.
int mob__rd_enum(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, const char *const *names,
                 int fallback);
mob_lws_strings_t mob__rd_strings(mob_lws_reader_t *r, mob_lws_at_t map, const char *key);
// A map of strings; with `placeholders` values such as <your-model> are taken with a warning.
mob_lws_pair_list_t mob__rd_pairs(mob_lws_reader_t *r, mob_lws_at_t map, const char *key);
// A port as a number or a name.
void mob__rd_port(mob_lws_reader_t *r, mob_lws_at_t map, const char *key, int *port,
                  const char **name);

// Every key must be one of the space-separated `known`, or of `ignored`: fields of the API that are
// not simulated here, which are noted once.
void mob__rd_keys(mob_lws_reader_t *r, mob_lws_at_t map, const char *known, const char *ignored);

bool mob__rd_is_name(const char *text, bool letter_first, size_t max); // DNS label
#endif
