// What the blocks of the spans of a context found, joined: out[t, head] = values / weight, over spans in ascending order
//   records [tokens of the launch, num_heads, max_spans, head_dim + 2] f32: values, their weight, the largest score;
//   out [tokens, num_heads * head_dim] f32
// Launch:  grid = (tokens from first_token on, num_heads), block = 256.
// Bound:   memory; the records.
// Meaning: src/reference/mod.rs, `attention`.
// Source:  Milakov & Gimelshein 2018, arXiv:1805.02867.
#include "attention.cuh"

KERNEL(256, attention_join, Attention) {
  const uint32_t t = p.first_token + blockIdx.x, head = blockIdx.y, dim = p.cache.head_dim, i = threadIdx.x;
  if (t >= end_of_tokens(p) || i >= dim) return;
  const Seen seen = seen_by(p, t);
  const uint32_t spans = (seen.end + SPAN - 1) / SPAN - seen.first / SPAN;
  const float* record = p.records + ((size_t)blockIdx.x * p.num_heads + head) * p.max_spans * (dim + 2);
  p.out[((size_t)t * p.num_heads + head) * dim + i] = joined_records(record, spans, dim, i);
}
