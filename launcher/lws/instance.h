// The life of one container, between the kubelet's files.
#ifndef MOB_LWS_INSTANCE_H
#define MOB_LWS_INSTANCE_H

#include "launcher/lws/pod.h"

// kubelet.c
void mob__pod_event(mob_lws_pod_t *pod, bool warning, const char *reason, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void mob__pod_command(mob_lws_pod_t *pod, uint32_t op, uint32_t container, uint32_t handler,
                      uint32_t id, const int *fds, size_t fd_count);
// Milliseconds until LWS hears of the restart that just happened.
uint64_t mob__kubelet_lws_delay(mob_lws_pod_t *pod);
void mob__pod_maybe_ended(mob_lws_pod_t *pod); // a pod that is deleted ends with its last container

// instance.c
void mob__instance_init(mob_lws_instance_t *c, mob_lws_pod_t *pod, size_t index);
void mob__instance_close(mob_lws_instance_t *c); // timers, pipes, probes; leaves no callback behind
void mob__pod_start_containers(mob_lws_pod_t *pod); // the next init container, or all others
void mob__instance_has_process(mob_lws_instance_t *c, int pidfd);
void mob__instance_exited(mob_lws_instance_t *c, int status);
void mob__instance_lost(mob_lws_instance_t *c); // with its sandbox
void mob__instance_exec_done(mob_lws_instance_t *c, uint32_t id, int status);
void mob__instance_kill(mob_lws_instance_t *c); // SIGKILL

// output.c
void mob__output_begin(mob_lws_instance_t *c); // the marker line of a new start
void mob__output_read(mob_lws_instance_t *c, bool to_the_end);
// A line of the runner's own in the container's log.
void mob__output_note(mob_lws_instance_t *c, const char *text);

#endif
