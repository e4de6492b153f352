// From options and a model to what the engine is asked for; every check that needs the model.
#ifndef MOB_API_SERVE_PLAN_H
#define MOB_API_SERVE_PLAN_H

#include "engine/api/serve_options.h"
#include "engine/model/model.h"
#include "engine/stage/engine.h"

typedef struct mob_serve_plan {
  mob_model_t *model;
  char *overrides; // JSON, or NULL
  int *layer_split;
  mob_engine_config_t engine; // `cluster` is left to the caller
} mob_serve_plan_t;

// Opens the model and fills the plan. One clear line on failure.
mob_status mob__serve_plan(const mob_serve_options_t *options, mob_serve_plan_t *out);
void mob__serve_plan_clear(mob_serve_plan_t *plan);

#endif
