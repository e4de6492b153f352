// The JSON of `mobula status`.

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/status.h"
#include "runtime/base/clock.h"
#include "runtime/base/vec.h"
#include "runtime/gpu/nvml.h"
#include "runtime/rpc/message.h"

// One GPU value: its name in the JSON, in /metrics, and what an NVML value is divided by.
static const struct {
  mob_gpu_field_t field;
  const char *key, *metric;
  double divisor;
} gpu_keys[] = {
    {MOB_GPU_UTILIZATION, "utilization", "mobula_gpu_utilization", 100},
    {MOB_GPU_MEMORY_UTILIZATION, "memory_utilization", "mobula_gpu_memory_utilization", 100},
    {MOB_GPU_MEMORY_USED, "memory_used_bytes", "mobula_gpu_memory_used_bytes", 1},
    {MOB_GPU_MEMORY_TOTAL, "memory_total_bytes", "mobula_gpu_memory_total_bytes", 1},
    {MOB_GPU_SM_CLOCK, "sm_clock_hertz", "mobula_gpu_sm_clock_hertz", 1},
    {MOB_GPU_MEMORY_CLOCK, "memory_clock_hertz", "mobula_gpu_memory_clock_hertz", 1},
    {MOB_GPU_POWER, "power_watts", "mobula_gpu_power_watts", 1000},
    {MOB_GPU_POWER_LIMIT, "power_limit_watts", "mobula_gpu_power_limit_watts", 1000},
    {MOB_GPU_TEMPERATURE, "temperature_celsius", "mobula_gpu_temperature_celsius", 1},
    {MOB_GPU_THROTTLE, "throttle_reasons", "mobula_gpu_throttle_reasons", 1},
    {MOB_GPU_ECC_ERRORS, "ecc_errors", "mobula_gpu_ecc_errors_total", 1},
    {MOB_GPU_NVLINK_SENT, "nvlink_sent_bytes", "mobula_gpu_nvlink_transmit_bytes_total", 1},
    {MOB_GPU_NVLINK_RECEIVED, "nvlink_received_bytes", "mobula_gpu_nvlink_receive_bytes_total", 1},
    {MOB_GPU_PCIE_SENT, "pcie_sent_bytes", "mobula_gpu_pcie_transmit_bytes_total", 1},
    {MOB_GPU_PCIE_RECEIVED, "pcie_received_bytes", "mobula_gpu_pcie_receive_bytes_total", 1},
};

// A number as JSON: whole ones without a point.
static json_t *number(double value) {
  return fabs(value) < 9e15 && value == floor(value) ? json_integer((json_int_t)value)
                                                     : json_real(value);
}

// ---------------------------------------------------------------------------- from node daemons

static json_t *gpus_of(const mob_telemetry_reply_t *sample) {
  json_t *list = json_array();
  for (size_t i = 0; i < sample->n_gpus; i++) {
    const Mobula__Rpc__GpuTelemetry *gpu = sample->gpus[i];
    json_t *one = json_pack("{s:i, s:s, s:s, s:b}", "index", (int)gpu->index, "uuid", gpu->uuid,
                            "name", gpu->name, "up", (int)!gpu->lost);
    for (size_t k = 0; k < MOB_LEN(gpu_keys); k++) {
      size_t field = gpu_keys[k].field;
      bool known = field < gpu->n_values && gpu->values[field] >= 0;
      if (known)
        json_object_set_new(one, gpu_keys[k].key,
                            number((double)gpu->values[field] / gpu_keys[k].divisor));
    }
    json_array_append_new(list, one);
  }
  return list;
}

static void put_sample(json_t *node, const mob_telemetry_reply_t *s) {
  json_t *interfaces = json_array(), *rdma = json_array();
  json_object_set_new(node, "clock_s", json_real((double)s->taken_ms / 1e3));
  json_object_set_new(node, "age_s", json_real((double)s->age_ms / 1e3));
  json_object_set_new(node, "cpus", json_integer((json_int_t)s->cpus));
  json_object_set_new(node, "cpu_s", json_real((double)s->cpu_us / 1e6));
  json_object_set_new(node, "memory_bytes", json_integer((json_int_t)s->memory_total));
  json_object_set_new(node, "memory_free_bytes", json_integer((json_int_t)s->memory_free));
  json_object_set_new(node, "gpu_state", json_string(s->gpu_state));
  json_object_set_new(node, "driver", json_string(s->driver));
  json_object_set_new(node, "gpus", gpus_of(s));
  for (size_t i = 0; i < s->n_interfaces; i++) {
    const Mobula__Rpc__InterfaceTelemetry *one = s->interfaces[i];
    json_array_append_new(interfaces,
                          json_pack("{s:s, s:I, s:I, s:I, s:I}", "name", one->name,
                                    "received_bytes", (json_int_t)one->received_bytes, "sent_bytes",
                                    (json_int_t)one->sent_bytes, "errors", (json_int_t)one->errors,
                                    "dropped", (json_int_t)one->dropped));
  }
  for (size_t i = 0; i < s->n_rdma; i++) {
    const Mobula__Rpc__RdmaTelemetry *one = s->rdma[i];
    char *name = mob_sprintf("%s:%u", one->device, one->port);
    json_array_append_new(rdma,
                          json_pack("{s:s, s:b, s:I, s:I}", "name", name, "up", (int)one->active,
                                    "received_bytes", (json_int_t)one->received_bytes, "sent_bytes",
                                    (json_int_t)one->sent_bytes));
    free(name);
  }
  json_object_set_new(node, "interfaces", interfaces);
  json_object_set_new(node, "rdma", rdma);
}

json_t *mob__status_nodes(const mob_watched_node_t *nodes, size_t count) {
  json_t *list = json_array();
  for (size_t i = 0; i < count; i++) {
    const Ray__Rpc__GcsNodeInfo *info = nodes[i].info;
    char id[16] = "";
    for (size_t k = 0; k < 4 && k < info->node_id.len; k++)
      snprintf(id + 2 * k, 3, "%02x", info->node_id.data[k]);
    double gpus = mob_pb_double_get(info->resources_total, info->n_resources_total, "GPU");
    const char *error = nodes[i].why;
    if (!nodes[i].alive)
      error = info->death_info && *info->death_info->reason_message
                  ? info->death_info->reason_message
                  : "it left the cluster";
    json_t *node = json_pack("{s:s, s:s, s:s, s:b, s:b, s:s?, s:o}", "id", id, "ip",
                             info->node_manager_address, "hostname", info->node_manager_hostname,
                             "head", (int)info->is_head_node, "up", (int)nodes[i].alive, "error",
                             error, "gpus_total", number(gpus));
    if (nodes[i].alive && nodes[i].now) put_sample(node, nodes[i].now);
    json_array_append_new(list, node);
  }
  return list;
}

// --------------------------------------------------------------------------------- from /metrics

typedef struct metric {
  const char *name;
  struct {
    const char *name, *value;
  } labels[12];
  int count;
  double value;
} metric_t;

// Cuts one line up in place; false: a comment, or no metric.
static bool read_metric(char *line, metric_t *out) {
  memset(out, 0, sizeof *out);
  if (*line == '#' || !*line) return false;
  out->name = line;
  char *at = line + strcspn(line, "{ ");
  if (*at == '{') {
    *at++ = '\0';
    while (*at && *at != '}' && out->count < (int)MOB_LEN(out->labels)) {
      char *name = at, *equals = strstr(at, "=\"");
      if (!equals) return false;
      *equals = '\0';
      char *to = at = equals + 2;
      out->labels[out->count].name = name;
      out->labels[out->count++].value = to;
      for (; *at && *at != '"'; at++) {
        if (*at == '\\' && at[1]) at++;
        *to++ = *at;
      }
      if (!*at++) return false;
      *to = '\0';
      if (*at == ',') at++;
    }
    if (*at != '}') return false;
    at++;
  }
  if (*at != ' ') return false;
  *at++ = '\0';
  out->value = strtod(at, NULL);
  return true;
}

static const char *label(const metric_t *m, const char *name) {
  for (int i = 0; i < m->count; i++)
    if (strcmp(m->labels[i].name, name) == 0) return m->labels[i].value;
  return "";
}

// The object of `list` whose `key` is `value`; made when it is not there.
static json_t *entry(json_t *list, const char *key, const char *value, bool as_number) {
  size_t i;
  json_t *one;
  json_array_foreach(list, i, one) {
    const json_t *has = json_object_get(one, key);
    if (as_number ? json_integer_value(has) == atoll(value)
                  : strcmp(json_string_value(has), value) == 0)
      return one;
  }
  one = json_object();
  json_object_set_new(one, key, as_number ? json_integer(atoll(value)) : json_string(value));
  json_array_append_new(list, one);
  return one;
}

static json_t *list_of(json_t *object, const char *key) {
  json_t *list = json_object_get(object, key);
  if (list) return list;
  list = json_array();
  json_object_set_new(object, key, list);
  return list;
}

static void put_node_metric(json_t *nodes, const metric_t *m) {
  static const char *const plain[][2] = {{"mobula_node_cpus", "cpus"},
                                         {"mobula_node_cpu_seconds_total", "cpu_s"},
                                         {"mobula_node_memory_total_bytes", "memory_bytes"},
                                         {"mobula_node_memory_free_bytes", "memory_free_bytes"}};
  static const char *const net[][2] = {{"mobula_network_receive_bytes_total", "received_bytes"},
                                       {"mobula_network_transmit_bytes_total", "sent_bytes"},
                                       {"mobula_network_errors_total", "errors"},
                                       {"mobula_network_dropped_total", "dropped"}};
  json_t *node = entry(nodes, "ip", label(m, "node"), false);
  if (!strcmp(m->name, "mobula_node_up")) {
    json_object_set_new(node, "hostname", json_string(label(m, "hostname")));
    json_object_set_new(node, "up", json_boolean(m->value != 0));
  } else if (!strcmp(m->name, "mobula_node_telemetry_age_seconds")) {
    json_object_set_new(node, "clock_s", json_real((double)mob_now_ms() / 1e3 - m->value));
    json_object_set_new(node, "age_s", json_real(m->value));
  } else if (!strncmp(m->name, "mobula_gpu_", 11)) {
    json_t *gpu = entry(list_of(node, "gpus"), "index", label(m, "gpu"), true);
    json_object_set_new(gpu, "uuid", json_string(label(m, "uuid")));
    if (!strcmp(m->name, "mobula_gpu_up")) {
      json_object_set_new(gpu, "name", json_string(label(m, "name")));
      json_object_set_new(gpu, "up", json_boolean(m->value != 0));
      json_object_set_new(node, "driver", json_string(label(m, "driver")));
    }
    for (size_t k = 0; k < MOB_LEN(gpu_keys); k++)
      if (!strcmp(m->name, gpu_keys[k].metric))
        json_object_set_new(gpu, gpu_keys[k].key, number(m->value));
  }
  for (size_t k = 0; k < MOB_LEN(plain); k++)
    if (!strcmp(m->name, plain[k][0])) json_object_set_new(node, plain[k][1], number(m->value));
  for (size_t k = 0; k < MOB_LEN(net); k++) {
    if (strcmp(m->name, net[k][0]) != 0) continue;
    json_t *one = entry(list_of(node, "interfaces"), "name", label(m, "interface"), false);
    json_object_set_new(one, net[k][1], number(m->value));
  }
}

static void put_stage_metric(json_t *stages, const metric_t *m) {
  json_t *stage = entry(stages, "stage", label(m, "stage"), true);
  if (!strcmp(m->name, "mobula_stage_info")) {
    json_object_set_new(stage, "node", json_string(label(m, "node")));
    json_object_set_new(stage, "pid", json_integer(atoll(label(m, "pid"))));
    json_object_set_new(stage, "layers", json_string(label(m, "layers")));
    json_object_set_new(stage, "ranks", json_integer(atoll(label(m, "ranks"))));
  } else if (!strcmp(m->name, "mobula_stage_up")) {
    json_object_set_new(stage, "up", json_boolean(m->value != 0));
  } else if (!strcmp(m->name, "mobula_stage_heard_seconds")) {
    json_object_set_new(stage, "heard_s", json_real(m->value));
  } else if (!strcmp(m->name, "mobula_stage_step_age_seconds")) {
    json_object_set_new(stage, "step_age_s", json_real(m->value));
  }
}

static void put_gateway_metric(json_t *gateway, const metric_t *m) {
  static const char *const plain[][2] = {
      {"vllm:num_requests_running", "requests_running"},
      {"vllm:num_requests_waiting", "requests_waiting"},
      {"vllm:kv_cache_usage_perc", "kv_cache_usage"},
      {"vllm:prompt_tokens_total", "prompt_tokens"},
      {"vllm:generation_tokens_total", "generation_tokens"},
      {"vllm:num_preemptions_total", "preemptions"},
      {"mobula_steps_total", "steps"},
  };
  for (size_t k = 0; k < MOB_LEN(plain); k++) {
    if (strcmp(m->name, plain[k][0]) != 0) continue;
    json_object_set_new(gateway, plain[k][1], number(m->value));
    json_object_set_new(gateway, "model", json_string(label(m, "model_name")));
  }
  if (!strcmp(m->name, "mobula_group_lost_total") && m->value != 0)
    json_object_set_new(gateway, "lost", json_string(label(m, "cause")));
  if (!strcmp(m->name, "mobula_step_seconds")) {
    bool middle = !strcmp(label(m, "quantile"), "0.5");
    json_object_set_new(gateway, middle ? "step_p50_s" : "step_p99_s", json_real(m->value));
  }
}

json_t *mob__status_metrics(char *text, const char *url) {
  json_t *gateway = json_pack("{s:s, s:b, s:n, s:f}", "url", url, "up", 1, "error", "clock_s",
                              (double)mob_now_ms() / 1e3);
  json_t *nodes = json_array(), *stages = json_array();
  char *line;
  metric_t m;
  while ((line = strsep(&text, "\n"))) {
    if (!read_metric(line, &m)) continue;
    if (!strncmp(m.name, "mobula_stage_", 13))
      put_stage_metric(stages, &m);
    else if (*label(&m, "node"))
      put_node_metric(nodes, &m);
    else
      put_gateway_metric(gateway, &m);
  }
  json_object_set_new(gateway, "stages", stages);
  return json_pack("{s:o, s:o}", "gateway", gateway, "nodes", nodes);
}

// ----------------------------------------------------------------------------------------- rates

static void rate(json_t *now, const json_t *before, const char *key, double seconds) {
  const json_t *a = json_object_get(before, key), *b = json_object_get(now, key);
  char name[64];
  double grown = json_number_value(b) - json_number_value(a);
  if (!json_is_number(a) || !json_is_number(b) || seconds <= 0 || grown < 0) return;
  snprintf(name, sizeof name, "%s_per_s", key);
  json_object_set_new(now, name, json_real(grown / seconds));
}

static const json_t *same(const json_t *list, const json_t *one, const char *key) {
  size_t i;
  const json_t *other;
  json_array_foreach(list, i, other) {
    if (json_equal((json_t *)json_object_get(other, key), (json_t *)json_object_get(one, key)))
      return other;
  }
  return NULL;
}

static void list_rates(json_t *now, const json_t *before, const char *list, const char *key,
                       const char *const *counters, size_t count, double seconds) {
  size_t i;
  json_t *one;
  json_array_foreach(json_object_get(now, list), i, one) {
    const json_t *was = same(json_object_get(before, list), one, key);
    for (size_t k = 0; was && k < count; k++) rate(one, was, counters[k], seconds);
  }
}

void mob__status_rates(json_t *now, const json_t *before) {
  static const char *const traffic[] = {"received_bytes", "sent_bytes"};
  static const char *const links[] = {"nvlink_sent_bytes", "nvlink_received_bytes",
                                      "pcie_sent_bytes", "pcie_received_bytes"};
  size_t i;
  json_t *node;
  json_array_foreach(json_object_get(now, "nodes"), i, node) {
    const json_t *list = json_object_get(before, "nodes");
    const json_t *was = same(list, node, json_object_get(node, "id") ? "id" : "ip");
    if (!was) continue;
    double seconds = json_number_value(json_object_get(node, "clock_s")) -
                     json_number_value(json_object_get(was, "clock_s"));
    rate(node, was, "cpu_s", seconds);
    list_rates(node, was, "gpus", "uuid", links, MOB_LEN(links), seconds);
    list_rates(node, was, "interfaces", "name", traffic, MOB_LEN(traffic), seconds);
    list_rates(node, was, "rdma", "name", traffic, MOB_LEN(traffic), seconds);
  }
  json_t *gateway = json_object_get(now, "gateway");
  const json_t *was = json_object_get(before, "gateway");
  double seconds = json_number_value(json_object_get(gateway, "clock_s")) -
                   json_number_value(json_object_get(was, "clock_s"));
  rate(gateway, was, "prompt_tokens", seconds);
  rate(gateway, was, "generation_tokens", seconds);
}
