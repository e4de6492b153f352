// What the dense families with grouped-query attention share.
#ifndef MOB_MODEL_GQA_H
#define MOB_MODEL_GQA_H

#include "engine/model/config.h"

// Head size (config.json's head_dim or `fallback`; 0: hidden / heads), rope with half rotation,
// softmax scale.
mob_status mob__gqa_describe(const json_t *config, int fallback, mob_model_desc_t *desc);
// Sliding windows change the result and are refused unless they are off.
mob_status mob__gqa_no_window(const json_t *config);
// All layers dense.
mob_status mob__gqa_dense(mob_model_desc_t *desc);

#endif
