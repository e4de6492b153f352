#include "golden.h"

#include <stdio.h>
#include <stdlib.h>

const char *golden_path(const char *name) {
  static char path[4096];
  snprintf(path, sizeof path, "%s/tests/golden/text/%s", MOB_SOURCE_DIR, name);
  return path;
}

json_t *golden_json(const char *name) {
  json_error_t error;
  json_t *json = json_load_file(golden_path(name), JSON_ALLOW_NUL, &error);
  if (json) return json;
  fprintf(stderr, "%s: %s\n", golden_path(name), error.text);
  exit(1);
}
