// Prefill rate of the CPU backend on a generated model, as a share of what the cores' multiply
// units give in the same run.
//
//   bench_cpu_prefill [--gb SIZE] [--dtype fp8|bf16|f32] [--threads N] [--tokens N] [--chunk N]
//                     [--rounds N] [--exact 0|1] [--dir FOLDER]
//
// A prompt of N tokens is computed several times; the roofs (loops over registers only) are taken
// before and after each time. Shares are of CPU time, so that what else the machine runs does not
// count. The products counted are those with weights: attention's own and everything else lowers
// the share.
#include <immintrin.h>
#include <sys/syscall.h>

#include "engine/cpu/exec.h"
#include "model.h"

typedef struct options {
  bench_model_t model;
  int threads, tokens, chunk, rounds, exact;
} options_t;

// ------------------------------------------------------------------------------------------
// roofs: multiplications and additions a second

enum { LOOPS = 400000 };

// Twelve chains hide the latency of four cycles on two units.
#define CHAINS(fma, a, b)                                                                          \
  __asm__ volatile(fma " %12, %12, %0\n" fma " %12, %12, %1\n" fma " %12, %12, %2\n" fma           \
                       " %12, %12, %3\n" fma " %12, %12, %4\n" fma " %12, %12, %5\n" fma           \
                       " %12, %12, %6\n" fma " %12, %12, %7\n" fma " %12, %12, %8\n" fma           \
                       " %12, %12, %9\n" fma " %12, %12, %10\n" fma " %12, %12, %11\n"             \
                   : "+x"(a[0]), "+x"(a[1]), "+x"(a[2]), "+x"(a[3]), "+x"(a[4]), "+x"(a[5]),       \
                     "+x"(a[6]), "+x"(a[7]), "+x"(a[8]), "+x"(a[9]), "+x"(a[10]), "+x"(a[11])      \
                   : "x"(b))

__attribute__((target("avx512f"))) static double fma_avx512(void) {
  __m512 a[12] = {{0}}, b = _mm512_set1_ps(0.5f);
  for (int i = 0; i < LOOPS; i++) CHAINS("vfmadd231ps", a, b);
  return 12.0 * 32 * LOOPS;
}

__attribute__((target("avx2,fma"))) static double fma_avx2(void) {
  __m256 a[12] = {{0}}, b = _mm256_set1_ps(0.5f);
  for (int i = 0; i < LOOPS; i++) CHAINS("vfmadd231ps", a, b);
  return 12.0 * 16 * LOOPS;
}

__attribute__((target("amx-tile,amx-bf16"))) static double tiles_amx(void) {
  static const struct {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {.palette = 1,
              .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
              .rows = {16, 16, 16, 16, 16, 16, 16, 16}};
  _tile_loadconfig(&config);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  for (int i = 0; i < LOOPS / 20; i++) {
    _tile_dpbf16ps(0, 6, 7);
    _tile_dpbf16ps(1, 6, 7);
    _tile_dpbf16ps(2, 6, 7);
    _tile_dpbf16ps(3, 6, 7);
    _tile_dpbf16ps(4, 6, 7);
    _tile_dpbf16ps(5, 6, 7);
  }
  _tile_release();
  return 6.0 * 16 * 16 * 32 * 2 * (LOOPS / 20);
}

static double cpu_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

// A second of one core.
static double roof(double (*fn)(void)) {
  fn(); // warm
  double begin = cpu_seconds(), work = fn();
  return work / (cpu_seconds() - begin);
}

static bool has_amx(void) {
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18 };
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

// ------------------------------------------------------------------------------------------
// prefill

typedef struct counting {
  const mob_model_t *model;
  double weights;
} counting_t;

// Weights of a slot that one token of a prompt is multiplied with; the head sees only the last.
static mob_status count_slot(void *arg, const mob_slot_t *slot) {
  counting_t *c = arg;
  const mob_model_desc_t *d = mob_model_desc(c->model);
  if (slot->cols == 1 || slot->id == MOB_W_EMBED || slot->id == MOB_W_HEAD) return MOB_OK;
  c->weights += (double)slot->rows * (double)slot->cols *
                (slot->expert >= 0 ? (double)d->top_k / d->n_experts : 1.0);
  return MOB_OK;
}

// Seconds for the whole prompt in chunks.
static double prefill(mob_exec_t *exec, const options_t *o, bench_waiting_t *w, uint64_t *id) {
  uint32_t length = (uint32_t)o->tokens, page_count = (length + 63) / MOB_PAGE_TOKENS;
  int32_t *prompt = MOB_NEW_ARRAY(int32_t, length);
  uint32_t *pages = MOB_NEW_ARRAY(uint32_t, page_count), close = 0;
  for (uint32_t i = 0; i < page_count; i++) pages[i] = i;
  for (uint32_t i = 0; i < length; i++) prompt[i] = (int32_t)(i * 61 % 30000);
  mob_sampling_t greedy = {
      .top_p = 1, .repetition_penalty = 1, .logprobs = -1, .prompt_logprobs = -1};
  mob_seq_open_t open = {.sampling = greedy, .prompt = prompt, .prompt_count = length};
  uint64_t begin = mob_now_ns();
  for (uint32_t at = 0; at < length; at += (uint32_t)o->chunk) {
    uint32_t n = length - at < (uint32_t)o->chunk ? length - at : (uint32_t)o->chunk;
    bool last = at + n == length;
    mob_seq_step_t seq = {.start = at,
                          .count = n,
                          .tokens = prompt + at,
                          .pages = pages,
                          .page_count = page_count,
                          .sample = last};
    mob_step_t step = {.id = ++*id,
                       .token_count = n,
                       .seq_count = 1,
                       .seqs = &seq,
                       .open = &open,
                       .open_count = at == 0,
                       .close = &close,
                       .close_count = last};
    bench_check(mob_backend_cpu.step(exec, &step, bench_on_step, w));
  }
  bench_wait_for(w, *id);
  double seconds = bench_seconds_since(begin);
  free(prompt);
  free(pages);
  return seconds;
}

static int ascending(const void *a, const void *b) {
  return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b);
}

static double median(double *values, int n) {
  qsort(values, (size_t)n, sizeof *values, ascending);
  return values[n / 2];
}

static void measure(const void *options) {
  const options_t *o = options;
  mob_model_t *model;
  mob_exec_t *exec;
  bench_check(mob_model_open(o->model.dir, NULL, &model));
  const mob_model_desc_t *d = mob_model_desc(model);
  mob_exec_spec_t spec = {.model = model,
                          .last_layer = d->n_layers,
                          .tp = 1,
                          .threads = o->threads,
                          .dtype = o->exact ? MOB_DT_F32 : d->dtype,
                          .exact = o->exact,
                          .kv_dtype = MOB_DT_COUNT,
                          .max_tokens = o->chunk,
                          .max_seqs = 4,
                          .max_len = o->tokens + 1,
                          .memory_share = 0.9};
  bench_check(mob_backend_cpu.open(&spec, &exec));
  bench_check(mob_backend_cpu.load(exec, NULL, NULL));
  bench_check(mob_backend_cpu.alloc_kv(exec, (o->tokens + 64) / MOB_PAGE_TOKENS));
  counting_t count = {model, 0};
  bench_check(mob_model_stage_slots(model, 0, d->n_layers, count_slot, &count));
  double work = 2 * count.weights * o->tokens;
  bool avx512 = strcmp(exec->ops->name, "avx512") == 0, amx = has_amx();
  double (*fma)(void) = avx512 ? fma_avx512 : fma_avx2;
  double *rate = MOB_NEW_ARRAY(double, (size_t)o->rounds),
         *share = MOB_NEW_ARRAY(double, (size_t)o->rounds),
         *amx_share = MOB_NEW_ARRAY(double, (size_t)o->rounds), best = 0, amx_best = 0;
  bench_waiting_t w = BENCH_WAITING;
  uint64_t id = 0;
  prefill(exec, o, &w, &id); // touches all memory
  for (int i = 0; i < o->rounds; i++) {
    double top = roof(fma), tiles = amx ? roof(tiles_amx) : 1, begin = cpu_seconds();
    rate[i] = o->tokens / prefill(exec, o, &w, &id);
    double core_rate = work / (cpu_seconds() - begin), again = roof(fma);
    top = again > top ? again : top;
    again = amx ? roof(tiles_amx) : 1;
    tiles = again > tiles ? again : tiles;
    share[i] = core_rate / top;
    amx_share[i] = core_rate / tiles;
    best = top > best ? top : best;
    amx_best = tiles > amx_best ? tiles : amx_best;
  }
  double tokens = median(rate, o->rounds), part = median(share, o->rounds);
  printf("%-6s %-4s%s %6.2f G weights %3d threads  prompt %5d in %5d  prefill %8.1f tok/s %8.1f "
         "GFLOP/s  a core %7.1f GFLOP/s = %4.0f %% of %7.1f (%s FMA)",
         exec->ops->name, o->model.dtype, o->exact ? " exact" : "", count.weights * 1e-9,
         exec->threads, o->tokens, o->chunk, tokens, tokens * work / o->tokens * 1e-9,
         part * best * 1e-9, 100 * part, best * 1e-9, avx512 ? "avx512" : "avx2");
  if (amx) printf(", %4.1f %% of %8.1f (AMX)", 100 * median(amx_share, o->rounds), amx_best * 1e-9);
  printf("\n");
  free(rate);
  free(share);
  free(amx_share);
  mob_backend_cpu.close(exec);
  mob_model_close(model);
}

int main(int argc, char **argv) {
  options_t o = {.model = {.gb = 0.6, .dtype = "fp8"}, .tokens = 512, .rounds = 5};
  for (int i = 1; i + 1 < argc; i += 2) {
    if (strcmp(argv[i], "--gb") == 0)
      o.model.gb = atof(argv[i + 1]);
    else if (strcmp(argv[i], "--dtype") == 0)
      o.model.dtype = argv[i + 1];
    else if (strcmp(argv[i], "--threads") == 0)
      o.threads = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--tokens") == 0)
      o.tokens = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--chunk") == 0)
      o.chunk = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--rounds") == 0)
      o.rounds = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--exact") == 0)
      o.exact = atoi(argv[i + 1]);
    else if (strcmp(argv[i], "--dir") == 0)
      o.model.dir = argv[i + 1];
    else {
      fprintf(stderr, "bench_cpu_prefill: unknown option %s\n", argv[i]);
      return 2;
    }
  }
  if (o.chunk < 1 || o.chunk > o.tokens) o.chunk = o.tokens;
  bench_with_model(&o.model, measure, &o);
  return 0;
}
