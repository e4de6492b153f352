// What a model is, as data: dimensions, rope, attention, feed-forward, and the list of its weights.
// A model family (family.h) makes a description from config.json; a backend executes descriptions and knows
// no family. Adding a family is therefore one file, unless it brings a new kind of layer.
#ifndef MOB_MODEL_DESC_H
#define MOB_MODEL_DESC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "runtime/base/status.h"

typedef enum mob_dtype { MOB_DT_F32, MOB_DT_BF16, MOB_DT_F16, MOB_DT_F8E4M3, MOB_DT_COUNT } mob_dtype_t;
size_t mob_dtype_size(mob_dtype_t dtype); // bytes of one element
const char *mob_dtype_name(mob_dtype_t dtype);

typedef enum mob_attn_kind {
  MOB_ATTN_GQA, // q/k/v projections, n_kv_heads groups, optional biases and per-head q/k norms
  MOB_ATTN_MLA, // DeepSeek's latent attention: cache = [latent kv_lora | roped key qk_rope] per token
} mob_attn_kind_t;

typedef struct mob_rope {
  int dim;          // rotated values of a head
  bool interleaved; // pairs (2i, 2i+1) as DeepSeek, else (i, i + dim/2)
  float *inv_freq;  // [dim / 2], scaling (yarn, llama3, linear) already applied; owned by the description
  float factor;     // multiplies cos and sin (yarn's attention factor)
} mob_rope_t;

typedef enum mob_scoring { MOB_SCORE_SIGMOID, MOB_SCORE_SOFTMAX } mob_scoring_t;

typedef struct mob_model_desc {
  char family[32];       // "deepseek_v3", "qwen3", ...
  char architecture[64]; // config.json's architectures[0]
  int hidden, n_layers, vocab;
  int max_position; // tokens that position encoding is defined for; derives max_model_len
  float rms_eps;
  float lora_rms_eps;  // of MLA's q_a and kv_a norms, which transformers fixes whatever rms_norm_eps says
  bool tie_embeddings;   // the head uses the embedding's weights
  mob_dtype_t dtype;     // config.json's torch_dtype: what `--dtype auto` means
  // FP8 block quantisation; 0 when the checkpoint is not quantised. W = fp8 * scale[row / rows][col / cols].
  int quant_block_rows, quant_block_cols;
  bool quant_ue8m0;      // activation scales are rounded up to powers of two
  int bos_id, eos_id;    // config.json's; -1 when absent (generation_config.json may add more, see model.h)

  mob_attn_kind_t attn;
  int n_heads, n_kv_heads;
  int head_dim;   // q and k: qk_nope + qk_rope for MLA
  int v_head_dim;
  int q_lora;     // MLA: 0 = q_proj straight from hidden
  int kv_lora, qk_nope, qk_rope;
  bool qkv_bias;  // GQA: q, k and v have biases. MLA (attention_bias): q_a, kv_a and o have
  bool o_bias;
  bool qk_norm;   // RMSNorm over each head of q and k before rope
  float softmax_scale;
  mob_rope_t rope;

  int intermediate;  // dense layers
  uint8_t *is_moe;   // [n_layers]; owned
  int n_experts, top_k, n_group, topk_group, moe_intermediate;
  int n_shared;      // shared experts, merged: their intermediate is n_shared * moe_intermediate
  bool norm_topk_prob;
  float routed_scale;
  mob_scoring_t scoring;
  bool router_bias;  // e_score_correction_bias: added for the choice, not for the weight
  bool mlp_bias;
} mob_model_desc_t;

void mob_model_desc_clear(mob_model_desc_t *desc); // frees what it owns

// ------------------------------------------------------------------------------------------ weights

typedef enum mob_slot_id {
  MOB_W_EMBED, MOB_W_FINAL_NORM, MOB_W_HEAD,              // outside the layers
  MOB_W_ATTN_NORM, MOB_W_FFN_NORM,                        // [hidden]
  MOB_W_Q, MOB_W_K, MOB_W_V, MOB_W_O,                     // GQA; Q also MLA without q_lora; O both
  MOB_W_Q_BIAS, MOB_W_K_BIAS, MOB_W_V_BIAS, MOB_W_O_BIAS,
  MOB_W_Q_NORM, MOB_W_K_NORM,                             // [head_dim]
  MOB_W_Q_A, MOB_W_Q_A_BIAS, MOB_W_Q_A_NORM, MOB_W_Q_B,   // MLA
  MOB_W_KV_A, MOB_W_KV_A_BIAS, MOB_W_KV_A_NORM, MOB_W_KV_B,
  MOB_W_GATE, MOB_W_UP, MOB_W_DOWN,                       // dense FFN; with `expert` set, of an expert
  MOB_W_ROUTER, MOB_W_ROUTER_BIAS,
  MOB_W_COUNT
} mob_slot_id_t;

enum { MOB_EXPERT_NONE = -1, MOB_EXPERT_SHARED = -2 };

// How tensor parallelism cuts a weight. Rows are outputs, columns are inputs ([out, in], row-major).
typedef enum mob_split {
  MOB_SPLIT_NONE, // every rank holds the whole
  MOB_SPLIT_ROWS, // rank r of n holds rows [r, r + 1) * rows / n
  MOB_SPLIT_COLS, // rank r holds columns [r, r + 1) * cols / n; results are summed over ranks
  MOB_SPLIT_KV,   // rows by kv head; a head is replicated when there are fewer heads than ranks
} mob_split_t;

typedef struct mob_slot {
  mob_slot_id_t id;
  int layer;  // -1 outside the layers
  int expert; // index, MOB_EXPERT_NONE or MOB_EXPERT_SHARED
  char name[128]; // tensor name in the checkpoint; its FP8 scales are NAME + "_scale_inv"
  int64_t rows, cols; // of the whole tensor; vectors are rows x 1
  mob_split_t split;
  bool optional; // may be absent (tied head)
} mob_slot_t;

// The part of a slot that one rank holds, in global rows and columns. FP8 scales are always looked up by the
// global row and column, because a shard may begin or end inside a block.
typedef struct mob_shard {
  int64_t row0, rows, col0, cols;
} mob_shard_t;

// Rank `rank` of `tp`. MOB_E_INVALID, naming slot and sizes, when it does not divide.
mob_status mob_slot_shard(const mob_model_desc_t *desc, const mob_slot_t *slot, int rank, int tp,
                          mob_shard_t *out);

#endif
