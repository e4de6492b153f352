// The YAML reader: values, line numbers, and what it refuses.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "launcher/lws/yaml.h"
#include "runtime/base/buf.h"

static mob_arena_t arena;

static int tear_down(void **state) {
  (void)state;
  mob_arena_free(&arena);
  return 0;
}

static const mob_yaml_node_t *parse(const char *text) {
  const mob_yaml_node_t **docs;
  size_t count;
  assert_int_equal(mob__yaml_parse(&arena, "f.yaml", text, strlen(text), &docs, &count), MOB_OK);
  assert_int_equal(count, 1);
  return docs[0];
}

static void refuse(const char *text, const char *message) {
  const mob_yaml_node_t **docs;
  size_t count;
  assert_int_equal(mob__yaml_parse(&arena, "f.yaml", text, strlen(text), &docs, &count),
                   MOB_E_FORMAT);
  if (!strstr(mob_errmsg(), message)) fail_msg("\"%s\" lacks \"%s\"", mob_errmsg(), message);
}

static void test_values(void **state) {
  (void)state;
  const mob_yaml_node_t *root =
      parse("a: 1\nb: \"2\"\nc: yes\nd:\ne: 1.5\nf: hello\ng: 0x10\nh: [x, y]\ni: '~'\nj: 512G\n"
            "k: 9223372036854775808\nl: -3\nm: yEs\n");
  int64_t n;
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "a")), MOB_YAML_INT);
  assert_true(mob__yaml_int(mob__yaml_get(root, "a"), &n));
  assert_int_equal(n, 1);
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "b")), MOB_YAML_STRING);
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "c")), MOB_YAML_BOOL);
  assert_true(mob__yaml_bool(mob__yaml_get(root, "c")));
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "d")), MOB_YAML_NULL);
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "e")), MOB_YAML_FLOAT);
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "f")), MOB_YAML_STRING);
  assert_true(mob__yaml_int(mob__yaml_get(root, "g"), &n));
  assert_int_equal(n, 16);
  assert_int_equal(mob__yaml_get(root, "h")->count, 2);
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "i")), MOB_YAML_STRING);
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "j")), MOB_YAML_STRING);
  assert_false(mob__yaml_int(mob__yaml_get(root, "k"), &n)); // does not fit
  assert_true(mob__yaml_int(mob__yaml_get(root, "l"), &n));
  assert_int_equal(n, -3);
  assert_int_equal(mob__yaml_type(mob__yaml_get(root, "m")), MOB_YAML_STRING);
  assert_null(mob__yaml_get(root, "z"));
}

static void test_layout(void **state) {
  (void)state;
  // What the deployment documents hold: a comment indented less than its sequence, trailing blanks,
  // a double-quoted scalar folded over lines, comments in Chinese.
  const mob_yaml_node_t *root =
      parse("size: 2 #leader和worker的总数量\ncommand:\n  - sh\n  - \"one $(A)\n     two\"\n"
            "#设置\n  - three   \nlast: x");
  const mob_yaml_node_t *command = mob__yaml_get(root, "command");
  assert_int_equal(command->count, 3);
  assert_string_equal(command->items[1]->text, "one $(A) two");
  assert_string_equal(command->items[2]->text, "three");
  assert_int_equal(command->items[2]->line, 7);
  assert_int_equal(mob__yaml_get(root, "last")->line, 8);
}

static void test_documents(void **state) {
  (void)state;
  const mob_yaml_node_t **docs;
  size_t count;
  const char *text = "---\na: 1\n---\n---\n# nothing\n---\nb: 2\n";
  assert_int_equal(mob__yaml_parse(&arena, "f", text, strlen(text), &docs, &count), MOB_OK);
  assert_int_equal(count, 2);
  assert_int_equal(mob__yaml_parse(&arena, "f", "", 0, &docs, &count), MOB_OK);
  assert_int_equal(count, 0);
}

static void test_aliases(void **state) {
  (void)state;
  const mob_yaml_node_t *root = parse("a: &x {k: v}\nb: *x\nc: [*x, *x]\n");
  assert_ptr_equal(mob__yaml_get(root, "a"), mob__yaml_get(root, "b"));
  refuse("a: &x [*x]\n", "before its anchor");
  refuse("a: *nowhere\n", "f.yaml:1");
  // Nine levels of nine: a billion nodes.
  mob_buf_t bomb = {0};
  mob_buf_puts(&bomb, "a0: &a0 [x,x,x,x,x,x,x,x,x]\n");
  for (int i = 1; i < 9; i++) {
    mob_buf_printf(&bomb, "a%d: &a%d [", i, i);
    for (int k = 0; k < 9; k++) mob_buf_printf(&bomb, "%s*a%d", k ? "," : "", i - 1);
    mob_buf_puts(&bomb, "]\n");
  }
  refuse(mob_buf_cstr(&bomb), "aliases expanded");
  mob_buf_free(&bomb);
}

static void test_refused(void **state) {
  (void)state;
  refuse("a: 1\nb: 2\na: 3\n", "f.yaml:3: the key \"a\" stands twice");
  refuse("a: \"x\\0y\"\n", "NUL");
  refuse("a: [1, 2\nb: 3\n", "f.yaml:");
  refuse("a:\n\t- x\n", "f.yaml:2");
  refuse("? [a]\n: b\n", "a key must be");
  refuse("b: &x {c: 1}\na:\n  <<: *x\n", "merge keys");
  refuse("a: \xff\xfe\n", "f.yaml:");
  mob_buf_t deep = {0};
  for (int i = 0; i < 2000; i++) mob_buf_putc(&deep, '[');
  refuse(mob_buf_cstr(&deep), "levels deep");
  mob_buf_free(&deep);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_teardown(test_values, tear_down),
      cmocka_unit_test_teardown(test_layout, tear_down),
      cmocka_unit_test_teardown(test_documents, tear_down),
      cmocka_unit_test_teardown(test_aliases, tear_down),
      cmocka_unit_test_teardown(test_refused, tear_down),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
