// Decode rate of the CPU backend on a generated model, as a share of the read bandwidth of the same
// run, and the rate of loading against plain reading.
//
//   bench_cpu_decode [--gb SIZE] [--dtype fp8|bf16] [--threads N] [--tokens N] [--dir FOLDER]
//
// The model (model.h) is written to FOLDER (a temporary folder by default): the point is its bytes. A
// token of one sequence reads attention, the shared and the chosen experts and the head once: those
// bytes times tokens a second is the rate shown.
#include <pthread.h>
#include <sys/mman.h>

#include "engine/cpu/exec.h"
#include "model.h"

typedef struct options {
  bench_model_t model;
  int threads, tokens;
} options_t;

typedef struct reader {
  const uint8_t *data;
  size_t bytes;
  uint64_t sum;
} reader_t;

static void *read_all(void *arg) {
  reader_t *r = arg;
  uint64_t sum[8] = {0};
  for (size_t i = 0; i + 64 <= r->bytes; i += 64) {
    uint64_t line[8];
    memcpy(line, r->data + i, 64);
    for (int k = 0; k < 8; k++) sum[k] ^= line[k];
  }
  for (int k = 0; k < 8; k++) r->sum ^= sum[k];
  return NULL;
}

// Bytes a second that `threads` threads read from memory: the best of several rounds over `data`.
static double read_rate(const uint8_t *data, size_t bytes, int threads) {
  double best = 0;
  volatile uint64_t sink = 0;
  for (int round = 0; round < 5; round++) {
    pthread_t ids[256];
    reader_t readers[256];
    uint64_t begin = mob_now_ns();
    size_t part = bytes / (size_t)threads & ~(size_t)63;
    for (int t = 0; t < threads; t++) {
      readers[t] = (reader_t){data + (size_t)t * part, part, 0};
      if (pthread_create(&ids[t], NULL, read_all, &readers[t]) != 0) exit(1);
    }
    for (int t = 0; t < threads; t++) {
      pthread_join(ids[t], NULL);
      sink ^= readers[t].sum;
    }
    double rate = (double)(part * (size_t)threads) / bench_seconds_since(begin);
    best = rate > best ? rate : best;
  }
  return best;
}

typedef struct counting {
  const mob_model_t *model;
  double bytes;
} counting_t;

// Bytes of a slot that one token reads.
static mob_status count_slot(void *arg, const mob_slot_t *slot) {
  counting_t *c = arg;
  const mob_tensor_t *tensor, *scales;
  const mob_model_desc_t *d = mob_model_desc(c->model);
  MOB_TRY(mob_model_slot(c->model, slot, &tensor, &scales));
  if (!tensor || slot->id == MOB_W_EMBED) return MOB_OK;
  c->bytes += (double)tensor->bytes * (slot->expert >= 0 ? (double)d->top_k / d->n_experts : 1.0);
  return MOB_OK;
}

// Seconds for `tokens` decode steps of one sequence; *prefill: tokens a second of a prompt of 512.
static double decode(mob_exec_t *exec, int tokens, double *prefill) {
  bench_waiting_t w = BENCH_WAITING;
  int32_t prompt[512], previous = MOB_TOKEN_PREVIOUS;
  uint32_t pages[64], length = MOB_LEN(prompt);
  for (uint32_t i = 0; i < 64; i++) pages[i] = i;
  for (uint32_t i = 0; i < length; i++) prompt[i] = (int32_t)(i * 61 % 30000);
  mob_sampling_t greedy = {
      .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1};
  mob_seq_open_t open = {.sampling = greedy, .prompt = prompt, .prompt_count = length};
  mob_seq_step_t seq = {
      .count = length, .tokens = prompt, .pages = pages, .page_count = 8, .sample = true};
  mob_step_t step = {
      .id = 1, .token_count = length, .seq_count = 1, .seqs = &seq, .open = &open, .open_count = 1};
  uint64_t begin = mob_now_ns(), id = 1;
  bench_check(mob_backend_cpu.step(exec, &step, bench_on_step, &w));
  bench_wait_for(&w, 1);
  *prefill = length / bench_seconds_since(begin);
  for (int i = -8; i < tokens; i++) {
    if (i == 0) {
      bench_wait_for(&w, id);
      begin = mob_now_ns();
    }
    seq = (mob_seq_step_t){.start = length,
                           .count = 1,
                           .tokens = &previous,
                           .pages = pages,
                           .sample = true,
                           .page_count = length / MOB_PAGE_TOKENS + 1};
    step = (mob_step_t){.id = ++id, .token_count = 1, .seq_count = 1, .seqs = &seq};
    bench_check(mob_backend_cpu.step(exec, &step, bench_on_step, &w));
    length++;
  }
  bench_wait_for(&w, id);
  return bench_seconds_since(begin);
}

static double plain_read(const char *path, uint64_t *bytes) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) bench_check(mob_fail(MOB_E_IO, "%s: %s", path, strerror(errno)));
  char *chunk = mob_malloc(8 << 20);
  uint64_t begin = mob_now_ns();
  ssize_t n;
  *bytes = 0;
  while ((n = read(fd, chunk, 8 << 20)) > 0) *bytes += (uint64_t)n;
  double seconds = bench_seconds_since(begin);
  close(fd);
  free(chunk);
  return seconds;
}

static void measure(const void *options) {
  const options_t *o = options;
  char *weights = mob_path_join(o->model.dir, "model.safetensors");
  uint64_t file_bytes;
  plain_read(weights, &file_bytes); // into the page cache, so that both find the same
  double plain = plain_read(weights, &file_bytes);
  mob_model_t *model;
  mob_exec_t *exec;
  bench_check(mob_model_open(o->model.dir, NULL, &model));
  const mob_model_desc_t *d = mob_model_desc(model);
  mob_exec_spec_t spec = {.model = model,
                          .last_layer = d->n_layers,
                          .tp = 1,
                          .threads = o->threads,
                          .dtype = d->dtype,
                          .kv_dtype = MOB_DT_BF16,
                          .max_tokens = 512,
                          .max_seqs = 4,
                          .max_len = 4096,
                          .memory_share = 0.9};
  bench_check(mob_backend_cpu.open(&spec, &exec));
  uint64_t begin = mob_now_ns();
  bench_check(mob_backend_cpu.load(exec, NULL, NULL));
  double load = bench_seconds_since(begin);
  bench_check(mob_backend_cpu.alloc_kv(exec, 64));
  const uint8_t *first = NULL; // reading the same mapping that the weights are read from
  for (size_t i = 0; i < exec->store.regions.len; i++) {
    const mob_region_t *r = &exec->store.regions.at[i];
    if (!first || r->data < first) first = r->data;
  }
  size_t readable = file_bytes - (2 << 20);
  counting_t count = {model, 0};
  bench_check(mob_model_stage_slots(model, 0, d->n_layers, count_slot, &count));
  double prefill, before = read_rate(first, readable, exec->threads);
  double rate = o->tokens / decode(exec, o->tokens, &prefill);
  double after = read_rate(first, readable, exec->threads),
         roof = before > after ? before : after;
  printf("%-6s %-7s %7.2f GB %3d threads  load %6.2f GB/s (plain read %6.2f)  prefill %8.1f tok/s  "
         "decode %7.2f tok/s  "
         "%6.2f GB/s of %6.2f = %3.0f %%\n",
         exec->ops->name, o->model.dtype, (double)file_bytes * 1e-9, exec->threads,
         (double)file_bytes / load * 1e-9, (double)file_bytes / plain * 1e-9, prefill, rate,
         rate * count.bytes * 1e-9, roof * 1e-9, 100 * rate * count.bytes / roof);
  mob_backend_cpu.close(exec);
  mob_model_close(model);
  free(weights);
}

int main(int argc, char **argv) {
  options_t o = {.model = {.gb = 1.2, .dtype = "fp8"}, .tokens = 32};
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--gb") == 0)
      o.model.gb = atof(argv[i + 1]);
    else if (strcmp(argv[i], "--dtype") == 0)
      o.model.dtype = argv[i + 1];
    else if (strcmp(argv[i], "--threads") == 0)
      o.threads = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--tokens") == 0)
      o.tokens = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--dir") == 0)
      o.model.dir = argv[i + 1];
    else {
      fprintf(stderr, "bench_cpu_decode: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  bench_with_model(&o.model, measure, &o);
  return 0;
}
