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

// Where such tiles have sixteen columns, of rows that lie at `place`.
__device__ __forceinline__ uint8_t* gated_at(const Linear& p, const RowPlace& place, uint32_t col) {
  return p.gated + place.start + (size_t)(col / CHUNK) * place.apart + col % CHUNK / 8 * GATE_GROUP_BYTES;
}

// What the next product takes of a fragment of the first product and of the second: eight rows from `first_row` on and sixteen columns,
// which lie at `to`. Neighbouring columns are those of lanes four apart: of two rows each keeps one, and gives the other away.
__device__ __forceinline__ void store_gated(const Linear& p, uint8_t* to, uint32_t first_row, uint32_t lane, const float (&gate)[4],
                                            const float (&up)[4]) {
  const uint32_t second = lane / 4 % 2, row = lane % 4 * 2 + second;
  float2 gates[2], ups[2];
#pragma unroll
  for (uint32_t i = 0; i < 2; i++) {
    const auto both = [lane, second, i](const float(&sums)[4]) {
      const float mine = second ? sums[2 * i + 1] : sums[2 * i];
      const float other = __shfl_xor_sync(ALL_LANES, second ? sums[2 * i] : sums[2 * i + 1], 4);
      return second ? float2{other, mine} : float2{mine, other};
    };
    gates[i] = both(gate), ups[i] = both(up);
  }
  uint32_t words[2];
  gate_pairs(p, gates, ups, words);
  if (first_row + row >= p.num_rows) return;
  to += row_place(row, lane / 8 * 2);
  *reinterpret_cast<uint32_t*>(to) = words[0];
  *reinterpret_cast<uint32_t*>(to + GATE_GROUP_BYTES) = words[1];
}
