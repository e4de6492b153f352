// AVX-512 (F, BW, VL, DQ).
#include <immintrin.h>
#include <stdint.h>

#define W 16
#define DIRECT_ROWS 8
#define TILE_M 6
#define OPS_NAME "avx512"
#define OPS_TABLE mob_cpu_ops_avx512

typedef __m512 vf;

static inline vf v_load(const float *p) {
  return _mm512_loadu_ps(p);
}
static inline void v_store(float *p, vf v) {
  _mm512_storeu_ps(p, v);
}
static inline vf v_zero(void) {
  return _mm512_setzero_ps();
}
static inline vf v_set1(float x) {
  return _mm512_set1_ps(x);
}
static inline vf v_fma(vf a, vf b, vf c) {
  return _mm512_fmadd_ps(a, b, c);
}
static inline vf v_add(vf a, vf b) {
  return _mm512_add_ps(a, b);
}
static inline vf v_mul(vf a, vf b) {
  return _mm512_mul_ps(a, b);
}
static inline vf v_div(vf a, vf b) {
  return _mm512_div_ps(a, b);
}
static inline vf v_max(vf a, vf b) {
  return _mm512_max_ps(a, b);
}
static inline float v_sum(vf v) {
  __m256 h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline void v_sum4(float *p, const vf *v) {
  vf ab =
      _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x44), _mm512_shuffle_f32x4(v[0], v[1], 0xEE));
  vf cd =
      _mm512_add_ps(_mm512_shuffle_f32x4(v[2], v[3], 0x44), _mm512_shuffle_f32x4(v[2], v[3], 0xEE));
  vf s = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0x4E));
  s = _mm512_add_ps(s, _mm512_permute_ps(s, 0xB1)); // the sums at 0, 4, 8 and 12
  _mm_storeu_ps(p, _mm512_castps512_ps128(_mm512_permutexvar_ps(
                       _mm512_castsi128_si512(_mm_setr_epi32(0, 4, 8, 12)), s)));
}
static inline float v_top(vf v) {
  return _mm512_reduce_max_ps(v);
}

static inline vf v_bf16(const uint8_t *p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline vf v_f16(const uint8_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

// The code in the upper byte of 16 bits, shifted down by one keeping the sign, is the FP16 of value
// * 2^-8; bit 14, the sign's copy, goes. Subnormals come out right as well.
static inline vf v_e4m3(const uint8_t *p) {
  __m256i wide = _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p)), 8);
  __m256i half = _mm256_and_si256(_mm256_srai_epi16(wide, 1), _mm256_set1_epi16((short)0xBFFF));
  return _mm512_cvtph_ps(half);
}

// 64 codes as v_e4m3() does 16, with fewer instructions: the shifts work on 32 codes at a time.
#define WIDE_E4M3 1
static inline __attribute__((always_inline)) void v_e4m3x4(const uint8_t *p, vf out[4]) {
  for (int half = 0; half < 2; half++) {
    __m512i wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(p + 32 * half)));
    wide = _mm512_srai_epi16(_mm512_slli_epi16(wide, 8), 1);
    wide = _mm512_and_si512(wide, _mm512_set1_epi16((short)0xBFFF));
    out[2 * half] = _mm512_cvtph_ps(_mm512_castsi512_si256(wide));
    out[2 * half + 1] = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(wide, 1));
  }
}

// e^x = 2^n e^r, |r| <= ln 2 / 2; e^r by Cephes' polynomial of degree 7.
static inline vf v_exp(vf x) {
  x = _mm512_min_ps(x, _mm512_set1_ps(88.3762f));
  vf n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
  vf r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  vf p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
  return _mm512_scalef_ps(p, n);
}

static inline void v_store_bf16(uint16_t *p, vf v) {
  __m512i bits = _mm512_castps_si512(v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  rounded = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

static inline void v_store_f16(uint16_t *p, vf v) {
  _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
}

#include "engine/cpu/ops_vec.h"
