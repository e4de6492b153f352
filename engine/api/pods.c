#include "engine/api/pods.h"

#include <jansson.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/api/json_out.h"
#include "runtime/base/clock.h"
#include "runtime/base/vec.h"
#include "runtime/gpu/nvml.h"
#include "runtime/node/address.h"
#include "runtime/node/telemetry_watch.h"
#include "runtime/rpc/message.h"
#define MOB_LOG_COMPONENT "api"
#include "runtime/base/log.h"

enum { PERIOD_MS = 1000, STALE_MS = 5000 };

struct mob_pods {
  uv_loop_t *loop;
  uint64_t period_ms;
  mob_telemetry_watch_t *watch; // with a cluster
  mob_telemetry_t *own;         // without
  mob_telemetry_reply_t *sample;
  uv_timer_t timer;
  char *cluster;
  char *gateway; // JSON, still to be told
};

// ------------------------------------------------------------------------------------------ asking

static void on_told(void *arg, mob_status status, const char *why, const void *reply) {
  (void)arg;
  (void)reply;
  if (status != MOB_OK) MOB_WARN("`mobula status` will not find this gateway: %s", why);
}

static void tell(mob_pods_t *p) {
  mob_gcs_client_t *gcs = p->watch ? mob_telemetry_watch_gcs(p->watch) : NULL;
  if (!gcs || !p->gateway) return;
  Ray__Rpc__InternalKVPutRequest request = RAY__RPC__INTERNAL_KVPUT_REQUEST__INIT;
  request.namespace_ = mob_pb_bytes("mobula", 6);
  request.key = mob_pb_bytes("gateway", 7);
  request.value = mob_pb_bytes(p->gateway, strlen(p->gateway));
  request.overwrite = true;
  mob_gcs_call(gcs, "/ray.rpc.InternalKVGcsService/InternalKVPut", &request,
               &ray__rpc__internal_kvput_reply__descriptor, 5000, on_told, NULL);
  free(p->gateway);
  p->gateway = NULL;
}

static void on_round(void *owner, const char *why) {
  (void)why; // a lost GCS ends the group anyway
  tell(owner);
}

static void on_own(void *arg, const mob_telemetry_reply_t *sample) {
  mob_pods_t *p = arg;
  mob_pb_free(p->sample);
  p->sample = sample ? mob_pb_clone(sample) : NULL;
}

static void on_timer(uv_timer_t *timer) {
  mob_pods_t *p = timer->data;
  mob_telemetry_get(p->own, on_own, p);
}

mob_status mob_pods_open(uv_loop_t *loop, const char *cluster, mob_pods_t **out) {
  mob_pods_t *p = MOB_NEW(mob_pods_t);
  const char *period = getenv("MOBULA_TELEMETRY_MS");
  p->loop = loop;
  p->period_ms = period && *period ? strtoull(period, NULL, 10) : PERIOD_MS;
  *out = p;
  if (!cluster) {
    p->own = mob_telemetry_new(loop, true);
    uv_timer_init(loop, &p->timer);
    p->timer.data = p;
    if (p->period_ms) uv_timer_start(&p->timer, on_timer, 0, p->period_ms);
    return MOB_OK;
  }
  p->cluster = mob_strdup(cluster);
  mob_status status = MOB_OK;
  if (p->period_ms)
    status = mob_telemetry_watch_new(loop, cluster, p->period_ms, on_round, p, &p->watch);
  if (status == MOB_OK) return MOB_OK;
  mob_pods_close(p);
  *out = NULL;
  return status;
}

// The address at which others reach this process: the one by which it reaches the GCS.
static char *own_address(const mob_pods_t *p) {
  char *ip = NULL, *towards = mob_strdup(p->cluster);
  char *colon = strrchr(towards, ':');
  if (colon) *colon = '\0';
  if (mob_node_ip(NULL, towards, &ip) != MOB_OK) ip = NULL;
  if (!ip) ip = mob_strdup(towards);
  free(towards);
  return ip;
}

void mob_pods_tell_gateway(mob_pods_t *p, const char *host, int port, bool tls, const char *model) {
  if (!p->cluster) return;
  bool any = !host || !strcmp(host, "0.0.0.0") || !strcmp(host, "::") || !*host;
  char *ip = any ? own_address(p) : mob_strdup(host);
  json_t *json = json_pack("{s:s, s:i, s:b, s:i, s:s}", "host", ip, "port", port, "tls", (int)tls,
                           "pid", (int)getpid(), "model", model);
  free(ip);
  char *text = json ? json_dumps(json, JSON_COMPACT) : NULL;
  json_decref(json);
  free(p->gateway);
  p->gateway = text;
  tell(p);
}

static void on_own_closed(uv_handle_t *handle) {
  mob_pods_t *p = handle->data;
  mob_pb_free(p->sample);
  free(p->cluster);
  free(p->gateway);
  free(p);
}

static void on_watch_closed(void *arg) {
  mob_pods_t *p = arg;
  free(p->cluster);
  free(p->gateway);
  free(p);
}

static void on_telemetry_closed(void *arg) {
  mob_pods_t *p = arg;
  uv_close((uv_handle_t *)&p->timer, on_own_closed);
}

void mob_pods_close(mob_pods_t *p) {
  if (!p) return;
  if (p->own) {
    uv_timer_stop(&p->timer);
    mob_telemetry_close(p->own, on_telemetry_closed, p);
  } else if (p->watch) {
    mob_telemetry_watch_close(p->watch, on_watch_closed, p);
  } else {
    on_watch_closed(p);
  }
}

// ----------------------------------------------------------------------------------------- writing

typedef struct pod {
  const char *ip, *hostname;
  const mob_telemetry_reply_t *sample; // or NULL
  double age_s;
} pod_t;

typedef MOB_VEC(pod_t) pods_t;

static bool listed(const pods_t *list, const char *ip) {
  for (size_t i = 0; i < list->len; i++)
    if (strcmp(list->at[i].ip, ip) == 0) return true;
  return false;
}

static void collect(const mob_pods_t *p, pods_t *out) {
  if (p->own) {
    double age = p->sample ? (double)(mob_now_ms() - p->sample->taken_ms) / 1e3 : 0;
    *mob_vec_push(out) = (pod_t){"127.0.0.1", "", p->sample, age};
  }
  size_t count = 0;
  const mob_watched_node_t *nodes = p->watch ? mob_telemetry_watch_nodes(p->watch, &count) : NULL;
  for (size_t i = 0; i < count; i++) {
    // Daemons of one address show the same machine: it is told once.
    if (!nodes[i].alive || listed(out, nodes[i].info->node_manager_address)) continue;
    const mob_telemetry_reply_t *now = nodes[i].now;
    double age = now ? (double)(mob_now_ms() - nodes[i].heard_ms + now->age_ms) / 1e3 : 0;
    *mob_vec_push(out) = (pod_t){nodes[i].info->node_manager_address,
                                 nodes[i].info->node_manager_hostname, now, age};
  }
}

static void head(mob_buf_t *out, const char *name, const char *help, const char *type) {
  mob_buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_number(mob_buf_t *out, double value) {
  mob_buf_puts(out, "} ");
  mob_json_float(out, value);
  mob_buf_putc(out, '\n');
}

static void put_label(mob_buf_t *out, const char *name, const char *value) {
  if (out->data[out->len - 1] != '{') mob_buf_putc(out, ',');
  mob_buf_printf(out, "%s=\"", name);
  for (const char *at = value; *at; at++) {
    if (*at == '\\' || *at == '"') mob_buf_putc(out, '\\');
    if (*at == '\n')
      mob_buf_puts(out, "\\n");
    else
      mob_buf_putc(out, *at);
  }
  mob_buf_putc(out, '"');
}

// "name{node="..."", to be gone on with.
static void begin(mob_buf_t *out, const char *name, const pod_t *pod) {
  mob_buf_printf(out, "%s{", name);
  put_label(out, "node", pod->ip);
}

static const struct {
  mob_gpu_field_t field;
  const char *name, *help, *type;
  double per_unit;
} gpu_metrics[] = {
    {MOB_GPU_UTILIZATION, "mobula_gpu_utilization",
     "Share of the last sampling period in which a kernel ran, 0 to 1.", "gauge", 100},
    {MOB_GPU_MEMORY_UTILIZATION, "mobula_gpu_memory_utilization",
     "Share of the last sampling period in which device memory was read or written, 0 to 1.",
     "gauge", 100},
    {MOB_GPU_MEMORY_USED, "mobula_gpu_memory_used_bytes", "Device memory in use.", "gauge", 1},
    {MOB_GPU_MEMORY_TOTAL, "mobula_gpu_memory_total_bytes", "Device memory.", "gauge", 1},
    {MOB_GPU_SM_CLOCK, "mobula_gpu_sm_clock_hertz", "Clock of the SMs.", "gauge", 1},
    {MOB_GPU_MEMORY_CLOCK, "mobula_gpu_memory_clock_hertz", "Clock of the memory.", "gauge", 1},
    {MOB_GPU_POWER, "mobula_gpu_power_watts", "Power drawn.", "gauge", 1000},
    {MOB_GPU_POWER_LIMIT, "mobula_gpu_power_limit_watts", "Power limit in force.", "gauge", 1000},
    {MOB_GPU_TEMPERATURE, "mobula_gpu_temperature_celsius", "Temperature of the chip.", "gauge", 1},
    {MOB_GPU_THROTTLE, "mobula_gpu_throttle_reasons",
     "Why clocks are lowered: bits of nvmlClocksThrottleReason.", "gauge", 1},
    {MOB_GPU_ECC_ERRORS, "mobula_gpu_ecc_errors_total",
     "Uncorrected memory errors since the driver was loaded.", "counter", 1},
    {MOB_GPU_NVLINK_SENT, "mobula_gpu_nvlink_transmit_bytes_total",
     "Data sent over all NVLinks of the GPU.", "counter", 1},
    {MOB_GPU_NVLINK_RECEIVED, "mobula_gpu_nvlink_receive_bytes_total",
     "Data received over all NVLinks of the GPU.", "counter", 1},
    {MOB_GPU_PCIE_SENT, "mobula_gpu_pcie_transmit_bytes_total", "Bytes sent over PCIe.", "counter",
     1},
    {MOB_GPU_PCIE_RECEIVED, "mobula_gpu_pcie_receive_bytes_total", "Bytes received over PCIe.",
     "counter", 1},
};

static void begin_gpu(mob_buf_t *out, const char *name, const pod_t *pod,
                      const Mobula__Rpc__GpuTelemetry *gpu) {
  char index[16];
  snprintf(index, sizeof index, "%u", gpu->index);
  begin(out, name, pod);
  put_label(out, "gpu", index);
  put_label(out, "uuid", gpu->uuid);
}

static void put_gpu_info(mob_buf_t *out, const pods_t *pods) {
  head(out, "mobula_gpu_up", "Whether the GPU answers; its model and driver.", "gauge");
  for (size_t i = 0; i < pods->len; i++) {
    const mob_telemetry_reply_t *s = pods->at[i].sample;
    for (size_t g = 0; s && g < s->n_gpus; g++) {
      begin_gpu(out, "mobula_gpu_up", &pods->at[i], s->gpus[g]);
      put_label(out, "name", s->gpus[g]->name);
      put_label(out, "driver", s->driver);
      put_number(out, !s->gpus[g]->lost);
    }
  }
}

static void put_gpus(mob_buf_t *out, const pods_t *pods) {
  size_t gpus = 0;
  for (size_t i = 0; i < pods->len; i++)
    gpus += pods->at[i].sample ? pods->at[i].sample->n_gpus : 0;
  if (!gpus) return;
  put_gpu_info(out, pods);
  for (size_t m = 0; m < MOB_LEN(gpu_metrics); m++) {
    bool any = false;
    for (size_t i = 0; i < pods->len; i++) {
      const mob_telemetry_reply_t *s = pods->at[i].sample;
      for (size_t g = 0; s && g < s->n_gpus; g++) {
        size_t field = gpu_metrics[m].field;
        if (field >= s->gpus[g]->n_values || s->gpus[g]->values[field] < 0) continue;
        if (!any) head(out, gpu_metrics[m].name, gpu_metrics[m].help, gpu_metrics[m].type);
        any = true;
        begin_gpu(out, gpu_metrics[m].name, &pods->at[i], s->gpus[g]);
        put_number(out, (double)s->gpus[g]->values[field] / gpu_metrics[m].per_unit);
      }
    }
  }
}

static void put_interfaces(mob_buf_t *out, const pods_t *pods) {
  static const struct {
    const char *name, *help;
    size_t at;
  } metrics[] = {
      {"mobula_network_receive_bytes_total", "Bytes received by a network interface of the pod.",
       offsetof(Mobula__Rpc__InterfaceTelemetry, received_bytes)},
      {"mobula_network_transmit_bytes_total", "Bytes sent by a network interface of the pod.",
       offsetof(Mobula__Rpc__InterfaceTelemetry, sent_bytes)},
      {"mobula_network_errors_total", "Packets with errors, both ways.",
       offsetof(Mobula__Rpc__InterfaceTelemetry, errors)},
      {"mobula_network_dropped_total", "Packets dropped, both ways.",
       offsetof(Mobula__Rpc__InterfaceTelemetry, dropped)},
  };
  for (size_t m = 0; m < MOB_LEN(metrics); m++) {
    head(out, metrics[m].name, metrics[m].help, "counter");
    for (size_t i = 0; i < pods->len; i++) {
      const mob_telemetry_reply_t *s = pods->at[i].sample;
      for (size_t k = 0; s && k < s->n_interfaces; k++) {
        begin(out, metrics[m].name, &pods->at[i]);
        put_label(out, "interface", s->interfaces[k]->name);
        put_number(out, (double)*(uint64_t *)((char *)s->interfaces[k] + metrics[m].at));
      }
    }
  }
}

static void put_rdma(mob_buf_t *out, const pods_t *pods) {
  size_t ports = 0;
  for (size_t i = 0; i < pods->len; i++)
    ports += pods->at[i].sample ? pods->at[i].sample->n_rdma : 0;
  static const char *const names[] = {"mobula_rdma_port_up", "mobula_rdma_receive_bytes_total",
                                      "mobula_rdma_transmit_bytes_total"};
  static const char *const help[] = {"Whether the RDMA port is active.",
                                     "Bytes received by an RDMA port of the machine.",
                                     "Bytes sent by an RDMA port of the machine."};
  for (size_t m = 0; ports && m < MOB_LEN(names); m++) {
    head(out, names[m], help[m], m ? "counter" : "gauge");
    for (size_t i = 0; i < pods->len; i++) {
      const mob_telemetry_reply_t *s = pods->at[i].sample;
      for (size_t k = 0; s && k < s->n_rdma; k++) {
        const Mobula__Rpc__RdmaTelemetry *port = s->rdma[k];
        double values[] = {port->active, (double)port->received_bytes, (double)port->sent_bytes};
        char number[16];
        snprintf(number, sizeof number, "%u", port->port);
        begin(out, names[m], &pods->at[i]);
        put_label(out, "device", port->device);
        put_label(out, "port", number);
        put_number(out, values[m]);
      }
    }
  }
}

static void put_pods(mob_buf_t *out, const pods_t *pods) {
  static const char *const names[] = {
      "mobula_node_telemetry_age_seconds", "mobula_node_cpu_seconds_total", "mobula_node_cpus",
      "mobula_node_memory_total_bytes", "mobula_node_memory_free_bytes"};
  static const char *const help[] = {"Age of the node's values below.",
                                     "CPU time used by the pod, or by its machine.",
                                     "CPUs that the pod may use.", "Memory that the pod may use.",
                                     "Memory that the pod can still take."};
  head(out, "mobula_node_up", "Whether the node's daemon told of it within the last 5 s.", "gauge");
  for (size_t i = 0; i < pods->len; i++) {
    const pod_t *pod = &pods->at[i];
    begin(out, "mobula_node_up", pod);
    put_label(out, "hostname", pod->hostname);
    put_number(out, pod->sample && pod->age_s * 1e3 < STALE_MS);
  }
  for (size_t m = 0; m < MOB_LEN(names); m++) {
    head(out, names[m], help[m], m == 1 ? "counter" : "gauge");
    for (size_t i = 0; i < pods->len; i++) {
      const mob_telemetry_reply_t *s = pods->at[i].sample;
      if (!s) continue;
      double values[] = {pods->at[i].age_s, (double)s->cpu_us / 1e6, s->cpus,
                         (double)s->memory_total, (double)s->memory_free};
      begin(out, names[m], &pods->at[i]);
      put_number(out, values[m]);
    }
  }
}

void mob_pods_write(const mob_pods_t *p, mob_buf_t *out) {
  pods_t pods = {0};
  collect(p, &pods);
  if (pods.len) {
    put_pods(out, &pods);
    put_gpus(out, &pods);
    put_interfaces(out, &pods);
    put_rdma(out, &pods);
  }
  mob_vec_free(&pods);
}
