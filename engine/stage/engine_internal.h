// What the driver's files share: engine.c (life), generate.c (sequences and steps), watch.c (who is
// alive), split.c (layers to stages).
#ifndef MOB_STAGE_ENGINE_INTERNAL_H
#define MOB_STAGE_ENGINE_INTERNAL_H

#include "engine/sched/sched.h"
#include "engine/stage/engine.h"
#include "engine/stage/transport.h"
#include "engine/stage/wire.h"
#include "runtime/base/vec.h"

enum { MOB__RECENT_STEPS = 1000, MOB__SIZE_CLASSES = 24 };

typedef enum mob__engine_state {
  MOB__ENGINE_STARTING,
  MOB__ENGINE_OPENED,     // every stage has its part of the model's description; Connect is out
  MOB__ENGINE_ALLOCATING, // every stage has loaded; Allocate is out
  MOB__ENGINE_READY,
  MOB__ENGINE_LOST,
  MOB__ENGINE_STOPPED,
} mob__engine_state_t;

typedef struct mob__stage { // a process of a stage
  bool opened, loaded, ready;
  char ip[64]; // where its neighbour reaches it
  int port, pid;
  int first_layer, last_layer;
  int64_t pages;
  double load_seconds;
  uint64_t loaded_bytes;
  uint64_t heard_ms; // when it was last heard of; 0: never
  int silent_checks;
  uint64_t last_step, last_ack_ns;
} mob__stage_t;

typedef struct mob__group_id { // by which the parts of a stage meet
  uint8_t bytes[MOB_GROUP_ID];
} mob__group_id_t;

// A step that at least one stage has not finished.
typedef struct mob__sent_step {
  uint64_t id;
  uint32_t tokens;
  uint64_t sent_ns;
  uint64_t *acked_ns; // [actors], 0: not yet
} mob__sent_step_t;

struct mob_gen {
  mob_engine_t *engine;
  mob_sched_seq_t *seq; // NULL once it has ended
  mob_gen_events_t events;
  void *owner;
  uint32_t cached_tokens;
  bool ended;   // its last event is being delivered
  size_t index; // in engine->gens
};

struct mob_engine {
  uv_loop_t *loop;
  mob_engine_config_t config; // pointers in it are valid during start only, except `model`
  mob_engine_events_t events;
  void *owner;
  mob__engine_state_t state;
  const mob__transport_ops_t *transport;
  mob__transport_t *link;
  uint8_t group[16];
  uint64_t epoch;
  int parts, actors;    // processes of a stage, of all
  mob__stage_t *stages; // [actors]: the parts of stage 0, that with rank 0 first, those of stage 1, ...
  mob__group_id_t *group_ids; // [pp]
  uint64_t total_bytes;
  uint64_t start_ms;

  uv_timer_t beat, watch, peer_grace;
  uv_idle_t pump_idle;
  uv_check_t pump_check;
  int handles;         // open ones
  char peer_lost[512]; // what a stage said about its neighbour, until the neighbour's own fate is
                       // known
  int peer_lost_stage; // who said it: an actor

  mob_sched_t *sched;
  mob__tables_t tables;
  MOB_VEC(mob__sent_step_t) sent; // oldest first
  MOB_VEC(mob_gen_t *) gens;
  MOB_VEC(mob_sched_event_t) delivering;
  mob_buf_t out;
  uint64_t seed_state;
  uint64_t warn_preemptions;           // at this count
  uint32_t step_us[MOB__RECENT_STEPS]; // ring
  uint64_t steps_timed;
  uint64_t slow_ns[MOB__SIZE_CLASSES]; // slowest recent step of 2^i rows, any stage

  void (*stopped)(void *arg);
  void *stopped_arg;
};

// engine.c
void mob__engine_send(mob_engine_t *e, int stage, const Mobula__StageDown *message);
// Ends everything, once; later causes are dropped. `stage`: of the actors; -1: none in particular.
void mob__engine_lose(mob_engine_t *e, int stage, const char *cause, const char *why);

// generate.c
void mob__engine_pump(mob_engine_t *e); // sends every step that can be planned
void mob__engine_result(mob_engine_t *e, int stage, const Mobula__StepResult *message);
void mob__engine_end_all(mob_engine_t *e, mob_finish_t finish, const char *why);

// watch.c
void mob__watch_sent(mob_engine_t *e, const mob_step_t *step);
void mob__watch_acked(mob_engine_t *e, int stage, uint64_t step);
// Nanoseconds that `stage` has been at its oldest unfinished step, 0 when it has none or waits for
// another stage. *limit_ns: from when it counts as hung.
uint64_t mob__watch_step_age(const mob_engine_t *e, int stage, uint64_t now_ns, uint64_t *limit_ns);
void mob__watch_check(mob_engine_t *e); // every MOB__SILENCE_CHECK_MS

// split.c
// Layers [out[i], out[i + 1]) for stage i; `out` has pp + 1 places. MOB_E_INVALID when it cannot
// be.
mob_status mob__split_layers(const mob_model_t *model, int pp, const int *counts, int *out);
// The same from the bytes of each layer: the largest stage is as small as possible.
void mob__split_balanced(const uint64_t *bytes, int layers, int pp, int *out);

// For tests: another transport, or another backend under the local one.
mob_status mob__engine_start_on(uv_loop_t *loop, const mob_engine_config_t *config,
                                const mob_engine_events_t *events, void *owner,
                                const mob__transport_ops_t *transport, const mob_backend_t *backend,
                                mob_engine_t **out);

#endif
