// What a MoE layer of 5 to 256 rows does between its norm and its experts, in few kernels.
#pragma once
#include "kernels.h"

namespace mob {

constexpr int kRouteRows = 256;

// Tokens of an expert's tiles but the last: what is left over costs less than tiles half full.
__host__ __device__ inline int tile_tokens_each(int tokens, int most) {
  return tokens > most ? most : tokens > 0 ? (tokens + 7) / 8 * 8 : 8;
}

// ---- router_many.cu: the router's product for m <= kRouteRows rows whose bf16 records hold hi parts, then lo parts of w's columns, in
// parts by columns: y [router_parts(w)][m][n], whose sum is the product.
inline int router_parts(const Matrix &w) { return ((int)column_pairs(w) + 1) / 2; }
void router_many(const Matrix &w, const Records &x, float *y, int m, cudaStream_t stream);
void router_many_prepare(); // once a device, by linear_prepare()

// ---- gather_few.cu: moe_plan_many() and moe_gather() in one kernel, for so few choices that every CTA can look at all.
bool moe_plan_gather_serves(const MoePlan &p);
void moe_plan_gather(const Records &x, const MoePlan &p, const TileRows &out, cudaStream_t stream);

} // namespace mob
