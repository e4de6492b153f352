// `ray list nodes|actors|placement-groups`, in the columns, order and formats of Ray's.

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

#include "launcher/cmd_ray.h"
#include "runtime/base/buf.h"
#include "runtime/base/hex.h"
#include "runtime/node/table.h"
#include "runtime/node/yaml_text.h"
#include "runtime/rpc/message.h"

#define CONNECT_TIMEOUT_MS 5000

static json_t *hex_text(const ProtobufCBinaryData *id) {
  char *text = mob_malloc(2 * id->len + 1);
  json_t *json = json_string(mob_hex(id->data, id->len, text));
  free(text);
  return json;
}

static int by_key(const void *a, const void *b) {
  return strcmp((*(mob_pb_double_t *const *)a)->key, (*(mob_pb_double_t *const *)b)->key);
}

// Amounts by name; memory in GiB with three digits.
static json_t *amounts(mob_pb_double_t *const *entries, size_t n) {
  json_t *out = json_object();
  mob_pb_double_t **sorted = MOB_NEW_ARRAY(mob_pb_double_t *, n + 1);
  if (n) memcpy(sorted, entries, n * sizeof *sorted);
  qsort(sorted, n, sizeof *sorted, by_key);
  for (size_t i = 0; i < n; i++) {
    const char *name = sorted[i]->key;
    double value = sorted[i]->value;
    if (!strcmp(name, "memory") || !strcmp(name, "object_store_memory")) {
      char text[48];
      snprintf(text, sizeof text, "%.3f GiB", value / (1 << 30));
      json_object_set_new(out, name, json_string(text));
    } else {
      json_object_set_new(out, name, json_real(value));
    }
  }
  free(sorted);
  return out;
}

static json_t *labels(mob_pb_string_t *const *entries, size_t n) {
  json_t *out = json_object();
  for (size_t i = 0; i < n; i++)
    json_object_set_new(out, entries[i]->key, json_string(entries[i]->value));
  return out;
}

static json_t *time_or_null(uint64_t ms) {
  return ms ? json_integer((json_int_t)ms) : json_null();
}

static const char *const node_columns[] = {"node_id",         "node_ip",       "is_head_node",
                                           "state",           "state_message", "node_name",
                                           "resources_total", "labels",        NULL};

static mob_status list_nodes(mob_cli_t *cli, json_t *rows) {
  Ray__Rpc__GetAllNodeInfoRequest request = RAY__RPC__GET_ALL_NODE_INFO_REQUEST__INIT;
  Ray__Rpc__GetAllNodeInfoReply *reply = NULL;
  MOB_TRY(mob_cli_call(cli, "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", &request,
                       &ray__rpc__get_all_node_info_reply__descriptor, &reply));
  for (size_t i = 0; i < reply->n_node_info_list; i++) {
    const Ray__Rpc__GcsNodeInfo *node = reply->node_info_list[i];
    bool alive = node->state == RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE;
    json_t *row = json_object();
    json_object_set_new(row, "node_id", hex_text(&node->node_id));
    json_object_set_new(row, "node_ip", json_string(node->node_manager_address));
    json_object_set_new(row, "is_head_node", json_boolean(node->is_head_node));
    json_object_set_new(row, "state", json_string(alive ? "ALIVE" : "DEAD"));
    json_object_set_new(row, "state_message",
                        node->death_info && *node->death_info->reason_message
                            ? json_string(node->death_info->reason_message)
                            : json_null());
    json_object_set_new(row, "node_name", json_string(node->node_name));
    json_object_set_new(row, "resources_total",
                        amounts(node->resources_total, node->n_resources_total));
    json_object_set_new(row, "labels", labels(node->labels, node->n_labels));
    json_object_set_new(row, "start_time_ms", time_or_null(node->start_time_ms));
    json_object_set_new(row, "end_time_ms", time_or_null(node->end_time_ms));
    json_array_append_new(rows, row);
  }
  mob_pb_free(reply);
  return MOB_OK;
}

static const char *const actor_columns[] = {
    "actor_id", "class_name", "state", "job_id", "name", "node_id", "pid", "ray_namespace", NULL};

static json_t *death_of(const Ray__Rpc__ActorTableData *actor) {
  const char *text = mob_pb_death_text(actor->death_cause);
  if (!text || !*text) return json_null();
  return json_pack("{s:{s:s}}", "actor_died_error_context", "error_message", text);
}

static json_t *actor_row(const Ray__Rpc__ActorTableData *actor) {
  static const char *const states[] = {"DEPENDENCIES_UNREADY", "PENDING_CREATION", "ALIVE",
                                       "RESTARTING", "DEAD"};
  json_t *row = json_object();
  bool placed = actor->opt_node_id_case == RAY__RPC__ACTOR_TABLE_DATA__OPT_NODE_ID_NODE_ID;
  bool grouped = actor->opt_placement_group_id_case ==
                 RAY__RPC__ACTOR_TABLE_DATA__OPT_PLACEMENT_GROUP_ID_PLACEMENT_GROUP_ID;
  json_object_set_new(row, "actor_id", hex_text(&actor->actor_id));
  json_object_set_new(row, "class_name", json_string(actor->class_name));
  json_object_set_new(
      row, "state",
      json_string((size_t)actor->state < MOB_LEN(states) ? states[actor->state] : "?"));
  json_object_set_new(row, "job_id", hex_text(&actor->job_id));
  json_object_set_new(row, "name", json_string(actor->name));
  json_object_set_new(row, "node_id", placed ? hex_text(&actor->node_id) : json_null());
  json_object_set_new(row, "pid", json_integer(actor->pid));
  json_object_set_new(row, "ray_namespace", json_string(actor->ray_namespace));
  json_object_set_new(row, "serialized_runtime_env", json_string(actor->serialized_runtime_env));
  json_object_set_new(row, "required_resources",
                      amounts(actor->required_resources, actor->n_required_resources));
  json_object_set_new(row, "death_cause", death_of(actor));
  json_object_set_new(row, "is_detached", json_boolean(actor->is_detached));
  json_object_set_new(row, "placement_group_id",
                      grouped ? hex_text(&actor->placement_group_id) : json_null());
  json_object_set_new(row, "repr_name", json_string(actor->repr_name));
  json_object_set_new(row, "num_restarts", json_integer(actor->num_restarts));
  json_object_set_new(row, "num_restarts_due_to_lineage_reconstruction",
                      json_integer((json_int_t)actor->num_restarts_due_to_lineage_reconstruction));
  json_object_set_new(row, "num_restarts_due_to_node_preemption",
                      json_integer((json_int_t)actor->num_restarts_due_to_node_preemption));
  json_object_set_new(row, "call_site", json_null());
  json_object_set_new(row, "label_selector",
                      labels(actor->label_selector, actor->n_label_selector));
  return row;
}

static mob_status list_actors(mob_cli_t *cli, json_t *rows) {
  Ray__Rpc__GetAllActorInfoRequest request = RAY__RPC__GET_ALL_ACTOR_INFO_REQUEST__INIT;
  Ray__Rpc__GetAllActorInfoReply *reply = NULL;
  request.show_dead_jobs = true;
  MOB_TRY(mob_cli_call(cli, "/ray.rpc.ActorInfoGcsService/GetAllActorInfo", &request,
                       &ray__rpc__get_all_actor_info_reply__descriptor, &reply));
  for (size_t i = 0; i < reply->n_actor_table_data; i++) {
    json_array_append_new(rows, actor_row(reply->actor_table_data[i]));
  }
  mob_pb_free(reply);
  return MOB_OK;
}

static const char *const pg_columns[] = {"placement_group_id", "name", "creator_job_id", "state",
                                         NULL};

static json_t *bundles_of(const Ray__Rpc__PlacementGroupTableData *group) {
  json_t *out = json_array();
  for (size_t i = 0; i < group->n_bundles; i++) {
    const Ray__Rpc__Bundle *bundle = group->bundles[i];
    json_t *entry = json_object();
    if (bundle->bundle_id) {
      json_object_set_new(entry, "bundle_id", hex_text(&bundle->bundle_id->placement_group_id));
      json_object_set_new(entry, "bundle_index", json_integer(bundle->bundle_id->bundle_index));
    }
    json_object_set_new(entry, "node_id",
                        bundle->node_id.len ? hex_text(&bundle->node_id) : json_null());
    json_object_set_new(entry, "unit_resources",
                        amounts(bundle->unit_resources, bundle->n_unit_resources));
    json_array_append_new(out, entry);
  }
  return out;
}

static json_t *stats_of(const Ray__Rpc__PlacementGroupStats *stats) {
  static const char *const states[] = {"QUEUED",       "REMOVED",    "SCHEDULING_STARTED",
                                       "NO_RESOURCES", "INFEASIBLE", "FAILED_TO_COMMIT_RESOURCES",
                                       "FINISHED"};
  if (!stats) return json_null();
  return json_pack(
      "{s:I, s:I, s:i, s:s}", "scheduling_latency_us", (json_int_t)stats->scheduling_latency_us,
      "end_to_end_creation_latency_us", (json_int_t)stats->end_to_end_creation_latency_us,
      "scheduling_attempt", (int)stats->scheduling_attempt, "scheduling_state",
      (size_t)stats->scheduling_state < MOB_LEN(states) ? states[stats->scheduling_state] : "?");
}

static mob_status list_groups(mob_cli_t *cli, json_t *rows) {
  static const char *const states[] = {"PENDING", "PREPARED", "CREATED", "REMOVED", "RESCHEDULING"};
  Ray__Rpc__GetAllPlacementGroupRequest request = RAY__RPC__GET_ALL_PLACEMENT_GROUP_REQUEST__INIT;
  Ray__Rpc__GetAllPlacementGroupReply *reply = NULL;
  MOB_TRY(mob_cli_call(cli, "/ray.rpc.PlacementGroupInfoGcsService/GetAllPlacementGroup", &request,
                       &ray__rpc__get_all_placement_group_reply__descriptor, &reply));
  for (size_t i = 0; i < reply->n_placement_group_table_data; i++) {
    const Ray__Rpc__PlacementGroupTableData *group = reply->placement_group_table_data[i];
    json_t *row = json_object();
    json_object_set_new(row, "placement_group_id", hex_text(&group->placement_group_id));
    json_object_set_new(row, "name", json_string(group->name));
    json_object_set_new(row, "creator_job_id", hex_text(&group->creator_job_id));
    json_object_set_new(
        row, "state",
        json_string((size_t)group->state < MOB_LEN(states) ? states[group->state] : "?"));
    json_object_set_new(row, "bundles", bundles_of(group));
    json_object_set_new(row, "is_detached", json_boolean(group->is_detached));
    json_object_set_new(row, "stats", stats_of(group->stats));
    json_array_append_new(rows, row);
  }
  mob_pb_free(reply);
  return MOB_OK;
}

static const struct {
  const char *name;
  mob_status (*list)(mob_cli_t *cli, json_t *rows);
  const char *const *columns;
} kinds[] = {
    {"nodes", list_nodes, node_columns},
    {"actors", list_actors, actor_columns},
    {"placement-groups", list_groups, pg_columns},
};

// -------------------------------------------------------------------------------------- filters
// and order

typedef struct filter {
  char *key, *value;
  bool equal;
} filter_t;

static mob_status read_filter(const char *text, filter_t *out) {
  const char *sign = strchr(text, '=');
  if (!sign || sign == text || (sign == text + 1 && *text == '!')) {
    return mob_fail(
        MOB_E_INVALID,
        "Error: The format of a given filter %s is invalid: The filter string should be "
        "`key=value` or `key!=value`.",
        text);
  }
  out->equal = sign[-1] != '!';
  out->key = mob_strndup(text, (size_t)(sign - text) - !out->equal);
  out->value = mob_strdup(sign + 1);
  return MOB_OK;
}

static mob_status matches(const json_t *row, const filter_t *filters, size_t count, bool *out) {
  *out = true;
  for (size_t i = 0; i < count; i++) {
    const json_t *value = json_object_get(row, filters[i].key);
    if (!value) {
      return mob_fail(MOB_E_INVALID, "Error: the listing has no column '%s' to filter by",
                      filters[i].key);
    }
    char *text = mob_cell_text(value);
    bool same = strcasecmp(text ? text : "", filters[i].value) == 0;
    free(text);
    *out = *out && same == filters[i].equal;
  }
  return MOB_OK;
}

static int by_first(const void *a, const void *b) {
  return strcmp(json_string_value(*(json_t *const *)a), json_string_value(*(json_t *const *)b));
}

// Rows that pass the filters, by their ids.
static mob_status select_rows(const json_t *rows, const char *id, const filter_t *filters,
                              size_t count, json_t *out) {
  size_t n = json_array_size(rows), kept = 0;
  const json_t **ids = MOB_NEW_ARRAY(const json_t *, n + 1);
  json_t *by_id = json_object();
  mob_status status = MOB_OK;
  for (size_t i = 0; i < n && status == MOB_OK; i++) {
    json_t *row = json_array_get(rows, i);
    bool match;
    status = matches(row, filters, count, &match);
    if (status != MOB_OK || !match) continue;
    ids[kept++] = json_object_get(row, id);
    json_object_set(by_id, json_string_value(ids[kept - 1]), row);
  }
  qsort(ids, kept, sizeof *ids, by_first);
  for (size_t i = 0; i < kept; i++)
    json_array_append(out, json_object_get(by_id, json_string_value(ids[i])));
  json_decref(by_id);
  free(ids);
  return status;
}

// ------------------------------------------------------------------------------------------------
// output

static void keep_columns(json_t *rows, const char *const *columns) {
  size_t i;
  json_t *row;
  json_array_foreach(rows, i, row) {
    json_t *cut = json_object();
    for (const char *const *c = columns; *c; c++)
      json_object_set(cut, *c, json_object_get(row, *c));
    json_array_set_new(rows, i, cut);
  }
}

static void print_table(const json_t *rows, size_t total) {
  struct timeval now;
  struct tm tm;
  char stamp[40];
  gettimeofday(&now, NULL);
  localtime_r(&now.tv_sec, &tm);
  strftime(stamp, sizeof stamp, "%Y-%m-%d %H:%M:%S", &tm);
  printf("\n======== List: %s.%06ld ========\nStats:\n------------------------------\nTotal: "
         "%zu\n\nTable:\n"
         "------------------------------\n",
         stamp, (long)now.tv_usec, total);
  size_t n = json_array_size(rows), columns = json_object_size(json_array_get(rows, 0)), c = 0;
  char **headers = MOB_NEW_ARRAY(char *, columns + 1),
       **cells = MOB_NEW_ARRAY(char *, n *columns + 1);
  const char *name;
  json_t *value;
  json_object_foreach(json_array_get(rows, 0), name, value) {
    headers[c] = mob_strdup(name);
    for (char *p = headers[c++]; *p; p++) *p = (char)(*p >= 'a' && *p <= 'z' ? *p - 32 : *p);
  }
  for (size_t r = 0; r < n; r++) {
    c = 0;
    json_object_foreach(json_array_get(rows, r), name, value) cells[r * columns + c++] =
        mob_cell_text(value);
  }
  mob_buf_t text = {0};
  mob_table(&text, (const char *const *)headers, columns, cells, n);
  printf("%s\n", mob_buf_cstr(&text));
  mob_buf_free(&text);
  for (size_t i = 0; i < columns; i++) free(headers[i]);
  for (size_t i = 0; i < n * columns; i++) free(cells[i]);
  free(headers);
  free(cells);
}

static int print_rows(json_t *rows, size_t total, const char *format, bool detail) {
  size_t n = json_array_size(rows);
  if (!strcmp(format, "json")) {
    char *text = json_dumps(rows, JSON_ENSURE_ASCII);
    puts(text);
    free(text);
  } else if (!n) {
    puts("No resource in the cluster");
  } else if (!strcmp(format, "yaml") || (detail && !strcmp(format, "default"))) {
    mob_buf_t text = {0};
    mob_yaml_list(&text, rows);
    printf("%s\n", mob_buf_cstr(&text));
    mob_buf_free(&text);
  } else {
    print_table(rows, total);
  }
  fflush(stdout);
  if (n < total) {
    fprintf(stderr,
            "UserWarning: Limit last %zu entries (Total %zu). Use `--filter` to reduce the amount "
            "of data to return "
            "or setting a higher limit with `--limit` to see all data.\n",
            n, total);
  }
  return 0;
}

static const char help[] = "Usage: ray list [OPTIONS] {nodes|actors|placement-groups}\n\nOptions:\n"
                           "  --format [default|json|yaml|table]\n  -f, --filter TEXT    key=value "
                           "or key!=value; may be repeated\n"
                           "  --limit INTEGER      rows to print (100)\n  --detail             "
                           "every column\n  --timeout INTEGER\n"
                           "  --address TEXT       the cluster's HOST:PORT\n";

static int usage_error(const char *text) {
  fprintf(stderr,
          "Usage: ray list [OPTIONS] {nodes|actors|placement-groups}\nTry 'ray list --help' for "
          "help.\n\n%s\n",
          text);
  return 2;
}

// --filter may stand several times: it is taken out before the other flags are read.
static mob_status take_filters(int *argc, char **argv, filter_t *filters, size_t max,
                               size_t *count) {
  int n = 1;
  *count = 0;
  for (int i = 1; i < *argc; i++) {
    const char *text = NULL;
    if (!strncmp(argv[i], "--filter=", 9)) {
      text = argv[i] + 9;
    } else if ((!strcmp(argv[i], "--filter") || !strcmp(argv[i], "-f")) && i + 1 < *argc) {
      text = argv[++i];
    }
    if (!text) {
      argv[n++] = argv[i];
    } else if (*count == max) {
      return mob_fail(MOB_E_INVALID, "Error: at most %zu filters", max);
    } else {
      MOB_TRY(read_filter(text, &filters[*count]));
      ++*count;
    }
  }
  *argc = n;
  return MOB_OK;
}

int mob_ray_list_main(int argc, char **argv) {
  const char *address = NULL, *format = "default", *limit = "100", *timeout = NULL, *name = NULL;
  bool detail = false;
  filter_t filters[16] = {0};
  size_t n_filters = 0, n_rest = 0;
  const mob_cli_flag_t flags[] = {{"--address", &address, NULL},
                                  {"--format", &format, NULL},
                                  {"--limit", &limit, NULL},
                                  {"--detail", NULL, &detail},
                                  {"--timeout", &timeout, NULL}};
  json_t *all = json_array(), *rows = json_array();
  mob_cli_t cli = {0};
  bool connected = false;
  int code;
  if (take_filters(&argc, argv, filters, MOB_LEN(filters), &n_filters) != MOB_OK) {
    code = usage_error(mob_errmsg());
    goto cleanup;
  }
  code = mob_cli_parse(argc, argv, "ray list", help, flags, MOB_LEN(flags), &name, 1, &n_rest);
  if (code >= 0) goto cleanup;
  size_t kind = 0;
  while (kind < MOB_LEN(kinds) && (!name || strcmp(kinds[kind].name, name))) kind++;
  char *end;
  long most = strtol(limit, &end, 10);
  if (kind == MOB_LEN(kinds)) {
    code = usage_error(name ? "Error: this cluster lists nodes, actors and placement-groups"
                            : "Error: Missing argument '{nodes|actors|placement-groups}'.");
  } else if (*end || most < 1) {
    code = usage_error("Error: Invalid value for '--limit': it must be a whole number above 0.");
  } else if (strcmp(format, "default") && strcmp(format, "json") && strcmp(format, "yaml") &&
             strcmp(format, "table")) {
    code = usage_error(
        "Error: Invalid value for '--format': it is one of 'default', 'json', 'yaml', 'table'.");
  }
  if (code >= 0) goto cleanup;
  code = 1;
  if (mob_cli_connect(&cli, address, CONNECT_TIMEOUT_MS) != MOB_OK) goto failed;
  connected = true;
  if (kinds[kind].list(&cli, all) != MOB_OK) goto failed;
  if (select_rows(all, kinds[kind].columns[0], filters, n_filters, rows) != MOB_OK) goto failed;
  size_t total = json_array_size(rows);
  while (json_array_size(rows) > (size_t)most) json_array_remove(rows, json_array_size(rows) - 1);
  if (!detail && strcmp(format, "yaml")) keep_columns(rows, kinds[kind].columns);
  code = print_rows(rows, total, format, detail);
  goto cleanup;
failed:
  fprintf(stderr, "%s\n", mob_errmsg());
cleanup:
  if (connected) mob_cli_close(&cli);
  for (size_t i = 0; i < n_filters; i++) {
    free(filters[i].key);
    free(filters[i].value);
  }
  json_decref(all);
  json_decref(rows);
  return code;
}
