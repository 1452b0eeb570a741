// Product in f32: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]
//   x [rows, cols] f32; weight [outs, cols] f32 (weights.cuh); bias [outs] f32 or none; out [rows, outs] f32
// Launch:  grid = (outs / OUTS rounded up, rows / ROWS rounded up), block = 128. `linear_f32_<ROWS>`, ROWS 1, 4 or 16; OUTS
//          16, for 16 rows 8.
// Bound:   memory up to a handful of rows (the bytes of weight once for ROWS rows), then f32 arithmetic: 2 * rows * outs * cols
//          operations.
// Meaning: src/reference/mod.rs, `linear`.
// Source:  none; the product as it is written above.
//
// Order of a sum, by `cols` alone: lane l of a warp has columns 256 k + 8 l .. 256 k + 8 l + 8 for k = 0, 1, …, one chain of
// fused multiply-adds in ascending order; then the tree of `warp_sum`; then the bias. It is the same for every ROWS, so a row
// has the same bits in any batch.
#include "weights.cuh"

struct LinearF32 {
  const float* x;
  const float* bias;
  float* out;
  Tiles weight;
  uint32_t rows;
  uint32_t unused;
};
static_assert(sizeof(LinearF32) == 48, "src/cuda/params.rs asserts the same size");

constexpr uint32_t LINEAR_THREADS = 128;
constexpr uint32_t LINEAR_COLS = WARP * RUN;

// Where column `col` of a chunk lies: first and second halves of runs apart, so that lanes which read four values each, one
// beside the other, meet no bank twice.
__device__ __forceinline__ uint32_t place(uint32_t col) {
  return col % RUN / 4 * (LINEAR_COLS / 2) + col / RUN * 4 + col % 4;
}

// LINEAR_OUTS: outputs of a warp, as many as registers hold sums for.
template <uint32_t ROWS, uint32_t LINEAR_OUTS>
__device__ __forceinline__ void linear_f32(const LinearF32& p) {
  __shared__ __align__(16) float x[ROWS][LINEAR_COLS];
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, cols = p.weight.cols;
  const uint32_t first_out = (blockIdx.x * (LINEAR_THREADS / WARP) + warp) * LINEAR_OUTS;
  const uint32_t first_row = blockIdx.y * ROWS;
  float sums[LINEAR_OUTS][ROWS] = {};
  // Two chunks at once would need more registers than there are.
#pragma unroll 1
  for (uint32_t chunk = 0; chunk < cols; chunk += LINEAR_COLS) {
    const uint32_t col = chunk + lane * RUN;
    // Weights are asked for first: they are what is waited for. What is beyond the last output is read from the last one.
    float4 low[LINEAR_OUTS] = {}, high[LINEAR_OUTS] = {};
    if (col < cols) {
#pragma unroll
      for (uint32_t o = 0; o < LINEAR_OUTS; o++) {
        const uint32_t j = min(first_out + o, p.weight.rows - 1);
        const float4* weight = reinterpret_cast<const float4*>(p.weight.records) + rows_f32::place(p.weight, j, col) / 4;
        low[o] = __ldcs(weight), high[o] = __ldcs(weight + 1);
      }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < ROWS * LINEAR_COLS; i += LINEAR_THREADS) {
      const uint32_t row = first_row + i / LINEAR_COLS, at = chunk + i % LINEAR_COLS;
      x[i / LINEAR_COLS][place(i % LINEAR_COLS)] = row < p.rows && at < cols ? p.x[(size_t)row * cols + at] : 0.0f;
    }
    __syncthreads();
    if (col < cols) {
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
        const float4 a = *reinterpret_cast<const float4*>(&x[r][lane * 4]);
        const float4 b = *reinterpret_cast<const float4*>(&x[r][LINEAR_COLS / 2 + lane * 4]);
#pragma unroll
        for (uint32_t o = 0; o < LINEAR_OUTS; o++) {
          float sum = sums[o][r];
          sum = fmaf(low[o].x, a.x, sum), sum = fmaf(low[o].y, a.y, sum);
          sum = fmaf(low[o].z, a.z, sum), sum = fmaf(low[o].w, a.w, sum);
          sum = fmaf(high[o].x, b.x, sum), sum = fmaf(high[o].y, b.y, sum);
          sums[o][r] = fmaf(high[o].w, b.w, fmaf(high[o].z, b.z, sum));
        }
      }
    }
  }
#pragma unroll
  for (uint32_t o = 0; o < LINEAR_OUTS; o++) {
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
      const float sum = warp_sum(sums[o][r]);
      const uint32_t j = first_out + o, row = first_row + r;
      if (lane == 0 && j < p.weight.rows && row < p.rows) {
        p.out[(size_t)row * p.weight.rows + j] = p.bias ? sum + p.bias[j] : sum;
      }
    }
  }
}

KERNEL(LINEAR_THREADS, linear_f32_1, LinearF32) { linear_f32<1, 4>(p); }
KERNEL(LINEAR_THREADS, linear_f32_4, LinearF32) { linear_f32<4, 4>(p); }
KERNEL(LINEAR_THREADS, linear_f32_16, LinearF32) { linear_f32<16, 2>(p); }
