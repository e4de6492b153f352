// Which node gets which bundle: pure functions of what nodes have and bundles ask.
//
// The rules are Ray's. Bundles are taken scarcest first: by GPU, then custom resources, then
// object_store_memory, memory, CPU, larger first. A node's score for a demand is the sum over its
// resources of (available - asked) / available, higher is better; the earlier node wins a tie.
#ifndef MOB_GCS_PLACEMENT_H
#define MOB_GCS_PLACEMENT_H

#include "runtime/gcs/resources.h"

typedef enum mob_placement_strategy { // numbered as ray.rpc.PlacementStrategy
  MOB_PLACE_PACK = 0,                 // as few nodes as possible
  MOB_PLACE_SPREAD = 1,               // as many nodes as possible
  MOB_PLACE_STRICT_PACK = 2,          // one node, or not at all
  MOB_PLACE_STRICT_SPREAD = 3,        // a node of its own for each, or not at all
} mob_placement_strategy_t;

typedef struct mob_place_node {
  const char *name; // for the reason
  const mob_resources_t *total, *available;
  bool excluded;  // holds a bundle of the group already (STRICT_SPREAD)
  bool preferred; // STRICT_PACK's soft target
} mob_place_node_t;

typedef enum mob_place_result {
  MOB_PLACED,
  MOB_PLACE_NO_RESOURCES, // would fit if nothing else ran
  MOB_PLACE_INFEASIBLE,   // would not fit on these nodes even if they were empty
} mob_place_result_t;

// Puts into chosen[i] the index of bundle i's node. `why` (may be NULL) gets the reason of a
// failure, one line: what is asked, and what there is.
mob_place_result_t mob_place_bundles(mob_placement_strategy_t strategy,
                                     const mob_place_node_t *nodes, size_t node_count,
                                     const mob_resources_t *bundles, size_t bundle_count,
                                     size_t *chosen, mob_buf_t *why);

// The node for one task or actor, by Ray's hybrid rule: a node that is less than half full counts
// as empty; the least full wins; `preferred` wins a tie, then the earlier. Demands without GPU
// avoid nodes with GPUs if they can. Returns node_count when none has it now; `*feasible` then says
// whether one could.
size_t mob_place_task(const mob_place_node_t *nodes, size_t node_count,
                      const mob_resources_t *demand, bool *feasible);

#endif
