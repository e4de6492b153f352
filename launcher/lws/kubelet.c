#include "launcher/lws/kubelet.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/instance.h"
#include "launcher/lws/spawn.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/hex.h"

static void on_sock(void *arg);
static void on_sandbox_exit(void *arg);

void mob__pod_event(mob_lws_pod_t *pod, bool warning, const char *reason, const char *fmt, ...) {
  char object[96], text[400];
  snprintf(object, sizeof object, "pod/%s", pod->id.name);
  va_list args;
  va_start(args, fmt);
  vsnprintf(text, sizeof text, fmt, args);
  va_end(args);
  mob__event(pod->kubelet->events, warning, object, reason, "%s", text);
}

// ---- what others ask

bool mob__pod_ready(const mob_lws_pod_t *pod) {
  if (pod->deleting || !pod->set_up) return false;
  for (size_t i = pod->init_count; i < pod->instance_count; i++) {
    if (!pod->instances[i].ready) return false;
  }
  return true;
}

bool mob__pod_pending(const mob_lws_pod_t *pod) {
  for (size_t i = pod->init_count; i < pod->instance_count; i++) {
    if (pod->instances[i].starts == 0) return true;
  }
  return false;
}

unsigned mob__pod_restarts(const mob_lws_pod_t *pod) {
  unsigned n = 0;
  for (size_t i = 0; i < pod->instance_count; i++) n += pod->instances[i].restarts;
  return n;
}

unsigned mob__pod_seen_restarts(const mob_lws_pod_t *pod) {
  unsigned n = 0;
  for (size_t i = 0; i < pod->instance_count; i++) n += pod->instances[i].seen_restarts;
  return n;
}

const char *mob__pod_status(const mob_lws_pod_t *pod) {
  if (pod->deleting) return "Terminating";
  for (size_t i = 0; i < pod->instance_count; i++) {
    const mob_lws_instance_t *c = &pod->instances[i];
    if (c->state != MOB_LWS_RUNNING && !c->done && c->reason) return c->reason;
  }
  return pod->frozen ? "Frozen" : "Running";
}

void mob__kubelet_changed(mob_lws_pod_t *pod) {
  bool ready = mob__pod_ready(pod);
  if (ready != pod->was_ready) {
    pod->was_ready = ready;
    mob__pod_event(pod, false, ready ? "Ready" : "NotReady",
                   ready ? "all containers are ready" : "is not ready any more");
  }
  pod->kubelet->on_change(pod->kubelet->owner, pod);
}

// A command that fails at once would make its group anew hundreds of times a second, where a
// cluster takes about one. So the second failure in a row soon after the pod's creation is told
// late.
#define QUICK_MS 500
#define SLOW_DOWN_MS 1000

uint64_t mob__kubelet_lws_delay(mob_lws_pod_t *pod) {
  mob_lws_kubelet_t *k = pod->kubelet;
  uint64_t delay = (uint64_t)(k->config.lws_delay_s * 1000);
  uintptr_t count = (uintptr_t)mob_map_gets(&k->quick, pod->id.name);
  if (mob_wall_ms() - pod->created_ms >= QUICK_MS) {
    mob_map_removes(&k->quick, pod->id.name);
    return delay;
  }
  mob_map_puts(&k->quick, pod->id.name, (void *)(count + 1));
  return count > 0 && delay < SLOW_DOWN_MS ? SLOW_DOWN_MS : delay;
}

// ---- the sandbox

void mob__pod_command(mob_lws_pod_t *pod, uint32_t op, uint32_t container, uint32_t handler,
                      uint32_t id, const int *fds, size_t fd_count) {
  mob_lws_command_t cmd = {op, container, handler, id};
  // A sandbox that is gone is noticed by its watch.
  if (pod->sock >= 0) mob__send_fds(pod->sock, &cmd, sizeof cmd, fds, fd_count);
}

static mob_status start_sandbox(mob_lws_pod_t *pod) {
  mob_lws_kubelet_t *k = pod->kubelet;
  int pair[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) != 0) {
    return mob_fail(MOB_E_IO, "socketpair: %s", strerror(errno));
  }
  uint64_t flags = CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC;
  if (k->network->mode == MOB_LWS_LOOPBACK) flags = 0;
  fflush(NULL); // else the child would hold, and perhaps print, what is buffered
  pod->sandbox = mob__spawn_clone(flags, &pod->sandbox_pidfd);
  if (pod->sandbox == 0) mob__lws_sandbox_run(&pod->spec, pair[1]);
  close(pair[1]);
  if (pod->sandbox < 0) {
    pod->sandbox = 0;
    close(pair[0]);
    return mob_fail(MOB_E_IO, "cannot create the pod's namespaces: %s", strerror(errno));
  }
  pod->sock = pair[0];
  mob__watch_start(&pod->sandbox_watch, k->loop, pod->sandbox_pidfd, UV_READABLE, on_sandbox_exit,
                   pod);
  mob__watch_start(&pod->sock_watch, k->loop, pod->sock, UV_READABLE, on_sock, pod);
  if (k->cgroup) MOB_TRY(mob__cgroup_add(k->cgroup, pod->id.name, pod->link, pod->sandbox));
  if (k->network->mode != MOB_LWS_LOOPBACK) {
    MOB_TRY(mob__lws_network_attach(k->network, pod->link, pod->sandbox));
  }
  mob__pod_command(pod, MOB_LWS_CMD_SETUP, 0, 0, 0, NULL, 0);
  return MOB_OK;
}

static void on_note(mob_lws_pod_t *pod, const mob_lws_note_t *note, int fd) {
  mob_lws_instance_t *c =
      note->container < pod->instance_count ? &pod->instances[note->container] : NULL;
  switch (note->kind) {
  case MOB_LWS_NOTE_READY:
    pod->set_up = true;
    if (!pod->deleting) mob__pod_start_containers(pod);
    return;
  case MOB_LWS_NOTE_FAILED:
    mob__pod_event(pod, true, "FailedCreatePodSandBox", "%s", note->text);
    pod->kubelet->on_broken(pod->kubelet->owner, note->text);
    return;
  case MOB_LWS_NOTE_STARTED:
    mob__instance_has_process(c, fd);
    return;
  case MOB_LWS_NOTE_EXITED:
    mob__instance_exited(c, note->status);
    return;
  case MOB_LWS_NOTE_EXEC:
    for (size_t i = 0; i < pod->instance_count; i++)
      mob__instance_exec_done(&pod->instances[i], note->id, note->status);
    return;
  case MOB_LWS_NOTE_INFO:
    mob__pod_event(pod, true, "RootFilesystem", "%s", note->text);
    return;
  }
}

static void on_sock(void *arg) {
  mob_lws_pod_t *pod = arg;
  mob_lws_note_t note;
  int fd = -1;
  size_t count = 1;
  ssize_t n = mob__recv_fds(pod->sock, &note, sizeof note, &fd, &count);
  if (n != sizeof note) { // the end: its process watch does the rest
    mob__watch_stop(&pod->sock_watch);
    return;
  }
  note.text[sizeof note.text - 1] = 0;
  on_note(pod, &note, count ? fd : -1);
}

static void close_sandbox(mob_lws_pod_t *pod) {
  while (waitpid(pod->sandbox, NULL, 0) < 0 && errno == EINTR) continue;
  mob__watch_stop(&pod->sandbox_watch);
  mob__watch_stop(&pod->sock_watch);
  close(pod->sandbox_pidfd);
  close(pod->sock);
  pod->sock = -1;
  pod->sandbox = 0;
  mob__lws_network_detach(pod->kubelet->network, pod->link);
  if (pod->kubelet->cgroup) mob__cgroup_remove(pod->kubelet->cgroup, pod->id.name, pod->link);
}

static void on_sandbox_exit(void *arg) {
  mob_lws_pod_t *pod = arg;
  mob_lws_kubelet_t *k = pod->kubelet;
  // What it sent last, an exit among it, comes before its end.
  while (pod->sock_watch) {
    int flags = fcntl(pod->sock, F_GETFL);
    fcntl(pod->sock, F_SETFL, flags | O_NONBLOCK);
    on_sock(pod);
  }
  close_sandbox(pod);
  if (pod->deleting) {
    mob__timer_cancel(&pod->grace);
    for (size_t i = 0; i < pod->instance_count; i++) mob__instance_close(&pod->instances[i]);
    pod->gone = true;
    k->on_gone(k->owner, pod);
    return;
  }
  mob__pod_event(pod, true, "SandboxChanged",
                 "Pod sandbox changed, it will be killed and re-created.");
  pod->set_up = false;
  pod->link = k->next_link++;
  mob__lws_network_address(k->network, pod->address);
  for (size_t i = 0; i < pod->instance_count; i++) mob__instance_lost(&pod->instances[i]);
  // The variables may hold the address.
  if (mob__pod_build(pod) != MOB_OK || start_sandbox(pod) != MOB_OK)
    k->on_broken(k->owner, mob_errmsg());
  mob__kubelet_changed(pod);
}

// ---- pods

static void make_uid(char out[37]) {
  unsigned char b[16];
  char hex[33];
  mob_random(b, sizeof b);
  b[6] = (b[6] & 0x0f) | 0x40; // RFC 4122, version 4
  b[8] = (b[8] & 0x3f) | 0x80;
  mob_hex(b, sizeof b, hex);
  snprintf(out, 37, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

static mob_status open_log(mob_lws_pod_t *pod) {
  char *path = mob_sprintf("%s/logs/%s.log", pod->kubelet->config.state_dir, pod->id.name);
  pod->log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  mob_status status = pod->log >= 0
                          ? MOB_OK
                          : mob_fail(MOB_E_IO, "cannot open the log %s: %s", path, strerror(errno));
  free(path);
  return status;
}

mob_lws_pod_t *mob__kubelet_create(mob_lws_kubelet_t *k, const mob_lws_pod_identity_t *id) {
  mob_lws_pod_t *pod = MOB_NEW(mob_lws_pod_t);
  pod->kubelet = k;
  pod->id = *id;
  pod->sock = pod->log = -1;
  pod->link = k->next_link++;
  pod->created_ms = mob_wall_ms();
  pod->grace_s = k->config.grace_s >= 0 ? k->config.grace_s : id->template_->grace_s;
  make_uid(pod->uid);
  mob__lws_network_address(k->network, pod->address);
  pod->instance_count = id->template_->container_count;
  pod->init_count = id->template_->init_count;
  pod->instances = MOB_NEW_ARRAY(mob_lws_instance_t, pod->instance_count);
  for (size_t i = 0; i < pod->instance_count; i++) {
    mob__instance_init(&pod->instances[i], pod, i);
  }
  if (k->network->mode == MOB_LWS_LOOPBACK && pod->instance_count - pod->init_count > 1) {
    mob_fail(MOB_E_UNSUPPORTED,
             "the pod %s has several containers, which loopback mode cannot keep apart", id->name);
    goto fail;
  }
  if (mob__pod_build(pod) != MOB_OK || open_log(pod) != MOB_OK) goto fail;
  *mob_vec_push(&k->pods) = pod;
  mob__pod_event(pod, false, "Scheduled", "Successfully assigned %s/%s to this machine, address %s",
                 id->set->namespace_, id->name, pod->address);
  if (start_sandbox(pod) == MOB_OK) return pod;
  mob__pod_event(pod, true, "FailedCreatePodSandBox", "%s", mob_errmsg());
  k->on_broken(k->owner, mob_errmsg());
  return pod;
fail:
  mob__kubelet_free(pod);
  return NULL;
}

void mob__kubelet_free(mob_lws_pod_t *pod) {
  mob_lws_kubelet_t *k = pod->kubelet;
  for (size_t i = 0; i < k->pods.len; i++) {
    if (k->pods.at[i] == pod) {
      mob_vec_remove(&k->pods, i);
      break;
    }
  }
  for (size_t i = 0; i < pod->instance_count; i++) mob__instance_close(&pod->instances[i]);
  free(pod->instances);
  mob__timer_cancel(&pod->grace);
  if (pod->log >= 0) close(pod->log);
  mob_vec_free(&pod->labels);
  mob_vec_free(&pod->annotations);
  mob_arena_free(&pod->arena);
  free(pod);
}

static void end_sandbox(mob_lws_pod_t *pod) {
  if (!pod->sandbox) return;
  if (pod->kubelet->network->mode == MOB_LWS_LOOPBACK) {
    shutdown(pod->sock, SHUT_RDWR); // it kills what is below it and ends
  } else {
    mob__pidfd_kill(pod->sandbox_pidfd, SIGKILL);
  }
}

void mob__pod_maybe_ended(mob_lws_pod_t *pod) {
  if (!pod->deleting) return;
  for (size_t i = 0; i < pod->instance_count; i++) {
    if (pod->instances[i].state == MOB_LWS_RUNNING) return;
  }
  end_sandbox(pod);
}

static void on_grace_over(void *arg) {
  mob_lws_pod_t *pod = arg;
  for (size_t i = 0; i < pod->instance_count; i++) mob__instance_kill(&pod->instances[i]);
}

void mob__kubelet_delete(mob_lws_pod_t *pod, bool now) {
  mob_lws_kubelet_t *k = pod->kubelet;
  bool first = !pod->deleting;
  pod->deleting = true;
  if (first) {
    pod->delete_ms = mob_now_ms();
    mob__kubelet_changed(pod); // out of the endpoints before anything in it ends
  }
  if (now) {
    end_sandbox(pod);
    return;
  }
  if (!first) return;
  mob__timer_set(&pod->grace, k->loop, (uint64_t)pod->grace_s * 1000, on_grace_over, pod);
  for (size_t i = 0; i < pod->instance_count; i++) {
    mob_lws_instance_t *c = &pod->instances[i];
    mob__timer_cancel(&c->restart);
    if (c->state == MOB_LWS_RUNNING) mob__instance_stop(c, pod->grace_s, "pod deleted");
  }
  mob__pod_maybe_ended(pod);
}
