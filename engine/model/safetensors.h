// One *.safetensors file: 8 bytes little-endian header length N, N bytes of JSON, then the tensors'
// bytes. The whole format is checked before anything is believed: lengths, offsets, order,
// overlaps, holes, duplicates.
#ifndef MOB_MODEL_SAFETENSORS_H
#define MOB_MODEL_SAFETENSORS_H

#include "engine/model/model.h"

// Calls back for every tensor of the header, in order of offset. `tensor->name` lives only during
// the call; `data` points into `bytes`.
typedef mob_status (*mob_safetensors_fn)(void *arg, const mob_tensor_t *tensor);

// Parses a file image of `size` bytes. `path` is only for messages. Errors: MOB_E_FORMAT.
mob_status mob_safetensors_parse(const char *path, const void *bytes, size_t size,
                                 mob_safetensors_fn emit, void *arg);

#endif
