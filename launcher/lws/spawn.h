// Processes and file descriptors: what libuv does not offer and pods need.
#ifndef MOB_LWS_SPAWN_H
#define MOB_LWS_SPAWN_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "runtime/base/status.h"

// fork() into new namespaces (CLONE_NEW* or 0). `pidfd` may be NULL. Only for a process of one
// thread: the C library is not told of the new process.
pid_t mob__spawn_clone(uint64_t flags, int *pidfd);

// One message of a SOCK_SEQPACKET socket with up to 4 descriptors. Receiving returns the bytes, 0
// at the end, -1 with errno; `*fd_count` is the room in and the number out.
int mob__send_fds(int sock, const void *data, size_t len, const int *fds, size_t fd_count);
ssize_t mob__recv_fds(int sock, void *data, size_t len, int *fds, size_t *fd_count);

// For a child before exec: default signals, none blocked.
void mob__spawn_reset_signals(void);

// Process ids below `root` in the tree of processes, `root` excluded, children after their parents.
// The caller frees `*out`.
mob_status mob__descendants(pid_t root, pid_t **out, size_t *count);
// The process's name and command line, "" when it is gone. `size` bytes each.
void mob__process_name(pid_t pid, char *comm, char *cmdline, size_t size);
// The id of process `pid` inside its own PID namespace, 0 when it is gone.
pid_t mob__process_inner_pid(pid_t pid);
// A process id out of a pidfd, -1 when the process is gone.
pid_t mob__pidfd_pid(int pidfd);
int mob__pidfd_kill(int pidfd, int sig); // 0, or -1 with errno

#endif
