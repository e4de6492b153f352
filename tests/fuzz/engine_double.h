// engine/stage's engine without stages, for fuzz targets: it looks at what is asked of it, and what
// is generated comes from the fuzz target.
#ifndef MOB_FUZZ_ENGINE_DOUBLE_H
#define MOB_FUZZ_ENGINE_DOUBLE_H

#include "engine/stage/engine.h"

mob_engine_t *engine_double_new(int max_len, int vocab);
void engine_double_free(mob_engine_t *engine); // nothing is generated any more
size_t engine_double_open(const mob_engine_t *engine);
// The next token of one of what is generated (`which` modulo how many there are), -1: an end
// without one. What was promised is kept: the log probabilities that were asked for, those of the
// prompt first, the end at max_tokens.
void engine_double_token(mob_engine_t *engine, size_t which, int32_t token, mob_finish_t finish);
void engine_double_refuse(mob_engine_t *engine,
                          mob_status status); // what follows; MOB_OK: no longer

#endif
