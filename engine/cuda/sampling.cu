// A slot's sampling parameters on their way to the device.
#include "engine/cuda/sampling.h"

#include <algorithm>
#include <cstring>

#include "engine/cuda/exec.h"

namespace mob {
namespace {

template <class T> void place(T **out, uint8_t *block, size_t *used, size_t count) {
  *out = block ? (T *)(block + *used) : nullptr;
  *used += (count * sizeof(T) + 255) / 256 * 256;
}

size_t lay_out(Sampler *s, int vocab, int slots, int batch, int rows, uint8_t *block) {
  size_t used = 0;
  s->vocab = vocab;
  s->slots = slots;
  s->allowed_words = (vocab + 31) / 32;
  place(&s->slot, block, &used, (size_t)slots);
  place(&s->counts, block, &used, (size_t)slots * (size_t)vocab);
  place(&s->allowed, block, &used, (size_t)slots * (size_t)s->allowed_words);
  place(&s->groups, block, &used, (size_t)batch * kSampleParts * kSampleGroups);
  place(&s->lists, block, &used, (size_t)slots * kSampleList);
  place(&s->results, block, &used, (size_t)rows);
  return used;
}

// Room for up to `want` bytes, at least an int; what was staged before has left when there is none.
mob_status take(SampleStage *stage, size_t want, cudaStream_t stream, uint8_t **out, size_t *got) {
  if (stage->used == kSampleStage) {
    CU_TRY(cudaStreamSynchronize(stream));
    stage->used = 0;
  }
  *got = std::min(want, kSampleStage - stage->used);
  *out = stage->data + stage->used;
  stage->used = std::min(kSampleStage, (stage->used + *got + 15) / 16 * 16);
  return MOB_OK;
}

mob_status upload(SampleStage *stage, void *dst, const void *src, size_t bytes, cudaStream_t stream) {
  for (size_t done = 0, got; done < bytes; done += got) {
    uint8_t *pinned;
    MOB_TRY(take(stage, bytes - done, stream, &pinned, &got));
    memcpy(pinned, (const uint8_t *)src + done, got);
    CU_TRY(cudaMemcpyAsync((uint8_t *)dst + done, pinned, got, cudaMemcpyHostToDevice, stream));
  }
  return MOB_OK;
}

mob_status count_ids(Sampler *s, uint32_t slot, const int32_t *ids, size_t n, bool output, SampleStage *stage, cudaStream_t stream) {
  for (size_t done = 0, got; done < n; done += got) {
    uint8_t *pinned;
    MOB_TRY(take(stage, (n - done) * 4, stream, &pinned, &got));
    got /= 4;
    memcpy(pinned, ids + done, got * 4);
    sample_count((const int *)pinned, (int)got, output, s->counts + (size_t)slot * (size_t)s->vocab, s->vocab, stream);
  }
  CU_TRY(cudaGetLastError());
  return MOB_OK;
}

bool in_vocab(const Sampler *s, int32_t id) { return id >= 0 && id < s->vocab; }

// Stop ids, ids with a bias, biases: one list, each id once in its part.
mob_status open_lists(Sampler *s, const mob_seq_open_t &open, SampleStage *stage, cudaStream_t stream, SlotSampling *slot) {
  const mob_sampling_t &p = open.sampling;
  std::vector<int32_t> list;
  for (uint32_t i = 0; p.min_tokens > 0 && i < p.stop_id_count; i++)
    if (in_vocab(s, p.stop_ids[i])) list.push_back(p.stop_ids[i]); // the same one twice does no harm
  slot->stop_count = (int)list.size();
  std::vector<mob_logit_bias_t> bias(p.bias, p.bias + p.bias_count);
  std::stable_sort(bias.begin(), bias.end(), [](const mob_logit_bias_t &a, const mob_logit_bias_t &b) { return a.token < b.token; });
  std::vector<float> values;
  for (const mob_logit_bias_t &b : bias) {
    if (!in_vocab(s, b.token)) continue;
    if (!values.empty() && list.back() == b.token) {
      values.back() += b.bias;
      continue;
    }
    list.push_back(b.token);
    values.push_back(b.bias);
  }
  slot->bias_count = (int)values.size();
  const size_t ids = list.size();
  list.resize(ids + values.size());
  if (!values.empty()) memcpy(list.data() + ids, values.data(), values.size() * 4);
  int *at = s->lists + (size_t)open.slot * kSampleList;
  void *&own = s->long_lists[open.slot];
  if (own) {
    CU_TRY(cudaStreamSynchronize(stream)); // steps under way may still read it
    CU_TRY(cudaFree(own));
    own = nullptr;
  }
  if (list.size() > (size_t)kSampleList) {
    CU_TRY(cudaMalloc(&own, list.size() * 4));
    at = (int *)own;
  }
  slot->stop = at;
  slot->bias_token = at + slot->stop_count;
  slot->bias = (const float *)(at + ids);
  return upload(stage, at, list.data(), list.size() * 4, stream);
}

mob_status open_allowed(Sampler *s, const mob_seq_open_t &open, SampleStage *stage, cudaStream_t stream) {
  std::vector<uint32_t> bits((size_t)s->allowed_words);
  for (uint32_t i = 0; i < open.sampling.allowed_count; i++) {
    const int32_t id = open.sampling.allowed[i];
    if (in_vocab(s, id)) bits[(size_t)id / 32] |= 1u << (id % 32);
  }
  return upload(stage, s->allowed + (size_t)open.slot * (size_t)s->allowed_words, bits.data(), bits.size() * 4, stream);
}

mob_status open_counts(Sampler *s, const mob_seq_open_t &open, SampleStage *stage, cudaStream_t stream) {
  const size_t prompt = open.prompt_count - open.generated;
  CU_TRY(cudaMemsetAsync(s->counts + (size_t)open.slot * (size_t)s->vocab, 0, (size_t)s->vocab * 4, stream));
  MOB_TRY(count_ids(s, open.slot, open.prompt, prompt, false, stage, stream));
  return count_ids(s, open.slot, open.prompt + prompt, open.generated, true, stage, stream);
}

bool has_penalties(const mob_sampling_t &s) {
  return (s.repetition_penalty != 1.0f && s.repetition_penalty > 0) || s.frequency_penalty != 0 || s.presence_penalty != 0;
}

} // namespace

bool sampling_is_plain(const mob_sampling_t &s) {
  return (s.temperature < 1e-5f || s.top_k == 1) && s.bias_count == 0 && s.allowed_count == 0 && s.min_tokens == 0 &&
         !has_penalties(s) && s.logprobs < 0 && s.prompt_logprobs < 0;
}

size_t sampler_bytes(int vocab, int slots, int batch, int rows) {
  Sampler unused;
  return lay_out(&unused, vocab, slots, batch, rows, nullptr);
}

void sampler_place(Sampler *s, int vocab, int slots, int batch, int rows, uint8_t *block) {
  lay_out(s, vocab, slots, batch, rows, block);
  s->long_lists.assign((size_t)slots, nullptr);
}

mob_status sampler_open(Sampler *s, const mob_seq_open_t &open, SampleStage *stage, cudaStream_t stream) {
  const mob_sampling_t &p = open.sampling;
  SlotSampling slot = {};
  slot.temperature = p.temperature;
  slot.top_p = p.top_p;
  slot.min_p = p.min_p;
  slot.top_k = p.top_k;
  slot.repetition = p.repetition_penalty > 0 ? p.repetition_penalty : 1.0f;
  slot.frequency = p.frequency_penalty;
  slot.presence = p.presence_penalty;
  slot.logprobs = p.logprobs;
  slot.prompt_logprobs = p.prompt_logprobs;
  slot.has_allowed = p.allowed_count > 0;
  slot.has_counts = has_penalties(p);
  slot.min_tokens = p.min_tokens;
  slot.drawn = open.generated;
  slot.seed = p.seed;
  MOB_TRY(open_lists(s, open, stage, stream, &slot));
  if (slot.has_allowed) MOB_TRY(open_allowed(s, open, stage, stream));
  if (slot.has_counts) MOB_TRY(open_counts(s, open, stage, stream));
  return upload(stage, s->slot + open.slot, &slot, sizeof slot, stream);
}

void sampler_close(Sampler *s) {
  for (void *list : s->long_lists) cudaFree(list);
  s->long_lists.clear();
}

} // namespace mob
