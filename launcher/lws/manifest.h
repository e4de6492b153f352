// What the runner keeps of the manifests: LeaderWorkerSets, Services, and the Secrets and
// ConfigMaps that their pods name. Everything is checked by the rules of the API server and of
// LWS's own schema, so that a file that runs here is not refused by a cluster. Strings live in the
// manifest's arena.
#ifndef MOB_LWS_MANIFEST_H
#define MOB_LWS_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/arena.h"
#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef struct mob_lws_pair {
  const char *key, *value;
} mob_lws_pair_t;

typedef MOB_VEC(mob_lws_pair_t) mob_lws_pairs_t;

typedef struct mob_lws_pair_list {
  const mob_lws_pair_t *at;
  size_t len;
} mob_lws_pair_list_t;

typedef struct mob_lws_strings {
  const char **at;
  size_t len;
} mob_lws_strings_t;

typedef enum mob_lws_env_source {
  MOB_LWS_ENV_VALUE,
  MOB_LWS_ENV_FIELD,    // `from` is a field path
  MOB_LWS_ENV_RESOURCE, // `from` is "limits.cpu" or the like
  MOB_LWS_ENV_SECRET,   // `from` names the object, `key` its entry; key NULL: all entries (envFrom)
  MOB_LWS_ENV_CONFIGMAP,
} mob_lws_env_source_t;

typedef struct mob_lws_env {
  const char *name; // for envFrom: the prefix
  mob_lws_env_source_t source;
  const char *value, *from, *key;
  bool optional;
  int line;
} mob_lws_env_t;

typedef enum mob_lws_handler_kind {
  MOB_LWS_HANDLER_NONE,
  MOB_LWS_HANDLER_EXEC,
  MOB_LWS_HANDLER_HTTP,
  MOB_LWS_HANDLER_TCP,
  MOB_LWS_HANDLER_SLEEP, // lifecycle only
} mob_lws_handler_kind_t;

typedef struct mob_lws_handler {
  mob_lws_handler_kind_t kind;
  mob_lws_strings_t argv;  // exec
  const char *host, *path; // http, tcp; host NULL: the pod's address
  int port;                // 0: by name
  const char *port_name;
  mob_lws_pair_list_t headers; // http
  int64_t sleep_s;
} mob_lws_handler_t;

typedef struct mob_lws_probe {
  mob_lws_handler_t handler; // kind NONE: no such probe
  int initial_delay_s, period_s, timeout_s, failure_threshold, success_threshold;
} mob_lws_probe_t;

enum { MOB_LWS_STARTUP, MOB_LWS_READINESS, MOB_LWS_LIVENESS, MOB_LWS_PROBES };

typedef struct mob_lws_mount {
  const char *volume, *path, *sub_path;
  bool read_only;
} mob_lws_mount_t;

typedef struct mob_lws_port {
  const char *name; // may be NULL
  int port;
} mob_lws_port_t;

typedef struct mob_lws_container {
  const char *name, *image, *working_dir;
  mob_lws_strings_t command, args;
  mob_lws_env_t *env;
  size_t env_count;
  mob_lws_port_t *ports;
  size_t port_count;
  mob_lws_mount_t *mounts;
  size_t mount_count;
  mob_lws_probe_t probes[MOB_LWS_PROBES];
  mob_lws_handler_t post_start, pre_stop;
  int64_t gpus;                         // of nvidia.com/gpu, 0 when none is asked for
  int64_t cpu_millis;                   // limit or else request, 0 unset
  int64_t memory;                       // bytes, limit or else request, 0 unset
  mob_lws_pair_list_t limits, requests; // as written
  int line;
} mob_lws_container_t;

typedef enum mob_lws_volume_kind {
  MOB_LWS_VOLUME_EMPTYDIR,
  MOB_LWS_VOLUME_CLAIM,
  MOB_LWS_VOLUME_HOSTPATH,
  MOB_LWS_VOLUME_SECRET,
  MOB_LWS_VOLUME_CONFIGMAP,
} mob_lws_volume_kind_t;

typedef struct mob_lws_volume {
  const char *name;
  mob_lws_volume_kind_t kind;
  const char *source; // claim, host path, Secret or ConfigMap name
  bool memory;        // emptyDir on tmpfs
  int64_t size_limit; // bytes, 0: none
  bool optional, read_only;
  int line;
} mob_lws_volume_t;

typedef struct mob_lws_template {
  mob_lws_pair_list_t labels, annotations;
  mob_lws_container_t *containers; // init containers first
  size_t container_count, init_count;
  mob_lws_volume_t *volumes;
  size_t volume_count;
  int64_t grace_s;
  int line;
} mob_lws_template_t;

typedef enum mob_lws_restart {
  MOB_LWS_RECREATE_ON_RESTART,
  MOB_LWS_RECREATE_AFTER_START,
  MOB_LWS_RESTART_NONE,
} mob_lws_restart_t;

typedef struct mob_lws_set {
  const char *name, *namespace_;
  mob_lws_pair_list_t annotations;
  int64_t replicas, size;
  bool leader_ready;     // startupPolicy LeaderReady
  bool unique_subdomain; // subdomainPolicy UniquePerReplica
  mob_lws_restart_t restart;
  int64_t sub_group_size; // 0: none
  bool sub_group_leader_excluded;
  const mob_lws_template_t *leader, *worker;
  const char *revision; // hash of the templates
  const char *file;
  int line;
} mob_lws_set_t;

typedef struct mob_lws_service_port {
  const char *name; // may be NULL
  int port, target; // target 0: by name
  const char *target_name;
} mob_lws_service_port_t;

typedef struct mob_lws_service {
  const char *name, *namespace_;
  bool headless, publish_not_ready;
  mob_lws_pair_list_t selector;
  mob_lws_service_port_t *ports;
  size_t port_count;
  const char *file;
  int line;
} mob_lws_service_t;

// A Secret or a ConfigMap, decoded.
typedef struct mob_lws_config {
  const char *kind, *name;
  mob_lws_pair_list_t data;
} mob_lws_config_t;

typedef struct mob_lws_message {
  bool error;
  const char *text; // "FILE:LINE: field: cause; fix"
} mob_lws_message_t;

typedef struct mob_lws_manifest {
  mob_arena_t arena;
  MOB_VEC(mob_lws_set_t *) sets;
  MOB_VEC(mob_lws_service_t *) services;
  MOB_VEC(mob_lws_config_t) configs;
  MOB_VEC(mob_lws_message_t) messages; // warnings and errors in the order found
  size_t errors;
} mob_lws_manifest_t;

void mob__lws_manifest_free(mob_lws_manifest_t *manifest);

// Adds the objects of one file's text. Always returns; what is wrong is in `messages`.
void mob__lws_manifest_add(mob_lws_manifest_t *manifest, const char *file, const void *data,
                           size_t len);
mob_status mob__lws_manifest_add_file(mob_lws_manifest_t *manifest, const char *path);

// After the last file: rules between objects (names that occur twice, Secrets that are missing).
void mob__lws_manifest_finish(mob_lws_manifest_t *manifest);

const mob_lws_config_t *mob__lws_manifest_config(const mob_lws_manifest_t *manifest,
                                                 const char *kind, const char *name);
const char *mob__lws_pair_get(mob_lws_pair_list_t list, const char *key); // NULL when absent

#endif
