#include "tiny.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "runtime/base/file.h"

static const char config_json[] =
    "{\"architectures\": [\"DeepseekV3ForCausalLM\"], \"model_type\": \"deepseek_v3\","
    " \"vocab_size\": 256, \"hidden_size\": 64, \"intermediate_size\": 128,"
    " \"moe_intermediate_size\": 32, \"num_hidden_layers\": 4, \"num_attention_heads\": 8,"
    " \"num_key_value_heads\": 8, \"q_lora_rank\": 32, \"kv_lora_rank\": 32,"
    " \"qk_nope_head_dim\": 16, \"qk_rope_head_dim\": 8, \"v_head_dim\": 16,"
    " \"n_routed_experts\": 8, \"n_shared_experts\": 1, \"num_experts_per_tok\": 2,"
    " \"n_group\": 2, \"topk_group\": 1, \"topk_method\": \"noaux_tc\","
    " \"scoring_func\": \"sigmoid\", \"norm_topk_prob\": true, \"routed_scaling_factor\": 2.5,"
    " \"first_k_dense_replace\": 1, \"moe_layer_freq\": 1, \"hidden_act\": \"silu\","
    " \"rms_norm_eps\": 1e-06, \"rope_theta\": 10000, \"max_position_embeddings\": 2048,"
    " \"attention_bias\": false, \"tie_word_embeddings\": false, \"bos_token_id\": 0,"
    " \"eos_token_id\": 1, \"torch_dtype\": \"bfloat16\"}";

tiny_model_t tiny_open_model(void) {
  tiny_model_t m = {.dir = "/tmp/tiny-model-XXXXXX"};
  assert_non_null(mkdtemp(m.dir));
  char *path = mob_path_join(m.dir, "config.json");
  assert_int_equal(mob_file_write(path, config_json, sizeof config_json - 1), MOB_OK);
  free(path);
  mob_model_options_t options = {.dummy = true};
  if (mob_model_open(m.dir, &options, &m.model) != MOB_OK) fail_msg("%s", mob_errmsg());
  return m;
}

void tiny_close_model(tiny_model_t *m) {
  mob_model_close(m->model);
  char *path = mob_path_join(m->dir, "config.json");
  unlink(path);
  free(path);
  rmdir(m->dir);
}

mob_engine_config_t tiny_config(void) {
  return (mob_engine_config_t){
      .device = "cpu",
      .tp = 1,
      .pp = 1,
      .dtype = "float32",
      .max_len = 512,
      .max_seqs = 8,
      .max_batched_tokens = 128,
      .memory_share = 0.5,
      .pages = 64,
      .prefix_cache = true,
      .chunked_prefill = true,
      .dummy = true,
      .cpu_threads = 1,
  };
}

static void on_ready(void *owner, const mob_engine_info_t *info) {
  tiny_t *t = owner;
  assert_false(t->ready);
  t->ready = true;
  t->info = *info;
}

static void on_lost(void *owner, const char *cause, const char *why) {
  tiny_t *t = owner;
  assert_false(t->lost);
  assert_int_equal(t->alive, 0); // every generation has ended before
  t->lost = true;
  snprintf(t->cause, sizeof t->cause, "%s", cause);
  snprintf(t->why, sizeof t->why, "%s", why);
}

static void on_timeout(uv_timer_t *timer) {
  ((tiny_t *)timer->data)->timeout = true;
}

static void wait_until(tiny_t *t, bool (*done)(const tiny_t *t, const void *arg), const void *arg) {
  uv_timer_t timer;
  uv_timer_init(&t->loop, &timer);
  timer.data = t;
  t->timeout = false;
  uv_timer_start(&timer, on_timeout, 60000, 0);
  while (!done(t, arg) && !t->timeout) uv_run(&t->loop, UV_RUN_ONCE);
  uv_close((uv_handle_t *)&timer, NULL);
  uv_run(&t->loop, UV_RUN_NOWAIT);
  if (t->timeout)
    fail_msg("nothing happened for 60 s (ready %d, lost %d: %s)", t->ready, t->lost, t->why);
}

static bool flag_set(const tiny_t *t, const void *arg) {
  (void)t;
  return *(const bool *)arg;
}

static bool none_alive(const tiny_t *t, const void *arg) {
  (void)arg;
  return t->alive == 0;
}

static bool ready_or_lost(const tiny_t *t, const void *arg) {
  (void)arg;
  return t->ready || t->lost;
}

void tiny_wait(tiny_t *t, const bool *flag) {
  wait_until(t, flag_set, flag);
}

void tiny_wait_all(tiny_t *t) {
  wait_until(t, none_alive, NULL);
}

void tiny_start_on(tiny_t *t, mob_engine_config_t config, const mob_backend_t *backend) {
  memset(t, 0, sizeof *t);
  uv_loop_init(&t->loop);
  t->model = tiny_open_model();
  config.model = t->model.model;
  config.model_dir = t->model.dir;
  mob_engine_events_t events = {.on_ready = on_ready, .on_lost = on_lost};
  mob_status status = config.cluster
                          ? mob_engine_start(&t->loop, &config, &events, t, &t->engine)
                          : mob__engine_start_on(&t->loop, &config, &events, t,
                                                 &mob__transport_local, backend, &t->engine);
  if (status != MOB_OK) fail_msg("%s", mob_errmsg());
  wait_until(t, ready_or_lost, NULL);
}

void tiny_start(tiny_t *t, mob_engine_config_t config) {
  tiny_start_on(t, config, NULL);
  if (!t->ready) fail_msg("%s", t->why);
}

static void on_stopped(void *arg) {
  ((tiny_t *)arg)->stopped = true;
}

void tiny_stop(tiny_t *t) {
  mob_engine_stop(t->engine, on_stopped, t);
  tiny_wait(t, &t->stopped);
  while (uv_run(&t->loop, UV_RUN_NOWAIT)) {
  }
  assert_int_equal(uv_loop_close(&t->loop), 0);
  tiny_close_model(&t->model);
}

static void on_prompt_logprobs(void *owner, mob_gen_t *gen, const mob_prompt_logprob_t *items,
                               uint32_t count) {
  tiny_gen_t *g = owner;
  assert_ptr_equal(gen, g->gen);
  assert_int_equal(g->count, 0);
  for (uint32_t i = 0; i < count; i++) {
    assert_int_equal(items[i].position, g->prompt_logprobs + 1);
    assert_true(items[i].chosen.logprob < 0);
    g->prompt_logprobs++;
  }
}

static void on_token(void *owner, mob_gen_t *gen, const mob_sampled_t *token, mob_finish_t finish,
                     const char *why) {
  tiny_gen_t *g = owner;
  assert_ptr_equal(gen, g->gen);
  assert_true(g->count < MOB_LEN(g->tokens));
  if (token->token >= 0) g->tokens[g->count++] = token->token;
  g->cached = mob_gen_cached_tokens(gen);
  if (finish == MOB_FINISH_NONE && g->abort_after && g->count >= g->abort_after) {
    mob_gen_abort(gen);
    finish = MOB_FINISH_ABORT;
  }
  if (finish == MOB_FINISH_NONE) return;
  g->finish = finish;
  g->gen = NULL;
  if (why) snprintf(g->why, sizeof g->why, "%s", why);
  g->tiny->alive--;
}

tiny_gen_t *tiny_request(tiny_t *t, const mob_gen_request_t *request) {
  static const mob_gen_events_t events = {on_prompt_logprobs, on_token};
  assert_true(t->gen_count < TINY_MOST);
  tiny_gen_t *g = &t->gens[t->gen_count++];
  *g = (tiny_gen_t){.tiny = t};
  if (mob_engine_generate(t->engine, request, &events, g, &g->gen) != MOB_OK)
    fail_msg("%s", mob_errmsg());
  t->alive++;
  return g;
}

tiny_gen_t *tiny_add(tiny_t *t, uint32_t count, uint32_t kind, uint32_t max_tokens) {
  int32_t prompt[512];
  for (uint32_t i = 0; i < count; i++)
    prompt[i] = (int32_t)(2 + (i * 7 + kind * 31 + i * i % 13) % 250);
  mob_gen_request_t request = {
      .prompt = prompt,
      .prompt_count = count,
      .max_tokens = max_tokens,
      .ignore_eos = true,
      .sampling = {.top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1},
  };
  return tiny_request(t, &request);
}
