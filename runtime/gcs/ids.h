// Ray's ids: byte strings of fixed length, all 0xff for "none".
#ifndef MOB_GCS_IDS_H
#define MOB_GCS_IDS_H

#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
  MOB_JOB_ID_SIZE = 4,    // a little-endian number
  MOB_ACTOR_ID_SIZE = 16, // 12 random, job id
  MOB_PG_ID_SIZE = 18,    // 14 random, job id
  MOB_TASK_ID_SIZE = 24,  // 8 random, actor id
  MOB_NODE_ID_SIZE = 28,  // random; worker and cluster ids too
  MOB_WORKER_ID_SIZE = 28,
  MOB_LEASE_ID_SIZE = 32, // 4 counting, worker id
  MOB_ID_HEX_MAX = 2 * 32 + 1,
};

typedef struct mob_id_hex {
  char text[MOB_ID_HEX_MAX];
} mob_id_hex_t;

// For a log line: mob_id_text(id).text. Ids longer than 32 bytes are cut.
mob_id_hex_t mob_id_text(ProtobufCBinaryData id);
mob_id_hex_t mob_id_text_of(const void *id, size_t len);
bool mob_id_is_nil(ProtobufCBinaryData id); // empty counts as nil

#endif
