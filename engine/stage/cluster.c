// Stages as actors of a cluster.
#include "engine/stage/transport.h"

static mob_status cluster_start(uv_loop_t *loop, const mob__transport_spec_t *spec,
                                const mob__transport_events_t *events, void *owner,
                                mob__transport_t **out) {
  (void)loop;
  (void)events;
  (void)owner;
  (void)out;
  return mob_fail(MOB_E_UNSUPPORTED, "the cluster at %s cannot be used by this build", spec->cluster);
}

const mob__transport_ops_t mob__transport_cluster = {.name = "cluster", .start = cluster_start};
