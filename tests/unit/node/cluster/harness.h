// Two node daemons on loopback addresses, each a process of this program, and this process as the
// driver with its actors. What is not as it must be fails the test.
#ifndef MOB_TEST_NODE_CLUSTER_HARNESS_H
#define MOB_TEST_NODE_CLUSTER_HARNESS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>
#include <uv.h>

#include "runtime/actor/actor.h"

#define LIBRARY MOB_BINARY_DIR "/tests/actor_echo.so" // of classes/echo.c
#define DEADLINE_MS 20000

typedef struct daemon {
  pid_t pid;
  char address[64], node_id[64];
} daemon_t;

// One world a program.
typedef struct world {
  uv_loop_t loop;
  daemon_t head, worker;
  mob_cluster_t *cluster;
  bool lost;
  int nodes_dead, nodes_alive;
} world_t;

extern world_t world;
extern char temp_dir[64];
extern const mob_actor_events_t actor_events; // their owner is an actor_state_t

// How something ended.
typedef struct outcome {
  int done; // times that it was told
  mob_status status;
  char text[512]; // the reason, or the result
  size_t len;
  uint64_t at_ns;
} outcome_t;

typedef struct actor_state {
  mob_actor_t *actor;
  int alive, dead;
  bool restarting;
  char why[512];
  uint64_t alive_ns, dead_ns;
} actor_state_t;

// `head`: address of the head, NULL to be it; `extra`: one more argument. Returns when it is ready.
void start_daemon(daemon_t *daemon, const char *ip, const char *head, const char *extra);
int end_daemon(daemon_t *daemon, int sig); // its status; 0 where none runs

// Runs the loop until *counter is `wanted`; false after the deadline.
bool run_until(const int *counter, int wanted, uint64_t timeout_ms);
void on_done(void *arg, mob_status status, const char *why); // `arg`: an outcome_t
void on_result(void *arg, mob_status status, const char *why, mob_bytes_t result);

void connect_driver(void);
void close_driver(void);

mob_actor_options_t options_for(const char *class_name); // of LIBRARY
void create(actor_state_t *state, const mob_actor_options_t *options);
void create_alive(actor_state_t *state, const mob_actor_options_t *options); // and waits for it
outcome_t call(actor_state_t *state, const char *method, const char *args);
outcome_t call_timed(actor_state_t *state, const char *method, const char *args,
                     uint64_t timeout_ms);
void kill_actor(actor_state_t *state);

#endif
