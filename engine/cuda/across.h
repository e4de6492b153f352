// A stage whose ranks are in several processes (pods). Within one process ranks add up over peer memory (comm.cuh); here, where some are
// elsewhere, every exchange of the stage is NCCL's, among all its ranks at once: NCCL knows which of them share NVLink.
//
//   the embedding                      all-reduce of bf16 rows, of which each rank has those of its part of the vocabulary, else zeros
//   after attention and feed-forward   all-reduce of bf16 rows, in place; the norm that follows adds them to the residual stream
//   plain sampling                     all-reduce (max) of the best (logit, id) of each row
//   other sampling                     all-gather of logits, rank 0 samples, broadcast of ids
//   between stages                     broadcast of rank 0's received rows or of the step's tokens, which rank 0 alone was told
//
// Communicators do not block: whoever calls NCCL looks at the call's state until it is done or across_abort() was called, from any
// thread. An aborted communicator's kernels end, so that what was queued behind them runs out.
#ifndef MOB_CUDA_ACROSS_H
#define MOB_CUDA_ACROSS_H

#include "engine/cuda/exec.h"

namespace mob {

constexpr int kGatherRows = 32;              // rows of logits of one all-gather
constexpr uint64_t kAcrossReserve = 512;     // MiB that NCCL may take when a kind of collective is first used
int across_columns(const Exec *exec);        // of logits on a rank, the most

mob_status across_id(uint8_t out[MOB_GROUP_ID]);
mob_status across_open(Exec *exec);          // finds NCCL
// Blocking: MOB_E_UNAVAILABLE when not all ranks came in time, MOB_E_ABORTED. It ends with a sum over all ranks that is checked.
mob_status across_join(Exec *exec, const uint8_t id[MOB_GROUP_ID], uint64_t timeout_ms);
bool across_joined(const Exec *exec);
// From any thread, returns at once; the first call acts. Without `across`: nothing.
void across_abort(Exec *exec);
// After across_abort(): waits until the streams have run out, frees graphs and communicators. False when that does not end in time (a GPU
// or NCCL waits for a process that does not run): nothing on the GPUs may be freed then, but by the end of this process.
bool across_close(Exec *exec);
void across_free(Exec *exec); // when that was true

// The end of what was recorded at `event`; else MOB_E_UNAVAILABLE (a rank elsewhere is gone, or nothing has ended for long) or
// MOB_E_ABORTED.
mob_status across_wait(Exec *exec, cudaEvent_t event);

// ---- queued on a rank's stream, also while it is captured; all ranks call the same in the same order.
// This rank's part of the sum is what `in` adds (projection, experts here); from here on in.add is the sum of all.
mob_status across_sum(Exec *exec, Rank *r, NormIn *in, int rows);
// The step's tokens' embeddings: in.add is their sum over ranks, the residual stream is 0.
mob_status across_embed(Exec *exec, Rank *r, NormIn *in, int rows);
// own_logits [rows][across_columns()] -> ids, last_token; rows [first, first + rows) of the step's list.
mob_status across_sample(Exec *exec, Rank *r, int first, int rows, bool plain);
mob_status across_share_rows(Exec *exec, Rank *r, int rows);   // x of rank 0
mob_status across_share_tokens(Exec *exec, Rank *r, int rows); // of the step's tables

} // namespace mob

#endif
