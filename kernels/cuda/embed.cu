// Embedding: out[t, i] = table[tokens[t], i] * scale
//   table [vocab, cols] of any form (tiles.cuh, weights.cuh); out [tokens, cols] f32
// Launch:  grid = (tokens, cols / 512 rounded up), block = 128.
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

constexpr uint32_t EMBED_THREADS = 128;
// Values of a thread, which it asks for at once.
constexpr uint32_t EMBED_HELD = 4;

template <class Form>
__device__ __forceinline__ void embed(const Embed& p) {
  const uint32_t t = blockIdx.x, cols = p.table.cols, first = blockIdx.y * EMBED_HELD * EMBED_THREADS + threadIdx.x;
  // Both at once, and early (attention.cu).
  const uint32_t row = p.step.tokens[t], num_tokens = *p.step.num_tokens;
  wait_for_previous();
  if (t >= num_tokens || first >= cols) return;
  float held[EMBED_HELD];
#pragma unroll
  for (uint32_t k = 0; k < EMBED_HELD; k++) {
    // Without a branch, so that nothing waits for what is asked for first.
    const uint32_t col = min(first + k * EMBED_THREADS, cols - 1);
    held[k] = value_at<Form>(p.table, row, col);
  }
#pragma unroll
  for (uint32_t k = 0; k < EMBED_HELD; k++) {
    const uint32_t col = first + k * EMBED_THREADS;
    if (col < cols) p.out[(size_t)t * cols + col] = held[k] * p.scale;
  }
}

#define EMBED(name, Form) \
  KERNEL_EARLY(EMBED_THREADS, 3, embed_##name, Embed) { embed<Form>(p); }
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
