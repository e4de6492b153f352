// --dtype and --kv-cache-dtype, as vLLM spells them.
#ifndef MOB_STAGE_DTYPE_H
#define MOB_STAGE_DTYPE_H

#include "engine/backend.h"

// Fills dtype, exact and kv_dtype of `spec`. NULL and "" mean "auto". MOB_E_INVALID names the value
// and the choices.
mob_status mob__dtypes(const char *dtype, const char *kv_cache_dtype, const mob_model_desc_t *desc,
                       mob_exec_spec_t *spec);

#endif
