// Ray's task messages for actors: built by the client, read by the worker.
#ifndef MOB_ACTOR_TASK_H
#define MOB_ACTOR_TASK_H

#include "runtime/actor/internal.h"

// A creation task that owns its memory; free with mob_pb_free().
mob_status mob__creation_task(const mob_cluster_t *cluster, const mob_actor_options_t *options,
                              const uint8_t actor_id[MOB_ACTOR_ID_LEN], Ray__Rpc__TaskSpec **out);

// Why an actor died, as one line that names class, name, process, node and cause.
char *mob__death_text(const Ray__Rpc__ActorTableData *data);

// "INVALID: text" <-> status and text, for errors of the actor's own code.
char *mob__error_text(mob_status status, const char *message);
mob_status mob__error_status(const char *text, const char **message);

#endif
