// What a stage remembers of the sequences in its slots.
#include <stdlib.h>
#include <string.h>

#include "engine/cpu/exec.h"
#include "runtime/base/mem.h"

static void *copy_array(const void *data, size_t count, size_t size) {
  if (!count) return NULL;
  void *copy = mob_malloc(count * size);
  memcpy(copy, data, count * size);
  return copy;
}

void mob__slot_open(mob_slot_state_t *slot, const mob_seq_open_t *open) {
  mob__slot_close(slot);
  slot->open = true;
  slot->sampling = open->sampling;
  mob_sampling_t *s = &slot->sampling;
  s->stop_ids = copy_array(s->stop_ids, s->stop_id_count, sizeof *s->stop_ids);
  s->bias = copy_array(s->bias, s->bias_count, sizeof *s->bias);
  s->allowed = copy_array(s->allowed, s->allowed_count, sizeof *s->allowed);
  slot->cap = open->prompt_count + 256;
  slot->history = mob_malloc(slot->cap * sizeof *slot->history);
  if (open->prompt_count)
    memcpy(slot->history, open->prompt, open->prompt_count * sizeof *slot->history);
  slot->count = open->prompt_count;
  slot->prompt_count = open->prompt_count - open->generated;
  slot->last = -1;
}

void mob__slot_close(mob_slot_state_t *slot) {
  free((void *)slot->sampling.stop_ids);
  free((void *)slot->sampling.bias);
  free((void *)slot->sampling.allowed);
  free(slot->history);
  *slot = (mob_slot_state_t){0};
}

void mob__slot_append(mob_slot_state_t *slot, int32_t token) {
  if (slot->count == slot->cap) {
    slot->cap *= 2;
    slot->history = mob_realloc(slot->history, slot->cap * sizeof *slot->history);
  }
  slot->history[slot->count++] = token;
  slot->last = token;
}
