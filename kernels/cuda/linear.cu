// Product: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]
//   x [rows, cols] f32; weight [outs, cols] of any form (tiles.cuh, weights.cuh); bias [outs] f32 or none; out [rows, outs] f32
// Launch:  grid = (outs / OUTS rounded up, rows / ROWS rounded up), block = 128. `linear_<type>_<ROWS>`, ROWS 1, 4 or 16; OUTS
//          16, for 16 rows 8.
// Bound:   memory up to a handful of rows (the stored bytes of weight once for ROWS rows), then f32 arithmetic: 2 * rows *
//          outs * cols operations, and for quantised types two more for each stored value and ROWS rows.
// Meaning: src/reference/mod.rs, `linear`.
// Source:  none; the product as it is written above.
//
// Order of a sum, by `cols` alone: lane l of a warp has columns 256 k + 8 l .. 256 k + 8 l + 8 for k = 0, 1, …, one chain of
// fused multiply-adds in ascending order; then the tree of `warp_sum`; then the bias. It is the same for every ROWS, so a row
// has the same bits in any batch.
#include "weights.cuh"

struct Linear {
  const float* x;
  const float* bias;
  float* out;
  Tiles weight;
  uint32_t rows;
  uint32_t outs;
};
static_assert(sizeof(Linear) == 48, "src/cuda/params.rs asserts the same size");

// Eight neighbours of a row: `Raw` is what is taken from memory, `convert` makes the values.
template <class Form>
struct Run {
  struct Raw {
    float values[RUN];
  };
  static __device__ __forceinline__ Raw load(const Tiles& w, uint32_t row, uint32_t col) {
    Raw raw;
#pragma unroll
    for (uint32_t i = 0; i < RUN; i++) raw.values[i] = value_at<Form>(w, row, col + i);
    return raw;
  }
  static __device__ __forceinline__ void convert(const Raw& raw, float (&out)[RUN]) {
#pragma unroll
    for (uint32_t i = 0; i < RUN; i++) out[i] = raw.values[i];
  }
};

template <>
struct Run<rows_f32> {
  struct Raw {
    float4 low, high;
  };
  static __device__ __forceinline__ Raw load(const Tiles& w, uint32_t row, uint32_t col) {
    const float4* x = reinterpret_cast<const float4*>(w.records) + rows_f32::place(w, row, col) / 4;
    return {__ldcs(x), __ldcs(x + 1)};
  }
  static __device__ __forceinline__ void convert(const Raw& raw, float (&out)[RUN]) {
    out[0] = raw.low.x, out[1] = raw.low.y, out[2] = raw.low.z, out[3] = raw.low.w;
    out[4] = raw.high.x, out[5] = raw.high.y, out[6] = raw.high.z, out[7] = raw.high.w;
  }
};

constexpr uint32_t LINEAR_THREADS = 128;
constexpr uint32_t LINEAR_COLS = WARP * RUN;

// Where column `col` of a chunk lies: first and second halves of runs apart, so that lanes which read four values each, one
// beside the other, meet no bank twice.
__device__ __forceinline__ uint32_t place(uint32_t col) {
  return col % RUN / 4 * (LINEAR_COLS / 2) + col / RUN * 4 + col % 4;
}

// LINEAR_OUTS: outputs of a warp, as many as registers hold sums for.
template <class Form, uint32_t ROWS, uint32_t LINEAR_OUTS>
__device__ __forceinline__ void linear(const Linear& p) {
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
    typename Run<Form>::Raw raw[LINEAR_OUTS] = {};
    if (col < cols) {
#pragma unroll
      for (uint32_t o = 0; o < LINEAR_OUTS; o++) {
        const uint32_t j = min(first_out + o, p.outs - 1);
        raw[o] = Run<Form>::load(p.weight, j, col);
      }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < ROWS * LINEAR_COLS; i += LINEAR_THREADS) {
      const uint32_t row = first_row + i / LINEAR_COLS, at = chunk + i % LINEAR_COLS;
      x[i / LINEAR_COLS][place(i % LINEAR_COLS)] = row < p.rows && at < cols ? p.x[(size_t)row * cols + at] : 0.0f;
    }
    __syncthreads();
    if (col < cols) {
      float values[LINEAR_OUTS][RUN];
#pragma unroll
      for (uint32_t o = 0; o < LINEAR_OUTS; o++) Run<Form>::convert(raw[o], values[o]);
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
        const float4 low = *reinterpret_cast<const float4*>(&x[r][lane * 4]);
        const float4 high = *reinterpret_cast<const float4*>(&x[r][LINEAR_COLS / 2 + lane * 4]);
#pragma unroll
        for (uint32_t o = 0; o < LINEAR_OUTS; o++) {
          const float* w = values[o];
          float sum = sums[o][r];
          sum = fmaf(w[0], low.x, sum), sum = fmaf(w[1], low.y, sum);
          sum = fmaf(w[2], low.z, sum), sum = fmaf(w[3], low.w, sum);
          sum = fmaf(w[4], high.x, sum), sum = fmaf(w[5], high.y, sum);
          sums[o][r] = fmaf(w[7], high.w, fmaf(w[6], high.z, sum));
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
      if (lane == 0 && j < p.outs && row < p.rows) {
        p.out[(size_t)row * p.outs + j] = p.bias ? sum + p.bias[j] : sum;
      }
    }
  }
}

#define LINEAR(name, Form)                                                     \
  KERNEL(LINEAR_THREADS, linear_##name##_1, Linear) { linear<Form, 1, 4>(p); } \
  KERNEL(LINEAR_THREADS, linear_##name##_4, Linear) { linear<Form, 4, 4>(p); } \
  KERNEL(LINEAR_THREADS, linear_##name##_16, Linear) { linear<Form, 16, 2>(p); }
LINEAR(f32, rows_f32)
LINEAR(f16, tile_f16)
LINEAR(bf16, tile_bf16)
LINEAR(q8_0, tile_q8_0)
LINEAR(q4_0, tile_q4_0)
LINEAR(q4_1, tile_q4_1)
LINEAR(q4_k, tile_q4_k)
LINEAR(wide, tile_wide)
#undef LINEAR
