// The kernels as the executor calls them: one launch each, on `stream`, sizes and device pointers by value.
// Shapes: T rows of a step; activations between linears are records (common.cuh) or bf16 rows; the residual stream is fp32.
#pragma once
#include <cuda_runtime.h>

#include <vector>

#include "common.cuh"
#include "grid.cuh"
#include "linear_many.cuh"
#include "waits.cuh"

namespace mob {

// What the device knows of a step: tables that it takes from the host (step_ends.h).
struct StepRows {
  const int *count;      // [1] rows of the step; rows at and behind it are padding
  const int *token;      // [T] id, or -1 - slot: what was sampled last for that slot
  const int *position;   // [T]
  const int *table;      // [T] where the row's block table begins in `pages`; -1: padding
  const int *pages;      // block tables, one behind the other
  const int *last_token; // [slots]
  const Waits *waits;    // a step that has failed writes nothing to the cache; nullptr: none does
};

// ---- linear.cu
enum class Weights : int { F8, B16 };
struct Matrix {
  uint8_t *data;   // packed tiles
  size_t stride;   // bytes from matrix to matrix (experts)
  int n, k;        // outputs; inputs, padded to whole pairs of tiles
  Weights kind;
};
constexpr int kPartialFloats = 2 * 256 * 128; // of an SM: its parts of two tiles
struct LinearScratch {
  float *partial;  // [sms][kPartialFloats] partial sums, every bit set
  float *segments_partial; // [segments_partial_floats()] likewise, of linear_segments
  int *dealt;      // [2] 0, of linear_segments and attend_prefill: pieces of work dealt, CTAs that asked in vain
  int sms;
  Waits *waits;    // may be null
  GridWords *grid; // zeros, of kernels behind one another: a kernel comes to no meeting before its depend_wait()
  int *segments_done; // [moe_tiles()] 0, of linear_segments_both: of a tile of tokens, tiles of gate and up that are done
};
constexpr int kFewTokens = 4; // up to here every active expert computes all tokens
inline int padded_rows(int m) { return (m + 7) / 8 * 8; }
inline size_t column_pairs(const Matrix &w) { return (size_t)w.k / (w.kind == Weights::F8 ? 256 : 128); }
// y [m][ldy] = x w^T. `x` has padded_rows(m) rows at least; x_parts: how often x repeats the columns of w (hi/lo halves).
void linear(const Matrix &w, const Records &x, void *y, int ldy, bool f32, int m, int x_parts, const LinearScratch &s,
            cudaStream_t stream);
// w: `inter` rows of gate, at `up_at` as many of up. act = silu(gate) * up, the products of both rounded to bf16 before.
void linear_gated(const Matrix &w, int inter, int up_at, const Records &x, const Records &act, int m, const LinearScratch &s,
                  cudaStream_t stream);
bool linear_can_gate(const Matrix &w, int64_t inter, int up_at, int act_k);
void linear_prepare(); // once a device: shared memory limits

// ---- linear_few.cu: few tokens, dense (as linear() says) or by expert
constexpr int kFewRows = 16;
// So many rows have their best logits out of the head's linear itself (best.h); of more, the tensor cores wait for it longer than it saves.
constexpr int kBestRows = 128;
void linear_few(const Matrix &w, const Records &x, void *y, int ldy, bool f32, int m, int x_parts, const LinearScratch &s,
                cudaStream_t stream);
// As linear_gated() says.
void linear_few_gated(const Matrix &w, int inter, int up_at, const Records &x, const Records &act, int m, const LinearScratch &s,
                      cudaStream_t stream);
// Active experts, all of `m` <= kFewRows tokens each: y [active][m][n]; x_stride bytes from an expert's records to the next one's, 0: all
// read the same. The last `shared` of the list are the matrices first_shared and those behind it, whatever a router chose.
void linear_experts_few(const Matrix &w, const int *experts, const int *active, const Records &x, size_t x_stride, bf16 *y, int m,
                        int first_shared, int shared, const LinearScratch &s, cudaStream_t stream);
void linear_few_prepare(); // once a device, by linear_prepare()

// ---- linear_narrow.cu: FP8, up to 8 tokens, at most 16 outputs an SM
bool linear_narrow_serves(const Matrix &w, int m, int sms);
void linear_narrow(const Matrix &w, const Records &x, bf16 *y, int ldy, int m, cudaStream_t stream);
void linear_narrow_prepare(); // once a device, by linear_prepare()

// ---- linear_whole.cu
// The down projections of all active experts, with what stands before and behind them: y [m][n] = sum over the experts of
// weight * down(silu(gate) * up), which leaves nothing to be combined. m <= kFewDown.
constexpr int kFewDown = 2;
constexpr int kMostActive = 136;
struct ExpertsDown {
  const bf16 *gate_up; // [active][m][ld]: `inter` (a multiple of 8) of gate, at `up_at` of up
  int ld, up_at, inter;
  const int *active;   // [1], at most kMostActive, and `ids` of them: of moe_plan_few(), made before the kernel in front of this one began
  const int *ids;
  const int *row;      // [m][slots], likewise
  const float *weight; // [m][slots]
  const int *count;    // [1] tokens that are no padding; the others get 0
  int slots;
  size_t w_stride;     // made by the call
  bool ue8m0;
};
void linear_experts_down(const Matrix &w, const ExpertsDown &e, bf16 *y, int m, int sms, cudaStream_t stream);
// A dense FP8 linear by the same kernel, where a matrix has about as many blocks of 64 outputs as there are SMs and few columns.
bool linear_whole_serves(const Matrix &w, int m, int sms);
void linear_whole(const Matrix &w, const Records &x, bf16 *y, int ldy, int m, int sms, cudaStream_t stream);
void linear_whole_prepare(); // once a device, by linear_prepare()

// ---- linear_segments.cu: experts over tokens gathered by expert
constexpr int kTileTokens = 96, kLeastTile = 64; // of a tile, at most; the least that may be its largest
constexpr int kWideTokens = 128, kWideFrom = 88; // likewise, e4m3 only: where experts have so many on average
// Tokens of the largest tile where an expert has `mean` of them: hardly any should need a second one (mean + three deviations), because it
// reads the weights again. Where most would need two of 96, tokens are on the M side of the product (linear_segments_wide.cu).
inline int segments_most(double mean, bool fp8) {
  const double most = mean + 3 * __builtin_sqrt(mean);
  return most <= kLeastTile ? kLeastTile : fp8 && mean >= kWideFrom ? kWideTokens : kTileTokens;
}
constexpr int kSegmentsParts = 4; // of a tile that is cut, at most
inline int segments_parts(int pairs) { return pairs >= 8 ? kSegmentsParts : pairs >= 4 ? 2 : 1; } // of the columns of a tile that is cut
inline size_t segments_partial_floats(int sms) { return (size_t)2 * sms * (kSegmentsParts - 1) * 256 * kTileTokens; }

struct TokenTile {
  int matrix, row, tokens; // expert; first gathered row, a multiple of 8
  int index, across;       // among its expert's tiles, which stand beside each other
};

// Records of gathered rows. Those of a tile, `rows` = its tokens padded to 8, begin at its first row * pairs * 264 (bf16: 256):
//   of every pair: rows x 128 bytes of the first tile's columns, swizzled (tiles.cuh), rows x 128 of the second's;
//   then (e4m3) of every pair: rows scales of the first, rows of the second
struct TileRows {
  uint8_t *data;
  int pairs, fp8;
};

// Where a gathered row's tile is.
__host__ __device__ inline int tile_place(int first_row, int rows) { return first_row / 8 << 5 | rows / 8; }
__device__ __forceinline__ RecordRow tile_row(const TileRows &to, int row, int place) {
  const int first = place >> 5 << 3, rows = (place & 31) * 8;
  uint8_t *data = to.data + (size_t)first * to.pairs * (to.fp8 ? 264 : 256);
  return {data, (size_t)rows * 256, data + (size_t)to.pairs * rows * 256, (size_t)rows * 8, rows, row - first, to.fp8};
}

// y [rows][n] of the tiles' rows. `x`: tile rows of w's columns; most: the tokens of the largest tile that there may be (segments_most()).
void linear_segments(const Matrix &w, const TokenTile *tiles, const int *count, uint8_t *x, bf16 *y, int most, const LinearScratch &s,
                     cudaStream_t stream);
// w: `inter` rows of gate, at `up_at` as many of up. act = silu(gate) * up, the products of both rounded to bf16 before.
void linear_segments_gated(const Matrix &w, int inter, int up_at, const TokenTile *tiles, const int *count, uint8_t *x, const TileRows &act,
                           bool ue8m0, int most, const LinearScratch &s, cudaStream_t stream);
// Both in one launch: y [rows][n] = down(silu(gate) * up), where up and down are of one kind.
void linear_segments_both(const Matrix &up, int inter, int up_at, const Matrix &down, const TokenTile *tiles, const int *count, uint8_t *x,
                          const TileRows &act, bool ue8m0, bf16 *y, int most, const LinearScratch &s, cudaStream_t stream);
// Whether they can: blocks of 128 columns of act are whole, and there are none behind them.
inline bool segments_can_gate(int64_t inter, int up_at, int act_k) { return inter % 128 == 0 && up_at % kTileRows == 0 && act_k == inter; }
void linear_segments_prepare(); // once a device, by linear_prepare()

// ---- norm.cu
struct Embedding {
  const bf16 *part[kMaxRanks]; // rank r: rows [vocab * r / ranks, vocab * (r + 1) / ranks) of [vocab][hidden], in its GPU's memory
  int ranks, vocab;
};
struct NormIn {
  float *x;             // [T][hidden] residual stream, updated when something is added
  const float *from;    // where it is until then; nullptr: in x (as it must be where sums go over ranks)
  const int *rows;      // row r of the output is row rows[r] of x; nullptr: r
  Embedding embed;      // x = the row of its token; part[0] nullptr: no
  StepRows step;        // for `embed`
  const bf16 *add;      // [T][hidden] added to x; nullptr: none
  const float *bias;    // [hidden] added too
  // experts: x += sum over j of weight[t][j] * expert_y[expert_row[t][j]], in order of j
  const bf16 *expert_y;
  const int *expert_row;
  const float *expert_weight;
  int expert_slots;
  const float *w;       // [hidden]; nullptr: no norm, only the sum is stored
  float eps;
  int hidden;
};
struct NormOut {
  Records a;     // .data nullptr: none
  int a_k;       // columns of `a` in all: those behind hidden are 0
  Records b;     // a second one (bf16), or hi and lo parts one behind the other when `b_split`
  int b_k;
  bool b_split;
  float *f32;    // [T][hidden]
  bool ue8m0;
};
void norm_rows(const NormIn &in, const NormOut &out, int rows, cudaStream_t stream);
// The same where `add` and `expert_y` are this rank's parts and x takes their sum over ranks; `turn` counts these calls, and more than
// one where there are many rows. expert_row -1: on another rank.
struct Peers;
void norm_rows_ranks(const NormIn &in, const NormOut &out, const Peers &peers, int *turn, int rows, int sms, cudaStream_t stream);
// Rows of bf16 [m][ld] -> records of k columns; the columns behind `cols` are 0.
void pack_rows(const bf16 *x, int ld, int cols, const Records &out, int k, int m, bool ue8m0, cudaStream_t stream);

// ---- rope_kv.cu
// A page of 64 tokens: boxes of 64 columns, each 64 rows of 128 bytes, swizzled (column c of token t in box c / 64).
__host__ __device__ inline size_t page_bytes(int width) { return (size_t)((width + 63) / 64) * 8192; }
__device__ __forceinline__ size_t page_offset(int token, int col) {
  return (size_t)(col / 64) * 8192 + token * 128 + (((col % 64 / 8) ^ (token & 7)) << 4) + (col & 7) * 2;
}
struct Rope {
  const float *inv_freq;
  int dim, interleaved;
  float factor;
};
struct MlaPrepare {
  const bf16 *a;       // [T][lda]: q_a at column 0 (q_lora wide; may be 0), kv_a at column kv_at
  int lda, q_lora, kv_at, kv_lora, rope_dim;
  const float *a_bias; // of the same columns; may be null
  const float *q_norm, *kv_norm;
  float eps;
  Records q;           // of q_b's input
  int q_k;
  bool ue8m0;
  uint8_t *cache;      // of this layer
  StepRows step;
  Rope rope;
};
void mla_prepare(const MlaPrepare &p, int rows, cudaStream_t stream);
struct HeadsOut;
struct GqaPrepare {
  bf16 *q, *k, *v;     // rows of ldq, ldk, ldv; q is changed in place
  int ldq, ldk, ldv, heads, kv_heads, head_dim;
  const float *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;
  float eps;
  uint8_t *cache;      // a token's columns: of every key head its key, then its value
  int width;           // 2 * kv_heads * head_dim
  StepRows step;
  Rope rope;
};
// q roped in place, head after head.
void gqa_prepare(const GqaPrepare &p, int rows, cudaStream_t stream);
// The same for attend_gqa and attend_gqa_prefill (gqa_is_fast): in place, the 16-byte chunks of each head exchanged (c to c ^ (head
// within its group & 7)), or, for rows with a tile, to `tiles`. Padding rows get zeros in `out`.
void gqa_prepare_fast(const GqaPrepare &p, const int *tile_row, uint8_t *tiles, const HeadsOut &out, int rows, cudaStream_t stream);
inline bool gqa_is_fast(int heads, int kv_heads, int head_dim, int v_head_dim, int rope_dim) {
  return (head_dim == 64 || head_dim == 128) && v_head_dim == head_dim && rope_dim == head_dim && heads % kv_heads == 0 &&
         heads / kv_heads <= 16;
}

// ---- absorb.cu: latent attention's two small products per head
struct AbsorbPlain { // any dimensions
  const bf16 *kv_b;  // [heads * (nope + v)][kv_lora]
  int heads, nope, rope_dim, v, kv_lora;
  StepRows step;
  Rope rope;
};
// q [T][heads * (nope + rope)] -> out [T][heads][kv_lora + rope]
void absorb_q_plain(const AbsorbPlain &p, const bf16 *q, bf16 *out, int rows, cudaStream_t stream);
// latent [T][heads][kv_lora] -> out [T][heads * v]
void absorb_v_plain(const AbsorbPlain &p, const float *latent, bf16 *out, int rows, cudaStream_t stream);
// absorb_mla.cu: 128 + 64 + 128 + 512 of DeepSeek-V3. Query tiles: 64 heads x 64 columns, swizzled; [T][ceil(heads / 64)][9].
struct AbsorbMla {
  const uint8_t *uk; // tiles of UK_h^T [512][128], head after head: 8 tiles each
  const uint8_t *kv_b; // packed [heads * 256][512]
  int heads, sms;
  StepRows step;
  Rope rope;
};
void absorb_q_mla(const AbsorbMla &p, const bf16 *q, uint8_t *tiles, int rows, cudaStream_t stream);
// ---- mla_few.cu: mla_prepare, q_b's linear and absorb_q_mla of few rows in one
constexpr int kFewQueries = 8;
struct MlaQueriesFew {
  MlaPrepare prepare; // its records are not written
  Matrix q_b;
  const uint8_t *uk;
  int heads, sms;
  uint8_t *tiles;     // as absorb_q_mla's
  float *partial;     // of LinearScratch
  Waits *waits;       // may be null
};
bool mla_queries_few_serves(const MlaPrepare &p, const Matrix &q_b, int rows);
void mla_queries_few(const MlaQueriesFew &p, int rows, cudaStream_t stream);
void mla_few_prepare(); // once a device, by absorb_prepare()
struct MlaParts { // of attend_mla's results, made and read on the device
  __half *partial; // [parts][heads][512]
  float *lse;      // [parts][heads], natural log
  int *of_row;     // [T][2]: a row's first part, and how many
};
inline int mla_parts(int rows, int sms) { return rows + sms; } // at most
// -> records [T][heads * 128], from row `row0` on; a row without parts is 0
void absorb_v_mla(const AbsorbMla &p, const MlaParts &parts, const Records &out, int row0, int rows, bool ue8m0, cudaStream_t stream);
// ---- mla_values_few.cu: the same for up to kFewRows rows
void mla_values_few(const AbsorbMla &p, const MlaParts &parts, const Records &out, int rows, bool ue8m0, cudaStream_t stream);
void mla_values_few_prepare(); // likewise

// ---- attention.cu
struct AttendPlain {
  const bf16 *q;     // [T][ldq], head h at h * q_head
  int ldq, q_head, heads, group; // `group` query heads share a key head
  int dim, v_dim;    // of a key, of a value
  int key_step, value_at, value_step; // columns: key of head g at g * key_step, value at value_at + g * value_step
  float scale;
  const uint8_t *cache;
  int width;
  StepRows step;
};
void attend_plain(const AttendPlain &p, float *out_f32, bf16 *out, int rows, cudaStream_t stream); // one of the outs; [T][heads][v_dim]

// ---- attention_mla.cu: up to 512 rows
struct AttendMla {
  const uint8_t *q;  // tiles of absorb_q_mla
  int heads;
  float scale;
  const uint8_t *cache;
  StepRows step;
  bool single;       // every row is a sequence of its own and no other launch of the step has rows: the step before wrote all pages but the last
  MlaParts parts;
  int sms;
};
void attend_mla(const AttendMla &p, int rows, cudaStream_t stream);
void attention_mla_prepare();
// ---- mla_attend_few.cu: the same for few rows: where attend_mla's start and its large tiles cost more than its tensor cores gain. It reads
// a key once for every 16 or 32 heads: with more than 64 of them it wins as long as the step has few keys in all (docs/gpu-log.md).
constexpr int kFewKeys = 12288;
inline bool mla_attend_few_serves(int heads, int rows, bool few_keys) { return heads <= 32 ? rows == 1 : heads > 64 && rows <= 8 && few_keys; }
void mla_attend_few(const AttendMla &p, int rows, cudaStream_t stream);
void mla_attend_few_prepare(); // once a device, by attention_mla_prepare()

// ---- attention_gqa.cu, attention_gqa_prefill.cu: heads of 64 or 128, up to 16 query heads a key head
struct HeadsOut {      // [T][heads * dim]: records of o_proj's input with `k` columns, or rows of bf16 (k = heads * dim)
  Records records;
  int k;
  bool ue8m0;
  bf16 *rows;          // not nullptr: there, `ld` apart
  int ld;
};
constexpr int kGqaGroup = 16;
constexpr int kGqaPartial = kGqaGroup * 128 + 4 * kGqaGroup; // floats of a partial result: sums, then largest score and sum of weights
inline int gqa_grid(int sms) { return 2 * sms; }
inline size_t gqa_partial_bytes(int sms) { return (size_t)gqa_grid(sms) * 2 * kGqaPartial * sizeof(float); }
struct AttendGqa {
  const bf16 *q;       // [T][ldq] as gqa_prepare leaves it for such heads
  int ldq, heads, kv_heads, dim;
  float scale;
  const uint8_t *cache;
  StepRows step;
  const int *tile_row; // [T] rows with one (>= 0) are left to attend_gqa_prefill; nullptr: there are none
  bool single;         // every row is a sequence of its own, so that the step before wrote all its pages but the last
  HeadsOut out;
  float *partial;      // gqa_partial_bytes(), every bit set before and after
  Waits *waits;        // may be null
  int sms;
  // For `single` rows without tiles: q, k and v of `fresh` are as projected, what gqa_prepare_fast() does is done here, its writes to the
  // cache and to padding rows too.
  bool prepares = false;
  GqaPrepare fresh = {};
};
void attend_gqa(const AttendGqa &p, int rows, cudaStream_t stream);
struct PrefillPair;
struct AttendGqaPrefill {
  const uint8_t *q;    // tiles of gqa_prepare: [block of 64 queries][heads][dim / 64], swizzled
  int heads, kv_heads, dim;
  float scale;
  const uint8_t *cache;
  StepRows step;
  const PrefillPair *pairs; // the longest last
  HeadsOut out;
};
void attend_gqa_prefill(const AttendGqaPrefill &p, int pairs, cudaStream_t stream);
void attention_gqa_prepare();

// ---- attention_prefill.cu
struct PrefillPair { // 128 queries of one sequence
  int block;    // first of its two blocks of query tiles
  int row;      // of the step
  int count;    // queries, up to 128
  int position; // of the first
  int keys;     // first key block of its sequence
};
struct PrefillPrepare {
  const uint8_t *cache;
  const int *pages;      // [blocks] page of each key block
  Records latents;       // of blocks * 64 rows
  bool ue8m0;
  StepRows step;
  Rope rope;             // of 64 columns
  float2 *angles;        // [T][32] cosine and sine of each pair of columns
};
struct AttendPrefill {
  const bf16 *q;         // [T][heads * 192], not roped yet
  const float2 *angles;  // of prefill_prepare
  bool interleaved;
  const uint8_t *kv;     // tiles
  int heads, key_blocks;
  float scale;
  const uint8_t *cache;
  const int *key_pages;  // [key_blocks] page of each block
  const PrefillPair *pairs; // the longest last
  Records out;           // e4m3, of o_proj's input
  bool ue8m0;
  int *dealt;            // of LinearScratch
  int sms;
  int pair_count;        // made by the call
};
void prefill_prepare(const PrefillPrepare &p, int blocks, int rows, cudaStream_t stream); // what kv_b and attend_prefill read
void attend_prefill(const AttendPrefill &p, int pairs, cudaStream_t stream);
void attention_prefill_prepare();
// kv_b over `keys` latents, written as kv tiles of `key_blocks` blocks
void linear_kv_tiles(const Matrix &w, const Records &x, uint8_t *tiles, int key_blocks, int keys, const LinearScratch &s,
                     cudaStream_t stream);
void absorb_prepare();

// ---- router.cu
struct RouterSpec {
  int experts, top_k, groups, top_groups;
  bool sigmoid, norm;
  float routed_scale;
  const float *bias; // may be null
};
struct RouterParts { // logits [rows][experts] are the sum of `parts` such arrays, `stride` floats apart
  const float *logits;
  int parts;
  size_t stride;
};
// ids [rows][top_k] in ascending order, weights [rows][weight_ld]: 1 behind the first top_k
void route(const RouterSpec &spec, const RouterParts &from, int *ids, float *weights, int weight_ld, int rows, cudaStream_t stream);

// ---- moe.cu
constexpr int kMaxExperts = 520; // with shared ones
struct ExpertRows { // in tiles of one size, but the last
  int first, each, tokens; // first row; tokens of a tile, a multiple of 8; tokens in all
};
struct MoePlan {
  const int *ids;        // [T][top_k] in ascending order
  const int *count;      // [1] rows that are no padding
  int top_k;
  int first, experts;    // ids of the routed experts that are here
  int shared;            // stand behind those
  int rows;              // T
  // out
  int *active;           // [1]; ids of the experts with tokens
  int *active_ids;
  int *expert_row;       // [T][top_k + shared]: row of y. many: from moe_gather() on, before a row's number among its expert's
  bool elsewhere;        // other routed experts are on other ranks: expert_row is -1 for them
  // many only: rows of y are gathered rows
  int most;              // tokens of a tile, at most
  TokenTile *tiles;      // [moe_tiles()], `active` of them
  int *gathered;         // [1] rows, with padding
  int *place;            // [moe_rows()] tile_place() of every row; of padding, -1. moe_gather() writes the others'
  ExpertRows *rows_of;   // [experts + shared]
};
inline size_t moe_rows(size_t rows, size_t slots, size_t experts) { return rows * slots + 8 * experts; }
inline size_t moe_tiles(size_t rows, size_t slots, size_t experts, size_t most) { return rows * slots / most + experts; }
void moe_plan_few(const MoePlan &p, cudaStream_t stream);
void moe_plan_many(const MoePlan &p, cudaStream_t stream);
// The rows of x to where their experts want them.
void moe_gather(const Records &x, const MoePlan &p, const TileRows &out, cudaStream_t stream);
// y [rows][2 * inter] (gate | up at `up_at`) -> silu(gate) * up as records. few: row = expert * m + token, records of an expert at
// stride; many: rows up to *gathered.
struct Activate {
  const bf16 *y;
  int ldy, up_at, inter, k;
  Records out;
  size_t stride;  // few
  int m;          // few: tokens; 0: many or dense
  const int *active;
  bool ue8m0;
  const int *gathered, *place; // many
  TileRows tiles;              // many: instead of `out`
};
void activate(const Activate &p, int rows, cudaStream_t stream);

// ---- router_few.cu
// Up to so many rows and experts the router's product runs on CUDA cores, and the plan is made with it.
constexpr int kFewRouter = 4, kFewExperts = 256;
struct RouteFew {
  RouterSpec spec;
  const bf16 *w;  // [experts][hidden]
  float *words;   // [experts][4], every bit set before and after
  int *ids;       // as route()
  float *weights;
  int weight_ld;
  MoePlan plan;   // as moe_plan_few()
  Waits *waits;   // may be null
};
// From normed rows x [rows <= 4][hidden].
void route_few(const RouteFew &p, const float *x, int hidden, int rows, cudaStream_t stream);
// From the residual stream, with norm_rows() in the same kernel; the stream goes to `x` [rows][hidden], which is not in.x.
void norm_route_few(const RouteFew &p, const NormIn &in, const NormOut &out, float *x, int rows, cudaStream_t stream);
bool norm_route_serves(const NormIn &in, const NormOut &out);

// ---- best.h: of plain rows; sampling.h: of others

// ---- sample_ranks.cu: each rank has the logits of its part of the vocabulary, and ends with the same ids
// Rank 0's logits `to` [rows][vocab] from all ranks' [rows][columns]; rank 0's own are there.
void gather_logits(const Peers &p, const float *from, int columns, float *to, int vocab, int rows, cudaStream_t stream);
void share_ids(const Peers &p, const int *slots, const int *wanted, int *ids, int *last_token, int rows, cudaStream_t stream);

// ---- pack.cu
// src: rows x cols elements in device memory, `ld` from row to row.
struct PackSource {
  const void *src;
  int dtype;             // mob_dtype_t
  int64_t rows, cols;
  int64_t row0, col0;    // of src within the packed matrix
  // FP8: scale of (r, c) = scales[(scale_row0 + r) / block_rows * scale_ld + (scale_col0 + c) / block_cols]
  const float *scales;
  int64_t scale_ld, scale_row0, scale_col0;
  int block_rows, block_cols;
  int *bad;              // set to tag + 1 where an FP8 code is not a number
  int64_t ld;            // 0: cols
  int tag;
};
void pack_tiles(const PackSource &s, uint8_t *dst, int64_t k, Weights kind, cudaStream_t stream);
void pack_plain(const PackSource &s, bf16 *dst, int64_t ld, cudaStream_t stream);
void pack_float(const PackSource &s, float *dst, cudaStream_t stream);
// UK_h^T tiles from rows of a packed kv_b: `heads` heads of 256 rows x 512.
void pack_uk(const uint8_t *kv_b, uint8_t *uk, int heads, cudaStream_t stream);
// Values of `--load-format dummy` (engine/model/dummy.h), written where the same functions without "dummy" would write those of a file.
constexpr int kDummyHalf = 32768;
struct DummySource {
  uint64_t key;
  int dtype;                              // of the tensor
  int64_t rows, cols;
  int64_t row0, col0;                     // of the first element within the packed matrix
  int64_t from_row, from_col, whole_cols; // of the first element within the tensor, and the tensor's width
  float std;                              // NaN: constant
  float constant;
  float scale;                            // FP8: every block's
  const float *quantile;                  // [kDummyHalf]: quantiles 0 to 32,767 of 65,536; the others are their mirror
  const uint8_t *codes;                   // [kDummyHalf] of FP8
};
void dummy_tiles(const DummySource &d, uint8_t *dst, int64_t k, Weights kind, cudaStream_t stream);
void dummy_plain(const DummySource &d, bf16 *dst, int64_t ld, cudaStream_t stream);
void dummy_float(const DummySource &d, float *dst, cudaStream_t stream);

} // namespace mob
