// The experts of a layer over gathered tokens, gate and up with down in one launch: the records between them against what gate and up give
// (less e4m3's own rounding), y against down of the records that are there. Part of check.cu.
#pragma once

struct ExpertLayer { // experts take turns at two matrices of each kind
  int inter, hidden, experts, top_k;
  Source up[2], down[2];
  std::vector<uint8_t> down_codes[2];
  std::vector<float> down_scales[2];
  Matrix packed_up, packed_down;

  explicit ExpertLayer(int tp) : inter(2048 / tp), hidden(7168), experts(256), top_k(8) {
    for (int i = 0; i < 2; i++) {
      up[i] = make_source(2 * inter, hidden, true);
      down[i] = make_source(hidden, inter, true);
      down_codes[i] = fetch(down[i].codes, (size_t)hidden * inter);
      down_scales[i] = fetch(down[i].scales, (size_t)hidden / 128 * (inter / 128));
    }
    packed_up = pack(up[0], true, experts + 1);
    packed_down = pack(down[0], true, experts + 1);
    for (int e = 0; e <= experts; e++) {
      pack_into(up[e % 2], packed_up, e, true);
      pack_into(down[e % 2], packed_down, e, true);
    }
  }
  ~ExpertLayer() {
    for (int i = 0; i < 2; i++) free_source(up[i]), free_source(down[i]);
    cudaFree(packed_up.data);
    cudaFree(packed_down.data);
  }
};

struct GatheredRow { // of a tile of `rows` from row `first` on
  int token, expert, row, first, rows;
};

static std::vector<GatheredRow> sample_gathered(const MoePlan &plan, const std::vector<int> &ids, int tokens, int experts, int samples) {
  const int slots = plan.top_k + plan.shared;
  const std::vector<int> rows = fetch(plan.expert_row, (size_t)tokens * slots);
  const std::vector<TokenTile> tiles = fetch(plan.tiles, (size_t)fetch(plan.active, 1)[0]);
  std::vector<GatheredRow> out;
  for (int i = 0; i < samples; i++) {
    const int t = (int)(rng() % (uint64_t)tokens), j = (int)(rng() % (uint64_t)slots), row = rows[(size_t)t * slots + j];
    for (const TokenTile &tile : tiles)
      if (row >= tile.row && row < tile.row + tile.tokens)
        out.push_back({t, j < plan.top_k ? ids[(size_t)t * plan.top_k + j] : experts, row, tile.row, padded_rows(tile.tokens)});
  }
  return out;
}

// One block of 128 of each row: silu(gate) * up of its tokens.
static std::vector<float> reference_act(const ExpertLayer &l, const std::vector<GatheredRow> &rows, const std::vector<int> &block, const bf16 *x) {
  std::vector<float> out(rows.size() * 128);
  for (int s = 0; s < 2; s++) {
    std::vector<int> token, column;
    for (size_t i = 0; i < rows.size(); i++)
      for (int c = 0; c < 256 && rows[i].expert % 2 == s; c++) {
        token.push_back(rows[i].token);
        column.push_back(block[i] * 128 + c % 128 + c / 128 * l.inter);
      }
    if (token.empty()) continue;
    int *dt = upload(token), *dc = upload(column);
    float *ref = device<float>(token.size());
    reference_linear<<<(int)token.size(), 32>>>(l.up[s], x, l.hidden, dt, dc, ref, (int)token.size());
    const std::vector<float> values = fetch(ref, token.size());
    size_t at = 0;
    for (size_t i = 0; i < rows.size(); i++) {
      if (rows[i].expert % 2 != s) continue;
      for (int c = 0; c < 128; c++) {
        const float gate = __bfloat162float(__float2bfloat16(values[at + (size_t)c]));
        out[i * 128 + (size_t)c] = gate / (1 + std::exp(-gate)) * __bfloat162float(__float2bfloat16(values[at + 128 + (size_t)c]));
      }
      at += 256;
    }
    for (void *p : {(void *)dt, (void *)dc, (void *)ref}) cudaFree(p);
  }
  return out;
}

static void check_expert_layer(const ExpertLayer &l, const char *kind, int tokens, int most) {
  const std::vector<int> ids = routing(kind, tokens, l.experts, l.top_k);
  const int slots = l.top_k + 1, capacity = (int)moe_rows((size_t)tokens, (size_t)slots, (size_t)l.experts + 1);
  const size_t tiles = moe_tiles((size_t)tokens, (size_t)slots, (size_t)l.experts + 1, kLeastTile);
  bf16 *x = normal_bf16((size_t)tokens * l.hidden), *y = device<bf16>((size_t)capacity * l.hidden);
  const Records hidden = {device<uint8_t>(records_bytes(true, padded_rows(tokens), l.hidden)), padded_rows(tokens), 1};
  pack_rows(x, l.hidden, l.hidden, hidden, l.hidden, tokens, false, stream);
  MoePlan plan = {};
  plan.ids = upload(ids);
  plan.count = upload(std::vector<int>{tokens});
  plan.top_k = l.top_k;
  plan.experts = l.experts;
  plan.shared = 1;
  plan.rows = tokens;
  plan.active = device<int>((size_t)l.experts + 2);
  plan.active_ids = plan.gathered = plan.active + 1;
  plan.expert_row = device<int>((size_t)tokens * slots);
  plan.most = most;
  plan.tiles = device<TokenTile>(tiles);
  plan.place = device<int>((size_t)capacity);
  plan.rows_of = device<ExpertRows>((size_t)l.experts + 1);
  const TileRows gathered = {device<uint8_t>(records_bytes(true, capacity, l.hidden)), l.hidden / 256, 1};
  const TileRows act = {device<uint8_t>(records_bytes(true, capacity, l.inter)), (int)column_pairs(l.packed_down), 1};
  scratch.segments_done = upload(std::vector<int>(tiles));
  auto run = [&](int) {
    linear_segments_both(l.packed_up, l.inter, l.inter, l.packed_down, plan.tiles, plan.active, gathered.data, act, false, y, most, scratch,
                         stream);
  };
  moe_plan_many(plan, stream);
  moe_gather(hidden, plan, gathered, stream);
  run(0);
  CUDA(cudaStreamSynchronize(stream));

  constexpr int kRows = 64, kColumns = 64;
  const std::vector<GatheredRow> rows = sample_gathered(plan, ids, tokens, l.experts, kRows);
  const std::vector<uint8_t> records = fetch(act.data, records_bytes(true, capacity, l.inter));
  const std::vector<bf16> all = fetch(y, (size_t)capacity * l.hidden);
  std::vector<int> block;
  std::vector<float> codes, scales, got, want;
  for (const GatheredRow &r : rows) {
    block.push_back((int)(rng() % (uint64_t)(l.inter / 128)));
    // A tile's records: pairs of columns, then their scales.
    std::vector<float> v((size_t)l.inter);
    const uint8_t *tile = records.data() + (size_t)r.first * act.pairs * 264, *tile_scales = tile + (size_t)act.pairs * r.rows * 256;
    for (int b = 0; b < l.inter / 128; b++) {
      float scale;
      memcpy(&scale, tile_scales + ((size_t)b * r.rows + (r.row - r.first)) * 4, 4);
      for (int c = 0; c < 128; c++) {
        __nv_fp8_e4m3 code;
        code.__x = tile[((size_t)b * r.rows + (r.row - r.first)) * 128 + (((c >> 4) ^ ((r.row - r.first) & 7)) << 4) + (c & 15)];
        v[(size_t)b * 128 + c] = (float)code * scale;
      }
      if (b == block.back()) scales.push_back(scale);
    }
    codes.insert(codes.end(), v.begin() + block.back() * 128, v.begin() + block.back() * 128 + 128);
    for (int i = 0; i < kColumns; i++) {
      const int n = (int)(rng() % (uint64_t)l.hidden), s = r.expert % 2;
      double sum = 0;
      for (int k = 0; k < l.inter; k++) {
        __nv_fp8_e4m3 code;
        code.__x = l.down_codes[s][(size_t)n * l.inter + k];
        sum += (double)(float)code * l.down_scales[s][(size_t)n / 128 * (l.inter / 128) + k / 128] * v[(size_t)k];
      }
      want.push_back((float)sum);
      got.push_back(__bfloat162float(all[(size_t)r.row * l.hidden + n]));
    }
  }
  bool clean = true; // as the next launch expects
  for (int v : fetch(scratch.segments_done, tiles)) clean = clean && v == 0;
  for (int v : fetch(scratch.dealt, 2)) clean = clean && v == 0;
  const double us = time_us(run, 2), used = 1 + (double)std::set<int>(ids.begin(), ids.end()).size();
  char text[96];
  snprintf(text, sizeof text, "inter %d, %d tokens, %s", l.inter, tokens, kind);
  // Scales may differ by what a rounding of gate and of up to bf16 does to silu(gate) * up.
  report("experts, records between", text, error_before_e4m3(codes, scales, reference_act(l, rows, block, x), 3e-2f), 3e-3, 0, 0, 0);
  report("experts, one launch", text, clean ? relative_l2(got, want) : INFINITY, 3e-3, us, (double)(l.packed_up.stride + l.packed_down.stride) * used,
         2.0 * tokens * slots * 3 * l.inter * l.hidden, true);
  for (void *p : {(void *)x, (void *)y, (void *)hidden.data, (void *)plan.ids, (void *)plan.count, (void *)plan.active, (void *)plan.expert_row,
                  (void *)plan.tiles, (void *)plan.place, (void *)plan.rows_of, (void *)gathered.data, (void *)act.data,
                  (void *)scratch.segments_done})
    cudaFree(p);
}

static void check_expert_layers(int tp) {
  const ExpertLayer layer(tp);
  for (int tokens : {16, 64, 256, 2048, 8192}) check_expert_layer(layer, "even", tokens, segments_most((double)tokens * 8 / 256, true));
  for (const char *kind : {"8 experts", "one has all"})
    for (int tokens : {64, 600}) check_expert_layer(layer, kind, tokens, segments_most((double)tokens * 8 / 256, true));
}
