// What the services of the GCS share. Each service has a file with its state; gcs.c starts and
// stops them and passes on what concerns several: a node that came, a node or a job that ended.
#ifndef MOB_GCS_INTERNAL_H
#define MOB_GCS_INTERNAL_H

#include "ray/autoscaler.pb-c.h"
#include "ray/gcs.pb-c.h"
#include "ray/gcs_service.pb-c.h"
#include "ray/pubsub.pb-c.h"
#include "runtime/base/map.h"
#include "runtime/base/mem.h"
#include "runtime/base/vec.h"
#include "runtime/gcs/gcs.h"
#include "runtime/gcs/ids.h"
#include "runtime/gcs/resources.h"
#include "runtime/rpc/message.h"

typedef struct mob__kv mob__kv_t;
typedef struct mob__nodes mob__nodes_t;
typedef struct mob__pubsub mob__pubsub_t;
typedef struct mob__jobs mob__jobs_t;
typedef struct mob__actors mob__actors_t;
typedef struct mob__pgs mob__pgs_t;
typedef struct mob__syncer mob__syncer_t;
typedef struct mob__health mob__health_t;
typedef struct mob__autoscaler mob__autoscaler_t;
typedef struct mob__workers mob__workers_t;
typedef struct mob__tasks mob__tasks_t;

struct mob_gcs {
  mob_rpc_t *rpc;
  uv_loop_t *loop;
  mob_rpc_server_t *server;
  mob_store_t *store;
  char *session_name, *system_config;
  bool own_head; // writes what Ray's Python writes on a head
  uint8_t cluster_id[MOB_NODE_ID_SIZE];
  char cluster_id_hex[2 * MOB_NODE_ID_SIZE + 1];
  mob__kv_t *kv;
  mob__nodes_t *nodes;
  mob__pubsub_t *pubsub;
  mob__jobs_t *jobs;
  mob__actors_t *actors;
  mob__pgs_t *pgs;
  mob__syncer_t *syncer;
  mob__health_t *health;
  mob__autoscaler_t *autoscaler;
  mob__workers_t *workers;
  mob__tasks_t *tasks;
  uv_timer_t pass; // the next scheduling pass
  uv_timer_t tick; // every 250 ms: silence, back-offs, time-outs
  size_t holds;    // the two timers, and calls to nodes and workers that come back here
  bool restored;   // it took over the state of a former GCS
  bool closing;
  void (*closed)(void *arg);
  void *closed_arg;
  uint64_t load_at; // when raylets are next asked for what waits there
  // The status of the reply being built.
  Ray__Rpc__GcsStatus status;
  char status_text[1024];
};

// ----------------------------------------------------------------------------------------- replies

// Ray's status codes, as far as the GCS says them.
enum {
  MOB__GCS_OK = 0,
  MOB__GCS_KEY_ERROR = 2,
  MOB__GCS_INVALID = 4,
  MOB__GCS_IO_ERROR = 5,
  MOB__GCS_NOT_IMPLEMENTED = 10,
  MOB__GCS_NOT_FOUND = 17,
  MOB__GCS_SCHEDULING_CANCELLED = 19,
  MOB__GCS_ALREADY_EXISTS = 20,
  MOB__GCS_INVALID_ARGUMENT = 34,
};
// For a reply's status field; valid until the next one is made. NULL text for none.
Ray__Rpc__GcsStatus *mob__gcs_status(mob_gcs_t *gcs, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
#define MOB__OK(gcs) mob__gcs_status((gcs), MOB__GCS_OK, "%s", "")

// A call that is answered once the store holds a change.
void mob__gcs_store_put(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                        const void *message); // packs; failures are logged
void mob__gcs_store_del(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len);
// Puts, then answers `call` with the reply (of which the caller keeps nothing): OK in its status.
void mob__gcs_put_reply(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                        const void *message, mob_rpc_call_t *call, const void *reply);

// Answers `call` when all changes made so far are stored.
void mob__gcs_reply_stored(mob_gcs_t *gcs, mob_rpc_call_t *call, const void *reply);

// The GCS is freed when nothing holds it any more.
void mob__gcs_hold(mob_gcs_t *gcs);
void mob__gcs_release(mob_gcs_t *gcs);

// ------------------------------------------------------------------------------------------ events

typedef struct mob__node mob__node_t;
void mob__gcs_node_added(mob_gcs_t *gcs, mob__node_t *node);
void mob__gcs_node_dead(mob_gcs_t *gcs, mob__node_t *node);
void mob__gcs_job_finished(mob_gcs_t *gcs, const uint8_t job_id[MOB_JOB_ID_SIZE]);
void mob__gcs_worker_dead(mob_gcs_t *gcs, const Ray__Rpc__WorkerTableData *worker);
// Something may have become placeable: a scheduling pass runs on the next turn of the loop.
void mob__gcs_schedule_soon(mob_gcs_t *gcs);
// What time brings: silence, back-offs, time-outs. Every 250 ms.
void mob__gcs_tick(mob_gcs_t *gcs);

// ------------------------------------------------------------------------------------------- nodes

struct mob__node {
  uint8_t id[MOB_NODE_ID_SIZE];
  char hex[2 * MOB_NODE_ID_SIZE + 1];
  Ray__Rpc__GcsNodeInfo *info;
  bool alive, draining;
  uint64_t expected_until; // of a former GCS's time: its stream is to come (restore.h); 0: no
  int64_t drain_deadline_ms;
  // The newest view, less what was promised since.
  mob_resources_t total, available;
  int64_t view_version, idle_ms;
  uint64_t view_at; // mob_now_ms() of the newest view; 0: none yet
  MOB_VEC(char *) activity;
  bool pulls_queued;
  mob_rpc_client_t *client; // of its node manager; NULL until needed
  mob_rpc_stream_t *stream; // its syncer stream
  uint32_t heartbeat_ms;    // 0: a raylet, watched by health checks
  uint64_t heard_at;        // mob_now_ms() of the last message on it
  struct mob__check *check; // the health check of a raylet
  bool asking_load;
  Ray__Rpc__ResourceLoad *load; // what waits in a raylet's own queue; NULL when nothing is known
};

mob__nodes_t *mob__nodes_new(mob_gcs_t *gcs);
void mob__nodes_free(mob__nodes_t *nodes);
void mob__nodes_close_clients(mob__nodes_t *nodes);
mob__node_t *mob__node_find(mob_gcs_t *gcs, const void *id, size_t len); // dead ones too; or NULL
mob__node_t *mob__node_alive(mob_gcs_t *gcs, const void *id, size_t len);
// The living ones in the order in which they joined. The caller frees the list.
mob__node_t **mob__nodes_alive(mob_gcs_t *gcs, size_t *count);
// The node may be freed by this: it is not to be used afterwards.
void mob__node_die(mob_gcs_t *gcs, mob__node_t *node, Ray__Rpc__NodeDeathInfo__Reason reason,
                   const char *why);
// Between a promise and the node's next view, the GCS reckons itself with what it promised. A
// promise that came to nothing is taken back, unless a newer view has come meanwhile and knows
// nothing of it.
int64_t mob__node_promise(mob__node_t *node,
                          const mob_resources_t *what); // for mob__node_take_back()
void mob__node_take_back(mob__node_t *node, const mob_resources_t *what, int64_t promise);
mob_rpc_client_t *mob__node_client(mob_gcs_t *gcs, mob__node_t *node);
// A node that is expected is there again; NULL when none of this id is.
mob__node_t *mob__node_return(mob_gcs_t *gcs, const void *id, size_t len);
bool mob__nodes_expected(const mob_gcs_t *gcs); // any
void mob__nodes_tick(mob_gcs_t *gcs);
typedef void (*mob__node_fn)(void *arg, mob__node_t *node);
void mob__nodes_each(mob_gcs_t *gcs, mob__node_fn fn, void *arg); // dead ones too

mob__syncer_t *mob__syncer_new(mob_gcs_t *gcs);
void mob__syncer_free(mob__syncer_t *syncer);
void mob__syncer_tick(mob_gcs_t *gcs);

void mob__load_tick(mob_gcs_t *gcs);

mob__health_t *mob__health_new(mob_gcs_t *gcs);
void mob__health_free(mob__health_t *health);
void mob__health_watch(mob_gcs_t *gcs, mob__node_t *node);
void mob__health_forget(mob_gcs_t *gcs, mob__node_t *node);
void mob__health_tick(mob_gcs_t *gcs);

// ------------------------------------------------------------------------------------------- other
// services

mob__kv_t *mob__kv_new(mob_gcs_t *gcs);
void mob__kv_free(mob__kv_t *kv);
// Borrowed until the next change; NULL when absent.
const void *mob__kv_get(mob_gcs_t *gcs, const char *ns, const char *key, size_t *len);

mob__pubsub_t *mob__pubsub_new(mob_gcs_t *gcs);
void mob__pubsub_close(mob__pubsub_t *pubsub); // answers the polls that wait
void mob__pubsub_free(mob__pubsub_t *pubsub);
void mob__pubsub_tick(mob_gcs_t *gcs);
// `message` has its inner_message set; channel, key and sequence number are filled in here.
void mob__publish(mob_gcs_t *gcs, Ray__Rpc__ChannelType channel, const void *key, size_t key_len,
                  Ray__Rpc__PubMessage *message);
// An error shown to every driver, or to one job's (`job_id` NULL: all).
void mob__publish_error(mob_gcs_t *gcs, const uint8_t *job_id, const char *type, const char *text);

mob__jobs_t *mob__jobs_new(mob_gcs_t *gcs);
void mob__jobs_free(mob__jobs_t *jobs);
void mob__jobs_tick(mob_gcs_t *gcs);
void mob__jobs_node_dead(mob_gcs_t *gcs, mob__node_t *node);
const char *mob__job_namespace(mob_gcs_t *gcs, const void *job_id, size_t len); // "" when unknown

mob__actors_t *mob__actors_new(mob_gcs_t *gcs);
void mob__actors_close(mob__actors_t *actors); // answers what waits
void mob__actors_free(mob__actors_t *actors);
void mob__actors_schedule(mob_gcs_t *gcs);
void mob__actors_tick(mob_gcs_t *gcs);
void mob__actors_node_dead(mob_gcs_t *gcs, mob__node_t *node);
void mob__actors_worker_dead(mob_gcs_t *gcs, const Ray__Rpc__WorkerTableData *worker);
void mob__actors_job_finished(mob_gcs_t *gcs, const uint8_t *job_id);
// The actors of a removed group die, whether placed or waiting.
void mob__actors_group_removed(mob_gcs_t *gcs, const uint8_t *group_id);
// The shapes that wait for room, and how many of each: actors that the GCS has to place, and what
// raylets queue themselves.
typedef void (*mob__demand_fn)(void *arg, const mob_resources_t *shape, int64_t count);
void mob__gcs_demand(mob_gcs_t *gcs, mob__demand_fn fn, void *arg);
void mob__actors_demand(mob_gcs_t *gcs, mob__demand_fn fn, void *arg);

mob__pgs_t *mob__pgs_new(mob_gcs_t *gcs);
void mob__pgs_close(mob__pgs_t *pgs);
void mob__pgs_free(mob__pgs_t *pgs);
void mob__pgs_schedule(mob_gcs_t *gcs);
void mob__pgs_tick(mob_gcs_t *gcs);
void mob__pgs_node_dead(mob_gcs_t *gcs, mob__node_t *node);
void mob__pgs_job_finished(mob_gcs_t *gcs, const uint8_t *job_id);
void mob__pgs_actor_dead(mob_gcs_t *gcs, const uint8_t *actor_id);
typedef enum mob__group_state {
  MOB__GROUP_UNKNOWN,
  MOB__GROUP_LIVE,
  MOB__GROUP_REMOVED
} mob__group_state_t;
mob__group_state_t mob__pg_state(mob_gcs_t *gcs, const void *id, size_t len);
typedef void (*mob__pg_fn)(void *arg, const Ray__Rpc__PlacementGroupTableData *group);
void mob__pgs_each_waiting(mob_gcs_t *gcs, mob__pg_fn fn, void *arg); // PENDING and RESCHEDULING

mob__autoscaler_t *mob__autoscaler_new(mob_gcs_t *gcs);
void mob__autoscaler_free(mob__autoscaler_t *autoscaler);
// The value of the key that `ray status` reads, made from the state as it is now. The caller frees
// it.
char *mob__status_report(mob_gcs_t *gcs, size_t *len);

mob__workers_t *mob__workers_new(mob_gcs_t *gcs);
void mob__workers_free(mob__workers_t *workers);
void mob__workers_node_dead(mob_gcs_t *gcs, mob__node_t *node);

mob__tasks_t *mob__tasks_new(mob_gcs_t *gcs);
void mob__tasks_free(mob__tasks_t *tasks);

void mob__resources_service(mob_gcs_t *gcs); // NodeResourceInfoGcsService; keeps no state

#endif
