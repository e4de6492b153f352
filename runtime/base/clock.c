#include "runtime/base/clock.h"

#include <time.h>

static struct timespec read_clock(clockid_t id) {
  struct timespec t;
  clock_gettime(id, &t);
  return t;
}

uint64_t mob_now_ns(void) {
  struct timespec t = read_clock(CLOCK_MONOTONIC);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

uint64_t mob_now_ms(void) {
  return mob_now_ns() / 1000000u;
}

int64_t mob_wall_ms(void) {
  struct timespec t = read_clock(CLOCK_REALTIME);
  return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

double mob_wall_seconds(void) {
  struct timespec t = read_clock(CLOCK_REALTIME);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}
