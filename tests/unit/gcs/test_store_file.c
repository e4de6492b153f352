// The file store: what was acknowledged is there after any end of the process, and damage is told
// from an unfinished end.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/file.h"
#include "runtime/base/mem.h"
#include "runtime/gcs/store_file.h"

typedef struct fixture {
  char dir[64];
  uv_loop_t loop;
  mob_store_t *store;
  size_t acked, failed;
  bool closed;
} fixture_t;

static void open_store(fixture_t *f) {
  uv_loop_init(&f->loop);
  f->acked = f->failed = 0;
  f->closed = false;
  if (mob_store_file(&f->loop, f->dir, &f->store) != MOB_OK) fail_msg("%s", mob_errmsg());
}

static void on_closed(void *arg) {
  ((fixture_t *)arg)->closed = true;
}

static void close_store(fixture_t *f) {
  f->store->close(f->store, on_closed, f);
  uv_run(&f->loop, UV_RUN_DEFAULT);
  assert_true(f->closed);
  assert_int_equal(uv_loop_close(&f->loop), 0);
}

static int set_up(void **state) {
  fixture_t *f = MOB_NEW(fixture_t);
  snprintf(f->dir, sizeof f->dir, "/tmp/mob-store-XXXXXX");
  assert_non_null(mkdtemp(f->dir));
  *state = f;
  return 0;
}

static char *path_of(const fixture_t *f, const char *name) {
  static char path[128];
  snprintf(path, sizeof path, "%s/%s", f->dir, name);
  return path;
}

static int tear_down(void **state) {
  fixture_t *f = *state;
  mob__store_file_step = NULL;
  mob__store_file_compact_min = 4 << 20;
  unlink(path_of(f, MOB__STORE_FILE_NAME));
  unlink(path_of(f, MOB__STORE_FILE_NEW));
  unlink(path_of(f, MOB__STORE_FILE_LOCK));
  assert_int_equal(rmdir(f->dir), 0); // and nothing else was left there
  free(f);
  return 0;
}

static void on_done(void *arg, mob_status status) {
  fixture_t *f = arg;
  if (status == MOB_OK) {
    f->acked++;
  } else {
    assert_int_equal(status, MOB_E_UNAVAILABLE);
    f->failed++;
  }
}

static void put(fixture_t *f, mob_table_t table, const char *key, const char *value) {
  f->store->put(f->store, table, key, strlen(key), value, strlen(value), on_done, f);
}

static void del(fixture_t *f, mob_table_t table, const char *key) {
  f->store->del(f->store, table, key, strlen(key), on_done, f);
}

static void wait_acks(fixture_t *f, size_t n) {
  uint64_t deadline = mob_now_ms() + 10000;
  while (f->acked + f->failed < n && mob_now_ms() < deadline) uv_run(&f->loop, UV_RUN_ONCE);
  assert_int_equal(f->acked + f->failed, n);
}

static void print_entry(void *arg, const void *key, size_t key_len, const void *value,
                        size_t value_len) {
  mob_buf_printf(arg, "%.*s=%.*s;", (int)key_len, (const char *)key, (int)value_len,
                 (const char *)value);
}

static void expect(fixture_t *f, mob_table_t table, const char *entries) {
  mob_buf_t text = {0};
  assert_int_equal(f->store->load(f->store, table, print_entry, &text), MOB_OK);
  assert_string_equal(mob_buf_cstr(&text), entries);
  mob_buf_free(&text);
}

static off_t size_of(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 ? st.st_size : -1;
}

static void test_is_there_again(void **state) {
  fixture_t *f = *state;
  open_store(f);
  put(f, MOB_TABLE_KV, "a", "1");
  put(f, MOB_TABLE_KV, "b", "2");
  put(f, MOB_TABLE_NODE, "a", "node");
  put(f, MOB_TABLE_KV, "a", "3");
  put(f, MOB_TABLE_KV, "empty", "");
  assert_int_equal(f->acked, 0); // only once it is on the disk
  wait_acks(f, 5);
  del(f, MOB_TABLE_KV, "b");
  del(f, MOB_TABLE_KV, "never there");
  wait_acks(f, 7);
  assert_int_equal(f->failed, 0);
  close_store(f);
  open_store(f);
  expect(f, MOB_TABLE_KV, "a=3;empty=;");
  expect(f, MOB_TABLE_NODE, "a=node;");
  expect(f, MOB_TABLE_JOB, "");
  put(f, MOB_TABLE_JOB, "j", "1"); // closing waits for it
  close_store(f);
  assert_int_equal(f->acked, 1);
  open_store(f);
  expect(f, MOB_TABLE_JOB, "j=1;");
  close_store(f);
}

static size_t syncs;
static int count_syncs(const char *call, int fd, const void *data, size_t len) {
  (void)fd, (void)data, (void)len;
  syncs += strcmp(call, "fdatasync") == 0;
  return 0;
}

static void test_changes_share_a_sync(void **state) {
  fixture_t *f = *state;
  open_store(f);
  syncs = 0;
  mob__store_file_step = count_syncs;
  for (int i = 0; i < 1000; i++) {
    char key[16];
    snprintf(key, sizeof key, "%d", i);
    put(f, MOB_TABLE_KV, key, "v");
  }
  wait_acks(f, 1000);
  assert_in_range(syncs, 1, 2); // the first alone, the rest together
  close_store(f);
}

static void test_an_unfinished_end_is_cut_off(void **state) {
  fixture_t *f = *state;
  open_store(f);
  put(f, MOB_TABLE_KV, "kept", "1");
  wait_acks(f, 1);
  off_t sound = size_of(path_of(f, MOB__STORE_FILE_NAME));
  put(f, MOB_TABLE_KV, "torn", "a value of some length");
  wait_acks(f, 2);
  close_store(f);
  char *path = path_of(f, MOB__STORE_FILE_NAME);
  for (off_t size = size_of(path) - 1; size >= sound; size--) { // at every byte of the last change
    assert_int_equal(truncate(path, size), 0);
    open_store(f);
    expect(f, MOB_TABLE_KV, "kept=1;");
    assert_int_equal(size_of(path), sound);
    close_store(f);
    FILE *file = fopen(path, "a"); // for the next round: bytes that are no frame
    for (off_t i = sound; i < size; i++) fputc('x', file);
    fclose(file);
  }
  open_store(f);
  put(f, MOB_TABLE_KV, "new", "2"); // it goes on where the sound part ends
  close_store(f);
  open_store(f);
  expect(f, MOB_TABLE_KV, "kept=1;new=2;");
  close_store(f);
}

static void test_damage_in_the_middle_is_an_error(void **state) {
  fixture_t *f = *state;
  open_store(f);
  put(f, MOB_TABLE_KV, "first", "1");
  wait_acks(f, 1);
  put(f, MOB_TABLE_KV, "second", "2");
  wait_acks(f, 2);
  close_store(f);
  char *path = path_of(f, MOB__STORE_FILE_NAME);
  mob_buf_t sound = {0};
  assert_int_equal(mob_file_read(path, SIZE_MAX, &sound), MOB_OK);
  size_t second = MOB__FILE_HEADER + MOB__FRAME_HEADER + MOB__CHANGE_HEADER + 6;
  for (size_t at = 0; at < second; at++) {
    if (at >= MOB__FILE_HEADER + 4 && at < MOB__FILE_HEADER + 8)
      continue; // the frame's unused bytes
    sound.data[at] ^= 0x10;
    assert_int_equal(mob_file_write(path, sound.data, sound.len), MOB_OK);
    sound.data[at] ^= 0x10;
    mob_store_t *store;
    assert_int_equal(mob_store_file(&f->loop, f->dir, &store), MOB_E_FORMAT);
    char offset[64];
    snprintf(offset, sizeof offset,
             "is damaged at offset %d:", at < MOB__FILE_HEADER ? 0 : MOB__FILE_HEADER);
    assert_non_null(strstr(mob_errmsg(), path));
    assert_non_null(strstr(mob_errmsg(), offset));
  }
  assert_int_equal(mob_file_write(path, sound.data, sound.len), MOB_OK);
  open_store(f);
  expect(f, MOB_TABLE_KV, "first=1;second=2;");
  close_store(f);
  mob_buf_free(&sound);
}

static void test_dead_bytes_are_thrown_away(void **state) {
  fixture_t *f = *state;
  mob__store_file_compact_min = 4096;
  open_store(f);
  put(f, MOB_TABLE_NODE, "kept", "for good");
  size_t n = 1;
  for (int i = 0; i < 2000; i++) {
    char value[32];
    snprintf(value, sizeof value, "value %d", i);
    put(f, MOB_TABLE_KV, "key", value);
    wait_acks(f, ++n);
    assert_true(size_of(path_of(f, MOB__STORE_FILE_NAME)) < 4096 + 256);
  }
  assert_int_equal(f->failed, 0);
  assert_int_equal(size_of(path_of(f, MOB__STORE_FILE_NEW)), -1);
  close_store(f);
  open_store(f);
  expect(f, MOB_TABLE_KV, "key=value 1999;");
  expect(f, MOB_TABLE_NODE, "kept=for good;");
  close_store(f);
}

static const char *failing_call;
static int failing_errno;
static int fail_calls(const char *call, int fd, const void *data, size_t len) {
  if (strcmp(call, failing_call) != 0) return 0;
  if (data) { // a disk that is full takes a part
    ssize_t ignored = pwrite(fd, data, len / 2, lseek(fd, 0, SEEK_END));
    (void)ignored;
  }
  return failing_errno;
}

static void test_a_failing_disk(void **state) {
  fixture_t *f = *state;
  static const char *const calls[] = {"write", "fdatasync"};
  static const int errors[] = {ENOSPC, EIO};
  size_t n = 0;
  open_store(f);
  for (size_t i = 0; i < MOB_LEN(calls); i++) {
    failing_call = calls[i];
    failing_errno = errors[i];
    mob__store_file_step = fail_calls;
    put(f, MOB_TABLE_KV, calls[i], "not acknowledged");
    wait_acks(f, ++n);
    assert_int_equal(f->failed, i + 1); // told, not swallowed
    mob__store_file_step = NULL;
    char key[16];
    snprintf(key, sizeof key, "after %zu", i);
    put(f, MOB_TABLE_KV, key, "1"); // waits for the file that is written anew
    wait_acks(f, ++n);
    assert_int_equal(f->failed, i + 1);
  }
  close_store(f);
  open_store(f); // the store has become what its user had in memory
  expect(f, MOB_TABLE_KV, "write=not acknowledged;after 0=1;fdatasync=not acknowledged;after 1=1;");
  close_store(f);
}

static void test_one_process_at_a_time(void **state) {
  fixture_t *f = *state;
  open_store(f);
  mob_store_t *store;
  assert_int_equal(mob_store_file(&f->loop, f->dir, &store), MOB_E_EXISTS);
  assert_non_null(strstr(mob_errmsg(), f->dir));
  close_store(f);
}

// Crashes: a child process runs a fixed history and dies at its n-th system call; a write that it
// dies in has written half. What it had acknowledged until then is there afterwards.
static int crash_at, steps, ack_pipe;
static int crash(const char *call, int fd, const void *data, size_t len) {
  (void)call;
  if (++steps != crash_at) return 0;
  if (data) {
    ssize_t ignored = pwrite(fd, data, len / 2, lseek(fd, 0, SEEK_END));
    (void)ignored;
  }
  _exit(1);
}

static void on_child_done(void *arg, mob_status status) {
  if (status != MOB_OK) _exit(3);
  int n = *(int *)arg;
  if (write(ack_pipe, &n, sizeof n) != sizeof n) _exit(3);
}

enum { HISTORY = 60 };

static _Noreturn void live_and_die(fixture_t *f) {
  static int numbers[HISTORY];
  mob__store_file_compact_min = 512; // several rewrites
  mob__store_file_step = crash;
  uv_loop_init(&f->loop);
  if (mob_store_file(&f->loop, f->dir, &f->store) != MOB_OK) _exit(2);
  for (int i = 0; i < HISTORY; i++) {
    char value[16];
    numbers[i] = i;
    snprintf(value, sizeof value, "%d", i);
    f->store->put(f->store, MOB_TABLE_KV, "k", 1, value, strlen(value), on_child_done, &numbers[i]);
    if (i % 3 == 2) uv_run(&f->loop, UV_RUN_DEFAULT);
  }
  f->store->close(f->store, NULL, NULL);
  uv_run(&f->loop, UV_RUN_DEFAULT);
  _exit(0);
}

static void read_number(void *arg, const void *key, size_t key_len, const void *value,
                        size_t value_len) {
  (void)key, (void)key_len;
  char text[16] = "";
  memcpy(text, value, value_len);
  *(int *)arg = atoi(text);
}

static void test_crashes_at_every_step(void **state) {
  fixture_t *f = *state;
  int crashes = 0;
  for (crash_at = 1;; crash_at++) {
    int fds[2], code, acked = -1, found = -1;
    unlink(path_of(f, MOB__STORE_FILE_NAME));
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    pid_t child = fork();
    if (child == 0) {
      ack_pipe = fds[1];
      live_and_die(f);
    }
    close(fds[1]);
    while (read(fds[0], &acked, sizeof acked) == sizeof acked) {
    }
    close(fds[0]);
    assert_int_equal(waitpid(child, &code, 0), child);
    assert_true(WIFEXITED(code) && WEXITSTATUS(code) <= 1);
    open_store(f);
    assert_int_equal(f->store->load(f->store, MOB_TABLE_KV, read_number, &found), MOB_OK);
    assert_true(found >= acked);
    close_store(f);
    if (WEXITSTATUS(code) == 0) break; // it outlived all its steps
    crashes++;
  }
  assert_true(crashes > 40);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(test_crashes_at_every_step), // first: it forks
      TEST(test_is_there_again),
      TEST(test_changes_share_a_sync),
      TEST(test_an_unfinished_end_is_cut_off),
      TEST(test_damage_in_the_middle_is_an_error),
      TEST(test_dead_bytes_are_thrown_away),
      TEST(test_a_failing_disk),
      TEST(test_one_process_at_a_time),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
