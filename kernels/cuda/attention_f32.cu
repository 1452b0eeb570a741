// Causal attention over the paged cache of f32, grouped heads, window, soft cap: exact, for comparison with an original
//   q, out [tokens, num_heads * head_dim] f32; cache of one layer; records [tokens of the launch, num_heads, max_spans, head_dim + 2] f32
// Launch:  grid = (tokens from first_token on, num_kv_heads * (heads of a group / 4 rounded up), 1), block = 256: up to four query
//          heads that share a K and V head. Where `records` is given, one z for a span; `attention_join` follows.
// Bound:   decode: memory, K and V of what is seen once for four heads; prefill: f32 arithmetic.
// Meaning: src/reference/mod.rs, `attention`.
// Source:  Milakov & Gimelshein 2018, arXiv:1805.02867 (joining of softmaxes); Dao et al. 2023, "Flash-Decoding" (splitting).
//
// Order: spans of 256 positions counted from zero, each by itself, joined in ascending order. So neither the chunk that a
// token came in nor the choice between one block and many shows. Within a span, by head_dim alone: a score is the sum over
// lanes of values l, l + 32, …, by `warp_sum`; weights are summed as `block_sum` does; for the sum of V, 256 / width parts
// (width: head_dim rounded up to 32) take positions in turn, ascending, and are added first to last.
#include "attention.cuh"

constexpr uint32_t ATTENTION_THREADS = 256;
constexpr uint32_t HEADS = 4;
constexpr uint32_t HEAD_DIM_MAX = 256;

struct AttentionShared {
  float q[HEADS][HEAD_DIM_MAX];
  float scores[HEADS][SPAN];
  float parts[HEADS][ATTENTION_THREADS];
  float warps[ATTENTION_THREADS / WARP];
};

// The query heads of a block, and what its token sees.
struct Query {
  uint32_t t, sequence, kv_head, first_head, heads, first, end;
};

// Of one span and one head: the weights' sum and the largest score, and of one value the weighted sum.
struct Record {
  float sum, weight, largest;
};

__device__ __forceinline__ Record join(const Record& a, const Record& b) {
  const Join join = join_of(a.largest, b.largest);
  return {joined(join, a.sum, b.sum), joined(join, a.weight, b.weight), join.largest};
}

__device__ __forceinline__ Query query(const Attention& p) {
  const uint32_t group = p.num_heads / p.cache.num_kv_heads, chunks = (group + HEADS - 1) / HEADS;
  Query q;
  q.t = p.first_token + blockIdx.x;
  q.sequence = p.step.sequences[q.t];
  q.kv_head = blockIdx.y / chunks;
  const uint32_t first = blockIdx.y % chunks * HEADS;
  q.first_head = q.kv_head * group + first;
  q.heads = min(HEADS, group - first);
  const Seen seen = seen_by(p, q.t);
  q.first = seen.first;
  q.end = seen.end;
  return q;
}

__device__ __forceinline__ void bring_queries(const Attention& p, const Query& q, AttentionShared& s) {
  const uint32_t dim = p.cache.head_dim;
  const float* from = p.q + ((size_t)q.t * p.num_heads + q.first_head) * dim;
  for (uint32_t i = threadIdx.x; i < HEADS * HEAD_DIM_MAX; i += ATTENTION_THREADS) {
    const uint32_t h = i / HEAD_DIM_MAX, d = i % HEAD_DIM_MAX;
    s.q[h][d] = h < q.heads && d < dim ? from[h * dim + d] : 0.0f;
  }
  __syncthreads();
}

// Scores of positions `first..end` of the span that begins at `base`, a warp a position.
__device__ __forceinline__ void score(const Attention& p, const Query& q, uint32_t base, uint32_t first, uint32_t end,
                                      AttentionShared& s) {
  const uint32_t lane = threadIdx.x % WARP, dim = p.cache.head_dim;
  for (uint32_t position = first + threadIdx.x / WARP; position < end; position += ATTENTION_THREADS / WARP) {
    const size_t row = cache_row(p.cache, p.step, q.sequence, position, q.kv_head);
    float sums[HEADS] = {};
    for (uint32_t i = lane; i < dim; i += WARP) {
      const float k = reinterpret_cast<const float*>(p.cache.k)[row * dim + i];
#pragma unroll
      for (uint32_t h = 0; h < HEADS; h++) sums[h] = fmaf(s.q[h][i], k, sums[h]);
    }
#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++) {
      float x = warp_sum(sums[h]) * p.scale;
      if (p.softcap > 0.0f) x = p.softcap * tanhf(x / p.softcap);
      if (lane == 0) s.scores[h][position - base] = x * LOG2_E;
    }
  }
  __syncthreads();
}

// One span: `out[h]` has, in thread d below head_dim, the sum of value d, and the rest in every thread.
__device__ __forceinline__ void attend(const Attention& p, const Query& q, uint32_t span, AttentionShared& s,
                                       Record out[HEADS]) {
  const uint32_t base = span * SPAN, dim = p.cache.head_dim, i = threadIdx.x;
  const uint32_t first = max(q.first, base), end = min(q.end, base + SPAN);
  score(p, q, base, first, end, s);
  const bool seen = base + i >= first && base + i < end;
#pragma unroll
  for (uint32_t h = 0; h < HEADS; h++) {
    const float x = seen ? s.scores[h][i] : -INFINITY;
    out[h].largest = block_max<ATTENTION_THREADS>(x, s.warps);
    const float weight = seen ? exp2f(x - out[h].largest) : 0.0f;
    s.scores[h][i] = weight;
    out[h].weight = block_sum<ATTENTION_THREADS>(weight, s.warps);
  }
  // `block_sum` ends at a barrier: all weights are there.
  const uint32_t width = (dim + WARP - 1) / WARP * WARP, parts = ATTENTION_THREADS / width;
  const uint32_t part = i / width, d = i % width;
  float sums[HEADS] = {};
  if (part < parts && d < dim) {
    for (uint32_t at = part; at < SPAN; at += parts) {
      if (base + at < first || base + at >= end) continue;
      const size_t row = cache_row(p.cache, p.step, q.sequence, base + at, q.kv_head);
      const float v = reinterpret_cast<const float*>(p.cache.v)[row * dim + d];
#pragma unroll
      for (uint32_t h = 0; h < HEADS; h++) sums[h] = fmaf(s.scores[h][at], v, sums[h]);
    }
  }
#pragma unroll
  for (uint32_t h = 0; h < HEADS; h++) s.parts[h][i] = sums[h];
  __syncthreads();
#pragma unroll
  for (uint32_t h = 0; h < HEADS; h++) {
    out[h].sum = 0.0f;
    for (uint32_t n = 0; n < parts && i < dim; n++) out[h].sum += s.parts[h][n * width + i];
  }
  __syncthreads();
}

// One span of a head, or all of them joined.
__device__ __forceinline__ void write(const Attention& p, const Query& q, uint32_t h, const Record& found) {
  const uint32_t dim = p.cache.head_dim;
  if (h >= q.heads) return;
  if (!p.records) {
    if (threadIdx.x < dim) {
      p.out[((size_t)q.t * p.num_heads + q.first_head + h) * dim + threadIdx.x] = found.sum / found.weight;
    }
    return;
  }
  const size_t number = ((size_t)blockIdx.x * p.num_heads + q.first_head + h) * p.max_spans + blockIdx.z;
  float* record = p.records + number * (dim + 2);
  if (threadIdx.x < dim) record[threadIdx.x] = found.sum;
  if (threadIdx.x == 0) record[dim] = found.weight, record[dim + 1] = found.largest;
}

KERNEL(ATTENTION_THREADS, attention_f32, Attention) {
  __shared__ AttentionShared s;
  if (p.first_token + blockIdx.x >= end_of_tokens(p)) return;
  const Query q = query(p);
  const uint32_t first = q.first / SPAN + blockIdx.z, end = p.records ? first + 1 : (q.end + SPAN - 1) / SPAN;
  if (first * SPAN >= q.end) return;
  bring_queries(p, q, s);
  Record all[HEADS], one[HEADS];
  attend(p, q, first, s, all);
  for (uint32_t span = first + 1; span < end; span++) {
    attend(p, q, span, s, one);
#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++) all[h] = join(all[h], one[h]);
  }
#pragma unroll
  for (uint32_t h = 0; h < HEADS; h++) write(p, q, h, all[h]);
}
