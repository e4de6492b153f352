// Starting and stopping the GCS, and what concerns several of its services.
#define MOB_LOG_COMPONENT "gcs"
#include "runtime/gcs/gcs.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/gcs/internal.h"
#include "runtime/gcs/restore.h"
#include "runtime/rpc/ray_version.h"

enum { TICK_MS = 250 };

void mob__gcs_node_added(mob_gcs_t *gcs, mob__node_t *node) {
  mob__health_watch(gcs, node);
  mob__gcs_schedule_soon(gcs);
}

void mob__gcs_node_dead(mob_gcs_t *gcs, mob__node_t *node) {
  mob__workers_node_dead(gcs, node);
  mob__pgs_node_dead(gcs, node);
  mob__actors_node_dead(gcs, node);
  mob__jobs_node_dead(gcs, node);
  mob__gcs_schedule_soon(gcs);
}

void mob__gcs_job_finished(mob_gcs_t *gcs, const uint8_t job_id[MOB_JOB_ID_SIZE]) {
  mob__actors_job_finished(gcs, job_id);
  mob__pgs_job_finished(gcs, job_id);
  mob__gcs_schedule_soon(gcs);
}

void mob__gcs_worker_dead(mob_gcs_t *gcs, const Ray__Rpc__WorkerTableData *worker) {
  mob__actors_worker_dead(gcs, worker);
  mob__gcs_schedule_soon(gcs);
}

static void on_pass(uv_timer_t *timer) {
  mob_gcs_t *gcs = timer->data;
  mob__pgs_schedule(gcs);
  mob__actors_schedule(gcs);
}

void mob__gcs_schedule_soon(mob_gcs_t *gcs) {
  if (!gcs->closing && !uv_is_active((uv_handle_t *)&gcs->pass))
    uv_timer_start(&gcs->pass, on_pass, 0, 0);
}

void mob__gcs_tick(mob_gcs_t *gcs) {
  mob__nodes_tick(gcs);
  mob__syncer_tick(gcs);
  mob__health_tick(gcs);
  mob__load_tick(gcs);
  mob__jobs_tick(gcs);
  mob__pubsub_tick(gcs);
  mob__pgs_tick(gcs);
  mob__actors_tick(gcs);
}

static void on_tick(uv_timer_t *timer) {
  mob__gcs_tick(timer->data);
}

// A call of another cluster's client is refused: its id says which cluster it believes to talk to.
static grpc_status_code gate(void *owner, const mob_rpc_gate_info_t *info, const char **why) {
  mob_gcs_t *gcs = owner;
  if (strncmp(info->path, "/grpc.health.", 13) == 0) return GRPC_STATUS_OK;
  char buf[64];
  const char *id = info->metadata(info, "ray_cluster_id", buf, sizeof buf);
  if (!id || strcmp(id, gcs->cluster_id_hex) == 0) return GRPC_STATUS_OK;
  static char text[256];
  snprintf(text, sizeof text, "WrongClusterID: expected %s, got %s", gcs->cluster_id_hex, id);
  *why = text;
  return GRPC_STATUS_UNAUTHENTICATED;
}

static int serving(void *owner, const char *service) {
  (void)owner;
  return service[0] ? -1 : 1;
}

static bool cluster_auth_on(void) {
  const char *text = getenv("RAY_enable_cluster_auth");
  return !text || (strcmp(text, "0") != 0 && strcasecmp(text, "false") != 0);
}

// What Ray's Python writes on a head.
static void put_head_keys(mob_gcs_t *gcs, const mob_gcs_config_t *config) {
  json_t *metadata =
      json_pack("{s:s, s:s, s:b}", "ray_version", MOB_RAY_VERSION, "python_version",
                config->python_version ? config->python_version : "", "ray_init_cluster", 0);
  char *text = json_dumps(metadata, 0);
  json_decref(metadata);
  mob_gcs_kv_put(gcs, "cluster", "CLUSTER_METADATA", text, strlen(text));
  free(text);
  mob_gcs_kv_put(gcs, "session", "session_name", gcs->session_name, strlen(gcs->session_name));
  mob_gcs_kv_put(gcs, "session", "session_dir", config->session_dir, strlen(config->session_dir));
  const char *temp_dir = config->temp_dir ? config->temp_dir : "/tmp/ray";
  mob_gcs_kv_put(gcs, "session", "temp_dir", temp_dir, strlen(temp_dir));
  mob_gcs_kv_put(gcs, "__autoscaler", "__autoscaler_v2_enabled", "0", 1);
}

static void new_cluster_id(mob_gcs_t *gcs) {
  size_t len = 0;
  const void *kept = mob__kv_get(gcs, "cluster", "ray_cluster_id", &len);
  if (kept && len == sizeof gcs->cluster_id) {
    memcpy(gcs->cluster_id, kept, len);
  } else {
    mob_random(gcs->cluster_id, sizeof gcs->cluster_id);
    mob_gcs_kv_put(gcs, "cluster", "ray_cluster_id", gcs->cluster_id, sizeof gcs->cluster_id);
  }
  mob_hex(gcs->cluster_id, sizeof gcs->cluster_id, gcs->cluster_id_hex);
}

static void free_services(mob_gcs_t *gcs) {
  mob__actors_free(gcs->actors);
  mob__pgs_free(gcs->pgs);
  mob__workers_free(gcs->workers);
  mob__tasks_free(gcs->tasks);
  mob__jobs_free(gcs->jobs);
  mob__syncer_free(gcs->syncer);
  mob__health_free(gcs->health);
  mob__autoscaler_free(gcs->autoscaler);
  mob__nodes_free(gcs->nodes);
  mob__kv_free(gcs->kv);
  mob__pubsub_free(gcs->pubsub);
}

void mob__gcs_hold(mob_gcs_t *gcs) {
  gcs->holds++;
}

static void on_store_closed(void *arg) {
  mob_gcs_t *gcs = arg;
  free(gcs->session_name);
  free(gcs->system_config);
  void (*closed)(void *) = gcs->closed;
  void *closed_arg = gcs->closed_arg;
  free(gcs);
  if (closed) closed(closed_arg);
}

void mob__gcs_release(mob_gcs_t *gcs) {
  MOB_ASSERT(gcs->holds > 0);
  if (--gcs->holds > 0) return;
  free_services(gcs);
  gcs->store->close(gcs->store, on_store_closed, gcs);
}

static void on_timer_closed(uv_handle_t *handle) {
  mob__gcs_release(handle->data);
}

static void close_timers(void *arg) {
  mob_gcs_t *gcs = arg;
  uv_close((uv_handle_t *)&gcs->pass, on_timer_closed);
  uv_close((uv_handle_t *)&gcs->tick, on_timer_closed);
}

mob_status mob_gcs_start(mob_rpc_t *rpc, const mob_gcs_config_t *config, mob_gcs_t **out,
                         int *bound) {
  mob_gcs_t *gcs = MOB_NEW(mob_gcs_t);
  gcs->rpc = rpc;
  gcs->loop = mob_rpc_loop(rpc);
  gcs->store = config->store ? config->store : mob_store_memory();
  gcs->session_name = mob_strdup(config->session_name ? config->session_name : "");
  gcs->system_config = mob_strdup(config->system_config ? config->system_config : "{}");
  gcs->own_head = config->session_dir != NULL;
  uv_timer_init(gcs->loop, &gcs->pass);
  uv_timer_init(gcs->loop, &gcs->tick);
  gcs->pass.data = gcs->tick.data = gcs;
  gcs->holds = 2;
  mob_status status = mob_rpc_server_new(rpc, &gcs->server);
  MOB_ASSERT(status == MOB_OK);
  gcs->pubsub = mob__pubsub_new(gcs);
  gcs->kv = mob__kv_new(gcs);
  gcs->nodes = mob__nodes_new(gcs);
  gcs->health = mob__health_new(gcs);
  gcs->syncer = mob__syncer_new(gcs);
  gcs->jobs = mob__jobs_new(gcs);
  gcs->workers = mob__workers_new(gcs);
  gcs->pgs = mob__pgs_new(gcs);
  gcs->actors = mob__actors_new(gcs);
  gcs->autoscaler = mob__autoscaler_new(gcs);
  gcs->tasks = mob__tasks_new(gcs);
  mob__resources_service(gcs);
  mob_rpc_server_add_health(gcs->server, serving, gcs);
  if (cluster_auth_on()) mob_rpc_server_set_gate(gcs->server, gate, gcs);
  status = mob__gcs_restore(gcs);
  if (status == MOB_OK) {
    status = mob_rpc_server_listen(gcs->server, config->listen_ip ? config->listen_ip : "0.0.0.0",
                                   config->port, bound);
  }
  if (status != MOB_OK) {
    gcs->closing = true;
    mob_rpc_server_close(gcs->server, 0, close_timers, gcs);
    return status;
  }
  // Only who has the port may change the state that is kept.
  new_cluster_id(gcs);
  if (gcs->own_head) put_head_keys(gcs, config);
  mob__gcs_resume(gcs);
  uv_timer_start(&gcs->tick, on_tick, TICK_MS, TICK_MS);
  MOB_INFO("listening on port %d, cluster %.8s, store: %s", *bound, gcs->cluster_id_hex,
           gcs->store->name);
  *out = gcs;
  return MOB_OK;
}

void mob_gcs_close(mob_gcs_t *gcs, void (*done)(void *arg), void *arg) {
  gcs->closing = true;
  gcs->closed = done;
  gcs->closed_arg = arg;
  uv_timer_stop(&gcs->pass);
  uv_timer_stop(&gcs->tick);
  mob__actors_close(gcs->actors);
  mob__pgs_close(gcs->pgs);
  mob__pubsub_close(gcs->pubsub);
  mob__nodes_close_clients(gcs->nodes);
  mob_rpc_server_close(gcs->server, 100, close_timers, gcs);
}
