// experts_few.cu: the experts of 3 to 8 tokens in one launch, from the normed rows to what the layer adds to the residual stream:
// y [m][n] = sum over a token's experts of weight * down(silu(gate) * up).
#pragma once
#include "kernels.h"

namespace mob {

constexpr int kMostExperts = 136; // of a launch
struct ExpertsFew {
  Matrix up, down;     // of all experts; up: `inter` rows of gate, at `up_at` as many of up
  int inter, up_at;
  Records x;           // rows that all experts read
  uint8_t *act;        // scratch: records of 8 rows and down.k columns for every active expert
  const int *active;   // [1], at most kMostExperts, and `ids` of them, as moe_plan_few() leaves them: the last `shared` are first_shared and
  const int *ids;      //   those behind it, whatever a router chose
  int first_shared, shared;
  const int *row;      // [m][slots]: place in the list * m + token; -1: elsewhere
  const float *weight; // [m][slots]
  const int *count;    // [1] tokens that are no padding; the others get 0
  int slots;
  bool ue8m0;
};
// most_active: as many as `active` may say. Fewer tokens are served sooner by linear_experts_few() and linear_experts_down().
bool experts_few_serves(const ExpertsFew &e, int m, int most_active);
void experts_few(const ExpertsFew &e, bf16 *y, int m, int most_active, const LinearScratch &s, cudaStream_t stream);
void experts_few_prepare(); // once a device, by linear_prepare()

} // namespace mob
