// The experts' down projections of one or two tokens, with what stands before and behind them, as one kernel.
//
// The projections of all active experts are one matrix, their columns one behind the other; a CTA has all columns of its blocks of 64
// outputs, so that no partial sums go through global memory. A producer warp fills a ring of column pairs with bulk copies, before the
// kernel in front has ended: what the router chose is older than that one. Eight warps make the rows of activations from what gate
// and up gave, only those of a token's own experts; two warpgroups take the pairs in turns and add their sums in shared memory, even pairs
// first. The sum over experts is weighted where a pair's products are promoted, so that what leaves is what the layer adds to the
// residual stream.
#include "kernels.h"

namespace mob {
namespace {

struct DownFew {
  const uint8_t *w; // packed tiles
  int pairs;        // column pairs of a matrix
  bf16 *y;          // [m][ldy]
  int ldy, m, n;
  ExpertsDown e;
};

struct DownShared {
  static constexpr int kTokens = 8;           // of a product
  static constexpr int kScales = kPairUsed;   // of activations, behind the weights' own
  static constexpr int kX = 17408;            // where a slot's activations begin, at a multiple of 1,024 as its weights do
  static constexpr int kSlot = kX + kTokens * 256;
  static constexpr int kTable = kMostActive * kTokens * 4; // a token's weight of an expert; 0: the router did not choose it
  static constexpr int kSums = 2 * 128 * 4 * 4;            // of the second warpgroup, of blocks in turn
  // Even, so that a slot is always the same warpgroup's: one that is ahead would else take the phase before the last for the next.
  static constexpr int kSlots = 10;
  static constexpr int kHelpers = 8, kThreads = 288 + kHelpers * 32;
  static constexpr int kBytes = 1024 + kSlots * kSlot + kTable + kSums + 2 * kSlots * 8;
};

// A place in the ring and its phase.
template <int Slots> struct RingPlace {
  int slot, phase;
  __device__ void step(int by) {
    slot += by;
    while (slot >= Slots) slot -= Slots, phase ^= 1;
  }
};

// The producer: one thread.
__device__ __forceinline__ void down_produce(const DownFew &p, uint8_t *ring, uint64_t *full, uint64_t *empty) {
  using S = DownShared;
  const uint64_t once = policy_evict_first();
  const int blocks = (p.n + kTileRows - 1) / kTileRows, active = load_relaxed_sys_int(p.e.active);
  RingPlace<S::kSlots> at = {0, 1};
  for (int block = blockIdx.x; block < blocks; block += gridDim.x)
    for (int i = 0; i < active; i++) {
      const int matrix = load_relaxed_sys_int(p.e.ids + i);
      const uint8_t *w = p.w + (size_t)matrix * p.e.w_stride + (size_t)block * p.pairs * kPairBytes;
      for (int pair = 0; pair < p.pairs; pair++, w += kPairBytes) {
        mbar_wait(&empty[at.slot], at.phase);
        mbar_arrive_expect(&full[at.slot], kPairUsed);
        bulk_load(ring + at.slot * S::kSlot, w, kPairUsed, &full[at.slot], once);
        at.step(1);
      }
    }
}

// Activations of an expert's columns: what gate and up gave, for the tokens that have the expert. A warp takes every eighth pair.
template <bool Fp8> __device__ __forceinline__ void down_activate(const DownFew &p, uint8_t *ring, const float *table, uint64_t *full, uint64_t *empty, int warp) {
  using S = DownShared;
  const int blocks = (p.n + kTileRows - 1) / kTileRows, active = load_relaxed_sys_int(p.e.active), lane = threadIdx.x % 32;
  const int per_block = active * p.pairs, col = lane * 8;
  RingPlace<S::kSlots> at = {0, 1};
  at.step(warp);
  int i = 0, pair = warp, first = 0; // of the list, of its expert, of the CTA's block
  for (int block = blockIdx.x; block < blocks; block += gridDim.x, first -= per_block) {
    for (; first + warp < per_block; first += S::kHelpers) {
      const int turn = first + warp;
      i = turn / p.pairs, pair = turn % p.pairs;
      const float *weights = table + i * 8;
      const int c = pair * (Fp8 ? 256 : 128) + col;
      const bool mine = (Fp8 || lane < 16), inside = mine && c < p.e.inter;
      uint8_t *slot = ring + at.slot * S::kSlot;
      mbar_wait(&empty[at.slot], at.phase);
      for (int t = 0; t < p.m; t++) {
        if (weights[t] == 0) continue;
        const bf16 *y = p.e.gate_up + ((size_t)i * p.m + t) * p.e.ld + c;
        float v[8] = {}, u[8];
        if (inside) {
          const uint4 gate = *(const uint4 *)y, up = *(const uint4 *)(y + p.e.up_at);
          unpack_bf16(gate, v);
          unpack_bf16(up, u);
#pragma unroll
          for (int k = 0; k < 8; k++) v[k] = v[k] / (1.0f + __expf(-v[k])) * u[k];
        }
        put_record({slot + S::kX, 0, slot + S::kScales, 0, 8, t, Fp8}, col, v, p.e.ue8m0, mine);
      }
      async_fence();
      __syncwarp();
      if (lane == 0) mbar_arrive(&full[at.slot]);
      at.step(S::kHelpers);
    }
  }
}

// A pair's products, not yet waited for.
template <bool Fp8> struct DownProducts {
  float acc[2][4]; // bf16: both tiles' in the first
  __device__ __forceinline__ void start(const uint8_t *slot) {
    using Mma = typename WgmmaOf<Fp8, DownShared::kTokens>::Type;
    const uint8_t *x = slot + DownShared::kX;
    keep_registers(acc[0]);
    if (Fp8) keep_registers(acc[1]);
    wgmma_fence();
    const uint64_t w0 = swizzled_operand(slot), x0 = swizzled_operand(x), w1 = swizzled_operand(slot + kTileBytes), x1 = swizzled_operand(x + DownShared::kTokens * 128);
#pragma unroll
    for (int k = 0; k < 4; k++) Mma::run(acc[0], w0 + 2 * k, x0 + 2 * k, k > 0);
#pragma unroll
    for (int k = 0; k < 4; k++) Mma::run(acc[Fp8], w1 + 2 * k, x1 + 2 * k, !Fp8 || k > 0);
    wgmma_commit();
  }
  // weights: of tokens
  __device__ __forceinline__ void add(float (&sum)[4], const uint8_t *slot, const float *weights, int t4) {
    keep_registers(acc[0]);
    if (Fp8) keep_registers(acc[1]);
    const float2 ws = *(const float2 *)(slot + kPairScales), weight = *(const float2 *)(weights + 2 * t4);
    const float *xs = (const float *)(slot + DownShared::kScales);
#pragma unroll
    for (int half = 0; half <= Fp8; half++) {
      float s0 = weight.x, s1 = weight.y;
      if (Fp8) {
        const float2 v = *(const float2 *)(xs + half * DownShared::kTokens + 2 * t4);
        const float w = half ? ws.y : ws.x;
        s0 *= w * v.x, s1 *= w * v.y;
      }
      const float *a = acc[half];
      sum[0] += weight.x != 0 ? a[0] * s0 : 0; // what is not chosen may be no number
      sum[1] += weight.y != 0 ? a[1] * s1 : 0;
      sum[2] += weight.x != 0 ? a[2] * s0 : 0;
      sum[3] += weight.y != 0 ? a[3] * s1 : 0;
    }
  }
};

template <bool Fp8>
__device__ __forceinline__ void down_consume(const DownFew &p, const uint8_t *ring, const float *table, float *sums, uint64_t *full, uint64_t *empty) {
  using S = DownShared;
  const int tid = threadIdx.x, group = tid / 128, lane = tid % 32, t4 = lane % 4, blocks = (p.n + kTileRows - 1) / kTileRows;
  const int pairs = load_relaxed_sys_int(p.e.active) * p.pairs;
  RingPlace<S::kSlots> start = {0, 0};
  int turn = 0;
  for (int block = blockIdx.x; block < blocks; block += gridDim.x, turn ^= 1) {
    float sum[4] = {};
    RingPlace<S::kSlots> at = start;
    at.step(group);
    auto give_back = [&](const RingPlace<S::kSlots> &place) {
      __syncwarp();
      if (lane == 0) mbar_arrive(&empty[place.slot]);
    };
    auto weights_of = [&](int pair) { return table + pair / p.pairs * S::kTokens; };
    int pair = group;
    for (; pair + 2 < pairs; pair += 4) { // two at a time
      DownProducts<Fp8> one, two;
      const RingPlace<S::kSlots> first = at;
      at.step(2);
      const uint8_t *slot1 = ring + first.slot * S::kSlot, *slot2 = ring + at.slot * S::kSlot;
      mbar_wait(&full[first.slot], first.phase);
      one.start(slot1);
      mbar_wait(&full[at.slot], at.phase);
      two.start(slot2);
      wgmma_wait<1>();
      one.add(sum, slot1, weights_of(pair), t4);
      give_back(first);
      wgmma_wait<0>();
      two.add(sum, slot2, weights_of(pair + 2), t4);
      give_back(at);
      at.step(2);
    }
    if (pair < pairs) {
      DownProducts<Fp8> one;
      const uint8_t *slot = ring + at.slot * S::kSlot;
      mbar_wait(&full[at.slot], at.phase);
      one.start(slot);
      wgmma_wait<0>();
      one.add(sum, slot, weights_of(pair), t4);
      give_back(at);
    }
    start.step(pairs % S::kSlots);
    if (pairs / S::kSlots % 2) start.phase ^= 1;
    float *there = sums + turn * 512 + tid % 128 * 4;
    if (group == 1) *(float4 *)there = make_float4(sum[0], sum[1], sum[2], sum[3]);
    group_sync<256>(1);
    if (group == 1) continue;
    const int row = block * kTileRows + tid / 32 * 16 + lane / 4; // and row + 8
    const float4 other = *(const float4 *)there;
    const float all[4] = {sum[0] + other.x, sum[1] + other.y, sum[2] + other.z, sum[3] + other.w};
#pragma unroll
    for (int q = 0; q < 4; q++) {
      const int token = 2 * t4 + q % 2, n = row + q / 2 * 8;
      if (token < p.m && n < p.n) p.y[(size_t)token * p.ldy + n] = __float2bfloat16(all[q]);
    }
  }
}

template <bool Fp8>
__global__ void __launch_bounds__(DownShared::kThreads) down_few_kernel(const DownFew p) {
  using S = DownShared;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *ring = raw + (1024 - smem_address(raw) % 1024) % 1024;
  float *sums = (float *)(ring + S::kSlots * S::kSlot), *table = sums + S::kSums / 4;
  uint64_t *full = (uint64_t *)(table + S::kTable / 4), *empty = full + S::kSlots;
  const int tid = threadIdx.x, warp = tid / 32;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kSlots; i++) {
      mbar_init(&full[i], 2); // the producer and a helper
      mbar_init(&empty[i], 4);
    }
    mbar_init_fence();
  }
  for (int i = tid; i < S::kTable / 4; i += S::kThreads) table[i] = 0;
  __syncthreads();
  const int count = load_relaxed_sys_int(p.e.count); // the router's choice is older than the kernel before
  for (int i = tid; i < p.m * p.e.slots; i += S::kThreads) {
    const int t = i / p.e.slots, row = load_relaxed_sys_int(p.e.row + i);
    if (t < count && row >= 0) table[row / p.m * S::kTokens + t] = __int_as_float(load_relaxed_sys_int((const int *)p.e.weight + i));
  }
  __syncthreads();
  if (warp == 8) {
    if (tid % 32 == 0) down_produce(p, ring, full, empty);
    return;
  }
  depend_wait();
  if (warp < 8) down_consume<Fp8>(p, ring, table, sums, full, empty);
  else down_activate<Fp8>(p, ring, table, full, empty, warp - 9);
}

template <bool Fp8> void launch_down(const DownFew &p, int sms, cudaStream_t stream) {
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  launch(down_few_kernel<Fp8>, blocks < sms ? blocks : sms, DownShared::kThreads, DownShared::kBytes, stream, p);
}

} // namespace

void linear_experts_down_prepare() {
  cudaFuncSetAttribute(down_few_kernel<true>, cudaFuncAttributeMaxDynamicSharedMemorySize, DownShared::kBytes);
  cudaFuncSetAttribute(down_few_kernel<false>, cudaFuncAttributeMaxDynamicSharedMemorySize, DownShared::kBytes);
}

void linear_experts_down(const Matrix &w, const ExpertsDown &e, bf16 *y, int m, int sms, cudaStream_t stream) {
  DownFew p = {w.data, (int)column_pairs(w), y, w.n, m, w.n, e};
  p.e.w_stride = w.stride;
  if (w.kind == Weights::F8) launch_down<true>(p, sms, stream);
  else launch_down<false>(p, sms, stream);
}

} // namespace mob
