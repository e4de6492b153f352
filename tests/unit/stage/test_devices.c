// Which GPUs a stage computes on, and what it refuses; NVML is the double.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "engine/stage/devices.h"
#include "tests/support/nvml/machine.h"

static int setup(void **state) {
  (void)state;
  machine_open();
  machine("gpu uuid=GPU-1 name=NVIDIA_H200 memory=150754820096\n"
          "gpu uuid=GPU-2 name=NVIDIA_H200 memory=150754000000\n"
          "gpu uuid=GPU-3 name=NVIDIA_H100_80GB_HBM3 memory=85520809984\n"
          "gpu uuid=GPU-4 name=NVIDIA_H100_80GB_HBM3 memory=85520809984\n");
  return 0;
}

static int reset(void **state) {
  (void)state;
  unsetenv("CUDA_VISIBLE_DEVICES");
  unsetenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES");
  setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID", 1);
  return 0;
}

static void gets(mob__device_ask_t ask, int first, int second) {
  int out[8] = {-1, -1, -1, -1, -1, -1, -1, -1};
  ask.node = "10.0.0.2";
  mob_status status = mob__stage_devices(&ask, out);
  if (status != MOB_OK) print_message("%s\n", mob_errmsg());
  assert_int_equal(status, MOB_OK);
  assert_int_equal(out[0], first);
  assert_int_equal(out[1], second);
}

static void refuses(mob__device_ask_t ask, mob_status expected, const char *text) {
  int out[8];
  ask.node = "10.0.0.2";
  assert_int_equal(mob__stage_devices(&ask, out), expected);
  if (!strstr(mob_errmsg(), text)) print_message("%s\n", mob_errmsg());
  assert_non_null(strstr(mob_errmsg(), text));
}

static void test_leased(void **state) {
  (void)state;
  const int ids[] = {2, 3};
  mob__device_ask_t ask = {
      .stage = 1, .place = 1, .places = 2, .tp = 2, .leased = ids, .leased_count = 2, .visible = 4};
  // The process sees all of the node's: the lease's places are CUDA's numbers.
  gets(ask, 2, 3);
  // The node daemon shows it its own: CUDA numbers them from 0.
  setenv("CUDA_VISIBLE_DEVICES", "2,3", 1);
  ask.visible = 2;
  gets(ask, 0, 1);
  setenv("RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "1", 1);
  setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3", 1); // the user's
  ask.visible = 4;
  gets(ask, 2, 3);
}

static void test_alone(void **state) {
  (void)state;
  gets((mob__device_ask_t){.stage = 0, .place = 0, .places = 2, .tp = 2, .visible = 4}, 0, 1);
  gets((mob__device_ask_t){.stage = 1, .place = 1, .places = 2, .tp = 2, .visible = 4}, 2, 3);
  gets((mob__device_ask_t){.stage = 1, .place = 1, .places = 2, .tp = 1, .visible = 1}, 0,
       -1); // shared
}

static void test_too_few(void **state) {
  (void)state;
  const int ids[] = {0, 5};
  mob__device_ask_t ask = {.places = 1, .tp = 4, .visible = 2};
  refuses(ask, MOB_E_NO_RESOURCES,
          "stage 0 on 10.0.0.2 needs 4 GPUs (--tensor-parallel-size), and its process sees 2:");
  setenv("CUDA_VISIBLE_DEVICES", "1,2", 1);
  refuses(ask, MOB_E_NO_RESOURCES, "sees 2 of CUDA_VISIBLE_DEVICES=1,2:");
  unsetenv("CUDA_VISIBLE_DEVICES");
  ask = (mob__device_ask_t){.places = 1, .tp = 2, .leased = ids, .leased_count = 2, .visible = 4};
  refuses(ask, MOB_E_NO_RESOURCES, "needs 2 GPUs");
  ask.leased_count = 1;
  refuses(ask, MOB_E_NO_RESOURCES, "was given 1 GPUs of its node");
}

static void test_unlike(void **state) {
  (void)state;
  const int ids[] = {1, 2};
  mob__device_ask_t ask = {.places = 1, .tp = 2, .leased = ids, .leased_count = 2, .visible = 4};
  refuses(ask, MOB_E_INVALID,
          "the GPUs of stage 0 on 10.0.0.2 are not alike: GPU 1 is NVIDIA H200 (140 GiB), GPU 2 is "
          "NVIDIA H100 80GB HBM3 (80 GiB)");
  ask.tp = 1; // one of them is alike with itself
  gets(ask, 1, -1);
  setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-4", 1);
  refuses((mob__device_ask_t){.places = 1, .tp = 2, .visible = 2}, MOB_E_INVALID,
          "GPU 0 is NVIDIA H200 (140 GiB), GPU 3 is NVIDIA H100");
  setenv("CUDA_VISIBLE_DEVICES", "GPU-4,GPU-3", 1);
  gets((mob__device_ask_t){.places = 1, .tp = 2, .visible = 2}, 0, 1);
  setenv("MOB_NVML_DOUBLE", "/nowhere", 1); // nobody can say
  setenv("CUDA_VISIBLE_DEVICES", "GPU-1,GPU-4", 1);
  gets((mob__device_ask_t){.places = 1, .tp = 2, .visible = 2}, 0, 1);
  setenv("MOB_NVML_DOUBLE", machine_path, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(test_leased, reset),
      cmocka_unit_test_setup(test_alone, reset),
      cmocka_unit_test_setup(test_too_few, reset),
      cmocka_unit_test_setup(test_unlike, reset),
  };
  return cmocka_run_group_tests_name("stage.devices", tests, setup, machine_close);
}
