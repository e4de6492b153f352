// Draws a token from a row of logits as the CPU's sampler does: temperature, top-k, top-p, min-p, one uniform value, log
// probabilities. One CTA a row.
//
// A probability is a fixed-point number (44 bits of fraction, the best token has 1), so that sums are the same in whatever order
// they are taken, and a set of tokens always has one mass. Order ("rank") is that of the logits, then of the ids. What top-k, top-p and
// min-p leave is a prefix of that order, a Cut; its end, and the token that is drawn, are each the first token with which the
// number or the mass of tokens reaches a target. Three ways to it, no sort of the row:
//   - the about 700 best (at least 512) are collected and sorted, and almost always the target is met among them;
//   - else histograms over the row narrow its place down until few enough tokens are in question;
//   - without top-k and top-p the CPU draws in order of ids: sums of the warps' ranges, then within one range.
#include "sample.cuh"

namespace mob {
namespace {

constexpr int kThreads = 1024, kWarps = kThreads / 32;
constexpr int kCandidates = 2048, kWanted = 512; // room for collected tokens, how many are meant to be collected at least
constexpr int kBins = 2048;
constexpr int kFraction = 44;
constexpr float kBinsPerBit = 45.0f;   // first histogram, over log2 of the probability: the last bin has no mass
constexpr float kNoWeight = -1075.0f;  // log2 of what rounds to 0 in double precision: the CPU drops such tokens

struct Row {
  const float *logits;
  int vocab, begin, end; // [begin, end): this warp's ids
  float max, scale;      // log2 of a token's share of the best one's probability = (logit - max) * scale
};

struct Cut { // tokens from the best to the one of `key`
  Key key;
  unsigned long long mass;
  int count;
};

struct Shared {
  Key keys[kCandidates];                // descending, once sorted
  unsigned long long sums[kCandidates]; // masses of keys[0..i]; of the bins: low and high halves
  uint32_t bins[kBins];                 // counts
  unsigned long long wide[kWarps];
  unsigned long long kept[kWarps];      // mass of the warps' ranges
  int narrow[kWarps];
  int found, filled, before_count;
  unsigned long long before_mass;
  Key cut;
};

__device__ __forceinline__ float log2_share(const Row &row, float logit) { return (logit - row.max) * row.scale; }

// exp2 in fixed point, in two halves of 22 bits.
__device__ __forceinline__ void split_mass(float log2, uint32_t &high, uint32_t &low) {
  const float share = exp2f(log2) * 4194304.0f;
  high = (uint32_t)share;
  low = (uint32_t)((share - (float)high) * 4194304.0f);
}
__device__ __forceinline__ unsigned long long mass_of(const Row &row, float logit) {
  uint32_t high, low;
  split_mass(log2_share(row, logit), high, low);
  return (unsigned long long)high << 22 | low;
}

// f(id, logit) for all of the row; NaN where there is no such id.
template <class F> __device__ __forceinline__ void each(const Row &row, F f) {
  constexpr int kBatch = 8;
  for (int i = row.begin + (int)threadIdx.x % 32; i < row.end; i += 32 * kBatch) {
    float v[kBatch];
#pragma unroll
    for (int k = 0; k < kBatch; k++) v[k] = i + 32 * k < row.end ? row.logits[i + 32 * k] : NAN;
#pragma unroll
    for (int k = 0; k < kBatch; k++) f(i + 32 * k, v[k]);
  }
}

// ------------------------------------------------------------------------------- of the whole CTA

__device__ __forceinline__ unsigned long long warp_sum_wide(unsigned long long v) {
#pragma unroll
  for (int s = 16; s; s >>= 1) v += __shfl_xor_sync(~0u, v, s);
  return v;
}
__device__ unsigned long long sum_wide(Shared &sh, unsigned long long v) {
  v = warp_sum_wide(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh.wide[threadIdx.x / 32] = v;
  __syncthreads();
  return warp_sum_wide(sh.wide[threadIdx.x % 32]);
}
__device__ int sum_int(Shared &sh, int v) {
#pragma unroll
  for (int s = 16; s; s >>= 1) v += __shfl_xor_sync(~0u, v, s);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh.narrow[threadIdx.x / 32] = v;
  __syncthreads();
  v = sh.narrow[threadIdx.x % 32];
#pragma unroll
  for (int s = 16; s; s >>= 1) v += __shfl_xor_sync(~0u, v, s);
  return v;
}
__device__ Key largest(Shared &sh, Key v) {
  v = warp_best(v);
  __syncthreads();
  if (threadIdx.x % 32 == 0) sh.wide[threadIdx.x / 32] = v;
  __syncthreads();
  return warp_best(sh.wide[threadIdx.x % 32]);
}
__device__ __forceinline__ unsigned long long warp_prefix(unsigned long long v) { // up to this lane, with it
#pragma unroll
  for (int s = 1; s < 32; s *= 2) {
    const unsigned long long o = __shfl_up_sync(~0u, v, s);
    if ((int)threadIdx.x % 32 >= s) v += o;
  }
  return v;
}
// Sum of the threads before this one.
__device__ unsigned long long sum_before(Shared &sh, unsigned long long v) {
  const unsigned long long upto = warp_prefix(v);
  __syncthreads();
  if (threadIdx.x % 32 == 31) sh.wide[threadIdx.x / 32] = upto;
  __syncthreads();
  const unsigned long long warps = warp_prefix(sh.wide[threadIdx.x % 32]);
  const int warp = threadIdx.x / 32;
  const unsigned long long before = __shfl_sync(~0u, warps, warp == 0 ? 0 : warp - 1);
  return upto - v + (warp == 0 ? 0 : before);
}

// Sorts keys[0, n) descending (bitonic). Steps of 32 and less stay within a warp's 64 keys.
__device__ void sort_keys(Shared &sh, int n) {
  int size = 64;
  while (size < n) size *= 2;
  for (int i = n + threadIdx.x; i < size; i += kThreads) sh.keys[i] = 0;
  __syncthreads();
  const int t = threadIdx.x;
  for (int run = 2; run <= size; run *= 2) {
    for (int stride = run / 2; stride > 0; stride /= 2) {
      if (t < size / 2) {
        const int i = 2 * t - (t & (stride - 1)), j = i + stride;
        const Key a = sh.keys[i], b = sh.keys[j];
        if ((a < b) == ((i & run) == 0)) {
          sh.keys[i] = b;
          sh.keys[j] = a;
        }
      }
      if (stride > 32 || (stride == 1 && run > 32)) __syncthreads();
      else __syncwarp();
    }
  }
}

// sums[i] = mass of keys[0..i]
__device__ void sum_keys(Shared &sh, const Row &row, int n) {
  unsigned long long mass[2];
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const int i = 2 * (int)threadIdx.x + k;
    mass[k] = i < n ? mass_of(row, key_value(sh.keys[i])) : 0;
  }
  const unsigned long long before = sum_before(sh, mass[0] + mass[1]);
  sh.sums[2 * threadIdx.x] = before + mass[0];
  sh.sums[2 * threadIdx.x + 1] = before + mass[0] + mass[1];
  __syncthreads();
}

// First of the sorted keys [0, n) with which the mass, `base` before them, reaches the target; the last one if none does.
__device__ int first_to_reach(Shared &sh, int n, unsigned long long base, unsigned long long target) {
  __syncthreads();
  if (threadIdx.x == 0) sh.found = n - 1;
  __syncthreads();
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const int i = 2 * (int)threadIdx.x + k;
    if (i < n && base + sh.sums[i] >= target && (i == 0 || base + sh.sums[i - 1] < target)) sh.found = i;
  }
  __syncthreads();
  return sh.found;
}

__device__ Cut cut_at(const Shared &sh, int i, unsigned long long base_mass, int base_count) {
  return {sh.keys[i], base_mass + sh.sums[i], base_count + i + 1};
}

// ------------------------------------------------------------------------------------ histograms

struct Range {          // keys still in question, and what lies above them
  Key low, high;
  int bin;              // >= 0: only those of this bin of the first histogram
  unsigned long long mass;
  int count, size;
};

// Bins by log2 of the share; finite logits only.
__device__ __forceinline__ int share_bin(const Row &row, float logit) {
  return (int)fminf(-log2_share(row, logit) * kBinsPerBit, (float)(kBins - 1));
}

// Adds to a 64-bit sum of two halves in shared memory, where 64-bit additions would be loops.
__device__ __forceinline__ void add_halves(unsigned long long *sum, unsigned long long v) {
  uint32_t *half = (uint32_t *)sum;
  const uint32_t low = (uint32_t)v, old = atomicAdd(&half[0], low);
  const uint32_t high = (uint32_t)(v >> 32) + (old + low < old);
  if (high) atomicAdd(&half[1], high);
}

// Narrows the range to the bin in which the target is reached.
__device__ void narrow(Shared &sh, const Row &row, Range *r, bool by_count, unsigned long long target) {
  const bool first = r->low == 0;
  int shift = 0;
  while ((r->high - r->low) >> shift >= kBins) shift++;
  __syncthreads();
  for (int i = threadIdx.x; i < kBins; i += kThreads) {
    sh.bins[i] = 0;
    sh.sums[i] = 0;
  }
  if (threadIdx.x == 0) sh.found = -1;
  __syncthreads();
  const Key low = r->low, high = r->high;
  each(row, [&](int id, float logit) {
    if (!(logit > -INFINITY)) return;
    const Key key = key_of(logit, id);
    if (key < low || key > high) return;
    const int bin = first ? share_bin(row, logit) : (int)((high - key) >> shift);
    atomicAdd(&sh.bins[bin], 1u);
    add_halves(&sh.sums[bin], mass_of(row, logit));
  });
  __syncthreads();
  const int i = 2 * (int)threadIdx.x;
  const unsigned long long mass0 = sh.sums[i], mass1 = sh.sums[i + 1], count0 = sh.bins[i], count1 = sh.bins[i + 1];
  const unsigned long long mass = r->mass + sum_before(sh, mass0 + mass1);
  const unsigned long long count = (unsigned long long)r->count + sum_before(sh, count0 + count1);
  const unsigned long long before = by_count ? count : mass, step0 = by_count ? count0 : mass0, step1 = by_count ? count1 : mass1;
  if (before < target && before + step0 + step1 >= target) { // one thread
    const bool second = before + step0 < target;
    sh.found = i + second;
    sh.before_mass = mass + (second ? mass0 : 0);
    sh.before_count = (int)(count + (second ? count0 : 0));
  }
  __syncthreads();
  const int bin = sh.found; // always there: targets are sums of what is in the range
  r->mass = sh.before_mass;
  r->count = sh.before_count;
  r->size = (int)sh.bins[bin];
  if (first) {
    r->bin = bin;
    r->low = 1;
    return;
  }
  r->bin = -1;
  r->high = high - ((Key)bin << shift);
  const Key least = r->high - ((Key)1 << shift) + 1;
  if (least > low && least <= r->high) r->low = least;
}

// A bin of shares as a range of keys.
__device__ void bin_to_keys(Shared &sh, const Row &row, Range *r) {
  Key high = 0, flipped = 0;
  each(row, [&](int id, float logit) {
    if (!(logit > -INFINITY) || share_bin(row, logit) != r->bin) return;
    const Key key = key_of(logit, id);
    high = key > high ? key : high;
    flipped = ~key > flipped ? ~key : flipped;
  });
  r->high = largest(sh, high);
  r->low = ~largest(sh, flipped);
  r->bin = -1;
}

// The keys of a range, sorted, with their sums; returns how many.
__device__ int collect(Shared &sh, const Row &row, const Range &r) {
  __syncthreads();
  if (threadIdx.x == 0) sh.filled = 0;
  __syncthreads();
  each(row, [&](int id, float logit) {
    if (!(logit > -INFINITY) || (r.bin >= 0 && share_bin(row, logit) != r.bin)) return;
    const Key key = key_of(logit, id);
    if (key < r.low || key > r.high) return;
    const int at = atomicAdd(&sh.filled, 1);
    if (at < kCandidates) sh.keys[at] = key;
  });
  __syncthreads();
  const int n = sh.filled < kCandidates ? sh.filled : kCandidates;
  sort_keys(sh, n);
  sum_keys(sh, row, n);
  return n;
}

// The shortest prefix of the row whose count, or mass, reaches the target (at least 1, at most the row's).
__device__ Cut select(Shared &sh, const Row &row, bool by_count, unsigned long long target) {
  Range r = {0, ~0ull, -1, 0, 0, 0};
  do {
    if (r.bin >= 0) bin_to_keys(sh, row, &r);
    narrow(sh, row, &r, by_count, target);
  } while (r.size > kCandidates);
  const int n = collect(sh, row, r);
  const int i = by_count ? (int)(target - (unsigned long long)r.count) - 1 : first_to_reach(sh, n, r.mass, target);
  return cut_at(sh, i, r.mass, r.count);
}

// --------------------------------------------------------------------------------------- one row

struct Scan { // of the whole row
  unsigned long long mass; // of the tokens that are kept
  int count, finite;       // kept; not masked
};

// Sums what has at least the share `floor`; collects keys from `least` on, if wanted.
__device__ Scan scan_row(Shared &sh, const Row &row, float floor, bool gather, float least) {
  uint32_t high = 0, low = 0;
  int count = 0, finite = 0;
  __syncthreads();
  if (threadIdx.x == 0) sh.filled = 0;
  __syncthreads();
  each(row, [&](int id, float logit) {
    if (!(logit > -INFINITY)) return;
    finite++;
    const float log2 = log2_share(row, logit);
    if (log2 >= floor) {
      uint32_t h, l;
      split_mass(log2, h, l);
      high += h;
      low += l;
      count++;
    }
    if (gather && logit >= least) {
      const int at = atomicAdd(&sh.filled, 1);
      if (at < kCandidates) sh.keys[at] = key_of(logit, id);
    }
  });
  const unsigned long long range = warp_sum_wide(((unsigned long long)high << 22) + low);
  if (threadIdx.x % 32 == 0) sh.kept[threadIdx.x / 32] = range;
  Scan scan;
  scan.mass = sum_wide(sh, threadIdx.x % 32 == 0 ? range : 0);
  scan.count = sum_int(sh, count);
  scan.finite = sum_int(sh, finite);
  return scan;
}

// The logit from which on at least kWanted tokens are collected (all, when there are not so many).
__device__ float least_wanted(Shared &sh, const uint32_t *groups) {
  sh.keys[threadIdx.x] = groups[threadIdx.x];
  sort_keys(sh, kThreads);
  const uint32_t ordered = (uint32_t)sh.keys[kWanted - 1];
  __syncthreads();
  return ordered == 0 ? -INFINITY : value_of(ordered);
}

// A cut less the tokens below `floor`, counted again over the row.
__device__ Cut raise_floor(Shared &sh, const Row &row, const Cut &cut, float floor) {
  uint32_t high = 0, low = 0;
  int count = 0;
  Key flipped = 0;
  each(row, [&](int id, float logit) {
    if (!(logit > -INFINITY)) return;
    const Key key = key_of(logit, id);
    const float log2 = log2_share(row, logit);
    if (key < cut.key || !(log2 >= floor)) return;
    uint32_t h, l;
    split_mass(log2, h, l);
    high += h;
    low += l;
    count++;
    flipped = ~key > flipped ? ~key : flipped;
  });
  Cut out;
  out.mass = sum_wide(sh, ((unsigned long long)high << 22) + low);
  out.count = sum_int(sh, count);
  out.key = ~largest(sh, flipped);
  return out;
}

// Draws in order of ids: the first id with which the mass of those at or above `floor` reaches the target.
__device__ int draw_by_id(Shared &sh, const Row &row, int range, float floor, unsigned long long target) {
  const unsigned long long upto = warp_prefix(sh.kept[threadIdx.x % 32]);
  const int warp = __ffs((int)__ballot_sync(~0u, upto >= target)) - 1;
  unsigned long long before = __shfl_sync(~0u, upto, warp > 0 ? warp - 1 : 0);
  if (warp == 0) before = 0;
  const int begin = warp * range, end = begin + range < row.vocab ? begin + range : row.vocab;
  const int each_count = (range + kThreads - 1) / kThreads;
  const int from = begin + (int)threadIdx.x * each_count, to = from + each_count < end ? from + each_count : end;
  unsigned long long mine = 0;
  for (int i = from; i < to; i++) {
    const float logit = row.logits[i];
    if (logit > -INFINITY && log2_share(row, logit) >= floor) mine += mass_of(row, logit);
  }
  before += sum_before(sh, mine);
  if (before < target && before + mine >= target) { // one thread
    for (int i = from; i < to && before < target; i++) {
      const float logit = row.logits[i];
      if (logit > -INFINITY && log2_share(row, logit) >= floor) before += mass_of(row, logit);
      sh.found = i;
    }
  }
  __syncthreads();
  return sh.found;
}

// 1 + how many tokens rank before this one when those outside the cut are all minus infinity.
__device__ int rank_of(Shared &sh, const Row &row, const Cut &cut, float floor, int token) {
  const float own = row.logits[token];
  const Key own_key = key_of(own, token);
  const bool own_kept = own > -INFINITY && own_key >= cut.key && log2_share(row, own) >= floor;
  int better = 0;
  each(row, [&](int id, float logit) {
    if (id >= row.end) return;
    const Key key = key_of(logit, id);
    const bool kept = logit > -INFINITY && key >= cut.key && log2_share(row, logit) >= floor;
    better += own_kept ? kept && key > own_key : kept || id < token;
  });
  return 1 + sum_int(sh, better);
}

// How a slot's parameters act on this row.
struct Filter {
  float temperature, top_p, floor; // 1 where the best is taken; log2 of min_p
  int top_k;
  bool greedy;
};

__device__ __forceinline__ Filter filter_of(const SlotSampling &s) {
  if (s.temperature < 1e-5f) return {1.0f, 1.0f, -INFINITY, 0, true};
  const float min_p = s.min_p > 1.0f ? 1.0f : s.min_p;
  return {s.temperature, s.top_p, min_p > 0 ? fmaxf(log2f(min_p), kNoWeight) : kNoWeight, s.top_k, false};
}

struct Kept {
  Cut cut;
  float floor;    // tokens below it are not in the cut
  int candidates; // sorted keys at hand, the row's best; 0: none
  bool by_rank;   // the draw is
};

// Masses to reach are real numbers: the first integer not below.
__device__ __forceinline__ unsigned long long reach(double target, unsigned long long most) {
  const unsigned long long whole = target < 1 ? 1 : (unsigned long long)ceil(target);
  return whole < most ? whole : most;
}

__device__ Kept keep(Shared &sh, const Row &row, const Filter &f, const uint32_t *groups, bool top) {
  const bool ranked = !f.greedy && (f.top_k > 0 || f.top_p < 1.0f), gather = ranked || top;
  const float least = gather ? least_wanted(sh, groups) : 0;
  Scan scan = scan_row(sh, row, ranked ? -INFINITY : f.floor, gather, least);
  Kept out = {{1, scan.mass, scan.count}, f.floor, gather && sh.filled <= kCandidates ? sh.filled : 0, false};
  if (out.candidates) {
    sort_keys(sh, out.candidates);
    sum_keys(sh, row, out.candidates);
  }
  if (!ranked || scan.mass == 0) return out; // no mass: nothing is left by masks, or a logit is infinite
  const bool cut_k = f.top_k > 0 && f.top_k < scan.finite, cut_p = f.top_p < 1.0f;
  if (!cut_k && !cut_p) { // a top_k of everything
    scan = scan_row(sh, row, f.floor, false, 0);
    out.cut = {1, scan.mass, scan.count};
    return out;
  }
  out.by_rank = true;
  bool inside = false; // the cut lies among the candidates
  if (cut_k) {
    inside = f.top_k <= out.candidates;
    if (inside) {
      out.cut = cut_at(sh, f.top_k - 1, 0, 0);
    } else {
      out.cut = select(sh, row, true, (unsigned long long)f.top_k);
      out.candidates = 0;
    }
  }
  if (cut_p) {
    const unsigned long long target = reach((double)f.top_p * (double)out.cut.mass, out.cut.mass);
    inside = out.candidates && sh.sums[out.candidates - 1] >= target;
    if (inside) {
      out.cut = cut_at(sh, first_to_reach(sh, out.candidates, 0, target), 0, 0);
    } else {
      out.cut = select(sh, row, false, target);
      out.candidates = 0;
    }
  }
  if (!inside) {
    if (f.floor > kNoWeight) out.cut = raise_floor(sh, row, out.cut, f.floor);
    return out;
  }
  int above = 0;
#pragma unroll
  for (int k = 0; k < 2; k++) {
    const int i = 2 * (int)threadIdx.x + k;
    above += i < out.cut.count && log2_share(row, key_value(sh.keys[i])) >= f.floor;
  }
  above = sum_int(sh, above);
  if (above < out.cut.count && above > 0) out.cut = cut_at(sh, above - 1, 0, 0);
  return out;
}

__device__ int draw(Shared &sh, const Row &row, const Kept &kept, int range, double uniform, int best) {
  if (kept.cut.mass == 0) return best;
  const unsigned long long whole = (unsigned long long)(uniform * (double)kept.cut.mass) + 1; // the mass goes beyond the target
  const unsigned long long target = whole < kept.cut.mass ? whole : kept.cut.mass;
  if (!kept.by_rank) return draw_by_id(sh, row, range, kept.floor, target);
  if (kept.candidates >= kept.cut.count) return key_id(sh.keys[first_to_reach(sh, kept.candidates, 0, target)]);
  return key_id(select(sh, row, false, target).key);
}

__device__ __forceinline__ float floored(double logprob) { return logprob > -9999 ? (float)logprob : -9999.0f; }

// Log probabilities of the token and of the best `top`: those outside the cut have none, and stand by id behind the others.
__device__ void log_probabilities(Shared &sh, const Row &row, const Kept &kept, float temperature, int token, int top,
                                  bool keys, SampleResult *out) {
  const Cut &cut = kept.cut;
  const int rank = rank_of(sh, row, cut, kept.floor, token);
  top = top < MOB_MAX_LOGPROBS ? top : MOB_MAX_LOGPROBS;
  top = top < row.vocab ? top : row.vocab;
  const int listed = top < cut.count ? top : cut.count;
  if (listed > 0 && !keys) {
    const Cut best = select(sh, row, true, (unsigned long long)listed);
    collect(sh, row, {best.key, ~0ull, -1, 0, 0, listed});
  }
  const double log_sum = (double)(row.max / temperature) + log((double)cut.mass) - kFraction * 0.6931471805599453094;
  if ((int)threadIdx.x < listed) {
    out->top_token[threadIdx.x] = key_id(sh.keys[threadIdx.x]);
    out->top_logprob[threadIdx.x] = floored((double)(key_value(sh.keys[threadIdx.x]) / temperature) - log_sum);
  }
  if (threadIdx.x != 0) return;
  int id = 0;
  for (int i = listed; i < top; i++, id++) {
    for (int j = 0; j < listed; j++) {
      if (key_id(sh.keys[j]) != id) continue;
      id++;
      j = -1;
    }
    out->top_token[i] = id;
    out->top_logprob[i] = -9999.0f;
  }
  const float own = row.logits[token];
  const bool own_kept = own > -INFINITY && key_of(own, token) >= cut.key && log2_share(row, own) >= kept.floor && cut.mass > 0;
  out->logprob = own_kept ? floored((double)(own / temperature) - log_sum) : -9999.0f;
  out->rank = rank;
  out->top_count = top > 0 ? top : 0;
}

__device__ __forceinline__ void finish(const SampleRows &p, int row, int slot, int token, bool counted) {
  p.ids[row] = token;
  p.results[row].token = token;
  p.last_token[slot] = token;
  if (!counted) return;
  p.slot[slot].drawn++;
  if (p.slot[slot].has_counts) p.counts[(size_t)slot * p.vocab + token]++;
}

__global__ void __launch_bounds__(kThreads) draw_kernel(SampleRows p) {
  __shared__ Shared sh;
  depend_launch();
  depend_wait();
  const int at = blockIdx.x, slot = p.slots[at], wanted = p.wanted[at];
  const Key best = warp_best(p.best[(size_t)at * kSampleParts + threadIdx.x % 32]);
  if (slot < 0 || wanted == kSamplePlain) {
    if (threadIdx.x != 0) return;
    if (slot >= 0) finish(p, at, slot, key_id(best), false);
    else p.ids[at] = key_id(best);
    return;
  }
  const SlotSampling s = p.slot[slot];
  const Filter f = filter_of(s);
  const int top = wanted >= 0 ? s.prompt_logprobs : s.logprobs;
  int token = wanted >= 0 ? wanted : key_id(best);
  if (wanted >= 0 || !f.greedy || top >= 0) {
    const int range = (p.vocab + kWarps - 1) / kWarps, warp = threadIdx.x / 32;
    Row row = {p.logits + (size_t)at * p.ld, p.vocab, warp * range, warp * range + range, key_value(best), 0};
    row.end = row.end < p.vocab ? row.end : p.vocab;
    row.scale = 1.44269504088896341f / f.temperature;
    const Kept kept = keep(sh, row, f, p.groups + (size_t)at * kSampleParts * kSampleGroups, top > 0);
    bool keys = kept.candidates >= (kept.cut.count < top ? kept.cut.count : top);
    if (wanted < 0 && !f.greedy) {
      token = draw(sh, row, kept, range, philox_uniform(s.seed, s.drawn), token);
      keys = keys && (!kept.by_rank || kept.candidates >= kept.cut.count);
    }
    if (top >= 0) log_probabilities(sh, row, kept, f.temperature, token, top, keys, &p.results[at]);
  }
  __syncthreads(); // all have read the slot's parameters
  if (threadIdx.x != 0) return;
  if (wanted >= 0) p.results[at].token = p.ids[at] = token;
  else finish(p, at, slot, token, true);
}

} // namespace

void sample_draw(const SampleRows &p, int rows, cudaStream_t stream) { launch(draw_kernel, rows, kThreads, 0, stream, p); }

} // namespace mob
