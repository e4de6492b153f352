// NodeResourceInfoGcsService: what the nodes have and what is free, as last heard.
#include <stdlib.h>

#include "runtime/gcs/internal.h"

static void on_available(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob_gcs_t *gcs = owner;
  Ray__Rpc__GetAllAvailableResourcesReply reply = RAY__RPC__GET_ALL_AVAILABLE_RESOURCES_REPLY__INIT;
  size_t n;
  mob__node_t **nodes = mob__nodes_alive(gcs, &n);
  Ray__Rpc__AvailableResources *rows = MOB_NEW_ARRAY(Ray__Rpc__AvailableResources, n + 1);
  Ray__Rpc__AvailableResources **list = MOB_NEW_ARRAY(Ray__Rpc__AvailableResources *, n + 1);
  for (size_t i = 0; i < n; i++) {
    ray__rpc__available_resources__init(&rows[i]);
    rows[i].node_id = mob_pb_bytes(nodes[i]->id, sizeof nodes[i]->id);
    for (size_t k = 0; k < nodes[i]->available.len; k++) { // Ray leaves zeros out
      const mob_amount_t *a = &nodes[i]->available.at[k];
      if (a->amount <= 0) continue;
      mob_pb_double_put(&rows[i].resources_available, &rows[i].n_resources_available, a->name,
                        mob_resource_double(a->amount));
    }
    list[i] = &rows[i];
  }
  reply.status = MOB__OK(gcs);
  reply.resources_list = list;
  reply.n_resources_list = n;
  mob_rpc_reply(call, &reply);
  for (size_t i = 0; i < n; i++) {
    mob_pb_double_clear(&rows[i].resources_available, &rows[i].n_resources_available);
  }
  free(list);
  free(rows);
  free(nodes);
}

static void on_total(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob_gcs_t *gcs = owner;
  Ray__Rpc__GetAllTotalResourcesReply reply = RAY__RPC__GET_ALL_TOTAL_RESOURCES_REPLY__INIT;
  size_t n;
  mob__node_t **nodes = mob__nodes_alive(gcs, &n);
  Ray__Rpc__TotalResources *rows = MOB_NEW_ARRAY(Ray__Rpc__TotalResources, n + 1);
  Ray__Rpc__TotalResources **list = MOB_NEW_ARRAY(Ray__Rpc__TotalResources *, n + 1);
  for (size_t i = 0; i < n; i++) {
    ray__rpc__total_resources__init(&rows[i]);
    rows[i].node_id = mob_pb_bytes(nodes[i]->id, sizeof nodes[i]->id);
    mob_resources_write(&nodes[i]->total, &rows[i].resources_total, &rows[i].n_resources_total);
    list[i] = &rows[i];
  }
  reply.status = MOB__OK(gcs);
  reply.resources_list = list;
  reply.n_resources_list = n;
  mob_rpc_reply(call, &reply);
  for (size_t i = 0; i < n; i++) {
    mob_pb_double_clear(&rows[i].resources_total, &rows[i].n_resources_total);
  }
  free(list);
  free(rows);
  free(nodes);
}

// ------------------------------------------------------------------------------------------- usage

static void add_demand(void *arg, const mob_resources_t *shape, int64_t count) {
  Ray__Rpc__ResourceLoad *load = arg;
  load->resource_demands = mob_realloc(load->resource_demands, (load->n_resource_demands + 1) *
                                                                   sizeof *load->resource_demands);
  Ray__Rpc__ResourceDemand *demand = MOB_NEW(Ray__Rpc__ResourceDemand);
  ray__rpc__resource_demand__init(demand);
  mob_resources_write(shape, &demand->shape, &demand->n_shape);
  demand->num_ready_requests_queued = (uint64_t)count;
  load->resource_demands[load->n_resource_demands++] = demand;
}

static void add_group(void *arg, const Ray__Rpc__PlacementGroupTableData *group) {
  Ray__Rpc__PlacementGroupLoad *load = arg;
  load->placement_group_data =
      mob_realloc(load->placement_group_data,
                  (load->n_placement_group_data + 1) * sizeof *load->placement_group_data);
  load->placement_group_data[load->n_placement_group_data++] = mob_pb_clone(group);
}

static Ray__Rpc__ResourcesData *usage_of(mob__node_t *node) {
  Ray__Rpc__ResourcesData *row = MOB_NEW(Ray__Rpc__ResourcesData);
  ray__rpc__resources_data__init(row);
  row->node_id = mob_pb_bytes_dup(node->id, sizeof node->id);
  row->node_manager_address = mob_strdup(node->info->node_manager_address);
  mob_resources_write(&node->total, &row->resources_total, &row->n_resources_total);
  mob_resources_write(&node->available, &row->resources_available, &row->n_resources_available);
  row->idle_duration_ms = node->idle_ms;
  row->is_draining = node->draining;
  row->draining_deadline_timestamp_ms = node->drain_deadline_ms;
  row->object_pulls_queued = node->pulls_queued;
  for (size_t i = 0; i < node->info->n_labels; i++) {
    mob_pb_string_put(&row->labels, &row->n_labels, node->info->labels[i]->key,
                      node->info->labels[i]->value);
  }
  return row;
}

static void on_usage(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob_gcs_t *gcs = owner;
  size_t n;
  mob__node_t **nodes = mob__nodes_alive(gcs, &n);
  Ray__Rpc__ResourceUsageBatchData *data = MOB_NEW(Ray__Rpc__ResourceUsageBatchData);
  ray__rpc__resource_usage_batch_data__init(data);
  data->batch = MOB_NEW_ARRAY(Ray__Rpc__ResourcesData *, n + 1);
  for (size_t i = 0; i < n; i++) data->batch[data->n_batch++] = usage_of(nodes[i]);
  free(nodes);
  data->resource_load_by_shape = MOB_NEW(Ray__Rpc__ResourceLoad);
  ray__rpc__resource_load__init(data->resource_load_by_shape);
  mob__gcs_demand(gcs, add_demand, data->resource_load_by_shape);
  data->placement_group_load = MOB_NEW(Ray__Rpc__PlacementGroupLoad);
  ray__rpc__placement_group_load__init(data->placement_group_load);
  mob__pgs_each_waiting(gcs, add_group, data->placement_group_load);
  Ray__Rpc__GetAllResourceUsageReply reply = RAY__RPC__GET_ALL_RESOURCE_USAGE_REPLY__INIT;
  reply.status = MOB__OK(gcs);
  reply.resource_usage_data = data;
  mob_rpc_reply(call, &reply);
  mob_pb_free(data);
}

static void on_draining(void *owner, mob_rpc_call_t *call, const void *request) {
  (void)request;
  mob_gcs_t *gcs = owner;
  Ray__Rpc__GetDrainingNodesReply reply = RAY__RPC__GET_DRAINING_NODES_REPLY__INIT;
  size_t n;
  mob__node_t **nodes = mob__nodes_alive(gcs, &n);
  Ray__Rpc__DrainingNode *rows = MOB_NEW_ARRAY(Ray__Rpc__DrainingNode, n + 1);
  Ray__Rpc__DrainingNode **list = MOB_NEW_ARRAY(Ray__Rpc__DrainingNode *, n + 1);
  for (size_t i = 0; i < n; i++) {
    if (!nodes[i]->draining) continue;
    Ray__Rpc__DrainingNode *row = &rows[reply.n_draining_nodes];
    ray__rpc__draining_node__init(row);
    row->node_id = mob_pb_bytes(nodes[i]->id, sizeof nodes[i]->id);
    row->draining_deadline_timestamp_ms = nodes[i]->drain_deadline_ms;
    list[reply.n_draining_nodes++] = row;
  }
  reply.status = MOB__OK(gcs);
  reply.draining_nodes = list;
  mob_rpc_reply(call, &reply);
  free(list);
  free(rows);
  free(nodes);
}

#define RESOURCES "/ray.rpc.NodeResourceInfoGcsService/"
static const mob_rpc_method_t methods[] = {
    MOB_RPC_METHOD(RESOURCES "GetAllAvailableResources", ray__rpc__get_all_available_resources,
                   on_available),
    MOB_RPC_METHOD(RESOURCES "GetAllTotalResources", ray__rpc__get_all_total_resources, on_total),
    MOB_RPC_METHOD(RESOURCES "GetAllResourceUsage", ray__rpc__get_all_resource_usage, on_usage),
    MOB_RPC_METHOD(RESOURCES "GetDrainingNodes", ray__rpc__get_draining_nodes, on_draining),
};

void mob__resources_service(mob_gcs_t *gcs) {
  mob_rpc_server_add(gcs->server, methods, MOB_LEN(methods), gcs);
}
