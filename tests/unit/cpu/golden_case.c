#include "golden_case.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "golden_weights.h"
#include "runtime/base/mem.h"

int golden_list(char paths[][512], int max) {
  static const char *const families[] = {"deepseek_v3", "qwen2", "qwen3", "qwen3_moe", "llama"};
  int count = 0;
  for (size_t f = 0; f < MOB_LEN(families); f++) {
    char pattern[512];
    glob_t found;
    snprintf(pattern, sizeof pattern, MOB_SOURCE_DIR "/tests/golden/%s/*.json", families[f]);
    if (glob(pattern, 0, NULL, &found) == 0)
      for (size_t i = 0; i < found.gl_pathc && count < max; i++)
        snprintf(paths[count++], 512, "%s", found.gl_pathv[i]);
    globfree(&found);
  }
  return count;
}

static int digit(char c) {
  static const char *const digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const char *at = c ? strchr(digits, c) : NULL;
  return at ? (int)(at - digits) : -1;
}

static void decode(const char *text, void *out, size_t bytes) {
  uint8_t *to = out;
  uint32_t bits = 0, have = 0;
  size_t n = 0;
  for (; *text && n < bytes; text++) {
    if (digit(*text) < 0) continue;
    bits = bits << 6 | (uint32_t)digit(*text);
    if ((have += 6) >= 8) to[n++] = (uint8_t)(bits >> (have -= 8));
  }
  assert_int_equal(n, bytes);
}

static int32_t *read_ids(const json_t *array, uint32_t *count) {
  *count = (uint32_t)json_array_size(array);
  int32_t *ids = MOB_NEW_ARRAY(int32_t, *count + 1);
  for (uint32_t i = 0; i < *count; i++)
    ids[i] = (int32_t)json_integer_value(json_array_get(array, i));
  return ids;
}

void golden_load(const char *path, golden_t *out) {
  json_error_t error;
  memset(out, 0, sizeof *out);
  snprintf(out->path, sizeof out->path, "%s", path);
  out->root = json_load_file(path, 0, &error);
  assert_non_null(out->root);
  out->vocab =
      (int)json_integer_value(json_object_get(json_object_get(out->root, "config"), "vocab_size"));
  out->prompt = read_ids(json_object_get(out->root, "prompt"), &out->prompt_count);
  out->tokens = read_ids(json_object_get(out->root, "tokens"), &out->token_count);
  const json_t *rows = json_object_get(out->root, "rows"),
               *logits = json_object_get(out->root, "logits");
  out->row_count = (uint32_t)json_array_size(rows);
  assert_in_range(out->row_count, 1, 8);
  out->logits = mob_malloc(out->row_count * (size_t)out->vocab * sizeof(float));
  for (uint32_t i = 0; i < out->row_count; i++) {
    out->rows[i] = (uint32_t)json_integer_value(json_array_get(rows, i));
    decode(json_string_value(json_array_get(logits, i)),
           out->logits + (size_t)i * (size_t)out->vocab, (size_t)out->vocab * sizeof(float));
  }
  const char *tmp = getenv("TMPDIR");
  out->dir = mob_sprintf("%s/mobula-golden-XXXXXX", tmp ? tmp : "/tmp");
  assert_non_null(mkdtemp(out->dir));
  if (golden_write_model(out->root, out->dir) != MOB_OK) fail_msg("%s: %s", path, mob_errmsg());
}

void golden_free(golden_t *golden) {
  char file[600];
  snprintf(file, sizeof file, "%s/model.safetensors", golden->dir);
  unlink(file);
  snprintf(file, sizeof file, "%s/config.json", golden->dir);
  unlink(file);
  rmdir(golden->dir);
  free(golden->dir);
  free(golden->prompt);
  free(golden->tokens);
  free(golden->logits);
  json_decref(golden->root);
}
