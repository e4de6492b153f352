// The GCS under arbitrary calls, answers of nodes and workers, streams that come and go, time that
// passes, and restarts over what it has stored and what somebody else has: no order of them may
// touch freed memory, leave a call without an answer or keep the GCS from closing.
#include <stdlib.h>
#include <string.h>

#include "runtime/base/log.h"
#include "runtime/gcs/internal.h"
#include "tests/fuzz/gcs_calls.h"
#include "tests/fuzz/message_maker.h"
#include "tests/fuzz/rpc_double.h"
#include "tests/unit/gcs/kept_store.h"

// In place of the clock (the linker's --wrap): it moves when the input says so.
static uint64_t now_ms;
uint64_t __wrap_mob_now_ms(void);
uint64_t __wrap_mob_now_ms(void) {
  return now_ms;
}

enum { MAX_STEPS = 64 };

typedef struct world {
  uv_loop_t loop;
  mob_rpc_t *rpc;
  kept_rows_t *rows;
  bool late; // the store
  mob_gcs_t *gcs;
  bool closed;
} world_t;

// ------------------------------------------------------------------------------------ a GCS's life

static void begin(world_t *w) {
  mob_gcs_config_t config = {
      .session_name = "s", .session_dir = "/nowhere", .python_version = "3.11.7"};
  config.store = kept_store(w->rows, w->late);
  int port;
  w->closed = false;
  MOB_ASSERT(mob_gcs_start(w->rpc, &config, &w->gcs, &port) == MOB_OK);
}

static void turn(world_t *w) {
  rpc_double_turn(w->rpc);
  uv_run(&w->loop, UV_RUN_NOWAIT);
}

static void on_closed(void *arg) {
  ((world_t *)arg)->closed = true;
}

// Peers that are still asked answer late, or not at all: then their time is up.
static void end(world_t *w) {
  mob_gcs_close(w->gcs, on_closed, w);
  for (int i = 0; !w->closed; i++) {
    MOB_ASSERT(i < 1000); // a call has no answer
    turn(w);
    kept_rows_acknowledge(w->rows);
    if (i > 10) rpc_double_answer(w->rpc, 0, GRPC_STATUS_UNAVAILABLE, NULL);
  }
  turn(w);
}

// ------------------------------------------------------------------------------------------- steps

static void call(world_t *w, source_t *in) {
  size_t method = take_byte(in) % rpc_double_methods(w->rpc);
  rpc_double_call(w->rpc, method, make_message(rpc_double_request(w->rpc, method), in));
}

static void answer(world_t *w, source_t *in) {
  size_t which = take_byte(in);
  const ProtobufCMessageDescriptor *type = rpc_double_wanted(w->rpc, which);
  if (!type) return;
  if (take_byte(in) % 4 == 0) {
    rpc_double_answer(w->rpc, which, GRPC_STATUS_UNAVAILABLE, NULL);
    return;
  }
  void *reply = take_byte(in) % 2 ? gcs_good_reply(type, in) : NULL;
  if (!reply) reply = make_message(type, in);
  rpc_double_answer(w->rpc, which, GRPC_STATUS_OK, reply);
  mob_pb_free(reply);
}

// A row of a former GCS, perhaps Ray's.
static void store_row(world_t *w, source_t *in) {
  static const struct {
    mob_table_t table;
    const ProtobufCMessageDescriptor *type;
    size_t key;
  } kinds[] = {{MOB_TABLE_NODE, &ray__rpc__gcs_node_info__descriptor, MOB_NODE_ID_SIZE},
               {MOB_TABLE_JOB, &ray__rpc__job_table_data__descriptor, MOB_JOB_ID_SIZE},
               {MOB_TABLE_ACTOR, &ray__rpc__actor_table_data__descriptor, MOB_ACTOR_ID_SIZE},
               {MOB_TABLE_ACTOR_TASK_SPEC, &ray__rpc__task_spec__descriptor, MOB_ACTOR_ID_SIZE},
               {MOB_TABLE_PLACEMENT_GROUP, &ray__rpc__placement_group_table_data__descriptor,
                MOB_PG_ID_SIZE},
               {MOB_TABLE_WORKERS, &ray__rpc__worker_table_data__descriptor, MOB_WORKER_ID_SIZE},
               {MOB_TABLE_META, &ray__rpc__job_table_data__descriptor, 3}};
  uint8_t kind = take_byte(in) % MOB_LEN(kinds), k = take_byte(in);
  char key[MOB_NODE_ID_SIZE];
  memset(key, 1 + k % 4, sizeof key);
  void *message = make_message(kinds[kind].type, in);
  size_t len;
  void *value = mob_pb_pack(message, &len);
  kept_rows_put(w->rows, kinds[kind].table, key, k < 250 ? kinds[kind].key : 1, value, len);
  free(value);
  mob_pb_free(message);
}

static void step(world_t *w, source_t *in) {
  switch (take_byte(in) % 20) {
  case 0:
    now_ms += (uint64_t)take_byte(in) * 250;
    mob__gcs_tick(w->gcs);
    break;
  case 1:
    gcs_open(w->rpc, in);
    break;
  case 2:
    gcs_say(w->rpc, in);
    break;
  case 3:
    rpc_double_end(w->rpc, take_byte(in));
    break;
  case 4:
    rpc_double_give_up(w->rpc, take_byte(in));
    break;
  case 5:
    kept_rows_acknowledge(w->rows);
    break;
  case 6:
    end(w);
    begin(w);
    break;
  case 7:
    store_row(w, in);
    break;
  case 8:
  case 9:
  case 10:
    answer(w, in);
    break;
  case 11:
  case 12:
  case 13:
  case 14:
    gcs_call(w->rpc, in);
    break;
  default:
    call(w, in);
  }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  mob_log_set_level(MOB_LOG_ERROR + 1); // nothing: rows that are left out are many
  source_t in = {data, data + size};
  now_ms = 1000;
  world_t w = {0};
  uv_loop_init(&w.loop);
  w.rpc = rpc_double_new(&w.loop);
  w.rows = kept_rows_new();
  w.late = take_byte(&in) & 1;
  begin(&w);
  for (int i = 0; i < MAX_STEPS && in.at < in.end; i++) {
    step(&w, &in);
    turn(&w);
  }
  end(&w);
  rpc_double_free(w.rpc);
  kept_rows_free(w.rows);
  uv_run(&w.loop, UV_RUN_DEFAULT);
  MOB_ASSERT(uv_loop_close(&w.loop) == 0);
  return 0;
}
