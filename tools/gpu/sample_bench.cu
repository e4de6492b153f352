// Times the sampler's two kernels on one GPU, in a graph as a step has them, and holds its tokens against the CPU's.
//   sample_bench [vocab]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "engine/cuda/sampling.h"
extern "C" {
#include "engine/cpu/sampler.h"
}

namespace mob {
mob_status cuda_failed(cudaError_t error, const char *what) {
  fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  exit(1);
}
} // namespace mob

namespace {

constexpr int kRows = 256, kRepeats = 100;

void ok(cudaError_t error, const char *what) {
  if (error != cudaSuccess) mob::cuda_failed(error, what);
}

template <class T> T *device(size_t count) {
  T *p;
  ok(cudaMalloc(&p, count * sizeof(T)), "cudaMalloc");
  ok(cudaMemset(p, 0, count * sizeof(T)), "cudaMemset");
  return p;
}

struct Case {
  const char *name;
  float temperature, top_p, min_p;
  int top_k;
  float repetition;
  int logprobs;
  bool flat; // logits that hardly differ: the histograms' work
};
const Case cases[] = {
    {"greedy", 0, 1, 0, 0, 1, -1, false},
    {"greedy, 5 log probabilities", 0, 1, 0, 0, 1, 5, false},
    {"temperature 1", 1, 1, 0, 0, 1, -1, false},
    {"temperature 1, min-p 0.05", 1, 1, 0.05f, 0, 1, -1, false},
    {"temperature 0.6, top-p 0.95", 0.6f, 0.95f, 0, 0, 1, -1, false},
    {"top-k 50, top-p 0.95", 1, 0.95f, 0, 50, 1, -1, false},
    {"top-p 0.95, repetition 1.1", 0.6f, 0.95f, 0, 0, 1.1f, -1, false},
    {"top-p 0.95, 20 log probabilities", 0.6f, 0.95f, 0, 0, 1, 20, false},
    {"top-p 0.95 of flat logits", 1, 0.95f, 0, 0, 1, -1, true},
    {"top-k 5000 of flat logits", 1, 1, 0, 5000, 1, -1, true},
};

struct Bench {
  int vocab;
  mob::Sampler sampler;
  mob::SampleStage stage;
  mob::SampleRows rows;
  std::vector<float> normal, flat;
  std::vector<int> history;
  cudaStream_t stream;
};

mob_sampling_t sampling_of(const Case &c, int slot) {
  mob_sampling_t p = {};
  p.temperature = c.temperature, p.top_p = c.top_p, p.min_p = c.min_p, p.top_k = c.top_k;
  p.repetition_penalty = c.repetition, p.logprobs = c.logprobs, p.prompt_logprobs = -1, p.seed = (uint64_t)slot * 7919 + 1;
  return p;
}

// A thousandth of the ids as a model would have them, the others far below.
void fill(Bench *b) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 1);
  for (size_t i = 0; i < b->normal.size(); i++) {
    b->normal[i] = 2.5f * normal(random) + (random() % 1000 == 0 ? 8 : 0);
    b->flat[i] = 0.5f * normal(random);
  }
  for (int i = 0; i < 1000; i++) b->history.push_back((int)(random() % (unsigned)b->vocab));
}

// Opens the slots, draws once, and counts the tokens that are not the CPU's.
int check(Bench *b, const Case &c, int count) {
  const std::vector<float> &logits = c.flat ? b->flat : b->normal;
  ok(cudaMemcpy(b->rows.logits, logits.data(), logits.size() * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  b->stage.used = 0;
  for (int slot = 0; slot < kRows; slot++) {
    mob_seq_open_t open = {};
    open.slot = (uint32_t)slot, open.sampling = sampling_of(c, slot);
    open.prompt = b->history.data(), open.prompt_count = (uint32_t)b->history.size();
    if (mob::sampler_open(&b->sampler, open, &b->stage, b->stream) != MOB_OK) exit(1);
  }
  mob::sample_rows(b->rows, count, b->stream);
  std::vector<int> ids((size_t)count);
  ok(cudaMemcpyAsync(ids.data(), b->rows.ids, ids.size() * 4, cudaMemcpyDeviceToHost, b->stream), "cudaMemcpyAsync");
  ok(cudaStreamSynchronize(b->stream), "sampling");
  mob_sampler_t *cpu = mob_sampler_new(b->vocab);
  int others = 0;
  for (int row = 0; row < count; row++) {
    std::vector<float> own(logits.begin() + (ptrdiff_t)row * b->vocab, logits.begin() + (ptrdiff_t)(row + 1) * b->vocab);
    const mob_sampling_t p = sampling_of(c, row);
    const mob_sample_input_t in = {&p, b->history.data(), nullptr, (uint32_t)b->history.size(), 0};
    mob_sample_output_t out;
    mob_sampler_run(cpu, own.data(), &in, &out);
    others += out.token != ids[(size_t)row];
  }
  mob_sampler_free(cpu);
  return others;
}

template <class F> double microseconds(cudaStream_t stream, F queue) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  cudaEvent_t begin, end;
  ok(cudaEventCreate(&begin), "cudaEventCreate");
  ok(cudaEventCreate(&end), "cudaEventCreate");
  ok(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < kRepeats; i++) queue();
  ok(cudaStreamEndCapture(stream, &graph), "capture");
  ok(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
  float best = INFINITY;
  for (int i = 0; i < 3; i++) {
    ok(cudaEventRecord(begin, stream), "cudaEventRecord");
    ok(cudaGraphLaunch(exec, stream), "cudaGraphLaunch");
    ok(cudaEventRecord(end, stream), "cudaEventRecord");
    ok(cudaEventSynchronize(end), "sampling");
    float ms;
    ok(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    best = std::min(best, ms);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return best * 1e3 / kRepeats;
}

} // namespace

int main(int argc, char **argv) {
  Bench b;
  b.vocab = argc > 1 ? atoi(argv[1]) : 129280;
  const size_t size = (size_t)kRows * (size_t)b.vocab;
  b.normal.resize(size);
  b.flat.resize(size);
  fill(&b);
  ok(cudaStreamCreateWithFlags(&b.stream, cudaStreamNonBlocking), "cudaStreamCreate");
  ok(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  ok(cudaMallocHost(&b.stage.data, mob::kSampleStage), "cudaMallocHost");
  mob::sampler_place(&b.sampler, b.vocab, kRows, kRows, kRows, device<uint8_t>(mob::sampler_bytes(b.vocab, kRows, kRows, kRows)));
  std::vector<int> slots, wanted((size_t)kRows, mob::kSampleSlot);
  for (int i = 0; i < kRows; i++) slots.push_back(i);
  int *slot_list = device<int>(kRows), *wanted_list = device<int>(kRows);
  ok(cudaMemcpy(slot_list, slots.data(), kRows * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  ok(cudaMemcpy(wanted_list, wanted.data(), kRows * 4, cudaMemcpyHostToDevice), "cudaMemcpy");
  const mob::Sampler &s = b.sampler;
  b.rows = {device<float>(size), b.vocab, b.vocab, slot_list, wanted_list, s.slot, s.counts, s.allowed, s.allowed_words,
            device<unsigned long long>(kRows * mob::kSampleParts), s.groups, device<int>(kRows), device<int>(kRows), s.results};
  printf("%d ids; us: masks, penalties and the best / the draw\n%-36s", b.vocab, "");
  for (int count : {1, 8, 64, 256}) printf("%14d", count);
  printf("   not the CPU's, of 256\n");
  for (const Case &c : cases) {
    printf("%-36s", c.name);
    const int others = check(&b, c, kRows);
    for (int count : {1, 8, 64, 256}) {
      const double both = microseconds(b.stream, [&] { mob::sample_rows(b.rows, count, b.stream); });
      const double draw = microseconds(b.stream, [&] { mob::sample_draw(b.rows, count, b.stream); });
      printf("%7.1f /%5.1f", both - draw, draw);
    }
    printf("   %d\n", others);
  }
  mob::sampler_close(&b.sampler);
  return 0;
}
