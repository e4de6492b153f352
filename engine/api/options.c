#include "engine/api/options.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/mem.h"
#define MOB_LOG_COMPONENT "vllm"
#include "runtime/base/log.h"

void mob_strings_add(mob_strings_t *strings, const char *text) {
  *mob_vec_push(strings) = mob_strdup(text);
}

void mob_strings_free(mob_strings_t *strings) {
  for (size_t i = 0; i < strings->len; i++) free(strings->at[i]);
  mob_vec_free(strings);
}

static bool in_choices(const char *choices, const char *value) {
  size_t len = strlen(value);
  for (const char *at = choices; at; at = strchr(at, '|') ? strchr(at, '|') + 1 : NULL) {
    if (strncmp(at, value, len) == 0 && (at[len] == '|' || at[len] == '\0')) return true;
  }
  return false;
}

static mob_status bad_value(const mob_option_t *opt, const char *what, const char *value) {
  return mob_fail(MOB_E_INVALID, "argument %s%s%s: invalid %s value: '%s'", opt->name,
                  opt->brief ? "/" : "", opt->brief ? opt->brief : "", what, value);
}

static bool parse_length(const char *value, int64_t *out) {
  if (strcmp(value, "auto") == 0) {
    *out = -1;
    return true;
  }
  char *end;
  errno = 0;
  double number = strtod(value, &end);
  if (end == value || !isfinite(number) || isspace((unsigned char)*value)) return false;
  static const struct {
    char letter;
    double factor;
  } units[] = {{'k', 1e3},    {'m', 1e6},       {'g', 1e9},
               {'K', 1024.0}, {'M', 1048576.0}, {'G', 1073741824.0}};
  double factor = 1;
  for (size_t i = 0; i < MOB_LEN(units); i++) {
    if (*end == units[i].letter && end[1] == '\0') factor = units[i].factor, end++;
  }
  number *= factor;
  if (*end || number != floor(number) || fabs(number) > 9e15) return false;
  *out = (int64_t)number;
  return true;
}

static mob_status set_text(const mob_option_t *opt, char **field, const char *value) {
  if (opt->kind == MOB_OPT_JSON) {
    json_error_t error;
    json_t *json = json_loads(value, JSON_DECODE_ANY, &error);
    if (!json) return bad_value(opt, "JSON", value);
    json_decref(json);
  }
  free(*field);
  bool none = opt->kind == MOB_OPT_TEXT && (*value == '\0' || strcmp(value, "None") == 0);
  *field = none ? NULL : mob_strdup(value);
  return MOB_OK;
}

static bool truth(const char *value, int *out) {
  if (strcasecmp(value, "true") == 0) return *out = 1, true;
  if (strcasecmp(value, "false") == 0) return *out = 0, true;
  return false;
}

// `value` is NULL for an option without one; `first` is false for the further values of a list.
static mob_status set_value(const mob_option_t *opt, void *owner, const char *value, bool first) {
  union {
    int64_t i;
    double d;
    bool b;
    int t;
    char *s;
    mob_strings_t v;
  } scratch;
  memset(&scratch, 0, sizeof scratch);
  void *field = opt->field == MOB_OPT_NO_FIELD ? (void *)&scratch : (char *)owner + opt->field;
  mob_status status = MOB_OK;
  if (value && opt->choices && !in_choices(opt->choices, value)) {
    return mob_fail(MOB_E_INVALID, "argument %s: invalid choice: '%s' (choose from %s)", opt->name,
                    value, opt->choices);
  }
  char *end;
  errno = 0;
  switch (opt->kind) {
  case MOB_OPT_HEAD:
    break;
  case MOB_OPT_FLAG:
    *(bool *)field = true;
    break;
  case MOB_OPT_PAIR:
    *(int *)field = value == NULL;
    break;
  case MOB_OPT_BOOL:
    if (!truth(value ? value : "true", field)) return bad_value(opt, "boolean", value);
    break;
  case MOB_OPT_INT:
    *(int64_t *)field = strtoll(value, &end, 10);
    if (end == value || *end || errno) return bad_value(opt, "int", value);
    break;
  case MOB_OPT_LENGTH:
    if (!parse_length(value, field)) return bad_value(opt, "int", value);
    break;
  case MOB_OPT_FLOAT:
    *(double *)field = strtod(value, &end);
    if (end == value || *end || !isfinite(*(double *)field)) return bad_value(opt, "float", value);
    break;
  case MOB_OPT_TEXT:
  case MOB_OPT_JSON:
    status = set_text(opt, field, value);
    if (opt->field == MOB_OPT_NO_FIELD) free(scratch.s);
    break;
  case MOB_OPT_LIST:
    if (first) mob_strings_free(field);
    // fall through
  case MOB_OPT_APPEND:
    mob_strings_add(field, value);
    if (opt->field == MOB_OPT_NO_FIELD) mob_strings_free(&scratch.v);
    break;
  }
  return status;
}

void mob_options_init(const mob_option_t *table, size_t count, void *owner) {
  for (size_t i = 0; i < count; i++) {
    const mob_option_t *opt = &table[i];
    if (opt->field == MOB_OPT_NO_FIELD) continue;
    if (opt->kind == MOB_OPT_PAIR || opt->kind == MOB_OPT_BOOL)
      *(int *)((char *)owner + opt->field) = -1;
    if (opt->kind == MOB_OPT_LENGTH) *(int64_t *)((char *)owner + opt->field) = -1;
    if (opt->initial && opt->kind != MOB_OPT_FLAG) {
      mob_status status = set_value(opt, owner, opt->initial, true);
      MOB_ASSERT(status == MOB_OK);
    }
  }
}

void mob_options_clear(const mob_option_t *table, size_t count, void *owner) {
  for (size_t i = 0; i < count; i++) {
    if (table[i].field == MOB_OPT_NO_FIELD) continue;
    void *field = (char *)owner + table[i].field;
    switch (table[i].kind) {
    case MOB_OPT_TEXT:
    case MOB_OPT_JSON:
      free(*(char **)field);
      *(char **)field = NULL;
      break;
    case MOB_OPT_LIST:
    case MOB_OPT_APPEND:
      mob_strings_free(field);
      break;
    default:
      break;
    }
  }
}

// -------------------------------------------------------------------------------------------
// lookup

static size_t distance(const char *a, const char *b) { // Levenshtein
  size_t n = strlen(b);
  if (n > 127) return 1000;
  size_t row[128];
  for (size_t j = 0; j <= n; j++) row[j] = j;
  for (size_t i = 1; a[i - 1]; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= n; j++) {
      size_t up = row[j];
      size_t best = diagonal + (a[i - 1] != b[j - 1]);
      if (up + 1 < best) best = up + 1;
      if (row[j - 1] + 1 < best) best = row[j - 1] + 1;
      row[j] = best;
      diagonal = up;
    }
  }
  return row[n];
}

static const char *nearest(const mob_option_t *table, size_t count, const char *name) {
  const char *best = NULL;
  size_t best_distance = strlen(name) / 3 + 1;
  for (size_t i = 0; i < count; i++) {
    if (table[i].kind == MOB_OPT_HEAD) continue;
    size_t d = distance(name, table[i].name);
    if (d <= best_distance) {
      best_distance = d;
      best = table[i].name;
    }
  }
  return best;
}

typedef struct found {
  const mob_option_t *opt; // NULL: unknown
  bool negated;            // --no-x
  bool help;
} found_t;

// A long name: exact, else an unambiguous prefix as argparse allows.
static mob_status find_long(const mob_option_t *table, size_t count, const char *name,
                            found_t *out) {
  *out = (found_t){0};
  if (strcmp(name, "--help") == 0) {
    out->help = true;
    return MOB_OK;
  }
  found_t prefix = {0};
  mob_buf_t matches = {0};
  size_t hits = 0, len = strlen(name);
  for (size_t i = 0; i < count; i++) {
    const mob_option_t *opt = &table[i];
    if (opt->kind == MOB_OPT_HEAD) continue;
    for (int negated = 0; negated <= (opt->kind == MOB_OPT_PAIR); negated++) {
      char full[96];
      snprintf(full, sizeof full, negated ? "--no-%s" : "--%s", opt->name + 2);
      if (strcmp(full, name) == 0) {
        *out = (found_t){opt, negated, false};
        mob_buf_free(&matches);
        return MOB_OK;
      }
      if (strncmp(full, name, len) != 0) continue;
      prefix = (found_t){opt, negated, false};
      mob_buf_printf(&matches, "%s%s", hits++ ? ", " : "", full);
    }
  }
  mob_status status = MOB_OK;
  if (hits == 1)
    *out = prefix;
  else if (hits > 1 && len > 2) {
    status = mob_fail(MOB_E_INVALID, "ambiguous option: %s could match %s", name,
                      mob_buf_cstr(&matches));
  }
  mob_buf_free(&matches);
  return status;
}

// A short one: exact, or a one-letter option with its value behind it (-qfp8, -O3). *value is set
// in that case.
static found_t find_brief(const mob_option_t *table, size_t count, const char *arg, size_t len,
                          const char **value) {
  if (len == 2 && strncmp(arg, "-h", 2) == 0) return (found_t){.help = true};
  for (size_t i = 0; i < count; i++) {
    const char *brief = table[i].brief;
    if (brief && strlen(brief) == len && strncmp(brief, arg, len) == 0)
      return (found_t){.opt = &table[i]};
  }
  for (size_t i = 0; i < count; i++) {
    const char *brief = table[i].brief;
    if (!brief || strlen(brief) != 2 || strncmp(brief, arg, 2) != 0) continue;
    *value = arg + 2;
    return (found_t){.opt = &table[i]};
  }
  return (found_t){0};
}

static bool looks_like_option(const char *arg) {
  if (arg[0] != '-' || arg[1] == '\0') return false;
  char *end;
  strtod(arg, &end); // a negative number is a value
  if (*end == '\0') return false;
  size_t name = strcspn(arg, "=");
  return memchr(arg, ' ', name) == NULL;
}

// --------------------------------------------------------------------------------------------
// parse

typedef struct parse {
  const mob_option_t *table;
  size_t count;
  void *owner;
  int argc, at;
  char **argv;
  mob_options_parsed_t *parsed;
  mob_buf_t unknown;
} parse_t;

static mob_status take_values(parse_t *p, const mob_option_t *opt, bool negated,
                              const char *value) {
  const char *next = p->at < p->argc && !looks_like_option(p->argv[p->at]) ? p->argv[p->at] : NULL;
  p->parsed->given[opt - p->table] = true;
  switch (opt->kind) {
  case MOB_OPT_FLAG:
  case MOB_OPT_PAIR:
    if (value)
      return mob_fail(MOB_E_INVALID, "argument %s: ignored explicit argument '%s'", opt->name,
                      value);
    return set_value(opt, p->owner, negated ? "no" : NULL, true);
  case MOB_OPT_BOOL:
    if (!value && next) p->at++, value = next;
    return set_value(opt, p->owner, value, true);
  case MOB_OPT_LIST:
    if (value) return set_value(opt, p->owner, value, true);
    if (!next)
      return mob_fail(MOB_E_INVALID, "argument %s: expected at least one argument", opt->name);
    for (bool first = true; p->at < p->argc && !looks_like_option(p->argv[p->at]); first = false) {
      MOB_TRY(set_value(opt, p->owner, p->argv[p->at++], first));
    }
    return MOB_OK;
  default:
    if (!value && !next)
      return mob_fail(MOB_E_INVALID, "argument %s: expected one argument", opt->name);
    if (!value) p->at++, value = next;
    return set_value(opt, p->owner, value, true);
  }
}

static void note_unknown(parse_t *p, const char *arg, const char *name) {
  const char *hint = nearest(p->table, p->count, name);
  mob_buf_printf(&p->unknown, "%s%s", p->unknown.len ? " " : "", arg);
  if (hint) mob_buf_printf(&p->unknown, " (did you mean %s?)", hint);
}

static mob_status parse_one(parse_t *p, bool *only_positionals) {
  char *arg = p->argv[p->at++];
  if (*only_positionals || !looks_like_option(arg)) {
    mob_strings_add(&p->parsed->positionals, arg);
    return MOB_OK;
  }
  if (strcmp(arg, "--") == 0) {
    *only_positionals = true;
    return MOB_OK;
  }
  const char *equals = strchr(arg, '=');
  const char *value = equals ? equals + 1 : NULL;
  size_t len = equals ? (size_t)(equals - arg) : strlen(arg);
  char *name = mob_strndup(arg, len);
  found_t found = {0};
  mob_status status = MOB_OK;
  if (arg[1] == '-') {
    for (char *c = name + 2; *c; c++) {
      if (*c == '_') *c = '-';
    }
    status = find_long(p->table, p->count, name, &found);
  } else {
    found = find_brief(p->table, p->count, arg, len, &value);
  }
  if (status == MOB_OK) {
    if (found.help)
      p->parsed->help = true;
    else if (found.opt)
      status = take_values(p, found.opt, found.negated, value);
    else
      note_unknown(p, arg, name);
  }
  free(name);
  return status;
}

mob_status mob_options_parse(const mob_option_t *table, size_t count, void *owner, int argc,
                             char **argv, mob_options_parsed_t *parsed) {
  parse_t p = {table, count, owner, argc, 0, argv, parsed, {0}};
  if (!parsed->given) parsed->given = MOB_NEW_ARRAY(bool, count);
  mob_status status = MOB_OK;
  bool only_positionals = false;
  while (p.at < argc && status == MOB_OK) status = parse_one(&p, &only_positionals);
  if (status == MOB_OK && p.unknown.len && !parsed->help) {
    status = mob_fail(MOB_E_INVALID, "unrecognized arguments: %s", mob_buf_cstr(&p.unknown));
  }
  mob_buf_free(&p.unknown);
  return status;
}

void mob_options_parsed_free(mob_options_parsed_t *parsed) {
  mob_strings_free(&parsed->positionals);
  free(parsed->given);
  parsed->given = NULL;
}

bool mob_options_given(const mob_option_t *table, size_t count, const mob_options_parsed_t *parsed,
                       const char *name) {
  for (size_t i = 0; i < count; i++) {
    if (strcmp(table[i].name, name) == 0) return parsed->given && parsed->given[i];
  }
  return false;
}

void mob_options_warn(const mob_option_t *table, size_t count, const mob_options_parsed_t *parsed) {
  for (size_t i = 0; i < count; i++) {
    if (!parsed->given[i] || table[i].effect == MOB_OPT_ACTS) continue;
    MOB_WARN("%s has no effect here: %s", table[i].name, table[i].help);
  }
}

// ---------------------------------------------------------------------------------------------
// help

static void put_wrapped(FILE *out, const char *text, size_t indent, size_t width) {
  size_t column = indent;
  for (const char *at = text; *at;) {
    size_t word = strcspn(at, " ");
    if (column > indent && column + 1 + word > width) {
      fprintf(out, "\n%*s", (int)indent, "");
      column = indent;
    } else if (column > indent) {
      fputc(' ', out);
      column++;
    }
    fprintf(out, "%.*s", (int)word, at);
    column += word;
    at += word;
    while (*at == ' ') at++;
  }
  fputc('\n', out);
}

static void put_option(const mob_option_t *opt, FILE *out) {
  mob_buf_t left = {0}, right = {0};
  mob_buf_printf(&left, "  %s%s%s", opt->brief ? opt->brief : "", opt->brief ? ", " : "",
                 opt->name);
  if (opt->kind == MOB_OPT_PAIR)
    mob_buf_printf(&left, ", --no-%s", opt->name + 2);
  else if (opt->choices && strlen(opt->choices) < 50)
    mob_buf_printf(&left, " {%s}", opt->choices);
  else {
    static const char *const shown[] = {[MOB_OPT_BOOL] = " [true|false]",
                                        [MOB_OPT_INT] = " N",
                                        [MOB_OPT_LENGTH] = " N",
                                        [MOB_OPT_FLOAT] = " X",
                                        [MOB_OPT_TEXT] = " TEXT",
                                        [MOB_OPT_JSON] = " JSON",
                                        [MOB_OPT_LIST] = " NAME [NAME ...]",
                                        [MOB_OPT_APPEND] = " TEXT"};
    if (opt->kind != MOB_OPT_FLAG) mob_buf_puts(&left, shown[opt->kind]);
  }
  mob_buf_printf(&right, "%s%s",
                 opt->effect == MOB_OPT_ACTS ? "" : "Accepted without effect: ", opt->help);
  if (opt->choices && strlen(opt->choices) >= 50) {
    mob_buf_puts(&right, " One of: ");
    for (const char *at = opt->choices; *at; at++)
      mob_buf_puts(&right, *at == '|' ? ", " : (char[]){*at, 0});
    mob_buf_puts(&right, ".");
  }
  if (opt->initial && opt->effect == MOB_OPT_ACTS)
    mob_buf_printf(&right, " (default: %s)", opt->initial);
  size_t column = 34;
  fputs(mob_buf_cstr(&left), out);
  if (left.len + 2 > column)
    fprintf(out, "\n%*s", (int)column, "");
  else
    fprintf(out, "%*s", (int)(column - left.len), "");
  put_wrapped(out, mob_buf_cstr(&right), column, 100);
  mob_buf_free(&left);
  mob_buf_free(&right);
}

void mob_options_help(const mob_option_t *table, size_t count, FILE *out) {
  for (size_t i = 0; i < count; i++) {
    if (table[i].kind == MOB_OPT_HEAD)
      fprintf(out, "\n%s:\n", table[i].name);
    else if (*table[i].help) // without: described elsewhere
      put_option(&table[i], out);
  }
}
