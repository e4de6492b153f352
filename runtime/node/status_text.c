#include "runtime/node/status_text.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/node/resources.h"
#include "runtime/node/table.h"

static double pair_at(const json_t *pair, size_t i) {
  return json_number_value(json_array_get(pair, i));
}

// {'CPU': 1.0, 'GPU': 2.0}, as Python prints a dictionary.
static void put_dict(mob_buf_t *out, const json_t *dict) {
  const char *name;
  json_t *value;
  char number[40];
  bool first = true;
  mob_buf_putc(out, '{');
  json_object_foreach((json_t *)dict, name, value) {
    mob_buf_printf(out, "%s'%s': %s", first ? "" : ", ", name,
                   mob_py_float(json_number_value(value), number));
    first = false;
  }
  mob_buf_putc(out, '}');
}

static int by_name(const void *a, const void *b) {
  return strcmp(*(const char *const *)a, *(const char *const *)b);
}

// What placement groups have reserved and use of a resource: the sum over their plain (not indexed)
// names.
static void group_usage(const json_t *usage, const char *resource, double *used, double *total) {
  const char *name;
  json_t *pair;
  *used = *total = 0;
  json_object_foreach((json_t *)usage, name, pair) {
    char base[128];
    uint8_t pg[MOB_NODE_PG_LEN];
    int index;
    if (!mob_parse_group_name(name, base, sizeof base, &index, pg)) continue;
    if (index >= 0 || strcmp(base, resource)) continue;
    *used += pair_at(pair, 0);
    *total += pair_at(pair, 1);
  }
}

static void put_usage(mob_buf_t *out, const json_t *usage, const char *indent, bool verbose) {
  size_t count = json_object_size(usage), n = 0;
  const char **names = MOB_NEW_ARRAY(const char *, count + 1);
  const char *name;
  json_t *pair;
  json_object_foreach((json_t *)usage, name, pair) names[n++] = name;
  qsort(names, n, sizeof *names, by_name);
  for (size_t i = 0; i < n; i++) {
    char base[128], a[40], b[40], c[40], d[40];
    uint8_t pg[MOB_NODE_PG_LEN];
    int index;
    double in_use, reserved;
    if (strstr(names[i], "node:") || mob_parse_group_name(names[i], base, sizeof base, &index, pg))
      continue;
    if (!verbose && strncmp(names[i], "accelerator_type:", 17) == 0) continue;
    pair = json_object_get(usage, names[i]);
    group_usage(usage, names[i], &in_use, &reserved);
    double used = pair_at(pair, 0) - reserved + in_use, total = pair_at(pair, 1);
    bool memory = !strcmp(names[i], "memory") || !strcmp(names[i], "object_store_memory");
    char *(*text)(double, char[40]) = memory ? mob_py_memory : mob_py_float;
    mob_buf_printf(out, "%s%s/%s %s", indent, text(used, a), text(total, b), names[i]);
    if (reserved > 0) {
      mob_buf_printf(out, " (%s used of %s reserved in placement groups)", text(in_use, c),
                     text(reserved, d));
    }
    mob_buf_putc(out, '\n');
  }
  free(names);
}

static void put_demands(mob_buf_t *out, const json_t *metrics) {
  size_t i, j, start = out->len;
  json_t *entry, *bundle;
  json_array_foreach(json_object_get(metrics, "resource_demand"), i, entry) {
    mob_buf_putc(out, ' ');
    put_dict(out, json_array_get(entry, 0));
    mob_buf_printf(out, ": %d+ pending tasks/actors\n", (int)pair_at(entry, 1));
  }
  json_array_foreach(json_object_get(metrics, "pg_demand"), i, entry) {
    const json_t *group = json_array_get(entry, 0);
    const char *strategy = json_string_value(json_object_get(group, "strategy"));
    json_array_foreach(json_object_get(group, "bundles"), j, bundle) {
      mob_buf_puts(out, j ? ", " : " ");
      put_dict(out, json_array_get(bundle, 0));
      mob_buf_printf(out, " * %d", (int)pair_at(bundle, 1));
    }
    mob_buf_printf(out, " (%s): %d+ pending placement groups\n", strategy ? strategy : "?",
                   (int)pair_at(entry, 1));
  }
  if (out->len == start) mob_buf_puts(out, " (no resource demands)\n");
}

static void put_requests(mob_buf_t *out, const json_t *metrics) {
  size_t i, start = out->len;
  json_t *entry;
  json_array_foreach(json_object_get(metrics, "request_demand"), i, entry) {
    mob_buf_putc(out, ' ');
    put_dict(out, json_array_get(entry, 0));
    mob_buf_printf(out, ": %d from request_resources()\n", (int)pair_at(entry, 1));
  }
  if (out->len == start) mob_buf_puts(out, " (none)\n");
}

static void put_nodes(mob_buf_t *out, const json_t *autoscaler) {
  const char *name;
  json_t *value;
  size_t i;
  size_t start = out->len;
  mob_buf_puts(out, "Active:\n");
  start = out->len;
  json_object_foreach(json_object_get(autoscaler, "active_nodes"), name, value) {
    mob_buf_printf(out, " %d %s\n", (int)json_number_value(value), name);
  }
  if (out->len == start) mob_buf_puts(out, " (no active nodes)\n");
  mob_buf_puts(out, "Pending:\n");
  start = out->len;
  json_object_foreach(json_object_get(autoscaler, "pending_launches"), name, value) {
    mob_buf_printf(out, " %s, %d launching\n", name, (int)json_number_value(value));
  }
  json_array_foreach(json_object_get(autoscaler, "pending_nodes"), i, value) {
    const char *ip = json_string_value(json_array_get(value, 0));
    const char *type = json_string_value(json_array_get(value, 1));
    const char *state = json_string_value(json_array_get(value, 2));
    mob_buf_printf(out, " %s: %s, %s\n", ip ? ip : "?", type ? type : "?", state ? state : "?");
  }
  if (out->len == start) mob_buf_puts(out, " (no pending nodes)\n");
  mob_buf_puts(out, "Recent failures:\n");
  start = out->len;
  json_array_foreach(json_object_get(autoscaler, "failed_nodes"), i, value) {
    const char *ip = json_string_value(json_array_get(value, 0));
    const char *type = json_string_value(json_array_get(value, 1));
    if (i < 20)
      mob_buf_printf(out, " %s: NodeTerminated (ip: %s)\n", type ? type : "?", ip ? ip : "?");
  }
  if (out->len == start) mob_buf_puts(out, " (no failures)\n");
}

static void put_each_node(mob_buf_t *out, const json_t *metrics, const json_t *autoscaler) {
  const json_t *types = json_object_get(autoscaler, "node_type_mapping");
  const char *id;
  json_t *usage;
  json_object_foreach(json_object_get(metrics, "usage_by_node"), id, usage) {
    const char *type = json_string_value(json_object_get(types, id));
    mob_buf_printf(out, "\nNode: %s", id);
    if (type) mob_buf_printf(out, " (%s)", type);
    mob_buf_puts(out, "\n Usage:\n");
    put_usage(out, usage, "  ", true);
  }
}

mob_status mob_status_text(const char *json, size_t len, bool verbose, mob_buf_t *out) {
  json_error_t error;
  json_t *root = json_loadb(json, len, 0, &error);
  const json_t *metrics = json_object_get(root, "load_metrics_report");
  const json_t *autoscaler = json_object_get(root, "autoscaler_report");
  if (!json_is_object(metrics) || !json_is_object(autoscaler)) {
    json_decref(root);
    return mob_fail(MOB_E_FORMAT, "the GCS's status report cannot be read: %s",
                    root ? "load_metrics_report or autoscaler_report is missing" : error.text);
  }
  double at = json_number_value(json_object_get(root, "time"));
  time_t seconds = (time_t)floor(at);
  struct tm tm;
  char stamp[40];
  localtime_r(&seconds, &tm);
  strftime(stamp, sizeof stamp, "%Y-%m-%d %H:%M:%S", &tm);
  size_t start = out->len;
  mob_buf_printf(out, "======== Autoscaler status: %s.%06d ========\n", stamp,
                 (int)llround((at - (double)seconds) * 1e6) % 1000000);
  int dashes = (int)(out->len - start - 1);
  if (verbose) {
    json_t *gcs = json_object_get(root, "gcs_request_time");
    json_t *provider = json_object_get(root, "non_terminated_nodes_time");
    if (gcs) mob_buf_printf(out, "GCS request time: %.6fs\n", json_number_value(gcs));
    if (provider) {
      mob_buf_printf(out, "Node Provider non_terminated_nodes time: %.6fs\n",
                     json_number_value(provider));
    }
    mob_buf_putc(out, '\n');
  }
  char line[128];
  memset(line, '-', sizeof line);
  mob_buf_printf(out, "Node status\n%.*s\n", dashes, line);
  put_nodes(out, autoscaler);
  mob_buf_printf(out, "\nResources\n%.*s\nTotal Usage:\n", dashes, line);
  put_usage(out, json_object_get(metrics, "usage"), " ", verbose);
  mob_buf_puts(out, "\nFrom request_resources:\n");
  put_requests(out, metrics);
  mob_buf_puts(out, "Pending Demands:\n");
  put_demands(out, metrics);
  if (verbose) put_each_node(out, metrics, autoscaler);
  json_decref(root);
  return MOB_OK;
}
