#include "engine/model/dummy.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

#include "engine/model/half.h"

// Element i takes 16 bits of a hash of (name, i / 4) and looks the quantile of the normal
// distribution up.
static float quantile[65536];
static uint8_t quantile_f8[65536]; // of N(0, 64^2), as e4m3 codes
static pthread_once_t once = PTHREAD_ONCE_INIT;

// Inverse of the normal distribution function (P. J. Acklam's rational approximation, relative
// error 1.2e-9).
static double inverse_normal(double p) {
  static const double a[] = {-3.969683028665376e+01, 2.209460984245205e+02,  -2.759285104469687e+02,
                             1.383577518672690e+02,  -3.066479806614716e+01, 2.506628277459239e+00};
  static const double b[] = {-5.447609879822406e+01, 1.615858368580409e+02, -1.556989798598866e+02,
                             6.680131188771972e+01, -1.328068155288572e+01};
  static const double c[] = {-7.784894002430293e-03, -3.223964580411365e-01, -2.400758277161838e+00,
                             -2.549732539343734e+00, 4.374664141464968e+00,  2.938163982698783e+00};
  static const double d[] = {7.784695709041462e-03, 3.224671290700398e-01, 2.445134137142996e+00,
                             3.754408661907416e+00};
  if (p > 0.5) return -inverse_normal(1 - p);
  if (p < 0.02425) {
    double q = sqrt(-2 * log(p));
    return (((((c[0] * q + c[1]) * q + c[2]) * q + c[3]) * q + c[4]) * q + c[5]) /
           ((((d[0] * q + d[1]) * q + d[2]) * q + d[3]) * q + 1);
  }
  double q = p - 0.5, r = q * q;
  return (((((a[0] * r + a[1]) * r + a[2]) * r + a[3]) * r + a[4]) * r + a[5]) * q /
         (((((b[0] * r + b[1]) * r + b[2]) * r + b[3]) * r + b[4]) * r + 1);
}

// Nearest e4m3 code, ties to even, saturating at 448.
static uint8_t to_e4m3(float x) {
  uint8_t sign = x < 0 ? 0x80 : 0;
  x = fminf(fabsf(x), 448.0f);
  int exponent;
  frexpf(x, &exponent); // x = m * 2^exponent, m in [0.5, 1)
  if (exponent < -5) exponent = -5;
  int steps = (int)nearbyintf(ldexpf(x, 4 - exponent)); // in units of the last mantissa bit
  int code = exponent == -5 && steps < 8 ? steps : ((exponent + 6) << 3) + (steps - 8);
  return sign | (uint8_t)code;
}

static void make_tables(void) {
  for (int i = 0; i < 65536; i++) {
    quantile[i] = (float)inverse_normal((i + 0.5) / 65536);
    quantile_f8[i] = to_e4m3(64.0f * quantile[i]);
  }
}

static uint64_t mix(uint64_t x) { // splitmix64
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

static void store(mob_dtype_t dtype, float value, void *out, int64_t i) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (dtype == MOB_DT_F32) {
    memcpy((char *)out + 4 * i, &value, 4);
  } else if (dtype == MOB_DT_BF16) {
    uint16_t half = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    memcpy((char *)out + 2 * i, &half, 2);
  } else if (dtype == MOB_DT_F16) {
    uint16_t half = mob_f32_to_f16(value);
    memcpy((char *)out + 2 * i, &half, 2);
  } else {
    ((uint8_t *)out)[i] = to_e4m3(value);
  }
}

// A constant for vectors, else NaN.
static float constant(const mob_slot_t *slot) {
  if (slot->cols != 1) return NAN;
  switch (slot->id) {
  case MOB_W_FINAL_NORM:
  case MOB_W_ATTN_NORM:
  case MOB_W_FFN_NORM:
  case MOB_W_Q_NORM:
  case MOB_W_K_NORM:
  case MOB_W_Q_A_NORM:
  case MOB_W_KV_A_NORM:
    return 1.0f;
  default:
    return 0.0f; // biases
  }
}

void mob_dummy_rule(const mob_slot_t *slot, mob_dummy_rule_t *out) {
  pthread_once(&once, make_tables);
  uint64_t key = 0xcbf29ce484222325u;
  for (const char *c = slot->name; *c; c++) key = (key ^ (uint8_t)*c) * 0x100000001b3u;
  float std = slot->id == MOB_W_EMBED ? 1.0f : 1.0f / sqrtf((float)slot->cols);
  *out = (mob_dummy_rule_t){key, std, constant(slot), quantile, quantile_f8};
}

void mob_dummy_fill(const mob_slot_t *slot, mob_dtype_t dtype, const mob_shard_t *shard,
                    void *out) {
  mob_dummy_rule_t rule;
  mob_dummy_rule(slot, &rule);
  uint64_t key = rule.key;
  float fixed = rule.constant, std = rule.std;
  int64_t at = 0;
  for (int64_t r = shard->row0; r < shard->row0 + shard->rows; r++) {
    uint64_t group = UINT64_MAX, bits = 0;
    for (int64_t c = shard->col0; c < shard->col0 + shard->cols; c++, at++) {
      uint64_t index = (uint64_t)(r * slot->cols + c);
      if (index / 4 != group) bits = mix(key + (group = index / 4) * 0xd1342543de82ef95u);
      uint16_t pick = (uint16_t)(bits >> (index % 4 * 16));
      if (!isnan(fixed))
        store(dtype, fixed, out, at);
      else if (dtype == MOB_DT_F8E4M3)
        ((uint8_t *)out)[at] = quantile_f8[pick];
      else
        store(dtype, std * quantile[pick], out, at);
    }
  }
}

float mob_dummy_scale(const mob_model_desc_t *desc, const mob_slot_t *slot) {
  int64_t block = desc->quant_block_cols ? desc->quant_block_cols : 128;
  return 1.0f / (64.0f * sqrtf((float)((slot->cols + block - 1) / block * block)));
}
