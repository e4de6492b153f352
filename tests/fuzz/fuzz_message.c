// Bytes as they come over gRPC: what is taken for a message can be written, and what was written is
// the same message again.
#include <stdlib.h>
#include <string.h>

#include "ray/gcs_service.pb-c.h"
#include "ray/node_manager.pb-c.h"
#include "ray/ray_syncer.pb-c.h"
#include "runtime/base/mem.h"
#include "runtime/rpc/message.h"
#include "tests/fuzz/message_maker.h"

enum { MAX_EDITS = 8 };

static const ProtobufCMessageDescriptor *const types[] = {
    &ray__rpc__register_actor_request__descriptor,
    &ray__rpc__create_placement_group_request__descriptor,
    &ray__rpc__register_node_request__descriptor,
    &ray__rpc__gcs_publish_request__descriptor,
    &ray__rpc__request_worker_lease_request__descriptor,
    &ray__rpc__syncer__ray_sync_message_batch__descriptor,
    &ray__rpc__add_job_request__descriptor,
    &ray__rpc__internal_kvput_request__descriptor};

static void read_and_write(const ProtobufCMessageDescriptor *type, const uint8_t *data,
                           size_t size) {
  void *message = NULL, *again = NULL;
  if (mob_pb_unpack(type, data, size, &message) != MOB_OK) return;
  size_t len, len_again;
  void *bytes = mob_pb_pack(message, &len);
  MOB_ASSERT(mob_pb_unpack(type, bytes, len, &again) == MOB_OK);
  void *bytes_again = mob_pb_pack(again, &len_again);
  MOB_ASSERT(len == len_again && memcmp(bytes, bytes_again, len) == 0);
  free(bytes);
  free(bytes_again);
  mob_pb_free(message);
  mob_pb_free(again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  source_t in = {data, data + size};
  uint8_t kind = take_byte(&in);
  const ProtobufCMessageDescriptor *type = types[kind / 2 % MOB_LEN(types)];
  if (kind % 2) { // the bytes as they are
    read_and_write(type, in.at, (size_t)(in.end - in.at));
    return 0;
  }
  uint8_t edits[MAX_EDITS][2],
      count = take_byte(&in) % (MAX_EDITS + 1); // a message, of which some bytes are others
  for (int i = 0; i < count; i++)
    for (int j = 0; j < 2; j++) edits[i][j] = take_byte(&in);
  void *message = make_message(type, &in);
  size_t len;
  uint8_t *bytes = mob_pb_pack(message, &len);
  for (int i = 0; len && i < count; i++) bytes[edits[i][0] % len] = edits[i][1];
  read_and_write(type, bytes, len);
  free(bytes);
  mob_pb_free(message);
  return 0;
}
