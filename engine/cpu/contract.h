// The numeric contract of the CUDA backend, computed by the CPU (mob_exec_spec_t.contract): results
// are rounded where that backend rounds, so that the two differ by the order of sums alone and can
// be held against each other.
//
//   weights      BF16; FP8 where every tile of 64 x 128 lies in one block of scales, else
//                dequantised and rounded to BF16
//   linears      input 1 x 128 e4m3 (scale max(amax, 1e-10) / 448, a power of two with ue8m0) for
//                FP8 weights, BF16 for BF16 ones; sums fp32, or with spec.tensor_sums, of e4m3
//                products, as tensor_sums.h says; result BF16 before any bias. The
//                router's input and result, and the logits, stay fp32
//   residual     fp32; norms, softmax, router, SiLU fp32 from BF16 values, and straight to the next
//                linear's input
//   keys, values BF16
//   MLA, tiles   (512 + 64 + 128 + 128 with FP8 kv_b): queries in latent space BF16, probabilities
//                BF16, parts of split keys FP16; prompts of 64 rows and more with expanded keys:
//                latents e4m3, keys and values BF16
//   GQA, tiles   (heads of 64 or 128): probabilities BF16, over blocks of 64 keys in prompts of 32
//                rows and more, else over every fourth run of 16 keys; results fp32
//   attention    otherwise: probabilities fp32, latent results fp32, results BF16
//   ranks        parts BF16, summed in fp32 in the order of ranks; BF16 sums for very many rows that have
//                no owner (from 257 on each has one)
#ifndef MOB_CPU_CONTRACT_H
#define MOB_CPU_CONTRACT_H

#include "engine/cpu/exec.h"

// Replaces matrices that the CUDA backend does not hold as the file has them. After the weights are
// read; fills `exec->contract`.
mob_status mob__contract_weights(mob_exec_t *exec);
void mob__contract_linear(mob_rank_t *rank, const mob_mat_t *w, const float *bias, const float *x,
                          int64_t ldx, float *y, int64_t ldy, int m);
// One row of a linear's input as the kernel of `w` reads it: `cols` values; out may be x.
void mob__contract_input(const mob_exec_t *exec, const mob_mat_t *w, const float *x, int64_t cols,
                         float *out);
// ops->gemm() for inputs rounded so.
void mob__contract_gemm(const mob_exec_t *exec, const mob_mat_t *w, int64_t r0, int64_t r1,
                        const float *const *x, float *const *y, int m);
float mob__round_e4m3(float x);
// Of 128 values whose largest is amax.
float mob__e4m3_scale(float amax, bool ue8m0);
void mob__round_bf16(float *x, int64_t n);
void mob__round_f16(float *x, int64_t n);
// 1 x 128; out may be x.
void mob__quantise_e4m3(const float *x, int64_t n, bool ue8m0, float *out);

// After parts of `m` rows were summed over ranks.
void mob__contract_sum(const mob_exec_t *exec, float *sum, int m);

// How the rows of a step are attended to, with tiles: 0 = as a prompt (MLA: with expanded keys),
// else as a decode (MLA: absorbed, with keys split in so many parts). `splits` [token_count].
void mob__contract_plan(const mob_exec_t *exec, const mob_job_t *job, int heads, int *splits);

#endif
