// The machine that the double of NVML shows. Include it behind <cmocka.h>.
#ifndef MOB_TEST_NVML_MACHINE_H
#define MOB_TEST_NVML_MACHINE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char machine_path[64];

static inline void machine(const char *lines) { // double.c says which
  FILE *file = fopen(machine_path, "w");
  assert_non_null(file);
  fputs(lines, file);
  fclose(file);
}

static inline void machine_open(void) {
  strcpy(machine_path, "/tmp/mob-nvml-XXXXXX");
  int fd = mkstemp(machine_path);
  assert_true(fd >= 0);
  close(fd);
  setenv("MOB_NVML_LIB", MOB_BINARY_DIR "/tests/nvml_double.so", 1);
  setenv("MOB_NVML_DOUBLE", machine_path, 1);
}

static inline int machine_close(void **state) { // a group's teardown
  (void)state;
  unlink(machine_path);
  return 0;
}

#endif
