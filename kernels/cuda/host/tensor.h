// What tensor.cuh wraps, done by the lanes of a warp together through the emulator's exchange. Fragment maps: tensor.cuh.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "host/emulate.h"

namespace emulate {

// c += a * b, 16 x 8 x 16.
template <class ToFloat>
void multiply_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, ToFloat to_float) {
  struct Fragment {
    float a[8], b[4];
  } mine;
  for (uint32_t i = 0; i < 4; i++) {
    mine.a[2 * i] = to_float((uint16_t)a[i]);
    mine.a[2 * i + 1] = to_float((uint16_t)(a[i] >> 16));
  }
  for (uint32_t i = 0; i < 2; i++) {
    mine.b[i] = to_float((uint16_t)(b0 >> 16 * i));
    mine.b[2 + i] = to_float((uint16_t)(b1 >> 16 * i));
  }
  const Given<Fragment> all = exchange(mine);
  const uint32_t g = block.thread % 32 / 4, t = block.thread % 4;
  double sums[4] = {c[0], c[1], c[2], c[3]};
  for (uint32_t k = 0; k < 16; k++) {
    // The lanes that hold this k, and in them the half of the pair, and which pair.
    const uint32_t lane = k % 8 / 2, high = k % 2, upper = k / 8;
    const Fragment rows = all[4 * g + lane];
    const Fragment left = all[4 * (2 * t) + lane], right = all[4 * (2 * t + 1) + lane];
    const double first = rows.a[4 * upper + high], second = rows.a[4 * upper + 2 + high];
    sums[0] += first * left.b[2 * upper + high];
    sums[1] += first * right.b[2 * upper + high];
    sums[2] += second * left.b[2 * upper + high];
    sums[3] += second * right.b[2 * upper + high];
  }
  for (uint32_t i = 0; i < 4; i++) c[i] = (float)sums[i];
}

// `count` matrices of 8 x 8, by the addresses of 8 * count rows.
inline void load_matrices(uint32_t* out, uint32_t count, const void* row, bool transposed) {
  const Given<const uint8_t*> rows = exchange(static_cast<const uint8_t*>(row));
  const uint32_t lane = block.thread % 32, g = lane / 4, t = lane % 4;
  for (uint32_t i = 0; i < count; i++) {
    uint16_t pair[2];
    for (uint32_t n = 0; n < 2; n++) {
      const uint32_t from = transposed ? 2 * t + n : g, at = transposed ? g : 2 * t + n;
      const uint8_t* start = rows[8 * i + from];
      if (reinterpret_cast<uintptr_t>(start) % 16 != 0) {
        std::fprintf(stderr, "row %u of matrix %u is not aligned to 16 bytes: %p\n", from, i, (const void*)start);
        std::abort();
      }
      std::memcpy(&pair[n], start + 2 * at, 2);
    }
    out[i] = pair[0] | (uint32_t)pair[1] << 16;
  }
  // Nobody goes on to overwrite what others still read.
  meet_warp();
}

}  // namespace emulate
