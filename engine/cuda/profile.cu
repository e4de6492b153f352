// MOB_CUDA_PROFILE=1: no graphs; an event before and after every kernel, a table of their times when the executor closes.
// Kernels do not overlap then, so that the sum is more than a step takes.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "engine/cuda/exec.h"

namespace mob {

void (*launch_hook)(const void *kernel, cudaStream_t stream, bool before);
thread_local const char *launch_label;

namespace {

struct Span {
  std::string name;
  cudaEvent_t begin, end;
};
struct Times {
  std::vector<float> us;
  size_t order = 0;
};
std::vector<Span> spans;
std::vector<cudaEvent_t> spare;
std::map<std::string, Times> times;
thread_local bool profiled; // only rank 0's steps: other ranks and loading launch from other threads

cudaEvent_t take_event() {
  cudaEvent_t event;
  if (spare.empty()) cudaEventCreate(&event);
  else event = spare.back(), spare.pop_back();
  return event;
}

// The kernel's own name out of its mangled one: the last length-prefixed word before its arguments.
std::string kernel_name(const void *kernel) {
  const char *mangled = nullptr;
  if (cudaFuncGetName(&mangled, kernel) != cudaSuccess || !mangled) return "?";
  std::string name = mangled, found = name;
  for (size_t i = 0; i < name.size(); i++) {
    if (name[i] < '0' || name[i] > '9') continue;
    const size_t length = (size_t)atoi(name.c_str() + i);
    while (i < name.size() && name[i] >= '0' && name[i] <= '9') i++;
    const std::string word = name.substr(i, length);
    if (word.size() > 7 && word.compare(word.size() - 7, 7, "_kernel") == 0) return word.substr(0, word.size() - 7);
    i += length - 1;
  }
  return found;
}

void hook(const void *kernel, cudaStream_t stream, bool before) {
  if (!profiled) return;
  if (before) {
    Span s = {kernel_name(kernel) + (launch_label ? std::string(" ") + launch_label : ""), take_event(), take_event()};
    cudaEventRecord(s.begin, stream);
    spans.push_back(s);
  } else {
    cudaEventRecord(spans.back().end, stream);
  }
}

} // namespace

bool profile_start() {
  const char *wish = getenv("MOB_CUDA_PROFILE");
  if (wish && wish[0] == '1') launch_hook = hook;
  return launch_hook != nullptr;
}

void profile_this_thread() { profiled = true; }

// Times of the step just queued; call when nothing else is under way.
void profile_step(cudaStream_t stream) {
  if (!launch_hook) return;
  cudaStreamSynchronize(stream);
  for (Span &s : spans) {
    float ms = 0;
    cudaEventElapsedTime(&ms, s.begin, s.end);
    Times &t = times[s.name];
    if (t.us.empty()) t.order = times.size();
    t.us.push_back(ms * 1000);
    spare.push_back(s.begin);
    spare.push_back(s.end);
  }
  spans.clear();
}

// `keep`: only the last so many steps count; all times of earlier ones are dropped.
void profile_reset() { times.clear(); }

void profile_print(int steps) {
  if (!launch_hook || times.empty()) return;
  std::vector<std::pair<std::string, Times>> all(times.begin(), times.end());
  std::sort(all.begin(), all.end(), [](const auto &a, const auto &b) { return a.second.order < b.second.order; });
  double total = 0;
  for (auto &entry : all) {
    std::vector<float> &us = entry.second.us;
    std::sort(us.begin(), us.end());
    const double per_step = (double)us.size() / steps;
    total += us[us.size() / 2] * per_step;
    printf("  %-34s %6.1f a step  %9.2f us each  %9.2f us a step\n", entry.first.c_str(), per_step, us[us.size() / 2],
           us[us.size() / 2] * per_step);
  }
  printf("  %-34s %48.2f us a step\n", "all kernels, not overlapping", total);
  fflush(stdout);
}

} // namespace mob
