// Launches of a router's product for 5 to 256 rows.
#include "route_many.h"
#include "router_many.cuh"

namespace mob {
namespace {

template <int Tokens> void run(const RouterMany &p, cudaStream_t stream) {
  using S = RouterManyShared<Tokens>;
  const dim3 grid((unsigned)(p.pairs + 1) / 2, (unsigned)(p.n + 127) / 128, (unsigned)((p.m + Tokens - 1) / Tokens));
  launch(router_many_kernel<Tokens>, grid, S::kThreads, S::kBytes, stream, p);
}
template <int Tokens> void set_limit() {
  cudaFuncSetAttribute(router_many_kernel<Tokens>, cudaFuncAttributeMaxDynamicSharedMemorySize, RouterManyShared<Tokens>::kBytes);
}

} // namespace

void router_many_prepare() {
  set_limit<32>();
  set_limit<64>();
  set_limit<128>();
}

void router_many(const Matrix &w, const Records &x, float *y, int m, cudaStream_t stream) {
  const RouterMany p = {w.data, x.data, x.mp, y, m, w.n, (int)column_pairs(w)};
  if (m <= 64) run<32>(p, stream);
  else if (m <= 128) run<64>(p, stream);
  else run<128>(p, stream);
}

} // namespace mob
