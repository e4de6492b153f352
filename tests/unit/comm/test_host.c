#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/comm/comm.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

enum { MAX_RANKS = 16 };

typedef struct member {
  mob_comm_t *comm;
  int rank, size;
  size_t n;
  float *result;
  mob_status status;
} member_t;

static void run(int size, void *(*fn)(void *), member_t *members, size_t n) {
  pthread_t threads[MAX_RANKS];
  mob_comm_t *comm;
  assert_int_equal(mob_comm_host.open(size, &comm), MOB_OK);
  for (int r = 0; r < size; r++) {
    members[r] = (member_t){comm, r, size, n, MOB_NEW_ARRAY(float, n *(size_t)size + 1), MOB_OK};
    assert_int_equal(pthread_create(&threads[r], NULL, fn, &members[r]), 0);
  }
  for (int r = 0; r < size; r++) pthread_join(threads[r], NULL);
  mob_comm_host.close(comm);
}

static float value(int rank, size_t i) {
  return (float)rank * 0.3f + (float)(i % 1013) * 0.7f;
}

static void *reduce_many_times(void *arg) {
  member_t *m = arg;
  for (int round = 0; round < 50 && m->status == MOB_OK; round++) {
    for (size_t i = 0; i < m->n; i++) m->result[i] = value(m->rank, i + (size_t)round);
    m->status = mob_comm_host.all_reduce(m->comm, m->rank, m->result, m->n);
  }
  return NULL;
}

static void test_all_reduce_adds_in_rank_order_on_every_rank(void **state) {
  (void)state;
  static const int sizes[] = {1, 2, 3, 8, 16};
  static const size_t lengths[] = {1, 7, 1000, 16384, 16385, 40000};
  for (size_t s = 0; s < MOB_LEN(sizes); s++) {
    for (size_t l = 0; l < MOB_LEN(lengths); l++) {
      member_t members[MAX_RANKS];
      run(sizes[s], reduce_many_times, members, lengths[l]);
      for (size_t i = 0; i < lengths[l]; i++) {
        float sum = value(0, i + 49);
        for (int r = 1; r < sizes[s]; r++) sum += value(r, i + 49);
        for (int r = 0; r < sizes[s]; r++) assert_true(members[r].result[i] == sum);
      }
      for (int r = 0; r < sizes[s]; r++) {
        assert_int_equal(members[r].status, MOB_OK);
        free(members[r].result);
      }
    }
  }
}

static void *gather_and_broadcast(void *arg) {
  member_t *m = arg;
  float part[3];
  for (int round = 0; round < 100; round++) {
    for (size_t i = 0; i < m->n; i++) part[i] = value(m->rank, i + (size_t)round);
    m->status = mob_comm_host.all_gather(m->comm, m->rank, part, m->result, m->n);
    for (int r = 0; r < m->size; r++)
      for (size_t i = 0; i < m->n; i++)
        if (m->result[(size_t)r * m->n + i] != value(r, i + (size_t)round))
          m->status = MOB_E_INTERNAL;
    int word = m->rank == round % m->size ? round : -1;
    if (m->status == MOB_OK)
      m->status = mob_comm_host.broadcast(m->comm, m->rank, round % m->size, &word, sizeof word);
    if (word != round) m->status = MOB_E_INTERNAL;
    if (m->status != MOB_OK) return NULL;
  }
  return NULL;
}

static void test_all_gather_and_broadcast(void **state) {
  (void)state;
  for (int size = 1; size <= 5; size += 2) {
    member_t members[MAX_RANKS];
    run(size, gather_and_broadcast, members, 3);
    for (int r = 0; r < size; r++) {
      assert_int_equal(members[r].status, MOB_OK);
      free(members[r].result);
    }
  }
}

static void *missing_rank(void *arg) {
  member_t *m = arg;
  if (m->rank == 1) {
    usleep(20000); // never arrives, but gives up for all
    mob_comm_host.abort(m->comm);
    return NULL;
  }
  m->status = mob_comm_host.all_reduce(m->comm, m->rank, m->result, m->n);
  if (m->status == MOB_E_ABORTED)
    m->status = mob_comm_host.barrier(m->comm, m->rank); // later calls fail at once
  return NULL;
}

static void test_abort_frees_those_who_wait(void **state) {
  (void)state;
  for (size_t n = 4; n < 100000; n *= 1000) {
    member_t members[MAX_RANKS];
    uint64_t begin = mob_now_ms();
    run(4, missing_rank, members, n);
    assert_true(mob_now_ms() - begin < 2000);
    for (int r = 0; r < 4; r++) {
      if (r != 1) assert_int_equal(members[r].status, MOB_E_ABORTED);
      free(members[r].result);
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_all_reduce_adds_in_rank_order_on_every_rank),
      cmocka_unit_test(test_all_gather_and_broadcast),
      cmocka_unit_test(test_abort_frees_those_who_wait),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
