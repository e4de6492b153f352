// Sums over ranks on emulated devices: the norm's kernel of several ranks against sums in double, with few rows and many, by both
// ways, in a row of calls as a step makes them; and how a wait ends for which nothing comes.
#include "tests/unit/cuda/ranks_case.h"

constexpr int kMaxRows = 64;

struct Arrays {
  float *x, *w, *bias, *out;
  bf16 *add, *expert_y;
  int *expert_row;
  float *expert_weight;
};

// Three calls one after the other, each adding the same parts: x + 3 * (sum of parts + bias), normed.
static void check_sums(int ranks, int rows, int hidden, bool experts) {
  mesh::Mesh m;
  mesh::open(&m, ranks, hidden, kMaxRows, 60000);
  std::mt19937 rng((unsigned)(ranks * 1000 + rows));
  const size_t n = (size_t)rows * (size_t)hidden;
  const std::vector<float> x = random_floats(rng, n, -1, 1), w = random_floats(rng, (size_t)hidden, 0.5f, 1.5f),
                           bias = random_floats(rng, (size_t)hidden, -1, 1);
  std::vector<double> sum(n);
  std::vector<Arrays> arrays((size_t)ranks);
  for (int r = 0; r < ranks; r++) {
    const std::vector<uint16_t> add = random_bf16(rng, n), expert = random_bf16(rng, n);
    std::vector<int> expert_row((size_t)rows * 2);
    std::vector<float> weight((size_t)rows * 2);
    for (int t = 0; t < rows; t++) { // a token's two experts: one on rank t % ranks, the other nowhere
      expert_row[(size_t)t * 2] = t % ranks == r ? rows - 1 - t : -1;
      expert_row[(size_t)t * 2 + 1] = -1;
      weight[(size_t)t * 2] = weight[(size_t)t * 2 + 1] = 0.5f;
    }
    for (size_t i = 0; i < n; i++) {
      const int t = (int)(i / (size_t)hidden), col = (int)(i % (size_t)hidden), row = expert_row[(size_t)t * 2];
      sum[i] += to_float(add[i]);
      if (experts && row >= 0) sum[i] += 0.5 * to_float(expert[(size_t)row * (size_t)hidden + (size_t)col]);
    }
    MESH_OK(cudaSetDevice(r));
    Arrays &a = arrays[(size_t)r];
    a = {upload(x), upload(w), upload(bias), upload(x), (bf16 *)upload(add), (bf16 *)upload(expert), upload(expert_row), upload(weight)};
  }
  on_devices(&m, [&](int r) {
    const mesh::Rank &rank = m.ranks[(size_t)r];
    const Arrays &a = arrays[(size_t)r];
    NormIn in = {};
    in.x = a.x;
    in.add = a.add;
    in.bias = a.bias;
    if (experts) in.expert_y = a.expert_y, in.expert_row = a.expert_row, in.expert_weight = a.expert_weight, in.expert_slots = 2;
    in.w = a.w;
    in.eps = 1e-6f;
    in.hidden = hidden;
    NormOut out = {};
    out.f32 = a.out;
    int turn = 0;
    for (int i = 0; i < 3; i++) norm_rows_ranks(in, out, rank.peers, &turn, rows, 6, rank.stream);
    assert_int_equal(turn, 3);
  });
  assert_int_equal(m.words[0], 0);
  std::vector<float> first_x, first_out;
  for (int r = 0; r < ranks; r++) {
    const std::vector<float> got = fetch(arrays[(size_t)r].x, n), normed = fetch(arrays[(size_t)r].out, n);
    if (r == 0) first_x = got, first_out = normed;
    assert_memory_equal(got.data(), first_x.data(), n * sizeof(float));
    assert_memory_equal(normed.data(), first_out.data(), n * sizeof(float));
  }
  for (int t = 0; t < rows; t++) {
    double square = 0, error = 0, norm_error = 0;
    for (int c = 0; c < hidden; c++) square += pow(first_x[(size_t)t * (size_t)hidden + (size_t)c], 2);
    for (int c = 0; c < hidden; c++) {
      const size_t i = (size_t)t * (size_t)hidden + (size_t)c;
      const double want = x[i] + 3 * (sum[i] + bias[(size_t)c]);
      error = fmax(error, fabs(first_x[i] - want));
      norm_error = fmax(norm_error, fabs(first_out[i] - w[(size_t)c] * first_x[i] / sqrt(square / hidden + 1e-6)));
    }
    assert_true(error < 3 * 0.02 * ranks); // bf16 sums of values up to 2 a rank
    assert_true(norm_error < 1e-5);
  }
  free_all();
  mesh::close(&m);
}

static void test_one_trip(void **) {
  check_sums(2, 1, 64, false);
  check_sums(3, 5, 72, false);
  check_sums(4, 9, 64, true);
  check_sums(8, 2, 256, true);
}

// More rows than all parts fit an inbox for: by owner.
static void test_by_owner(void **) {
  check_sums(4, 40, 64, false);
  check_sums(3, 64, 40, true);
  check_sums(8, 19, 64, false);
}

static void test_wide_rows(void **) { check_sums(2, 3, 9000, false); }

// Rank 1 does not come: rank 0's wait runs out, says for whom, and the kernels behind it wait for nothing.
static void test_missing_rank(void **) {
  mesh::Mesh m;
  mesh::open(&m, 2, 64, kMaxRows, 200);
  MESH_OK(cudaSetDevice(0));
  const mesh::Rank &rank = m.ranks[0];
  NormIn in = {};
  in.x = upload(std::vector<float>(64));
  in.add = (bf16 *)upload(std::vector<uint16_t>(64));
  in.hidden = 64;
  int turn = 0;
  for (int i = 0; i < 20; i++) norm_rows_ranks(in, NormOut(), rank.peers, &turn, 1, 6, rank.stream);
  MESH_OK(cudaStreamSynchronize(rank.stream));
  second_was_missed(m);
  free_all();
  mesh::close(&m);
}

int main() {
  setenv("MOB_EMU_DEVICES", "8", 1);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_one_trip), cmocka_unit_test(test_by_owner), cmocka_unit_test(test_wide_rows),
                                     cmocka_unit_test(test_missing_rank)};
  return cmocka_run_group_tests(tests, nullptr, nullptr);
}
