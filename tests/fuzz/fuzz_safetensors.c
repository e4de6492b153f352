// A safetensors file: header length, JSON, data.
#include <stddef.h>
#include <stdint.h>

#include "engine/model/safetensors.h"

static uint64_t sink;

static mob_status read_ends(void *arg, const mob_tensor_t *tensor) {
  (void)arg;
  const uint8_t *data = tensor->data;
  if (tensor->bytes)
    sink += (uint64_t)data[0] + data[tensor->bytes - 1]; // must lie inside the file
  return MOB_OK;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
  (void)mob_safetensors_parse("fuzz.safetensors", data, size, read_ends, NULL);
  return 0;
}
