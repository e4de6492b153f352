#include "runtime/node/init_options.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

static mob_status read_number(const char *name, const char *text, int low, int high, int *out) {
  char *end;
  long value = strtol(text, &end, 10);
  if (end == text || *end || value < low || value > high) {
    return mob_fail(MOB_E_INVALID, "Error: %s must be a whole number from %d to %d, not '%s'", name,
                    low, high, text);
  }
  *out = (int)value;
  return MOB_OK;
}

// "--name=value": the value, or NULL when `arg` is another argument.
static const char *value_of(const char *arg, const char *name) {
  size_t len = strlen(name);
  return strncmp(arg, name, len) == 0 && arg[len] == '=' ? arg + len + 1 : NULL;
}

static mob_status take(mob_init_options_t *options, char *arg) {
  const char *value;
  if ((value = value_of(arg, "--ray_port")))
    return read_number("--ray_port", value, 1, 65535, &options->port);
  if ((value = value_of(arg, "--ray_init_timeout"))) {
    return read_number("--ray_init_timeout", value, 0, INT_MAX, &options->timeout_s);
  }
  if (options->leader && (value = value_of(arg, "--ray_cluster_size"))) {
    if (!*value) return MOB_OK; // as if it were missing
    return read_number("--ray_cluster_size", value, 1, 100000, &options->cluster_size);
  }
  if (!options->leader && (value = value_of(arg, "--ray_address"))) {
    free(options->ray_address);
    options->ray_address = *value ? mob_strdup(value) : NULL;
    return MOB_OK;
  }
  *mob_vec_push(&options->extra) = arg;
  return MOB_OK;
}

mob_status mob_init_options_parse(mob_init_options_t *options, int argc, char **argv) {
  *options = (mob_init_options_t){.port = 6379, .timeout_s = 300};
  const char *subcommand = argc > 1 ? argv[1] : "";
  options->leader = strcmp(subcommand, "leader") == 0;
  if (!strcmp(subcommand, "--help") || !strcmp(subcommand, "-h") || !strcmp(subcommand, "help")) {
    options->help = true;
    return MOB_OK;
  }
  if (!options->leader && strcmp(subcommand, "worker") != 0) {
    return mob_fail(MOB_E_INVALID, "unknown subcommand: %s", subcommand);
  }
  for (int i = 2; i < argc; i++) {
    if (strcmp(argv[i], "--help") == 0) options->help = true;
    MOB_TRY(take(options, argv[i]));
  }
  if (options->help) return MOB_OK;
  if (options->leader && !options->cluster_size) {
    return mob_fail(MOB_E_INVALID, "Error: Missing argument --ray_cluster_size");
  }
  if (!options->leader && !options->ray_address) {
    return mob_fail(MOB_E_INVALID, "Error: Missing argument --ray_address");
  }
  return MOB_OK;
}

void mob_init_options_free(mob_init_options_t *options) {
  free(options->ray_address);
  mob_vec_free(&options->extra);
  *options = (mob_init_options_t){0};
}
