#include "engine/model/directory.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/config.h"
#include "runtime/base/buf.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/base/vec.h"

enum { MAX_JSON = 256 << 20, MAX_DEPTH = 3, MAX_FOLDERS = 10000 };

mob_status mob__json_file(const char *path, json_t **out) {
  mob_buf_t text = {0};
  json_error_t error;
  mob_status status = mob_file_read(path, MAX_JSON, &text);
  if (status == MOB_OK) {
    *out = json_loadb((const char *)text.data, text.len, JSON_REJECT_DUPLICATES, &error);
    if (!*out) {
      status = mob_fail(MOB_E_FORMAT, "%s: line %d: %s", path, error.line, error.text);
    } else if (!json_is_object(*out)) {
      json_decref(*out);
      *out = NULL;
      status = mob_fail(MOB_E_FORMAT, "%s: not a JSON object", path);
    }
  }
  mob_buf_free(&text);
  return status;
}

static bool has_config(const char *dir) {
  char *path = mob_path_join(dir, "config.json");
  bool found = mob_file_exists(path);
  free(path);
  return found;
}

typedef struct search {
  MOB_VEC(char *) found;
  int visited;
} search_t;

static void search_below(search_t *s, const char *dir, int depth) {
  DIR *d = opendir(dir);
  if (!d) return;
  struct dirent *entry;
  while ((entry = readdir(d)) && s->visited < MAX_FOLDERS) {
    if (entry->d_name[0] == '.') continue;
    char *path = mob_path_join(dir, entry->d_name);
    if (mob_is_dir(path)) {
      s->visited++;
      if (has_config(path))
        *mob_vec_push(&s->found) = mob_strdup(path);
      else if (depth < MAX_DEPTH)
        search_below(s, path, depth + 1);
    }
    free(path);
  }
  closedir(d);
}

mob_status mob__model_find_dir(const char *dir, bool search, char **out) {
  if (!mob_is_dir(dir))
    return mob_fail(MOB_E_NOT_FOUND, "%s: there is no such model directory", dir);
  if (has_config(dir)) {
    *out = mob_strdup(dir);
    return MOB_OK;
  }
  if (!search) return mob_fail(MOB_E_NOT_FOUND, "%s: there is no config.json", dir);
  search_t s = {0};
  mob_status status = MOB_OK;
  search_below(&s, dir, 1);
  if (s.found.len == 1) {
    *out = mob_strdup(s.found.at[0]);
  } else if (s.found.len == 0) {
    status = mob_fail(MOB_E_NOT_FOUND,
                      "%s: there is no config.json here nor in folders up to %d levels below", dir,
                      MAX_DEPTH);
  } else {
    status = mob_fail(MOB_E_INVALID,
                      "%s: several folders below have a config.json (%s, %s%s): name one of them",
                      dir, s.found.at[0], s.found.at[1], s.found.len > 2 ? ", ..." : "");
  }
  for (size_t i = 0; i < s.found.len; i++) free(s.found.at[i]);
  mob_vec_free(&s.found);
  return status;
}

// Objects are merged field by field, everything else is replaced.
static void merge(json_t *into, json_t *from) {
  const char *key;
  json_t *value;
  json_object_foreach(from, key, value) {
    json_t *old = json_object_get(into, key);
    if (json_is_object(old) && json_is_object(value))
      merge(old, value);
    else
      json_object_set(into, key, value);
  }
}

mob_status mob__model_config(const char *dir, const char *overrides, json_t **out) {
  char *path = mob_path_join(dir, "config.json");
  mob_status status = mob__json_file(path, out);
  free(path);
  if (status != MOB_OK || !overrides || !*overrides) return status;
  json_error_t error;
  json_t *over = json_loads(overrides, JSON_REJECT_DUPLICATES, &error);
  if (json_is_object(over))
    merge(*out, over);
  else
    status = mob_fail(MOB_E_INVALID, "--hf-overrides: %s", over ? "not a JSON object" : error.text);
  json_decref(over);
  return status;
}

static mob_status add_eos(const char *file, const json_t *value, mob_generation_defaults_t *out) {
  size_t count = json_is_array(value) ? json_array_size(value) : 1;
  if (!value || json_is_null(value)) return MOB_OK;
  for (size_t i = 0; i < count; i++) {
    const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
    if (!json_is_integer(id) || json_integer_value(id) < -1 || json_integer_value(id) > INT32_MAX)
      return mob_fail(MOB_E_INVALID, "%s: eos_token_id is neither an id nor a list of ids", file);
    int32_t eos = (int32_t)json_integer_value(id);
    int k = 0;
    while (k < out->eos_count && out->eos_ids[k] != eos) k++;
    if (eos < 0 || k < out->eos_count) continue;
    if (out->eos_count == (int)MOB_LEN(out->eos_ids))
      return mob_fail(MOB_E_UNSUPPORTED, "%s: more than %zu eos_token_ids", file,
                      MOB_LEN(out->eos_ids));
    out->eos_ids[out->eos_count++] = eos;
  }
  return MOB_OK;
}

static mob_status read_number(const json_t *root, const char *key, bool *has, double *out) {
  const json_t *value = json_object_get(root, key);
  *has = value && !json_is_null(value);
  if (!*has) return MOB_OK;
  if (!json_is_number(value))
    return mob_fail(MOB_E_INVALID, "generation_config.json: %s is not a number", key);
  *out = json_number_value(value);
  return MOB_OK;
}

mob_status mob__model_generation(const char *dir, const json_t *config,
                                 mob_generation_defaults_t *out) {
  MOB_TRY(add_eos("config.json", json_object_get(config, "eos_token_id"), out));
  char *path = mob_path_join(dir, "generation_config.json");
  json_t *root = NULL;
  double top_k = 0;
  mob_status status = mob__json_file(path, &root);
  free(path);
  if (status == MOB_E_NOT_FOUND) return MOB_OK;
  if (status == MOB_OK)
    status = add_eos("generation_config.json", json_object_get(root, "eos_token_id"), out);
  if (status == MOB_OK)
    status = read_number(root, "temperature", &out->has_temperature, &out->temperature);
  if (status == MOB_OK) status = read_number(root, "top_p", &out->has_top_p, &out->top_p);
  if (status == MOB_OK) status = read_number(root, "top_k", &out->has_top_k, &top_k);
  if (status == MOB_OK)
    status = read_number(root, "repetition_penalty", &out->has_repetition_penalty,
                         &out->repetition_penalty);
  out->top_k = top_k > -2 && top_k < 1e9 ? (int)top_k : 0;
  json_decref(root);
  return status;
}
