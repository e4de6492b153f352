// Calls as drivers and nodes make them, each out of a few bytes: nodes, jobs, actors and groups 1
// to 4 whose ids are those of message_maker.h. What is rare or malformed comes from make_message().
#ifndef MOB_FUZZ_GCS_CALLS_H
#define MOB_FUZZ_GCS_CALLS_H

#include "tests/fuzz/message_maker.h"
#include "tests/fuzz/rpc_double.h"

void gcs_call(mob_rpc_t *rpc, source_t *in);
void gcs_open(mob_rpc_t *rpc, source_t *in); // a node's stream or a driver's
void gcs_say(mob_rpc_t *rpc, source_t *in);  // on one of them: what a node has, or anything
// A reply of this type as a node or worker that does what it is asked would give it; NULL for types
// without one.
void *gcs_good_reply(const ProtobufCMessageDescriptor *type, source_t *in);

#endif
