// A model directory as downloaded from the Hugging Face hub: config.json, generation_config.json and safetensors
// files, opened without reading weights.
#ifndef MOB_MODEL_MODEL_H
#define MOB_MODEL_MODEL_H

#include "engine/model/desc.h"
#include "engine/model/family.h"

typedef struct mob_generation_defaults {
  bool has_temperature, has_top_p, has_top_k, has_repetition_penalty;
  double temperature, top_p, repetition_penalty;
  int top_k;
  int32_t eos_ids[16]; // union of config.json's and generation_config.json's
  int eos_count;
} mob_generation_defaults_t;

// One tensor inside the mapped files. Pointers live as long as the model.
typedef struct mob_tensor {
  const char *name;
  mob_dtype_t dtype;      // MOB_DT_COUNT: a type that no weight can have
  const char *dtype_name; // as the file spells it
  int rank;               // dimensions; `shape` holds the first four
  int64_t shape[4];
  const void *data; // row-major, little-endian; mapped, so the first touch reads the disk. NULL with `dummy`
  size_t bytes;
  int file;         // index into mob_model_t.files
  uint64_t offset;  // of data, from the beginning of the file
} mob_tensor_t;

typedef struct mob_model mob_model_t;

// Options that change what is read. All-zero: from the checkpoint.
typedef struct mob_model_options {
  bool dummy;        // --load-format dummy: no weight files; values come from mob_dummy_fill()
  bool trust_lookup; // search sub-folders (depth <= 3) for exactly one model when DIR has no config.json
  const char *overrides; // --hf-overrides: a JSON object merged over config.json; NULL for none
} mob_model_options_t;

// Reads config.json and every file's header; checks that each weight of the description is there with
// its shape and a supported dtype. Errors name file, tensor, what was found and what was expected.
mob_status mob_model_open(const char *dir, const mob_model_options_t *options, mob_model_t **out);
void mob_model_close(mob_model_t *model);

const mob_model_desc_t *mob_model_desc(const mob_model_t *model);
const mob_generation_defaults_t *mob_model_generation(const mob_model_t *model);
const char *mob_model_dir(const mob_model_t *model); // where config.json was found
uint64_t mob_model_bytes(const mob_model_t *model);   // of weights, all layers in use
uint64_t mob_model_fingerprint(const mob_model_t *model); // of config and headers: equal on all nodes of a group

// NULL when the checkpoint has no such tensor.
const mob_tensor_t *mob_model_tensor(const mob_model_t *model, const char *name);
// The file that holds it; the model's directory with `dummy`. For messages.
const char *mob_model_file(const mob_model_t *model, const mob_tensor_t *tensor);
// Copies bytes [begin, begin + bytes) of a tensor to `out` with read(2), not through the mapping: a file that is shorter by now, or
// a disk that fails, is an error that names file and tensor (MOB_E_FORMAT, MOB_E_IO) instead of a SIGBUS, and no page is mapped.
// From any thread. Not with `dummy`.
mob_status mob_model_read(const mob_model_t *model, const mob_tensor_t *tensor, uint64_t begin, size_t bytes, void *out);
// Tensor and, for FP8, its scales (else *scales = NULL) of a slot, checked against the slot's shape.
mob_status mob_model_slot(const mob_model_t *model, const mob_slot_t *slot, const mob_tensor_t **tensor,
                          const mob_tensor_t **scales);

// Calls `emit` for every slot that a stage of layers [first, last) needs: the embedding when first is 0 (or when
// last is n_layers and embeddings are tied), final norm and head when last is n_layers.
mob_status mob_model_stage_slots(const mob_model_t *model, int first, int last, mob_slot_fn emit, void *arg);

#endif
