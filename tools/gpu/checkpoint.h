// Writes a checkpoint whose values are those of `--load-format dummy`, so that reading it and drawing it must give the same weights:
// what a load from files can be measured on, at the true size of a model whose real files nobody has here.
#ifndef MOB_TOOLS_GPU_CHECKPOINT_H
#define MOB_TOOLS_GPU_CHECKPOINT_H

#include "engine/model/model.h"

// Of all weights of `model` (opened with `dummy`), into DIR/model-NNNNN.safetensors of about `file_bytes` each, by `threads` threads.
mob_status checkpoint_write(const mob_model_t *model, const char *dir, uint64_t file_bytes, int threads);

#endif
