// The CPU executor's inner parts, shared by its files.
//
// Threads: one per tensor-parallel rank, each with a team of helpers where there are more CPUs than
// ranks. Rank 0 takes steps from the queue, gets what the step needs from other stages
// (activations, sampled ids), prepares it and releases the other ranks; all then run the same
// layers, meeting only in all-reduces. Rank 0 reports the result.
#ifndef MOB_CPU_EXEC_H
#define MOB_CPU_EXEC_H

#include <pthread.h>
#include <stdatomic.h>

#include "engine/backend.h"
#include "engine/cpu/ops.h"
#include "engine/cpu/sampler.h"
#include "engine/cpu/team.h"
#include "engine/cpu/weights.h"
#include "runtime/base/vec.h"

enum { MOB_LOGIT_ROWS = 32 }; // rows of logits computed and sampled at a time

typedef struct mob_slot_state {
  bool open;
  mob_sampling_t sampling; // arrays owned
  int32_t *history;        // prompt, then sampled tokens; owned
  uint32_t prompt_count, count, cap;
  int32_t last; // id sampled last
} mob_slot_state_t;

// A row of logits to compute: for a sampled token or for a prompt log probability.
typedef struct mob_logit_row {
  uint32_t row; // of the step
  uint32_t slot;
  bool sample;       // else: prompt log probability
  uint32_t position; // of the prompt token that the row predicts
} mob_logit_row_t;

// A queued step: a deep copy, and what rank 0 prepares from it.
typedef struct mob_job {
  struct mob_job *next;
  mob_step_t step;
  void *copy; // one block that holds all arrays of `step`
  mob_step_fn done;
  void *arg;
  int32_t *tokens;                 // [token_count], PREVIOUS resolved (first stage only)
  uint32_t *positions;             // [token_count]
  uint32_t *seq_of;                // [token_count]
  MOB_VEC(mob_logit_row_t) logits; // sampled and prompt rows, in order of row
  mob_sample_output_t *outputs;    // [logits.len]
} mob_job_t;

// Slots of a step whose sampled ids the last stage will send, in that order.
typedef struct mob_pending_ids {
  uint64_t step;
  uint32_t *slots; // owned
  uint32_t count;
} mob_pending_ids_t;

typedef struct mob_rank {
  mob_exec_t *exec;
  int index;
  pthread_t thread;
  bool started;
  mob_team_t *team;
  mob_rank_weights_t weights;
  int heads, kv_heads; // of this rank
  uint8_t *kv;         // [layers][pages][64][kv_width], kv_dtype
  // activations, fp32, rows of a step
  float *x;              // [T][hidden] residual stream
  float *norm;           // [T][hidden]
  float *part;           // [T][hidden] this rank's share of a sum
  float *q_lora;         // [T][q_lora] (MLA)
  float *q;              // [T][heads * head_dim]
  float *kv_new;         // [T][kv_lora + qk_rope], or k and v of GQA
  float *attn;           // [T][heads * v_head_dim]
  float *act;            // gate/up results of all tasks of a layer
  struct task *tasks;    // [n_experts + 1] (ffn.h)
  uint8_t *packed;       // rows for the tile unit (tiles.h)
  int32_t *expert_ids;   // [T][top_k]
  float *expert_weights; // [T][top_k]
  float *router;         // [T][n_experts]
  int32_t *group_rows;   // [T * top_k] rows of the step, grouped by expert
  float *group_weights;
  float *cos_sin;           // [T][rope.dim / 2][2]
  float **scratch;          // [team] each scratch_floats
  void *memory;             // the block that holds the above
  mob_sampler_t **samplers; // [team]
  mob_status status;
} mob_rank_t;

struct mob_exec {
  mob_exec_spec_t spec;
  const mob_model_desc_t *desc;
  const mob_cpu_ops_t *ops;
  int threads, team; // in all, and a rank's
  mob_comm_t *comm;
  mob_rank_t *ranks; // [tp]
  mob_weight_store_t store;
  bool loaded;
  int64_t pages;
  int kv_width; // elements of a token in a layer, on one rank
  size_t kv_layer_bytes;
  size_t scratch_floats, memory_bytes; // of a thread, of a rank's activations
  int mla;                 // how latent attention is computed: 0 by cost, 1 absorbed, 2 expanded
  bool tiles;              // products with weights on the tile unit (tiles.h)
  size_t packed_bytes;     // of a rank
  bool contract_tiles;     // contract: latent attention by the tile kernels
  float *input;            // [T][hidden], from the previous stage
  float *logits;           // [MOB_LOGIT_ROWS][vocab]
  mob_slot_state_t *slots; // [max_seqs]
  // queue
  pthread_mutex_t lock;
  pthread_cond_t wake;
  mob_job_t *first, **tail;
  bool closing;
  char why[512]; // first failure
  mob_status failed;
  _Atomic bool aborted;
  // release of a step to ranks 1..tp-1
  _Atomic uint32_t released;
  _Atomic(mob_job_t *) active;
  mob_job_t *retired; // the last one, when rank 0 has ended
  // first stage of several: steps whose ids have not come back yet
  MOB_VEC(mob_pending_ids_t) pending;
};

// run.c
void *mob__rank_main(void *rank);
// job.c
mob_job_t *mob__job_new(const mob_step_t *step, mob_step_fn done, void *arg);
void mob__job_free(mob_job_t *job);
mob_status mob__job_check(const mob_exec_t *exec, const mob_step_t *step);
// slots.c
void mob__slot_open(mob_slot_state_t *slot, const mob_seq_open_t *open);
void mob__slot_close(mob_slot_state_t *slot);
void mob__slot_append(mob_slot_state_t *slot, int32_t token);
// linear.c: y[i] = W x[i] (+ bias); x and y are rows of ldx and ldy floats
void mob__linear(mob_rank_t *rank, const mob_mat_t *w, const float *bias, const float *x,
                 int64_t ldx, float *y, int64_t ldy, int m);
// attention.c, ffn.c: add their result to rank->x of all rows
mob_status mob__attention(mob_rank_t *rank, const mob_job_t *job, int layer);
mob_status mob__ffn(mob_rank_t *rank, const mob_job_t *job, int layer);
size_t mob__attention_scratch(const mob_exec_t *exec);
size_t mob__ffn_scratch(const mob_exec_t *exec);
size_t mob__ffn_task_bytes(const mob_exec_t *exec);
// Waits until *word is not `seen` any more or the executor was aborted.
void mob__wait_word(const mob_exec_t *exec, _Atomic uint32_t *word, uint32_t seen);
void mob__wake_word(_Atomic uint32_t *word); // changes it
void mob__norm_rows(mob_rank_t *rank, const float *x, const float *w, float *out, int m);
// Sums rank->part over ranks and adds it, and `bias` unless NULL, to rank->x.
mob_status mob__add_parts(mob_rank_t *rank, int m, const float *bias);
// head.c: logits of job->logits, sampled into job->outputs
mob_status mob__sample(mob_rank_t *rank, mob_job_t *job);
// stages.c: what rank 0 exchanges with other stages
mob_status mob__stage_receive(mob_exec_t *exec,
                              mob_job_t *job); // activations, or ids for MOB_TOKEN_PREVIOUS
mob_status mob__stage_send(mob_exec_t *exec, const mob_job_t *job); // activations, or sampled ids
// memory.c
mob_status mob__rank_alloc(mob_rank_t *rank); // activations and scratch
void mob__rank_free(mob_rank_t *rank);
uint64_t mob__workspace_bytes(const mob_exec_t *exec); // of one rank
int mob__cpu_count(void);
uint64_t mob__memory_available(void);
// rope.c
void mob__rope_table(const mob_model_desc_t *desc, const uint32_t *positions, int m,
                     float *cos_sin);
void mob__rope_apply(const mob_rope_t *rope, const float *cos_sin, float *x);

#endif
