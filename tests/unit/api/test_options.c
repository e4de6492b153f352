#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/api/serve_options.h"
#include "runtime/base/file.h"

static mob_serve_options_t o;

static mob_status parse_line(const char *line) { // words parted by blanks
  static char text[1024];
  static char *words[64];
  int n = 0;
  mob__serve_clear(&o);
  snprintf(text, sizeof text, "%s", line);
  for (char *at = strtok(text, " "); at; at = strtok(NULL, " ")) words[n++] = at;
  bool help = false;
  return mob__serve_parse(n, words, &o, &help);
}

static void accepts(const char *line) {
  if (parse_line(line) != MOB_OK) fail_msg("%s: %s", line, mob_errmsg());
}

static void refuses(const char *line, mob_status code, const char *part) {
  mob_status status = parse_line(line);
  if (status != code || !strstr(mob_errmsg(), part)) {
    fail_msg("%s: %s: %s (wanted \"%s\")", line, mob_status_name(status), mob_errmsg(), part);
  }
}

static void test_the_pod_command(void **state) {
  (void)state;
  accepts("/models/DeepSeek-R1/ --port 8000 --trust-remote-code --served-model-name ds "
          "--max-model-len 2048 "
          "--gpu-memory-utilization 0.95 --tensor-parallel-size 8 --pipeline-parallel-size 2 "
          "--enforce-eager");
  assert_string_equal(o.model, "/models/DeepSeek-R1/");
  assert_int_equal(o.port, 8000);
  assert_int_equal(o.served_names.len, 1);
  assert_string_equal(o.served_names.at[0], "ds");
  assert_int_equal(o.max_model_len, 2048);
  assert_true(o.memory_share == 0.95);
  assert_int_equal(o.tp, 8);
  assert_int_equal(o.pp, 2);
  assert_true(o.eager);
}

static void test_defaults(void **state) {
  (void)state;
  accepts("m");
  assert_int_equal(o.port, 8000);
  assert_null(o.host);
  assert_int_equal(o.max_model_len, -1);
  assert_int_equal(o.prefix_cache, -1);
  assert_int_equal(o.chunked_prefill, -1);
  assert_string_equal(o.dtype, "auto");
  assert_int_equal(o.max_body, 64 << 20);
  assert_string_equal(o.response_role, "assistant");
}

static void test_spellings(void **state) {
  (void)state;
  accepts("m --tensor_parallel_size=4 --pipeline_parallel-size 2 --seed -5");
  assert_int_equal(o.tp, 4);
  assert_int_equal(o.pp, 2);
  assert_int_equal(o.seed, -5);
  accepts("m -tp 4 -pp=2 -q fp8 -O3");
  assert_int_equal(o.tp, 4);
  assert_int_equal(o.pp, 2);
  assert_string_equal(o.quantization, "fp8");
  accepts("m -qfp8 -O 3 --tensor-par 2"); // an unambiguous prefix
  assert_string_equal(o.quantization, "fp8");
  assert_int_equal(o.tp, 2);
  accepts("m --served-model-name a b c --port 1");
  assert_int_equal(o.served_names.len, 3);
  accepts("--served-model-name a b --port 1 m");
  assert_string_equal(o.model, "m");
  accepts("m --no-enable-prefix-caching --enable-chunked-prefill=false");
  assert_int_equal(o.prefix_cache, 0);
  assert_int_equal(o.chunked_prefill, 0);
  accepts("m --enable-prefix-caching --enable-chunked-prefill");
  assert_int_equal(o.prefix_cache, 1);
  assert_int_equal(o.chunked_prefill, 1);
  accepts("m --max-model-len 2k");
  assert_int_equal(o.max_model_len, 2000);
  accepts("m --max-model-len 2K");
  assert_int_equal(o.max_model_len, 2048);
  accepts("m --max-model-len auto --host None");
  assert_int_equal(o.max_model_len, -1);
  assert_null(o.host);
  accepts("m --allowed-origins [\"http://a\"] --disable-log-requests --swap-space 4 --enable-lora "
          "--nnodes 2");
}

static void test_usage_errors(void **state) {
  (void)state;
  refuses("", MOB_E_INVALID, "the following arguments are required: model_tag");
  refuses("m --prot 1", MOB_E_INVALID, "unrecognized arguments: --prot (did you mean --port?)");
  refuses("m --tensor_paralel_size 1", MOB_E_INVALID, "did you mean --tensor-parallel-size?");
  refuses("m --qqqqqqqqqqqqqqqqqqq", MOB_E_INVALID,
          "unrecognized arguments: --qqqqqqqqqqqqqqqqqqq");
  refuses("m --port", MOB_E_INVALID, "argument --port: expected one argument");
  refuses("caf\xe9", MOB_E_UNSUPPORTED, "the model's path is not UTF-8: caf?");
  refuses("m --served-model-name a caf\xe9", MOB_E_UNSUPPORTED,
          "--served-model-name is not UTF-8: caf?");
  refuses("m --port x", MOB_E_INVALID, "argument --port: invalid int value: 'x'");
  refuses("m --port 99999999999999999999", MOB_E_INVALID, "invalid int value");
  refuses("m --gpu-memory-utilization nan", MOB_E_INVALID, "invalid float value");
  refuses("m --dtype int8", MOB_E_INVALID, "invalid choice: 'int8'");
  refuses("m --enforce-eager=1", MOB_E_INVALID, "ignored explicit argument '1'");
  refuses("m --enable-p", MOB_E_INVALID, "ambiguous option: --enable-p");
  refuses("m n", MOB_E_INVALID, "unrecognized arguments: n");
  refuses("m --served-model-name --port 1", MOB_E_INVALID, "expected at least one argument");
  refuses("--served-model-name ds /tmp", MOB_E_INVALID, "put the model first");
  refuses("m --rope-scaling {", MOB_E_INVALID, "invalid JSON value");
  refuses("m --block-size 7", MOB_E_INVALID, "invalid choice: 7");
}

static void test_semantic_errors(void **state) {
  (void)state;
  refuses("--model m", MOB_E_UNSUPPORTED, "provide the model as a positional argument");
  refuses("m --enable-auto-tool-choice", MOB_E_UNSUPPORTED, "requires --tool-call-parser");
  refuses("m --enable-reasoning", MOB_E_UNSUPPORTED, "requires --reasoning-parser");
  refuses("m --enable-reasoning --reasoning-parser x", MOB_E_UNSUPPORTED,
          "invalid reasoning parser: x");
  refuses("m --gpu-memory-utilization 1.5", MOB_E_UNSUPPORTED, "at most 1.0");
  refuses("m --max-num-batched-tokens 10", MOB_E_UNSUPPORTED, "max_num_seqs (256)");
  refuses("m -tp 0", MOB_E_UNSUPPORTED, "at least 1");
  refuses("m --chat-template /nonexistent/t.jinja", MOB_E_UNSUPPORTED, "appears path-like");
  refuses("m --task embed", MOB_E_UNSUPPORTED, "only generation");
  refuses("m --load-format gguf", MOB_E_UNSUPPORTED, "safetensors");
  refuses("m --port 70000", MOB_E_UNSUPPORTED, "65535");
}

static void test_config_file(void **state) {
  (void)state;
  char path[] = "/tmp/mobula-config-XXXXXX.yaml";
  int fd = mkstemps(path, 5);
  assert_true(fd >= 0);
  const char *text =
      "port: 12323\ntensor_parallel_size: 4\nenforce-eager: true\ntrust-remote-code: false\n"
      "served-model-name: [a, b]\nchat-template: '{{ x }}'\nenable-chunked-prefill: false\n";
  assert_int_equal(write(fd, text, strlen(text)), strlen(text));
  close(fd);
  char line[256];
  snprintf(line, sizeof line, "m --config %s -tp 2", path);
  accepts(line);
  assert_int_equal(o.port, 12323);
  assert_int_equal(o.tp, 2); // the command line wins
  assert_true(o.eager);
  assert_int_equal(o.served_names.len, 2);
  assert_string_equal(o.chat_template, "{{ x }}");
  assert_int_equal(o.chunked_prefill, 0);
  mob_file_write(path, "a: {b: 1}\n", 10);
  refuses(line, MOB_E_FORMAT, "flat map");
  mob_file_write(path, "bogus: 1\n", 9);
  refuses(line, MOB_E_INVALID, "unrecognized arguments: --bogus");
  mob_file_write(path, "a: [\n", 5);
  refuses(line, MOB_E_FORMAT, "line");
  unlink(path);
  refuses(line, MOB_E_NOT_FOUND, "Unable to read the config file");
  refuses("m --config x.json", MOB_E_INVALID, "yaml/yml");
  refuses("m --config", MOB_E_INVALID, "No config file specified");
}

static void test_help_names_every_option(void **state) {
  (void)state;
  char *text = NULL;
  size_t len = 0;
  FILE *out = open_memstream(&text, &len);
  mob_options_help(mob__serve_table, mob__serve_table_len, out);
  fclose(out);
  for (size_t i = 0; i < mob__serve_table_len; i++) {
    assert_non_null(strstr(text, mob__serve_table[i].name));
    for (size_t j = 0; j < i; j++)
      assert_string_not_equal(mob__serve_table[i].name, mob__serve_table[j].name);
  }
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n"))
    assert_true(strlen(line) <= 110);
  free(text);
}

static int clear(void **state) {
  (void)state;
  mob__serve_clear(&o);
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_the_pod_command),
      cmocka_unit_test(test_defaults),
      cmocka_unit_test(test_spellings),
      cmocka_unit_test(test_usage_errors),
      cmocka_unit_test(test_semantic_errors),
      cmocka_unit_test(test_config_file),
      cmocka_unit_test(test_help_names_every_option),
  };
  return cmocka_run_group_tests_name("options", tests, NULL, clear);
}
