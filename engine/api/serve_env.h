// Environment variables: which act, which are named once as unused.
#ifndef MOB_API_SERVE_ENV_H
#define MOB_API_SERVE_ENV_H

#include <stdbool.h>

#include "runtime/base/status.h"

// Sets the log level (VLLM_LOGGING_LEVEL) and writes one line for each family of variables without
// effect.
void mob__env_report(void);
bool mob__env_true(const char *name); // "1", "true", "yes", "on"
// VLLM_PP_LAYER_PARTITION="a,b,...": `pp` positive counts that add up to `layers`. *out is NULL
// when it is not set; the caller frees.
mob_status mob__env_layer_split(int pp, int layers, int **out);

#endif
