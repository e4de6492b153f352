// Answers that wait for the store; see internal.h for the common ones.
#ifndef MOB_GCS_ACKNOWLEDGE_H
#define MOB_GCS_ACKNOWLEDGE_H

#include "runtime/gcs/internal.h"

void mob__gcs_put_bytes_reply(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                              const void *value, size_t value_len, mob_rpc_call_t *call,
                              const void *reply);
void mob__gcs_del_reply(mob_gcs_t *gcs, mob_table_t table, const void *key, size_t key_len,
                        mob_rpc_call_t *call, const void *reply);

#endif
