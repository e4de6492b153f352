// The weights of one rank: views into the mapped files, cut by tensor parallelism.
#ifndef MOB_CPU_WEIGHTS_H
#define MOB_CPU_WEIGHTS_H

#include "engine/backend.h"
#include "engine/cpu/ops.h"
#include "runtime/base/vec.h"

typedef struct mob_ffn {
  mob_mat_t gate, up, down; // rows = 0 where another rank owns the expert
} mob_ffn_t;

typedef struct mob_layer {
  mob_mat_t m[MOB_W_COUNT]; // projections of attention, router
  float *v[MOB_W_COUNT];    // norms and biases, fp32, owned
  mob_ffn_t dense, shared;
  mob_ffn_t *experts; // [n_experts] of MoE layers; owned
  mob_ffn_t *shared_parts; // contract: [n_shared] parts of `shared` when there are several; owned
} mob_layer_t;

typedef struct mob_rank_weights {
  mob_layer_t *layers; // [last - first]; owned
  mob_layer_t outer;   // embedding, final norm, head
} mob_rank_weights_t;

typedef struct mob_region {
  const uint8_t *data;
  size_t bytes;
  bool check_nan;   // FP8: the codes 0x7F and 0xFF are refused
  const char *name; // of the tensor
  // dummy: filled instead of read
  uint8_t *fill;
  mob_slot_t slot;
  mob_dtype_t dtype;
  mob_shard_t shard;
} mob_region_t;

// Memory that weights took beside the mapped files, and the bytes to be read.
typedef struct mob_weight_store {
  MOB_VEC(void *) owned; // malloc'ed
  MOB_VEC(mob_region_t) regions;
  uint64_t bytes; // of the stage's tensors
} mob_weight_store_t;

// Binds every slot of the stage on `tp` ranks (weights[tp], zeroed). Nothing is read yet.
mob_status mob_weights_bind(const mob_exec_spec_t *spec, mob_rank_weights_t *weights,
                            mob_weight_store_t *store);
void mob_weights_free(const mob_exec_spec_t *spec, mob_rank_weights_t *weights,
                      mob_weight_store_t *store);

// Reads all regions with `threads` threads, so that no step waits for the disk, and checks them.
mob_status mob_weights_read(mob_weight_store_t *store, int threads,
                            void (*progress)(void *arg, const mob_load_progress_t *p), void *arg);
// Copies norms and biases to fp32; after mob_weights_read().
mob_status mob_weights_vectors(const mob_exec_spec_t *spec, mob_rank_weights_t *weights);

#endif
