// What checks read of a router's choice, and put in its place (mob_routes_t). Nothing here runs otherwise.
#include "engine/cuda/exec.h"
#include "route.cuh"

namespace mob {
namespace {

// The weights of given experts, a warp a row: as route_row() weighs those that it chose.
template <int kPer>
__global__ void __launch_bounds__(128) weigh_kernel(const RouterSpec spec, const float *logits, const int *ids, float *weights, int weight_ld,
                                                    int rows) {
  depend_launch();
  depend_wait();
  const int row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, n = spec.experts, first = lane * kPer;
  if (row >= rows) return;
  float score[kPer], mine = 0;
#pragma unroll
  for (int i = 0; i < kPer; i++) score[i] = first + i < n ? logits[(size_t)row * n + first + i] : -INFINITY;
  score_row<kPer>(spec, score);
  for (int k = 0; k < spec.top_k; k++) {
    const int id = ids[(size_t)row * spec.top_k + k];
    float own = 0;
#pragma unroll
    for (int i = 0; i < kPer; i++) own = first + i == id ? score[i] : own;
    own = warp_sum(own); // one lane has it
    mine = lane == k ? own : mine;
  }
  const float sum = warp_sum(mine) + (spec.sigmoid ? 1e-20f : 0.0f);
  if (lane < spec.top_k) weights[(size_t)row * weight_ld + lane] = mine * (spec.norm ? spec.routed_scale / sum : spec.routed_scale);
}

void weigh(const RouterSpec &spec, const float *logits, const int *ids, float *weights, int weight_ld, int rows, cudaStream_t stream) {
  const int grid = (rows + 3) / 4;
  if (spec.experts <= 256) launch(weigh_kernel<8>, grid, 128, 0, stream, spec, logits, ids, weights, weight_ld, rows);
  else launch(weigh_kernel<16>, grid, 128, 0, stream, spec, logits, ids, weights, weight_ld, rows);
}

} // namespace

mob_status routes_exchange(const Exec *exec, Rank *r, int layer, const RouterSpec &spec, const Matrix &router, const Records &split,
                           int weight_ld, int rows) {
  const mob_routes_t *routes = exec->spec.routes;
  const size_t at = (size_t)layer * (size_t)exec->spec.max_tokens * (size_t)spec.top_k, bytes = (size_t)rows * (size_t)spec.top_k * 4;
  if (routes->chosen && r->index == 0)
    CU_TRY(cudaMemcpyAsync(routes->chosen + at, r->expert_ids, bytes, cudaMemcpyDeviceToHost, r->stream));
  if (!routes->given) return MOB_OK;
  CU_TRY(cudaMemcpyAsync(r->expert_ids, routes->given + at, bytes, cudaMemcpyHostToDevice, r->stream));
  linear(router, split, r->router_logits, spec.experts, true, rows, 2, r->scratch, r->stream);
  weigh(spec, r->router_logits, r->expert_ids, r->expert_weight, weight_ld, rows, r->stream);
  return MOB_OK;
}

mob_status routes_count(const Exec *exec, const Rank *r, int layer, int shared, bool few) {
  const mob_routes_t *routes = exec->spec.routes;
  if (!routes->experts || r->index != 0) return MOB_OK;
  int active = 0, count = 0; // experts, or tiles of experts
  CU_TRY(cudaMemcpyAsync(&active, r->active, sizeof active, cudaMemcpyDeviceToHost, r->stream));
  CU_TRY(cudaStreamSynchronize(r->stream));
  if (few) {
    count = active - shared;
  } else {
    std::vector<TokenTile> tiles((size_t)active);
    CU_TRY(cudaMemcpyAsync(tiles.data(), r->token_tiles, tiles.size() * sizeof tiles[0], cudaMemcpyDeviceToHost, r->stream));
    CU_TRY(cudaStreamSynchronize(r->stream));
    for (const TokenTile &t : tiles) count += t.index == 0 && t.matrix < r->experts;
  }
  routes->experts[layer] = count;
  return MOB_OK;
}

} // namespace mob
