// The Redis store against a Redis server that the test starts, stops and takes away.
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <hiredis/hiredis.h>

#include "runtime/base/buf.h"
#include "runtime/base/clock.h"
#include "runtime/base/mem.h"
#include "runtime/gcs/store.h"

typedef struct fixture {
  char dir[64], socket[96], address[112];
  pid_t server;
  uv_loop_t loop;
  mob_store_t *store;
  size_t acked, failed;
  char last_error[512];
  bool closed;
} fixture_t;

// One server for all tests, each in a namespace of its own.
static void start_server(fixture_t *f, const char *password) {
  f->server = fork();
  if (f->server == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    int log = open("server.log", O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(log, 1);
    dup2(log, 2);
    // Debian's redis-tools hold the server too, which goes by its first argument. (The package
    // redis-server would start one at once, on the GCS's own port.)
    execlp("redis-check-rdb", "redis-server", "--port", "0", "--unixsocket", f->socket, "--save",
           "", "--appendonly", "yes", "--appendfsync", "always", "--dir", f->dir, "--requirepass",
           password, (char *)NULL);
    _exit(127);
  }
  uint64_t deadline = mob_now_ms() + 20000;
  for (;;) {
    redisContext *c = redisConnectUnix(f->socket);
    redisReply *reply = c && !c->err ? redisCommand(c, "PING") : NULL;
    bool up = reply && (reply->type == REDIS_REPLY_STATUS || strncmp(reply->str, "NOAUTH", 6) == 0);
    if (reply) freeReplyObject(reply);
    if (c) redisFree(c);
    if (up) return;
    int code;
    if (waitpid(f->server, &code, WNOHANG) == f->server)
      fail_msg("redis-server ended with %d: Debian's package redis-tools is needed", code);
    if (mob_now_ms() > deadline) fail_msg("redis-server does not answer");
    usleep(5000);
  }
}

static void stop_server(fixture_t *f) {
  if (!f->server) return;
  kill(f->server, SIGCONT);
  kill(f->server, SIGKILL);
  waitpid(f->server, NULL, 0);
  f->server = 0;
  unlink(f->socket);
}

static int set_up(void **state) {
  fixture_t *f = MOB_NEW(fixture_t);
  snprintf(f->dir, sizeof f->dir, "/tmp/mob-redis-XXXXXX");
  assert_non_null(mkdtemp(f->dir));
  assert_int_equal(chdir(f->dir), 0);
  snprintf(f->socket, sizeof f->socket, "%s/s", f->dir);
  snprintf(f->address, sizeof f->address, "unix://%s", f->socket);
  setenv("RAY_redis_db_connect_retries", "4", 1);
  setenv("RAY_redis_db_connect_wait_milliseconds", "50", 1);
  start_server(f, "");
  uv_loop_init(&f->loop);
  *state = f;
  return 0;
}

static int tear_down(void **state) {
  fixture_t *f = *state;
  stop_server(f);
  assert_int_equal(uv_loop_close(&f->loop), 0);
  char command[128];
  snprintf(command, sizeof command, "rm -rf %s", f->dir);
  assert_int_equal(chdir("/"), 0);
  assert_int_equal(system(command), 0);
  free(f);
  return 0;
}

static void open_with(fixture_t *f, const char *address, const char *username, const char *password,
                      const char *space) {
  mob_store_redis_t config = {address, username, password, space};
  f->acked = f->failed = 0;
  f->closed = false;
  if (mob_store_redis(&f->loop, &config, &f->store) != MOB_OK) fail_msg("%s", mob_errmsg());
}

static void open_store(fixture_t *f, const char *space) {
  open_with(f, f->address, NULL, NULL, space);
}

static void on_closed(void *arg) {
  ((fixture_t *)arg)->closed = true;
}

static void close_store(fixture_t *f) {
  f->store->close(f->store, on_closed, f);
  uv_run(&f->loop, UV_RUN_DEFAULT);
  assert_true(f->closed);
}

static void on_done(void *arg, mob_status status) {
  fixture_t *f = arg;
  if (status == MOB_OK) {
    f->acked++;
  } else {
    assert_int_equal(status, MOB_E_UNAVAILABLE);
    snprintf(f->last_error, sizeof f->last_error, "%s", mob_errmsg());
    f->failed++;
  }
}

static void put(fixture_t *f, mob_table_t table, const char *key, const char *value) {
  f->store->put(f->store, table, key, strlen(key), value, strlen(value), on_done, f);
}

static void wait_acks(fixture_t *f, size_t n) {
  uint64_t deadline = mob_now_ms() + 20000;
  while (f->acked + f->failed < n && mob_now_ms() < deadline) uv_run(&f->loop, UV_RUN_ONCE);
  assert_int_equal(f->acked + f->failed, n);
}

static void count_entry(void *arg, const void *key, size_t key_len, const void *value,
                        size_t value_len) {
  (void)key, (void)key_len, (void)value, (void)value_len;
  ++*(size_t *)arg;
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

static void test_is_there_again(void **state) {
  fixture_t *f = *state;
  open_store(f, "one");
  put(f, MOB_TABLE_KV, "@namespace_n:k", "1");
  put(f, MOB_TABLE_KV, "b", "2");
  put(f, MOB_TABLE_KV, "", "");
  put(f, MOB_TABLE_NODE, "n", "with \r\n in it");
  put(f, MOB_TABLE_META, MOB_STORE_JOB_COUNTER, "41");
  f->store->del(f->store, MOB_TABLE_KV, "b", 1, on_done, f);
  assert_int_equal(f->acked, 0);
  wait_acks(f, 6);
  assert_int_equal(f->failed, 0);
  close_store(f);
  // The keys are Ray's.
  redisContext *c = redisConnectUnix(f->socket);
  redisReply *reply = redisCommand(c, "HGET RAYone@KV @namespace_n:k");
  assert_string_equal(reply->str, "1");
  freeReplyObject(reply);
  reply = redisCommand(c, "INCR RAYone@JobCounter");
  assert_int_equal(reply->integer, 42);
  freeReplyObject(reply);
  redisFree(c);
  open_store(f, "one");
  expect(f, MOB_TABLE_NODE, "n=with \r\n in it;");
  expect(f, MOB_TABLE_META, "JobCounter=42;");
  expect(f, MOB_TABLE_JOB, "");
  size_t rows = 0;
  f->store->load(f->store, MOB_TABLE_KV, count_entry, &rows);
  assert_int_equal(rows, 2);
  close_store(f);
  open_store(f, NULL); // another namespace has nothing of it
  expect(f, MOB_TABLE_NODE, "");
  expect(f, MOB_TABLE_META, "");
  close_store(f);
}

static void test_many_rows(void **state) {
  fixture_t *f = *state;
  open_store(f, NULL);
  for (int i = 0; i < 20000; i++) {
    char key[16];
    snprintf(key, sizeof key, "%d", i);
    put(f, MOB_TABLE_ACTOR, key, "a row");
  }
  wait_acks(f, 20000);
  assert_int_equal(f->failed, 0);
  close_store(f);
  open_store(f, NULL);
  size_t rows = 0;
  assert_int_equal(f->store->load(f->store, MOB_TABLE_ACTOR, count_entry, &rows), MOB_OK);
  assert_int_equal(rows, 20000);
  close_store(f);
}

static void test_a_server_that_starts_again(void **state) {
  fixture_t *f = *state;
  open_store(f, NULL);
  put(f, MOB_TABLE_KV, "before", "1");
  wait_acks(f, 1);
  stop_server(f);
  put(f, MOB_TABLE_KV, "meanwhile", "2"); // waits for the server
  for (int i = 0; i < 5; i++) uv_run(&f->loop, UV_RUN_ONCE);
  start_server(f, "");
  wait_acks(f, 2);
  assert_int_equal(f->failed, 0);
  close_store(f);
  open_store(f, NULL);
  size_t rows = 0;
  f->store->load(f->store, MOB_TABLE_KV, count_entry, &rows);
  assert_int_equal(rows, 2);
  close_store(f);
}

static void test_a_server_that_stays_away(void **state) {
  fixture_t *f = *state;
  open_store(f, NULL);
  put(f, MOB_TABLE_KV, "before", "1");
  wait_acks(f, 1);
  kill(f->server, SIGSTOP); // silent, not gone
  uint64_t start = mob_now_ms();
  put(f, MOB_TABLE_KV, "late", "2");
  wait_acks(f, 2);
  assert_int_equal(f->failed, 1); // told, after some seconds
  assert_in_range(mob_now_ms() - start, 4000, 9000);
  assert_non_null(strstr(f->last_error, f->socket));
  kill(f->server, SIGCONT);
  put(f, MOB_TABLE_KV, "after", "3");
  wait_acks(f, 3);
  assert_int_equal(f->failed, 1);
  close_store(f);
  open_store(f, NULL); // what was told to be unsure has become sure
  size_t rows = 0;
  f->store->load(f->store, MOB_TABLE_KV, count_entry, &rows);
  assert_int_equal(rows, 3);
  close_store(f);
}

static void test_a_server_that_refuses(void **state) {
  fixture_t *f = *state;
  redisContext *c = redisConnectUnix(f->socket);
  freeReplyObject(redisCommand(c, "SET RAYdefault@KV text")); // not a hash
  open_store(f, NULL);
  put(f, MOB_TABLE_KV, "k", "v");
  wait_acks(f, 1);
  assert_int_equal(f->failed, 1);
  assert_non_null(strstr(f->last_error, "WRONGTYPE"));
  freeReplyObject(redisCommand(c, "DEL RAYdefault@KV"));
  put(f, MOB_TABLE_KV, "k2", "v");
  wait_acks(f, 2);
  assert_int_equal(f->failed, 1);
  close_store(f);
  redisFree(c);
}

static void test_closing_without_a_server(void **state) {
  fixture_t *f = *state;
  open_store(f, NULL);
  put(f, MOB_TABLE_KV, "a", "1");
  wait_acks(f, 1);
  stop_server(f);
  put(f, MOB_TABLE_KV, "b", "1");
  close_store(f);
  assert_int_equal(f->acked + f->failed, 2); // nobody waits for ever
}

static void test_a_password(void **state) {
  fixture_t *f = *state;
  stop_server(f);
  start_server(f, "s3cret");
  mob_store_redis_t config = {f->address, NULL, NULL, NULL};
  mob_store_t *store;
  assert_int_equal(mob_store_redis(&f->loop, &config, &store), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "--redis-password"));
  config.password = "wrong";
  assert_int_equal(mob_store_redis(&f->loop, &config, &store), MOB_E_INVALID);
  assert_non_null(strstr(mob_errmsg(), "WRONGPASS"));
  assert_null(strstr(mob_errmsg(), "wrong password"));
  open_with(f, f->address, "default", "s3cret", NULL);
  put(f, MOB_TABLE_KV, "a", "1");
  wait_acks(f, 1);
  assert_int_equal(f->failed, 0);
  close_store(f);
}

static void test_addresses_that_cannot_be_used(void **state) {
  fixture_t *f = *state;
  static const struct {
    const char *address, *says;
    mob_status status;
  } cases[] = {
      {"redis.example", "has no port", MOB_E_INVALID},
      {"host:99999", "has a bad port", MOB_E_INVALID},
      {"a:1,b:2", "names several servers", MOB_E_INVALID},
      {"redis://a:6379/3", "another database", MOB_E_INVALID},
      {"rediss://u:hidden@a:6379", "TLS", MOB_E_UNSUPPORTED},
      {"127.0.0.1:1", "Redis at 127.0.0.1:1, which is to hold the GCS's state, cannot be used",
       MOB_E_UNAVAILABLE},
      {"redis://u:hidden@127.0.0.1:1", "Redis at 127.0.0.1:1", MOB_E_UNAVAILABLE},
  };
  for (size_t i = 0; i < MOB_LEN(cases); i++) {
    mob_store_redis_t config = {cases[i].address, NULL, NULL, NULL};
    mob_store_t *store;
    assert_int_equal(mob_store_redis(&f->loop, &config, &store), cases[i].status);
    if (!strstr(mob_errmsg(), cases[i].says))
      fail_msg("'%s' says: %s", cases[i].address, mob_errmsg());
    assert_null(strstr(mob_errmsg(), "hidden"));
  }
  mob_store_redis_t config = {f->address, NULL, NULL, "a@b"};
  mob_store_t *store;
  assert_int_equal(mob_store_redis(&f->loop, &config, &store), MOB_E_INVALID);
}

static void test_which_store_is_asked_for(void **state) {
  fixture_t *f = *state;
  static const struct {
    const char *storage, *path, *redis; // "R": the server's address
    const char *name;                   // NULL: refused
  } cases[] = {
      {NULL, NULL, NULL, "memory"},   {"memory", NULL, NULL, "memory"}, {NULL, NULL, "R", "redis"},
      {"memory", NULL, "R", "redis"}, {"file", NULL, NULL, "file"},     {NULL, "x", NULL, "file"},
      {"rocksdb", "x", NULL, "file"}, {"redis", NULL, NULL, NULL},      {"disk", NULL, NULL, NULL},
  };
  for (size_t i = 0; i < MOB_LEN(cases); i++) {
    setenv("RAY_gcs_storage", cases[i].storage ? cases[i].storage : "", 1);
    setenv("RAY_gcs_storage_path", cases[i].path ? cases[i].path : "", 1);
    setenv("RAY_REDIS_ADDRESS", cases[i].redis ? f->address : "", 1);
    mob_store_redis_t flags = {0};
    mob_status status = mob_store_open(&f->loop, &flags, "default", &f->store);
    if (!cases[i].name) {
      assert_int_equal(status, MOB_E_INVALID);
      continue;
    }
    assert_int_equal(status, MOB_OK);
    assert_string_equal(f->store->name, cases[i].name);
    assert_int_equal(f->store->persistent, strcmp(cases[i].name, "memory") != 0);
    close_store(f);
  }
  unsetenv("RAY_gcs_storage");
  unsetenv("RAY_gcs_storage_path");
  unsetenv("RAY_REDIS_ADDRESS");
}

int main(void) {
  signal(SIGPIPE, SIG_IGN);
#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      TEST(test_is_there_again),
      TEST(test_many_rows),
      TEST(test_a_server_that_starts_again),
      TEST(test_a_server_that_stays_away),
      TEST(test_a_server_that_refuses),
      TEST(test_closing_without_a_server),
      TEST(test_a_password),
      TEST(test_addresses_that_cannot_be_used),
      TEST(test_which_store_is_asked_for),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
