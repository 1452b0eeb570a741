// Greedy tokens: keys[i] = the largest key of row rows[i], where a key is a value's order above its column's, reversed
//   x [_, cols] f32; keys [count], zero before; the numbers of up to 248 rows are arguments, so that no copy carries them
// Launch:  grid = (cols / 4,096 rounded up, count), block = 256.
// Bound:   memory; 4 bytes a value.
// Meaning: src/reference/ops.rs, `argmax`: of equal values the lowest column; a row with an infinity or a NaN has none, and
//          its key is all ones. Zeros of both signs are equal.
// Source:  none. A maximum of whole numbers does not depend on the order in which it is taken.
#include "common.cuh"

struct Argmax {
  const float* x;
  unsigned long long* keys;
  uint32_t cols;
  uint32_t unused;
  uint32_t rows[248];
};
static_assert(sizeof(Argmax) == 1016, "src/cuda/params.rs asserts the same size");

constexpr uint32_t ARGMAX_PIECE = 4096;

__device__ __forceinline__ unsigned long long argmax_key(float x, uint32_t col) {
  // Adding zero makes one zero of two.
  const uint32_t bits = __float_as_uint(x + 0.0f);
  if ((bits & 0x7f800000u) == 0x7f800000u) return ~0ull;
  const uint32_t order = bits >> 31 ? ~bits : bits | 0x80000000u;
  return (unsigned long long)order << 32 | (0xffffffffu - col);
}

KERNEL(256, argmax, Argmax) {
  __shared__ unsigned long long warps[256 / WARP];
  const float* x = p.x + (size_t)p.rows[blockIdx.y] * p.cols;
  const uint32_t first = blockIdx.x * ARGMAX_PIECE, end = min(p.cols, first + ARGMAX_PIECE);
  unsigned long long best = 0;
  for (uint32_t i = first + threadIdx.x; i < end; i += 256) {
    const unsigned long long key = argmax_key(x[i], i);
    if (key > best) best = key;
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    const unsigned long long other = __shfl_xor_sync(ALL_LANES, best, apart);
    if (other > best) best = other;
  }
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = best;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (uint32_t w = 1; w < 256 / WARP; w++) {
      if (warps[w] > best) best = warps[w];
    }
    atomicMax(&p.keys[blockIdx.y], best);
  }
}
