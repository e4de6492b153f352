// Small models for checks: the goldens' (tests/golden, weights from a seed) and made ones whose shapes reach kernels that no golden
// reaches. Written to a temporary folder, opened, and removed again by check_model_close().
#ifndef MOB_TOOLS_GPU_MODELS_H
#define MOB_TOOLS_GPU_MODELS_H

#include <jansson.h>

#include "engine/model/model.h"

typedef struct check_memo { // what runs.c keeps of a model
  void *data;
  void (*forget)(void *data);
} check_memo_t;

typedef struct check_model {
  char name[64];
  char dir[256];
  mob_model_t *model;
  const mob_model_desc_t *desc;
  // goldens: transformers' path
  int32_t *prompt, *tokens;
  uint32_t prompt_count, token_count;
  bool made;
  check_memo_t *memo;
} check_model_t;

// "deepseek_v3/base_fp8", ...: a golden below `root`/tests/golden; or one of check_made_models().
mob_status check_model_open(const char *root, const char *name, check_model_t *out);
// The same of a model directory, which stays.
mob_status check_model_open_dir(const char *dir, bool dummy, check_model_t *out);
void check_model_close(check_model_t *m);
const char *const *check_golden_models(void); // NULL at the end
//   mla_tiles   MLA of DeepSeek-V3's head sizes with FP8 weights: the tile kernels, whole at TP 1, 2, 4
//   moe_fp8     latent attention without tiles, experts whose shards at TP 2 and 4 keep their blocks
//   gqa_128     heads of 128 with grouped keys, as Qwen2.5 and Llama have them
const char *const *check_made_models(void);

#endif
