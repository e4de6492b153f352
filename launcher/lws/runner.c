#include "launcher/lws/runner.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "launcher/lws/run.h"
#include "runtime/base/file.h"

bool mob__runner_all_ready(const mob_lws_runner_t *r) {
  if (r->ending) return false;
  for (size_t i = 0; i < r->controller.sets.len; i++) {
    const mob_lws_controlled_set_t *s = r->controller.sets.at[i];
    if (mob__ready_groups(&r->controller, s) != s->replicas) return false;
  }
  return true;
}

mob_lws_pod_t *mob__runner_find_pod(mob_lws_runner_t *r, const char *name) {
  mob_lws_pod_t *found = NULL;
  size_t matches = 0;
  for (size_t i = 0; i < r->kubelet.pods.len; i++) {
    mob_lws_pod_t *pod = r->kubelet.pods.at[i];
    if (strcmp(pod->id.name, name) == 0) return pod;
    // "0-1" for "deepseek-r1-671b-fp8-distrubution-0-1".
    if (strcmp(pod->id.name + strlen(pod->id.set->name) + 1, name) == 0) {
      found = pod;
      matches++;
    }
  }
  return matches == 1 ? found : NULL;
}

// /etc/hosts of every pod: all pods, the not-ready ones too, under each name that a cluster's DNS
// and its search list would resolve.
static void update_hosts(mob_lws_runner_t *r) {
  mob_buf_t text = {0};
  mob_buf_puts(&text, "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
  for (size_t i = 0; i < r->kubelet.pods.len; i++) {
    const mob_lws_pod_t *pod = r->kubelet.pods.at[i];
    const char *n = pod->id.name, *s = pod->id.subdomain, *ns = pod->id.set->namespace_;
    mob_buf_printf(&text, "%s\t%s.%s.%s.svc.cluster.local %s.%s.%s.svc %s.%s.%s %s.%s %s\n",
                   pod->address, n, s, ns, n, s, ns, n, s, ns, n, s, n);
  }
  mob__services_hosts(&r->services, &text);
  char *path = mob_sprintf("%s/net/hosts", r->state_dir);
  if (mob_file_write(path, text.data, text.len) != MOB_OK) {
    mob__event(&r->events, true, "runner", "HostsFile", "%s", mob_errmsg());
  }
  free(path);
  mob_buf_free(&text);
}

static void finish(void *arg) {
  mob_lws_runner_t *r = arg;
  r->finished = true;
  mob__services_close(&r->services);
  mob__control_close(r);
  mob__watch_stop(&r->signal_watch);
}

static void check_finished(mob_lws_runner_t *r) {
  // From the loop, not from inside a pod's or a client's own callback.
  if (r->ending && !r->finished && !r->finish && mob__controller_empty(&r->controller)) {
    mob__timer_set(&r->finish, &r->loop, 0, finish, r);
  }
}

static void settle(mob_lws_runner_t *r) {
  mob__controller_reconcile(&r->controller);
  mob__services_update(&r->services);
  mob__control_changed(r);
  check_finished(r);
}

void mob__runner_end(mob_lws_runner_t *r, bool now) {
  if (r->finished) return;
  if (!r->ending) {
    mob__event(&r->events, false, "runner", "Ending",
               now ? "all pods are killed" : "all pods are deleted, each with its grace period");
  }
  r->ending = true;
  mob__controller_end(&r->controller);
  for (size_t i = 0; now && i < r->kubelet.pods.len; i++)
    mob__kubelet_delete(r->kubelet.pods.at[i], true);
  settle(r);
}

// ---- what the parts call

static void on_change(void *owner, mob_lws_pod_t *pod) {
  (void)pod;
  mob_lws_runner_t *r = owner;
  if (r->controller.busy) { // the outermost call settles
    mob__controller_reconcile(&r->controller);
    mob__services_update(&r->services); // but a port closes before its last pod gets the TERM
    return;
  }
  settle(r);
}

static void on_gone(void *owner, mob_lws_pod_t *pod) {
  mob_lws_runner_t *r = owner;
  char object[96];
  snprintf(object, sizeof object, "pod/%s", pod->id.name);
  mob__event(&r->events, false, object, "Gone", "no process of it is left, uid %s", pod->uid);
  mob__services_pod_gone(&r->services, pod);
  // Out of the list before a successor of the same name comes in.
  for (size_t i = 0; i < r->kubelet.pods.len; i++) {
    if (r->kubelet.pods.at[i] == pod) {
      mob_vec_remove(&r->kubelet.pods, i);
      break;
    }
  }
  update_hosts(r);
  mob__controller_pod_gone(&r->controller, pod);
  mob__kubelet_free(pod);
  settle(r);
}

static void on_broken(void *owner, const char *why) {
  mob_lws_runner_t *r = owner;
  if (r->exit_code == 0)
    fprintf(stderr, "mobula lws up: this machine cannot run the pods: %s\n", why);
  r->exit_code = 1;
  if (!r->finished) mob__runner_end(r, true);
}

static void *create_pod(void *owner, const mob_lws_pod_identity_t *id) {
  mob_lws_runner_t *r = owner;
  if (r->ending) return NULL;
  mob_lws_pod_t *pod = mob__kubelet_create(&r->kubelet, id);
  if (pod) {
    update_hosts(r);
  } else {
    on_broken(r, mob_errmsg());
  }
  return pod;
}

static void delete_pod(void *owner, void *pod) {
  (void)owner;
  mob__kubelet_delete(pod, false);
}

static mob_lws_pod_state_t pod_state(void *owner, void *pod) {
  (void)owner;
  return (mob_lws_pod_state_t){mob__pod_ready(pod), mob__pod_pending(pod),
                               mob__pod_seen_restarts(pod)};
}

static void controller_event(void *owner, bool warning, const char *object, const char *reason,
                             const char *text) {
  mob_lws_runner_t *r = owner;
  mob__event(&r->events, warning, object, reason, "%s", text);
}

static void on_signal(void *arg) {
  mob_lws_runner_t *r = arg;
  struct signalfd_siginfo info;
  if (read(r->signal_fd, &info, sizeof info) != sizeof info) return;
  mob__runner_end(r, r->ending); // the second one does not wait
}

int mob__runner_run(mob_lws_runner_t *r, int64_t replicas, void (*started)(void *arg), void *arg) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGHUP);
  sigprocmask(SIG_BLOCK, &signals, NULL);
  signal(SIGPIPE, SIG_IGN);
  r->signal_fd = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
  mob__watch_start(&r->signal_watch, &r->loop, r->signal_fd, UV_READABLE, on_signal, r);
  r->kubelet.owner = r;
  r->kubelet.on_change = on_change;
  r->kubelet.on_gone = on_gone;
  r->kubelet.on_broken = on_broken;
  r->controller.owner = r;
  r->controller.ops =
      (mob_lws_controller_ops_t){create_pod, delete_pod, pod_state, controller_event};
  for (size_t i = 0; i < r->manifest->sets.len; i++) {
    const mob_lws_set_t *set = r->manifest->sets.at[i];
    mob__controller_add(&r->controller, set, replicas >= 0 ? replicas : set->replicas);
  }
  mob__control_start(r);
  update_hosts(r);
  settle(r);
  if (r->exit_code == 0) started(arg);
  uv_run(&r->loop, UV_RUN_DEFAULT);
  close(r->signal_fd);
  mob__controller_free(&r->controller);
  mob_vec_free(&r->kubelet.pods);
  mob_map_free(&r->kubelet.quick);
  return r->exit_code;
}
