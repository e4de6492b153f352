#include "device.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <string>

namespace emu {
namespace {

int setting(const char *name, int otherwise, int least, int most) {
  const char *text = getenv(name);
  if (!text || !*text) return otherwise;
  char *end;
  const long v = strtol(text, &end, 10);
  if (*end || v < least || v > most) broken("%s=%s is not a number from %d to %d", name, text, least, most);
  return (int)v;
}

struct Range {
  size_t bytes;
  int device; // -1: pinned
};
struct Memory {
  std::mutex lock;
  std::map<uintptr_t, Range> ranges;
  size_t used[64] = {};
};
Memory *const memory = new Memory();

thread_local int device;
thread_local cudaError_t last_error;

size_t device_bytes() {
  static const size_t bytes = (size_t)setting("MOB_EMU_MEMORY", 4096, 1, 1 << 20) << 20;
  return bytes;
}
int multiprocessors() {
  static const int count = setting("MOB_EMU_SMS", 3, 1, 256);
  return count;
}

bool inside(const void *p, size_t bytes, bool host) {
  std::lock_guard<std::mutex> hold(memory->lock);
  auto at = memory->ranges.upper_bound((uintptr_t)p);
  if (at == memory->ranges.begin()) return false;
  --at;
  return (at->second.device < 0) == host && (uintptr_t)p + bytes <= at->first + at->second.bytes;
}

cudaError_t allocate(void **p, size_t bytes, int on) {
  *p = nullptr;
  if (recording()) return cudaErrorStreamCaptureUnsupported;
  if (bytes == 0) return cudaSuccess;
  std::lock_guard<std::mutex> hold(memory->lock);
  if (on >= 0 && memory->used[on] + bytes > device_bytes()) return cudaErrorMemoryAllocation;
  if (posix_memalign(p, 256, bytes) != 0) return cudaErrorMemoryAllocation;
  // What nobody has written is no zero: large numbers in every type, NaN in e4m3.
  if (bytes <= (size_t)64 << 20) memset(*p, 0x7f, bytes);
  memory->ranges[(uintptr_t)*p] = {bytes, on};
  if (on >= 0) memory->used[on] += bytes;
  return cudaSuccess;
}

cudaError_t release(void *p, bool host) {
  if (!p) return cudaSuccess;
  if (recording()) return cudaErrorStreamCaptureUnsupported;
  int on;
  {
    std::lock_guard<std::mutex> hold(memory->lock);
    const auto at = memory->ranges.find((uintptr_t)p);
    if (at == memory->ranges.end() || (at->second.device < 0) != host) return cudaErrorInvalidValue;
    on = at->second.device;
  }
  if (on >= 0) synchronize_device(on);
  std::lock_guard<std::mutex> hold(memory->lock);
  const auto at = memory->ranges.find((uintptr_t)p);
  if (on >= 0) memory->used[on] -= at->second.bytes;
  memory->ranges.erase(at);
  free(p);
  return cudaSuccess;
}

} // namespace

int device_count() {
  static const int count = setting("MOB_EMU_DEVICES", 1, 0, 64);
  return count;
}
int device_places() {
  static const int each = setting("MOB_EMU_CTAS", 2, 1, 32);
  return multiprocessors() * each;
}
int current_device() { return device; }
cudaError_t result(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}
bool on_device(const void *p, size_t bytes) { return inside(p, bytes, false); }
bool pinned(const void *p, size_t bytes) { return inside(p, bytes, true); }

} // namespace emu

using namespace emu;

cudaError_t cudaGetDeviceCount(int *count) {
  *count = device_count();
  return result(*count ? cudaSuccess : cudaErrorNoDevice);
}
cudaError_t cudaSetDevice(int to) {
  if (to < 0 || to >= device_count()) return result(cudaErrorInvalidDevice);
  device = to;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int *out) {
  *out = device;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int of) {
  if (of < 0 || of >= device_count()) return result(cudaErrorInvalidDevice);
  switch (attribute) {
  case cudaDevAttrMultiProcessorCount: *value = multiprocessors(); return cudaSuccess;
  case cudaDevAttrComputeCapabilityMajor: *value = 9; return cudaSuccess;
  case cudaDevAttrComputeCapabilityMinor: *value = 0; return cudaSuccess;
  }
  return result(cudaErrorInvalidValue);
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int of) {
  if (of < 0 || of >= device_count()) return result(cudaErrorInvalidDevice);
  *out = {};
  strcpy(out->name, "emulated GPU");
  out->totalGlobalMem = device_bytes();
  out->multiProcessorCount = multiprocessors();
  out->major = 9;
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int of, int peer) {
  if (of < 0 || of >= device_count() || peer < 0 || peer >= device_count()) return result(cudaErrorInvalidDevice);
  *can = of != peer;
  return cudaSuccess;
}
static uint64_t peers[64]; // of a device: those whose memory it may touch
static std::mutex peers_lock;
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned flags) {
  if (peer < 0 || peer >= device_count() || peer == device || flags) return result(cudaErrorInvalidDevice);
  std::lock_guard<std::mutex> hold(peers_lock);
  if (peers[device] >> peer & 1) return result(cudaErrorPeerAccessAlreadyEnabled);
  peers[device] |= (uint64_t)1 << peer;
  return cudaSuccess;
}
cudaError_t cudaDeviceDisablePeerAccess(int peer) {
  if (peer < 0 || peer >= device_count()) return result(cudaErrorInvalidDevice);
  std::lock_guard<std::mutex> hold(peers_lock);
  peers[device] &= ~((uint64_t)1 << peer);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  std::lock_guard<std::mutex> hold(memory->lock);
  *total = device_bytes();
  *free_bytes = *total - memory->used[device];
  return cudaSuccess;
}
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
cudaError_t cudaDriverGetVersion(int *version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) { return cudaDriverGetVersion(version); }

#define EMU_ERRORS(each)                                                                                                   \
  each(cudaSuccess, "no error") each(cudaErrorInvalidValue, "invalid argument")                                            \
  each(cudaErrorMemoryAllocation, "out of memory") each(cudaErrorInvalidConfiguration, "invalid configuration argument")   \
  each(cudaErrorInvalidDevice, "invalid device ordinal") each(cudaErrorNoDevice, "no CUDA-capable device is detected")     \
  each(cudaErrorInvalidResourceHandle, "invalid resource handle") each(cudaErrorNotReady, "device not ready")              \
  each(cudaErrorPeerAccessAlreadyEnabled, "peer access is already enabled")                                                \
  each(cudaErrorNotSupported, "operation not supported")                                                                   \
  each(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")                              \
  each(cudaErrorStreamCaptureInvalidated, "operation failed due to a previous error during capture")
const char *cudaGetErrorString(cudaError_t error) {
  switch (error) {
#define EMU_TEXT(name, text) case name: return text;
    EMU_ERRORS(EMU_TEXT)
  }
  return "unknown error";
}
const char *cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define EMU_NAME(name, text) case name: return #name;
    EMU_ERRORS(EMU_NAME)
  }
  return "unknown error";
}

cudaError_t emu_malloc(void **p, size_t bytes) { return result(allocate(p, bytes, device)); }
cudaError_t emu_malloc_host(void **p, size_t bytes) { return result(allocate(p, bytes, -1)); }
cudaError_t cudaFree(void *p) { return result(release(p, false)); }
cudaError_t cudaFreeHost(void *p) { return result(release(p, true)); }
