// What the kernels that choose tokens share: draws as they lie in memory, distances and shares (src/sampling), scans, and the
// block that comes last.
#pragma once

#include "common.cuh"

namespace sample {

// How a token is chosen (src/sampling/mod.rs, `Draw`), as src/cuda/sampling.rs lays it out.
struct __align__(16) Draw {
  uint32_t row;
  uint32_t top_k;           // 0: all
  float scale;              // one over the temperature
  float min_p;
  unsigned long long part;  // top_p * 2^32
  unsigned long long bits;  // the number of 53 bits
  uint32_t first_edit;
  uint32_t num_edits;
  uint32_t unused[2];
};
static_assert(sizeof(Draw) == 48, "src/cuda/sampling.rs has the same words");

// A change of a logit. While it is made, `bias` is the logit that was there.
struct __align__(16) Edit {
  uint32_t token;
  float bias;
  float repetition;
  float lowered;
};
static_assert(sizeof(Edit) == 16, "src/cuda/sampling.rs has the same words");

// How far a draw's cuts are: tokens nearer than `limit` are kept, and `rest` of those at that distance, by ascending token.
struct Cut {
  unsigned long long target;  // what the bin has to reach
  uint32_t kind;              // of `target`: 0 nothing is looked for, 1 tokens, 2 shares
  uint32_t bin;
  uint32_t limit;
  uint32_t rest;
  uint32_t arrived;  // blocks that have done their part
  uint32_t unused;
};
static_assert(sizeof(Cut) == 32, "src/cuda/sampling.rs has the same size");

// Of the tokens of a row: by the upper bits of their distance how many there are and the sum of their shares, and in the bin at
// hand how many by the lower bits.
constexpr uint32_t NEAR_BITS = 12, NEAR = 1 << NEAR_BITS;
// Beyond a distance of 28 shares are nothing: e^-28 * 2^39 < 1 / 2.
constexpr uint32_t FAR = 28u << 18, BINS = FAR >> NEAR_BITS;
struct Bins {
  unsigned long long sums[BINS];
  uint32_t counts[BINS];
  uint32_t near[NEAR];
};
static_assert(sizeof(Bins) == 37888, "src/cuda/sampling.rs has the same size");

// Of the tokens of a piece of a row: the sum of the shares nearer than the limit, and how many are at the limit.
struct __align__(16) Piece {
  unsigned long long sum;
  unsigned long long equal;
};

// The argument of all of them. Draws with both cuts come first, then those with one, those with none, the greedy ones, and those
// of sample_few.cu.
struct Sample {
  float* x;                  // [_, cols]
  unsigned long long* keys;  // [draws], zero before; what is found
  const Draw* draws;         // [draws]
  Edit* edits;               // of all draws
  Cut* cuts;                 // [drawn]
  Bins* bins;                // [cut]
  Piece* pieces;             // [drawn, pieces of a row]
  uint32_t cols;
  uint32_t cut;
  uint32_t drawn;
  uint32_t undo;
};
static_assert(sizeof(Sample) == 72, "src/cuda/params.rs asserts the same size");

constexpr uint32_t SAMPLE_THREADS = 256;
// Columns of a block.
constexpr uint32_t PIECE = 4096;
// Pieces of a row, at most.
constexpr uint32_t PIECES_MAX = 256;

__device__ __forceinline__ uint32_t pieces_of(uint32_t cols) { return (cols + PIECE - 1) / PIECE; }

// Gives the block's values of a row to `use(column, value)`. A thread asks for all of its own before it has the first.
template <class Use>
__device__ __forceinline__ void each_value(const float* x, uint32_t cols, Use use) {
  constexpr uint32_t MINE = PIECE / SAMPLE_THREADS;
  const uint32_t first = blockIdx.x * PIECE + threadIdx.x;
  float held[MINE];
#pragma unroll
  for (uint32_t k = 0; k < MINE; k++) held[k] = first + k * SAMPLE_THREADS < cols ? x[first + k * SAMPLE_THREADS] : 0.0f;
#pragma unroll
  for (uint32_t k = 0; k < MINE; k++) {
    if (first + k * SAMPLE_THREADS < cols) use(first + k * SAMPLE_THREADS, held[k]);
  }
}

constexpr unsigned long long NO_TOKEN = ~0ull;

// A value's order above its column's, reversed; all ones where it is not finite. Adding zero makes one zero of two.
__device__ __forceinline__ unsigned long long order_key(float x, uint32_t col) {
  const uint32_t bits = __float_as_uint(x + 0.0f);
  if ((bits & 0x7f800000u) == 0x7f800000u) return NO_TOKEN;
  const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (unsigned long long)order << 32 | (0xffffffffu - col);
}

// The value that a key was made of.
__device__ __forceinline__ float value_of(unsigned long long key) {
  const uint32_t order = (uint32_t)(key >> 32);
  return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

// src/sampling/weight.rs, operation by operation: `distance`, `weight`, `share`.
__device__ __forceinline__ uint32_t distance_of(float x, float max, float scale) {
  const float t = (max - x) * scale;
  return __float_as_uint((t < 31.0f ? t : 31.0f) + 32.0f) - __float_as_uint(32.0f);
}

__device__ __forceinline__ unsigned long long share_of(uint32_t distance, float min_p) {
  const float x = 32.0f - __uint_as_float(distance + __float_as_uint(32.0f)), round = 12582912.0f;
  const float shifted = x * 1.44269504088896340736f + round;
  const float n = shifted - round;
  const float r = x - n * 0.693359375f - n * -2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * (r * r) + r + 1.0f;
  const uint32_t power = (__float_as_uint(shifted) - __float_as_uint(round) + 127) << 23;
  const float weight = y * __uint_as_float(power);
  return weight < min_p ? 0 : __float2ull_rn(weight * 549755813888.0f);
}

// total * factor / 2^shift, rounded down, where that fits.
template <uint32_t SHIFT>
__device__ __forceinline__ unsigned long long scaled(unsigned long long total, unsigned long long factor) {
  return __umul64hi(total, factor) << (64 - SHIFT) | total * factor >> SHIFT;
}

// What the shares that `top_p` keeps sum up to, at least, where all sum up to `total`.
__device__ __forceinline__ unsigned long long enough_of(unsigned long long total, unsigned long long part) {
  const unsigned long long some = scaled<32>(total, part);
  return some ? some : 1;
}

// The sum of what this lane of a warp and those before it gave.
__device__ __forceinline__ unsigned long long sum_of_lanes(unsigned long long sum) {
  const uint32_t lane = threadIdx.x % WARP;
  for (uint32_t apart = 1; apart < WARP; apart *= 2) {
    const unsigned long long other = __shfl_sync(ALL_LANES, sum, (lane - apart) % WARP);
    if (lane >= apart) sum += other;
  }
  return sum;
}

// The sum of what the threads before this one gave; `total` is that of all.
template <uint32_t THREADS = SAMPLE_THREADS>
__device__ __forceinline__ unsigned long long scan(unsigned long long own, unsigned long long& total) {
  constexpr uint32_t WARPS = THREADS / WARP;
  __shared__ unsigned long long warps[WARPS];
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const unsigned long long sum = sum_of_lanes(own);
  if (lane == WARP - 1) warps[warp] = sum;
  __syncthreads();
  const unsigned long long sums = sum_of_lanes(lane < WARPS ? warps[lane] : 0);
  total = __shfl_sync(ALL_LANES, sums, WARPS - 1);
  const unsigned long long before = __shfl_sync(ALL_LANES, sums, (warp - 1) % WARP);
  __syncthreads();
  return (warp > 0 ? before : 0) + sum - own;
}

template <uint32_t THREADS = SAMPLE_THREADS>
__device__ __forceinline__ unsigned long long sum_of_block(unsigned long long own) {
  unsigned long long total;
  scan<THREADS>(own, total);
  return total;
}

// Where sums from the first value on reach a target.
struct Found {
  uint32_t at;  // NOWHERE: they do not
  unsigned long long before;
};
constexpr uint32_t NOWHERE = 0xffffffffu;

// Thread t has the values N * t to N * t + N - 1 of the block's.
template <uint32_t N>
__device__ __forceinline__ Found find(const unsigned long long (&values)[N], unsigned long long target) {
  __shared__ Found found;
  if (threadIdx.x == 0) found.at = NOWHERE;
  unsigned long long own = 0, total;
#pragma unroll
  for (uint32_t i = 0; i < N; i++) own += values[i];
  unsigned long long before = scan(own, total);
  if (before < target && target <= before + own) {
    bool beyond = false;
#pragma unroll
    for (uint32_t i = 0; i < N; i++) {
      if (!beyond && before + values[i] >= target) {
        found.at = N * threadIdx.x + i;
        found.before = before;
        beyond = true;
      }
      before += values[i];
    }
  }
  __syncthreads();
  const Found result = found;
  __syncthreads();
  return result;
}

// Whether this block is the last of `count` to come here: it sees what all of them wrote, and reads it past the first cache.
__device__ __forceinline__ bool comes_last(uint32_t* arrived, uint32_t count) {
  __shared__ uint32_t before;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) before = atomicInc(arrived, count - 1);
  __syncthreads();
  __threadfence();
  return before == count - 1;
}

}  // namespace sample
