// Embedding: out[t, i] = table[tokens[t], i] * scale
//   table [vocab, cols] of any storage type (weights.cuh); out [tokens, cols] f32
// Launch:  grid = tokens, block = 128.
// Bound:   memory; a stored row and 4 * cols bytes a token.
// Meaning: src/reference/mod.rs, `embed`. Nothing is summed.
// Source:  none; a look-up. Which rows are touched shows in addresses (docs/limitations.md).
#include "weights.cuh"

struct Embed {
  Step step;
  Weights table;
  float* out;
  float scale;
  uint32_t unused;
};
static_assert(sizeof(Embed) == 88, "src/cuda/params.rs asserts the same size");

template <class Type>
__device__ __forceinline__ void embed(const Embed& p) {
  const uint32_t t = blockIdx.x, cols = p.table.cols;
  if (t >= *p.step.num_tokens) return;
  const size_t row = (size_t)p.step.tokens[t] * p.table.stride;
  for (uint32_t col = threadIdx.x * RUN; col < cols; col += 128 * RUN) {
    float values[RUN];
    Type::convert(Type::load(p.table, row + col), col, values);
    for (uint32_t i = 0; i < RUN; i++) {
      if (col + i < cols) p.out[(size_t)t * cols + col + i] = values[i] * p.scale;
    }
  }
}

#define EMBED(type) \
  KERNEL(128, embed_##type, Embed) { embed<type>(p); }
EMBED(f32)
EMBED(f16)
EMBED(bf16)
EMBED(q8_0)
EMBED(q4_0)
EMBED(q4_1)
EMBED(q4_k)
EMBED(wide)
#undef EMBED
