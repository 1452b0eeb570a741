// Norms of q and k heads, rotation of pairs (i, i + pairs), and K and V to the paged cache
//   q [tokens, num_heads * head_dim], k, v [tokens, num_kv_heads * head_dim] f32; angles [tokens, pairs] of cos and sin
// Launch:  grid = (tokens, num_heads + 2 * num_kv_heads), block = 128: one head.
// Bound:   memory; 8 bytes a value of q and k, and what the cache takes.
// Meaning: src/reference/mod.rs, `rope_store`, and src/reference/ops.rs, `store`.
// Source:  Su et al. 2021, arXiv:2104.09864; norms of heads as in Qwen 3 and Gemma 3.
//
// Order of a norm's sum, by head_dim alone: thread i has values i, i + 128, …, then the trees of the warps, then the warps.
#include "e4m3.cuh"

struct RopeStore {
  Step step;
  CacheLayer cache;
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
static_assert(sizeof(RopeStore) == 160, "src/cuda/params.rs asserts the same size");

constexpr uint32_t ROPE_THREADS = 128;

// Norm, where there is one, and rotation, in place.
__device__ __forceinline__ void turn(float* head, const float* norm, const float2* angles, const RopeStore& p, float* warps) {
  const uint32_t dim = p.cache.head_dim;
  float factor = 1.0f;
  if (norm) {
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < dim; i += ROPE_THREADS) sum = fmaf(head[i], head[i], sum);
    factor = 1.0f / sqrtf(block_sum<ROPE_THREADS>(sum, warps) / (float)dim + p.eps);
  }
  for (uint32_t i = threadIdx.x; i < p.pairs; i += ROPE_THREADS) {
    float a = head[i], b = head[i + p.pairs];
    if (norm) a = a * factor * norm[i], b = b * factor * norm[i + p.pairs];
    head[i] = a * angles[i].x - b * angles[i].y;
    head[i + p.pairs] = b * angles[i].x + a * angles[i].y;
  }
  for (uint32_t i = 2 * p.pairs + threadIdx.x; norm && i < dim; i += ROPE_THREADS) head[i] = head[i] * factor * norm[i];
}

__device__ __forceinline__ void store(const CacheLayer& cache, const float* head, uint8_t* out, float* scales, size_t row) {
  const uint32_t dim = cache.head_dim;
  if (cache.kind == CACHE_I8 || cache.kind == CACHE_F8) {
    // A warp takes a group of 32, its largest magnitude becomes the largest code.
    const float most = cache.kind == CACHE_I8 ? 127.0f : 448.0f;
    const uint32_t groups = (dim + CACHE_GROUP - 1) / CACHE_GROUP;
    for (uint32_t group = threadIdx.x / WARP; group < groups; group += ROPE_THREADS / WARP) {
      const uint32_t i = group * CACHE_GROUP + threadIdx.x % WARP;
      const float x = i < dim ? head[i] : 0.0f;
      const float scale = warp_max(fabsf(x)) / most;
      float inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
      if (!(inverse < INFINITY)) inverse = 0.0f;
      const float code = x * inverse;
      if (i < dim) out[row * dim + i] = cache.kind == CACHE_I8 ? (uint8_t)(int8_t)rintf(code) : (uint8_t)float_to_e4m3(code);
      if (threadIdx.x % WARP == 0) scales[row * groups + group] = scale;
    }
    return;
  }
  for (uint32_t i = threadIdx.x; i < dim; i += ROPE_THREADS) {
    if (cache.kind == CACHE_F32) reinterpret_cast<float*>(out)[row * dim + i] = head[i];
    if (cache.kind == CACHE_F16) reinterpret_cast<uint16_t*>(out)[row * dim + i] = float_to_half(head[i]);
    if (cache.kind == CACHE_BF16) reinterpret_cast<uint16_t*>(out)[row * dim + i] = (uint16_t)pack_bf16(head[i], 0.0f);
  }
}

KERNEL(ROPE_THREADS, rope_store, RopeStore) {
  __shared__ float warps[ROPE_THREADS / WARP];
  const uint32_t t = blockIdx.x, heads = p.cache.num_kv_heads, dim = p.cache.head_dim;
  if (t >= *p.step.num_tokens) return;
  const float2* angles = p.angles + (size_t)t * p.pairs;
  if (blockIdx.y < p.num_heads) {
    turn(p.q + ((size_t)t * p.num_heads + blockIdx.y) * dim, p.q_norm, angles, p, warps);
    return;
  }
  const uint32_t head = (blockIdx.y - p.num_heads) % heads;
  const size_t at = ((size_t)t * heads + head) * dim;
  const size_t row = cache_row(p.cache, p.step, p.step.sequences[t], p.step.positions[t], head);
  if (blockIdx.y - p.num_heads < heads) {
    turn(p.k + at, p.k_norm, angles, p, warps);
    __syncthreads();
    store(p.cache, p.k + at, p.cache.k, p.cache.k_scales, row);
  } else {
    store(p.cache, p.v + at, p.cache.v, p.cache.v_scales, row);
  }
}
