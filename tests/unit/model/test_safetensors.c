#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/model/safetensors.h"
#include "runtime/base/buf.h"
#include "runtime/base/mem.h"

typedef struct seen {
  int count;
  mob_tensor_t last;
  char names[256];
} seen_t;

static mob_status note(void *arg, const mob_tensor_t *tensor) {
  seen_t *s = arg;
  s->count++;
  s->last = *tensor;
  strncat(s->names, tensor->name, 40);
  strncat(s->names, " ", 2);
  return MOB_OK;
}

// A file of `header` and `bytes` bytes of data behind it.
static mob_status parse(const char *header, size_t bytes, seen_t *seen) {
  mob_buf_t file = {0};
  uint64_t length = strlen(header);
  mob_buf_append(&file, &length, 8);
  mob_buf_puts(&file, header);
  for (size_t i = 0; i < bytes; i++) mob_buf_putc(&file, (char)i);
  // An exact copy, so that the sanitizer sees a read behind the end.
  uint8_t *copy = mob_malloc(file.len);
  memcpy(copy, file.data, file.len);
  *seen = (seen_t){0};
  mob_status status = mob_safetensors_parse("x.safetensors", copy, file.len, note, seen);
  free(copy);
  mob_buf_free(&file);
  return status;
}

static void refuse(const char *header, size_t bytes, const char *says) {
  seen_t seen;
  assert_int_equal(parse(header, bytes, &seen), MOB_E_FORMAT);
  if (!strstr(mob_errmsg(), says)) fail_msg("\"%s\" does not say \"%s\"", mob_errmsg(), says);
  assert_non_null(strstr(mob_errmsg(), "x.safetensors"));
}

static void test_good_files(void **state) {
  (void)state;
  seen_t seen;
  assert_int_equal(parse("{}", 0, &seen), MOB_OK);
  assert_int_equal(seen.count, 0);
  assert_int_equal(
      parse("{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],"
            "\"data_offsets\""
            ":[4,16]},\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}   ",
            16, &seen),
      MOB_OK);
  assert_string_equal(seen.names, "a b "); // by offset
  assert_int_equal(seen.last.dtype, MOB_DT_BF16);
  assert_int_equal(seen.last.rank, 2);
  assert_int_equal(seen.last.shape[1], 3);
  assert_int_equal(seen.last.bytes, 12);
  // Scalars, empty tensors, packed types and types that no weight has.
  assert_int_equal(
      parse(
          "{\"a\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[0,8]},\"z\":{\"dtype\":\"F16\","
          "\"shape\":[0,5],\"data_offsets\":[8,8]},\"q\":{\"dtype\":\"F4\",\"shape\":[6],"
          "\"data_offsets\":[8,11]}}",
          11, &seen),
      MOB_OK);
  assert_int_equal(seen.count, 3);
  assert_int_equal(seen.last.dtype, MOB_DT_COUNT);
}

static void test_lying_headers(void **state) {
  (void)state;
  refuse("", 0, "does not begin with '{'");
  refuse(" {}", 0, "does not begin with '{'");
  refuse("[]", 0, "does not begin with '{'");
  refuse("{\"a\":", 0, "header:");
  refuse("{\"a\":1}", 0, "tensor a is not described by an object");
  refuse("{\"a\":{}}", 0, "no dtype");
  refuse("{\"a\":{\"dtype\":\"F33\"}}", 0, "unknown dtype F33");
  refuse("{\"a\":{\"dtype\":\"F32\"}}", 0, "no shape");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[-1]}}", 0, "shape[0] is not a size");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5]}}", 0, "shape[0] is not a size");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296]}}", 0, "overflows");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904]}}", 0, "too large");
  refuse("{\"a\":{\"dtype\":\"F4\",\"shape\":[3]}}", 0, "whole number of bytes");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "data_offsets");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 4, "data_offsets");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,99999999999999999999]}}", 4,
         "header:");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4, "truncated");
  refuse("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
         "take 8 bytes, its offsets give 4");
  refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\","
         "\"shape\":[4],"
         "\"data_offsets\":[2,6]}}",
         6, "overlaps");
  refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]},\"b\":{\"dtype\":\"U8\","
         "\"shape\":[4],"
         "\"data_offsets\":[6,10]}}",
         10, "hole of 2 bytes before tensor b");
  refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}", 5,
         "1 bytes after the last tensor");
  refuse("{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},\"a\":{\"dtype\":\"U8\","
         "\"shape\":[1],"
         "\"data_offsets\":[1,2]}}",
         2, "header:");
  refuse("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ a is not a string");
  refuse("{\"\xff\":{}}", 0, "header:");
}

static void test_lengths(void **state) {
  (void)state;
  seen_t seen = {0};
  uint8_t bytes[32] = {0};
  for (size_t size = 0; size < 8; size++)
    assert_int_equal(mob_safetensors_parse("x.safetensors", bytes, size, note, &seen),
                     MOB_E_FORMAT);
  assert_int_equal(mob_safetensors_parse("x.safetensors", bytes, 32, note, &seen),
                   MOB_E_FORMAT); // length 0
  memset(bytes, 0xff, 8);
  assert_int_equal(mob_safetensors_parse("x.safetensors", bytes, 32, note, &seen), MOB_E_FORMAT);
  assert_non_null(strstr(mob_errmsg(),
                         "the header says it has 18446744073709551615 bytes, but the file has 32"));
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_good_files),
      cmocka_unit_test(test_lying_headers),
      cmocka_unit_test(test_lengths),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
