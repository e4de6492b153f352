// How the gateway reaches its stages: processes of a cluster (cluster.c) or threads of its own
// process (local.c). Both carry the same messages between the engine and mob__runner_t.
#ifndef MOB_STAGE_TRANSPORT_H
#define MOB_STAGE_TRANSPORT_H

#include <uv.h>

#include "engine/backend.h"
#include "runtime/actor/actor.h"

typedef struct mob__transport mob__transport_t;

typedef struct mob__transport_events {
  void (*on_phase)(void *owner, const char *phase);                // "placing", "starting actors"
  void (*on_message)(void *owner, int stage, mob_bytes_t message); // a StageUp
  // `stage` -1: no stage in particular. `cause` as in mob_engine_events_t.on_lost. May come more
  // than once.
  void (*on_lost)(void *owner, int stage, const char *cause, const char *why);
} mob__transport_events_t;

typedef struct mob__transport_spec {
  const char *cluster; // GCS address
  int stages, ranks;            // processes, GPUs of each
  bool gpus;                    // they hold {GPU: ranks}
  const mob_bytes_t *configs;   // [stages] packed StageConfig; copied
  uint64_t timeout_ms;          // until all stages exist
  const mob_backend_t *backend; // local only: instead of the configuration's device
} mob__transport_spec_t;

typedef struct mob__transport_ops {
  const char *name;
  mob_status (*start)(uv_loop_t *loop, const mob__transport_spec_t *spec,
                      const mob__transport_events_t *events, void *owner, mob__transport_t **out);
  void (*send)(mob__transport_t *transport, int stage, mob_bytes_t message); // copies
  // Where the stage runs, as far as the transport knows; empty and 0 before.
  void (*describe)(const mob__transport_t *transport, int stage, char ip[64], int *pid);
  // Ends the stages and frees the transport; no event follows, only `done`.
  void (*stop)(mob__transport_t *transport, void (*done)(void *arg), void *arg);
} mob__transport_ops_t;

extern const mob__transport_ops_t mob__transport_local;
extern const mob__transport_ops_t mob__transport_cluster;

// For tests: what befalls a process, for a stage that is a thread.
typedef enum mob__fault { MOB__FAULT_DIE, MOB__FAULT_FREEZE } mob__fault_t;
void mob__transport_local_fault(mob__transport_t *transport, int stage, mob__fault_t fault);

#endif
