// A node's GPUs, and what it tells of itself; NVML is the double.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/base/clock.h"
#include "runtime/gpu/nvml.h"
#include "runtime/node/detect.h"
#include "runtime/node/telemetry.h"
#include "runtime/node/traffic.h"

static char folder[64], path[128];

static void write_file(const char *name, const char *text) {
  FILE *file = fopen(name, "w");
  assert_non_null(file);
  fputs(text, file);
  fclose(file);
}

static int setup(void **state) {
  (void)state;
  strcpy(folder, "/tmp/mob-telemetry-XXXXXX");
  assert_non_null(mkdtemp(folder));
  snprintf(path, sizeof path, "%s/gpus", folder);
  return 0;
}

static int teardown(void **state) {
  (void)state;
  char command[128];
  snprintf(command, sizeof command, "rm -r %s", folder);
  return system(command);
}

static int reset(void **state) {
  (void)state;
  setenv("MOB_NVML_LIB", MOB_BINARY_DIR "/tests/nvml_double.so", 1);
  setenv("MOB_NVML_DOUBLE", path, 1);
  unsetenv("CUDA_VISIBLE_DEVICES");
  unsetenv("CUDA_DEVICE_ORDER");
  unsetenv("MOBULA_SIMULATED_GPUS");
  write_file(path, "gpu uuid=GPU-1 name=NVIDIA_H200 memory=1000 used=400 busy=73\n"
                   "gpu uuid=GPU-2 name=NVIDIA_H200 memory=1000 used=400 busy=73\n"
                   "gpu uuid=GPU-3 name=NVIDIA_H200 memory=1000 used=400 busy=73\n");
  return 0;
}

// -------------------------------------------------------------------------------------- detection

static void finds(int wanted, const char *names, mob_gpu_source_t source, const char *type) {
  mob_node_gpus_t gpus;
  char text[256] = "";
  assert_int_equal(mob_detect_gpus(wanted, &gpus), MOB_OK);
  for (size_t i = 0; i < gpus.names.len; i++) {
    size_t len = strlen(text);
    snprintf(text + len, sizeof text - len, "%s%s", i ? "," : "", gpus.names.at[i]);
  }
  assert_string_equal(text, names);
  assert_int_equal(gpus.source, source);
  assert_string_equal(gpus.type, type);
  mob_node_gpus_free(&gpus);
}

static void test_detection(void **state) {
  (void)state;
  finds(-1, "0,1,2", MOB_GPUS_REAL, "H200");
  finds(2, "0,1", MOB_GPUS_REAL, "H200");
  finds(0, "", MOB_GPUS_NONE, "");
  finds(5, "0,1,2,3,4", MOB_GPUS_DECLARED, "H200"); // as Ray: the user is believed
  setenv("CUDA_VISIBLE_DEVICES", "GPU-3,1", 1);
  finds(-1, "GPU-3,1", MOB_GPUS_REAL, "H200");
  finds(1, "GPU-3", MOB_GPUS_REAL, "H200");
  setenv("CUDA_VISIBLE_DEVICES", "", 1);
  finds(-1, "", MOB_GPUS_NONE, "");
  unsetenv("CUDA_VISIBLE_DEVICES");
  setenv("MOBULA_SIMULATED_GPUS", "2", 1);
  finds(-1, "0,1", MOB_GPUS_SIMULATED, "");
  finds(1, "0", MOB_GPUS_SIMULATED, "");
  unsetenv("MOBULA_SIMULATED_GPUS");
  setenv("MOB_NVML_DOUBLE", "/nowhere", 1);
  finds(4, "0,1,2,3", MOB_GPUS_DECLARED, "");
}

static void test_too_many(void **state) {
  (void)state;
  mob_node_gpus_t gpus;
  setenv("CUDA_VISIBLE_DEVICES", "0,2", 1);
  assert_int_equal(mob_detect_gpus(3, &gpus), MOB_E_INVALID);
  assert_string_equal(mob_errmsg(), "ValueError: Attempting to start raylet with 3 GPU, but "
                                    "CUDA_VISIBLE_DEVICES contains ['0', '2'].");
  mob_node_gpus_free(&gpus);
}

// ---------------------------------------------------------------------------------------- network

static void test_interfaces(void **state) {
  (void)state;
  char name[128];
  snprintf(name, sizeof name, "%s/dev", folder);
  write_file(
      name, "Inter-|   Receive                                                |  Transmit\n"
            " face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets "
            "errs drop fifo colls carrier compressed\n"
            "    lo:     100       1    0    0    0     0          0         0      100       1   "
            " 0    0    0     0       0          0\n"
            "  eth0:18446744073709551615 5 1 2 0 0 0 0 7000 8 3 4 0 0 0 0\n"
            "eth0:1: 10 5 0 0 0 0 0 0 20 8 0 0 0 0 0 0\n"
            "  dummy:       0       0    0    0    0     0          0         0        0       0   "
            " 0    0    0     0       0          0\n"
            "broken: 1 2\n");
  mob_interfaces_t list = {0};
  mob_traffic_interfaces(name, &list);
  assert_int_equal(list.len, 3);
  assert_string_equal(list.at[1].name, "eth0");
  assert_true(list.at[1].received == UINT64_MAX);
  assert_int_equal(list.at[1].sent, 7000);
  assert_int_equal(list.at[1].errors, 4);
  assert_int_equal(list.at[1].dropped, 6);
  assert_string_equal(list.at[2].name, "eth0:1");
  list.len = 0;
  mob_traffic_interfaces("/nowhere", &list);
  assert_int_equal(list.len, 0);
  mob_vec_free(&list);
}

static void make_port(const char *device, int port, const char *state_text, const char *received) {
  char name[256], command[400];
  snprintf(command, sizeof command, "mkdir -p %s/ib/%s/ports/%d/counters", folder, device, port);
  assert_int_equal(system(command), 0);
  snprintf(name, sizeof name, "%s/ib/%s/ports/%d/state", folder, device, port);
  write_file(name, state_text);
  snprintf(name, sizeof name, "%s/ib/%s/ports/%d/counters/port_rcv_data", folder, device, port);
  write_file(name, received);
  snprintf(name, sizeof name, "%s/ib/%s/ports/%d/counters/port_xmit_data", folder, device, port);
  write_file(name, "3\n");
}

static void test_rdma(void **state) {
  (void)state;
  char name[128];
  make_port("mlx5_1", 1, "1: DOWN\n", "0\n");
  make_port("mlx5_0", 2, "4: ACTIVE\n", "5\n");
  make_port("mlx5_0", 1, "4: ACTIVE\n", "1000\n");
  snprintf(name, sizeof name, "%s/ib", folder);
  mob_rdma_ports_t list = {0};
  mob_traffic_rdma(name, &list);
  assert_int_equal(list.len, 3);
  assert_string_equal(list.at[0].device, "mlx5_0");
  assert_int_equal(list.at[0].port, 1);
  assert_true(list.at[0].active);
  assert_int_equal(list.at[0].received, 4000); // the files count words
  assert_int_equal(list.at[0].sent, 12);
  assert_int_equal(list.at[1].port, 2);
  assert_false(list.at[2].active);
  mob_vec_free(&list);
}

// -------------------------------------------------------------------------------------- telemetry

typedef struct answer {
  int count;
  bool none;
  int64_t busy, used;
  size_t gpus;
  uint64_t taken_ms, age_ms;
  char why[128];
} answer_t;

static void on_sample(void *arg, const mob_telemetry_reply_t *sample) {
  answer_t *a = arg;
  a->count++;
  a->none = !sample;
  if (!sample) return;
  a->gpus = sample->n_gpus;
  a->taken_ms = sample->taken_ms;
  a->age_ms = sample->age_ms;
  snprintf(a->why, sizeof a->why, "%s", sample->gpu_state);
  if (!a->gpus) return;
  a->busy = sample->gpus[0]->values[MOB_GPU_UTILIZATION];
  a->used = sample->gpus[0]->values[MOB_GPU_MEMORY_USED];
}

static void run_until(uv_loop_t *loop, const int *count, int wanted) {
  uint64_t end = mob_now_ms() + 10000;
  while (*count < wanted && mob_now_ms() < end) uv_run(loop, UV_RUN_ONCE);
  assert_int_equal(*count, wanted);
}

static void finish(uv_loop_t *loop, mob_telemetry_t *telemetry) {
  mob_telemetry_close(telemetry, NULL, NULL);
  assert_int_equal(uv_run(loop, UV_RUN_DEFAULT), 0);
  assert_int_equal(uv_loop_close(loop), 0);
}

static void test_samples(void **state) {
  (void)state;
  uv_loop_t loop;
  answer_t a = {0}, b = {0};
  setenv("CUDA_VISIBLE_DEVICES", "2,0", 1);
  uv_loop_init(&loop);
  mob_telemetry_t *t = mob_telemetry_new(&loop, true);
  mob_telemetry_get(t, on_sample, &a);
  mob_telemetry_get(t, on_sample, &b); // two who ask share a sample
  assert_int_equal(a.count, 0);
  run_until(&loop, &b.count, 1);
  assert_int_equal(a.count, 1);
  assert_int_equal(a.gpus, 2);
  assert_int_equal(a.busy, 73);
  assert_int_equal(a.used, 400);
  assert_true(a.taken_ms == b.taken_ms);
  // Who asks soon gets the same at once.
  uint64_t first = a.taken_ms;
  mob_telemetry_get(t, on_sample, &a);
  assert_int_equal(a.count, 2);
  assert_true(a.taken_ms == first);
  // Later, a new one.
  write_file(path, "gpu uuid=GPU-1 name=NVIDIA_H200 memory=1000 used=400 busy=1\n"
                   "gpu uuid=GPU-2 name=NVIDIA_H200 memory=1000 used=400 busy=2\n"
                   "gpu uuid=GPU-3 name=NVIDIA_H200 memory=1000 used=401 busy=3\n");
  while (mob_now_ms() < first + MOB_TELEMETRY_FRESH_MS) usleep(1000);
  mob_telemetry_get(t, on_sample, &a);
  run_until(&loop, &a.count, 3);
  assert_int_equal(a.busy, 3);
  assert_int_equal(a.used, 401);
  finish(&loop, t);
}

static void test_without_gpus(void **state) {
  (void)state;
  uv_loop_t loop;
  answer_t a = {0};
  setenv("MOB_NVML_DOUBLE", "/nowhere", 1);
  uv_loop_init(&loop);
  mob_telemetry_t *t = mob_telemetry_new(&loop, true);
  mob_telemetry_get(t, on_sample, &a);
  run_until(&loop, &a.count, 1);
  assert_false(a.none);
  assert_int_equal(a.gpus, 0);
  assert_string_equal(a.why, "NVML does not start: Driver Not Loaded");
  finish(&loop, t);
}

// A driver that never answers: who asks is told so in time, and nothing waits at the end.
static void test_hanging_driver(void **state) {
  (void)state;
  uv_loop_t loop;
  answer_t a = {0};
  uv_loop_init(&loop);
  mob_telemetry_t *t = mob_telemetry_new(&loop, true);
  mob_telemetry_get(t, on_sample, &a);
  run_until(&loop, &a.count, 1);
  write_file(path, "gpu uuid=GPU-1 name=NVIDIA_H200 memory=1000 used=400 busy=1 hang=1\n"
                   "gpu uuid=GPU-2 name=NVIDIA_H200 memory=1000 used=400 busy=2\n"
                   "gpu uuid=GPU-3 name=NVIDIA_H200 memory=1000 used=400 busy=3\n");
  while (mob_now_ms() < a.taken_ms + MOB_TELEMETRY_FRESH_MS) usleep(1000);
  uint64_t begin = mob_now_ms();
  uv_update_time(&loop);
  mob_telemetry_get(t, on_sample, &a);
  run_until(&loop, &a.count, 2);
  assert_true(mob_now_ms() - begin < 3 * MOB_TELEMETRY_PATIENCE_MS);
  assert_int_equal(a.busy, 73); // the last one, and its age
  assert_true(a.age_ms >= MOB_TELEMETRY_FRESH_MS + MOB_TELEMETRY_PATIENCE_MS - 50);
  mob_telemetry_get(t, on_sample, &a);
  begin = mob_now_ms();
  finish(&loop, t);
  assert_int_equal(a.count, 3);
  assert_true(mob_now_ms() - begin < MOB_TELEMETRY_PATIENCE_MS);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_detection, reset),
      cmocka_unit_test_setup(test_too_many, reset),
      cmocka_unit_test(test_interfaces),
      cmocka_unit_test(test_rdma),
      cmocka_unit_test_setup(test_samples, reset),
      cmocka_unit_test_setup(test_without_gpus, reset),
      cmocka_unit_test_setup(test_hanging_driver, reset),
  };
  return cmocka_run_group_tests_name("node.telemetry", tests, setup, teardown);
}
