// The rows that an operation takes, and what becomes of each on its way there (src/device.rs, `Input`).
//
// Order of a norm's sum, by `cols` alone: thread i of the block has columns i, i + 256, …, a chain of fused multiply-adds;
// then the trees of the warps, then the warps first to last.
#pragma once

#include "common.cuh"

struct Input {
  const float* x;       // rows, or the gate; [rows, cols]
  const float* other;   // weight of the norm [cols], or up [rows, cols]
  uint32_t kind;        // 0 rows, 1 normed, 2 gated
  uint32_t activation;  // 0 SiLU, 1 GELU by tanh, 2 GELU by erf
  uint32_t cols;
  float eps;
};
static_assert(sizeof(Input) == 32, "src/cuda/params.rs asserts the same size");

constexpr uint32_t INPUT_THREADS = 256;

__device__ __forceinline__ float activate(uint32_t activation, float x) {
  if (activation == 0) return x / (1.0f + expf(-x));
  if (activation == 1) return 0.5f * x * (1.0f + tanhf(0.7978846f * (x + 0.044715f * x * x * x)));
  return 0.5f * x * (1.0f + erff(x * 0.70710678f));
}

// `1 / sqrt(mean(x²) + eps)` of a row, for all threads of the block.
__device__ __forceinline__ float norm_factor(const float* x, uint32_t cols, float eps, float* warps) {
  float sum = 0.0f;
  for (uint32_t i = threadIdx.x; i < cols; i += INPUT_THREADS) sum = fmaf(x[i], x[i], sum);
  return 1.0f / sqrtf(block_sum<INPUT_THREADS>(sum, warps) / (float)cols + eps);
}

// Gives every value of row `row` to `use(column, value)`, by all threads of the block.
template <class Use>
__device__ __forceinline__ void input_row(const Input& p, uint32_t row, Use use) {
  __shared__ float warps[INPUT_THREADS / WARP];
  const float* x = p.x + (size_t)row * p.cols;
  const float factor = p.kind == 1 ? norm_factor(x, p.cols, p.eps, warps) : 1.0f;
  for (uint32_t i = threadIdx.x; i < p.cols; i += INPUT_THREADS) {
    float value = x[i];
    if (p.kind == 1) value = value * factor * p.other[i];
    if (p.kind == 2) value = activate(p.activation, value) * p.other[(size_t)row * p.cols + i];
    use(i, value);
  }
}
