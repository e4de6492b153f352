// The placement groups' own shared parts: the table (placement_groups.c) and the two-phase
// reservation of bundles on nodes (placement_commit.c).
//
// A bundle is NONE until the group is placed; then its node is asked to set it aside (PREPARING ->
// PREPARED), and when all bundles are, to hand it out (COMMITTING -> COMMITTED). One refusal gives
// everything of the attempt back. Bundles of a dead node fall back to NONE and are placed again.
#ifndef MOB_GCS_PLACEMENT_GROUPS_H
#define MOB_GCS_PLACEMENT_GROUPS_H

#include "runtime/gcs/internal.h"

typedef enum mob__bundle_state {
  MOB__BUNDLE_NONE,
  MOB__BUNDLE_PREPARING,
  MOB__BUNDLE_PREPARED,
  MOB__BUNDLE_COMMITTING,
  MOB__BUNDLE_COMMITTED,
} mob__bundle_state_t;

typedef struct mob__bundle {
  mob_resources_t need;
  mob__bundle_state_t state;
} mob__bundle_t;

typedef struct mob__pg {
  mob_gcs_t *gcs;
  uint8_t id[MOB_PG_ID_SIZE];
  char hex[2 * MOB_PG_ID_SIZE + 1];
  Ray__Rpc__PlacementGroupTableData *data;
  mob__bundle_t
      *bundles;     // as many as data->n_bundles; the node stands in data->bundles[i]->node_id
  size_t under_way; // answers of nodes that are still to come
  bool restored;    // of a former GCS's time: waits until no node is expected back any more
  bool refused;     // by a node, in this attempt
  uint64_t backoff_ms, not_before;
  char *reason; // why it is not placed; owned, NULL when it is
  MOB_VEC(mob_rpc_call_t *) waiters;
} mob__pg_t;

mob__pg_t *mob__pg_find(mob_gcs_t *gcs, const void *id, size_t len);
bool mob__pg_is_waiting(const mob__pg_t *pg); // PENDING or RESCHEDULING, and nothing under way
void mob__pg_place(mob__pg_t *pg);            // tries now
void mob__pg_give_back(mob__pg_t *pg,
                       size_t bundle); // to its node, if that lives; the bundle is NONE then
void mob__pg_set_reason(mob__pg_t *pg, const char *reason);
void mob__pg_created(mob__pg_t *pg);
void mob__pg_store(mob__pg_t *pg);

#endif
