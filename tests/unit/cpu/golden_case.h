// A golden of tests/golden, loaded, with its model written to a temporary folder.
#ifndef MOB_TESTS_CPU_GOLDEN_CASE_H
#define MOB_TESTS_CPU_GOLDEN_CASE_H

#include <jansson.h>
#include <stdint.h>

typedef struct golden {
  char path[512];
  json_t *root;
  char *dir; // removed by golden_free()
  int32_t *prompt, *tokens;
  uint32_t prompt_count, token_count, row_count;
  uint32_t rows[8]; // steps whose logits are known
  float *logits;    // [row_count][vocab]
  int vocab;
} golden_t;

// Every case of tests/golden/<engine families>; ends the test with a failure when a file is
// damaged.
int golden_list(char paths[][512], int max);
void golden_load(const char *path, golden_t *out);
void golden_free(golden_t *golden);

#endif
