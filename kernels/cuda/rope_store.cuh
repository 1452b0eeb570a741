// Norms of q and k heads, rotation, and K and V to the paged cache, a head at a time: rope_store.cu, attention_token.cuh
#pragma once

#include "e4m3.cuh"

struct Heads {
  float* q;
  float* k;
  const float* v;
  const float* q_norm;  // [head_dim] or none
  const float* k_norm;
  const float2* angles;
  uint32_t num_heads;
  uint32_t pairs;
  float eps;
  uint32_t unused;
};
static_assert(sizeof(Heads) == 64, "src/cuda/params.rs asserts the same size");

struct RopeStore {
  Step step;
  CacheLayer cache;
  Heads heads;
};
static_assert(sizeof(RopeStore) == 160, "src/cuda/params.rs asserts the same size");

// Values of a head, and of those of a lane: n is value 32 n + lane.
constexpr uint32_t ROPE_DIM_MAX = 256, LANE_VALUES = ROPE_DIM_MAX / WARP;

// What normalises the head.
__device__ __forceinline__ float factor_of(const float (&x)[LANE_VALUES], uint32_t dim, float eps) {
  float sum = 0.0f;
#pragma unroll
  for (uint32_t n = 0; n < LANE_VALUES / 2; n++) {
    const float of_trees = warp_sum(fmaf(x[n + LANE_VALUES / 2], x[n + LANE_VALUES / 2], fmaf(x[n], x[n], 0.0f)));
    sum = n == 0 ? of_trees : sum + of_trees;
  }
  return 1.0f / sqrtf(sum / (float)dim + eps);
}

// A pair, turned.
__device__ __forceinline__ void turn(float& low, float& high, float2 angle) {
  const float a = low, b = high;
  low = a * angle.x - b * angle.y;
  high = b * angle.x + a * angle.y;
}

// Turns the pairs of a head of at most DIM values: a lane has both of a pair where it has DIM values and all are turned; else by way of
// `row`, which has room for them.
template <uint32_t DIM>
__device__ __forceinline__ void turn(float (&x)[LANE_VALUES], const float2 (&angles)[LANE_VALUES / 2], uint32_t pairs, float* row) {
  constexpr uint32_t HALF = DIM / WARP / 2;
  const uint32_t lane = threadIdx.x % WARP;
  if (pairs == DIM / 2) {
#pragma unroll
    for (uint32_t n = 0; n < HALF; n++) turn(x[n], x[n + HALF], angles[n]);
    return;
  }
#pragma unroll
  for (uint32_t n = 0; n < DIM / WARP; n++) row[n * WARP + lane] = x[n];
  __syncwarp();
#pragma unroll
  for (uint32_t n = 0; n < HALF; n++) {
    const uint32_t i = n * WARP + lane;
    if (i >= pairs) break;
    turn(row[i], row[i + pairs], angles[n]);
  }
  __syncwarp();
#pragma unroll
  for (uint32_t n = 0; n < DIM / WARP; n++) x[n] = row[n * WARP + lane];
  // Before another head has it.
  __syncwarp();
}

// Puts the first `width` values of a head of at most DIM where a row of K or V lies, and its scales where they do.
template <uint32_t DIM>
__device__ __forceinline__ void store(uint32_t kind, const float (&x)[LANE_VALUES], uint32_t width, uint8_t* out, float* scales) {
#pragma unroll
  for (uint32_t n = 0; n < DIM / WARP; n++) {
    const uint32_t i = n * WARP + threadIdx.x % WARP;
    if (n * WARP >= width) break;
    if (kind == CACHE_I8 || kind == CACHE_F8) {
      // The largest magnitude of a group becomes the largest code.
      const float scale = warp_max(fabsf(x[n])) / (kind == CACHE_I8 ? 127.0f : 448.0f);
      float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
      if (!(inverse < INFINITY)) inverse = 0.0f;
      const float code = x[n] * inverse;
      if (i < width) out[i] = kind == CACHE_I8 ? (uint8_t)(int8_t)rintf(code) : (uint8_t)float_to_e4m3(code);
      if (threadIdx.x % WARP == 0) scales[n] = scale;
      continue;
    }
    if (i >= width) continue;
    if (kind == CACHE_F32) reinterpret_cast<float*>(out)[i] = x[n];
    if (kind == CACHE_F16) reinterpret_cast<uint16_t*>(out)[i] = float_to_half(x[n]);
    if (kind == CACHE_BF16) reinterpret_cast<uint16_t*>(out)[i] = (uint16_t)pack_bf16(x[n], 0.0f);
  }
}

// Puts a head of K, or of V, into its row of the cache.
template <uint32_t DIM>
__device__ __forceinline__ void store_row(const CacheLayer& cache, uint32_t kind, const float (&x)[LANE_VALUES], bool is_v, size_t row) {
  const uint32_t dim = cache.head_dim, bytes = kind == CACHE_F32 ? 4 : kind == CACHE_F16 || kind == CACHE_BF16 ? 2 : 1;
  float* scales = (is_v ? cache.v_scales : cache.k_scales) + row * ((dim + CACHE_GROUP - 1) / CACHE_GROUP);
  store<DIM>(kind, x, dim, (is_v ? cache.v : cache.k) + row * dim * bytes, scales);
}

// Which head this is of those of q, then of k, then of v; its first value there.
struct HeadOf {
  bool is_q, is_v;
  uint32_t head;
  const float* from;
};

__device__ __forceinline__ HeadOf head_of(const Heads& p, const CacheLayer& cache, uint32_t t, uint32_t number) {
  const uint32_t kv_heads = cache.num_kv_heads, of_kv = number - p.num_heads;
  const bool is_q = number < p.num_heads, is_v = !is_q && of_kv >= kv_heads;
  const uint32_t head = is_q ? number : is_v ? of_kv - kv_heads : of_kv;
  return {is_q, is_v, head, (is_q ? p.q : is_v ? p.v : p.k) + ((size_t)t * (is_q ? p.num_heads : kv_heads) + head) * cache.head_dim};
}

// The rotations of a token, as a lane needs them for a head of at most DIM values.
template <uint32_t DIM>
__device__ __forceinline__ void read_angles(const Heads& p, uint32_t t, float2 (&angles)[LANE_VALUES / 2]) {
#pragma unroll
  for (uint32_t n = 0; n < DIM / WARP / 2; n++) {
    const uint32_t i = n * WARP + threadIdx.x % WARP;
    angles[n] = i < p.pairs ? p.angles[(size_t)t * p.pairs + i] : float2{};
  }
}

// A head of at most DIM values on its way through a warp: what is read of the model, of what a kernel before has written, and what
// becomes of it; `row` has room for it.
template <uint32_t DIM>
struct HeadValues {
  float x[LANE_VALUES], weights[LANE_VALUES];
  const float* norm;

  __device__ __forceinline__ void read_norm(const Heads& p, uint32_t dim, const HeadOf& head) {
    norm = head.is_q ? p.q_norm : head.is_v ? nullptr : p.k_norm;
    read(weights, norm, norm ? dim : 0);
  }

  __device__ __forceinline__ void read_values(uint32_t dim, const HeadOf& head) { read(x, head.from, dim); }

  __device__ __forceinline__ void turn(const Heads& p, uint32_t dim, const HeadOf& head, const float2 (&angles)[LANE_VALUES / 2], float* row) {
    if (norm) {
      const float factor = factor_of(x, dim, p.eps);
#pragma unroll
      for (uint32_t n = 0; n < LANE_VALUES; n++) x[n] = x[n] * factor * weights[n];
    }
    if (!head.is_v) ::turn<DIM>(x, angles, p.pairs, row);
  }

  static __device__ __forceinline__ void read(float (&values)[LANE_VALUES], const float* from, uint32_t dim) {
#pragma unroll
    for (uint32_t n = 0; n < LANE_VALUES; n++) {
      const uint32_t i = n * WARP + threadIdx.x % WARP;
      values[n] = n < DIM / WARP && i < dim ? from[i] : 0.0f;
    }
  }
};
