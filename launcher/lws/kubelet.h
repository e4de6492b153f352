// The kubelet's part: runs pods' containers, restarts them, probes them, ends them.
#ifndef MOB_LWS_KUBELET_H
#define MOB_LWS_KUBELET_H

#include "launcher/lws/cgroup.h"
#include "launcher/lws/pod.h"
#include "runtime/base/map.h"

typedef struct mob_lws_kubelet_config {
  const char *image_dir, *shell, *state_dir;
  mob_lws_pair_list_t claims; // claim -> host directory
  mob_lws_pair_list_t env;    // what the image's own ENV would add
  int64_t grace_s;            // overrides the pods' own; -1: does not
  double lws_delay_s;         // between a container's restart and LWS's hearing of it
  bool show_output;           // print containers' output with the pod's name in front
} mob_lws_kubelet_config_t;

struct mob_lws_kubelet {
  uv_loop_t *loop;
  mob_lws_kubelet_config_t config;
  const mob_lws_manifest_t *manifest;
  mob_lws_network_t *network;
  mob_lws_cgroup_t *cgroup; // NULL without CPU shares
  mob_lws_events_t *events;
  void *owner;
  void (*on_change)(void *owner, mob_lws_pod_t *pod); // its status may be another one
  void (*on_gone)(void *owner, mob_lws_pod_t *pod);   // no process is left; freed after this
  void (*on_broken)(void *owner, const char *why);    // this machine cannot run pods
  MOB_VEC(mob_lws_pod_t *) pods;
  unsigned next_link;
  uint32_t next_exec;
  mob_map_t quick; // pod name -> how often in a row it failed soon after its creation
};

// Starts the pod; NULL with a message when that is impossible.
mob_lws_pod_t *mob__kubelet_create(mob_lws_kubelet_t *kubelet, const mob_lws_pod_identity_t *id);
// Ends the pod with its grace period; `now` without any.
void mob__kubelet_delete(mob_lws_pod_t *pod, bool now);
// Frees a pod that is gone.
void mob__kubelet_free(mob_lws_pod_t *pod);

#endif
