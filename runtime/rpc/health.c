// grpc.health.v1.Health, which C core does not bring along.
#include <string.h>

#include "health/health.pb-c.h"
#include "runtime/rpc/internal.h"

typedef struct health {
  mob_rpc_serving_fn serving;
  void *owner;
} health_t;

static void on_check(void *owner, mob_rpc_call_t *call, const void *request) {
  const Grpc__Health__V1__HealthCheckRequest *req = request;
  const health_t *health = owner;
  int serving = health->serving(health->owner, req->service);
  if (serving < 0) {
    mob_rpc_reply_status(call, GRPC_STATUS_NOT_FOUND, "unknown service");
    return;
  }
  Grpc__Health__V1__HealthCheckResponse reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
  reply.status = serving ? GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__SERVING
                         : GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__NOT_SERVING;
  mob_rpc_reply(call, &reply);
}

static const mob_rpc_method_t methods[] = {
    {"/grpc.health.v1.Health/Check", &grpc__health__v1__health_check_request__descriptor,
     &grpc__health__v1__health_check_response__descriptor, on_check},
};

void mob_rpc_server_add_health(mob_rpc_server_t *server, mob_rpc_serving_fn serving, void *owner) {
  health_t *health = MOB_NEW(health_t);
  *health = (health_t){serving, owner};
  mob_rpc_server_add(server, methods, MOB_LEN(methods), health);
  mob__server_own(server, health);
}
