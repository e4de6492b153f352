// The tables of a step: what its kernels read of it, in one block of ints that goes to the device in one copy.
#include <algorithm>

#include "engine/cuda/exec.h"

namespace mob {

MetaLayout tables_layout(const Exec *exec, int rows, int logit_rows, bool planned) {
  MetaLayout l;
  l.token = kStepHead;
  l.position = l.token + rows;
  l.table = l.position + rows;
  l.row = l.table + rows;
  l.slot = l.row + logit_rows;
  l.wanted = l.slot + logit_rows;
  l.tile_row = l.wanted + logit_rows;
  l.pairs = l.tile_row + (planned ? rows : 0);
  l.key_pages = l.pairs + (planned ? exec->max_pairs * (int)(sizeof(PrefillPair) / 4) : 0);
  l.pages = l.key_pages + (planned ? exec->max_key_blocks : 0);
  return l;
}

int tables_most(const Exec *exec) {
  const mob_exec_spec_t &s = exec->spec;
  const int rows = std::max(s.max_tokens, kGraphRows) + 8, pages = (s.max_len + MOB_PAGE_TOKENS - 1) / MOB_PAGE_TOKENS + 1;
  return (tables_layout(exec, rows, exec->max_logit_rows, true).pages + s.max_seqs * pages + 3) / 4 * 4;
}

int graph_rows(const Exec *exec, const Job *job) {
  const mob_step_t &step = job->step;
  const mob_routes_t *routes = exec->spec.routes;
  if (exec->spec.eager || (routes && routes->on) || step.token_count > kGraphRows || step.seq_count != step.token_count) return 0;
  if (exec->spec.last_layer == exec->desc->n_layers && job->logits.size() != step.token_count) return 0;
  const int n = (int)step.token_count;
  return n <= 1 ? 1 : n <= 2 ? 2 : n <= 4 ? 4 : (n + 7) / 8 * 8;
}

void plan_prefill(Exec *exec, const Job *job, bool allowed, int *meta) {
  const MetaLayout &at = exec->layout;
  const int least = exec->mla ? 64 : 32;
  PrefillPlan plan;
  plan.single = job->step.seq_count == job->step.token_count;
  int64_t all_keys = 0;
  for (const mob_seq_step_t &seq : job->seqs) all_keys += (int64_t)seq.count * (seq.start + seq.count);
  plan.few_keys = all_keys <= kFewKeys;
  auto absorb = [&](int from, int to) {
    if (!plan.absorbed.empty() && plan.absorbed.back().second == from) plan.absorbed.back().second = to;
    else plan.absorbed.push_back({from, to});
  };
  for (const mob_seq_step_t &seq : job->seqs) {
    const int row = (int)seq.row, count = (int)seq.count, keys = exec->mla ? (int)(seq.start + seq.count + 63) / 64 : 0;
    const int pairs = (count + 127) / 128;
    if (!allowed || count < least || plan.key_blocks + keys > exec->max_key_blocks || plan.pairs + pairs > exec->max_pairs) {
      absorb(row, row + count);
      for (int i = 0; allowed && i < count; i++) meta[at.tile_row + row + i] = -1;
      continue;
    }
    PrefillPair *out = (PrefillPair *)(meta + at.pairs) + plan.pairs;
    for (int i = 0; i < pairs; i++)
      out[i] = {plan.blocks + 2 * i, row + i * 128, std::min(128, count - i * 128), (int)seq.start + i * 128, plan.key_blocks};
    for (int i = 0; i < count; i++) meta[at.tile_row + row + i] = plan.blocks * 64 + i;
    for (int i = 0; i < keys; i++) meta[at.key_pages + plan.key_blocks + i] = (int)seq.pages[i];
    plan.pairs += pairs;
    plan.blocks += 2 * pairs;
    plan.key_blocks += keys;
  }
  if (!exec->mla) { // pages are read as they are; the last are computed first, the longest
    PrefillPair *out = (PrefillPair *)(meta + at.pairs);
    std::sort(out, out + plan.pairs, [](const PrefillPair &a, const PrefillPair &b) {
      return a.position != b.position ? a.position < b.position : a.row < b.row;
    });
  }
  exec->plan = plan;
}

int fill_tables(const Exec *exec, const Job *job, int rows, int *meta) {
  const MetaLayout &at = exec->layout;
  const int count = (int)job->step.token_count;
  for (int i = count; i < rows; i++) {
    meta[at.token + i] = 0;
    meta[at.position + i] = 0;
    meta[at.table + i] = -1;
  }
  int pages = 0;
  for (const mob_seq_step_t &seq : job->seqs) {
    for (uint32_t k = 0; k < seq.count; k++) {
      const int row = (int)(seq.row + k);
      meta[at.token + row] = seq.tokens[k] == MOB_TOKEN_PREVIOUS ? -1 - (int)seq.slot : seq.tokens[k];
      meta[at.position + row] = (int)(seq.start + k);
      meta[at.table + row] = pages;
    }
    const uint32_t used = (seq.start + seq.count + 63) / 64;
    for (uint32_t k = 0; k < used; k++) meta[at.pages + pages++] = (int)seq.pages[k];
  }
  return at.pages + pages;
}

void fill_logit_rows(const Exec *exec, const Job *job, int padded, int *meta) {
  const MetaLayout &at = exec->layout;
  const int count = (int)job->logits.size();
  for (int i = 0; i < count; i++) {
    const LogitRow &row = job->logits[(size_t)i];
    const SlotState &slot = exec->slots[row.slot];
    meta[at.row + i] = (int)row.row;
    meta[at.slot + i] = (int)row.slot;
    meta[at.wanted + i] = !row.sample ? slot.prompt[row.position] : slot.plain ? kSamplePlain : kSampleSlot;
  }
  for (int i = count; i < padded; i++) {
    meta[at.row + i] = 0;
    meta[at.slot + i] = -1;
    meta[at.wanted + i] = kSamplePlain;
  }
}

} // namespace mob
