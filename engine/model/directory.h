// A model directory's JSON files: where config.json is, overrides, generation defaults.
#ifndef MOB_MODEL_DIRECTORY_H
#define MOB_MODEL_DIRECTORY_H

#include <jansson.h>

#include "engine/model/model.h"

// Parses a JSON file whose root is an object. MOB_E_NOT_FOUND when there is none.
mob_status mob__json_file(const char *path, json_t **out);
// DIR itself when it has config.json, else the only folder at most three levels below that has
// (when `search`). The caller frees *out.
mob_status mob__model_find_dir(const char *dir, bool search, char **out);
// config.json with `overrides` (a JSON object or NULL) merged over it.
mob_status mob__model_config(const char *dir, const char *overrides, json_t **out);
// generation_config.json, where there is one, and the eos ids of both files.
mob_status mob__model_generation(const char *dir, const json_t *config,
                                 mob_generation_defaults_t *out);

#endif
