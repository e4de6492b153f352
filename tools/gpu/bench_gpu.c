// The bench table of a host with GPUs: DeepSeek-R1's shapes at two counts of MoE layers, whose difference is a layer, then all of
// Qwen2.5-7B's, through the CUDA backend with dummy weights; beside the goals, vLLM's figures and the read roof of the same run.
//   bench_gpu [TP [STEPS [PEER]]]    TP 0: all GPUs, up to 8; 100
//   bench_gpu --layers [TP]          the two counts of MoE layers, and no more
// PEER: a file with what vLLM's bench printed on this machine: for each count of MoE layers a line "LAYERS n", behind it lines
// "PEER decode B=8 ctx=1024: 3.2 ms/step ..." and "PEER prefill 2x1024: 6.1 ms ..."; behind a line "QWEN" those of Qwen2.5-7B. Its figures
// take the place of the remembered ones. A line "FROM ..." says where and when, if not on this machine a moment before.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tools/gpu/qwen_config.h"
#include "tools/gpu/r1_config.h"
#include "tools/gpu/roof.h"
#include "tools/gpu/steps.h"

enum { BATCHES = 4, PREFILLS = 2, LONG = 8192, SHORT = 2048, QWEN_LAYERS = 28 };
static const int batches[BATCHES] = {1, 8, 64, 256}, prefills[PREFILLS] = {SHORT, LONG};

// Measured or wanted, ms: a MoE layer's decode and prefill, whole steps (0: not told). Goals are for H200; vLLM 0.26.0 on an H200
// of another day, for where it is not run beside (PEER).
typedef struct figures {
  double layer[BATCHES], prefill[PREFILLS], fixed, whole;
} figures_t;
typedef struct target {
  int tp, layers[2]; // MoE layers beside one dense one
  figures_t goal, vllm; // whole: a step of the larger count at 256
} target_t;
static const target_t targets[] = {
    {1, {4, 8}, {{0.140, 0.64, 2.27, 2.80}, {4.0, 14}, 0.56, 23.6}, {{0.229, 0.780, 2.375, 3.6}, {5.9, 21.5}, 0.76, 28.45}},
    {2, {4, 8}, {{0}, {0}, 0, 0}, {{0}, {0}, 0, 0}},
    {4, {8, 20}, {{0.050, 0.180, 0.61, 0.78}, {1.7, 5.0}, 0.18, 16.0}, {{0.1425, 0.2725, 0.7445, 0.979}, {4.1, 8.1}, 0.40, 20.9}},
    {8, {8, 20}, {{0}, {0}, 0, 0}, {{0}, {0}, 0, 0}},
};
static const double qwen_goal[BATCHES] = {3.35, 3.5, 4.4, 9.0};

typedef struct measured {
  double step[BATCHES], device[BATCHES], prefill[PREFILLS], experts[BATCHES];
} measured_t;
static const measured_t qwen_vllm = {.step = {4.457, 4.608, 5.699, 10.76}};

// What vLLM's bench printed: of R1's two counts of layers, of Qwen2.5-7B.
typedef struct peer {
  measured_t r1[2], qwen;
  bool has_r1, has_qwen;
  char from[160];
} peer_t;

// Of a MoE layer, on one rank: what must be read once for `batch` tokens behind `context` others. FP8 matrices with a scale for 128
// x 128 values; router fp32 as two bf16 halves; keys and values bf16 on every rank. `experts`: routed ones that have tokens.
static double layer_bytes(int batch, int tp, double context, double experts) {
  const double f8 = 1 + 4.0 / 16384, hidden = 7168;
  const double replicated = (1536 + 576) * hidden * f8 + 256 * hidden * 4;
  const double cut = (24576.0 * 1536 + 32768.0 * 512 + hidden * 16384) * f8;
  const double expert = 3 * 2048 * hidden * f8;
  return replicated + (cut + (experts + 1) * expert) / tp + batch * context * 576 * 2;
}

// 2 x the active parameters of a MoE layer for each token, and causal attention over prompts of 1,024.
static double layer_flops(int tokens) {
  const double hidden = 7168, matrices = (1536 + 576) * hidden + 24576.0 * 1536 + 32768.0 * 512 + hidden * 16384 + 9 * 3 * 2048 * hidden;
  return tokens * (2 * matrices + 2 * 128 * (192 + 128) * (STEPS_CONTEXT / 2.0));
}

static double qwen_bytes(int batch, double context) {
  const double hidden = 3584, matrices = (hidden + 2 * 512) * hidden + hidden * hidden + 3 * hidden * 18944;
  return 2 * (QWEN_LAYERS * (matrices + batch * context * 1024) + 152064 * hidden);
}

static steps_t *bench(const char *config, int tp, int steps, uint64_t start, measured_t *out, mob_model_t **model) {
  *model = steps_model(config);
  steps_t *s = steps_open(*model, tp, LONG);
  if (start) {
    steps_prefill(s, 1, STEPS_CONTEXT, false);
    printf("from the start of the process to the first token (its prompt has 1,024): %.2f s\n", (double)(mob_now_ns() - start) / 1e9);
  }
  out->prefill[1] = steps_prefill(s, 12 * (LONG / STEPS_CONTEXT), LONG, false);
  out->prefill[0] = steps_prefill(s, STEPS_BATCH, SHORT, true);
  for (int i = 0; i < BATCHES; i++) {
    out->step[i] = steps_decode(s, batches[i], steps, &out->device[i]);
    out->experts[i] = steps_experts(s, batches[i]);
  }
  return s;
}

static void figure(double value, const char *format) {
  char text[24] = "-";
  if (value > 0) snprintf(text, sizeof text, format, value);
  printf(" %9s", text);
}

static void row(const char *what, double now, double goal, double vllm) {
  printf("%-34s", what);
  figure(now, "%.3f");
  figure(goal, "%.3f");
  printf(" %-7s", goal > 0 ? now <= goal ? "met" : "missed" : "");
  figure(vllm, "%.3f");
}

// A layer's figures out of steps with two counts of them; 0 where one is not known.
static double slope(double more, double less, double layers) { return more > 0 && less > 0 ? (more - less) / layers : 0; }
static double fixed_cost(const measured_t m[2], const target_t *t) {
  const double layer = slope(m[1].step[0], m[0].step[0], t->layers[1] - t->layers[0]);
  return layer > 0 ? m[1].step[0] - t->layers[1] * layer : 0;
}

// vLLM's of this run where there are any, else those of another day.
static figures_t peer_figures(const target_t *t, const measured_t *peer) {
  if (!peer) return t->vllm;
  figures_t f = {.fixed = fixed_cost(peer, t), .whole = peer[1].step[BATCHES - 1]};
  const double layers = t->layers[1] - t->layers[0];
  for (int i = 0; i < BATCHES; i++) f.layer[i] = slope(peer[1].step[i], peer[0].step[i], layers);
  for (int i = 0; i < PREFILLS; i++) f.prefill[i] = slope(peer[1].prefill[i], peer[0].prefill[i], layers);
  return f;
}

static void r1_table(const target_t *t, const measured_t m[2], const measured_t *peer, const read_roof_t *roof) {
  const double layers = t->layers[1] - t->layers[0];
  const figures_t vllm = peer_figures(t, peer);
  char what[64];
  printf("\nDeepSeek-R1, TP %d: ms a MoE layer, (1 + %d less 1 + %d) / %g, on the host's clock\n%-34s %9s %9s %-7s %9s\n", t->tp, t->layers[1],
         t->layers[0], layers, "", "now", "goal", "", "vLLM");
  for (int i = 0; i < BATCHES; i++) {
    const double ms = slope(m[1].step[i], m[0].step[i], layers), bytes = layer_bytes(batches[i], t->tp, STEPS_CONTEXT + 60, m[1].experts[i]);
    snprintf(what, sizeof what, "decode B=%d", batches[i]);
    row(what, ms, t->goal.layer[i], vllm.layer[i]);
    printf("   %6.0f MB, %5.1f experts counted, %5.1f %% of the roof\n", bytes / 1e6, m[1].experts[i], 100 * bytes / ms * 1e3 / roof->best);
  }
  for (int i = 0; i < PREFILLS; i++) {
    const double ms = slope(m[1].prefill[i], m[0].prefill[i], layers);
    snprintf(what, sizeof what, "prefill of %d (prompts of 1,024)", prefills[i]);
    row(what, ms, t->goal.prefill[i], vllm.prefill[i]);
    printf("   %6.0f TFLOP/s a GPU, %.1f %% of the roof\n", layer_flops(prefills[i]) / t->tp / ms / 1e9,
           100 * layer_bytes(prefills[i], t->tp, 0, 256) / ms * 1e3 / roof->best);
  }
  row("fixed cost of a step, B=1", fixed_cost(m, t), t->goal.fixed, vllm.fixed);
  for (int k = 0; k < 2; k++) {
    printf("\n");
    for (int i = 0; i < BATCHES; i++) {
      snprintf(what, sizeof what, "step of 1 + %d, B=%d", t->layers[k], batches[i]);
      const bool told = k == 1 && batches[i] == 256;
      if (i) printf("\n");
      row(what, m[k].step[i], told ? t->goal.whole : 0, peer ? peer[k].step[i] : told ? t->vllm.whole : 0);
      printf("   %.3f on the device", m[k].device[i]);
    }
    for (int i = 0; i < PREFILLS; i++) {
      snprintf(what, sizeof what, "prefill of %d, 1 + %d", prefills[i], t->layers[k]);
      printf("\n");
      row(what, m[k].prefill[i], 0, peer ? peer[k].prefill[i] : 0);
    }
  }
  printf("\n");
}

static void qwen_table(const measured_t *m, const measured_t *peer, const read_roof_t *roof) {
  printf("\nQwen2.5-7B, one GPU, BF16: ms a step of all %d layers\n%-34s %9s %9s %-7s %9s\n", QWEN_LAYERS, "", "now", "goal", "", "vLLM");
  for (int i = 0; i < BATCHES; i++) {
    char what[64];
    snprintf(what, sizeof what, "decode B=%d", batches[i]);
    row(what, m->step[i], qwen_goal[i], peer->step[i]);
    const double bytes = qwen_bytes(batches[i], STEPS_CONTEXT + 60);
    printf("   %6.0f MB, %5.1f %% of the roof; %.3f on the device\n", bytes / 1e6, 100 * bytes / m->step[i] * 1e3 / roof->best, m->device[i]);
  }
  for (int i = 0; i < PREFILLS; i++) {
    char what[64];
    snprintf(what, sizeof what, "prefill of %d (prompts of 1,024)", prefills[i]);
    row(what, m->prefill[i], 0, peer->prefill[i]);
    printf("   %6.0f tokens a second\n", prefills[i] / m->prefill[i] * 1e3);
  }
}

static void better_roof(read_roof_t *a, const read_roof_t *b) {
  if (b->device[0]) memcpy(a->device, b->device, sizeof a->device);
  a->plain = fmax(a->plain, b->plain);
  a->bulk = fmax(a->bulk, b->bulk);
  a->best = fmax(a->best, b->best);
}

// The roof while the GPU's memory is still empty, in a process of its own, so that it is no part of the time to the first token: behind
// models that came and went the same kernels were seen to read 4.1 instead of 4.6 TB/s.
static read_roof_t empty_roof(void) {
  read_roof_t roof = {0};
  int ends[2];
  if (pipe(ends) != 0) return roof;
  const pid_t child = fork();
  if (child == 0) {
    const bool measured = measure_read_roof(0, &roof) == 0;
    _exit(measured && write(ends[1], &roof, sizeof roof) == (ssize_t)sizeof roof ? 0 : 1);
  }
  close(ends[1]);
  if (child < 0 || read(ends[0], &roof, sizeof roof) != (ssize_t)sizeof roof) roof = (read_roof_t){0};
  close(ends[0]);
  if (child > 0) waitpid(child, NULL, 0);
  return roof;
}

// One line of it, of the model whose lines these are.
static bool peer_line(const char *line, measured_t *of) {
  const char *at = strstr(line, "PEER ");
  int batch, length;
  double ms;
  if (!at) return false;
  if (sscanf(at, "PEER decode B=%d ctx=%d: %lf ms", &batch, &length, &ms) == 3 && length == STEPS_CONTEXT) {
    for (int i = 0; i < BATCHES; i++)
      if (batches[i] == batch) return of->step[i] = ms, true;
  } else if (sscanf(at, "PEER prefill %dx%d: %lf ms", &batch, &length, &ms) == 3 && length == STEPS_CONTEXT) {
    for (int i = 0; i < PREFILLS; i++)
      if (prefills[i] == batch * length) return of->prefill[i] = ms, true;
  }
  return false;
}

static void read_peer(const char *path, const target_t *t, peer_t *out) {
  FILE *file = fopen(path, "r");
  if (!file) {
    fprintf(stderr, "bench_gpu: %s cannot be read\n", path);
    return;
  }
  char line[512];
  measured_t *of = NULL;
  bool *has = NULL;
  while (fgets(line, sizeof line, file)) {
    int layers;
    if (sscanf(line, "FROM %159[^\n]", out->from) == 1) continue;
    if (sscanf(line, "LAYERS %d", &layers) == 1) {
      of = layers == t->layers[0] ? &out->r1[0] : layers == t->layers[1] ? &out->r1[1] : NULL;
      has = &out->has_r1;
    } else if (strncmp(line, "QWEN", 4) == 0) {
      of = &out->qwen;
      *of = (measured_t){0};
      has = &out->has_qwen;
    } else if (of && peer_line(line, of)) {
      *has = true;
    }
  }
  fclose(file);
  if (!out->has_r1) fprintf(stderr, "bench_gpu: no figure of vLLM's for DeepSeek-R1 in %s; those of another day are printed\n", path);
}

static void head_line(const read_roof_t *roof, int devices, int steps, const peer_t *peer) {
  struct utsname host;
  uname(&host);
  const time_t now = time(NULL);
  char date[32];
  strftime(date, sizeof date, "%Y-%m-%d %H:%M UTC", gmtime(&now));
  printf("\n%s: %d x %s, %s. Read roof of this run, 8 GiB: %.0f GB/s plain, %.0f GB/s bulk copies; the better counts.\n"
         "Context 1k, greedy, distinct prompts, median of %d whole steps. Bytes are of one rank, with the experts that the device's plans of\n"
         "%d more steps have. vLLM's column: ",
         host.nodename, devices, roof->device, date, roof->plain / 1e9, roof->bulk / 1e9, steps, STEPS_COUNTED);
  if (!peer->has_r1) printf("of another day, H200.\n");
  else printf("DeepSeek-R1%s %s%s.\n", peer->has_qwen ? " and Qwen2.5-7B" : "", peer->from, peer->has_qwen ? "" : "; Qwen2.5-7B of another day");
}

static int usage(int devices) {
  fprintf(stderr, "usage: bench_gpu [TP (0: all; 1, 2, 4, 8; this host has %d GPUs) [STEPS (4 to %d) [PEER]]] | --layers [TP]\n", devices, STEPS_MOST);
  return 2;
}

int main(int argc, char **argv) {
  const bool ask = argc > 1 && strcmp(argv[1], "--layers") == 0;
  if (ask) argc--, argv++;
  read_roof_t roof = {0}, again = {0}; // before any process state of CUDA is here, and behind the models: the better counts
  if (!ask) roof = empty_roof();
  const uint64_t start = mob_now_ns();
  const mob_backend_t *backend;
  STEPS_CHECK(mob_backend_find("cuda", &backend));
  const int devices = backend->device_count();
  if (devices == 0) {
    fprintf(stderr, "bench_gpu: %s\n", mob_errmsg());
    return 1;
  }
  int tp = argc > 1 ? atoi(argv[1]) : 0;
  const int steps = argc > 2 ? atoi(argv[2]) : 100;
  if (tp == 0)
    for (tp = 1; tp * 2 <= devices && tp < 8;) tp *= 2;
  const target_t *target = NULL;
  for (size_t i = 0; i < MOB_LEN(targets); i++)
    if (targets[i].tp == tp) target = &targets[i];
  if (!target || tp > devices || steps < 4 || steps > STEPS_MOST) return usage(devices);
  if (ask) {
    printf("%d %d %d\n", tp, target->layers[0], target->layers[1]);
    return 0;
  }
  peer_t peer = {.qwen = qwen_vllm, .from = "on this machine, a moment before"};
  if (argc > 3) read_peer(argv[3], target, &peer);
  measured_t r1[2], qwen;
  mob_model_t *model;
  for (int k = 0; k < 2; k++) {
    char config[4096];
    snprintf(config, sizeof config, r1_config, 1 + target->layers[k], 1);
    printf("DeepSeek-R1, 1 + %d layers, TP %d\n", target->layers[k], tp);
    steps_close(bench(config, tp, steps, k == 0 ? start : 0, &r1[k], &model));
    mob_model_close(model);
  }
  char config[4096];
  snprintf(config, sizeof config, qwen_config, QWEN_LAYERS);
  printf("Qwen2.5-7B, %d layers\n", QWEN_LAYERS);
  steps_close(bench(config, 1, steps, 0, &qwen, &model));
  mob_model_close(model);
  if (measure_read_roof(0, &again) != 0) return 1;
  better_roof(&roof, &again);
  head_line(&roof, devices, steps, &peer);
  r1_table(target, r1, peer.has_r1 ? peer.r1 : NULL, &roof);
  qwen_table(&qwen, &peer.qwen, &roof);
  return 0;
}
