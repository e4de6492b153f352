#include "launcher/lws/instance.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "launcher/lws/kubelet.h"
#include "launcher/lws/spawn.h"
#include "runtime/base/clock.h"

// A kubelet's order to end a container takes a round trip by way of the API server. A process that
// began in this moment would not get the SIGTERM: PID 1 of a namespace loses what it has no handler
// for yet.
#define TERM_AFTER_START_MS 300

static void start(void *arg);

static uv_loop_t *loop_of(mob_lws_instance_t *c) {
  return c->pod->kubelet->loop;
}

void mob__instance_init(mob_lws_instance_t *c, mob_lws_pod_t *pod, size_t index) {
  c->pod = pod;
  c->index = index;
  c->spec = &pod->id.template_->containers[index];
  c->init = index < pod->init_count;
  c->pidfd = c->output = c->status_pipe = -1;
  c->last_status = -1;
  c->reason =
      index < pod->init_count || pod->init_count == 0 ? "ContainerCreating" : "PodInitializing";
  for (int i = 0; i < MOB_LWS_PROBES; i++) {
    c->probers[i].instance = c;
    c->probers[i].kind = i;
  }
}

// Forgets the process and all that waits for it.
static void release(mob_lws_instance_t *c) {
  mob__probe_stop_all(c);
  mob__timer_cancel(&c->term);
  mob__timer_cancel(&c->kill);
  mob__timer_cancel(&c->pre_stop_wait);
  mob__net_check_cancel(&c->hook_check);
  mob__output_read(c, true);
  mob__watch_stop(&c->status_watch);
  if (c->status_pipe >= 0) close(c->status_pipe);
  if (c->pidfd >= 0) close(c->pidfd);
  c->status_pipe = c->pidfd = -1;
  c->pid = 0;
  c->pre_stop_id = c->post_start_id = 0;
  c->ready = c->startup_passed = c->starting = c->stopping = false;
}

void mob__instance_close(mob_lws_instance_t *c) {
  release(c);
  mob__timer_cancel(&c->restart);
  mob__timer_cancel(&c->seen);
  mob_buf_free(&c->line);
  mob_buf_free(&c->error);
}

void mob__pod_start_containers(mob_lws_pod_t *pod) {
  for (size_t i = 0; i < pod->init_count; i++) {
    mob_lws_instance_t *c = &pod->instances[i];
    if (c->done) continue;
    if (c->state != MOB_LWS_RUNNING && !c->starting && !c->restart) start(c);
    return;
  }
  for (size_t i = pod->init_count; i < pod->instance_count; i++) {
    mob_lws_instance_t *c = &pod->instances[i];
    if (c->state != MOB_LWS_RUNNING && !c->starting && !c->restart) start(c);
  }
}

// ---- the start

static void on_output(void *arg) {
  mob__output_read(arg, false);
}

static void on_term_time(void *arg);

static void on_hook_done(void *arg, bool ok, const char *why);

static void run_post_start(mob_lws_instance_t *c) {
  const mob_lws_handler_t *h = &c->spec->post_start;
  if (h->kind == MOB_LWS_HANDLER_EXEC) {
    c->post_start_id = mob__kubelet_exec(c, MOB_LWS_EXEC_POST_START);
  } else if (h->kind == MOB_LWS_HANDLER_HTTP || h->kind == MOB_LWS_HANDLER_TCP) {
    c->hook_check = mob__net_check(c, h, on_hook_done, c);
  }
}

// The program runs: its status pipe closed on exec.
static void running(mob_lws_instance_t *c) {
  c->starting = false;
  if (c->stopping) return; // killed while it was created: that closed the pipe
  c->started_ms = mob_now_ms();
  mob__pod_event(c->pod, false, "Started", "Started container %s, pid %d", c->spec->name,
                 (int)c->pid);
  run_post_start(c);
  if (!c->init) mob__probe_start_all(c);
  mob__kubelet_changed(c->pod);
}

static void on_status(void *arg) {
  mob_lws_instance_t *c = arg;
  char text[512];
  ssize_t n = read(c->status_pipe, text, sizeof text);
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n > 0) {
    mob_buf_append(&c->error, text, (size_t)n);
    return;
  }
  mob__watch_stop(&c->status_watch);
  close(c->status_pipe);
  c->status_pipe = -1;
  if (c->error.len == 0) {
    if (c->pid > 0)
      running(c); // else mob__instance_has_process() comes next and sees the closed pipe
    return;
  }
  mob__pod_event(c->pod, true, "Failed", "Error: container %s: %s", c->spec->name,
                 mob_buf_cstr(&c->error));
  mob__output_note(c, mob_buf_cstr(&c->error));
}

static void start(void *arg) {
  mob_lws_instance_t *c = arg;
  int output[2], status[2];
  if (pipe2(output, O_CLOEXEC) != 0) goto fail;
  if (pipe2(status, O_CLOEXEC) != 0) {
    close(output[0]);
    close(output[1]);
    goto fail;
  }
  fcntl(output[0], F_SETFL, O_NONBLOCK);
  fcntl(status[0], F_SETFL, O_NONBLOCK);
  if (c->starts++ > 0) c->restarts++;
  c->output = output[0];
  c->status_pipe = status[0];
  c->state = MOB_LWS_WAITING;
  c->reason = "ContainerCreating";
  c->starting = true;
  c->error.len = 0;
  mob__output_begin(c);
  mob__watch_start(&c->output_watch, loop_of(c), c->output, UV_READABLE, on_output, c);
  mob__watch_start(&c->status_watch, loop_of(c), c->status_pipe, UV_READABLE, on_status, c);
  mob__pod_command(c->pod, MOB_LWS_CMD_START, (uint32_t)c->index, 0, 0,
                   (int[]){output[1], status[1]}, 2);
  close(output[1]);
  close(status[1]);
  return;
fail:
  mob__pod_event(c->pod, true, "Failed", "Error: container %s: no pipe: %s", c->spec->name,
                 strerror(errno));
  mob__timer_set(&c->restart, loop_of(c), MOB_LWS_BACKOFF_FIRST_MS, start, c);
}

static void on_restart_seen(void *arg) {
  mob_lws_instance_t *c = arg;
  c->seen_restarts = c->restarts;
  mob__kubelet_changed(c->pod);
}

void mob__instance_has_process(mob_lws_instance_t *c, int pidfd) {
  c->state = MOB_LWS_RUNNING;
  c->reason = NULL;
  c->pidfd = pidfd;
  c->pid = mob__pidfd_pid(pidfd);
  c->started_ms = mob_now_ms();
  if (c->pod->deleting && !c->stopping) mob__instance_stop(c, c->pod->grace_s, "pod deleted");
  mob__pod_event(c->pod, false, "Created", "Created container %s%s", c->spec->name,
                 c->restarts ? " again" : "");
  if (c->starting && c->status_pipe < 0 && c->error.len == 0) running(c);
  if (c->restarts > c->seen_restarts) {
    // The restart counts from here on: the container exists, though its program may not run yet.
    uint64_t delay = mob__kubelet_lws_delay(c->pod);
    if (delay) {
      mob__timer_set(&c->seen, loop_of(c), delay, on_restart_seen, c);
    } else {
      on_restart_seen(c);
    }
  }
}

// ---- the end

static void describe_end(int status, char *out, size_t size) {
  if (WIFSIGNALED(status)) {
    snprintf(out, size, "exit code %d (signal %d, %s)", 128 + WTERMSIG(status), WTERMSIG(status),
             strsignal(WTERMSIG(status)));
  } else {
    snprintf(out, size, "exit code %d", WEXITSTATUS(status));
  }
}

static void schedule_restart(mob_lws_instance_t *c, uint64_t ran_ms) {
  uint64_t delay = mob__lws_backoff_next(&c->backoff, ran_ms);
  if (delay == 0) {
    start(c);
    return;
  }
  c->state = MOB_LWS_WAITING;
  c->reason = c->init ? "Init:CrashLoopBackOff" : "CrashLoopBackOff";
  mob__pod_event(c->pod, true, "BackOff", "Back-off restarting failed container %s, %llu s",
                 c->spec->name, (unsigned long long)delay / 1000);
  mob__timer_set(&c->restart, loop_of(c), delay, start, c);
}

void mob__instance_exited(mob_lws_instance_t *c, int status) {
  char end[100];
  while (c->status_pipe >= 0 && c->status_watch) {
    size_t before = c->error.len;
    on_status(c); // what it wrote before its end
    if (c->status_pipe >= 0 && c->error.len == before) break;
  }
  uint64_t ran = c->started_ms ? mob_now_ms() - c->started_ms : 0;
  release(c);
  c->last_status = status;
  c->state = MOB_LWS_TERMINATED;
  bool success = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  c->reason = success ? "Completed" : "Error";
  describe_end(status, end, sizeof end);
  mob__pod_event(c->pod, !success && !c->pod->deleting, "Exited",
                 "Container %s ended after %.1f s: %s", c->spec->name, (double)ran / 1000, end);
  if (c->pod->deleting) {
    mob__pod_maybe_ended(c->pod);
    return;
  }
  if (c->init && success) {
    c->done = true;
    mob__pod_start_containers(c->pod);
  } else {
    schedule_restart(c, ran);
  }
  mob__kubelet_changed(c->pod);
}

void mob__instance_lost(mob_lws_instance_t *c) {
  release(c);
  mob__timer_cancel(&c->restart);
  if (c->state == MOB_LWS_RUNNING) c->last_status = SIGKILL;
  c->state = MOB_LWS_TERMINATED;
  c->reason = "Error";
  c->done = false;
}

void mob__instance_kill(mob_lws_instance_t *c) {
  if (c->pidfd >= 0) mob__pidfd_kill(c->pidfd, SIGKILL);
}

static void on_kill_time(void *arg) {
  mob__instance_kill(arg);
}

static void on_term_time(void *arg) {
  mob_lws_instance_t *c = arg;
  if (c->starting || c->pidfd < 0) return;
  uint64_t age = mob_now_ms() - c->started_ms;
  if (age < TERM_AFTER_START_MS) {
    mob__timer_set(&c->term, loop_of(c), TERM_AFTER_START_MS - age, on_term_time, c);
    return;
  }
  mob__pidfd_kill(c->pidfd, SIGTERM);
}

static void on_hook_done(void *arg, bool ok, const char *why) {
  mob_lws_instance_t *c = arg;
  c->hook_check = NULL;
  if (!ok) {
    mob__pod_event(c->pod, true, c->stopping ? "FailedPreStopHook" : "FailedPostStartHook", "%s",
                   why);
  }
  if (c->stopping) {
    on_term_time(c);
  } else if (!ok) {
    mob__instance_stop(c, c->pod->grace_s, "FailedPostStartHook");
  }
}

void mob__instance_stop(mob_lws_instance_t *c, int64_t grace_s, const char *why) {
  if (c->stopping) return;
  c->stopping = true;
  c->ready = false;
  mob__probe_stop_all(c);
  mob__pod_event(c->pod, false, "Killing", "Stopping container %s (%s)", c->spec->name, why);
  if (!c->pod->deleting) { // else the pod's own period runs already
    mob__timer_set(&c->kill, loop_of(c), (uint64_t)grace_s * 1000, on_kill_time, c);
  }
  if (c->pidfd < 0) return;
  if (c->starting) { // created, but nothing of the user's runs in it: no one to ask
    mob__instance_kill(c);
    return;
  }
  const mob_lws_handler_t *h = &c->spec->pre_stop;
  switch (h->kind) {
  case MOB_LWS_HANDLER_NONE:
    on_term_time(c);
    break;
  case MOB_LWS_HANDLER_EXEC:
    c->pre_stop_id = mob__kubelet_exec(c, MOB_LWS_EXEC_PRE_STOP);
    break;
  case MOB_LWS_HANDLER_SLEEP:
    mob__timer_set(&c->pre_stop_wait, loop_of(c), (uint64_t)h->sleep_s * 1000, on_term_time, c);
    break;
  case MOB_LWS_HANDLER_HTTP:
  case MOB_LWS_HANDLER_TCP:
    mob__net_check_cancel(&c->hook_check);
    c->hook_check = mob__net_check(c, h, on_hook_done, c);
    break;
  }
}

void mob__instance_exec_done(mob_lws_instance_t *c, uint32_t id, int status) {
  bool ok = WIFEXITED(status) && WEXITSTATUS(status) == 0;
  if (id == c->pre_stop_id || id == c->post_start_id) {
    char end[100];
    describe_end(status, end, sizeof end);
    if (id == c->pre_stop_id) c->pre_stop_id = 0;
    if (id == c->post_start_id) c->post_start_id = 0;
    on_hook_done(c, ok, end);
  } else {
    mob__probe_exec_done(c, id, status);
  }
}

uint32_t mob__kubelet_exec(mob_lws_instance_t *c, uint32_t handler) {
  mob_lws_kubelet_t *k = c->pod->kubelet;
  if (++k->next_exec == 0) k->next_exec = 1;
  mob__pod_command(c->pod, MOB_LWS_CMD_EXEC, (uint32_t)c->index, handler, k->next_exec, NULL, 0);
  return k->next_exec;
}

void mob__kubelet_cancel_exec(mob_lws_instance_t *c, uint32_t id) {
  mob__pod_command(c->pod, MOB_LWS_CMD_CANCEL, (uint32_t)c->index, 0, id, NULL, 0);
}
