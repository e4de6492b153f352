// Drives one backend as the stages would, blocking: a whole model over pipeline stages in this process, or some of its layers
// alone, whose input and output are the caller's ("taped"). For checks that hold two ways of computing against each other.
#ifndef MOB_TOOLS_GPU_DRIVE_H
#define MOB_TOOLS_GPU_DRIVE_H

#include "engine/backend.h"

enum { DRIVE_TOP = MOB_MAX_LOGPROBS, DRIVE_SLOTS = 32 };

typedef struct drive_config {
  const mob_backend_t *backend;
  const mob_model_t *model;
  int tp, pp;                  // 0: 1
  int ranks, first_rank;       // of tp, in this process; ranks 0: all
  const uint8_t *group_id;     // [MOB_GROUP_ID] where not all are
  bool expert_parallel, eager, contract, tensor_sums;
  bool routes;                 // experts of every step are wanted (drive_chosen); without graphs
  bool replay;                 // routers take the ids of drive_given() instead of their own choice
  int first_layer, last_layer; // taped when last_layer > 0: input by drive_feed() unless it is the first of all
  int max_tokens, max_len;     // 0: 512, 1024
  int64_t pages;               // 0: 64
  mob_dtype_t kv_dtype;        // MOB_DT_F32, the zero, stands for auto
  int timeout_s;               // of a step; 0: 60
} drive_config_t;

// What was said of the token at a position: by prompt log probabilities, or by sampling.
typedef struct drive_place {
  bool known;
  mob_token_logprob_t chosen, top[DRIVE_TOP];
  uint32_t top_count;
} drive_place_t;

typedef struct drive drive_t;

mob_status drive_open(const drive_config_t *config, drive_t **out);
void drive_close(drive_t *d);
mob_exec_t *drive_exec(drive_t *d, int stage);
// Queues a step on all stages (its id is set here) / waits until all steps queued so far have been reported.
mob_status drive_queue(drive_t *d, mob_step_t *step);
mob_status drive_wait(drive_t *d);
mob_status drive_step(drive_t *d, mob_step_t *step); // both
void drive_abort(drive_t *d);
// Taped: rows for the next step, and the rows that the last step left ([rows][hidden], valid until the next step).
void drive_feed(drive_t *d, const float *x, uint32_t rows);
const float *drive_taken(const drive_t *d);
// Experts of a step's rows, in ascending order: [max_tokens][top_k] of a layer of the model. What the routers chose, after a step, and, in a
// drive that replays, what they are to take instead, before it. NULL in a model without experts.
const int32_t *drive_chosen(const drive_t *d, int layer);
int32_t *drive_given(drive_t *d, int layer);
int drive_experts(const drive_t *d, int layer); // with rows in the last step, as the dispatch plan of the first rank has them
// Of `slot`, by position [max_len]; cleared by drive_forget().
const drive_place_t *drive_places(const drive_t *d, uint32_t slot);
void drive_forget(drive_t *d);
int32_t drive_last(const drive_t *d, uint32_t slot); // sampled last
uint64_t drive_compute_ns(const drive_t *d);         // of the last stage's last step

#endif
