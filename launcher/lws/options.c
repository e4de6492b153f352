#include "launcher/lws/options.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int mob__usage_error(const char *command, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  fprintf(stderr, "mobula lws %s: ", command);
  vfprintf(stderr, fmt, args);
  fprintf(stderr, "\nTry 'mobula lws %s --help'.\n", command);
  va_end(args);
  return 2;
}

static void print_help(const mob_lws_usage_t *u) {
  printf("usage: mobula lws %s [OPTION...] %s\n\n%s\n\noptions:\n", u->command, u->args, u->about);
  for (size_t i = 0; i <= u->count; i++) {
    static const mob_lws_option_t help = {
        "help", NULL, MOB_LWS_OPT_FLAG, NULL, "print this and exit", 0};
    const mob_lws_option_t *o = i < u->count ? &u->options[i] : &help;
    char left[80];
    snprintf(left, sizeof left, "--%s%s%s%s", o->name,
             o->kind == MOB_LWS_OPT_MAYBE ? "[="
             : o->arg                     ? " "
                                          : "",
             o->arg ? o->arg : "", o->kind == MOB_LWS_OPT_MAYBE ? "]" : "");
    // Help lines are wrapped in the table by newlines.
    printf("  %-26s%s", left, strlen(left) > 25 ? "\n                            " : "");
    for (const char *p = o->help; *p; p++) {
      putchar(*p);
      if (*p == '\n') printf("                            ");
    }
    putchar('\n');
  }
}

static bool parse_number(const char *text, double *out) {
  char *end;
  errno = 0;
  *out = strtod(text, &end);
  return end != text && *end == 0 && errno == 0 && isfinite(*out);
}

static int store(const mob_lws_usage_t *u, const mob_lws_option_t *o, const char *value) {
  double number;
  char *end;
  switch (o->kind) {
  case MOB_LWS_OPT_FLAG:
    *(bool *)o->value = true;
    return -1;
  case MOB_LWS_OPT_STRING:
    *(const char **)o->value = value;
    return -1;
  case MOB_LWS_OPT_WORDS:
    *mob_vec_push((mob_lws_words_t *)o->value) = value;
    return -1;
  case MOB_LWS_OPT_INT: {
    errno = 0;
    long long n = strtoll(value, &end, 10);
    if (end == value || *end || errno || n < 0) {
      return mob__usage_error(u->command, "--%s needs a whole number from 0 on, not \"%s\"",
                              o->name, value);
    }
    *(int64_t *)o->value = n;
    return -1;
  }
  case MOB_LWS_OPT_MAYBE:
    if (!value) {
      *(double *)o->value = INFINITY;
      return -1;
    } // fall through
  case MOB_LWS_OPT_NUMBER:
    if (!parse_number(value, &number) || number <= 0) {
      return mob__usage_error(u->command, "--%s needs a number above 0, not \"%s\"", o->name,
                              value);
    }
    *(double *)o->value = number;
    return -1;
  }
  return -1;
}

// The option whose name begins with what was typed, or shares its first letters.
static const char *nearest(const mob_lws_usage_t *u, const char *name, size_t len) {
  const char *best = NULL;
  size_t best_len = 1;
  for (size_t i = 0; i < u->count; i++) {
    size_t n = 0;
    while (n < len && u->options[i].name[n] == name[n]) n++;
    if (n > best_len) {
      best = u->options[i].name;
      best_len = n;
    }
  }
  return best;
}

static int parse_option(const mob_lws_usage_t *u, const char *text, int argc, char **argv, int *i) {
  const char *name = text + 2, *equal = strchr(name, '=');
  size_t len = equal ? (size_t)(equal - name) : strlen(name);
  for (size_t k = 0; k < u->count; k++) {
    const mob_lws_option_t *o = &u->options[k];
    if (strlen(o->name) != len || strncmp(o->name, name, len) != 0) continue;
    const char *value = equal ? equal + 1 : NULL;
    if (o->kind == MOB_LWS_OPT_FLAG && value)
      return mob__usage_error(u->command, "--%s takes no value", o->name);
    if (o->kind != MOB_LWS_OPT_FLAG && o->kind != MOB_LWS_OPT_MAYBE && !value) {
      if (*i + 1 >= argc)
        return mob__usage_error(u->command, "--%s needs a value: --%s %s", o->name, o->name,
                                o->arg);
      value = argv[++*i];
    }
    return store(u, o, value);
  }
  const char *hint = nearest(u, name, len);
  return hint ? mob__usage_error(u->command, "unknown option %s; did you mean --%s?", text, hint)
              : mob__usage_error(u->command, "unknown option %s", text);
}

static const mob_lws_option_t *by_letter(const mob_lws_usage_t *u, const char *arg) {
  for (size_t i = 0; i < u->count; i++) {
    if (u->options[i].letter && u->options[i].letter == arg[1] && !arg[2]) return &u->options[i];
  }
  return NULL;
}

int mob__options_parse(const mob_lws_usage_t *u, int argc, char **argv, mob_lws_words_t *words) {
  bool only_words = false;
  for (int i = 1; i < argc; i++) {
    const char *arg = argv[i];
    if (only_words || arg[0] != '-' || !arg[1]) {
      *mob_vec_push(words) = arg;
      if (u->stop_at_word && words->len > 1) only_words = true;
    } else if (strcmp(arg, "--") == 0) {
      only_words = true;
    } else if (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0) {
      print_help(u);
      return 0;
    } else if (strncmp(arg, "--", 2) != 0) {
      const mob_lws_option_t *o = by_letter(u, arg);
      if (!o) return mob__usage_error(u->command, "unknown option %s", arg);
      *(bool *)o->value = true;
    } else {
      int status = parse_option(u, arg, argc, argv, &i);
      if (status >= 0) return status;
    }
  }
  return -1;
}
