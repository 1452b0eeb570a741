// How F32 matrices lie on the device: row after row, `cols` rounded up to 8 apart, zero between. Every other form is tiles.
#pragma once

#include "tiles.cuh"

// Columns that a lane takes at once.
constexpr uint32_t RUN = 8;

struct rows_f32 {
  static __device__ __forceinline__ size_t place(const Tiles& w, uint32_t row, uint32_t col) {
    return (size_t)row * ((w.cols + RUN - 1) / RUN * RUN) + col;
  }
};

template <>
__device__ __forceinline__ float value_at<rows_f32>(const Tiles& w, uint32_t row, uint32_t col) {
  return reinterpret_cast<const float*>(w.records)[rows_f32::place(w, row, col)];
}
