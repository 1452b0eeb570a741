// Norms of q and k heads, rotation of pairs (i, i + pairs), and K and V to the paged cache
//   q [tokens, num_heads * head_dim], k, v [tokens, num_kv_heads * head_dim] f32; angles [tokens, pairs] of cos and sin
// Launch:  grid = (tokens, (num_heads + 2 * num_kv_heads) / 16 rounded up), block = 128: a warp has four heads, of at most 256 values.
// Bound:   memory; 8 bytes a value of q and k, and what the cache takes.
// Meaning: src/reference/mod.rs, `rope_store`, and src/reference/ops.rs, `store`.
// Source:  Su et al. 2021, arXiv:2104.09864; norms of heads as in Qwen 3 and Gemma 3.
//
// Order of a norm's sum, by head_dim alone: four sums of a lane, of values 32 n + lane for n = 0 and 4, 1 and 5, 2 and 6, 3 and 7;
// of each a tree over lanes; then the four.
//
// In a step that is recorded attention does the same (attention_token.cuh).
//
// Begins early: of the step's arrays and the norms no kernel of the step writes anything (attention.cu).
#include "rope_store.cuh"

constexpr uint32_t ROPE_WARPS = 4, ROPE_HEADS = 4;

// Heads of a token by a warp: the next is read while one is turned, and all while the table says where K and V belong.
template <uint32_t DIM>
__device__ __forceinline__ void rope_store_heads(const RopeStore& p, float* row) {
  const uint32_t lane = threadIdx.x % WARP, t = blockIdx.x, dim = p.cache.head_dim, all = p.heads.num_heads + 2 * p.cache.num_kv_heads;
  const uint32_t first = (blockIdx.y * ROPE_WARPS + threadIdx.x / WARP) * ROPE_HEADS, end = min(first + ROPE_HEADS, all);
  if (first >= end) return wait_for_previous();
  const uint32_t tokens = *p.step.num_tokens, sequence = p.step.sequences[t], position = p.step.positions[t];
  HeadOf head = head_of(p.heads, p.cache, t, first);
  HeadValues<DIM> values;
  float2 angles[LANE_VALUES / 2];
  wait_for_previous();
  values.read_values(dim, head);
  read_angles<DIM>(p.heads, t, angles);
  // Of a token that is none all that was read is left from another step.
  if (t >= tokens) return;
  const size_t first_row = end > p.heads.num_heads ? cache_row(p.cache, p.step, sequence, position, 0) : 0;
#pragma unroll 1
  for (uint32_t number = first; number < end; number++) {
    const HeadOf next_head = head_of(p.heads, p.cache, t, min(number + 1, end - 1));
    // Where there are registers for both.
    float next[LANE_VALUES];
    if (DIM <= 128) HeadValues<DIM>::read(next, next_head.from, dim);
    values.read_norm(p.heads, dim, head);
    values.turn(p.heads, dim, head, angles, row);
    float* to = const_cast<float*>(head.from);
#pragma unroll
    for (uint32_t n = 0; n < DIM / WARP; n++) {
      if (!head.is_v && n * WARP + lane < dim) to[n * WARP + lane] = values.x[n];
    }
    if (!head.is_q) store_row<DIM>(p.cache, p.cache.kind, values.x, head.is_v, first_row + head.head * p.cache.block_size);
    head = next_head;
    if (DIM > 128) values.read_values(dim, head);
#pragma unroll
    for (uint32_t n = 0; n < LANE_VALUES; n++) values.x[n] = DIM > 128 ? values.x[n] : next[n];
  }
}

KERNEL_EARLY(ROPE_WARPS * WARP, 8, rope_store, RopeStore) {
  __shared__ float rows[ROPE_WARPS][ROPE_DIM_MAX];
  float* row = rows[threadIdx.x / WARP];
  if (p.cache.head_dim <= 128) rope_store_heads<128>(p, row);
  else rope_store_heads<256>(p, row);
}
