// What `ray status` prints, as the JSON value that Ray's monitor keeps in the key-value store: the
// first
// ("legacy") form, of a cluster that nothing scales.
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "ray/common.pb-c.h"
#include "runtime/base/clock.h"
#include "runtime/gcs/internal.h"

static json_t *pair(double used, double total) {
  return json_pack("[f, f]", used, total);
}

static void add_usage(json_t *usage, const mob__node_t *node) {
  for (size_t i = 0; i < node->total.len; i++) {
    const mob_amount_t *a = &node->total.at[i];
    double total = mob_resource_double(a->amount);
    double used = mob_resource_double(a->amount - mob_resources_get(&node->available, a->name));
    json_t *known = json_object_get(usage, a->name);
    if (known) {
      used += json_real_value(json_array_get(known, 0));
      total += json_real_value(json_array_get(known, 1));
    }
    json_object_set_new(usage, a->name, pair(used, total));
  }
}

static json_t *shape_of(const mob_resources_t *set) {
  json_t *shape = json_object();
  for (size_t i = 0; i < set->len; i++) {
    json_object_set_new(shape, set->at[i].name, json_real(mob_resource_double(set->at[i].amount)));
  }
  return shape;
}

// Counts equal ones: [[item, n], ...]. Takes the item over.
static void count_item(json_t *list, json_t *item, int64_t count) {
  size_t i;
  json_t *entry;
  json_array_foreach(list, i, entry) {
    if (!json_equal(json_array_get(entry, 0), item)) continue;
    json_array_set_new(entry, 1,
                       json_integer(json_integer_value(json_array_get(entry, 1)) + count));
    json_decref(item);
    return;
  }
  json_array_append_new(list, json_pack("[o, I]", item, (json_int_t)count));
}

static void add_demand(void *arg, const mob_resources_t *shape, int64_t count) {
  count_item(arg, shape_of(shape), count);
}

static void add_group(void *arg, const Ray__Rpc__PlacementGroupTableData *group) {
  json_t *bundles = json_array();
  for (size_t i = 0; i < group->n_bundles; i++) {
    if (group->bundles[i]->node_id.len) continue; // placed already
    json_t *shape = json_object();
    for (size_t k = 0; k < group->bundles[i]->n_unit_resources; k++) {
      const mob_pb_double_t *entry = group->bundles[i]->unit_resources[k];
      json_object_set_new(shape, entry->key, json_real(entry->value));
    }
    count_item(bundles, shape, 1);
  }
  const ProtobufCEnumValue *strategy = protobuf_c_enum_descriptor_get_value(
      &ray__rpc__placement_strategy__descriptor, group->strategy);
  count_item(
      arg,
      json_pack("{s:s, s:o}", "strategy", strategy ? strategy->name : "PACK", "bundles", bundles),
      1);
}

char *mob__status_report(mob_gcs_t *gcs, size_t *len) {
  uint64_t begun = mob_now_ns();
  size_t n;
  mob__node_t **nodes = mob__nodes_alive(gcs, &n);
  double listed = (double)(mob_now_ns() - begun) * 1e-9;
  json_t *usage = json_object(), *by_node = json_object(), *active = json_object();
  json_t *type_of = json_object(), *node_types = json_array();
  for (size_t i = 0; i < n; i++) {
    json_t *own = json_object();
    add_usage(usage, nodes[i]);
    add_usage(own, nodes[i]);
    json_object_set_new(by_node, nodes[i]->hex, own);
    char *type = mob_sprintf("node_%s", nodes[i]->hex);
    json_object_set_new(active, type, json_integer(1));
    json_object_set_new(type_of, nodes[i]->hex, json_string(type));
    free(type);
    mob_resources_t plain = {0};
    for (size_t k = 0; k < nodes[i]->total.len; k++) {
      const mob_amount_t *a = &nodes[i]->total.at[k];
      if (!mob_resource_is_group(a->name)) mob_resources_set(&plain, a->name, a->amount);
    }
    count_item(node_types, shape_of(&plain), 1);
    mob_resources_free(&plain);
  }
  free(nodes);
  json_t *demand = json_array(), *groups = json_array();
  mob__gcs_demand(gcs, add_demand, demand);
  mob__pgs_each_waiting(gcs, add_group, groups);
  json_t *metrics =
      json_pack("{s:o, s:o, s:o, s:[], s:o, s:n, s:o, s:n, s:n}", "usage", usage, "resource_demand",
                demand, "pg_demand", groups, "request_demand", "node_types", node_types, "head_ip",
                "usage_by_node", by_node, "node_type_mapping", "idle_time_map");
  json_t *scaler =
      json_pack("{s:o, s:n, s:[], s:{}, s:[], s:{s:{}}, s:n, s:{}, s:o, s:b}", "active_nodes",
                active, "idle_nodes", "pending_nodes", "pending_launches", "failed_nodes",
                "node_availability_summary", "node_availabilities", "node_activities",
                "pending_resources", "node_type_mapping", type_of, "legacy", 1);
  double took = (double)(mob_now_ns() - begun) * 1e-9;
  json_t *report = json_pack("{s:f, s:f, s:i, s:f, s:o, s:f, s:o}", "gcs_request_time", took,
                             "time", mob_wall_seconds(), "monitor_pid", (int)uv_os_getpid(),
                             "autoscaler_update_time", took, "autoscaler_report", scaler,
                             "non_terminated_nodes_time", listed, "load_metrics_report", metrics);
  char *text = json_dumps(report, JSON_COMPACT);
  json_decref(report);
  *len = strlen(text);
  return text;
}
