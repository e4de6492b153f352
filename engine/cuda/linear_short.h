// The e4m3 linear of 17 to 96 tokens of a short matrix; see linear_short.cuh.
#pragma once
#include "kernels.h"

namespace mob {

// True: launched. False: another kernel does it better, or this one cannot.
bool linear_short(const Matrix &w, const Records &x, void *y, int ldy, int m, const LinearScratch &s, cudaStream_t stream);
// The same with K in `cuts` ranges, for measurements and tests; false: that does not fit.
bool linear_short_cut(const Matrix &w, const Records &x, void *y, int ldy, int m, int cuts, const LinearScratch &s, cudaStream_t stream);
void linear_short_prepare(); // once a device, by linear_prepare()

} // namespace mob
