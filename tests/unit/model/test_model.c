// Whole model directories: what is missing, double, misshapen; sub-folders; overrides; dummy
// weights.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <ftw.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/dummy.h"
#include "engine/model/half.h"
#include "engine/model/model.h"
#include "runtime/base/buf.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

static const char config[] = "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"vocab_size\":16,"
                             "\"hidden_size\":8,\"intermediate_size\":8,"
                             "\"moe_intermediate_size\":4,\"num_hidden_layers\":2,\"num_attention_"
                             "heads\":2,\"num_key_value_heads\":2,"
                             "\"q_lora_rank\":4,\"kv_lora_rank\":4,\"qk_nope_head_dim\":2,\"qk_"
                             "rope_head_dim\":2,\"v_head_dim\":2,"
                             "\"n_routed_experts\":4,\"n_group\":2,\"topk_group\":1,\"num_experts_"
                             "per_tok\":2,\"first_k_dense_replace\":1,"
                             "\"torch_dtype\":\"bfloat16\",\"eos_token_id\":[3,4]%s}";
static const char quant[] =
    ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}";

static char *dir;

static int remove_one(const char *path, const struct stat *info, int flag, struct FTW *ftw) {
  (void)info, (void)flag, (void)ftw;
  return remove(path);
}

static int set_up(void **state) {
  (void)state;
  dir = mob_strdup("/tmp/mobula-model-XXXXXX");
  return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state) {
  (void)state;
  nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
  free(dir);
  return 0;
}

static void write_text(const char *name, const char *text) {
  char *path = mob_path_join(dir, name);
  assert_int_equal(mob_file_write(path, text, strlen(text)), MOB_OK);
  free(path);
}

static void write_config(const char *extra) {
  char *text = mob_sprintf(config, extra);
  write_text("config.json", text);
  free(text);
}

typedef struct writing {
  mob_buf_t header, data;
  const char *skip, *reshape, *retype; // tensors to leave out, to give a wrong shape, a wrong dtype
  bool fp8;
} writing_t;

static void add(writing_t *w, const char *name, const char *dtype, int64_t rows, int64_t cols,
                size_t size) {
  if (w->skip && strcmp(name, w->skip) == 0) return;
  if (w->reshape && strcmp(name, w->reshape) == 0) rows++;
  if (w->retype && strcmp(name, w->retype) == 0)
    dtype = size == 2 ? "I16" : size == 1 ? "U8" : "I32";
  size_t bytes = (size_t)(rows * (cols ? cols : 1)) * size;
  mob_buf_printf(&w->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld",
                 w->header.len > 1 ? "," : "", name, dtype, (long long)rows);
  if (cols) mob_buf_printf(&w->header, ",%lld", (long long)cols);
  mob_buf_printf(&w->header, "],\"data_offsets\":[%zu,%zu]}", w->data.len, w->data.len + bytes);
  for (size_t i = 0; i < bytes; i++) mob_buf_putc(&w->data, 0);
}

static mob_status add_slot(void *arg, const mob_slot_t *slot) {
  writing_t *w = arg;
  char name[160];
  bool plain = slot->cols == 1 || slot->id == MOB_W_EMBED || slot->id == MOB_W_HEAD ||
               slot->id == MOB_W_ROUTER;
  if (w->fp8 && !plain) {
    add(w, slot->name, "F8_E4M3", slot->rows, slot->cols, 1);
    snprintf(name, sizeof name, "%s_scale_inv", slot->name);
    add(w, name, "F32", 1, 1, 4);
  } else {
    add(w, slot->name, "BF16", slot->rows, slot->cols == 1 ? 0 : slot->cols, 2);
  }
  return MOB_OK;
}

// Writes the weights of the tiny configuration to `name`, changed as `w` says.
static void write_weights(const char *name, writing_t *w) {
  json_error_t error;
  char *text = mob_sprintf(config, w->fp8 ? quant : "");
  json_t *root = json_loads(text, 0, &error);
  mob_model_desc_t desc = {0};
  assert_int_equal(mob_family_deepseek_v3.describe(root, &desc), MOB_OK);
  mob_buf_putc(&w->header, '{');
  for (int layer = -1; layer < 2; layer++) mob_family_deepseek_v3.slots(&desc, layer, add_slot, w);
  add(w, "model.layers.2.eh_proj.weight", "BF16", 3, 3,
      2); // a layer behind the last is not looked at
  mob_buf_putc(&w->header, '}');
  mob_buf_t file = {0};
  uint64_t length = w->header.len;
  mob_buf_append(&file, &length, 8);
  mob_buf_append(&file, w->header.data, w->header.len);
  if (w->data.len) mob_buf_append(&file, w->data.data, w->data.len);
  char *path = mob_path_join(dir, name);
  assert_int_equal(mob_file_write(path, file.data, file.len), MOB_OK);
  free(path);
  free(text);
  json_decref(root);
  mob_model_desc_clear(&desc);
  mob_buf_free(&file);
  mob_buf_free(&w->header);
  mob_buf_free(&w->data);
}

static void refuse(mob_status code, const char *says) {
  mob_model_t *model;
  assert_int_equal(mob_model_open(dir, NULL, &model), code);
  if (!strstr(mob_errmsg(), says)) fail_msg("\"%s\" does not say \"%s\"", mob_errmsg(), says);
}

static void test_opens_and_describes(void **state) {
  (void)state;
  mob_model_t *model;
  write_config("");
  write_weights("model.safetensors", &(writing_t){0});
  write_text("generation_config.json",
             "{\"temperature\":0.6,\"top_p\":0.95,\"eos_token_id\":[4,5],\"do_sample\":true}");
  assert_int_equal(mob_model_open(dir, NULL, &model), MOB_OK);
  const mob_generation_defaults_t *g = mob_model_generation(model);
  assert_int_equal(g->eos_count, 3); // 3, 4 and 5
  assert_true(g->has_temperature && g->temperature == 0.6 && g->has_top_p && !g->has_top_k);
  assert_string_equal(mob_model_dir(model), dir);
  assert_non_null(mob_model_tensor(model, "model.layers.2.eh_proj.weight"));
  assert_null(mob_model_tensor(model, "x"));
  uint64_t fingerprint = mob_model_fingerprint(model), bytes = mob_model_bytes(model);
  assert_true(bytes > 0);
  mob_model_close(model);
  assert_int_equal(mob_model_open(dir, NULL, &model), MOB_OK);
  assert_true(mob_model_fingerprint(model) == fingerprint);
  mob_model_close(model);
  mob_model_options_t options = {.overrides = "{\"rms_norm_eps\":0.25}"};
  assert_int_equal(mob_model_open(dir, &options, &model), MOB_OK);
  assert_true(mob_model_desc(model)->rms_eps == 0.25f &&
              mob_model_fingerprint(model) != fingerprint);
  mob_model_close(model);
  options.overrides = "[1]";
  assert_int_equal(mob_model_open(dir, &options, &model), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "--hf-overrides"));
}

static void test_wrong_tensors_are_named(void **state) {
  (void)state;
  write_config(quant);
  write_weights("model.safetensors", &(writing_t){.fp8 = true});
  mob_model_t *model;
  assert_int_equal(mob_model_open(dir, NULL, &model), MOB_OK);
  mob_model_close(model);
  write_weights("model.safetensors",
                &(writing_t){.fp8 = true, .skip = "model.layers.1.mlp.experts.3.up_proj.weight"});
  refuse(MOB_E_FORMAT, "tensor model.layers.1.mlp.experts.3.up_proj.weight [4, 8] is missing");
  write_weights(
      "model.safetensors",
      &(writing_t){.fp8 = true, .skip = "model.layers.0.self_attn.o_proj.weight_scale_inv"});
  refuse(MOB_E_FORMAT, "o_proj.weight_scale_inv F32 [1, 1] is missing");
  write_weights(
      "model.safetensors",
      &(writing_t){.fp8 = true, .reshape = "model.layers.0.mlp.down_proj.weight_scale_inv"});
  refuse(MOB_E_FORMAT, "is F32 [2, 1], but config.json makes it F32 [1, 1]");
  write_weights("model.safetensors", &(writing_t){.fp8 = true, .reshape = "model.norm.weight"});
  refuse(MOB_E_FORMAT,
         "model.safetensors: tensor model.norm.weight is BF16 [9], but config.json makes it [8]");
  write_weights("model.safetensors", &(writing_t){.fp8 = true, .retype = "lm_head.weight"});
  refuse(MOB_E_FORMAT, "tensor lm_head.weight is I16 [16, 8]");
  write_config(""); // FP8 without quantization_config
  write_weights("model.safetensors", &(writing_t){.fp8 = true});
  refuse(MOB_E_FORMAT, "quantization_config gives it no block scales");
}

static void test_files(void **state) {
  (void)state;
  refuse(MOB_E_NOT_FOUND, "there is no config.json");
  write_text("config.json", "{\"architectures\":");
  refuse(MOB_E_FORMAT, "config.json: line 1");
  write_text("config.json", "[]");
  refuse(MOB_E_FORMAT, "not a JSON object");
  write_config("");
  refuse(MOB_E_NOT_FOUND, "no *.safetensors file");
  write_text("model.safetensors", "");
  refuse(MOB_E_FORMAT, "the file is empty");
  write_text("model.safetensors", "0123456789");
  refuse(MOB_E_FORMAT, "the header says it has");
  write_weights("model.safetensors", &(writing_t){0});
  write_weights("more.safetensors", &(writing_t){0});
  refuse(MOB_E_FORMAT, "is in two files");
  // An index names the files that count.
  write_text("model.safetensors.index.json",
             "{\"weight_map\":{\"lm_head.weight\":\"model.safetensors\"}}");
  mob_model_t *model;
  assert_int_equal(mob_model_open(dir, NULL, &model), MOB_OK);
  mob_model_close(model);
  write_text("model.safetensors.index.json",
             "{\"weight_map\":{\"lm_head.weight\":\"gone.safetensors\"}}");
  refuse(MOB_E_IO, "gone.safetensors");
  write_text("model.safetensors.index.json", "{\"weight_map\":{\"lm_head.weight\":\"../x\"}}");
  refuse(MOB_E_FORMAT, "is not a file name");
  write_text("model.safetensors.index.json", "{\"weight_map\":{\"other\":\"model.safetensors\"}}");
  refuse(MOB_E_FORMAT, "tensor other should be in model.safetensors, but is in none");
  write_text("model.safetensors.index.json", "{}");
  refuse(MOB_E_FORMAT, "no weight_map");
}

static void test_sub_folders(void **state) {
  (void)state;
  char *deep = mob_path_join(dir, "a/b/c"), *other = mob_path_join(dir, "d");
  assert_int_equal(mob_mkdirs(deep), MOB_OK);
  write_config("");
  write_weights("a/b/c/model.safetensors", &(writing_t){0});
  char *from = mob_path_join(dir, "config.json"), *to = mob_path_join(deep, "config.json");
  assert_int_equal(rename(from, to), 0);
  mob_model_t *model;
  mob_model_options_t options = {.trust_lookup = true};
  refuse(MOB_E_NOT_FOUND, "there is no config.json");
  assert_int_equal(mob_model_open(dir, &options, &model), MOB_OK);
  assert_string_equal(mob_model_dir(model), deep);
  mob_model_close(model);
  assert_int_equal(mob_mkdirs(other), MOB_OK);
  write_text("d/config.json", "{}");
  assert_int_equal(mob_model_open(dir, &options, &model), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "several folders"));
  assert_int_equal(mob_model_open("/nonexistent", &options, &model), MOB_E_NOT_FOUND);
  free(deep);
  free(other);
  free(from);
  free(to);
}

static void test_dummy_weights(void **state) {
  (void)state;
  write_config(quant);
  mob_model_t *model;
  assert_int_equal(mob_model_open(dir, &(mob_model_options_t){.dummy = true}, &model), MOB_OK);
  const mob_tensor_t *t = mob_model_tensor(model, "model.layers.0.self_attn.q_b_proj.weight");
  assert_true(t && t->dtype == MOB_DT_F8E4M3 && !t->data);
  mob_model_close(model);
  // A shard is a slice of the whole.
  mob_slot_t slot = {.id = MOB_W_Q, .rows = 64, .cols = 48, .name = "model.layers.7.x.weight"};
  uint8_t whole[64 * 48], part[10 * 20];
  float values[64 * 48], some[10 * 20];
  mob_shard_t all = {0, 64, 0, 48}, cut = {13, 10, 7, 20};
  mob_dummy_fill(&slot, MOB_DT_F8E4M3, &all, whole);
  mob_dummy_fill(&slot, MOB_DT_F8E4M3, &cut, part);
  mob_dummy_fill(&slot, MOB_DT_F32, &all, values);
  mob_dummy_fill(&slot, MOB_DT_F32, &cut, some);
  double square = 0;
  for (int i = 0; i < 64 * 48; i++) {
    assert_true((whole[i] & 0x7f) != 0x7f);
    square += values[i] * values[i];
  }
  for (int r = 0; r < 10; r++) {
    assert_memory_equal(part + r * 20, whole + (13 + r) * 48 + 7, 20);
    assert_memory_equal(some + r * 20, values + (13 + r) * 48 + 7, 20 * sizeof(float));
  }
  assert_true(fabs(square / (64 * 48) - 1.0 / 48) < 0.002); // N(0, 1/K)
}

static void test_read_finds_a_truncated_file(void **state) {
  (void)state;
  write_config("");
  write_weights("model.safetensors", &(writing_t){0});
  mob_model_t *model;
  assert_int_equal(mob_model_open(dir, NULL, &model), MOB_OK);
  const mob_tensor_t *t = mob_model_tensor(model, "lm_head.weight");
  char *path = mob_path_join(dir, "model.safetensors");
  assert_string_equal(mob_model_file(model, t), path);
  FILE *file = fopen(path, "r+b"); // the weights are zeros: put something to find in the middle
  assert_non_null(file);
  assert_int_equal(fseek(file, (long)t->offset + 100, SEEK_SET), 0);
  assert_int_equal(fwrite("\x11\x22\x33", 1, 3, file), 3);
  assert_int_equal(fclose(file), 0);
  uint8_t bytes[256] = {0};
  assert_int_equal(t->bytes, sizeof bytes);
  assert_int_equal(mob_model_read(model, t, 98, 6, bytes), MOB_OK);
  assert_memory_equal(bytes, "\0\0\x11\x22\x33\0", 6);
  assert_int_equal(mob_model_read(model, t, 0, sizeof bytes, bytes), MOB_OK);
  assert_int_equal(bytes[101], 0x22);
  assert_int_equal(mob_model_read(model, t, sizeof bytes, 0, NULL), MOB_OK);
  // Shorter now than when it was opened: the mapping would give a SIGBUS.
  assert_int_equal(truncate(path, (off_t)t->offset + 100), 0);
  assert_int_equal(mob_model_read(model, t, 0, 100, bytes), MOB_OK);
  assert_int_equal(mob_model_read(model, t, 0, 101, bytes), MOB_E_FORMAT);
  assert_non_null(strstr(mob_errmsg(), path));
  assert_non_null(strstr(mob_errmsg(), "tensor lm_head.weight"));
  assert_non_null(strstr(mob_errmsg(), "truncated"));
  free(path);
  mob_model_close(model);
}

static void test_half_floats(void **state) {
  (void)state;
  static const struct {
    float value;
    uint16_t bits;
  } cases[] = {{0, 0},
               {-0.0f, 0x8000},
               {1, 0x3c00},
               {-2, 0xc000},
               {65504, 0x7bff},
               {65519, 0x7bff},
               {65520, 0x7c00},
               {0x1p-14f, 0x0400},
               {0x1p-24f, 1},
               {0x1p-25f, 0},
               {0x1.8p-24f, 2},
               {0x1.ff8p-15f, 0x03ff},
               {0x1.ffep-15f, 0x0400},
               {1.00048828125f, 0x3c00},
               {1.00146484375f, 0x3c02}};
  for (size_t i = 0; i < MOB_LEN(cases); i++)
    assert_int_equal(mob_f32_to_f16(cases[i].value), cases[i].bits);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup_teardown(test_opens_and_describes, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_wrong_tensors_are_named, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_files, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_sub_folders, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_dummy_weights, set_up, tear_down),
      cmocka_unit_test_setup_teardown(test_read_finds_a_truncated_file, set_up, tear_down),
      cmocka_unit_test(test_half_floats),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
