// Rows as a product takes them: out[r, :] = x[r, :], or its norm, or its gate (input.cuh); and sum[r, :] += the same
//   x, out, sum [rows, cols] f32; tiles, rest: as tiles.cuh has them, `rest` nearest to what rounding to `tiles` left
// Launch:  block = 256. `input_rows`, `add_rows`: grid = (rows, cols / span rounded up). `input_tiles`, of rows and gates (norms:
//          norm.cu): grid = (rows / 8, cols / span) rounded up, span a multiple of 256.
// Bound:   memory; 6 to 12 bytes a value.
// Meaning: src/reference/mod.rs, `input_row` and `add`.
// Source:  Zhang & Sennrich 2019, arXiv:1910.07467 (norm); Shazeer 2020, arXiv:2002.05202 (gates).
#include "input_tiles.cuh"

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

KERNEL(INPUT_THREADS, add_rows, InputRows) {
  // What a thread adds to, it reads itself.
  float* sum = p.out + (size_t)blockIdx.x * p.input.cols;
  input_row(p.input, blockIdx.x, [sum](uint32_t i, float value) { sum[i] += value; });
}

// A tile of eight rows: of eight lanes each has one, and the same columns; their 128 bytes lie together. A thread loads HELD times
// eight columns before it uses any.
template <uint32_t WIDTH, uint32_t HELD, bool GATED>
__device__ __forceinline__ void tile_columns(const InputTiles& p) {
  constexpr uint32_t APART = INPUT_THREADS / ROW_TILE * EIGHT;
  const uint32_t row = blockIdx.x * ROW_TILE + threadIdx.x % ROW_TILE, cols = p.input.cols;
  if (row >= p.num_rows) return;
  const uint32_t first = blockIdx.y * p.input.span, end = min(chunks_of(cols) * CHUNK, first + p.input.span);
  for (uint32_t at = first + threadIdx.x / ROW_TILE * EIGHT; at < end; at += HELD * APART) {
    const size_t from = (size_t)row * cols + at;
    const uint32_t left = min(left_from(at, cols), end - at);
    float held[HELD][EIGHT], others[HELD][EIGHT];
#pragma unroll
    for (uint32_t k = 0; k < HELD; k++) {
      load_columns<WIDTH, EIGHT>(held[k], p.input.x + from, k * APART, left);
      if (GATED) load_columns<WIDTH, EIGHT>(others[k], p.input.other + from, k * APART, left);
    }
    const RowPlace place = place_of_columns(p, row, at);
#pragma unroll
    for (uint32_t k = 0; k < HELD; k++) {
      if (k * APART >= end - at) break;
      if (GATED) {
        activate(p.input.kind, held[k]);
#pragma unroll
        for (uint32_t i = 0; i < EIGHT; i++) held[k][i] *= others[k][i];
      }
      put_columns(p, place.start + k * (APART / CHUNK) * (size_t)place.apart, held[k]);
    }
  }
}

template <uint32_t WIDTH>
__device__ __forceinline__ void tile_columns(const InputTiles& p) {
  if (p.input.kind == 0) {
    tile_columns<WIDTH, 4, false>(p);
  } else {
    tile_columns<WIDTH, 2, true>(p);
  }
}

KERNEL(INPUT_THREADS, input_tiles, InputTiles) {
  if (in_fours(p.input.cols)) {
    tile_columns<4>(p);
  } else {
    tile_columns<1>(p);
  }
}
