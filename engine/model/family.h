// Model families: from config.json to a description and the names of its tensors. One file a family.
#ifndef MOB_MODEL_FAMILY_H
#define MOB_MODEL_FAMILY_H

#include <jansson.h>

#include "engine/model/desc.h"

typedef mob_status (*mob_slot_fn)(void *arg, const mob_slot_t *slot);

typedef struct mob_family {
  const char *name;
  const char *const *architectures; // of config.json, NULL-terminated
  // Fills `desc` (zeroed by the caller). Every field that changes the result acts or is refused by name.
  mob_status (*describe)(const json_t *config, mob_model_desc_t *desc);
  // Calls `emit` for every weight of one layer; layer -1: embedding, final norm and head.
  mob_status (*slots)(const mob_model_desc_t *desc, int layer, mob_slot_fn emit, void *arg);
} mob_family_t;

extern const mob_family_t mob_family_deepseek_v3, mob_family_qwen2, mob_family_qwen3, mob_family_qwen3_moe,
    mob_family_llama;

// All families, NULL-terminated.
extern const mob_family_t *const mob_families[];

// By config.json's `architectures`; MOB_E_UNSUPPORTED names it and lists the known ones.
mob_status mob_family_find(const json_t *config, const mob_family_t **out);

#endif
