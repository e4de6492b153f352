// Who holds what of a node: amounts in Ray's fixed point, GPUs by index, bundles of placement
// groups.
//
// A bundle takes its resources from the node once (prepare), and what actors take of it comes from
// the bundle's own pool (commit). Names like GPU_group_0_<pg>, by which Ray asks for a bundle's
// share, are read and shown here, and exist nowhere else.
#ifndef MOB_NODE_RESOURCES_H
#define MOB_NODE_RESOURCES_H

#include <stdbool.h>
#include <stdint.h>

#include "runtime/base/status.h"
#include "runtime/base/vec.h"

#define MOB_NODE_PG_LEN 18

typedef int64_t mob_fixed_t; // ten-thousandths
mob_fixed_t mob_fixed(double amount);
double mob_unfixed(mob_fixed_t amount);

typedef struct mob_want {
  const char *name;
  double amount;
} mob_want_t;

typedef struct mob_share {
  int index; // of the GPU
  mob_fixed_t amount;
} mob_share_t;

typedef struct mob_grant {
  char *name;
  mob_fixed_t amount;
  MOB_VEC(mob_share_t) shares; // which instances, for resources that are counted by instance
} mob_grant_t;
typedef MOB_VEC(mob_grant_t) mob_grants_t;
void mob_grants_free(mob_grants_t *grants);

typedef struct mob_pool_entry {
  char *name;
  mob_fixed_t total, free;
  MOB_VEC(mob_share_t) units; // free amount of each instance
} mob_pool_entry_t;

typedef struct mob_pool {
  MOB_VEC(mob_pool_entry_t) entries;
} mob_pool_t;

void mob_pool_free(mob_pool_t *pool);
// `units` > 0: that many instances of 1, numbered from 0.
void mob_pool_add(mob_pool_t *pool, const char *name, mob_fixed_t total, int units);
// All or nothing; MOB_E_NO_RESOURCES says what is short. A GPU amount above 1 must be whole.
mob_status mob_pool_take(mob_pool_t *pool, const mob_want_t *wants, size_t count,
                         mob_grants_t *out);
void mob_pool_give(mob_pool_t *pool, const mob_grants_t *grants);

typedef struct mob_bundle_slot {
  uint8_t pg[MOB_NODE_PG_LEN];
  int index;
  uint64_t serial; // of the preparation
  bool committed;
  mob_grants_t taken; // of the node
  mob_pool_t pool;    // what actors take from; holds "bundle" too
} mob_bundle_slot_t;

typedef struct mob_ledger {
  mob_pool_t node;
  MOB_VEC(mob_bundle_slot_t *) bundles; // in the order in which they were prepared
  uint64_t serial;
} mob_ledger_t;

// What one actor holds.
typedef struct mob_holding {
  bool in_bundle;
  uint8_t pg[MOB_NODE_PG_LEN];
  int index;
  uint64_t serial; // of the bundle; one that was prepared anew under its name is another
  mob_grants_t of_node, of_bundle;
} mob_holding_t;
void mob_holding_free(mob_holding_t *holding);

void mob_ledger_free(mob_ledger_t *ledger);
mob_bundle_slot_t *mob_ledger_find(mob_ledger_t *ledger, const uint8_t *pg, int index); // or NULL
// Preparing a bundle that is prepared already is a repeat and succeeds.
mob_status mob_ledger_prepare(mob_ledger_t *ledger, const uint8_t *pg, int index,
                              const mob_want_t *wants, size_t count);
mob_status mob_ledger_commit(mob_ledger_t *ledger, const uint8_t *pg, int index);
// Gives a bundle back to the node; what actors still hold of it is forgotten, so they must be
// ended. False when there is no such bundle.
bool mob_ledger_cancel(mob_ledger_t *ledger, const uint8_t *pg, int index);
void mob_ledger_shrink(mob_ledger_t *ledger, size_t count); // cancels all behind the first `count`

// Takes what an actor asks for; formatted names of one placement group mean shares of its bundle
// (any bundle of the group here, without an index). MOB_E_NOT_FOUND: no such bundle here.
// MOB_E_NO_RESOURCES: not free now.
mob_status mob_ledger_take(mob_ledger_t *ledger, const mob_want_t *wants, size_t count,
                           mob_holding_t *out);
void mob_ledger_give(mob_ledger_t *ledger, mob_holding_t *holding); // empties the holding

// Every resource as the cluster sees it, formatted names included.
typedef void (*mob_ledger_fn)(void *arg, const char *name, double total, double free);
void mob_ledger_view(const mob_ledger_t *ledger, mob_ledger_fn fn, void *arg);

// "GPU_group_1_<36 hex>" -> base "GPU", index 1; without a number -1. False: not a formatted name.
bool mob_parse_group_name(const char *name, char *base, size_t cap, int *index,
                          uint8_t pg[MOB_NODE_PG_LEN]);

#endif
