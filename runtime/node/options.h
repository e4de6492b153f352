// The command line of `ray start`, which is also the one of `mobula node`, and what ray_init.sh
// passes on.
//
// Every flag of Ray 2.54's `ray start` is known. One that has a meaning here acts; one that has
// none (a dashboard, a client server, ...) is accepted and named in `ignored`, so that the caller
// warns once.
#ifndef MOB_NODE_OPTIONS_H
#define MOB_NODE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/buf.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef enum mob_log_style { MOB_STYLE_AUTO, MOB_STYLE_RECORD, MOB_STYLE_PRETTY } mob_log_style_t;

typedef struct mob_named_amount {
  char *name;
  double amount;
} mob_named_amount_t;

typedef struct mob_label {
  char *key, *value;
} mob_label_t;

typedef struct mob_start_options {
  bool head, block, no_redirect_output, help;
  char *address;                         // of the GCS, "host:port"; NULL for a head
  int port;                              // -1: not given
  char *node_ip_address;                 // NULL: chosen
  char *redis_username, *redis_password; // NULL: none
  char *node_name;                       // NULL: the node's address
  int num_cpus, num_gpus;                // -1: detected
  int64_t memory, object_store_memory;   // bytes; -1: detected
  MOB_VEC(mob_named_amount_t) resources;
  MOB_VEC(mob_label_t) labels;
  int node_manager_port;                // 0: any free one
  int min_worker_port, max_worker_port; // 0: any free one
  MOB_VEC(int) worker_ports;            // --worker-port-list
  char *temp_dir;                       // NULL: the user's
  mob_log_style_t log_style;
  int color; // -1 auto, 0 no, 1 yes
  int verbose;
  mob_buf_t ignored; // "--dashboard-host, --metrics-export-port": given, without a meaning here

  // Between a launcher and the daemon that it starts; not for users, and not in the help.
  int ready_fd;       // where to report READY or the cause of a failure; -1: nowhere
  bool log_to_stderr; // the log goes to stderr as well as into the session's folder; else there
                      // alone
} mob_start_options_t;

void mob_start_options_init(mob_start_options_t *options);
void mob_start_options_free(mob_start_options_t *options);

// Reads argv[1..]; `command` is what the user called it ("ray start"). MOB_E_INVALID with the text
// of Ray's (click's) own error, ready to print: "Error: No such option: --hed Did you mean
// --head?".
mob_status mob_start_options_parse(mob_start_options_t *options, int argc, char **argv);

// Rules between flags: a worker needs an address, a head takes none, --port is the head's alone.
mob_status mob_start_options_check(const mob_start_options_t *options);

// The help text of `ray start`.
void mob_start_options_help(mob_buf_t *out, const char *command);

// "host:port" or "[v6]:port" into its parts; *port is -1 when there is none. The caller frees
// *host.
mob_status mob_split_address(const char *address, char **host, int *port);

#endif
