// The command line of ray_init.sh: `ray_init.sh leader|worker [--name=value ...]`.
#ifndef MOB_NODE_INIT_OPTIONS_H
#define MOB_NODE_INIT_OPTIONS_H

#include <stdbool.h>

#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef struct mob_init_options {
  bool leader, help;
  int cluster_size;      // leader: nodes to wait for, its own included
  char *ray_address;     // worker: the head's host
  int port;              // 6379
  int timeout_s;         // 300
  MOB_VEC(char *) extra; // for `ray start`, in their order; not owned
} mob_init_options_t;

// argv[1] is the subcommand. MOB_E_INVALID with the original's text: "unknown subcommand: X",
// "Error: Missing argument --ray_cluster_size", ...
mob_status mob_init_options_parse(mob_init_options_t *options, int argc, char **argv);
void mob_init_options_free(mob_init_options_t *options);

#endif
