// The commands that stand in for Ray's.
#ifndef MOB_LAUNCHER_CMD_RAY_H
#define MOB_LAUNCHER_CMD_RAY_H

#include <stdbool.h>

#include "runtime/actor/gcs_client.h"
#include "runtime/node/options.h"

int mob_ray_init_main(int argc, char **argv); // ray_init.sh leader|worker
int mob_ray_main(int argc, char **argv);      // ray COMMAND

// argv[0] is the sub-command's name.
int mob_ray_start_main(int argc, char **argv);
int mob_ray_stop_main(int argc, char **argv);
int mob_ray_status_main(int argc, char **argv);
int mob_ray_health_main(int argc, char **argv);
int mob_ray_drain_main(int argc, char **argv);
int mob_ray_list_main(int argc, char **argv);

// ------------------------------------------------------------------------------- shared between
// them

// A flag of a small command: "--name value", "--name=value", or (`value` NULL) "--name" alone.
typedef struct mob_cli_flag {
  const char *name; // "--address"; "-v" has its own entry
  const char **value;
  bool *set;
} mob_cli_flag_t;
// Reads argv[1..]; arguments without dashes go to `rest` (at most `max`). On an error it prints
// click's text and returns 2, on --help it prints `help` and returns 0, else -1.
int mob_cli_parse(int argc, char **argv, const char *command, const char *help,
                  const mob_cli_flag_t *flags, size_t count, const char **rest, size_t max,
                  size_t *n_rest);

// A connection to a cluster's GCS for a command: calls block until they are answered.
typedef struct mob_cli {
  uv_loop_t loop;
  mob_rpc_t *rpc;
  mob_gcs_client_t *gcs;
  mob_status status;
  void *reply;
  bool waiting;
} mob_cli_t;

// `address` NULL: $RAY_ADDRESS, else the cluster that was started last on this machine.
mob_status mob_cli_connect(mob_cli_t *cli, const char *address, uint64_t timeout_ms);
// The caller frees *reply with mob_pb_free().
mob_status mob_cli_call(mob_cli_t *cli, const char *path, const void *request,
                        const ProtobufCMessageDescriptor *reply_type, void *reply);
mob_status mob_cli_kv_get(mob_cli_t *cli, const char *ns, const char *key, char **value,
                          size_t *len);
void mob_cli_close(mob_cli_t *cli);

// A daemon that `ray start` and `ray_init.sh leader` leave behind.
typedef struct mob_daemon {
  pid_t pid;
  char *ip, *address, *node_id, *session_dir; // once ready
} mob_daemon_t;
// Starts `mobula node ARGS` in a session of its own and waits until it is ready. With `keep_stderr`
// its log also goes to this stderr. MOB_E_EXISTS when a cluster holds the port already.
mob_status mob_daemon_start(int argc, char **argv, bool keep_stderr, mob_daemon_t *out);
void mob_daemon_free(mob_daemon_t *daemon);

// What `ray start` prints once the node is up.
void mob_say_started(const mob_start_options_t *options, const char *ip, const char *address);

#endif
