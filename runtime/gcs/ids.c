#include "runtime/gcs/ids.h"

#include "runtime/base/hex.h"

mob_id_hex_t mob_id_text_of(const void *id, size_t len) {
  mob_id_hex_t hex;
  mob_hex(id, len > 32 ? 32 : len, hex.text);
  return hex;
}

mob_id_hex_t mob_id_text(ProtobufCBinaryData id) {
  return mob_id_text_of(id.data, id.len);
}

bool mob_id_is_nil(ProtobufCBinaryData id) {
  for (size_t i = 0; i < id.len; i++) {
    if (id.data[i] != 0xff) return false;
  }
  return true;
}
