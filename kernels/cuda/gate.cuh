// Rows that a launch makes of the sums of its two products, a gate and what it gates, in tiles as the product that takes them wants
// them (tiles.cuh): the bits that input.cu makes of the same sums. Both products have one shape, whole chunks of outs, and no bias.
#pragma once

#include "input.cuh"
#include "linear.cuh"

// Eight rows by eight columns of a tile.
constexpr uint32_t GATE_GROUP_BYTES = 128;

// Words of tiles, of two neighbouring columns each.
template <uint32_t COUNT>
__device__ __forceinline__ void gate_pairs(const Linear& p, const float2 (&gate)[COUNT], const float2 (&up)[COUNT],
                                           uint32_t (&words)[COUNT]) {
  float values[2 * COUNT];
#pragma unroll
  for (uint32_t i = 0; i < COUNT; i++) values[2 * i] = gate[i].x, values[2 * i + 1] = gate[i].y;
  activate(p.gate, values);
#pragma unroll
  for (uint32_t i = 0; i < COUNT; i++) words[i] = row_pair(values[2 * i] * up[i].x, values[2 * i + 1] * up[i].y, p.half);
}
