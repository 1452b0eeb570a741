// How matrices and rows lie on the device for tensor cores, and how a lane's share of sixteen columns becomes what they multiply.
//
// A matrix is blocks of 64 rows; a block is chunks of 64 columns; a chunk is four tiles of 16 rows; a tile is one record of
// `Form::RECORD` bytes. So 64 rows are one stream from the first column to the last, read in whole aligned words, in any
// number of pieces. Rows and columns beyond the matrix are zero.
//
// In a record the values come first, each where the lane wants it that multiplies it: `mma.m16n8k16` (and a warp of
// `wgmma.m64nNk16`, from registers) takes from lane l the rows g = l / 4 and g + 8 and of sixteen columns 2 t, 2 t + 1, 2 t + 8 and
// 2 t + 9, where t = l % 4. Value n of a lane is row g + 8 (n / 2 % 2), column 2 t + n % 2 + 8 (n / 4). Then come the scales, as
// lanes of the same g want them: one aligned word for both rows.
//
// Matrices of bf16 are multiplied as they are, with rows in bf16. All others become f16 (`FACTOR` times, so that those which are small
// are not below what it has), with rows in f16 that are divided by as much: two codes take as many instructions as one does in f32,
// and f16 has three bits more. A weight is rounded once from that of `quant::dequantize`, but where groups have codes of scales:
// there scale and minimum are rounded too. Weights reach to 4,094 and rows to a million; what is beyond becomes infinite.
#pragma once

#include <type_traits>

#include "e4m3.cuh"
#include "tensor.cuh"

constexpr uint32_t BLOCK_ROWS = 64;
constexpr uint32_t TILE_ROWS = 16;
constexpr uint32_t BLOCK_TILES = BLOCK_ROWS / TILE_ROWS;
constexpr uint32_t CHUNK = 64;
// Columns of one instruction, and how many of them a chunk has.
constexpr uint32_t STEP = 16;
constexpr uint32_t STEPS = CHUNK / STEP;

struct Tiles {
  const uint8_t* records;
  uint32_t rows;
  uint32_t cols;
};
static_assert(sizeof(Tiles) == 16, "src/cuda/params.rs asserts the same size");

__device__ __forceinline__ uint32_t chunks_of(uint32_t cols) { return (cols + CHUNK - 1) / CHUNK; }

// Number of the record of tile `tile` of the block, chunk `chunk`.
__device__ __forceinline__ size_t record_number(uint32_t chunks, uint32_t block, uint32_t chunk, uint32_t tile) {
  return ((size_t)block * chunks + chunk) * BLOCK_TILES + tile;
}

// Where a value of a tile lies: its lane, and its number there. `row` and `col` are below 16.
struct Place {
  uint32_t lane;
  uint32_t number;
};
__device__ __forceinline__ Place place_of(uint32_t row, uint32_t col) {
  return {row % 8 * 4 + col % 8 / 2, (col / 8 * 2 + row / 8) * 2 + col % 2};
}

// What a lane multiplies of sixteen columns: eight values of 16 bits, in the order above.
struct Fragment {
  uint32_t words[4];
};

// Of f16 operands. A power of two: nothing is rounded by it.
constexpr float FACTOR = 16.0f;

// A value of a row as it is multiplied, with f16 or with bf16; and what these bits stand for.
__device__ __forceinline__ uint32_t row_bits(float value, bool half) {
  return half ? float_to_half(value * (1.0f / FACTOR)) : pack_bf16(value, 0.0f) & 0xffff;
}
// Of two neighbouring columns.
__device__ __forceinline__ uint32_t row_pair(float low, float high, bool half) {
  return half ? pack_half(low * (1.0f / FACTOR), high * (1.0f / FACTOR)) : pack_bf16(low, high);
}
__device__ __forceinline__ float row_value(uint32_t bits, bool half) {
  return half ? half_to_float((uint16_t)bits) * FACTOR : __uint_as_float(bits << 16);
}
template <class Form>
constexpr bool IS_HALF = std::is_same<typename Form::Pair, half_pair>::value;

// Of sixteen columns the scales and minima of rows g and g + 8, each twice and `FACTOR` times.
struct Scales {
  uint32_t low_scale, low_minimum, high_scale, high_minimum;
};

__device__ __forceinline__ Fragment scaled(const uint32_t (&codes)[4], const Scales& s) {
  return {{fma_halves(codes[0], s.low_scale, s.low_minimum), fma_halves(codes[1], s.high_scale, s.high_minimum),
           fma_halves(codes[2], s.low_scale, s.low_minimum), fma_halves(codes[3], s.high_scale, s.high_minimum)}};
}

// Of row g in the lower half of `scales`, of g + 8 in the upper.
__device__ __forceinline__ Fragment scaled(const uint32_t (&codes)[4], uint32_t scales) {
  const uint32_t both = multiply_halves(scales, twice(FACTOR)), low = twice_low(both), high = twice_high(both);
  return {{multiply_halves(codes[0], low), multiply_halves(codes[1], high), multiply_halves(codes[2], low),
           multiply_halves(codes[3], high)}};
}

// Of row g scale and minimum in the halves of `low`, of g + 8 in those of `high`; `FACTOR` times.
__device__ __forceinline__ Fragment scaled(const uint32_t (&codes)[4], uint32_t low, uint32_t high) {
  return scaled(codes, Scales{twice_low(low), twice_high(low), twice_low(high), twice_high(high)});
}

// Codes become f16 as the last bits of 1,024, which is then taken away: both are exact. `MASK` of the word are the bits; one
// instruction, where the compiler would take two.
constexpr uint32_t ABOVE = 0x64006400u;
template <uint32_t MASK>
__device__ __forceinline__ uint32_t above(uint32_t word) {
#ifdef CHRYSALIS_EMULATE
  return (word & MASK) | ABOVE;
#else
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(word), "n"(MASK), "n"(ABOVE));
  return bits;
#endif
}

// Four-bit codes less `ZERO`: pair w in bits 4 w of both halves.
template <uint32_t ZERO>
__device__ __forceinline__ void four_bits(uint32_t word, uint32_t (&codes)[4]) {
  constexpr uint32_t NONE = twice(-1024.0f - ZERO), NONE_16TH = twice(-64.0f - ZERO), A_16TH = twice(1.0f / 16.0f);
  const uint32_t upper = word >> 8;
  codes[0] = add_halves(above<0x000f000f>(word), NONE);
  codes[1] = fma_halves(above<0x00f000f0>(word), A_16TH, NONE_16TH);
  codes[2] = add_halves(above<0x000f000f>(upper), NONE);
  codes[3] = fma_halves(above<0x00f000f0>(upper), A_16TH, NONE_16TH);
}

// Bytes n and n + 1 above 1,024.
__device__ __forceinline__ uint32_t bytes_above(uint32_t word, uint32_t n) {
  return __byte_perm(word, ABOVE, 0x7070 | n | (n + 1) << 8);
}

// Bytes less 128.
__device__ __forceinline__ void eight_bits(uint2 words, uint32_t (&codes)[4]) {
  constexpr uint32_t NONE = twice(-1024.0f - 128.0f);
#pragma unroll
  for (uint32_t w = 0; w < 4; w++) codes[w] = add_halves(bytes_above(w < 2 ? words.x : words.y, w % 2 * 2), NONE);
}

__device__ __forceinline__ uint4 word16(const uint8_t* at) { return *reinterpret_cast<const uint4*>(at); }
__device__ __forceinline__ uint2 word8(const uint8_t* at) { return *reinterpret_cast<const uint2*>(at); }
__device__ __forceinline__ uint32_t word4(const uint8_t* at) { return *reinterpret_cast<const uint32_t*>(at); }
__device__ __forceinline__ uint32_t word2(const uint8_t* at) { return *reinterpret_cast<const uint16_t*>(at); }

// Where value (row, col) of a record lies, row below 16, col below 64: its byte where values have two bytes, or one; and, where
// they have four bits, its code.
__device__ __forceinline__ uint32_t two_byte_place(uint32_t row, uint32_t col) {
  const Place p = place_of(row, col % STEP);
  return (col / STEP * WARP + p.lane) * 16 + p.number * 2;
}
__device__ __forceinline__ uint32_t one_byte_place(uint32_t row, uint32_t col) {
  const Place p = place_of(row, col % STEP);
  return col / 32 * 512 + p.lane * 16 + col / STEP % 2 * 8 + p.number;
}
__device__ __forceinline__ uint32_t four_bit_code(const uint8_t* record, uint32_t row, uint32_t col) {
  const Place p = place_of(row, col % STEP);
  return word4(record + p.lane * 16 + col / STEP * 4) >> (p.number / 2 * 4 + p.number % 2 * 16) & 15;
}

// Each form: `RECORD` bytes of a tile; `Pair`, what multiplies it; `Raw`, what a lane takes of them; `load` takes it, from any memory;
// `fragment` makes what is multiplied in step 0 to 3; `value` is one value, exactly.

struct tile_bf16 {
  using Pair = bf16_pair;
  static constexpr uint32_t RECORD = 2048;
  struct Raw {
    uint4 steps[STEPS];
  };
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) {
    Raw raw;
#pragma unroll
    for (uint32_t s = 0; s < STEPS; s++) raw.steps[s] = word16(record + (s * WARP + lane) * 16);
    return raw;
  }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint4 w = raw.steps[step];
    return {{w.x, w.y, w.z, w.w}};
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    return __uint_as_float(word2(record + two_byte_place(row, col)) << 16);
  }
};

struct tile_f16 {
  using Pair = half_pair;
  static constexpr uint32_t RECORD = 2048;
  using Raw = tile_bf16::Raw;
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) { return tile_bf16::load(record, lane); }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    Fragment f = tile_bf16::fragment(raw, step);
#pragma unroll
    for (uint32_t w = 0; w < 4; w++) f.words[w] = multiply_halves(f.words[w], twice(FACTOR));
    return f;
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    return half_to_float((uint16_t)word2(record + two_byte_place(row, col)));
  }
};

// Q8_0, and Q5_0 as such: for each g the f16 scales of (columns 0 to 31, row g), (the same, g + 8), (32 to 63, g), (32 to 63, g + 8).
struct tile_q8_0 {
  using Pair = half_pair;
  static constexpr uint32_t RECORD = 1024 + 64;
  struct Raw {
    uint4 halves[2];
    uint2 scales;
  };
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) {
    return {{word16(record + lane * 16), word16(record + 512 + lane * 16)}, word8(record + 1024 + lane / 4 * 8)};
  }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint4 half = raw.halves[step / 2];
    const uint2 words = step % 2 ? uint2{half.z, half.w} : uint2{half.x, half.y};
    const uint32_t scales = step / 2 ? raw.scales.y : raw.scales.x;
    uint32_t codes[4];
    // Signed bytes with their highest bit changed are 128 more.
    eight_bits({words.x ^ 0x80808080u, words.y ^ 0x80808080u}, codes);
    return scaled(codes, scales);
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint32_t scale = word2(record + 1024 + row % 8 * 8 + col / 32 * 4 + row / 8 * 2);
    return half_to_float((uint16_t)scale) * (float)(int8_t)record[one_byte_place(row, col)];
  }
};

// Q4_0: scales as Q8_0.
struct tile_q4_0 {
  using Pair = half_pair;
  static constexpr uint32_t RECORD = 512 + 64;
  struct Raw {
    uint4 steps;
    uint2 scales;
  };
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) {
    return {word16(record + lane * 16), word8(record + 512 + lane / 4 * 8)};
  }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint32_t words[STEPS] = {raw.steps.x, raw.steps.y, raw.steps.z, raw.steps.w};
    uint32_t codes[4];
    four_bits<8>(words[step], codes);
    return scaled(codes, step / 2 ? raw.scales.y : raw.scales.x);
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint32_t scale = word2(record + 512 + row % 8 * 8 + col / 32 * 4 + row / 8 * 2);
    return half_to_float((uint16_t)scale) * (float)((int)four_bit_code(record, row, col) - 8);
  }
};

// Q4_1: for each g four words of an f16 scale and an f16 minimum, in Q8_0's order.
struct tile_q4_1 {
  using Pair = half_pair;
  static constexpr uint32_t RECORD = 512 + 128;
  struct Raw {
    uint4 steps;
    uint4 scales;
  };
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) {
    return {word16(record + lane * 16), word16(record + 512 + lane / 4 * 16)};
  }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint32_t words[STEPS] = {raw.steps.x, raw.steps.y, raw.steps.z, raw.steps.w};
    const uint32_t low = step / 2 ? raw.scales.z : raw.scales.x, high = step / 2 ? raw.scales.w : raw.scales.y;
    uint32_t codes[4];
    four_bits<0>(words[step], codes);
    return scaled(codes, multiply_halves(low, twice(FACTOR)), multiply_halves(high, twice(FACTOR)));
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint32_t scales = word4(record + 512 + row % 8 * 16 + col / 32 * 8 + row / 8 * 4);
    const float scale = half_to_float((uint16_t)scales), minimum = half_to_float((uint16_t)(scales >> 16));
    return fmaf(scale, (float)four_bit_code(record, row, col), minimum);
  }
};

// `FACTOR` times a scale and what is taken away, from scales of both and their codes, which lie above 1,024; that of the scale is
// `ZERO` more than it is.
template <uint32_t ZERO>
__device__ __forceinline__ uint32_t scale_and_minimum(uint32_t scales, uint32_t codes) {
  return multiply_halves(scales, fma_halves(codes, pair_of(FACTOR, -FACTOR), pair_of(-FACTOR * (1024.0f + ZERO), FACTOR * 1024.0f)));
}

// Q4_K: for each g, row g and then row g + 8: a word of the f16 scale of scales and the f16 scale of minima of the 256 columns
// that the chunk lies in, and a word of bytes: code of scale and of minimum of columns 0 to 31, the same of 32 to 63.
struct tile_q4_k {
  using Pair = half_pair;
  static constexpr uint32_t RECORD = 512 + 128;
  using Raw = tile_q4_1::Raw;
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) { return tile_q4_1::load(record, lane); }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint32_t words[STEPS] = {raw.steps.x, raw.steps.y, raw.steps.z, raw.steps.w};
    const uint32_t first = step / 2 * 2;
    uint32_t codes[4];
    four_bits<0>(words[step], codes);
    return scaled(codes, scale_and_minimum<0>(raw.scales.x, bytes_above(raw.scales.y, first)),
                  scale_and_minimum<0>(raw.scales.z, bytes_above(raw.scales.w, first)));
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint2 scales = word8(record + 512 + row % 8 * 16 + row / 8 * 8);
    const uint32_t bytes = scales.y >> (col / 32 * 16);
    const float scale = half_to_float((uint16_t)scales.x) * (float)(bytes & 255);
    const float minimum = -(half_to_float((uint16_t)(scales.x >> 16)) * (float)(bytes >> 8 & 255));
    return fmaf(scale, (float)four_bit_code(record, row, col), minimum);
  }
};

// Q5_1, Q5_K and Q6_K: codes as bytes, 128 more than what is scaled; for each g four words of an f16 scale of scales and an f16
// scale of minima, in Q8_0's order; and for each g and step two bytes for row g and two for row g + 8: code of scale, with a sign, and
// of minimum. Q5_1's codes are all one, its scale of minima has the other sign.
struct tile_wide {
  using Pair = half_pair;
  static constexpr uint32_t RECORD = 1024 + 128 + 128;
  struct Raw {
    uint4 halves[2];
    uint4 scales;
    uint4 scale_codes;
  };
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) {
    return {{word16(record + lane * 16), word16(record + 512 + lane * 16)},
            word16(record + 1024 + lane / 4 * 16), word16(record + 1152 + lane / 4 * 16)};
  }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint4 half = raw.halves[step / 2];
    const uint32_t all[STEPS] = {raw.scale_codes.x, raw.scale_codes.y, raw.scale_codes.z, raw.scale_codes.w};
    // Signed codes with their highest bit changed are 128 more.
    const uint32_t word = all[step] ^ 0x00800080u;
    const uint32_t low = step / 2 ? raw.scales.z : raw.scales.x, high = step / 2 ? raw.scales.w : raw.scales.y;
    uint32_t codes[4];
    eight_bits(step % 2 ? uint2{half.z, half.w} : uint2{half.x, half.y}, codes);
    return scaled(codes, scale_and_minimum<128>(low, bytes_above(word, 0)), scale_and_minimum<128>(high, bytes_above(word, 2)));
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint32_t scales = word4(record + 1024 + row % 8 * 16 + col / 32 * 8 + row / 8 * 4);
    const uint32_t codes = word2(record + 1152 + row % 8 * 16 + col / STEP * 4 + row / 8 * 2);
    const float scale = half_to_float((uint16_t)scales) * (float)(int8_t)codes;
    const float minimum = -(half_to_float((uint16_t)(scales >> 16)) * (float)(codes >> 8));
    return fmaf(scale, (float)((int)record[one_byte_place(row, col)] - 128), minimum);
  }
};

// F8_E4M3: bytes as they are stored, and for each g the f32 scale of row g and of row g + 8.
struct tile_f8 {
  using Pair = half_pair;
  static constexpr uint32_t RECORD = 1024 + 64;
  struct Raw {
    uint4 halves[2];
    float2 scales;
  };
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) {
    return {{word16(record + lane * 16), word16(record + 512 + lane * 16)},
            *reinterpret_cast<const float2*>(record + 1024 + lane / 4 * 8)};
  }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint4 half = raw.halves[step / 2];
    const uint32_t words[2] = {step % 2 ? half.z : half.x, step % 2 ? half.w : half.y};
    const uint32_t scales = pack_half(raw.scales.x * FACTOR, raw.scales.y * FACTOR), low = twice_low(scales), high = twice_high(scales);
    Fragment f;
#pragma unroll
    for (uint32_t w = 0; w < 4; w++) {
      f.words[w] = multiply_halves(e4m3_to_halves(words[w / 2] >> w % 2 * 16), w % 2 ? high : low);
    }
    return f;
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const float scale = __uint_as_float(word4(record + 1024 + row % 8 * 8 + row / 8 * 4));
    return scale * e4m3_to_floats(record[one_byte_place(row, col)]).x;
  }
};

// Value (row, col) of a matrix.
template <class Form>
__device__ __forceinline__ float value_at(const Tiles& w, uint32_t row, uint32_t col) {
  const size_t number = record_number(chunks_of(w.cols), row / BLOCK_ROWS, col / CHUNK, row % BLOCK_ROWS / TILE_ROWS);
  return Form::value(w.records + number * Form::RECORD, row % TILE_ROWS, col % CHUNK);
}

// Activations lie as the other operand: bands of 32 tiles of eight rows (tokens), of which the last has what is left; in each band,
// chunks of 64 columns; in each, tile after tile; in each, eight groups of eight columns; in each, row after row, eight values. So a
// group is 128 bytes, of which lane l has word l: row g, columns 2 t and 2 t + 1. What a block multiplies of a chunk is one run.
// Rows beyond the last are anything: each row of a product is its own.
constexpr uint32_t ROW_TILE = 8;
constexpr uint32_t ROW_CHUNK_BYTES = ROW_TILE * CHUNK * 2;
constexpr uint32_t BAND_TILES = 32;

// Where a tile of rows lies, in bytes: its first chunk, and how far apart its chunks are.
struct RowPlace {
  size_t start;
  uint32_t apart;
};

// Of `num_rows` rows in all, in so many chunks.
__device__ __forceinline__ RowPlace place_of_rows(uint32_t num_rows, uint32_t chunks, uint32_t row_tile) {
  const uint32_t first = row_tile / BAND_TILES * BAND_TILES;
  const uint32_t tiles = min(BAND_TILES, (num_rows + ROW_TILE - 1) / ROW_TILE - first);
  return {((size_t)first * chunks + (row_tile - first)) * ROW_CHUNK_BYTES, tiles * ROW_CHUNK_BYTES};
}

// Byte of value (row, col), both counted from the beginning of the chunk.
__device__ __forceinline__ uint32_t row_place(uint32_t row, uint32_t col) {
  return col / 8 * 128 + row % ROW_TILE * 16 + col % 8 * 2;
}
