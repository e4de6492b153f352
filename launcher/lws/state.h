// Where a runner keeps what others need to find it: DIR/{lock,control.sock,logs/,net/hosts,stage/}.
#ifndef MOB_LWS_STATE_H
#define MOB_LWS_STATE_H

#include "runtime/base/status.h"

#define MOB_LWS_CONTROL "control.sock"

// The directory for a runner: `dir` as given, else the default place for `name`. The caller frees.
char *mob__state_dir(const char *dir, const char *name);

// Creates the directory and takes its lock, which the kernel releases with the process. Fails when
// another runner holds it. Leftovers of an earlier run are removed, its logs too.
mob_status mob__state_open(const char *dir, int *lock_fd);
void mob__state_close(const char *dir, int lock_fd); // keeps the logs

// The directory of the one running runner when neither is given; a failure lists what there is.
mob_status mob__state_find(const char *dir, const char *name, char **out);

// Connects to the runner's control socket.
mob_status mob__state_connect(const char *dir, int *fd);

#endif
