// Strict readers of config.json's fields: a field is absent (its default holds), right, or an error
// that names it.
#ifndef MOB_MODEL_CONFIG_H
#define MOB_MODEL_CONFIG_H

#include <jansson.h>

#include "engine/model/desc.h"
#include "engine/model/family.h"

mob_status mob__config_int(const json_t *config, const char *key, int fallback, int min, int max,
                           int *out);
// As above, but null counts as `if_null`.
mob_status mob__config_int_or_null(const json_t *config, const char *key, int fallback, int if_null,
                                   int min, int max, int *out);
mob_status mob__config_float(const json_t *config, const char *key, double fallback, double *out);
mob_status mob__config_bool(const json_t *config, const char *key, bool fallback, bool *out);
// The field must be absent, null or one of `allowed` (NULL-terminated); says what is supported.
mob_status mob__config_choice(const json_t *config, const char *key, const char *const *allowed);

// What all families share: sizes, vocabulary, dtype, bos/eos, norm epsilon, activation, tying.
mob_status mob__config_common(const json_t *config, const mob_model_desc_t *defaults,
                              mob_model_desc_t *desc);

// Rope of `dim` rotated values from rope_parameters / rope_scaling / rope_theta. *mscale_all_dim is
// that field's attention factor (1 when absent), which DeepSeek squares into the softmax scale.
mob_status mob__config_rope(const json_t *config, int dim, mob_model_desc_t *desc,
                            double *mscale_all_dim);

// quantization_config: absent, or FP8 in blocks.
mob_status mob__config_quant(const json_t *config, mob_model_desc_t *desc);

// Helper of the families' `slots`: formats the name and calls `emit`.
typedef struct mob__slots {
  const mob_model_desc_t *desc;
  int layer;
  mob_slot_fn emit;
  void *arg;
} mob__slots_t;
mob_status mob__slot(const mob__slots_t *to, mob_slot_id_t id, int expert, mob_split_t split,
                     int64_t rows, int64_t cols, const char *fmt, ...)
    __attribute__((format(printf, 7, 8)));
// Embedding, final norm and head under their usual names.
mob_status mob__slots_outer(const mob__slots_t *to);
// gate/up/down of a dense layer, of one expert, or of the shared experts, under `prefix`.
mob_status mob__slots_mlp(const mob__slots_t *to, int expert, int intermediate, const char *prefix);

// Grouped-query attention families (Qwen, Llama): attention and norms of a layer.
mob_status mob__slots_gqa(const mob__slots_t *to);

#endif
