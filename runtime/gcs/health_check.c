// Nodes that keep no heartbeat stream (raylets) are asked over grpc.health.v1, by Ray's own rules:
// first after 5 s, then every 3 s, each answer within 10 s, dead after 5 misses in a row. The
// environment variables RAY_health_check_* change them, as with Ray.
#define MOB_LOG_COMPONENT "gcs"
#include <stdlib.h>

#include "health/health.pb-c.h"
#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/gcs/internal.h"

struct mob__health {
  uint64_t initial_delay_ms, period_ms, timeout_ms, threshold;
};

typedef struct mob__check {
  mob_gcs_t *gcs;
  uint8_t node_id[MOB_NODE_ID_SIZE];
  uint64_t next_at;
  uint64_t misses;
  bool asking, forgotten;
} check_t;

static uint64_t from_env(const char *name, uint64_t fallback) {
  const char *text = getenv(name);
  char *end;
  if (!text || !*text) return fallback;
  uint64_t value = strtoull(text, &end, 10);
  if (*end == 0) return value;
  MOB_WARN("%s=%s is no number of milliseconds: %llu is used", name, text,
           (unsigned long long)fallback);
  return fallback;
}

mob__health_t *mob__health_new(mob_gcs_t *gcs) {
  (void)gcs;
  mob__health_t *health = MOB_NEW(mob__health_t);
  health->initial_delay_ms = from_env("RAY_health_check_initial_delay_ms", 5000);
  health->period_ms = from_env("RAY_health_check_period_ms", 3000);
  health->timeout_ms = from_env("RAY_health_check_timeout_ms", 10000);
  health->threshold = from_env("RAY_health_check_failure_threshold", 5);
  return health;
}

void mob__health_free(mob__health_t *health) {
  free(health);
}

void mob__health_watch(mob_gcs_t *gcs, mob__node_t *node) {
  check_t *check = MOB_NEW(check_t);
  check->gcs = gcs;
  for (size_t i = 0; i < sizeof node->id; i++) check->node_id[i] = node->id[i];
  check->next_at = mob_now_ms() + gcs->health->initial_delay_ms;
  node->check = check;
}

void mob__health_forget(mob_gcs_t *gcs, mob__node_t *node) {
  (void)gcs;
  check_t *check = node->check;
  if (!check) return;
  node->check = NULL;
  check->forgotten = true;
  if (!check->asking) free(check);
}

static void on_checked(void *arg, grpc_status_code code, const char *why, const void *reply) {
  check_t *check = arg;
  check->asking = false;
  if (check->forgotten) {
    free(check);
    return;
  }
  mob_gcs_t *gcs = check->gcs;
  const Grpc__Health__V1__HealthCheckResponse *response = reply;
  check->next_at = mob_now_ms() + gcs->health->period_ms;
  if (code == GRPC_STATUS_OK &&
      response->status == GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING) {
    check->misses = 0;
    return;
  }
  if (++check->misses < gcs->health->threshold) return;
  mob__node_t *node = mob__node_alive(gcs, check->node_id, sizeof check->node_id);
  char *text = mob_sprintf("health check failed %llu times in a row: %s",
                           (unsigned long long)check->misses, code ? why : "not serving");
  if (node)
    mob__node_die(gcs, node, RAY__RPC__NODE_DEATH_INFO__REASON__UNEXPECTED_TERMINATION, text);
  free(text);
}

static void look(void *arg, mob__node_t *node) {
  mob_gcs_t *gcs = arg;
  check_t *check = node->check;
  uint64_t now = mob_now_ms();
  if (!node->alive || !check || check->asking || now < check->next_at) return;
  if (node->heard_at && now - node->heard_at < gcs->health->period_ms) { // it talks: it lives
    check->misses = 0;
    check->next_at = now + gcs->health->period_ms;
    return;
  }
  check->asking = true;
  Grpc__Health__V1__HealthCheckRequest request = GRPC__HEALTH__V1__HEALTH_CHECK_REQUEST__INIT;
  request.service = node->hex;
  mob_rpc_call(mob__node_client(gcs, node), "/grpc.health.v1.Health/Check", &request,
               &grpc__health__v1__health_check_response__descriptor, gcs->health->timeout_ms,
               on_checked, check);
}

void mob__health_tick(mob_gcs_t *gcs) {
  mob__nodes_each(gcs, look, gcs);
}
