// Rows as a product takes them: out[r, :] = x[r, :], or its norm, or its gate (input.cuh); and sum[r, :] += the same
//   x, out, sum [rows, cols] f32
// Launch:  grid = rows, block = 256.
// Bound:   memory; 8 to 12 bytes a value.
// Meaning: src/reference/mod.rs, `input_row` and `add`.
// Source:  Zhang & Sennrich 2019, arXiv:1910.07467 (norm); Shazeer 2020, arXiv:2002.05202 (gates).
#include "input.cuh"

struct InputRows {
  Input input;
  float* out;
};
static_assert(sizeof(InputRows) == 40, "src/cuda/params.rs asserts the same size");

KERNEL(INPUT_THREADS, input_rows, InputRows) {
  float* out = p.out + (size_t)blockIdx.x * p.input.cols;
  input_row(p.input, blockIdx.x, [out](uint32_t i, float value) { out[i] = value; });
}

KERNEL(INPUT_THREADS, add_rows, InputRows) {
  float* sum = p.out + (size_t)blockIdx.x * p.input.cols;
  input_row(p.input, blockIdx.x, [sum](uint32_t i, float value) { sum[i] += value; });
}
