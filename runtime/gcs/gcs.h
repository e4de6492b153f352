// The Global Control Store: the state of a cluster and the services that read and change it, on a
// loop that the caller runs. README.md says what nodes, drivers and actors agree on with it.
#ifndef MOB_GCS_GCS_H
#define MOB_GCS_GCS_H

#include <stddef.h>
#include <stdint.h>

#include "runtime/gcs/store.h"
#include "runtime/rpc/rpc.h"

#define MOB_GCS_DEFAULT_PORT 6379

typedef struct mob_gcs mob_gcs_t;

typedef struct mob_gcs_config {
  const char *listen_ip;    // NULL: all IPv4 addresses
  int port;                 // 0: a free one
  const char *session_name; // NULL: ""
  // Set by a head of ours, NULL in an executable started by Ray's own scripts, which write the keys
  // (CLUSTER_METADATA, session_name, session_dir, temp_dir, the autoscaler's status) themselves.
  const char *session_dir, *temp_dir;
  const char *python_version; // that clients compare with theirs, e.g. "3.11.7"; NULL: ""
  const char *system_config;  // JSON for GetInternalConfig; NULL: "{}"
  mob_store_t *store;         // taken over; NULL: memory
} mob_gcs_config_t;

// `*bound` is the port. MOB_E_NO_RESOURCES when it is taken. State that the store holds is read
// back before; a failure of that is the store's.
mob_status mob_gcs_start(mob_rpc_t *rpc, const mob_gcs_config_t *config, mob_gcs_t **out,
                         int *bound);
// Answers what waits with UNAVAILABLE, closes the server and frees everything; `done` may be NULL.
void mob_gcs_close(mob_gcs_t *gcs, void (*done)(void *arg), void *arg);

// Puts a key from inside the process; overwrites.
void mob_gcs_kv_put(mob_gcs_t *gcs, const char *ns, const char *key, const void *value, size_t len);

// The program `mobula gcs-server`, with the flags of Ray's gcs_server. Returns the exit code.
int mob_gcs_server_main(int argc, char **argv);

#endif
