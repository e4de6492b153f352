#include "engine/stage/dtype.h"

#include <string.h>

#include "runtime/base/mem.h"

typedef struct name {
  const char *text;
  mob_dtype_t dtype;
} name_t;

static bool find(const name_t *names, size_t count, const char *text, mob_dtype_t *out) {
  for (size_t i = 0; i < count; i++) {
    if (strcmp(names[i].text, text) != 0) continue;
    *out = names[i].dtype;
    return true;
  }
  return false;
}

static bool is_auto(const char *text) {
  return !text || !text[0] || strcmp(text, "auto") == 0;
}

mob_status mob__dtypes(const char *dtype, const char *kv, const mob_model_desc_t *desc,
                       mob_exec_spec_t *spec) {
  static const name_t names[] = {{"float32", MOB_DT_F32},
                                 {"float", MOB_DT_F32},
                                 {"bfloat16", MOB_DT_BF16},
                                 {"float16", MOB_DT_F16},
                                 {"half", MOB_DT_F16}};
  static const name_t kv_names[] = {{"fp8", MOB_DT_F8E4M3},
                                    {"fp8_e4m3", MOB_DT_F8E4M3},
                                    {"float32", MOB_DT_F32},
                                    {"bfloat16", MOB_DT_BF16},
                                    {"float16", MOB_DT_F16}};
  spec->exact = false;
  if (is_auto(dtype))
    spec->dtype = desc->dtype;
  else if (!find(names, MOB_LEN(names), dtype, &spec->dtype))
    return mob_fail(MOB_E_INVALID,
                    "dtype '%s' is not one of auto, half, float16, bfloat16, float, float32",
                    dtype);
  // fp32 asked for by name means fp32 throughout; a checkpoint that says fp32 means the same.
  spec->exact = spec->dtype == MOB_DT_F32;
  if (is_auto(kv))
    spec->kv_dtype = MOB_DT_COUNT; // the backend's choice
  else if (!find(kv_names, MOB_LEN(kv_names), kv, &spec->kv_dtype))
    return mob_fail(MOB_E_INVALID, "KV cache dtype '%s' is not one of auto, fp8, fp8_e4m3", kv);
  return MOB_OK;
}
