// NodeInfoGcsService: who belongs to the cluster.
#define MOB_LOG_COMPONENT "gcs"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/gcs/internal.h"
#include "runtime/gcs/node_calls.h"
#include "runtime/gcs/restore.h"
#include "runtime/rpc/ray_version.h"

enum { DEAD_KEPT = 1000 };

struct mob__nodes {
  mob_gcs_t *gcs;
  mob_map_t all; // id -> mob__node_t, in the order of joining
  size_t alive, expected;
};

mob__node_t *mob__node_find(mob_gcs_t *gcs, const void *id, size_t len) {
  return mob_map_get(&gcs->nodes->all, id, len);
}

mob__node_t *mob__node_alive(mob_gcs_t *gcs, const void *id, size_t len) {
  mob__node_t *node = mob__node_find(gcs, id, len);
  return node && node->alive ? node : NULL;
}

mob__node_t **mob__nodes_alive(mob_gcs_t *gcs, size_t *count) {
  mob_map_t *all = &gcs->nodes->all;
  mob__node_t **list = MOB_NEW_ARRAY(mob__node_t *, gcs->nodes->alive + 1);
  *count = 0;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(all, e));) {
    mob__node_t *node = e->value;
    if (node->alive) list[(*count)++] = node;
  }
  return list;
}

void mob__nodes_each(mob_gcs_t *gcs, mob__node_fn fn, void *arg) {
  mob_map_t *all = &gcs->nodes->all;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(all, e));) fn(arg, e->value);
}

mob_rpc_client_t *mob__node_client(mob_gcs_t *gcs, mob__node_t *node) {
  if (node->client) return node->client;
  const char *ip = node->info->node_manager_address;
  char *address =
      mob_sprintf(strchr(ip, ':') ? "[%s]:%d" : "%s:%d", ip, node->info->node_manager_port);
  mob_status status = mob_rpc_client_new(gcs->rpc, address, NULL, &node->client);
  free(address);
  MOB_ASSERT(status == MOB_OK); // the address was checked at registration
  mob_rpc_client_set_metadata(node->client, "ray_cluster_id", gcs->cluster_id_hex);
  return node->client;
}

int64_t mob__node_promise(mob__node_t *node, const mob_resources_t *what) {
  mob_resources_sub(&node->available, what);
  return node->view_version;
}

void mob__node_take_back(mob__node_t *node, const mob_resources_t *what, int64_t promise) {
  if (node->view_version == promise) mob_resources_add(&node->available, what);
}

static void free_node(mob__node_t *node) {
  for (size_t i = 0; i < node->activity.len; i++) free(node->activity.at[i]);
  mob_vec_free(&node->activity);
  mob_resources_free(&node->total);
  mob_resources_free(&node->available);
  mob_pb_free(node->info);
  mob_pb_free(node->load);
  free(node);
}

static void publish(mob_gcs_t *gcs, mob__node_t *node) {
  Ray__Rpc__PubMessage message = RAY__RPC__PUB_MESSAGE__INIT;
  message.inner_message_case = RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_NODE_INFO_MESSAGE;
  message.node_info_message = node->info;
  mob__publish(gcs, RAY__RPC__CHANNEL_TYPE__GCS_NODE_INFO_CHANNEL, node->id, sizeof node->id,
               &message);
  Ray__Rpc__GcsNodeAddressAndLiveness brief = RAY__RPC__GCS_NODE_ADDRESS_AND_LIVENESS__INIT;
  brief.node_id = node->info->node_id;
  brief.node_manager_address = node->info->node_manager_address;
  brief.node_manager_port = node->info->node_manager_port;
  brief.object_manager_port = node->info->object_manager_port;
  brief.state = node->info->state;
  brief.death_info = node->info->death_info;
  ray__rpc__pub_message__init(&message);
  message.inner_message_case =
      RAY__RPC__PUB_MESSAGE__INNER_MESSAGE_NODE_ADDRESS_AND_LIVENESS_MESSAGE;
  message.node_address_and_liveness_message = &brief;
  mob__publish(gcs, RAY__RPC__CHANNEL_TYPE__GCS_NODE_ADDRESS_AND_LIVENESS_CHANNEL, node->id,
               sizeof node->id, &message);
}

// The oldest dead rows make room.
static void forget_dead(mob_gcs_t *gcs) {
  mob__nodes_t *nodes = gcs->nodes;
  if (nodes->all.count - nodes->alive - nodes->expected <= DEAD_KEPT) return;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&nodes->all, e));) {
    mob__node_t *node = e->value;
    if (node->alive || node->expected_until) continue;
    mob__gcs_store_del(gcs, MOB_TABLE_NODE, node->id, sizeof node->id);
    mob_map_remove(&nodes->all, node->id, sizeof node->id);
    free_node(node);
    return;
  }
}

void mob__node_die(mob_gcs_t *gcs, mob__node_t *node, Ray__Rpc__NodeDeathInfo__Reason reason,
                   const char *why) {
  if (!node->alive) return;
  node->alive = false;
  gcs->nodes->alive--;
  node->info->state = RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__DEAD;
  node->info->end_time_ms = (uint64_t)mob_wall_ms();
  if (!node->info->death_info) {
    node->info->death_info = MOB_NEW(Ray__Rpc__NodeDeathInfo);
    ray__rpc__node_death_info__init(node->info->death_info);
  }
  node->info->death_info->reason = reason;
  mob_pb_set_string(&node->info->death_info->reason_message, why);
  MOB_INFO("node %.8s (%s) is dead: %s", node->hex, node->info->node_manager_address, why);
  if (node->client) mob_rpc_client_close(node->client);
  node->client = NULL;
  mob__health_forget(gcs, node);
  mob__gcs_store_put(gcs, MOB_TABLE_NODE, node->id, sizeof node->id, node->info);
  publish(gcs, node);
  if (reason == RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION) {
    char *text =
        mob_sprintf("The node with node id: %s and address: %s and node name: %s has been marked "
                    "dead: %s",
                    node->hex, node->info->node_manager_address, node->info->node_name, why);
    mob__publish_error(gcs, NULL, "node_removed", text);
    free(text);
  }
  if (node->stream)
    mob_rpc_stream_close(node->stream, GRPC_STATUS_FAILED_PRECONDITION, "the node is dead");
  mob__gcs_node_dead(gcs, node);
  forget_dead(gcs);
}

static const char *bad_registration(const Ray__Rpc__GcsNodeInfo *info) {
  if (!info) return "The request carries no node_info.";
  if (info->node_id.len != MOB_NODE_ID_SIZE) return "The node id is not 28 bytes long.";
  if (!info->node_manager_address[0]) return "The node has no address.";
  if (info->node_manager_port < 0 || info->node_manager_port > 65535)
    return "The port is out of range.";
  return NULL;
}

// --------------------------------------------------------------------------------- after a restart

void mob__nodes_restore(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value,
                        size_t value_len) {
  mob__nodes_t *nodes = gcs->nodes;
  if (key_len != MOB_NODE_ID_SIZE || mob__node_find(gcs, key, key_len)) return;
  Ray__Rpc__GcsNodeInfo *info = mob__restore_row("node", &ray__rpc__gcs_node_info__descriptor, key,
                                                 key_len, value, value_len);
  if (!info) return;
  mob__node_t *node = MOB_NEW(mob__node_t);
  node->info = info;
  memcpy(node->id, key, key_len);
  mob_pb_set_bytes(&info->node_id, key, key_len);
  mob_hex(node->id, sizeof node->id, node->hex);
  mob_resources_read(&node->total, info->resources_total, info->n_resources_total);
  mob_map_put(&nodes->all, node->id, sizeof node->id, node);
  if (info->state == RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__DEAD) return;
  if (bad_registration(info)) { // nobody could call it
    info->state = RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__DEAD;
  } else if (info->raylet_socket_name[0]) {
    // What it has free is known when it says so: until then nothing is placed there.
    node->alive = true;
    nodes->alive++;
  } else {
    node->expected_until = mob_now_ms() + MOB__RETURN_MS;
    nodes->expected++;
  }
}

// An expected node becomes one of the living.
static void revive(mob_gcs_t *gcs, mob__node_t *node) {
  if (!node->expected_until) return;
  node->expected_until = 0;
  node->alive = true;
  gcs->nodes->expected--;
  gcs->nodes->alive++;
}

mob__node_t *mob__node_return(mob_gcs_t *gcs, const void *id, size_t len) {
  mob__node_t *node = mob__node_find(gcs, id, len);
  if (!node || !node->expected_until) return NULL;
  revive(gcs, node);
  MOB_INFO("node %.8s (%s) is back", node->hex, node->info->node_manager_address);
  publish(gcs, node);
  mob__gcs_tell_restart(gcs, node);
  mob__gcs_node_added(gcs, node);
  return node;
}

bool mob__nodes_expected(const mob_gcs_t *gcs) {
  return gcs->nodes->expected > 0;
}

static mob__node_t *overdue(mob_gcs_t *gcs, bool heads) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->nodes->all, e));) {
    mob__node_t *node = e->value;
    if (!node->expected_until) continue;
    if (node->expected_until <= mob_now_ms() || (heads && node->info->is_head_node)) return node;
  }
  return NULL;
}

void mob__nodes_tick(mob_gcs_t *gcs) {
  if (!gcs->nodes->expected) return;
  mob__node_t *node;
  while ((node = overdue(gcs, false))) {
    revive(gcs, node);
    mob__node_die(gcs, node, RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION,
                  "it did not come back after the GCS's restart");
  }
}

void mob__nodes_resume(mob_gcs_t *gcs) {
  mob__node_t *node;
  while (gcs->own_head && (node = overdue(gcs, true))) { // the GCS lived inside the former head
    revive(gcs, node);
    mob__node_die(gcs, node, RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION,
                  "the head was started again");
  }
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->nodes->all, e));) {
    node = e->value;
    if (!node->alive) continue;
    mob__health_watch(gcs, node);
    mob__gcs_tell_restart(gcs, node);
  }
}

// ---------------------------------------------------------------------------------------- services

static void on_cluster_id(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob__nodes_t *nodes = owner;
  Ray__Rpc__GetClusterIdReply reply = RAY__RPC__GET_CLUSTER_ID_REPLY__INIT;
  reply.status = MOB__OK(nodes->gcs);
  reply.cluster_id = mob_pb_bytes(nodes->gcs->cluster_id, sizeof nodes->gcs->cluster_id);
  mob_rpc_reply(call, &reply);
}

static void replace_head(mob_gcs_t *gcs, const mob__node_t *head) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&gcs->nodes->all, e));) {
    mob__node_t *node = e->value;
    bool there = node->alive || node->expected_until;
    if (node != head && there && node->info->is_head_node) {
      revive(gcs, node);
      mob__node_die(gcs, node, RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION,
                    "a new head node registered");
      return;
    }
  }
}

static void on_register(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__nodes_t *)owner)->gcs;
  const Ray__Rpc__RegisterNodeRequest *req = request;
  Ray__Rpc__RegisterNodeReply reply = RAY__RPC__REGISTER_NODE_REPLY__INIT;
  const char *bad = bad_registration(req->node_info);
  mob__node_t *known =
      bad ? NULL : mob__node_find(gcs, req->node_info->node_id.data, MOB_NODE_ID_SIZE);
  if (known && known->expected_until) { // it says anew what it is
    Ray__Rpc__GcsNodeInfo *info = mob_pb_clone(req->node_info);
    mob_pb_free(known->info);
    known->info = info;
    info->state = RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE;
    mob_resources_read(&known->total, info->resources_total, info->n_resources_total);
    mob__gcs_store_put(gcs, MOB_TABLE_NODE, known->id, sizeof known->id, info);
    mob__node_return(gcs, known->id, sizeof known->id);
  }
  if (known && !known->alive) bad = "This node id is dead: register under a new one.";
  if (bad || known) { // a repeated registration is as good as the first
    reply.status = bad ? mob__gcs_status(gcs, MOB__GCS_INVALID, "%s", bad) : MOB__OK(gcs);
    mob_rpc_reply(call, &reply);
    return;
  }
  mob__node_t *node = MOB_NEW(mob__node_t);
  node->info = mob_pb_clone(req->node_info);
  memcpy(node->id, node->info->node_id.data, sizeof node->id);
  mob_hex(node->id, sizeof node->id, node->hex);
  node->info->state = RAY__RPC__GCS_NODE_INFO__GCS_NODE_STATE__ALIVE;
  if (!node->info->start_time_ms) node->info->start_time_ms = (uint64_t)mob_wall_ms();
  mob_resources_read(&node->total, node->info->resources_total, node->info->n_resources_total);
  mob_resources_copy(&node->available, &node->total);
  node->alive = true;
  mob_map_put(&gcs->nodes->all, node->id, sizeof node->id, node);
  gcs->nodes->alive++;
  if (node->info->is_head_node) {
    replace_head(gcs, node);
    if (gcs->own_head) mob_gcs_kv_put(gcs, "job", "head_node_id", node->hex, strlen(node->hex));
  }
  MOB_INFO("node %.8s (%s) joined; %zu alive", node->hex, node->info->node_manager_address,
           gcs->nodes->alive);
  reply.status = MOB__OK(gcs);
  mob__gcs_put_reply(gcs, MOB_TABLE_NODE, node->id, sizeof node->id, node->info, call, &reply);
  publish(gcs, node);
  mob__gcs_node_added(gcs, node);
}

static void on_unregister(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__nodes_t *)owner)->gcs;
  const Ray__Rpc__UnregisterNodeRequest *req = request;
  Ray__Rpc__UnregisterNodeReply reply = RAY__RPC__UNREGISTER_NODE_REPLY__INIT;
  mob__node_t *node = mob__node_find(gcs, req->node_id.data, req->node_id.len);
  if (node) {
    const Ray__Rpc__NodeDeathInfo *info = req->node_death_info;
    revive(gcs, node);
    mob__node_die(gcs, node,
                  info ? info->reason : RAY__RPC__NODE_DEATH_INFO__REASON__EXPECTED_TERMINATION,
                  info && info->reason_message[0] ? info->reason_message : "it left");
  }
  reply.status = MOB__OK(gcs); // also when it was gone already: Ray's own server never answers then
  mob__gcs_reply_stored(gcs, call, &reply);
}

static bool selected(const mob__node_t *node, const Ray__Rpc__GetAllNodeInfoRequest *req) {
  if (node->expected_until) return false;
  if (req->opt_state_filter_case ==
          RAY__RPC__GET_ALL_NODE_INFO_REQUEST__OPT_STATE_FILTER_STATE_FILTER &&
      req->state_filter != node->info->state) {
    return false;
  }
  for (size_t i = 0; i < req->n_node_selectors; i++) {
    const Ray__Rpc__GetAllNodeInfoRequest__NodeSelector *by = req->node_selectors[i];
    switch (by->node_selector_case) {
    case RAY__RPC__GET_ALL_NODE_INFO_REQUEST__NODE_SELECTOR__NODE_SELECTOR_NODE_ID:
      if (mob_pb_bytes_equal(by->node_id, node->id, sizeof node->id)) return true;
      break;
    case RAY__RPC__GET_ALL_NODE_INFO_REQUEST__NODE_SELECTOR__NODE_SELECTOR_NODE_NAME:
      if (strcmp(by->node_name, node->info->node_name) == 0) return true;
      break;
    case RAY__RPC__GET_ALL_NODE_INFO_REQUEST__NODE_SELECTOR__NODE_SELECTOR_NODE_IP_ADDRESS:
      if (strcmp(by->node_ip_address, node->info->node_manager_address) == 0) return true;
      break;
    case RAY__RPC__GET_ALL_NODE_INFO_REQUEST__NODE_SELECTOR__NODE_SELECTOR_IS_HEAD_NODE:
      if (by->is_head_node == node->info->is_head_node) return true;
      break;
    default:
      break;
    }
  }
  return req->n_node_selectors == 0;
}

// What the newest view says, in the row that readers get.
static void refresh_snapshot(mob__node_t *node) {
  if (!node->alive || !node->view_at) return;
  if (!node->info->state_snapshot) {
    node->info->state_snapshot = MOB_NEW(Ray__Rpc__NodeSnapshot);
    ray__rpc__node_snapshot__init(node->info->state_snapshot);
  }
  Ray__Rpc__NodeSnapshot *snapshot = node->info->state_snapshot;
  snapshot->state = node->draining      ? RAY__RPC__NODE_SNAPSHOT__STATE__DRAINING
                    : node->idle_ms > 0 ? RAY__RPC__NODE_SNAPSHOT__STATE__IDLE
                                        : RAY__RPC__NODE_SNAPSHOT__STATE__ACTIVE;
  snapshot->idle_duration_ms = node->idle_ms;
}

static void on_get_all(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__nodes_t *)owner)->gcs;
  const Ray__Rpc__GetAllNodeInfoRequest *req = request;
  Ray__Rpc__GetAllNodeInfoReply reply = RAY__RPC__GET_ALL_NODE_INFO_REPLY__INIT;
  mob_map_t *all = &gcs->nodes->all;
  int64_t limit = INT64_MAX;
  if (req->opt_limit_case == RAY__RPC__GET_ALL_NODE_INFO_REQUEST__OPT_LIMIT_LIMIT &&
      req->limit > 0) {
    limit = req->limit;
  }
  Ray__Rpc__GcsNodeInfo **rows = MOB_NEW_ARRAY(Ray__Rpc__GcsNodeInfo *, all->count + 1);
  for (int dead = 0; dead < 2; dead++) { // the living first
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(all, e));) {
      mob__node_t *node = e->value;
      if (node->alive == (dead != 0)) continue;
      if (!selected(node, req)) {
        reply.num_filtered++;
      } else if ((int64_t)reply.n_node_info_list < limit) {
        refresh_snapshot(node);
        rows[reply.n_node_info_list++] = node->info;
      }
    }
  }
  reply.status = MOB__OK(gcs);
  reply.node_info_list = rows;
  reply.total = (int64_t)all->count;
  mob_rpc_reply(call, &reply);
  free(rows);
}

static bool listed(const ProtobufCBinaryData *ids, size_t n, const mob__node_t *node) {
  if (node->expected_until) return false;
  for (size_t i = 0; i < n; i++) {
    if (mob_pb_bytes_equal(ids[i], node->id, sizeof node->id)) return true;
  }
  return n == 0;
}

static void on_addresses(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__nodes_t *)owner)->gcs;
  const Ray__Rpc__GetAllNodeAddressAndLivenessRequest *req = request;
  Ray__Rpc__GetAllNodeAddressAndLivenessReply reply =
      RAY__RPC__GET_ALL_NODE_ADDRESS_AND_LIVENESS_REPLY__INIT;
  mob_map_t *all = &gcs->nodes->all;
  bool by_state =
      req->opt_state_filter_case ==
      RAY__RPC__GET_ALL_NODE_ADDRESS_AND_LIVENESS_REQUEST__OPT_STATE_FILTER_STATE_FILTER;
  bool limited =
      req->opt_limit_case == RAY__RPC__GET_ALL_NODE_ADDRESS_AND_LIVENESS_REQUEST__OPT_LIMIT_LIMIT;
  Ray__Rpc__GcsNodeAddressAndLiveness *rows =
      MOB_NEW_ARRAY(Ray__Rpc__GcsNodeAddressAndLiveness, all->count + 1);
  Ray__Rpc__GcsNodeAddressAndLiveness **list =
      MOB_NEW_ARRAY(Ray__Rpc__GcsNodeAddressAndLiveness *, all->count + 1);
  size_t n = 0;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(all, e));) {
    mob__node_t *node = e->value;
    if (by_state && node->info->state != req->state_filter) continue;
    if (!listed(req->node_ids, req->n_node_ids, node)) continue;
    if (limited && (int64_t)n >= req->limit) break;
    Ray__Rpc__GcsNodeAddressAndLiveness *row = &rows[n];
    ray__rpc__gcs_node_address_and_liveness__init(row);
    row->node_id = node->info->node_id;
    row->node_manager_address = node->info->node_manager_address;
    row->node_manager_port = node->info->node_manager_port;
    row->object_manager_port = node->info->object_manager_port;
    row->state = node->info->state;
    row->death_info = node->info->death_info;
    list[n++] = row;
  }
  reply.status = MOB__OK(gcs);
  reply.node_info_list = list;
  reply.n_node_info_list = n;
  mob_rpc_reply(call, &reply);
  free(list);
  free(rows);
}

static void on_check_alive(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__nodes_t *)owner)->gcs;
  const Ray__Rpc__CheckAliveRequest *req = request;
  Ray__Rpc__CheckAliveReply reply = RAY__RPC__CHECK_ALIVE_REPLY__INIT;
  protobuf_c_boolean *alive = MOB_NEW_ARRAY(protobuf_c_boolean, req->n_node_ids + 1);
  for (size_t i = 0; i < req->n_node_ids; i++) {
    alive[i] = mob__node_alive(gcs, req->node_ids[i].data, req->node_ids[i].len) != NULL;
  }
  reply.status = MOB__OK(gcs);
  reply.ray_version = MOB_RAY_VERSION;
  reply.n_raylet_alive = req->n_node_ids;
  reply.raylet_alive = alive;
  mob_rpc_reply(call, &reply);
  free(alive);
}

static void on_shut_down(void *arg, grpc_status_code code, const char *why, const void *reply) {
  (void)arg, (void)code, (void)why, (void)reply; // its death is noticed as any other
}

// The older form of draining: the node manager is told to shut down.
static void on_drain(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__nodes_t *)owner)->gcs;
  const Ray__Rpc__DrainNodeRequest *req = request;
  Ray__Rpc__DrainNodeReply reply = RAY__RPC__DRAIN_NODE_REPLY__INIT;
  Ray__Rpc__DrainNodeStatus *rows =
      MOB_NEW_ARRAY(Ray__Rpc__DrainNodeStatus, req->n_drain_node_data + 1);
  Ray__Rpc__DrainNodeStatus **list =
      MOB_NEW_ARRAY(Ray__Rpc__DrainNodeStatus *, req->n_drain_node_data + 1);
  for (size_t i = 0; i < req->n_drain_node_data; i++) {
    ProtobufCBinaryData id = req->drain_node_data[i]->node_id;
    ray__rpc__drain_node_status__init(&rows[i]);
    rows[i].node_id = id;
    list[i] = &rows[i];
    mob__node_t *node = mob__node_alive(gcs, id.data, id.len);
    if (!node) continue;
    mob__node_shut_down(gcs, node, on_shut_down);
  }
  reply.status = MOB__OK(gcs);
  reply.drain_node_status = list;
  reply.n_drain_node_status = req->n_drain_node_data;
  mob_rpc_reply(call, &reply);
  free(list);
  free(rows);
}

#define NODES "/ray.rpc.NodeInfoGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(NODES "GetClusterId", ray__rpc__get_cluster_id, on_cluster_id),
    MOB_RPC_METHOD(NODES "RegisterNode", ray__rpc__register_node, on_register),
    MOB_RPC_METHOD(NODES "UnregisterNode", ray__rpc__unregister_node, on_unregister),
    MOB_RPC_METHOD(NODES "DrainNode", ray__rpc__drain_node, on_drain),
    MOB_RPC_METHOD(NODES "GetAllNodeInfo", ray__rpc__get_all_node_info, on_get_all),
    MOB_RPC_METHOD(NODES "GetAllNodeAddressAndLiveness",
                   ray__rpc__get_all_node_address_and_liveness, on_addresses),
    MOB_RPC_METHOD(NODES "CheckAlive", ray__rpc__check_alive, on_check_alive),
};

mob__nodes_t *mob__nodes_new(mob_gcs_t *gcs) {
  mob__nodes_t *nodes = MOB_NEW(mob__nodes_t);
  nodes->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), nodes);
  return nodes;
}

void mob__nodes_close_clients(mob__nodes_t *nodes) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&nodes->all, e));) {
    mob__node_t *node = e->value;
    if (node->client) mob_rpc_client_close(node->client);
    node->client = NULL;
    mob__health_forget(nodes->gcs, node);
  }
}

void mob__nodes_free(mob__nodes_t *nodes) {
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&nodes->all, e));) free_node(e->value);
  mob_map_free(&nodes->all);
  free(nodes);
}
