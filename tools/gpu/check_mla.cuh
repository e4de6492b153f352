// Latent attention of 512 + 64 + 128 + 128 against a reference in double on the same inputs: decodes (absorbed) and prompts (expanded).
// Included by check.cu and by the test on the emulated device, which have device(), fetch(), upload(), normal_bf16(), make_source(),
// pack(), pack_into(), time_us(), report(), relative_l2() and `stream`, `scratch`, `rng`.
#pragma once

constexpr size_t kSamples = 96; // rows and heads that are compared

// 1 x 128, `scales` of the blocks given or, when empty, made.
static void quantise_rows(std::vector<float> *v, std::vector<float> scales = {}) {
  for (size_t from = 0; from + 128 <= v->size(); from += 128) {
    float amax = 0;
    for (size_t i = from; i < from + 128; i++) amax = std::fmax(amax, std::fabs((*v)[i]));
    const float scale = scales.empty() ? std::fmax(amax, 1e-10f) / 448.0f : scales[from / 128], inverse = 1.0f / scale;
    for (size_t i = from; i < from + 128; i++) (*v)[i] = (float)__nv_fp8_e4m3((*v)[i] * inverse) * scale;
  }
}

// The error of a kernel before its result was rounded to e4m3: the reference is rounded with the kernel's scales, and the error of
// that rounding is taken off. (Where a value lies between two codes is as good as random: the two errors add as squares.) The scales
// themselves must be the reference's within `apart`.
static double error_before_e4m3(const std::vector<float> &y, const std::vector<float> &scales, const std::vector<float> &ref,
                                float apart = 1e-2f) {
  for (size_t i = 0; i < scales.size(); i++) {
    float amax = 1e-10f;
    for (size_t k = 0; k < 128; k++) amax = std::fmax(amax, std::fabs(ref[i * 128 + k]));
    if (!(std::fabs(scales[i] * 448.0f / amax - 1) < apart)) return INFINITY;
  }
  std::vector<float> rounded = ref;
  quantise_rows(&rounded, scales);
  const double all = relative_l2(y, ref), own = relative_l2(rounded, ref);
  return all > own ? std::sqrt(all * all - own * own) : 0;
}

// kv_b as the checkpoint has it, on the host.
struct HostKvB {
  std::vector<uint8_t> codes; // [heads * 256][512]
  std::vector<float> scales;  // [heads * 2][4]
  double at(int64_t n, int c) const {
    __nv_fp8_e4m3 v;
    v.__x = codes[(size_t)(n * 512 + c)];
    return (double)(float)v * scales[(size_t)(n / 128 * 4 + c / 128)];
  }
};

static float bf16_float(const void *p) {
  uint16_t bits;
  memcpy(&bits, p, 2);
  const uint32_t word = (uint32_t)bits << 16;
  float v;
  memcpy(&v, &word, 4);
  return v;
}

// Of column c of a page's token (page_offset(), on the host).
static size_t cache_at(int token, int c) {
  return (size_t)(c / 64) * 8192 + (size_t)token * 128 + (size_t)(((c % 64 / 8) ^ (token & 7)) << 4) + (size_t)(c & 7) * 2;
}

// One query and head in double: `q` [192], roped here; keys and values through UK, UV of the head. `expanded`: as prompts are computed,
// from latents quantised 1 x 128. `halves`: columns turn with those of the other half, not with their neighbours.
static void reference_mla(const HostKvB &kv_b, const bf16 *q, const std::vector<bf16> &cache, const int *pages, int head, int position,
                          const std::vector<float> &inv_freq, double scale, bool expanded, bool halves, float *out) {
  std::vector<double> q_lat(512), o_lat(512), pe(64), score;
  std::vector<float> keys; // [n][576]
  for (int j = 0; j <= position; j++) {
    const uint8_t *page = (const uint8_t *)cache.data() + (size_t)pages[j / 64] * page_bytes(576);
    std::vector<float> key;
    for (int c = 0; c < 576; c++) key.push_back(bf16_float(page + cache_at(j % 64, c)));
    if (expanded) {
      std::vector<float> latent(key.begin(), key.begin() + 512);
      quantise_rows(&latent);
      std::copy(latent.begin(), latent.end(), key.begin());
    }
    keys.insert(keys.end(), key.begin(), key.end());
  }
  for (int k = 0; k < 128; k++) {
    const double x = bf16_float(q + k);
    for (int c = 0; c < 512; c++) q_lat[(size_t)c] += x * kv_b.at((int64_t)head * 256 + k, c);
  }
  for (int i = 0; i < 32; i++) {
    const size_t a = halves ? i : 2 * i, b = halves ? i + 32 : 2 * i + 1;
    const double angle = (double)((float)position * inv_freq[(size_t)i]), u = bf16_float(q + 128 + a), v = bf16_float(q + 128 + b);
    pe[a] = u * std::cos(angle) - v * std::sin(angle);
    pe[b] = v * std::cos(angle) + u * std::sin(angle);
  }
  double top = -INFINITY, total = 0;
  for (int j = 0; j <= position; j++) {
    const float *key = keys.data() + (size_t)j * 576;
    double s = 0;
    for (int c = 0; c < 512; c++) s += q_lat[(size_t)c] * key[c];
    for (int c = 0; c < 64; c++) s += pe[(size_t)c] * key[512 + c];
    score.push_back(s * scale);
    top = std::fmax(top, s * scale);
  }
  for (int j = 0; j <= position; j++) {
    const double p = std::exp(score[(size_t)j] - top);
    total += p;
    for (int c = 0; c < 512; c++) o_lat[(size_t)c] += p * keys[(size_t)j * 576 + c];
  }
  for (int v = 0; v < 128; v++) {
    double s = 0;
    for (int c = 0; c < 512; c++) s += o_lat[(size_t)c] * kv_b.at((int64_t)head * 256 + 128 + v, c);
    out[v] = (float)(s / total);
  }
}

// A row's 128 columns of a head out of records; their scale.
static float unpack_record(const std::vector<uint8_t> &data, int mp, int row, int head, float *out) {
  const uint8_t *record = data.data() + (size_t)(head / 2) * mp * 264;
  float scale;
  memcpy(&scale, record + (size_t)mp * 256 + ((size_t)(head % 2) * mp + row) * 4, 4);
  for (int c = 0; c < 128; c++) {
    __nv_fp8_e4m3 v;
    v.__x = record[((size_t)(head % 2) * mp + row) * 128 + (((c >> 4) ^ (row & 7)) << 4) + (c & 15)];
    out[c] = (float)v * scale;
  }
  return scale;
}

static void unpack_bf16_record(const std::vector<uint8_t> &data, int mp, int row, int head, float *out) {
  const uint8_t *record = data.data() + (size_t)head * mp * 256;
  for (int c = 0; c < 128; c++) {
    uint16_t bits;
    memcpy(&bits, record + ((size_t)(c / 64) * mp + row) * 128 + ((c % 64 / 8 ^ (row & 7)) << 4) + c % 8 * 2, 2);
    const uint32_t word = (uint32_t)bits << 16;
    memcpy(&out[c], &word, 4);
  }
}

// decode: `rows` sequences of their own, `context` tokens or up to a quarter fewer (`even`: none fewer); prefill: `rows` queries at the end of one sequence of `context` tokens.
static void check_mla(int heads, int rows, int context, bool prefill, bool even = false, bool halves = false) {
  Source kv_b = make_source((int64_t)heads * 256, 512, true);
  const Matrix w = pack(kv_b, true, 1);
  pack_into(kv_b, w, 0, true);
  uint8_t *uk = device<uint8_t>((size_t)heads * 4 * kPairBytes);
  pack_uk(w.data, uk, heads, 0);
  std::vector<int> position, table, pages;
  int next = 0;
  std::vector<int> shuffled((size_t)((prefill ? 1 : rows) * (context / 64 + 2)));
  for (size_t i = 0; i < shuffled.size(); i++) shuffled[i] = (int)i;
  std::shuffle(shuffled.begin(), shuffled.end(), rng);
  for (int r = 0; r < rows; r++) {
    position.push_back(prefill ? context - rows + r : context - 1 - (even ? 0 : (int)(rng() % (uint64_t)(context / 4))));
    table.push_back(prefill ? 0 : (int)pages.size());
    if (prefill && r > 0) continue;
    for (int p = 0; p < context / 64 + 1; p++) pages.push_back(shuffled[(size_t)next++]);
  }
  const size_t cache_bytes = shuffled.size() * page_bytes(576);
  bf16 *cache = normal_bf16(cache_bytes / 2), *q = normal_bf16((size_t)rows * heads * 192, 0.3f);
  std::vector<float> freq;
  for (int i = 0; i < 32; i++) freq.push_back((float)std::pow(10000.0, -i / 32.0));
  float *inv_freq = upload(freq);
  int *dp = upload(position), *dt = upload(table), *dg = upload(pages);
  const StepRows step = {nullptr, nullptr, dp, dt, dg, nullptr};
  const Rope rope = {inv_freq, 64, !halves, 1.0f};
  const float scale = 0.1352338f;
  const int blocks = (heads + 63) / 64, most_parts = mla_parts(rows, scratch.sms);
  const int mp = padded_rows(rows), padded_heads = heads + heads % 2;
  // A decode is checked as bf16, which the kernel writes too; prompts leave as e4m3 only.
  const Records out = {device<uint8_t>(records_bytes(prefill, mp, padded_heads * 128)), mp, prefill};
  uint8_t *tiles = device<uint8_t>((size_t)rows * blocks * 9 * 8192);
  const MlaParts parts = {device<__half>((size_t)most_parts * heads * 512), device<float>((size_t)most_parts * heads),
                          device<int>((size_t)rows * 2)};
  // prefill
  const int key_blocks = (context + 63) / 64, pairs = (rows + 127) / 128;
  std::vector<PrefillPair> list;
  for (int i = 0; i < pairs; i++) list.push_back({2 * i, i * 128, std::min(128, rows - i * 128), context - rows + i * 128, 0});
  PrefillPair *dl = upload(list);
  const Records latents = {device<uint8_t>(records_bytes(true, key_blocks * 64, 512)), key_blocks * 64, 1};
  uint8_t *kv = device<uint8_t>((size_t)heads * key_blocks * 4 * 8192);
  float2 *angles = device<float2>((size_t)rows * 32);
  const AttendMla attend = {tiles, heads, scale, (uint8_t *)cache, step, true, parts, scratch.sms};
  auto run = [&](int) {
    if (prefill) {
      prefill_prepare({(uint8_t *)cache, dg, latents, false, step, rope, angles}, key_blocks, rows, stream);
      linear_kv_tiles(w, latents, kv, key_blocks, key_blocks * 64, scratch, stream);
      attend_prefill({q, angles, rope.interleaved != 0, kv, heads, key_blocks, scale, (uint8_t *)cache, dg, dl, out, false, scratch.dealt,
                      scratch.sms, 0},
                     pairs, stream);
    } else {
      const AbsorbMla absorb = {uk, w.data, heads, scratch.sms, step, rope};
      absorb_q_mla(absorb, q, tiles, rows, stream);
      if (mla_attend_few_serves(heads, rows, rows * context <= kFewKeys)) mla_attend_few(attend, rows, stream);
      else attend_mla(attend, rows, stream);
      if (rows <= kFewRows) mla_values_few(absorb, parts, out, rows, false, stream);
      else absorb_v_mla(absorb, parts, out, 0, rows, false, stream);
    }
  };
  run(0);
  CUDA(cudaStreamSynchronize(stream));
  std::vector<int> row, head;
  for (size_t i = 0; i < kSamples; i++) row.push_back((int)(rng() % (uint64_t)rows)), head.push_back((int)(rng() % (uint64_t)heads));
  const std::vector<uint8_t> data = fetch(out.data, records_bytes(prefill, mp, padded_heads * 128));
  std::vector<float> got(kSamples * 128), expected(kSamples * 128), scales;
  for (size_t i = 0; i < kSamples; i++) {
    if (prefill) scales.push_back(unpack_record(data, mp, row[i], head[i], &got[i * 128]));
    else unpack_bf16_record(data, mp, row[i], head[i], &got[i * 128]);
  }
  const HostKvB host = {fetch(kv_b.codes, (size_t)heads * 256 * 512), fetch(kv_b.scales, (size_t)heads * 2 * 4)};
  const std::vector<bf16> host_cache = fetch(cache, cache_bytes / 2), host_q = fetch(q, (size_t)rows * heads * 192);
  for (size_t i = 0; i < kSamples; i++)
    reference_mla(host, &host_q[((size_t)row[i] * heads + head[i]) * 192], host_cache, pages.data() + table[(size_t)row[i]], head[i],
                  position[(size_t)row[i]], freq, scale, prefill, halves, &expected[i * 128]);
  const double us = time_us(run, 5);
  double keys = 0;
  for (int p : position) keys += p + 1;
  char shape[64];
  snprintf(shape, sizeof shape, "%3d heads, %4d rows, context %d", heads, rows, context);
  report(prefill ? "attention, prefill" : "attention, decode", shape,
         prefill ? error_before_e4m3(got, scales, expected) : relative_l2(got, expected), 3e-3, us, 0,
         prefill ? keys * heads * 640 : keys * heads * 2176);
  if (!prefill && cache_bytes > (size_t)200 << 20) { // more than stays in the L2
    const double alone = time_us([&](int) { attend_mla(attend, rows, stream); }, 5);
    report("  its keys and values alone", shape, 0, 0, alone, keys * 1152, keys * heads * 2176);
  }
  free_source(kv_b);
  for (void *p : {(void *)w.data, (void *)uk, (void *)cache, (void *)q, (void *)inv_freq, (void *)dp, (void *)dt, (void *)dg,
                  (void *)out.data, (void *)tiles, (void *)parts.partial, (void *)parts.lse, (void *)parts.of_row, (void *)dl, (void *)latents.data,
                  (void *)kv, (void *)angles})
    cudaFree(p);
}
