// A double of NCCL for emulated GPUs (tests/emu): the calls that engine/cuda makes, between processes of one machine.
//
// Ranks meet at a Unix socket (abstract: no file, of one network namespace) whose name the unique id holds. The process with rank 0 serves it: every collective is a message of each
// rank to it, with all that must agree, and an answer to each. What does not agree between ranks is an error on all of them, as it
// would be a hang or garbage with NCCL. A call's work is a host function of its stream; calls return "in progress" first.
//
// A rank whose connection breaks is an asynchronous remote error on the others; a rank that stops is nothing at all, until somebody
// aborts. MOB_NCCL_DOUBLE=deaf: broken connections are not noticed either, as between GPUs of one host.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <memory>
#include <mutex>
#include <poll.h>
#include <string>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

enum { OK = 0, SYSTEM = 2, INVALID = 4, USAGE = 5, REMOTE = 6, IN_PROGRESS = 7 };
enum { INT32 = 2, UINT64 = 5, FLOAT32 = 7, BFLOAT16 = 9 };
enum Kind : uint32_t { JOIN, REDUCE, GATHER, BROADCAST };

struct Id {
  char text[128];
};
struct Head { // of a message; all but `rank` must agree
  uint32_t kind, rank, ranks;
  int32_t type, op, root;
  uint64_t count, turn;
};

size_t size_of(int type) { return type == UINT64 ? 8 : type == BFLOAT16 ? 2 : 4; }

thread_local std::string last_error;
int fail(int code, const std::string &why) {
  last_error = why;
  return code;
}

sockaddr_un address_of(const Id &id) {
  sockaddr_un at = {};
  at.sun_family = AF_UNIX;
  memcpy(at.sun_path + 1, id.text, strlen(id.text)); // behind a zero: abstract
  return at;
}

// All of it, or false when the connection or the group ends.
bool transfer(int fd, int stop, void *data, size_t bytes, bool out) {
  char *at = (char *)data;
  while (bytes) {
    pollfd p[2] = {{fd, (short)(out ? POLLOUT : POLLIN), 0}, {stop, POLLIN, 0}};
    if (poll(p, 2, -1) < 0 && errno != EINTR) return false;
    if (p[1].revents) return false;
    const ssize_t n = out ? send(fd, at, bytes, MSG_NOSIGNAL | MSG_DONTWAIT) : recv(fd, at, bytes, MSG_DONTWAIT);
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) return false;
    if (n > 0) at += n, bytes -= (size_t)n;
  }
  return true;
}

// ------------------------------------------------------------------------------------------ rank 0's process

struct Hub {
  int listener, stop;
};

float of_bf16(uint16_t v) {
  const uint32_t bits = (uint32_t)v << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
uint16_t to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  return f != f ? 0x7fff : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T> void add_all(std::vector<uint8_t> *into, const std::vector<uint8_t> &from, bool max) {
  T *a = (T *)into->data();
  const T *b = (const T *)from.data();
  for (size_t i = 0; i < into->size() / sizeof(T); i++) a[i] = max ? std::max(a[i], b[i]) : a[i] + b[i];
}

void combine(const Head &h, std::vector<uint8_t> *into, const std::vector<uint8_t> &from) {
  const bool max = h.op == 2;
  if (h.type == BFLOAT16) { // rounded at every step, as NCCL does
    uint16_t *a = (uint16_t *)into->data();
    const uint16_t *b = (const uint16_t *)from.data();
    for (size_t i = 0; i < h.count; i++) a[i] = to_bf16(max ? std::max(of_bf16(a[i]), of_bf16(b[i])) : of_bf16(a[i]) + of_bf16(b[i]));
  } else if (h.type == UINT64) {
    add_all<uint64_t>(into, from, max);
  } else if (h.type == FLOAT32) {
    add_all<float>(into, from, max);
  } else {
    add_all<int32_t>(into, from, max);
  }
}

// One collective: false ends the group.
bool serve_one(const Hub &hub, std::vector<int> &ranks) {
  std::vector<Head> heads(ranks.size());
  std::vector<std::vector<uint8_t>> parts(ranks.size());
  for (size_t r = 0; r < ranks.size(); r++) {
    Head &h = heads[r];
    if (!transfer(ranks[r], hub.stop, &h, sizeof h, false)) return false;
    const bool sends = h.kind != BROADCAST || h.root == (int)r;
    parts[r].resize(sends ? h.count * size_of(h.type) : 0);
    if (!transfer(ranks[r], hub.stop, parts[r].data(), parts[r].size(), false)) return false;
    Head same = h;
    same.rank = heads[0].rank;
    if (memcmp(&same, &heads[0], sizeof same) != 0) {
      fprintf(stderr, "double of NCCL: rank %zu calls collective %llu (kind %u, %llu x type %d), rank 0 collective %llu (kind %u, %llu x type %d)\n", r,
              (unsigned long long)h.turn, h.kind, (unsigned long long)h.count, h.type, (unsigned long long)heads[0].turn, heads[0].kind,
              (unsigned long long)heads[0].count, heads[0].type);
      return false;
    }
  }
  const Head &h = heads[0];
  std::vector<uint8_t> result;
  if (h.kind == REDUCE) {
    result = parts[0];
    for (size_t r = 1; r < parts.size(); r++) combine(h, &result, parts[r]);
  } else if (h.kind == BROADCAST) {
    result = parts[(size_t)h.root];
  } else if (h.kind == GATHER) {
    for (const auto &part : parts) result.insert(result.end(), part.begin(), part.end());
  }
  const uint32_t done = OK;
  for (int fd : ranks)
    if (!transfer(fd, hub.stop, (void *)&done, 4, true) || !transfer(fd, hub.stop, result.data(), result.size(), true)) return false;
  return true;
}

void serve(Hub hub) {
  std::vector<int> ranks;
  size_t here = 0;
  while (ranks.empty() || here < ranks.size()) { // joins
    const int fd = accept4(hub.listener, nullptr, nullptr, SOCK_CLOEXEC);
    Head h;
    if (fd < 0) break;
    if (!transfer(fd, hub.stop, &h, sizeof h, false) || h.kind != JOIN || h.rank >= h.ranks || (!ranks.empty() && h.ranks != ranks.size())) {
      close(fd);
      continue;
    }
    if (ranks.empty()) ranks.assign(h.ranks, -1);
    if (ranks[h.rank] < 0) here++;
    else close(ranks[h.rank]);
    ranks[h.rank] = fd;
  }
  close(hub.listener);
  const uint32_t done = OK;
  bool going = here == ranks.size();
  for (int fd : ranks) going = going && transfer(fd, hub.stop, (void *)&done, 4, true);
  while (going) going = serve_one(hub, ranks);
  for (int fd : ranks)
    if (fd >= 0) close(fd);
  close(hub.stop);
}

// ------------------------------------------------------------------------------------------ ranks

struct Comm {
  int rank = 0, ranks = 0, fd = -1, stop = -1;
  std::atomic<int> error{OK};
  std::atomic<bool> pending{false}; // the last call is told to be under way once
  std::atomic<bool> joined{false}, ending{false};
  std::atomic<int> users{0};
  uint64_t turn = 0;
  std::thread joining;
  std::mutex lock;

  void broke() {
    const char *wish = getenv("MOB_NCCL_DOUBLE");
    if (ending || (wish && strcmp(wish, "deaf") == 0)) return;
    error = REMOTE;
  }
};

struct Work {
  std::shared_ptr<Comm> comm;
  Head head;
  const void *from;
  void *to;
};

// Works are kept: a graph that was captured runs them again and again.
std::mutex kept_lock;
std::vector<std::unique_ptr<Work>> *const kept = new std::vector<std::unique_ptr<Work>>();

void run(void *arg) {
  Work *w = (Work *)arg;
  Comm *c = w->comm.get();
  if (c->ending || c->error != OK) return; // as a kernel that was aborted
  Head h = w->head;
  h.turn = c->turn++;
  const size_t own = h.count * size_of(h.type);
  const bool sends = h.kind != BROADCAST || h.root == c->rank;
  uint32_t answer;
  std::vector<uint8_t> result(h.kind == GATHER ? own * (size_t)c->ranks : own);
  const bool ok = transfer(c->fd, c->stop, &h, sizeof h, true) && (!sends || transfer(c->fd, c->stop, (void *)w->from, own, true)) &&
                  transfer(c->fd, c->stop, &answer, 4, false) && transfer(c->fd, c->stop, result.data(), result.size(), false);
  if (ok) {
    memcpy(w->to, result.data(), result.size());
    return;
  }
  c->broke();
  pollfd p = {c->stop, POLLIN, 0}; // the GPU waits on until somebody aborts
  while (!c->ending && poll(&p, 1, -1) < 0) {
  }
}

using HostFn = int (*)(void *stream, void (*fn)(void *), void *data);

HostFn host_function() {
  static const HostFn found = [] {
    const char *plugin = getenv("MOBULA_CUDA_PLUGIN");
    void *library = plugin && *plugin ? dlopen(plugin, RTLD_NOW | RTLD_NOLOAD) : nullptr;
    HostFn fn = library ? (HostFn)dlsym(library, "cudaLaunchHostFunc") : nullptr;
    return fn ? fn : (HostFn)dlsym(RTLD_DEFAULT, "cudaLaunchHostFunc");
  }();
  return found;
}

struct Handle { // what the caller holds
  std::shared_ptr<Comm> comm;
};

int queue(Handle *handle, void *stream, Head head, const void *from, void *to) {
  Comm *c = handle->comm.get();
  if (!c->joined) return fail(USAGE, "a collective before the communicator is ready");
  if (c->error != OK) return c->error;
  if (!host_function()) return fail(SYSTEM, "this is no emulated GPU");
  head.rank = (uint32_t)c->rank;
  head.ranks = (uint32_t)c->ranks;
  Work *work = new Work{handle->comm, head, from, to};
  {
    std::lock_guard<std::mutex> hold(kept_lock);
    kept->emplace_back(work);
  }
  if (host_function()(stream, run, work) != 0) return fail(SYSTEM, "the stream takes nothing");
  c->pending = true;
  return IN_PROGRESS;
}

void join(std::shared_ptr<Comm> c, Id id) {
  const sockaddr_un at = address_of(id);
  c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(c->fd, (const sockaddr *)&at, sizeof at) != 0) {
    c->error = SYSTEM;
    return;
  }
  Head h = {};
  h.kind = JOIN;
  h.rank = (uint32_t)c->rank;
  h.ranks = (uint32_t)c->ranks;
  uint32_t answer;
  if (transfer(c->fd, c->stop, &h, sizeof h, true) && transfer(c->fd, c->stop, &answer, 4, false)) c->joined = true;
  else c->broke();
}

} // namespace

extern "C" {

int ncclGetVersion(int *version) {
  *version = 22809;
  return OK;
}

int ncclGetUniqueId(Id *id) {
  static std::atomic<int> number{0};
  *id = {};
  snprintf(id->text, sizeof id->text, "mob-nccl-%d-%d", (int)getpid(), number++);
  Hub hub = {socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), eventfd(0, EFD_CLOEXEC)};
  const sockaddr_un at = address_of(*id);
  if (bind(hub.listener, (const sockaddr *)&at, sizeof at) != 0 || listen(hub.listener, 64) != 0)
    return fail(SYSTEM, std::string("bind: ") + strerror(errno));
  std::thread(serve, hub).detach();
  return OK;
}

int ncclCommInitRankConfig(void **out, int ranks, Id id, int rank, const void *config) {
  struct Config {
    size_t size;
    unsigned magic, version;
    int blocking;
  };
  const Config *c = (const Config *)config;
  if (c->magic != 0xcafebeef || c->blocking != 0) return fail(INVALID, "the configuration is no non-blocking one");
  if (rank < 0 || rank >= ranks) return fail(INVALID, "no such rank");
  Handle *handle = new Handle{std::make_shared<Comm>()};
  Comm *comm = handle->comm.get();
  comm->rank = rank;
  comm->ranks = ranks;
  comm->stop = eventfd(0, EFD_CLOEXEC);
  comm->joining = std::thread(join, handle->comm, id);
  *out = handle;
  return IN_PROGRESS;
}

int ncclCommGetAsyncError(void *comm, int *error) {
  Comm *c = ((Handle *)comm)->comm.get();
  *error = c->error;
  if (*error == OK && (!c->joined || c->pending.exchange(false))) *error = IN_PROGRESS;
  if (*error == REMOTE) last_error = "connection closed by remote peer";
  return OK;
}

int ncclCommAbort(void *comm) {
  Handle *handle = (Handle *)comm;
  Comm *c = handle->comm.get();
  c->ending = true;
  const uint64_t one = 1;
  if (write(c->stop, &one, 8) != 8) return fail(SYSTEM, "eventfd");
  c->joining.join();
  shutdown(c->fd, SHUT_RDWR); // descriptors stay until the process ends: works under way may use them
  delete handle;
  return OK;
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int op, void *comm, void *stream) {
  return queue((Handle *)comm, stream, {REDUCE, 0, 0, type, op, 0, count, 0}, from, to);
}
int ncclAllGather(const void *from, void *to, size_t count, int type, void *comm, void *stream) {
  return queue((Handle *)comm, stream, {GATHER, 0, 0, type, 0, 0, count, 0}, from, to);
}
int ncclBroadcast(const void *from, void *to, size_t count, int type, int root, void *comm, void *stream) {
  return queue((Handle *)comm, stream, {BROADCAST, 0, 0, type, 0, root, count, 0}, from, to);
}

const char *ncclGetErrorString(int error) {
  return error == OK       ? "no error"
         : error == SYSTEM ? "unhandled system error"
         : error == REMOTE ? "remote process exited or there was a network error"
                           : "invalid usage";
}
const char *ncclGetLastError(void *) { return last_error.c_str(); }
}
