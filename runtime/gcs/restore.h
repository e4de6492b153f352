// A GCS that finds the state of a former one in its store: rows are read back table by table
// (mob__*_restore), then, once it serves, each service takes up what was under way (mob__*_resume).
//
// Nodes that hold a heartbeat stream are "expected": not listed and not used until their stream is
// there again, dead when it is not within MOB__RETURN_MS. Until no node is expected any more,
// nothing of what was restored is placed; what is new is. Raylets count as alive from the start,
// and are watched by health checks.
#ifndef MOB_GCS_RESTORE_H
#define MOB_GCS_RESTORE_H

#include "runtime/gcs/internal.h"

// How long nodes and drivers that hold streams have to open them again.
enum { MOB__RETURN_MS = 6000 };

mob_status mob__gcs_restore(mob_gcs_t *gcs); // nothing is served yet
void mob__gcs_resume(mob_gcs_t *gcs);        // now it is

// Tells a node that it has a new GCS, and what of its workers and bundles that still counts.
void mob__gcs_tell_restart(mob_gcs_t *gcs, mob__node_t *node);

// A row as a message (mob_pb_free), or NULL, which is logged.
void *mob__restore_row(const char *table, const ProtobufCMessageDescriptor *type, const void *key,
                       size_t key_len, const void *value, size_t value_len);

#define MOB__RESTORE(name)                                                                         \
  void name(mob_gcs_t *gcs, const void *key, size_t key_len, const void *value, size_t value_len)
MOB__RESTORE(mob__kv_restore);
MOB__RESTORE(mob__jobs_restore_counter);
MOB__RESTORE(mob__jobs_restore);
MOB__RESTORE(mob__nodes_restore);
MOB__RESTORE(mob__workers_restore);
MOB__RESTORE(mob__actors_restore);
MOB__RESTORE(mob__actors_restore_spec);
MOB__RESTORE(mob__pgs_restore);

void mob__nodes_resume(mob_gcs_t *gcs);
void mob__pgs_resume(mob_gcs_t *gcs);
void mob__actors_resume(mob_gcs_t *gcs);
void mob__jobs_resume(mob_gcs_t *gcs);

// Of the actors that run on the node; borrowed until the next change.
typedef MOB_VEC(ProtobufCBinaryData) mob__used_workers_t;
void mob__actors_used_workers(mob_gcs_t *gcs, const mob__node_t *node, mob__used_workers_t *out);
typedef MOB_VEC(Ray__Rpc__Bundle *) mob__used_bundles_t;
void mob__pgs_used_bundles(mob_gcs_t *gcs, const mob__node_t *node, mob__used_bundles_t *out);

#endif
