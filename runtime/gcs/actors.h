// The actors' own shared parts: the table and service (actors.c), finding a node and creating the
// actor there (actor_create.c), and how actors end or start again (actor_death.c).
#ifndef MOB_GCS_ACTORS_H
#define MOB_GCS_ACTORS_H

#include "ray/core_worker.pb-c.h"
#include "runtime/gcs/internal.h"

// Where the GCS stands with an actor, finer than the state that the world sees (data->state).
typedef enum mob__actor_phase {
  MOB__ACTOR_REGISTERED, // DEPENDENCIES_UNREADY
  MOB__ACTOR_QUEUED,     // waits for a node
  MOB__ACTOR_LEASING,    // a node was asked for a worker
  MOB__ACTOR_CREATING,   // the worker runs the constructor
  MOB__ACTOR_RUNNING,
  MOB__ACTOR_DEAD,
} mob__actor_phase_t;

typedef struct mob__actor {
  mob_gcs_t *gcs;
  uint8_t id[MOB_ACTOR_ID_SIZE];
  char hex[2 * MOB_ACTOR_ID_SIZE + 1];
  Ray__Rpc__ActorTableData *data;
  Ray__Rpc__TaskSpec *spec;        // NULL once dead
  mob_resources_t held, placed_by; // what it takes while it runs; what decides about its node
  mob__actor_phase_t phase;
  uint64_t epoch; // of the current attempt: answers to an earlier one are stale
  uint8_t lease_id[MOB_LEASE_ID_SIZE];
  uint8_t node_id[MOB_NODE_ID_SIZE]; // from LEASING on
  mob_rpc_client_t *worker;          // while CREATING
  Ray__Rpc__Address *worker_address; // from CREATING on
  bool restored;    // of a former GCS's time: waits until no node is expected back any more
  bool worker_gone; // its process is known to have ended
  bool kill_gently; // when it dies: let its process end in order
  uint64_t not_before;
  // Its creation failed, but why is better known to its node, which is about to report the worker's
  // end: until when to wait for that report; 0: it did not fail.
  uint64_t lost_at;
  char *lost_why;
  bool constructor_failed;           // else the worker could not be reached
  char *reason;                      // why it waits; owned
  MOB_VEC(mob_rpc_call_t *) waiters; // CreateActor
  struct mob__owner_watch *owner;
} mob__actor_t;

struct mob__actors {
  mob_gcs_t *gcs;
  mob_map_t all;     // actor id -> mob__actor_t
  mob_map_t named;   // "namespace\0name" -> mob__actor_t, the living
  mob_map_t workers; // worker id -> mob__actor_t
  size_t dead;
};

mob__actor_t *mob__actor_find(mob_gcs_t *gcs, const void *id, size_t len);
void mob__actor_publish(mob__actor_t *actor); // and stores
void mob__actor_answer(mob__actor_t *actor, int code, const char *text,
                       const Ray__Rpc__PushTaskReply *created); // those who wait for its creation

void mob__actor_retire(mob__actor_t *actor); // it has become DEAD

// actor_create.c
void mob__actor_queue(mob__actor_t *actor, uint64_t delay_ms);
void mob__actor_drop_worker(
    mob__actor_t *actor); // forgets worker and node, without telling anybody
void mob__actor_read_demand(mob__actor_t *actor);

// actor_death.c. `cause` is copied. The actor may be freed by these.
void mob__actor_die(mob__actor_t *actor, const Ray__Rpc__ActorDeathCause *cause);
void mob__actor_lost(mob__actor_t *actor, const Ray__Rpc__ActorDeathCause *cause, bool may_restart);
// A cause of the form "actor died": fills both structures, which must outlive the use of `cause`.
void mob__actor_died(mob__actor_t *actor, Ray__Rpc__ActorDeathCause *cause,
                     Ray__Rpc__ActorDiedErrorContext *context,
                     Ray__Rpc__ActorDiedErrorContext__Reason reason, const char *text);
void mob__actor_die_unschedulable(mob__actor_t *actor, const char *text);
void mob__actor_kill_process(mob__actor_t *actor, bool force, Ray__Rpc__ActorDeathCause *cause);

// actor_owner.c: owners that serve CoreWorkerService (Ray's own workers) say when an actor is not
// needed any more, or fail to.
void mob__actor_watch_owner(mob__actor_t *actor);
void mob__actor_forget_owner(mob__actor_t *actor);
void mob__actor_owner_died(mob_gcs_t *gcs, const void *worker_id, size_t len, const char *text);

#endif
