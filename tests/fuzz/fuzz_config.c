// config.json of every family: a description or an error, and slots that can be cut.
#include <stddef.h>
#include <stdint.h>

#include "engine/model/family.h"

static mob_status cut(void *arg, const mob_slot_t *slot) {
  mob_shard_t shard;
  for (int tp = 1; tp <= 8; tp *= 2) (void)mob_slot_shard(arg, slot, tp - 1, tp, &shard);
  return MOB_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  json_error_t error;
  json_t *config = json_loadb((const char *)data, size, JSON_REJECT_DUPLICATES, &error);
  const mob_family_t *family;
  mob_model_desc_t desc = {0};
  if (json_is_object(config) && mob_family_find(config, &family) == MOB_OK) {
    if (family->describe(config, &desc) == MOB_OK && desc.n_experts <= 1024)
      for (int layer = -1; layer < desc.n_layers && layer < 4; layer++)
        (void)family->slots(&desc, layer, cut, &desc);
    mob_model_desc_clear(&desc);
  }
  json_decref(config);
  return 0;
}
