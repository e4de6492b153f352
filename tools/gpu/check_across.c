// A stage whose tensor-parallel ranks are in several processes, as pods have it, held against the same ranks in one process; what a
// step costs there; and how it ends when a process dies or stops. Each process sees its own GPUs only.
//   check_across check PARTS RANKS [MODEL [ROOT]]   PARTS processes of RANKS ranks each; MODEL: of tools/gpu/models.h (gqa_128)
//   check_across failure PARTS RANKS [MODEL [ROOT]] kill -9, SIGSTOP and a rank that never comes, each in the middle of steps
//   check_across bench PARTS RANKS [DENSE MOE]      DeepSeek-R1's shapes, dummy weights: one process, then several
// `--one` (the last word): `check` and `bench` leave the one process out, where its GPUs are not there.
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "tools/gpu/drive.h"
#include "tools/gpu/models.h"
#include "tools/gpu/r1_config.h"

enum { PROMPT = 72, STEPS = 10, PLAIN = 4, MAX_PARTS = 16, LINE = 8192, PAGES = 20, CONTEXT = 1024 };

// Log probabilities of one process and of several: sums in another order, rounded to bf16.
static const double LIMIT = 0.1;

static int failures;

static void check(bool ok, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  printf("%-6s ", ok ? "ok" : "WRONG");
  vprintf(fmt, args);
  printf("\n");
  fflush(stdout);
  va_end(args);
  if (!ok) failures++;
}

// ------------------------------------------------------------------------------------------ a process of the stage

typedef struct part {
  FILE *in, *out; // the parent's lines, and what it is told
  drive_t *drive;
  mob_model_t *model;
} part_t;

static void say(part_t *p, const char *fmt, ...) {
  va_list args;
  va_start(args, fmt);
  vfprintf(p->out, fmt, args);
  va_end(args);
  fputc('\n', p->out);
  fflush(p->out);
}

static void *listen_main(void *arg) {
  part_t *p = arg;
  char line[LINE];
  while (fgets(line, sizeof line, p->in))
    if (strncmp(line, "abort", 5) == 0) drive_abort(p->drive);
  return NULL;
}

static mob_sampling_t sampling(float temperature, int logprobs) {
  return (mob_sampling_t){.temperature = temperature, .top_p = 0.9f, .top_k = -1, .repetition_penalty = 1, .logprobs = logprobs,
                          .prompt_logprobs = -1, .seed = 7};
}

static int32_t prompt_token(const part_t *p, uint32_t slot, int i) {
  uint32_t x = (slot * 977u + (uint32_t)i) * 2654435761u;
  return (int32_t)(x >> 8) % mob_model_desc(p->model)->vocab;
}

// Step 0: the prompts of all slots at once. Then a token of each: sampled, or, of the first `forced` slots, given: by `given` or, where it is
// null, made.
static mob_status run_step(part_t *p, int i, uint32_t slots, uint32_t forced, int32_t (*given)[STEPS]) {
  static int32_t tokens[DRIVE_SLOTS][PROMPT];
  static uint32_t pages[DRIVE_SLOTS][PAGES];
  static const int32_t previous = MOB_TOKEN_PREVIOUS;
  mob_seq_open_t open[DRIVE_SLOTS];
  mob_seq_step_t seqs[DRIVE_SLOTS];
  uint32_t row = 0;
  for (uint32_t s = 0; s < slots; s++) {
    for (uint32_t k = 0; k < PAGES; k++) pages[s][k] = s * PAGES + k;
    uint32_t count = i == 0 ? PROMPT - s : 1; // no two of one length
    for (uint32_t k = 0; k < count && i == 0; k++) tokens[s][k] = prompt_token(p, s, (int)k);
    // Slot 0: greedy with log probabilities; slot 1, where it is not one of the plain rows: drawn; the others plain.
    open[s] = (mob_seq_open_t){.slot = s, .prompt = tokens[s], .prompt_count = PROMPT - s,
                               .sampling = sampling(s == 1 && slots > PLAIN ? 0.8f : 0, s < forced ? 5 : -1)};
    seqs[s] = (mob_seq_step_t){.slot = s, .row = row, .start = i == 0 ? 0 : PROMPT - s + (uint32_t)i - 1, .count = count,
                               .tokens = i == 0 ? tokens[s] : &previous, .pages = pages[s], .page_count = PAGES, .sample = true};
    if (i > 0 && s < forced) {
      tokens[s][0] = given ? given[s][i - 1] : prompt_token(p, s, PROMPT + i);
      seqs[s].tokens = tokens[s];
    }
    row += count;
  }
  mob_step_t step = {.token_count = row, .seq_count = slots, .seqs = seqs, .open = open, .open_count = i == 0 ? slots : 0};
  return drive_step(p->drive, &step);
}

// How much likelier each token of the plain rows was than the next best one: the same rows once more, their tokens given.
static mob_status say_margins(part_t *p, int32_t (*ids)[STEPS]) {
  for (int i = 0; i < STEPS; i++) MOB_TRY(run_step(p, i, PLAIN, PLAIN, ids));
  for (uint32_t s = 0; s < PLAIN; s++)
    for (uint32_t i = 0; i < STEPS; i++) {
      const drive_place_t *place = &drive_places(p->drive, s)[PROMPT - s + i];
      if (place->known && place->top_count > 1) say(p, "margin %u %u %.6f", s, i, (double)(place->top[0].logprob - place->top[1].logprob));
    }
  return MOB_OK;
}

static mob_status run_check(part_t *p) {
  // With log probabilities and draws beside plain rows; then plain rows alone, whose graphs are others.
  int32_t ids[PLAIN][STEPS];
  for (int i = 0; i < STEPS; i++) MOB_TRY(run_step(p, i, PLAIN + 1, 2, NULL));
  for (uint32_t s = 0; s < 2; s++)
    for (uint32_t at = PROMPT - s; at < PROMPT - s + STEPS; at++) {
      const drive_place_t *place = &drive_places(p->drive, s)[at];
      for (uint32_t k = 0; place->known && s == 0 && k < place->top_count; k++)
        say(p, "top %u %u %d %.6f", s, at, place->top[k].token, (double)place->top[k].logprob);
    }
  for (int i = 0; i < STEPS; i++) {
    MOB_TRY(run_step(p, i, PLAIN, 0, NULL));
    for (uint32_t s = 0; s < PLAIN; s++) {
      ids[s][i] = drive_last(p->drive, s);
      say(p, "id %u %d %d", s, i, ids[s][i]);
    }
  }
  return say_margins(p, ids);
}

static int by_value(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return x < y ? -1 : x > y;
}

static mob_status run_bench(part_t *p) {
  static int32_t tokens[DRIVE_SLOTS][CONTEXT];
  static uint32_t pages[DRIVE_SLOTS][PAGES];
  static const int32_t previous = MOB_TOKEN_PREVIOUS;
  static const uint32_t batches[] = {1, 8, 32};
  mob_seq_step_t seqs[DRIVE_SLOTS];
  double ms[64];
  for (uint32_t s = 0; s < DRIVE_SLOTS; s += 2) {
    mob_seq_open_t open[2];
    for (uint32_t k = 0; k < 2; k++) {
      uint32_t slot = s + k;
      for (int i = 0; i < CONTEXT; i++) tokens[slot][i] = prompt_token(p, slot, i);
      for (uint32_t i = 0; i < PAGES; i++) pages[slot][i] = slot * PAGES + i;
      open[k] = (mob_seq_open_t){.slot = slot, .prompt = tokens[slot], .prompt_count = CONTEXT, .sampling = sampling(0, -1)};
      seqs[k] = (mob_seq_step_t){.slot = slot, .row = k * CONTEXT, .count = CONTEXT, .tokens = tokens[slot], .pages = pages[slot],
                                 .page_count = PAGES, .sample = true};
    }
    mob_step_t step = {.token_count = 2 * CONTEXT, .seq_count = 2, .seqs = seqs, .open = open, .open_count = 2};
    uint64_t begin = mob_now_ns();
    MOB_TRY(drive_step(p->drive, &step));
    ms[s / 2] = (double)(mob_now_ns() - begin) / 1e6;
  }
  qsort(ms + 1, DRIVE_SLOTS / 2 - 1, sizeof *ms, by_value);
  say(p, "time prefill of 2048: %.3f ms", ms[DRIVE_SLOTS / 4]);
  for (size_t b = 0; b < MOB_LEN(batches); b++) {
    for (int i = 0; i < 40; i++) {
      for (uint32_t s = 0; s < batches[b]; s++)
        seqs[s] = (mob_seq_step_t){.slot = s, .row = s, .start = (uint32_t)(CONTEXT + i), .count = 1, .tokens = &previous, .pages = pages[s],
                                   .page_count = PAGES, .sample = true};
      mob_step_t step = {.token_count = batches[b], .seq_count = batches[b], .seqs = seqs};
      MOB_TRY(drive_step(p->drive, &step));
      ms[i] = (double)drive_compute_ns(p->drive) / 1e6;
    }
    qsort(ms + 8, 32, sizeof *ms, by_value);
    say(p, "time decode B=%u: %.3f ms on the device", batches[b], ms[24]);
  }
  return MOB_OK;
}

// Until something ends it.
static mob_status run_failure(part_t *p, bool never) {
  MOB_TRY(run_step(p, 0, PLAIN, 0, NULL));
  say(p, "running");
  if (never) // and the others wait for it
    for (;;) pause();
  for (int i = 1;; i++) MOB_TRY(run_step(p, 1 + i % 900, PLAIN, 0, NULL));
}

static mob_status open_part(part_t *p, const char *dir, bool dummy, drive_config_t *config) {
  static uint8_t id[MOB_GROUP_ID];
  char line[LINE];
  mob_model_options_t options = {.dummy = dummy};
  MOB_TRY(mob_model_open(dir, &options, &p->model));
  config->model = p->model;
  config->max_tokens = dummy ? 2 * CONTEXT : 0;
  config->max_len = PAGES * MOB_PAGE_TOKENS;
  config->pages = DRIVE_SLOTS * PAGES;
  MOB_TRY(mob_backend_find("cuda", &config->backend));
  if (config->ranks) {
    if (config->first_rank == 0) {
      MOB_TRY(config->backend->group_id(id));
      fprintf(p->out, "group ");
      for (int i = 0; i < MOB_GROUP_ID; i++) fprintf(p->out, "%02x", id[i]);
      say(p, "");
    }
    if (!fgets(line, sizeof line, p->in)) return mob_fail(MOB_E_IO, "the parent is gone");
    for (int i = 0; i < MOB_GROUP_ID; i++) sscanf(line + 2 * i, "%2hhx", &id[i]);
    config->group_id = id;
  }
  return drive_open(config, &p->drive);
}

// part MODE DIR TP RANKS FIRST FD
static int part_main(char **argv) {
  part_t part = {0}, *p = &part;
  const char *mode = argv[2];
  int fd = atoi(argv[7]);
  drive_config_t config = {.tp = atoi(argv[4]), .ranks = atoi(argv[5]), .first_rank = atoi(argv[6]), .timeout_s = 120};
  p->in = fdopen(fd, "r");
  p->out = fdopen(dup(fd), "w");
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  mob_status status = open_part(p, argv[3], strcmp(mode, "bench") == 0, &config);
  if (status == MOB_OK) {
    pthread_t listener;
    pthread_create(&listener, NULL, listen_main, p);
    say(p, "ready");
    status = strcmp(mode, "check") == 0   ? run_check(p)
             : strcmp(mode, "bench") == 0 ? run_bench(p)
                                          : run_failure(p, strcmp(mode, "never") == 0 && config.first_rank > 0);
  }
  say(p, "end %s %s", mob_status_name(status), status == MOB_OK ? "" : mob_errmsg());
  uint64_t begin = mob_now_ms();
  drive_close(p->drive);
  say(p, "closed after %llu ms", (unsigned long long)(mob_now_ms() - begin));
  _exit(status != MOB_OK); // as an actor ends: what libraries do at exit may wait for processes that do not run
}

// ------------------------------------------------------------------------------------------ the parent

typedef struct child {
  pid_t pid;
  int fd;
  char buffer[LINE];
  size_t len;
  bool eof;
} child_t;

typedef struct group {
  child_t child[MAX_PARTS];
  int count;
} group_t;

static void tell(child_t *c, const char *line) {
  if (send(c->fd, line, strlen(line), MSG_NOSIGNAL) < 0) c->eof = true;
}

// The next line of a child that begins with `word`, others are dropped (printed when they end it); false at its end or after `ms`.
static bool hear(child_t *c, const char *word, char line[LINE], uint64_t ms) {
  uint64_t until = mob_now_ms() + ms;
  for (;;) {
    char *end = memchr(c->buffer, '\n', c->len);
    if (end) {
      size_t n = (size_t)(end - c->buffer);
      memcpy(line, c->buffer, n);
      line[n] = 0;
      c->len -= n + 1;
      memmove(c->buffer, end + 1, c->len);
      if (strncmp(line, word, strlen(word)) == 0) return true;
      if (strncmp(line, "end ", 4) == 0 && strncmp(line, "end ok", 6) != 0) printf("       a process says: %s\n", line);
      continue;
    }
    uint64_t now = mob_now_ms();
    struct pollfd p = {.fd = c->fd, .events = POLLIN};
    if (c->eof || now >= until || poll(&p, 1, (int)(until - now)) <= 0) return false;
    ssize_t n = recv(c->fd, c->buffer + c->len, sizeof c->buffer - c->len, 0);
    if (n <= 0) c->eof = true;
    else c->len += (size_t)n;
  }
}

static void start(child_t *c, const char *mode, const char *dir, int tp, int ranks, int first, int visible) {
  int fds[2];
  char text[5][16], devices[64] = "";
  *c = (child_t){0};
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) exit(1);
  snprintf(text[0], 16, "%d", tp);
  snprintf(text[1], 16, "%d", ranks);
  snprintf(text[2], 16, "%d", first);
  snprintf(text[3], 16, "%d", fds[1]);
  for (int i = 0; i < visible; i++) snprintf(devices + strlen(devices), sizeof devices - strlen(devices), "%s%d", i ? "," : "", first + i);
  c->pid = fork();
  if (c->pid == 0) {
    fcntl(fds[1], F_SETFD, 0);
    setenv("CUDA_VISIBLE_DEVICES", devices, 1);
    execl("/proc/self/exe", "check_across", "part", mode, dir, text[0], text[1], text[2], text[3], NULL);
    _exit(127);
  }
  close(fds[1]);
  c->fd = fds[0];
}

// All parts of a stage, told where they meet.
static group_t *start_group(const char *mode, const char *dir, int parts, int ranks) {
  group_t *g = MOB_NEW(group_t);
  char line[LINE];
  g->count = parts;
  for (int i = 0; i < parts; i++) start(&g->child[i], mode, dir, parts * ranks, ranks, i * ranks, ranks);
  if (hear(&g->child[0], "group ", line, 60000)) {
    strcat(line, "\n");
    for (int i = 0; i < parts; i++) tell(&g->child[i], line + strlen("group "));
  }
  return g;
}

static bool all_say(group_t *g, const char *word, uint64_t ms) {
  char line[LINE];
  for (int i = 0; i < g->count; i++)
    if (!hear(&g->child[i], word, line, ms)) return false;
  return true;
}

static void end_group(group_t *g) {
  for (int i = 0; i < g->count; i++) {
    kill(g->child[i].pid, SIGKILL);
    waitpid(g->child[i].pid, NULL, 0);
    close(g->child[i].fd);
  }
  free(g);
}

typedef struct said {
  float top[2 * PROMPT][1024]; // by position and token; 0: not said
  int id[PLAIN][STEPS];
  float margin[PLAIN][STEPS]; // of the id to the next best; below 0: not said
  bool ended;
} said_t;

static said_t *listen_to(child_t *c) {
  said_t *said = MOB_NEW(said_t);
  for (int s = 0; s < PLAIN; s++)
    for (int i = 0; i < STEPS; i++) said->margin[s][i] = -1;
  char line[LINE];
  unsigned slot, at;
  int token, i;
  float value;
  while (!said->ended && hear(c, "", line, 120000)) {
    if (sscanf(line, "top %u %u %d %f", &slot, &at, &token, &value) == 4 && at < 2 * PROMPT && token < 1024) said->top[at][token] = value;
    if (sscanf(line, "id %u %d %d", &slot, &i, &token) == 3 && slot < PLAIN && i < STEPS) said->id[slot][i] = token;
    if (sscanf(line, "margin %u %d %f", &slot, &i, &value) == 3 && slot < PLAIN && i < STEPS) said->margin[slot][i] = value;
    if (strncmp(line, "end ", 4) == 0) {
      said->ended = strncmp(line, "end OK", 6) == 0;
      if (!said->ended) printf("       %s\n", line);
      break;
    }
  }
  return said;
}

// Plain tokens are the same up to the first that was hardly likelier than another one; what comes behind it answers another text.
static void check_plain(const said_t *want, const said_t *got, const char *name) {
  int equal = 0, ties = 0, others = 0;
  for (int s = 0; s < PLAIN; s++) {
    int i = 0;
    while (i < STEPS && want->id[s][i] == got->id[s][i]) i++;
    equal += i;
    if (i == STEPS) continue;
    if (want->margin[s][i] >= 0 && want->margin[s][i] < LIMIT) ties++;
    else others++;
  }
  check(others == 0 && equal >= STEPS, "%s: %d of %d plain tokens equal; %d of %d rows go other ways, at two tokens nearer than %g; %d elsewhere", name,
        equal, PLAIN * STEPS, ties, PLAIN, LIMIT, others);
}

static void check_main(const char *dir, int parts, int ranks, bool one, const char *name) {
  child_t alone = {0};
  said_t *want = NULL;
  if (one) {
    start(&alone, "check", dir, parts * ranks, 0, 0, parts * ranks);
    want = listen_to(&alone);
    check(want->ended, "%s: TP %d in one process", name, parts * ranks);
    waitpid(alone.pid, NULL, 0);
    close(alone.fd);
  }
  group_t *g = start_group("check", dir, parts, ranks);
  said_t *got = listen_to(&g->child[0]);
  check(got->ended, "%s: TP %d in %d processes of %d", name, parts * ranks, parts, ranks);
  double worst = 0;
  int compared = 0;
  for (int at = 0; want && at < 2 * PROMPT; at++)
    for (int t = 0; t < 1024; t++) {
      if (want->top[at][t] == 0 || got->top[at][t] == 0) continue;
      double d = fabs((double)want->top[at][t] - (double)got->top[at][t]);
      if (d > worst) worst = d;
      compared++;
    }
  if (want) {
    check(compared >= 4 * STEPS && worst < LIMIT, "%s: %d log probabilities apart by %.1e at most, limit %g", name, compared, worst, LIMIT);
    check_plain(want, got, name);
  }
  for (int i = 1; i < parts; i++) {
    char line[LINE];
    check(hear(&g->child[i], "end OK", line, 10000), "%s: process %d ended with the others", name, i);
  }
  end_group(g);
  free(want);
  free(got);
}

// sig 0: its last process never begins a second step.
static void fail_main(const char *dir, int parts, int ranks, int sig, const char *what) {
  char line[LINE];
  group_t *g = start_group(sig ? "failure" : "never", dir, parts, ranks);
  bool runs = all_say(g, "running", 120000);
  check(runs, "%s: steps run", what);
  if (!runs) {
    end_group(g);
    return;
  }
  poll(NULL, 0, sig ? 300 : 0); // into the middle of them
  child_t *victim = &g->child[parts - 1], *other = &g->child[0];
  uint64_t begin = mob_now_ms();
  if (sig) kill(victim->pid, sig);
  // The gateway learns of it at once (a death) or after 4 s (silence) and says so; a rank that is alone gives up by itself.
  bool alone = hear(other, "end ", line, sig ? 400 : 60000);
  uint64_t noticed = mob_now_ms() - begin;
  if (!alone) {
    begin = mob_now_ms();
    tell(other, "abort\n");
    alone = hear(other, "end ", line, 20000);
    check(alone && mob_now_ms() - begin < 1000, "%s: told to abort, the step ended %llu ms later: %s", what,
          (unsigned long long)(mob_now_ms() - begin), line);
  } else {
    check(strstr(line, "UNAVAILABLE") || strstr(line, "ABORTED"), "%s: noticed after %llu ms: %s", what, (unsigned long long)noticed, line);
  }
  begin = mob_now_ms();
  bool closed = hear(other, "closed", line, 10000);
  check(closed && mob_now_ms() - begin < 2000, "%s: the executor is closed %llu ms later", what, (unsigned long long)(mob_now_ms() - begin));
  int status = 0;
  begin = mob_now_ms();
  while (waitpid(other->pid, &status, WNOHANG) == 0 && mob_now_ms() - begin < 10000) poll(NULL, 0, 5);
  check(WIFEXITED(status) && WEXITSTATUS(status) == 1, "%s: the process is gone %llu ms later, with status 1", what,
        (unsigned long long)(mob_now_ms() - begin));
  kill(victim->pid, SIGCONT);
  end_group(g);
}

static void bench_main(const char *dir, int parts, int ranks, bool one) {
  char line[LINE];
  for (int across = one ? 0 : 1; across < 2; across++) {
    group_t *g = across ? start_group("bench", dir, parts, ranks) : MOB_NEW(group_t);
    if (!across) {
      g->count = 1;
      start(&g->child[0], "bench", dir, parts * ranks, 0, 0, parts * ranks);
    }
    printf("TP %d in %d process%s\n", parts * ranks, across ? parts : 1, across ? "es, NCCL" : "");
    fflush(stdout);
    while (hear(&g->child[0], "", line, 120000)) {
      if (strncmp(line, "time ", 5) == 0) printf("       %s\n", line + 5);
      if (strncmp(line, "end ", 4) != 0) continue;
      check(strncmp(line, "end OK", 6) == 0, "%s", line);
      break;
    }
    end_group(g);
  }
}

static int write_r1(char *dir, int dense, int moe) {
  char path[64];
  if (!mkdtemp(dir)) return -1;
  snprintf(path, sizeof path, "%s/config.json", dir);
  FILE *file = fopen(path, "w");
  if (!file) return -1;
  fprintf(file, r1_config, dense + moe, dense);
  return fclose(file);
}

int main(int argc, char **argv) {
  if (argc == 8 && strcmp(argv[1], "part") == 0) return part_main(argv);
  bool one = argc < 2 || strcmp(argv[argc - 1], "--one") != 0;
  if (!one) argc--;
  if (argc < 4) {
    fprintf(stderr, "usage: check_across check|failure|bench PARTS RANKS [MODEL [ROOT] | DENSE MOE] [--one]\n");
    return 2;
  }
  int parts = atoi(argv[2]), ranks = atoi(argv[3]);
  if (parts < 2 || parts > MAX_PARTS || ranks < 1) return 2;
  if (strcmp(argv[1], "bench") == 0) {
    char dir[] = "/tmp/across-XXXXXX", path[64];
    if (write_r1(dir, argc > 4 ? atoi(argv[4]) : 1, argc > 5 ? atoi(argv[5]) : 2) != 0) return 1;
    bench_main(dir, parts, ranks, one);
    snprintf(path, sizeof path, "%s/config.json", dir);
    unlink(path);
    rmdir(dir);
    return failures != 0;
  }
  check_model_t m;
  if (check_model_open(argc > 5 ? argv[5] : ".", argc > 4 ? argv[4] : "gqa_128", &m) != MOB_OK) {
    fprintf(stderr, "%s\n", mob_errmsg());
    return 1;
  }
  if (strcmp(argv[1], "check") == 0) {
    // FP8 activations make whole networks chaotic (checks.h): such a model is compared with all its matrices as bf16.
    if (m.desc->quant_block_rows > 0) setenv("MOB_CUDA_F8", "0", 0);
    check_main(m.dir, parts, ranks, one, m.name);
  } else {
    fail_main(m.dir, parts, ranks, SIGKILL, "kill -9");
    fail_main(m.dir, parts, ranks, SIGSTOP, "SIGSTOP");
    fail_main(m.dir, parts, ranks, 0, "a rank that never comes");
  }
  check_model_close(&m);
  return failures != 0;
}
