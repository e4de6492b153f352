// The model that the CPU benches measure: R1's layer structure with fewer and smaller experts, as
// many layers as make the wanted size, written as a checkpoint with dummy weights. And how its
// steps are waited for.
#ifndef MOB_TOOLS_BENCH_MODEL_H
#define MOB_TOOLS_BENCH_MODEL_H

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/backend.h"
#include "engine/model/dummy.h"
#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

typedef struct bench_model {
  double gb;
  const char *dtype, *dir; // fp8, bf16 or f32; the folder is there
} bench_model_t;

static inline void bench_check(mob_status status) {
  if (status == MOB_OK) return;
  fprintf(stderr, "bench: %s\n", mob_errmsg());
  exit(1);
}

static inline char *bench_make_config(const bench_model_t *o, int layers) {
  return mob_sprintf(
      "{\"architectures\":[\"DeepseekV3ForCausalLM\"],\"vocab_size\":32768,\"hidden_size\":2048,"
      "\"intermediate_size\":8192,\"moe_intermediate_size\":1024,\"num_hidden_layers\":%d,\"num_"
      "attention_heads\":16,"
      "\"num_key_value_heads\":16,\"q_lora_rank\":1024,\"kv_lora_rank\":512,\"n_routed_experts\":"
      "16,\"n_group\":4,"
      "\"topk_group\":2,\"num_experts_per_tok\":8,\"n_shared_experts\":1,\"first_k_dense_replace\":"
      "1,"
      "\"max_position_embeddings\":4096,\"torch_dtype\":\"%s\"%s}",
      layers, strcmp(o->dtype, "f32") == 0 ? "float32" : "bfloat16",
      strcmp(o->dtype, "fp8") == 0
          ? ",\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,128]}"
          : "");
}

typedef struct bench_writer {
  const mob_model_t *model;
  mob_buf_t header;
  uint64_t at;
  int fd;
  bool data; // second pass
} bench_writer_t;

static inline void bench_write_all(int fd, const void *data, size_t bytes) {
  for (const char *p = data; bytes;) {
    ssize_t n = write(fd, p, bytes);
    if (n < 0) bench_check(mob_fail(MOB_E_IO, "write: %s", strerror(errno)));
    p += n;
    bytes -= (size_t)n;
  }
}

static inline void bench_write_tensor(bench_writer_t *w, const mob_slot_t *slot,
                                      const mob_tensor_t *t, bool scales) {
  if (!w->data) {
    mob_buf_printf(&w->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld",
                   w->header.len > 1 ? "," : "", t->name, t->dtype_name, (long long)t->shape[0]);
    if (t->rank == 2) mob_buf_printf(&w->header, ",%lld", (long long)t->shape[1]);
    mob_buf_printf(&w->header, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)w->at,
                   (unsigned long long)(w->at + t->bytes));
    w->at += t->bytes;
    return;
  }
  void *bytes = mob_malloc(t->bytes);
  mob_shard_t all = {0, slot->rows, 0, slot->cols};
  if (!scales)
    mob_dummy_fill(slot, t->dtype, &all, bytes);
  else
    for (size_t i = 0; i < t->bytes / 4; i++)
      ((float *)bytes)[i] = mob_dummy_scale(mob_model_desc(w->model), slot);
  bench_write_all(w->fd, bytes, t->bytes);
  free(bytes);
}

static inline mob_status bench_write_slot(void *arg, const mob_slot_t *slot) {
  const mob_tensor_t *tensor, *scales;
  MOB_TRY(mob_model_slot(((bench_writer_t *)arg)->model, slot, &tensor, &scales));
  if (tensor) bench_write_tensor(arg, slot, tensor, false);
  if (scales) bench_write_tensor(arg, slot, scales, true);
  return MOB_OK;
}

static inline void bench_write_model(const bench_model_t *o) {
  char *path = mob_path_join(o->dir, "config.json"),
       *weights = mob_path_join(o->dir, "model.safetensors");
  mob_model_t *model;
  int layers = 1;
  for (uint64_t bytes = 0; (double)bytes < o->gb * 1e9;
       layers++) { // as many layers as make the size
    char *config = bench_make_config(o, layers + 1);
    bench_check(mob_file_write(path, config, strlen(config)));
    free(config);
    bench_check(mob_model_open(o->dir, &(mob_model_options_t){.dummy = true}, &model));
    bytes = mob_model_bytes(model);
    mob_model_close(model);
  }
  bench_check(mob_model_open(o->dir, &(mob_model_options_t){.dummy = true}, &model));
  bench_writer_t w = {.model = model,
                      .fd = open(weights, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644)};
  if (w.fd < 0) bench_check(mob_fail(MOB_E_IO, "%s: %s", weights, strerror(errno)));
  mob_buf_putc(&w.header, '{');
  bench_check(mob_model_stage_slots(model, 0, layers, bench_write_slot, &w));
  mob_buf_putc(&w.header, '}');
  while (w.header.len % 8) mob_buf_putc(&w.header, ' ');
  uint64_t length = w.header.len;
  bench_write_all(w.fd, &length, 8);
  bench_write_all(w.fd, w.header.data, w.header.len);
  w.data = true;
  bench_check(mob_model_stage_slots(model, 0, layers, bench_write_slot, &w));
  close(w.fd);
  mob_buf_free(&w.header);
  mob_model_close(model);
  free(path);
  free(weights);
}

// Calls measure(options) with the model in its folder, or, where o->dir is NULL, in a temporary
// one.
static inline void bench_with_model(bench_model_t *o, void (*measure)(const void *options),
                                    const void *options) {
  char temporary[] = "/tmp/mobula-bench-XXXXXX";
  bool own = !o->dir;
  if (own && !(o->dir = mkdtemp(temporary)))
    bench_check(mob_fail(MOB_E_IO, "mkdtemp: %s", strerror(errno)));
  char *weights = mob_path_join(o->dir, "model.safetensors"),
       *config = mob_path_join(o->dir, "config.json");
  if (!mob_file_exists(weights)) bench_write_model(o);
  measure(options);
  if (own) {
    unlink(weights);
    unlink(config);
    rmdir(o->dir);
    o->dir = NULL;
  }
  free(weights);
  free(config);
}

static inline double bench_seconds_since(uint64_t begin) {
  return (double)(mob_now_ns() - begin) * 1e-9;
}

typedef struct bench_waiting { // for steps; BENCH_WAITING: none is done
  pthread_mutex_t lock;
  pthread_cond_t wake;
  uint64_t done; // id of the last that is
} bench_waiting_t;
#define BENCH_WAITING                                                                              \
  { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0 }

static inline void bench_on_step(void *arg, mob_status status, const char *why,
                                 const mob_step_result_t *result) {
  bench_waiting_t *w = arg;
  if (status != MOB_OK) {
    fprintf(stderr, "bench: %s\n", why);
    exit(1);
  }
  pthread_mutex_lock(&w->lock);
  w->done = result->id;
  pthread_cond_signal(&w->wake);
  pthread_mutex_unlock(&w->lock);
}

static inline void bench_wait_for(bench_waiting_t *w, uint64_t id) {
  pthread_mutex_lock(&w->lock);
  while (w->done < id) pthread_cond_wait(&w->wake, &w->lock);
  pthread_mutex_unlock(&w->lock);
}

#endif
