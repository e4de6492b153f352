// Reading the committed goldens of tests/golden/text.
#ifndef MOB_TESTS_TEXT_GOLDEN_H
#define MOB_TESTS_TEXT_GOLDEN_H

#include <jansson.h>

#include "runtime/base/buf.h"

// MOB_SOURCE_DIR/tests/golden/text/NAME; static memory.
const char *golden_path(const char *name);
json_t *golden_json(const char *name); // the caller's; ends the test program when it cannot be read

#endif
