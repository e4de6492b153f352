// What a rank's device memory is for: weights, working memory for the largest step, pages.
#include <cstring>

#include "engine/cuda/across.h"
#include "route_many.h"

namespace mob {
namespace {

// The arrays of a rank in one block: the first pass (block nullptr) measures, the second hands out.
struct Arena {
  uint8_t *block;
  size_t used;
  template <class T> void take(T **out, size_t bytes) {
    *out = block ? (T *)(block + used) : nullptr;
    used += (bytes + 1023) / 1024 * 1024;
  }
};

const Group *group_in(const Rank *rank, GroupId id) { // any layer's: all have the same sizes
  for (const Layer &layer : rank->layers)
    if (layer.g[id].m.n) return &layer.g[id];
  return nullptr;
}
size_t max_size(size_t a, size_t b) { return a > b ? a : b; }
size_t group_n(const Rank *rank, GroupId id) {
  size_t most = 0;
  for (const Layer &layer : rank->layers) most = max_size(most, (size_t)layer.g[id].m.n);
  return most;
}
// Room for records of either kind: layers may differ, and bf16 needs the more.
size_t group_records(const Rank *rank, GroupId id, size_t rows) {
  size_t most = 0;
  for (const Layer &layer : rank->layers) {
    const Group &g = layer.g[id];
    if (g.m.n) most = max_size(most, records_bytes(g.f8, (int64_t)rows, g.m.k));
  }
  return most;
}

// The arrays of a rank with the weights and heads of `shapes` go to `r`.
void lay_out(const Exec *exec, const Rank *shapes, Rank *r, Arena *a) {
  const mob_model_desc_t *d = exec->desc;
  const mob_exec_spec_t &s = exec->spec;
  const size_t rows = (size_t)exec->max_rows, hidden = (size_t)d->hidden;
  const size_t heads = (size_t)shapes->heads, chunk = rows < kAttendRows ? rows : kAttendRows;
  a->take(&r->x, rows * hidden * 4);
  a->take(&r->norm_f32, (size_t)kFewTokens * hidden * 4);
  a->take(&r->hidden_records, rows * ((hidden + 255) / 256 * 256) * 2);
  a->take(&r->y, rows * hidden * 2);
  // attention
  if (exec->mla) {
    const size_t width = (size_t)(d->kv_lora + d->qk_rope);
    a->take(&r->a, rows * group_n(shapes, G_A) * 2);
    a->take(&r->q, rows * heads * (size_t)d->head_dim * 2);
    a->take(&r->q_records, group_records(shapes, G_Q, rows));
    if (exec->fast_mla) {
      const size_t blocks = (heads + 63) / 64;
      a->take(&r->tiles, chunk * blocks * 9 * 8192);
      const size_t parts = (size_t)mla_parts((int)chunk, shapes->sms);
      a->take(&r->parts.partial, parts * heads * 512 * 2);
      a->take(&r->parts.lse, parts * heads * 4);
      a->take(&r->parts.of_row, chunk * 2 * 4);
      const size_t keys = (size_t)exec->max_key_blocks;
      a->take(&r->latent_records, records_bytes(true, (int64_t)keys * 64, 512));
      a->take(&r->kv_tiles, keys * heads * 4 * 8192);
      a->take(&r->angles, rows * 32 * sizeof(float2));
    } else {
      a->take(&r->absorbed, chunk * heads * width * 2);
      a->take(&r->latent, chunk * heads * (size_t)d->kv_lora * 4);
      a->take(&r->attn, rows * heads * (size_t)d->v_head_dim * 2);
    }
  } else {
    a->take(&r->q, rows * group_n(shapes, G_QKV) * 2);
    if (exec->fast_gqa) {
      a->take(&r->gqa_partial, gqa_partial_bytes(shapes->sms));
      a->take(&r->query_tiles, (size_t)exec->max_pairs * 128 * heads * (size_t)d->head_dim * 2);
    }
    if (!exec->fast_gqa || d->head_dim != 128) a->take(&r->attn, rows * heads * (size_t)d->v_head_dim * 2);
  }
  a->take(&r->attn_records, group_records(shapes, G_O, rows));
  // feed-forward
  const Group *up = group_in(shapes, G_EXPERT_UP);
  size_t up_bytes = rows * group_n(shapes, G_DENSE_UP) * 2, act = group_records(shapes, G_DENSE_DOWN, rows);
  if (up) {
    const size_t slots = (size_t)(d->top_k + d->n_shared), experts = (size_t)(shapes->experts + d->n_shared);
    const size_t gathered = moe_rows(rows, slots, experts), few = kFewTokens * experts;
    const size_t most = max_size(gathered, few);
    up_bytes = max_size(up_bytes, most * (size_t)up->m.n * 2);
    act = max_size(act, max_size(group_records(shapes, G_EXPERT_DOWN, most), experts * group_records(shapes, G_EXPERT_DOWN, (size_t)padded_rows(kFewTokens))));
    a->take(&r->split_records, rows * ((hidden + 127) / 128 * 128) * 4);
    const Group *router = group_in(shapes, G_ROUTER);
    const size_t parts = (size_t)router_parts(router->m), part_rows = rows < kRouteRows ? rows : kRouteRows;
    a->take(&r->router_logits, max_size(rows, parts * part_rows) * (size_t)d->n_experts * 4);
    a->take(&r->router_words, (size_t)d->n_experts * 4 * kFewRouter);
    a->take(&r->expert_ids, rows * (size_t)d->top_k * 4);
    a->take(&r->expert_weight, rows * slots * 4);
    a->take(&r->expert_row, rows * slots * 4);
    a->take(&r->row_place, gathered * 4);
    a->take(&r->active, (1 + experts) * 4);
    a->take(&r->scratch.segments_partial, segments_partial_floats(shapes->sms) * 4);
    a->take(&r->scratch.segments_done, moe_tiles(rows, slots, experts, kLeastTile) * 4);
    a->take(&r->rows_of, experts * sizeof(ExpertRows));
    a->take(&r->token_tiles, moe_tiles(rows, slots, experts, kLeastTile) * sizeof(TokenTile));
    a->take(&r->gathered, group_records(shapes, G_EXPERT_UP, gathered));
    a->take(&r->expert_y, most * hidden * 2);
  }
  a->take(&r->up, up_bytes);
  a->take(&r->act_records, act);
  // head
  if (s.last_layer == d->n_layers) {
    a->take(&r->head_records, (size_t)kLogitRows * ((hidden + 127) / 128 * 128) * 2);
    if (exec->across) {
      a->take(&r->own_logits, (size_t)kLogitRows * (size_t)across_columns(exec) * 4);
      a->take(&r->gathered_logits, (size_t)s.tp * kGatherRows * (size_t)across_columns(exec) * 4);
      a->take(&r->keys, (size_t)kLogitRows * 8);
    }
    if (!exec->across || shapes->number == 0)
      a->take(&r->logits, (size_t)kLogitRows * (size_t)(shapes->number == 0 ? d->vocab : shapes->outer.g[G_HEAD].m.n) * 4);
    a->take(&r->best, max_size((size_t)kLogitRows * kSampleParts, (size_t)kBestRows * shapes->sms) * 8);
    if (shapes->number == 0) a->take(&r->sampler_block, sampler_bytes(d->vocab, s.max_seqs, kLogitRows, exec->max_logit_rows));
  }
  a->take(&r->ids, (size_t)max_size(rows, kLogitRows) * 4);
  a->take(&r->last_token, (size_t)s.max_seqs * 4);
  a->take(&r->meta, (size_t)exec->table_ints * 4);
  a->take(&r->staged, (size_t)kRing * (size_t)exec->table_ints * 4);
  a->take(&r->turn, 4);
  a->take(&r->one_expert, sizeof(OneExpert));
  if (s.tp > 1 && !exec->across) a->take(&r->inbox, inbox_layout(d->hidden, exec->max_rows).total);
  a->take(&r->scratch.partial, (size_t)shapes->sms * kPartialFloats * 4);
  a->take(&r->scratch.dealt, 2 * 4);
  a->take(&r->scratch.grid, sizeof(GridWords));
}

} // namespace

uint64_t workspace_bytes(const Exec *exec, const Rank *rank) {
  Rank unused = Rank();
  Arena measure = {nullptr, 0};
  lay_out(exec, rank, &unused, &measure);
  return measure.used;
}

mob_status workspace_alloc(const Exec *exec, Rank *r) {
  const uint64_t bytes = workspace_bytes(exec, r);
  CU_TRY(cudaMalloc(&r->workspace, bytes));
  CU_TRY(cudaMemset(r->workspace, 0, bytes));
  Arena arena = {r->workspace, 0};
  lay_out(exec, r, r, &arena);
  if (r->sampler_block)
    sampler_place(&r->sampler, exec->desc->vocab, exec->spec.max_seqs, kLogitRows, exec->max_logit_rows, r->sampler_block);
  const OneExpert one_expert;
  CU_TRY(cudaMemcpy(r->one_expert, &one_expert, sizeof one_expert, cudaMemcpyHostToDevice));
  r->scratch.sms = r->sms;
  r->scratch.waits = r->waits;
  if (r->inbox) CU_TRY(cudaMemset(r->inbox, 0xff, inbox_layout(exec->desc->hidden, exec->max_rows).total)); // nothing is there yet
  CU_TRY(cudaMemset(r->scratch.partial, 0xff, (size_t)r->sms * kPartialFloats * 4));
  if (r->gqa_partial) CU_TRY(cudaMemset(r->gqa_partial, 0xff, gqa_partial_bytes(r->sms)));
  if (r->scratch.segments_partial) CU_TRY(cudaMemset(r->scratch.segments_partial, 0xff, segments_partial_floats(r->sms) * 4));
  if (r->router_words) CU_TRY(cudaMemset(r->router_words, 0xff, (size_t)exec->desc->n_experts * 4 * kFewRouter));
  return MOB_OK;
}

namespace {

mob_status plan_rank(const Exec *exec, const Rank *rank, mob_memory_plan_t *out) {
  const double gib = 1024.0 * 1024 * 1024;
  const mob_exec_spec_t &s = exec->spec;
  *out = mob_memory_plan_t();
  CU_TRY(cudaSetDevice(rank->device));
  size_t free_bytes, total;
  CU_TRY(cudaMemGetInfo(&free_bytes, &total));
  const double share = s.memory_share > 0 && s.memory_share <= 1 ? s.memory_share : 0.9;
  // Graphs, loading and the driver's own growth.
  const uint64_t reserve = (uint64_t)(exec->across ? 768 + kAcrossReserve : 768) << 20, used = total - free_bytes;
  const uint64_t limit = (uint64_t)((double)total * share);
  out->available = limit > used ? limit - used : 0;
  out->weights = weights_bytes(exec, rank);
  out->workspace = workspace_bytes(exec, rank) + reserve;
  out->page_bytes = (uint64_t)(s.last_layer - s.first_layer) * page_bytes(exec->kv_width);
  const int64_t left = (int64_t)out->available - (int64_t)out->weights - (int64_t)out->workspace;
  const int64_t useful = (int64_t)s.max_seqs * ((s.max_len + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS);
  out->pages = left <= 0 ? 0 : left / (int64_t)out->page_bytes;
  const bool all = out->pages >= useful;
  if (all) out->pages = useful;
  snprintf(out->text, sizeof out->text,
           "memory of GPU %d: %.2f GiB (%.0f%% of %.2f GiB, less %.2f GiB in use) - weights %.2f GiB - workspace %.2f GiB = %.2f "
           "GiB for keys and values; a page of %d tokens takes %.1f KiB: %lld pages%s",
           rank->device, (double)out->available / gib, share * 100, (double)total / gib, (double)used / gib,
           (double)out->weights / gib, (double)out->workspace / gib, (double)left / gib, MOB_PAGE_TOKENS,
           (double)out->page_bytes / 1024, (long long)out->pages, all ? " (enough for every sequence at its longest)" : "");
  return MOB_OK;
}

} // namespace

// The plan of the GPU with the least room: all ranks have the same pages.
mob_status memory_plan(Exec *exec, mob_memory_plan_t *out) {
  for (const Rank &rank : exec->ranks) {
    mob_memory_plan_t plan;
    MOB_TRY(plan_rank(exec, &rank, &plan));
    if (rank.index == 0 || plan.pages < out->pages) *out = plan;
  }
  return MOB_OK;
}

} // namespace mob
