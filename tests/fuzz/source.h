// What is left of a fuzzer's input.
#ifndef MOB_FUZZ_SOURCE_H
#define MOB_FUZZ_SOURCE_H

#include <stdint.h>

typedef struct source {
  const uint8_t *at, *end;
} source_t;

static inline uint8_t take_byte(source_t *in) { // behind the end come zeros
  return in->at < in->end ? *in->at++ : 0;
}

#endif
