// Products with many rows of x, blocked for the caches. Included by ops_vec.h.
//
// For PANEL_ROWS rows of W and PANEL_M rows of x, PANEL_COLS columns at a time: the weights are
// widened once into a panel that stays in the L2 cache, TILE_M rows of x are scaled and packed into
// a strip that stays in the L1 cache, and every four rows of the panel pass over the strip with
// 4 * TILE_M accumulators in registers. Between the blocks of columns accumulators rest in memory
// as whole vectors, so that the order of a sum is that of few_rows().

enum { PANEL_ROWS = 64, PANEL_M = 96, PANEL_COLS = 1024 };

// End of the block of columns from c: at most PANEL_COLS with each segment padded to whole vectors.
INLINE int64_t cut(const mob_mat_t *w, int64_t c) {
  int64_t room = PANEL_COLS;
  while (c < w->cols && room >= W) {
    int64_t end = segment_end(w, c);
    if (end - c > room) return c + room;
    room -= (end - c + W - 1) / W * W;
    c = end;
  }
  return c;
}

// Columns [c0, c1) of a row of W, a vector each `step` floats.
INLINE int widen(mob_dtype_t dtype, const mob_mat_t *w, int64_t r, int64_t c0, int64_t c1,
                 int64_t step, float *out) {
  const uint8_t *row = w->data + (size_t)r * w->stride;
  int count = 0;
  for (int64_t c = c0; c < c1;) {
    int64_t end = segment_end(w, c) < c1 ? segment_end(w, c) : c1;
#ifdef WIDE_E4M3
    for (; dtype == MOB_DT_F8E4M3 && c + 4 * W <= end; c += 4 * W, count += 4) {
      vf four[4];
      v_e4m3x4(row + c, four);
      UNROLL for (int q = 0; q < 4; q++) v_store(out + (count + q) * step, four[q]);
    }
#endif
    for (; c + W <= end; c += W)
      v_store(out + count++ * step, v_weight(dtype, row + (size_t)c * size_of(dtype)));
    if (c < end)
      v_store(out + count++ * step,
              v_weight_tail(dtype, row + (size_t)c * size_of(dtype), end - c));
    c = end;
  }
  return count;
}

static int widen_any(const mob_mat_t *w, int64_t r, int64_t c0, int64_t c1, int64_t step,
                     float *out) {
  switch (w->dtype) {
  case MOB_DT_F32:
    return widen(MOB_DT_F32, w, r, c0, c1, step, out);
  case MOB_DT_BF16:
    return widen(MOB_DT_BF16, w, r, c0, c1, step, out);
  case MOB_DT_F16:
    return widen(MOB_DT_F16, w, r, c0, c1, step, out);
  default:
    return widen(MOB_DT_F8E4M3, w, r, c0, c1, step, out);
  }
}

// Columns [c0, c1) of a row of x times the scales of row r of W, laid out as widen() does.
INLINE void pack(const mob_mat_t *w, int64_t r, int64_t c0, int64_t c1, const float *x,
                 int64_t step, float *out) {
  for (int64_t c = c0; c < c1;) {
    int64_t end = segment_end(w, c) < c1 ? segment_end(w, c) : c1;
    vf scale = v_set1(w->scales ? segment_scale(w, r, c) : 1.0f);
    for (; c + W <= end; c += W, out += step) v_store(out, v_mul(scale, v_load(x + c)));
    if (c < end) {
      v_store(out, v_mul(scale, v_load_tail(x + c, end - c)));
      out += step;
    }
    c = end;
  }
}

// ROWS rows of the panel against M rows of the strip. `rest`: ROWS * M accumulators.
INLINE void tile(const float *panel, const float *strip, int steps, const int ROWS, const int M,
                 bool first, bool last, float *rest, float *const *y, int64_t at) {
  vf total[TILE_M][4];
  UNROLL for (int i = 0; i < M; i++) UNROLL for (int k = 0; k < ROWS; k++) total[i][k] =
      first ? v_zero() : v_load(rest + (i * ROWS + k) * W);
  for (int s = 0; s < steps; s++, panel += ROWS * W, strip += M * W) {
    vf v[TILE_M];
    UNROLL for (int i = 0; i < M; i++) v[i] = v_load(strip + i * W);
    UNROLL for (int k = 0; k < ROWS; k++) {
      vf weight = v_load(panel + k * W);
      UNROLL for (int i = 0; i < M; i++) total[i][k] = v_fma(weight, v[i], total[i][k]);
    }
  }
  UNROLL for (int i = 0; i < M; i++) {
    if (!last)
      UNROLL for (int k = 0; k < ROWS; k++) v_store(rest + (i * ROWS + k) * W, total[i][k]);
    else if (ROWS == 4)
      v_sum4(y[i] + at, total[i]);
    else
      UNROLL for (int k = 0; k < ROWS; k++) y[i][at + k] = v_sum(total[i][k]);
  }
}

#define TILE_OF(M)                                                                                 \
  case M:                                                                                          \
    if (rows == 4)                                                                                 \
      tile(panel, strip, steps, 4, M, first, last, rest, y, at);                                   \
    else                                                                                           \
      tile(panel, strip, steps, 1, M, first, last, rest, y, at);                                   \
    break

static void tile_any(const float *panel, const float *strip, int steps, int rows, int m, bool first,
                     bool last, float *rest, float *const *y, int64_t at) {
  switch (m) {
    TILE_OF(1);
    TILE_OF(2);
    TILE_OF(3);
#if TILE_M > 3
    TILE_OF(4);
    TILE_OF(5);
    TILE_OF(6);
#endif
  }
}

// Asks for the columns [from, to) of the n rows of x that come next.
INLINE void ask_for(const float *const *x, int n, int64_t from, int64_t to) {
  for (int i = 0; i < n; i++)
    for (int64_t c = from; c < to; c += 16) __builtin_prefetch(x[i] + c, 0, 2);
}

// At most PANEL_ROWS rows of W in one row of scale blocks, at most PANEL_M rows of x.
static void block(const mob_mat_t *w, int64_t r0, int rows, const float *const *x, float *const *y,
                  int m, int64_t at) {
  float panel[PANEL_ROWS * PANEL_COLS] __attribute__((aligned(64)));
  float strip[TILE_M * PANEL_COLS] __attribute__((aligned(64)));
  float rest[PANEL_ROWS * PANEL_M * W] __attribute__((aligned(64)));
  int quads = rows / 4, steps = 0;
  for (int64_t c0 = 0, c1; c0 < w->cols; c0 = c1) {
    c1 = cut(w, c0);
    bool first = c0 == 0, last = c1 == w->cols;
    for (int k = 0; k < rows; k++) {
      float *to =
          k < quads * 4 ? panel + (k & ~3) * PANEL_COLS + k % 4 * W : panel + k * PANEL_COLS;
      steps = widen_any(w, r0 + k, c0, c1, k < quads * 4 ? 4 * W : W, to);
    }
    for (int i = 0; i < m; i += TILE_M) {
      int n = m - i < TILE_M ? m - i : TILE_M;
      for (int k = 0; k < n; k++) pack(w, r0, c0, c1, x[i + k], n * W, strip + k * W);
      int next = m - i - n < TILE_M ? m - i - n : TILE_M;
      int64_t share = ((c1 - c0) * 4 / rows + 16) & ~(int64_t)15, asked = c0;
      for (int k = 0; k < rows; k += k < quads * 4 ? 4 : 1) {
        const bool four = k < quads * 4;
        if (asked < c1) ask_for(x + i + n, next, asked, asked + share);
        asked += share;
        tile_any(panel + k * PANEL_COLS, strip, steps, four ? 4 : 1, n, first, last,
                 rest + (k * m + i * (four ? 4 : 1)) * W, y + i, at + k);
      }
    }
  }
}

static void many_rows(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                      float *const *y, int m) {
  for (int64_t r = r0, end; r < r1; r = end) {
    end = row_block_end(w, r, r1);
    if (end - r > PANEL_ROWS) end = r + PANEL_ROWS;
    for (int i = 0; i < m; i += PANEL_M)
      block(w, r, (int)(end - r), x + i, y + i, m - i < PANEL_M ? m - i : PANEL_M, r - r0);
  }
}
