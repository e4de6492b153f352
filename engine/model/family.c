#include "engine/model/family.h"

#include <string.h>

#include "runtime/base/buf.h"

const mob_family_t *const mob_families[] = {&mob_family_deepseek_v3, &mob_family_qwen2,
                                            &mob_family_qwen3,       &mob_family_qwen3_moe,
                                            &mob_family_llama,       NULL};

static const mob_family_t *find(const char *architecture) {
  for (int f = 0; mob_families[f]; f++)
    for (int a = 0; mob_families[f]->architectures[a]; a++)
      if (strcmp(mob_families[f]->architectures[a], architecture) == 0) return mob_families[f];
  return NULL;
}

mob_status mob_family_find(const json_t *config, const mob_family_t **out) {
  const char *name = json_string_value(json_array_get(json_object_get(config, "architectures"), 0));
  if (!name)
    return mob_fail(MOB_E_INVALID,
                    "config.json: architectures is not a list that begins with a name");
  *out = find(name);
  if (*out) return MOB_OK;
  mob_buf_t known = {0};
  for (int f = 0; mob_families[f]; f++)
    for (int a = 0; mob_families[f]->architectures[a]; a++)
      mob_buf_printf(&known, "%s%s", known.len ? ", " : "", mob_families[f]->architectures[a]);
  mob_status status = mob_fail(
      MOB_E_UNSUPPORTED, "config.json: architecture \"%.64s\" is not supported (supported: %s)",
      name, mob_buf_cstr(&known));
  mob_buf_free(&known);
  return status;
}
