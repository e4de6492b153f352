// The emulated GPU itself: what kernels rely on holds, and their mistakes are seen.
#include <cmath>
#include <cstring>
#include <vector>

#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/wait.h>
#include <unistd.h>

#include <cuda_runtime.h>

#include "engine/cuda/common.cuh"
extern "C" {
#include <cmocka.h>
}

using namespace mob;

static void cuda(cudaError_t error) {
  if (error != cudaSuccess) fail_msg("%s", cudaGetErrorString(error));
}
static cudaStream_t stream_on(int device) {
  cudaStream_t s;
  cuda(cudaSetDevice(device));
  cuda(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking));
  return s;
}
template <class T> static T *device(size_t n) {
  T *p;
  cuda(cudaMalloc(&p, n * sizeof(T)));
  cuda(cudaMemset(p, 0, n * sizeof(T)));
  cuda(cudaDeviceSynchronize());
  return p;
}

// ------------------------------------------------------------------------------------------ lanes and barriers

__global__ void lanes_kernel(int *out) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int sum = (int)threadIdx.x;
  for (int s = 16; s; s >>= 1) sum += __shfl_xor_sync(~0u, sum, s);
  int part = 0;
  if (lane < 8) part = __popc(__ballot_sync(0xffu, lane % 2)); // the others do not come
  else part = __shfl_sync(~0xffu, lane, 20);
  const int before = __shfl_up_sync(~0u, lane, 3), narrow = __shfl_down_sync(~0u, lane, 1, 4);
  __shared__ int sums[4];
  if (lane == 0) sums[warp] = sum;
  if (warp >= 2) { // two warps leave; those that stay still meet
    group_sync<64>(1);
    return;
  }
  group_sync<64>(2);
  __syncthreads();
  if (warp == 0) out[lane] = sums[0] * 1000000 + part * 10000 + before * 100 + narrow;
}

static void lanes_meet(void **state) {
  (void)state;
  cudaStream_t s = stream_on(0);
  int *out = device<int>(32), got[32];
  cuda(launch(lanes_kernel, 1, 128, 0, s, out));
  cuda(cudaStreamSynchronize(s));
  cuda(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
  for (int lane = 0; lane < 32; lane++)
    assert_int_equal(got[lane], 496 * 1000000 + (lane < 8 ? 4 : 20) * 10000 + (lane < 3 ? lane : lane - 3) * 100 + (lane % 4 == 3 ? lane : lane + 1));
  cuda(cudaFree(out));
  cuda(cudaStreamDestroy(s));
}

// ------------------------------------------------------------------------------------------ blocks and devices that wait for one another

__global__ void meet_kernel(int *mine, int *const *all, int parties) {
  if (threadIdx.x == 0) atomicAdd(mine, 1);
  for (int i = 0; i < parties; i++)
    while (load_relaxed_sys_int(all[i]) < (int)gridDim.x) spin_pause();
}

static void blocks_and_devices_meet(void **state) {
  (void)state;
  enum { DEVICES = 4 };
  cudaStream_t streams[DEVICES];
  int *counters[DEVICES], **all[DEVICES], blocks = 0;
  for (int d = 0; d < DEVICES; d++) {
    streams[d] = stream_on(d);
    counters[d] = device<int>(1);
    all[d] = device<int *>(DEVICES);
  }
  for (int d = 0; d < DEVICES; d++) cuda(cudaMemcpy(all[d], counters, sizeof counters, cudaMemcpyHostToDevice));
  cuda(cudaDeviceGetAttribute(&blocks, cudaDevAttrMultiProcessorCount, 0));
  for (int d = 0; d < DEVICES; d++) {
    cuda(cudaSetDevice(d));
    cuda(launch(meet_kernel, 2 * blocks, 64, 0, streams[d], counters[d], all[d], (int)DEVICES));
  }
  for (int d = 0; d < DEVICES; d++) {
    cuda(cudaSetDevice(d));
    cuda(cudaStreamSynchronize(streams[d]));
  }
  for (int d = 0; d < DEVICES; d++) { // each is read by all
    cuda(cudaSetDevice(d));
    cuda(cudaFree(counters[d]));
    cuda(cudaFree(all[d]));
    cuda(cudaStreamDestroy(streams[d]));
  }
}

// ------------------------------------------------------------------------------------------ copies

__global__ void early_kernel(const uint8_t *from, uint32_t *out) {
  DYNAMIC_SHARED_ALIGNED(128, uint8_t, to);
  __shared__ uint64_t bar;
  mbar_init(&bar, 1);
  mbar_arrive_expect(&bar, 16);
  bulk_load(to, from, 16, &bar, 0);
  out[0] = *(volatile uint32_t *)to; // nobody has waited
  mbar_wait(&bar, 0);
  out[1] = *(volatile uint32_t *)to;
}

static void early_reads_are_seen(void **state) {
  (void)state;
  cudaStream_t s = stream_on(0);
  uint8_t *from = device<uint8_t>(16);
  uint32_t *out = device<uint32_t>(2), got[2];
  cuda(launch(early_kernel, 1, 1, 64, s, from, out));
  cuda(cudaStreamSynchronize(s));
  cuda(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
  assert_int_equal(got[0], ~0u);
  assert_int_equal(got[1], 0);
  assert_int_equal(cudaMemcpy(from, from, 16, cudaMemcpyHostToDevice), cudaErrorInvalidValue);
  assert_int_equal(cudaMemcpy(got, out, 12, cudaMemcpyDeviceToHost), cudaErrorInvalidValue); // beyond its end
  assert_int_equal(launch(early_kernel, 1, 1, 49 << 10, s, from, out), cudaErrorInvalidValue);
  assert_int_equal(launch(early_kernel, 1, 1025, 0, s, from, out), cudaErrorInvalidConfiguration);
  cudaGetLastError();
  cuda(cudaFree(from));
  cuda(cudaFree(out));
  cuda(cudaStreamDestroy(s));
}

__global__ void add_kernel(int *to, int v) { atomicAdd(to, v); }

static void graphs_record(void **state) {
  (void)state;
  cudaStream_t s = stream_on(0);
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  int *sum = device<int>(1), got = 0;
  void *p;
  cuda(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  cuda(launch(add_kernel, 2, 32, 0, s, sum, 1));
  assert_int_equal(cudaMalloc(&p, 16), cudaErrorStreamCaptureUnsupported);
  cuda(cudaStreamEndCapture(s, &graph));
  cuda(cudaGraphInstantiate(&exec, graph));
  cuda(cudaGraphDestroy(graph));
  for (int i = 0; i < 3; i++) cuda(cudaGraphLaunch(exec, s));
  cuda(cudaStreamSynchronize(s));
  cuda(cudaMemcpy(&got, sum, 4, cudaMemcpyDeviceToHost));
  assert_int_equal(got, 3 * 64);
  cuda(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
  assert_int_equal(cudaStreamSynchronize(s), cudaErrorStreamCaptureUnsupported);
  assert_int_equal(cudaStreamEndCapture(s, &graph), cudaErrorStreamCaptureInvalidated);
  cudaGetLastError();
  cuda(cudaGraphExecDestroy(exec));
  cuda(cudaFree(sum));
  cuda(cudaStreamDestroy(s));
}

// ------------------------------------------------------------------------------------------ clusters

// Every block stores its number to all blocks of its cluster.
__global__ void cluster_kernel(int *out, int size) {
  DYNAMIC_SHARED_ALIGNED(16, float4, got); // of each block
  const int rank = cluster_rank(), at = (int)threadIdx.x;
  if (at < size) got[at] = make_float4(-1, -1, -1, -1);
  cluster_sync();
  if (at < size) cluster_store(cluster_address(got + rank, at), make_float4(blockIdx.x, rank, at, 7));
  if (at >= 32) return; // who stay still meet
  cluster_sync();
  if (at < size) {
    out[((int)blockIdx.x * size + at) * 2] = (int)got[at].x;
    out[((int)blockIdx.x * size + at) * 2 + 1] = (int)got[at].y * 100 + (int)got[at].z * 10 + (int)got[at].w;
  }
}

static void clusters_share(void **state) {
  (void)state;
  cudaStream_t s = stream_on(0);
  enum { SIZE = 3, BLOCKS = 12 };
  int *out = device<int>(BLOCKS * SIZE * 2), got[BLOCKS * SIZE * 2];
  cuda(launch_clusters(SIZE, cluster_kernel, BLOCKS, 64, 256, s, out, (int)SIZE));
  cuda(cudaStreamSynchronize(s));
  cuda(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
  for (int block = 0; block < BLOCKS; block++)
    for (int i = 0; i < SIZE; i++) {
      assert_int_equal(got[(block * SIZE + i) * 2], block / SIZE * SIZE + i);
      assert_int_equal(got[(block * SIZE + i) * 2 + 1], i * 100 + block % SIZE * 10 + 7);
    }
  assert_int_equal(launch_clusters(SIZE, cluster_kernel, BLOCKS + 1, 64, 256, s, out, (int)SIZE), cudaErrorInvalidConfiguration);
  cudaGetLastError();
  cuda(cudaFree(out));
  cuda(cudaStreamDestroy(s));
}

// ------------------------------------------------------------------------------------------ mistakes

__global__ void dead_kernel() {
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) mbar_init(&bar, 2);
  __syncthreads();
  if (threadIdx.x == 0) mbar_arrive(&bar);
  mbar_wait(&bar, 0);
}
__global__ void apart_kernel() {
  if (threadIdx.x < 16) __shfl_xor_sync(~0u, 1, 1);
  else __syncwarp();
}
__global__ void bare_kernel() {
  __shared__ uint64_t bar;
  bar = 0;
  mbar_wait(&bar, 0);
}

__global__ void early_end_kernel() {
  DYNAMIC_SHARED_ALIGNED(16, float4, place);
  const int rank = cluster_rank();
  cluster_sync();
  if (rank == 0) return;
  for (int i = 0; i < 3; i++) spin_pause();
  cluster_store(cluster_address(place, 0), make_float4(0, 0, 0, 0));
}
__global__ void lonely_kernel() {
  DYNAMIC_SHARED_ALIGNED(16, float4, place);
  cluster_address(place, 1);
}

#ifdef MOB_ASAN
__global__ void beyond_kernel() { // all of it is beyond the dynamic shared memory, of which there is none
  DYNAMIC_SHARED(uint16_t, shared);
  uint32_t d[4];
  load_matrices(d, shared + threadIdx.x * 8);
}
#endif

// What the process says that ends because of `kernel`.
static void says(void (*kernel)(), const char *what, int cluster = 1) {
  int ends[2], status;
  char text[4096];
  size_t n = 0;
  assert_int_equal(pipe(ends), 0);
  const pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    dup2(ends[1], 2);
    signal(SIGABRT, SIG_DFL);
    cudaStream_t s;
    if (cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking) == cudaSuccess && launch_clusters(cluster, kernel, cluster, 32, cluster > 1 ? 64 : 0, s) == cudaSuccess) cudaStreamSynchronize(s);
    _exit(0);
  }
  close(ends[1]);
  for (ssize_t got; n + 1 < sizeof text && (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0;) n += (size_t)got;
  text[n] = 0;
  close(ends[0]);
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGABRT : WEXITSTATUS(status) != 0); // ASan exits
  if (!strstr(text, what)) fail_msg("it says: %s", text);
}

static void mistakes_end_the_process(void **state) {
  (void)state;
  says(dead_kernel, "every thread waits and none can go on");
  says(apart_kernel, "__syncwarp");
  says(bare_kernel, "not initialised");
  says(early_end_kernel, "a block that has ended", 2);
  says(lonely_kernel, "none of rank 1");
#ifdef MOB_ASAN
  says(beyond_kernel, "use-after-poison");
#endif
}

// ------------------------------------------------------------------------------------------ matrices

// What stmatrix stores ldmatrix brings back, here with rows and columns exchanged.
__global__ void matrices_kernel(uint32_t *out) {
  DYNAMIC_SHARED(uint16_t, shared); // 4 matrices of 8 rows of 8
  const int lane = threadIdx.x;
  uint32_t d[4], back[4];
  for (int i = 0; i < 4; i++) d[i] = (uint32_t)(i * 64 + lane / 4 * 8 + lane % 4 * 2) * 0x10001u + 0x10000u; // each word is its place
  store_matrices(shared + lane * 8, d);
  __syncwarp();
  load_matrices_turned(back, shared + lane * 8);
  for (int i = 0; i < 4; i++) out[i * 32 + lane] = back[i];
}

static void matrices_are_stored(void **state) {
  (void)state;
  cudaStream_t s = stream_on(0);
  uint32_t *out = device<uint32_t>(128), got[128];
  cuda(launch(matrices_kernel, 1, 32, 512, s, out));
  cuda(cudaStreamSynchronize(s));
  cuda(cudaMemcpy(got, out, sizeof got, cudaMemcpyDeviceToHost));
  for (int i = 0; i < 4; i++)
    for (int lane = 0; lane < 32; lane++)
      for (int half = 0; half < 2; half++) {
        const int row = lane / 4, col = lane % 4 * 2 + half;
        assert_int_equal(got[i * 32 + lane] >> 16 * half & 0xffff, i * 64 + col * 8 + row);
      }
  cuda(cudaFree(out));
  cuda(cudaStreamDestroy(s));
}

// ------------------------------------------------------------------------------------------ numbers

// Rounding of each point between neighbours: the nearer one, the even one at the middle.
template <class From, class To> static void check_rounding(int codes, From from, To to) {
  for (int code = 0; code + 1 < codes; code++) {
    const float a = from(code), b = from(code + 1), middle = a + (b - a) / 2;
    if (!(std::isfinite(a) && std::isfinite(b))) continue;
    assert_int_equal(to(a), code);
    assert_int_equal(to(middle), code % 2 ? code + 1 : code);
    assert_int_equal(to(std::nextafter(middle, a)), code);
    assert_int_equal(to(std::nextafter(middle, b)), code + 1);
    assert_int_equal(to(-b), (code + 1) | codes);
  }
}

static void conversions_round(void **state) {
  (void)state;
  check_rounding(0x80, [](int c) { __nv_fp8_e4m3 v; v.__x = (uint8_t)c; return (float)v; }, [](float v) { return (int)__nv_fp8_e4m3(v).__x; });
  check_rounding(0x8000, [](int c) { return __half2float(__ushort_as_half((unsigned short)c)); }, [](float v) { return (int)__half_as_ushort(__float2half(v)); });
  check_rounding(0x8000, [](int c) { return __bfloat162float(__ushort_as_bfloat16((unsigned short)c)); },
                 [](float v) { return (int)__bfloat16_as_ushort(__float2bfloat16(v)); });
  assert_int_equal(__nv_fp8_e4m3(1e30f).__x, 0x7e);
  assert_int_equal(__nv_fp8_e4m3(NAN).__x, 0x7f);
  assert_int_equal(__half_as_ushort(__float2half(65520.0f)), 0x7c00);
}

int main(void) {
  setenv("MOB_EMU_DEVICES", "4", 1);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(mistakes_end_the_process), // forks: before there are threads
      cmocka_unit_test(lanes_meet),           cmocka_unit_test(blocks_and_devices_meet), cmocka_unit_test(early_reads_are_seen),
      cmocka_unit_test(graphs_record),        cmocka_unit_test(clusters_share),          cmocka_unit_test(conversions_round), cmocka_unit_test(matrices_are_stored),
  };
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
