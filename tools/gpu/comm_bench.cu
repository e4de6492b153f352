// Times the sum over ranks as a step has it: a chain of them in one graph a GPU, beside NCCL's all-reduce of the same bytes.
//   comm_bench [GPUs [hidden]]   1 to as many as there are; default: all, up to 8; 7168
// Columns: rows, KB of a rank's part, us a node of the chain:
//   sum + norm + records   one kernel (norm_ranks.cu)
//   sum, then norm         two kernels
//   sum                    alone
//   norm                   alone, no other GPU (norm.cu): what the fusion hides
//   owners                 the first, rows having owners (norm_shard.cu)
//   owners, 4 KB           the same with records for the owner alone, then 4,224 bytes a row from each owner to all
//   NCCL                   ncclAllReduce of bf16, if libnccl.so.2 is found (VLLM_NCCL_SO_PATH names another)
// MOB_CUDA_ONE_TRIP=0 sends all by owner, a big number none: where the two ways cross.
#include <algorithm>
#include <cmath>
#include <dlfcn.h>
#include <functional>
#include <thread>

#include "engine/cuda/norm_shard.h"
#include "tools/gpu/mesh.cuh"

namespace {

constexpr int kChain = 100, kRepeats = 50, kMaxRows = 8192;
constexpr size_t kShared = 4224; // bytes a row: q_a's and kv_a's outputs

struct Arrays { // of one GPU
  float *x, *w;
  mob::bf16 *part;
  uint8_t *records, *shared;
};

struct Nccl {
  using Comm = void *;
  int (*init_all)(Comm *, int, const int *) = nullptr;
  int (*all_reduce)(const void *, void *, size_t, int, int, Comm, cudaStream_t) = nullptr;
  std::vector<Comm> comms;
};

bool open_nccl(Nccl *n, int gpus) {
  const char *wish = getenv("VLLM_NCCL_SO_PATH");
  setenv("NCCL_NVLS_ENABLE", "0", 1); // NVLink multicast stays off
  void *lib = dlopen(wish ? wish : "libnccl.so.2", RTLD_NOW);
  if (!lib) return false;
  n->init_all = (decltype(n->init_all))dlsym(lib, "ncclCommInitAll");
  n->all_reduce = (decltype(n->all_reduce))dlsym(lib, "ncclAllReduce");
  n->comms.resize((size_t)gpus);
  return n->init_all && n->all_reduce && n->init_all(n->comms.data(), gpus, nullptr) == 0;
}

using Node = std::function<void(int rank, int i)>; // queues node i of the chain

// Every GPU's graph of the chain, launched by a thread of its own; us a node, the median.
double time_chain(mesh::Mesh *m, int rows, const Node &node) {
  const int chain = rows > 1024 ? kChain / 5 : kChain, repeats = rows > 256 ? kRepeats / 5 : kRepeats;
  const size_t n = m->ranks.size();
  std::vector<cudaGraphExec_t> graphs(n);
  std::vector<std::vector<float>> times(n);
  auto each = [&](const std::function<void(size_t)> &work) {
    std::vector<std::thread> threads;
    for (size_t r = 0; r < n; r++)
      threads.emplace_back([&, r] {
        MESH_OK(cudaSetDevice((int)r));
        work(r);
      });
    for (std::thread &t : threads) t.join();
  };
  each([&](size_t r) {
    cudaStream_t stream = m->ranks[r].stream;
    cudaGraph_t graph;
    node((int)r, 0); // libraries set up what they need before they are captured
    node((int)r, 1);
    MESH_OK(cudaStreamSynchronize(stream));
    MESH_OK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < chain; i++) node((int)r, i);
    MESH_OK(cudaStreamEndCapture(stream, &graph));
    MESH_OK(cudaGraphInstantiate(&graphs[r], graph, 0));
    MESH_OK(cudaGraphDestroy(graph));
  });
  each([&](size_t r) {
    cudaStream_t stream = m->ranks[r].stream;
    cudaEvent_t begin, end;
    MESH_OK(cudaEventCreate(&begin));
    MESH_OK(cudaEventCreate(&end));
    for (int k = 0; k < repeats; k++) {
      float ms;
      MESH_OK(cudaEventRecord(begin, stream));
      MESH_OK(cudaGraphLaunch(graphs[r], stream));
      MESH_OK(cudaEventRecord(end, stream));
      MESH_OK(cudaEventSynchronize(end));
      MESH_OK(cudaEventElapsedTime(&ms, begin, end));
      times[r].push_back(ms * 1000 / (float)chain);
    }
    MESH_OK(cudaEventDestroy(begin));
    MESH_OK(cudaEventDestroy(end));
    MESH_OK(cudaGraphExecDestroy(graphs[r]));
  });
  std::sort(times[0].begin(), times[0].end());
  return times[0][times[0].size() / 2];
}

} // namespace

namespace mob {
void (*launch_hook)(const void *kernel, cudaStream_t stream, bool before);
thread_local const char *launch_label;
} // namespace mob

static void column(int width, double us) {
  if (std::isnan(us)) printf(" %*s", width, "-"); // not a way for so many rows
  else printf(" %*.2f", width, us);
}

// What the chains' nodes work on, on all GPUs.
struct Bench {
  mesh::Mesh m;
  std::vector<Arrays> arrays;
  int gpus, hidden, width; // width: columns of records

  Bench(int gpus_, int hidden_) : arrays((size_t)gpus_), gpus(gpus_), hidden(hidden_), width((hidden_ + 255) / 256 * 256) {
    mesh::open(&m, gpus, hidden, kMaxRows, 5000);
    for (int r = 0; r < gpus; r++) {
      Arrays &a = arrays[(size_t)r];
      MESH_OK(cudaSetDevice(r));
      MESH_OK(cudaMalloc(&a.x, (size_t)kMaxRows * hidden * 4));
      MESH_OK(cudaMalloc(&a.w, (size_t)hidden * 4));
      MESH_OK(cudaMalloc(&a.part, (size_t)kMaxRows * hidden * 2));
      MESH_OK(cudaMalloc(&a.records, (size_t)kMaxRows * width * 2));
      MESH_OK(cudaMalloc(&a.shared, kMaxRows * kShared));
      MESH_OK(cudaMemset(a.x, 0, (size_t)kMaxRows * hidden * 4));
      MESH_OK(cudaMemset(a.w, 0, (size_t)hidden * 4));
      MESH_OK(cudaMemset(a.part, 0, (size_t)kMaxRows * hidden * 2));
      MESH_OK(cudaDeviceSynchronize());
    }
  }
  const mesh::Rank &rank(int r) const { return m.ranks[(size_t)r]; }
  mob::NormIn input(int r, bool norm, bool add) const {
    mob::NormIn in = {};
    in.x = arrays[(size_t)r].x;
    in.add = add ? arrays[(size_t)r].part : nullptr;
    in.w = norm ? arrays[(size_t)r].w : nullptr;
    in.eps = 1e-6f;
    in.hidden = hidden;
    return in;
  }
  mob::NormOut output(int r, int rows) const {
    mob::NormOut out = {};
    out.a = {arrays[(size_t)r].records, (rows + 7) / 8 * 8, 1};
    out.a_k = width;
    return out;
  }

  // ---- a node on rank r
  void sum(int r, int rows, int turn, bool norm) const {
    mob::norm_rows_ranks(input(r, norm, true), norm ? output(r, rows) : mob::NormOut(), rank(r).peers, &turn, rows, rank(r).sms, rank(r).stream);
  }
  void norm(int r, int rows) const { mob::norm_rows(input(r, true, false), output(r, rows), rows, rank(r).stream); }
  void by_owner(int r, int rows, bool own) const { // own: records stay with the rows' owners
    mob::NormShard s = {};
    s.in = input(r, true, true);
    s.out = output(r, rows);
    s.a_own = own;
    s.meet = !own;
    s.total = rows;
    for (int i = 0; i < gpus; i++) s.a[i] = arrays[(size_t)((r + i) % gpus)].records;
    mob::norm_shard(s, rank(r).peers, rank(r).sms, rank(r).stream);
  }
  void share(int r, int rows) const {
    mob::ShareShards s = {};
    const size_t at = (size_t)mob::shard_first(rows, gpus, r) * kShared;
    s.count = 1;
    s.from[0] = arrays[(size_t)r].shared + at;
    for (int i = 1; i < gpus; i++) s.to[0][i - 1] = arrays[(size_t)((r + i) % gpus)].shared + at;
    s.bytes[0] = (size_t)mob::shard_rows(rows, gpus, r) * kShared;
    s.most = (size_t)mob::shard_each(rows, gpus) * kShared;
    mob::share_shards(s, rank(r).peers, rank(r).sms, rank(r).stream);
  }
};

// A row of the table.
static void measure(Bench &b, const Nccl *nccl, int rows) {
  printf("%6d %8.0f", rows, rows * b.hidden * 2 / 1024.0);
  const bool few = rows <= mob::kReduceRows; // more rows have owners in every step
  column(22, !few ? NAN : time_chain(&b.m, rows, [&](int r, int i) { b.sum(r, rows, i, true); }));
  column(16, !few ? NAN : time_chain(&b.m, rows, [&](int r, int i) {
    b.sum(r, rows, i, false);
    b.norm(r, rows);
  }));
  column(8, !few ? NAN : time_chain(&b.m, rows, [&](int r, int i) { b.sum(r, rows, i, false); }));
  column(8, time_chain(&b.m, rows, [&](int r, int) { b.norm(r, rows); }));
  column(8, time_chain(&b.m, rows, [&](int r, int) { b.by_owner(r, rows, false); }));
  column(14, time_chain(&b.m, rows, [&](int r, int) {
    b.by_owner(r, rows, true);
    b.share(r, rows);
  }));
  if (nccl)
    column(8, time_chain(&b.m, rows, [&](int r, int) {
      mob::bf16 *part = b.arrays[(size_t)r].part;
      nccl->all_reduce(part, part, (size_t)rows * b.hidden, 9 /* ncclBfloat16 */, 0 /* ncclSum */, nccl->comms[(size_t)r], b.rank(r).stream);
    }));
  printf("\n");
  fflush(stdout);
}

int main(int argc, char **argv) {
  int gpus = 0;
  MESH_OK(cudaGetDeviceCount(&gpus));
  if (argc > 1) gpus = std::min(gpus, atoi(argv[1]));
  gpus = std::min(gpus, mob::kMaxRanks);
  const int hidden = argc > 2 ? atoi(argv[2]) : 7168;
  if (gpus < 1 || hidden < 8 || hidden > 32768 || hidden % 8) {
    fprintf(stderr, "usage: comm_bench [GPUs [hidden, a multiple of 8 up to 32768]]\n");
    return 2;
  }
  Bench b(gpus, hidden);
  Nccl nccl;
  const bool has_nccl = open_nccl(&nccl, gpus);
  printf("%d GPUs, hidden %d, us a node of a chain of %d, median of %d%s\n", gpus, hidden, kChain, kRepeats,
         has_nccl ? "" : "; no libnccl.so.2");
  printf("%6s %8s %22s %16s %8s %8s %8s %14s %8s\n", "rows", "KB", "sum + norm + records", "sum, then norm", "sum", "norm", "owners", "owners, 4 KB", "NCCL");
  for (int rows : {1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 2048, 8192}) {
    measure(b, has_nccl ? &nccl : nullptr, rows);
    if (b.m.words[0]) {
      fprintf(stderr, "comm_bench: a wait ran out\n");
      return 1;
    }
  }
  return 0;
}
