// Rows with owners on emulated devices: what a step does with them, against sums in double: a norm whose records go to all, one whose
// records stay with the owner, with something else shared behind it, the last sum of some rows, the stream to the first rank. And how
// a wait ends for which nothing comes.
#include <algorithm>

#include "engine/cuda/norm_shard.h"
#include "tests/unit/cuda/ranks_case.h"
extern "C" {
#include "engine/model/model.h"
}

constexpr int kMaxRows = 136;

struct Case {
  int ranks, rows, hidden;
  bool fp8, experts;
};

struct Arrays { // of one rank
  float *x, *w, *bias, *weight;
  bf16 *add, *y;
  int *row;
  uint8_t *a, *b, *shared;
};

struct Fixture {
  Case c;
  int width; // columns of records
  mesh::Mesh m;
  std::vector<Arrays> arrays;
  std::vector<double> x, sum; // the stream as it should be; what a call adds without the bias
  std::vector<float> w, bias;
  size_t n;

  explicit Fixture(const Case &which) : c(which), width((which.hidden + 255) / 256 * 256), n((size_t)which.rows * (size_t)which.hidden) {
    mesh::open(&m, c.ranks, c.hidden, kMaxRows, 60000);
    std::mt19937 rng((unsigned)(c.ranks * 1000 + c.rows));
    const std::vector<float> begin = random_floats(rng, n, -1, 1);
    w = random_floats(rng, (size_t)c.hidden, 0.5f, 1.5f);
    bias = random_floats(rng, (size_t)c.hidden, -1, 1);
    x.assign(begin.begin(), begin.end());
    sum.assign(n, 0);
    for (int r = 0; r < c.ranks; r++) {
      const std::vector<uint16_t> add = random_bf16(rng, n), y = random_bf16(rng, n);
      std::vector<int> row((size_t)c.rows * 5, -1); // five slots, of which two may be here
      std::vector<float> weight((size_t)c.rows * 5, 0.5f);
      for (int t = 0; t < c.rows; t++) {
        row[(size_t)t * 5 + 1] = t % c.ranks == r ? c.rows - 1 - t : -1;
        row[(size_t)t * 5 + 4] = t % c.ranks != r ? t : -1;
      }
      for (size_t i = 0; i < n; i++) {
        sum[i] += to_float(add[i]);
        const size_t t = i / (size_t)c.hidden, col = i % (size_t)c.hidden;
        for (size_t j = 0; c.experts && j < 5; j++)
          if (row[t * 5 + j] >= 0) sum[i] += 0.5 * to_float(y[(size_t)row[t * 5 + j] * (size_t)c.hidden + col]);
      }
      MESH_OK(cudaSetDevice(r));
      Arrays a = {};
      a.x = upload(begin), a.w = upload(w), a.bias = upload(bias), a.weight = upload(weight), a.row = upload(row);
      a.add = (bf16 *)upload(add), a.y = (bf16 *)upload(y);
      a.a = device<uint8_t>(records_bytes(c.fp8, kMaxRows, width));
      a.b = device<uint8_t>(records_bytes(false, kMaxRows, 2 * width));
      a.shared = device<uint8_t>((size_t)kMaxRows * 20);
      arrays.push_back(a);
    }
  }
  ~Fixture() {
    free_all();
    mesh::close(&m);
  }

  NormShard call(int r) {
    const Arrays &a = arrays[(size_t)r];
    NormShard s = {};
    s.in.x = a.x, s.in.add = a.add, s.in.bias = a.bias, s.in.w = a.w, s.in.eps = 1e-6f, s.in.hidden = c.hidden;
    if (c.experts) s.in.expert_y = a.y, s.in.expert_row = a.row, s.in.expert_weight = a.weight, s.in.expert_slots = 5;
    s.out.a = {a.a, padded_rows(c.rows), c.fp8};
    s.out.a_k = width;
    s.total = c.rows;
    s.meet = true;
    for (int i = 0; i < c.ranks; i++) {
      const Arrays &other = arrays[(size_t)((r + i) % c.ranks)];
      s.a[i] = other.a, s.b[i] = other.b;
    }
    return s;
  }
  void add_all() {
    for (size_t i = 0; i < n; i++) x[i] += sum[i] + bias[i % (size_t)c.hidden];
  }
  double tolerance() const { return 0.03 * c.ranks; } // of bf16 sums of values up to 2 a rank, a call
  double normed(int row, int col) const {
    double square = 0;
    for (int k = 0; k < c.hidden; k++) square += pow(x[(size_t)row * (size_t)c.hidden + (size_t)k], 2);
    return col < c.hidden ? w[(size_t)col] * x[(size_t)row * (size_t)c.hidden + (size_t)col] / sqrt(square / c.hidden + 1e-6) : 0;
  }

  // Rows of records against the norm of rows of x.
  void check(const uint8_t *data, bool fp8, int mp, int columns, const std::vector<std::pair<int, int>> &rows, bool split) {
    const Records all = {(uint8_t *)data, mp, fp8};
    for (const auto &[at, row] : rows) {
      const RecordRow r = record_row(all, at);
      auto value = [&](int col) {
        const int second = fp8 ? col / 128 % 2 : col / 64 % 2, in = fp8 ? col % 128 : col % 64 * 2;
        const uint8_t *p = r.data + (size_t)(col / (fp8 ? 256 : 128)) * r.pair_bytes + ((size_t)second * r.rows + r.row) * 128 +
                           (((in >> 4) ^ (at & 7)) << 4) + (in & 15);
        if (!fp8) return (double)to_float(*(const uint16_t *)p);
        const float scale = *(const float *)(r.scales + (size_t)(col / 256) * r.pair_scales + ((size_t)second * r.rows + r.row) * 4);
        return (double)emu::e4m3_value(*p) * scale;
      };
      double error = 0, size = 0;
      for (int col = 0; col < columns; col++) {
        const double want = normed(row, col), got = value(col) + (split ? value(columns + col) : 0);
        if (col >= c.hidden) assert_true(got == 0);
        error += pow(got - want, 2), size += want * want;
      }
      if (!(error < size * (fp8 ? 1.5e-3 : 4e-4))) fail_msg("row %d at %d: error %g of %g", row, at, sqrt(error), sqrt(size));
    }
  }
  std::vector<std::pair<int, int>> rows(int first, int count, int to) const {
    std::vector<std::pair<int, int>> out;
    for (int i = 0; i < count; i++) out.push_back({to + i, first + i});
    return out;
  }
};

static void check_step(const Case &c) {
  Fixture f(c);
  const int ranks = c.ranks, mp = padded_rows(c.rows);
  // Records to all.
  on_devices(&f.m, [&](int r) { norm_shard(f.call(r), f.m.ranks[(size_t)r].peers, 3, f.m.ranks[(size_t)r].stream); });
  f.add_all();
  const size_t bytes = records_bytes(c.fp8, mp, f.width);
  std::vector<uint8_t> first;
  for (int r = 0; r < ranks; r++) {
    const std::vector<uint8_t> got = fetch(f.arrays[(size_t)r].a, bytes);
    f.check(got.data(), c.fp8, mp, f.width, f.rows(0, c.rows, 0), false);
    if (r == 0) first = got;
    assert_memory_equal(got.data(), first.data(), bytes);
  }
  // To the owners, hi and lo parts, too; then 20 bytes a row from each to all, three times over: one call may be ahead of another.
  std::vector<std::vector<uint8_t>> told((size_t)ranks, std::vector<uint8_t>((size_t)kMaxRows * 20, 7));
  on_devices(&f.m, [&](int r) {
    const mesh::Rank &rank = f.m.ranks[(size_t)r];
    const int from = shard_first(c.rows, ranks, r), own = shard_rows(c.rows, ranks, r);
    for (int i = 0; i < 3; i++) {
      NormShard s = f.call(r);
      s.out.a.mp = s.out.b.mp = padded_rows(own);
      s.out.b.data = s.b[0];
      s.out.b_k = f.width;
      s.out.b_split = s.a_own = s.b_own = true;
      s.meet = false;
      norm_shard(s, rank.peers, 3, rank.stream);
      MESH_OK(cudaMemsetAsync(f.arrays[(size_t)r].shared + from * 20, r + 1, (size_t)own * 20, rank.stream));
      ShareShards share = {};
      share.count = 1;
      share.from[0] = s.a[0] ? f.arrays[(size_t)r].shared + from * 20 : nullptr;
      for (int k = 1; k < ranks; k++) share.to[0][k - 1] = f.arrays[(size_t)((r + k) % ranks)].shared + from * 20;
      share.bytes[0] = (size_t)own * 20;
      share.most = (size_t)shard_each(c.rows, ranks) * 20;
      share_shards(share, rank.peers, 3, rank.stream);
      MESH_OK(cudaMemcpyAsync(told[(size_t)r].data(), f.arrays[(size_t)r].shared, (size_t)c.rows * 20, cudaMemcpyDeviceToHost, rank.stream));
    }
  });
  for (int i = 0; i < 3; i++) f.add_all();
  for (int r = 0; r < ranks; r++) {
    const Arrays &a = f.arrays[(size_t)r];
    const int from = shard_first(c.rows, ranks, r), own = shard_rows(c.rows, ranks, r), own_mp = padded_rows(own);
    f.check(fetch(a.a, bytes).data(), c.fp8, own_mp, f.width, f.rows(from, own, 0), false);
    f.check(fetch(a.b, records_bytes(false, kMaxRows, 2 * f.width)).data(), false, own_mp, f.width, f.rows(from, own, 0), true);
    for (int row = 0; row < c.rows; row++)
      for (int k = 0; k < 20; k++) assert_int_equal(told[(size_t)r][(size_t)row * 20 + (size_t)k], 1 + row / shard_each(c.rows, ranks));
  }
  // The stream to the first rank, which has all of it then.
  on_devices(&f.m, [&](int r) {
    NormShard s = f.call(r);
    s.in.w = nullptr;
    s.out = {};
    if (r) s.x[ranks - r] = f.arrays[0].x;
    norm_shard(s, f.m.ranks[(size_t)r].peers, 3, f.m.ranks[(size_t)r].stream);
  });
  f.add_all();
  const std::vector<float> stream = fetch(f.arrays[0].x, f.n);
  for (size_t i = 0; i < f.n; i++) assert_true(fabs(stream[i] - f.x[i]) < 5 * f.tolerance());
  // Of some rows, backwards.
  std::vector<int> list;
  for (int row = c.rows - 1; row >= 0; row -= 3) list.push_back(row);
  list.push_back(list[0]); // twice
  std::vector<int *> lists;
  for (int r = 0; r < ranks; r++) {
    MESH_OK(cudaSetDevice(r));
    lists.push_back(upload(list));
  }
  on_devices(&f.m, [&](int r) {
    NormShard s = f.call(r);
    s.in.rows = lists[(size_t)r];
    s.count = (int)list.size();
    s.out.a.mp = padded_rows(s.count);
    norm_shard(s, f.m.ranks[(size_t)r].peers, 3, f.m.ranks[(size_t)r].stream);
  });
  f.add_all();
  std::vector<std::pair<int, int>> pairs;
  for (size_t i = 0; i < list.size(); i++) pairs.push_back({(int)i, list[i]});
  for (int r = 0; r < ranks; r++)
    f.check(fetch(f.arrays[(size_t)r].a, bytes).data(), c.fp8, padded_rows((int)list.size()), f.width, pairs, false);
  assert_int_equal(f.m.words[0], 0);
}

static void test_fp8(void **) {
  check_step({4, 64, 512, true, true});
  check_step({2, 91, 256, true, false});
}
static void test_bf16(void **) {
  check_step({3, 50, 200, false, true});
  check_step({8, 40, 64, false, false}); // not all ranks have rows
}
static void test_wide_rows(void **) { check_step({2, 9, 9000, true, false}); }

// A linear's results that leave for their owners while it computes: the same stream, to the bit, as where the norm sends them.
static void check_sent(int ranks, int rows, int k) {
  Fixture f({ranks, rows, 512, true, false});
  struct Linear {
    Matrix w;
    Records x;
    bf16 *y;
    LinearScratch scratch;
  };
  std::vector<Linear> linears;
  std::mt19937 rng(7);
  for (int r = 0; r < ranks; r++) {
    MESH_OK(cudaSetDevice(r));
    Linear l = {{nullptr, 0, 512, k, Weights::F8}, {device<uint8_t>(records_bytes(true, padded_rows(rows), k)), padded_rows(rows), 1}, nullptr, {}};
    std::vector<uint8_t> codes((size_t)512 * (size_t)k);
    for (uint8_t &code : codes) code = (uint8_t)(rng() % 256 & 0xb7); // numbers of moderate size
    const std::vector<uint16_t> x = random_bf16(rng, (size_t)rows * (size_t)k);
    l.w.data = device<uint8_t>((size_t)(512 / 64) * column_pairs(l.w) * kPairBytes);
    PackSource from = {};
    from.src = upload(codes), from.dtype = MOB_DT_F8E4M3, from.rows = 512, from.cols = k;
    from.scales = upload(std::vector<float>((size_t)(4 * k / 128), 0.01f)), from.scale_ld = k / 128, from.block_rows = from.block_cols = 128;
    from.bad = device<int>(1);
    pack_tiles(from, l.w.data, k, Weights::F8, f.m.ranks[(size_t)r].stream);
    pack_rows((bf16 *)upload(x), k, k, l.x, k, rows, false, f.m.ranks[(size_t)r].stream);
    l.y = (bf16 *)device<uint16_t>(f.n);
    l.scratch.sms = 3;
    l.scratch.partial = device<float>((size_t)3 * kPartialFloats);
    linears.push_back(l);
    linear_prepare();
    assert_true(linear_can_send(l.w, rows));
  }
  std::vector<std::vector<float>> streams[2];
  for (int sent = 0; sent < 2; sent++) {
    on_devices(&f.m, [&](int r) {
      const mesh::Rank &rank = f.m.ranks[(size_t)r];
      const Linear &l = linears[(size_t)r];
      NormShard s = f.call(r);
      MESH_OK(cudaMemsetAsync(s.in.x, 0, f.n * 4, rank.stream));
      for (int i = 0; i < 3; i++) {
        if (sent) linear_parts(l.w, l.x, parts_out(rank.peers, l.y, 512, rows), rows, l.scratch, rank.stream);
        else linear(l.w, l.x, l.y, 512, false, rows, 1, l.scratch, rank.stream);
        s.in.add = l.y;
        s.sent = sent;
        norm_shard(s, rank.peers, 3, rank.stream);
      }
    });
    for (int r = 0; r < ranks; r++) {
      const std::vector<float> x = fetch(f.arrays[(size_t)r].x, f.n);
      const size_t from = (size_t)shard_first(rows, ranks, r) * 512, own = (size_t)shard_rows(rows, ranks, r) * 512;
      streams[sent].push_back(std::vector<float>(x.begin() + (long)from, x.begin() + (long)(from + own)));
    }
  }
  assert_int_equal(f.m.words[0], 0);
  for (int r = 0; r < ranks; r++) {
    double size = 0;
    for (float v : streams[0][(size_t)r]) size += fabs(v);
    if (!streams[0][(size_t)r].empty()) assert_true(size > 0 && std::isfinite(size));
    assert_memory_equal(streams[0][(size_t)r].data(), streams[1][(size_t)r].data(), streams[0][(size_t)r].size() * 4);
  }
}
static void test_sent(void **) {
  check_sent(2, 130, 256);
  check_sent(3, 101, 512);
}

// Rank 1 does not come: rank 0's waits run out, say for whom, and the kernels behind them wait for nothing.
static void test_missing_rank(void **) {
  Fixture f({2, 20, 64, true, false});
  f.m.words[0] = 0;
  mesh::close(&f.m);
  mesh::open(&f.m, 2, 64, kMaxRows, 200);
  MESH_OK(cudaSetDevice(0));
  const mesh::Rank &rank = f.m.ranks[0];
  for (int i = 0; i < 20; i++) {
    norm_shard(f.call(0), rank.peers, 3, rank.stream);
    share_shards({}, rank.peers, 3, rank.stream);
  }
  MESH_OK(cudaStreamSynchronize(rank.stream));
  second_was_missed(f.m);
}

int main() {
  setenv("MOB_EMU_DEVICES", "8", 1);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_fp8), cmocka_unit_test(test_bf16), cmocka_unit_test(test_wide_rows),
                                     cmocka_unit_test(test_sent), cmocka_unit_test(test_missing_rank)};
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
