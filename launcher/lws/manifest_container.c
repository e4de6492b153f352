// Containers, probes and volumes of a pod template.
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "launcher/lws/manifest_internal.h"
#include "launcher/lws/quantity.h"

static bool is_env_name(const char *name) {
  if (!*name || isdigit((unsigned char)*name)) return false;
  for (; *name; name++) {
    if (!isalnum((unsigned char)*name) && !strchr("_-.", *name)) return false;
  }
  return true;
}

static void read_key_ref(mob_lws_reader_t *r, mob_lws_at_t ref, mob_lws_env_source_t source,
                         mob_lws_env_t *env) {
  mob__rd_keys(r, ref, "name key optional", "");
  env->source = source;
  env->from = mob__rd_string(r, ref, "name", true);
  env->key = mob__rd_string(r, ref, "key", true);
  env->optional = mob__rd_bool(r, ref, "optional", false);
}

static bool is_field_path(const char *path) {
  static const char *const plain[] = {"metadata.name", "metadata.namespace",      "metadata.uid",
                                      "spec.nodeName", "spec.serviceAccountName", "status.hostIP",
                                      "status.podIP",  "status.podIPs",           "status.hostIPs"};
  for (size_t i = 0; i < MOB_LEN(plain); i++) {
    if (strcmp(path, plain[i]) == 0) return true;
  }
  size_t n = strlen(path);
  return n > 2 &&
         (strncmp(path, "metadata.labels['", 17) == 0 ||
          strncmp(path, "metadata.annotations['", 22) == 0) &&
         strcmp(path + n - 2, "']") == 0;
}

static void read_env_from_value(mob_lws_reader_t *r, mob_lws_at_t at, mob_lws_env_t *env) {
  mob__rd_keys(r, at, "fieldRef resourceFieldRef secretKeyRef configMapKeyRef", "");
  mob_lws_at_t ref;
  if ((ref = mob__rd_map(r, at, "fieldRef", false)).node) {
    mob__rd_keys(r, ref, "fieldPath apiVersion", "");
    env->source = MOB_LWS_ENV_FIELD;
    env->from = mob__rd_string(r, ref, "fieldPath", true);
    if (env->from && !is_field_path(env->from)) {
      mob__rd_error(
          r, mob__rd_field(r, ref, "fieldPath"),
          "\"%.80s\" cannot be read; use metadata.name, .namespace, .uid, .labels['KEY'], "
          ".annotations['KEY'], status.podIP or status.hostIP",
          env->from);
    }
  } else if ((ref = mob__rd_map(r, at, "resourceFieldRef", false)).node) {
    mob__rd_keys(r, ref, "resource containerName divisor", "");
    env->source = MOB_LWS_ENV_RESOURCE;
    env->from = mob__rd_string(r, ref, "resource", true);
  } else if ((ref = mob__rd_map(r, at, "secretKeyRef", false)).node) {
    read_key_ref(r, ref, MOB_LWS_ENV_SECRET, env);
  } else if ((ref = mob__rd_map(r, at, "configMapKeyRef", false)).node) {
    read_key_ref(r, ref, MOB_LWS_ENV_CONFIGMAP, env);
  } else {
    mob__rd_error(r, at,
                  "must hold one of fieldRef, resourceFieldRef, secretKeyRef, configMapKeyRef");
  }
}

static void read_env_item(mob_lws_reader_t *r, mob_lws_at_t at, mob_lws_env_t *env) {
  env->line = at.line;
  env->name = "";
  env->value = "";
  mob__rd_keys(r, at, "name value valueFrom", "");
  const char *name = mob__rd_string(r, at, "name", true);
  if (!name) return;
  if (!is_env_name(name)) {
    mob__rd_error(
        r, mob__rd_field(r, at, "name"),
        "\"%.60s\" is no variable name; use letters, digits, _, - and ., not a digit first", name);
    return;
  }
  env->name = name;
  const char *value = mob__rd_string(r, at, "value", false);
  if (value) env->value = value;
  mob_lws_at_t from = mob__rd_map(r, at, "valueFrom", false);
  if (from.node && value && *value) {
    mob__rd_error(r, from, "stands beside a value; keep one of the two");
  } else if (from.node) {
    read_env_from_value(r, from, env);
  }
}

static void read_env(mob_lws_reader_t *r, mob_lws_at_t at, mob_lws_container_t *c) {
  mob_lws_at_t list = mob__rd_list(r, at, "env", false);
  mob_lws_at_t from = mob__rd_list(r, at, "envFrom", false);
  size_t n = (list.node ? list.node->count : 0) + (from.node ? from.node->count : 0);
  c->env = MOB_ARENA_ARRAY(&r->manifest->arena, mob_lws_env_t, n);
  for (size_t i = 0; from.node && i < from.node->count;
       i++) { // the kubelet lets env win over envFrom
    mob_lws_at_t item = mob__rd_item(r, from, i);
    mob_lws_env_t *env = &c->env[c->env_count++];
    mob__rd_keys(r, item, "prefix secretRef configMapRef", "");
    const char *prefix = mob__rd_string(r, item, "prefix", false);
    env->name = prefix ? prefix : "";
    env->line = item.line;
    mob_lws_at_t ref = mob__rd_map(r, item, "secretRef", false);
    env->source = ref.node ? MOB_LWS_ENV_SECRET : MOB_LWS_ENV_CONFIGMAP;
    if (!ref.node) ref = mob__rd_map(r, item, "configMapRef", true);
    env->from = mob__rd_string(r, ref, "name", true);
    env->optional = mob__rd_bool(r, ref, "optional", false);
  }
  for (size_t i = 0; list.node && i < list.node->count; i++) {
    read_env_item(r, mob__rd_item(r, list, i), &c->env[c->env_count++]);
  }
}

static void read_http(mob_lws_reader_t *r, mob_lws_at_t at, mob_lws_handler_t *h) {
  mob__rd_keys(r, at, "path port host scheme httpHeaders", "");
  h->kind = MOB_LWS_HANDLER_HTTP;
  const char *path = mob__rd_string(r, at, "path", false);
  h->path = path ? path : "/";
  h->host = mob__rd_string(r, at, "host", false);
  mob__rd_port(r, at, "port", &h->port, &h->port_name);
  const char *scheme = mob__rd_string(r, at, "scheme", false);
  if (scheme && strcmp(scheme, "HTTP") != 0) {
    mob__rd_error(r, mob__rd_field(r, at, "scheme"), "only HTTP is probed here, not \"%.20s\"",
                  scheme);
  }
  mob_lws_at_t list = mob__rd_list(r, at, "httpHeaders", false);
  if (!list.node) return;
  mob_lws_pair_t *headers = MOB_ARENA_ARRAY(&r->manifest->arena, mob_lws_pair_t, list.node->count);
  for (size_t i = 0; i < list.node->count; i++) {
    mob_lws_at_t item = mob__rd_item(r, list, i);
    const char *name = mob__rd_string(r, item, "name", true),
               *value = mob__rd_string(r, item, "value", true);
    if (!name || !value) continue;
    if (strpbrk(name, "\r\n: ") || strpbrk(value, "\r\n")) {
      mob__rd_error(r, item, "holds a line break or a blank where HTTP allows none");
      continue;
    }
    headers[h->headers.len++] = (mob_lws_pair_t){name, value};
  }
  h->headers.at = headers;
}

static void read_handler(mob_lws_reader_t *r, mob_lws_at_t at, bool lifecycle,
                         mob_lws_handler_t *h) {
  int kinds = 0;
  mob_lws_at_t exec = mob__rd_map(r, at, "exec", false),
               http = mob__rd_map(r, at, "httpGet", false),
               tcp = mob__rd_map(r, at, "tcpSocket", false);
  kinds = (exec.node != NULL) + (http.node != NULL) + (tcp.node != NULL);
  if (exec.node) {
    mob__rd_keys(r, exec, "command", "");
    h->kind = MOB_LWS_HANDLER_EXEC;
    h->argv = mob__rd_strings(r, exec, "command");
    if (h->argv.len == 0) mob__rd_error(r, exec, "needs a command");
  }
  if (http.node) read_http(r, http, h);
  if (tcp.node) {
    mob__rd_keys(r, tcp, "port host", "");
    h->kind = MOB_LWS_HANDLER_TCP;
    h->host = mob__rd_string(r, tcp, "host", false);
    mob__rd_port(r, tcp, "port", &h->port, &h->port_name);
  }
  if ((http.node || tcp.node) && !h->port && !h->port_name) {
    mob__rd_error(r, http.node ? http : tcp, "needs a port");
  }
  if (lifecycle) {
    mob_lws_at_t nap = mob__rd_map(r, at, "sleep", false);
    if (nap.node) {
      kinds++;
      h->kind = MOB_LWS_HANDLER_SLEEP;
      h->sleep_s = mob__rd_int(r, nap, "seconds", 0, 86400, 0);
    }
  }
  if (kinds != 1) {
    mob__rd_error(r, at, "must hold exactly one of exec, httpGet, tcpSocket%s",
                  lifecycle ? ", sleep" : "");
  }
}

static void read_probe(mob_lws_reader_t *r, mob_lws_at_t container, const char *key,
                       mob_lws_probe_t *p) {
  mob_lws_at_t at = mob__rd_map(r, container, key, false);
  if (!at.node) return;
  mob__rd_keys(
      r, at,
      "exec httpGet tcpSocket initialDelaySeconds periodSeconds timeoutSeconds failureThreshold "
      "successThreshold",
      "terminationGracePeriodSeconds");
  if (mob__rd_field(r, at, "grpc").node) return; // named as unknown already
  read_handler(r, at, false, &p->handler);
  p->initial_delay_s = (int)mob__rd_int(r, at, "initialDelaySeconds", 0, 1000000, 0);
  p->period_s = (int)mob__rd_int(r, at, "periodSeconds", 1, 1000000, 10);
  p->timeout_s = (int)mob__rd_int(r, at, "timeoutSeconds", 1, 1000000, 1);
  p->failure_threshold = (int)mob__rd_int(r, at, "failureThreshold", 1, 1000000, 3);
  p->success_threshold = (int)mob__rd_int(r, at, "successThreshold", 1, 1000000, 1);
  if (p->success_threshold != 1 && strcmp(key, "readinessProbe") != 0) {
    mob__rd_error(r, mob__rd_field(r, at, "successThreshold"), "must be 1 for a %s", key);
  }
}

static mob_lws_pair_list_t read_quantities(mob_lws_reader_t *r, mob_lws_at_t map, const char *key) {
  mob_lws_pair_list_t list = {0};
  mob_lws_at_t at = mob__rd_map(r, map, key, false);
  if (!at.node) return list;
  mob_lws_pair_t *pairs = MOB_ARENA_ARRAY(&r->manifest->arena, mob_lws_pair_t, at.node->count);
  for (size_t i = 0; i < at.node->count; i++) {
    const mob_yaml_entry_t *entry = &at.node->entries[i];
    mob_lws_at_t value = {entry->value, mob__rd_field(r, at, entry->key).path, entry->line};
    int64_t amount;
    if (entry->value->kind != MOB_YAML_SCALAR ||
        !mob__lws_quantity_millis(entry->value->text, &amount) || amount < 0) {
      mob__rd_error(r, value, "must be an amount such as 8, \"500m\" or 32Gi, here is %s%s%.40s",
                    mob__yaml_describe(entry->value),
                    entry->value->kind == MOB_YAML_SCALAR ? " " : "",
                    entry->value->kind == MOB_YAML_SCALAR ? entry->value->text : "");
      continue;
    }
    pairs[list.len++] = (mob_lws_pair_t){entry->key, entry->value->text};
  }
  list.at = pairs;
  return list;
}

static void read_resources(mob_lws_reader_t *r, mob_lws_at_t container, mob_lws_container_t *c) {
  mob_lws_at_t at = mob__rd_map(r, container, "resources", false);
  if (!at.node) return;
  mob__rd_keys(r, at, "limits requests", "claims");
  c->limits = read_quantities(r, at, "limits");
  c->requests = read_quantities(r, at, "requests");
  const char *text = mob__lws_pair_get(c->limits, "nvidia.com/gpu");
  const char *asked = mob__lws_pair_get(c->requests, "nvidia.com/gpu");
  if (text) mob__lws_quantity(text, &c->gpus);
  if (asked && (!text || strcmp(asked, text) != 0)) {
    mob__rd_error(r, mob__rd_field(r, at, "requests"),
                  "nvidia.com/gpu must be equal in requests and limits");
  }
  if (c->gpus > 1024) {
    mob__rd_error(r, mob__rd_field(r, at, "limits"),
                  "nvidia.com/gpu: %lld devices are more than one pod can hold",
                  (long long)c->gpus);
    c->gpus = 0;
  }
  text = mob__lws_pair_get(c->limits, "cpu");
  if (!text) text = mob__lws_pair_get(c->requests, "cpu");
  if (text) mob__lws_quantity_millis(text, &c->cpu_millis);
  text = mob__lws_pair_get(c->limits, "memory");
  if (!text) text = mob__lws_pair_get(c->requests, "memory");
  if (text) mob__lws_quantity(text, &c->memory);
}

static void read_ports(mob_lws_reader_t *r, mob_lws_at_t container, mob_lws_container_t *c) {
  mob_lws_at_t list = mob__rd_list(r, container, "ports", false);
  if (!list.node) return;
  c->ports = MOB_ARENA_ARRAY(&r->manifest->arena, mob_lws_port_t, list.node->count);
  for (size_t i = 0; i < list.node->count; i++) {
    mob_lws_at_t at = mob__rd_item(r, list, i);
    mob__rd_keys(r, at, "name containerPort protocol", "hostPort hostIP");
    mob_lws_port_t *port = &c->ports[c->port_count++];
    port->port = (int)mob__rd_int(r, at, "containerPort", 1, 65535, 0);
    if (!mob__rd_field(r, at, "containerPort").node) mob__rd_error(r, at, "needs a containerPort");
    port->name = mob__rd_string(r, at, "name", false);
    if (port->name && !mob__rd_is_name(port->name, false, 15)) {
      mob__rd_error(r, at, "the port name \"%.40s\" must be at most 15 of a-z, 0-9 and -",
                    port->name);
    }
  }
}

static void read_mounts(mob_lws_reader_t *r, mob_lws_at_t container, mob_lws_container_t *c) {
  mob_lws_at_t list = mob__rd_list(r, container, "volumeMounts", false);
  if (!list.node) return;
  c->mounts = MOB_ARENA_ARRAY(&r->manifest->arena, mob_lws_mount_t, list.node->count);
  for (size_t i = 0; i < list.node->count; i++) {
    mob_lws_at_t at = mob__rd_item(r, list, i);
    mob__rd_keys(r, at, "name mountPath subPath readOnly",
                 "mountPropagation subPathExpr recursiveReadOnly");
    mob_lws_mount_t mount = {
        mob__rd_string(r, at, "name", true), mob__rd_string(r, at, "mountPath", true),
        mob__rd_string(r, at, "subPath", false), mob__rd_bool(r, at, "readOnly", false)};
    if (!mount.volume || !mount.path) continue;
    if (mount.path[0] != '/' || strchr(mount.path, ':') || strstr(mount.path, "/../")) {
      mob__rd_error(r, mob__rd_field(r, at, "mountPath"),
                    "\"%.100s\" must be an absolute path without ':' and '..'", mount.path);
      continue;
    }
    if (mount.sub_path && (mount.sub_path[0] == '/' || strstr(mount.sub_path, ".."))) {
      mob__rd_error(r, mob__rd_field(r, at, "subPath"),
                    "\"%.100s\" must be relative and without '..'", mount.sub_path);
      continue;
    }
    for (size_t k = 0; k < c->mount_count; k++) {
      if (strcmp(c->mounts[k].path, mount.path) == 0) {
        mob__rd_error(r, mob__rd_field(r, at, "mountPath"),
                      "\"%.100s\" is mounted twice; remove one", mount.path);
      }
    }
    c->mounts[c->mount_count++] = mount;
  }
}

void mob__lws_read_container(mob_lws_reader_t *r, mob_lws_at_t at, bool init,
                             mob_lws_container_t *c) {
  c->line = at.line;
  c->name = "";
  if (at.node->kind != MOB_YAML_MAP) {
    mob__rd_error(r, at, "must be a map, here is %s", mob__yaml_describe(at.node));
    return;
  }
  mob__rd_keys(
      r, at,
      "name image command args env envFrom ports resources volumeMounts workingDir startupProbe "
      "readinessProbe livenessProbe lifecycle imagePullPolicy stdin stdinOnce tty",
      "securityContext terminationMessagePath terminationMessagePolicy volumeDevices resizePolicy "
      "restartPolicy restartPolicyRules");
  const char *name = mob__rd_string(r, at, "name", true);
  if (name && !mob__rd_is_name(name, false, 63)) {
    mob__rd_error(r, mob__rd_field(r, at, "name"),
                  "\"%.80s\" must be at most 63 of a-z, 0-9 and -, with - not at an end", name);
  } else if (name) {
    c->name = name;
  }
  c->image = mob__rd_string(r, at, "image", true);
  c->working_dir = mob__rd_string(r, at, "workingDir", false);
  c->command = mob__rd_strings(r, at, "command");
  c->args = mob__rd_strings(r, at, "args");
  if (c->command.len == 0) {
    mob__rd_error(
        r, mob__rd_field(r, at, "command"),
        "is missing: the image's own entry point is not known here; write the command out");
  }
  read_env(r, at, c);
  read_resources(r, at, c);
  read_ports(r, at, c);
  read_mounts(r, at, c);
  read_probe(r, at, "startupProbe", &c->probes[MOB_LWS_STARTUP]);
  read_probe(r, at, "readinessProbe", &c->probes[MOB_LWS_READINESS]);
  read_probe(r, at, "livenessProbe", &c->probes[MOB_LWS_LIVENESS]);
  mob_lws_at_t lifecycle = mob__rd_map(r, at, "lifecycle", false);
  mob__rd_keys(r, lifecycle, "postStart preStop", "stopSignal");
  mob_lws_at_t hook = mob__rd_map(r, lifecycle, "postStart", false);
  if (hook.node) read_handler(r, hook, true, &c->post_start);
  hook = mob__rd_map(r, lifecycle, "preStop", false);
  if (hook.node) read_handler(r, hook, true, &c->pre_stop);
  bool probed = c->probes[0].handler.kind || c->probes[1].handler.kind || c->probes[2].handler.kind;
  if (init && (probed || lifecycle.node)) {
    mob__rd_error(r, at, "an init container has no probes and no lifecycle; remove them");
  }
}

static const char *only_source(mob_lws_reader_t *r, mob_lws_at_t at, const char *key,
                               const char *field) {
  mob_lws_at_t map = mob__rd_map(r, at, key, true);
  return map.node ? mob__rd_string(r, map, field, true) : NULL;
}

void mob__lws_read_volume(mob_lws_reader_t *r, mob_lws_at_t at, mob_lws_volume_t *v) {
  v->line = at.line;
  v->name = "";
  if (at.node->kind != MOB_YAML_MAP) {
    mob__rd_error(r, at, "must be a map, here is %s", mob__yaml_describe(at.node));
    return;
  }
  const char *name = mob__rd_string(r, at, "name", true);
  if (name && !mob__rd_is_name(name, false, 63)) {
    mob__rd_error(r, mob__rd_field(r, at, "name"), "\"%.80s\" must be at most 63 of a-z, 0-9 and -",
                  name);
  } else if (name) {
    v->name = name;
  }
  mob__rd_keys(r, at, "name emptyDir persistentVolumeClaim hostPath secret configMap", "");
  mob_lws_at_t source;
  if ((source = mob__rd_map(r, at, "emptyDir", false)).node) {
    mob__rd_keys(r, source, "medium sizeLimit", "");
    const char *medium = mob__rd_string(r, source, "medium", false);
    if (medium && *medium && strcmp(medium, "Memory") != 0 &&
        strncmp(medium, "HugePages", 9) != 0) {
      mob__rd_error(r, mob__rd_field(r, source, "medium"),
                    "is \"%.40s\"; it must be Memory or \"\"", medium);
    }
    v->memory = medium && *medium;
    mob_lws_at_t limit = mob__rd_field(r, source, "sizeLimit");
    if (limit.node && (limit.node->kind != MOB_YAML_SCALAR ||
                       !mob__lws_quantity(limit.node->text, &v->size_limit) || v->size_limit < 0)) {
      mob__rd_error(r, limit, "must be an amount of bytes such as 32Gi");
      v->size_limit = 0;
    }
  } else if ((source = mob__rd_map(r, at, "persistentVolumeClaim", false)).node) {
    mob__rd_keys(r, source, "claimName readOnly", "");
    v->kind = MOB_LWS_VOLUME_CLAIM;
    v->source = only_source(r, at, "persistentVolumeClaim", "claimName");
    v->read_only = mob__rd_bool(r, source, "readOnly", false);
  } else if ((source = mob__rd_map(r, at, "hostPath", false)).node) {
    mob__rd_keys(r, source, "path type", "");
    v->kind = MOB_LWS_VOLUME_HOSTPATH;
    v->source = only_source(r, at, "hostPath", "path");
  } else if ((source = mob__rd_map(r, at, "secret", false)).node) {
    mob__rd_keys(r, source, "secretName optional", "items defaultMode");
    v->kind = MOB_LWS_VOLUME_SECRET;
    v->source = only_source(r, at, "secret", "secretName");
    v->optional = mob__rd_bool(r, source, "optional", false);
  } else if ((source = mob__rd_map(r, at, "configMap", false)).node) {
    mob__rd_keys(r, source, "name optional", "items defaultMode");
    v->kind = MOB_LWS_VOLUME_CONFIGMAP;
    v->source = only_source(r, at, "configMap", "name");
    v->optional = mob__rd_bool(r, source, "optional", false);
  } else if (!mob__rd_field(r, at, "emptyDir").node) {
    mob__rd_error(r, at,
                  "needs one of emptyDir, persistentVolumeClaim, hostPath, secret, configMap");
  }
}
