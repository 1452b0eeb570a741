// Norms of q and k heads, rotation of pairs (i, i + pairs), and K and V to the paged cache
//   q [tokens, num_heads * head_dim], k, v [tokens, num_kv_heads * head_dim] f32; angles [tokens, pairs] of cos and sin
// Launch:  grid = (tokens, (num_heads + 2 * num_kv_heads) / 4 rounded up), block = 128: a warp has a head, of at most 256 values.
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

constexpr uint32_t ROPE_WARPS = 4;

KERNEL_EARLY(ROPE_WARPS * WARP, 3, rope_store, RopeStore) {
  __shared__ float rows[ROPE_WARPS][ROPE_DIM_MAX];
  const uint32_t warp = threadIdx.x / WARP, t = blockIdx.x, number = blockIdx.y * ROPE_WARPS + warp;
  if (t >= *p.step.num_tokens || number >= p.heads.num_heads + 2 * p.cache.num_kv_heads) return wait_for_previous();
  rope_store_head(p, t, number, rows[warp], wait_for_previous);
}
