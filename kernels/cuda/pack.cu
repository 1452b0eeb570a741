// Packing: rows of ggml's groups, as they are stored, into the records that products read
//   stored [rows - 16 first_tile, cols] of any storage type; records of the type's form (tiles.cuh, weights.cuh)
// Launch:  grid = (tiles of 16 rows, cols / 256 rounded up), block = 128; a warp makes a record. Tiles that have no rows are
//          written too, with zeros: the last launch of a matrix goes to the end of its block of 64 rows. `pack_<type>`.
// Bound:   memory: the stored bytes and those of the form. Stored groups are not aligned, so values are read one by one, and
//          what that asks twice for comes from the first cache; the copy to the device before it takes ten times as long.
// Meaning: src/cuda/layout.rs, which the tests hold it to byte for byte. Nothing is summed.
// Source:  ggml-quants.c, `dequantize_row_*`, for what is stored.
#include <type_traits>

#include "weights.cuh"

struct Pack {
  const uint8_t* stored;
  uint8_t* records;
  uint32_t rows;
  uint32_t cols;
  uint32_t first_tile;
  uint32_t unused;
};
static_assert(sizeof(Pack) == 32, "src/cuda/params.rs asserts the same size");

constexpr uint32_t PACK_THREADS = 128;
constexpr uint32_t PACK_COLS = PACK_THREADS / WARP * CHUNK;

// The scales of a form: where they begin in a record, how many entries there are, and the first row and column of each.

struct no_scales {
  using Entry = uint8_t;
  static constexpr uint32_t FIRST = 0, COUNT = 0;
};

// One for 32 columns: for each g, columns 0 to 31 of row g and of row g + 8, then columns 32 to 63.
template <class Type, uint32_t BEGIN>
struct scales_of_32 {
  using Entry = Type;
  static constexpr uint32_t FIRST = BEGIN, COUNT = 32;
  static __device__ __forceinline__ uint32_t row(uint32_t i) { return i / 4 + i % 2 * 8; }
  static __device__ __forceinline__ uint32_t col(uint32_t i) { return i / 2 % 2 * 32; }
};

// One for all 64 columns: for each g, of row g and of row g + 8.
template <class Type, uint32_t BEGIN>
struct scales_of_64 {
  using Entry = Type;
  static constexpr uint32_t FIRST = BEGIN, COUNT = 16;
  static __device__ __forceinline__ uint32_t row(uint32_t i) { return i / 2 + i % 2 * 8; }
  static __device__ __forceinline__ uint32_t col(uint32_t) { return 0; }
};

// A scale for 32 columns, and two bytes for 16 columns behind: for each g and step, of row g and of row g + 8.
struct scales_with_codes : scales_of_32<uint32_t, 1024> {
  static constexpr uint32_t CODES_FIRST = 1152, CODES = 64;
  static __device__ __forceinline__ uint32_t codes_row(uint32_t i) { return i / 8 + i % 2 * 8; }
  static __device__ __forceinline__ uint32_t codes_col(uint32_t i) { return i / 2 % 4 * STEP; }
};

// Each storage type: values and bytes of a group, bits of a value in a record, the form and its scales; `code` is value `at` of
// a group as the record has it, `scale` the entry for the values from `at` on, `scale_codes` the two bytes where there are such.

struct stored_half {
  static constexpr uint32_t GROUP = 1, BYTES = 2, BITS = 16;
  using Scales = no_scales;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t) { return word2(group); }
};
struct stored_f16 : stored_half {
  using Form = tile_f16;
};
struct stored_bf16 : stored_half {
  using Form = tile_bf16;
};

// 16 bytes: value i in the low half of byte i, value i + 16 in its high half.
__device__ __forceinline__ uint32_t nibble_of_32(const uint8_t* packed, uint32_t at) {
  return packed[at % 16] >> (at / 16 * 4) & 15;
}

// Four bytes, a bit a value.
__device__ __forceinline__ uint32_t fifth_bit_of_32(const uint8_t* packed, uint32_t at) {
  return (packed[at / 8] >> (at % 8) & 1u) << 4;
}

struct stored_q8_0 {
  static constexpr uint32_t GROUP = 32, BYTES = 34, BITS = 8;
  using Form = tile_q8_0;
  using Scales = scales_of_32<uint16_t, 1024>;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) { return group[2 + at]; }
  static __device__ __forceinline__ uint16_t scale(const uint8_t* group, uint32_t) { return (uint16_t)word2(group); }
};

struct stored_q4_0 {
  static constexpr uint32_t GROUP = 32, BYTES = 18, BITS = 4;
  using Form = tile_q4_0;
  using Scales = scales_of_32<uint16_t, 512>;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) { return nibble_of_32(group + 2, at); }
  static __device__ __forceinline__ uint16_t scale(const uint8_t* group, uint32_t) { return (uint16_t)word2(group); }
};

struct stored_q4_1 {
  static constexpr uint32_t GROUP = 32, BYTES = 20, BITS = 4;
  using Form = tile_q4_1;
  using Scales = scales_of_32<uint32_t, 512>;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) { return nibble_of_32(group + 4, at); }
  static __device__ __forceinline__ uint32_t scale(const uint8_t* group, uint32_t) {
    return word2(group) | word2(group + 2) << 16;
  }
};

struct stored_q5_0 {
  static constexpr uint32_t GROUP = 32, BYTES = 22, BITS = 8;
  using Form = tile_q8_0;
  using Scales = scales_of_32<uint16_t, 1024>;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) {
    return ((nibble_of_32(group + 6, at) | fifth_bit_of_32(group + 2, at)) - 16) & 255;
  }
  static __device__ __forceinline__ uint16_t scale(const uint8_t* group, uint32_t) { return (uint16_t)word2(group); }
};

struct stored_q5_1 {
  static constexpr uint32_t GROUP = 32, BYTES = 24, BITS = 8;
  using Form = tile_wide;
  using Scales = scales_with_codes;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) {
    return 128 + (nibble_of_32(group + 8, at) | fifth_bit_of_32(group + 4, at));
  }
  static __device__ __forceinline__ uint32_t scale(const uint8_t* group, uint32_t) {
    return word2(group) | (word2(group + 2) ^ 0x8000) << 16;
  }
  static __device__ __forceinline__ uint32_t scale_codes(const uint8_t*, uint32_t) { return 1 | 1 << 8; }
};

// The six-bit scale and, eight bits higher, the six-bit minimum of the 32 values number `sub`, from twelve bytes.
__device__ __forceinline__ uint32_t six_bit_scales(const uint8_t* packed, uint32_t sub) {
  if (sub < 4) return (packed[sub] & 63u) | (packed[sub + 4] & 63u) << 8;
  const uint32_t scale = (packed[sub + 4] & 15u) | (uint32_t)packed[sub - 4] >> 6 << 4;
  const uint32_t minimum = (uint32_t)packed[sub + 4] >> 4 | (uint32_t)packed[sub] >> 6 << 4;
  return scale | minimum << 8;
}

// 32 bytes for 64 values: the first half of the values in the low halves.
__device__ __forceinline__ uint32_t nibble_of_64(const uint8_t* packed, uint32_t at) {
  return packed[at / 64 * 32 + at % 32] >> (at / 32 % 2 * 4) & 15;
}

struct stored_q4_k {
  static constexpr uint32_t GROUP = 256, BYTES = 144, BITS = 4;
  using Form = tile_q4_k;
  using Scales = scales_of_64<uint2, 512>;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) { return nibble_of_64(group + 16, at); }
  static __device__ __forceinline__ uint2 scale(const uint8_t* group, uint32_t at) {
    const uint32_t low = six_bit_scales(group + 4, at / 32), high = six_bit_scales(group + 4, at / 32 + 1);
    return {word2(group) | word2(group + 2) << 16, low | high << 16};
  }
};

struct stored_q5_k {
  static constexpr uint32_t GROUP = 256, BYTES = 176, BITS = 8;
  using Form = tile_wide;
  using Scales = scales_with_codes;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) {
    return 128 + (nibble_of_64(group + 48, at) | (group[16 + at % 32] >> (at / 32) & 1u) << 4);
  }
  static __device__ __forceinline__ uint32_t scale(const uint8_t* group, uint32_t) {
    return word2(group) | word2(group + 2) << 16;
  }
  static __device__ __forceinline__ uint32_t scale_codes(const uint8_t* group, uint32_t at) {
    return six_bit_scales(group + 4, at / 32);
  }
};

// 128 bytes of low halves, 64 of upper pairs of bits, 16 signed scales, the f16 scale; each half of the values by itself.
struct stored_q6_k {
  static constexpr uint32_t GROUP = 256, BYTES = 210, BITS = 8;
  using Form = tile_wide;
  using Scales = scales_with_codes;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) {
    const uint32_t half = at / 128, i = at % 128;
    const uint32_t low = group[half * 64 + i % 64] >> (i / 64 * 4) & 15u;
    return 96 + (low | (group[128 + half * 32 + i % 32] >> (i / 32 * 2) & 3u) << 4);
  }
  static __device__ __forceinline__ uint32_t scale(const uint8_t* group, uint32_t) { return word2(group + 208); }
  static __device__ __forceinline__ uint32_t scale_codes(const uint8_t* group, uint32_t at) {
    return group[192 + at / 16];
  }
};

// An f32 scale, then the codes.
struct stored_f8_e4m3 {
  static constexpr uint32_t GROUP = 128, BYTES = 132, BITS = 8;
  using Form = tile_f8;
  using Scales = scales_of_64<float, 1024>;
  static __device__ __forceinline__ uint32_t code(const uint8_t* group, uint32_t at) { return group[4 + at]; }
  static __device__ __forceinline__ float scale(const uint8_t* group, uint32_t) { return __uint_as_float(word4(group)); }
};

// The stored values of a record: rows and columns are counted from its own first, those beyond the matrix are zero.
template <class Stored>
struct Source {
  const uint8_t* first;
  uint32_t first_col;
  uint32_t rows;
  uint32_t cols;

  __device__ __forceinline__ bool has(uint32_t row, uint32_t col) const { return row < rows && first_col + col < cols; }
  __device__ __forceinline__ const uint8_t* group(uint32_t row, uint32_t col) const {
    const size_t groups = cols / Stored::GROUP;
    return first + (row * groups + (first_col + col) / Stored::GROUP) * Stored::BYTES;
  }
  __device__ __forceinline__ uint32_t code(uint32_t row, uint32_t col) const {
    return has(row, col) ? Stored::code(group(row, col), (first_col + col) % Stored::GROUP) : 0;
  }
  __device__ __forceinline__ typename Stored::Scales::Entry scale(uint32_t row, uint32_t col) const {
    typename Stored::Scales::Entry zero = {};
    return has(row, col) ? Stored::scale(group(row, col), (first_col + col) % Stored::GROUP) : zero;
  }
  __device__ __forceinline__ uint32_t scale_codes(uint32_t row, uint32_t col) const {
    return has(row, col) ? Stored::scale_codes(group(row, col), (first_col + col) % Stored::GROUP) : 0;
  }
};

// The values of a lane are words of eight, four or two, a step of sixteen columns after the other; four words at a time, those of
// all lanes lie together.
template <class Stored>
__device__ __forceinline__ void pack_values(const Source<Stored>& from, uint8_t* record, uint32_t lane) {
  constexpr uint32_t BITS = Stored::BITS, VALUES = 32 / BITS, WORDS = BITS / 4;
  const uint32_t g = lane / 4, t = lane % 4;
  // One after the other: all at once they take more registers than there are.
#pragma unroll 1
  for (uint32_t quarter = 0; quarter < BITS / 4; quarter++) {
    uint32_t words[4] = {};
#pragma unroll
    for (uint32_t w = 0; w < 4; w++) {
      const uint32_t step = (quarter * 4 + w) / WORDS, first = (quarter * 4 + w) % WORDS * VALUES;
#pragma unroll
      for (uint32_t n = first; n < first + VALUES; n++) {
        const uint32_t row = g + n / 2 % 2 * 8, col = step * STEP + t * 2 + n % 2 + n / 4 * 8;
        // Pairs of four-bit codes lie in both halves of a word (`four_bits`).
        const uint32_t shift = BITS == 4 ? n / 2 * 4 + n % 2 * 16 : n % VALUES * BITS;
        words[w] |= from.code(row, col) << shift;
      }
    }
    reinterpret_cast<uint4*>(record)[quarter * WARP + lane] = {words[0], words[1], words[2], words[3]};
  }
}

template <class Stored>
__device__ __forceinline__ void pack(const Pack& p) {
  using Form = typename Stored::Form;
  using Scales = typename Stored::Scales;
  static_assert(Scales::COUNT == 0 || Scales::FIRST == Stored::BITS * 128, "scales follow the values");
  constexpr bool CODES = std::is_same<Scales, scales_with_codes>::value;
  constexpr uint32_t SCALE_BYTES = Scales::COUNT * sizeof(typename Scales::Entry) + (CODES ? 128 : 0);
  static_assert(Stored::BITS * 128 + SCALE_BYTES == Form::RECORD, "a record is values and scales");
  const uint32_t lane = threadIdx.x % WARP, chunk = blockIdx.y * (PACK_THREADS / WARP) + threadIdx.x / WARP;
  const uint32_t chunks = chunks_of(p.cols), tile = p.first_tile + blockIdx.x;
  if (chunk >= chunks) return;
  const uint32_t first_row = tile * TILE_ROWS, rows = first_row < p.rows ? min(p.rows - first_row, TILE_ROWS) : 0;
  const size_t tile_bytes = (size_t)TILE_ROWS * (p.cols / Stored::GROUP) * Stored::BYTES;
  const Source<Stored> from = {p.stored + blockIdx.x * tile_bytes, chunk * CHUNK, rows, p.cols};
  uint8_t* record = p.records + record_number(chunks, tile / BLOCK_TILES, chunk, tile % BLOCK_TILES) * Form::RECORD;
  pack_values(from, record, lane);
  if constexpr (Scales::COUNT > 0) {
    auto* scales = reinterpret_cast<typename Scales::Entry*>(record + Scales::FIRST);
#pragma unroll
    for (uint32_t i = lane; i < Scales::COUNT; i += WARP) scales[i] = from.scale(Scales::row(i), Scales::col(i));
  }
  if constexpr (CODES) {
    auto* codes = reinterpret_cast<uint16_t*>(record + Scales::CODES_FIRST);
#pragma unroll
    for (uint32_t i = lane; i < Scales::CODES; i += WARP) {
      codes[i] = (uint16_t)from.scale_codes(Scales::codes_row(i), Scales::codes_col(i));
    }
  }
}

// F32: rows of whole runs, and none beyond the last.
KERNEL(PACK_THREADS, pack_f32, Pack) {
  const Tiles to = {p.records, p.rows, p.cols};
  const float* from = reinterpret_cast<const float*>(p.stored) + (size_t)blockIdx.x * TILE_ROWS * p.cols;
  const uint32_t first_row = (p.first_tile + blockIdx.x) * TILE_ROWS, first_col = blockIdx.y * PACK_COLS;
  const uint32_t rows = first_row < p.rows ? min(p.rows - first_row, TILE_ROWS) : 0;
  const uint32_t end = min(first_col + PACK_COLS, (p.cols + RUN - 1) / RUN * RUN);
  for (uint32_t row = 0; row < rows; row++) {
    float* out = reinterpret_cast<float*>(p.records) + rows_f32::place(to, first_row + row, 0);
    for (uint32_t col = first_col + threadIdx.x; col < end; col += PACK_THREADS) {
      out[col] = col < p.cols ? from[(size_t)row * p.cols + col] : 0.0f;
    }
  }
}

#define PACK(type) \
  KERNEL(PACK_THREADS, pack_##type, Pack) { pack<stored_##type>(p); }
PACK(f16)
PACK(bf16)
PACK(q8_0)
PACK(q4_0)
PACK(q4_1)
PACK(q5_0)
PACK(q5_1)
PACK(q4_k)
PACK(q5_k)
PACK(q6_k)
PACK(f8_e4m3)
#undef PACK
