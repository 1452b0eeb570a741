// Tiles of the paged cache in shared memory: rows of positions, 16-bit values, as ldmatrix reads them without conflicts. Sixteen
// bytes are a chunk; chunk c of row r lies at c ^ (r % 8).
//
// A tile comes in a place of a ring, by copies behind the threads' backs. What is stored in 16 bits lies there as it will be read;
// bytes are widened to f16 (code * scale in f32, rounded once) into the one tile that is read.
#pragma once

#include "e4m3.cuh"
#include "tensor.cuh"

// In the place of a row's number: it is none, or somebody brings it later.
constexpr uint32_t NO_ROW = 0xffffffffu, LATER = 0xfffffffeu;

// Where chunk `chunk` of row `row` lies in a tile of rows of DIM values, in bytes.
template <uint32_t DIM>
__device__ __forceinline__ uint32_t chunk_at(uint32_t row, uint32_t chunk) {
  return row * DIM * 2 + ((chunk ^ row % 8) << 4);
}

// Where a lane's row of the four matrices begins that ldmatrix takes: `row` of the tile at `tile`, chunk 2 k + `second`, as
// `lane_at(…) ^ k << 5`. Of other sixteens of rows it lies 32 DIM bytes further.
template <uint32_t DIM>
__device__ __forceinline__ uint32_t lane_at(uint32_t tile, uint32_t row, uint32_t second) {
  return tile + row * DIM * 2 + ((second ^ row % 8) << 4);
}

// Of rows that follow one another those that are, `count` from `first` on, and one of them that somebody brings later.
struct SomeRows {
  uint32_t first, count, later;
  __device__ __forceinline__ bool has(uint32_t row) const { return row - first < count; }
};

// 16-bit values. `Pair` multiplies them.
template <class P, uint32_t STORED>
struct cache_words {
  static constexpr uint32_t KIND = STORED;
  using Pair = P;
  static constexpr bool WIDENED = false;
  static constexpr uint32_t bytes(uint32_t rows, uint32_t dim) { return rows * dim * 2; }

  // Begins to bring `ROWS` rows of the cache, whose numbers are in `rows`, by all threads of the block; what is beyond a head's
  // values, and a row that is none, is zero.
  template <uint32_t ROWS, uint32_t DIM, uint32_t THREADS>
  static __device__ __forceinline__ void bring(uint8_t* place, const uint8_t* values, const float*, const uint32_t* rows, uint32_t dim) {
    if (dim % 8 == 0) {
      for (uint32_t i = threadIdx.x; i < ROWS * (DIM / 8); i += THREADS) {
        const uint32_t r = i / (DIM / 8), at = i % (DIM / 8) * 8, row = rows[r];
        const bool there = row != NO_ROW && at < dim;
        copy_async(place + chunk_at<DIM>(r, at / 8), values + (there ? ((size_t)row * dim + at) * 2 : 0), there ? 16 : 0);
      }
      return;
    }
    // Rows that are not aligned: no model that we know has them.
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < ROWS * DIM; i += THREADS) {
      const uint32_t r = i / DIM, at = i % DIM, row = rows[r];
      const bool there = row != NO_ROW && at < dim;
      const uint16_t* from = reinterpret_cast<const uint16_t*>(values);
      *reinterpret_cast<uint16_t*>(place + chunk_at<DIM>(r, at / 8) + at % 8 * 2) = there ? from[(size_t)row * dim + at] : 0;
    }
  }

  // Begins to bring `COUNT` rows of `ROWS`, from `first` on, by one warp: each lane has the number of one, lane n of row n; LATER
  // those that have none.
  template <uint32_t COUNT, uint32_t ROWS, uint32_t DIM>
  static __device__ __forceinline__ void bring_own(uint8_t* place, const uint8_t* values, const float*, uint32_t own, uint32_t first,
                                                   uint32_t dim) {
    const uint32_t lane = threadIdx.x % WARP;
    if (dim % 8 == 0) {
#pragma unroll 4
      for (uint32_t i = 0; i < COUNT; i += WARP / (DIM / 8)) {
        const uint32_t r = i + lane / (DIM / 8), at = lane % (DIM / 8) * 8, row = __shfl_sync(ALL_LANES, own, r);
        const bool there = row < LATER && at < dim;
        const uint8_t* from = values + (there ? ((size_t)row * dim + at) * 2 : 0);
        if (row != LATER) copy_async(place + chunk_at<DIM>(first + r, at / 8), from, there ? 16 : 0);
      }
      return;
    }
#pragma unroll 1
    for (uint32_t r = 0; r < COUNT; r++) {
      const uint32_t row = __shfl_sync(ALL_LANES, own, r);
      const uint16_t* from = reinterpret_cast<const uint16_t*>(values) + (size_t)row * dim;
#pragma unroll 1
      for (uint32_t at = lane; row != LATER && at < DIM; at += WARP) {
        uint8_t* to = place + chunk_at<DIM>(first + r, at / 8) + at % 8 * 2;
        *reinterpret_cast<uint16_t*>(to) = row < LATER && at < dim ? from[at] : 0;
      }
    }
  }

  // The same of rows that follow one another in the cache, from `row` on, of DIM values; `first` is a multiple of eight. WHOLE: of all.
  template <uint32_t COUNT, uint32_t ROWS, uint32_t DIM, bool WHOLE>
  static __device__ __forceinline__ void bring_straight(uint8_t* place, const uint8_t* values, const float*, uint32_t row, uint32_t first,
                                                        const SomeRows& some) {
    constexpr uint32_t AT_ONCE = WARP / (DIM / 8);
    const uint32_t lane = threadIdx.x % WARP, own = lane / (DIM / 8), at = chunk_at<DIM>(own, lane % (DIM / 8));
    const uint8_t* from = values + (size_t)row * DIM * 2 + lane * 16;
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i += AT_ONCE) {
      // As the lane's row of those at once is less than any other `i`: chunk_at<DIM> of both.
      uint8_t* to = place + first * DIM * 2 + (at ^ i % 8 << 4) + i * DIM * 2;
      if (WHOLE || i + own != some.later) copy_async(to, from + i * DIM * 2, WHOLE || some.has(i + own) ? 16 : 0);
    }
  }
};

// Bytes with a scale for 32: the codes of all rows, then their scales.
template <class Codes, uint32_t STORED>
struct cache_bytes {
  static constexpr uint32_t KIND = STORED;
  using Pair = half_pair;
  static constexpr bool WIDENED = true;
  static constexpr uint32_t bytes(uint32_t rows, uint32_t dim) { return rows * (dim + dim / CACHE_GROUP * 4); }

  template <uint32_t ROWS, uint32_t DIM, uint32_t THREADS>
  static __device__ __forceinline__ void bring(uint8_t* place, const uint8_t* values, const float* scales, const uint32_t* rows,
                                               uint32_t dim) {
    const uint32_t groups = (dim + CACHE_GROUP - 1) / CACHE_GROUP;
    for (uint32_t i = threadIdx.x; i < ROWS * (DIM / CACHE_GROUP); i += THREADS) {
      const uint32_t row = rows[i / (DIM / CACHE_GROUP)], group = i % (DIM / CACHE_GROUP);
      const bool there = row != NO_ROW && group < groups;
      copy_async_word(place + ROWS * DIM + i * 4, scales + (there ? (size_t)row * groups + group : 0), there ? 4 : 0);
    }
    if (dim % 16 == 0) {
      for (uint32_t i = threadIdx.x; i < ROWS * (DIM / 16); i += THREADS) {
        const uint32_t at = i % (DIM / 16) * 16, row = rows[i / (DIM / 16)];
        const bool there = row != NO_ROW && at < dim;
        copy_async(place + i * 16, values + (there ? (size_t)row * dim + at : 0), there ? 16 : 0);
      }
      return;
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < ROWS * DIM; i += THREADS) {
      const uint32_t at = i % DIM, row = rows[i / DIM];
      place[i] = row != NO_ROW && at < dim ? values[(size_t)row * dim + at] : 0;
    }
  }

  // As above.
  template <uint32_t COUNT, uint32_t ROWS, uint32_t DIM>
  static __device__ __forceinline__ void bring_own(uint8_t* place, const uint8_t* values, const float* scales, uint32_t own,
                                                   uint32_t first, uint32_t dim) {
    constexpr uint32_t GROUPS = DIM / CACHE_GROUP;
    const uint32_t lane = threadIdx.x % WARP, groups = (dim + CACHE_GROUP - 1) / CACHE_GROUP;
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i += WARP / GROUPS) {
      const uint32_t r = i + lane / GROUPS, group = lane % GROUPS, row = __shfl_sync(ALL_LANES, own, r);
      const bool there = row < LATER && group < groups;
      const float* from = scales + (there ? (size_t)row * groups + group : 0);
      if (row != LATER) copy_async_word(place + ROWS * DIM + ((first + r) * GROUPS + group) * 4, from, there ? 4 : 0);
    }
    if (dim % 16 == 0) {
#pragma unroll 4
      for (uint32_t i = 0; i < COUNT; i += WARP / (DIM / 16)) {
        const uint32_t r = i + lane / (DIM / 16), at = lane % (DIM / 16) * 16, row = __shfl_sync(ALL_LANES, own, r);
        const bool there = row < LATER && at < dim;
        if (row != LATER) copy_async(place + (first + r) * DIM + at, values + (there ? (size_t)row * dim + at : 0), there ? 16 : 0);
      }
      return;
    }
#pragma unroll 1
    for (uint32_t r = 0; r < COUNT; r++) {
      const uint32_t row = __shfl_sync(ALL_LANES, own, r);
#pragma unroll 1
      for (uint32_t at = lane; row != LATER && at < DIM; at += WARP) {
        place[(first + r) * DIM + at] = row < LATER && at < dim ? values[(size_t)row * dim + at] : 0;
      }
    }
  }

  // As above.
  template <uint32_t COUNT, uint32_t ROWS, uint32_t DIM, bool WHOLE>
  static __device__ __forceinline__ void bring_straight(uint8_t* place, const uint8_t* values, const float* scales, uint32_t row,
                                                        uint32_t first, const SomeRows& some) {
    constexpr uint32_t GROUPS = DIM / CACHE_GROUP, PIECES = DIM / 16;
    const uint32_t lane = threadIdx.x % WARP;
    const uint8_t* from = values + (size_t)row * DIM + lane * 16;
    const float* scale = scales + (size_t)row * GROUPS + lane;
#pragma unroll
    for (uint32_t i = 0; i < COUNT * GROUPS; i += WARP) {
      const uint32_t r = (i + lane) / GROUPS;
      uint8_t* to = place + ROWS * DIM + (first * GROUPS + i + lane) * 4;
      if (WHOLE || r != some.later) copy_async_word(to, scale + i, WHOLE || some.has(r) ? 4 : 0);
    }
#pragma unroll
    for (uint32_t i = 0; i < COUNT * PIECES; i += WARP) {
      const uint32_t r = (i + lane) / PIECES;
      if (WHOLE || r != some.later) copy_async(place + first * DIM + (i + lane) * 16, from + i * 16, WHOLE || some.has(r) ? 16 : 0);
    }
  }

  // From a place of the ring to the tile that is read, by all threads.
  template <uint32_t ROWS, uint32_t DIM, uint32_t THREADS>
  static __device__ __forceinline__ void widen(uint8_t* tile, const uint8_t* place) {
    // More at once would take registers that the sums are in.
#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < ROWS * (DIM / 8); i += THREADS) widen_eight<DIM>(tile, place, ROWS, i);
  }

  // Eight values, the block's `i`-th, of a place of so many rows.
  template <uint32_t DIM>
  static __device__ __forceinline__ void widen_eight(uint8_t* tile, const uint8_t* place, uint32_t rows, uint32_t i) {
    const float* scales = reinterpret_cast<const float*>(place + rows * DIM);
    const uint32_t r = i / (DIM / 8), chunk = i % (DIM / 8);
    const uint2 codes = *reinterpret_cast<const uint2*>(place + i * 8);
    const float scale = scales[r * (DIM / CACHE_GROUP) + chunk / (CACHE_GROUP / 8)];
    *reinterpret_cast<uint4*>(tile + chunk_at<DIM>(r, chunk)) = {
        pair(codes.x, scale), pair(codes.x >> 16, scale), pair(codes.y, scale), pair(codes.y >> 16, scale)};
  }

 private:
  static __device__ __forceinline__ uint32_t pair(uint32_t codes, float scale) {
    const float2 x = Codes::floats(codes);
    return pack_half(x.x * scale, x.y * scale);
  }
};

struct signed_codes {
  // A byte moved by 128 is the last byte of 2^23 + itself.
  static __device__ __forceinline__ float2 floats(uint32_t pair) {
    const uint32_t moved = pair ^ 0x8080;
    return {__uint_as_float(0x4b000000u | (moved & 0xff)) - 8388736.0f,
            __uint_as_float(0x4b000000u | (moved >> 8 & 0xff)) - 8388736.0f};
  }
};
struct e4m3_codes {
  static __device__ __forceinline__ float2 floats(uint32_t pair) { return e4m3_to_floats(pair); }
};

using cache_f16 = cache_words<half_pair, CACHE_F16>;
using cache_bf16 = cache_words<bf16_pair, CACHE_BF16>;
using cache_i8 = cache_bytes<signed_codes, CACHE_I8>;
using cache_f8 = cache_bytes<e4m3_codes, CACHE_F8>;
