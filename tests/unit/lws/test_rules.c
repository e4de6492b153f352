// Small rules of the kubelet and the API server: $(VAR), quantities, restart delays, command lines.
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "launcher/lws/backoff.h"
#include "launcher/lws/expand.h"
#include "launcher/lws/options.h"
#include "launcher/lws/quantity.h"

static const char *lookup(void *arg, const char *name) {
  (void)arg;
  if (strcmp(name, "LWS_GROUP_SIZE") == 0) return "2";
  if (strcmp(name, "EMPTY") == 0) return "";
  if (strcmp(name, "REF") == 0) return "$(LWS_GROUP_SIZE)";
  return NULL;
}

static void expands(const char *text, const char *wanted) {
  char *got = mob__lws_expand(text, lookup, NULL);
  assert_string_equal(got, wanted);
  free(got);
}

static void test_expand(void **state) {
  (void)state;
  expands("--size=$(LWS_GROUP_SIZE);x", "--size=2;x");
  expands("$$(LWS_GROUP_SIZE)", "$(LWS_GROUP_SIZE)");
  expands("$$$(LWS_GROUP_SIZE)", "$2");
  expands("$(UNKNOWN) $(EMPTY)|", "$(UNKNOWN) |");
  expands("$(REF)", "$(LWS_GROUP_SIZE)"); // values are not expanded again
  expands("$HOME ${HOME} $", "$HOME ${HOME} $");
  expands("$(open", "$(open");
  expands("a$$", "a$");
  expands("", "");
}

static void test_quantity(void **state) {
  (void)state;
  int64_t n;
  assert_true(mob__lws_quantity("512G", &n) && n == 512000000000);
  assert_true(mob__lws_quantity("32Gi", &n) && n == 32LL << 30);
  assert_true(mob__lws_quantity("64", &n) && n == 64);
  assert_true(mob__lws_quantity("100m", &n) && n == 1); // rounds up
  assert_true(mob__lws_quantity_millis("1.5", &n) && n == 1500);
  assert_true(mob__lws_quantity_millis("0.1", &n) && n == 100);
  assert_true(mob__lws_quantity("1e3", &n) && n == 1000);
  static const char *const bad[] = {
      "", "x", "1x", "1 Gi", ".", "1e", "1e99", "--1", "1..2", "99999999999999999999Ei", "1e 3"};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    if (mob__lws_quantity(bad[i], &n)) fail_msg("\"%s\" was taken", bad[i]);
  }
}

static void test_backoff(void **state) {
  (void)state;
  mob_lws_backoff_t b = {0};
  static const uint64_t delays[] = {0, 10000, 20000, 40000, 80000, 160000, 300000, 300000};
  for (size_t i = 0; i < sizeof delays / sizeof *delays; i++) {
    assert_int_equal(mob__lws_backoff_next(&b, 1000), delays[i]);
  }
  assert_int_equal(mob__lws_backoff_next(&b, MOB_LWS_BACKOFF_RESET_MS),
                   0); // a long run makes it new
  assert_int_equal(mob__lws_backoff_next(&b, 0), 10000);
}

static void test_options(void **state) {
  (void)state;
  bool flag = false;
  const char *text = NULL;
  int64_t number = -1;
  double wait = 0;
  mob_lws_words_t list = {0}, words = {0};
  const mob_lws_option_t options[] = {
      {"follow", NULL, MOB_LWS_OPT_FLAG, &flag, "", 'f'},
      {"name", "N", MOB_LWS_OPT_STRING, &text, "", 0},
      {"replicas", "N", MOB_LWS_OPT_INT, &number, "", 0},
      {"wait", "S", MOB_LWS_OPT_MAYBE, &wait, "", 0},
      {"pvc", "A=B", MOB_LWS_OPT_WORDS, &list, "", 0},
  };
  mob_lws_usage_t usage = {"try", "", "", options, 5, false};
  char *good[] = {"try",   "a",   "--name=x", "-f",        "--replicas", "3",  "b",
                  "--pvc", "p=q", "--wait",   "--pvc=r=s", "--",         "--c"};
  assert_int_equal(mob__options_parse(&usage, 13, good, &words), -1);
  assert_true(flag && number == 3 && isinf(wait));
  assert_string_equal(text, "x");
  assert_int_equal(words.len, 3);
  assert_string_equal(words.at[2], "--c");
  assert_int_equal(list.len, 2);
  assert_string_equal(list.at[1], "r=s");
  int saved = dup(2), null = open("/dev/null", O_WRONLY); // the messages are for people
  dup2(null, 2);
  char *const bad[][3] = {{"try", "--nam", "x"},        {"try", "-x", "y"},
                          {"try", "--replicas", "two"}, {"try", "--follow=1", "y"},
                          {"try", "y", "--name"},       {"try", "--wait=-1", "y"},
                          {"try", "--replicas", "-1"}};
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    assert_int_equal(mob__options_parse(&usage, 3, (char **)(uintptr_t)bad[i], &words), 2);
  }
  dup2(saved, 2);
  close(saved);
  close(null);
  usage.stop_at_word = true;
  words.len = 0;
  char *nested[] = {"try", "pod", "ls", "-l", "--name"};
  assert_int_equal(mob__options_parse(&usage, 5, nested, &words), -1);
  assert_int_equal(words.len, 4);
  mob_vec_free(&words);
  mob_vec_free(&list);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_expand),
      cmocka_unit_test(test_quantity),
      cmocka_unit_test(test_backoff),
      cmocka_unit_test(test_options),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
