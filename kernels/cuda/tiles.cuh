// How matrices lie on the device for tensor cores, and how a lane's share of sixteen columns becomes bf16.
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
// `bf16(value)` is what is multiplied: before it is rounded, each value is exactly that of `quant::dequantize`.
#pragma once

#include "common.cuh"

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

// What a lane multiplies of sixteen columns: eight bf16, in the order above.
struct Fragment {
  uint32_t words[4];
};

// Of sixteen columns the scales and minima of rows g and g + 8.
struct Scales {
  float low_scale, low_minimum, high_scale, high_minimum;
};

__device__ __forceinline__ Fragment scaled(const float (&codes)[8], const Scales& s) {
  Fragment f;
#pragma unroll
  for (uint32_t w = 0; w < 4; w++) {
    const float scale = w % 2 ? s.high_scale : s.low_scale, minimum = w % 2 ? s.high_minimum : s.low_minimum;
    f.words[w] = pack_bf16(fmaf(scale, codes[2 * w], minimum), fmaf(scale, codes[2 * w + 1], minimum));
  }
  return f;
}

// A code becomes f32 as the last bits of a power of two, which is then taken away: that is exact, and at twice the rate of a
// conversion. `MASK` of the word are the bits, `POWER` those of the power; one instruction, where the compiler would take two.
template <uint32_t MASK, uint32_t POWER>
__device__ __forceinline__ float above(uint32_t word) {
#ifdef CHRYSALIS_EMULATE
  const uint32_t bits = (word & MASK) | POWER;
#else
  uint32_t bits;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(bits) : "r"(word), "n"(MASK), "n"(POWER));
#endif
  return __uint_as_float(bits) - __uint_as_float(POWER);
}

// Four-bit codes: pair w in bits 4 w of both halves.
__device__ __forceinline__ void four_bits(uint32_t word, float (&codes)[8]) {
  // 2^23, 2^19, 2^15 and 2^11: of each the last bit but 4 w is worth 1.
  const uint32_t high = word >> 16;
  codes[0] = above<0xf, 150u << 23>(word), codes[1] = above<0xf, 150u << 23>(high);
  codes[2] = above<0xf0, 146u << 23>(word), codes[3] = above<0xf0, 146u << 23>(high);
  codes[4] = above<0xf00, 142u << 23>(word), codes[5] = above<0xf00, 142u << 23>(high);
  codes[6] = above<0xf000, 138u << 23>(word), codes[7] = above<0xf000, 138u << 23>(high);
}

// Byte n, less `zero`.
__device__ __forceinline__ float byte_of(uint32_t word, uint32_t n, float zero) {
  constexpr uint32_t POWER = 150u << 23;
  return __uint_as_float(__byte_perm(word, POWER, 0x7440 + n)) - (__uint_as_float(POWER) + zero);
}

__device__ __forceinline__ void eight_bits(uint2 words, float zero, float (&codes)[8]) {
#pragma unroll
  for (uint32_t n = 0; n < 8; n++) codes[n] = byte_of(n < 4 ? words.x : words.y, n % 4, zero);
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

// Each form: `RECORD` bytes of a tile; `Raw`, what a lane takes of them; `load` takes it, from any memory; `fragment` makes the
// bf16 of step 0 to 3; `value` is one value, exactly.

struct tile_bf16 {
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
  static constexpr uint32_t RECORD = 2048;
  using Raw = tile_bf16::Raw;
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) { return tile_bf16::load(record, lane); }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    Fragment f = tile_bf16::fragment(raw, step);
#pragma unroll
    for (uint32_t w = 0; w < 4; w++) {
      f.words[w] = pack_bf16(half_to_float((uint16_t)f.words[w]), half_to_float((uint16_t)(f.words[w] >> 16)));
    }
    return f;
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    return half_to_float((uint16_t)word2(record + two_byte_place(row, col)));
  }
};

// Q8_0, and Q5_0 as such: for each g the f16 scales of (columns 0 to 31, row g), (the same, g + 8), (32 to 63, g), (32 to 63, g + 8).
struct tile_q8_0 {
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
    float codes[8];
    // Signed bytes with their highest bit changed are 128 more.
    eight_bits({words.x ^ 0x80808080u, words.y ^ 0x80808080u}, 128.0f, codes);
    return scaled(codes, {half_to_float((uint16_t)scales), 0.0f, half_to_float((uint16_t)(scales >> 16)), 0.0f});
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint32_t scale = word2(record + 1024 + row % 8 * 8 + col / 32 * 4 + row / 8 * 2);
    return half_to_float((uint16_t)scale) * (float)(int8_t)record[one_byte_place(row, col)];
  }
};

// Q4_0: scales as Q8_0.
struct tile_q4_0 {
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
    const uint32_t scales = step / 2 ? raw.scales.y : raw.scales.x;
    const float low = half_to_float((uint16_t)scales), high = half_to_float((uint16_t)(scales >> 16));
    float codes[8];
    four_bits(words[step], codes);
    return scaled(codes, {low, -8.0f * low, high, -8.0f * high});
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint32_t scale = word2(record + 512 + row % 8 * 8 + col / 32 * 4 + row / 8 * 2);
    return half_to_float((uint16_t)scale) * (float)((int)four_bit_code(record, row, col) - 8);
  }
};

// Q4_1: for each g four words of an f16 scale and an f16 minimum, in Q8_0's order.
struct tile_q4_1 {
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
    float codes[8];
    four_bits(words[step], codes);
    return scaled(codes, {half_to_float((uint16_t)low), half_to_float((uint16_t)(low >> 16)),
                          half_to_float((uint16_t)high), half_to_float((uint16_t)(high >> 16))});
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const uint32_t scales = word4(record + 512 + row % 8 * 16 + col / 32 * 8 + row / 8 * 4);
    const float scale = half_to_float((uint16_t)scales), minimum = half_to_float((uint16_t)(scales >> 16));
    return fmaf(scale, (float)four_bit_code(record, row, col), minimum);
  }
};

// Q4_K: for each g, row g and then row g + 8: a word of the f16 scale of scales and the f16 scale of minima of the 256 columns
// that the chunk lies in, and a word of bytes: code of scale and of minimum of columns 0 to 31, the same of 32 to 63.
struct tile_q4_k {
  static constexpr uint32_t RECORD = 512 + 128;
  using Raw = tile_q4_1::Raw;
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) { return tile_q4_1::load(record, lane); }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint32_t words[STEPS] = {raw.steps.x, raw.steps.y, raw.steps.z, raw.steps.w};
    const uint32_t first = step / 2 * 2, low = raw.scales.y, high = raw.scales.w;
    float codes[8];
    four_bits(words[step], codes);
    return scaled(codes, {half_to_float((uint16_t)raw.scales.x) * byte_of(low, first, 0.0f),
                          -(half_to_float((uint16_t)(raw.scales.x >> 16)) * byte_of(low, first + 1, 0.0f)),
                          half_to_float((uint16_t)raw.scales.z) * byte_of(high, first, 0.0f),
                          -(half_to_float((uint16_t)(raw.scales.z >> 16)) * byte_of(high, first + 1, 0.0f))});
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
    const uint32_t word = all[step];
    const uint32_t low = step / 2 ? raw.scales.z : raw.scales.x, high = step / 2 ? raw.scales.w : raw.scales.y;
    float codes[8];
    eight_bits(step % 2 ? uint2{half.z, half.w} : uint2{half.x, half.y}, 128.0f, codes);
    return scaled(codes, {half_to_float((uint16_t)low) * (float)(int8_t)word,
                          -(half_to_float((uint16_t)(low >> 16)) * byte_of(word, 1, 0.0f)),
                          half_to_float((uint16_t)high) * (float)(int8_t)(word >> 16),
                          -(half_to_float((uint16_t)(high >> 16)) * byte_of(word, 3, 0.0f))});
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
  static constexpr uint32_t RECORD = 1024 + 64;
  struct Raw {
    uint4 halves[2];
    float2 scales;
  };
  static __device__ __forceinline__ Raw load(const uint8_t* record, uint32_t lane) {
    return {{word16(record + lane * 16), word16(record + 512 + lane * 16)},
            *reinterpret_cast<const float2*>(record + 1024 + lane / 4 * 8)};
  }
  // Sign, four bits of exponent less 7, three of fraction: f32 with 120 too little in the exponent, below the lowest too.
  // A code that is no number, which no packer lets through, becomes 480.
  static __device__ __forceinline__ float decoded(uint32_t word, uint32_t n) {
    const int32_t top = (int32_t)__byte_perm(word, 0, n << 12 | 0x444);
    return __uint_as_float((uint32_t)(top >> 4) & 0x87f00000u) * __uint_as_float((120u + 127) << 23);
  }
  static __device__ __forceinline__ Fragment fragment(const Raw& raw, uint32_t step) {
    const uint4 half = raw.halves[step / 2];
    const uint32_t words[2] = {step % 2 ? half.z : half.x, step % 2 ? half.w : half.y};
    float codes[8];
#pragma unroll
    for (uint32_t n = 0; n < 8; n++) codes[n] = decoded(words[n / 4], n % 4);
    return scaled(codes, {raw.scales.x, 0.0f, raw.scales.y, 0.0f});
  }
  static __device__ __forceinline__ float value(const uint8_t* record, uint32_t row, uint32_t col) {
    const float scale = __uint_as_float(word4(record + 1024 + row % 8 * 8 + row / 8 * 4));
    return scale * decoded(record[one_byte_place(row, col)], 0);
  }
};

// Value (row, col) of a matrix.
template <class Form>
__device__ __forceinline__ float value_at(const Tiles& w, uint32_t row, uint32_t col) {
  const size_t number = record_number(chunks_of(w.cols), row / BLOCK_ROWS, col / CHUNK, row % BLOCK_ROWS / TILE_ROWS);
  return Form::value(w.records + number * Form::RECORD, row % TILE_ROWS, col % CHUNK);
}

// Activations lie as the other operand: bands of 32 tiles of eight rows (tokens), of which the last has what is left; in each band,
// chunks of 64 columns; in each, tile after tile; in each, eight groups of eight columns; in each, row after row, eight bf16. So a
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
