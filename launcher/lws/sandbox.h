// The process that holds a pod: PID 1 of the pod's namespaces, like a pause container. It makes the
// pod's network, volumes and containers on the runner's command, and everything in the pod ends
// with it.
//
// The runner and the sandbox talk over a SOCK_SEQPACKET socket. The specification is not sent: the
// sandbox is a fork of the runner and has it in memory.
#ifndef MOB_LWS_SANDBOX_H
#define MOB_LWS_SANDBOX_H

#include "launcher/lws/manifest.h"
#include "launcher/lws/network.h"

typedef struct mob_lws_sandbox_volume {
  const mob_lws_volume_t *volume;
  const char *host_path;     // claims and host paths
  mob_lws_pair_list_t files; // Secrets and ConfigMaps
} mob_lws_sandbox_volume_t;

// The handlers that run inside a container.
enum {
  MOB_LWS_EXEC_STARTUP,
  MOB_LWS_EXEC_READINESS,
  MOB_LWS_EXEC_LIVENESS,
  MOB_LWS_EXEC_POST_START,
  MOB_LWS_EXEC_PRE_STOP
};

typedef struct mob_lws_sandbox_container {
  const mob_lws_container_t *container;
  char **argv, **env; // end with NULL
} mob_lws_sandbox_container_t;

typedef struct mob_lws_sandbox_spec {
  mob_lws_network_mode_t mode;
  const char *hostname;
  const char *address;
  const char *hosts_dir; // holds the file `hosts`, replaced by a rename
  const char *resolv;    // text of /etc/resolv.conf
  const char *stage;     // the sandbox mounts its own file system there; in loopback mode the
                         // pod's TMPDIR, made and removed by the sandbox
  const char *image_dir; // programs of the image
  const char *shell;     // "bash" or "dash": what /bin/sh is
  mob_lws_sandbox_volume_t *volumes;
  size_t volume_count;
  mob_lws_sandbox_container_t *containers;
  size_t container_count;
} mob_lws_sandbox_spec_t;

typedef enum mob_lws_command_op {
  MOB_LWS_CMD_SETUP,  // the pod's eth0 exists: configure it, prepare the volumes
  MOB_LWS_CMD_START,  // `container`; comes with its output and its status pipe
  MOB_LWS_CMD_EXEC,   // handler `handler` of `container`, answered under `id`
  MOB_LWS_CMD_CANCEL, // kill exec `id`
} mob_lws_command_op_t;

typedef struct mob_lws_command {
  uint32_t op, container, handler, id;
} mob_lws_command_t;

typedef enum mob_lws_note_kind {
  MOB_LWS_NOTE_READY,
  MOB_LWS_NOTE_FAILED,  // of the set-up; `text`
  MOB_LWS_NOTE_STARTED, // `container`; comes with a pidfd
  MOB_LWS_NOTE_EXITED,  // `container`, `status` of waitpid
  MOB_LWS_NOTE_EXEC,    // `id`, `status` of waitpid
  MOB_LWS_NOTE_INFO,    // `text`, once: what could not be done as in a cluster
} mob_lws_note_kind_t;

typedef struct mob_lws_note {
  uint32_t kind, container, id;
  int32_t status;
  char text[400];
} mob_lws_note_t;

// Runs the sandbox: the calling process was just forked into its namespaces. Never returns.
_Noreturn void mob__lws_sandbox_run(const mob_lws_sandbox_spec_t *spec, int sock);

#endif
