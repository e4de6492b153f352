// The device's sampler against the CPU's: random logits of several kinds, random parameters, several steps in a row, so that counts and
// draws are carried on by the device alone.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cuda_runtime.h>

#include "engine/cuda/sampling.h"
extern "C" {
#include <cmocka.h>

#include "engine/cpu/sampler.h"
}

namespace {

using mob::SampleResult;
using mob::SampleRows;
using Random = std::mt19937_64;

#define CUDA_OK(call) assert_int_equal((call), cudaSuccess)

int below(Random &r, int n) { return (int)(r() % (uint64_t)n); }
float uniform(Random &r, float a, float b) { return a + (b - a) * (float)((double)(r() >> 11) * 0x1p-53); }

// ---- one slot and what the CPU's sampler needs to know of it

struct Sequence {
  mob_sampling_t p = {};
  std::vector<int32_t> stop, allowed, history; // prompt, then output
  std::vector<mob_logit_bias_t> bias;
  uint32_t prompt = 0;
  void bind() {
    p.stop_ids = stop.data(), p.stop_id_count = (uint32_t)stop.size();
    p.allowed = allowed.data(), p.allowed_count = (uint32_t)allowed.size();
    p.bias = bias.data(), p.bias_count = (uint32_t)bias.size();
  }
  mob_sample_input_t input() const {
    return {&p, history.data(), history.data() + prompt, prompt, (uint32_t)history.size() - prompt};
  }
};

template <class T> T one_of(Random &r, std::initializer_list<T> list) { return list.begin()[below(r, (int)list.size())]; }

Sequence random_sequence(Random &r, int vocab) {
  Sequence s;
  s.p.temperature = one_of(r, {0.0f, 0.3f, 0.7f, 1.0f, 1.0f, 5.0f});
  s.p.top_k = one_of(r, {0, -1, 0, 1, 5, 40, 600, 3000});
  s.p.top_p = one_of(r, {1.0f, 1.0f, 0.95f, 0.5f, 0.01f, 0.999f});
  s.p.min_p = one_of(r, {0.0f, 0.0f, 0.05f, 0.5f, 1.0f});
  s.p.repetition_penalty = one_of(r, {1.0f, 1.0f, 1.3f, 0.8f});
  s.p.frequency_penalty = one_of(r, {0.0f, 0.0f, 0.7f, -0.5f});
  s.p.presence_penalty = one_of(r, {0.0f, 0.0f, 1.1f});
  s.p.seed = r();
  s.p.logprobs = one_of(r, {-1, 0, 1, 5, 20});
  s.p.prompt_logprobs = one_of(r, {0, 3, 20});
  s.p.min_tokens = (uint32_t)one_of(r, {0, 0, 3});
  for (int i = 0; i < 3; i++) s.stop.push_back(below(r, vocab));
  if (below(r, 4) == 0)
    for (int i = below(r, 2) ? 3 : vocab / 2; i > 0; i--) s.allowed.push_back(below(r, vocab));
  if (below(r, 3) == 0)
    for (int i = below(r, 8) ? 20 : 700; i > 0; i--) s.bias.push_back({below(r, vocab), uniform(r, -5, 5)}); // some ids twice
  const int prompt = below(r, 40), generated = below(r, 3) ? 0 : below(r, 10);
  for (int i = 0; i < prompt + generated; i++) s.history.push_back(below(r, std::min(vocab, 60)));
  s.prompt = (uint32_t)prompt;
  s.bind();
  return s;
}

enum Kind { NORMAL, PEAKED, FLAT, TIES, EQUAL, MASKED, LAST };

void fill_logits(Random &r, Kind kind, float *logits, int vocab) {
  std::normal_distribution<float> normal(0, 1);
  const float spread = uniform(r, 1, 5);
  for (int i = 0; i < vocab; i++) {
    const float n = normal(r);
    logits[i] = kind == FLAT ? n * 0.01f : kind == TIES ? (float)below(r, 9) - 4 : kind == EQUAL ? 1.5f : n * spread;
    if (kind == PEAKED && below(r, vocab) < 5) logits[i] += 15;
    if (kind == MASKED && below(r, 100)) logits[i] = -INFINITY;
  }
}

// ---- what the token must be, with room for another order of the same sum

struct Place {
  double low, high;
};

struct Expected {
  bool greedy = false;
  std::vector<std::pair<int32_t, Place>> kept; // in the order of the draw
  double total = 0, target = 0, slack = 0;
};

// `logits` are adjusted by masks and penalties.
Expected expect(const std::vector<float> &logits, const mob_sampling_t &p, uint32_t index) {
  Expected e;
  e.greedy = p.temperature < 1e-5f;
  if (e.greedy) return e;
  struct Item {
    float logit;
    int32_t token;
  };
  std::vector<Item> items;
  for (size_t i = 0; i < logits.size(); i++)
    if (logits[i] > -INFINITY) items.push_back({logits[i] / p.temperature, (int32_t)i});
  if (items.empty()) return e;
  float max = -INFINITY;
  for (const Item &i : items) max = std::max(max, i.logit);
  const bool by_k = p.top_k > 0 && (size_t)p.top_k < items.size();
  if (by_k || p.top_p < 1)
    std::sort(items.begin(), items.end(),
              [](const Item &a, const Item &b) { return a.logit > b.logit || (a.logit == b.logit && a.token < b.token); });
  if (by_k) items.resize((size_t)p.top_k);
  auto weight = [&](const Item &i) { return std::exp((double)i.logit - max); };
  double total = 0, mass = 0;
  for (const Item &i : items) total += weight(i);
  if (p.top_p < 1) {
    size_t n = 0;
    while (n < items.size()) {
      mass += weight(items[n++]);
      if (mass >= p.top_p * total) break;
    }
    // Another order of summation may set the end one token earlier or later.
    const double last = weight(items[n - 1]);
    if (mass - p.top_p * total < 3e-6 * total || p.top_p * total - (mass - last) < 3e-6 * total) e.slack = last;
    items.resize(n);
  }
  for (const Item &i : items) {
    const double w = weight(i);
    if (w < p.min_p) continue;
    if (std::fabs(w - p.min_p) < 1e-6) e.slack = std::max(e.slack, w);
    e.kept.push_back({i.token, {e.total, e.total + w}});
    e.total += w;
  }
  e.target = mob_philox_uniform(p.seed, index) * e.total;
  e.slack += 3e-6 * e.total;
  return e;
}

bool acceptable(const Expected &e, int32_t token) {
  for (const auto &k : e.kept)
    if (k.first == token) return e.target > k.second.low - e.slack && e.target < k.second.high + e.slack;
  return false;
}

// ---- the device's side

struct Device {
  int vocab, slots, rows;
  mob::Sampler sampler;
  uint8_t *block = nullptr;
  mob::SampleStage stage;
  float *logits = nullptr;
  int *slot_list, *wanted, *ids, *last;
  unsigned long long *best;
  cudaStream_t stream;

  Device(int v, int s, int r) : vocab(v), slots(s), rows(r) {
    const size_t bytes = mob::sampler_bytes(v, s, r, r);
    CUDA_OK(cudaMalloc((void **)&block, bytes));
    CUDA_OK(cudaMemset(block, 0x5a, bytes)); // nothing may count on zeros
    mob::sampler_place(&sampler, v, s, r, r, block);
    CUDA_OK(cudaMallocHost((void **)&stage.data, mob::kSampleStage));
    CUDA_OK(cudaMalloc((void **)&logits, (size_t)r * (size_t)v * 4));
    CUDA_OK(cudaMalloc((void **)&slot_list, (size_t)r * 4));
    CUDA_OK(cudaMalloc((void **)&wanted, (size_t)r * 4));
    CUDA_OK(cudaMalloc((void **)&ids, (size_t)r * 4));
    CUDA_OK(cudaMalloc((void **)&last, (size_t)s * 4));
    CUDA_OK(cudaMalloc((void **)&best, (size_t)r * mob::kSampleParts * 8));
    CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    CUDA_OK(cudaDeviceSynchronize());
  }
  ~Device() {
    cudaStreamSynchronize(stream);
    mob::sampler_close(&sampler);
    for (void *p : {(void *)block, (void *)logits, (void *)slot_list, (void *)wanted, (void *)ids, (void *)last, (void *)best}) cudaFree(p);
    cudaFreeHost(stage.data);
    cudaStreamDestroy(stream);
  }
  Device(const Device &) = delete;

  void open(uint32_t slot, const Sequence &s) {
    mob_seq_open_t o = {};
    o.slot = slot;
    o.sampling = s.p;
    o.prompt = s.history.data();
    o.prompt_count = (uint32_t)s.history.size();
    o.generated = (uint32_t)s.history.size() - s.prompt;
    assert_int_equal(mob::sampler_open(&sampler, o, &stage, stream), MOB_OK);
  }
  std::vector<SampleResult> run(const std::vector<float> &host, const std::vector<int> &row_slots, const std::vector<int> &row_wanted) {
    const int n = (int)row_slots.size();
    CUDA_OK(cudaMemcpyAsync(logits, host.data(), host.size() * 4, cudaMemcpyHostToDevice, stream));
    CUDA_OK(cudaMemcpyAsync(slot_list, row_slots.data(), (size_t)n * 4, cudaMemcpyHostToDevice, stream));
    CUDA_OK(cudaMemcpyAsync(wanted, row_wanted.data(), (size_t)n * 4, cudaMemcpyHostToDevice, stream));
    mob::sample_rows({logits, vocab, vocab, slot_list, wanted, sampler.slot, sampler.counts, sampler.allowed, sampler.allowed_words, best,
                      sampler.groups, ids, last, sampler.results},
                     n, stream);
    CUDA_OK(cudaGetLastError());
    std::vector<SampleResult> results((size_t)n);
    std::vector<int> got((size_t)n);
    CUDA_OK(cudaMemcpyAsync(results.data(), sampler.results, results.size() * sizeof(SampleResult), cudaMemcpyDeviceToHost, stream));
    CUDA_OK(cudaMemcpyAsync(got.data(), ids, got.size() * 4, cudaMemcpyDeviceToHost, stream));
    CUDA_OK(cudaStreamSynchronize(stream));
    stage.used = 0;
    for (size_t i = 0; i < got.size(); i++)
      if (row_slots[i] >= 0) assert_int_equal(results[i].token, got[i]);
    return results;
  }
};

// ---- comparison

int compared, other_tokens;

void check_logprobs(const SampleResult &got, const mob_sample_output_t &want, const std::vector<float> &drawn_from, float log_sum_slack) {
  if (std::fabs(got.logprob - want.chosen.logprob) > 1e-4f + log_sum_slack)
    fail_msg("log probability of %d: %g, expected %g", got.token, (double)got.logprob, (double)want.chosen.logprob);
  assert_int_equal(got.top_count, want.top_count);
  for (int i = 0; i < got.top_count; i++) {
    if (std::fabs(got.top_logprob[i] - want.top[i].logprob) > 1e-4f + log_sum_slack)
      fail_msg("place %d: %g, expected %g", i, (double)got.top_logprob[i], (double)want.top[i].logprob);
    const float a = drawn_from[(size_t)got.top_token[i]], b = drawn_from[(size_t)want.top[i].token];
    if (got.top_token[i] != want.top[i].token && a != b) fail_msg("place %d: token %d, expected %d", i, got.top_token[i], want.top[i].token);
  }
  const float own = drawn_from[(size_t)want.chosen.token];
  const long same = own > -INFINITY ? std::count(drawn_from.begin(), drawn_from.end(), own) : 1; // equals may swap when divided
  if (std::labs((long)got.rank - want.chosen.rank) >= same) fail_msg("rank %d, expected %d", got.rank, want.chosen.rank);
}

void check_row(mob_sampler_t *cpu, const Sequence &s, const std::vector<float> &logits, int wanted, const SampleResult &got) {
  std::vector<float> row = logits;
  mob_sample_output_t want;
  Expected e;
  if (wanted >= 0) {
    e = expect(logits, s.p, 0);
    mob_sampler_prompt(cpu, row.data(), &s.p, wanted, &want);
    if (e.kept.empty() || e.slack < 4e-6 * e.total) check_logprobs(got, want, row, 0);
    return;
  }
  const mob_sample_input_t in = s.input();
  Sequence greedy = s;
  greedy.p.temperature = 0, greedy.p.logprobs = -1;
  const mob_sample_input_t adjust = {&greedy.p, in.prompt, in.output, in.prompt_count, in.output_count};
  mob_sampler_run(cpu, row.data(), &adjust, &want); // leaves the logits adjusted
  e = expect(row, s.p, in.output_count);
  row = logits;
  mob_sampler_run(cpu, row.data(), &in, &want);
  compared++;
  if (got.token != want.token) {
    other_tokens++;
    if (e.greedy || !acceptable(e, got.token))
      fail_msg("token %d, expected %d (temperature %g top_k %d top_p %g min_p %g, index %u)", got.token, want.token,
               (double)s.p.temperature, s.p.top_k, (double)s.p.top_p, (double)s.p.min_p, in.output_count);
    return;
  }
  if (s.p.logprobs >= 0 && (e.kept.empty() || e.slack < 4e-6 * e.total)) check_logprobs(got, want, row, 0);
}

// Several slots, several steps; a slot is opened again now and then.
void run_steps(uint64_t seed, int vocab, int slots, int steps) {
  Random r(seed);
  Device d(vocab, slots, 2 * slots + 1);
  mob_sampler_t *cpu = mob_sampler_new(vocab);
  std::vector<Sequence> sequences;
  for (int i = 0; i < slots; i++) {
    sequences.push_back(random_sequence(r, vocab));
    d.open((uint32_t)i, sequences.back());
  }
  for (int step = 0; step < steps; step++) {
    std::vector<int> row_slots, wanted;
    for (int i = 0; i < slots; i++) {
      if (step > 0 && below(r, 4) == 0) {
        sequences[(size_t)i] = random_sequence(r, vocab);
        d.open((uint32_t)i, sequences[(size_t)i]);
      }
      if (below(r, 4) == 0) row_slots.push_back(i), wanted.push_back(below(r, vocab)); // a prompt token
      row_slots.push_back(i), wanted.push_back(mob::kSampleSlot);
    }
    row_slots.push_back(-1), wanted.push_back(mob::kSamplePlain); // padding
    std::vector<float> logits(row_slots.size() * (size_t)vocab);
    for (size_t i = 0; i < row_slots.size(); i++)
      fill_logits(r, (Kind)below(r, LAST), &logits[i * (size_t)vocab], vocab);
    const std::vector<SampleResult> got = d.run(logits, row_slots, wanted);
    for (size_t i = 0; i + 1 < row_slots.size(); i++) {
      const std::vector<float> row(logits.begin() + (ptrdiff_t)(i * (size_t)vocab), logits.begin() + (ptrdiff_t)((i + 1) * (size_t)vocab));
      Sequence &s = sequences[(size_t)row_slots[i]];
      check_row(cpu, s, row, wanted[i], got[i]);
      if (wanted[i] < 0) s.history.push_back(got[i].token), s.bind();
    }
  }
  mob_sampler_free(cpu);
}

void small_vocabularies(void **) {
  for (int vocab : {1, 7, 32, 33, 1000, 1025}) run_steps((uint64_t)vocab, vocab, 4, 12);
}
void middle_vocabulary(void **) { run_steps(42, 8191, 8, 16); }
void large_vocabulary(void **) { run_steps(43, 129280, 3, 3); }

void hardly_any_token_differs(void **) {
  assert_true(compared > 200);
  if (other_tokens * 100 > compared) fail_msg("%d of %d tokens are not the CPU's", other_tokens, compared);
}

// Logits in which nothing is left, or infinity.
void odd_logits(void **) {
  Device d(100, 1, 1);
  Sequence s;
  s.p = {};
  s.p.temperature = 1, s.p.top_p = 0.9f, s.p.repetition_penalty = 1, s.p.logprobs = 3, s.p.prompt_logprobs = -1;
  d.open(0, s);
  std::vector<float> logits(100, -INFINITY);
  SampleResult got = d.run(logits, {0}, {mob::kSampleSlot})[0];
  assert_int_equal(got.token, 0);
  assert_true(got.logprob == -9999.0f && got.top_count == 3 && got.top_token[2] == 2 && got.top_logprob[2] == -9999.0f);
  logits[7] = INFINITY;
  assert_int_equal(d.run(logits, {0}, {mob::kSampleSlot})[0].token, 7);
  logits.assign(100, NAN);
  assert_int_equal(d.run(logits, {0}, {mob::kSampleSlot})[0].token, 0);
}

// Rows that need nothing pass through, their slots' parameters unread.
void plain_rows(void **) {
  Device d(500, 2, 3);
  Random r(5);
  std::vector<float> logits(1500);
  fill_logits(r, NORMAL, logits.data(), 1500);
  const std::vector<SampleResult> got = d.run(logits, {1, -1, 0}, {mob::kSamplePlain, mob::kSamplePlain, mob::kSamplePlain});
  std::vector<int> last(2);
  CUDA_OK(cudaMemcpy(last.data(), d.last, 8, cudaMemcpyDeviceToHost));
  for (int row : {0, 2}) {
    const float *at = &logits[(size_t)row * 500];
    assert_int_equal(got[(size_t)row].token, std::max_element(at, at + 500) - at);
    assert_int_equal(last[row == 0 ? 1 : 0], got[(size_t)row].token);
  }
}

// Histories and lists longer than the stage and the slot's place for them.
void long_lists(void **) {
  const int vocab = 3000;
  Device d(vocab, 1, 1);
  mob_sampler_t *cpu = mob_sampler_new(vocab);
  Random r(6);
  Sequence s;
  s.p.temperature = 0, s.p.top_p = 1, s.p.repetition_penalty = 1.2f, s.p.frequency_penalty = 0.001f;
  s.p.logprobs = 5, s.p.prompt_logprobs = -1;
  for (int i = 0; i < 300000; i++) s.history.push_back(below(r, 2000));
  s.prompt = 100000;
  for (int i = 0; i < 2500; i++) s.bias.push_back({i, uniform(r, -3, 3)});
  s.bind();
  for (int round = 0; round < 2; round++) { // the second time the list of the first is given back
    d.open(0, s);
    std::vector<float> logits((size_t)vocab);
    fill_logits(r, NORMAL, logits.data(), vocab);
    check_row(cpu, s, logits, mob::kSampleSlot, d.run(logits, {0}, {mob::kSampleSlot})[0]);
  }
  mob_sampler_free(cpu);
}

} // namespace

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(plain_rows),
      cmocka_unit_test(odd_logits),
      cmocka_unit_test(small_vocabularies),
      cmocka_unit_test(middle_vocabulary),
      cmocka_unit_test(long_lists),
#ifndef MOB_ASAN // ten times slower
      cmocka_unit_test(large_vocabulary),
      cmocka_unit_test(hardly_any_token_differs),
#endif
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
