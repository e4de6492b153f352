// How fast weights come to the GPUs, beside what bounds them.
//   load_bench DIR [DENSE MOE [TP]]    default 1 dense + 2 MoE layers of DeepSeek-R1's shapes (27 GB), TP 1
// Writes a checkpoint with those shapes to DIR unless one is there (tmpfs, or a disk whose files the page cache can hold), then measures
//   the plain read     the same files by as many threads into pinned memory, nothing else
//   the plain copy     pinned memory to all GPUs of the run at once; rows of a pitch too, which column shards are made of
//   the load           the backend's, from an opened executor to the last weight in place, and what part of it is reading
//   dummy              the same weights drawn on the devices, beside a plain memset
//   the first token    from open() to a token after 64: the same token with the same probability must come from files and from dummy
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <string>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include <cuda_runtime.h>

#define _Noreturn [[noreturn]]
extern "C" {
#include "engine/backend.h"
#include "runtime/base/cpus.h"
#include "tools/gpu/checkpoint.h"
#include "tools/gpu/r1_config.h"
}

#define CHECK(expr)                                                                                                                \
  do {                                                                                                                             \
    if ((expr) != MOB_OK) {                                                                                                        \
      fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, mob_errmsg());                                                            \
      exit(1);                                                                                                                     \
    }                                                                                                                              \
  } while (0)
#define CUDA(expr)                                                                                                                 \
  do {                                                                                                                             \
    const cudaError_t error_ = (expr);                                                                                             \
    if (error_ != cudaSuccess) {                                                                                                   \
      fprintf(stderr, "%s:%d: %s: %s\n", __FILE__, __LINE__, #expr, cudaGetErrorString(error_));                                   \
      exit(1);                                                                                                                     \
    }                                                                                                                              \
  } while (0)

namespace {

constexpr size_t kChunk = (size_t)8 << 20;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

int reader_count() { // as the backend's
  const char *wish = getenv("MOB_LOAD_THREADS");
  if (wish && atoi(wish) > 0) return atoi(wish);
  return std::min(32, std::max(4, mob_cpu_count()));
}

struct File {
  std::string path;
  int fd;
  size_t size;
};

std::vector<File> files_in(const char *dir) {
  std::vector<File> files;
  DIR *d = opendir(dir);
  for (struct dirent *e; d && (e = readdir(d));) {
    const std::string name = e->d_name;
    if (name.size() < 12 || name.compare(name.size() - 12, 12, ".safetensors") != 0) continue;
    const std::string path = std::string(dir) + "/" + name;
    const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat info;
    if (fd < 0 || fstat(fd, &info) != 0) perror(path.c_str()), exit(1);
    files.push_back({path, fd, (size_t)info.st_size});
  }
  if (d) closedir(d);
  return files;
}

// GB/s of reading all files once.
double plain_read(const std::vector<File> &files, int threads) {
  struct Piece {
    int fd;
    size_t at, bytes;
  };
  std::vector<Piece> pieces;
  size_t total = 0;
  for (const File &f : files) {
    for (size_t at = 0; at < f.size; at += kChunk) pieces.push_back({f.fd, at, std::min(kChunk, f.size - at)});
    total += f.size;
  }
  uint8_t *host;
  CUDA(cudaMallocHost(&host, (size_t)threads * kChunk));
  std::atomic<size_t> next{0};
  const double begin = now();
  std::vector<std::thread> readers;
  for (int t = 0; t < threads; t++)
    readers.emplace_back([&, t] {
      for (size_t i; (i = next.fetch_add(1)) < pieces.size();)
        for (size_t done = 0; done < pieces[i].bytes;) {
          const ssize_t n = pread(pieces[i].fd, host + (size_t)t * kChunk + done, pieces[i].bytes - done, (off_t)(pieces[i].at + done));
          if (n <= 0) perror("pread"), exit(1);
          done += (size_t)n;
        }
    });
  for (std::thread &t : readers) t.join();
  const double seconds = now() - begin;
  cudaFreeHost(host);
  return (double)total / seconds / 1e9;
}

// GB/s to `devices` GPUs at once, chunks of `rows` rows of `width` bytes, `pitch` apart on the host; all different, 1 GiB a GPU in turn.
double plain_copy(int devices, size_t width, size_t pitch) {
  const size_t ring = (size_t)256 << 20, rows = kChunk / pitch;
  uint8_t *host;
  CUDA(cudaMallocHost(&host, ring));
  memset(host, 1, ring);
  std::vector<uint8_t *> device((size_t)devices);
  std::vector<cudaStream_t> streams((size_t)devices);
  for (int d = 0; d < devices; d++) {
    CUDA(cudaSetDevice(d));
    CUDA(cudaMalloc(&device[(size_t)d], kChunk));
    CUDA(cudaStreamCreateWithFlags(&streams[(size_t)d], cudaStreamNonBlocking));
  }
  double begin = 0;
  const int rounds = (int)(((size_t)4 << 30) / kChunk), warm = rounds / 8;
  for (int i = 0; i < rounds + warm; i++) {
    if (i == warm) {
      for (int d = 0; d < devices; d++) CUDA(cudaStreamSynchronize(streams[(size_t)d]));
      begin = now();
    }
    for (int d = 0; d < devices; d++) {
      CUDA(cudaSetDevice(d));
      const uint8_t *from = host + (size_t)(i * devices + d) * kChunk % ring;
      if (width == pitch) CUDA(cudaMemcpyAsync(device[(size_t)d], from, kChunk, cudaMemcpyHostToDevice, streams[(size_t)d]));
      else CUDA(cudaMemcpy2DAsync(device[(size_t)d], width, from, pitch, width, rows, cudaMemcpyHostToDevice, streams[(size_t)d]));
    }
  }
  for (int d = 0; d < devices; d++) CUDA(cudaStreamSynchronize(streams[(size_t)d]));
  const double seconds = now() - begin;
  for (int d = 0; d < devices; d++) {
    cudaSetDevice(d);
    cudaFree(device[(size_t)d]);
    cudaStreamDestroy(streams[(size_t)d]);
  }
  cudaFreeHost(host);
  return (double)rounds * devices * (double)(width == pitch ? kChunk : rows * width) / seconds / 1e9;
}

double memset_rate() { // GB/s on device 0
  const size_t bytes = (size_t)8 << 30;
  uint8_t *data;
  CUDA(cudaSetDevice(0));
  CUDA(cudaMalloc(&data, bytes));
  CUDA(cudaMemset(data, 1, bytes));
  CUDA(cudaDeviceSynchronize());
  const double begin = now();
  CUDA(cudaMemset(data, 0, bytes));
  CUDA(cudaDeviceSynchronize());
  const double seconds = now() - begin;
  cudaFree(data);
  return (double)bytes / seconds / 1e9;
}

struct Watch {
  std::atomic<double> first{0}, last{0};
};
void on_progress(void *arg, const mob_load_progress_t *p) {
  Watch *w = (Watch *)arg;
  double none = 0;
  w->first.compare_exchange_strong(none, now());
  if (p->bytes < p->total) w->last = now();
}

struct Token {
  std::atomic<bool> there{false};
  int32_t id;
  float logprob;
};
void on_step(void *arg, mob_status status, const char *why, const mob_step_result_t *result) {
  Token *t = (Token *)arg;
  if (status != MOB_OK) fprintf(stderr, "the step failed: %s\n", why), _exit(1);
  t->id = result->sampled[0].token;
  t->logprob = result->sampled[0].chosen.logprob;
  t->there = true;
}

// What follows 64 tokens.
void first_token(const mob_backend_t *backend, mob_exec_t *exec, Token *out) {
  int32_t tokens[64];
  for (int i = 0; i < 64; i++) tokens[i] = 17 + 101 * i;
  const uint32_t page = 0;
  mob_seq_open_t open = {};
  open.sampling.top_p = open.sampling.repetition_penalty = 1;
  open.sampling.top_k = open.sampling.prompt_logprobs = -1;
  open.prompt = tokens;
  open.prompt_count = 64;
  mob_seq_step_t seq = {};
  seq.count = 64;
  seq.tokens = tokens;
  seq.pages = &page;
  seq.page_count = 1;
  seq.sample = true;
  mob_step_t step = {};
  step.id = 1;
  step.token_count = 64;
  step.seq_count = step.open_count = 1;
  step.open = &open;
  step.seqs = &seq;
  CHECK(backend->step(exec, &step, on_step, out));
  while (!out->there) usleep(200);
}

struct Times {
  double gb;      // of weights
  double opened;  // seconds of open(): contexts
  double whole;   // of load()
  double reading; // between the first and the last chunk
  double started; // from before open() to the first token
  Token token;
};

void load(const char *dir, bool dummy, bool experts, int tp, Times *out) {
  mob_model_options_t options = {};
  options.dummy = dummy;
  mob_model_t *model;
  CHECK(mob_model_open(dir, &options, &model));
  const mob_backend_t *backend;
  CHECK(mob_backend_find("cuda", &backend));
  mob_exec_spec_t spec = {};
  spec.model = model;
  spec.last_layer = mob_model_desc(model)->n_layers;
  spec.tp = tp;
  spec.expert_parallel = experts;
  spec.dtype = MOB_DT_BF16;
  spec.kv_dtype = MOB_DT_BF16;
  spec.max_tokens = 2048;
  spec.max_seqs = 64;
  spec.max_len = 4096;
  spec.memory_share = 0.95;
  mob_exec_t *exec;
  const double start = now();
  CHECK(backend->open(&spec, &exec));
  Watch watch;
  const double begin = now();
  out->opened = begin - start;
  CHECK(backend->load(exec, on_progress, &watch));
  out->whole = now() - begin;
  out->reading = watch.last - watch.first;
  out->gb = (double)mob_model_bytes(model) / 1e9;
  CHECK(backend->alloc_kv(exec, 64));
  first_token(backend, exec, &out->token);
  out->started = now() - start;
  backend->close(exec);
  mob_model_close(model);
}

// 0 when the token is the one of `want` (its id -1: not known yet).
int hold(const Times &t, int32_t *id, float *logprob) {
  printf("  open %.2f s, load %.2f s, first token after %.2f s: %d, log probability %.6f", t.opened, t.whole, t.started, t.token.id,
         t.token.logprob);
  const bool first = *id < 0, same = !first && *id == t.token.id && *logprob == t.token.logprob;
  if (first) *id = t.token.id, *logprob = t.token.logprob;
  printf("%s\n", first ? "" : same ? ", the same" : ", WRONG: another than before");
  return !first && !same;
}

void write_checkpoint(const char *dir, int dense, int moe) {
  const std::string path = std::string(dir) + "/config.json";
  mkdir(dir, 0755);
  FILE *file = fopen(path.c_str(), "w");
  if (!file) perror(path.c_str()), exit(1);
  fprintf(file, r1_config, dense + moe, dense);
  fclose(file);
  mob_model_options_t options = {};
  options.dummy = true;
  mob_model_t *model;
  CHECK(mob_model_open(dir, &options, &model));
  const double begin = now();
  CHECK(checkpoint_write(model, dir, (uint64_t)4 << 30, mob_cpu_count()));
  printf("wrote %.1f GB to %s in %.1f s\n", (double)mob_model_bytes(model) / 1e9, dir, now() - begin);
  mob_model_close(model);
}

} // namespace

int main(int argc, char **argv) {
  if (argc < 2) {
    fprintf(stderr, "usage: load_bench DIR [DENSE MOE [TP]]\n");
    return 2;
  }
  const char *dir = argv[1];
  const int dense = argc > 3 ? atoi(argv[2]) : 1, moe = argc > 3 ? atoi(argv[3]) : 2, tp = argc > 4 ? atoi(argv[4]) : 1;
  setvbuf(stdout, nullptr, _IOLBF, 0);
  int devices = 0;
  CUDA(cudaGetDeviceCount(&devices));
  if (devices < tp) {
    fprintf(stderr, "%d GPUs, TP %d\n", devices, tp);
    return 1;
  }
  std::vector<File> files = files_in(dir);
  if (files.empty()) write_checkpoint(dir, dense, moe), files = files_in(dir);
  const int threads = reader_count();
  const double cold = plain_read(files, threads), warm = std::max(plain_read(files, threads), plain_read(files, threads));
  printf("plain read, %d threads into pinned memory: first %.1f GB/s, from the page cache %.1f GB/s\n", threads, cold, warm);
  const double copy = plain_copy(tp, kChunk, kChunk);
  printf("plain copy, pinned memory to %d GPU%s at once: %.1f GB/s\n", tp, tp > 1 ? "s" : "", copy);
  const double alone = plain_copy(1, kChunk, kChunk);
  for (size_t width : {256, 512, 1024, 2048, 4096}) {
    const double rate = plain_copy(1, width, width * 4);
    printf("  rows of %4zu of %5zu bytes to one GPU: %5.1f GB/s, a row costs what %4.0f bytes of a plain copy cost\n", width, width * 4, rate,
           (double)width * alone / rate);
  }
  const double bound = std::min(warm, copy);
  int wrong = 0;
  const double fill = memset_rate();
  // Cut experts and whole ones add in another order: each is held against its own dummy weights.
  for (int experts = 0; experts < (tp > 1 ? 2 : 1); experts++) {
    int32_t id = -1;
    float logprob = 0;
    for (int i = 0; i < 3; i++) {
      Times t = {};
      load(dir, false, experts, tp, &t);
      printf("load %.1f GB/s, %.0f %% of the slower of both (TP %d%s: %.1f GB in %.2f s; %.2f s from the first to the last chunk: %.1f GB/s)\n",
             t.gb / t.whole, 100 * t.gb / t.whole / bound, tp, experts ? ", whole experts" : "", t.gb, t.whole, t.reading, t.gb / t.reading);
      wrong += hold(t, &id, &logprob);
    }
    for (int i = 0; i < 2; i++) {
      Times t = {};
      load(dir, true, experts, tp, &t);
      printf("dummy %.1f GB/s (TP %d%s: %.1f GB in %.3f s; a memset of as much takes %.3f s)\n", t.gb / t.whole, tp,
             experts ? ", whole experts" : "", t.gb, t.whole, t.gb / tp / fill);
      wrong += hold(t, &id, &logprob);
    }
  }
  for (const File &f : files) close(f.fd);
  return wrong != 0;
}
