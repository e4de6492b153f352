// Fibers, and everything on which they wait.
#include "block.h"

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <sched.h>
#include <sys/mman.h>
#include <vector>

#ifdef EMU_ASAN // by CMake: this file itself is not instrumented
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
constexpr size_t kStackBytes = 512 << 10;
#else
constexpr size_t kStackBytes = 192 << 10;
#endif

// Leaves a stack at *save and goes on where `to` was left, by the rules of x86-64's calls but for the control words of floating point:
// these are everybody's, and saving them, as libraries do, takes most of a switch.
extern "C" __attribute__((visibility("hidden"))) void emu_swap_stacks(void **save, void *to);
__asm__(".text\n.p2align 4\n.hidden emu_swap_stacks\n.globl emu_swap_stacks\n.type emu_swap_stacks, @function\nemu_swap_stacks:\n\t"
        "pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\tmovq %rsp, (%rdi)\n\tmovq %rsi, %rsp\n\t"
        "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\tret\n"
        ".size emu_swap_stacks, . - emu_swap_stacks");

EMU_LOCAL uint3 threadIdx, blockIdx;
EMU_LOCAL dim3 blockDim, gridDim;

namespace emu {

EMU_LOCAL const Place *here;

void broken(const char *format, ...) {
  va_list args;
  va_start(args, format);
  fputs("emulated GPU: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  abort();
}

namespace {

struct Stack {
  uint8_t *low;
  uint8_t *top; // not at the same offset in every stack: the caches would hold few of them
};

struct Block;

struct Thread : Place {
  Block *block;
  uint3 at;          // threadIdx
  Thread *next;      // of the list that it stands in
  void *context;     // its stack pointer while it does not run
  Stack *stack;      // null: not started
  const char *waits; // null: it does not
  bool over;
  uint32_t committed; // groups of wgmma
  std::vector<WgmmaOp> ops;
#ifdef EMU_ASAN
  void *fake;
#endif
};

struct List { // first in, first out
  Thread *first = nullptr, *last = nullptr;
  void add(Thread *t) {
    t->next = nullptr;
    if (first) last->next = t;
    else first = t;
    last = t;
  }
  Thread *take() {
    Thread *t = first;
    if (t) first = t->next;
    return t;
  }
  void take_all(List *from) {
    if (!from->first) return;
    if (first) last->next = from->first;
    else first = from->first;
    last = from->last;
    from->first = nullptr;
  }
};

template <int Lanes> struct Meeting {
  uint32_t mask = 0;  // of a warp's
  int there = 0;      // who have come
  uint32_t lanes = 0; // of a warp's
  const char *what = nullptr;
  Work work = nullptr;
  void *args[Lanes];
  List waiting;
};

struct Warp {
  uint32_t alive;
  Meeting<32> meetings[4]; // of different masks
};

struct Barrier {
  int there = 0, count = 0, yes = 0, result = 0;
  List waiting;
};

struct Watch { // threads that wait for an mbarrier
  uint64_t *bar;
  List waiting;
};

struct Copy {
  void *dst;
  const void *src;
  uint32_t bytes;
  Block *to; // whose shared memory it is
  uint64_t *bar;
};

struct Mbarrier { // as it lies in the kernel's 64 bits
  int64_t bytes : 27;
  uint64_t init : 4; // kInit
  uint64_t phase : 1;
  uint64_t pending : 16;
  uint64_t count : 16;
};
static_assert(sizeof(Mbarrier) == 8, "an mbarrier is 64 bits");
constexpr unsigned kInit = 0xb;

struct Block {
  uint3 at; // blockIdx
  int rank; // in its cluster
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Meeting<128>> groups;
  Barrier barriers[16];
  std::vector<Watch> watches;
  unsigned alive;
  size_t shared;
  // Kept from block to block.
  void *mapping = nullptr;
  uint8_t *window = nullptr; // in it
};

// The blocks that this OS thread runs, one at most times.
struct Cluster {
  const char *name;
  const std::function<void()> *kernel;
  int size;
  Block *blocks[kMaxCluster] = {}; // kept, too
  std::vector<Copy> copies;
  List ready, spinning;
  Barrier meeting; // of all threads
  unsigned alive;
  void (*stuck)(Launch *);
  Launch *launch;
  std::vector<Stack *> stacks;
  void *outside;            // stack pointer of the OS thread while fibers run
#ifdef EMU_ASAN
  const void *outside_low;
  size_t outside_bytes;
  void *outside_fake;
  Thread *left; // by the last switch
#endif
};

// Where dynamic shared memory begins in its window: aligned as its declarations may ask, no better.
constexpr size_t kWindow = 512 << 10, kDynamic = 1024 + 128;

EMU_LOCAL Cluster *cluster;
EMU_LOCAL Block *block; // of the running thread

// Stacks that no OS thread holds: there are no more than were in use at one time. (Two mappings each, of 65,530 that a process may
// have: a cache of 1,024 in every thread of many streams would be too much.)
struct Spare {
  std::mutex lock;
  std::vector<Stack *> stacks;
};
Spare *const spare = new Spare(); // for ever
constexpr size_t kKept = 32;      // by an OS thread, between blocks

void give_stacks(size_t keep) {
  if (cluster->stacks.size() <= keep) return;
  std::lock_guard<std::mutex> hold(spare->lock);
  spare->stacks.insert(spare->stacks.end(), cluster->stacks.begin() + (long)keep, cluster->stacks.end());
  cluster->stacks.resize(keep);
}

// Goes with its OS thread: streams come and go, and every one of them has run blocks.
struct BlockOwner {
  bool set = false;
  ~BlockOwner() {
    if (!cluster) return;
    give_stacks(0);
    for (Block *b : cluster->blocks) {
      if (!b) continue;
#ifdef EMU_ASAN
      __asan_unpoison_memory_region(b->mapping, 2 * kWindow);
#endif
      munmap(b->mapping, 2 * kWindow);
      delete b;
    }
    delete cluster;
    cluster = nullptr;
    block = nullptr;
  }
};
thread_local BlockOwner owner;

inline Thread *self() { return (Thread *)const_cast<Place *>(here); }
inline void become(Thread *t) {
  here = t;
  threadIdx = t->at;
  if (t->block == block) return;
  block = t->block;
  blockIdx = block->at;
}

[[noreturn]] void dead() {
  fprintf(stderr, "emulated GPU: %s, block (%u, %u, %u): every thread waits and none can go on\n", cluster->name, blockIdx.x, blockIdx.y, blockIdx.z);
  for (int rank = 0; rank < cluster->size; rank++) {
    if (cluster->size > 1) fprintf(stderr, " block %d of the cluster\n", rank);
    const char *last = nullptr;
    for (const Thread &t : cluster->blocks[rank]->threads) {
      if ((unsigned)t.index >= blockDim.x * blockDim.y * blockDim.z) break;
      const char *waits = t.over ? "has ended" : t.waits ? t.waits : "runs";
      if (last && strcmp(last, waits) == 0) continue;
      fprintf(stderr, "  from thread %d: %s\n", t.index, waits);
      last = waits;
    }
  }
  abort();
}

Stack *take_stack() {
  if (!cluster->stacks.empty()) {
    Stack *s = cluster->stacks.back();
    cluster->stacks.pop_back();
    return s;
  }
  {
    std::lock_guard<std::mutex> hold(spare->lock);
    if (!spare->stacks.empty()) {
      Stack *s = spare->stacks.back();
      spare->stacks.pop_back();
      return s;
    }
  }
  void *p = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) broken("no memory for a thread's stack");
  mprotect(p, 4096, PROT_NONE);
#ifdef EMU_ASAN
  __asan_unpoison_memory_region(p, kStackBytes); // of who had these addresses before; kernels leave their frames clean
#endif
  // A thread that waits has its last few lines in the caches; 67 is odd, so that 1,024 stacks meet in no set more often than they must.
  static std::atomic<size_t> made{0};
  return new Stack{(uint8_t *)p, (uint8_t *)p + kStackBytes - made++ * 67 % 1024 * 64};
}

// ASan is told before and after each switch; `ends`: the stack left is not returned to.
void jump(void *to, Thread *from, bool ends, const void *low, size_t bytes) {
  void **save = from ? &from->context : &cluster->outside;
#ifdef EMU_ASAN
  __sanitizer_start_switch_fiber(ends ? nullptr : from ? &from->fake : &cluster->outside_fake, low, bytes);
  cluster->left = from;
  emu_swap_stacks(save, to);
  __sanitizer_finish_switch_fiber(from ? from->fake : cluster->outside_fake, nullptr, nullptr);
#else
  (void)ends, (void)low, (void)bytes;
  emu_swap_stacks(save, to);
#endif
}

[[noreturn]] void fiber_main();

void run_copies() {
  for (size_t i = 0; i < cluster->copies.size(); i++) {
    const Copy c = cluster->copies[i];
    memcpy(c.dst, c.src, c.bytes);
    Mbarrier *m = (Mbarrier *)c.bar;
    m->bytes -= (int64_t)c.bytes;
    if (m->bytes == 0 && m->pending == 0) {
      m->phase ^= 1;
      m->pending = m->count;
      for (Watch &w : c.to->watches)
        if (w.bar == c.bar) cluster->ready.take_all(&w.waiting);
    }
  }
  cluster->copies.clear();
}

// The thread that runs next; null when all have ended.
Thread *next_thread() {
  for (;;) {
    Thread *t = cluster->ready.take();
    if (t) return t;
    if (cluster->alive == 0) return nullptr;
    if (!cluster->copies.empty()) {
      run_copies();
    } else if (cluster->spinning.first) {
      cluster->ready.take_all(&cluster->spinning);
      cluster->stuck(cluster->launch);
    } else {
      dead();
    }
  }
}

void start(Thread *t) {
  t->stack = take_stack();
  // What emu_swap_stacks() takes from it: six registers, where to go on; above that, who called: nobody.
  void **words = (void **)t->stack->top - 8;
  for (int i = 0; i < 8; i++) words[i] = nullptr;
  words[6] = (void *)fiber_main;
  t->context = words;
}

void switch_to(Thread *to, Thread *from, bool ends) {
  if (!to) {
    here = nullptr;
#ifdef EMU_ASAN
    jump(cluster->outside, from, ends, cluster->outside_low, cluster->outside_bytes);
#else
    jump(cluster->outside, from, ends, nullptr, 0);
#endif
    return;
  }
  if (!to->stack) start(to);
  become(to);
  jump(to->context, from, ends, to->stack->low, (size_t)(to->stack->top - to->stack->low));
}

// The running thread stands in some list and waits.
void wait_here(const char *what) {
  Thread *me = self();
  me->waits = what;
  Thread *to = next_thread();
  if (to != me) switch_to(to, me, false);
  me->waits = nullptr;
}

template <int Lanes> void finish(Meeting<Lanes> *m) {
  if (m->work) m->work(m->args);
  cluster->ready.take_all(&m->waiting);
  m->there = 0;
  m->lanes = 0;
  m->what = nullptr;
}

void check_what(const char *there, const char *what) {
  if (there && there != what && strcmp(there, what) != 0)
    broken("%s, thread %d: comes to %s while threads it must meet are in %s", cluster->name, here->index, what, there);
}

// What waits for threads that still run does not wait for this one any longer.
void end_thread(Thread *t) {
  t->over = true;
  block->alive--;
  cluster->alive--;
  if (!t->ops.empty()) broken("%s, thread %d ends before its wgmma is done", cluster->name, t->index);
  Warp &warp = block->warps[(size_t)t->warp];
  warp.alive &= ~(1u << t->lane);
  for (Meeting<32> &m : warp.meetings)
    if (m.there && m.lanes == (m.mask & warp.alive)) finish(&m);
  Barrier &b = block->barriers[0];
  if (b.there && b.there == (int)block->alive) {
    b.result = b.yes;
    b.there = b.yes = 0;
    cluster->ready.take_all(&b.waiting);
  }
  Barrier &all = cluster->meeting;
  if (all.there && all.there == (int)cluster->alive) {
    all.there = 0;
    cluster->ready.take_all(&all.waiting);
  }
}

void fiber_main() {
#ifdef EMU_ASAN
  const void *low;
  size_t bytes;
  __sanitizer_finish_switch_fiber(nullptr, &low, &bytes);
  if (!cluster->left) cluster->outside_low = low, cluster->outside_bytes = bytes;
#endif
  for (;;) {
    Thread *me = self();
    (*cluster->kernel)();
    end_thread(me);
    Thread *next = next_thread();
    if (next && !next->stack) { // it begins where this one ended
      next->stack = me->stack;
      become(next);
      continue;
    }
    cluster->stacks.push_back(me->stack);
    switch_to(next, me, true); // for ever
  }
}

Block *new_block() {
  Block *b = new Block();
  b->threads.resize(kMaxThreads);
  void *p = mmap(nullptr, 2 * kWindow, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) broken("no memory for a block's shared memory");
  b->mapping = p;
  b->window = (uint8_t *)(((uintptr_t)p + kWindow - 1) & ~(uintptr_t)(kWindow - 1));
  return b;
}

void open_block(int rank, uint3 at, unsigned count, size_t shared) {
  const bool fresh = !cluster->blocks[rank];
  if (fresh) cluster->blocks[rank] = new_block();
  Block &b = *cluster->blocks[rank];
  b.at = at;
  b.rank = rank;
  b.alive = count;
  b.warps.assign((count + 31) / 32, Warp());
  b.groups.assign((count + 127) / 128, Meeting<128>());
  for (Barrier &barrier : b.barriers) barrier = Barrier();
  b.watches.clear();
  for (unsigned i = 0; i < count; i++) {
    Thread &t = b.threads[i];
    t.block = &b;
    t.at = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    t.index = (int)i;
    t.lane = (int)i % 32;
    t.warp = (int)i / 32;
    t.stack = nullptr;
    t.waits = nullptr;
    t.over = false;
    t.committed = 0;
    t.ops.clear();
    Warp &warp = b.warps[i / 32];
    warp.alive |= 1u << i % 32;
    cluster->ready.add(&t);
  }
#ifdef EMU_ASAN
  if (fresh) {
    __asan_poison_memory_region(b.window + kDynamic + shared, kWindow - kDynamic - shared);
  } else if (b.shared != shared) {
    const size_t less = (b.shared < shared ? b.shared : shared) & ~(size_t)7, more = b.shared < shared ? shared : b.shared;
    __asan_unpoison_memory_region(b.window + kDynamic + less, more - less);
    __asan_poison_memory_region(b.window + kDynamic + shared, more - shared);
  }
#endif
  b.shared = shared;
  memset(b.window + kDynamic, 0xff, shared); // NaNs
}

} // namespace

void run_cluster(const std::function<void()> &kernel, unsigned first, int size, size_t shared, const char *name, void (*stuck)(Launch *),
                 Launch *launch) {
  if (!cluster) {
    cluster = new Cluster();
    owner.set = true;
  }
  cluster->name = name;
  cluster->kernel = &kernel;
  cluster->size = size;
  cluster->copies.clear();
  cluster->ready = List();
  cluster->spinning = List();
  cluster->meeting = Barrier();
  cluster->stuck = stuck;
  cluster->launch = launch;
  const unsigned count = blockDim.x * blockDim.y * blockDim.z;
  cluster->alive = count * (unsigned)size;
  for (int rank = 0; rank < size; rank++) {
    const unsigned i = first + (unsigned)rank;
    open_block(rank, {i % gridDim.x, i / gridDim.x % gridDim.y, i / gridDim.x / gridDim.y}, count, shared);
  }
  block = nullptr;
  switch_to(next_thread(), nullptr, false);
  if (!cluster->copies.empty()) broken("%s ends with %zu bulk copies on their way", name, cluster->copies.size());
  give_stacks(kKept);
}

// ------------------------------------------------------------------------------------------ meetings

void meet_warp(uint32_t mask, const char *what, void *args, Work work) {
  Thread *me = self();
  Warp &warp = block->warps[(size_t)me->warp];
  if (!(mask >> me->lane & 1)) broken("%s, thread %d: %s with a mask without its own lane", cluster->name, me->index, what);
  Meeting<32> *m = nullptr;
  for (Meeting<32> &candidate : warp.meetings) {
    if (candidate.there && candidate.mask == mask) m = &candidate;
    else if (!m && !candidate.there) m = &candidate;
    if (m && m->there) break;
  }
  if (!m) broken("%s, thread %d: lanes of one warp wait with more than 4 masks", cluster->name, me->index);
  check_what(m->what, what);
  if (!m->there) {
    m->mask = mask;
    memset(m->args, 0, sizeof m->args);
  }
  m->what = what;
  m->work = work;
  m->there++;
  m->lanes |= 1u << me->lane;
  m->args[me->lane] = args;
  if (m->lanes == (mask & warp.alive)) {
    finish(m);
    return;
  }
  m->waiting.add(me);
  wait_here(what);
}

void meet_warpgroup(const char *what, void *args, Work work) {
  Thread *me = self();
  Meeting<128> *m = &block->groups[(size_t)me->warp / 4];
  check_what(m->what, what);
  m->what = what;
  m->work = work;
  m->args[me->index % 128] = args;
  if (++m->there == 128) {
    finish(m);
    return;
  }
  m->waiting.add(me);
  wait_here(what);
}

static int barrier(int id, int count, bool yes, const char *what) {
  Barrier &b = block->barriers[id];
  if (b.there && b.count != count) broken("%s, thread %d: barrier %d for %d threads, others wait in it for %d", cluster->name, here->index, id, count, b.count);
  b.count = count;
  b.yes += yes;
  if (++b.there == (count ? count : (int)block->alive)) {
    b.result = b.yes;
    b.there = b.yes = 0;
    cluster->ready.take_all(&b.waiting);
    return b.result;
  }
  b.waiting.add(self());
  wait_here(what);
  return b.result;
}

void block_barrier() { barrier(0, 0, false, "__syncthreads"); }
int block_vote(bool yes) { return barrier(0, 0, yes, "__syncthreads"); }

void named_barrier(int id, int count) {
  static const char *const names[16] = {"barrier 0", "barrier 1", "barrier 2", "barrier 3", "barrier 4", "barrier 5", "barrier 6", "barrier 7",
                                        "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
  if (id < 0 || id > 15 || count % 32 != 0) broken("%s: barrier %d for %d threads", cluster->name, id, count);
  barrier(id, count, false, names[id]);
}

void spin() {
  cluster->spinning.add(self());
  wait_here("memory that another block writes");
}

// ------------------------------------------------------------------------------------------ mbarriers

// The block in whose dynamic shared memory this is, or, where there are no clusters, in whose shared memory.
static Block *block_of(const void *p) {
  if (cluster->size == 1) return block;
  for (int rank = 0; rank < cluster->size; rank++) {
    Block *b = cluster->blocks[rank];
    if ((const uint8_t *)p < b->window || (const uint8_t *)p >= b->window + kWindow) continue;
    if (b->alive == 0) broken("%s, thread %d: reaches for shared memory of a block that has ended", cluster->name, here->index);
    return b;
  }
  broken("%s, thread %d: %p is not in dynamic shared memory, and the emulation's clusters have no other", cluster->name, here->index, p);
}

static Mbarrier *mbarrier(uint64_t *bar) {
  Mbarrier *m = (Mbarrier *)bar;
  if (m->init != kInit) broken("%s, thread %d: an mbarrier that is not initialised", cluster->name, here->index);
  return m;
}

static Watch *watch_of(uint64_t *bar) {
  for (Watch &w : block_of(bar)->watches)
    if (w.bar == bar) return &w;
  return nullptr;
}

static void complete(uint64_t *bar, Mbarrier *m) {
  if (m->pending != 0 || m->bytes != 0) return;
  m->phase ^= 1;
  m->pending = m->count;
  Watch *w = watch_of(bar);
  if (w) cluster->ready.take_all(&w->waiting);
}

void mbarrier_init(uint64_t *bar, uint32_t arrivals) {
  if ((uintptr_t)bar % 8 != 0 || arrivals < 1) broken("%s: an mbarrier at %p for %u arrivals", cluster->name, (void *)bar, arrivals);
  Mbarrier m = {};
  m.init = kInit;
  m.pending = m.count = arrivals;
  memcpy(bar, &m, 8);
  if (!watch_of(bar)) {
    block_of(bar)->watches.push_back({bar, List()});
  }
}

void mbarrier_arrive(uint64_t *bar, uint32_t expect_bytes) {
  Mbarrier *m = mbarrier(bar);
  if (m->pending == 0) broken("%s, thread %d: an mbarrier has more arrivals than its %u", cluster->name, here->index, (unsigned)m->count);
  m->bytes += expect_bytes;
  m->pending--;
  complete(bar, m);
}

void mbarrier_wait(uint64_t *bar, uint32_t parity) {
  Mbarrier *m = mbarrier(bar);
  while (m->phase == (parity & 1)) {
    Watch *w = watch_of(bar);
    if (!w) broken("%s, thread %d: an mbarrier that is not initialised", cluster->name, here->index);
    w->waiting.add(self());
    wait_here("an mbarrier");
  }
}

static void queue_copy(void *dst, const void *src, uint32_t bytes, uint64_t *bar) {
  mbarrier(bar);
  Block *const to = block_of(bar);
  const uint8_t *from = to->window + kDynamic, *at = (uint8_t *)dst;
  if (at < from || at + bytes > from + to->shared)
    broken("%s, thread %d: a bulk copy of %u bytes outside of dynamic shared memory", cluster->name, here->index, bytes);
  if ((uintptr_t)dst % 16 || (uintptr_t)src % 16 || bytes % 16 || bytes == 0)
    broken("%s, thread %d: a bulk copy of %u bytes from %p to %p is not aligned to 16", cluster->name, here->index, bytes, src, dst);
  cluster->copies.push_back({dst, src, bytes, to, bar});
}
void copy_to_shared(void *dst, const void *src, uint32_t bytes, uint64_t *bar) { queue_copy(dst, src, bytes, bar); }

// ------------------------------------------------------------------------------------------ clusters

int cluster_rank() { return block->rank; }

void cluster_barrier() {
  Barrier &b = cluster->meeting;
  if (++b.there == (int)cluster->alive) {
    b.there = 0;
    cluster->ready.take_all(&b.waiting);
    return;
  }
  b.waiting.add(self());
  wait_here("the cluster's barrier");
}

constexpr uint32_t kRank = 24; // bits of an address within a block

uint32_t cluster_address(const void *p, int rank) {
  if (rank < 0 || rank >= cluster->size) broken("%s, thread %d: a cluster of %d blocks has none of rank %d", cluster->name, here->index, cluster->size, rank);
  return shared_address(p) | (uint32_t)rank << kRank;
}
void *cluster_pointer(uint32_t address, uint32_t bytes) {
  const uint32_t rank = address >> kRank, at = address & ((1u << kRank) - 1);
  if (rank >= (uint32_t)cluster->size || at % bytes || at < kDynamic || at + bytes > kDynamic + cluster->blocks[rank]->shared)
    broken("%s, thread %d: address %x is not in the cluster's dynamic shared memory", cluster->name, here->index, address);
  uint8_t *p = cluster->blocks[rank]->window + at;
  block_of(p); // which runs
  return p;
}

// ------------------------------------------------------------------------------------------ shared memory, wgmma

void *dynamic_shared() { return block->window + kDynamic; }

uint32_t shared_address(const void *p) {
  const size_t at = (size_t)((const uint8_t *)p - block->window);
  if (at >= kWindow) broken("%s, thread %d: %p is not in dynamic shared memory", cluster->name, here->index, p);
  return (uint32_t)at;
}
const uint8_t *shared_pointer(uint32_t address) {
  if (address < kDynamic || address + 16 > kDynamic + block->shared)
    broken("%s, thread %d: address %u is not in dynamic shared memory", cluster->name, here->index, address);
  return block->window + address;
}

void wgmma_issue(const WgmmaOp &op) {
  Thread *me = self();
  me->ops.push_back(op);
  me->ops.back().group = me->committed;
}
void wgmma_commit_group() { self()->committed++; }

namespace {
struct WgmmaWait {
  Thread *thread;
  uint32_t left;
};
void compute_groups(void *const *args) {
  const WgmmaWait *first = (const WgmmaWait *)args[0];
  const std::vector<WgmmaOp> &ops = first->thread->ops;
  const uint32_t committed = first->thread->committed, until = committed > first->left ? committed - first->left : 0;
  size_t n = 0;
  while (n < ops.size() && ops[n].group < until) n++;
  for (size_t i = 0; i < n; i++) {
    const WgmmaOp *lanes[128];
    for (int t = 0; t < 128; t++) {
      const Thread *thread = ((const WgmmaWait *)args[t])->thread;
      if (thread->ops.size() != ops.size() || thread->committed != committed)
        broken("%s, threads %d and %d of a warpgroup differ in their wgmma", cluster->name, first->thread->index, thread->index);
      lanes[t] = &thread->ops[i];
    }
    wgmma_compute(lanes);
  }
  for (int t = 0; t < 128; t++) {
    std::vector<WgmmaOp> &own = ((const WgmmaWait *)args[t])->thread->ops;
    own.erase(own.begin(), own.begin() + (ptrdiff_t)n);
  }
}
} // namespace

void wgmma_wait_groups(uint32_t left) {
  WgmmaWait wait = {self(), left};
  meet_warpgroup("wgmma.wait_group", &wait, compute_groups);
}

} // namespace emu
