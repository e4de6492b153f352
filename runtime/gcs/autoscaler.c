// AutoscalerStateService: the cluster as an autoscaler sees it, and draining.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>
#include <string.h>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/gcs/node_calls.h"

typedef Ray__Rpc__Autoscaler__ClusterResourceState state_t;
typedef Ray__Rpc__Autoscaler__ResourceRequest resource_request_t;

enum { DRAIN_TIMEOUT_MS = 10000 };

struct mob__autoscaler {
  mob_gcs_t *gcs;
  int64_t version; // of the state given out; grows with every reading
  Ray__Rpc__Autoscaler__AutoscalingState *reported;       // NULL until an autoscaler reports
  Ray__Rpc__Autoscaler__ClusterResourceConstraint *asked; // by request_resources; or NULL
  int64_t seen_version;
};

// ------------------------------------------------------------------------------------------- state

#define PUSH(list, count, item)                                                                    \
  do {                                                                                             \
    (list) = mob_realloc((list), ((count) + 1) * sizeof *(list));                                  \
    (list)[(count)++] = (item);                                                                    \
  } while (0)

static Ray__Rpc__Autoscaler__NodeStatus status_of(const mob__node_t *node) {
  if (!node->alive) return RAY__RPC__AUTOSCALER__NODE_STATUS__DEAD;
  if (node->draining) return RAY__RPC__AUTOSCALER__NODE_STATUS__DRAINING;
  return node->idle_ms > 0 ? RAY__RPC__AUTOSCALER__NODE_STATUS__IDLE
                           : RAY__RPC__AUTOSCALER__NODE_STATUS__RUNNING;
}

static void add_node(void *arg, mob__node_t *node) {
  state_t *state = arg;
  if (node->expected_until) return;
  Ray__Rpc__Autoscaler__NodeState *row = MOB_NEW(Ray__Rpc__Autoscaler__NodeState);
  ray__rpc__autoscaler__node_state__init(row);
  row->node_id = mob_pb_bytes_dup(node->id, sizeof node->id);
  row->instance_id = mob_strdup(node->info->instance_id);
  // A node of no stated type is a type of its own, as Ray's status shows it.
  row->ray_node_type_name = node->info->node_type_name[0] ? mob_strdup(node->info->node_type_name)
                                                          : mob_sprintf("node_%s", node->hex);
  row->instance_type_name = mob_strdup(node->info->instance_type_name);
  row->node_ip_address = mob_strdup(node->info->node_manager_address);
  row->node_state_version = node->view_version;
  row->status = status_of(node);
  row->idle_duration_ms = node->idle_ms;
  if (node->alive) {
    mob_resources_write(&node->total, &row->total_resources, &row->n_total_resources);
    mob_resources_write(&node->available, &row->available_resources, &row->n_available_resources);
  }
  for (size_t i = 0; i < node->activity.len; i++) {
    PUSH(row->node_activity, row->n_node_activity, mob_strdup(node->activity.at[i]));
  }
  for (size_t i = 0; i < node->info->n_labels; i++) {
    mob_pb_string_put(&row->labels, &row->n_labels, node->info->labels[i]->key,
                      node->info->labels[i]->value);
  }
  PUSH(state->node_states, state->n_node_states, row);
}

static resource_request_t *new_request(void) {
  resource_request_t *request = MOB_NEW(resource_request_t);
  ray__rpc__autoscaler__resource_request__init(request);
  return request;
}

static bool same_bundle(const resource_request_t *a, const resource_request_t *b) {
  if (a->n_resources_bundle != b->n_resources_bundle) return false;
  for (size_t i = 0; i < a->n_resources_bundle; i++) {
    const mob_pb_double_t *entry = a->resources_bundle[i];
    if (!mob_pb_double_has(b->resources_bundle, b->n_resources_bundle, entry->key) ||
        mob_pb_double_get(b->resources_bundle, b->n_resources_bundle, entry->key) != entry->value) {
      return false;
    }
  }
  return true;
}

static void add_demand(void *arg, const mob_resources_t *shape, int64_t count) {
  state_t *state = arg;
  resource_request_t *request = new_request();
  mob_resources_write(shape, &request->resources_bundle, &request->n_resources_bundle);
  for (size_t i = 0; i < state->n_pending_resource_requests; i++) {
    if (!same_bundle(state->pending_resource_requests[i]->request, request)) continue;
    state->pending_resource_requests[i]->count += count;
    mob_pb_free(request);
    return;
  }
  Ray__Rpc__Autoscaler__ResourceRequestByCount *row =
      MOB_NEW(Ray__Rpc__Autoscaler__ResourceRequestByCount);
  ray__rpc__autoscaler__resource_request_by_count__init(row);
  row->request = request;
  row->count = count;
  PUSH(state->pending_resource_requests, state->n_pending_resource_requests, row);
}

// STRICT_SPREAD bundles may not share a node, STRICT_PACK ones must: said by a label of the group.
static void constrain(resource_request_t *request, const Ray__Rpc__PlacementGroupTableData *group) {
  bool apart = group->strategy == RAY__RPC__PLACEMENT_STRATEGY__STRICT_SPREAD;
  if (!apart && group->strategy != RAY__RPC__PLACEMENT_STRATEGY__STRICT_PACK) return;
  char *name = mob_sprintf("_PG_%s", mob_id_text(group->placement_group_id).text);
  Ray__Rpc__Autoscaler__PlacementConstraint *c = MOB_NEW(Ray__Rpc__Autoscaler__PlacementConstraint);
  ray__rpc__autoscaler__placement_constraint__init(c);
  if (apart) {
    c->anti_affinity = MOB_NEW(Ray__Rpc__Autoscaler__AntiAffinityConstraint);
    ray__rpc__autoscaler__anti_affinity_constraint__init(c->anti_affinity);
    mob_pb_set_string(&c->anti_affinity->label_name, name);
  } else {
    c->affinity = MOB_NEW(Ray__Rpc__Autoscaler__AffinityConstraint);
    ray__rpc__autoscaler__affinity_constraint__init(c->affinity);
    mob_pb_set_string(&c->affinity->label_name, name);
  }
  free(name);
  PUSH(request->placement_constraints, request->n_placement_constraints, c);
}

static void add_group(void *arg, const Ray__Rpc__PlacementGroupTableData *group) {
  state_t *state = arg;
  Ray__Rpc__Autoscaler__GangResourceRequest *gang =
      MOB_NEW(Ray__Rpc__Autoscaler__GangResourceRequest);
  ray__rpc__autoscaler__gang_resource_request__init(gang);
  const ProtobufCEnumValue *strategy = protobuf_c_enum_descriptor_get_value(
      &ray__rpc__placement_strategy__descriptor, group->strategy);
  const ProtobufCEnumValue *now = protobuf_c_enum_descriptor_get_value(
      &ray__rpc__placement_group_table_data__placement_group_state__descriptor, group->state);
  gang->details = mob_sprintf("%s:%s|%s", mob_id_text(group->placement_group_id).text,
                              strategy ? strategy->name : "", now ? now->name : "");
  for (size_t i = 0; i < group->n_bundles; i++) {
    if (group->bundles[i]->node_id.len) continue; // placed already
    resource_request_t *request = new_request();
    mob_pb_double_copy(&request->resources_bundle, &request->n_resources_bundle,
                       group->bundles[i]->unit_resources, group->bundles[i]->n_unit_resources);
    constrain(request, group);
    PUSH(gang->requests, gang->n_requests, request);
  }
  PUSH(state->pending_gang_resource_requests, state->n_pending_gang_resource_requests, gang);
}

static state_t *make_state(mob__autoscaler_t *a) {
  state_t *state = MOB_NEW(state_t);
  ray__rpc__autoscaler__cluster_resource_state__init(state);
  state->cluster_resource_state_version = ++a->version;
  state->last_seen_autoscaler_state_version = a->seen_version;
  state->cluster_session_name = mob_strdup(a->gcs->session_name);
  mob__nodes_each(a->gcs, add_node, state);
  mob__gcs_demand(a->gcs, add_demand, state);
  mob__pgs_each_waiting(a->gcs, add_group, state);
  if (a->asked) {
    PUSH(state->cluster_resource_constraints, state->n_cluster_resource_constraints,
         mob_pb_clone(a->asked));
  }
  return state;
}

static void on_get_state(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  Ray__Rpc__Autoscaler__GetClusterResourceStateReply reply =
      RAY__RPC__AUTOSCALER__GET_CLUSTER_RESOURCE_STATE_REPLY__INIT;
  reply.cluster_resource_state = make_state(owner);
  mob_rpc_reply(call, &reply);
  mob_pb_free(reply.cluster_resource_state);
}

static void on_get_status(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob__autoscaler_t *a = owner;
  Ray__Rpc__Autoscaler__GetClusterStatusReply reply =
      RAY__RPC__AUTOSCALER__GET_CLUSTER_STATUS_REPLY__INIT;
  Ray__Rpc__Autoscaler__AutoscalingState none = RAY__RPC__AUTOSCALER__AUTOSCALING_STATE__INIT;
  reply.autoscaling_state = a->reported ? a->reported : &none;
  reply.cluster_resource_state = make_state(a);
  mob_rpc_reply(call, &reply);
  mob_pb_free(reply.cluster_resource_state);
}

static void on_report(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__autoscaler_t *a = owner;
  const Ray__Rpc__Autoscaler__ReportAutoscalingStateRequest *req = request;
  if (req->autoscaling_state &&
      req->autoscaling_state->autoscaler_state_version > a->seen_version) {
    mob_pb_free(a->reported);
    a->reported = mob_pb_clone(req->autoscaling_state);
    a->seen_version = a->reported->autoscaler_state_version;
  }
  Ray__Rpc__Autoscaler__ReportAutoscalingStateReply reply =
      RAY__RPC__AUTOSCALER__REPORT_AUTOSCALING_STATE_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_config(void *owner, mob_rpc_call_t *call, const void *request) {
  const Ray__Rpc__Autoscaler__ReportClusterConfigRequest *req = request;
  mob_gcs_t *gcs = ((mob__autoscaler_t *)owner)->gcs;
  if (req->cluster_config) { // kept under Ray's own key, serialized
    size_t len;
    void *bytes = mob_pb_pack(req->cluster_config, &len);
    mob_gcs_kv_put(gcs, "__autoscaler", "__autoscaler_cluster_config", bytes, len);
    free(bytes);
  }
  Ray__Rpc__Autoscaler__ReportClusterConfigReply reply =
      RAY__RPC__AUTOSCALER__REPORT_CLUSTER_CONFIG_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

static void on_constraint(void *owner, mob_rpc_call_t *call, const void *request) {
  mob__autoscaler_t *a = owner;
  const Ray__Rpc__Autoscaler__RequestClusterResourceConstraintRequest *req = request;
  mob_pb_free(a->asked);
  a->asked =
      req->cluster_resource_constraint ? mob_pb_clone(req->cluster_resource_constraint) : NULL;
  Ray__Rpc__Autoscaler__RequestClusterResourceConstraintReply reply =
      RAY__RPC__AUTOSCALER__REQUEST_CLUSTER_RESOURCE_CONSTRAINT_REPLY__INIT;
  mob_rpc_reply(call, &reply);
}

// ---------------------------------------------------------------------------------------- draining

typedef struct drain {
  mob_gcs_t *gcs;
  mob_rpc_call_t *call;
  uint8_t node_id[MOB_NODE_ID_SIZE];
  int64_t deadline_ms;
} drain_t;

static void answer_drain(mob_rpc_call_t *call, bool accepted, const char *why) {
  Ray__Rpc__Autoscaler__DrainNodeReply reply = RAY__RPC__AUTOSCALER__DRAIN_NODE_REPLY__INIT;
  reply.is_accepted = accepted;
  reply.rejection_reason_message = (char *)why;
  mob_rpc_reply(call, &reply);
}

static void on_drained(void *arg, grpc_status_code code, const char *why, const void *reply) {
  drain_t *drain = arg;
  mob_gcs_t *gcs = drain->gcs;
  const Ray__Rpc__DrainRayletReply *answer = reply;
  mob__node_t *node = mob__node_alive(gcs, drain->node_id, sizeof drain->node_id);
  if (code != GRPC_STATUS_OK && node) {
    answer_drain(drain->call, false, why);
  } else if (!node) { // gone meanwhile: as drained as can be
    answer_drain(drain->call, true, "");
  } else {
    if (answer->is_accepted) {
      MOB_INFO("node %.8s is draining", node->hex);
      node->draining = true;
      node->drain_deadline_ms = drain->deadline_ms;
    }
    answer_drain(drain->call, answer->is_accepted, answer->rejection_reason_message);
  }
  free(drain);
  mob__gcs_release(gcs);
}

static void on_drain(void *owner, mob_rpc_call_t *call, const void *request) {
  mob_gcs_t *gcs = ((mob__autoscaler_t *)owner)->gcs;
  const Ray__Rpc__Autoscaler__DrainNodeRequest *req = request;
  int64_t deadline = req->deadline_timestamp_ms;
  if (deadline < 0 || (deadline > 0 && deadline < mob_wall_ms())) {
    mob_rpc_reply_status(call, GRPC_STATUS_INVALID_ARGUMENT,
                         deadline < 0 ? "deadline_timestamp_ms must not be negative"
                                      : "deadline_timestamp_ms lies in the past");
    return;
  }
  mob__node_t *node = mob__node_alive(gcs, req->node_id.data, req->node_id.len);
  if (!node) { // dead or never there: nothing is left to drain
    answer_drain(call, true, "");
    return;
  }
  drain_t *drain = MOB_NEW(drain_t);
  drain->gcs = gcs;
  drain->call = call;
  drain->deadline_ms = deadline;
  memcpy(drain->node_id, node->id, sizeof drain->node_id);
  mob__gcs_hold(gcs);
  Ray__Rpc__DrainRayletRequest ask = RAY__RPC__DRAIN_RAYLET_REQUEST__INIT;
  ask.reason = req->reason;
  ask.reason_message = req->reason_message;
  ask.deadline_timestamp_ms = deadline;
  mob_rpc_call(mob__node_client(gcs, node), MOB__NODE_MANAGER "DrainRaylet", &ask,
               &ray__rpc__drain_raylet_reply__descriptor, DRAIN_TIMEOUT_MS, on_drained, drain);
}

// ----------------------------------------------------------------------------------------- service

#define SCALER "/ray.rpc.autoscaler.AutoscalerStateService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(SCALER "GetClusterResourceState",
                   ray__rpc__autoscaler__get_cluster_resource_state, on_get_state),
    MOB_RPC_METHOD(SCALER "GetClusterStatus", ray__rpc__autoscaler__get_cluster_status,
                   on_get_status),
    MOB_RPC_METHOD(SCALER "ReportAutoscalingState", ray__rpc__autoscaler__report_autoscaling_state,
                   on_report),
    MOB_RPC_METHOD(SCALER "ReportClusterConfig", ray__rpc__autoscaler__report_cluster_config,
                   on_config),
    MOB_RPC_METHOD(SCALER "RequestClusterResourceConstraint",
                   ray__rpc__autoscaler__request_cluster_resource_constraint, on_constraint),
    MOB_RPC_METHOD(SCALER "DrainNode", ray__rpc__autoscaler__drain_node, on_drain),
};

mob__autoscaler_t *mob__autoscaler_new(mob_gcs_t *gcs) {
  mob__autoscaler_t *autoscaler = MOB_NEW(mob__autoscaler_t);
  autoscaler->gcs = gcs;
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), autoscaler);
  return autoscaler;
}

void mob__autoscaler_free(mob__autoscaler_t *autoscaler) {
  mob_pb_free(autoscaler->reported);
  mob_pb_free(autoscaler->asked);
  free(autoscaler);
}
