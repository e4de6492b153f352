#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/family.h"

static mob_status describe(const char *text, mob_model_desc_t *desc) {
  json_error_t error;
  json_t *config = json_loads(text, 0, &error);
  if (!config) fail_msg("%s in %s", error.text, text);
  const mob_family_t *family;
  memset(desc, 0, sizeof *desc);
  mob_status status = mob_family_find(config, &family);
  if (status == MOB_OK) status = family->describe(config, desc);
  json_decref(config);
  return status;
}

#define DEEPSEEK "{\"architectures\":[\"DeepseekV3ForCausalLM\"]"

static void test_defaults_are_those_of_transformers(void **state) {
  (void)state;
  mob_model_desc_t d;
  assert_int_equal(describe(DEEPSEEK "}", &d), MOB_OK);
  assert_int_equal(d.hidden, 7168);
  assert_int_equal(d.n_layers, 61);
  assert_int_equal(d.vocab, 129280);
  assert_int_equal(d.max_position, 4096);
  assert_int_equal(d.q_lora, 1536);
  assert_int_equal(d.kv_lora, 512);
  assert_int_equal(d.n_experts, 256);
  assert_int_equal(d.n_group, 8);
  assert_int_equal(d.topk_group, 4);
  assert_int_equal(d.top_k, 8);
  assert_int_equal(d.n_shared, 1);
  assert_int_equal(d.is_moe[2], 0);
  assert_int_equal(d.is_moe[3], 1);
  assert_int_equal(d.bos_id, 0);
  assert_int_equal(d.eos_id, 1);
  assert_true(d.norm_topk_prob && d.rope.interleaved && !d.qkv_bias && !d.tie_embeddings);
  assert_true(fabsf(d.softmax_scale - 0.0721688f) < 1e-6f && d.rope.factor == 1.0f);
  mob_model_desc_clear(&d);
}

static void test_the_real_rope_of_r1(void **state) {
  (void)state;
  mob_model_desc_t d;
  assert_int_equal(
      describe(
          DEEPSEEK
          ",\"max_position_embeddings\":163840,\"rope_scaling\":{\"type\":\"yarn\",\"factor\":40,"
          "\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_dim\":1.0,"
          "\"original_max_position_embeddings\":4096}}",
          &d),
      MOB_OK);
  assert_true(fabsf(d.softmax_scale - 0.1352338f) < 1e-6f);
  assert_true(d.rope.factor == 1.0f);
  // low = 10, high = 23: kept below, divided by 40 above
  assert_true(d.rope.inv_freq[0] == 1.0f);
  assert_true(fabsf(d.rope.inv_freq[10] - powf(1e4f, -20 / 64.0f)) < 1e-8f);
  assert_true(fabsf(d.rope.inv_freq[23] * 40 - powf(1e4f, -46 / 64.0f)) < 1e-8f);
  float f = powf(1e4f, -30 / 64.0f), keep = 1 - 5 / 13.0f;
  assert_true(fabsf(d.rope.inv_freq[15] - (f / 40 * (1 - keep) + f * keep)) < 1e-8f);
  mob_model_desc_clear(&d);
}

static void test_fields_that_act(void **state) {
  (void)state;
  mob_model_desc_t d;
  assert_int_equal(
      describe(DEEPSEEK
               ",\"q_lora_rank\":null,\"rope_scaling\":null,\"n_group\":1,\"topk_group\":1,"
               "\"norm_topk_prob\":false,\"first_k_dense_replace\":0,\"n_shared_experts\":0,"
               "\"tie_word_embeddings\":true,\"attention_bias\":true,\"rope_interleave\":false,"
               "\"eos_token_id\":[7,8],\"bos_token_id\":null,\"torch_dtype\":\"bfloat16\",\"rms_"
               "norm_eps\":0.5,"
               "\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2,\"rope_theta\":500},"
               "\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\",\"scale_fmt\":"
               "\"ue8m0\","
               "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,64]}}",
               &d),
      MOB_OK);
  assert_int_equal(d.q_lora, 0);
  assert_int_equal(d.n_group, 1);
  assert_int_equal(d.n_shared, 0);
  assert_int_equal(d.is_moe[0], 1);
  assert_int_equal(d.eos_id, 7);
  assert_int_equal(d.bos_id, -1);
  assert_int_equal(d.quant_block_cols, 64);
  assert_true(d.quant_ue8m0 && d.tie_embeddings && d.qkv_bias && d.o_bias && !d.rope.interleaved &&
              !d.norm_topk_prob);
  assert_true(d.rms_eps == 0.5f && d.lora_rms_eps == 1e-6f);
  assert_true(fabsf(d.rope.inv_freq[1] - powf(500, -2 / 64.0f) / 2) < 1e-6f);
  mob_model_desc_clear(&d);
}

static void test_what_is_refused_is_named(void **state) {
  (void)state;
  static const struct {
    const char *config, *says;
  } cases[] = {
      {"{\"architectures\":[\"GPT2LMHeadModel\"]}",
       "\"GPT2LMHeadModel\" is not supported (supported: DeepseekV3"},
      {"{\"architectures\":\"x\"}", "architectures is not a list"},
      {"{}", "architectures"},
      {DEEPSEEK ",\"hidden_size\":\"7168\"}", "hidden_size is not an integer"},
      {DEEPSEEK ",\"hidden_size\":-1}", "hidden_size is -1"},
      {DEEPSEEK ",\"hidden_size\":null}", "hidden_size is not an integer"},
      {DEEPSEEK ",\"hidden_size\":1e3}", "hidden_size is not an integer"},
      {DEEPSEEK ",\"hidden_act\":\"gelu\"}", "hidden_act \"gelu\""},
      {DEEPSEEK ",\"num_key_value_heads\":8}", "num_key_value_heads 8"},
      {DEEPSEEK ",\"topk_method\":\"group_limited_greedy\"}", "topk_method"},
      {DEEPSEEK ",\"scoring_func\":\"softmax\"}", "scoring_func"},
      {DEEPSEEK ",\"moe_layer_freq\":2}", "moe_layer_freq 2"},
      {DEEPSEEK ",\"n_routed_experts\":250}", "n_routed_experts 250"},
      {DEEPSEEK ",\"topk_group\":9}", "topk_group 9"},
      {DEEPSEEK ",\"num_experts_per_tok\":200}", "num_experts_per_tok 200"},
      {DEEPSEEK ",\"norm_topk_prob\":1}", "norm_topk_prob is not true or false"},
      {DEEPSEEK ",\"rope_scaling\":{\"type\":\"dynamic\"}}", "rope type \"dynamic\""},
      {DEEPSEEK ",\"rope_scaling\":{\"type\":\"linear\"}}", "positive factor"},
      {DEEPSEEK ",\"rope_scaling\":7}", "not an object"},
      {DEEPSEEK ",\"rope_theta\":\"x\"}", "rope_theta is not a number"},
      {DEEPSEEK ",\"partial_rotary_factor\":0.5}", "partial_rotary_factor"},
      {DEEPSEEK ",\"qk_rope_head_dim\":63}", "even dimension"},
      {DEEPSEEK ",\"torch_dtype\":\"int8\"}", "torch_dtype \"int8\""},
      {DEEPSEEK ",\"eos_token_id\":\"x\"}", "eos_token_id"},
      {DEEPSEEK ",\"quantization_config\":{\"quant_method\":\"awq\"}}", "quant_method \"awq\""},
      {DEEPSEEK ",\"quantization_config\":{\"quant_method\":\"fp8\"}}", "weight_block_size"},
      {DEEPSEEK
       ",\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}}",
       "activation_scheme"},
      {DEEPSEEK ",\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}}", "fmt"},
      {DEEPSEEK ",\"quantization_config\":{}}", "no quant_method"},
      {"{\"architectures\":[\"Qwen2ForCausalLM\"],\"use_sliding_window\":true}",
       "use_sliding_window"},
      {"{\"architectures\":[\"Qwen3ForCausalLM\"],\"layer_types\":[\"sliding_attention\"]}",
       "sliding_attention"},
      {"{\"architectures\":[\"LlamaForCausalLM\"],\"num_key_value_heads\":5}",
       "num_key_value_heads 5"},
      {"{\"architectures\":[\"LlamaForCausalLM\"],\"mlp_bias\":true}", "mlp_bias"},
      {"{\"architectures\":[\"LlamaForCausalLM\"],\"rope_scaling\":{\"rope_type\":\"llama3\","
       "\"factor\":8}}",
       "low_freq_factor"},
      {"{\"architectures\":[\"Qwen3MoeForCausalLM\"],\"num_experts_per_tok\":200}",
       "num_experts_per_tok 200"},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    mob_model_desc_t d;
    mob_status status = describe(cases[i].config, &d);
    if (status != MOB_E_INVALID && status != MOB_E_UNSUPPORTED)
      fail_msg("%s gives %d", cases[i].config, status);
    if (!strstr(mob_errmsg(), cases[i].says))
      fail_msg("\"%s\" does not say \"%s\"", mob_errmsg(), cases[i].says);
    mob_model_desc_clear(&d);
  }
}

static void test_shards(void **state) {
  (void)state;
  mob_model_desc_t d = {.n_heads = 8, .n_kv_heads = 2};
  mob_slot_t q = {.id = MOB_W_Q, .rows = 256, .cols = 64, .split = MOB_SPLIT_ROWS, .name = "q"};
  mob_slot_t k = {.id = MOB_W_K, .rows = 64, .cols = 64, .split = MOB_SPLIT_KV, .name = "k"};
  mob_slot_t down = {
      .id = MOB_W_DOWN, .rows = 64, .cols = 96, .split = MOB_SPLIT_COLS, .name = "down"};
  mob_slot_t head = {
      .id = MOB_W_HEAD, .rows = 99, .cols = 64, .split = MOB_SPLIT_ROWS, .name = "head"};
  mob_shard_t s;
  assert_int_equal(mob_slot_shard(&d, &q, 3, 4, &s), MOB_OK);
  assert_true(s.row0 == 192 && s.rows == 64 && s.col0 == 0 && s.cols == 64);
  assert_int_equal(mob_slot_shard(&d, &k, 3, 8, &s), MOB_OK); // 4 ranks share a head of 32 rows
  assert_true(s.row0 == 0 && s.rows == 32);
  assert_int_equal(mob_slot_shard(&d, &k, 4, 8, &s), MOB_OK);
  assert_true(s.row0 == 32 && s.rows == 32);
  assert_int_equal(mob_slot_shard(&d, &down, 1, 4, &s), MOB_OK);
  assert_true(s.rows == 64 && s.col0 == 24 && s.cols == 24);
  int64_t covered = 0;
  for (int r = 0; r < 8; r++) { // a vocabulary that does not divide is cut unevenly
    assert_int_equal(mob_slot_shard(&d, &head, r, 8, &s), MOB_OK);
    assert_int_equal(s.row0, covered);
    covered += s.rows;
  }
  assert_int_equal(covered, 99);
  assert_int_equal(mob_slot_shard(&d, &q, 0, 3, &s), MOB_E_INVALID);
  assert_int_equal(mob_slot_shard(&d, &down, 0, 5, &s), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "down: its 96 columns do not divide over 5"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_defaults_are_those_of_transformers),
      cmocka_unit_test(test_the_real_rope_of_r1),
      cmocka_unit_test(test_fields_that_act),
      cmocka_unit_test(test_what_is_refused_is_named),
      cmocka_unit_test(test_shards),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
