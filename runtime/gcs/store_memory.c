#include <stdlib.h>

#include "runtime/base/mem.h"
#include "runtime/gcs/store.h"

static void put(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                const void *value, size_t value_len, mob_store_done_fn done, void *arg) {
  (void)store, (void)table, (void)key, (void)key_len, (void)value, (void)value_len;
  if (done) done(arg, MOB_OK);
}

static void del(mob_store_t *store, mob_table_t table, const void *key, size_t key_len,
                mob_store_done_fn done, void *arg) {
  (void)store, (void)table, (void)key, (void)key_len;
  if (done) done(arg, MOB_OK);
}

static void sync_store(mob_store_t *store, mob_store_done_fn done, void *arg) {
  (void)store;
  done(arg, MOB_OK);
}

static mob_status load(mob_store_t *store, mob_table_t table, mob_store_each_fn each, void *arg) {
  (void)store, (void)table, (void)each, (void)arg;
  return MOB_OK;
}

static void close_store(mob_store_t *store, void (*done)(void *arg), void *arg) {
  free(store);
  if (done) done(arg);
}

mob_store_t *mob_store_memory(void) {
  mob_store_t *store = MOB_NEW(mob_store_t);
  *store = (mob_store_t){"memory", false, put, del, sync_store, load, close_store};
  return store;
}
