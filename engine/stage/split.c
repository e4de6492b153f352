#include <stdlib.h>

#include "engine/stage/engine_internal.h"

static mob_status add_slot(void *arg, const mob_slot_t *slot) {
  uint64_t *bytes = ((void **)arg)[0];
  const mob_model_t *model = ((void **)arg)[1];
  const mob_tensor_t *tensor, *scales;
  MOB_TRY(mob_model_slot(model, slot, &tensor, &scales));
  if (tensor) *bytes += tensor->bytes;
  if (scales) *bytes += scales->bytes;
  return MOB_OK;
}

// Dynamic programming over (layers placed, stages used). best[s][l]: the smallest possible largest
// stage when the first l layers are on s stages. Among equal splits the earlier stages get more.
void mob__split_balanced(const uint64_t *bytes, int layers, int pp, int *out) {
  size_t width = (size_t)layers + 1;
  uint64_t *sum = MOB_NEW_ARRAY(uint64_t, width);
  uint64_t *best = MOB_NEW_ARRAY(uint64_t, width * (size_t)(pp + 1));
  int *from = MOB_NEW_ARRAY(int, width *(size_t)(pp + 1));
  for (int l = 0; l < layers; l++) sum[l + 1] = sum[l] + bytes[l];
  for (int l = 1; l <= layers; l++) best[width + (size_t)l] = sum[l];
  for (int s = 2; s <= pp; s++)
    for (int l = s; l <= layers; l++) {
      uint64_t *here = &best[(size_t)s * width + (size_t)l];
      *here = UINT64_MAX;
      for (int cut = s - 1; cut < l; cut++) {
        uint64_t left = best[(size_t)(s - 1) * width + (size_t)cut];
        uint64_t right = sum[l] - sum[cut];
        uint64_t worst = left > right ? left : right;
        if (worst > *here) continue;
        *here = worst;
        from[(size_t)s * width + (size_t)l] = cut;
      }
    }
  out[pp] = layers;
  for (int s = pp; s > 1; s--) out[s - 1] = from[(size_t)s * width + (size_t)out[s]];
  out[0] = 0;
  free(sum);
  free(best);
  free(from);
}

static mob_status given(const int *counts, int pp, int layers, int *out) {
  out[0] = 0;
  for (int s = 0; s < pp; s++) {
    if (counts[s] < 1)
      return mob_fail(MOB_E_INVALID, "the layer partition gives stage %d %d layers", s, counts[s]);
    out[s + 1] = out[s] + counts[s];
  }
  if (out[pp] != layers)
    return mob_fail(MOB_E_INVALID, "the layer partition has %d layers, the model %d", out[pp],
                    layers);
  return MOB_OK;
}

mob_status mob__split_layers(const mob_model_t *model, int pp, const int *counts, int *out) {
  int layers = mob_model_desc(model)->n_layers;
  if (pp > layers)
    return mob_fail(MOB_E_INVALID, "a model of %d layers cannot be cut into %d pipeline stages",
                    layers, pp);
  if (counts) return given(counts, pp, layers, out);
  uint64_t *bytes = MOB_NEW_ARRAY(uint64_t, (size_t)layers);
  mob_status status = MOB_OK;
  for (int l = 0; l < layers && status == MOB_OK; l++) {
    void *arg[2] = {&bytes[l], (void *)model};
    status = mob_model_stage_slots(model, l, l + 1, add_slot, arg);
  }
  if (status == MOB_OK) mob__split_balanced(bytes, layers, pp, out);
  free(bytes);
  return status;
}
