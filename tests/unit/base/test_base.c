#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/base/buf.h"
#include "runtime/base/hex.h"
#include "runtime/base/mailbox.h"
#include "runtime/base/map.h"
#include "runtime/base/status.h"
#include "runtime/base/vec.h"

static void test_status_message_survives_its_own_formatting(void **state) {
  (void)state;
  assert_int_equal(mob_fail(MOB_E_IO, "disk %d", 3), MOB_E_IO);
  assert_int_equal(mob_fail(MOB_E_IO, "again: %s", mob_errmsg()), MOB_E_IO);
  mob_wrap(MOB_E_IO, "reading %s", "x");
  assert_string_equal(mob_errmsg(), "reading x: again: disk 3");
}

static void test_buf(void **state) {
  (void)state;
  mob_buf_t b = {0};
  for (int i = 0; i < 100; i++) mob_buf_printf(&b, "%d,", i);
  assert_int_equal(b.len, 290);
  mob_buf_consume(&b, 2);
  assert_memory_equal(mob_buf_cstr(&b), "1,2,3,", 6);
  mob_buf_free(&b);
}

static void test_map_against_removals(void **state) {
  (void)state;
  mob_map_t m = {0};
  char key[16];
  for (intptr_t i = 1; i <= 1000; i++) {
    snprintf(key, sizeof key, "k%d", (int)i);
    assert_null(mob_map_puts(&m, key, (void *)i));
  }
  for (intptr_t i = 1; i <= 1000; i += 2) {
    snprintf(key, sizeof key, "k%d", (int)i);
    assert_int_equal((intptr_t)mob_map_removes(&m, key), i);
  }
  assert_int_equal(m.count, 500);
  intptr_t expected = 2;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&m, e));) {
    assert_int_equal((intptr_t)e->value, expected);
    expected += 2;
  }
  for (intptr_t i = 1; i <= 5000; i++) { // re-inserting over dead entries
    snprintf(key, sizeof key, "k%d", (int)i);
    mob_map_puts(&m, key, (void *)(i + 7));
  }
  assert_int_equal(m.count, 5000);
  assert_int_equal((intptr_t)mob_map_gets(&m, "k1"), 8);
  assert_null(mob_map_gets(&m, "k5001"));
  mob_map_free(&m);
}

static void test_hex(void **state) {
  (void)state;
  uint8_t bytes[3];
  char text[7];
  assert_int_equal(mob_unhex("00fF7a", bytes, 3), MOB_OK);
  assert_string_equal(mob_hex(bytes, 3, text), "00ff7a");
  assert_int_equal(mob_unhex("00f", bytes, 2), MOB_E_FORMAT);
  assert_int_equal(mob_unhex("0g", bytes, 1), MOB_E_FORMAT);
}

enum { THREADS = 4, POSTS = 5000 };

typedef struct receiver {
  mob_mailbox_t *box;
  intptr_t last[THREADS];
  int count;
} receiver_t;

static void on_message(void *owner, void *message) {
  receiver_t *r = owner;
  intptr_t value = (intptr_t)message;
  assert_true(value / THREADS > r->last[value % THREADS]); // order of each thread
  r->last[value % THREADS] = value / THREADS;
  if (++r->count == THREADS * POSTS) mob_mailbox_close(r->box);
}

typedef struct poster {
  mob_mailbox_t *box;
  intptr_t id;
} poster_t;

static void *post(void *arg) {
  poster_t *p = arg;
  for (intptr_t i = 1; i <= POSTS; i++) mob_mailbox_post(p->box, (void *)(i * THREADS + p->id));
  return NULL;
}

static void test_mailbox_many_threads(void **state) {
  (void)state;
  uv_loop_t loop;
  uv_loop_init(&loop);
  receiver_t r = {0};
  r.box = mob_mailbox_new(&loop, on_message, &r);
  pthread_t threads[THREADS];
  poster_t posters[THREADS];
  for (int i = 0; i < THREADS; i++) {
    posters[i] = (poster_t){r.box, i};
    pthread_create(&threads[i], NULL, post, &posters[i]);
  }
  uv_run(&loop, UV_RUN_DEFAULT);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  assert_int_equal(r.count, THREADS * POSTS);
  assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_status_message_survives_its_own_formatting),
      cmocka_unit_test(test_buf),
      cmocka_unit_test(test_map_against_removals),
      cmocka_unit_test(test_hex),
      cmocka_unit_test(test_mailbox_many_threads),
  };
  return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
