// Weights of one, two and four ranks against the files: every element of every tensor is looked up where the layout says that a rank has
// it, nothing lies twice or under padding, and what a rank has is what the shards' rule gives it. The same for dummy values against those
// of the CPU. Then what can go wrong while files are read.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include <csetjmp>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <unistd.h>

#include "engine/cuda/weights.h"
extern "C" {
#include <cmocka.h>

#include "engine/model/dummy.h"
#include "tests/unit/cpu/golden_weights.h"
#include "tools/gpu/models.h"
}

namespace {

using namespace mob;

// ------------------------------------------------------------------------------------------ an executor's part that holds weights

struct Ranks {
  Exec exec = {};
  mob_load_progress_t last = {};
  uint64_t most = 0; // reported before the last call
  uint64_t abort_at = UINT64_MAX;
  ~Ranks() {
    for (Rank &rank : exec.ranks) {
      cudaSetDevice(rank.device);
      for (void *block : rank.blocks) cudaFree(block);
      if (rank.stream) cudaStreamDestroy(rank.stream);
    }
  }
};

void on_progress(void *arg, const mob_load_progress_t *p) { // from any thread
  Ranks *r = (Ranks *)arg;
  static std::mutex lock;
  std::lock_guard<std::mutex> hold(lock);
  r->most = std::max(r->most, r->last.bytes);
  r->last = *p;
  if (p->bytes >= r->abort_at) r->exec.aborted = true;
}

// As an executor's open() does it; what concerns weights. MOB_E_INVALID where the model does not divide.
// Of the `tp` ranks of a stage the `count` from `first` on, the others being in other processes.
mob_status bind(const mob_model_t *model, int tp, int first, int count, bool experts, Ranks *out) {
  Exec *exec = &out->exec;
  exec->spec.model = model;
  exec->spec.tp = tp;
  exec->spec.expert_parallel = experts;
  exec->desc = mob_model_desc(model);
  exec->spec.last_layer = exec->desc->n_layers;
  exec->mla = exec->desc->attn == MOB_ATTN_MLA;
  if (experts && exec->desc->n_experts % tp) return mob_fail(MOB_E_INVALID, "experts");
  exec->ranks.resize((size_t)count);
  for (int i = 0; i < count; i++) {
    Rank *r = &exec->ranks[(size_t)i];
    r->index = r->device = i;
    r->number = first + i;
    r->heads = exec->desc->n_heads / tp;
    r->first_expert = experts ? exec->desc->n_experts * r->number / tp : 0;
    r->experts = experts ? exec->desc->n_experts / tp : exec->desc->n_experts;
    assert_int_equal(cudaSetDevice(i), cudaSuccess);
    assert_int_equal(cudaStreamCreateWithFlags(&r->stream, cudaStreamNonBlocking), cudaSuccess);
  }
  return weights_bind(exec);
}

// ------------------------------------------------------------------------------------------ what the weights should be

// Elements of a tensor as the file, or the CPU's dummy rule, has them.
struct Whole {
  const mob_model_desc_t *desc;
  mob_slot_t slot;
  const mob_tensor_t *tensor, *scales;
  std::vector<uint8_t> drawn;
  float dummy_scale;
  const uint8_t *bytes(int64_t r, int64_t c) const {
    const uint8_t *all = tensor->data ? (const uint8_t *)tensor->data : drawn.data();
    return all + (size_t)(r * slot.cols + c) * mob_dtype_size(tensor->dtype);
  }
  float scale(int64_t r, int64_t c) const {
    if (!scales) return 1;
    if (!scales->data) return dummy_scale;
    float v;
    memcpy(&v, (const uint8_t *)scales->data + 4 * (size_t)(r / desc->quant_block_rows * scales->shape[1] + c / desc->quant_block_cols), 4);
    return v;
  }
  float value(int64_t r, int64_t c) const {
    const uint8_t *p = bytes(r, c);
    if (tensor->dtype == MOB_DT_F8E4M3) {
      const int e = *p >> 3 & 15, m = *p & 7;
      const float v = e ? ldexpf((float)(8 + m), e - 10) : ldexpf((float)m, -9);
      return (*p & 0x80 ? -v : v) * scale(r, c);
    }
    if (tensor->dtype == MOB_DT_F32) {
      float v;
      memcpy(&v, p, 4);
      return v;
    }
    uint16_t bits;
    memcpy(&bits, p, 2);
    if (tensor->dtype == MOB_DT_BF16) {
      const uint32_t wide = (uint32_t)bits << 16;
      float v;
      memcpy(&v, &wide, 4);
      return v;
    }
    const int e = bits >> 10 & 31, m = bits & 1023;
    const float v = e ? ldexpf((float)(1024 + m), e - 25) : ldexpf((float)m, -24);
    return bits & 0x8000 ? -v : v;
  }
};

uint16_t bf16_bits(float v) { // nearest, ties to even
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Arrays of the devices, brought here; and which of their bytes were looked at.
struct Seen {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> used; // 1 or 0
};
struct Memory {
  std::map<const void *, Seen> arrays;
  Seen *at(const void *device, size_t bytes) {
    Seen *s = &arrays[device];
    if (s->bytes.size() < bytes) {
      s->bytes.resize(bytes);
      s->used.resize(bytes);
      assert_int_equal(cudaMemcpy(s->bytes.data(), device, bytes, cudaMemcpyDeviceToHost), cudaSuccess);
    }
    return s;
  }
};

void expect(Seen *s, size_t at, const void *want, size_t n, const Whole &w, const WeightTarget &t, int64_t r, int64_t c) {
  if (at + n > s->bytes.size()) fail_msg("%s: byte %zu is beyond its array", w.slot.name, at);
  if (memcmp(&s->bytes[at], want, n) != 0)
    fail_msg("%s: element (%lld, %lld) is wrong on rank %d (kind %d, byte %zu)", w.slot.name, (long long)r, (long long)c, t.rank->number,
             t.kind, at);
  for (size_t i = 0; i < n; i++) {
    if (s->used[at + i]++) fail_msg("%s: element (%lld, %lld) lies on another", w.slot.name, (long long)r, (long long)c);
  }
}

size_t array_bytes(const WeightTarget &t, const Exec *exec) {
  if (t.kind == WeightTarget::FLOAT) return (size_t)t.from.rows * 4;
  if (t.kind == WeightTarget::PLAIN) return (size_t)(t.row0 + t.from.rows) * (size_t)t.ld * 2;
  for (const Rank &rank : exec->ranks) { // the matrix that begins there
    const auto find = [&](const Layer &layer) -> size_t {
      for (const Group &g : layer.g)
        for (int i = 0; g.m.data && i < g.count; i++)
          if (g.m.data + (size_t)i * g.m.stride == t.dst) return g.m.stride;
      return 0;
    };
    for (const Layer &layer : rank.layers)
      if (const size_t n = find(layer)) return n;
    if (const size_t n = find(rank.outer)) return n;
  }
  fail_msg("a target is no matrix");
  return 0;
}

void check_target(const Whole &w, const WeightTarget &t, const Exec *exec, Memory *memory) {
  Seen *s = memory->at(t.dst, array_bytes(t, exec));
  const bool codes = t.kind == WeightTarget::TILES && t.tiles == Weights::F8;
  if (codes) assert_int_equal(w.tensor->dtype, MOB_DT_F8E4M3);
  for (int64_t r = 0; r < t.from.rows; r++)
    for (int64_t c = 0; c < t.from.cols; c++) {
      const int64_t row = t.from.row0 + r, col = t.from.col0 + c, to = t.row0 + r;
      if (t.kind == WeightTarget::FLOAT) {
        const float v = w.value(row, col);
        expect(s, (size_t)to * 4, &v, 4, w, t, row, col);
      } else if (codes) {
        expect(s, tile_offset(to, c, t.ld / 256), w.bytes(row, col), 1, w, t, row, col);
        const float scale = w.scale(row, col);
        if (to % 64 == 0 && c % 128 == 0) expect(s, scale_offset(to, c, t.ld / 256), &scale, 4, w, t, row, col);
        else if (memcmp(&s->bytes[scale_offset(to, c, t.ld / 256)], &scale, 4) != 0)
          fail_msg("%s: element (%lld, %lld) has another scale", w.slot.name, (long long)row, (long long)col);
      } else {
        const uint16_t v = bf16_bits(w.value(row, col));
        expect(s, t.kind == WeightTarget::TILES ? tile_offset(to, c * 2, t.ld / 128) : (size_t)(to * t.ld + c) * 2, &v, 2, w, t, row, col);
      }
    }
}

// The hull of a rank's targets is the shard that engine/model gives it.
void check_shares(const Exec *exec, const mob_slot_t &slot, const std::vector<WeightTarget> &targets) {
  for (const Rank &rank : exec->ranks) {
    std::set<std::vector<int64_t>> parts; // two forms of one part count once
    int64_t area = 0, r0 = INT64_MAX, c0 = INT64_MAX, r1 = 0, c1 = 0;
    for (const WeightTarget &t : targets) {
      if (t.rank != &rank) continue;
      r0 = std::min(r0, t.from.row0), r1 = std::max(r1, t.from.row0 + t.from.rows);
      c0 = std::min(c0, t.from.col0), c1 = std::max(c1, t.from.col0 + t.from.cols);
      if (parts.insert({t.from.row0, t.from.col0, t.from.rows, t.from.cols}).second) area += t.from.rows * t.from.cols;
    }
    mob_slot_t named = slot;
    mob_shard_t want;
    bool holds = true;
    if (exec->spec.expert_parallel && slot.expert >= 0) {
      named.split = MOB_SPLIT_NONE;
      const int64_t n = exec->desc->n_experts, tp = exec->spec.tp;
      holds = slot.expert >= n * rank.number / tp && slot.expert < n * (rank.number + 1) / tp; // as engine/cpu
    }
    assert_int_equal(mob_slot_shard(exec->desc, &named, rank.number, exec->spec.tp, &want), MOB_OK);
    assert_int_equal(parts.empty(), !holds);
    if (!holds) continue;
    assert_true(r0 == want.row0 && r1 == want.row0 + want.rows && c0 == want.col0 && c1 == want.col0 + want.cols);
    assert_true(area == want.rows * want.cols);
  }
}

// UK_h^T, made from the packed kv_b.
void check_uk(const Exec *exec, const std::map<std::string, Whole> &all, Memory *memory) {
  for (const Rank &rank : exec->ranks)
    for (size_t l = 0; l < rank.layers.size(); l++) {
      const Layer &layer = rank.layers[l];
      if (!layer.uk) continue;
      const Whole &w = all.at("model.layers." + std::to_string(l) + ".self_attn.kv_b_proj.weight");
      const Seen *s = memory->at(layer.uk, (size_t)rank.heads * 4 * kPairBytes);
      for (int head = 0; head < rank.heads; head++)
        for (int64_t c = 0; c < 512; c++)
          for (int64_t r = 0; r < 128; r++) {
            const int64_t row = (int64_t)(rank.number * rank.heads + head) * 256 + r;
            const uint8_t *pair = &s->bytes[(size_t)(head * 4 + c / 128) * kPairBytes];
            const size_t tile = (size_t)(c / 64 % 2) * kTileBytes;
            const float scale = w.scale(row, c);
            if (pair[tile + (size_t)(c % 64 * 128 + (((r >> 4) ^ (c & 7)) << 4) + (r & 15))] != *w.bytes(row, c) ||
                memcmp(pair + kPairScales + c / 64 % 2 * 4, &scale, 4) != 0)
              fail_msg("layer %zu, head %d: element (%lld, %lld) of UK is wrong", l, head, (long long)r, (long long)c);
          }
    }
}

// Loads and looks everything up; false where the model does not divide so.
bool check_load(const mob_model_t *model, int tp, bool experts, int first = 0, int count = 0) {
  Ranks ranks;
  Exec *exec = &ranks.exec;
  if (bind(model, tp, first, count ? count : tp, experts, &ranks) != MOB_OK) return false;
  if (weights_load(exec, on_progress, &ranks) != MOB_OK) fail_msg("%s", mob_errmsg());
  // Every byte of the files once, whatever tp is.
  assert_true(exec->file_bytes == mob_model_bytes(model));
  assert_true(ranks.last.bytes == exec->file_bytes && ranks.last.total == exec->file_bytes);
  if (mob_model_tensor(model, "model.norm.weight")->data) assert_true(ranks.most == exec->file_bytes);
  Memory memory;
  std::map<std::string, Whole> all;
  const WeightVisit look = [&](const mob_slot_t &slot, const mob_tensor_t *tensor, const mob_tensor_t *scales,
                               const std::vector<WeightTarget> &targets) {
    Whole *w = &all[tensor->name];
    if (!w->tensor) {
      *w = {exec->desc, slot, tensor, scales, {}, mob_dummy_scale(exec->desc, &slot)};
      if (!tensor->data) {
        w->drawn.resize(tensor->bytes);
        const mob_shard_t whole = {0, slot.rows, 0, slot.cols};
        mob_dummy_fill(&slot, tensor->dtype, &whole, w->drawn.data());
      }
      check_shares(exec, slot, targets);
    }
    for (const WeightTarget &t : targets) check_target(*w, t, exec, &memory);
    return MOB_OK;
  };
  assert_int_equal(weights_targets(exec, look), MOB_OK);
  for (const auto &array : memory.arrays) // padding
    for (size_t i = 0; i < array.second.bytes.size(); i++)
      if (!array.second.used[i] && array.second.bytes[i]) fail_msg("byte %zu of an array is padding, but not 0", i);
  check_uk(exec, all, &memory);
  return true;
}

#ifdef MOB_ASAN
constexpr int kHalves = 0; // ten times slower
#else
constexpr int kHalves = 2;
#endif

// Returns how many ways of cutting the model there were. Without `dir` no dummy values.
int check_model(const mob_model_t *files, const char *dir, const std::vector<int> &ranks) {
  mob_model_t *dummy = nullptr;
  mob_model_options_t options = {};
  options.dummy = true;
  if (dir && mob_model_open(dir, &options, &dummy) != MOB_OK) fail_msg("%s", mob_errmsg());
  int ways = 0;
  for (int tp : ranks)
    for (int experts = 0; experts < (tp > 1 && mob_model_desc(files)->n_experts ? 2 : 1); experts++) {
      const bool divides = check_load(files, tp, experts);
      if (dummy) assert_int_equal(check_load(dummy, tp, experts), divides);
      ways += divides;
      // Each half of the ranks as a process of its own has them: what only the others need is counted as done, and not read.
      for (int half = 0; divides && tp > 1 && half < kHalves; half++) assert_true(check_load(files, tp, experts, tp / 2 * half, tp / 2));
    }
  if (dummy) mob_model_close(dummy);
  return ways;
}

#ifdef MOB_ASAN
constexpr int kEvery = 5; // golden models: ten times slower
#else
constexpr int kEvery = 1;
#endif

void goldens(void **) {
  int at = 0;
  for (const char *const *name = check_golden_models(); *name; name++) {
    if (at++ % kEvery != 0) continue;
    check_model_t files;
    if (check_model_open(MOB_SOURCE_DIR, *name, &files) != MOB_OK) fail_msg("%s", mob_errmsg());
    const int ways = check_model(files.model, files.dir, {1, 2, 4});
    if (ways < 2) fail_msg("%s: %d ways", *name, ways);
    check_model_close(&files);
  }
}

// Latent attention with DeepSeek-V3's head sizes, so that its tiles are made, and FP8 experts whose shards at TP 4 still keep their blocks.
const char tiles_json[] =
    "{\"dtype\":\"fp8\",\"seed\":21,\"config\":{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"model_type\":\"deepseek_v3\","
    "\"vocab_size\":130,\"hidden_size\":128,\"intermediate_size\":512,\"moe_intermediate_size\":512,\"num_hidden_layers\":2,"
    "\"num_attention_heads\":4,\"num_key_value_heads\":4,\"q_lora_rank\":128,\"kv_lora_rank\":512,\"qk_nope_head_dim\":128,"
    "\"qk_rope_head_dim\":64,\"v_head_dim\":128,\"n_routed_experts\":4,\"n_group\":2,\"topk_group\":1,\"num_experts_per_tok\":2,"
    "\"n_shared_experts\":2,\"first_k_dense_replace\":1,\"norm_topk_prob\":true,\"routed_scaling_factor\":2.5,"
    "\"scoring_func\":\"sigmoid\",\"topk_method\":\"noaux_tc\",\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-06,"
    "\"rope_theta\":10000.0,\"rope_scaling\":null,\"max_position_embeddings\":2560,\"attention_bias\":false,"
    "\"tie_word_embeddings\":false,\"bos_token_id\":0,\"eos_token_id\":1,\"torch_dtype\":\"bfloat16\",\"quantization_config\":"
    "{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}}}";

// A temporary directory with that model.
struct Fixture {
  std::string dir, path;
  mob_model_t *model = nullptr;
  Fixture() {
    char name[] = "/tmp/mobula-weights-XXXXXX";
    assert_non_null(mkdtemp(name));
    dir = name;
    path = dir + "/model.safetensors";
    json_error_t error;
    json_t *json = json_loads(tiles_json, 0, &error);
    assert_non_null(json);
    if (golden_write_model(json, name) != MOB_OK || mob_model_open(name, nullptr, &model) != MOB_OK) fail_msg("%s", mob_errmsg());
    json_decref(json);
  }
  ~Fixture() {
    mob_model_close(model);
    unlink(path.c_str());
    unlink((dir + "/config.json").c_str());
    rmdir(dir.c_str());
  }
};

void tiles(void **) {
  Fixture f;
  assert_int_equal(check_model(f.model, f.dir.c_str(), {1, 2, 4}), 5);
#ifdef MOB_ASAN // ten times slower
  const std::vector<int> ranks = {2};
  const int ways = 2;
#else
  const std::vector<int> ranks = {1, 2, 4};
  const int ways = 5;
#endif
  setenv("MOB_LOAD_ROW_COST", "16", 1); // columns cut by the copies, not by the kernels
  assert_int_equal(check_model(f.model, nullptr, ranks), ways);
  unsetenv("MOB_LOAD_ROW_COST");
  setenv("MOB_CUDA_F8", "0", 1); // every matrix dequantised
  assert_int_equal(check_model(f.model, f.dir.c_str(), ranks), ways);
  unsetenv("MOB_CUDA_F8");
}

// ------------------------------------------------------------------------------------------ what can go wrong

// load() fails, says so, and leaves nothing that stops a second one.
void fails(const mob_model_t *model, int tp, mob_status code, const std::vector<std::string> &says) {
  for (int again = 0; again < 2; again++) {
    Ranks ranks;
    assert_int_equal(bind(model, tp, 0, tp, false, &ranks), MOB_OK);
    const mob_status status = weights_load(&ranks.exec, on_progress, &ranks);
    if (status != code) fail_msg("status %d: %s", status, mob_errmsg());
    for (const std::string &word : says)
      if (!strstr(mob_errmsg(), word.c_str())) fail_msg("\"%s\" does not say \"%s\"", mob_errmsg(), word.c_str());
    assert_false(ranks.exec.loaded);
  }
}

void a_file_cut_short(void **) {
  Fixture f;
  const mob_tensor_t *t = mob_model_tensor(f.model, "model.layers.1.self_attn.o_proj.weight");
  assert_int_equal(truncate(f.path.c_str(), (off_t)(t->offset + t->bytes / 2)), 0);
  for (int tp : {1, 2}) fails(f.model, tp, MOB_E_FORMAT, {f.path, "truncated", "tensor "});
}

void a_code_that_is_no_number(void **) {
  Fixture f;
  const mob_tensor_t *t = mob_model_tensor(f.model, "model.layers.1.mlp.experts.3.down_proj.weight");
  FILE *file = fopen(f.path.c_str(), "r+b");
  assert_non_null(file);
  fseek(file, (long)(t->offset + t->bytes - 5), SEEK_SET);
  fputc(0xff, file);
  assert_int_equal(fclose(file), 0);
  for (int tp : {1, 2}) fails(f.model, tp, MOB_E_FORMAT, {f.path, t->name, "0x7F"});
}

void an_abort(void **) {
  Fixture f;
  for (uint64_t at : {(uint64_t)0, (uint64_t)100000}) {
    Ranks ranks;
    assert_int_equal(bind(f.model, 2, 0, 2, false, &ranks), MOB_OK);
    ranks.exec.aborted = at == 0;
    ranks.abort_at = at;
    assert_int_equal(weights_load(&ranks.exec, on_progress, &ranks), MOB_E_ABORTED);
    assert_true(ranks.last.bytes < ranks.exec.file_bytes);
    assert_false(ranks.exec.loaded);
  }
}

} // namespace

int main() {
  // Small chunks, so that tensors are cut and slots are used again.
  setenv("MOB_LOAD_CHUNK_KIB", "32", 1);
  setenv("MOB_LOAD_THREADS", "3", 1);
  setenv("MOB_EMU_DEVICES", "4", 0);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(goldens),
      cmocka_unit_test(tiles),
      cmocka_unit_test(a_file_cut_short),
      cmocka_unit_test(a_code_that_is_no_number),
      cmocka_unit_test(an_abort),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
