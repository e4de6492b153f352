// How a Hopper tensor core adds products of e4m3 values (wgmma ... f32.e4m3.e4m3, 32 products an
// instruction). The sum is not fp32: all products and the sum so far are shifted to the largest
// exponent among them and cut off 13 bits behind it, towards zero; what is left is added exactly,
// and the result is cut off 13 bits behind its own leading one. A product's exponent is the sum of
// its factors' exponents, whatever its value (between 1 and 4).
//
// Sources: DeepSeek-AI, "DeepSeek-V3 Technical Report", 3.5.2 ("14 bits"); Xie et al., "MMA-Sim:
// Bit-Accurate Reference Model of Tensor Cores and Matrix Cores", arXiv 2511.10909. Held against
// the card bit by bit by the tool that checks kernels.
#ifndef MOB_CPU_TENSOR_SUMS_H
#define MOB_CPU_TENSOR_SUMS_H

#include <stdint.h>

#include "engine/cpu/ops.h"

enum { MOB_TENSOR_GROUP = 32, MOB_TENSOR_BLOCK = 128, MOB_TENSOR_BITS = 13 };

// Sum of 128 products of e4m3 codes, four instructions on one accumulator that begins at zero. The
// specification; a NaN gives a NaN.
float mob_tensor_sum(const uint8_t *a, const uint8_t *b);

// y[i][r - r0] as ops->gemm() of an FP8 matrix, but sums of 128 columns as above, each then
// multiplied by its scales and added in fp32. x: rows quantised 1 x 128 (mob__quantise_e4m3);
// `ue8m0`: with scales that are powers of two.
void mob_tensor_gemm(const mob_mat_t *w, int64_t r0, int64_t r1, const float *const *x,
                     float *const *y, int m, bool ue8m0);

#endif
