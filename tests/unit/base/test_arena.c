#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "runtime/base/arena.h"

static void test_arena(void **state) {
  (void)state;
  mob_arena_t arena = {0};
  char *texts[2000];
  for (int i = 0; i < 2000; i++) {
    texts[i] = mob_arena_sprintf(&arena, "text %d", i);
    uint64_t *number = mob_arena_alloc(&arena, sizeof *number);
    assert_int_equal((uintptr_t)number % 16, 0);
    assert_int_equal(*number, 0);
    *number = UINT64_MAX;
  }
  char *big = mob_arena_alloc(&arena, 100000); // larger than a block
  for (int i = 0; i < 100000; i++) assert_int_equal(big[i], 0);
  memset(big, 1, 100000);
  assert_string_equal(texts[0], "text 0");
  assert_string_equal(texts[1999], "text 1999");
  assert_string_equal(mob_arena_strndup(&arena, "abc", 2), "ab");
  assert_string_equal(mob_arena_strdup(&arena, ""), "");
  mob_arena_free(&arena);
  assert_null(arena.blocks);
  mob_arena_free(&arena);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_arena)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
