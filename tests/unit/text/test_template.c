// Chat templates: as jinja2 renders them (tools/golden/text/template_cases.py), and what hostile
// ones may not do.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "engine/text/template.h"
#include "golden.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"

// MOB_OK with the text in `out`, or the failure of parsing or rendering.
static mob_status render(const char *source, size_t len, json_t *vars, mob_buf_t *out) {
  mob_template_t *tpl;
  MOB_TRY(mob_template_parse(source, len, &tpl));
  mob_status status = mob_template_render(tpl, vars, out);
  mob_template_free(tpl);
  return status;
}

// `want` has "output", or "error" when jinja2 fails too.
static void check(const char *source, size_t len, json_t *vars, json_t *want, const char *name) {
  json_t *text = json_object_get(want, "output");
  mob_buf_t out = {0};
  mob_status status = render(source, len, vars, &out);
  if (!text) {
    if (status == MOB_OK)
      fail_msg("%s: no error but '%s'; jinja2: %s", name, mob_buf_cstr(&out),
               json_string_value(json_object_get(want, "error")));
    assert_true(strlen(mob_errmsg()) > 0);
  } else if (status != MOB_OK) {
    fail_msg("%s: %s", name, mob_errmsg());
  } else if (out.len != json_string_length(text) ||
             memcmp(mob_buf_cstr(&out), json_string_value(text), out.len) != 0) {
    fail_msg("%s:\n want '%s'\n got  '%s'", name, json_string_value(text), mob_buf_cstr(&out));
  }
  mob_buf_free(&out);
}

static void test_snippets(void **state) {
  (void)state;
  json_t *golden = golden_json("templates/golden.json"), *snippet;
  size_t i;
  assert_true(json_array_size(json_object_get(golden, "snippets")) > 100);
  json_array_foreach(json_object_get(golden, "snippets"), i, snippet) {
    json_t *source = json_object_get(snippet, "template");
    check(json_string_value(source), json_string_length(source), json_object_get(golden, "vars"),
          snippet, json_string_value(source));
  }
  json_decref(golden);
}

static void test_chats(void **state) {
  (void)state;
  json_t *golden = golden_json("templates/golden.json"), *chat;
  size_t i;
  assert_true(json_array_size(json_object_get(golden, "chats")) > 80);
  json_array_foreach(json_object_get(golden, "chats"), i, chat) {
    char name[256], file[128];
    const char *conversation = json_string_value(json_object_get(chat, "conversation"));
    snprintf(file, sizeof file, "templates/%s", json_string_value(json_object_get(chat, "file")));
    snprintf(name, sizeof name, "%s with '%s'", file, conversation);
    json_t *vars =
        json_copy(json_object_get(json_object_get(golden, "conversations"), conversation));
    json_object_set_new(vars, "bos_token", json_string("<bos>"));
    json_object_set_new(vars, "eos_token", json_string("<eos>"));
    mob_buf_t source = {0};
    assert_int_equal(mob_file_read(golden_path(file), 1 << 20, &source), MOB_OK);
    check((char *)source.data, source.len, vars, chat, name);
    mob_buf_free(&source);
    json_decref(vars);
  }
  json_decref(golden);
}

static void assert_error(const char *source, mob_status want, const char *part) {
  json_t *vars = json_pack("{s:[]}", "messages");
  mob_buf_t out = {0};
  mob_buf_puts(&out, "before");
  mob_status status = render(source, strlen(source), vars, &out);
  if (status != want || !strstr(mob_errmsg(), part)) {
    fail_msg("%.200s: %s '%s'", source, mob_status_name(status), mob_errmsg());
  }
  assert_string_equal(mob_buf_cstr(&out), "before"); // nothing half-done
  mob_buf_free(&out);
  json_decref(vars);
}

static void test_errors(void **state) {
  (void)state;
  assert_error("a{{ raise_exception('roles must alternate: ' ~ 1) }}", MOB_E_INVALID,
               "roles must alternate: 1");
  assert_error("{% for x in [1] %}{% if x %}{{ raise_exception('exact') }}{% endif %}{% endfor %}",
               MOB_E_INVALID, "exact");
  assert_int_equal(strcmp(mob_errmsg(), "exact"), 0);
  assert_error("a\nb\n{{ x.y }}", MOB_E_INVALID, "template line 3: 'x' is undefined");
  assert_error("{% if true %}\n{{ messages.a.b }}{% endif %}", MOB_E_INVALID,
               "line 2: 'list object' has no attribute 'a'");
  assert_error("\n\n{% if %}", MOB_E_FORMAT, "line 3");
  assert_error("{{ 1 | sideways }}", MOB_E_UNSUPPORTED, "'sideways'");
  assert_error("{{ 1 is sideways }}", MOB_E_UNSUPPORTED, "'sideways'");
  assert_error("{% include 'x' %}", MOB_E_UNSUPPORTED, "'include'");
  assert_error("{% for x in [] recursive %}{% endfor %}", MOB_E_UNSUPPORTED, "recursive");
  assert_error("{% for x in [1] %}", MOB_E_FORMAT, "endfor");
  assert_error("\xFF", MOB_E_FORMAT, "UTF-8");
  mob_template_t *tpl;
  mob_buf_t out = {0};
  json_t *list = json_array();
  assert_int_equal(mob_template_parse("x", 1, &tpl), MOB_OK);
  assert_int_equal(mob_template_render(tpl, list, &out), MOB_E_INVALID);
  json_decref(list);
  mob_template_free(tpl);
}

// Far above what a template may cost, far below what an unbounded one would.
#if defined(MOB_ASAN) || defined(MOB_TSAN)
enum { HOSTILE_MS = 300000 };
#else
enum { HOSTILE_MS = 30000 };
#endif

static void test_hostile(void **state) {
  (void)state;
  static const char *const templates[] = {
      "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
      "{% for a in range(100000) %}{% for b in range(100000) %}x{% endfor %}{% endfor %}",
      "{% for a in range(100000) %}{% for b in range(100000) %}{% set c = 1 %}{% endfor %}{% "
      "endfor %}",
      "{% set ns = namespace(s='x') %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for a in range(100) %}{% set ns.s = ns.s + ns.s %}{% "
      "endfor %}",
      "{% set ns = namespace(s=[1]) %}{% for a in range(100000) %}{% set ns.s = [ns.s] %}{% endfor "
      "%}{{ ns.s }}",
      "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns }}",
      "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns.a }}",
      "{{ 'x' * 1000000000000 }}",
      "{{ [1] * 1000000000 }}",
      "{{ 'x'.center(100000000000) }}",
      "{{ '%999999999d' % 1 * 999999999 }}",
      "{{ 'x' * 60000000 | length }}{{ ('x' * 60000000).replace('x', 'yyyyyyyyyyyyyyyy') }}",
      "{% set s = 'x' * 1000000 %}{{ s.replace('', s) }}",
      "{% set s = 'x' * 60000000 %}{{ s | list | length }}",
      "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ -9223372036854775807 - 2 }}",
      "{{ 9999999999 ** 99 }}",
      "{{ 99999999999999999999 }}",
      "{% set x = range(100000) | list %}{% for i in x %}{% for j in x %}{% if i in x %}{% endif "
      "%}{% endfor %}{% endfor %}",
      "{% set x = range(100000) | list %}{{ x | unique | list | length }}",
      "{% filter upper %}{% for a in range(100000) %}{{ 'x' * 100000 }}{% endfor %}{% endfilter %}",
      "{% set x = range(100000) | list %}{% for i in x %}{{ x | sort | first }}{% endfor %}",
      "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{% if 'b' in x %}{% endif %}{% "
      "endfor %}",
      "{% set x = 'a' * 1000000 %}{% for i in range(100000) %}{{ x[-1] == x | last }}{% endfor %}",
      "{% set d = namespace() %}{% for i in range(100000) %}{% for j in range(100) %}{{ [i, j] | "
      "join | length }}{% endfor %}{% endfor %}",
  };
  for (size_t i = 0; i < MOB_LEN(templates); i++) {
    uint64_t start = mob_now_ms();
    assert_error(templates[i],
                 strstr(templates[i], "99999999999999999999") ? MOB_E_FORMAT : MOB_E_INVALID,
                 "template");
    uint64_t took = mob_now_ms() - start;
    if (took > HOSTILE_MS) fail_msg("%s took %llu ms", templates[i], (unsigned long long)took);
  }
}

static void test_deep_syntax(void **state) {
  (void)state;
  static const char *const parts[][2] = {
      {"(", ")"},  {"[", "]"},           {"{1:", "}"}, {"-", ""},  {"not ", ""},   {"a(", ")"},
      {"a[", "]"}, {"a if a else ", ""}, {"1 + ", ""}, {"a.", ""}, {"a|list|", ""}};
  for (size_t i = 0; i < MOB_LEN(parts); i++) {
    mob_buf_t source = {0}, out = {0};
    json_t *vars = json_object();
    mob_buf_puts(&source, "{{ ");
    for (int k = 0; k < 20000; k++) mob_buf_puts(&source, parts[i][0]);
    mob_buf_puts(&source, "a");
    for (int k = 0; k < 20000; k++) mob_buf_puts(&source, parts[i][1]);
    mob_buf_puts(&source, " }}");
    mob_status status =
        render((char *)source.data, source.len, vars, &out); // whatever it says, it ends
    assert_true(status == MOB_OK || strlen(mob_errmsg()) > 0);
    mob_buf_free(&source);
    mob_buf_free(&out);
    json_decref(vars);
  }
  mob_buf_t source = {0}, out = {0};
  json_t *vars = json_object();
  for (int k = 0; k < 20000; k++) mob_buf_puts(&source, "{% if true %}");
  assert_int_equal(render((char *)source.data, source.len, vars, &out), MOB_E_FORMAT);
  source.len = 0;
  mob_buf_puts(&source, "{% if false %}");
  for (int k = 0; k < 20000; k++) mob_buf_puts(&source, "{% elif false %}");
  mob_buf_puts(&source, "{% else %}deep{% endif %}");
  assert_int_equal(render((char *)source.data, source.len, vars, &out), MOB_OK);
  assert_string_equal(mob_buf_cstr(&out), "deep");
  mob_buf_free(&source);
  mob_buf_free(&out);
  json_decref(vars);
}

static void test_strftime_now(void **state) {
  (void)state;
  json_t *vars = json_object();
  mob_buf_t out = {0};
  char before[64], after[64];
  time_t now = time(NULL);
  const char *source = "{{ strftime_now('%d %b %Y %H:%M') }}";
  strftime(before, sizeof before, "%d %b %Y %H:%M", localtime(&now));
  assert_int_equal(render(source, strlen(source), vars, &out), MOB_OK);
  now = time(NULL);
  strftime(after, sizeof after, "%d %b %Y %H:%M", localtime(&now));
  assert_true(strcmp(mob_buf_cstr(&out), before) == 0 || strcmp(mob_buf_cstr(&out), after) == 0);
  mob_buf_free(&out);
  json_decref(vars);
}

static void write_file(const char *dir, const char *name, const char *text) {
  char *path = mob_path_join(dir, name);
  assert_int_equal(mob_file_write(path, text, strlen(text)), MOB_OK);
  free(path);
}

static void assert_opens(const char *dir, const char *want) {
  mob_template_t *tpl;
  mob_buf_t out = {0};
  json_t *vars = json_object();
  if (mob_template_open(dir, &tpl) != MOB_OK) fail_msg("%s", mob_errmsg());
  assert_int_equal(mob_template_render(tpl, vars, &out), MOB_OK);
  assert_string_equal(mob_buf_cstr(&out), want);
  mob_template_free(tpl);
  mob_buf_free(&out);
  json_decref(vars);
}

static void test_open(void **state) {
  (void)state;
  char dir[] = "/tmp/mobula-template-XXXXXX", path[128];
  mob_template_t *tpl;
  assert_non_null(mkdtemp(dir));
  assert_int_equal(mob_template_open(dir, &tpl), MOB_E_NOT_FOUND);
  write_file(dir, "tokenizer_config.json", "{}");
  assert_int_equal(mob_template_open(dir, &tpl), MOB_E_NOT_FOUND);
  write_file(dir, "tokenizer_config.json", "{\"chat_template\": 3}");
  assert_int_equal(mob_template_open(dir, &tpl), MOB_E_FORMAT);
  write_file(dir, "tokenizer_config.json", "{\"chat_template\": ");
  assert_int_equal(mob_template_open(dir, &tpl), MOB_E_FORMAT);
  write_file(dir, "tokenizer_config.json", "{\"chat_template\": \"{{ 1 }}\"}");
  assert_opens(dir, "1");
  write_file(dir, "tokenizer_config.json",
             "{\"chat_template\": [{\"name\": \"rag\", \"template\": \"r\"}, {\"name\": "
             "\"default\", \"template\": \"d\"}]}");
  assert_opens(dir, "d");
  write_file(dir, "chat_template.jinja", "{{ 2 }}\n");
  assert_opens(dir, "2");
  snprintf(path, sizeof path, "%s/chat_template.jinja", dir);
  unlink(path);
  snprintf(path, sizeof path, "%s/tokenizer_config.json", dir);
  unlink(path);
  rmdir(dir);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_snippets),    cmocka_unit_test(test_chats),
      cmocka_unit_test(test_errors),      cmocka_unit_test(test_hostile),
      cmocka_unit_test(test_deep_syntax), cmocka_unit_test(test_strftime_now),
      cmocka_unit_test(test_open),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
