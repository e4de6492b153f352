#include "launcher/lws/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/rootfs.h"
#include "launcher/lws/spawn.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/base/vec.h"

typedef struct running {
  pid_t pid; // 0: not running
  int pidfd;
  unsigned attempts;
} running_t;

typedef struct exec {
  pid_t pid;
  uint32_t id;
} exec_t;

typedef struct sandbox {
  const mob_lws_sandbox_spec_t *spec;
  int sock;
  running_t *containers;
  MOB_VEC(exec_t) execs;
} sandbox_t;

static void send_note(sandbox_t *s, const mob_lws_note_t *note, int fd) {
  // A runner that is gone is noticed by the loop.
  mob__send_fds(s->sock, note, sizeof *note, &fd, fd >= 0);
}

static void send_text(int sock, mob_lws_note_kind_t kind, uint32_t container, const char *text) {
  mob_lws_note_t note = {.kind = kind, .container = container};
  snprintf(note.text, sizeof note.text, "%s", text);
  mob__send_fds(sock, &note, sizeof note, NULL, 0);
}

static mob_status set_up(sandbox_t *s) {
  const mob_lws_sandbox_spec_t *spec = s->spec;
  if (spec->mode == MOB_LWS_LOOPBACK) return mob_mkdirs(spec->stage);
  if (sethostname(spec->hostname, strlen(spec->hostname)) != 0) {
    return mob_fail(MOB_E_IO, "cannot set the host name: %s", strerror(errno));
  }
  MOB_TRY(mob__lws_network_configure_pod(spec->address));
  return mob__rootfs_prepare(spec);
}

// ---- in a container's first process

static _Noreturn void die(int status_fd, int code, const char *fmt, const char *arg) {
  char text[400];
  int n = snprintf(text, sizeof text, fmt, arg, strerror(errno));
  ssize_t ignored = write(status_fd, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
  (void)ignored;
  _exit(code);
}

static const char *env_of(char *const *env, const char *name) {
  size_t n = strlen(name);
  for (; *env; env++) {
    if (strncmp(*env, name, n) == 0 && (*env)[n] == '=') return *env + n + 1;
  }
  return "";
}

static _Noreturn void exec_argv(char **argv, char **env, int status_fd) {
  // execvpe() would search the runner's own PATH.
  setenv("PATH", env_of(env, "PATH"), 1);
  execvpe(argv[0], argv, env);
  die(status_fd, errno == ENOENT ? 127 : 126, "cannot run \"%s\": %s", argv[0]);
}

static _Noreturn void run_container(sandbox_t *s, size_t index, int output, int status_fd) {
  const mob_lws_sandbox_container_t *c = &s->spec->containers[index];
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setsid();
  umask(022);
  if (s->spec->mode != MOB_LWS_LOOPBACK) {
    char note[200];
    if (mob__rootfs_enter(s->spec, index, s->containers[index].attempts, note) != MOB_OK) {
      die(status_fd, 128, "%s", mob_errmsg());
    }
    if (*note) send_text(s->sock, MOB_LWS_NOTE_INFO, (uint32_t)index, note);
  }
  const char *cwd = c->container->working_dir;
  if (cwd && chdir(cwd) != 0) die(status_fd, 128, "cannot change to the workingDir %s: %s", cwd);
  if (!cwd && chdir("/") != 0) die(status_fd, 128, "cannot change to %s: %s", "/");
  int null = open("/dev/null", O_RDONLY);
  dup2(null, 0);
  dup2(output, 1);
  dup2(output, 2);
  if (null > 2) close(null);
  mob__spawn_reset_signals();
  exec_argv(c->argv, c->env, status_fd);
}

static void start_container(sandbox_t *s, size_t index, int output, int status_fd) {
  running_t *r = &s->containers[index];
  r->attempts++;
  uint64_t flags = s->spec->mode == MOB_LWS_LOOPBACK ? 0 : CLONE_NEWPID | CLONE_NEWNS;
  pid_t pid = mob__spawn_clone(flags, &r->pidfd);
  if (pid == 0) run_container(s, index, output, status_fd);
  close(output);
  if (pid < 0) {
    char text[100];
    int n = snprintf(text, sizeof text, "cannot create a process: %s", strerror(errno));
    ssize_t ignored = write(status_fd, text, (size_t)n);
    (void)ignored;
    close(status_fd);
    mob_lws_note_t note = {
        .kind = MOB_LWS_NOTE_EXITED, .container = (uint32_t)index, .status = 128 << 8};
    send_note(s, &note, -1);
    return;
  }
  close(status_fd);
  r->pid = pid;
  mob_lws_note_t note = {.kind = MOB_LWS_NOTE_STARTED, .container = (uint32_t)index};
  send_note(s, &note, r->pidfd);
}

// ---- handlers that run inside a container

static char **handler_argv(const mob_lws_container_t *c, uint32_t handler) {
  const mob_lws_handler_t *h = handler == MOB_LWS_EXEC_POST_START ? &c->post_start
                               : handler == MOB_LWS_EXEC_PRE_STOP ? &c->pre_stop
                                                                  : &c->probes[handler].handler;
  char **argv = MOB_NEW_ARRAY(char *, h->argv.len + 1);
  for (size_t i = 0; i < h->argv.len; i++) argv[i] = mob_strdup(h->argv.at[i]);
  return argv;
}

static _Noreturn void run_handler(sandbox_t *s, const mob_lws_command_t *cmd) {
  const mob_lws_sandbox_container_t *c = &s->spec->containers[cmd->container];
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  setsid();
  mob__spawn_reset_signals();
  if (s->spec->mode != MOB_LWS_LOOPBACK) {
    if (setns(s->containers[cmd->container].pidfd, CLONE_NEWPID | CLONE_NEWNS) != 0) _exit(126);
  }
  pid_t pid = mob__spawn_clone(0, NULL); // only a child is inside the PID namespace
  if (pid == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++) dup2(null, fd);
    exec_argv(handler_argv(c->container, cmd->handler), c->env, 2);
  }
  int status = 126 << 8;
  while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void start_handler(sandbox_t *s, const mob_lws_command_t *cmd) {
  pid_t pid = s->containers[cmd->container].pid > 0 ? mob__spawn_clone(0, NULL) : -1;
  if (pid == 0) run_handler(s, cmd);
  if (pid < 0) {
    mob_lws_note_t note = {.kind = MOB_LWS_NOTE_EXEC, .id = cmd->id, .status = 126 << 8};
    send_note(s, &note, -1);
    return;
  }
  *mob_vec_push(&s->execs) = (exec_t){pid, cmd->id};
}

// ---- the loop

static void handle_command(sandbox_t *s, const mob_lws_command_t *cmd, const int *fds,
                           size_t fd_count) {
  switch (cmd->op) {
  case MOB_LWS_CMD_SETUP:
    if (set_up(s) == MOB_OK) {
      send_text(s->sock, MOB_LWS_NOTE_READY, 0, "");
    } else {
      send_text(s->sock, MOB_LWS_NOTE_FAILED, 0, mob_errmsg());
    }
    break;
  case MOB_LWS_CMD_START:
    MOB_ASSERT(fd_count == 2);
    start_container(s, cmd->container, fds[0], fds[1]);
    break;
  case MOB_LWS_CMD_EXEC:
    start_handler(s, cmd);
    break;
  case MOB_LWS_CMD_CANCEL:
    for (size_t i = 0; i < s->execs.len; i++) {
      if (s->execs.at[i].id == cmd->id) kill(s->execs.at[i].pid, SIGKILL);
    }
    break;
  }
}

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw) {
  (void)st, (void)type, (void)ftw;
  remove(path);
  return 0;
}

static void remove_tree(const char *dir) { nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS); }

// In loopback mode nothing but this keeps a container's other processes from outliving it.
static void kill_descendants(sandbox_t *s) {
  for (;;) {
    pid_t *pids;
    size_t count;
    if (mob__descendants(getpid(), &pids, &count) != MOB_OK) return;
    size_t killed = 0;
    for (size_t i = 0; i < count; i++) killed += kill(pids[i], SIGKILL) == 0;
    free(pids);
    if (!killed) return;
    while (waitpid(-1, NULL, 0) > 0) continue;
  }
  (void)s;
}

static void handle_exit(sandbox_t *s, pid_t pid, int status) {
  for (size_t i = 0; i < s->spec->container_count; i++) {
    running_t *r = &s->containers[i];
    if (r->pid != pid) continue;
    r->pid = 0;
    close(r->pidfd);
    if (s->spec->mode == MOB_LWS_LOOPBACK) {
      kill_descendants(s);
      remove_tree(s->spec->stage);
      mob_mkdirs(s->spec->stage);
    } else {
      // Its writes: the overlay itself went with the container's mount namespace.
      char dir[PATH_MAX];
      snprintf(dir, sizeof dir, "%s/c%zu-%u", s->spec->stage, i, r->attempts);
      remove_tree(dir);
    }
    mob_lws_note_t note = {.kind = MOB_LWS_NOTE_EXITED, .container = (uint32_t)i, .status = status};
    send_note(s, &note, -1);
    return;
  }
  for (size_t i = 0; i < s->execs.len; i++) {
    if (s->execs.at[i].pid != pid) continue;
    mob_lws_note_t note = {.kind = MOB_LWS_NOTE_EXEC, .id = s->execs.at[i].id, .status = status};
    send_note(s, &note, -1);
    mob_vec_remove(&s->execs, i);
    return;
  }
}

static void loop(sandbox_t *s, int signals) {
  for (;;) {
    struct pollfd fds[] = {{.fd = s->sock, .events = POLLIN}, {.fd = signals, .events = POLLIN}};
    if (poll(fds, 2, -1) < 0 && errno != EINTR) return;
    if (fds[1].revents) {
      struct signalfd_siginfo info;
      ssize_t ignored = read(signals, &info, sizeof info);
      (void)ignored;
      int status;
      for (pid_t pid; (pid = waitpid(-1, &status, WNOHANG)) > 0;) handle_exit(s, pid, status);
    }
    if (fds[0].revents) {
      mob_lws_command_t cmd;
      int passed[2];
      size_t count = 2;
      if (mob__recv_fds(s->sock, &cmd, sizeof cmd, passed, &count) != sizeof cmd)
        return; // the runner ended
      handle_command(s, &cmd, passed, count);
    }
  }
}

_Noreturn void mob__lws_sandbox_run(const mob_lws_sandbox_spec_t *spec, int sock) {
  bool loopback = spec->mode == MOB_LWS_LOOPBACK;
  if (loopback) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
  } else {
    prctl(PR_SET_PDEATHSIG, SIGKILL); // and with this PID 1 the whole pod
  }
  setsid(); // Ctrl-C on the runner's terminal is the runner's alone
  prctl(PR_SET_NAME, "mobula-pod");
  int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd < 3; fd++) dup2(null, fd);
  // Nothing of the runner stays open here: not its other pods' sockets, not its listeners.
  if (sock != 3) dup2(sock, 3);
  fcntl(3, F_SETFD, FD_CLOEXEC);
  close_range(4, ~0u, 0);
  mob__spawn_reset_signals();
  signal(SIGPIPE, SIG_IGN);
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGCHLD);
  sigprocmask(SIG_BLOCK, &set, NULL);
  sandbox_t s = {.spec = spec, .sock = 3};
  s.containers = MOB_NEW_ARRAY(running_t, spec->container_count);
  loop(&s, signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
  if (loopback) {
    kill_descendants(&s);
    remove_tree(spec->stage);
  }
  _exit(0);
}
