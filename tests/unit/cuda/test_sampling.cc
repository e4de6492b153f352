// Sampling through the whole backend: what a slot draws depends on its parameters and seed alone, not on what else is in the batch, on
// graphs, or on steps being queued before the ids of the one before are known; and it is what the CPU backend draws.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

#define _Noreturn [[noreturn]]
extern "C" {
#include <cmocka.h>

#include "engine/backend.h"
extern const mob_backend_t mob_backend_cuda; // of the plug-in, linked with this test
}

namespace {

constexpr int kVocab = 1000, kSlots = 5, kTokens = 12, kPages = 8;
const char *const kConfig =
    "{\"architectures\":[\"Qwen2ForCausalLM\"],\"model_type\":\"qwen2\",\"vocab_size\":1000,\"hidden_size\":256,"
    "\"intermediate_size\":512,\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":64,"
    "\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,\"max_position_embeddings\":2048,"
    "\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1,\"torch_dtype\":\"bfloat16\"}";

#define OK(call)                                                                                                                \
  do {                                                                                                                          \
    const mob_status ok_ = (call);                                                                                              \
    if (ok_ != MOB_OK) fail_msg("%s: %s", #call, mob_errmsg());                                                                 \
  } while (0)

mob_model_t *model;

int open_model(void **) {
  char dir[] = "/tmp/mobula-sampling-XXXXXX";
  if (!mkdtemp(dir)) return 1;
  const std::string path = std::string(dir) + "/config.json";
  FILE *f = fopen(path.c_str(), "w");
  fputs(kConfig, f);
  fclose(f);
  mob_model_options_t options = {};
  options.dummy = true;
  const mob_status status = mob_model_open(dir, &options, &model);
  if (status != MOB_OK) fprintf(stderr, "%s\n", mob_errmsg());
  unlink(path.c_str());
  rmdir(dir);
  return status != MOB_OK;
}
int close_model(void **) {
  mob_model_close(model);
  return 0;
}

// ---- an engine of one stage

struct Drawn {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<int32_t> top; // first of the list, where there is one
};

struct Prompted {
  uint32_t position;
  int32_t token, rank, best;
  float logprob;
};

struct Engine {
  const mob_backend_t *backend;
  mob_exec_t *exec = nullptr;
  std::mutex lock;
  std::condition_variable wake;
  uint64_t id = 0, reported = 0;
  std::string why;
  Drawn drawn[kSlots];
  std::vector<Prompted> prompted;

  Engine(const mob_backend_t *b, int tp, bool eager) : backend(b) {
    static const int devices[] = {0, 1, 2, 3};
    mob_exec_spec_t spec = {};
    spec.model = model;
    spec.last_layer = 2;
    spec.tp = tp;
    spec.devices = devices;
    spec.threads = 2;
    spec.dtype = MOB_DT_BF16;
    spec.kv_dtype = MOB_DT_COUNT;
    spec.contract = b == &mob_backend_cpu;
    spec.max_tokens = 512, spec.max_seqs = kSlots, spec.max_len = 512;
    spec.eager = eager;
    spec.memory_share = 0.9;
    OK(backend->open(&spec, &exec));
    OK(backend->load(exec, nullptr, nullptr));
    OK(backend->alloc_kv(exec, kSlots * kPages));
  }
  ~Engine() { backend->close(exec); }
  static void done(void *arg, mob_status status, const char *why, const mob_step_result_t *r) {
    Engine *e = (Engine *)arg;
    std::lock_guard<std::mutex> hold(e->lock);
    e->reported++;
    if (status != MOB_OK) e->why = why ? why : "failed";
    for (uint32_t i = 0; r && i < r->sampled_count; i++) {
      const mob_sampled_t &s = r->sampled[i];
      e->drawn[s.slot].tokens.push_back(s.token);
      e->drawn[s.slot].logprobs.push_back(s.chosen.logprob);
      if (s.top_count) e->drawn[s.slot].top.push_back(s.top[0].token);
    }
    for (uint32_t i = 0; r && i < r->prompt_count; i++) {
      const mob_prompt_logprob_t &p = r->prompt[i];
      e->prompted.push_back({p.position, p.chosen.token, p.chosen.rank, p.top_count ? p.top[0].token : -1, p.chosen.logprob});
    }
    e->wake.notify_all();
  }
  void queue(mob_step_t *step) {
    step->id = ++id;
    for (uint32_t i = 0; i < step->seq_count; i++) step->token_count += step->seqs[i].count;
    OK(backend->step(exec, step, done, this));
  }
  void wait() {
    std::unique_lock<std::mutex> hold(lock);
    // An emulated step of 330 rows takes half a minute under AddressSanitizer, on a busy machine several.
    if (!wake.wait_for(hold, std::chrono::seconds(600), [&] { return reported == id; })) fail_msg("a step has not ended");
    if (!why.empty()) fail_msg("%s", why.c_str());
  }
};

// ---- sequences of several kinds

struct Sequence {
  mob_sampling_t p = {};
  std::vector<int32_t> prompt, stop, allowed;
  std::vector<mob_logit_bias_t> bias;
  std::vector<uint32_t> pages;
  mob_seq_open_t open(uint32_t slot, const std::vector<int32_t> &text, size_t generated) const {
    mob_seq_open_t o = {};
    o.slot = slot;
    o.sampling = p;
    o.sampling.stop_ids = stop.data(), o.sampling.stop_id_count = (uint32_t)stop.size();
    o.sampling.allowed = allowed.data(), o.sampling.allowed_count = (uint32_t)allowed.size();
    o.sampling.bias = bias.data(), o.sampling.bias_count = (uint32_t)bias.size();
    o.prompt = text.data(), o.prompt_count = (uint32_t)text.size();
    o.generated = (uint32_t)generated;
    return o;
  }
};

std::vector<Sequence> sequences() {
  std::vector<Sequence> all;
  for (int i = 0; i < kSlots; i++) {
    Sequence s;
    s.p.temperature = 1, s.p.top_p = 1, s.p.repetition_penalty = 1, s.p.logprobs = -1, s.p.prompt_logprobs = -1;
    s.p.seed = 100 + (uint64_t)i;
    for (int k = 0; k < 5 + 7 * i; k++) s.prompt.push_back((k * 37 + i * 11) % kVocab);
    for (uint32_t k = 0; k < kPages; k++) s.pages.push_back((uint32_t)i * kPages + k);
    all.push_back(s);
  }
  all[0].p.temperature = 0; // plain
  all[1].p.temperature = 0.4f, all[1].p.top_p = 0.9f, all[1].p.logprobs = 3;
  all[2].p.top_k = 20, all[2].p.repetition_penalty = 1.5f, all[2].p.frequency_penalty = 0.8f, all[2].p.presence_penalty = 0.3f;
  for (int k = 0; k < 40; k++) all[3].allowed.push_back(k * 3);
  for (int k = 0; k < 10; k++) all[3].bias.push_back({k * 3, 2.0f});
  all[3].stop = {0, 3, 6}, all[3].p.min_tokens = 6, all[3].p.logprobs = 0;
  all[4].p.temperature = 0, all[4].p.frequency_penalty = 1.0f; // its own ids push themselves out
  return all;
}

// All in one batch: prompts together, then decodes; every step queued at once, or each fed with the last one's ids.
void generate(Engine *e, const std::vector<Sequence> &all, const std::vector<int> &which, bool queued) {
  std::vector<mob_seq_open_t> open;
  std::vector<mob_seq_step_t> seqs;
  uint32_t row = 0;
  for (int i : which) {
    const Sequence &s = all[(size_t)i];
    open.push_back(s.open((uint32_t)i, s.prompt, 0));
    mob_seq_step_t q = {};
    q.slot = (uint32_t)i, q.row = row, q.count = (uint32_t)s.prompt.size(), q.tokens = s.prompt.data();
    q.pages = s.pages.data(), q.page_count = kPages, q.sample = true;
    row += q.count;
    seqs.push_back(q);
  }
  mob_step_t step = {};
  step.open = open.data(), step.open_count = (uint32_t)open.size();
  step.seqs = seqs.data(), step.seq_count = (uint32_t)seqs.size();
  e->queue(&step);
  for (int n = 1; n < kTokens; n++) {
    if (!queued) e->wait();
    std::vector<int32_t> tokens((size_t)kSlots, MOB_TOKEN_PREVIOUS);
    row = 0;
    for (mob_seq_step_t &q : seqs) {
      if (!queued) tokens[q.slot] = e->drawn[q.slot].tokens.back();
      q.start += q.count, q.count = 1, q.row = row++, q.tokens = &tokens[q.slot];
    }
    step = mob_step_t();
    step.seqs = seqs.data(), step.seq_count = (uint32_t)seqs.size();
    e->queue(&step);
  }
  e->wait();
}

const std::vector<int> kAll = {0, 1, 2, 3, 4};

void assert_same(const Engine &a, const Engine &b, const char *what) {
  for (int i = 0; i < kSlots; i++)
    if (a.drawn[i].tokens != b.drawn[i].tokens || a.drawn[i].logprobs != b.drawn[i].logprobs) fail_msg("%s: slot %d differs", what, i);
}

// How many tokens a slot's texts share before they part.
int shared(const Engine &a, const Engine &b, int slot, float logprob_limit) {
  const Drawn &x = a.drawn[slot], &y = b.drawn[slot];
  size_t k = 0;
  for (; k < std::min(x.tokens.size(), y.tokens.size()) && x.tokens[k] == y.tokens[k]; k++)
    if (std::fabs(x.logprobs[k] - y.logprobs[k]) > logprob_limit)
      fail_msg("slot %d, token %zu: log probability %g, expected %g", slot, k, (double)x.logprobs[k], (double)y.logprobs[k]);
  return (int)k;
}

void queued_steps_and_graphs_change_nothing(void **) {
  const std::vector<Sequence> all = sequences();
  Engine queued(&mob_backend_cuda, 1, false), stepwise(&mob_backend_cuda, 1, false), eager(&mob_backend_cuda, 1, true);
  generate(&queued, all, kAll, true);
  generate(&stepwise, all, kAll, false);
  generate(&eager, all, kAll, true);
  assert_same(stepwise, queued, "all steps queued at once");
  assert_same(eager, queued, "without graphs");
  for (int i = 0; i < kSlots; i++) assert_int_equal(queued.drawn[i].tokens.size(), kTokens);
  assert_int_equal(queued.drawn[1].top.size(), kTokens);
  for (size_t k = 0; k < kTokens; k++) {
    const int32_t masked = queued.drawn[3].tokens[k];
    assert_true(masked % 3 == 0 && masked < 120);
    if (k < 6) assert_true(masked > 6);
  }
  std::vector<int32_t> own = queued.drawn[4].tokens;
  std::sort(own.begin(), own.end());
  assert_true(std::unique(own.begin(), own.end()) - own.begin() > kTokens / 2);
}

// Two engines; the second's slots are taken again while the other's parameters and counts still lie in them.
void a_slot_opened_again_begins_afresh(void **) {
  const std::vector<Sequence> all = sequences();
  Engine once(&mob_backend_cuda, 1, false), twice(&mob_backend_cuda, 1, false);
  generate(&once, all, kAll, true);
  generate(&twice, all, kAll, true);
  for (Drawn &d : twice.drawn) d = Drawn();
  generate(&twice, all, kAll, true);
  assert_same(twice, once, "a slot opened again");
}

void the_cpu_draws_the_same(void **) {
  const std::vector<Sequence> all = sequences();
  Engine gpu(&mob_backend_cuda, 1, false), cpu(&mob_backend_cpu, 1, false);
  generate(&gpu, all, kAll, true);
  generate(&cpu, all, kAll, false);
  int same = 0;
  for (int i : kAll) same += shared(gpu, cpu, i, 0.02f);
  if (same < kSlots * kTokens * 3 / 4) fail_msg("only %d of %d tokens are the CPU's", same, kSlots * kTokens);
}

void two_ranks_draw_as_one(void **) {
  const std::vector<Sequence> all = sequences();
  assert_int_equal(mob_backend_cuda.device_count(), 2);
  Engine one(&mob_backend_cuda, 1, false), two(&mob_backend_cuda, 2, false), stepwise(&mob_backend_cuda, 2, true);
  generate(&one, all, kAll, true);
  generate(&two, all, kAll, true);
  generate(&stepwise, all, kAll, false);
  assert_same(stepwise, two, "two ranks, all steps queued at once");
  // The model's logits hardly differ: where all ids may be drawn, or the best is taken, another order of sums soon makes another text.
  const int same = shared(two, one, 3, 0.05f);
  if (same < kTokens * 3 / 4) fail_msg("only %d of %d tokens are those of one rank", same, kTokens);
}

// After preemption: the same text comes back as a prompt of which the end was generated.
void a_sequence_that_comes_back_goes_on(void **) {
  const std::vector<Sequence> all = sequences();
  Engine through(&mob_backend_cuda, 1, false), back(&mob_backend_cuda, 1, false);
  generate(&through, all, kAll, true);
  for (int i : {1, 2, 4}) {
    const Sequence &s = all[(size_t)i];
    std::vector<int32_t> text = s.prompt;
    const std::vector<int32_t> &tokens = through.drawn[i].tokens;
    text.insert(text.end(), tokens.begin(), tokens.begin() + 8);
    const mob_seq_open_t open = s.open((uint32_t)i, text, 8);
    mob_seq_step_t q = {};
    q.slot = (uint32_t)i, q.count = (uint32_t)text.size(), q.tokens = text.data();
    q.pages = s.pages.data(), q.page_count = kPages, q.sample = true;
    mob_step_t step = {};
    step.open = &open, step.open_count = 1, step.seqs = &q, step.seq_count = 1;
    back.queue(&step);
    back.wait();
    assert_int_equal(back.drawn[i].tokens[0], tokens[8]);
  }
}

// More rows than one batch of logits has; in two chunks, beside a sequence that decodes.
void log_probabilities_of_a_prompt(void **) {
  Sequence s = sequences()[1], other = sequences()[2];
  s.p.prompt_logprobs = 2, s.p.logprobs = 2, s.p.temperature = 0.8f, s.p.top_p = 0.99f;
  s.prompt.clear();
  for (int k = 0; k < 400; k++) s.prompt.push_back((k * k * 7 + k) % kVocab);
  std::vector<std::vector<Prompted>> found;
  for (const mob_backend_t *backend : {&mob_backend_cuda, &mob_backend_cpu}) {
    Engine e(backend, 1, false);
    const mob_seq_open_t open[] = {s.open(1, s.prompt, 0), other.open(2, other.prompt, 0)};
    uint32_t at = 0;
    for (uint32_t count : {330u, 70u}) {
      mob_seq_step_t q[2] = {};
      q[0].slot = 2, q[0].start = at ? (uint32_t)other.prompt.size() : 0, q[0].count = at ? 1 : (uint32_t)other.prompt.size();
      const int32_t previous = MOB_TOKEN_PREVIOUS;
      q[0].tokens = at ? &previous : other.prompt.data(), q[0].pages = other.pages.data(), q[0].page_count = kPages, q[0].sample = true;
      q[1].slot = 1, q[1].row = q[0].count, q[1].start = at, q[1].count = count, q[1].tokens = s.prompt.data() + at;
      q[1].pages = s.pages.data(), q[1].page_count = kPages, q[1].sample = at > 0;
      mob_step_t step = {};
      step.open = open, step.open_count = at ? 0 : 2, step.seqs = q, step.seq_count = 2;
      e.queue(&step);
      if (backend == &mob_backend_cpu) e.wait();
      at += count;
    }
    e.wait();
    assert_int_equal(e.drawn[1].tokens.size(), 1);
    assert_int_equal(e.drawn[2].tokens.size(), 2);
    found.push_back(e.prompted);
  }
  assert_int_equal(found[0].size(), 399);
  assert_int_equal(found[1].size(), 399);
  int near = 0;
  for (size_t i = 0; i < 399; i++) {
    const Prompted &got = found[0][i], &want = found[1][i];
    assert_int_equal(got.position, want.position);
    assert_int_equal(got.token, s.prompt[got.position]);
    const bool cut = (got.logprob == -9999.0f) != (want.logprob == -9999.0f); // beyond top-p on one side alone
    near += !cut && std::fabs(got.logprob - want.logprob) < 0.05f;
  }
  if (near < 390) fail_msg("%d of 399 log probabilities are the CPU's", near);
}

} // namespace

int main(void) {
  setenv("MOB_EMU_DEVICES", "2", 1);
  setenv("MOB_CUDA_WAIT_MS", "60000", 1); // of a busy machine's few cores
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_slot_opened_again_begins_afresh),
      cmocka_unit_test(a_sequence_that_comes_back_goes_on),
      cmocka_unit_test(log_probabilities_of_a_prompt),
#ifndef MOB_ASAN // ten times slower
      cmocka_unit_test(queued_steps_and_graphs_change_nothing),
      cmocka_unit_test(the_cpu_draws_the_same),
      cmocka_unit_test(two_ranks_draw_as_one),
#endif
  };
  return cmocka_run_group_tests(tests, open_model, close_model);
}
