#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <string.h>

#include "runtime/base/status.h"
#include "runtime/base/utf8.h"

#define R "\xEF\xBF\xBD"

static void test_valid_prefix(void **state) {
  (void)state;
  static const struct {
    const char *text;
    size_t good;
  } cases[] = {
      {"", 0},
      {"abc", 3},
      {"12345678\xC3\xA9", 10},
      {"\xE4\xBD\xA0", 3},
      {"\xF0\x9F\x98\x80", 4},
      {"\xF4\x8F\xBF\xBF", 4},
      {"a\x80", 1},
      {"\xC0\x80", 0},
      {"\xC1\xBF", 0},
      {"\xE0\x80\x80", 0},
      {"\xED\xA0\x80", 0},
      {"\xED\x9F\xBF", 3},
      {"\xF0\x80\x80\x80", 0},
      {"\xF4\x90\x80\x80", 0},
      {"\xF5\x80\x80\x80", 0},
      {"ab\xC3", 2},
      {"ab\xE4\xBD", 2},
      {"\xFF", 0},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    assert_int_equal(mob_utf8_valid_prefix(cases[i].text, strlen(cases[i].text)), cases[i].good);
  }
}

static void test_every_character(void **state) {
  (void)state;
  for (uint32_t c = 0; c < 0x110000; c++) {
    char text[4];
    size_t n = mob_utf8_encode(c, text), width = 0;
    size_t good = mob_utf8_valid_prefix(text, n);
    if (c >= 0xD800 && c <= 0xDFFF) {
      assert_int_equal(good, 0);
      continue;
    }
    assert_int_equal(good, n);
    assert_int_equal(mob_utf8_decode(text, &width), c);
    assert_int_equal(width, n);
    assert_int_equal(mob_utf8_back(text, n), n);
  }
  assert_int_equal(mob_utf8_count("a\xC3\xA9\xF0\x9F\x98\x80", 7), 3);
}

// What Python's bytes.decode('utf-8', 'replace') gives, fed whole and byte by byte.
static void test_lossy(void **state) {
  (void)state;
  static const char *const cases[][2] = {
      {"", ""},
      {"ab\xC3\xA9", "ab\xC3\xA9"},
      {"\x80", R},
      {"\x80\x80", R R},
      {"\xC3", R},
      {"\xC3(", R "("},
      {"\xE4\xBD", R},
      {"\xE4\xBDx", R "x"},
      {"\xE4x", R "x"},
      {"\xE0\x80\x80", R R R},
      {"\xED\xA0\x80", R R R},
      {"\xF0\x9F\x98", R},
      {"\xF0\x9F\x98\xF0\x9F\x98\x80", R "\xF0\x9F\x98\x80"},
      {"\xF0\x80\x80\x80", R R R R},
      {"\xF4\x90\x80\x80", R R R R},
      {"\xFF\xFE", R R},
      {"\xC3\xC3\xA9", R "\xC3\xA9"},
      {"\xE4\xBD\xE4\xBD\xA0", R "\xE4\xBD\xA0"},
      {"\xC0\xAF", R R},
  };
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    mob_utf8_lossy_t s = {0};
    mob_buf_t whole = {0}, pieces = {0};
    mob_utf8_lossy_feed(&s, cases[i][0], strlen(cases[i][0]), &whole);
    mob_utf8_lossy_end(&s, &whole);
    assert_string_equal(mob_buf_cstr(&whole), cases[i][1]);
    for (const char *p = cases[i][0]; *p; p++) mob_utf8_lossy_feed(&s, p, 1, &pieces);
    mob_utf8_lossy_end(&s, &pieces);
    assert_string_equal(mob_buf_cstr(&pieces), cases[i][1]);
    mob_buf_free(&whole);
    mob_buf_free(&pieces);
  }
}

static void test_format_cuts_between_characters(void **state) {
  (void)state;
  static const struct {
    const char *text, *want; // in 6 bytes
  } cases[] = {{"abcde", "abcde"},
               {"abcdef", "abcde"},
               {"abcd\xC3\xA9", "abcd"},
               {"abc\xC3\xA9", "abc\xC3\xA9"},
               {"abc\xC3\xA9\xC3\xA9", "abc\xC3\xA9"},
               {"abc\xE4\xBD\xA0", "abc"},
               {"a\xF0\x9F\x98\x80", "a\xF0\x9F\x98\x80"},
               {"ab\xF0\x9F\x98\x80", "ab"},
               {"\xFF\xFE", "??"},
               {"a\xC3z", "a?z"},
               {"abcd\x80z", "abcd?"},
               {"a\xE4\xBD\xC3\xA9", "a??\xC3\xA9"}};
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char got[6];
    mob_utf8_format(got, sizeof got, "%s", cases[i].text);
    assert_string_equal(got, cases[i].want);
  }
  char long_text[2000];
  for (size_t i = 0; i < sizeof long_text - 1; i++) long_text[i] = "\xC3\xA9"[i % 2];
  long_text[sizeof long_text - 1] = 0;
  for (int front = 0; front < 2; front++) {
    mob_fail(MOB_E_IO, "%.*s%s", front, "x", long_text);
    assert_int_equal(mob_utf8_valid_prefix(mob_errmsg(), strlen(mob_errmsg())),
                     strlen(mob_errmsg()));
    mob_wrap(MOB_E_IO, "%s", "y");
    assert_int_equal(mob_utf8_valid_prefix(mob_errmsg(), strlen(mob_errmsg())),
                     strlen(mob_errmsg()));
    assert_true(strlen(mob_errmsg()) > 1000);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_valid_prefix),
      cmocka_unit_test(test_every_character),
      cmocka_unit_test(test_lossy),
      cmocka_unit_test(test_format_cuts_between_characters),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
