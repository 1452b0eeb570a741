// Rows whose logits are wanted: out[i, :] = x[rows[i], :]
//   x [tokens, cols], out [count, cols] f32; rows [count]
// Launch:  grid = count, block = 256.
// Bound:   memory; 8 bytes a value.
// Meaning: src/reference/mod.rs, `select`.
// Source:  none; a copy.
#include "common.cuh"

struct Select {
  const float* x;
  const uint32_t* rows;
  float* out;
  uint32_t cols;
  uint32_t unused;
};
static_assert(sizeof(Select) == 32, "src/cuda/params.rs asserts the same size");

KERNEL(256, select_rows, Select) {
  const float* x = p.x + (size_t)p.rows[blockIdx.x] * p.cols;
  float* out = p.out + (size_t)blockIdx.x * p.cols;
  for (uint32_t i = threadIdx.x; i < p.cols; i += 256) out[i] = x[i];
}
