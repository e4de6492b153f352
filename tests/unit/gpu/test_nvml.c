// What NVML shows and what CUDA_VISIBLE_DEVICES lets through, against the double of the library.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/gpu/nvml.h"
#include "runtime/gpu/visible.h"
#include "tests/support/nvml/machine.h"

static const char four[] = "gpu uuid=GPU-aa11 name=NVIDIA_H200 memory=150754820096 used=5000\n"
                           "gpu uuid=GPU-aa22 name=NVIDIA_H200 memory=150754820096 used=5000\n"
                           "gpu uuid=GPU-bb33 name=NVIDIA_H200 memory=150754820096 used=5000\n"
                           "gpu uuid=GPU-cc44 name=NVIDIA_H200 memory=150754820096 used=5000\n";
static const char unlike[] = "gpu uuid=GPU-aa11 name=NVIDIA_H200 memory=1\n"
                             "gpu uuid=GPU-aa22 name=NVIDIA_A100-SXM4-80GB memory=1\n"
                             "gpu uuid=GPU-bb33 name=NVIDIA_H200 memory=1 mig=1\n";

static int setup(void **state) {
  (void)state;
  machine_open();
  return 0;
}

static void test_absent(void **state) {
  (void)state;
  mob_nvml_t *nvml = NULL;
  setenv("MOB_NVML_LIB", "libno-such-library.so.1", 1);
  assert_int_equal(mob_nvml_open(&nvml), MOB_E_UNSUPPORTED);
  assert_non_null(strstr(mob_errmsg(), "libno-such-library.so.1"));
  setenv("MOB_NVML_LIB", MOB_BINARY_DIR "/tests/nvml_double.so", 1);
  setenv("MOB_NVML_DOUBLE", "/nowhere", 1);
  assert_int_equal(mob_nvml_open(&nvml), MOB_E_UNSUPPORTED);
  assert_string_equal(mob_errmsg(), "NVML does not start: Driver Not Loaded");
  setenv("MOB_NVML_DOUBLE", machine_path, 1);
  machine("nothing\n");
  assert_int_equal(mob_nvml_open(&nvml), MOB_E_UNSUPPORTED);
  assert_string_equal(mob_errmsg(), "NVML shows no GPU");
  assert_null(nvml);
}

static void test_list(void **state) {
  (void)state;
  mob_nvml_t *nvml = NULL;
  machine(unlike);
  assert_int_equal(mob_nvml_open(&nvml), MOB_OK);
  assert_int_equal(mob_nvml_count(nvml), 3);
  const mob_gpu_info_t *gpu = mob_nvml_gpu(nvml, 1);
  assert_int_equal(gpu->index, 1);
  assert_string_equal(gpu->uuid, "GPU-aa22");
  assert_string_equal(gpu->name, "NVIDIA A100-SXM4-80GB");
  assert_string_equal(gpu->pci, "00000000:1C:00.0");
  assert_int_equal(gpu->major, 9);
  assert_false(gpu->mig);
  assert_true(mob_nvml_gpu(nvml, 2)->mig);
  assert_string_equal(mob_nvml_driver(nvml), "550.54.15");
  mob_nvml_close(nvml);
}

static void test_sample(void **state) {
  (void)state;
  mob_nvml_t *nvml = NULL;
  mob_gpu_sample_t s;
  machine("gpu uuid=GPU-1 name=NVIDIA_H200 memory=1000 used=400 busy=73 membusy=12 sm=1980 "
          "memclock=2619 power=612345 limit=700000 temp=61 throttle=4 ecc=2 nvtx=10 nvrx=20 "
          "pcietx=300 pcierx=400\ngpu uuid=GPU-2 name=NVIDIA_T4 memory=1000\n");
  assert_int_equal(mob_nvml_open(&nvml), MOB_OK);
  mob_nvml_sample(nvml, 0, &s);
  const int64_t all[MOB_GPU_FIELDS] = {73, 12, 400, 1000,  1980000000, 2619000000, 612345, 700000,
                                       61, 4,  2,   10240, 20480,      300,        400};
  for (int i = 0; i < MOB_GPU_FIELDS; i++) assert_int_equal(s.value[i], all[i]);
  assert_false(s.lost);
  // What an older GPU does not tell is unknown, not 0; its memory comes from the older call.
  mob_nvml_sample(nvml, 1, &s);
  for (int i = 0; i < MOB_GPU_FIELDS; i++) {
    bool known = i == MOB_GPU_MEMORY_USED || i == MOB_GPU_MEMORY_TOTAL;
    assert_int_equal(s.value[i], i == MOB_GPU_MEMORY_TOTAL ? 1000 : known ? 0 : -1);
  }
  machine("gpu uuid=GPU-1 name=NVIDIA_H200 memory=1000 used=400 busy=73 lost=1\n");
  mob_nvml_sample(nvml, 0, &s);
  assert_true(s.lost);
  for (int i = 0; i < MOB_GPU_FIELDS; i++) assert_int_equal(s.value[i], -1);
  mob_nvml_close(nvml);
}

// Where links cannot be asked, the performance monitor's rates become counters.
static void test_nvlink_rates(void **state) {
  (void)state;
  mob_nvml_t *nvml = NULL;
  mob_gpu_sample_t s;
  machine("gpu uuid=GPU-1 name=NVIDIA_H200 memory=1000 gpmtx=4096 gpmrx=1024\n");
  assert_int_equal(mob_nvml_open(&nvml), MOB_OK);
  mob_nvml_sample(nvml, 0, &s);
  assert_int_equal(s.value[MOB_GPU_NVLINK_SENT], 0);
  int64_t sent = 0;
  for (int i = 0; i < 3; i++) {
    mob_nvml_sample(nvml, 0, &s);
    assert_true(s.value[MOB_GPU_NVLINK_SENT] > sent);
    sent = s.value[MOB_GPU_NVLINK_SENT];
    const int64_t ratio = sent / (s.value[MOB_GPU_NVLINK_RECEIVED] + 1);
    assert_in_range(ratio, 3, 4);
  }
  machine("gpu uuid=GPU-1 name=NVIDIA_H200 memory=1000\n"); // the metric is refused: no counter any
                                                            // more
  mob_nvml_sample(nvml, 0, &s);
  assert_int_equal(s.value[MOB_GPU_NVLINK_SENT], -1);
  assert_int_equal(s.value[MOB_GPU_NVLINK_RECEIVED], -1);
  mob_nvml_sample(nvml, 0, &s);
  assert_int_equal(s.value[MOB_GPU_NVLINK_SENT], -1);
  mob_nvml_close(nvml);
}

// `expected`: "index:name index:name"
static void sees(mob_nvml_t *nvml, const char *visible, const char *order, const char *expected,
                 const char *note) {
  mob_visible_gpus_t gpus;
  char text[256] = "";
  mob_gpus_visible(nvml, visible, order, &gpus);
  for (size_t i = 0; i < gpus.list.len; i++) {
    size_t len = strlen(text);
    snprintf(text + len, sizeof text - len, "%s%d:%s", i ? " " : "", gpus.list.at[i].index,
             gpus.list.at[i].name);
  }
  assert_string_equal(text, expected);
  if (*note)
    assert_non_null(strstr(gpus.note, note));
  else
    assert_string_equal(gpus.note, "");
  assert_int_equal(gpus.bus_order, visible == NULL);
  mob_visible_gpus_free(&gpus);
}

static void test_visible(void **state) {
  (void)state;
  mob_nvml_t *nvml = NULL;
  machine(four);
  assert_int_equal(mob_nvml_open(&nvml), MOB_OK);
  sees(nvml, NULL, NULL, "0:0 1:1 2:2 3:3", "");
  sees(nvml, "", NULL, "", "");
  sees(nvml, "-1", NULL, "", "");
  sees(nvml, "NoDevFiles", NULL, "", "");
  sees(nvml, "2,0", NULL, "2:2 0:0", "");
  sees(nvml, " 1 , 3 ", NULL, "1:1 3:3", "");
  sees(nvml, "1,-1,2", NULL, "1:1", "");
  sees(nvml, "1,4,2", NULL, "1:1", "'4' names no GPU");
  sees(nvml, "1x", NULL, "", "'1x' names no GPU");
  sees(nvml, "99999999999999999999", NULL, "", "names no GPU");
  sees(nvml, "GPU-bb33,GPU-c", NULL, "2:GPU-bb33 3:GPU-c", "");
  sees(nvml, "gpu-BB33", NULL, "2:gpu-BB33", "");
  sees(nvml, "GPU-cc44,GPU-aa,0", NULL, "3:GPU-cc44", "'GPU-aa' names no GPU"); // two begin so
  sees(nvml, "GPU-dd", NULL, "", "names no GPU");
  sees(nvml, "0,1,0", NULL, "", "'0' twice");
  sees(nvml, "0,GPU-aa11", NULL, "", "'GPU-aa11' twice");
  sees(nvml, "MIG-123,MIG-124", NULL, "-1:MIG-123 -1:MIG-124", "");
  sees(nvml, "MIG-123,mig-123", NULL, "", "twice");
  mob_nvml_close(nvml);
}

static void test_unlike(void **state) {
  (void)state;
  mob_nvml_t *nvml = NULL;
  machine(unlike);
  assert_int_equal(mob_nvml_open(&nvml), MOB_OK);
  sees(nvml, NULL, NULL, "0:0 1:1", "GPU 2 is partitioned (MIG)");
  sees(nvml, "1,0", NULL, "1:1 0:0", "CUDA_DEVICE_ORDER=PCI_BUS_ID");
  sees(nvml, "1,0", "PCI_BUS_ID", "1:1 0:0", "");
  sees(nvml, "GPU-aa2", NULL, "1:GPU-aa2", "");
  sees(nvml, "0,2,1", "PCI_BUS_ID", "0:0", "GPU 2 is partitioned (MIG)");
  mob_nvml_close(nvml);
}

static void test_type(void **state) {
  (void)state;
  static const char *const names[][2] = {
      {"NVIDIA H200", "H200"},
      {"NVIDIA H100 80GB HBM3", "H100"},
      {"NVIDIA A100-SXM4-40GB", "A100"},
      {"Tesla V100-SXM2-16GB", "V100"},
      {"Tesla K80", "K80"},
      {"NVIDIA GeForce RTX 3090", "G"}, // as Ray has it
      {"NVIDIA", ""},
      {"Graphics-Device X1", ""},
      {"", ""},
  };
  for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
    char type[32];
    mob_gpu_type(names[i][0], type, sizeof type);
    assert_string_equal(type, names[i][1]);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_absent),  cmocka_unit_test(test_list),
      cmocka_unit_test(test_sample),  cmocka_unit_test(test_nvlink_rates),
      cmocka_unit_test(test_visible), cmocka_unit_test(test_unlike),
      cmocka_unit_test(test_type),
  };
  return cmocka_run_group_tests_name("gpu.nvml", tests, setup, machine_close);
}
