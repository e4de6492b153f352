// One stage at work: the model's part, its executor, its links to the neighbours, and the
// conversation with the gateway (proto/mobula/stage.proto). It knows nothing of how messages
// travel: the actor class (actor.c) and the in-process transport (local.c) both wrap it.
//
// Everything here runs on the loop's thread. What blocks (opening, joining, loading, closing) runs
// on a thread of the runner, one such job at a time; steps run on the executor's threads.
#ifndef MOB_STAGE_RUNNER_H
#define MOB_STAGE_RUNNER_H

#include <uv.h>

#include "engine/backend.h"
#include "engine/stage/wire.h"
#include "runtime/actor/actor.h"

enum {
  MOB__BEAT_MS = 500,
  MOB__SILENCE_CHECK_MS = 250,
  MOB__SILENCE_CHECKS = 17, // lost after 4.0 to 4.25 s without a message
};

typedef struct mob__runner mob__runner_t;

typedef struct mob__runner_spec {
  const char *ip;     // neighbours reach this node at
  const int *devices; // [device_count] leased GPUs, by their place in the node's list
  size_t device_count;
  const mob_backend_t *backend; // NULL: by the configuration's device
} mob__runner_spec_t;

typedef struct mob__runner_events {
  void (*on_send)(void *owner, mob_bytes_t message); // a StageUp for the gateway
  // The gateway asked for the end, or has not been heard of for too long. Everything runs on until
  // mob__runner_close().
  void (*on_end)(void *owner, bool lost, const char *why);
} mob__runner_events_t;

// Checks the configuration; MOB_E_INVALID names what is wrong. Nothing runs yet. `config` is
// copied.
mob_status mob__runner_new(uv_loop_t *loop, const mob__runner_spec_t *spec, mob_bytes_t config,
                           const mob__runner_events_t *events, void *owner, mob__runner_t **out);
// The gateway listens: opens the model, beats, and takes messages.
void mob__runner_start(mob__runner_t *runner);
void mob__runner_message(mob__runner_t *runner, mob_bytes_t message);
// From now on silent; aborts what runs at once, then releases everything and frees the runner.
// `done` runs once. `done` may take as long as a hung executor: a process that wants to end does
// not wait for it.
void mob__runner_close(mob__runner_t *runner, void (*done)(void *arg), void *arg);

#endif
