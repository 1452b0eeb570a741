// Causal attention over the paged cache of 8 or 16 bits, grouped heads, window, soft cap, on tensor cores
//   q, out [tokens, num_heads * head_dim] f32; cache of one layer; records [tokens of the launch, num_heads, max_spans, head_dim + 2] f32
// Launch:  `attention_rows_<kind>_<width>`: block = 256; tokens `first_token..end_token` times the heads of a group are rows, grid =
//          (rows / rows of a block rounded up, num_kv_heads, 1). A block has 128 rows, 64 where width is 256.
//          `attention_token_<kind>_<width>`: block = 128; grid = (tokens, num_kv_heads * (heads of a group / 16 rounded up), 1).
//          Where `records` is given, both take one z for a span of what a token (or the tokens of a block) sees, and
//          `attention_join` follows. `width` is head_dim rounded up to 64, 128 or 256; dynamic shared memory: AttentionTile::BYTES.
// Bound:   a token each: memory, K and V of what is seen, once for 16 heads of a group. Many tokens: tensor cores and, at 16 rows for
//          each fragment of K and V, shared memory (128 bytes a clock), about as much as sm_80's tensor cores take and half of sm_90's.
// Meaning: src/reference/mod.rs, `attention`.
// Source:  Dao et al. 2022, arXiv:2205.14135 and 2023, arXiv:2307.08691 (tiles, running softmax); "Flash-Decoding" (splitting);
//          Milakov & Gimelshein 2018, arXiv:1805.02867 (joining of softmaxes).
//
// Order, by head_dim alone: spans of 256 positions counted from zero, each by itself, joined in ascending order (attention.cuh).
// Within a span steps of 64 positions (32 where width is 256), counted from zero, ascending: a score is the sum of its products over
// sixteens of values, ascending; then the largest score so far, by which weights are scaled and all sums shrunk; a lane adds the
// weights of its positions of sixteen in ascending order, then of sixteens; values are added by sixteens of positions, ascending. So
// neither the chunk that a token came in, nor its neighbours, nor the choice between one block and many shows: a step in which a
// row sees nothing multiplies its sums by 1 and adds zeros. (One thing can: a V that is not finite, times a weight of zero, is not
// a number, in rows of the same sequence that share the step and do not see it.)
//
// Rounding: q becomes f16 where the cache is f16 or bytes (whose values, code * scale, do too), as f16 keeps 11 bits; bf16 where the
// cache is bf16, which is chosen for its range. Weights, at most 1, are rounded to the same; their sum is of what they were before.
#include "attention_tile.cuh"

constexpr uint32_t ROWS_WARPS = 8;
constexpr uint32_t TOKEN_WARPS = 4;

template <class Kind, uint32_t DIM>
__device__ __forceinline__ void attention_rows(const Attention& p) {
  using Tile = AttentionTile<Kind, DIM, (DIM > 128 ? 2 : 1), ROWS_WARPS>;
  DYNAMIC_SHARED(shared);
  const uint32_t group = p.num_heads / p.cache.num_kv_heads, end = end_of_tokens(p);
  const uint32_t blocks = ((p.end_token - p.first_token) * group + Tile::ROWS - 1) / Tile::ROWS;
  // Later tokens see more: the longest blocks begin first.
  const uint32_t skipped = (blocks - 1 - blockIdx.x) * Tile::ROWS;
  const Rows rows = {p.first_token, end, blockIdx.y, blockIdx.y * group, group, skipped};
  if (p.first_token + skipped / group >= end) return;
  Tile(p, rows, shared).run(p.records != nullptr, blockIdx.z);
}

template <class Kind, uint32_t DIM>
__device__ __forceinline__ void attention_token(const Attention& p) {
  using Tile = AttentionTile<Kind, DIM, TOKEN_WARPS, TOKEN_WARPS>;
  DYNAMIC_SHARED(shared);
  const uint32_t group = p.num_heads / p.cache.num_kv_heads, tiles = (group + Tile::ROWS - 1) / Tile::ROWS;
  const uint32_t t = p.first_token + blockIdx.x, kv_head = blockIdx.y / tiles, first = blockIdx.y % tiles * Tile::ROWS;
  if (t >= end_of_tokens(p)) return;
  const Rows rows = {t, t + 1, kv_head, kv_head * group + first, min(Tile::ROWS, group - first), 0};
  Tile(p, rows, shared).run(p.records != nullptr, blockIdx.z);
}

// Both wait for the kernels before them at once; they are no `KERNEL` as fewer blocks of them fit.
#define ATTENTION(kind, width)                                                                                  \
  KERNEL_EARLY(ROWS_WARPS * WARP, 1, attention_rows_##kind##_##width, Attention) {                              \
    wait_for_previous();                                                                                        \
    attention_rows<cache_##kind, width>(p);                                                                     \
  }                                                                                                             \
  KERNEL_EARLY(TOKEN_WARPS * WARP, (width > 128 ? 2 : 3), attention_token_##kind##_##width, Attention) {        \
    wait_for_previous();                                                                                        \
    attention_token<cache_##kind, width>(p);                                                                    \
  }
#define ATTENTION_WIDTHS(kind) ATTENTION(kind, 64) ATTENTION(kind, 128) ATTENTION(kind, 256)
ATTENTION_WIDTHS(f16)
ATTENTION_WIDTHS(bf16)
ATTENTION_WIDTHS(i8)
ATTENTION_WIDTHS(f8)
#undef ATTENTION_WIDTHS
#undef ATTENTION
