// runtime/rpc without a network, for fuzz targets: what a server registered is called with messages
// at hand, what it asks of others waits until the fuzz target answers. It keeps rpc.h's promises to
// the letter (a request is gone with its answer) and aborts where the code behind it breaks one: a
// call answered twice or never, a reply that is no message.
#ifndef MOB_FUZZ_RPC_DOUBLE_H
#define MOB_FUZZ_RPC_DOUBLE_H

#include "runtime/rpc/rpc.h"

mob_rpc_t *rpc_double_new(uv_loop_t *loop);
void rpc_double_free(mob_rpc_t *rpc); // the server is closed

// ---- the server's side
size_t rpc_double_methods(const mob_rpc_t *rpc);
const ProtobufCMessageDescriptor *rpc_double_request(const mob_rpc_t *rpc, size_t method);
void rpc_double_call(mob_rpc_t *rpc, size_t method, void *request); // takes the request
// The caller of an open call leaves; `which` counts modulo those that there are.
void rpc_double_give_up(mob_rpc_t *rpc, size_t which);

// Opens a stream of the registered kind `kind` (modulo how many there are).
typedef struct rpc_double_metadata {
  const char *key, *value; // a NULL value: not there; the texts are kept
} rpc_double_metadata_t;
enum { RPC_DOUBLE_METADATA = 2 };
void rpc_double_open(mob_rpc_t *rpc, size_t kind,
                     const rpc_double_metadata_t metadata[RPC_DOUBLE_METADATA]);
void rpc_double_say(mob_rpc_t *rpc, size_t which, const void *message);
void rpc_double_end(mob_rpc_t *rpc, size_t which);

// ---- the peers' side
// What the open call `which` wants for an answer; NULL when there is none.
const ProtobufCMessageDescriptor *rpc_double_wanted(const mob_rpc_t *rpc, size_t which);
// Answers it: with OK and `reply` (kept by the caller), or with another code and NULL.
void rpc_double_answer(mob_rpc_t *rpc, size_t which, grpc_status_code code, const void *reply);

// Runs what comes later: ends of streams, calls that were cancelled. False when there was nothing.
bool rpc_double_turn(mob_rpc_t *rpc);

#endif
