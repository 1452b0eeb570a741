// The rows that an operation takes, and what becomes of each on its way there (src/device.rs, `Input`).
//
// Order of a norm's sum, by `cols` alone: thread i of the block has columns i, i + 256, …, a chain of fused multiply-adds;
// then the trees of the warps, then the warps first to last.
#pragma once

#include "common.cuh"

struct Input {
  const float* x;      // rows, or the gate; [rows, cols]
  const float* other;  // weight of the norm [cols], or up [rows, cols]
  uint32_t kind;       // 0 rows, 1 normed, gated by 2 SiLU, 3 GELU by tanh, 4 GELU by erf
  uint32_t cols;
  uint32_t span;  // columns that a block makes, from blockIdx.y * span on; of a norm all of them
  float eps;
};
static_assert(sizeof(Input) == 32, "src/cuda/params.rs asserts the same size");

constexpr uint32_t INPUT_THREADS = 256;
// Values of a thread that are asked for at once: a row of 4,096 in all.
constexpr uint32_t INPUT_HELD = 16;
// The same of a gate, which has two for each.
constexpr uint32_t GATE_HELD = 8;

// Side by side, as a value alone is a chain of instructions that wait for one another.
template <uint32_t COUNT>
__device__ __forceinline__ void activate(uint32_t kind, float (&x)[COUNT]) {
  if (kind == 2) {
    float below[COUNT];
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) below[i] = 1.0f + expf(-x[i]);
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) x[i] = x[i] / below[i];
  } else if (kind == 3) {
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) x[i] = 0.5f * x[i] * (1.0f + tanhf(0.7978846f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
  } else {
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) x[i] = 0.5f * x[i] * (1.0f + erff(x[i] * 0.70710678f));
  }
}

__device__ __forceinline__ float activate(uint32_t kind, float x) {
  float alone[1] = {x};
  activate(kind, alone);
  return alone[0];
}

// Blocks of more threads sum more than once, and each value is used once.
template <uint32_t THREADS, class Use>
__device__ __forceinline__ void normed_row(const Input& p, const float* x, Use use) {
  constexpr uint32_t TIMES = THREADS / INPUT_THREADS;
  __shared__ float warps[THREADS / WARP];
  const uint32_t thread = threadIdx.x % INPUT_THREADS, time = threadIdx.x / INPUT_THREADS;
  float held[INPUT_HELD], weights[INPUT_HELD], sum = 0.0f;
#pragma unroll
  for (uint32_t k = 0; k < INPUT_HELD; k++) {
    const uint32_t i = k * INPUT_THREADS + thread;
    held[k] = i < p.cols ? x[i] : 0.0f;
    weights[k] = i < p.cols ? p.other[i] : 0.0f;
  }
#pragma unroll
  for (uint32_t k = 0; k < INPUT_HELD; k++) sum = fmaf(held[k], held[k], sum);
  constexpr uint32_t BEHIND = INPUT_HELD * INPUT_THREADS;
  for (uint32_t i = BEHIND + thread; i < p.cols; i += INPUT_THREADS) sum = fmaf(x[i], x[i], sum);
  // `1 / sqrt(mean(x²) + eps)`
  const float factor = 1.0f / sqrtf(block_sum<INPUT_THREADS>(sum, warps + time * (INPUT_THREADS / WARP), thread) / (float)p.cols + p.eps);
#pragma unroll
  for (uint32_t k = 0; k < INPUT_HELD; k++) {
    const uint32_t i = k * INPUT_THREADS + thread;
    if (k % TIMES == time && i < p.cols) use(i, held[k] * factor * weights[k]);
  }
  for (uint32_t i = BEHIND + threadIdx.x; i < p.cols; i += THREADS) use(i, x[i] * factor * p.other[i]);
}

// Gives the values of row `row` that are this block's to `use(column, value)`, by all threads. A column is always the same
// thread's.
template <uint32_t THREADS = INPUT_THREADS, class Use>
__device__ __forceinline__ void input_row(const Input& p, uint32_t row, Use use) {
  const float* x = p.x + (size_t)row * p.cols;
  if (p.kind == 1) return normed_row<THREADS>(p, x, use);
  const float* other = p.other + (size_t)row * p.cols;
  const uint32_t first = blockIdx.y * p.span, end = min(p.cols, first + p.span);
  for (uint32_t at = first + threadIdx.x; at < end; at += GATE_HELD * THREADS) {
    float held[GATE_HELD], others[GATE_HELD];
#pragma unroll
    for (uint32_t k = 0; k < GATE_HELD; k++) {
      const uint32_t i = at + k * THREADS;
      held[k] = i < end ? x[i] : 0.0f;
      others[k] = i < end && p.kind != 0 ? other[i] : 0.0f;
    }
#pragma unroll
    for (uint32_t k = 0; k < GATE_HELD; k++) {
      const uint32_t i = at + k * THREADS;
      if (i < end) use(i, p.kind == 0 ? held[k] : activate(p.kind, held[k]) * others[k]);
    }
  }
}
