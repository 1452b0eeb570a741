// Rows as a product takes them: out[r, :] = x[r, :], or its norm, or its gate (input.cuh); and sum[r, :] += the same
//   x, out, sum [rows, cols] f32; tiles, rest: as tiles.cuh has them, `rest` nearest to what rounding to `tiles` left
// Launch:  grid = (rows, cols / span rounded up), block = 256.
// Bound:   memory; 6 to 14 bytes a value.
// Meaning: src/reference/mod.rs, `input_row` and `add`.
// Source:  Zhang & Sennrich 2019, arXiv:1910.07467 (norm); Shazeer 2020, arXiv:2002.05202 (gates).
#include "input.cuh"
#include "tiles.cuh"

struct InputRows {
  Input input;
  float* out;
};
static_assert(sizeof(InputRows) == 40, "src/cuda/params.rs asserts the same size");

// For products in f32.
KERNEL(INPUT_THREADS, input_rows, InputRows) {
  float* out = p.out + (size_t)blockIdx.x * p.input.cols;
  input_row(p.input, blockIdx.x, [out](uint32_t i, float value) { out[i] = value; });
}

__device__ __forceinline__ void add_row(const Input& p, float* sums, uint32_t row) {
  float* sum = sums + (size_t)row * p.cols;
  input_row(p, row, [sum](uint32_t i, float value) { sum[i] += value; });
}

KERNEL(INPUT_THREADS, add_rows, InputRows) { add_row(p.input, p.out, blockIdx.x); }

struct InputTiles {
  Input input;
  Input added;  // to `sum` before, where there is one; then the input is the norm of `sum`, and spans are whole rows
  float* sum;
  uint8_t* tiles;
  uint8_t* rest;  // or none
  uint32_t half;  // f16, or bf16
  uint32_t unused;
};
static_assert(sizeof(InputTiles) == 96, "src/cuda/params.rs asserts the same size");

__device__ __forceinline__ void put_value(const InputTiles& p, uint32_t row, uint32_t col, float value) {
  const RowPlace place = place_of_rows(gridDim.x, chunks_of(p.input.cols), row / ROW_TILE);
  const size_t at = place.start + (size_t)(col / CHUNK) * place.apart + row_place(row, col % CHUNK);
  const uint32_t bits = row_bits(value, p.half);
  *reinterpret_cast<uint16_t*>(p.tiles + at) = (uint16_t)bits;
  if (p.rest) *reinterpret_cast<uint16_t*>(p.rest + at) = (uint16_t)row_bits(value - row_value(bits, p.half), p.half);
}

KERNEL(INPUT_THREADS, input_tiles, InputTiles) {
  const uint32_t row = blockIdx.x, cols = p.input.cols;
  // What a thread adds to, it reads itself.
  if (p.sum) add_row(p.added, p.sum, row);
  input_row(p.input, row, [&p, row](uint32_t i, float value) { put_value(p, row, i, value); });
  if (blockIdx.y > 0) return;
  for (uint32_t i = cols + threadIdx.x; i < chunks_of(cols) * CHUNK; i += INPUT_THREADS) put_value(p, row, i, 0.0f);
}
