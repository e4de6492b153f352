#include "tests/unit/gcs/kept_store.h"

#include <stdlib.h>
#include <string.h>

#include "runtime/base/map.h"
#include "runtime/base/mem.h"
#include "runtime/base/vec.h"

typedef struct row {
  size_t len;
  uint8_t bytes[];
} row_t;

typedef struct ack {
  mob_store_done_fn done;
  void *arg;
} ack_t;

struct kept_rows {
  mob_map_t tables[MOB_TABLE_COUNT]; // key -> row_t
  MOB_VEC(ack_t) waiting;
};

typedef struct kept {
  mob_store_t base;
  kept_rows_t *rows;
  bool late;
} kept_t;

kept_rows_t *kept_rows_new(void) {
  return MOB_NEW(kept_rows_t);
}

void kept_rows_free(kept_rows_t *rows) {
  for (int t = 0; t < MOB_TABLE_COUNT; t++) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(&rows->tables[t], e));) free(e->value);
    mob_map_free(&rows->tables[t]);
  }
  mob_vec_free(&rows->waiting);
  free(rows);
}

void kept_rows_put(kept_rows_t *rows, mob_table_t table, const void *key, size_t key_len, const void *value, size_t value_len) {
  row_t *row = mob_malloc(sizeof *row + value_len);
  row->len = value_len;
  if (value_len) memcpy(row->bytes, value, value_len);
  free(mob_map_put(&rows->tables[table], key, key_len, row));
}

kept_rows_t *kept_rows_copy(const kept_rows_t *rows) {
  kept_rows_t *copy = kept_rows_new();
  for (int t = 0; t < MOB_TABLE_COUNT; t++) {
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(&rows->tables[t], e));) {
      const row_t *row = e->value;
      kept_rows_put(copy, (mob_table_t)t, e->key, e->key_len, row->bytes, row->len);
    }
  }
  return copy;
}

static void acknowledge(kept_t *store, mob_store_done_fn done, void *arg) {
  if (!done) return;
  if (store->late) *mob_vec_push(&store->rows->waiting) = (ack_t){done, arg};
  else done(arg, MOB_OK);
}

bool kept_rows_acknowledge(kept_rows_t *rows) {
  if (rows->waiting.len == 0) return false;
  ack_t ack = rows->waiting.at[0];
  mob_vec_remove(&rows->waiting, 0);
  ack.done(ack.arg, MOB_OK);
  return true;
}

static void put(mob_store_t *base, mob_table_t table, const void *key, size_t key_len, const void *value, size_t value_len,
                mob_store_done_fn done, void *arg) {
  kept_t *store = (kept_t *)base;
  kept_rows_put(store->rows, table, key, key_len, value, value_len);
  acknowledge(store, done, arg);
}

static void del(mob_store_t *base, mob_table_t table, const void *key, size_t key_len, mob_store_done_fn done, void *arg) {
  kept_t *store = (kept_t *)base;
  free(mob_map_remove(&store->rows->tables[table], key, key_len));
  acknowledge(store, done, arg);
}

static void sync_store(mob_store_t *base, mob_store_done_fn done, void *arg) {
  acknowledge((kept_t *)base, done, arg);
}

static mob_status load(mob_store_t *base, mob_table_t table, mob_store_each_fn each, void *arg) {
  mob_map_t *rows = &((kept_t *)base)->rows->tables[table];
  for (int twice = 0; twice < 2; twice++) { // as a store may
    for (mob_map_entry_t *e = NULL; (e = mob_map_next(rows, e));) {
      const row_t *row = e->value;
      each(arg, e->key, e->key_len, row->bytes, row->len);
    }
  }
  return MOB_OK;
}

static void close_store(mob_store_t *base, void (*done)(void *arg), void *arg) {
  while (kept_rows_acknowledge(((kept_t *)base)->rows)) {
  }
  free(base);
  if (done) done(arg);
}

mob_store_t *kept_store(kept_rows_t *rows, bool late) {
  kept_t *store = MOB_NEW(kept_t);
  *store = (kept_t){{"kept", true, put, del, sync_store, load, close_store}, rows, late};
  return &store->base;
}
