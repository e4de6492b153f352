// The file store: see store_file.h for what lies on disk.
//
// The loop's thread keeps a copy of all entries and collects changes; one job at a time takes what
// was collected to the disk on a thread of libuv's pool. A job appends a frame, or writes the whole
// file anew: when more than half of it is dead, and after any failure, because what a failed write
// or fdatasync left behind is not known.
#define MOB_LOG_COMPONENT "gcs-store"
#include "runtime/gcs/store_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "runtime/base/buf.h"
#include "runtime/base/file.h"
#include "runtime/base/hex.h"
#include "runtime/base/log.h"
#include "runtime/base/map.h"
#include "runtime/base/mem.h"
#include "runtime/base/vec.h"

enum { PUT = 1, DEL = 2, RETRY_MS = 1000, FRAME_TARGET = 1 << 20 };

static const char file_magic[8] = {'M', 'O', 'B', 'G', 'C', 'S', '1', '\n'};

mob__store_file_step_fn mob__store_file_step;
uint64_t mob__store_file_compact_min = 4 << 20;

typedef struct value {
  size_t len;
  uint8_t data[];
} value_t;

typedef struct waiter {
  mob_store_done_fn done;
  void *arg;
} waiter_t;

typedef MOB_VEC(waiter_t) waiters_t;

typedef struct job {
  bool rewrite;
  mob_buf_t bytes;
  uint64_t file_id; // of the file that is written
  uint64_t offset;  // where an append goes
  int fd;           // appended to; or of the new file, once it stands
  char *error;
  waiters_t waiters;
} job_t;

typedef struct file_store {
  mob_store_t base;
  uv_loop_t *loop;
  char *dir, *path, *new_path;
  int dir_fd, lock_fd, fd;
  uint64_t file_id, size, live; // of the log; bytes of changes that still count
  mob_map_t tables[MOB_TABLE_COUNT];
  mob_buf_t pending; // the payload of the next frame
  waiters_t waiters; // for it
  uv_work_t work;
  job_t job;
  uv_timer_t retry;
  bool busy;
  bool broken; // the last job failed: the file is written anew next
  bool closing, timer_closed;
  void (*closed)(void *arg);
  void *closed_arg;
} file_store_t;

// ---------------------------------------------------------------------------------- system calls

static int step(const char *call, int fd, const void *data, size_t len) {
  int error = mob__store_file_step ? mob__store_file_step(call, fd, data, len) : 0;
  errno = error;
  return error ? -1 : 0;
}

static int write_all(int fd, const uint8_t *data, size_t len, uint64_t offset) {
  if (step("write", fd, data, len) < 0) return -1;
  while (len > 0) {
    ssize_t n = pwrite(fd, data, len, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -1;
    data += n;
    len -= (size_t)n;
    offset += (uint64_t)n;
  }
  return 0;
}

static int sync_data(int fd) {
  return step("fdatasync", fd, NULL, 0) < 0 ? -1 : fdatasync(fd);
}

static int sync_all(int fd) {
  return step("fsync", fd, NULL, 0) < 0 ? -1 : fsync(fd);
}

// --------------------------------------------------------------------------------------- encoding

static uint64_t frame_sum(uint64_t file_id, uint64_t offset, const void *payload, size_t len) {
  return XXH3_64bits_withSeed(payload, len, file_id ^ offset);
}

static void put_header(mob_buf_t *out, uint64_t file_id) {
  size_t start = out->len;
  mob_buf_append(out, file_magic, sizeof file_magic);
  mob_buf_append(out, &file_id, sizeof file_id);
  uint64_t sum = XXH3_64bits(out->data + start, 16);
  mob_buf_append(out, &sum, sizeof sum);
}

static void put_change(mob_buf_t *out, uint8_t op, mob_table_t table, const void *key,
                       size_t key_len, const void *value, size_t value_len) {
  MOB_ASSERT(key_len <= UINT32_MAX && value_len <= UINT32_MAX);
  uint8_t head[4] = {op, (uint8_t)table, 0, 0};
  uint32_t lens[2] = {(uint32_t)key_len, (uint32_t)value_len};
  mob_buf_append(out, head, sizeof head);
  mob_buf_append(out, lens, sizeof lens);
  if (key_len) mob_buf_append(out, key, key_len);
  if (value_len) mob_buf_append(out, value, value_len);
}

// A frame for `offset` in the file.
static void put_frame(mob_buf_t *out, uint64_t file_id, uint64_t offset, const mob_buf_t *payload) {
  uint32_t head[2] = {MOB__FRAME_MAGIC, 0};
  uint64_t tail[2] = {payload->len, frame_sum(file_id, offset, payload->data, payload->len)};
  mob_buf_append(out, head, sizeof head);
  mob_buf_append(out, tail, sizeof tail);
  mob_buf_append(out, payload->data, payload->len);
}

static void put_snapshot(const file_store_t *s, mob_buf_t *out, uint64_t file_id) {
  mob_buf_t payload = {0};
  put_header(out, file_id);
  for (int table = 0; table < MOB_TABLE_COUNT; table++) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(&s->tables[table], e));) {
      const value_t *value = e->value;
      put_change(&payload, PUT, (mob_table_t)table, e->key, e->key_len, value->data, value->len);
      if (payload.len < FRAME_TARGET) continue;
      put_frame(out, file_id, out->len, &payload);
      payload.len = 0;
    }
  }
  if (payload.len) put_frame(out, file_id, out->len, &payload);
  mob_buf_free(&payload);
}

// ---------------------------------------------------------------------------------------- entries

static uint64_t weight(size_t key_len, size_t value_len) {
  return MOB__CHANGE_HEADER + key_len + value_len;
}

static void forget(file_store_t *s, mob_table_t table, const void *key, size_t key_len) {
  value_t *former = mob_map_remove(&s->tables[table], key, key_len);
  if (former) s->live -= weight(key_len, former->len);
  free(former);
}

static void remember(file_store_t *s, mob_table_t table, const void *key, size_t key_len,
                     const void *data, size_t len) {
  value_t *value = mob_malloc(sizeof *value + len);
  value->len = len;
  if (len) memcpy(value->data, data, len);
  value_t *former = mob_map_put(&s->tables[table], key, key_len, value);
  if (former) s->live -= weight(key_len, former->len);
  s->live += weight(key_len, len);
  free(former);
}

// ----------------------------------------------------------------------------------------- replay

static bool apply_frame(file_store_t *s, const uint8_t *at, size_t len) {
  while (len > 0) {
    uint32_t lens[2];
    if (len < MOB__CHANGE_HEADER) return false;
    memcpy(lens, at + 4, sizeof lens);
    uint64_t size = weight(lens[0], lens[1]);
    if (size > len || at[1] >= MOB_TABLE_COUNT || (at[0] != PUT && at[0] != DEL)) return false;
    const uint8_t *key = at + MOB__CHANGE_HEADER;
    if (at[0] == PUT) {
      remember(s, (mob_table_t)at[1], key, lens[0], key + lens[0], lens[1]);
    } else {
      forget(s, (mob_table_t)at[1], key, lens[0]);
    }
    at += size;
    len -= (size_t)size;
  }
  return true;
}

// The length of the whole frame at `offset`, 0 when there is none.
static uint64_t frame_at(const mob_buf_t *file, uint64_t file_id, uint64_t offset) {
  uint32_t magic;
  uint64_t tail[2];
  if (file->len - offset < MOB__FRAME_HEADER) return 0;
  memcpy(&magic, file->data + offset, sizeof magic);
  memcpy(tail, file->data + offset + 8, sizeof tail);
  if (magic != MOB__FRAME_MAGIC || tail[0] > file->len - offset - MOB__FRAME_HEADER) return 0;
  const uint8_t *payload = file->data + offset + MOB__FRAME_HEADER;
  if (frame_sum(file_id, offset, payload, (size_t)tail[0]) != tail[1]) return 0;
  return MOB__FRAME_HEADER + tail[0];
}

// Whether anything whole lies behind a frame that is not: frames are synced one after the other, so
// a crash can only spoil the last one.
static bool any_frame_after(const mob_buf_t *file, uint64_t file_id, uint64_t offset,
                            uint64_t *found) {
  uint32_t magic = MOB__FRAME_MAGIC;
  const uint8_t *end = file->data + file->len, *at = file->data + offset + 1;
  while (at < end && (at = memmem(at, (size_t)(end - at), &magic, sizeof magic))) {
    *found = (uint64_t)(at - file->data);
    if (frame_at(file, file_id, *found)) return true;
    at++;
  }
  return false;
}

static mob_status damaged(const file_store_t *s, uint64_t offset, const char *what) {
  return mob_fail(MOB_E_FORMAT,
                  "%s is damaged at offset %llu: %s. Put a sound copy in its place, or move it "
                  "away to start with no state",
                  s->path, (unsigned long long)offset, what);
}

static mob_status replay(file_store_t *s, const mob_buf_t *file) {
  uint64_t sum, offset = MOB__FILE_HEADER;
  if (file->len < MOB__FILE_HEADER || memcmp(file->data, file_magic, sizeof file_magic) != 0)
    return damaged(s, 0, "it is no log of a GCS");
  memcpy(&s->file_id, file->data + 8, sizeof s->file_id);
  memcpy(&sum, file->data + 16, sizeof sum);
  if (XXH3_64bits(file->data, 16) != sum)
    return damaged(s, 0, "the checksum of its header is wrong");
  while (offset < file->len) {
    uint64_t len = frame_at(file, s->file_id, offset), next = 0;
    if (len == 0) {
      if (!any_frame_after(file, s->file_id, offset, &next)) break;
      char *what = mob_sprintf("a checksum is wrong, yet sound changes follow at %llu",
                               (unsigned long long)next);
      damaged(s, offset, what);
      free(what);
      return MOB_E_FORMAT;
    }
    if (!apply_frame(s, file->data + offset + MOB__FRAME_HEADER, (size_t)len - MOB__FRAME_HEADER))
      return damaged(s, offset, "a change in it cannot be read");
    offset += len;
  }
  s->size = offset;
  if (offset == file->len) return MOB_OK;
  MOB_WARN("%s ends in %llu bytes of a change that was never acknowledged: they are cut off",
           s->path, (unsigned long long)(file->len - offset));
  if (step("ftruncate", s->fd, NULL, 0) < 0 || ftruncate(s->fd, (off_t)offset) < 0 ||
      sync_data(s->fd) < 0) {
    return mob_fail(MOB_E_IO, "cannot cut %s to %llu bytes: %s", s->path,
                    (unsigned long long)offset, strerror(errno));
  }
  return MOB_OK;
}

// ------------------------------------------------------------------------------------------- jobs

static void fail_job(job_t *job, const char *what, const char *path) {
  job->error = mob_sprintf("cannot %s %s: %s", what, path, strerror(errno));
}

static void append(job_t *job, const char *path) {
  if (write_all(job->fd, job->bytes.data, job->bytes.len, job->offset) < 0) {
    fail_job(job, "write to", path);
  } else if (sync_data(job->fd) < 0) {
    fail_job(job, "sync", path);
  }
}

static void write_anew(job_t *job, const file_store_t *s) {
  int fd = step("open", -1, NULL, 0) < 0
               ? -1
               : open(s->new_path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (fd < 0) {
    fail_job(job, "create", s->new_path);
  } else if (write_all(fd, job->bytes.data, job->bytes.len, 0) < 0) {
    fail_job(job, "write to", s->new_path);
  } else if (sync_all(fd) < 0) {
    fail_job(job, "sync", s->new_path);
  } else if (step("rename", fd, NULL, 0) < 0 || rename(s->new_path, s->path) < 0) {
    fail_job(job, "put the new file in the place of", s->path);
  } else if (sync_all(s->dir_fd) < 0) {
    fail_job(job, "sync the folder", s->dir);
  }
  if (job->error && fd >= 0) close(fd);
  job->fd = job->error ? -1 : fd;
}

static void run_job(job_t *job, const file_store_t *s) {
  if (job->rewrite) {
    write_anew(job, s);
  } else {
    append(job, s->path);
  }
}

static void on_work(uv_work_t *work) {
  file_store_t *s = work->data;
  run_job(&s->job, s);
}

static void answer(waiters_t *waiters, mob_status status, const char *error) {
  for (size_t i = 0; i < waiters->len; i++) {
    if (status != MOB_OK) mob_fail(status, "%s", error);
    waiters->at[i].done(waiters->at[i].arg, status);
  }
  mob_vec_free(waiters);
}

// Takes over what the job achieved.
static job_t settle(file_store_t *s) {
  job_t job = s->job;
  s->job = (job_t){0};
  s->busy = false;
  if (!job.error && job.rewrite) {
    if (s->fd >= 0) close(s->fd);
    s->fd = job.fd;
    s->file_id = job.file_id;
    s->size = job.bytes.len;
  } else if (!job.error) {
    s->size += job.bytes.len;
  }
  if (job.error && !s->broken) { // once, not with every try
    MOB_ERROR("%s; changes are not stored until that is mended", job.error);
  } else if (!job.error && s->broken) {
    MOB_INFO("%s is written anew, whole", s->path);
  }
  s->broken = job.error != NULL;
  mob_buf_free(&job.bytes);
  return job;
}

// And tells those who waited for it, who may ask for more.
static void finish_job(job_t *job) {
  answer(&job->waiters, job->error ? MOB_E_UNAVAILABLE : MOB_OK, job->error);
  free(job->error);
}

static void start_job(file_store_t *s) {
  job_t *job = &s->job;
  bool wasteful =
      s->size > mob__store_file_compact_min && s->size > 2 * (s->live + MOB__FILE_HEADER);
  *job = (job_t){.rewrite = s->broken || wasteful, .fd = s->fd, .offset = s->size};
  job->file_id = s->file_id;
  if (job->rewrite) {
    mob_random(&job->file_id, sizeof job->file_id);
    put_snapshot(s, &job->bytes, job->file_id);
  } else {
    put_frame(&job->bytes, job->file_id, job->offset, &s->pending);
  }
  s->pending.len = 0;
  job->waiters = s->waiters;
  s->waiters = (waiters_t){0};
  s->busy = true;
}

static void free_store(file_store_t *s);
static void go_on(file_store_t *s);

static void on_retry(uv_timer_t *timer) {
  go_on(timer->data);
}

static void on_job_done(uv_work_t *work, int cancelled) {
  (void)cancelled; // never cancelled
  file_store_t *s = work->data;
  job_t job = settle(s);
  bool pause = s->broken && !s->closing;
  if (pause) uv_timer_start(&s->retry, on_retry, RETRY_MS, 0); // with what has come until then
  s->busy = true; // what they ask for waits until all are told
  finish_job(&job);
  s->busy = false;
  if (!pause || s->closing) go_on(s);
}

static void on_timer_closed(uv_handle_t *handle) {
  free_store(handle->data);
}

static void queue_job(file_store_t *s) {
  start_job(s);
  int error = uv_queue_work(s->loop, &s->work, on_work, on_job_done);
  MOB_ASSERT(error == 0);
}

// Starts the next job, if there is something for it.
static void go_on(file_store_t *s) {
  if (s->busy) return;
  if (s->pending.len || (s->broken && !s->closing)) {
    queue_job(s);
  } else if (s->closing && !s->timer_closed) {
    s->timer_closed = true;
    uv_close((uv_handle_t *)&s->retry, on_timer_closed);
  }
}

// -------------------------------------------------------------------------------------- interface

static void change(file_store_t *s, mob_store_done_fn done, void *arg) {
  if (done) *mob_vec_push(&s->waiters) = (waiter_t){done, arg};
  if (!uv_is_active((uv_handle_t *)&s->retry)) go_on(s);
}

static void put(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                const void *value, size_t value_len, mob_store_done_fn done, void *arg) {
  file_store_t *s = (file_store_t *)store;
  remember(s, table, key, key_len, value, value_len);
  put_change(&s->pending, PUT, table, key, key_len, value, value_len);
  change(s, done, arg);
}

static void del(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                mob_store_done_fn done, void *arg) {
  file_store_t *s = (file_store_t *)store;
  forget(s, table, key, key_len);
  put_change(&s->pending, DEL, table, key, key_len, NULL, 0);
  change(s, done, arg);
}

static void sync_store(mob_store_t *store, mob_store_done_fn done, void *arg) {
  file_store_t *s = (file_store_t *)store;
  bool working = s->job.bytes.len > 0;
  if (s->pending.len || s->broken) { // with the next job
    *mob_vec_push(&s->waiters) = (waiter_t){done, arg};
  } else if (working) {
    *mob_vec_push(&s->job.waiters) = (waiter_t){done, arg};
  } else {
    done(arg, MOB_OK);
  }
}

static mob_status load(mob_store_t *store, mob_table_t table, mob_store_each_fn each, void *arg) {
  file_store_t *s = (file_store_t *)store;
  for (mob_map_entry_t *e = NULL; (e = mob_map_next(&s->tables[table], e));) {
    const value_t *value = e->value;
    each(arg, e->key, e->key_len, value->data, value->len);
  }
  return MOB_OK;
}

static void close_store(mob_store_t *store, void (*done)(void *arg), void *arg) {
  file_store_t *s = (file_store_t *)store;
  s->closing = true;
  s->closed = done;
  s->closed_arg = arg;
  uv_timer_stop(&s->retry);
  if (s->broken && !s->busy) {
    queue_job(s); // one last try
  } else {
    go_on(s);
  }
}

static void free_store(file_store_t *s) {
  void (*closed)(void *arg) = s->closed;
  void *arg = s->closed_arg;
  for (int table = 0; table < MOB_TABLE_COUNT; table++) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(&s->tables[table], e));) free(e->value);
    mob_map_free(&s->tables[table]);
  }
  answer(&s->waiters, MOB_E_UNAVAILABLE, "the GCS ends");
  mob_buf_free(&s->pending);
  if (s->fd >= 0) close(s->fd);
  if (s->dir_fd >= 0) close(s->dir_fd);
  if (s->lock_fd >= 0) close(s->lock_fd); // and with it the lock
  free(s->dir);
  free(s->path);
  free(s->new_path);
  free(s);
  if (closed) closed(arg);
}

static mob_status take_lock(file_store_t *s) {
  char *path = mob_path_join(s->dir, MOB__STORE_FILE_LOCK);
  mob_status status = MOB_OK;
  s->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (s->lock_fd < 0) {
    status = mob_fail(MOB_E_IO, "cannot open %s: %s", path, strerror(errno));
  } else if (flock(s->lock_fd, LOCK_EX | LOCK_NB) < 0) {
    status = errno == EWOULDBLOCK
                 ? mob_fail(MOB_E_EXISTS,
                            "another GCS keeps its state in %s: stop it, or give this one a "
                            "folder of its own (RAY_gcs_storage_path)",
                            s->dir)
                 : mob_fail(MOB_E_IO, "cannot lock %s: %s", path, strerror(errno));
  }
  free(path);
  return status;
}

static mob_status open_log(file_store_t *s) {
  mob_buf_t file = {0};
  MOB_TRY(mob_mkdirs(s->dir));
  s->dir_fd = open(s->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (s->dir_fd < 0) return mob_fail(MOB_E_IO, "cannot open %s: %s", s->dir, strerror(errno));
  if (faccessat(s->dir_fd, "CURRENT", F_OK, 0) == 0) {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "%s holds a RocksDB database, which only Ray itself reads: give "
                    "RAY_gcs_storage_path another folder",
                    s->dir);
  }
  MOB_TRY(take_lock(s));
  unlink(s->new_path); // of a rewrite that a crash cut short
  s->fd = open(s->path, O_RDWR | O_CLOEXEC);
  if (s->fd < 0 && errno != ENOENT)
    return mob_fail(MOB_E_IO, "cannot open %s: %s", s->path, strerror(errno));
  if (s->fd >= 0) {
    mob_status status = mob_file_read(s->path, SIZE_MAX, &file);
    if (status == MOB_OK) status = replay(s, &file);
    mob_buf_free(&file);
    return status;
  }
  s->broken = true; // there is no file yet
  start_job(s);
  run_job(&s->job, s);
  int parent = openat(s->dir_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (parent >= 0) { // the folder may be new too
    fsync(parent);
    close(parent);
  }
  s->broken = false;
  job_t job = settle(s);
  mob_status status = job.error ? mob_fail(MOB_E_IO, "%s", job.error) : MOB_OK;
  finish_job(&job);
  return status;
}

mob_status mob_store_file(uv_loop_t *loop, const char *dir, mob_store_t **out) {
  file_store_t *s = MOB_NEW(file_store_t);
  s->base = (mob_store_t){"file", true, put, del, sync_store, load, close_store};
  s->loop = loop;
  s->dir_fd = s->lock_fd = s->fd = -1;
  s->dir = mob_strdup(dir);
  s->path = mob_path_join(dir, MOB__STORE_FILE_NAME);
  s->new_path = mob_path_join(dir, MOB__STORE_FILE_NEW);
  s->size = MOB__FILE_HEADER;
  s->work.data = s;
  mob_status status = open_log(s);
  if (status != MOB_OK) {
    free_store(s);
    return status;
  }
  uv_timer_init(loop, &s->retry);
  s->retry.data = s;
  *out = &s->base;
  return MOB_OK;
}
