// Stages as actors of a cluster: one bundle an actor, the first of stage 0 on the head's node, and
// a stream to each. What is called a stage here is one of its actors where it has several.
//
// Whatever ends a stage is told by the first who notices: its stream, the GCS's word on the actor
// or on its node, or the loss of the GCS itself.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/stage/stage.h"
#include "engine/stage/transport.h"
#include "runtime/base/buf.h"
#include "runtime/base/utf8.h"
#include "runtime/base/vec.h"

enum { GRACE_MS = 25 };

typedef struct remote_stage {
  mob__transport_t *transport;
  int index;
  mob_buf_t config;
  mob_actor_t *actor;
  mob_stream_t *stream;
  bool alive; // its process runs
} remote_stage_t;

struct mob__transport {
  uv_loop_t *loop;
  mob__transport_events_t events;
  void *owner;
  mob_cluster_t *cluster;
  remote_stage_t *stages;
  int count, ranks;
  bool gpus; // the cluster has them
  uint64_t timeout_ms;
  uint8_t pg_id[MOB_PG_ID_LEN];
  MOB_VEC(char *) node_ips; // of living nodes
  uv_timer_t timer;
  uv_timer_t grace;
  char gone[512]; // what is known of the first stage that is gone
  int gone_stage;
  bool started, stopping;
  int users; // whoever may still call back: the cluster, the timers, each stream
  void (*done)(void *arg);
  void *done_arg;
};

static void leave(mob__transport_t *t) {
  if (--t->users > 0) return;
  void (*done)(void *) = t->done;
  void *arg = t->done_arg;
  for (int i = 0; i < t->count; i++) mob_buf_free(&t->stages[i].config);
  for (size_t i = 0; i < t->node_ips.len; i++) free(t->node_ips.at[i]);
  mob_vec_free(&t->node_ips);
  free(t->stages);
  free(t);
  if (done) done(arg);
}

static void lost(mob__transport_t *t, int stage, const char *cause, const char *why) {
  if (!t->stopping) t->events.on_lost(t->owner, stage, t->started ? cause : "start_failed", why);
}

static void on_grace(uv_timer_t *timer) {
  mob__transport_t *t = timer->data;
  lost(t, t->gone_stage, "actor_died", t->gone);
}

// The process of a stage is gone. Its node or the head may be, too: their word follows at once, and
// says more.
static void stage_gone(mob__transport_t *t, int stage, const char *why, bool certain) {
  if (t->stopping || (t->gone[0] && (!certain || t->gone_stage != stage))) return;
  if (!t->gone[0]) uv_timer_start(&t->grace, on_grace, GRACE_MS, 0);
  mob_utf8_format(t->gone, sizeof t->gone, "%s", why);
  t->gone_stage = stage;
}

// ---------------------------------------------------------------------------------------- streams

static void on_message(void *owner, mob_stream_t *stream, mob_bytes_t message) {
  remote_stage_t *s = owner;
  (void)stream;
  if (!s->transport->stopping)
    s->transport->events.on_message(s->transport->owner, s->index, message);
}

static void on_stream_close(void *owner, mob_stream_t *stream, mob_status status, const char *why) {
  remote_stage_t *s = owner;
  mob__transport_t *t = s->transport;
  (void)status;
  if (s->stream == stream) s->stream = NULL;
  char text[600];
  mob_utf8_format(text, sizeof text, "the connection to it ended: %s",
                  why ? why : "it closed the stream");
  stage_gone(t, s->index, text, false);
  leave(t);
}

// ----------------------------------------------------------------------------------------- actors

static bool all_alive(const mob__transport_t *t) {
  for (int i = 0; i < t->count; i++)
    if (!t->stages[i].alive) return false;
  return true;
}

static void on_alive(void *owner, mob_actor_t *actor) {
  static const mob_stream_events_t events = {on_message, on_stream_close};
  remote_stage_t *s = owner;
  mob__transport_t *t = s->transport;
  if (t->stopping || s->stream) return;
  s->alive = true;
  if (all_alive(t)) {
    t->started = true;
    uv_timer_stop(&t->timer);
  }
  t->users++;
  mob_status status = mob_actor_stream(actor, "steps", &events, s, &s->stream);
  if (status == MOB_OK) return;
  lost(t, s->index, "actor_died", mob_errmsg());
  leave(t);
}

static void on_dead(void *owner, mob_actor_t *actor, bool restarting, const char *why) {
  remote_stage_t *s = owner;
  (void)actor;
  (void)restarting; // they have no restarts
  stage_gone(s->transport, s->index, why, true);
}

static void resources_of(const mob__transport_t *t, mob_resource_t *out) {
  // Without GPUs a stage asks for next to nothing: stages share the CPUs there are.
  *out = t->gpus ? (mob_resource_t){"GPU", t->ranks} : (mob_resource_t){"CPU", 0.01};
}

static void on_start_timeout(uv_timer_t *timer) {
  mob__transport_t *t = timer->data;
  char text[160];
  int i = 0;
  while (i < t->count - 1 && t->stages[i].alive) i++;
  snprintf(text, sizeof text, "its process did not start within %.0f s",
           (double)t->timeout_ms / 1000);
  lost(t, i, "start_failed", text);
}

static void create_actors(mob__transport_t *t) {
  static const mob_actor_events_t events = {on_alive, on_dead};
  t->events.on_phase(t->owner, "starting actors");
  uv_timer_start(&t->timer, on_start_timeout, t->timeout_ms, 0);
  mob_resource_t resource;
  resources_of(t, &resource);
  for (int i = 0; i < t->count && !t->stopping; i++) {
    remote_stage_t *s = &t->stages[i];
    mob_actor_options_t options = {
        .class_name = MOB_STAGE_CLASS,
        .args = {s->config.data, s->config.len},
        .pg_id = t->pg_id,
        .bundle_index = i,
        .resources = &resource,
        .resource_count = 1,
    };
    if (mob_actor_create(t->cluster, &options, &events, s, &s->actor) == MOB_OK) continue;
    lost(t, i, "start_failed", mob_errmsg());
    return;
  }
}

// -------------------------------------------------------------------------------- placement group

static void on_placed(void *arg, mob_status status, const char *why) {
  mob__transport_t *t = arg;
  if (t->stopping) return;
  if (status == MOB_OK)
    create_actors(t);
  else
    lost(t, -1, "start_failed", why);
}

static void place(mob__transport_t *t) {
  t->events.on_phase(t->owner, "placing");
  mob_resource_t what, head[2];
  resources_of(t, &what);
  head[0] = what;
  head[1] = (mob_resource_t){"node:__internal_head__", 0.001};
  mob_bundle_t *bundles = MOB_NEW_ARRAY(mob_bundle_t, (size_t)t->count);
  for (int i = 0; i < t->count; i++) bundles[i] = (mob_bundle_t){&what, 1};
  bundles[0] = (mob_bundle_t){head, 2};
  // As few nodes as can hold the stages: neighbours exchange activations. Where a stage fills a
  // node, one each.
  mob_pg_create(t->cluster, "", MOB_PACK, bundles, (size_t)t->count, t->timeout_ms, on_placed, t,
                t->pg_id);
  free(bundles);
}

static void on_nodes(void *arg, mob_status status, const char *why, const mob_node_info_t *nodes,
                     size_t count) {
  mob__transport_t *t = arg;
  if (t->stopping) return;
  if (status != MOB_OK) {
    lost(t, -1, "start_failed", why);
    return;
  }
  double gpus = 0;
  for (size_t i = 0; i < count; i++) {
    if (!nodes[i].alive) continue;
    gpus += nodes[i].gpus;
    *mob_vec_push(&t->node_ips) = mob_strdup(nodes[i].ip);
  }
  t->gpus = gpus > 0; // a cluster without any serves on its CPUs
  place(t);
}

// ---------------------------------------------------------------------------------------- cluster

static void on_connected(void *arg, mob_status status, const char *why) {
  mob__transport_t *t = arg;
  if (t->stopping) return;
  if (status == MOB_OK)
    mob_cluster_nodes(t->cluster, on_nodes, t);
  else
    lost(t, -1, "start_failed", why);
}

static void on_node_alive(void *owner, const uint8_t node_id[MOB_NODE_ID_LEN], const char *ip) {
  mob__transport_t *t = owner;
  (void)node_id;
  *mob_vec_push(&t->node_ips) = mob_strdup(ip);
}

// Takes one node of this address off the list; the number of those left.
static size_t forget_node(mob__transport_t *t, const char *ip) {
  size_t left = 0;
  bool taken = false;
  for (size_t i = t->node_ips.len; i-- > 0;) {
    if (strcmp(t->node_ips.at[i], ip) != 0) continue;
    if (taken) {
      left++;
      continue;
    }
    taken = true;
    free(t->node_ips.at[i]);
    mob_vec_remove(&t->node_ips, i);
  }
  return left;
}

static void on_node_dead(void *owner, const uint8_t node_id[MOB_NODE_ID_LEN], const char *ip,
                         const char *why) {
  mob__transport_t *t = owner;
  (void)node_id;
  // Nodes that share an address (several on one machine) cannot be told apart: their actors' own
  // ends tell.
  if (forget_node(t, ip) > 0) return;
  for (int i = 0; i < t->count; i++) {
    if (!t->stages[i].alive || strcmp(mob_actor_ip(t->stages[i].actor), ip) != 0) continue;
    char text[600];
    mob_utf8_format(text, sizeof text, "its node %s died: %s", ip, why);
    lost(t, i, "node_died", text);
    return;
  }
}

static void on_cluster_lost(void *owner, const char *why) {
  lost(owner, -1, "gcs_lost", why);
}

static const mob_cluster_events_t cluster_events = {on_node_dead, on_node_alive, on_cluster_lost};

static mob_status cluster_start(uv_loop_t *loop, const mob__transport_spec_t *spec,
                                const mob__transport_events_t *events, void *owner,
                                mob__transport_t **out) {
  mob__transport_t *t = MOB_NEW(mob__transport_t);
  t->loop = loop;
  t->events = *events;
  t->owner = owner;
  t->count = spec->stages;
  t->ranks = spec->ranks;
  t->timeout_ms = spec->timeout_ms;
  mob_status status =
      mob_cluster_connect(loop, spec->cluster, &cluster_events, t, on_connected, t, &t->cluster);
  if (status != MOB_OK) {
    free(t);
    return status;
  }
  t->stages = MOB_NEW_ARRAY(remote_stage_t, (size_t)spec->stages);
  for (int i = 0; i < spec->stages; i++) {
    t->stages[i] = (remote_stage_t){.transport = t, .index = i};
    mob_buf_append(&t->stages[i].config, spec->configs[i].data, spec->configs[i].len);
  }
  uv_timer_init(loop, &t->timer);
  uv_timer_init(loop, &t->grace);
  t->timer.data = t->grace.data = t;
  t->users = 3; // the cluster, the timers
  *out = t;
  return MOB_OK;
}

static void cluster_send(mob__transport_t *t, int stage, mob_bytes_t message) {
  if (t->stages[stage].stream) mob_stream_send(t->stages[stage].stream, message);
}

static void cluster_describe(const mob__transport_t *t, int stage, char ip[64], int *pid) {
  const remote_stage_t *s = &t->stages[stage];
  if (!s->alive) return;
  snprintf(ip, 64, "%s", mob_actor_ip(s->actor));
  *pid = mob_actor_pid(s->actor);
}

static void on_cluster_closed(void *arg, mob_status status, const char *why) {
  (void)status;
  (void)why;
  leave(arg);
}

static void on_timer_closed(uv_handle_t *handle) {
  leave(handle->data);
}

static void cluster_stop(mob__transport_t *t, void (*done)(void *arg), void *arg) {
  t->stopping = true;
  t->done = done;
  t->done_arg = arg;
  for (int i = 0; i < t->count; i++) {
    if (t->stages[i].stream) mob_stream_close(t->stages[i].stream, MOB_OK, "the engine stops");
    if (t->stages[i].actor) mob_actor_release(t->stages[i].actor);
  }
  mob_cluster_close(t->cluster, on_cluster_closed,
                    t); // its job's actors and placement group end with it
  uv_close((uv_handle_t *)&t->timer, on_timer_closed);
  uv_close((uv_handle_t *)&t->grace, on_timer_closed);
}

const mob__transport_ops_t mob__transport_cluster = {"cluster", cluster_start, cluster_send,
                                                     cluster_describe, cluster_stop};
