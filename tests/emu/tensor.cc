// Tensor core instructions: sums in fp32, in the order of K. A GPU keeps fewer bits of the products that it adds at once.
#include <cstring>

#include "cuda_bf16.h"
#include "cuda_fp8.h"

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace emu {
namespace {

// This file is not instrumented: rows of 16 bytes that a kernel names are looked at here.
void check_row(const void *row, const char *what) {
  if ((uintptr_t)row % 16 != 0) broken("%s of a row that is not aligned to 16 bytes", what);
#ifdef EMU_ASAN
  if (__asan_region_is_poisoned(const_cast<void *>(row), 16)) {
    uint8_t copy[16];
    void *(*volatile read)(void *, const void *, size_t) = memcpy;
    read(copy, row, 16); // ASan tells of it
  }
#endif
}

struct E4m3Table {
  float of[256];
  E4m3Table() {
    for (int i = 0; i < 256; i++) of[i] = e4m3_value((uint8_t)i);
  }
};
const E4m3Table e4m3;

float bf16_value(uint16_t v) { return std::bit_cast<float>((uint32_t)v << 16); }

// out[64][n] = a[64][k] b[k][n]
__attribute__((always_inline)) inline void multiply(const float *a, const float *b, float *out, int n, int k) {
  for (int row = 0; row < 64; row++) {
    float *to = out + row * n;
    for (int c = 0; c < n; c++) to[c] = 0;
    for (int i = 0; i < k; i++) {
      const float v = a[row * k + i];
      const float *from = b + i * n;
      for (int c = 0; c < n; c++) to[c] += v * from[c];
    }
  }
}
__attribute__((target("avx2"))) void multiply_avx2(const float *a, const float *b, float *out, int n, int k) { multiply(a, b, out, n, k); }
void multiply_any(const float *a, const float *b, float *out, int n, int k) { multiply(a, b, out, n, k); }

uint32_t start_of(uint64_t descriptor) { return (uint32_t)(descriptor & 0x3fff) << 4; }
uint32_t lead_of(uint64_t descriptor) { return (uint32_t)(descriptor >> 16 & 0x3fff) << 4; }
uint32_t stride_of(uint64_t descriptor) { return (uint32_t)(descriptor >> 32 & 0x3fff) << 4; }

// The 128-byte swizzle: of each 1,024 bytes, the 16-byte columns of a row change places by the row's number.
const uint8_t *swizzled(uint32_t address) { return shared_pointer(address ^ (address >> 3 & 0x70)); }

// Rows of 128 bytes, eight of them a group: `rows` rows of 32 bytes of K, to out[row * row_step + k * k_step].
void read_rows(uint64_t descriptor, int rows, WgmmaOp::Kind kind, float *out, int row_step, int k_step) {
  const uint32_t start = start_of(descriptor), stride = stride_of(descriptor);
  for (int row = 0; row < rows; row++) {
    for (int chunk = 0; chunk < 2; chunk++) {
      const uint8_t *from = swizzled(start + (uint32_t)(row / 8) * stride + (uint32_t)(row % 8) * 128 + (uint32_t)chunk * 16);
      float *to = out + row * row_step;
      if (kind == WgmmaOp::E4M3) {
        for (int i = 0; i < 16; i++) to[(chunk * 16 + i) * k_step] = e4m3.of[from[i]];
      } else {
        uint16_t words[8];
        memcpy(words, from, 16);
        for (int i = 0; i < 8; i++) to[(chunk * 8 + i) * k_step] = kind == WgmmaOp::F16_REGISTERS ? half_value(words[i]) : bf16_value(words[i]);
      }
    }
  }
}

// 16 rows of K, in each 64 columns of bf16 beside each other; further columns in further boxes.
void read_turned(uint64_t descriptor, int n, float *out) {
  const uint32_t start = start_of(descriptor), lead = lead_of(descriptor), stride = stride_of(descriptor);
  for (int k = 0; k < 16; k++) {
    for (int c = 0; c < n; c += 8) {
      uint16_t words[8];
      memcpy(words, swizzled(start + (uint32_t)(c / 64) * lead + (uint32_t)(k / 8) * stride + (uint32_t)(k % 8) * 128 + (uint32_t)(c % 64) * 2), 16);
      for (int i = 0; i < 8; i++) out[k * n + c + i] = bf16_value(words[i]);
    }
  }
}

struct Mma {
  float *d;
  const uint32_t *a, *b;
  bool bf16;
};

// Fragments of m16n8k16, rows first.
void read_a(const uint32_t *a, int lane, bool bf16, float *out, int step) {
  for (int i = 0; i < 4; i++)
    for (int half = 0; half < 2; half++) {
      const uint16_t v = (uint16_t)(a[i] >> 16 * half);
      out[(lane / 4 + i % 2 * 8) * step + i / 2 * 8 + lane % 4 * 2 + half] = bf16 ? bf16_value(v) : half_value(v);
    }
}

void compute_mma(void *const *args) {
  float a[16 * 16], b[16][8];
  for (int lane = 0; lane < 32; lane++) {
    const Mma *m = (const Mma *)args[lane];
    if (!m) broken("mma.sync without all lanes of its warp");
    read_a(m->a, lane, m->bf16, a, 16);
    for (int i = 0; i < 4; i++) {
      const uint16_t v = (uint16_t)(m->b[i / 2] >> 16 * (i % 2));
      b[i / 2 * 8 + lane % 4 * 2 + i % 2][lane / 4] = m->bf16 ? bf16_value(v) : half_value(v);
    }
  }
  for (int lane = 0; lane < 32; lane++) {
    float *d = ((const Mma *)args[lane])->d;
    for (int q = 0; q < 4; q++) {
      const float *row = a + (lane / 4 + q / 2 * 8) * 16;
      const int col = lane % 4 * 2 + q % 2;
      float sum = 0;
      for (int k = 0; k < 16; k++) sum += row[k] * b[k][col];
      d[q] += sum;
    }
  }
}

struct Matrices {
  uint32_t *d;
  const void *row;
};
template <bool Turned> void load_four(void *const *args) {
  for (int lane = 0; lane < 32; lane++) {
    const Matrices *own = (const Matrices *)args[lane];
    if (!own) broken("ldmatrix without all lanes of its warp");
    for (int i = 0; i < 4; i++) {
      uint16_t words[2];
      for (int half = 0; half < 2; half++) {
        const int row = Turned ? lane % 4 * 2 + half : lane / 4, col = Turned ? lane / 4 : lane % 4 * 2 + half;
        memcpy(&words[half], (const uint8_t *)((const Matrices *)args[8 * i + row])->row + 2 * col, 2);
      }
      own->d[i] = (uint32_t)words[1] << 16 | words[0];
    }
  }
}

template <bool Turned> void store_four(void *const *args) {
  for (int lane = 0; lane < 32; lane++) {
    const Matrices *own = (const Matrices *)args[lane];
    if (!own) broken("stmatrix without all lanes of its warp");
    for (int i = 0; i < 4; i++) {
      for (int half = 0; half < 2; half++) {
        const int row = Turned ? lane % 4 * 2 + half : lane / 4, col = Turned ? lane / 4 : lane % 4 * 2 + half;
        const uint16_t word = (uint16_t)(own->d[i] >> 16 * half);
        memcpy((uint8_t *)const_cast<void *>(((const Matrices *)args[8 * i + row])->row) + 2 * col, &word, 2);
      }
    }
  }
}

void turn(void *const *args) {
  uint16_t m[8][8];
  for (int lane = 0; lane < 32; lane++) {
    if (!args[lane]) broken("movmatrix without all lanes of its warp");
    const uint32_t v = *(const uint32_t *)args[lane];
    m[lane / 4][lane % 4 * 2] = (uint16_t)v;
    m[lane / 4][lane % 4 * 2 + 1] = (uint16_t)(v >> 16);
  }
  for (int lane = 0; lane < 32; lane++)
    *(uint32_t *)args[lane] = (uint32_t)m[lane % 4 * 2 + 1][lane / 4] << 16 | m[lane % 4 * 2][lane / 4];
}

} // namespace

void wgmma_compute(const WgmmaOp *const *lanes) {
  const WgmmaOp &op = *lanes[0];
  const int n = op.n, k = op.kind == WgmmaOp::E4M3 ? 32 : 16;
  static thread_local float a[64 * 32], b[32 * 256], out[64 * 256];
  for (int t = 1; t < 128; t++) {
    const WgmmaOp &other = *lanes[t];
    if (other.kind != op.kind || other.n != n || other.a != op.a || other.b != op.b || (other.add != 0) != (op.add != 0))
      broken("threads 0 and %d of a warpgroup have different wgmma", t);
  }
  if (op.kind == WgmmaOp::BF16_REGISTERS || op.kind == WgmmaOp::BF16_REGISTERS_TURNED || op.kind == WgmmaOp::F16_REGISTERS) {
    for (int t = 0; t < 128; t++) read_a(lanes[t]->regs, t % 32, op.kind != WgmmaOp::F16_REGISTERS, a + t / 32 * 16 * 16, 16);
  } else {
    read_rows(op.a, 64, op.kind, a, k, 1);
  }
  if (op.kind == WgmmaOp::BF16_TURNED || op.kind == WgmmaOp::BF16_REGISTERS_TURNED) read_turned(op.b, n, b);
  else read_rows(op.b, n, op.kind, b, 1, n);
  static const bool avx2 = __builtin_cpu_supports("avx2");
  (avx2 ? multiply_avx2 : multiply_any)(a, b, out, n, k);
  for (int t = 0; t < 128; t++) {
    float *d = lanes[t]->d;
    const float *row = out + (t / 32 * 16 + t % 32 / 4) * n + t % 4 * 2;
    for (int j = 0; j < n / 8; j++) {
      for (int q = 0; q < 4; q++) {
        const float v = row[q / 2 * 8 * n + j * 8 + q % 2];
        d[4 * j + q] = op.add ? d[4 * j + q] + v : v;
      }
    }
  }
}

void mma_16816(float *d, const uint32_t *a, const uint32_t *b, bool bf16) {
  Mma m = {d, a, b, bf16};
  meet_warp(~0u, "mma.sync", &m, compute_mma);
}

void load_matrices(uint32_t *d, const void *row, bool turned) {
  check_row(row, "ldmatrix");
  Matrices m = {d, row};
  meet_warp(~0u, "ldmatrix", &m, turned ? load_four<true> : load_four<false>);
}

void store_matrices(void *row, const uint32_t *d, bool turned) {
  check_row(row, "stmatrix");
  Matrices m = {const_cast<uint32_t *>(d), row};
  meet_warp(~0u, "stmatrix", &m, turned ? store_four<true> : store_four<false>);
}

uint32_t turn_matrix(uint32_t v) {
  meet_warp(~0u, "movmatrix", &v, turn);
  return v;
}

} // namespace emu
