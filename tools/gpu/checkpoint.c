#include "checkpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/model/dummy.h"
#include "runtime/base/buf.h"
#include "runtime/base/vec.h"

enum { CHUNK = 8 << 20 };

typedef struct entry { // a tensor, or the scales of one
  mob_slot_t slot;
  const mob_tensor_t *tensor;
  bool scales;
  int file;
  uint64_t at; // in its file's data
} entry_t;

typedef struct piece {
  size_t entry;
  int64_t row0, rows;
} piece_t;

typedef struct writing {
  const mob_model_t *model;
  uint64_t file_bytes, at;
  int files;
  MOB_VEC(entry_t) entries;
  MOB_VEC(piece_t) pieces;
  MOB_VEC(int) fds;
  MOB_VEC(uint64_t) starts; // of a file's data
  _Atomic size_t next;
  _Atomic int error;
} writing_t;

static void add(writing_t *w, const mob_slot_t *slot, const mob_tensor_t *tensor, bool scales) {
  if (w->files == 0 || w->at >= w->file_bytes) w->files++, w->at = 0;
  *mob_vec_push(&w->entries) = (entry_t){*slot, tensor, scales, w->files - 1, w->at};
  w->at += tensor->bytes;
  int64_t rows = scales ? 1 : tensor->shape[0], row = (int64_t)tensor->bytes / rows, step = CHUNK / row > 0 ? CHUNK / row : 1;
  for (int64_t r = 0; r < rows; r += step)
    *mob_vec_push(&w->pieces) = (piece_t){w->entries.len - 1, r, rows - r < step ? rows - r : step};
}

static mob_status add_slot(void *arg, const mob_slot_t *slot) {
  writing_t *w = arg;
  const mob_tensor_t *tensor, *scales;
  MOB_TRY(mob_model_slot(w->model, slot, &tensor, &scales));
  if (!tensor) return MOB_OK; // a tied head
  if (scales) add(w, slot, scales, true);
  add(w, slot, tensor, false);
  return MOB_OK;
}

static void file_name(const char *dir, int file, char *out, size_t size) {
  snprintf(out, size, "%s/model-%05d.safetensors", dir, file + 1);
}

static mob_status write_header(writing_t *w, const char *dir, int file) {
  mob_buf_t text = {0};
  for (size_t i = 0; i < w->entries.len; i++) {
    const entry_t *e = &w->entries.at[i];
    if (e->file != file) continue;
    const mob_tensor_t *t = e->tensor;
    mob_buf_printf(&text, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%lld", text.len ? "," : "{", t->name, t->dtype_name,
                   (long long)t->shape[0]);
    if (t->rank == 2) mob_buf_printf(&text, ",%lld", (long long)t->shape[1]);
    mob_buf_printf(&text, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)e->at, (unsigned long long)(e->at + t->bytes));
  }
  mob_buf_putc(&text, '}');
  while (text.len % 8) mob_buf_putc(&text, ' ');
  char path[512];
  file_name(dir, file, path, sizeof path);
  int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  uint64_t length = text.len;
  bool ok = fd >= 0 && write(fd, &length, 8) == 8 && write(fd, text.data, text.len) == (ssize_t)text.len;
  int error = errno;
  *mob_vec_push(&w->fds) = fd;
  *mob_vec_push(&w->starts) = 8 + length;
  mob_buf_free(&text);
  return ok ? MOB_OK : mob_fail(MOB_E_IO, "%s: %s", path, strerror(error));
}

static void *writer_main(void *arg) {
  writing_t *w = arg;
  uint8_t *data = NULL;
  size_t cap = 0, i;
  while ((i = atomic_fetch_add(&w->next, 1)) < w->pieces.len && !atomic_load(&w->error)) {
    const piece_t *p = &w->pieces.at[i];
    const entry_t *e = &w->entries.at[p->entry];
    size_t row = e->scales ? e->tensor->bytes : e->tensor->bytes / (size_t)e->tensor->shape[0], bytes = row * (size_t)p->rows;
    if (bytes > cap) data = mob_realloc(data, cap = bytes);
    if (e->scales) {
      float scale = mob_dummy_scale(mob_model_desc(w->model), &e->slot);
      for (size_t k = 0; k < bytes / 4; k++) memcpy(data + 4 * k, &scale, 4);
    } else {
      mob_shard_t part = {p->row0, p->rows, 0, e->slot.cols};
      mob_dummy_fill(&e->slot, e->tensor->dtype, &part, data);
    }
    uint64_t at = w->starts.at[e->file] + e->at + (uint64_t)p->row0 * row;
    for (size_t done = 0; done < bytes;) {
      ssize_t n = pwrite(w->fds.at[e->file], data + done, bytes - done, (off_t)(at + done));
      if (n <= 0) {
        atomic_store(&w->error, n < 0 ? errno : ENOSPC);
        break;
      }
      done += (size_t)n;
    }
  }
  free(data);
  return NULL;
}

mob_status checkpoint_write(const mob_model_t *model, const char *dir, uint64_t file_bytes, int threads) {
  writing_t w = {.model = model, .file_bytes = file_bytes};
  mob_status status = mob_model_stage_slots(model, 0, mob_model_desc(model)->n_layers, add_slot, &w);
  for (int file = 0; file < w.files && status == MOB_OK; file++) status = write_header(&w, dir, file);
  if (status == MOB_OK) {
    pthread_t *ids = MOB_NEW_ARRAY(pthread_t, (size_t)threads + 1);
    int started = 0;
    while (started + 1 < threads && pthread_create(&ids[started], NULL, writer_main, &w) == 0) started++;
    writer_main(&w);
    for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
    free(ids);
    if (w.error) status = mob_fail(MOB_E_IO, "%s: %s", dir, strerror(w.error));
  }
  for (size_t i = 0; i < w.fds.len; i++)
    if (w.fds.at[i] >= 0) close(w.fds.at[i]);
  mob_vec_free(&w.entries);
  mob_vec_free(&w.pieces);
  mob_vec_free(&w.fds);
  mob_vec_free(&w.starts);
  return status;
}
