// Every kernel of the CUDA backend at the shapes that tensor parallelism 1, 2, 4 and 8 give it, against scalar references on the same
// inputs, fresh random ones in every run. A line: kernel, shape, error and its limit, microseconds a launch (weights and caches in turns, more
// than the L2 holds), bytes read and products a second, each with its share of the roof that the same process measured.
// Ends with 1 when a line is wrong.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <set>
#include <unistd.h>
#include <vector>

#include "engine/cuda/kernels.h"
#include "engine/cuda/route_many.h"

using namespace mob;

#define CUDA(call)                                                                                 \
  do {                                                                                             \
    cudaError_t e_ = (call);                                                                       \
    if (e_ != cudaSuccess) {                                                                       \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(e_));       \
      exit(1);                                                                                     \
    }                                                                                              \
  } while (0)

static int sms, failures, cases;
static cudaStream_t stream;
static LinearScratch scratch;
static std::mt19937_64 rng;
static const size_t rotate_bytes = (size_t)200 << 20; // more than the L2 holds

template <class T> static T *device(size_t n) {
  T *p;
  CUDA(cudaMalloc(&p, n * sizeof(T)));
  CUDA(cudaMemset(p, 0xff, n * sizeof(T))); // NaN: what nobody writes is seen
  return p;
}
template <class T> static std::vector<T> fetch(const T *p, size_t n) {
  std::vector<T> out(n);
  CUDA(cudaMemcpy(out.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return out;
}
template <class T> static T *upload(const std::vector<T> &v) {
  T *p;
  CUDA(cudaMalloc(&p, v.size() * sizeof(T) + 16));
  CUDA(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}

__host__ __device__ inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ x >> 27) * 0x94d049bb133111ebull;
  return x ^ x >> 31;
}
__device__ inline float normal(uint64_t key) {
  const uint64_t m = mix64(key);
  const float u = ((uint32_t)m + 1.0f) * 2.3283064e-10f, v = (uint32_t)(m >> 32) * 2.3283064e-10f;
  return sqrtf(-2 * logf(u)) * cospif(2 * v);
}
__global__ void random_bf16(bf16 *p, size_t n, uint64_t seed, float scale) {
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
    p[i] = __float2bfloat16(normal(seed * 0x100000001b3ull + i) * scale);
}
__global__ void random_e4m3(uint8_t *p, size_t n, uint64_t seed) {
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
    p[i] = __nv_fp8_e4m3(normal(seed * 0x100000001b3ull + i) * 64.0f).__x;
}
__global__ void random_scales(float *p, size_t n, uint64_t seed) {
  for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
    p[i] = (0.5f + (mix64(seed + i) & 1023) / 1024.0f) / 4096.0f;
}
static bf16 *normal_bf16(size_t n, float scale = 1) {
  bf16 *p = device<bf16>(n);
  random_bf16<<<1024, 256>>>(p, n, rng(), scale);
  return p;
}

__device__ inline double e4m3(uint8_t code) {
  __nv_fp8_e4m3 v;
  v.__x = code;
  return (double)(float)v;
}

// ------------------------------------------------------------------------------------------- times

template <class F> static double time_us(F f, int runs) {
  cudaEvent_t a, b;
  CUDA(cudaEventCreate(&a));
  CUDA(cudaEventCreate(&b));
  std::vector<float> t;
  for (int i = 0; i < 7; i++) {
    CUDA(cudaEventRecord(a, stream));
    for (int k = 0; k < runs; k++) f(i * runs + k);
    CUDA(cudaEventRecord(b, stream));
    CUDA(cudaEventSynchronize(b));
    float ms;
    CUDA(cudaEventElapsedTime(&ms, a, b));
    if (i >= 2) t.push_back(ms * 1000 / runs);
  }
  std::sort(t.begin(), t.end());
  return t[t.size() / 2];
}

#include "check_roof.cuh"

// ------------------------------------------------------------------------------------------ report

// flops: of e4m3 products where `f8`. Each rate beside the roof of its kind that this process has measured.
static void report(const char *name, const char *shape, double error, double limit, double us, double bytes, double flops, bool f8 = false) {
  cases++;
  const bool ok = error <= limit;
  if (!ok) failures++;
  printf("%-28s %-40s %.1e of %.0e %-5s", name, shape, error, limit, ok ? "ok" : "WRONG");
  if (us > 0) printf(" %9.2f us", us);
  if (us > 0 && bytes > 0) printf("  %5.0f GB/s %5.1f %%", bytes / us / 1e3, 100 * bytes / us * 1e6 / roofs.read);
  else if (us > 0 && flops > 0) printf("  %19s", "");
  if (us > 0 && flops > 0) printf("  %6.0f TFLOP/s %5.1f %%", flops / us / 1e6, 100 * flops / us * 1e6 / (f8 ? roofs.e4m3 : roofs.bf16));
  printf("\n");
  fflush(stdout);
}

static double relative_l2(const std::vector<float> &y, const std::vector<float> &ref) {
  double d = 0, r = 0;
  for (size_t i = 0; i < ref.size(); i++) d += ((double)y[i] - ref[i]) * ((double)y[i] - ref[i]), r += (double)ref[i] * ref[i];
  return std::isfinite(d) ? std::sqrt(d / r) : INFINITY;
}

// ----------------------------------------------------------------------------------------- linears

struct Source { // a matrix as the checkpoint has it
  int64_t n, k;
  uint8_t *codes;
  float *scales;
  bf16 *values;
  int *bad;
};

// Quantised value of x, 1 x 128.
__device__ inline double quantised(const bf16 *x, int64_t k, int64_t c) {
  float amax = 0;
  for (int64_t i = c / 128 * 128; i < c / 128 * 128 + 128 && i < k; i++) amax = fmaxf(amax, fabsf(__bfloat162float(x[i])));
  const float scale = fmaxf(amax, 1e-10f) / 448.0f;
  return e4m3(__nv_fp8_e4m3(__bfloat162float(x[c]) * (1.0f / scale)).__x) * scale;
}

// ref[i] of sample i: row token[i], output column[i]; a warp each.
__global__ void reference_linear(const Source w, const bf16 *x, int64_t ldx, const int *token, const int *column, float *ref, int samples) {
  const int i = blockIdx.x;
  const bf16 *row = x + (int64_t)token[i] * ldx;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < w.k; c += 32) {
    if (w.codes) {
      const double scale = w.scales[column[i] / 128 * ((w.k + 127) / 128) + c / 128];
      sum += e4m3(w.codes[column[i] * w.k + c]) * scale * quantised(row, w.k, c);
    } else {
      sum += (double)__bfloat162float(w.values[column[i] * w.k + c]) * (double)__bfloat162float(row[c]);
    }
  }
  for (int s = 16; s; s >>= 1) sum += __shfl_xor_sync(~0u, sum, s);
  if (threadIdx.x == 0) ref[i] = (float)sum;
}

static Source make_source(int64_t n, int64_t k, bool f8) {
  Source s = {n, k, nullptr, nullptr, nullptr, nullptr};
  if (f8) {
    s.codes = device<uint8_t>((size_t)(n * k));
    const size_t scales = (size_t)((n + 127) / 128 * ((k + 127) / 128));
    s.scales = device<float>(scales);
    s.bad = device<int>(1);
    random_e4m3<<<2048, 256>>>(s.codes, (size_t)(n * k), rng());
    random_scales<<<64, 256>>>(s.scales, scales, rng());
  } else {
    s.values = normal_bf16((size_t)(n * k), 0.02f);
  }
  return s;
}
static void free_source(Source &s) {
  cudaFree(s.codes);
  cudaFree(s.scales);
  cudaFree(s.values);
  cudaFree(s.bad);
}
static Matrix pack(const Source &s, bool f8, int count) {
  const int64_t unit = f8 ? 256 : 128, k = (s.k + unit - 1) / unit * unit;
  Matrix m = {nullptr, 0, (int)s.n, (int)k, f8 ? Weights::F8 : Weights::B16};
  m.stride = (size_t)((s.n + 63) / 64) * column_pairs(m) * kPairBytes;
  CUDA(cudaMalloc(&m.data, m.stride * count));
  CUDA(cudaMemset(m.data, 0, m.stride * count));
  return m;
}
static void pack_into(const Source &s, const Matrix &m, int index, bool f8) {
  const PackSource from = {f8 ? (const void *)s.codes : s.values, f8 ? 3 : 1, s.n, s.k, 0, 0, s.scales, (s.k + 127) / 128, 0, 0,
                           128, 128, s.bad};
  pack_tiles(from, m.data + m.stride * index, m.k, m.kind, 0);
}

static void sample(int tokens, int64_t n, std::vector<int> *token, std::vector<int> *column) {
  for (int i = 0; i < 4096; i++) {
    token->push_back(i < tokens ? i : (int)(rng() % (uint64_t)tokens)); // every token at least once
    column->push_back(i % 64 == 63 ? (int)n - 1 - (int)(rng() % 8) : (int)(rng() % (uint64_t)n));
  }
}

static void check_linear(const char *name, int m, int64_t n, int64_t k, bool f8, bool f32) {
  Source s = make_source(n, k, f8);
  const Matrix probe = pack(s, f8, 0);
  cudaFree(probe.data);
  const int copies = (int)std::min<size_t>(24, rotate_bytes / probe.stride + 1);
  const Matrix w = pack(s, f8, copies);
  for (int i = 0; i < copies; i++) pack_into(s, w, i, f8);
  bf16 *x = normal_bf16((size_t)(m * k));
  const Records records = {device<uint8_t>(records_bytes(f8, padded_rows(m), w.k) + 4096), padded_rows(m), f8};
  pack_rows(x, (int)k, (int)k, records, w.k, m, false, stream);
  void *y = device<float>((size_t)(m * n));
  linear(w, records, y, (int)n, f32, m, 1, scratch, stream);
  CUDA(cudaStreamSynchronize(stream));
  std::vector<int> token, column;
  sample(m, n, &token, &column);
  int *dt = upload(token), *dc = upload(column);
  float *ref = device<float>(token.size());
  reference_linear<<<(int)token.size(), 32>>>(s, x, k, dt, dc, ref, (int)token.size());
  CUDA(cudaDeviceSynchronize());
  std::vector<float> got, want = fetch(ref, token.size());
  if (f32) {
    const std::vector<float> all = fetch((float *)y, (size_t)(m * n));
    for (size_t i = 0; i < token.size(); i++) got.push_back(all[(size_t)(token[i] * n + column[i])]);
  } else {
    const std::vector<bf16> all = fetch((bf16 *)y, (size_t)(m * n));
    for (size_t i = 0; i < token.size(); i++) got.push_back(__bfloat162float(all[(size_t)(token[i] * n + column[i])]));
  }
  Matrix one = w;
  const double us = time_us([&](int i) {
    one.data = w.data + w.stride * (size_t)(i % copies);
    linear(one, records, y, (int)n, f32, m, 1, scratch, stream);
  }, m > 512 ? 4 : 20);
  char shape[64];
  snprintf(shape, sizeof shape, "%6lld x %5lld, %4d tokens", (long long)n, (long long)k, m);
  report(name, shape, relative_l2(got, want), f32 ? 1e-3 : 3e-3, us, m <= 256 ? (double)w.stride : 0, m >= 64 ? 2.0 * m * n * k : 0, f8);
  free_source(s);
  for (void *p : {(void *)w.data, (void *)x, (void *)records.data, y, (void *)dt, (void *)dc, (void *)ref}) cudaFree(p);
}

// Experts: plan, gather, grouped linear, on a given choice of experts for every token.
static void check_experts(const char *name, const char *routing, int tokens, int experts, int top_k, int64_t n, int64_t k,
                          const std::vector<int> &ids) {
  const bool few = tokens <= kFewTokens;
  std::vector<Source> sources;
  Source shape = {n, k, nullptr, nullptr, nullptr, nullptr};
  Matrix w = pack(shape, true, 0);
  cudaFree(w.data);
  std::vector<bool> with_tokens((size_t)experts + 1);
  for (int e : ids) with_tokens[(size_t)e] = true;
  const int used = 1 + (int)std::count(with_tokens.begin(), with_tokens.end(), true);
  // Timed with the experts behind them in turns, so that what is read is more than the L2 holds.
  const int turns = (int)std::min<size_t>(24, rotate_bytes / (w.stride * (size_t)used) + 1);
  w = pack(shape, true, experts + turns);
  for (int e = 0; e < experts + turns; e++) { // 16 different ones, so that memory suffices for the sources
    if (e < 16) sources.push_back(make_source(n, k, true));
    pack_into(sources[(size_t)e % 16], w, e, true);
  }
  bf16 *x = normal_bf16((size_t)(tokens * k));
  const Records hidden = {device<uint8_t>(records_bytes(true, padded_rows(tokens), w.k) + 4096), padded_rows(tokens), 1};
  pack_rows(x, (int)k, (int)k, hidden, w.k, tokens, false, stream);
  const int slots = top_k + 1, capacity = (int)moe_rows((size_t)tokens, (size_t)slots, (size_t)experts + 1);
  int *dids = upload(ids), *active = device<int>((size_t)experts + 2), *row = device<int>((size_t)tokens * slots),
      *place = device<int>((size_t)capacity), *count = upload(std::vector<int>{tokens});
  const double mean = (double)tokens * top_k / experts;
  MoePlan plan = {};
  plan.ids = dids;
  plan.count = count;
  plan.top_k = top_k;
  plan.experts = experts;
  plan.shared = 1;
  plan.rows = tokens;
  plan.active = active;
  plan.active_ids = plan.gathered = active + 1;
  plan.expert_row = row;
  plan.most = segments_most(mean, true);
  plan.tiles = device<TokenTile>(moe_tiles((size_t)tokens, (size_t)slots, (size_t)experts + 1, kLeastTile));
  plan.place = place;
  plan.rows_of = device<ExpertRows>((size_t)experts + 1);
  bf16 *y = device<bf16>((size_t)std::max(capacity, (experts + 1) * kFewTokens) * (size_t)n);
  const TileRows gathered = {device<uint8_t>(records_bytes(true, capacity, w.k)), (int)column_pairs(w), 1};
  Matrix from = w;
  auto run = [&](int i) {
    from.data = w.data + w.stride * (size_t)(i % turns);
    if (few) linear_experts_few(from, plan.active_ids, plan.active, hidden, 0, y, tokens, experts, 1, scratch, stream);
    else linear_segments(from, plan.tiles, active, gathered.data, y, plan.most, scratch, stream);
  };
  if (few) moe_plan_few(plan, stream);
  else if (moe_plan_gather_serves(plan)) {
    moe_plan_gather(hidden, plan, gathered, stream);
  } else {
    moe_plan_many(plan, stream);
    moe_gather(hidden, plan, gathered, stream);
  }
  run(0);
  CUDA(cudaStreamSynchronize(stream));
  const std::vector<int> rows = fetch(row, (size_t)tokens * slots);
  const std::vector<bf16> all = fetch(y, (size_t)std::max(capacity, (experts + 1) * kFewTokens) * (size_t)n);
  double worst = 0;
  for (int s = 0; s < 16; s++) { // samples by source, so that a reference launch has one matrix
    std::vector<int> token, column;
    std::vector<size_t> where;
    for (int i = 0; i < 8192 && token.size() < 256; i++) {
      const int t = (int)(rng() % (uint64_t)tokens), j = (int)(rng() % (uint64_t)slots);
      const int e = j < top_k ? ids[(size_t)t * top_k + j] : experts;
      if (e % 16 != s) continue;
      token.push_back(t);
      column.push_back((int)(rng() % (uint64_t)n));
      where.push_back((size_t)rows[(size_t)t * slots + j] * (size_t)n + (size_t)column.back());
    }
    if (token.empty()) continue;
    int *dt = upload(token), *dc = upload(column);
    float *ref = device<float>(token.size());
    reference_linear<<<(int)token.size(), 32>>>(sources[(size_t)s], x, k, dt, dc, ref, (int)token.size());
    std::vector<float> want = fetch(ref, token.size()), got;
    for (size_t at : where) got.push_back(__bfloat162float(all[at]));
    worst = std::max(worst, relative_l2(got, want));
    for (void *p : {(void *)dt, (void *)dc, (void *)ref}) cudaFree(p);
  }
  const double us = time_us(run, 5);
  char text[96];
  snprintf(text, sizeof text, "%lld x %lld, %d tokens, %s", (long long)n, (long long)k, tokens, routing);
  report(name, text, worst, 3e-3, us, (double)w.stride * used, tokens >= 64 ? 2.0 * tokens * slots * n * k : 0, true);
  for (Source &s : sources) free_source(s);
  for (void *p : {(void *)w.data, (void *)x, (void *)hidden.data, (void *)dids, (void *)active, (void *)row, (void *)place,
                  (void *)count, (void *)plan.tiles, (void *)y, (void *)gathered.data})
    cudaFree(p);
}

static std::vector<int> routing(const char *kind, int tokens, int experts, int top_k) {
  std::vector<int> ids;
  for (int t = 0; t < tokens; t++) {
    std::vector<int> mine;
    while ((int)mine.size() < top_k) {
      const int e = strcmp(kind, "8 experts") == 0     ? (int)mine.size() * 31
                    : strcmp(kind, "one has all") == 0 && mine.empty() ? 77
                                                                       : (int)(rng() % (uint64_t)experts);
      if (std::find(mine.begin(), mine.end(), e) == mine.end()) mine.push_back(e);
    }
    std::sort(mine.begin(), mine.end());
    ids.insert(ids.end(), mine.begin(), mine.end());
  }
  return ids;
}

#include "check_best.cuh"
#include "check_mla.cuh"
#include "check_gqa.cuh"
#include "check_experts.cuh"
#include "check_experts_few.cuh"
#include "check_sums.cuh"

// ------------------------------------------------------------------------------------ router, norm

static void check_route(int rows, int parts) {
  const RouterSpec spec = {256, 8, 8, 4, true, true, 2.5f, nullptr};
  std::vector<float> shares, logits((size_t)rows * 256), bias; // shares: of each logit, in every part
  std::normal_distribution<float> normal_value;
  for (int i = 0; i < parts * rows * 256; i++) {
    shares.push_back(normal_value(rng) / std::sqrt((float)parts));
    logits[(size_t)(i % (rows * 256))] += shares.back();
  }
  for (int i = 0; i < 256; i++) bias.push_back(normal_value(rng) * 0.1f);
  float *dl = upload(shares), *db = upload(bias), *weights = device<float>((size_t)rows * 9);
  int *ids = device<int>((size_t)rows * 8);
  RouterSpec with = spec;
  with.bias = db;
  auto run = [&](int) { route(with, {dl, parts, (size_t)rows * 256}, ids, weights, 9, rows, stream); };
  run(0);
  CUDA(cudaStreamSynchronize(stream));
  const std::vector<int> got = fetch(ids, (size_t)rows * 8);
  const std::vector<float> w = fetch(weights, (size_t)rows * 9);
  int wrong = 0;
  double d = 0, ref = 0;
  for (int r = 0; r < rows; r++) {
    std::vector<double> score(256), choice(256), group(8);
    for (int e = 0; e < 256; e++) {
      score[(size_t)e] = 1 / (1 + std::exp(-(double)logits[(size_t)(r * 256 + e)]));
      choice[(size_t)e] = score[(size_t)e] + bias[(size_t)e];
    }
    for (int g = 0; g < 8; g++) {
      std::vector<double> c(choice.begin() + g * 32, choice.begin() + g * 32 + 32);
      std::sort(c.rbegin(), c.rend());
      group[(size_t)g] = c[0] + c[1];
    }
    std::vector<double> order = group;
    std::sort(order.rbegin(), order.rend());
    std::vector<std::pair<double, int>> all;
    for (int e = 0; e < 256; e++)
      if (group[(size_t)e / 32] >= order[3]) all.push_back({choice[(size_t)e], e});
    std::sort(all.rbegin(), all.rend());
    const bool tie = all[7].first - all[8].first < 1e-5 || order[3] - order[4] < 1e-5;
    std::vector<int> expected;
    double sum = 0;
    for (int k = 0; k < 8; k++) expected.push_back(all[(size_t)k].second), sum += score[(size_t)all[(size_t)k].second];
    std::sort(expected.begin(), expected.end());
    for (int k = 0; k < 8 && !tie; k++) {
      wrong += got[(size_t)(r * 8 + k)] != expected[(size_t)k];
      const double v = score[(size_t)expected[(size_t)k]] / sum * 2.5;
      d += (w[(size_t)(r * 9 + k)] - v) * (w[(size_t)(r * 9 + k)] - v);
      ref += v * v;
    }
  }
  char shape[64];
  snprintf(shape, sizeof shape, parts > 1 ? "256 experts, %d tokens, %d parts" : "256 experts, %d tokens", rows, parts);
  report("router", shape, wrong ? INFINITY : std::sqrt(d / ref), 1e-5, time_us(run, 20), 0, 0);
  for (void *p : {(void *)dl, (void *)db, (void *)weights, (void *)ids}) cudaFree(p);
}

// In parts, against the linear of many rows; both from the same hi and lo halves.
static void check_router_product(int rows) {
  const int n = 256, k = 7168;
  Source s = make_source(n, k, false);
  const Matrix w = pack(s, false, 1);
  pack_into(s, w, 0, false);
  std::normal_distribution<float> normal_value;
  std::vector<float> values, ones((size_t)k, 1.0f);
  for (int i = 0; i < rows * k; i++) values.push_back(normal_value(rng));
  NormIn in = {};
  in.x = upload(values);
  in.w = upload(ones);
  in.eps = 1e-6f;
  in.hidden = k;
  const Records split = {device<uint8_t>(2 * records_bytes(false, padded_rows(rows), k)), padded_rows(rows), 0};
  norm_rows(in, {{nullptr, 0, 0}, 0, split, k, true, nullptr, false}, rows, stream);
  const size_t size = (size_t)rows * n, parts = (size_t)router_parts(w);
  float *whole = device<float>(size), *cut = device<float>(parts * size);
  linear(w, split, whole, n, true, rows, 2, scratch, stream);
  auto run = [&](int) { router_many(w, split, cut, rows, stream); };
  run(0);
  CUDA(cudaStreamSynchronize(stream));
  const std::vector<float> want = fetch(whole, size), got = fetch(cut, parts * size);
  std::vector<float> sums(size);
  for (size_t i = 0; i < parts * size; i++) sums[i % size] += got[i];
  char shape[64];
  snprintf(shape, sizeof shape, "%6d x %5d, %4d tokens", n, k, rows);
  report("router's product", shape, relative_l2(sums, want), 1e-5, time_us(run, 20), (double)w.stride, 4.0 * rows * n * k);
  free_source(s);
  for (const void *p : {(const void *)w.data, (const void *)in.x, (const void *)in.w, (const void *)split.data, (const void *)whole, (const void *)cut})
    cudaFree((void *)p);
}

static void check_norm(int rows) {
  const int hidden = 7168;
  std::vector<float> x((size_t)rows * hidden), w(hidden);
  std::normal_distribution<float> value;
  for (float &v : x) v = value(rng) * 3;
  for (float &v : w) v = 1 + value(rng) * 0.1f;
  float *dx = upload(x), *dw = upload(w), *out = device<float>((size_t)rows * hidden);
  bf16 *add = normal_bf16((size_t)rows * hidden);
  const std::vector<bf16> added = fetch(add, (size_t)rows * hidden);
  const Records records = {device<uint8_t>(records_bytes(true, padded_rows(rows), hidden)), padded_rows(rows), 1};
  NormIn in = {};
  in.x = dx;
  in.add = add;
  in.w = dw;
  in.eps = 1e-6f;
  in.hidden = hidden;
  norm_rows(in, {records, hidden, {nullptr, 0, 0}, 0, false, out, false}, rows, stream);
  CUDA(cudaStreamSynchronize(stream));
  const std::vector<float> got = fetch(out, (size_t)rows * hidden);
  const std::vector<uint8_t> data = fetch(records.data, records_bytes(true, records.mp, hidden));
  std::vector<float> want, quant, scales;
  for (int r = 0; r < rows; r++) {
    double sum = 0;
    std::vector<double> v(hidden);
    for (int c = 0; c < hidden; c++) {
      v[(size_t)c] = (double)x[(size_t)r * hidden + c] + __bfloat162float(added[(size_t)r * hidden + c]);
      sum += v[(size_t)c] * v[(size_t)c];
    }
    for (int c = 0; c < hidden; c++) want.push_back((float)(v[(size_t)c] / std::sqrt(sum / hidden + 1e-6) * w[(size_t)c]));
    for (int h = 0; h < hidden / 128; h++) {
      quant.resize(quant.size() + 128);
      scales.push_back(unpack_record(data, records.mp, r, h, &quant[quant.size() - 128]));
    }
  }
  char shape[64];
  snprintf(shape, sizeof shape, "%d x %d", rows, hidden);
  report("residual + norm, fp32", shape, relative_l2(got, want), 1e-5, time_us([&](int) { norm_rows(in, {records, hidden, {nullptr, 0, 0}, 0, false, nullptr, false}, rows, stream); }, 20), 0, 0);
  report("residual + norm, e4m3", shape, error_before_e4m3(quant, scales, want), 3e-3, 0, 0, 0);
  for (void *p : {(void *)dx, (void *)dw, (void *)out, (void *)add, (void *)records.data}) cudaFree(p);
}

int main() {
  cudaDeviceProp prop;
  CUDA(cudaGetDeviceProperties(&prop, 0));
  sms = prop.multiProcessorCount;
  rng.seed((uint64_t)getpid() * 7919 + (uint64_t)time(nullptr));
  CUDA(cudaStreamCreate(&stream));
  linear_prepare();
  absorb_prepare();
  attention_mla_prepare();
  attention_prefill_prepare();
  attention_gqa_prepare();
  scratch.sms = sms;
  CUDA(cudaMalloc(&scratch.partial, (size_t)sms * kPartialFloats * 4));
  CUDA(cudaMemset(scratch.partial, 0xff, (size_t)sms * kPartialFloats * 4));
  scratch.segments_partial = device<float>(segments_partial_floats(sms));
  scratch.dealt = upload(std::vector<int>(2));
  scratch.grid = upload(std::vector<GridWords>(1));
  printf("%s, %d SMs\n", prop.name, sms);
  measure_roofs();
  check_tensor_sums();
  for (int tp : {1, 2, 4, 8}) {
    printf("tensor parallel %d\n", tp);
    for (int m : {1, 8, 64, 256, 2048}) {
      if (tp == 1) check_linear("q_a + kv_a", m, 2112, 7168, true, false);
      check_linear("q_b", m, 24576 / tp, 1536, true, false);
      check_linear("o", m, 7168, 16384 / tp, true, false);
      check_linear("dense gate + up", m, 36864 / tp, 7168, true, false);
      check_linear("dense down", m, 7168, 18432 / tp, true, false);
      if (m <= 256) check_linear("head, bf16 -> fp32", m, 129280 / tp, 7168, false, true);
    }
    for (int m : {1, 16, 17, 64, kBestRows}) check_best(m, 129280 / tp, 7168);
    for (int m : {1, 8, 64, 256, 2048}) {
      const std::vector<int> ids = routing("even", m, 256, 8);
      check_experts("experts gate + up", "even", m, 256, 8, 4096 / tp, 7168, ids);
      check_experts("experts down", "even", m, 256, 8, 7168, 2048 / tp, ids);
    }
    check_expert_layers(tp);
    for (const char *kind : {"8 experts", "one has all"})
      for (int m : {8, 64, 256}) check_experts("experts gate + up", kind, m, 256, 8, 4096 / tp, 7168, routing(kind, m, 256, 8));
    for (int m : {4, 8}) check_experts_few("even", m, 2048 / tp);
    for (const char *kind : {"8 experts", "one has all"}) check_experts_few(kind, 8, 2048 / tp);
    for (int rows : {1, 8, 64, 256}) check_mla(128 / tp, rows, 1024, false);
    check_mla(128 / tp, 1, 4000, false);
    check_mla(128 / tp, 64, 4096, false, true);
    check_mla(128 / tp, 1024, 1024, true);
    check_mla(128 / tp, 100, 1500, true);
  }
  printf("Qwen2.5-7B, bf16\n");
  for (int m : {8, 64, 130, 256, 2048}) {
    check_linear("q, k, v", m, 4608, 3584, false, false);
    check_linear("o", m, 3584, 3584, false, false);
    check_linear("down", m, 3584, 18944, false, false);
  }
  for (int m : {1, 8, 33, 64, kBestRows}) check_best(m, 152064, 3584);
  printf("grouped queries\n");
  check_gqa_all();
  for (int rows : {1, 8, 64, 256, 2048}) check_route(rows, 1);
  for (int rows : {8, 64, 256}) check_router_product(rows), check_route(rows, 28);
  for (int rows : {1, 64, 2048}) check_norm(rows);
  printf("%d of %d lines wrong\n", failures, cases);
  return failures != 0;
}
