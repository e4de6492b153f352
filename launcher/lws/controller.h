// The LeaderWorkerSet controller together with the StatefulSet controller and the garbage
// collector, as far as they decide which pods exist. It knows pods only through the functions its
// owner gives it.
//
// One group: a leader pod made by the leader StatefulSet; a worker StatefulSet named like the
// leader and owned by it; that one's pods. (Source of the rules: kubernetes-sigs/lws
// pkg/controllers.)
#ifndef MOB_LWS_CONTROLLER_H
#define MOB_LWS_CONTROLLER_H

#include "launcher/lws/pod.h"

// A place for a pod: the name stays, pods come and go.
typedef struct mob_lws_slot {
  void *pod;      // of the owner; NULL while there is none
  int64_t worker; // 0: leader
  bool deleting;
} mob_lws_slot_t;

typedef struct mob_lws_group {
  int64_t index;
  mob_lws_slot_t leader;
  bool foreground;         // the leader object waits for its workers before it goes
  bool leader_ended;       // its pod is gone, its object waits
  bool sts, sts_ending;    // the worker StatefulSet exists; is being deleted
  mob_lws_slot_t *workers; // size - 1
  unsigned generation;     // leaders so far
} mob_lws_group_t;

typedef struct mob_lws_controlled_set {
  const mob_lws_set_t *set;
  int64_t replicas;
  MOB_VEC(mob_lws_group_t *) groups; // in order of index, groups that still end included
  bool was_available;
} mob_lws_controlled_set_t;

typedef struct mob_lws_pod_state {
  bool ready, pending;
  unsigned restarts;
} mob_lws_pod_state_t;

typedef struct mob_lws_controller_ops {
  void *(*create)(void *owner,
                  const mob_lws_pod_identity_t *id); // NULL: impossible, the owner ends
  void (*delete_)(void *owner, void *pod);
  mob_lws_pod_state_t (*state)(void *owner, void *pod);
  void (*event)(void *owner, bool warning, const char *object, const char *reason,
                const char *text);
} mob_lws_controller_ops_t;

typedef struct mob_lws_controller {
  mob_lws_controller_ops_t ops;
  void *owner;
  MOB_VEC(mob_lws_controlled_set_t *) sets;
  bool ending; // every pod is to go, nothing new comes
  bool busy, again;
} mob_lws_controller_t;

void mob__controller_add(mob_lws_controller_t *c, const mob_lws_set_t *set, int64_t replicas);
void mob__controller_free(mob_lws_controller_t *c);

// Compares what is with what should be, and acts. Called after every change; calls from inside the
// functions of `ops` are remembered and done by the outermost one.
void mob__controller_reconcile(mob_lws_controller_t *c);
void mob__controller_pod_gone(mob_lws_controller_t *c, void *pod);
// Somebody deletes a pod by hand.
void mob__controller_delete_pod(mob_lws_controller_t *c, void *pod);
void mob__controller_scale(mob_lws_controller_t *c, mob_lws_controlled_set_t *set,
                           int64_t replicas);
void mob__controller_end(mob_lws_controller_t *c); // deletes everything at once
bool mob__controller_empty(const mob_lws_controller_t *c);
mob_lws_controlled_set_t *mob__controller_find(const mob_lws_controller_t *c, const char *name);
bool mob__group_ready(const mob_lws_controller_t *c, const mob_lws_controlled_set_t *set,
                      const mob_lws_group_t *g);
int64_t mob__ready_groups(const mob_lws_controller_t *c, const mob_lws_controlled_set_t *set);

#endif
