// Weights from a seed, the same bits as tools/golden/weights.py makes, written as a model
// directory.
#ifndef MOB_TESTS_CPU_GOLDEN_WEIGHTS_H
#define MOB_TESTS_CPU_GOLDEN_WEIGHTS_H

#include <jansson.h>

#include "runtime/base/status.h"

// Writes config.json and model.safetensors for the golden `case_` (its config, dtype and seed) into
// the existing folder `dir`.
mob_status golden_write_model(const json_t *case_, const char *dir);

#endif
