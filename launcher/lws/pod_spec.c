// From a template to what one pod runs: labels, variables, volumes.
#include <errno.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "launcher/lws/expand.h"
#include "launcher/lws/kubelet.h"
#include "launcher/lws/quantity.h"
#include "runtime/base/file.h"
#include "runtime/base/hex.h"

#define PREFIX "leaderworkerset.sigs.k8s.io/"

static void put(mob_lws_pod_t *pod, mob_lws_pairs_t *pairs, const char *key, const char *value) {
  for (size_t i = 0; i < pairs->len; i++) {
    if (strcmp(pairs->at[i].key, key) != 0) continue;
    pairs->at[i].value = value;
    return;
  }
  *mob_vec_push(pairs) = (mob_lws_pair_t){mob_arena_strdup(&pod->arena, key), value};
}

static const char *number(mob_lws_pod_t *pod, int64_t n) {
  return mob_arena_sprintf(&pod->arena, "%lld", (long long)n);
}

static const char *sha1_hex(mob_lws_pod_t *pod, const char *text) {
  unsigned char digest[SHA_DIGEST_LENGTH];
  SHA1((const unsigned char *)text, strlen(text), digest);
  return mob_hex(digest, sizeof digest, mob_arena_alloc(&pod->arena, 2 * sizeof digest + 1));
}

static void add_sub_group(mob_lws_pod_t *pod) {
  const mob_lws_set_t *set = pod->id.set;
  int64_t n = set->sub_group_size, worker = pod->id.worker;
  if (n == 0) return;
  put(pod, &pod->annotations, PREFIX "subgroup-size", number(pod, n));
  if (set->sub_group_leader_excluded)
    put(pod, &pod->annotations, PREFIX "subgroup-policy-type", "LeaderExcluded");
  if (worker == 0 && set->sub_group_leader_excluded) return;
  // With an odd leader the workers are counted without it, and it belongs to the first sub-group.
  int64_t index = worker == 0 ? 0 : (set->size - 1) % n == 0 ? (worker - 1) / n : worker / n;
  put(pod, &pod->labels, PREFIX "subgroup-index", number(pod, index));
  char text[128];
  snprintf(text, sizeof text, "%s/%lld", pod->id.leader_name, (long long)index);
  put(pod, &pod->labels, PREFIX "subgroup-key", sha1_hex(pod, text));
}

static void build_labels(mob_lws_pod_t *pod) {
  const mob_lws_pod_identity_t *id = &pod->id;
  const mob_lws_template_t *t = id->template_;
  char text[200];
  for (size_t i = 0; i < t->labels.len; i++)
    put(pod, &pod->labels, t->labels.at[i].key, t->labels.at[i].value);
  for (size_t i = 0; i < t->annotations.len; i++) {
    put(pod, &pod->annotations, t->annotations.at[i].key, t->annotations.at[i].value);
  }
  put(pod, &pod->labels, PREFIX "name", id->set->name);
  put(pod, &pod->labels, PREFIX "template-revision-hash", id->set->revision);
  put(pod, &pod->labels, PREFIX "group-index", number(pod, id->group));
  snprintf(text, sizeof text, "%s/%s", id->set->namespace_, id->leader_name);
  put(pod, &pod->labels, PREFIX "group-key", sha1_hex(pod, text));
  put(pod, &pod->labels, PREFIX "worker-index", number(pod, id->worker));
  put(pod, &pod->labels, "statefulset.kubernetes.io/pod-name", id->name);
  put(pod, &pod->labels, "apps.kubernetes.io/pod-index",
      number(pod, id->worker ? id->worker : id->group));
  put(pod, &pod->annotations, PREFIX "size", number(pod, id->set->size));
  if (id->worker) put(pod, &pod->annotations, PREFIX "leader-name", id->leader_name);
  if (id->set->unique_subdomain)
    put(pod, &pod->annotations, PREFIX "subdomainPolicy", "UniquePerReplica");
  add_sub_group(pod);
}

// ---- variables

static const char *find(const mob_lws_pairs_t *env, const char *name) {
  for (size_t i = env->len; i > 0; i--) {
    if (strcmp(env->at[i - 1].key, name) == 0) return env->at[i - 1].value;
  }
  return NULL;
}

static const char *lookup(void *arg, const char *name) {
  return find(arg, name);
}

static const char *expand(mob_lws_pod_t *pod, mob_lws_pairs_t *env, const char *text) {
  char *value = mob__lws_expand(text, lookup, env);
  const char *copy = mob_arena_strdup(&pod->arena, value);
  free(value);
  return copy;
}

static const char *in_brackets(mob_lws_pod_t *pod, const mob_lws_pairs_t *pairs, const char *path) {
  const char *open = strchr(path, '\'');
  if (!open) return "";
  const char *key = mob_arena_strndup(&pod->arena, open + 1, strlen(open + 1) - 2);
  const char *value = find(pairs, key);
  return value ? value : "";
}

static const char *field(mob_lws_pod_t *pod, const char *path) {
  if (!path) return "";
  if (strcmp(path, "metadata.name") == 0) return pod->id.name;
  if (strcmp(path, "metadata.namespace") == 0) return pod->id.set->namespace_;
  if (strcmp(path, "metadata.uid") == 0) return pod->uid;
  if (strcmp(path, "spec.nodeName") == 0) return "local";
  if (strcmp(path, "spec.serviceAccountName") == 0) return "default";
  if (strncmp(path, "status.podIP", 12) == 0) return pod->address;
  if (strncmp(path, "status.hostIP", 13) == 0) {
    return pod->kubelet->network->mode == MOB_LWS_LOOPBACK ? "127.0.0.1" : "10.244.0.1";
  }
  if (strncmp(path, "metadata.labels[", 16) == 0) return in_brackets(pod, &pod->labels, path);
  return in_brackets(pod, &pod->annotations, path);
}

static const char *resource(mob_lws_pod_t *pod, const mob_lws_container_t *c, const char *name) {
  if (!name) return "0";
  const char *dot = strchr(name, '.');
  mob_lws_pair_list_t list = strncmp(name, "requests.", 9) == 0 ? c->requests : c->limits;
  const char *text = dot ? mob__lws_pair_get(list, dot + 1) : NULL;
  int64_t amount;
  return text && mob__lws_quantity(text, &amount) ? number(pod, amount) : "0";
}

static void put_env(mob_lws_pairs_t *env, const char *name, const char *value) {
  for (size_t i = 0; i < env->len; i++) {
    if (strcmp(env->at[i].key, name) != 0) continue;
    env->at[i].value = value;
    return;
  }
  *mob_vec_push(env) = (mob_lws_pair_t){name, value};
}

static void add_env(mob_lws_pod_t *pod, const mob_lws_container_t *c, const mob_lws_env_t *e,
                    mob_lws_pairs_t *env) {
  switch (e->source) {
  case MOB_LWS_ENV_VALUE:
    put_env(env, e->name, expand(pod, env, e->value));
    return;
  case MOB_LWS_ENV_FIELD:
    put_env(env, e->name, field(pod, e->from));
    return;
  case MOB_LWS_ENV_RESOURCE:
    put_env(env, e->name, resource(pod, c, e->from));
    return;
  case MOB_LWS_ENV_SECRET:
  case MOB_LWS_ENV_CONFIGMAP: {
    const char *kind = e->source == MOB_LWS_ENV_SECRET ? "Secret" : "ConfigMap";
    const mob_lws_config_t *config =
        mob__lws_manifest_config(pod->kubelet->manifest, kind, e->from);
    if (!config) return; // optional
    if (e->key) {
      const char *value = mob__lws_pair_get(config->data, e->key);
      if (value) put_env(env, e->name, value);
      return;
    }
    for (size_t i = 0; i < config->data.len; i++) {
      const char *name = mob_arena_sprintf(&pod->arena, "%s%s", e->name, config->data.at[i].key);
      put_env(env, name, config->data.at[i].value);
    }
  }
  }
}

static bool is_injected(const char *name) {
  return strcmp(name, "LWS_LEADER_ADDRESS") == 0 || strcmp(name, "LWS_GROUP_SIZE") == 0 ||
         strcmp(name, "LWS_WORKER_INDEX") == 0;
}

static const char *leader_address(mob_lws_pod_t *pod) {
  const mob_lws_pod_identity_t *id = &pod->id;
  if (pod->kubelet->network->mode == MOB_LWS_LOOPBACK) {
    // No own /etc/hosts there: the address itself stands for the name.
    for (size_t i = 0; i < pod->kubelet->pods.len; i++) {
      const mob_lws_pod_t *other = pod->kubelet->pods.at[i];
      if (strcmp(other->id.name, id->leader_name) == 0 && !other->gone) return other->address;
    }
    return pod->address;
  }
  return mob_arena_sprintf(&pod->arena, "%s.%s.%s", id->leader_name, id->subdomain,
                           id->set->namespace_);
}

// The image's own variables, then LWS's, then the manifest's.
static void build_env(mob_lws_pod_t *pod, const mob_lws_container_t *c, mob_lws_pairs_t *env) {
  const mob_lws_kubelet_config_t *config = &pod->kubelet->config;
  put_env(env, "PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
  put_env(env, "HOME", "/root");
  put_env(env, "LANG", "C.UTF-8");
  put_env(env, "HOSTNAME", pod->id.name);
  if (pod->kubelet->network->mode == MOB_LWS_LOOPBACK) {
    const char *path = getenv("PATH");
    put_env(
        env, "PATH",
        mob_arena_sprintf(&pod->arena, "%s:%s", config->image_dir, path ? path : "/usr/bin:/bin"));
    const char *home = getenv("HOME");
    if (home) put_env(env, "HOME", home);
    put_env(env, "MOBULA_BIND_ADDRESS", pod->address);
    put_env(env, "TMPDIR", pod->spec.stage); // goes with the pod, as its own /tmp would
  }
  if (c->gpus) put_env(env, "MOBULA_SIMULATED_GPUS", number(pod, c->gpus));
  for (size_t i = 0; i < config->env.len; i++)
    put_env(env, config->env.at[i].key, config->env.at[i].value);
  put_env(env, "LWS_LEADER_ADDRESS", leader_address(pod));
  put_env(env, "LWS_GROUP_SIZE", number(pod, pod->id.set->size));
  put_env(env, "LWS_WORKER_INDEX", number(pod, pod->id.worker));
  for (size_t i = 0; i < c->env_count; i++) {
    if (!is_injected(c->env[i].name)) add_env(pod, c, &c->env[i], env);
  }
}

static void build_container(mob_lws_pod_t *pod, const mob_lws_container_t *c,
                            mob_lws_sandbox_container_t *out) {
  mob_lws_pairs_t env = {0};
  build_env(pod, c, &env);
  out->container = c;
  out->env = MOB_ARENA_ARRAY(&pod->arena, char *, env.len + 1);
  for (size_t i = 0; i < env.len; i++) {
    out->env[i] = mob_arena_sprintf(&pod->arena, "%s=%s", env.at[i].key, env.at[i].value);
  }
  out->argv = MOB_ARENA_ARRAY(&pod->arena, char *, c->command.len + c->args.len + 1);
  size_t n = 0;
  for (size_t i = 0; i < c->command.len; i++) {
    out->argv[n++] = mob_arena_strdup(&pod->arena, expand(pod, &env, c->command.at[i]));
  }
  for (size_t i = 0; i < c->args.len; i++) {
    out->argv[n++] = mob_arena_strdup(&pod->arena, expand(pod, &env, c->args.at[i]));
  }
  mob_vec_free(&env);
}

static mob_status build_volume(mob_lws_pod_t *pod, const mob_lws_volume_t *v,
                               mob_lws_sandbox_volume_t *out) {
  out->volume = v;
  if (v->kind == MOB_LWS_VOLUME_CLAIM) {
    out->host_path = mob__lws_pair_get(pod->kubelet->config.claims, v->source);
    if (!out->host_path) {
      return mob_fail(MOB_E_INVALID,
                      "the volume %s is the claim \"%s\", of which this machine knows nothing; "
                      "add --pvc %s=DIR",
                      v->name, v->source, v->source);
    }
  } else if (v->kind == MOB_LWS_VOLUME_HOSTPATH) {
    out->host_path = v->source;
  } else if (v->kind != MOB_LWS_VOLUME_EMPTYDIR) {
    const char *kind = v->kind == MOB_LWS_VOLUME_SECRET ? "Secret" : "ConfigMap";
    const mob_lws_config_t *config =
        mob__lws_manifest_config(pod->kubelet->manifest, kind, v->source);
    if (config) out->files = config->data;
  }
  return MOB_OK;
}

mob_status mob__pod_build(mob_lws_pod_t *pod) {
  const mob_lws_template_t *t = pod->id.template_;
  const mob_lws_kubelet_config_t *config = &pod->kubelet->config;
  mob_arena_t *arena = &pod->arena;
  build_labels(pod);
  mob_lws_sandbox_spec_t *s = &pod->spec;
  s->mode = pod->kubelet->network->mode;
  s->hostname = pod->id.name;
  s->address = pod->address;
  s->image_dir = config->image_dir;
  s->shell = config->shell;
  s->hosts_dir = mob_arena_sprintf(arena, "%s/net", config->state_dir);
  s->stage = s->mode == MOB_LWS_LOOPBACK
                 ? mob_arena_sprintf(arena, "%s/stage/%s", config->state_dir, pod->id.name)
                 : mob_arena_sprintf(arena, "%s/stage", config->state_dir);
  s->resolv = mob_arena_sprintf(arena,
                                "search %s.svc.cluster.local svc.cluster.local cluster.local\n"
                                "options ndots:5 timeout:1 attempts:1\n",
                                pod->id.set->namespace_);
  s->volumes = MOB_ARENA_ARRAY(arena, mob_lws_sandbox_volume_t, t->volume_count);
  s->volume_count = t->volume_count;
  for (size_t i = 0; i < t->volume_count; i++)
    MOB_TRY(build_volume(pod, &t->volumes[i], &s->volumes[i]));
  s->containers = MOB_ARENA_ARRAY(arena, mob_lws_sandbox_container_t, t->container_count);
  s->container_count = t->container_count;
  for (size_t i = 0; i < t->container_count; i++)
    build_container(pod, &t->containers[i], &s->containers[i]);
  return MOB_OK;
}
