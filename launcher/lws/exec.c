// `mobula lws exec POD -- COMMAND`: a process in the pod's namespaces with this terminal.
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/client.h"
#include "launcher/lws/commands.h"
#include "launcher/lws/state.h"
#include "runtime/base/file.h"

static json_t *find_pod(json_t *status, const char *name) {
  size_t i, g, p;
  json_t *set, *group, *pod, *found = NULL;
  size_t matches = 0;
  json_array_foreach(json_object_get(status, "sets"), i, set) {
    json_array_foreach(json_object_get(set, "groups"), g, group) {
      json_array_foreach(json_object_get(group, "pods"), p, pod) {
        const char *full = json_string_value(json_object_get(pod, "name"));
        size_t prefix = strlen(json_string_value(json_object_get(set, "name"))) + 1;
        if (strcmp(full, name) == 0) return pod;
        if (strlen(full) > prefix && strcmp(full + prefix, name) == 0) {
          found = pod;
          matches++;
        }
      }
    }
  }
  return matches == 1 ? found : NULL;
}

static pid_t container_pid(const json_t *pod, const char *container) {
  size_t i;
  json_t *c;
  json_array_foreach(json_object_get(pod, "containers"), i, c) {
    pid_t pid = (pid_t)json_integer_value(json_object_get(c, "pid"));
    const char *name = json_string_value(json_object_get(c, "name"));
    if (pid > 0 && (!container || strcmp(name, container) == 0)) return pid;
  }
  return 0;
}

// The container's own variables, so that the command sees what its program sees.
static mob_status take_environment(pid_t pid, mob_buf_t *env) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/environ", (int)pid);
  MOB_TRY(mob_file_read(path, (size_t)4 << 20, env));
  mob_buf_putc(env, 0);
  clearenv();
  for (const char *p = (const char *)env->data, *end = p + env->len; p < end && *p;
       p += strlen(p) + 1) {
    if (strchr(p, '=')) putenv((char *)(uintptr_t)p);
  }
  return MOB_OK;
}

static bool same_user_namespace(pid_t pid) {
  char path[64];
  struct stat own, other;
  snprintf(path, sizeof path, "/proc/%d/ns/user", (int)pid);
  return stat("/proc/self/ns/user", &own) == 0 && stat(path, &other) == 0 &&
         own.st_ino == other.st_ino;
}

static mob_status enter(pid_t pid) {
  int fd = (int)syscall(SYS_pidfd_open, pid, 0);
  if (fd < 0) return mob_fail(MOB_E_UNAVAILABLE, "the container ended");
  int flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC;
  if (!same_user_namespace(pid)) flags |= CLONE_NEWUSER;
  int error = setns(fd, flags) != 0 ? errno : 0;
  close(fd);
  if (error) return mob_fail(MOB_E_IO, "cannot enter the pod's namespaces: %s", strerror(error));
  return MOB_OK;
}

static int wait_for(pid_t pid) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

// In a child of this process: only a child of one that entered a PID namespace is inside it.
static _Noreturn void run_inside(pid_t container, bool loopback, char **argv) {
  if (!loopback && enter(container) != MOB_OK) {
    fprintf(stderr, "mobula lws exec: %s\n", mob_errmsg());
    _exit(1);
  }
  pid_t pid = fork();
  if (pid == 0) {
    execvp(argv[0], argv);
    fprintf(stderr, "mobula lws exec: cannot run \"%s\": %s\n", argv[0], strerror(errno));
    _exit(errno == ENOENT ? 127 : 126);
  }
  _exit(pid < 0 ? 1 : wait_for(pid));
}

static mob_status find_process(const char *dir, const char *name, const char *pod_name,
                               const char *container, pid_t *pid, bool *loopback) {
  char *path = NULL;
  json_t *status = NULL;
  mob_status result = mob__state_find(dir, name, &path);
  if (result == MOB_OK)
    result = mob__client_ask(path, json_pack("{s:s}", "op", "status"), 30, &status);
  if (result == MOB_OK) {
    const char *mode = json_string_value(json_object_get(status, "network"));
    *loopback = mode && strcmp(mode, "loopback") == 0;
    json_t *pod = find_pod(status, pod_name);
    *pid = pod ? container_pid(pod, container) : 0;
    if (!pod) {
      result = mob_fail(MOB_E_NOT_FOUND, "there is no pod \"%s\"; `mobula lws status` lists them",
                        pod_name);
    } else if (!*pid) {
      result = mob_fail(MOB_E_UNAVAILABLE, "the pod %s has no running container %s", pod_name,
                        container ? container : "");
    }
  }
  json_decref(status);
  free(path);
  return result;
}

int mob__lws_exec(int argc, char **argv) {
  const char *name = NULL, *dir = NULL, *container = NULL;
  mob_lws_words_t words = {0};
  const mob_lws_option_t options[] = {
      {"container", "NAME", MOB_LWS_OPT_STRING, &container,
       "which container (default: the first that runs)", 0},
      MOB_LWS_CLIENT_OPTIONS(&name, &dir),
  };
  const mob_lws_usage_t usage = {"exec",
                                 "POD [--] COMMAND [ARG...]",
                                 "Runs a command inside a pod, with the container's "
                                 "variables. Returns its exit status.",
                                 options,
                                 MOB_LEN(options),
                                 true};
  int code = mob__options_parse(&usage, argc, argv, &words);
  if (code < 0 && words.len < 2) code = mob__usage_error("exec", "needs a pod and a command");
  if (code < 0) {
    size_t first = strcmp(words.at[1], "--") == 0 ? 2 : 1;
    char **command = MOB_NEW_ARRAY(char *, words.len + 1);
    for (size_t i = first; i < words.len; i++) command[i - first] = (char *)(uintptr_t)words.at[i];
    pid_t pid = 0;
    bool loopback = false;
    mob_buf_t env = {0};
    mob_status status = find_process(dir, name, words.at[0], container, &pid, &loopback);
    if (status == MOB_OK) status = take_environment(pid, &env);
    if (status == MOB_OK) {
      pid_t child = fork();
      if (child == 0) run_inside(pid, loopback, command);
      code = child < 0 ? 1 : wait_for(child);
    } else {
      fprintf(stderr, "mobula lws exec: %s\n", mob_errmsg());
      code = 1;
    }
    free(command);
    clearenv();
    mob_buf_free(&env);
  }
  mob_vec_free(&words);
  return code;
}
