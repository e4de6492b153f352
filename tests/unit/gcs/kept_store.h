// A store whose rows outlive the GCS that wrote them, in memory, for tests and fuzz targets that restart it.
#ifndef TESTS_GCS_KEPT_STORE_H
#define TESTS_GCS_KEPT_STORE_H

#include "runtime/gcs/store.h"

typedef struct kept_rows kept_rows_t;

kept_rows_t *kept_rows_new(void);
void kept_rows_free(kept_rows_t *rows);
// What a process that dies leaves: the rows as they are before a GCS takes leave of anybody.
kept_rows_t *kept_rows_copy(const kept_rows_t *rows);
void kept_rows_put(kept_rows_t *rows, mob_table_t table, const void *key, size_t key_len, const void *value, size_t value_len);

// A store of these rows, one at a time. `late`: what it acknowledges waits for kept_rows_acknowledge(); else it does so at once.
mob_store_t *kept_store(kept_rows_t *rows, bool late);
bool kept_rows_acknowledge(kept_rows_t *rows); // false: nothing waited

#endif
