// Sampling on the device: what its kernels are given, and the part of the host that hands it to them.
//
// A slot's parameters, the counts of its tokens and the index of its next draw lie in device memory. They are written when the slot is
// opened, in the order of the steps, and counted on by the kernels: a step is queued before the ids of the one before it are known.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>
#include <vector>

#define _Noreturn [[noreturn]]
extern "C" {
#include "engine/step.h"
#include "runtime/base/status.h"
}

namespace mob {

constexpr int kSampleParts = 32;         // pieces of a row of logits, one CTA each, until its best are known
constexpr int kSampleGroups = 32;        // groups of a piece, whose largest logits are kept
constexpr int kMaxSampleVocab = 1 << 20; // sums of probabilities are 64-bit: 44 bits of fraction, 20 of count

// What is wanted of a row, where it is not a prompt token's log probability (its id, >= 0).
enum { kSamplePlain = -1, kSampleSlot = -2 }; // the best one; a token by its slot's parameters

// Of a slot, in device memory.
struct SlotSampling {
  float temperature, top_p, min_p; // as in mob_sampling_t
  int top_k;
  float repetition, frequency, presence; // repetition 1: none
  int logprobs, prompt_logprobs;
  int has_allowed, has_counts;           // its rows of `allowed` and `counts` are valid
  uint32_t min_tokens;
  uint32_t drawn;                        // index of the next token to draw; counted on by the device
  int stop_count, bias_count;
  unsigned long long seed;
  const int *stop, *bias_token;          // each id once
  const float *bias;
};

struct SampleResult { // of one row; all but the token only where log probabilities are wanted
  int token;
  float logprob;
  int rank, top_count;
  int top_token[MOB_MAX_LOGPROBS];
  float top_logprob[MOB_MAX_LOGPROBS];
};

struct SampleRows {
  float *logits;            // [rows][ld], changed by masks and penalties
  int vocab, ld;
  const int *slots;         // [rows]; -1: padding
  const int *wanted;        // [rows]
  SlotSampling *slot;       // [slots]
  uint32_t *counts;         // [slots][vocab]
  const uint32_t *allowed;  // [slots][allowed_words] bits
  int allowed_words;
  unsigned long long *best; // [rows][kSampleParts], scratch
  uint32_t *groups;         // [rows][kSampleParts * kSampleGroups], scratch
  int *ids, *last_token;    // [rows], [slots]
  SampleResult *results;    // [rows]
};

// ---- sample.cu
void sample_rows(const SampleRows &p, int rows, cudaStream_t stream);
// Counts ids into a slot's counts, as prompt or as output; `ids` may be pinned host memory.
void sample_count(const int *ids, int n, bool output, uint32_t *counts, int vocab, cudaStream_t stream);
// ---- sample_filter.cu: its second half
void sample_draw(const SampleRows &p, int rows, cudaStream_t stream);

// ---- sampling.cu
struct Sampler { // device memory of one block, but for lists that are too long for it
  int vocab = 0, slots = 0, allowed_words = 0;
  SlotSampling *slot = nullptr;
  uint32_t *counts = nullptr, *allowed = nullptr, *groups = nullptr;
  int *lists = nullptr; // [slots][kSampleList]
  SampleResult *results = nullptr; // [rows]
  std::vector<void *> long_lists;  // of a slot
};
// Pinned memory from which a step's parameters go to the device; free again when the step has ended.
struct SampleStage {
  uint8_t *data = nullptr;
  size_t used = 0;
};
constexpr size_t kSampleStage = (size_t)1 << 20;
constexpr int kSampleList = 1024; // ints of a slot's stop ids and biases

// Greedy, and nothing that looks at more than the best logit.
bool sampling_is_plain(const mob_sampling_t &s);
// `batch`: rows of one call of sample_rows; `rows`: of a step
size_t sampler_bytes(int vocab, int slots, int batch, int rows);
void sampler_place(Sampler *sampler, int vocab, int slots, int batch, int rows, uint8_t *block);
// Queues the parameters and the history of a slot that is not plain. Waits for the stream only when a step opens slots with more than
// the stage holds.
mob_status sampler_open(Sampler *sampler, const mob_seq_open_t &open, SampleStage *stage, cudaStream_t stream);
void sampler_close(Sampler *sampler);

} // namespace mob
