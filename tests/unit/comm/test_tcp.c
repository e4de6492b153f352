// The ring of links: joining, data both ways round, refusals, abort and the death of a peer.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <arpa/inet.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "engine/comm/tcp.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"

enum { MOST = 4 };

typedef struct member {
  mob_ring_t *ring;
  int port, next_port;
  mob_ring_self_t self;
  uint64_t timeout_ms;
  mob_link_t *next, *prev;
  mob_status status;
  char why[512];
  pthread_t thread;
} member_t;

static void *join(void *arg) {
  member_t *m = arg;
  m->status = mob_ring_join(m->ring, "127.0.0.1", m->next_port, &m->self, m->timeout_ms, &m->next,
                            &m->prev);
  if (m->status != MOB_OK) snprintf(m->why, sizeof m->why, "%s", mob_errmsg());
  return NULL;
}

static void open_members(member_t *m, uint32_t count, uint64_t timeout_ms) {
  memset(m, 0, count * sizeof *m);
  for (uint32_t i = 0; i < count; i++) {
    assert_int_equal(mob_ring_open("127.0.0.1", &m[i].ring, &m[i].port), MOB_OK);
    m[i].self =
        (mob_ring_self_t){.group = "group", .epoch = 7, .model = 99, .stage = i, .stages = count};
    m[i].timeout_ms = timeout_ms;
  }
  for (uint32_t i = 0; i < count; i++) m[i].next_port = m[(i + 1) % count].port;
}

static void join_all(member_t *m, uint32_t count) {
  for (uint32_t i = 0; i < count; i++)
    assert_int_equal(pthread_create(&m[i].thread, NULL, join, &m[i]), 0);
  for (uint32_t i = 0; i < count; i++) pthread_join(m[i].thread, NULL);
}

static void close_members(member_t *m, uint32_t count) {
  for (uint32_t i = 0; i < count; i++) {
    mob_ring_close(m[i].ring);
    mob_link_tcp.close(m[i].next);
    mob_link_tcp.close(m[i].prev);
  }
}

enum { BIG = 8 << 20 };

static void *pass_on(void *arg) {
  member_t *m = arg;
  char *data = mob_malloc(BIG);
  for (int round = 0; round < 3 && m->status == MOB_OK; round++) {
    m->status = mob_link_tcp.recv(m->prev, data, BIG);
    for (size_t i = 0; i < BIG; i += 4096) data[i]++;
    if (m->status == MOB_OK) m->status = mob_link_tcp.send(m->next, data, BIG);
  }
  free(data);
  return NULL;
}

static void test_ring_passes_bytes_round(void **state) {
  (void)state;
  for (uint32_t count = 2; count <= MOST; count++) {
    member_t m[MOST];
    open_members(m, count, 5000);
    join_all(m, count);
    for (uint32_t i = 0; i < count; i++) assert_int_equal(m[i].status, MOB_OK);
    for (uint32_t i = 1; i < count; i++)
      assert_int_equal(pthread_create(&m[i].thread, NULL, pass_on, &m[i]), 0);
    char *data = mob_calloc(1, BIG);
    for (int round = 0; round < 3; round++) {
      assert_int_equal(mob_link_tcp.send(m[0].next, data, BIG), MOB_OK);
      assert_int_equal(mob_link_tcp.recv(m[0].prev, data, BIG), MOB_OK);
    }
    for (size_t i = 0; i < BIG; i += 4096) assert_int_equal(data[i], (int)(3 * (count - 1)));
    for (uint32_t i = 1; i < count; i++) pthread_join(m[i].thread, NULL);
    free(data);
    close_members(m, count);
  }
}

static void refused(void (*change)(mob_ring_self_t *), const char *value_a, const char *value_b) {
  member_t m[2];
  open_members(m, 2, 20000);
  change(&m[1].self);
  uint64_t start = mob_now_ms();
  join_all(m, 2);
  assert_true(mob_now_ms() - start < 5000); // at once, not at the deadline
  for (int i = 0; i < 2; i++) {
    assert_int_not_equal(m[i].status, MOB_OK);
    bool told = strstr(m[i].why, value_a) && strstr(m[i].why, value_b);
    assert_true(told || m[i].status == MOB_E_UNAVAILABLE); // the other may have hung up first
  }
  assert_true(m[0].status == MOB_E_INVALID || m[1].status == MOB_E_INVALID);
  close_members(m, 2);
}

static void other_epoch(mob_ring_self_t *self) {
  self->epoch = 8;
}
static void other_model(mob_ring_self_t *self) {
  self->model = 0xabc;
}
static void other_group(mob_ring_self_t *self) {
  memcpy(self->group, "GROUP", 5);
}

static void test_mismatch_is_refused_with_both_values(void **state) {
  (void)state;
  refused(other_epoch, " 7 ", " 8 ");
  refused(other_model, "0000000000000063", "0000000000000abc");
  refused(other_group, "67726f7570", "47524f5550");
}

static void *bother(void *arg) {
  member_t *m = arg;
  struct sockaddr_in a = {.sin_family = AF_INET,
                          .sin_port = htons((uint16_t)m->port),
                          .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(fd, (struct sockaddr *)&a, sizeof a) != 0) return NULL;
  char garbage[100];
  memset(garbage, 'x', sizeof garbage);
  if (send(fd, garbage, sizeof garbage, MSG_NOSIGNAL) < 0) return NULL;
  while (recv(fd, garbage, sizeof garbage, 0) > 0) {
  }
  close(fd);
  return NULL;
}

static void test_strangers_do_not_disturb(void **state) {
  (void)state;
  member_t m[2];
  open_members(m, 2, 10000);
  pthread_t stranger;
  assert_int_equal(pthread_create(&m[0].thread, NULL, join, &m[0]), 0);
  assert_int_equal(pthread_create(&stranger, NULL, bother, &m[0]), 0);
  pthread_join(stranger, NULL);
  assert_int_equal(pthread_create(&m[1].thread, NULL, join, &m[1]), 0);
  for (int i = 0; i < 2; i++) pthread_join(m[i].thread, NULL);
  assert_int_equal(m[0].status, MOB_OK);
  assert_int_equal(m[1].status, MOB_OK);
  close_members(m, 2);
}

static void *receive(void *arg) {
  member_t *m = arg;
  char byte;
  m->status = mob_link_tcp.recv(m->prev, &byte, 1);
  return NULL;
}

static void test_abort_ends_a_wait(void **state) {
  (void)state;
  member_t m[2];
  open_members(m, 2, 5000);
  join_all(m, 2);
  assert_int_equal(pthread_create(&m[0].thread, NULL, receive, &m[0]), 0);
  mob_link_tcp.abort(m[0].prev);
  pthread_join(m[0].thread, NULL);
  assert_int_equal(m[0].status, MOB_E_ABORTED);
  assert_int_equal(mob_link_tcp.send(m[0].prev, "x", 1), MOB_E_ABORTED);
  close_members(m, 2);
}

static void *send_for_ever(void *arg) {
  member_t *m = arg;
  char *data = mob_calloc(1, BIG);
  do {
    m->status = mob_link_tcp.send(m->next, data, BIG);
  } while (m->status == MOB_OK);
  free(data);
  return NULL;
}

static void test_abort_ends_a_full_send(void **state) {
  (void)state;
  member_t m[2];
  open_members(m, 2, 5000);
  join_all(m, 2);
  assert_int_equal(pthread_create(&m[0].thread, NULL, send_for_ever, &m[0]), 0);
  char byte;
  assert_int_equal(mob_link_tcp.recv(m[1].prev, &byte, 1), MOB_OK); // it is sending
  mob_link_tcp.abort(m[0].next);
  pthread_join(m[0].thread, NULL);
  assert_int_equal(m[0].status, MOB_E_ABORTED);
  close_members(m, 2);
}

static void *send_twice(void *arg) {
  member_t *m = arg;
  char *data = mob_calloc(1, BIG);
  m->status = mob_link_tcp.send(m->next, data, BIG);
  if (m->status == MOB_OK) m->status = mob_link_tcp.send(m->next, data, BIG);
  free(data);
  return NULL;
}

// A stage computes a long step and reads nothing meanwhile: its window is shut, and it is well.
static void test_a_busy_peer_is_not_a_dead_one(void **state) {
  (void)state;
  member_t m[2];
  open_members(m, 2, 5000);
  join_all(m, 2);
  assert_int_equal(pthread_create(&m[0].thread, NULL, send_twice, &m[0]), 0);
  struct timespec long_step = {.tv_sec = 8};
  nanosleep(&long_step, NULL);
  char *data = mob_malloc(BIG);
  for (int i = 0; i < 2; i++) assert_int_equal(mob_link_tcp.recv(m[1].prev, data, BIG), MOB_OK);
  free(data);
  pthread_join(m[0].thread, NULL);
  assert_int_equal(m[0].status, MOB_OK);
  close_members(m, 2);
}

static void test_death_of_the_peer_ends_a_wait(void **state) {
  (void)state;
  member_t m[2];
  open_members(m, 2, 5000);
  join_all(m, 2);
  assert_int_equal(pthread_create(&m[0].thread, NULL, receive, &m[0]), 0);
  mob_link_tcp.close(m[1].next);
  m[1].next = NULL;
  pthread_join(m[0].thread, NULL);
  assert_int_equal(m[0].status, MOB_E_UNAVAILABLE);
  close_members(m, 2);
}

static void test_nobody_comes(void **state) {
  (void)state;
  member_t m[2];
  open_members(m, 2, 200);
  join(&m[0]);
  assert_int_equal(m[0].status, MOB_E_TIMEOUT);
  close_members(m, 2);
  open_members(m, 2, 20000);
  m[0].timeout_ms = 20000;
  assert_int_equal(pthread_create(&m[0].thread, NULL, join, &m[0]), 0);
  mob_ring_abort(m[0].ring);
  pthread_join(m[0].thread, NULL);
  assert_int_equal(m[0].status, MOB_E_ABORTED);
  close_members(m, 2);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_ring_passes_bytes_round),
      cmocka_unit_test(test_mismatch_is_refused_with_both_values),
      cmocka_unit_test(test_strangers_do_not_disturb),
      cmocka_unit_test(test_abort_ends_a_wait),
      cmocka_unit_test(test_abort_ends_a_full_send),
      cmocka_unit_test(test_a_busy_peer_is_not_a_dead_one),
      cmocka_unit_test(test_death_of_the_peer_ends_a_wait),
      cmocka_unit_test(test_nobody_comes),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
