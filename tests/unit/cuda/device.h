// Memory of the (emulated) device for tests of single kernels. Include it behind <cmocka.h>.
#ifndef MOB_TEST_CUDA_DEVICE_H
#define MOB_TEST_CUDA_DEVICE_H

#include <cstddef>
#include <cuda_runtime.h>
#include <vector>

static inline void cuda(cudaError_t error) {
  if (error != cudaSuccess) fail_msg("%s", cudaGetErrorString(error));
}

static std::vector<void *> blocks; // of the test that runs

// Of NaNs: what nobody writes is seen.
template <class T> static T *device(size_t n) {
  T *p;
  cuda(cudaMalloc(&p, n * sizeof(T)));
  cuda(cudaMemset(p, 0xff, n * sizeof(T)));
  blocks.push_back(p);
  return p;
}
template <class T> static T *upload(const std::vector<T> &v) {
  T *p = device<T>(v.size());
  cuda(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
  return p;
}
template <class T> static std::vector<T> fetch(const T *p, size_t n) {
  std::vector<T> out(n);
  cuda(cudaMemcpy(out.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
  return out;
}
static inline void free_all() {
  for (void *p : blocks) cuda(cudaFree(p));
  blocks.clear();
}

#endif
