// One `mobula lws up`: everything it holds.
#ifndef MOB_LWS_RUNNER_H
#define MOB_LWS_RUNNER_H

#include "launcher/lws/controller.h"
#include "launcher/lws/kubelet.h"
#include "launcher/lws/service.h"

typedef struct mob_lws_client mob_lws_client_t;

typedef struct mob_lws_runner {
  uv_loop_t loop;
  const char *name, *state_dir;
  mob_lws_manifest_t *manifest;
  mob_lws_network_t network;
  mob_lws_events_t events;
  mob_lws_kubelet_t kubelet;
  mob_lws_controller_t controller;
  mob_lws_services_t services;
  mob_lws_cgroup_t cgroup;
  bool has_cgroup;
  int control; // listening socket
  mob_lws_watch_t *control_watch, *signal_watch;
  int signal_fd;
  mob_lws_client_t *clients;
  bool ending, finished;
  int exit_code;
  mob_lws_timer_t *finish;
} mob_lws_runner_t;

bool mob__runner_all_ready(const mob_lws_runner_t *runner);
void mob__runner_end(mob_lws_runner_t *runner, bool now); // delete everything; `now` without grace
mob_lws_pod_t *mob__runner_find_pod(mob_lws_runner_t *runner,
                                    const char *name);               // or without the set's name
json_t *mob__runner_status(mob_lws_runner_t *runner, size_t events); // a new reference

// control.c
mob_status mob__control_listen(const char *state_dir, int *fd);
void mob__control_start(mob_lws_runner_t *runner);
void mob__control_changed(mob_lws_runner_t *runner); // answers those who wait for readiness
void mob__control_close(mob_lws_runner_t *runner);

// fault.c: `reply` gets the answer, now or later; `arg` of it.
typedef void (*mob_lws_fault_reply)(void *arg, mob_status status, const char *text);
void mob__fault_apply(mob_lws_runner_t *runner, const json_t *request, mob_lws_fault_reply reply,
                      void *arg);

#endif
