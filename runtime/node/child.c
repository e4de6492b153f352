#include "runtime/node/child.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/mem.h"

#define REAP_MS 300

struct mob_child {
  mob_children_t *children;
  pid_t pid;
  mob_child_exit_fn on_exit;
  void *owner;
};

struct mob_children {
  uv_signal_t signal;
  MOB_VEC(mob_child_t *) list;
};

static void reap(mob_children_t *children) {
  int status;
  pid_t pid;
  while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
    for (size_t i = 0; i < children->list.len; i++) {
      mob_child_t *child = children->list.at[i];
      if (child->pid != pid) continue;
      mob_vec_remove(&children->list, i);
      kill(-pid, SIGKILL); // what it started and left behind
      child->on_exit(child->owner, child, status);
      free(child);
      break;
    }
  }
}

static void on_sigchld(uv_signal_t *signal, int number) {
  (void)number;
  reap(signal->data);
}

mob_status mob_children_new(uv_loop_t *loop, mob_children_t **out) {
  mob_children_t *children = MOB_NEW(mob_children_t);
  int error = uv_signal_init(loop, &children->signal);
  if (!error) error = uv_signal_start(&children->signal, on_sigchld, SIGCHLD);
  if (error) {
    free(children);
    return mob_fail(MOB_E_IO, "cannot watch SIGCHLD: %s", uv_strerror(error));
  }
  children->signal.data = children;
  uv_unref((uv_handle_t *)&children->signal);
  reap(children); // orphans that ended before anybody listened
  *out = children;
  return MOB_OK;
}

static void on_closed(uv_handle_t *handle) {
  mob_children_t *children = handle->data;
  mob_vec_free(&children->list);
  free(children);
}

void mob_children_close(mob_children_t *children) {
  for (size_t i = 0; i < children->list.len; i++) {
    kill(-children->list.at[i]->pid, SIGKILL);
    kill(children->list.at[i]->pid, SIGKILL);
  }
  // A process that a driver holds in the kernel may take its time: the daemon's end does not wait
  // for it.
  for (int ms = 0; children->list.len && ms < REAP_MS; ms++) {
    for (size_t i = children->list.len; i-- > 0;) {
      if (waitpid(children->list.at[i]->pid, NULL, WNOHANG) == 0) continue;
      free(children->list.at[i]);
      mob_vec_remove(&children->list, i);
    }
    if (children->list.len) nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
  for (size_t i = 0; i < children->list.len; i++) free(children->list.at[i]);
  children->list.len = 0;
  uv_close((uv_handle_t *)&children->signal, on_closed);
}

// In the child, between fork and exec: async-signal-safe calls alone.
static _Noreturn void become(const mob_child_options_t *options, pid_t parent, int report) {
  sigset_t none;
  int keep[MOB_LEN(options->fds)], count = options->fd_count;
  setsid();
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(127); // the daemon died before the line above
  // Above the targets first, so that no source is overwritten before it was copied.
  for (int i = 0; i < count; i++) {
    int fd = options->fds[i] < 0 ? open("/dev/null", O_RDWR) : options->fds[i];
    keep[i] = fcntl(fd, F_DUPFD, 64);
    if (keep[i] < 0) goto failed;
  }
  report = fcntl(report, F_DUPFD_CLOEXEC, 64);
  for (int i = 0; i < count; i++) {
    if (dup2(keep[i], i) < 0) goto failed;
  }
  if (syscall(SYS_close_range, (unsigned)count, (unsigned)report - 1, 0) != 0) {
    for (int fd = count; fd < report; fd++) close(fd);
  }
  if (syscall(SYS_close_range, (unsigned)report + 1, ~0U, 0) != 0) {
    for (int fd = report + 1; fd < 65536; fd++) close(fd);
  }
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, NULL);
  for (int sig = 1; sig < 32; sig++) signal(sig, SIG_DFL);
  execve(options->file, options->argv, options->env);
failed:;
  int error = errno;
  ssize_t ignored = write(report, &error, sizeof error);
  (void)ignored;
  _exit(127);
}

mob_status mob_child_spawn(mob_children_t *children, const mob_child_options_t *options,
                           mob_child_exit_fn on_exit, void *owner, mob_child_t **out) {
  int report[2], error = 0;
  pid_t parent = getpid();
  sigset_t all, old;
  if (pipe2(report, O_CLOEXEC)) return mob_fail(MOB_E_IO, "pipe: %s", strerror(errno));
  // A signal handler of the parent must not run in the child.
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  pid_t pid = fork();
  if (pid == 0) become(options, parent, report[1]);
  if (pid < 0) error = errno;
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  close(report[1]);
  ssize_t n;
  while (pid > 0 && (n = read(report[0], &error, sizeof error)) < 0 && errno == EINTR) {
  }
  close(report[0]);
  if (error) {
    if (pid > 0) waitpid(pid, NULL, 0);
    return mob_fail(MOB_E_IO, "cannot start %s: %s", options->file, strerror(error));
  }
  mob_child_t *child = MOB_NEW(mob_child_t);
  *child = (mob_child_t){children, pid, on_exit, owner};
  *mob_vec_push(&children->list) = child;
  *out = child;
  return MOB_OK;
}

pid_t mob_child_pid(const mob_child_t *child) {
  return child->pid;
}

void mob_child_kill(mob_child_t *child, int sig) {
  kill(child->pid, sig);
}
