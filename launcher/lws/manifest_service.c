// Services, Secrets and ConfigMaps.
#include <stdlib.h>
#include <string.h>

#include "launcher/lws/manifest_internal.h"

static void read_service_port(mob_lws_reader_t *r, mob_lws_at_t at, mob_lws_service_port_t *port) {
  mob__rd_keys(r, at, "name port targetPort protocol", "nodePort appProtocol");
  port->name = mob__rd_string(r, at, "name", false);
  port->port = (int)mob__rd_int(r, at, "port", 1, 65535, 0);
  if (!mob__rd_field(r, at, "port").node) mob__rd_error(r, at, "needs a port");
  port->target = 0;
  mob__rd_port(r, at, "targetPort", &port->target, &port->target_name);
  if (!port->target && !port->target_name) port->target = port->port;
  const char *protocol = mob__rd_string(r, at, "protocol", false);
  if (protocol && strcmp(protocol, "TCP") != 0) {
    mob__rd_error(r, mob__rd_field(r, at, "protocol"), "only TCP is forwarded here, not \"%.20s\"",
                  protocol);
  }
}

void mob__lws_read_service(mob_lws_reader_t *r, mob_lws_at_t root) {
  mob_lws_manifest_t *m = r->manifest;
  mob_lws_service_t *s = MOB_ARENA_NEW(&m->arena, mob_lws_service_t);
  s->file = r->file;
  s->line = root.line;
  mob__rd_keys(r, root, "apiVersion kind metadata spec status", "");
  s->name = mob__lws_read_name(r, root, &s->namespace_, 63);
  mob_lws_at_t spec = mob__rd_map(r, root, "spec", true);
  mob__rd_keys(
      r, spec, "selector ports type clusterIP publishNotReadyAddresses",
      "sessionAffinity sessionAffinityConfig externalTrafficPolicy internalTrafficPolicy "
      "ipFamilies "
      "ipFamilyPolicy clusterIPs loadBalancerIP loadBalancerClass loadBalancerSourceRanges "
      "externalIPs "
      "externalName allocateLoadBalancerNodePorts healthCheckNodePort trafficDistribution");
  static const char *const types[] = {"ClusterIP", "NodePort", "LoadBalancer", "ExternalName",
                                      NULL};
  int type = mob__rd_enum(r, spec, "type", types, 0);
  if (type == 3) {
    mob__rd_warn(r, spec, "an ExternalName Service is skipped");
    return;
  }
  const char *ip = mob__rd_string(r, spec, "clusterIP", false);
  s->headless = ip && strcmp(ip, "None") == 0;
  s->publish_not_ready = mob__rd_bool(r, spec, "publishNotReadyAddresses", false);
  s->selector = mob__lws_read_labels(r, spec, "selector");
  if (spec.node && s->selector.len == 0) {
    mob__rd_warn(r, spec, "without a selector this Service has no endpoints");
  }
  mob_lws_at_t ports = mob__rd_list(r, spec, "ports", !s->headless && spec.node);
  s->port_count = ports.node ? ports.node->count : 0;
  s->ports = MOB_ARENA_ARRAY(&m->arena, mob_lws_service_port_t, s->port_count);
  for (size_t i = 0; i < s->port_count; i++)
    read_service_port(r, mob__rd_item(r, ports, i), &s->ports[i]);
  if (s->name) *mob_vec_push(&m->services) = s;
}

// NULL unless `text` is base64; line breaks in it are skipped, as Go's decoder does.
static char *decode_base64(mob_arena_t *arena, const char *text) {
  static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  char *out = mob_arena_alloc(arena, strlen(text) + 1);
  size_t n = 0, digits = 0, padding = 0;
  unsigned bits = 0;
  for (; *text; text++) {
    if (*text == '\n' || *text == '\r') continue;
    if (*text == '=') {
      padding++;
      continue;
    }
    const char *at = strchr(alphabet, *text);
    if (!at || padding) return NULL;
    bits = (bits << 6 | (unsigned)(at - alphabet)) & 0xffffff;
    if (++digits % 4 != 1) out[n++] = (char)(bits >> (6 - 2 * ((digits - 1) % 4)));
  }
  if ((digits + padding) % 4 != 0 || padding > 2 || memchr(out, 0, n)) return NULL;
  out[n] = 0;
  return out;
}

void mob__lws_read_config(mob_lws_reader_t *r, mob_lws_at_t root, const char *kind) {
  mob_lws_manifest_t *m = r->manifest;
  bool secret = strcmp(kind, "Secret") == 0;
  mob__rd_keys(r, root,
               secret ? "apiVersion kind metadata data stringData type immutable"
                      : "apiVersion kind metadata data immutable",
               secret ? "" : "binaryData");
  const char *namespace_;
  const char *name = mob__lws_read_name(r, root, &namespace_, 253);
  mob_lws_pair_list_t data = mob__rd_pairs(r, root, "data");
  mob_lws_pair_list_t plain =
      secret ? mob__rd_pairs(r, root, "stringData") : (mob_lws_pair_list_t){0};
  mob_lws_pair_t *all = MOB_ARENA_ARRAY(&m->arena, mob_lws_pair_t, data.len + plain.len);
  size_t n = 0;
  for (size_t i = 0; i < plain.len; i++) all[n++] = plain.at[i]; // stringData wins over data
  for (size_t i = 0; i < data.len; i++) {
    const char *value = data.at[i].value;
    if (secret && !(value = decode_base64(&m->arena, value))) {
      mob__rd_error(r, mob__rd_field(r, mob__rd_field(r, root, "data"), data.at[i].key),
                    "is not base64 of text; use stringData for plain text");
      continue;
    }
    all[n++] = (mob_lws_pair_t){data.at[i].key, value};
  }
  if (!name) return;
  mob_lws_config_t *config = mob_vec_push(&m->configs);
  *config = (mob_lws_config_t){secret ? "Secret" : "ConfigMap", name, {all, n}};
}
