// Embedding: out[t, i] = table[tokens[t], i] * scale
//   table [vocab, cols] of any form (tiles.cuh, weights.cuh); out [tokens, cols] f32
// Launch:  grid = tokens, block = 128.
// Bound:   memory; at most two stored rows (a lane's words are of two) and 4 * cols bytes a token.
// Meaning: src/reference/mod.rs, `embed`. Nothing is summed.
// Source:  none; a look-up. Which rows are touched shows in addresses (docs/limitations.md).
#include "weights.cuh"

struct Embed {
  Step step;
  Tiles table;
  float* out;
  float scale;
  uint32_t unused;
};
static_assert(sizeof(Embed) == 80, "src/cuda/params.rs asserts the same size");

template <class Form>
__device__ __forceinline__ void embed(const Embed& p) {
  const uint32_t t = blockIdx.x, cols = p.table.cols;
  if (t >= *p.step.num_tokens) return;
  const uint32_t row = p.step.tokens[t];
  for (uint32_t col = threadIdx.x; col < cols; col += 128) {
    p.out[(size_t)t * cols + col] = value_at<Form>(p.table, row, col) * p.scale;
  }
}

#define EMBED(name, Form) \
  KERNEL(128, embed_##name, Embed) { embed<Form>(p); }
EMBED(f32, rows_f32)
EMBED(f16, tile_f16)
EMBED(bf16, tile_bf16)
EMBED(q8_0, tile_q8_0)
EMBED(q4_0, tile_q4_0)
EMBED(q4_1, tile_q4_1)
EMBED(q4_k, tile_q4_k)
EMBED(f8, tile_f8)
EMBED(wide, tile_wide)
#undef EMBED
