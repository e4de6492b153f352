// Tiles: C [16 rows of W][16 rows of x] += A [16 rows of W][32 columns] * B [16 pairs of
// columns][16 rows of x], so that weights keep the order they have in the file and only x is
// transposed, once for all rows of W.
//
// W is taken in segments: the scale blocks of a row, or SEGMENT columns; each padded with zeros to
// whole steps of 32 columns. A segment of all rows is widened to BF16 tiles, then multiplied.
#include <immintrin.h>
#include <string.h>

#include "engine/cpu/amx.h"
#include "runtime/base/status.h"

enum {
  STEP = 32,     // columns of a tile of W
  SEGMENT = 128, // columns of W widened at a time
  STEPS = SEGMENT / STEP,
  TILE = 1024, // bytes
  ROW_TILES = MOB_AMX_ROWS / 16,
  PARTS = MOB_AMX_PARTS
};

typedef struct config {
  uint8_t palette, start, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} config_t;

// Tiles 0-3 are sums, 4 weights, 5 weights or x, 6 and 7 x.
static void configure(int width) {
  config_t c = {.palette = 1};
  for (int t = 0; t < 8; t++) {
    c.rows[t] = 16;
    c.row_bytes[t] = t == 4 ? 64 : (uint16_t)(4 * width);
  }
  _tile_loadconfig(&c);
}

#define BARRIER() __asm__ volatile("" ::: "memory") // a tile's load is no read to the compiler

// ------------------------------------------------------------------------------------------
// columns

static int64_t next_end(const mob_mat_t *w, int64_t c) {
  int64_t end = c + SEGMENT;
  if (w->scales) {
    int64_t block = ((w->col0 + c) / w->block_cols + 1) * w->block_cols - w->col0;
    end = block < end ? block : end;
  }
  return end < w->cols ? end : w->cols;
}

static int64_t count_steps(const mob_mat_t *w) {
  int64_t steps = 0;
  for (int64_t c = 0, end; c < w->cols; c = end) {
    end = next_end(w, c);
    steps += (end - c + STEP - 1) / STEP;
  }
  return steps;
}

// ------------------------------------------------------------------------------------------ x

size_t mob_amx_group_bytes(const mob_mat_t *w, int width) {
  return (size_t)count_steps(w) * PARTS * 64 * (size_t)width;
}

static inline __attribute__((always_inline)) void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 8; i++) {
    int k = i % 4 + (i & 4);
    r[k] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0x88);
    r[k + 8] = _mm512_shuffle_i32x4(t[k], t[k + 8], 0xDD);
  }
}

static inline __m512 low_half(__m512i bf16) {
  return _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(bf16)), 16));
}

static inline __m512 high_half(__m512i bf16) {
  return low_half(_mm512_castsi256_si512(_mm512_extracti64x4_epi64(bf16, 1)));
}

// The parts of 32 values of one row.
static inline void split(__m512 a, __m512 b, __m512i part[PARTS]) {
  for (int p = 0; p < PARTS; p++) {
    part[p] = (__m512i)_mm512_cvtne2ps_pbh(b, a);
    a = _mm512_sub_ps(a, low_half(part[p]));
    b = _mm512_sub_ps(b, high_half(part[p]));
  }
}

// One step: columns [c, c + n) of the rows.
static void pack_step(const float *const *x, int rows, int width, int64_t c, int64_t n,
                      uint8_t *out) {
  __m512i part[PARTS][16];
  __mmask16 first = n >= 16 ? 0xffff : (__mmask16)((1 << n) - 1);
  __mmask16 second = n >= 32 ? 0xffff : n > 16 ? (__mmask16)((1 << (n - 16)) - 1) : 0;
  for (int i = 0; i < 16; i++) {
    __m512i p[PARTS];
    __m512 a = _mm512_setzero_ps(), b = a;
    if (i < rows) {
      a = _mm512_maskz_loadu_ps(first, x[i] + c);
      b = _mm512_maskz_loadu_ps(second, x[i] + c + 16);
    }
    split(a, b, p);
    for (int k = 0; k < PARTS; k++) part[k][i] = p[k];
    if (width == 1) break;
  }
  __mmask16 columns = (__mmask16)((1 << width) - 1);
  for (int p = 0; p < PARTS; p++, out += 64 * width) {
    if (width == 1) {
      _mm512_store_si512(out, part[p][0]);
      continue;
    }
    transpose(part[p]);
    for (int k = 0; k < 16; k++) _mm512_mask_storeu_epi32(out + 4 * width * k, columns, part[p][k]);
  }
}

void mob_amx_pack(const mob_mat_t *w, const float *const *x, int n, int width, void *out) {
  uint8_t *to = out;
  for (int64_t c = 0, end; c < w->cols; c = end) {
    end = next_end(w, c);
    for (int64_t k = c; k < end; k += STEP, to += PARTS * 64 * width)
      pack_step(x, n, width, k, end - k < STEP ? end - k : STEP, to);
  }
}

// ------------------------------------------------------------------------------------------ W

// 32 e4m3 codes. The code's exponent and significand stand as they are in a BF16 whose exponent is
// 120 more; the eight values without exponent are looked up.
static inline __m512i widen_e4m3(__m256i codes) {
  const __m512i small = _mm512_castsi128_si512(
      _mm_setr_epi16(0, 0x3b00, 0x3b80, 0x3bc0, 0x3c00, 0x3c20, 0x3c40, 0x3c60));
  __m512i wide = _mm512_cvtepu8_epi16(codes);
  __m512i rest = _mm512_and_si512(wide, _mm512_set1_epi16(0x7f));
  __m512i value = _mm512_add_epi16(_mm512_slli_epi16(rest, 4), _mm512_set1_epi16(0x3c00));
  __mmask32 subnormal = _mm512_cmplt_epu16_mask(rest, _mm512_set1_epi16(8));
  value = _mm512_mask_permutexvar_epi16(value, subnormal, rest, small);
  // value | ((wide << 8) & 0x8000)
  return _mm512_ternarylogic_epi32(value, _mm512_slli_epi16(wide, 8),
                                   _mm512_set1_epi16((short)0x8000), 0xf8);
}

// Columns [c, c + n) of the rows [r0, r1) as tiles [row_tiles][steps]; rows behind r1 are zero.
// Asks for the columns behind them.
static inline __attribute__((always_inline)) void widen(mob_dtype_t dtype, const mob_mat_t *w,
                                                        int64_t r0, int64_t r1, int row_tiles,
                                                        int64_t c, int64_t n, uint8_t *out) {
  const int64_t size = dtype == MOB_DT_BF16 ? 2 : 1;
  const int steps = (int)((n + STEP - 1) / STEP);
  const __mmask32 last = n % STEP ? (1u << n % STEP) - 1 : 0xffffffffu;
  const uint8_t *row = w->data + (size_t)r0 * w->stride + (size_t)(c * size);
  for (int t = 0; t < row_tiles; t++, out += steps * TILE) {
    for (int i = 0; i < 16; i++, row += w->stride) {
      uint8_t *to = out + 64 * i;
      bool absent = r0 + t * 16 + i >= r1;
      for (int s = 0; s < steps; s++, to += TILE) {
        const uint8_t *from = row + s * STEP * size;
        const __mmask32 mask = absent ? 0 : s + 1 < steps ? 0xffffffffu : last;
        _mm512_store_si512(to, dtype == MOB_DT_BF16
                                   ? _mm512_maskz_loadu_epi16(mask, from)
                                   : widen_e4m3(_mm256_maskz_loadu_epi8(mask, from)));
      }
      for (int k = 0; k < SEGMENT * size; k += 64)
        _mm_prefetch((const char *)row + n * size + k, _MM_HINT_T1);
    }
  }
}

// ------------------------------------------------------------------------------------------
// products

// Sums of four tiles that are not yet added to the totals: a load of what a tile's store has just
// written would wait for it, so they are added while the next tiles are multiplied.
typedef struct sums {
  float at[4][256] __attribute__((aligned(64)));
  float *to[4];
  const float *scales[4]; // of 16 rows
  bool full, first;       // first: the totals are not set yet
} sums_t;

typedef struct product {
  const mob_mat_t *w;
  int64_t r0, r1;
  int row_tiles, groups, width;
  size_t group_bytes;            // of x
  float *totals;                 // [row_tiles][groups][16][width]
  float scales[2][MOB_AMX_ROWS]; // of this segment and the one before
  sums_t sums[2];
  int turn;                                            // the sums to fill
  int32_t row_of[16][16] __attribute__((aligned(64))); // of the elements of a narrow tile
} product_t;

// totals += scale * sums, or = on the first segment. A tile of few columns lies in memory without
// gaps and is added as whole vectors.
static inline void add_sums(product_t *p, int k) {
  const sums_t *s = &p->sums[p->turn ^ 1];
  if (!s->full) return;
  const float *sums = s->at[k], *scales = s->scales[k];
  float *to = s->to[k];
  const __m512 of_rows = _mm512_loadu_ps(scales);
  for (int i = 0; i < p->width; i++) {
    __m512 old = s->first ? _mm512_setzero_ps() : _mm512_loadu_ps(to + 16 * i);
    __m512 scale = p->width == 16 ? _mm512_set1_ps(scales[i])
                                  : _mm512_permutexvar_ps(_mm512_load_si512(p->row_of[i]), of_rows);
    _mm512_storeu_ps(to + 16 * i, _mm512_fmadd_ps(scale, _mm512_load_ps(sums + 16 * i), old));
  }
}

static float *totals_of(const product_t *p, int tile, int group) {
  return p->totals + ((size_t)tile * (size_t)p->groups + (size_t)group) * 16 * (size_t)p->width;
}

// The tiles' sums, of the tiles of rows tile[k] and the groups group[k].
static inline __attribute__((always_inline)) void keep_sums(product_t *p, const int tile[4],
                                                            const int group[4], int segment) {
  sums_t *s = &p->sums[p->turn];
  const size_t stride = 4 * (size_t)p->width;
  _tile_stored(0, s->at[0], stride);
  _tile_stored(1, s->at[1], stride);
  _tile_stored(2, s->at[2], stride);
  _tile_stored(3, s->at[3], stride);
  for (int k = 0; k < 4; k++) {
    s->to[k] = totals_of(p, tile[k], group[k]);
    s->scales[k] = p->scales[segment & 1] + tile[k] * 16;
  }
  s->full = true;
  s->first = segment == 0;
  p->turn ^= 1;
  BARRIER();
}

typedef struct turn {
  const uint8_t *panel, *x; // of this segment; x: of the first group
  int steps, segment;
} turn_t;

// Beside the tiles of step s: the sums of the tiles before.
static inline __attribute__((always_inline)) void beside(product_t *p, const turn_t *t, int s) {
  add_sums(p, s);
  if (s + 1 < t->steps) return;
  while (++s < 4) add_sums(p, s);
}

static inline void zero_tiles(void) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// Two tiles of rows, two groups.
static void pair(product_t *p, const turn_t *t, int tile, int group) {
  const size_t down = (size_t)t->steps * TILE;
  const uint8_t *w = t->panel + (size_t)tile * down;
  const uint8_t *x0 = t->x + (size_t)group * p->group_bytes, *x1 = x0 + p->group_bytes;
  BARRIER();
  zero_tiles();
  for (int s = 0; s < t->steps; s++, w += TILE) {
    _tile_loadd(4, w, 64);
    _tile_loadd(5, w + down, 64);
    for (int k = 0; k < PARTS; k++, x0 += TILE, x1 += TILE) {
      _tile_loadd(6, x0, 64);
      _tile_loadd(7, x1, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    beside(p, t, s);
  }
  keep_sums(p, (int[]){tile, tile, tile + 1, tile + 1}, (int[]){group, group + 1, group, group + 1},
            t->segment);
}

// Four tiles of rows, one group.
static void single(product_t *p, const turn_t *t, int tile, int group) {
  const size_t stride = 4 * (size_t)p->width, bytes = 16 * stride, down = (size_t)t->steps * TILE;
  const uint8_t *w = t->panel + (size_t)tile * down, *x = t->x + (size_t)group * p->group_bytes;
  BARRIER();
  zero_tiles();
  for (int s = 0; s < t->steps; s++, w += TILE, x += PARTS * bytes) {
    _tile_loadd(5, x, stride);
    _tile_loadd(6, x + bytes, stride);
    _tile_loadd(7, x + 2 * bytes, stride);
#define ROW_OF_TILES(k)                                                                            \
  _tile_loadd(4, w + (k)*down, 64);                                                                \
  _tile_dpbf16ps(k, 4, 5);                                                                         \
  _tile_dpbf16ps(k, 4, 6);                                                                         \
  _tile_dpbf16ps(k, 4, 7)
    ROW_OF_TILES(0);
    ROW_OF_TILES(1);
    ROW_OF_TILES(2);
    ROW_OF_TILES(3);
    beside(p, t, s);
  }
  keep_sums(p, (int[]){tile, tile + 1, tile + 2, tile + 3}, (int[]){group, group, group, group},
            t->segment);
}

static void set_scales(product_t *p, int64_t c, float *scales) {
  const mob_mat_t *w = p->w;
  int64_t rows = p->row_tiles * 16, r = w->row0 + p->r0, last = w->row0 + p->r1 - 1;
  for (int64_t i = 0, end; i < rows; i = end, r = (r / w->block_rows + 1) * w->block_rows) {
    end = w->scales && r <= last ? i + (r / w->block_rows + 1) * w->block_rows - r : rows;
    float scale =
        !w->scales  ? 1.0f
        : r <= last ? w->scales[r / w->block_rows * w->scale_stride + (w->col0 + c) / w->block_cols]
                    : 0.0f;
    for (int64_t k = i; k < end && k < rows; k++) scales[k] = scale;
    if (end >= rows) break;
  }
}

static void run_segment(product_t *p, const uint8_t *panel, const uint8_t *x, int steps,
                        int segment) {
  int pairs = p->groups / 2, odd = p->groups % 2;
  const turn_t t = {panel, x, steps, segment};
  size_t strip = (size_t)steps * PARTS * TILE, share = 2 * strip / (size_t)p->row_tiles;
  for (int g = 0; g < 2 * pairs; g += 2) {
    // What comes next: the following groups, or the first ones of the next segment.
    const uint8_t *ahead = g + 2 < 2 * pairs ? x + (size_t)(g + 2) * p->group_bytes : x + strip;
    for (int k = 0; k < p->row_tiles; k += 2, ahead += share) {
      for (size_t b = 0; b < share; b += 64) {
        _mm_prefetch((const char *)ahead + b, _MM_HINT_T1);
        _mm_prefetch((const char *)ahead + p->group_bytes + b, _MM_HINT_T1);
      }
      pair(p, &t, k, g);
    }
  }
  for (int k = 0; odd && k < p->row_tiles; k += 4) single(p, &t, k, p->groups - 1);
}

// ------------------------------------------------------------------------------------------ narrow

// At most 64 rows of W and one group, the shape of decoding, which memory decides: a tile is
// widened two steps before it is multiplied, between the products, so that neither waits for the
// other.
enum { RING = 3, AHEAD = 512 }; // steps kept; bytes of a row asked for early

typedef struct place {
  int64_t c, end; // of a step; the end of its segment
} place_t;

static inline place_t next_place(const mob_mat_t *w, place_t at) {
  at.c += STEP;
  if (at.c < at.end) return at;
  at.c = at.end;
  at.end = at.c < w->cols ? next_end(w, at.c) : at.c;
  return at;
}

static inline __attribute__((always_inline)) void widen_tile(mob_dtype_t dtype, const product_t *p,
                                                             int tile, place_t at, uint8_t *out) {
  const int64_t size = dtype == MOB_DT_BF16 ? 2 : 1, n = at.end - at.c;
  const int rows = (int)(p->r1 - p->r0) - tile * 16;
  const __mmask32 mask = n >= STEP ? 0xffffffffu : (1u << n) - 1;
  const uint8_t *row = p->w->data + (size_t)(p->r0 + tile * 16) * p->w->stride + at.c * size;
  for (int i = 0; i < 16; i++, row += p->w->stride) {
    const __mmask32 m = i < rows ? mask : 0;
    _mm_prefetch((const char *)row + AHEAD, _MM_HINT_T0);
    _mm512_store_si512(out + 64 * i, dtype == MOB_DT_BF16
                                         ? _mm512_maskz_loadu_epi16(m, row)
                                         : widen_e4m3(_mm256_maskz_loadu_epi8(m, row)));
  }
}

static inline __attribute__((always_inline)) void narrow(mob_dtype_t dtype, product_t *p,
                                                         const uint8_t *x, uint8_t *ring) {
  const mob_mat_t *w = p->w;
  const size_t stride = 4 * (size_t)p->width, bytes = 16 * stride;
  place_t at = {0, next_end(w, 0)}, ahead = at;
  uint8_t *slot = ring, *fill = ring;
  int segment = 0;
  for (int s = 0; s < RING - 1; s++, fill += 4 * TILE, ahead = next_place(w, ahead))
    for (int k = 0; k < 4 && ahead.c < w->cols; k++)
      widen_tile(dtype, p, k, ahead, fill + k * TILE);
  set_scales(p, 0, p->scales[0]);
  zero_tiles();
  while (at.c < w->cols) {
    BARRIER();
    _tile_loadd(5, x, stride);
    _tile_loadd(6, x + bytes, stride);
    _tile_loadd(7, x + 2 * bytes, stride);
#define NARROW(k)                                                                                  \
  _tile_loadd(4, slot + (k)*TILE, 64);                                                             \
  _tile_dpbf16ps(k, 4, 5);                                                                         \
  _tile_dpbf16ps(k, 4, 6);                                                                         \
  _tile_dpbf16ps(k, 4, 7);                                                                         \
  if (ahead.c < w->cols) widen_tile(dtype, p, k, ahead, fill + (k)*TILE)
    NARROW(0);
    NARROW(1);
    NARROW(2);
    NARROW(3);
    x += PARTS * bytes;
    slot = slot + 4 * TILE == ring + RING * 4 * TILE ? ring : slot + 4 * TILE;
    fill = fill + 4 * TILE == ring + RING * 4 * TILE ? ring : fill + 4 * TILE;
    ahead = next_place(w, ahead);
    if (at.c + STEP >= at.end) {
      for (int k = 0; k < 4; k++) add_sums(p, k);
      keep_sums(p, (int[]){0, 1, 2, 3}, (int[]){0, 0, 0, 0}, segment++);
      zero_tiles();
      if (at.end < w->cols) set_scales(p, at.end, p->scales[segment & 1]);
    }
    at = next_place(w, at);
  }
}

static void wide(product_t *p, const uint8_t *x, uint8_t *panel) {
  const mob_mat_t *w = p->w;
  int segment = 0;
  for (int64_t c = 0, end; c < w->cols; c = end, segment++) {
    end = next_end(w, c);
    int steps = (int)((end - c + STEP - 1) / STEP);
    if (w->dtype == MOB_DT_BF16)
      widen(MOB_DT_BF16, w, p->r0, p->r1, p->row_tiles, c, end - c, panel);
    else
      widen(MOB_DT_F8E4M3, w, p->r0, p->r1, p->row_tiles, c, end - c, panel);
    set_scales(p, c, p->scales[segment & 1]);
    run_segment(p, panel, x, steps, segment);
    x += (size_t)steps * PARTS * 64 * (size_t)p->width;
  }
}

// y from the totals.
static void hand_out(const product_t *p, float *const *y, int m) {
  int rows = (int)(p->r1 - p->r0);
  for (int g = 0; g < p->groups; g++)
    for (int t = 0; t * 16 < rows; t++) {
      const float *from =
          p->totals + ((size_t)t * (size_t)p->groups + (size_t)g) * 16 * (size_t)p->width;
      __mmask16 mask = (__mmask16)((1 << p->width) - 1);
      __m512i tile[16];
      for (int i = 0; i < 16; i++) tile[i] = _mm512_maskz_loadu_epi32(mask, from + p->width * i);
      transpose(tile);
      mask = rows - t * 16 < 16 ? (__mmask16)((1 << (rows - t * 16)) - 1) : 0xffff;
      int n = m - g * 16 < 16 ? m - g * 16 : 16;
      for (int i = 0; i < n; i++) _mm512_mask_storeu_epi32(y[g * 16 + i] + t * 16, mask, tile[i]);
    }
}

void mob_amx_gemm(const mob_mat_t *w, int64_t r0, int64_t r1, const void *packed, float *const *y,
                  int m) {
  MOB_ASSERT(r1 - r0 <= MOB_AMX_ROWS && m <= MOB_AMX_BATCH);
  uint8_t panel[ROW_TILES * STEPS * TILE] __attribute__((aligned(64)));
  product_t p;
  p.w = w;
  p.r0 = r0;
  p.r1 = r1;
  p.row_tiles = (int)((r1 - r0 + 63) / 64) * 4;
  p.width = m < MOB_AMX_GROUP ? m : MOB_AMX_GROUP;
  p.groups = (m + p.width - 1) / p.width;
  p.group_bytes = mob_amx_group_bytes(w, p.width);
  p.turn = 0;
  p.sums[0].full = p.sums[1].full = false;
  float totals[p.row_tiles * 16 * p.groups * p.width] __attribute__((aligned(64)));
  p.totals = totals;
  for (int i = 0; i < 16 * p.width && p.width < 16; i++) p.row_of[i / 16][i % 16] = i / p.width;
  configure(p.width);
  if (p.groups > 1 || p.row_tiles > 4)
    wide(&p, packed, panel);
  else if (w->dtype == MOB_DT_BF16)
    narrow(MOB_DT_BF16, &p, packed, panel);
  else
    narrow(MOB_DT_F8E4M3, &p, packed, panel);
  for (int k = 0; k < 4; k++) add_sums(&p, k);
  _tile_release();
  hand_out(&p, y, m);
}
