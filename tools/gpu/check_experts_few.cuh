// The experts of few tokens in one launch: gate + up and the activation, then down and the sum over a token's experts, each against scalar
// references of the same quantised inputs. Included by check.cu.
#include "engine/cuda/experts_few.h"

// ref[i] of sample i: row token[i] of x, numbers, output column[i]; a warp each.
__global__ void reference_floats(const Source w, const float *x, const int *token, const int *column, float *ref) {
  const int i = blockIdx.x;
  const float *row = x + (int64_t)token[i] * w.k;
  double sum = 0;
  for (int64_t c = threadIdx.x; c < w.k; c += 32)
    sum += e4m3(w.codes[column[i] * w.k + c]) * (double)w.scales[column[i] / 128 * ((w.k + 127) / 128) + c / 128] * (double)row[c];
  for (int s = 16; s; s >>= 1) sum += __shfl_xor_sync(~0u, sum, s);
  if (threadIdx.x == 0) ref[i] = (float)sum;
}
static std::vector<float> reference_of(const Source &w, const std::vector<float> &x, const std::vector<int> &token, const std::vector<int> &column) {
  float *dx = upload(x), *ref = device<float>(token.size());
  int *dt = upload(token), *dc = upload(column);
  reference_floats<<<(int)token.size(), 32>>>(w, dx, dt, dc, ref);
  const std::vector<float> out = fetch(ref, token.size());
  for (void *p : {(void *)dx, (void *)ref, (void *)dt, (void *)dc}) cudaFree(p);
  return out;
}

// Experts of 16 kinds, in turns with those behind them, so that what is read is more than the L2 holds.
struct Experts {
  Matrix w;
  std::vector<Source> sources;
  Experts(int64_t n, int64_t k, int count) {
    w = pack({n, k, nullptr, nullptr, nullptr, nullptr}, true, count);
    for (int e = 0; e < count; e++) {
      if (e < 16) sources.push_back(make_source(n, k, true));
      pack_into(sources[(size_t)e % 16], w, e, true);
    }
  }
  ~Experts() {
    for (Source &s : sources) free_source(s);
    cudaFree(w.data);
  }
};

// silu(gate) * up [rows of `tokens`][inter] of an expert.
static std::vector<float> reference_act(const Source &up, const std::vector<float> &x, const std::vector<int> &tokens, int inter) {
  std::vector<int> token, column;
  for (int t : tokens)
    for (int c = 0; c < 2 * inter; c++) token.push_back(t), column.push_back(c);
  std::vector<float> y = reference_of(up, x, token, column), act;
  for (float &v : y) v = __bfloat162float(__float2bfloat16(v));
  for (size_t r = 0; r < tokens.size(); r++)
    for (int c = 0; c < inter; c++) {
      const float gate = y[r * 2 * (size_t)inter + (size_t)c];
      act.push_back(gate / (1 + std::exp(-gate)) * y[(r * 2 + 1) * (size_t)inter + (size_t)c]);
    }
  return act;
}
// The same rows as the launch left them: e4m3 records of 8 rows.
static std::vector<float> act_of(const std::vector<uint8_t> &records, const std::vector<int> &tokens, int inter) {
  std::vector<float> out;
  for (int t : tokens)
    for (int c = 0; c < inter; c++) {
      const uint8_t *pair = &records[(size_t)(c / 256) * record_bytes(true, 8)];
      __nv_fp8_e4m3 code;
      code.__x = pair[c / 128 % 2 * 1024 + t * 128 + ((c % 128 / 16 ^ t) << 4) + c % 16];
      float scale;
      memcpy(&scale, pair + 2048 + (c / 128 % 2 * 8 + t) * 4, 4);
      out.push_back((float)code * scale);
    }
  return out;
}

static void check_experts_few(const char *kind, int tokens, int inter) {
  constexpr int kRouted = 256, kTop = 8, kHidden = 7168, kSlots = kTop + 1;
  const std::vector<int> ids = routing(kind, tokens, kRouted, kTop);
  std::vector<int> users[kRouted + 1];
  for (size_t i = 0; i < ids.size(); i++) users[ids[i]].push_back((int)i / kTop);
  for (int t = 0; t < tokens; t++) users[kRouted].push_back(t);
  size_t used = 0;
  for (const std::vector<int> &u : users) used += !u.empty();
  const size_t each = (size_t)(2 * inter / 64 * 28 + 112 * (inter / 256)) * kPairBytes;
  const int turns = (int)std::min<size_t>(24, rotate_bytes / (each * used) + 1);
  const Experts up(2 * inter, kHidden, kRouted + turns), down(kHidden, inter, kRouted + turns);

  bf16 *x = normal_bf16((size_t)tokens * kHidden, 0.1f);
  const Records hidden = {device<uint8_t>(records_bytes(true, 8, kHidden)), 8, 1};
  pack_rows(x, kHidden, kHidden, hidden, kHidden, tokens, false, stream);
  std::vector<float> rows, weights;
  for (bf16 v : fetch(x, (size_t)tokens * kHidden)) rows.push_back(__bfloat162float(v));
  quantise_rows(&rows);
  for (int i = 0; i < tokens * kSlots; i++) weights.push_back(i % kSlots == kTop ? 1.0f : 0.05f + (float)(rng() % 64) / 128.0f);
  MoePlan plan = {};
  plan.ids = upload(ids);
  plan.count = upload(std::vector<int>{tokens});
  plan.top_k = kTop;
  plan.experts = kRouted;
  plan.shared = 1;
  plan.rows = tokens;
  plan.active = device<int>(kRouted + 2);
  plan.active_ids = plan.active + 1;
  plan.expert_row = device<int>((size_t)tokens * kSlots);
  moe_plan_few(plan, stream);
  const float *dw = upload(weights);
  uint8_t *act = device<uint8_t>(used * records_bytes(true, 8, inter));
  bf16 *y = device<bf16>((size_t)tokens * kHidden);
  auto run = [&](int i) {
    ExpertsFew e = {up.w, down.w, inter, inter, hidden, act, plan.active, plan.active_ids, kRouted, 1, plan.expert_row, dw, plan.count, kSlots, false};
    e.up.data += up.w.stride * (size_t)(i % turns);
    e.down.data += down.w.stride * (size_t)(i % turns);
    experts_few(e, y, tokens, (int)used, scratch, stream);
  };
  run(0);
  CUDA(cudaStreamSynchronize(stream));

  std::vector<int> token, column;
  sample(tokens, kHidden, &token, &column);
  std::vector<float> got, want(token.size());
  const std::vector<int> list = fetch(plan.active_ids, used);
  double error = 0, own = 0, size = 0; // of activations; of the reference's, rounded alike
  for (int e = 0; e <= kRouted; e++) {
    if (users[e].empty()) continue;
    const size_t place = (size_t)(std::find(list.begin(), list.end(), e) - list.begin());
    const std::vector<float> exact = reference_act(up.sources[(size_t)e % 16], rows, users[e], inter);
    std::vector<float> rounded = exact;
    quantise_rows(&rounded);
    const std::vector<float> a = act_of(fetch(act + place * records_bytes(true, 8, inter), records_bytes(true, 8, inter)), users[e], inter);
    for (size_t i = 0; i < a.size(); i++) {
      error += ((double)a[i] - exact[i]) * ((double)a[i] - exact[i]);
      own += ((double)rounded[i] - exact[i]) * ((double)rounded[i] - exact[i]);
      size += (double)exact[i] * exact[i];
    }
    std::vector<int> row, of_row, which;
    for (size_t i = 0; i < token.size(); i++) {
      const auto at = std::find(users[e].begin(), users[e].end(), token[i]);
      if (at == users[e].end()) continue;
      row.push_back((int)(at - users[e].begin())), of_row.push_back(column[i]), which.push_back((int)i);
    }
    if (row.empty()) continue;
    const std::vector<float> part = reference_of(down.sources[(size_t)e % 16], a, row, of_row);
    for (size_t i = 0; i < which.size(); i++) {
      const int t = token[(size_t)which[i]];
      int slot = kTop;
      for (int j = 0; e < kRouted && j < kTop; j++)
        if (ids[(size_t)(t * kTop + j)] == e) slot = j;
      want[(size_t)which[i]] += weights[(size_t)(t * kSlots + slot)] * part[i];
    }
  }
  const std::vector<bf16> all = fetch(y, (size_t)tokens * kHidden);
  for (size_t i = 0; i < token.size(); i++) got.push_back(__bfloat162float(all[(size_t)token[i] * kHidden + column[i]]));
  char text[64];
  snprintf(text, sizeof text, "inter %d, %d tokens, %s", inter, tokens, kind);
  const double of_act = std::isfinite(error) ? std::sqrt(std::max(0.0, error - own) / size) : INFINITY;
  report("experts, whole", text, std::max(of_act, relative_l2(got, want)), 3e-3, time_us(run, 8), (double)(each * used), 0);
  for (const void *p : {(const void *)x, (const void *)hidden.data, (const void *)plan.ids, (const void *)plan.count, (const void *)plan.active,
                        (const void *)plan.expert_row, (const void *)dw, (const void *)act, (const void *)y})
    cudaFree((void *)p);
}
