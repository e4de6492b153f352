// The Redis store. Changes wait in one queue, in order, and leave it when Redis has answered them;
// after a broken connection all that is still there is sent again, which changes nothing that was
// done already (HSET, HDEL, SET). What could not be stored within WAIT_MS is answered UNAVAILABLE
// but stays in the queue.
#define MOB_LOG_COMPONENT "gcs-store"
#include <errno.h>
#include <hiredis/adapters/libuv.h>
#include <hiredis/async.h>
#include <hiredis/hiredis.h>
#include <netdb.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "runtime/base/clock.h"
#include "runtime/base/log.h"
#include "runtime/base/mem.h"
#include "runtime/gcs/store.h"

enum {
  WAIT_MS = 5000,    // a change's time to be stored, before its asker is told that it is not
  SILENCE_MS = 3000, // an answer's time to come, before the connection is given up
  CONNECT_MS = 3000,
  TICK_MS = 100,
  BACKOFF_FIRST_MS = 50,
  BACKOFF_MAX_MS = 1000,
  SCAN_COUNT = 1000,
};

static const char *const table_names[MOB_TABLE_COUNT] = {
    [MOB_TABLE_NODE] = "NODE",
    [MOB_TABLE_JOB] = "JOB",
    [MOB_TABLE_ACTOR] = "ACTOR",
    [MOB_TABLE_ACTOR_TASK_SPEC] = "ACTOR_TASK_SPEC",
    [MOB_TABLE_PLACEMENT_GROUP] = "PLACEMENT_GROUP",
    [MOB_TABLE_WORKERS] = "WORKERS",
    [MOB_TABLE_KV] = "KV",
};

typedef struct change {
  struct change *next;
  char *command; // in Redis's protocol; hiredis's memory
  int len;
  uint64_t asked_at, sent_at; // mob_now_ms(); sent_at 0: not sent on this connection
  mob_store_done_fn done;     // NULL: nobody waits, or was told that it takes too long
  void *arg;
} change_t;

typedef struct redis_store {
  mob_store_t base;
  uv_loop_t *loop;
  char *shown; // the address for messages, without the password
  char *host, *path, *username, *password, *prefix;
  int port;
  redisContext *loader;                                // until the first change
  redisAsyncContext *ac;                               // NULL while there is no connection
  bool ready;                                          // connected and let in
  uint64_t connect_by, retry_at, backoff_ms, heard_at; // heard_at: the newest answer
  char *trouble; // why there is no connection; NULL when all is well
  bool resolving;
  uv_getaddrinfo_t resolve;
  uv_timer_t tick;
  change_t *first, **last, *unsent;
  bool closing, ending;
  void (*closed)(void *arg);
  void *closed_arg;
} redis_store_t;

static void send_changes(redis_store_t *s);
static void connect_now(redis_store_t *s);
static void end_if_done(redis_store_t *s);

// ------------------------------------------------------------------------------------- the queue

static void finish(change_t *change, mob_status status) {
  mob_store_done_fn done = change->done;
  change->done = NULL;
  if (done) done(change->arg, status);
}

static change_t *take_first(redis_store_t *s) {
  change_t *change = s->first;
  s->first = change->next;
  if (!s->first) s->last = &s->first;
  return change;
}

static void free_change(change_t *change) {
  redisFreeCommand(change->command);
  free(change);
}

// The connection is no good any more: another is tried for after the back-off.
static void give_up_connection(redis_store_t *s, const char *why) {
  redisAsyncContext *ac = s->ac;
  s->ac = NULL;
  s->ready = false;
  s->retry_at = mob_now_ms() + s->backoff_ms;
  s->backoff_ms = s->backoff_ms * 2 > BACKOFF_MAX_MS ? BACKOFF_MAX_MS : s->backoff_ms * 2;
  for (change_t *c = s->first; c; c = c->next) c->sent_at = 0;
  s->unsent = s->first;
  if (!s->trouble || strcmp(s->trouble, why) != 0) {
    char *copy = mob_strdup(why);
    free(s->trouble);
    s->trouble = copy;
    if (!s->closing) MOB_ERROR("Redis at %s: %s; trying again", s->shown, why);
  }
  if (ac) redisAsyncFree(ac); // its callbacks run without a reply, and find it is not s->ac
}

static void on_stored(redisAsyncContext *ac, void *answer, void *arg) {
  redis_store_t *s = arg;
  const redisReply *reply = answer;
  if (ac != s->ac || !reply) return;
  if (reply->type == REDIS_REPLY_ERROR) {
    char *why = mob_sprintf("it refuses to store: %s", reply->str);
    give_up_connection(s, why);
    free(why);
    return;
  }
  if (s->trouble) {
    MOB_INFO("Redis at %s stores again", s->shown);
    free(s->trouble);
    s->trouble = NULL;
  }
  s->backoff_ms = BACKOFF_FIRST_MS;
  s->heard_at = mob_now_ms();
  change_t *change = take_first(s);
  MOB_ASSERT(change != s->unsent); // answers come in the order of the commands
  finish(change, MOB_OK);
  free_change(change);
  end_if_done(s);
}

static void send_changes(redis_store_t *s) {
  uint64_t now = mob_now_ms();
  while (s->ready && s->unsent) {
    change_t *change = s->unsent;
    change->sent_at = now;
    if (redisAsyncFormattedCommand(s->ac, on_stored, s, change->command, (size_t)change->len) !=
        REDIS_OK) {
      give_up_connection(s, "the connection broke");
      return;
    }
    s->unsent = change->next;
  }
}

static void queue_change(redis_store_t *s, const char *const *argv, const size_t *lens, int argc,
                         mob_store_done_fn done, void *arg) {
  change_t *change = MOB_NEW(change_t);
  change->len = redisFormatCommandArgv(&change->command, argc, (const char **)argv, lens);
  MOB_ASSERT(change->len > 0);
  change->asked_at = mob_now_ms();
  change->done = done;
  change->arg = arg;
  *s->last = change;
  s->last = &change->next;
  if (!s->unsent) s->unsent = change;
  if (s->loader) { // the tables are read: from now on it is written
    redisFree(s->loader);
    s->loader = NULL;
    connect_now(s);
  }
  send_changes(s);
}

// -------------------------------------------------------------------------------- the connection

static void on_let_in(redisAsyncContext *ac, void *answer, void *arg) {
  redis_store_t *s = arg;
  const redisReply *reply = answer;
  if (ac != s->ac || !reply) return;
  if (reply->type == REDIS_REPLY_ERROR && !strstr(reply->str, "without any password")) {
    char *why = mob_sprintf("it does not accept the user or password: %s", reply->str);
    give_up_connection(s, why);
    free(why);
    return;
  }
  s->ready = true;
  send_changes(s);
}

static void on_connected(const redisAsyncContext *ac, int status) {
  redis_store_t *s = ac->data;
  if (ac != s->ac) return;
  if (status != REDIS_OK) {
    char *why = mob_sprintf("no connection: %s", ac->errstr);
    s->ac = NULL; // hiredis frees it
    give_up_connection(s, why);
    free(why);
    return;
  }
  if (!s->path) redisEnableKeepAlive(&s->ac->c);
  if (!s->password) {
    s->ready = true;
    if (s->trouble && !s->first) {
      MOB_INFO("Redis at %s is there again", s->shown);
      free(s->trouble);
      s->trouble = NULL;
      s->backoff_ms = BACKOFF_FIRST_MS;
    }
    send_changes(s);
  } else if (s->username) {
    redisAsyncCommand(s->ac, on_let_in, s, "AUTH %s %s", s->username, s->password);
  } else {
    redisAsyncCommand(s->ac, on_let_in, s, "AUTH %s", s->password);
  }
}

static void on_disconnected(const redisAsyncContext *ac, int status) {
  redis_store_t *s = ac->data;
  if (ac != s->ac) return;
  char *why = mob_sprintf("the connection broke: %s",
                          status != REDIS_OK && ac->errstr ? ac->errstr : "closed");
  s->ac = NULL; // hiredis frees it
  give_up_connection(s, why);
  free(why);
}

// `ac` is fresh, or NULL.
static void watch_connection(redis_store_t *s, redisAsyncContext *ac) {
  if (!ac || ac->err) {
    char *why = mob_sprintf("no connection: %s", ac ? ac->errstr : "out of memory");
    if (ac) redisAsyncFree(ac);
    give_up_connection(s, why);
    free(why);
    return;
  }
  s->ac = ac;
  s->connect_by = mob_now_ms() + CONNECT_MS;
  ac->data = s;
  redisLibuvAttach(ac, s->loop);
  redisAsyncSetConnectCallback(ac, on_connected);
  redisAsyncSetDisconnectCallback(ac, on_disconnected);
}

static void on_resolved(uv_getaddrinfo_t *request, int error, struct addrinfo *list) {
  redis_store_t *s = request->data;
  char ip[64] = "";
  s->resolving = false;
  if (s->ending) {
    uv_freeaddrinfo(list);
    end_if_done(s);
    return;
  }
  if (!error &&
      getnameinfo(list->ai_addr, list->ai_addrlen, ip, sizeof ip, NULL, 0, NI_NUMERICHOST) != 0) {
    error = UV_EAI_FAIL;
  }
  uv_freeaddrinfo(list);
  if (error) {
    char *why = mob_sprintf("its name cannot be resolved: %s", uv_strerror(error));
    give_up_connection(s, why);
    free(why);
  } else {
    watch_connection(s, redisAsyncConnect(ip, s->port));
  }
}

static void connect_now(redis_store_t *s) {
  if (s->path) {
    watch_connection(s, redisAsyncConnectUnix(s->path));
    return;
  }
  struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
  s->resolve.data = s;
  s->resolving = true;
  int error = uv_getaddrinfo(s->loop, &s->resolve, on_resolved, s->host, NULL, &hints);
  if (error) {
    s->resolving = false;
    give_up_connection(s, uv_strerror(error));
  }
}

static void on_tick(uv_timer_t *timer) {
  redis_store_t *s = timer->data;
  uint64_t now = mob_now_ms();
  if (s->ac && !s->ready && now > s->connect_by) {
    give_up_connection(s, "no connection: it does not answer");
  } else if (s->ac && s->first && s->first->sent_at && now - s->first->sent_at > SILENCE_MS &&
             now - s->heard_at > SILENCE_MS) {
    give_up_connection(s, "it keeps silent");
  }
  if (!s->ac && !s->resolving && !s->loader && !s->closing && now >= s->retry_at) connect_now(s);
  for (change_t *c = s->first; c && now - c->asked_at > WAIT_MS; c = c->next) {
    if (!c->done) continue;
    mob_fail(MOB_E_UNAVAILABLE, "Redis at %s: %s", s->shown,
             s->trouble ? s->trouble : "it is too slow");
    finish(c, MOB_E_UNAVAILABLE);
  }
  end_if_done(s);
}

// -------------------------------------------------------------------------------------- interface

static void put(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                const void *value, size_t value_len, mob_store_done_fn done, void *arg) {
  redis_store_t *s = (redis_store_t *)store;
  const char *name = table_names[table];
  char *hash = name ? mob_sprintf("%s%s", s->prefix, name)
                    : mob_sprintf("%s%.*s", s->prefix, (int)key_len, (const char *)key);
  if (name) {
    const char *argv[] = {"HSET", hash, key_len ? key : "", value_len ? value : ""};
    size_t lens[] = {4, strlen(hash), key_len, value_len};
    queue_change(s, argv, lens, 4, done, arg);
  } else { // a plain key, as Ray's counter of jobs is
    const char *argv[] = {"SET", hash, value};
    size_t lens[] = {3, strlen(hash), value_len};
    queue_change(s, argv, lens, 3, done, arg);
  }
  free(hash);
}

static void del(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                mob_store_done_fn done, void *arg) {
  redis_store_t *s = (redis_store_t *)store;
  MOB_ASSERT(table_names[table] != NULL);
  char *hash = mob_sprintf("%s%s", s->prefix, table_names[table]);
  const char *argv[] = {"HDEL", hash, key_len ? key : ""};
  size_t lens[] = {4, strlen(hash), key_len};
  queue_change(s, argv, lens, 3, done, arg);
  free(hash);
}

static void sync_store(mob_store_t *store, mob_store_done_fn done, void *arg) {
  redis_store_t *s = (redis_store_t *)store;
  static const char *const argv[] = {"PING"};
  static const size_t lens[] = {4};
  if (s->first) {
    queue_change(s, argv, lens, 1, done, arg); // answers come in order
  } else {
    done(arg, MOB_OK);
  }
}

static mob_status failed_load(redis_store_t *s, const redisReply *reply, const char *what) {
  return mob_fail(MOB_E_UNAVAILABLE, "Redis at %s: %s cannot be read: %s", s->shown, what,
                  !reply                             ? s->loader->errstr
                  : reply->type == REDIS_REPLY_ERROR ? reply->str
                                                     : "an answer of an unknown form");
}

static mob_status load_counter(redis_store_t *s, mob_store_each_fn each, void *arg) {
  redisReply *reply = redisCommand(s->loader, "GET %s%s", s->prefix, MOB_STORE_JOB_COUNTER);
  mob_status status = MOB_OK;
  if (reply && reply->type == REDIS_REPLY_STRING) {
    each(arg, MOB_STORE_JOB_COUNTER, strlen(MOB_STORE_JOB_COUNTER), reply->str, reply->len);
  } else if (!reply || reply->type != REDIS_REPLY_NIL) {
    status = failed_load(s, reply, MOB_STORE_JOB_COUNTER);
  }
  if (reply) freeReplyObject(reply);
  return status;
}

// HSCAN keeps Redis's other users going, where HGETALL of a large table would not.
static mob_status load_table(redis_store_t *s, const char *name, mob_store_each_fn each,
                             void *arg) {
  char cursor[32] = "0";
  mob_status status = MOB_OK;
  do {
    redisReply *reply =
        redisCommand(s->loader, "HSCAN %s%s %s COUNT %d", s->prefix, name, cursor, SCAN_COUNT);
    bool good = reply && reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
                reply->element[0]->type == REDIS_REPLY_STRING &&
                (size_t)reply->element[0]->len < sizeof cursor &&
                reply->element[1]->type == REDIS_REPLY_ARRAY;
    if (good) {
      snprintf(cursor, sizeof cursor, "%s", reply->element[0]->str);
      const redisReply *list = reply->element[1];
      for (size_t i = 0; i + 1 < list->elements; i += 2) {
        const redisReply *key = list->element[i], *value = list->element[i + 1];
        each(arg, key->str, (size_t)key->len, value->str, (size_t)value->len);
      }
    } else {
      status = failed_load(s, reply, name);
    }
    if (reply) freeReplyObject(reply);
  } while (status == MOB_OK && strcmp(cursor, "0") != 0);
  return status;
}

static mob_status load(mob_store_t *store, mob_table_t table, mob_store_each_fn each, void *arg) {
  redis_store_t *s = (redis_store_t *)store;
  MOB_ASSERT(s->loader != NULL); // before the first change
  const char *name = table_names[table];
  return name ? load_table(s, name, each, arg) : load_counter(s, each, arg);
}

static void free_store(redis_store_t *s) {
  void (*closed)(void *arg) = s->closed;
  void *arg = s->closed_arg;
  if (s->loader) redisFree(s->loader);
  free(s->shown);
  free(s->host);
  free(s->path);
  free(s->username);
  free(s->password);
  free(s->prefix);
  free(s->trouble);
  free(s);
  if (closed) closed(arg);
}

static void on_tick_closed(uv_handle_t *handle) {
  free_store(handle->data);
}

// A closing store ends when all is stored, or when it has no connection to store it over.
static void end_if_done(redis_store_t *s) {
  if (!s->closing || (s->first && s->ac)) return;
  if (!s->ending) {
    s->ending = true;
    redisAsyncContext *ac = s->ac;
    s->ac = NULL;
    if (ac) redisAsyncFree(ac);
    if (s->first) MOB_ERROR("Redis at %s has not stored the last changes", s->shown);
    while (s->first) {
      change_t *change = take_first(s);
      mob_fail(MOB_E_UNAVAILABLE, "Redis at %s: the GCS ends", s->shown);
      finish(change, MOB_E_UNAVAILABLE);
      free_change(change);
    }
    if (s->resolving) uv_cancel((uv_req_t *)&s->resolve);
  }
  if (s->resolving || uv_is_closing((uv_handle_t *)&s->tick)) return;
  uv_close((uv_handle_t *)&s->tick, on_tick_closed);
}

static void close_store(mob_store_t *store, void (*done)(void *arg), void *arg) {
  redis_store_t *s = (redis_store_t *)store;
  s->closing = true;
  s->closed = done;
  s->closed_arg = arg;
  end_if_done(s);
}

// --------------------------------------------------------------------------------------- opening

static mob_status bad_address(const char *address, const char *why) {
  return mob_fail(MOB_E_INVALID,
                  "the Redis address '%s' %s; write HOST:PORT, redis://HOST:PORT or "
                  "unix:///PATH",
                  address, why);
}

static char *part(const char *from, const char *to) {
  return to > from ? mob_strndup(from, (size_t)(to - from)) : NULL;
}

static mob_status parse_address(redis_store_t *s, const char *address) {
  const char *at = address, *user_end;
  if (strncmp(at, "rediss://", 9) == 0) {
    const char *host = strchr(at, '@'); // not the password before it
    return mob_fail(MOB_E_UNSUPPORTED,
                    "the Redis address 'rediss://%s' asks for TLS, which this build does not "
                    "speak: put a TLS proxy (stunnel, a mesh's sidecar) beside the head and use "
                    "redis://",
                    host ? host + 1 : at + 9);
  }
  if (strncmp(at, "unix://", 7) == 0) {
    s->path = mob_strdup(at + 7);
    s->shown = mob_strdup(address);
    return MOB_OK;
  }
  if (strncmp(at, "redis://", 8) == 0) at += 8;
  user_end = strchr(at, '@');
  if (user_end) {
    const char *colon = memchr(at, ':', (size_t)(user_end - at));
    if (!colon) colon = user_end;
    if (!s->username) s->username = part(at, colon);
    if (!s->password && colon < user_end) s->password = part(colon + 1, user_end);
    at = user_end + 1;
  }
  if (strchr(at, ',')) return bad_address(at, "names several servers");
  const char *colon = strrchr(at, ':');
  if (!colon || colon == at) return bad_address(at, "has no port");
  char *end;
  long port = strtol(colon + 1, &end, 10);
  if (port < 1 || port > 65535) return bad_address(at, "has a bad port");
  if (*end && strcmp(end, "/") != 0 && strcmp(end, "/0") != 0)
    return bad_address(at, "names another database than 0");
  s->port = (int)port;
  bool bracketed = at[0] == '[' && colon[-1] == ']';
  s->host = bracketed ? part(at + 1, colon - 1) : part(at, colon);
  if (!s->host) return bad_address(at, "has no host");
  s->shown = mob_strndup(at, (size_t)(end - at));
  return MOB_OK;
}

static long from_env(const char *name, long fallback) {
  const char *text = getenv(name);
  char *end;
  if (!text || !*text) return fallback;
  long value = strtol(text, &end, 10);
  if (*end == 0 && value >= 0) return value;
  MOB_WARN("%s=%s is no number: %ld is used", name, text, fallback);
  return fallback;
}

// One try. `*fatal`: another one will not end otherwise.
static mob_status try_connect(redis_store_t *s, bool *fatal) {
  struct timeval wait = {CONNECT_MS / 1000, 0};
  redisContext *c = s->path ? redisConnectUnixWithTimeout(s->path, wait)
                            : redisConnectWithTimeout(s->host, s->port, wait);
  redisReply *reply = NULL;
  mob_status status = MOB_OK;
  *fatal = false;
  if (!c || c->err) {
    status = mob_fail(MOB_E_UNAVAILABLE, "%s", c ? c->errstr : "out of memory");
  } else {
    redisSetTimeout(c, wait);
    reply = !s->password  ? redisCommand(c, "PING")
            : s->username ? redisCommand(c, "AUTH %s %s", s->username, s->password)
                          : redisCommand(c, "AUTH %s", s->password);
    if (!reply) {
      status = mob_fail(MOB_E_UNAVAILABLE, "%s", c->errstr);
    } else if (reply->type == REDIS_REPLY_ERROR && strstr(reply->str, "without any password")) {
      MOB_WARN("Redis at %s asks for no password; the one given is not used", s->shown);
    } else if (reply->type == REDIS_REPLY_ERROR) {
      *fatal = strncmp(reply->str, "LOADING", 7) != 0; // its data, after a start of its own
      status = mob_fail(*fatal ? MOB_E_INVALID : MOB_E_UNAVAILABLE, "it says: %s%s", reply->str,
                        strncmp(reply->str, "NOAUTH", 6) == 0 ? " (give --redis-password)" : "");
    }
  }
  if (reply) freeReplyObject(reply);
  if (status == MOB_OK) {
    s->loader = c;
  } else if (c) {
    redisFree(c);
  }
  return status;
}

static volatile sig_atomic_t stop_signal;

static void on_stop_signal(int number) {
  stop_signal = number;
}

// False when SIGTERM or SIGINT came: the daemon's own handlers only note them for a loop that does
// not run yet, and another thread than this one may take them.
static bool pause_for(long ms) {
  uint64_t until = mob_now_ms() + (uint64_t)ms;
  while (!stop_signal && mob_now_ms() < until) {
    nanosleep(&(struct timespec){0, 20 * 1000000}, NULL);
  }
  return !stop_signal;
}

static mob_status keep_trying(redis_store_t *s, long pause, uint64_t deadline) {
  MOB_WARN("Redis at %s: %s; trying again", s->shown, mob_errmsg());
  for (;;) {
    bool fatal;
    if (!pause_for(pause)) {
      return mob_fail(MOB_E_ABORTED, "stopped by signal %d while Redis at %s was waited for",
                      (int)stop_signal, s->shown);
    }
    mob_status status = try_connect(s, &fatal);
    if (status == MOB_OK || fatal || mob_now_ms() + (uint64_t)pause > deadline) return status;
  }
}

static mob_status connect_first(redis_store_t *s) {
  long tries = from_env("RAY_redis_db_connect_retries", 120);
  long pause = from_env("RAY_redis_db_connect_wait_milliseconds", 500);
  uint64_t deadline = mob_now_ms() + (uint64_t)tries * (uint64_t)pause;
  bool fatal;
  mob_status status = try_connect(s, &fatal);
  if (status != MOB_OK && !fatal && tries > 1) {
    struct sigaction mine = {.sa_handler = on_stop_signal}, term, interrupt;
    stop_signal = 0;
    sigaction(SIGTERM, &mine, &term);
    sigaction(SIGINT, &mine, &interrupt);
    status = keep_trying(s, pause, deadline);
    sigaction(SIGTERM, &term, NULL);
    sigaction(SIGINT, &interrupt, NULL);
  }
  if (status == MOB_OK || status == MOB_E_ABORTED) return status;
  return mob_wrap(status, "Redis at %s, which is to hold the GCS's state, cannot be used",
                  s->shown);
}

static char *text_or_null(const char *text) {
  return text && *text ? mob_strdup(text) : NULL;
}

mob_status mob_store_redis(uv_loop_t *loop, const mob_store_redis_t *config, mob_store_t **out) {
  const char *space = config->name_space && *config->name_space ? config->name_space : "default";
  if (strchr(space, '@')) {
    return mob_fail(MOB_E_INVALID,
                    "RAY_external_storage_namespace=%s: '@' is not allowed in a namespace", space);
  }
  redis_store_t *s = MOB_NEW(redis_store_t);
  s->base = (mob_store_t){"redis", true, put, del, sync_store, load, close_store};
  s->loop = loop;
  s->last = &s->first;
  s->backoff_ms = BACKOFF_FIRST_MS;
  s->username = text_or_null(config->username);
  s->password = text_or_null(config->password);
  s->prefix = mob_sprintf("RAY%s@", space);
  mob_status status;
  MOB_TRY_GOTO(parse_address(s, config->address), status, failed);
  MOB_TRY_GOTO(connect_first(s), status, failed);
  uv_timer_init(loop, &s->tick);
  s->tick.data = s;
  uv_timer_start(&s->tick, on_tick, TICK_MS, TICK_MS);
  *out = &s->base;
  return MOB_OK;
failed:
  free_store(s);
  return status;
}
