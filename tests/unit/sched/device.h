// A device that can be predicted: its "keys and values" are the token ids themselves, and the token
// it samples is a hash of what the block table leads to. A wrong page, position or id anywhere
// changes the tokens that follow.
#ifndef TEST_SCHED_DEVICE_H
#define TEST_SCHED_DEVICE_H

#include "engine/sched/sched.h"
#include "runtime/base/vec.h"

enum { DEVICE_VOCAB = 50, DEVICE_EOS = 3 };

typedef struct device_slot {
  bool open;
  int32_t last;
  uint64_t seed;
  int prompt_logprobs;
} device_slot_t;

typedef struct device_step { // a deep copy
  mob_step_t step;
  MOB_VEC(int32_t) tokens;
  MOB_VEC(uint32_t) pages;
  MOB_VEC(mob_seq_step_t) seqs;
  MOB_VEC(mob_seq_open_t) open;
  MOB_VEC(uint32_t) close;
} device_step_t;

typedef struct device {
  mob_sched_config_t config;
  int32_t *kv; // [pages][MOB_PAGE_TOKENS]
  device_slot_t *slots;
  MOB_VEC(device_step_t) queue; // planned, not executed: oldest first
  MOB_VEC(mob_sampled_t) sampled;
  MOB_VEC(mob_prompt_logprob_t) prompt;
} device_t;

void device_init(device_t *d, const mob_sched_config_t *config);
void device_free(device_t *d);
// Checks the plan against the limits and against the plans under way, and queues it.
void device_push(device_t *d, const mob_step_t *step);
// Executes the oldest one. The result lives until the next call.
mob_step_result_t device_pop(device_t *d);

// The token after `count` tokens whose rolling hash is `hash`.
uint64_t device_hash(uint64_t hash, int32_t token);
int32_t device_sample(uint64_t hash, uint64_t seed);

#endif
