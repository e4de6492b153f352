// One gRPC runtime for each loop, however many clusters and servers use it.

#include <stdlib.h>

#include "runtime/actor/internal.h"

typedef struct shared {
  uv_loop_t *loop;
  mob_rpc_t *rpc;
  unsigned users;
} shared_t;

// Loops live on their own threads, and each thread has its own list.
static _Thread_local MOB_VEC(shared_t) shares;

mob_status mob__actor_rpc_acquire(uv_loop_t *loop, mob_rpc_t **out) {
  for (size_t i = 0; i < shares.len; i++) {
    if (shares.at[i].loop != loop) continue;
    shares.at[i].users++;
    *out = shares.at[i].rpc;
    return MOB_OK;
  }
  MOB_TRY(mob_rpc_new(loop, out));
  *mob_vec_push(&shares) = (shared_t){loop, *out, 1};
  return MOB_OK;
}

void mob__actor_rpc_release(mob_rpc_t *rpc) {
  for (size_t i = 0; i < shares.len; i++) {
    if (shares.at[i].rpc != rpc || --shares.at[i].users) continue;
    mob_vec_remove(&shares, i);
    if (!shares.len) mob_vec_free(&shares);
    mob_rpc_close(rpc, NULL, NULL);
    return;
  }
}
