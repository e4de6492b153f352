// Faults on request: processes that die or stand still, links that go silent, pods that are
// deleted.
#include <errno.h>
#include <fcntl.h>
#include <regex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/runner.h"
#include "launcher/lws/spawn.h"

typedef struct target {
  pid_t pid, inner;
  char comm[64];
} target_t;

typedef MOB_VEC(target_t) targets_t;

static mob_status match(pid_t *pids, size_t count, const char *pattern, bool by_name,
                        targets_t *out) {
  regex_t regex;
  if (regcomp(&regex, pattern, REG_EXTENDED | REG_NOSUB) != 0) {
    return mob_fail(MOB_E_INVALID, "\"%s\" is no regular expression", pattern);
  }
  for (size_t i = 0; i < count; i++) {
    target_t t = {pids[i], mob__process_inner_pid(pids[i]), ""};
    char cmdline[4096], comm[4096];
    mob__process_name(pids[i], comm, cmdline, sizeof comm);
    snprintf(t.comm, sizeof t.comm, "%s", comm);
    // A shell that is PID 1 holds the whole command in its line and is hardly ever meant.
    if (t.inner == 0 || (!by_name && t.inner == 1)) continue;
    if (regexec(&regex, by_name ? comm : cmdline, 0, NULL, 0) == 0) *mob_vec_push(out) = t;
  }
  regfree(&regex);
  return MOB_OK;
}

// The processes that a request means: by pattern of name or else command line, by id in the pod, or
// `all`.
static mob_status find_targets(const mob_lws_pod_t *pod, const json_t *request, bool all,
                               targets_t *out) {
  const char *pattern = json_string_value(json_object_get(request, "process"));
  const json_t *inner = json_object_get(request, "pid");
  pid_t *pids = NULL;
  size_t count = 0;
  if (!pod->sandbox)
    return mob_fail(MOB_E_UNAVAILABLE, "the pod %s has no process now", pod->id.name);
  MOB_TRY(mob__descendants(pod->sandbox, &pids, &count));
  mob_status status = MOB_OK;
  if (pattern) {
    status = match(pids, count, pattern, true, out);
    if (status == MOB_OK && out->len == 0) status = match(pids, count, pattern, false, out);
  }
  for (size_t i = 0; !pattern && i < count; i++) {
    target_t t = {pids[i], mob__process_inner_pid(pids[i]), ""};
    char cmdline[256], comm[256];
    mob__process_name(pids[i], comm, cmdline, sizeof comm);
    snprintf(t.comm, sizeof t.comm, "%s", comm);
    bool wanted = all && !inner;
    if (!wanted &&
        pod->spec.mode == MOB_LWS_LOOPBACK) { // there the container's first process has any id
      wanted = inner ? t.pid == (pid_t)json_integer_value(inner)
                     : t.pid == pod->instances[pod->init_count].pid;
    } else if (!wanted) {
      wanted = t.inner == (inner ? (pid_t)json_integer_value(inner) : 1);
    }
    if (wanted) *mob_vec_push(out) = t;
  }
  free(pids);
  if (status == MOB_OK && out->len == 0) {
    status = pattern ? mob_fail(MOB_E_NOT_FOUND, "no process of the pod %s matches \"%s\"",
                                pod->id.name, pattern)
                     : mob_fail(MOB_E_NOT_FOUND, "the pod %s has no such process", pod->id.name);
  }
  return status;
}

static mob_status signal_targets(mob_lws_pod_t *pod, const json_t *request, int sig, bool all,
                                 mob_buf_t *text) {
  targets_t targets = {0};
  mob_status status = find_targets(pod, request, all, &targets);
  for (size_t i = 0; status == MOB_OK && i < targets.len; i++) {
    const target_t *t = &targets.at[i];
    if (kill(t->pid, sig) != 0 && errno != ESRCH) {
      status = mob_fail(MOB_E_IO, "cannot signal process %d: %s", (int)t->pid, strerror(errno));
    }
    mob_buf_printf(text, "%s%s (pid %d in the pod, %d here)", i ? ", " : "", t->comm, (int)t->inner,
                   (int)t->pid);
  }
  mob_vec_free(&targets);
  return status;
}

// ---- netem, by tc on both ends of the pod's link

typedef struct netem {
  mob_lws_runner_t *runner;
  pid_t pid;
  int pidfd, output;
  mob_lws_watch_t *watch;
  mob_lws_fault_reply reply;
  void *arg;
  char pod[80];
} netem_t;

static void on_tc_done(void *arg) {
  netem_t *n = arg;
  int status = 0;
  char text[512] = "";
  while (waitpid(n->pid, &status, 0) < 0 && errno == EINTR) continue;
  ssize_t len = read(n->output, text, sizeof text - 1);
  text[len > 0 ? len : 0] = 0;
  text[strcspn(text, "\n")] = 0;
  mob__watch_stop(&n->watch);
  close(n->pidfd);
  close(n->output);
  char message[700];
  bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (ok) {
    snprintf(message, sizeof message, "netem set on the link of %s", n->pod);
  } else {
    snprintf(message, sizeof message,
             "tc failed: %s (the kernel needs sch_netem, the machine iproute2)", text);
  }
  n->reply(n->arg, ok ? MOB_OK : MOB_E_UNSUPPORTED, message);
  free(n);
}

static int run_tc(const char *device, bool off, const json_t *args) {
  const char *argv[64] = {"tc", "qdisc", off ? "del" : "replace", "dev", device, "root", "netem"};
  size_t n = off ? 6 : 7;
  argv[n] = NULL;
  for (size_t i = 0; !off && i < json_array_size(args) && n < 62; i++) {
    const char *word = json_string_value(json_array_get(args, i));
    if (word) argv[n++] = word;
  }
  argv[n] = NULL;
  pid_t pid = mob__spawn_clone(0, NULL);
  if (pid == 0) {
    execvp("tc", (char **)(uintptr_t)argv);
    dprintf(2, "cannot run tc: %s\n", strerror(errno));
    _exit(127);
  }
  int status = -1;
  while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
  return status == 0 ? 0 : 1;
}

static mob_status start_netem(mob_lws_runner_t *r, mob_lws_pod_t *pod, const json_t *args,
                              mob_lws_fault_reply reply, void *arg) {
  if (pod->spec.mode == MOB_LWS_LOOPBACK) {
    return mob_fail(MOB_E_UNSUPPORTED, "in loopback mode pods have no link of their own");
  }
  if (json_array_size(args) == 0) {
    return mob_fail(MOB_E_INVALID,
                    "netem needs tc's words, such as `delay 20ms` or `loss 5%%`, or `off`");
  }
  const char *first = json_string_value(json_array_get(args, 0));
  bool off = first && strcmp(first, "off") == 0;
  int output[2];
  if (pipe2(output, O_CLOEXEC) != 0) return mob_fail(MOB_E_IO, "pipe: %s", strerror(errno));
  netem_t *n = MOB_NEW(netem_t);
  *n = (netem_t){.runner = r, .reply = reply, .arg = arg, .output = output[0]};
  snprintf(n->pod, sizeof n->pod, "%s", pod->id.name);
  n->pid = mob__spawn_clone(0, &n->pidfd);
  if (n->pid == 0) {
    char device[24];
    mob__spawn_reset_signals();
    dup2(output[1], 1);
    dup2(output[1], 2);
    snprintf(device, sizeof device, "mob-%u", pod->link);
    int failed = run_tc(device, off, args); // towards the pod
    if (!failed)
      failed = setns(pod->sandbox_pidfd, CLONE_NEWNET) != 0 ||
               run_tc("eth0", off, args); // and away from it
    _exit(failed);
  }
  close(output[1]);
  if (n->pid < 0) {
    close(output[0]);
    free(n);
    return mob_fail(MOB_E_IO, "cannot create a process: %s", strerror(errno));
  }
  mob__watch_start(&n->watch, &r->loop, n->pidfd, UV_READABLE, on_tc_done, n);
  return MOB_OK;
}

// ----

static mob_status apply(mob_lws_runner_t *r, mob_lws_pod_t *pod, const char *action,
                        const json_t *request, mob_buf_t *text) {
  const json_t *sig = json_object_get(request, "signal");
  if (strcmp(action, "kill") == 0) {
    mob_buf_puts(text, "killed ");
    int number = sig ? (int)json_integer_value(sig) : SIGKILL;
    return signal_targets(pod, request, number, false, text);
  }
  bool freeze = strcmp(action, "freeze") == 0;
  if (freeze || strcmp(action, "thaw") == 0) {
    mob_buf_puts(text, freeze ? "froze " : "thawed ");
    MOB_TRY(signal_targets(pod, request, freeze ? SIGSTOP : SIGCONT, true, text));
    if (!json_object_get(request, "process") && !json_object_get(request, "pid"))
      pod->frozen = freeze;
    return MOB_OK;
  }
  bool down = strcmp(action, "link-down") == 0;
  if (down || strcmp(action, "link-up") == 0) {
    MOB_TRY(mob__lws_network_set_link(&r->network, pod->link, !down));
    pod->link_down = down;
    mob_buf_printf(text, "the link of %s is %s", pod->id.name, down ? "down" : "up");
    return MOB_OK;
  }
  if (strcmp(action, "delete") == 0) {
    mob_buf_printf(text, "pod %s deleted, grace period %lld s", pod->id.name,
                   (long long)pod->grace_s);
    mob__controller_delete_pod(&r->controller, pod);
    return MOB_OK;
  }
  return mob_fail(
      MOB_E_INVALID,
      "unknown fault \"%s\"; known are kill, freeze, thaw, link-down, link-up, delete, netem",
      action);
}

void mob__fault_apply(mob_lws_runner_t *r, const json_t *request, mob_lws_fault_reply reply,
                      void *arg) {
  const char *name = json_string_value(json_object_get(request, "pod"));
  const char *action = json_string_value(json_object_get(request, "action"));
  mob_lws_pod_t *pod = name ? mob__runner_find_pod(r, name) : NULL;
  mob_buf_t text = {0};
  mob_status status;
  if (!pod) {
    status = mob_fail(MOB_E_NOT_FOUND,
                      "there is no pod \"%s\", or more than one; `mobula lws status` lists them",
                      name ? name : "");
  } else if (action && strcmp(action, "netem") == 0) {
    status = start_netem(r, pod, json_object_get(request, "args"), reply, arg);
    if (status == MOB_OK) return; // answers when tc is done
  } else {
    char object[96];
    snprintf(object, sizeof object, "pod/%s", pod->id.name);
    status = apply(r, pod, action ? action : "", request, &text);
    if (status == MOB_OK) mob__event(&r->events, true, object, "Fault", "%s", mob_buf_cstr(&text));
  }
  reply(arg, status, status == MOB_OK ? mob_buf_cstr(&text) : mob_errmsg());
  mob_buf_free(&text);
}
