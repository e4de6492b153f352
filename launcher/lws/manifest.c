#include "launcher/lws/manifest.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "launcher/lws/manifest_internal.h"
#include "runtime/base/file.h"

#define MAX_FILE ((size_t)4 << 20)

void mob__lws_manifest_free(mob_lws_manifest_t *m) {
  mob_arena_free(&m->arena);
  mob_vec_free(&m->sets);
  mob_vec_free(&m->services);
  mob_vec_free(&m->configs);
  mob_vec_free(&m->messages);
  memset(m, 0, sizeof *m);
}

const char *mob__lws_pair_get(mob_lws_pair_list_t list, const char *key) {
  for (size_t i = 0; i < list.len; i++) {
    if (strcmp(list.at[i].key, key) == 0) return list.at[i].value;
  }
  return NULL;
}

const mob_lws_config_t *mob__lws_manifest_config(const mob_lws_manifest_t *m, const char *kind,
                                                 const char *name) {
  for (size_t i = 0; i < m->configs.len; i++) {
    if (strcmp(m->configs.at[i].kind, kind) == 0 && strcmp(m->configs.at[i].name, name) == 0) {
      return &m->configs.at[i];
    }
  }
  return NULL;
}

const char *mob__lws_read_name(mob_lws_reader_t *r, mob_lws_at_t root, const char **namespace_,
                               size_t max) {
  mob_lws_at_t meta = mob__rd_map(r, root, "metadata", true);
  *namespace_ = "default";
  if (!meta.node) return NULL;
  const char *ns = mob__rd_string(r, meta, "namespace", false);
  if (ns && !mob__rd_is_name(ns, false, 63)) {
    mob__rd_error(r, mob__rd_field(r, meta, "namespace"), "\"%.80s\" is no namespace name", ns);
  } else if (ns) {
    *namespace_ = ns;
  }
  const char *name = mob__rd_string(r, meta, "name", true);
  if (name && !mob__rd_is_name(name, true, max)) {
    mob__rd_error(r, mob__rd_field(r, meta, "name"),
                  "\"%.80s\" must be at most %zu of a-z, 0-9 and -, beginning with a letter", name,
                  max);
    return NULL;
  }
  return name;
}

static bool is_label_value(const char *text) {
  size_t n = strlen(text);
  if (n == 0) return true;
  if (n > 63 || !isalnum((unsigned char)text[0]) || !isalnum((unsigned char)text[n - 1]))
    return false;
  for (size_t i = 0; i < n; i++) {
    if (!isalnum((unsigned char)text[i]) && !strchr("-_.", text[i])) return false;
  }
  return true;
}

mob_lws_pair_list_t mob__lws_read_labels(mob_lws_reader_t *r, mob_lws_at_t map, const char *key) {
  mob_lws_pair_list_t list = mob__rd_pairs(r, map, key);
  mob_lws_at_t at = mob__rd_field(r, map, key);
  for (size_t i = 0; i < list.len; i++) {
    if (is_label_value(list.at[i].value)) continue;
    mob_lws_at_t value = mob__rd_field(r, at, list.at[i].key);
    if (strchr(list.at[i].value, '<')) {
      mob__rd_warn(
          r, value,
          "\"%.63s\" is a placeholder, which a cluster refuses as a label; fill it in there",
          list.at[i].value);
    } else {
      mob__rd_error(r, value, "\"%.80s\" is no label value: at most 63 letters, digits, -, _ and .",
                    list.at[i].value);
    }
  }
  return list;
}

static void check_mounts(mob_lws_reader_t *r, mob_lws_at_t spec, const mob_lws_template_t *t) {
  for (size_t i = 0; i < t->volume_count; i++) {
    for (size_t k = 0; k < i; k++) {
      if (*t->volumes[i].name && strcmp(t->volumes[i].name, t->volumes[k].name) == 0) {
        mob__rd_error(r, spec, "two volumes are named \"%s\"; rename one", t->volumes[i].name);
      }
    }
  }
  for (size_t i = 0; i < t->container_count; i++) {
    const mob_lws_container_t *c = &t->containers[i];
    for (size_t k = 0; k < i; k++) {
      if (*c->name && strcmp(c->name, t->containers[k].name) == 0) {
        mob__rd_error(r, (mob_lws_at_t){NULL, spec.path, c->line},
                      "two containers are named \"%s\"; rename one", c->name);
      }
    }
    for (size_t k = 0; k < c->mount_count; k++) {
      bool found = false;
      for (size_t v = 0; v < t->volume_count; v++)
        found |= strcmp(t->volumes[v].name, c->mounts[k].volume) == 0;
      if (!found) {
        mob__rd_error(
            r, (mob_lws_at_t){NULL, spec.path, c->line},
            "container %s mounts the volume \"%.63s\", which spec.volumes lacks; add it there",
            c->name, c->mounts[k].volume);
      }
    }
  }
}

const mob_lws_template_t *mob__lws_read_template(mob_lws_reader_t *r, mob_lws_at_t at) {
  if (!at.node) return NULL;
  mob_arena_t *arena = &r->manifest->arena;
  mob_lws_template_t *t = MOB_ARENA_NEW(arena, mob_lws_template_t);
  t->line = at.line;
  mob__rd_keys(r, at, "metadata spec", "");
  mob_lws_at_t meta = mob__rd_map(r, at, "metadata", false);
  mob__rd_keys(r, meta, "labels annotations name namespace creationTimestamp",
               "generateName finalizers");
  t->labels = mob__lws_read_labels(r, meta, "labels");
  t->annotations = mob__rd_pairs(r, meta, "annotations");
  mob_lws_at_t spec = mob__rd_map(r, at, "spec", true);
  if (!spec.node) return t;
  mob__rd_keys(
      r, spec,
      "containers initContainers volumes terminationGracePeriodSeconds restartPolicy dnsPolicy",
      "nodeSelector affinity tolerations schedulerName priorityClassName priority "
      "serviceAccountName "
      "serviceAccount automountServiceAccountToken securityContext imagePullSecrets hostNetwork "
      "hostIPC "
      "hostPID hostname subdomain topologySpreadConstraints runtimeClassName shareProcessNamespace "
      "dnsConfig hostAliases resourceClaims enableServiceLinks readinessGates overhead nodeName "
      "preemptionPolicy activeDeadlineSeconds os hostUsers schedulingGates setHostnameAsFQDN "
      "resources");
  const char *restart = mob__rd_string(r, spec, "restartPolicy", false);
  if (restart && strcmp(restart, "Always") != 0) {
    mob__rd_error(r, mob__rd_field(r, spec, "restartPolicy"),
                  "is \"%.40s\"; the StatefulSets that LWS makes allow only Always", restart);
  }
  t->grace_s = mob__rd_int(r, spec, "terminationGracePeriodSeconds", 0, 1000000, 30);
  mob_lws_at_t init = mob__rd_list(r, spec, "initContainers", false);
  mob_lws_at_t main = mob__rd_list(r, spec, "containers", true);
  if (main.node && main.node->count == 0)
    mob__rd_error(r, main, "is empty; a pod needs a container");
  t->init_count = init.node ? init.node->count : 0;
  t->container_count = t->init_count + (main.node ? main.node->count : 0);
  if (t->container_count > 64) {
    mob__rd_error(r, spec, "%zu containers in one pod are more than this runner holds (64)",
                  t->container_count);
    t->init_count = t->container_count = 0;
    return t;
  }
  t->containers = MOB_ARENA_ARRAY(arena, mob_lws_container_t, t->container_count);
  for (size_t i = 0; i < t->container_count; i++) {
    bool is_init = i < t->init_count;
    mob_lws_at_t item = mob__rd_item(r, is_init ? init : main, is_init ? i : i - t->init_count);
    mob__lws_read_container(r, item, is_init, &t->containers[i]);
  }
  mob_lws_at_t volumes = mob__rd_list(r, spec, "volumes", false);
  if (volumes.node && volumes.node->count > 256) {
    mob__rd_error(r, volumes, "%zu volumes in one pod are more than this runner holds (256)",
                  volumes.node->count);
    return t;
  }
  t->volume_count = volumes.node ? volumes.node->count : 0;
  t->volumes = MOB_ARENA_ARRAY(arena, mob_lws_volume_t, t->volume_count);
  for (size_t i = 0; i < t->volume_count; i++) {
    mob__lws_read_volume(r, mob__rd_item(r, volumes, i), &t->volumes[i]);
  }
  check_mounts(r, spec, t);
  return t;
}

static void read_rollout(mob_lws_reader_t *r, mob_lws_at_t spec) {
  mob_lws_at_t at = mob__rd_map(r, spec, "rolloutStrategy", false);
  mob__rd_keys(r, at, "type rollingUpdateConfiguration", "");
  mob__rd_enum(r, at, "type", (const char *const[]){"RollingUpdate", NULL}, 0);
  mob_lws_at_t rolling = mob__rd_map(r, at, "rollingUpdateConfiguration", false);
  mob__rd_keys(r, rolling, "maxUnavailable maxSurge partition", "");
  mob__rd_int(r, rolling, "partition", 0, INT32_MAX, 0);
  int64_t amount[2] = {1, 0};
  const char *const keys[] = {"maxUnavailable", "maxSurge"};
  for (int i = 0; i < 2; i++) {
    mob_lws_at_t field = mob__rd_field(r, rolling, keys[i]);
    if (!field.node || mob__yaml_int(field.node, &amount[i])) continue;
    size_t n = field.node->kind == MOB_YAML_SCALAR ? strspn(field.node->text, "0123456789") : 0;
    if (n == 0 || n > 3 || strcmp(field.node->text + n, "%") != 0 ||
        (amount[i] = atoi(field.node->text)) > 100) {
      mob__rd_error(r, field, "must be a number or a percentage up to 100%%");
    }
  }
  if (rolling.node && amount[0] == 0 && amount[1] == 0) {
    mob__rd_error(r, rolling, "maxUnavailable and maxSurge must not both be 0");
  }
}

static void read_sub_groups(mob_lws_reader_t *r, mob_lws_at_t spec, mob_lws_set_t *set) {
  mob_lws_at_t at = mob__rd_map(r, spec, "subGroupPolicy", false);
  if (!at.node) return;
  mob__rd_keys(r, at, "subGroupSize subGroupPolicyType", "");
  static const char *const types[] = {"LeaderWorker", "LeaderExcluded", NULL};
  set->sub_group_leader_excluded = mob__rd_enum(r, at, "subGroupPolicyType", types, 0) == 1;
  set->sub_group_size = mob__rd_int(r, at, "subGroupSize", 1, INT32_MAX, 0);
  int64_t n = set->sub_group_size;
  if (n == 0) {
    if (!mob__rd_field(r, at, "subGroupSize").node) mob__rd_error(r, at, "needs a subGroupSize");
    return;
  }
  bool whole = set->size % n == 0 && !set->sub_group_leader_excluded;
  if (!whole && (set->size - 1) % n != 0) {
    mob__rd_error(r, mob__rd_field(r, at, "subGroupSize"),
                  "size %lld or size - 1 must be a multiple of %lld", (long long)set->size,
                  (long long)n);
    set->sub_group_size = 0;
  }
}

// A hash of what the pods are made from, for the label template-revision-hash.
static const char *revision_of(mob_arena_t *arena, const mob_yaml_node_t *node, uint64_t seed,
                               uint64_t *out) {
  uint64_t h = XXH3_64bits_withSeed(&node->kind, sizeof node->kind, seed);
  if (node->kind == MOB_YAML_SCALAR) h = XXH3_64bits_withSeed(node->text, strlen(node->text), h);
  for (size_t i = 0; i < node->count; i++) {
    if (node->kind == MOB_YAML_MAP) {
      h = XXH3_64bits_withSeed(node->entries[i].key, strlen(node->entries[i].key), h);
      revision_of(NULL, node->entries[i].value, h, &h);
    } else {
      revision_of(NULL, node->items[i], h, &h);
    }
  }
  *out = h;
  return arena ? mob_arena_sprintf(arena, "%010llx", (unsigned long long)h & 0xffffffffffULL)
               : NULL;
}

static void read_set_template(mob_lws_reader_t *r, mob_lws_at_t spec, mob_lws_set_t *set) {
  mob_lws_at_t at = mob__rd_map(r, spec, "leaderWorkerTemplate", true);
  if (!at.node) return;
  mob__rd_keys(r, at, "leaderTemplate workerTemplate size restartPolicy subGroupPolicy",
               "volumeClaimTemplates persistentVolumeClaimRetentionPolicy resizePolicy");
  set->size = mob__rd_int(r, at, "size", 1, INT32_MAX, 1);
  static const char *const policies[] = {"RecreateGroupOnPodRestart", "RecreateGroupAfterStart",
                                         "None", "Default", NULL};
  int policy = mob__rd_enum(r, at, "restartPolicy", policies, 0);
  if (policy == 3) {
    mob__rd_warn(r, mob__rd_field(r, at, "restartPolicy"),
                 "Default is deprecated and means None; write None");
    policy = 2;
  }
  set->restart = (mob_lws_restart_t)policy;
  read_sub_groups(r, at, set);
  set->worker = mob__lws_read_template(r, mob__rd_map(r, at, "workerTemplate", true));
  set->leader = mob__lws_read_template(r, mob__rd_map(r, at, "leaderTemplate", false));
  if (!set->leader) set->leader = set->worker;
  if (set->size * set->replicas > INT32_MAX) {
    mob__rd_error(r, at, "replicas * size must not be over %d", INT32_MAX);
  }
  uint64_t hash;
  set->revision = revision_of(&r->manifest->arena, at.node, 0, &hash);
}

static void read_set(mob_lws_reader_t *r, mob_lws_at_t root) {
  mob_lws_manifest_t *m = r->manifest;
  mob_lws_set_t *set = MOB_ARENA_NEW(&m->arena, mob_lws_set_t);
  set->file = r->file;
  set->line = root.line;
  set->size = 1;
  mob__rd_keys(r, root, "apiVersion kind metadata spec status", "");
  // The worker StatefulSet's own labels leave this much of the 63 characters, group index included.
  set->name = mob__lws_read_name(r, root, &set->namespace_, 51);
  mob_lws_at_t meta = mob__rd_map(r, root, "metadata", false);
  set->annotations = mob__rd_pairs(r, meta, "annotations");
  mob_lws_at_t spec = mob__rd_map(r, root, "spec", true);
  if (!spec.node) return;
  mob__rd_keys(r, spec, "replicas leaderWorkerTemplate rolloutStrategy startupPolicy networkConfig",
               "groupIdentity");
  set->replicas = mob__rd_int(r, spec, "replicas", 0, 1000000, 1);
  static const char *const startup[] = {"LeaderCreated", "LeaderReady", NULL};
  set->leader_ready = mob__rd_enum(r, spec, "startupPolicy", startup, 0) == 1;
  mob_lws_at_t network = mob__rd_map(r, spec, "networkConfig", false);
  mob__rd_keys(r, network, "subdomainPolicy", "");
  static const char *const subdomain[] = {"Shared", "UniquePerReplica", NULL};
  set->unique_subdomain = mob__rd_enum(r, network, "subdomainPolicy", subdomain, 0) == 1;
  read_rollout(r, spec);
  read_set_template(r, spec, set);
  if (mob__lws_pair_get(set->annotations,
                        "leaderworkerset.sigs.k8s.io/experimental-recreate-group-after-start") &&
      set->restart == MOB_LWS_RECREATE_ON_RESTART) {
    set->restart = MOB_LWS_RECREATE_AFTER_START;
  }
  if (set->name) *mob_vec_push(&m->sets) = set;
}

static void read_document(mob_lws_reader_t *r, const mob_yaml_node_t *node) {
  mob_lws_at_t root = {node, "", node->line};
  if (node->kind != MOB_YAML_MAP) {
    mob__rd_error(r, root, "a Kubernetes object is a map, here is %s", mob__yaml_describe(node));
    return;
  }
  const char *version = mob__rd_string(r, root, "apiVersion", true);
  const char *kind = mob__rd_string(r, root, "kind", true);
  if (!version || !kind) return;
  if (strcmp(kind, "LeaderWorkerSet") == 0) {
    if (strcmp(version, "leaderworkerset.x-k8s.io/v1") != 0) {
      mob__rd_error(r, mob__rd_field(r, root, "apiVersion"),
                    "is \"%.60s\"; a LeaderWorkerSet has "
                    "leaderworkerset.x-k8s.io/v1",
                    version);
    }
    read_set(r, root);
  } else if (strcmp(kind, "Service") == 0 && strcmp(version, "v1") == 0) {
    mob__lws_read_service(r, root);
  } else if ((strcmp(kind, "Secret") == 0 || strcmp(kind, "ConfigMap") == 0) &&
             strcmp(version, "v1") == 0) {
    mob__lws_read_config(r, root, kind);
  } else if (strcmp(kind, "List") == 0 && strcmp(version, "v1") == 0) {
    mob__rd_error(r, root, "a List is not read; separate its objects by ---");
  } else {
    mob__rd_warn(r, root, "%.60s of %.60s is skipped: this runner has no such controller", kind,
                 version);
  }
}

void mob__lws_manifest_add(mob_lws_manifest_t *m, const char *file, const void *data, size_t len) {
  mob_lws_reader_t r = {m, mob_arena_strdup(&m->arena, file)};
  const mob_yaml_node_t **docs;
  size_t count;
  if (len > MAX_FILE) {
    mob__rd_error(&r, (mob_lws_at_t){NULL, "", 1}, "the file is larger than %zu bytes", MAX_FILE);
    return;
  }
  if (mob__yaml_parse(&m->arena, r.file, data, len, &docs, &count) != MOB_OK) {
    *mob_vec_push(&m->messages) =
        (mob_lws_message_t){true, mob_arena_strdup(&m->arena, mob_errmsg())};
    m->errors++;
    return;
  }
  for (size_t i = 0; i < count; i++) read_document(&r, docs[i]);
}

mob_status mob__lws_manifest_add_file(mob_lws_manifest_t *m, const char *path) {
  mob_buf_t text = {0};
  mob_status status = mob_file_read(path, MAX_FILE, &text);
  if (status == MOB_OK)
    mob__lws_manifest_add(m, path, text.data ? text.data : (uint8_t *)"", text.len);
  mob_buf_free(&text);
  return status;
}

static void check_references(mob_lws_reader_t *r, const mob_lws_template_t *t) {
  if (!t) return;
  for (size_t i = 0; i < t->container_count; i++) {
    const mob_lws_container_t *c = &t->containers[i];
    for (size_t k = 0; k < c->env_count; k++) {
      const mob_lws_env_t *e = &c->env[k];
      if ((e->source != MOB_LWS_ENV_SECRET && e->source != MOB_LWS_ENV_CONFIGMAP) || e->optional ||
          !e->from)
        continue;
      const char *kind = e->source == MOB_LWS_ENV_SECRET ? "Secret" : "ConfigMap";
      const mob_lws_config_t *config = mob__lws_manifest_config(r->manifest, kind, e->from);
      mob_lws_at_t at = {NULL, "env", e->line};
      if (!config) {
        mob__rd_error(r, at,
                      "the %s \"%.63s\" is in none of the files; add its file to the command", kind,
                      e->from);
      } else if (e->key && !mob__lws_pair_get(config->data, e->key)) {
        mob__rd_error(r, at, "the %s \"%.63s\" has no key \"%.63s\"", kind, e->from, e->key);
      }
    }
  }
  for (size_t i = 0; i < t->volume_count; i++) {
    const mob_lws_volume_t *v = &t->volumes[i];
    if ((v->kind != MOB_LWS_VOLUME_SECRET && v->kind != MOB_LWS_VOLUME_CONFIGMAP) || v->optional ||
        !v->source)
      continue;
    const char *kind = v->kind == MOB_LWS_VOLUME_SECRET ? "Secret" : "ConfigMap";
    if (!mob__lws_manifest_config(r->manifest, kind, v->source)) {
      mob__rd_error(r, (mob_lws_at_t){NULL, "volumes", v->line},
                    "the %s \"%.63s\" is in none of the files; add its file to the command", kind,
                    v->source);
    }
  }
}

void mob__lws_manifest_finish(mob_lws_manifest_t *m) {
  for (size_t i = 0; i < m->sets.len; i++) {
    mob_lws_set_t *set = m->sets.at[i];
    mob_lws_reader_t r = {m, set->file};
    for (size_t k = 0; k < i; k++) {
      if (strcmp(m->sets.at[k]->name, set->name) == 0) {
        mob__rd_error(&r, (mob_lws_at_t){NULL, "metadata.name", set->line},
                      "a second LeaderWorkerSet is named \"%s\"; rename one", set->name);
      }
    }
    check_references(&r, set->worker);
    if (set->leader != set->worker) check_references(&r, set->leader);
  }
  for (size_t i = 0; i < m->services.len; i++) {
    for (size_t k = 0; k < i; k++) {
      if (strcmp(m->services.at[k]->name, m->services.at[i]->name) != 0) continue;
      mob_lws_reader_t r = {m, m->services.at[i]->file};
      mob__rd_error(&r, (mob_lws_at_t){NULL, "metadata.name", m->services.at[i]->line},
                    "a second Service is named \"%s\"; rename one", m->services.at[i]->name);
    }
  }
}
