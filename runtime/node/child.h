// Child processes of a daemon: started from the loop's thread, so that PDEATHSIG follows the
// daemon's life; each leads a session of its own, so that what it leaves behind can be ended with
// it; all of them, and as PID 1 every orphan of the pod too, are reaped here.
#ifndef MOB_NODE_CHILD_H
#define MOB_NODE_CHILD_H

#include <sys/types.h>
#include <uv.h>

#include "runtime/base/status.h"
#include "runtime/base/vec.h"

typedef struct mob_children mob_children_t;
typedef struct mob_child mob_child_t;

// Takes over SIGCHLD of the process: no uv_spawn() beside it.
mob_status mob_children_new(uv_loop_t *loop, mob_children_t **out);
// Kills what still runs, waits a moment for it and frees all; callbacks do not run any more.
void mob_children_close(mob_children_t *children);

// `status` as waitpid() gives it. The child's leftovers have been killed. The child is freed
// afterwards.
typedef void (*mob_child_exit_fn)(void *owner, mob_child_t *child, int status);

typedef struct mob_child_options {
  const char *file;
  char *const *argv;
  char *const *env;
  // What the child has as its fd 0, 1, 2, ...; -1: /dev/null. Everything else is closed.
  int fds[8];
  int fd_count;
} mob_child_options_t;

mob_status mob_child_spawn(mob_children_t *children, const mob_child_options_t *options,
                           mob_child_exit_fn on_exit, void *owner, mob_child_t **out);
pid_t mob_child_pid(const mob_child_t *child);
void mob_child_kill(mob_child_t *child, int sig);

#endif
