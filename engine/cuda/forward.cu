// One step on one rank: which kernels, in which order, over which buffers.
#include <algorithm>

#include "engine/cuda/across.h"
#include "best.h"
#include "experts_few.h"
#include "norm_shard.h"
#include "route_many.h"

namespace mob {
namespace {

struct Pass {
  Exec *exec;
  Rank *r;
  const mob_model_desc_t *d;
  int rows;
  StepRows step;
  Rope rope;
  cudaStream_t stream;
  // What the last block left to be added to the residual stream.
  const bf16 *add;
  const float *add_bias;
  bool experts;
  int sums; // over ranks, so far
  mob_status status; // of sums across processes: the first failure
  bool embed = false;                // the residual stream begins with the next norm
  const float *stream_at = nullptr;  // where it is, if not in r->x
  bool sharded = false;              // rows have owners (norm_shard.h): this rank is it of `own` rows, which begin at `first`
  int first = 0, own = 0;
  bool parts_sent = false;           // of `add`
};

// Which of a rank's buffers a norm's records go to, where rows have owners, and who needs them.
using Buffer = uint8_t *Rank::*;
struct Sent {
  Buffer a = &Rank::hidden_records, b = nullptr;
  bool a_own = false, b_own = false; // the owner alone
  bool meet = true;                  // no share_shards() follows before they are read
};

StepRows step_rows(const Exec *exec, const Rank *r, int from) {
  const int *m = r->meta;
  return {m, m + exec->layout.token + from, m + exec->layout.position + from, m + exec->layout.table + from,
          m + exec->layout.pages, r->last_token, r->waits};
}

Records records(uint8_t *data, const Group &g, int rows) { return {data, padded_rows(rows), g.f8}; }

// Shared experts are computed with the routed ones unless those are whole on ranks.
int shared_slots(const Pass &p) { return p.exec->spec.expert_parallel ? 0 : p.d->n_shared; }
int expert_slots(const Pass &p) { return p.d->top_k + shared_slots(p); }

NormIn norm_in(const Pass &p, const float *w, float eps) {
  NormIn in = {};
  in.x = p.r->x;
  in.from = p.stream_at;
  if (p.embed && !p.exec->across) {
    in.embed.ranks = p.exec->spec.tp;
    in.embed.vocab = p.d->vocab;
    for (const Rank &rank : p.exec->ranks) in.embed.part[rank.number] = rank.embed;
  }
  in.step = p.step;
  in.add = p.add;
  in.bias = p.add_bias;
  if (p.experts) {
    in.expert_y = p.r->expert_y;
    in.expert_row = p.r->expert_row;
    in.expert_weight = p.r->expert_weight;
    in.expert_slots = expert_slots(p);
  }
  in.w = w;
  in.eps = eps;
  in.hidden = p.d->hidden;
  return in;
}

// This rank's own memory at `member`, then the next rank's, ...
template <class T> void on_ranks(const Pass &p, T *Rank::*member, T *(&out)[kMaxRanks]) {
  const int tp = p.exec->spec.tp;
  for (int i = 0; i < tp; i++) out[i] = p.exec->ranks[(size_t)((p.r->index + i) % tp)].*member;
}

// add_and_norm() where rows have owners. `rows`: of the step, instead of all, `count` of them.
void norm_owned(const Pass &p, const NormIn &in, const NormOut &out, const Sent &sent, const int *rows, int count) {
  NormShard n = {};
  n.in = in;
  n.in.rows = rows;
  n.out = out;
  n.a_own = sent.a_own;
  n.b_own = sent.b_own;
  n.meet = sent.meet;
  n.sent = p.parts_sent;
  n.total = p.rows;
  n.count = count;
  if (out.a.data) on_ranks(p, sent.a, n.a);
  if (out.b.data) on_ranks(p, sent.b, n.b);
  if (!in.w && p.r->index > 0) n.x[p.exec->spec.tp - p.r->index] = p.exec->ranks[0].x; // which sends them on
  norm_shard(n, p.r->peers, p.r->sms, p.stream);
}

void nothing_to_add(Pass *p) {
  p->add = nullptr;
  p->add_bias = nullptr;
  p->experts = p->embed = p->parts_sent = false;
  p->stream_at = nullptr;
}

// What the last block left goes to the residual stream, summed over ranks; then the norm.
void add_and_norm(Pass *p, const float *w, float eps, const NormOut &out, const Sent &sent) {
  NormIn in = norm_in(*p, w, eps);
  if (p->sharded) {
    norm_owned(*p, in, out, sent, nullptr, 0);
    nothing_to_add(p);
    return;
  }
  if (p->embed && p->exec->across && p->status == MOB_OK) p->status = across_embed(p->exec, p->r, &in, p->rows);
  const bool shared = p->exec->spec.tp > 1 && (p->add || p->experts);
  if (shared && !p->exec->across) {
    norm_rows_ranks(in, out, p->r->peers, &p->sums, p->rows, p->r->sms, p->stream);
  } else {
    if (shared && p->status == MOB_OK) p->status = across_sum(p->exec, p->r, &in, p->rows);
    if (p->status == MOB_OK) norm_rows(in, out, p->rows, p->stream);
  }
  nothing_to_add(p);
}

// Rows of `width` elements, of which this rank has made its own, are to go to all.
template <class T> void add_shared(const Pass &p, T *Rank::*member, int width, ShareShards *s) {
  const size_t row_bytes = (size_t)width * sizeof(T), at = (size_t)p.first * row_bytes;
  T *all[kMaxRanks] = {};
  on_ranks(p, member, all);
  s->from[s->count] = (const uint8_t *)all[0] + at;
  for (int i = 1; i < p.exec->spec.tp; i++) s->to[s->count][i - 1] = (uint8_t *)all[i] + at;
  s->bytes[s->count] = (size_t)p.own * row_bytes;
  s->most += (size_t)shard_each(p.rows, p.exec->spec.tp) * row_bytes;
  s->count++;
}

// ------------------------------------------------------------------------------------------ attention

// The last pair of o_proj's columns is half a pair where heads are odd: no kernel writes the other half, and zero weights times what
// older steps left there (a NaN) is not zero.
void clear_odd_head(const Records &out, int heads, cudaStream_t stream) {
  const size_t rows = (size_t)out.mp;
  uint8_t *pair = out.data + (size_t)(heads / 2) * rows * 264;
  cudaMemsetAsync(pair + rows * 128, 0, rows * 128, stream);
  cudaMemsetAsync(pair + rows * 260, 0, rows * 4, stream);
}

// Queries in absorbed form and keys of few rows, in one kernel.
bool queries_few(const Pass &p, const Layer &layer, const MlaPrepare &prepare) {
  const Rank *r = p.r;
  if (!p.exec->fast_mla || !mla_queries_few_serves(prepare, layer.g[G_Q].m, p.rows)) return false;
  launch_label = "queries";
  mla_queries_few({prepare, layer.g[G_Q].m, layer.uk, r->heads, r->sms, r->tiles, r->scratch.partial, r->waits}, p.rows, p.stream);
  return true;
}

// `absorbed`: the queries of all rows are, already.
void attend_fast(const Pass &p, const Layer &layer, const uint8_t *cache, const Records &out, bool absorbed) {
  Rank *r = p.r;
  const mob_model_desc_t *d = p.d;
  if (r->heads % 2) clear_odd_head(out, r->heads, p.stream);
  const PrefillPlan &plan = p.exec->plan;
  for (const std::pair<int, int> &range : plan.absorbed) {
    for (int from = range.first; from < range.second; from += kAttendRows) {
      const int n = range.second - from < kAttendRows ? range.second - from : kAttendRows;
      const AbsorbMla absorb = {layer.uk, layer.g[G_KV_B].m.data, r->heads, r->sms, step_rows(p.exec, r, from), p.rope};
      if (!absorbed) absorb_q_mla(absorb, r->q + (size_t)from * r->heads * d->head_dim, r->tiles, n, p.stream);
      const AttendMla attend = {r->tiles, r->heads, d->softmax_scale, cache, absorb.step, plan.single && n == p.rows, r->parts, r->sms};
      if (n == p.rows && mla_attend_few_serves(r->heads, n, plan.few_keys)) mla_attend_few(attend, n, p.stream);
      else attend_mla(attend, n, p.stream);
      if (n == p.rows && n <= kFewRows) mla_values_few(absorb, r->parts, out, n, d->quant_ue8m0, p.stream);
      else absorb_v_mla(absorb, r->parts, out, from, n, d->quant_ue8m0, p.stream);
    }
  }
  if (plan.pairs == 0) return;
  const int *meta = r->meta;
  const MetaLayout &at = p.exec->layout;
  const Records latents = {r->latent_records, plan.key_blocks * 64, 1};
  launch_label = "prefill";
  prefill_prepare({cache, meta + at.key_pages, latents, d->quant_ue8m0, p.step, p.rope, r->angles}, plan.key_blocks, p.rows, p.stream);
  linear_kv_tiles(layer.g[G_KV_B].m, latents, r->kv_tiles, plan.key_blocks, plan.key_blocks * 64, r->scratch, p.stream);
  attend_prefill({r->q, r->angles, p.rope.interleaved != 0, r->kv_tiles, r->heads, plan.key_blocks, d->softmax_scale, cache, meta + at.key_pages,
                  (const PrefillPair *)(meta + at.pairs), out, d->quant_ue8m0, r->scratch.dealt, r->sms, 0},
                 plan.pairs, p.stream);
}

void attend_any_mla(const Pass &p, const Layer &layer, const uint8_t *cache, const Records &out) {
  Rank *r = p.r;
  const mob_model_desc_t *d = p.d;
  const int width = d->kv_lora + d->qk_rope, v_width = r->heads * d->v_head_dim;
  for (int from = 0; from < p.rows; from += kAttendRows) {
    const int n = p.rows - from < kAttendRows ? p.rows - from : kAttendRows;
    const AbsorbPlain absorb = {layer.kv_b, r->heads, d->qk_nope, d->qk_rope, d->v_head_dim, d->kv_lora,
                                step_rows(p.exec, r, from), p.rope};
    absorb_q_plain(absorb, r->q + (size_t)from * r->heads * d->head_dim, r->absorbed, n, p.stream);
    const AttendPlain attend = {r->absorbed, r->heads * width, width, r->heads, r->heads, width, d->kv_lora, 0, 0, 0,
                                d->softmax_scale, cache, width, step_rows(p.exec, r, from)};
    attend_plain(attend, r->latent, nullptr, n, p.stream);
    absorb_v_plain(absorb, r->latent, r->attn + (size_t)from * v_width, n, p.stream);
  }
  pack_rows(r->attn, v_width, v_width, out, layer.g[G_O].m.k, p.rows, d->quant_ue8m0, p.stream);
}

void attend_grouped(const Pass &p, const Layer &layer, uint8_t *cache, const Records &out) {
  Rank *r = p.r;
  const mob_model_desc_t *d = p.d;
  const Group &in = layer.g[G_QKV], &o = layer.g[G_O];
  const int ld = in.m.n, dim = d->head_dim, v_width = r->heads * d->v_head_dim;
  const GqaPrepare prepare = {r->q, r->q + in.at[1], r->q + in.at[2], ld, ld, ld, r->heads, r->kv_heads, dim, layer.v[MOB_W_Q_BIAS],
                              layer.v[MOB_W_K_BIAS], layer.v[MOB_W_V_BIAS], layer.v[MOB_W_Q_NORM], layer.v[MOB_W_K_NORM],
                              d->rms_eps, cache, p.exec->kv_width, p.step, p.rope};
  const bool by_rows = !p.exec->fast_gqa || (o.f8 && dim != 128); // a head is no whole block of e4m3
  if (p.exec->fast_gqa) {
    const PrefillPlan &plan = p.exec->plan;
    const int *tile_row = plan.pairs ? r->meta + p.exec->layout.tile_row : nullptr;
    const HeadsOut heads = {out, by_rows ? v_width : o.m.k, d->quant_ue8m0, by_rows ? r->attn : nullptr, v_width};
    const bool one_kernel = plan.single && !plan.pairs; // no row reads what another one writes
    if (!one_kernel) gqa_prepare_fast(prepare, tile_row, r->query_tiles, heads, p.rows, p.stream);
    if (!plan.absorbed.empty())
      attend_gqa({r->q, ld, r->heads, r->kv_heads, dim, d->softmax_scale, cache, p.step, tile_row, plan.single, heads, r->gqa_partial,
                  r->waits, r->sms, one_kernel, prepare},
                 p.rows, p.stream);
    if (plan.pairs)
      attend_gqa_prefill({r->query_tiles, r->heads, r->kv_heads, dim, d->softmax_scale, cache, p.step,
                          (const PrefillPair *)(r->meta + p.exec->layout.pairs), heads},
                         plan.pairs, p.stream);
  } else {
    gqa_prepare(prepare, p.rows, p.stream);
    attend_plain({r->q, ld, dim, r->heads, r->heads / r->kv_heads, dim, d->v_head_dim, 2 * dim, dim, 2 * dim, d->softmax_scale,
                  cache, p.exec->kv_width, p.step},
                 nullptr, r->attn, p.rows, p.stream);
  }
  if (by_rows) pack_rows(r->attn, v_width, v_width, out, o.m.k, p.rows, d->quant_ue8m0, p.stream);
}

// Of this rank's own rows q_a and kv_a, and what follows them up to q_b: everyone's go to everyone. False: what follows is still to be done.
bool prepare_owned(const Pass &p, int index, const Matrix &w, const Records &x, const MlaPrepare &prepare) {
  Rank *r = p.r;
  if (p.own) linear(w, x, r->a + (size_t)p.first * (size_t)w.n, w.n, false, p.own, 1, r->scratch, p.stream);
  ShareShards share = {};
  const bool all = mla_prepare_can_share(prepare);
  if (all) {
    MlaShared to = {p.first, p.own, p.exec->spec.tp, {}, {}};
    on_ranks(p, &Rank::q_records, to.q);
    on_ranks(p, &Rank::cache, to.cache);
    for (int i = 0; i < to.ranks; i++) to.cache[i] += (size_t)index * r->layer_cache;
    mla_prepare_shared(prepare, to, p.stream);
  } else {
    add_shared(p, &Rank::a, w.n, &share);
  }
  share_shards(share, r->peers, r->sms, p.stream);
  return all;
}

void attention(Pass *p, int index) {
  Rank *r = p->r;
  const Layer &layer = r->layers[(size_t)index];
  const mob_model_desc_t *d = p->d;
  const Group &in = layer.g[p->exec->mla ? G_A : G_QKV], &o = layer.g[G_O], &q = layer.g[G_Q];
  uint8_t *cache = r->cache + (size_t)index * r->layer_cache;
  const Records hidden = records(r->hidden_records, in, p->rows), attn = records(r->attn_records, o, p->rows);
  const bool q_from_hidden = p->exec->mla && !d->q_lora;
  Records second = {nullptr, 0, 0}; // for a q_proj of the other kind
  if (q_from_hidden && q.f8 != in.f8) second = records(r->split_records ? r->split_records : r->attn_records, q, p->rows);
  // Where rows have owners, these make what is as short as a norm's records, and the same on all ranks, of their own rows only.
  const bool own_a = p->sharded && p->exec->mla && d->q_lora;
  const NormOut out = {own_a ? records(hidden.data, in, p->own) : hidden, in.m.k, second, q.m.k, false, nullptr, d->quant_ue8m0};
  launch_label = "attention";
  add_and_norm(p, layer.v[MOB_W_ATTN_NORM], d->rms_eps, out,
               {&Rank::hidden_records, r->split_records ? &Rank::split_records : &Rank::attn_records, own_a, false, !own_a});
  if (p->exec->mla) {
    launch_label = "a";
    if (!own_a) linear(in.m, hidden, r->a, in.m.n, false, p->rows, 1, r->scratch, p->stream);
    const Records q_in = records(r->q_records, q, p->rows);
    const MlaPrepare prepare = {r->a, in.m.n, d->q_lora, in.at[1], d->kv_lora, d->qk_rope, layer.a_bias, layer.v[MOB_W_Q_A_NORM],
                                layer.v[MOB_W_KV_A_NORM], d->lora_rms_eps, q_in, q.m.k, d->quant_ue8m0, cache, p->step, p->rope};
    const bool prepared = own_a && prepare_owned(*p, index, in.m, out.a, prepare);
    const bool absorbed = !own_a && queries_few(*p, layer, prepare);
    if (!absorbed) {
      if (!prepared) mla_prepare(prepare, p->rows, p->stream);
      launch_label = "q_b";
      linear(q.m, q_from_hidden ? (second.data ? second : hidden) : q_in, r->q, q.m.n, false, p->rows, 1, r->scratch, p->stream);
    }
    if (p->exec->fast_mla) attend_fast(*p, layer, cache, attn, absorbed);
    else attend_any_mla(*p, layer, cache, attn);
  } else {
    launch_label = "qkv";
    linear(in.m, hidden, r->q, in.m.n, false, p->rows, 1, r->scratch, p->stream);
    attend_grouped(*p, layer, cache, attn);
  }
  launch_label = "o";
  p->parts_sent = p->sharded && linear_can_send(o.m, p->rows);
  if (p->parts_sent) linear_parts(o.m, attn, parts_out(r->peers, r->y, d->hidden, p->rows), p->rows, r->scratch, p->stream);
  else linear(o.m, attn, r->y, o.m.n, false, p->rows, 1, r->scratch, p->stream);
  p->add = r->y;
  p->add_bias = layer.v[MOB_W_O_BIAS];
}

// --------------------------------------------------------------------------------------- feed-forward

// The activation with the down projection, as of a list of one expert: a CTA has all columns of 64 outputs, which must keep most SMs busy.
bool dense_down_serves(const Pass &p, const Group &up, const Group &down) {
  const int blocks = (down.m.n + kTileRows - 1) / kTileRows, waves = (blocks + p.r->sms - 1) / p.r->sms;
  return down.f8 && p.rows <= kFewDown && 3 * blocks >= 2 * waves * p.r->sms && up.rows[0] % 8 == 0 && up.at[1] % 8 == 0;
}

// One network for all rows: a dense layer's, or the part of shared experts that is here.
void dense_network(Pass *p, const Layer &layer, const Records &hidden) {
  Rank *r = p->r;
  const mob_model_desc_t *d = p->d;
  const Group &up = layer.g[G_DENSE_UP], &down = layer.g[G_DENSE_DOWN];
  const Records act = records(r->act_records, down, p->rows);
  launch_label = "dense up";
  const bool one = dense_down_serves(*p, up, down);
  if (!down.f8 && linear_can_gate(up.m, up.rows[0], up.at[1], down.m.k)) {
    linear_gated(up.m, (int)up.rows[0], up.at[1], hidden, act, p->rows, r->scratch, p->stream);
  } else {
    linear(up.m, hidden, r->up, up.m.n, false, p->rows, 1, r->scratch, p->stream);
    if (!one) activate({r->up, up.m.n, up.at[1], (int)up.rows[0], down.m.k, act, 0, 0, nullptr, d->quant_ue8m0}, p->rows, p->stream);
  }
  launch_label = "dense down";
  if (one) {
    const OneExpert *list = r->one_expert;
    linear_experts_down(down.m, {r->up, up.m.n, up.at[1], (int)up.rows[0], &list->active, &list->id, list->row, list->weight, p->step.count, 1, 0,
                                 d->quant_ue8m0},
                        r->y, p->rows, r->sms, p->stream);
  } else {
    linear(down.m, act, r->y, down.m.n, false, p->rows, 1, r->scratch, p->stream);
  }
  p->add = r->y;
}

void dense_ffn(Pass *p, const Layer &layer) {
  const Group &up = layer.g[G_DENSE_UP];
  const Records hidden = records(p->r->hidden_records, up, p->rows);
  launch_label = "ffn";
  add_and_norm(p, layer.v[MOB_W_FFN_NORM], p->d->rms_eps, {hidden, up.m.k, {nullptr, 0, 0}, 0, false, nullptr, p->d->quant_ue8m0}, Sent());
  dense_network(p, layer, hidden);
}

// What every plan says.
MoePlan plan_of(const Pass &p, int shared) {
  MoePlan plan = {};
  plan.ids = p.r->expert_ids;
  plan.count = p.step.count;
  plan.top_k = p.d->top_k;
  plan.first = p.r->first_expert;
  plan.experts = p.r->experts;
  plan.shared = shared;
  plan.rows = p.rows;
  plan.active = p.r->active;
  plan.active_ids = p.r->active + 1;
  plan.expert_row = p.r->expert_row;
  plan.elsewhere = p.exec->spec.expert_parallel;
  return plan;
}

// Logits on tensor cores, in parts by columns unless the rows are many; then the routes. Of `rows` rows from `first` on.
void route_rows(const Pass &p, const Matrix &w, const Records &split, const RouterSpec &spec, int first, int rows) {
  Rank *r = p.r;
  const int slots = expert_slots(p);
  RouterParts logits = {r->router_logits, 1, 0};
  if (rows > kRouteRows) {
    linear(w, split, r->router_logits, spec.experts, true, rows, 2, r->scratch, p.stream);
  } else {
    logits = {r->router_logits, router_parts(w), (size_t)rows * spec.experts};
    router_many(w, split, r->router_logits, rows, p.stream);
  }
  route(spec, logits, r->expert_ids + first * spec.top_k, r->expert_weight + first * slots, slots, rows, p.stream);
}

// The routes of this rank's own rows, then everyone's from everyone.
void route_owned(const Pass &p, const Matrix &w, const Records &split, const RouterSpec &spec) {
  if (p.own) route_rows(p, w, split, spec, p.first, p.own);
  ShareShards share = {};
  add_shared(p, &Rank::expert_ids, spec.top_k, &share);
  add_shared(p, &Rank::expert_weight, expert_slots(p), &share);
  share_shards(share, p.r->peers, p.r->sms, p.stream);
}

const mob_routes_t *routes_of(const Exec *exec) { // of a check, in which no kernel is left out
  return exec->spec.routes && exec->spec.routes->on ? exec->spec.routes : nullptr;
}

void moe_ffn(Pass *p, const Layer &layer) {
  Rank *r = p->r;
  const mob_model_desc_t *d = p->d;
  const Group &up = layer.g[G_EXPERT_UP], &down = layer.g[G_EXPERT_DOWN], &router = layer.g[G_ROUTER];
  const bool few_router = p->rows <= kFewRouter && d->n_experts <= kFewExperts;
  const int shared = shared_slots(*p), experts = r->experts + shared, slots = expert_slots(*p);
  const Records hidden = records(r->hidden_records, up, p->rows);
  // A slice of shared experts may be bf16 where whole experts are FP8: it reads the first half of the router's two.
  const bool shared_b16 = shared < d->n_shared && up.f8 && !layer.g[G_DENSE_UP].f8;
  const mob_routes_t *routes = routes_of(p->exec);
  const int index = (int)(&layer - r->layers.data());
  const bool own_routes = p->sharded && !shared_b16 && !routes;
  const Records split = {few_router && !shared_b16 && !routes ? nullptr : r->split_records, padded_rows(own_routes ? p->own : p->rows), 0};
  const RouterSpec spec = {d->n_experts, d->top_k, d->n_group, d->topk_group, d->scoring == MOB_SCORE_SIGMOID, d->norm_topk_prob,
                           d->routed_scale, layer.v[MOB_W_ROUTER_BIAS]};
  MoePlan plan = plan_of(*p, shared);
  NormOut normed = {hidden, up.m.k, split, router.m.k, true, few_router ? r->norm_f32 : nullptr, d->quant_ue8m0};
  const NormIn in = norm_in(*p, layer.v[MOB_W_FFN_NORM], d->rms_eps);
  const RouteFew route_few_rows = {spec, layer.router, r->router_words, r->expert_ids, r->expert_weight, slots, plan, r->waits};
  launch_label = "ffn";
  if (few_router && p->exec->spec.tp == 1 && norm_route_serves(in, normed)) {
    normed.f32 = nullptr;
    norm_route_few(route_few_rows, in, normed, r->norm_f32, p->rows, p->stream);
    p->add = nullptr;
    p->add_bias = nullptr;
    p->stream_at = r->norm_f32;
    if (shared < d->n_shared) dense_network(p, layer, shared_b16 ? split : hidden);
  } else {
    add_and_norm(p, layer.v[MOB_W_FFN_NORM], d->rms_eps, normed,
                 {&Rank::hidden_records, &Rank::split_records, false, own_routes, !own_routes || shared < d->n_shared});
    if (shared < d->n_shared) dense_network(p, layer, shared_b16 ? split : hidden);
    launch_label = "router";
    if (few_router) route_few(route_few_rows, r->norm_f32, d->hidden, p->rows, p->stream);
    else if (own_routes) route_owned(*p, router.m, split, spec);
    else route_rows(*p, router.m, split, spec, 0, p->rows);
  }
  if (routes && p->status == MOB_OK) p->status = routes_exchange(p->exec, r, index, spec, router.m, split, slots, p->rows);
  const int most = p->rows * d->top_k < r->experts ? p->rows * d->top_k : r->experts, active = most + shared;
  const ExpertsFew whole = {up.m, down.m, (int)up.rows[0], up.at[1], hidden, r->act_records, plan.active, plan.active_ids, r->experts, shared,
                            plan.expert_row, r->expert_weight, plan.count, slots, d->quant_ue8m0};
  // In one launch with the sum over experts, unless that is not all that the residual stream gets.
  const bool one = !p->add && experts_few_serves(whole, p->rows, active), few = one || p->rows <= kFewTokens;
  if (few) {
    if (!few_router || routes) moe_plan_few(plan, p->stream);
    if (one) {
      launch_label = "experts";
      experts_few(whole, r->y, p->rows, active, r->scratch, p->stream);
      if (routes && p->status == MOB_OK) p->status = routes_count(p->exec, r, index, shared, few);
      p->add = r->y;
      return;
    }
    launch_label = "expert up";
    linear_experts_few(up.m, plan.active_ids, plan.active, hidden, 0, r->up, p->rows, r->experts, shared, r->scratch, p->stream);
    // With all that stands before and behind it, unless that is not all that the residual stream gets.
    if (!p->add && p->rows <= kFewDown && active <= kMostActive && up.rows[0] % 8 == 0 && up.at[1] % 8 == 0) {
      launch_label = "expert down";
      linear_experts_down(down.m, {r->up, up.m.n, up.at[1], (int)up.rows[0], plan.active, plan.active_ids, plan.expert_row, r->expert_weight,
                                   plan.count, slots, 0, d->quant_ue8m0},
                          r->y, p->rows, r->sms, p->stream);
      if (routes && p->status == MOB_OK) p->status = routes_count(p->exec, r, index, shared, few);
      p->add = r->y;
      return;
    }
    const Records act = records(r->act_records, down, p->rows);
    const size_t stride = records_bytes(down.f8, act.mp, down.m.k);
    activate({r->up, up.m.n, up.at[1], (int)up.rows[0], down.m.k, act, stride, p->rows, plan.active, d->quant_ue8m0},
             active * p->rows, p->stream);
    launch_label = "expert down";
    linear_experts_few(down.m, plan.active_ids, plan.active, act, stride, r->expert_y, p->rows, r->experts, shared, r->scratch,
                       p->stream);
  } else {
    const bool gated = segments_can_gate(up.rows[0], up.at[1], down.m.k), both = gated && up.f8 == down.f8;
    plan.most = segments_most((double)p->rows * d->top_k / d->n_experts, up.f8 && down.f8);
    plan.tiles = r->token_tiles;
    plan.gathered = r->active + 1;
    plan.place = r->row_place;
    plan.rows_of = r->rows_of;
    const TileRows gathered = {r->gathered, (int)column_pairs(up.m), up.f8}, act = {r->act_records, (int)column_pairs(down.m), down.f8};
    if (moe_plan_gather_serves(plan)) {
      moe_plan_gather(hidden, plan, gathered, p->stream);
    } else {
      moe_plan_many(plan, p->stream);
      moe_gather(hidden, plan, gathered, p->stream);
    }
    launch_label = "expert up";
    if (both) {
      linear_segments_both(up.m, (int)up.rows[0], up.at[1], down.m, plan.tiles, plan.active, gathered.data, act, d->quant_ue8m0, r->expert_y,
                           plan.most, r->scratch, p->stream);
    } else if (gated) {
      linear_segments_gated(up.m, (int)up.rows[0], up.at[1], plan.tiles, plan.active, gathered.data, act, d->quant_ue8m0, plan.most, r->scratch,
                            p->stream);
    } else {
      linear_segments(up.m, plan.tiles, plan.active, gathered.data, r->up, plan.most, r->scratch, p->stream);
      activate({r->up, up.m.n, up.at[1], (int)up.rows[0], down.m.k, {nullptr, 0, down.f8}, 0, 0, nullptr, d->quant_ue8m0, plan.gathered,
                plan.place, act},
               (int)moe_rows((size_t)p->rows, (size_t)slots, (size_t)experts), p->stream);
    }
    launch_label = "expert down";
    if (!both) linear_segments(down.m, plan.tiles, plan.active, act.data, r->expert_y, plan.most, r->scratch, p->stream);
  }
  if (routes && p->status == MOB_OK) p->status = routes_count(p->exec, r, index, shared, few);
  p->experts = true;
}

} // namespace

void step_begins(const Exec *exec, const Rank *r) {
  launch_label = "tables";
  take_tables({r->staged, exec->table_ints, kRing, r->turn}, r->meta, r->stream);
}

// Of the step, on rank 0: what kernels of the head have not told the host themselves.
static void step_ends(const Exec *exec, const Rank *r, int logit_rows, bool plain) {
  if (r->index != 0 || (plain && logit_rows && !exec->across)) return;
  launch_label = "ids";
  tell_host((const StepHead *)r->meta, r->ids, logit_rows, r->stream);
}

// All layers; what the last block left is still to be added.
static Pass layers(Exec *exec, Rank *r, int rows) {
  const mob_model_desc_t *d = exec->desc;
  Pass p = {exec, r, d, rows, step_rows(exec, r, 0), {r->inv_freq, d->rope.dim, d->rope.interleaved, d->rope.factor}, r->stream,
            nullptr, nullptr, false, 0, MOB_OK};
  p.embed = exec->spec.first_layer == 0;
  if (!exec->across) step_begins(exec, r);
  if (!exec->across && shard_serves(rows, exec->spec.tp)) {
    p.sharded = true;
    p.first = shard_first(rows, exec->spec.tp, r->index);
    p.own = shard_rows(rows, exec->spec.tp, r->index);
  }
  for (int i = 0; i < (int)r->layers.size(); i++) {
    attention(&p, i);
    if (d->is_moe[exec->spec.first_layer + i]) moe_ffn(&p, r->layers[(size_t)i]);
    else dense_ffn(&p, r->layers[(size_t)i]);
  }
  return p;
}

void sample_slots(Exec *exec, Rank *r, int first, int rows) {
  const mob_model_desc_t *d = exec->desc;
  const Sampler &s = r->sampler;
  sample_rows({r->logits, d->vocab, d->vocab, r->meta + exec->layout.slot + first, r->meta + exec->layout.wanted + first, s.slot, s.counts,
               s.allowed, s.allowed_words, r->best, s.groups, r->ids + first, r->last_token, s.results + first},
              rows, r->stream);
}

static NormOut head_input(const Rank *r, int rows) {
  const Group &g = r->outer.g[G_HEAD];
  return {records(r->head_records, g, rows), g.m.k, {nullptr, 0, 0}, 0, false, nullptr, false};
}

// From rows that are normed.
static mob_status head_normed(Exec *exec, Rank *r, int first, int rows, bool plain) {
  const mob_model_desc_t *d = exec->desc;
  const int *slots = r->meta + exec->layout.slot + first, *wanted = r->meta + exec->layout.wanted + first;
  const Group &g = r->outer.g[G_HEAD];
  const Records x = head_input(r, rows).a;
  launch_label = "head";
  const bool alone = exec->spec.tp == 1;
  const int ld = exec->across ? across_columns(exec) : r->number == 0 ? d->vocab : g.m.n; // rank 0 has room for all columns
  const int vocab0 = (int)((int64_t)d->vocab * r->number / exec->spec.tp);
  const Told told = {r->index == 0 ? (const StepHead *)r->meta : nullptr, first};
  RowKeys best = {};
  if (plain && !exec->across && rows <= kBestRows) {
    best = linear_best(g.m, x, r->best, rows, r->scratch, r->stream);
  } else {
    linear(g.m, x, exec->across ? r->own_logits : r->logits, ld, true, rows, 1, r->scratch, r->stream);
    if (plain && !exec->across) best = logits_best(r->logits, g.m.n, ld, r->best, rows, r->stream);
  }
  if (exec->across) {
    MOB_TRY(across_sample(exec, r, first, rows, plain));
  } else if (plain && alone) {
    pick(best, slots, r->ids + first, r->last_token, told, rows, r->stream);
  } else if (plain) {
    pick_ranks(r->peers, first / kLogitRows, best, vocab0, slots, r->ids + first, r->last_token, told, rows, r->stream);
  } else {
    float *whole = exec->ranks[0].logits + vocab0;
    if (!alone) gather_logits(r->peers, r->logits, g.m.n, whole, d->vocab, rows, r->stream);
    if (r->number == 0) sample_slots(exec, r, first, rows);
    if (!alone) share_ids(r->peers, slots, wanted, r->ids + first, r->last_token, rows, r->stream);
  }
  CU_TRY(cudaGetLastError());
  return MOB_OK;
}

// From the residual stream, which is whole.
static mob_status head(Exec *exec, Rank *r, const int *row_list, int first, int rows, bool plain) {
  NormIn in = {};
  in.x = r->x;
  in.rows = row_list;
  in.w = r->outer.v[MOB_W_FINAL_NORM];
  in.eps = exec->desc->rms_eps;
  in.hidden = exec->desc->hidden;
  launch_label = "head";
  norm_rows(in, head_input(r, rows), rows, r->stream);
  return head_normed(exec, r, first, rows, plain);
}

static NormIn head_norm(const Pass &p) { return norm_in(p, p.r->outer.v[MOB_W_FINAL_NORM], p.d->rms_eps); }
static const Sent kHeadSent = {&Rank::head_records};

mob_status forward(Exec *exec, Rank *r, int rows, int logit_rows, bool plain) {
  const bool last = exec->spec.last_layer == exec->desc->n_layers;
  Pass p = layers(exec, r, rows);
  const bool listed = last && p.sharded; // the last sum is of rows whose logits are wanted
  launch_label = "last";
  if (!listed) add_and_norm(&p, nullptr, 0, NormOut(), Sent());
  else if (!logit_rows) share_shards({}, r->peers, r->sms, p.stream); // no rank is a step ahead of another
  MOB_TRY(p.status);
  CU_TRY(cudaGetLastError());
  for (int first = 0; last && first < logit_rows; first += kLogitRows) {
    const int *list = r->meta + exec->layout.row + first, n = std::min(kLogitRows, logit_rows - first);
    if (listed) {
      launch_label = "head";
      norm_owned(p, head_norm(p), head_input(r, n), kHeadSent, list, n);
      MOB_TRY(head_normed(exec, r, first, n, plain));
    } else {
      MOB_TRY(head(exec, r, list, first, n, plain));
    }
  }
  step_ends(exec, r, last ? logit_rows : 0, plain);
  return MOB_OK;
}

mob_status forward_graph(Exec *exec, Rank *r, int rows, bool plain) {
  const bool few = exec->fast_mla && mla_attend_few_serves(r->heads, rows, exec->plan.few_keys);
  const int key = 4 * rows + 2 * few + !plain;
  auto found = r->graphs.find(key);
  if (found == r->graphs.end()) {
    cudaGraph_t graph;
    CU_TRY(cudaStreamBeginCapture(r->stream, cudaStreamCaptureModeThreadLocal));
    mob_status status;
    if (exec->spec.last_layer == exec->desc->n_layers) { // the last sum and the head's norm in one kernel
      Pass p = layers(exec, r, rows);
      launch_label = "head";
      add_and_norm(&p, r->outer.v[MOB_W_FINAL_NORM], exec->desc->rms_eps, head_input(r, rows), kHeadSent);
      status = p.status;
      if (status == MOB_OK) status = head_normed(exec, r, 0, rows, plain);
      step_ends(exec, r, rows, plain);
    } else {
      status = forward(exec, r, rows, 0, plain);
    }
    const cudaError_t error = cudaStreamEndCapture(r->stream, &graph);
    MOB_TRY(status);
    CU_TRY(error);
    cudaGraphExec_t made;
    CU_TRY(cudaGraphInstantiate(&made, graph, 0));
    cudaGraphDestroy(graph);
    found = r->graphs.emplace(key, made).first;
  }
  CU_TRY(cudaGraphLaunch(found->second, r->stream));
  return MOB_OK;
}

} // namespace mob
