// Rows as tiles (tiles.cuh): what input.cu and norm.cu share. Eight columns of a row are 16 bytes of a tile, which a thread writes
// at once.
#pragma once

#include "input.cuh"
#include "tiles.cuh"

struct InputTiles {
  Input input;
  Input added;  // rows or normed, to `sum` before, where there is one; then the input is the norm of `sum`
  float* sum;
  uint8_t* tiles;
  uint8_t* rest;  // or none
  uint32_t half;  // f16, or bf16
  uint32_t num_rows;
};
static_assert(sizeof(InputTiles) == 96, "src/cuda/params.rs asserts the same size");

// Columns that a thread makes at once.
constexpr uint32_t EIGHT = 8;

// Columns that are loaded at once: four, where rows of so many begin at 16 bytes each.
__device__ __forceinline__ bool in_fours(uint32_t cols) { return cols % 4 == 0; }

// Of `cols` columns those from `at` on.
__device__ __forceinline__ uint32_t left_from(uint32_t at, uint32_t cols) { return at < cols ? cols - at : 0; }

// COUNT columns from number `first` of the `left` that are at `from`, WIDTH at once; zeros where none are left.
template <uint32_t WIDTH, uint32_t COUNT>
__device__ __forceinline__ void load_columns(float* out, const float* from, uint32_t first, uint32_t left) {
#pragma unroll
  for (uint32_t i = 0; i < COUNT; i += WIDTH) {
    if constexpr (WIDTH == 4) {
      const float4 four = first + i < left ? *reinterpret_cast<const float4*>(from + first + i) : float4{0.0f, 0.0f, 0.0f, 0.0f};
      out[i] = four.x, out[i + 1] = four.y, out[i + 2] = four.z, out[i + 3] = four.w;
    } else {
      out[i] = first + i < left ? from[first + i] : 0.0f;
    }
  }
}

// WIDTH columns of a row; none where none are left.
template <uint32_t WIDTH>
__device__ __forceinline__ void store_columns(float* to, const float* values, uint32_t first, uint32_t left) {
  if (first >= left) return;
  if constexpr (WIDTH == 4) {
    *reinterpret_cast<float4*>(to + first) = {values[0], values[1], values[2], values[3]};
  } else {
    to[first] = values[0];
  }
}

// Where the tiles have a row from column `col` on, in bytes; chunks are `apart`.
__device__ __forceinline__ RowPlace place_of_columns(const InputTiles& p, uint32_t row, uint32_t col) {
  const RowPlace tile = place_of_rows(p.num_rows, chunks_of(p.input.cols), row / ROW_TILE);
  return {tile.start + (size_t)(col / CHUNK) * tile.apart + row_place(row, col % CHUNK), tile.apart};
}

// Eight columns of a row, to their place.
__device__ __forceinline__ void put_columns(const InputTiles& p, size_t at, const float (&values)[EIGHT]) {
  uint32_t words[EIGHT / 2];
#pragma unroll
  for (uint32_t i = 0; i < EIGHT / 2; i++) words[i] = row_pair(values[2 * i], values[2 * i + 1], p.half);
  *reinterpret_cast<uint4*>(p.tiles + at) = {words[0], words[1], words[2], words[3]};
  if (!p.rest) return;
#pragma unroll
  for (uint32_t i = 0; i < EIGHT / 2; i++) {
    const float low = row_value(words[i] & 0xffff, p.half), high = row_value(words[i] >> 16, p.half);
    words[i] = row_pair(values[2 * i] - low, values[2 * i + 1] - high, p.half);
  }
  *reinterpret_cast<uint4*>(p.rest + at) = {words[0], words[1], words[2], words[3]};
}
