// Causal attention over the paged cache of 8 or 16 bits, grouped heads, window, soft cap, on tensor cores
//   q, out [tokens, num_heads * head_dim] f32; cache of one layer; records [tokens of the launch, num_heads, max_spans, head_dim + 2] f32
// Launch:  `attention_rows_<kind>_<width>`: block = 256; tokens `first_token..end_token` times the heads of a group are rows, grid =
//          (rows / rows of a block rounded up, num_kv_heads, 1). A block has 128 rows, 64 where width is 256.
//          `attention_token_<kind>_<width>`: block = 256, or 128 of `.._4`, of heads of 128 values at most; works are tokens times
//          num_kv_heads times (heads of a group / 16 rounded up), which blocks go through, grid = (blocks, 1, 1). It may do what
//          `rope_store` would (`turns`), and then writes K and V of the tokens' own positions, and no q; and what `input_tiles` would
//          (`tiles`, as input_tiles.cuh has them), and then no out. Where `records` is given, a block has one work, and both take one
//          z for a span of what a token (or the tokens of a block) sees; of a token the block that comes last joins them, after
//          `rows` `attention_join` follows. `width` is head_dim rounded up to 64, 128 or 256; dynamic shared memory:
//          AttentionTile::BYTES, or TokenRing's RING_AT and `ring` of its units.
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
//
// Early: before the kernel before them has ended `rope_store` and `embed` read the step's arrays, and `attention_token`, where it turns
// its heads, those, and K and V of positions before the tokens' own. A kernel begins when all blocks of the one before have begun, so
// whatever a step starts begins after the copy that brought its arrays has ended (what is no kernel begins when all before it
// has ended, and is waited for), and no kernel writes them. Heads are turned so in graphs, in which every sequence has one token: a graph
// begins when all that was asked for before has ended, steps before it and blocks that were cleared included, and in it a layer's
// cache is written in the rows of the tokens' own positions alone. That a kernel has ended means that all before it have because every
// thread of every block waits, also where it has nothing to do.
#include "attention_tile.cuh"
#include "attention_token.cuh"

constexpr uint32_t ROWS_WARPS = 8;

template <class Kind, uint32_t DIM>
__device__ __forceinline__ void attention_rows(const Attention& p) {
  using Tile = AttentionTile<Kind, DIM, (DIM > 128 ? 2 : 1), ROWS_WARPS>;
  DYNAMIC_SHARED(shared);
  Rows rows;
  if (rows_of_block<Tile::ROWS>(p, rows)) Tile(p, rows, shared).run(p.records != nullptr, blockIdx.z);
}

// `rows` waits for the kernel before it at once; it is no `KERNEL` as fewer blocks of it fit.
#define ATTENTION(kind, width)                                                            \
  KERNEL_EARLY(ROWS_WARPS * WARP, 1, attention_rows_##kind##_##width, Attention) {        \
    wait_for_previous();                                                                  \
    attention_rows<cache_##kind, width>(p);                                               \
  }                                                                                       \
  KERNEL_EARLY(256, 2, attention_token_##kind##_##width, TokenAttention) {                \
    DYNAMIC_SHARED(shared);                                                               \
    attention_token<cache_##kind, width, 8>(p, shared);                                   \
  }
#define ATTENTION_OF_FOUR(kind, width)                                                    \
  KERNEL_EARLY(128, 4, attention_token_##kind##_##width##_4, TokenAttention) {            \
    DYNAMIC_SHARED(shared);                                                               \
    attention_token<cache_##kind, width, 4>(p, shared);                                   \
  }
#define ATTENTION_WIDTHS(kind)                                   \
  ATTENTION(kind, 64) ATTENTION(kind, 128) ATTENTION(kind, 256) \
  ATTENTION_OF_FOUR(kind, 64) ATTENTION_OF_FOUR(kind, 128)
ATTENTION_WIDTHS(f16)
ATTENTION_WIDTHS(bf16)
ATTENTION_WIDTHS(i8)
ATTENTION_WIDTHS(f8)
#undef ATTENTION_WIDTHS
#undef ATTENTION_OF_FOUR
#undef ATTENTION
