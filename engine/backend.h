// The backend table: executes the layers of one stage on the tensor-parallel ranks of this process. A stage may have ranks in several
// processes: each has an executor of its own, all are given the same steps in the same order, and they compute them together.
//
// Life of an executor: open -> (join) -> (plan) -> load -> alloc_kv -> step* -> close. One thread (the owner) calls these;
// `step` only queues: steps run in order on the executor's own threads and `done` is called from one of them.
// abort() may be called from any thread at any time and makes everything under way end with MOB_E_ABORTED.
#ifndef MOB_ENGINE_BACKEND_H
#define MOB_ENGINE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine/comm/comm.h"
#include "engine/model/model.h"
#include "engine/step.h"

typedef struct mob_exec mob_exec_t;

// For checks of one way of computing against another: a router near a tie chooses other experts for a difference that is of no
// consequence, and all that follows differs. So one way is given the ids that the other chose, and weighs them by its own scores.
// Arrays are [layers of the stage][max_tokens][top_k], rows as in the step, a row's ids in ascending order; dense layers' are left
// alone. The caller changes what stands here, and in `given`, only while no step is queued. No graph serves a step while `on`.
typedef struct mob_routes {
  bool on;              // false: as if it were not there
  int32_t *chosen;      // written: the router's own choice; NULL: not wanted
  const int32_t *given; // taken in its place; NULL: nothing is
  int32_t *experts;     // [layers] written: how many routed experts of the first rank here had rows in the last step; NULL: not wanted
} mob_routes_t;

typedef struct mob_exec_spec {
  const mob_model_t *model; // outlives the executor
  int first_layer, last_layer; // [first, last)
  int tp;                   // tensor-parallel ranks of the stage
  int ranks, first_rank;    // those in this process: [first_rank, first_rank + ranks); ranks 0: all of them
  bool expert_parallel;     // whole experts on ranks instead of slices of every expert
  const int *devices;       // [ranks] device indices; NULL for backends without devices
  int threads;              // CPU threads for the whole stage; 0: from the CPUs this process may use
  mob_dtype_t dtype;        // activations outside matrix products and KV of `auto`: BF16, F16 or F32
  bool exact;               // --dtype float32: fp32 activations and KV, FP8 weights dequantised, activations not quantised
  bool contract;            // CPU: rounds where the CUDA backend does, to check that (engine/cpu/contract.h)
  bool tensor_sums;         // with contract: adds e4m3 products as a tensor core does (engine/cpu/tensor_sums.h)
  mob_dtype_t kv_dtype;     // F32, BF16, F16 (F8E4M3 where the backend can); MOB_DT_COUNT: auto, the backend's choice
  int max_tokens;           // rows of a step
  int max_seqs;             // slots
  int max_len;              // tokens of a sequence
  bool eager;               // no graph capture
  double memory_share;      // of device memory, for everything together (--gpu-memory-utilization)
  mob_link_t *prev, *next;  // TCP links to the neighbouring stages; NULL at the ends, and in processes without the stage's rank 0
  const mob_link_ops_t *link;
  // pp > 1: ids sampled by the last stage come back to stage 0 over this link (on stage 0: recv; on the last: send)
  mob_link_t *ids;
  const mob_routes_t *routes; // outlives the executor; NULL but in checks
} mob_exec_spec_t;

typedef struct mob_load_progress {
  uint64_t bytes, total; // of this stage's weights, as read from the files
} mob_load_progress_t;

typedef struct mob_memory_plan {
  uint64_t weights, workspace, page_bytes; // bytes for one rank; page_bytes: one page in all layers of the stage
  uint64_t available;                      // what one rank may use in all
  int64_t pages;                           // that fit beside the rest; < 1: does not fit
  char text[512];                          // the sum, for people
} mob_memory_plan_t;

enum { MOB_GROUP_ID = 128 }; // bytes of what the processes of a stage find one another by

// Runs on an executor thread. In a process without the stage's rank 0 the result names no tokens. On failure `result` is NULL and `why` says what broke; no later step runs.
typedef void (*mob_step_fn)(void *arg, mob_status status, const char *why, const mob_step_result_t *result);

typedef struct mob_backend {
  const char *name; // "cpu", "cuda"
  // Devices this process may use; 0 and a reason in mob_errmsg() when there are none.
  int (*device_count)(void);
  mob_status (*open)(const mob_exec_spec_t *spec, mob_exec_t **out);
  // For a stage in several processes; both NULL in a backend that has none. The process with rank 0 makes the id, which is good for
  // one stage as long as that process lives. join() blocks until all ranks are there, or MOB_E_UNAVAILABLE after timeout_ms.
  mob_status (*group_id)(uint8_t out[MOB_GROUP_ID]);
  mob_status (*join)(mob_exec_t *exec, const uint8_t id[MOB_GROUP_ID], uint64_t timeout_ms);
  mob_status (*plan)(mob_exec_t *exec, mob_memory_plan_t *out);
  // Blocking, on the calling thread plus reader threads of its own; `progress` may be called from any of them.
  mob_status (*load)(mob_exec_t *exec, void (*progress)(void *arg, const mob_load_progress_t *p), void *arg);
  mob_status (*alloc_kv)(mob_exec_t *exec, int64_t pages);
  // Copies what it needs of `step` before it returns.
  mob_status (*step)(mob_exec_t *exec, const mob_step_t *step, mob_step_fn done, void *arg);
  void (*abort)(mob_exec_t *exec);
  void (*close)(mob_exec_t *exec); // aborts what is under way, joins its threads
} mob_backend_t;

extern const mob_backend_t mob_backend_cpu;

// "cpu", or "cuda" from the plug-in libmobula_cuda.so beside the executable (its absence is MOB_E_UNSUPPORTED with one
// clear line). "auto": cuda where its plug-in finds a device, else cpu.
mob_status mob_backend_find(const char *name, const mob_backend_t **out);

#endif
