// The screen of `mobula status`.

#include <stdio.h>
#include <string.h>
#include <time.h>

#include "launcher/status.h"

enum { HOST_WIDTH = 24 };

static double number_at(const json_t *object, const char *key) {
  return json_number_value(json_object_get(object, key));
}

static bool has(const json_t *object, const char *key) {
  return json_is_number(json_object_get(object, key));
}

static const char *text_at(const json_t *object, const char *key) {
  const char *text = json_string_value(json_object_get(object, key));
  return text ? text : "";
}

// "-" where nothing is known.
static const char *shown(char out[24], const json_t *object, const char *key, double unit,
                         int digits) {
  if (has(object, key))
    snprintf(out, 24, "%.*f", digits, number_at(object, key) / unit);
  else
    strcpy(out, "-");
  return out;
}

static const char *pair(char out[48], const json_t *object, const char *one, const char *two,
                        double unit, int digits) {
  char a[24], b[24];
  snprintf(out, 48, "%s/%s", shown(a, object, one, unit, digits),
           shown(b, object, two, unit, digits));
  return out;
}

static void put_gateway(const json_t *gateway, mob_buf_t *out) {
  if (!json_is_object(gateway)) {
    mob_buf_puts(out, "Gateway  none: no `vllm serve` has opened its API in this cluster\n");
    return;
  }
  if (!json_is_true(json_object_get(gateway, "up"))) {
    mob_buf_printf(out, "Gateway  %s  does not answer: %s\n", text_at(gateway, "url"),
                   text_at(gateway, "error"));
    return;
  }
  char a[24], b[24], c[24], d[24];
  mob_buf_printf(out, "Gateway  %s  %s  %s%s\n", text_at(gateway, "url"), text_at(gateway, "model"),
                 *text_at(gateway, "lost") ? "LOST: " : "serving", text_at(gateway, "lost"));
  mob_buf_printf(
      out,
      "Requests %.0f running, %.0f waiting   Tokens/s %s generated, %s prompt   KV cache "
      "%s %%   Step %s ms\n",
      number_at(gateway, "requests_running"), number_at(gateway, "requests_waiting"),
      shown(a, gateway, "generation_tokens_per_s", 1, 1),
      shown(b, gateway, "prompt_tokens_per_s", 1, 1), shown(c, gateway, "kv_cache_usage", .01, 1),
      shown(d, gateway, "step_p50_s", 1e-3, 2));
}

static void put_stages(const json_t *stages, mob_buf_t *out) {
  size_t i;
  json_t *s;
  if (!json_array_size(stages)) return;
  mob_buf_printf(out, "\n%-6s %-16s %8s %-9s %-6s %-6s %-10s %s\n", "STAGE", "NODE", "PID",
                 "LAYERS", "RANKS", "STATE", "HEARD", "STEP");
  json_array_foreach(stages, i, s) {
    char step[32] = "idle";
    if (number_at(s, "step_age_s") > 0)
      snprintf(step, sizeof step, "for %.1f s", number_at(s, "step_age_s"));
    mob_buf_printf(
        out, "%-6.0f %-16s %8.0f %-9s %-6.0f %-6s %.1f s ago  %s\n", number_at(s, "stage"),
        text_at(s, "node"), number_at(s, "pid"), text_at(s, "layers"), number_at(s, "ranks"),
        json_is_true(json_object_get(s, "up")) ? "up" : "LOST", number_at(s, "heard_s"), step);
  }
}

static bool shows(const json_t *interfaces, const json_t *one) {
  return strcmp(text_at(one, "name"), "lo") != 0 || json_array_size(interfaces) == 1;
}

static void put_node(const json_t *n, mob_buf_t *out) {
  char cpu[48], used[24], memory[64] = "-", head[32];
  bool up = json_is_true(json_object_get(n, "up"));
  snprintf(head, sizeof head, "%s%s", json_is_true(json_object_get(n, "head")) ? "head" : "",
           up ? "" : "DEAD");
  snprintf(cpu, sizeof cpu, "%s of %.0f", shown(used, n, "cpu_s_per_s", 1, 1),
           number_at(n, "cpus"));
  if (has(n, "memory_bytes"))
    snprintf(memory, sizeof memory, "%.1f of %.1f",
             (number_at(n, "memory_bytes") - number_at(n, "memory_free_bytes")) / (1 << 30),
             number_at(n, "memory_bytes") / (1 << 30));
  // Pods of a group differ in the end of their names.
  const char *host = text_at(n, "hostname");
  size_t len = strlen(host), over = len > HOST_WIDTH ? len - HOST_WIDTH : 0;
  mob_buf_printf(out, "%-16s %-5s %-*s %-11s %-16s", text_at(n, "ip"), head, HOST_WIDTH,
                 host + over, up ? cpu : "-", up ? memory : "-");
  static const char *const lists[] = {"interfaces", "rdma"};
  for (size_t k = 0; k < 2; k++) {
    const json_t *list = json_object_get(n, lists[k]);
    size_t i;
    json_t *one;
    json_array_foreach(list, i, one) {
      char rates[48];
      if (!shows(list, one)) continue;
      mob_buf_printf(out, " %s %s", text_at(one, "name"),
                     pair(rates, one, "received_bytes_per_s", "sent_bytes_per_s", 1e6, 1));
    }
  }
  mob_buf_putc(out, '\n');
  if (*text_at(n, "error")) mob_buf_printf(out, "  %s\n", text_at(n, "error"));
  if (up && number_at(n, "age_s") > 3)
    mob_buf_printf(
        out, "  these values are %.0f s old: reading them takes long (a driver that hangs?)\n",
        number_at(n, "age_s"));
}

static void put_gpu(const json_t *node, const json_t *g, mob_buf_t *out) {
  char util[24], busy[24], sm[24], power[24], temp[24], memory[48], link[48], pcie[48];
  const char *name = text_at(g, "name");
  if (strncmp(name, "NVIDIA ", 7) == 0) name += 7;
  mob_buf_printf(out, "%-16s %3.0f %-18.18s ", text_at(node, "ip"), number_at(g, "index"), name);
  if (!json_is_true(json_object_get(g, "up"))) {
    mob_buf_puts(out, "LOST: it does not answer any more\n");
    return;
  }
  mob_buf_printf(out, "%5s %5s %15s %6s %6s %5s  %-15s %s", shown(util, g, "utilization", .01, 0),
                 shown(busy, g, "memory_utilization", .01, 0),
                 pair(memory, g, "memory_used_bytes", "memory_total_bytes", 1 << 30, 1),
                 shown(sm, g, "sm_clock_hertz", 1e6, 0), shown(power, g, "power_watts", 1, 0),
                 shown(temp, g, "temperature_celsius", 1, 0),
                 pair(link, g, "nvlink_sent_bytes_per_s", "nvlink_received_bytes_per_s", 1e6, 0),
                 pair(pcie, g, "pcie_sent_bytes_per_s", "pcie_received_bytes_per_s", 1e6, 0));
  if (number_at(g, "ecc_errors") > 0)
    mob_buf_printf(out, "  %.0f ECC ERRORS", number_at(g, "ecc_errors"));
  mob_buf_putc(out, '\n');
}

static void put_gpus(const json_t *nodes, mob_buf_t *out) {
  size_t i, k, count = 0;
  json_t *node, *gpu;
  json_array_foreach(nodes, i, node) count += json_array_size(json_object_get(node, "gpus"));
  if (!count) {
    const char *why = "";
    double simulated = 0;
    json_array_foreach(nodes, i, node) {
      if (!*why) why = text_at(node, "gpu_state");
      simulated += number_at(node, "gpus_total");
    }
    if (simulated > 0)
      mob_buf_printf(out,
                     "\n%.0f GPUs in name only (simulated or declared); stages compute on the "
                     "CPUs\n",
                     simulated);
    else
      mob_buf_printf(out, "\nNo GPUs%s%s\n", *why ? ": " : "", why);
    return;
  }
  mob_buf_printf(out, "\n%-16s %3s %-18s %5s %5s %15s %6s %6s %5s  %-15s %s\n", "NODE", "GPU",
                 "MODEL", "BUSY%", "MEM%", "MEMORY GiB", "SM MHz", "WATTS", "TEMP",
                 "NVLINK MB/s o/i", "PCIe MB/s o/i");
  json_array_foreach(nodes, i, node) {
    json_array_foreach(json_object_get(node, "gpus"), k, gpu) put_gpu(node, gpu, out);
  }
}

void mob__status_screen(const json_t *status, mob_buf_t *out) {
  char when[32];
  time_t now = time(NULL);
  struct tm local;
  strftime(when, sizeof when, "%H:%M:%S", localtime_r(&now, &local));
  const json_t *nodes = json_object_get(status, "nodes");
  const char *address = text_at(status, "address");
  mob_buf_printf(out, "Mobula %s  %s%s  %zu node%s  %s\n", MOB_VERSION,
                 *address ? "cluster " : "no cluster", address, json_array_size(nodes),
                 json_array_size(nodes) == 1 ? "" : "s", when);
  if (*text_at(status, "error"))
    mob_buf_printf(out, "The head does not answer: %s\n", text_at(status, "error"));
  const json_t *gateway = json_object_get(status, "gateway");
  put_gateway(gateway, out);
  put_stages(json_object_get(gateway, "stages"), out);
  mob_buf_printf(out, "\n%-16s %-5s %-*s %-11s %-16s %s\n", "NODE", "", HOST_WIDTH, "HOST", "CPU",
                 "MEMORY GiB", "NETWORK MB/s in/out");
  size_t i;
  json_t *node;
  json_array_foreach(nodes, i, node) put_node(node, out);
  put_gpus(nodes, out);
}
