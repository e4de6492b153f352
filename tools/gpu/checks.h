// The CUDA backend held against the CPU backend's contract mode (engine/cpu/contract.h) and against itself. Every check ends in
// one or more lines "what, error, limit, verdict"; the driver prints them, the tests assert them.
//
// FP8 activations make whole networks chaotic: an element on the border of two codes moves by a whole step of 1/16, and a router
// near a tie chooses another expert. So layers are compared one by one on the same input ("taped") and with the same experts, and
// engines with the same experts; what a layer's router would have chosen must be the same but near ties. In FP8 models even one
// layer makes as much of one unit in the last place as there can be (docs/gpu-log.md): the measure there, and of whole engines, is
// what the CPU makes of the same model with every norm's factor one such unit away. Such lines show gross mistakes; fine ones
// show in layers without quantised activations (MOB_CUDA_F8=0) and in the checks of kernels.
#ifndef MOB_TOOLS_GPU_CHECKS_H
#define MOB_TOOLS_GPU_CHECKS_H

#include "tools/gpu/drive.h"
#include "tools/gpu/models.h"

typedef struct check_line {
  const char *what, *where; // "layers against the CPU", "deepseek_v3/base_fp8, TP 2, EP"
  double error, limit;      // limit < 0: printed, not judged
  const char *note;         // may be ""
  bool ok;
} check_line_t;

typedef struct check {
  const mob_backend_t *backend; // under test
  int devices;                  // of it
  void (*line)(void *arg, const check_line_t *line);
  void *arg;
  uint32_t tokens; // of a text; 64 of them are shared by all texts
  int texts;
  bool exact_sums; // of the backend: full fp32 sums (an emulated device); FP8 layers are then judged without a measure from the CPU
  unsigned cuts;   // that check_layers_cuts() looks at, bits of cut_kind (runs.h); 0: all
  int failures, lines;
} check_t;

typedef struct check_shape {
  int tp, pp;
  bool expert_parallel;
} check_shape_t;

// What the CPU computes for the checks of layers and engines in a shape; they wait for it less where it was done ahead. One thread at
// a time works on a model.
mob_status check_reference(const check_t *c, const check_model_t *m, check_shape_t s, bool layers, bool engines);

bool check_divides(const check_model_t *m, check_shape_t s, int devices);

// Layer by layer: against the CPU, against TP 1; prompts cut into chunks, token by token, mixed with decodes, behind a prefix
// that is in the cache already, against prompts at once.
mob_status check_layers(check_t *c, const check_model_t *m, check_shape_t s);
mob_status check_layers_tp(check_t *c, const check_model_t *m, check_shape_t s);
mob_status check_layers_cuts(check_t *c, const check_model_t *m, check_shape_t s);
// Whole engines, teacher-forced: against the CPU; a pipeline of two or more against one stage, bitwise; graph against eager,
// bitwise; a batch against each text alone.
mob_status check_engine(check_t *c, const check_model_t *m, check_shape_t s);
mob_status check_pipeline(check_t *c, const check_model_t *m, check_shape_t s);
mob_status check_graph(check_t *c, const check_model_t *m, check_shape_t s);
// Sampled on the device, all steps queued at once, against step by step.
mob_status check_queue(check_t *c, const check_model_t *m, check_shape_t s);
// abort() while steps are under way: every one is reported, later ones end at once, close() returns.
mob_status check_abort(check_t *c, const check_model_t *m, check_shape_t s);

#endif
