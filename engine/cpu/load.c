// Reading weights: several threads fault the mapped files in, chunk by chunk, so that the kernel
// reads ahead from many places at once, and look for FP8 NaN codes while the bytes are in the
// cache.
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/cpu/weights.h"
#include "engine/model/dummy.h"
#include "runtime/base/mem.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

enum { CHUNK = 8 << 20 };

typedef struct chunk {
  const mob_region_t *region;
  size_t begin, bytes; // within the region; for a dummy region in whole rows
} chunk_t;

typedef struct reading {
  MOB_VEC(chunk_t) chunks;
  _Atomic size_t next;
  _Atomic uint64_t done;
  _Atomic(const char *) bad; // tensor with a NaN code
  uint64_t total;
  void (*progress)(void *arg, const mob_load_progress_t *p);
  void *arg;
} reading_t;

// Eight codes at a time: adding 1 to the low seven bits carries into the top bit only from 0x7F.
static bool has_nan_code(const uint8_t *data, size_t n) {
  uint64_t found = 0, word;
  size_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int k = 0; k < 64; k += 8) {
      memcpy(&word, data + i + k, 8);
      found |= (word & 0x7f7f7f7f7f7f7f7fu) + 0x0101010101010101u;
    }
  }
  for (; i < n; i++) found |= (uint64_t)((data[i] & 0x7f) + 1);
  return (found & 0x8080808080808080u) != 0;
}

static void read_chunk(reading_t *r, const chunk_t *chunk) {
  const mob_region_t *region = chunk->region;
  if (region->fill) {
    size_t row = (size_t)region->slot.cols * mob_dtype_size(region->dtype);
    mob_shard_t part = region->shard;
    part.row0 = (int64_t)(chunk->begin / row);
    part.rows = (int64_t)(chunk->bytes / row);
    mob_dummy_fill(&region->slot, region->dtype, &part, region->fill + chunk->begin);
    return;
  }
  const uint8_t *data = region->data + chunk->begin;
  size_t page = (size_t)sysconf(_SC_PAGESIZE);
  uint8_t *first = (uint8_t *)((uintptr_t)data & ~(uintptr_t)(page - 1));
  if (madvise(first, (size_t)(data + chunk->bytes - first), MADV_POPULATE_READ) != 0) {
    volatile uint8_t sink = 0; // an older kernel: touch every page
    for (size_t i = 0; i < chunk->bytes; i += page) sink += data[i];
    (void)sink;
  }
  if (region->check_nan && has_nan_code(data, chunk->bytes)) atomic_store(&r->bad, region->name);
}

static void *reader_main(void *arg) {
  reading_t *r = arg;
  size_t i;
  while ((i = atomic_fetch_add(&r->next, 1)) < r->chunks.len && !atomic_load(&r->bad)) {
    read_chunk(r, &r->chunks.at[i]);
    uint64_t done = atomic_fetch_add(&r->done, r->chunks.at[i].bytes) + r->chunks.at[i].bytes;
    if (r->progress) r->progress(r->arg, &(mob_load_progress_t){done, r->total});
  }
  return NULL;
}

static void cut(reading_t *r, const mob_region_t *region) {
  size_t step = CHUNK;
  if (region->fill) {
    size_t row = (size_t)region->slot.cols * mob_dtype_size(region->dtype);
    step = row >= CHUNK ? row : CHUNK / row * row;
  }
  for (size_t at = 0; at < region->bytes; at += step)
    *mob_vec_push(&r->chunks) =
        (chunk_t){region, at, region->bytes - at < step ? region->bytes - at : step};
}

mob_status mob_weights_read(mob_weight_store_t *store, int threads,
                            void (*progress)(void *arg, const mob_load_progress_t *p), void *arg) {
  reading_t r = {.total = store->bytes, .progress = progress, .arg = arg};
  uint64_t read = 0;
  for (size_t i = 0; i < store->regions.len; i++) {
    cut(&r, &store->regions.at[i]);
    read += store->regions.at[i].bytes;
  }
  atomic_store(&r.done, store->bytes - read); // scales and vectors are read as they are bound
  pthread_t *ids = MOB_NEW_ARRAY(pthread_t, (size_t)threads + 1);
  int started = 0;
  for (; started + 1 < threads; started++)
    if (pthread_create(&ids[started], NULL, reader_main, &r) != 0) break;
  reader_main(&r);
  for (int i = 0; i < started; i++) pthread_join(ids[i], NULL);
  free(ids);
  mob_vec_free(&r.chunks);
  const char *bad = atomic_load(&r.bad);
  if (bad)
    return mob_fail(
        MOB_E_FORMAT,
        "tensor %s holds the FP8 code 0x7F or 0xFF, which is not a number: the file is damaged",
        bad);
  return MOB_OK;
}
