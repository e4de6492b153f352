// Starts a node daemon that outlives its launcher, and waits until it is ready.

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/cmd_ray.h"

#define REPORT_FD 3

// In the child: async-signal-safe calls alone.
static _Noreturn void become_daemon(char **argv, int report, bool keep_stderr) {
  setsid();
  int null = open("/dev/null", O_RDWR);
  dup2(null, STDIN_FILENO);
  dup2(null, STDOUT_FILENO);
  if (!keep_stderr) dup2(null, STDERR_FILENO);
  if (report == REPORT_FD) {
    fcntl(report, F_SETFD, 0);
  } else {
    dup2(report, REPORT_FD);
  }
  for (int fd = REPORT_FD + 1; fd < 1024; fd++) close(fd);
  execv("/proc/self/exe", argv);
  _exit(127);
}

static mob_status read_report(int fd, mob_buf_t *text) {
  char data[4096];
  ssize_t n;
  while ((n = read(fd, data, sizeof data)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return mob_fail(MOB_E_IO, "the daemon's report cannot be read: %s", strerror(errno));
    mob_buf_append(text, data, (size_t)n);
  }
  return MOB_OK;
}

static mob_status understand(mob_buf_t *text, mob_daemon_t *out) {
  int status = 0;
  json_t *json = json_loadb((const char *)text->data, text->len, 0, NULL);
  if (!json) {
    if (waitpid(out->pid, &status, 0) == out->pid && WIFSIGNALED(status)) {
      return mob_fail(MOB_E_INTERNAL, "the node daemon was killed by signal %d", WTERMSIG(status));
    }
    return mob_fail(MOB_E_INTERNAL, "the node daemon ended without a word (exit code %d)",
                    WEXITSTATUS(status));
  }
  mob_status result = MOB_OK;
  const char *ip, *address, *session, *id, *error;
  if (json_is_true(json_object_get(json, "ok")) &&
      json_unpack(json, "{s:s, s:s, s:s, s:s}", "ip", &ip, "address", &address, "session_dir",
                  &session, "node_id", &id) == 0) {
    out->ip = mob_strdup(ip);
    out->address = mob_strdup(address);
    out->session_dir = mob_strdup(session);
    out->node_id = mob_strdup(id);
  } else {
    error = json_string_value(json_object_get(json, "error"));
    bool taken = error && strstr(error, "is already running at");
    result = mob_fail(taken ? MOB_E_EXISTS : MOB_E_UNAVAILABLE, "%s",
                      error ? error : "the node did not start");
    waitpid(out->pid, NULL, 0);
  }
  json_decref(json);
  return result;
}

mob_status mob_daemon_start(int argc, char **argv, bool keep_stderr, mob_daemon_t *out) {
  int report[2];
  memset(out, 0, sizeof *out);
  if (pipe2(report, O_CLOEXEC)) return mob_fail(MOB_E_IO, "pipe: %s", strerror(errno));
  char **args = MOB_NEW_ARRAY(char *, (size_t)argc + 6);
  int n = 0;
  args[n++] = "mobula";
  args[n++] = "node";
  for (int i = 1; i < argc; i++) args[n++] = argv[i];
  args[n++] = "--ready-fd=3";
  if (!keep_stderr) args[n++] = "--log-to-file";
  out->pid = fork();
  if (out->pid == 0) become_daemon(args, report[1], keep_stderr);
  close(report[1]);
  free(args);
  mob_buf_t text = {0};
  mob_status status = out->pid < 0 ? mob_fail(MOB_E_IO, "fork: %s", strerror(errno)) : MOB_OK;
  if (status == MOB_OK) status = read_report(report[0], &text);
  if (status == MOB_OK) status = understand(&text, out);
  close(report[0]);
  mob_buf_free(&text);
  return status;
}

void mob_daemon_free(mob_daemon_t *daemon) {
  free(daemon->ip);
  free(daemon->address);
  free(daemon->node_id);
  free(daemon->session_dir);
  memset(daemon, 0, sizeof *daemon);
}
