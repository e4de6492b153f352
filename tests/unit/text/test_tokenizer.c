// Loading: what is refused and how; and sizes that must not take long.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/text/tokenizer.h"
#include "golden.h"
#include "runtime/base/clock.h"

#define PRE                                                                                        \
  "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define DEC "\"decoder\":{\"type\":\"ByteLevel\"}"
#define MODEL                                                                                      \
  "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"Ġ\":3},\"merges\":[\"a b\"]}"

static mob_tokenizer_t *load(const char *json, const char *config) {
  mob_tokenizer_t *tok;
  mob_status status =
      mob_tokenizer_parse(json, strlen(json), config, config ? strlen(config) : 0, &tok);
  if (status != MOB_OK) fail_msg("%s", mob_errmsg());
  return tok;
}

static void assert_encodes(const mob_tokenizer_t *tok, const char *text, bool special,
                           const char *want) {
  mob_ids_t ids = {0};
  mob_buf_t got = {0};
  assert_int_equal(mob_tokenizer_encode(tok, text, strlen(text), special, &ids), MOB_OK);
  for (size_t i = 0; i < ids.len; i++) mob_buf_printf(&got, i ? " %d" : "%d", ids.at[i]);
  assert_string_equal(mob_buf_cstr(&got), want);
  mob_vec_free(&ids);
  mob_buf_free(&got);
}

static void test_smallest(void **state) {
  (void)state;
  mob_tokenizer_t *tok = load("{" MODEL "," PRE "," DEC "}", NULL);
  assert_encodes(tok, "aab ab", false, "0 2 3 2"); // the space has no merge with "ab"
  assert_encodes(tok, "axb", false,
                 "2"); // no unknown token: a byte without one vanishes before merging
  assert_encodes(tok, "", true, "");
  assert_int_equal(mob_tokenizer_vocab_size(tok), 4);
  assert_int_equal(mob_tokenizer_id_of(tok, "ab"), 2);
  assert_int_equal(mob_tokenizer_id_of(tok, "nope"), -1);
  assert_int_equal(mob_tokenizer_bos(tok), -1);
  assert_int_equal(mob_tokenizer_eos(tok), -1);
  size_t len;
  assert_memory_equal(mob_tokenizer_bytes_of(tok, 3, &len), " ", 1);
  assert_null(mob_tokenizer_bytes_of(tok, 4, &len));
  assert_null(mob_tokenizer_bytes_of(tok, -1, &len));
  mob_ids_t ids = {0};
  assert_int_equal(mob_tokenizer_encode(tok, "a\xFFz", 3, false, &ids), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "byte 1"));
  mob_buf_t out = {0};
  assert_int_equal(mob_tokenizer_decode(tok, (int32_t[]){0, 4}, 2, false, &out), MOB_E_INVALID);
  assert_int_equal(mob_tokenizer_decode(tok, (int32_t[]){-1}, 1, false, &out), MOB_E_INVALID);
  assert_int_equal(out.len, 0);
  mob_tokenizer_close(tok);
}

static void test_config(void **state) {
  (void)state;
  const char *json = "{" MODEL "," PRE "," DEC
                     ",\"added_tokens\":[{\"id\":4,\"content\":\"<s>\",\"special\":true},"
                     "{\"id\":5,\"content\":\"</"
                     "s>\",\"special\":true},{\"id\":6,\"content\":\"<t>\",\"special\":false}]}";
  const char *llama = "{\"tokenizer_class\":\"LlamaTokenizerFast\",\"bos_token\":{\"content\":\"<s>"
                      "\"},\"eos_token\":\"</s>\"}";
  mob_tokenizer_t *tok = load(json, llama);
  assert_int_equal(mob_tokenizer_bos(tok), 4);
  assert_int_equal(mob_tokenizer_eos(tok), 5);
  assert_encodes(tok, "a<s><t>b", true, "4 0 4 6 1");
  assert_encodes(tok, "a", false, "0");
  assert_true(mob_tokenizer_is_special(tok, 4));
  assert_false(mob_tokenizer_is_special(tok, 6));
  assert_false(mob_tokenizer_is_special(tok, 99));
  mob_tokenizer_close(tok);
  tok = load(json, "{\"add_bos_token\":true,\"add_eos_token\":true,\"bos_token\":\"<s>\",\"eos_"
                   "token\":\"</s>\"}");
  assert_encodes(tok, "a", true, "4 0 5");
  mob_tokenizer_close(tok);
  tok = load(
      json,
      "{\"tokenizer_class\":\"LlamaTokenizer\",\"add_bos_token\":false,\"bos_token\":\"<s>\"}");
  assert_encodes(tok, "a", true, "0");
  mob_tokenizer_close(tok);
  // A pad token that only the configuration knows becomes an added token.
  tok = load(json, "{\"pad_token\":\"<pad>\",\"bos_token\":null}");
  assert_int_equal(mob_tokenizer_id_of(tok, "<pad>"), 7);
  assert_true(mob_tokenizer_is_special(tok, 7));
  mob_tokenizer_close(tok);
}

// Added tokens get ids by their place, whatever they declare.
static void test_renumbered(void **state) {
  (void)state;
  mob_tokenizer_t *tok =
      load("{" MODEL "," PRE "," DEC ",\"added_tokens\":[{\"id\":10,\"content\":\"<x>\"},"
           "{\"id\":4,\"content\":\"<y>\"},{\"id\":7,\"content\":\"a\"}]}",
           NULL);
  assert_encodes(tok, "b<x><y>a", false, "1 4 5 0");
  assert_int_equal(mob_tokenizer_vocab_size(tok), 6);
  mob_tokenizer_close(tok);
}

static void test_refused(void **state) {
  (void)state;
  static const struct {
    const char *json, *part; // `part` of the message
    mob_status status;
  } cases[] = {
      {"", "line", MOB_E_FORMAT},
      {"{\"model\":", "line", MOB_E_FORMAT},
      {"[]", "not a JSON object", MOB_E_FORMAT},
      {"{}", "ByteLevel", MOB_E_UNSUPPORTED},
      {"{" PRE "," DEC "}", "\"model\" is not an object", MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":[]}", "\"model\" is not an object", MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"type\":\"Unigram\"}}", "Unigram", MOB_E_UNSUPPORTED},
      {"{" PRE "," DEC ",\"model\":{\"type\":\"BPE\"}}", "model.vocab", MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0}}}", "model.merges", MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":\"0\"},\"merges\":[]}}", "'a'", MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":-1},\"merges\":[]}}", "'a'", MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":4000000000},\"merges\":[]}}", "'a'",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0.5},\"merges\":[]}}", "'a'", MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "given twice",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"ab\"]}}", "merges[0]",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a b c\"]}}", "merges[0]",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "merges[0]",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[[\"a\",1]]}}", "merges[0]",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"b a\"]}}", "the left side",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"vocab\":{\"a\":0},\"merges\":[\"a a\"]}}", "the result",
       MOB_E_FORMAT},
      {"{" PRE "," DEC ",\"model\":{\"byte_fallback\":true,\"vocab\":{},\"merges\":[]}}",
       "byte_fallback", MOB_E_UNSUPPORTED},
      {"{" PRE "," DEC ",\"model\":{\"dropout\":0.1,\"vocab\":{},\"merges\":[]}}", "dropout",
       MOB_E_UNSUPPORTED},
      {"{" PRE "," DEC ",\"model\":{\"unk_token\":\"u\",\"vocab\":{\"a\":0},\"merges\":[]}}",
       "unk_token", MOB_E_FORMAT},
      {"{" PRE "," MODEL "}", "decoder", MOB_E_UNSUPPORTED},
      {"{" PRE "," MODEL ",\"decoder\":{\"type\":\"Metaspace\"}}", "Metaspace", MOB_E_UNSUPPORTED},
      {"{" DEC "," MODEL ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "Metaspace",
       MOB_E_UNSUPPORTED},
      {"{" PRE "," DEC "," MODEL ",\"normalizer\":{\"type\":\"Lowercase\"}}", "Lowercase",
       MOB_E_UNSUPPORTED},
      {"{" DEC "," MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":{}}}",
       "pretokenizers", MOB_E_FORMAT},
      {"{" DEC "," MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"},"
       "\"behavior\":\"Isolated\"}}",
       "pattern", MOB_E_FORMAT},
      {"{" DEC "," MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a&&b]\"}"
       ",\"behavior\":\"Isolated\"}}",
       "&&", MOB_E_UNSUPPORTED},
      {"{" DEC "," MODEL
       ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":\"x\",\"behavior\":\"Isolated\"}}",
       "pattern", MOB_E_FORMAT},
      {"{" DEC "," MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},"
       "\"behavior\":\"Sideways\"}}",
       "Sideways", MOB_E_FORMAT},
      {"{" PRE "," DEC "," MODEL ",\"added_tokens\":{}}", "added_tokens", MOB_E_FORMAT},
      {"{" PRE "," DEC "," MODEL ",\"added_tokens\":[1]}", "added_tokens[0]", MOB_E_FORMAT},
      {"{" PRE "," DEC "," MODEL ",\"added_tokens\":[{\"id\":4}]}", "content", MOB_E_FORMAT},
      {"{" PRE "," DEC "," MODEL ",\"added_tokens\":[{\"id\":-4,\"content\":\"x\"}]}",
       "added_tokens[0]", MOB_E_FORMAT},
      {"{" PRE "," DEC "," MODEL
       ",\"added_tokens\":[{\"id\":4,\"content\":\"x\",\"special\":\"yes\"}]}",
       "special", MOB_E_FORMAT},
      {"{" PRE "," DEC "," MODEL ",\"post_processor\":{\"type\":\"BertProcessing\"}}",
       "BertProcessing", MOB_E_UNSUPPORTED},
      {"{" PRE "," DEC "," MODEL
       ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}}",
       "sequence A once", MOB_E_UNSUPPORTED},
      {"{" PRE "," DEC "," MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":["
       "{\"SpecialToken\":{\"id\":\"x\"}}]}}",
       "special_tokens", MOB_E_FORMAT},
      {"{" PRE "," DEC "," MODEL
       ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
       "\"x\"}}],\"special_tokens\":{\"x\":{\"ids\":[77]}}}}",
       "not in the vocabulary", MOB_E_FORMAT},
  };
  for (size_t i = 0; i < MOB_LEN(cases); i++) {
    mob_tokenizer_t *tok = (mob_tokenizer_t *)1;
    mob_status status = mob_tokenizer_parse(cases[i].json, strlen(cases[i].json), NULL, 0, &tok);
    if (status != cases[i].status || !strstr(mob_errmsg(), cases[i].part) || tok) {
      fail_msg("%s: status %s, message '%s'", cases[i].json, mob_status_name(status), mob_errmsg());
    }
  }
  mob_tokenizer_t *tok;
  assert_int_equal(mob_tokenizer_open("/nonexistent", &tok), MOB_E_NOT_FOUND);
}

// A megabyte without a gap is one word: it must take time in proportion, not by its square.
static void test_long_words(void **state) {
  (void)state;
  static const char *const units[] = {
      "a",         "ab",  "hello", " ", "\n", "\xE5\xAD\xA6", "1", "=", "\xF0\x9F\x98\x80",
      "a\xCC\x81", " \t", "don't"};
  static const char *const names[] = {"deepseek", "qwen", "llama", "rare"};
  for (size_t n = 0; n < MOB_LEN(names); n++) {
    mob_tokenizer_t *tok;
    assert_int_equal(mob_tokenizer_open(golden_path(names[n]), &tok), MOB_OK);
    for (size_t u = 0; u < MOB_LEN(units); u++) {
      mob_buf_t text = {0}, back = {0};
      mob_ids_t ids = {0};
      while (text.len < 1 << 20) mob_buf_puts(&text, units[u]);
      uint64_t start = mob_now_ms();
      mob_status status = mob_tokenizer_encode(tok, (char *)text.data, text.len, false, &ids);
      if (status != MOB_OK) fail_msg("%s '%s': %s", names[n], units[u], mob_errmsg());
      uint64_t took = mob_now_ms() - start;
      if (took > 20000)
        fail_msg("%s '%s' took %llu ms", names[n], units[u], (unsigned long long)took);
      if (n < 3 && strcmp(units[u], "a\xCC\x81") != 0) { // Qwen's normalizer composes that one
        assert_int_equal(mob_tokenizer_decode(tok, ids.at, ids.len, false, &back), MOB_OK);
        assert_int_equal(back.len, text.len);
        assert_memory_equal(back.data, text.data, text.len);
      }
      mob_buf_free(&text);
      mob_buf_free(&back);
      mob_vec_free(&ids);
    }
    mob_tokenizer_close(tok);
  }
}

static void test_costly_pattern(void **state) {
  (void)state;
  const char *json = "{" DEC "," MODEL ",\"pre_tokenizer\":{\"type\":\"Sequence\","
                     "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":"
                     "{\"Regex\":\"(?:a+a+)+[bc]\"},\"behavior\":\"Isolated\",\"invert\":false},{"
                     "\"type\":\"ByteLevel\",\"use_regex\":false}]}}";
  mob_tokenizer_t *tok = load(json, NULL);
  mob_buf_t text = {0};
  mob_ids_t ids = {0};
  for (int i = 0; i < 5000; i++) mob_buf_putc(&text, 'a');
  mob_buf_putc(&text, 'z');
  assert_int_equal(mob_tokenizer_encode(tok, (char *)text.data, text.len, false, &ids),
                   MOB_E_FORMAT);
  assert_non_null(strstr(mob_errmsg(), "pattern"));
  mob_buf_free(&text);
  mob_vec_free(&ids);
  mob_tokenizer_close(tok);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_smallest),   cmocka_unit_test(test_config),
      cmocka_unit_test(test_renumbered), cmocka_unit_test(test_refused),
      cmocka_unit_test(test_long_words), cmocka_unit_test(test_costly_pattern),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
