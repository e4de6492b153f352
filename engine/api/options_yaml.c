// --config FILE: a flat YAML map of options.
#include <string.h>
#include <yaml.h>

#include "engine/api/options.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

static const mob_option_t *find(const mob_option_t *table, size_t count, const char *key) {
  for (size_t i = 0; i < count; i++) {
    const char *name = table[i].name + 2, *at = key;
    if (table[i].kind == MOB_OPT_HEAD) continue;
    while (*name && (*name == *at || (*name == '-' && *at == '_'))) name++, at++;
    if (!*name && !*at) return &table[i];
  }
  return NULL;
}

// YAML 1.1's words, as PyYAML reads them.
static int as_bool(const char *text) {
  static const char *const yes[] = {"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"};
  static const char *const no[] = {"false", "False", "FALSE", "no", "No",
                                   "NO",    "off",   "Off",   "OFF"};
  for (size_t i = 0; i < MOB_LEN(yes); i++) {
    if (strcmp(text, yes[i]) == 0) return 1;
    if (strcmp(text, no[i]) == 0) return 0;
  }
  return -1;
}

static mob_status add_pair(const char *path, yaml_document_t *doc, yaml_node_pair_t *pair,
                           const mob_option_t *table, size_t count, mob_strings_t *out) {
  yaml_node_t *key = yaml_document_get_node(doc, pair->key),
              *value = yaml_document_get_node(doc, pair->value);
  if (key->type != YAML_SCALAR_NODE) return mob_fail(MOB_E_FORMAT, "%s: a key is not a text", path);
  const char *name = (const char *)key->data.scalar.value;
  const mob_option_t *opt = find(table, count, name);
  char *flag = mob_sprintf("--%s", name);
  mob_status status = MOB_OK;
  if (value->type == YAML_SCALAR_NODE) {
    const char *text = (const char *)value->data.scalar.value;
    bool plain = value->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    int truth = plain ? as_bool(text) : -1;
    if (truth >= 0 && !(opt && opt->kind == MOB_OPT_BOOL)) {
      if (truth) mob_strings_add(out, flag);
    } else {
      char *joined = mob_sprintf("%s=%s", flag, truth == 1 ? "true" : truth == 0 ? "false" : text);
      mob_strings_add(out, joined); // in one word, so that a value may begin with a dash
      free(joined);
    }
  } else if (value->type == YAML_SEQUENCE_NODE && opt &&
             (opt->kind == MOB_OPT_LIST || opt->kind == MOB_OPT_APPEND)) {
    if (opt->kind == MOB_OPT_LIST) mob_strings_add(out, flag);
    for (yaml_node_item_t *item = value->data.sequence.items.start;
         item < value->data.sequence.items.top; item++) {
      yaml_node_t *node = yaml_document_get_node(doc, *item);
      if (node->type != YAML_SCALAR_NODE) {
        status = mob_fail(MOB_E_FORMAT, "%s: `%s` has an element that is not a text", path, name);
        break;
      }
      if (opt->kind == MOB_OPT_APPEND) mob_strings_add(out, flag);
      mob_strings_add(out, (const char *)node->data.scalar.value);
    }
  } else {
    status =
        mob_fail(MOB_E_FORMAT, "%s: `%s` must be a plain value (the file is a flat map of options)",
                 path, name);
  }
  free(flag);
  return status;
}

mob_status mob_options_read_yaml(const char *path, const mob_option_t *table, size_t count,
                                 mob_strings_t *out) {
  const char *dot = strrchr(path, '.');
  if (!dot || (strcmp(dot, ".yaml") != 0 && strcmp(dot, ".yml") != 0)) {
    return mob_fail(MOB_E_INVALID, "Config file must be of a yaml/yml type. %s supplied",
                    dot ? dot + 1 : path);
  }
  mob_buf_t text = {0};
  mob_status status = mob_file_read(path, 1 << 20, &text);
  if (status != MOB_OK) return mob_wrap(status, "Unable to read the config file at %s", path);
  yaml_parser_t parser;
  yaml_document_t doc;
  yaml_parser_initialize(&parser);
  yaml_parser_set_input_string(&parser, text.data, text.len);
  if (!yaml_parser_load(&parser, &doc)) {
    status = mob_fail(MOB_E_FORMAT, "%s, line %zu: %s", path, parser.problem_mark.line + 1,
                      parser.problem ? parser.problem : "not YAML");
  } else {
    yaml_node_t *root = yaml_document_get_root_node(&doc);
    if (root && root->type != YAML_MAPPING_NODE) {
      status = mob_fail(MOB_E_FORMAT, "%s: the file must be a map of options", path);
    } else if (root) {
      for (yaml_node_pair_t *pair = root->data.mapping.pairs.start;
           status == MOB_OK && pair < root->data.mapping.pairs.top; pair++) {
        status = add_pair(path, &doc, pair, table, count, out);
      }
    }
    yaml_document_delete(&doc);
  }
  yaml_parser_delete(&parser);
  mob_buf_free(&text);
  return status;
}
