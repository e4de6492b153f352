// Both ends of a step. Its tables are copied to the device while the step before runs, and the first kernel of its graph takes them from
// there; its last one stores ids and times in the host's memory. So between one step and the next there is nothing but a launch.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

namespace mob {

struct StepTimes { // of the GPU's clock, ns; 0: not told
  uint64_t begun, ended;
};

// The first ints of a step's tables.
constexpr int kStepHead = 16;
struct StepHead {
  int count;        // rows of the step
  int used;         // ints of the tables, these included
  StepTimes *times; // pinned
  int *ids;         // pinned, of the rows whose logits are wanted
  uint64_t begun;   // told with the ids: what a kernel stores in the host's memory makes its end 2 us later
};
static_assert(sizeof(StepHead) <= kStepHead * sizeof(int), "");

// Tables of steps under way: those of step n (of all that were queued on this rank) are at tables + n % slots * ints.
struct StepTables {
  const int *tables;
  int ints, slots; // ints: a multiple of 4; up to kTableSlots
  int *turn;       // n % slots, on the device; counted on by the kernel
};
constexpr int kTableSlots = 4;
void take_tables(const StepTables &from, int *to, cudaStream_t stream);

// `ids` of `rows` rows, and the time. `head`: as take_tables() left it.
void tell_host(const StepHead *head, const int *ids, int rows, cudaStream_t stream);

} // namespace mob
