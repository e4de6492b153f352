// What the scheduler's files share.
#ifndef MOB_SCHED_INTERNAL_H
#define MOB_SCHED_INTERNAL_H

#include "engine/sched/pages.h"
#include "engine/sched/sched.h"

typedef enum mob__seq_state {
  MOB__WAITING,    // in `waiting`
  MOB__RUNNING,    // in `running`
  MOB__PREEMPTING, // in neither: its last steps are under way, then its pages come free and it
                   // waits
  MOB__ENDED,      // in neither: freed when its last step is complete
} mob__seq_state_t;

struct mob_sched_seq {
  void *owner;
  mob__seq_state_t state;
  int priority;
  uint64_t arrival; // rank within a priority
  int batch;        // micro-batch, while running
  uint32_t slot;    // MOB__NO_SLOT until the first step is planned, and again after a preemption

  // Tokens known so far: prompt, then outputs. Those sampled by steps under way are not yet here.
  MOB_VEC(int32_t) tokens;
  uint32_t prompt_count;
  uint32_t max_outputs;
  uint32_t planned;  // tokens whose keys and values steps up to the last planned one compute
  uint32_t computed; // the same for completed steps
  uint32_t sampling_in_flight; // steps under way that sample for this sequence
  uint32_t in_flight;          // steps under way that have rows of this sequence
  uint64_t last_step;          // id of the last of them

  MOB_VEC(uint32_t) pages; // block table
  uint32_t published;      // leading pages already offered to the prefix cache
  mob_chain_t chain;       // of those

  bool prefix_counted; // cached_tokens is final
  uint32_t cached_tokens;
  uint32_t prompt_logprobs_seen; // positions below are delivered

  mob_sampling_t sampling; // arrays owned
  int32_t *stops;          // ids that end it; the first `check_from` are eos ids
  uint32_t stop_count, check_from;
};

enum { MOB__NO_SLOT = UINT32_MAX };

typedef struct mob__row {
  mob_sched_seq_t *seq;
  uint32_t slot; // the sequence may have given it back since
  uint32_t end;  // start + count
  bool sample;
} mob__row_t;

typedef struct mob__flight {
  uint64_t id;
  MOB_VEC(mob__row_t) rows;
} mob__flight_t;

typedef MOB_VEC(mob_sched_seq_t *) mob__seqs_t;

struct mob_sched {
  mob_sched_config_t config;
  mob_pages_t pages;
  mob__seqs_t running, waiting; // both in rank order
  mob__seqs_t preempting, ended;
  MOB_VEC(uint32_t) free_slots, closing; // closing: to be named in the next step
  uint32_t slots_used;                   // by sequences
  uint32_t *batch_size;                  // [stages]
  int next_batch;
  uint64_t next_arrival, next_step;

  mob__flight_t *flights; // ring of `depth`
  uint32_t flight_first, flight_count;

  mob_step_t step;
  MOB_VEC(mob_seq_open_t) open;
  MOB_VEC(mob_seq_step_t) seqs;
  MOB_VEC(uint32_t) close;
  MOB_VEC(mob_sched_event_t) events;
  mob_sched_stats_t stats;
};

// True when `a` goes before `b`.
bool mob__ranks_before(const mob_sched_t *sched, const mob_sched_seq_t *a,
                       const mob_sched_seq_t *b);
void mob__insert_ranked(mob_sched_t *sched, mob__seqs_t *list, mob_sched_seq_t *seq);
void mob__remove(mob__seqs_t *list, const mob_sched_seq_t *seq);
// From running to preempting, and on to waiting as soon as no step uses its pages.
void mob__preempt(mob_sched_t *sched, mob_sched_seq_t *seq);
// What changes when the last step of a sequence under way is complete.
void mob__settle(mob_sched_t *sched, mob_sched_seq_t *seq);

#endif
