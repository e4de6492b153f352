// What checks.c compares: the same texts through a model's layers, one by one on the same inputs ("taped"), or through all of it; by
// the CPU backend's contract mode, by that with every norm's factor one unit in the last place away, by the backend under test. Routers
// choose alike in all of them: layers take the experts of the tape, engines those of the CPU's. What was computed of a
// model is kept with it, so that each way is computed once.
#ifndef MOB_TOOLS_GPU_RUNS_H
#define MOB_TOOLS_GPU_RUNS_H

#include "tools/gpu/checks.h"

enum { RUNS_SHARED = MOB_PAGE_TOKENS, RUNS_TEXTS = 8, RUNS_MOST_PAGES = 16, RUNS_PAGES = 61 };

// Random texts that begin alike, by RUNS_SHARED tokens, a page.
typedef struct texts {
  int count;
  uint32_t n;
  int32_t *tokens[RUNS_TEXTS];
} texts_t;

texts_t texts_make(const check_t *c, const check_model_t *m);
void texts_free(texts_t *t);

// How texts are cut into steps.
typedef enum cut_kind { CUT_WHOLE, CUT_BATCH, CUT_CHUNKS, CUT_DECODE, CUT_MIXED, CUT_HIT, CUT_KINDS } cut_kind;
const char *cut_name(cut_kind kind);

typedef struct rows { // [texts][n][hidden]
  uint32_t n;
  int hidden;
  float *x;
} rows_t;
float *row_at(const rows_t *r, uint32_t text, uint32_t at);

// The inputs of all layers, as the CPU leaves them, TP 1, texts one by one, and what its routers chose.
typedef struct tape {
  texts_t texts;
  rows_t *in;       // [n_layers]; [0]: the embedding
  int32_t **chosen; // [n_layers]: [texts][n][top_k]; NULL where there is no router
  float **margins;  // [n_layers]: [texts][n] how far a choice is from another one, in scores; NULL likewise
  double *ties;     // [n_layers] rows with less margin may choose otherwise
} tape_t;

typedef enum runner { RUN_CPU, RUN_MOVED, RUN_BACKEND } runner_t;

typedef struct outcome {
  runner_t runner;
  check_shape_t shape;
  cut_kind cut;
  bool whole;                        // an engine; else layers on the tape's inputs
  rows_t *out;                       // layers: [n_layers], what leaves each but the last
  int32_t **chosen;                  // [n_layers] as the tape's: the routers' own choice
  float **margins;                   // [n_layers] as the tape's; layers on the CPU only
  drive_place_t *places[RUNS_TEXTS]; // [n] of each text
  struct outcome *next;
} outcome_t;

const texts_t *runs_texts(const check_t *c, const check_model_t *m);
// Made at the first call; valid as long as the model is open.
mob_status runs_tape(const check_t *c, const check_model_t *m, const tape_t **out);
// `cuts`: bits of those that will be wanted, which are then computed together. pp of a layer's shape is not looked at.
mob_status runs_layers(const check_t *c, const check_model_t *m, runner_t runner, check_shape_t s, cut_kind cut, unsigned cuts,
                       const outcome_t **out);
// At once (CUT_BATCH).
mob_status runs_engine(const check_t *c, const check_model_t *m, runner_t runner, check_shape_t s, const outcome_t **out);
// Not kept: the backend under test, its own choice of experts. The caller closes it.
mob_status runs_drive(const check_t *c, const check_model_t *m, check_shape_t s, bool eager, const texts_t *t, cut_kind cut, drive_t **out);
// Whether FP8 activations are quantised.
bool runs_f8(const check_model_t *m);

#endif
