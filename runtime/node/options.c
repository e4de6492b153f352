#include "runtime/node/options.h"

#include <ctype.h>
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "runtime/base/file.h"

typedef enum kind { FLAG, TEXT, INTEGER, BYTES, BOOLEAN, COUNT } flag_kind_t;

enum {
  OPT_IGNORED, // accepted, warned about
  OPT_SILENT,  // accepted; what it asks for is so anyway
  OPT_HEAD,
  OPT_BLOCK,
  OPT_NO_REDIRECT,
  OPT_ADDRESS,
  OPT_PORT,
  OPT_NODE_IP,
  OPT_NODE_NAME,
  OPT_NUM_CPUS,
  OPT_NUM_GPUS,
  OPT_RESOURCES,
  OPT_MEMORY,
  OPT_OBJECT_STORE_MEMORY,
  OPT_LABELS,
  OPT_LABELS_FILE,
  OPT_NODE_MANAGER_PORT,
  OPT_MIN_WORKER_PORT,
  OPT_MAX_WORKER_PORT,
  OPT_WORKER_PORT_LIST,
  OPT_TEMP_DIR,
  OPT_REDIS_USERNAME,
  OPT_REDIS_PASSWORD,
  OPT_LOG_STYLE,
  OPT_LOG_COLOR,
  OPT_VERBOSE,
  OPT_HELP,
  OPT_READY_FD,
  OPT_LOG_TO_FILE,
  OPT_DASHBOARD, // --include-dashboard: false is what we do, true is not
};

typedef struct flag {
  const char *name; // without the dashes
  flag_kind_t kind;
  int option;
  const char *help; // NULL: not in the help
} flag_t;

static const flag_t flags[] = {
    {"address", TEXT, OPT_ADDRESS, "the head to join, HOST:PORT"},
    {"head", FLAG, OPT_HEAD, "start the head node"},
    {"port", INTEGER, OPT_PORT, "the head's port (6379; 0 picks a free one)"},
    {"node-ip-address", TEXT, OPT_NODE_IP, "the address of this node"},
    {"node-name", TEXT, OPT_NODE_NAME, "the name of this node (its address)"},
    {"num-cpus", INTEGER, OPT_NUM_CPUS, "CPUs of this node (detected)"},
    {"num-gpus", INTEGER, OPT_NUM_GPUS, "GPUs of this node (detected)"},
    {"resources", TEXT, OPT_RESOURCES, "more resources, as JSON: '{\"name\": 1}'"},
    {"memory", BYTES, OPT_MEMORY, "bytes for actors (detected)"},
    {"object-store-memory", BYTES, OPT_OBJECT_STORE_MEMORY, "bytes listed for objects (detected)"},
    {"labels", TEXT, OPT_LABELS, "labels of this node: key=value,key2=value2"},
    {"labels-file", TEXT, OPT_LABELS_FILE, "the same from a file, one 'key: value' a line"},
    {"node-manager-port", INTEGER, OPT_NODE_MANAGER_PORT, "port of the node agent (any)"},
    {"min-worker-port", INTEGER, OPT_MIN_WORKER_PORT, "lowest port of an actor process (any)"},
    {"max-worker-port", INTEGER, OPT_MAX_WORKER_PORT, "highest port of an actor process (any)"},
    {"worker-port-list", TEXT, OPT_WORKER_PORT_LIST, "ports of actor processes, with commas"},
    {"block", FLAG, OPT_BLOCK, "stay in the foreground; exit when the node ends"},
    {"temp-dir", TEXT, OPT_TEMP_DIR, "folder of sessions and logs ($RAY_TMPDIR/ray or /tmp/ray)"},
    {"redis-username", TEXT, OPT_REDIS_USERNAME, "with $RAY_REDIS_ADDRESS: the user"},
    {"redis-password", TEXT, OPT_REDIS_PASSWORD, "with $RAY_REDIS_ADDRESS: the password"},
    {"no-redirect-output", FLAG, OPT_NO_REDIRECT, "log to this stderr too"},
    {"log-style", TEXT, OPT_LOG_STYLE, "auto, record or pretty"},
    {"log-color", TEXT, OPT_LOG_COLOR, "auto, false or true"},
    {"verbose", COUNT, OPT_VERBOSE, "say more (-v)"},
    {"help", FLAG, OPT_HELP, "this text"},
    {"disable-usage-stats", FLAG, OPT_SILENT, NULL},
    {"include-dashboard", BOOLEAN, OPT_DASHBOARD, NULL},
    {"no-monitor", FLAG, OPT_SILENT, NULL},
    {"ready-fd", INTEGER, OPT_READY_FD, NULL},
    {"log-to-file", FLAG, OPT_LOG_TO_FILE, NULL},
    {"object-manager-port", INTEGER, OPT_IGNORED, NULL},
    {"runtime-env-agent-port", INTEGER, OPT_IGNORED, NULL},
    {"dashboard-host", TEXT, OPT_IGNORED, NULL},
    {"dashboard-port", INTEGER, OPT_IGNORED, NULL},
    {"dashboard-agent-listen-port", INTEGER, OPT_IGNORED, NULL},
    {"dashboard-agent-grpc-port", INTEGER, OPT_IGNORED, NULL},
    {"dashboard-grpc-port", INTEGER, OPT_IGNORED, NULL},
    {"metrics-export-port", INTEGER, OPT_IGNORED, NULL},
    {"ray-client-server-port", INTEGER, OPT_IGNORED, NULL},
    {"gcs-server-port", INTEGER, OPT_IGNORED, NULL},
    {"plasma-directory", TEXT, OPT_IGNORED, NULL},
    {"object-spilling-directory", TEXT, OPT_IGNORED, NULL},
    {"plasma-store-socket-name", TEXT, OPT_IGNORED, NULL},
    {"raylet-socket-name", TEXT, OPT_IGNORED, NULL},
    {"redis-max-memory", TEXT, OPT_IGNORED, NULL},
    {"storage", TEXT, OPT_IGNORED, NULL},
    {"autoscaling-config", TEXT, OPT_IGNORED, NULL},
    {"include-log-monitor", BOOLEAN, OPT_IGNORED, NULL},
    {"ray-debugger-external", FLAG, OPT_IGNORED, NULL},
    {"enable-resource-isolation", FLAG, OPT_IGNORED, NULL},
    {"system-reserved-cpu", TEXT, OPT_IGNORED, NULL},
    {"system-reserved-memory", TEXT, OPT_IGNORED, NULL},
    {"cgroup-path", TEXT, OPT_IGNORED, NULL},
    {"redis-shard-ports", TEXT, OPT_IGNORED, NULL},
    {"system-config", TEXT, OPT_IGNORED, NULL},
    {"enable-object-reconstruction", FLAG, OPT_IGNORED, NULL},
    {"tracing-startup-hook", TEXT, OPT_IGNORED, NULL},
};

void mob_start_options_init(mob_start_options_t *options) {
  *options = (mob_start_options_t){
      .port = -1,
      .num_cpus = -1,
      .num_gpus = -1,
      .memory = -1,
      .object_store_memory = -1,
      .color = -1,
      .ready_fd = -1,
  };
}

void mob_start_options_free(mob_start_options_t *options) {
  free(options->address);
  free(options->node_ip_address);
  free(options->node_name);
  free(options->redis_username);
  free(options->redis_password);
  free(options->temp_dir);
  for (size_t i = 0; i < options->resources.len; i++) free(options->resources.at[i].name);
  for (size_t i = 0; i < options->labels.len; i++) {
    free(options->labels.at[i].key);
    free(options->labels.at[i].value);
  }
  mob_vec_free(&options->resources);
  mob_vec_free(&options->labels);
  mob_vec_free(&options->worker_ports);
  mob_buf_free(&options->ignored);
  mob_start_options_init(options);
}

// Letters that must change to make `a` of `b`, at most 8 each way: enough to spot a slip.
static size_t edit_distance(const char *a, const char *b) {
  size_t n = strlen(b);
  size_t row[64];
  if (n >= MOB_LEN(row)) return SIZE_MAX;
  for (size_t j = 0; j <= n; j++) row[j] = j;
  for (size_t i = 1; a[i - 1]; i++) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= n; j++) {
      size_t keep = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      size_t best = row[j] < row[j - 1] ? row[j] + 1 : row[j - 1] + 1;
      row[j] = best < keep ? best : keep;
    }
  }
  return row[n];
}

static const flag_t *find_flag(const char *name, size_t len) {
  for (size_t i = 0; i < MOB_LEN(flags); i++) {
    if (strlen(flags[i].name) == len && memcmp(flags[i].name, name, len) == 0) return &flags[i];
  }
  return NULL;
}

static mob_status no_such_option(const char *name, size_t len) {
  char *given = mob_strndup(name, len);
  const flag_t *best = NULL;
  size_t distance = 4;
  for (size_t i = 0; i < MOB_LEN(flags); i++) {
    size_t d = edit_distance(given, flags[i].name);
    if (d < distance && flags[i].help) {
      distance = d;
      best = &flags[i];
    }
  }
  mob_status status =
      best ? mob_fail(MOB_E_INVALID, "Error: No such option: --%s Did you mean --%s?", given,
                      best->name)
           : mob_fail(MOB_E_INVALID, "Error: No such option: --%s", given);
  free(given);
  return status;
}

static mob_status read_integer(const char *name, const char *text, int64_t low, int64_t high,
                               int64_t *out) {
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (end == text || *end || errno) {
    return mob_fail(MOB_E_INVALID, "Error: Invalid value for '--%s': '%s' is not a valid integer.",
                    name, text);
  }
  if (value < low || value > high) {
    return mob_fail(MOB_E_INVALID,
                    "Error: Invalid value for '--%s': %lld is not in the range %lld<=x<=%lld.",
                    name, value, (long long)low, (long long)high);
  }
  *out = value;
  return MOB_OK;
}

static mob_status read_boolean(const char *name, const char *text, bool *out) {
  static const char *const yes[] = {"1", "true", "t", "yes", "y", "on"};
  static const char *const no[] = {"0", "false", "f", "no", "n", "off"};
  for (size_t i = 0; i < MOB_LEN(yes); i++) {
    if (strcasecmp(text, yes[i]) == 0) return *out = true, MOB_OK;
    if (strcasecmp(text, no[i]) == 0) return *out = false, MOB_OK;
  }
  return mob_fail(MOB_E_INVALID, "Error: Invalid value for '--%s': '%s' is not a valid boolean.",
                  name, text);
}

static void set_text(char **field, const char *text) {
  free(*field);
  *field = mob_strdup(text);
}

static mob_status read_resources(mob_start_options_t *options, const char *text) {
  mob_status status = MOB_OK;
  json_error_t error;
  json_t *json = json_loads(text, 0, &error);
  const char *name;
  json_t *value;
  if (!json_is_object(json)) {
    status = mob_fail(
        MOB_E_INVALID,
        "Unable to parse `--resources=%s`; it should be a JSON object of name to number, for "
        "example `--resources='{\"CustomResource1\": 1, \"CustomResource2\": 2}'`.",
        text);
    goto cleanup;
  }
  json_object_foreach(json, name, value) {
    double amount = json_number_value(value);
    if (!json_is_number(value) || amount < 0 || amount != floor(amount) || amount > 1e14) {
      status = mob_fail(
          MOB_E_INVALID,
          "Error: --resources: the amount of '%s' must be a whole number from 0 to 1e14.", name);
      goto cleanup;
    }
    if (!strcmp(name, "CPU") || !strcmp(name, "GPU") || !strcmp(name, "memory") ||
        !strcmp(name, "object_store_memory")) {
      status =
          mob_fail(MOB_E_INVALID,
                   "Error: --resources must not hold '%s'. Use --num-cpus, --num-gpus, --memory or "
                   "--object-store-memory instead.",
                   name);
      goto cleanup;
    }
    mob_named_amount_t *entry = mob_vec_push(&options->resources);
    entry->name = mob_strdup(name);
    entry->amount = amount;
  }
cleanup:
  json_decref(json);
  return status;
}

static char *trimmed(const char *text, size_t len) {
  while (len && isspace((unsigned char)*text)) text++, len--;
  while (len && isspace((unsigned char)text[len - 1])) len--;
  if (len >= 2 && (*text == '"' || *text == '\'') && text[len - 1] == *text) text++, len -= 2;
  return mob_strndup(text, len);
}

// A label given twice has its last value; --labels wins over --labels-file (`keep`).
static void put_label(mob_start_options_t *options, char *key, char *value, bool keep) {
  for (size_t i = 0; i < options->labels.len; i++) {
    mob_label_t *label = &options->labels.at[i];
    if (strcmp(label->key, key)) continue;
    if (!keep) {
      free(label->value);
      label->value = value;
      value = NULL;
    }
    free(key);
    free(value);
    return;
  }
  mob_label_t *label = mob_vec_push(&options->labels);
  label->key = key;
  label->value = value;
}

static mob_status read_labels(mob_start_options_t *options, const char *text, const char *flag,
                              const char *stops, char equals, bool keep) {
  while (*text) {
    size_t len = strcspn(text, stops);
    char *item = trimmed(text, len);
    text += len + (text[len] != 0);
    if (!*item || *item == '#') {
      free(item);
      continue;
    }
    char *sign = strchr(item, equals);
    if (!sign || sign == item) {
      mob_status status = mob_fail(
          MOB_E_INVALID, "Error: --%s: '%s' is not of the form key%cvalue.", flag, item, equals);
      free(item);
      return status;
    }
    char *key = trimmed(item, (size_t)(sign - item));
    char *value = trimmed(sign + 1, strlen(sign + 1));
    free(item);
    if (strcmp(key, "ray.io/node-id") == 0) {
      mob_status status = mob_fail(
          MOB_E_INVALID, "Error: --%s: the label %s is set by the node itself.", flag, key);
      free(key);
      free(value);
      return status;
    }
    put_label(options, key, value, keep);
  }
  return MOB_OK;
}

static mob_status read_labels_file(mob_start_options_t *options, const char *path) {
  mob_buf_t text = {0};
  mob_status status = mob_file_read(path, 1 << 20, &text);
  if (status == MOB_OK) {
    status = read_labels(options, mob_buf_cstr(&text), "labels-file", "\n", ':', true);
  }
  mob_buf_free(&text);
  return status;
}

static mob_status read_ports(mob_start_options_t *options, const char *text) {
  options->worker_ports.len = 0;
  while (*text) {
    size_t len = strcspn(text, ",");
    char *item = trimmed(text, len);
    int64_t port;
    mob_status status = read_integer("worker-port-list", item, 1024, 65535, &port);
    free(item);
    MOB_TRY(status);
    *mob_vec_push(&options->worker_ports) = (int)port;
    text += len + (text[len] != 0);
  }
  return MOB_OK;
}

static mob_status read_choice(const char *name, const char *text, const char *const *choices,
                              int *out) {
  mob_buf_t list = {0};
  for (int i = 0; choices[i]; i++) {
    if (strcmp(text, choices[i]) == 0) {
      mob_buf_free(&list);
      *out = i;
      return MOB_OK;
    }
    mob_buf_printf(&list, "%s'%s'", i ? ", " : "", choices[i]);
  }
  mob_status status =
      mob_fail(MOB_E_INVALID, "Error: Invalid value for '--%s': '%s' is not one of %s.", name, text,
               mob_buf_cstr(&list));
  mob_buf_free(&list);
  return status;
}

static void note_ignored(mob_start_options_t *options, const char *name) {
  mob_buf_printf(&options->ignored, "%s--%s", options->ignored.len ? ", " : "", name);
}

static mob_status apply_integer(mob_start_options_t *options, const flag_t *flag,
                                const char *text) {
  int64_t value;
  bool port = strstr(flag->name, "port") != NULL;
  MOB_TRY(read_integer(flag->name, text, flag->option == OPT_IGNORED && !port ? INT_MIN : 0,
                       port ? 65535 : INT_MAX, &value));
  switch (flag->option) {
  case OPT_PORT:
    options->port = (int)value;
    break;
  case OPT_NUM_CPUS:
    options->num_cpus = (int)value;
    break;
  case OPT_NUM_GPUS:
    options->num_gpus = (int)value;
    break;
  case OPT_NODE_MANAGER_PORT:
    options->node_manager_port = (int)value;
    break;
  case OPT_MIN_WORKER_PORT:
    options->min_worker_port = (int)value;
    break;
  case OPT_MAX_WORKER_PORT:
    options->max_worker_port = (int)value;
    break;
  case OPT_READY_FD:
    options->ready_fd = (int)value;
    break;
  default:
    note_ignored(options, flag->name);
  }
  return MOB_OK;
}

static mob_status apply_text(mob_start_options_t *options, const flag_t *flag, const char *text) {
  static const char *const styles[] = {"auto", "record", "pretty", NULL};
  static const char *const colors[] = {"auto", "false", "true", NULL};
  int choice = 0;
  switch (flag->option) {
  case OPT_ADDRESS:
    set_text(&options->address, text);
    break;
  case OPT_NODE_IP:
    set_text(&options->node_ip_address, text);
    break;
  case OPT_REDIS_USERNAME:
    set_text(&options->redis_username, text);
    break;
  case OPT_REDIS_PASSWORD:
    set_text(&options->redis_password, text);
    break;
  case OPT_NODE_NAME:
    set_text(&options->node_name, text);
    break;
  case OPT_TEMP_DIR:
    set_text(&options->temp_dir, text);
    break;
  case OPT_RESOURCES:
    return read_resources(options, text);
  case OPT_LABELS:
    return read_labels(options, text, "labels", ",", '=', false);
  case OPT_LABELS_FILE:
    return read_labels_file(options, text);
  case OPT_WORKER_PORT_LIST:
    return read_ports(options, text);
  case OPT_LOG_STYLE:
    MOB_TRY(read_choice(flag->name, text, styles, &choice));
    options->log_style = (mob_log_style_t)choice;
    break;
  case OPT_LOG_COLOR:
    MOB_TRY(read_choice(flag->name, text, colors, &choice));
    options->color = choice - 1;
    break;
  default:
    note_ignored(options, flag->name);
  }
  return MOB_OK;
}

static mob_status apply(mob_start_options_t *options, const flag_t *flag, const char *text) {
  int64_t value;
  bool on = true;
  switch (flag->kind) {
  case INTEGER:
    return apply_integer(options, flag, text);
  case TEXT:
    return apply_text(options, flag, text);
  case BYTES:
    MOB_TRY(read_integer(flag->name, text, 0, INT64_MAX, &value));
    if (flag->option == OPT_MEMORY) {
      options->memory = value;
    } else {
      options->object_store_memory = value;
    }
    return MOB_OK;
  case BOOLEAN:
    MOB_TRY(read_boolean(flag->name, text, &on));
    if (on && flag->option == OPT_DASHBOARD) note_ignored(options, flag->name);
    return MOB_OK;
  case COUNT:
    options->verbose++;
    return MOB_OK;
  case FLAG:
    break;
  }
  switch (flag->option) {
  case OPT_HEAD:
    options->head = true;
    break;
  case OPT_BLOCK:
    options->block = true;
    break;
  case OPT_NO_REDIRECT:
    options->no_redirect_output = true;
    break;
  case OPT_LOG_TO_FILE:
    options->log_to_stderr = false;
    break;
  case OPT_HELP:
    options->help = true;
    break;
  case OPT_SILENT:
    break;
  default:
    note_ignored(options, flag->name);
  }
  return MOB_OK;
}

mob_status mob_start_options_parse(mob_start_options_t *options, int argc, char **argv) {
  for (int i = 1; i < argc; i++) {
    const char *arg = argv[i];
    if (strcmp(arg, "-v") == 0 || strcmp(arg, "-vv") == 0) {
      options->verbose += (int)strlen(arg) - 1;
      continue;
    }
    if (strncmp(arg, "--", 2) != 0) {
      if (*arg == '-' && arg[1]) return mob_fail(MOB_E_INVALID, "Error: No such option: %s", arg);
      return mob_fail(MOB_E_INVALID, "Error: Got unexpected extra argument (%s)", arg);
    }
    const char *name = arg + 2;
    size_t len = strcspn(name, "=");
    const flag_t *flag = find_flag(name, len);
    if (!flag) return no_such_option(name, len);
    const char *value = name[len] ? name + len + 1 : NULL;
    bool takes_value = flag->kind != FLAG && flag->kind != COUNT;
    if (value && !takes_value) {
      return mob_fail(MOB_E_INVALID, "Error: Option '--%s' does not take a value.", flag->name);
    }
    if (takes_value && !value) {
      if (i + 1 >= argc) {
        return mob_fail(MOB_E_INVALID, "Error: Option '--%s' requires an argument.", flag->name);
      }
      value = argv[++i];
    }
    MOB_TRY(apply(options, flag, value));
  }
  return MOB_OK;
}

mob_status mob_start_options_check(const mob_start_options_t *options) {
  if (options->head && options->address) {
    return mob_fail(
        MOB_E_INVALID,
        "--address (%s) must not stand beside --head. An external Redis for the head's state is "
        "named by the environment: RAY_REDIS_ADDRESS=HOST:PORT.",
        options->address);
  }
  if (!options->head && !options->address) {
    return mob_fail(MOB_E_INVALID, "`--head` is not set, so `--address` must be set to the head's "
                                   "HOST:PORT: `ray start --address=HOST:PORT`.");
  }
  if (!options->head && options->port >= 0) {
    return mob_fail(MOB_E_INVALID, "`--port` should not be specified without `--head`.");
  }
  if (options->max_worker_port && options->max_worker_port < options->min_worker_port) {
    return mob_fail(MOB_E_INVALID,
                    "`--max-worker-port` (%d) must not be below `--min-worker-port` (%d).",
                    options->max_worker_port, options->min_worker_port);
  }
  return MOB_OK;
}

void mob_start_options_help(mob_buf_t *out, const char *command) {
  mob_buf_printf(out, "Usage: %s [OPTIONS]\n\n  Start a node on this machine.\n\nOptions:\n",
                 command);
  for (size_t i = 0; i < MOB_LEN(flags); i++) {
    static const char *const metavars[] = {"", " TEXT", " INTEGER", " BYTES", " BOOLEAN", ""};
    if (!flags[i].help) continue;
    char left[64];
    snprintf(left, sizeof left, "%s--%s%s", flags[i].option == OPT_VERBOSE ? "-v, " : "",
             flags[i].name, metavars[flags[i].kind]);
    mob_buf_printf(out, "  %-32s %s\n", left, flags[i].help);
  }
  mob_buf_puts(
      out,
      "\nThe head's state (cluster id, key-value pairs, jobs, actors, placement groups) ends with\n"
      "it, unless the environment of the head says where to keep it:\n"
      "  RAY_REDIS_ADDRESS=HOST:PORT      in Redis, under RAY_external_storage_namespace "
      "(default)\n"
      "  RAY_gcs_storage=file             in a log in RAY_gcs_storage_path (TEMP_DIR/gcs)\n"
      "Daemons whose head keeps its state wait RAY_gcs_rpc_server_reconnect_timeout_s (60) for it\n"
      "to come back.\n");
  mob_buf_puts(out, "\nAccepted for the sake of existing commands, without a meaning here:\n ");
  size_t column = 1;
  for (size_t i = 0; i < MOB_LEN(flags); i++) {
    if (flags[i].help || flags[i].option == OPT_READY_FD || flags[i].option == OPT_LOG_TO_FILE)
      continue;
    size_t len = strlen(flags[i].name) + 3;
    if (column + len > 90) {
      mob_buf_puts(out, "\n ");
      column = 1;
    }
    mob_buf_printf(out, " --%s", flags[i].name);
    column += len;
  }
  mob_buf_puts(out, "\n");
}

mob_status mob_split_address(const char *address, char **host, int *port) {
  *host = NULL;
  *port = -1;
  const char *colon = strrchr(address, ':');
  const char *end = address + strlen(address);
  if (*address == '[') {
    const char *bracket = strchr(address, ']');
    if (!bracket)
      return mob_fail(MOB_E_INVALID, "'%s' is not an address: its '[' has no ']'", address);
    colon = bracket[1] == ':' ? bracket + 1 : NULL;
    end = bracket;
    address++;
  } else if (colon && strchr(address, ':') != colon) {
    colon = NULL; // a bare IPv6 address
  } else if (colon) {
    end = colon;
  }
  if (end == address) return mob_fail(MOB_E_INVALID, "the address has no host");
  if (colon) {
    int64_t value;
    char *rest;
    value = strtol(colon + 1, &rest, 10);
    if (rest == colon + 1 || *rest || value < 1 || value > 65535) {
      return mob_fail(MOB_E_INVALID, "'%s' is not a port (1 to 65535)", colon + 1);
    }
    *port = (int)value;
  }
  *host = mob_strndup(address, (size_t)(end - address));
  return MOB_OK;
}
