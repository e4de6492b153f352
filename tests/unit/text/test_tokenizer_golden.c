// Ids and texts as `tokenizers` gives them (tools/golden/text/make_token_goldens.py).
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <pthread.h>
#include <string.h>

#include "engine/text/tokenizer.h"
#include "golden.h"
#include "runtime/base/utf8.h"

typedef struct fixture {
  mob_tokenizer_t *tok;
  json_t *golden;
} fixture_t;

static int set_up(void **state, const char *name) {
  char file[64];
  fixture_t *f = MOB_NEW(fixture_t);
  snprintf(file, sizeof file, "%s/golden.json", name);
  f->golden = golden_json(file);
  if (mob_tokenizer_open(golden_path(name), &f->tok) != MOB_OK) fail_msg("%s", mob_errmsg());
  *state = f;
  return 0;
}

static int tear_down(void **state) {
  fixture_t *f = *state;
  mob_tokenizer_close(f->tok);
  json_decref(f->golden);
  free(f);
  return 0;
}

static int set_up_deepseek(void **state) {
  return set_up(state, "deepseek");
}
static int set_up_qwen(void **state) {
  return set_up(state, "qwen");
}
static int set_up_llama(void **state) {
  return set_up(state, "llama");
}
static int set_up_rare(void **state) {
  return set_up(state, "rare");
}

static void assert_ids(const mob_ids_t *got, const json_t *want, const char *text) {
  bool same = got->len == json_array_size(want);
  for (size_t i = 0; same && i < got->len; i++)
    same = got->at[i] == json_integer_value(json_array_get(want, i));
  if (!same)
    fail_msg("%zu ids instead of %zu, or other ones, for: %s", got->len, json_array_size(want),
             text);
}

static void test_encode(void **state) {
  fixture_t *f = *state;
  json_t *pairs = json_object_get(f->golden, "encode"), *pair;
  size_t i;
  assert_true(json_array_size(pairs) > 150);
  json_array_foreach(pairs, i, pair) {
    json_t *text = json_array_get(pair, 0);
    mob_ids_t ids = {0};
    assert_int_equal(mob_tokenizer_encode(f->tok, json_string_value(text), json_string_length(text),
                                          false, &ids),
                     MOB_OK);
    assert_ids(&ids, json_array_get(pair, 1), json_string_value(text));
    mob_vec_free(&ids);
  }
}

static void test_special(void **state) {
  fixture_t *f = *state;
  mob_ids_t ids = {0};
  assert_int_equal(mob_tokenizer_encode(f->tok, "a b", 3, true, &ids), MOB_OK);
  assert_ids(&ids, json_object_get(f->golden, "special"), "a b");
  mob_vec_free(&ids);
}

static void test_decode(void **state) {
  fixture_t *f = *state;
  json_t *cases = json_object_get(f->golden, "decode"), *c;
  size_t i, k;
  json_array_foreach(cases, i, c) {
    json_t *list = json_array_get(c, 0), *id;
    mob_ids_t ids = {0};
    json_array_foreach(list, k, id) * mob_vec_push(&ids) = (int32_t)json_integer_value(id);
    for (int skip = 0; skip < 2; skip++) {
      json_t *want = json_array_get(c, 1 + (size_t)skip);
      mob_buf_t whole = {0}, pieces = {0};
      assert_int_equal(mob_tokenizer_decode(f->tok, ids.at, ids.len, skip, &whole), MOB_OK);
      assert_int_equal(whole.len, json_string_length(want));
      assert_string_equal(mob_buf_cstr(&whole), json_string_value(want));
      mob_detok_t *d = mob_detok_new(f->tok, skip);
      for (k = 0; k < ids.len; k++) {
        mob_detok_push(d, ids.at[k], &pieces);
        assert_int_equal(mob_utf8_valid_prefix(pieces.data, pieces.len),
                         pieces.len); // no half character
      }
      mob_detok_flush(d, &pieces);
      assert_int_equal(pieces.len, whole.len);
      assert_string_equal(mob_buf_cstr(&pieces), mob_buf_cstr(&whole));
      mob_detok_free(d);
      mob_buf_free(&whole);
      mob_buf_free(&pieces);
    }
    mob_vec_free(&ids);
  }
}

// What was encoded comes back: the three models lose nothing (Qwen's: of text in form C).
static void test_round_trip(void **state) {
  fixture_t *f = *state;
  static const char text[] =
      "深度学习 is <think>\r\n\tdeep \xF0\x9F\x98\x80\xF0\x9F\x91\x8D\xF0\x9F\x8F\xBD 1234567 "
      "caf\xC3\xA9\xE3\x80\x80x";
  mob_ids_t ids = {0};
  mob_buf_t back = {0};
  assert_int_equal(mob_tokenizer_encode(f->tok, text, strlen(text), false, &ids), MOB_OK);
  assert_int_equal(mob_tokenizer_decode(f->tok, ids.at, ids.len, false, &back), MOB_OK);
  assert_string_equal(mob_buf_cstr(&back), text);
  mob_vec_free(&ids);
  mob_buf_free(&back);
}

static void *encode_all(void *arg) {
  fixture_t *f = arg;
  json_t *pairs = json_object_get(f->golden, "encode"), *pair;
  size_t i, wrong = 0;
  json_array_foreach(pairs, i, pair) {
    json_t *text = json_array_get(pair, 0);
    mob_ids_t ids = {0};
    mob_status status = mob_tokenizer_encode(f->tok, json_string_value(text),
                                             json_string_length(text), false, &ids);
    wrong += status != MOB_OK || ids.len != json_array_size(json_array_get(pair, 1));
    mob_vec_free(&ids);
  }
  return (void *)(uintptr_t)wrong;
}

// One tokenizer serves many threads at once.
static void test_threads(void **state) {
  pthread_t threads[4];
  for (size_t i = 0; i < MOB_LEN(threads); i++) {
    assert_int_equal(pthread_create(&threads[i], NULL, encode_all, *state), 0);
  }
  for (size_t i = 0; i < MOB_LEN(threads); i++) {
    void *wrong;
    pthread_join(threads[i], &wrong);
    assert_null(wrong);
  }
}

#define MODEL_TESTS(name)                                                                          \
  cmocka_unit_test_setup_teardown(test_encode, set_up_##name, tear_down),                          \
      cmocka_unit_test_setup_teardown(test_special, set_up_##name, tear_down),                     \
      cmocka_unit_test_setup_teardown(test_decode, set_up_##name, tear_down)

int main(void) {
  const struct CMUnitTest tests[] = {
      MODEL_TESTS(deepseek),
      MODEL_TESTS(qwen),
      MODEL_TESTS(llama),
      MODEL_TESTS(rare),
      cmocka_unit_test_setup_teardown(test_threads, set_up_qwen, tear_down),
      cmocka_unit_test_setup_teardown(test_round_trip, set_up_deepseek, tear_down),
      cmocka_unit_test_setup_teardown(test_round_trip, set_up_qwen, tear_down),
      cmocka_unit_test_setup_teardown(test_round_trip, set_up_llama, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
