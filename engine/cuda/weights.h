// Inside of the weights' layout and loading: which rectangle of which tensor goes where on which rank.
#ifndef MOB_CUDA_WEIGHTS_H
#define MOB_CUDA_WEIGHTS_H

#include <functional>

#include "engine/cuda/exec.h"

namespace mob {

// A rectangle of a tensor and its place on a rank.
struct WeightTarget {
  enum Kind { TILES, PLAIN, FLOAT } kind; // packed tiles, bf16 rows, fp32 values of a vector
  Rank *rank;
  mob_shard_t from;  // of the whole tensor
  void *dst;         // the packed matrix, the rows, the values
  int64_t row0;      // in dst, of the rectangle's first row; its first column is dst's
  int64_t ld;        // TILES: padded columns (Matrix.k); PLAIN: elements from row to row
  Weights tiles;
};

// Calls fn once for every tensor that a stage needs, with its targets on all ranks; a tensor that serves twice (tied embeddings) comes
// twice. Valid after weights_allocate(). `slot` names the tensor as dummy values want it.
using WeightVisit = std::function<mob_status(const mob_slot_t &slot, const mob_tensor_t *tensor, const mob_tensor_t *scales,
                                             const std::vector<WeightTarget> &targets)>;
mob_status weights_targets(Exec *exec, const WeightVisit &fn);

// Device memory of all ranks, zeroed where padding must be 0.
mob_status weights_allocate(Exec *exec);

// Runs fn for every rank, each on a thread of its own with its device current; the first failure, with its message.
mob_status on_ranks(Exec *exec, const std::function<mob_status(Rank *rank)> &fn);

} // namespace mob

#endif
