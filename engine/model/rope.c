// Rotary position parameters. Formulas: transformers, modeling_rope_utils (default, linear, yarn,
// llama3).
#include <math.h>
#include <string.h>

#include "engine/model/config.h"
#include "runtime/base/mem.h"

static const double two_pi = 6.283185307179586476925;

// yarn's attention factor for a scale and one of the mscale fields.
static double yarn_factor(double scale, double mscale) {
  return scale <= 1 ? 1.0 : 0.1 * mscale * log(scale) + 1.0;
}

// A number that may be absent or null.
static mob_status optional(const json_t *rope, const char *key, double fallback, double *out) {
  if (json_is_null(json_object_get(rope, key))) {
    *out = fallback;
    return MOB_OK;
  }
  return mob__config_float(rope, key, fallback, out);
}

static mob_status positive(const json_t *rope, const char *type, const char *key, double *out) {
  MOB_TRY(optional(rope, key, NAN, out));
  if (isnan(*out) || *out <= 0)
    return mob_fail(MOB_E_INVALID, "config.json: rope type %s needs a positive %s", type, key);
  return MOB_OK;
}

static mob_status original_length(const json_t *config, const json_t *rope,
                                  const mob_model_desc_t *desc, double *out) {
  MOB_TRY(optional(rope, "original_max_position_embeddings", desc->max_position, out));
  MOB_TRY(optional(config, "original_max_position_embeddings", *out,
                   out)); // which goes before the inner one
  if (*out < 1)
    return mob_fail(MOB_E_INVALID,
                    "config.json: original_max_position_embeddings must be positive");
  return MOB_OK;
}

static mob_status yarn(const json_t *config, const json_t *rope, double theta,
                       mob_model_desc_t *desc) {
  mob_rope_t *out = &desc->rope;
  double factor, original, attention, mscale, all_dim, fast, slow;
  bool truncate;
  MOB_TRY(original_length(config, rope, desc, &original));
  MOB_TRY(optional(rope, "factor", desc->max_position / original, &factor));
  if (factor <= 0)
    return mob_fail(MOB_E_INVALID, "config.json: rope type yarn needs a positive factor");
  MOB_TRY(optional(rope, "attention_factor", NAN, &attention));
  MOB_TRY(optional(rope, "mscale", 0, &mscale));
  MOB_TRY(optional(rope, "mscale_all_dim", 0, &all_dim));
  MOB_TRY(optional(rope, "beta_fast", 32, &fast));
  MOB_TRY(optional(rope, "beta_slow", 1, &slow));
  MOB_TRY(mob__config_bool(rope, "truncate", true, &truncate));
  if (fast == 0) fast = 32;
  if (slow == 0) slow = 1;
  if (fast < 0 || slow < 0)
    return mob_fail(MOB_E_INVALID, "config.json: rope beta_fast and beta_slow must be positive");
  if (isnan(attention)) {
    attention = mscale != 0 && all_dim != 0
                    ? yarn_factor(factor, mscale) / yarn_factor(factor, all_dim)
                    : yarn_factor(factor, 1.0);
  }
  out->factor = (float)attention;
  double low = out->dim * log(original / (fast * two_pi)) / (2 * log(theta));
  double high = out->dim * log(original / (slow * two_pi)) / (2 * log(theta));
  if (truncate) {
    low = floor(low);
    high = ceil(high);
  }
  low = fmax(low, 0);
  high = fmin(high, out->dim - 1);
  if (low == high) high += 0.001;
  for (int i = 0; i < out->dim / 2; i++) {
    float base = powf((float)theta, (float)(2 * i) / (float)out->dim);
    float ramp = fminf(fmaxf((float)((i - low) / (high - low)), 0.0f), 1.0f), keep = 1.0f - ramp;
    out->inv_freq[i] = 1.0f / ((float)factor * base) * (1.0f - keep) + 1.0f / base * keep;
  }
  return MOB_OK;
}

static mob_status llama3(const json_t *config, const json_t *rope, mob_model_desc_t *desc) {
  double factor, low, high, original;
  MOB_TRY(positive(rope, "llama3", "factor", &factor));
  MOB_TRY(positive(rope, "llama3", "low_freq_factor", &low));
  MOB_TRY(positive(rope, "llama3", "high_freq_factor", &high));
  MOB_TRY(original_length(config, rope, desc, &original));
  if (high <= low)
    return mob_fail(MOB_E_INVALID,
                    "config.json: rope high_freq_factor must be above low_freq_factor");
  for (int i = 0; i < desc->rope.dim / 2; i++) {
    double f = desc->rope.inv_freq[i], wave = two_pi / f;
    if (wave > original / low) {
      f /= factor;
    } else if (wave >= original / high) {
      double smooth = (original / wave - low) / (high - low);
      f = (1 - smooth) * f / factor + smooth * f;
    }
    desc->rope.inv_freq[i] = (float)f;
  }
  return MOB_OK;
}

mob_status mob__config_rope(const json_t *config, int dim, mob_model_desc_t *desc,
                            double *mscale_all_dim) {
  const json_t *rope = json_object_get(config, "rope_scaling");
  if (!rope || json_is_null(rope) || (json_is_object(rope) && json_object_size(rope) == 0))
    rope = json_object_get(config, "rope_parameters");
  if (rope && !json_is_null(rope) && !json_is_object(rope))
    return mob_fail(MOB_E_INVALID, "config.json: rope_scaling / rope_parameters is not an object");
  if (dim < 2 || dim % 2 != 0)
    return mob_fail(MOB_E_INVALID, "config.json: rotary embedding needs an even dimension, not %d",
                    dim);

  double theta, partial;
  MOB_TRY(optional(config, "rope_theta", 10000.0, &theta));
  MOB_TRY(optional(rope, "rope_theta", theta, &theta));
  if (theta <= 1) return mob_fail(MOB_E_INVALID, "config.json: rope_theta must be above 1");
  MOB_TRY(optional(config, "partial_rotary_factor", 1.0, &partial));
  MOB_TRY(optional(rope, "partial_rotary_factor", partial, &partial));
  if (partial != 1.0)
    return mob_fail(MOB_E_UNSUPPORTED,
                    "config.json: partial_rotary_factor %g is not supported (only 1)", partial);

  const json_t *kind = json_object_get(rope, "rope_type");
  if (!kind) kind = json_object_get(rope, "type");
  if (kind && !json_is_string(kind))
    return mob_fail(MOB_E_INVALID, "config.json: rope_type is not a string");
  const char *type = kind ? json_string_value(kind) : "default";

  desc->rope.dim = dim;
  desc->rope.factor = 1.0f;
  desc->rope.inv_freq = MOB_NEW_ARRAY(float, (size_t)dim / 2);
  for (int i = 0; i < dim / 2; i++)
    desc->rope.inv_freq[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)dim);
  *mscale_all_dim = 1.0;
  if (strcmp(type, "default") == 0) return MOB_OK;
  if (strcmp(type, "linear") == 0) {
    double factor;
    MOB_TRY(positive(rope, type, "factor", &factor));
    for (int i = 0; i < dim / 2; i++) desc->rope.inv_freq[i] /= (float)factor;
  } else if (strcmp(type, "yarn") == 0) {
    MOB_TRY(yarn(config, rope, theta, desc));
  } else if (strcmp(type, "llama3") == 0) {
    MOB_TRY(llama3(config, rope, desc));
  } else {
    return mob_fail(MOB_E_UNSUPPORTED,
                    "config.json: rope type \"%.64s\" is not supported (supported: default, "
                    "linear, yarn, llama3)",
                    type);
  }
  double all_dim, factor;
  MOB_TRY(optional(rope, "mscale_all_dim", 0, &all_dim));
  MOB_TRY(optional(rope, "factor", 1, &factor));
  if (all_dim != 0) *mscale_all_dim = yarn_factor(factor, all_dim);
  return MOB_OK;
}
