// The linear of few tokens by whole columns: a CTA has all columns of its blocks of 64 outputs, so that no partial sums go through global
// memory. Where a matrix has about as many blocks as there are SMs and few columns (o_proj of 32 heads), the chain of steps counts and not the
// memory. A producer warp fills a ring of column pairs with bulk copies, before the kernel in front has ended; eight warps bring the rows of
// activations; two warpgroups take the pairs in turns and add their sums in shared memory, even pairs first.
//
// Experts: the down projections of all active experts of one or two tokens are one matrix, their columns one behind the other; what the
// router chose is older than the kernel in front. The rows of activations are made here from what gate and up gave, only those of a token's
// own experts; the sum over experts is weighted where a pair's products are promoted, so that what leaves is what the layer adds to the
// residual stream.
#include "kernels.h"

namespace mob {
namespace {

struct LinearWhole {
  const uint8_t *w; // packed tiles
  int pairs;        // column pairs of a matrix
  bf16 *y;          // [m][ldy]
  int ldy, m, n;
  ExpertsDown e;    // of experts; or
  const uint8_t *x; // records of mp rows
  int mp;
};

struct WholeShared {
  static constexpr int kTokens = 8;           // of a product
  static constexpr int kScales = kPairUsed;   // of activations, behind the weights' own
  static constexpr int kX = 17408;            // where a slot's activations begin, at a multiple of 1,024 as its weights do
  static constexpr int kSlot = kX + kTokens * 256;
  static constexpr int kTable = kMostActive * kTokens * 4; // a token's weight of an expert; 0: the router did not choose it
  static constexpr int kSums = 2 * 128 * 4 * 4;            // of the second warpgroup, of blocks in turn
  // Even, so that a slot is always the same warpgroup's: one that is ahead would else take the phase before the last for the next.
  static constexpr int kSlots = 10;
  // Slots that are asked for at a time, for the reason that linear_few.cuh gives.
  static constexpr int kOnTheWay = 3;
  static constexpr int kHelpers = 8, kThreads = 288 + kHelpers * 32;
  static constexpr int kBytes = 1024 + kSlots * kSlot + kTable + kSums + 3 * kSlots * 8;
};

// A place in the ring and its phase.
struct WholePlace {
  int slot, phase;
  __device__ void step(int by) {
    slot += by;
    while (slot >= WholeShared::kSlots) slot -= WholeShared::kSlots, phase ^= 1;
  }
};

// Weights have come; activations are made; both are read.
struct WholeBars {
  using S = WholeShared;
  uint64_t came[S::kSlots], made[S::kSlots], empty[S::kSlots];
};

// The producer: one thread.
template <bool Experts> __device__ __forceinline__ void whole_produce(const LinearWhole &p, uint8_t *ring, WholeBars *bar) {
  using S = WholeShared;
  const uint64_t once = policy_evict_first();
  const int blocks = (p.n + kTileRows - 1) / kTileRows, active = Experts ? load_relaxed_sys_int(p.e.active) : 1;
  WholePlace at = {0, 1}, late = {0, 0}; // the load that must have come before the next one is asked for
  int ahead = 0;
  for (int block = blockIdx.x; block < blocks; block += gridDim.x)
    for (int i = 0; i < active; i++) {
      const int matrix = Experts ? load_relaxed_sys_int(p.e.ids + i) : 0;
      const uint8_t *w = p.w + (size_t)matrix * p.e.w_stride + (size_t)block * p.pairs * kPairBytes;
      for (int pair = 0; pair < p.pairs; pair++, w += kPairBytes) {
        mbar_wait(&bar->empty[at.slot], at.phase);
        if (++ahead > S::kOnTheWay) {
          mbar_wait(&bar->came[late.slot], late.phase);
          late.step(1);
        }
        mbar_arrive_expect(&bar->came[at.slot], kPairUsed);
        bulk_load(ring + at.slot * S::kSlot, w, kPairUsed, &bar->came[at.slot], once);
        at.step(1);
      }
    }
}

// Activations of an expert's columns: what gate and up gave, for the tokens that have the expert. A warp takes every eighth pair.
template <bool Fp8> __device__ __forceinline__ void whole_activate(const LinearWhole &p, uint8_t *ring, const float *table, WholeBars *bar, int warp) {
  using S = WholeShared;
  const int blocks = (p.n + kTileRows - 1) / kTileRows, active = load_relaxed_sys_int(p.e.active), lane = threadIdx.x % 32;
  const int per_block = active * p.pairs, col = lane * 8;
  WholePlace at = {0, 1};
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
      for (int from = 0; from < p.m; from += kFewDown) {
        uint4 gate[kFewDown] = {}, up[kFewDown] = {};
#pragma unroll
        for (int t = 0; t < kFewDown; t++) {
          if (from + t >= p.m || weights[from + t] == 0 || !inside) continue;
          const bf16 *y = p.e.gate_up + ((size_t)i * p.m + from + t) * p.e.ld + c;
          gate[t] = *(const uint4 *)y, up[t] = *(const uint4 *)(y + p.e.up_at);
        }
        if (from == 0) mbar_wait(&bar->empty[at.slot], at.phase);
#pragma unroll
        for (int t = 0; t < kFewDown; t++) {
          if (from + t >= p.m || weights[from + t] == 0) continue;
          float v[8], u[8];
          unpack_bf16(gate[t], v);
          unpack_bf16(up[t], u);
#pragma unroll
          for (int k = 0; k < 8; k++) v[k] = swiglu(v[k], u[k]);
          put_record({slot + S::kX, 0, slot + S::kScales, 0, 8, from + t, Fp8}, col, v, p.e.ue8m0, mine);
        }
      }
      async_fence();
      __syncwarp();
      if (lane == 0) mbar_arrive(&bar->made[at.slot]);
      at.step(S::kHelpers);
    }
  }
}

// Rows of records, to the slots of their columns. A half-warp takes every other row, 16 bytes a lane.
__device__ __forceinline__ void whole_copy(const LinearWhole &p, uint8_t *ring, WholeBars *bar, int warp) {
  using S = WholeShared;
  constexpr int kEach = S::kTokens / 2;
  const int blocks = (p.n + kTileRows - 1) / kTileRows, lane = threadIdx.x % 32, first = lane / 16, half = lane / 8 % 2, c = lane % 8;
  const size_t record = record_bytes(true, p.mp);
  WholePlace at = {0, 1};
  at.step(warp);
  int pair = warp;
  for (int block = blockIdx.x; block < blocks; block += gridDim.x, pair -= p.pairs) {
    for (; pair < p.pairs; pair += S::kHelpers) {
      const uint8_t *from = p.x + (size_t)pair * record + (size_t)half * p.mp * 128, *scales = p.x + (size_t)pair * record + (size_t)p.mp * (256 + half * 4);
      uint8_t *slot = ring + at.slot * S::kSlot;
      uint4 v[kEach];
      float scale[kEach];
#pragma unroll
      for (int i = 0; i < kEach; i++) {
        const int t = first + 2 * i;
        if (t < p.m) v[i] = *(const uint4 *)(from + t * 128 + c * 16);
        if (t < p.m && c == 0) scale[i] = *(const float *)(scales + t * 4);
      }
      mbar_wait(&bar->empty[at.slot], at.phase);
#pragma unroll
      for (int i = 0; i < kEach; i++) {
        const int t = first + 2 * i;
        if (t < p.m) *(uint4 *)(slot + S::kX + (half * S::kTokens + t) * 128 + c * 16) = v[i];
        if (t < p.m && c == 0) *(float *)(slot + S::kScales + (half * S::kTokens + t) * 4) = scale[i];
      }
      async_fence();
      __syncwarp();
      if (lane == 0) mbar_arrive(&bar->made[at.slot]);
      at.step(S::kHelpers);
    }
  }
}

// A pair's products, not yet waited for.
template <bool Fp8> struct WholeProducts {
  using S = WholeShared;
  float acc[2][4]; // bf16: both tiles' in the first
  __device__ __forceinline__ void start(const uint8_t *slot) {
    using Mma = typename WgmmaOf<Fp8, S::kTokens>::Type;
    const uint8_t *x = slot + S::kX;
    keep_registers(acc[0]);
    if (Fp8) keep_registers(acc[1]);
    wgmma_fence();
    const uint64_t w0 = swizzled_operand(slot), x0 = swizzled_operand(x), w1 = swizzled_operand(slot + kTileBytes), x1 = swizzled_operand(x + S::kTokens * 128);
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
    const float *xs = (const float *)(slot + S::kScales);
#pragma unroll
    for (int half = 0; half <= Fp8; half++) {
      float s0 = weight.x, s1 = weight.y;
      if (Fp8) {
        const float2 v = *(const float2 *)(xs + half * S::kTokens + 2 * t4);
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

template <bool Fp8, bool Experts>
__device__ __forceinline__ void whole_consume(const LinearWhole &p, const uint8_t *ring, const float *table, float *sums, WholeBars *bar) {
  using S = WholeShared;
  const int tid = threadIdx.x, group = tid / 128, lane = tid % 32, t4 = lane % 4, blocks = (p.n + kTileRows - 1) / kTileRows;
  const int pairs = (Experts ? load_relaxed_sys_int(p.e.active) : 1) * p.pairs;
  WholePlace start = {0, 0};
  int turn = 0;
  for (int block = blockIdx.x; block < blocks; block += gridDim.x, turn ^= 1) {
    float sum[4] = {};
    WholePlace at = start;
    at.step(group);
    auto give_back = [&](const WholePlace &place) {
      __syncwarp();
      if (lane == 0) mbar_arrive(&bar->empty[place.slot]);
    };
    auto wait_for = [&](const WholePlace &place) {
      mbar_wait(&bar->made[place.slot], place.phase);
      mbar_wait(&bar->came[place.slot], place.phase);
    };
    auto weights_of = [&](int pair) { return table + pair / p.pairs * S::kTokens; };
    int pair = group;
    for (; pair + 2 < pairs; pair += 4) { // two at a time
      WholeProducts<Fp8> one, two;
      const WholePlace first = at;
      at.step(2);
      const uint8_t *slot1 = ring + first.slot * S::kSlot, *slot2 = ring + at.slot * S::kSlot;
      wait_for(first);
      one.start(slot1);
      wait_for(at);
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
      WholeProducts<Fp8> one;
      const uint8_t *slot = ring + at.slot * S::kSlot;
      wait_for(at);
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

template <bool Fp8, bool Experts>
__global__ void __launch_bounds__(WholeShared::kThreads) linear_whole_kernel(const LinearWhole p) {
  using S = WholeShared;
  DYNAMIC_SHARED(uint8_t, raw);
  uint8_t *ring = raw + (1024 - smem_address(raw) % 1024) % 1024;
  float *sums = (float *)(ring + S::kSlots * S::kSlot), *table = sums + S::kSums / 4;
  WholeBars *bar = (WholeBars *)(table + S::kTable / 4);
  const int tid = threadIdx.x, warp = tid / 32;

  depend_launch();
  if (tid == 0) {
    for (int i = 0; i < S::kSlots; i++) {
      mbar_init(&bar->came[i], 1);
      mbar_init(&bar->made[i], 1);
      mbar_init(&bar->empty[i], 4);
    }
    mbar_init_fence();
  }
  for (int i = tid; i < S::kTable / 4; i += S::kThreads) table[i] = !Experts && i < p.m ? 1 : 0;
  __syncthreads();
  if (Experts) {
    const int count = load_relaxed_sys_int(p.e.count); // the router's choice is older than the kernel before
    for (int i = tid; i < p.m * p.e.slots; i += S::kThreads) {
      const int t = i / p.e.slots, row = load_relaxed_sys_int(p.e.row + i);
      if (t < count && row >= 0) table[row / p.m * S::kTokens + t] = __int_as_float(load_relaxed_sys_int((const int *)p.e.weight + i));
    }
    __syncthreads();
  }
  if (warp == 8) {
    if (tid % 32 == 0) whole_produce<Experts>(p, ring, bar);
    return;
  }
  depend_wait();
  if (warp < 8) whole_consume<Fp8, Experts>(p, ring, table, sums, bar);
  else if constexpr (Experts) whole_activate<Fp8>(p, ring, table, bar, warp - 9);
  else whole_copy(p, ring, bar, warp - 9);
}

template <bool Fp8, bool Experts> void launch_whole(const LinearWhole &p, int sms, cudaStream_t stream) {
  const int blocks = (p.n + kTileRows - 1) / kTileRows;
  launch(linear_whole_kernel<Fp8, Experts>, blocks < sms ? blocks : sms, WholeShared::kThreads, WholeShared::kBytes, stream, p);
}

template <bool Fp8, bool Experts> void set_limit() {
  cudaFuncSetAttribute(linear_whole_kernel<Fp8, Experts>, cudaFuncAttributeMaxDynamicSharedMemorySize, WholeShared::kBytes);
}

} // namespace

void linear_whole_prepare() {
  set_limit<true, false>();
  set_limit<true, true>();
  set_limit<false, true>();
}

// Nearly all SMs have one block, and what a CTA reads is hardly more than the ring holds: with more columns equal bytes on all SMs count more.
bool linear_whole_serves(const Matrix &w, int m, int sms) {
  const int blocks = (w.n + kTileRows - 1) / kTileRows;
  return w.kind == Weights::F8 && m <= WholeShared::kTokens && blocks <= sms && blocks * 10 >= sms * 7 && column_pairs(w) <= 2 * WholeShared::kSlots;
}

void linear_whole(const Matrix &w, const Records &x, bf16 *y, int ldy, int m, int sms, cudaStream_t stream) {
  launch_whole<true, false>({w.data, (int)column_pairs(w), y, ldy, m, w.n, {}, x.data, x.mp}, sms, stream);
}

void linear_experts_down(const Matrix &w, const ExpertsDown &e, bf16 *y, int m, int sms, cudaStream_t stream) {
  LinearWhole p = {w.data, (int)column_pairs(w), y, w.n, m, w.n, e, nullptr, 0};
  p.e.w_stride = w.stride;
  if (w.kind == Weights::F8) launch_whole<true, true>(p, sms, stream);
  else launch_whole<false, true>(p, sms, stream);
}

} // namespace mob
