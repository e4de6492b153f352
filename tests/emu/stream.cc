// Streams: each has an OS thread that does what it is given, in order. Events, graphs, copies, launches.
#include <atomic>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "device.h"
#include "grid.h"

namespace emu {

using Action = std::function<void()>;

struct Graph {
  std::vector<Action> actions;
};
struct Executable {
  std::shared_ptr<const std::vector<Action>> actions;
};

struct Queue {
  std::mutex lock;
  std::condition_variable wake, idle;
  std::deque<Action> actions;
  uint64_t given = 0, done = 0;
  bool closing = false;
  std::thread thread;

  Queue() : thread([this] { run(); }) {}
  ~Queue() {
    {
      std::lock_guard<std::mutex> hold(lock);
      closing = true;
      wake.notify_all();
    }
    thread.join();
  }
  void run() {
    std::unique_lock<std::mutex> hold(lock);
    for (;;) {
      wake.wait(hold, [this] { return !actions.empty() || closing; });
      if (actions.empty()) return;
      const Action action = std::move(actions.front());
      actions.pop_front();
      hold.unlock();
      action();
      hold.lock();
      done++;
      idle.notify_all();
    }
  }
  void give(Action action) {
    std::lock_guard<std::mutex> hold(lock);
    actions.push_back(std::move(action));
    given++;
    wake.notify_one();
  }
  void wait() {
    std::unique_lock<std::mutex> hold(lock);
    const uint64_t until = given;
    idle.wait(hold, [&] { return done >= until; });
  }
  bool empty() {
    std::lock_guard<std::mutex> hold(lock);
    return done == given;
  }
};

// The default stream of a device and streams that wait for it and it for them are one queue.
struct Stream {
  int device;
  Queue *queue;
  bool own; // queue
  Graph *graph = nullptr; // being recorded
  bool spoiled = false;   // by a call that cannot be recorded
};

struct EventState {
  std::mutex lock;
  std::condition_variable wake;
  uint64_t asked = 0, done = 0;
  std::chrono::steady_clock::time_point time;
};
struct Event {
  std::shared_ptr<EventState> state = std::make_shared<EventState>();
  bool timing;
};

namespace {

struct Streams {
  std::mutex lock;
  std::vector<Stream *> all;
  std::map<int, Stream *> defaults;
};
Streams *const streams = new Streams();
thread_local Stream *recorded;

Stream *default_stream(int device) {
  std::lock_guard<std::mutex> hold(streams->lock);
  Stream *&s = streams->defaults[device];
  if (!s) {
    s = new Stream{device, new Queue(), true};
    streams->all.push_back(s);
  }
  return s;
}
Stream *known(Stream *s) { return s ? s : default_stream(current_device()); }

cudaError_t give(Stream *stream, Action action) {
  Stream *s = known(stream);
  if (s->graph) s->graph->actions.push_back(std::move(action));
  else s->queue->give(std::move(action));
  return cudaSuccess;
}

cudaError_t spoil(Stream *s) {
  if (s->graph) s->spoiled = true;
  return cudaErrorStreamCaptureUnsupported;
}

} // namespace

bool recording() { return recorded != nullptr; }

void synchronize_device(int device) {
  std::vector<Queue *> queues;
  {
    std::lock_guard<std::mutex> hold(streams->lock);
    for (Stream *s : streams->all)
      if (s->device == device) queues.push_back(s->queue);
  }
  for (Queue *q : queues) q->wait();
}

} // namespace emu

using namespace emu;

cudaError_t cudaDeviceSynchronize() {
  if (recording()) return result(cudaErrorStreamCaptureUnsupported);
  synchronize_device(current_device());
  return cudaSuccess;
}

// ------------------------------------------------------------------------------------------ streams and events

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned flags) {
  if (flags & ~(unsigned)cudaStreamNonBlocking) return result(cudaErrorInvalidValue);
  const bool own = flags & cudaStreamNonBlocking;
  Stream *first = own ? nullptr : default_stream(current_device());
  *out = new Stream{current_device(), own ? new Queue() : first->queue, own};
  std::lock_guard<std::mutex> hold(streams->lock);
  streams->all.push_back(*out);
  return cudaSuccess;
}
cudaError_t cudaStreamCreate(cudaStream_t *out) { return cudaStreamCreateWithFlags(out, cudaStreamDefault); }
cudaError_t cudaStreamDestroy(cudaStream_t s) {
  if (!s) return result(cudaErrorInvalidResourceHandle);
  {
    std::lock_guard<std::mutex> hold(streams->lock);
    std::erase(streams->all, s);
  }
  if (s->own) delete s->queue; // after what it was given
  delete s->graph;
  delete s;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  Stream *s = known(stream);
  if (s->graph) return result(spoil(s));
  s->queue->wait();
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  Stream *s = known(stream);
  if (s->graph) return result(spoil(s));
  return s->queue->empty() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  Stream *s = known(stream);
  if (s->graph) return result(spoil(s)); // graphs of one stream only
  const std::shared_ptr<EventState> state = event->state;
  uint64_t until;
  {
    std::lock_guard<std::mutex> hold(state->lock);
    until = state->asked;
  }
  return give(s, [state, until] {
    std::unique_lock<std::mutex> hold(state->lock);
    state->wake.wait(hold, [&] { return state->done >= until; });
  });
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *out, unsigned flags) {
  *out = new Event();
  (*out)->timing = !(flags & cudaEventDisableTiming);
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t *out) { return cudaEventCreateWithFlags(out, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  if (!event) return result(cudaErrorInvalidResourceHandle);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  Stream *s = known(stream);
  if (s->graph) return result(spoil(s));
  const std::shared_ptr<EventState> state = event->state;
  uint64_t number;
  {
    std::lock_guard<std::mutex> hold(state->lock);
    number = ++state->asked;
  }
  return give(s, [state, number] {
    std::lock_guard<std::mutex> hold(state->lock);
    state->done = number;
    state->time = std::chrono::steady_clock::now();
    state->wake.notify_all();
  });
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  std::unique_lock<std::mutex> hold(event->state->lock);
  const uint64_t until = event->state->asked;
  event->state->wake.wait(hold, [&] { return event->state->done >= until; });
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  std::lock_guard<std::mutex> hold(event->state->lock);
  return event->state->done >= event->state->asked ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
  if (!begin->timing || !end->timing) return result(cudaErrorInvalidResourceHandle);
  std::chrono::steady_clock::time_point times[2];
  EventState *const states[2] = {begin->state.get(), end->state.get()};
  for (int i = 0; i < 2; i++) {
    std::lock_guard<std::mutex> hold(states[i]->lock);
    if (states[i]->asked == 0) return result(cudaErrorInvalidResourceHandle);
    if (states[i]->done < states[i]->asked) return result(cudaErrorNotReady);
    times[i] = states[i]->time;
  }
  *ms = std::chrono::duration<float, std::milli>(times[1] - times[0]).count();
  return cudaSuccess;
}

cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t fn, void *data) {
  return give(stream, [fn, data] { fn(data); });
}

// ------------------------------------------------------------------------------------------ graphs

cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode) {
  if (!s || s->graph || recorded) return result(cudaErrorStreamCaptureUnsupported);
  s->graph = new Graph();
  s->spoiled = false;
  recorded = s;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out) {
  *out = nullptr;
  if (!s || !s->graph || recorded != s) return result(cudaErrorInvalidValue);
  recorded = nullptr;
  Graph *graph = s->graph;
  s->graph = nullptr;
  if (s->spoiled) {
    delete graph;
    return result(cudaErrorStreamCaptureInvalidated);
  }
  *out = graph;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *out, cudaGraph_t graph, unsigned long long) {
  *out = new Executable{std::make_shared<const std::vector<Action>>(graph->actions)};
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  const std::shared_ptr<const std::vector<Action>> actions = graph->actions;
  return give(stream, [actions] {
    for (const Action &action : *actions) action();
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}

// ------------------------------------------------------------------------------------------ copies

namespace {

struct Rows {
  void *dst;
  size_t dst_pitch;
  const void *src;
  size_t src_pitch, width, height;
};

void copy_rows(const Rows &r) {
  for (size_t i = 0; i < r.height; i++) memcpy((uint8_t *)r.dst + i * r.dst_pitch, (const uint8_t *)r.src + i * r.src_pitch, r.width);
}

cudaError_t copy(const Rows &r, cudaMemcpyKind kind, Stream *stream, bool wait) {
  if (r.width == 0 || r.height == 0) return cudaSuccess;
  Stream *s = known(stream);
  const size_t to = (r.height - 1) * r.dst_pitch + r.width, from = (r.height - 1) * r.src_pitch + r.width;
  const bool dst_device = on_device(r.dst, to), src_device = on_device(r.src, from);
  const bool right = kind == cudaMemcpyDefault || (dst_device == (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) &&
                                                   src_device == (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice));
  if (!right) return cudaErrorInvalidValue;
  const bool loose_src = !src_device && !pinned(r.src, from), loose_dst = !dst_device && !pinned(r.dst, to);
  if (s->graph && (loose_src || loose_dst || wait)) return spoil(s);
  if (wait && recording()) return cudaErrorStreamCaptureUnsupported;
  if (loose_src) { // as it is now
    auto data = std::make_shared<std::vector<uint8_t>>(r.width * r.height);
    copy_rows({data->data(), r.width, r.src, r.src_pitch, r.width, r.height});
    give(s, [data, r] { copy_rows({r.dst, r.dst_pitch, data->data(), r.width, r.width, r.height}); });
  } else {
    give(s, [r] { copy_rows(r); });
  }
  if (wait || loose_dst) s->queue->wait();
  return cudaSuccess;
}

} // namespace

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  return result(copy({dst, bytes, src, bytes, bytes, bytes ? 1u : 0u}, kind, stream, false));
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t bytes, cudaMemcpyKind kind) {
  return result(copy({dst, bytes, src, bytes, bytes, bytes ? 1u : 0u}, kind, nullptr, true));
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch, size_t width, size_t height, cudaMemcpyKind kind,
                              cudaStream_t stream) {
  if (width > dst_pitch || width > src_pitch) return result(cudaErrorInvalidValue);
  return result(copy({dst, dst_pitch, src, src_pitch, width, height}, kind, stream, false));
}
cudaError_t cudaMemcpyPeerAsync(void *dst, int, const void *src, int, size_t bytes, cudaStream_t stream) {
  return cudaMemcpyAsync(dst, src, bytes, cudaMemcpyDeviceToDevice, stream);
}
cudaError_t cudaMemsetAsync(void *dst, int value, size_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  if (!on_device(dst, bytes) && !pinned(dst, bytes)) return result(cudaErrorInvalidValue);
  return result(give(stream, [dst, value, bytes] { memset(dst, value, bytes); }));
}
cudaError_t cudaMemset(void *dst, int value, size_t bytes) {
  if (recording()) return result(cudaErrorStreamCaptureUnsupported);
  return cudaMemsetAsync(dst, value, bytes, nullptr);
}

// ------------------------------------------------------------------------------------------ launches

namespace {
struct Limits {
  std::mutex lock;
  std::map<const void *, size_t> shared; // dynamic, of kernels that may have more than 48 KiB
};
Limits *const limits = new Limits();
constexpr size_t kMostShared = 227 << 10;
} // namespace

cudaError_t emu_max_shared(const void *kernel, int bytes) {
  if (bytes < 0 || (size_t)bytes > kMostShared) return result(cudaErrorInvalidValue);
  std::lock_guard<std::mutex> hold(limits->lock);
  limits->shared[kernel] = (size_t)bytes;
  return cudaSuccess;
}

cudaError_t emu_launch(const cudaLaunchConfig_t *config, const void *kernel, std::function<void()> body) {
  const dim3 g = config->gridDim, b = config->blockDim;
  const uint64_t threads = (uint64_t)b.x * b.y * b.z;
  if (g.x == 0 || g.y == 0 || g.z == 0 || g.y > 65535 || g.z > 65535 || threads == 0 || threads > 1024 || b.z > 64)
    return result(cudaErrorInvalidConfiguration);
  int cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; i++) {
    const cudaLaunchAttribute &a = config->attrs[i];
    if (a.id == cudaLaunchAttributeClusterDimension) cluster = (int)a.val.clusterDim.x;
  }
  if (cluster < 1 || cluster > emu::kMaxCluster || g.x % (unsigned)cluster != 0) return result(cudaErrorInvalidConfiguration);
  size_t limit = 48 << 10;
  {
    std::lock_guard<std::mutex> hold(limits->lock);
    const auto at = limits->shared.find(kernel);
    if (at != limits->shared.end()) limit = at->second;
  }
  if (config->dynamicSmemBytes > limit) return result(cudaErrorInvalidValue);
  auto spec = std::make_shared<const LaunchSpec>(LaunchSpec{std::move(body), kernel, g, b, config->dynamicSmemBytes, device_places(), cluster});
  return give(config->stream, [spec] { run_grid(spec); });
}

cudaError_t emu_most_clusters(int *out, const cudaLaunchConfig_t *config) {
  int cluster = 1;
  for (unsigned i = 0; i < config->numAttrs; i++)
    if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = (int)config->attrs[i].val.clusterDim.x;
  *out = device_places() / cluster;
  return cudaSuccess;
}

cudaError_t cudaFuncGetName(const char **name, const void *kernel) {
  *name = kernel_name(kernel);
  return cudaSuccess;
}
