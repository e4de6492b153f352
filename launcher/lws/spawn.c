#include "launcher/lws/spawn.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "runtime/base/vec.h"

pid_t mob__spawn_clone(uint64_t flags, int *pidfd) {
  struct clone_args args = {.flags = flags, .exit_signal = SIGCHLD};
  if (pidfd) {
    args.flags |= CLONE_PIDFD;
    args.pidfd = (uint64_t)(uintptr_t)pidfd;
  }
  pid_t pid = (pid_t)syscall(SYS_clone3, &args, sizeof args);
  // Containers often forbid the newer call and allow the older one, whose third argument takes the
  // pidfd.
  if (pid < 0 && errno == ENOSYS) {
    pid = (pid_t)syscall(SYS_clone, args.flags | SIGCHLD, NULL, pidfd, NULL, 0);
  }
  return pid;
}

int mob__send_fds(int sock, const void *data, size_t len, const int *fds, size_t fd_count) {
  struct iovec iov = {(void *)(uintptr_t)data, len};
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(4 * sizeof(int))];
  } control = {0};
  struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
  if (fd_count) {
    msg.msg_control = &control;
    msg.msg_controllen = CMSG_SPACE(fd_count * sizeof(int));
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(fd_count * sizeof(int));
    memcpy(CMSG_DATA(c), fds, fd_count * sizeof(int));
  }
  ssize_t n;
  do n = sendmsg(sock, &msg, MSG_NOSIGNAL);
  while (n < 0 && errno == EINTR);
  return n < 0 ? -1 : 0;
}

ssize_t mob__recv_fds(int sock, void *data, size_t len, int *fds, size_t *fd_count) {
  struct iovec iov = {data, len};
  union {
    struct cmsghdr header;
    char bytes[CMSG_SPACE(4 * sizeof(int))];
  } control = {0};
  struct msghdr msg = {
      .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
  size_t room = *fd_count;
  *fd_count = 0;
  ssize_t n;
  do n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
  while (n < 0 && errno == EINTR);
  if (n <= 0) return n;
  struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
  if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
    size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; i++) {
      int fd;
      memcpy(&fd, CMSG_DATA(c) + i * sizeof fd, sizeof fd);
      if (i < room) {
        fds[(*fd_count)++] = fd;
      } else {
        close(fd);
      }
    }
  }
  return n;
}

void mob__spawn_reset_signals(void) {
  for (int sig = 1; sig < NSIG; sig++)
    signal(sig, SIG_DFL); // SIGKILL and SIGSTOP refuse, which is fine
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
}

typedef struct process {
  pid_t pid, parent;
} process_t;

static ssize_t read_proc(pid_t pid, const char *file, char *out, size_t size) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  ssize_t n = read(fd, out, size - 1);
  close(fd);
  if (n < 0) return -1;
  out[n] = 0;
  return n;
}

static pid_t parent_of(pid_t pid) {
  char text[512];
  if (read_proc(pid, "stat", text, sizeof text) < 0) return -1;
  // The name in parentheses may hold blanks and parentheses itself.
  const char *after = strrchr(text, ')');
  char state;
  int parent;
  return after && sscanf(after + 1, " %c %d", &state, &parent) == 2 ? parent : -1;
}

mob_status mob__descendants(pid_t root, pid_t **out, size_t *count) {
  MOB_VEC(process_t) all = {0};
  MOB_VEC(pid_t) found = {0};
  DIR *dir = opendir("/proc");
  if (!dir) return mob_fail(MOB_E_IO, "cannot read /proc: %s", strerror(errno));
  for (struct dirent *e; (e = readdir(dir));) {
    pid_t pid = (pid_t)strtol(e->d_name, NULL, 10);
    if (pid <= 0) continue;
    *mob_vec_push(&all) = (process_t){pid, parent_of(pid)};
  }
  closedir(dir);
  pid_t parent = root;
  for (size_t next = 0;; parent = found.at[next++]) {
    for (size_t i = 0; i < all.len; i++) {
      if (all.at[i].parent == parent) *mob_vec_push(&found) = all.at[i].pid;
    }
    if (next == found.len) break;
  }
  mob_vec_free(&all);
  *out = found.at;
  *count = found.len;
  return MOB_OK;
}

void mob__process_name(pid_t pid, char *comm, char *cmdline, size_t size) {
  comm[0] = cmdline[0] = 0;
  ssize_t n = read_proc(pid, "comm", comm, size);
  if (n > 0 && comm[n - 1] == '\n') comm[n - 1] = 0;
  n = read_proc(pid, "cmdline", cmdline, size);
  for (ssize_t i = 0; i + 1 < n; i++) {
    if (cmdline[i] == 0) cmdline[i] = ' ';
  }
}

pid_t mob__process_inner_pid(pid_t pid) {
  char text[4096];
  if (read_proc(pid, "status", text, sizeof text) < 0) return 0;
  char *line = strstr(text, "\nNSpid:");
  if (!line) return 0;
  line++;
  line[strcspn(line, "\n")] = 0;
  char *last = strrchr(line, '\t');
  return last ? (pid_t)strtol(last + 1, NULL, 10) : 0;
}

pid_t mob__pidfd_pid(int pidfd) {
  char name[48], text[512];
  snprintf(name, sizeof name, "fdinfo/%d", pidfd);
  if (read_proc(getpid(), name, text, sizeof text) < 0) return -1;
  const char *line = strstr(text, "\nPid:");
  return line ? (pid_t)strtol(line + 5, NULL, 10) : -1;
}

int mob__pidfd_kill(int pidfd, int sig) {
  return (int)syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0);
}
