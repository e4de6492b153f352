#include "grid.h"

#include <atomic>
#include <condition_variable>
#include <deque>
#include <dlfcn.h>
#include <elf.h>
#include <fcntl.h>
#include <map>
#include <mutex>
#include <sched.h>
#include <string>
#include <sys/mman.h>
#include <sys/stat.h>
#include <thread>
#include <unistd.h>

#include "block.h"

namespace emu {

// Blocks, or clusters of them, are dealt out in order. Few OS threads begin (one a CPU); while all threads of a block look for what another block must do,
// others are asked to come, up to the launch's places, so that blocks that wait for one another are all there.
struct Launch {
  std::shared_ptr<const LaunchSpec> spec;
  const char *name;
  unsigned total; // clusters
  int places;     // for them
  std::atomic<unsigned> next{0}, done{0};
  std::atomic<int> workers{1};
  std::mutex lock;
  std::condition_variable ended;
};

namespace {

struct Pool {
  std::mutex lock;
  std::condition_variable wake;
  std::deque<std::shared_ptr<Launch>> wanted;
  int idle = 0;
};
Pool *const pool = new Pool(); // for ever: its threads are not joined

thread_local std::shared_ptr<Launch> *running; // of this OS thread

void stuck(Launch *launch);

void work(const std::shared_ptr<Launch> &launch) {
  Launch *l = launch.get();
  const LaunchSpec &spec = *l->spec;
  running = const_cast<std::shared_ptr<Launch> *>(&launch);
  for (;;) {
    const unsigned i = l->next.fetch_add(1);
    if (i >= l->total) break;
    blockDim = spec.block;
    gridDim = spec.grid;
    run_cluster(spec.kernel, i * (unsigned)spec.cluster, spec.cluster, spec.shared, l->name, stuck, l);
    if (l->done.fetch_add(1) + 1 == l->total) {
      std::lock_guard<std::mutex> hold(l->lock);
      l->ended.notify_all();
    }
  }
  running = nullptr;
}

void pool_main() {
  for (;;) {
    std::shared_ptr<Launch> launch;
    {
      std::unique_lock<std::mutex> hold(pool->lock);
      pool->idle++;
      pool->wake.wait(hold, [] { return !pool->wanted.empty(); });
      pool->idle--;
      launch = pool->wanted.front();
      pool->wanted.pop_front();
    }
    work(launch);
  }
}

void call_worker(const std::shared_ptr<Launch> &launch) {
  std::lock_guard<std::mutex> hold(pool->lock);
  pool->wanted.push_back(launch);
  if ((size_t)pool->idle >= pool->wanted.size()) pool->wake.notify_one();
  else std::thread(pool_main).detach();
}

void stuck(Launch *l) {
  int workers = l->workers;
  if (workers < l->places && l->next < l->total && l->workers.compare_exchange_strong(workers, workers + 1)) call_worker(*running);
  sched_yield();
}

int cpus() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// Symbols of the object that holds the kernels: theirs are local, so that dladdr() does not know them.
std::map<uintptr_t, std::string> read_symbols(const void *address) {
  std::map<uintptr_t, std::string> out;
  Dl_info info;
  if (!dladdr(address, &info)) return out;
  const int fd = open(info.dli_fname, O_RDONLY);
  struct stat st;
  if (fd < 0) return out;
  if (fstat(fd, &st) == 0) {
    const uint8_t *file = (const uint8_t *)mmap(nullptr, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (file != MAP_FAILED) {
      const Elf64_Ehdr *head = (const Elf64_Ehdr *)file;
      const Elf64_Shdr *sections = (const Elf64_Shdr *)(file + head->e_shoff);
      const bool fixed = head->e_type == ET_EXEC;
      for (int i = 0; i < head->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbols = (const Elf64_Sym *)(file + sections[i].sh_offset);
        const char *names = (const char *)file + sections[sections[i].sh_link].sh_offset;
        for (size_t s = 0; s < sections[i].sh_size / sizeof *symbols; s++)
          if (ELF64_ST_TYPE(symbols[s].st_info) == STT_FUNC && symbols[s].st_value)
            out[(fixed ? 0 : (uintptr_t)info.dli_fbase) + symbols[s].st_value] = names + symbols[s].st_name;
      }
      munmap((void *)file, (size_t)st.st_size);
    }
  }
  close(fd);
  return out;
}

} // namespace

const char *kernel_name(const void *address) {
  static std::mutex lock;
  static std::map<uintptr_t, std::string> *symbols;
  std::lock_guard<std::mutex> hold(lock);
  if (!symbols) symbols = new std::map<uintptr_t, std::string>(read_symbols(address));
  const auto at = symbols->find((uintptr_t)address);
  return at == symbols->end() ? "?" : at->second.c_str();
}

void run_grid(const std::shared_ptr<const LaunchSpec> &spec) {
  static const int begin = cpus();
  const std::shared_ptr<Launch> launch = std::make_shared<Launch>();
  launch->spec = spec;
  launch->name = kernel_name(spec->address);
  launch->total = spec->grid.x * spec->grid.y * spec->grid.z / (unsigned)spec->cluster;
  launch->places = spec->places / spec->cluster > 1 ? spec->places / spec->cluster : 1;
  int workers = begin < launch->places ? begin : launch->places;
  if ((unsigned)workers > launch->total) workers = (int)launch->total;
  launch->workers = workers;
  for (int i = 1; i < workers; i++) call_worker(launch);
  work(launch);
  std::unique_lock<std::mutex> hold(launch->lock);
  launch->ended.wait(hold, [&] { return launch->done == launch->total; });
}

} // namespace emu
