// Causal attention over the paged cache, grouped heads, window, soft cap
//   q, out [tokens, num_heads * head_dim] f32; cache of one layer; records [tokens, num_heads, max_spans, head_dim + 2] f32
// Launch:  block = 256; up to four query heads that share a K and V head. Many tokens: `attention_<kind>`, grid = (tokens,
//          num_kv_heads * (heads of a group / 4 rounded up)), a block goes through all spans. Few: `attention_spans_<kind>`,
//          the same grid with one z for a span, then `attention_join`, grid = (tokens, num_heads).
// Bound:   decode: memory, K and V of what is seen once for four heads; prefill: f32 arithmetic (no tensor cores yet).
// Meaning: src/reference/mod.rs, `attention`.
// Source:  Milakov & Gimelshein 2018, arXiv:1805.02867 (joining of softmaxes); Dao et al. 2023, "Flash-Decoding" (splitting).
//
// Order: spans of 256 positions counted from zero, each by itself, joined in ascending order. So neither the chunk that a
// token came in nor the choice between one block and many shows. Within a span, by head_dim alone: a score is the sum over
// lanes of values l, l + 32, …, by `warp_sum`; weights are summed as `block_sum` does; for the sum of V, 256 / width parts
// (width: head_dim rounded up to 32) take positions in turn, ascending, and are added first to last.
#include "common.cuh"

struct Attention {
  Step step;
  CacheLayer cache;
  const float* q;
  float* out;
  float* records;
  uint32_t num_heads;
  uint32_t window;     // 0: none
  uint32_t max_spans;
  float scale;
  float softcap;       // 0: none
  uint32_t unused;
};
static_assert(sizeof(Attention) == 144, "src/cuda/params.rs asserts the same size");

constexpr uint32_t ATTENTION_THREADS = 256;
constexpr uint32_t SPAN = 256;
constexpr uint32_t HEADS = 4;
constexpr uint32_t HEAD_DIM_MAX = 256;

// Value `i` of row `row`.
struct cache_f32 {
  static __device__ __forceinline__ float at(const uint8_t* values, const float*, size_t row, uint32_t dim, uint32_t i) {
    return reinterpret_cast<const float*>(values)[row * dim + i];
  }
};
struct cache_f16 {
  static __device__ __forceinline__ float at(const uint8_t* values, const float*, size_t row, uint32_t dim, uint32_t i) {
    return half_to_float(reinterpret_cast<const uint16_t*>(values)[row * dim + i]);
  }
};
struct cache_i8 {
  static __device__ __forceinline__ float at(const uint8_t* values, const float* scales, size_t row, uint32_t dim, uint32_t i) {
    const uint32_t groups = (dim + CACHE_GROUP - 1) / CACHE_GROUP;
    return (float)(int8_t)values[row * dim + i] * scales[row * groups + i / CACHE_GROUP];
  }
};

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
  const float largest = fmaxf(a.largest, b.largest);
  const float x = expf(a.largest - largest), y = expf(b.largest - largest);
  return {fmaf(b.sum, y, a.sum * x), fmaf(b.weight, y, a.weight * x), largest};
}

__device__ __forceinline__ Query query(const Attention& p) {
  const uint32_t group = p.num_heads / p.cache.num_kv_heads, chunks = (group + HEADS - 1) / HEADS;
  Query q;
  q.t = blockIdx.x;
  q.sequence = p.step.sequences[q.t];
  q.kv_head = blockIdx.y / chunks;
  const uint32_t first = blockIdx.y % chunks * HEADS;
  q.first_head = q.kv_head * group + first;
  q.heads = min(HEADS, group - first);
  q.end = p.step.positions[q.t] + 1;
  q.first = p.window != 0 && q.end > p.window ? q.end - p.window : 0;
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
template <class Kind>
__device__ __forceinline__ void score(const Attention& p, const Query& q, uint32_t base, uint32_t first, uint32_t end,
                                      AttentionShared& s) {
  const uint32_t lane = threadIdx.x % WARP, dim = p.cache.head_dim;
  for (uint32_t position = first + threadIdx.x / WARP; position < end; position += ATTENTION_THREADS / WARP) {
    const size_t row = cache_row(p.cache, p.step, q.sequence, position, q.kv_head);
    float sums[HEADS] = {};
    for (uint32_t i = lane; i < dim; i += WARP) {
      const float k = Kind::at(p.cache.k, p.cache.k_scales, row, dim, i);
#pragma unroll
      for (uint32_t h = 0; h < HEADS; h++) sums[h] = fmaf(s.q[h][i], k, sums[h]);
    }
#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++) {
      float x = warp_sum(sums[h]) * p.scale;
      if (p.softcap > 0.0f) x = p.softcap * tanhf(x / p.softcap);
      if (lane == 0) s.scores[h][position - base] = x;
    }
  }
  __syncthreads();
}

// One span: `out[h]` has, in thread d below head_dim, the sum of value d, and the rest in every thread.
template <class Kind>
__device__ __forceinline__ void attend(const Attention& p, const Query& q, uint32_t span, AttentionShared& s,
                                       Record out[HEADS]) {
  const uint32_t base = span * SPAN, dim = p.cache.head_dim, i = threadIdx.x;
  const uint32_t first = max(q.first, base), end = min(q.end, base + SPAN);
  score<Kind>(p, q, base, first, end, s);
  const bool seen = base + i >= first && base + i < end;
#pragma unroll
  for (uint32_t h = 0; h < HEADS; h++) {
    const float x = seen ? s.scores[h][i] : -INFINITY;
    out[h].largest = block_max<ATTENTION_THREADS>(x, s.warps);
    const float weight = seen ? expf(x - out[h].largest) : 0.0f;
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
      const float v = Kind::at(p.cache.v, p.cache.v_scales, row, dim, d);
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

template <class Kind>
__device__ __forceinline__ void attention(const Attention& p) {
  __shared__ AttentionShared s;
  if (blockIdx.x >= *p.step.num_tokens) return;
  const Query q = query(p);
  const uint32_t first = q.first / SPAN, end = (q.end + SPAN - 1) / SPAN, dim = p.cache.head_dim;
  bring_queries(p, q, s);
  Record all[HEADS], one[HEADS];
  attend<Kind>(p, q, first, s, all);
  for (uint32_t span = first + 1; span < end; span++) {
    attend<Kind>(p, q, span, s, one);
#pragma unroll
    for (uint32_t h = 0; h < HEADS; h++) all[h] = join(all[h], one[h]);
  }
#pragma unroll
  for (uint32_t h = 0; h < HEADS; h++) {
    if (h < q.heads && threadIdx.x < dim) {
      p.out[((size_t)q.t * p.num_heads + q.first_head + h) * dim + threadIdx.x] = all[h].sum / all[h].weight;
    }
  }
}

template <class Kind>
__device__ __forceinline__ void attention_spans(const Attention& p) {
  __shared__ AttentionShared s;
  if (blockIdx.x >= *p.step.num_tokens) return;
  const Query q = query(p);
  const uint32_t span = q.first / SPAN + blockIdx.z, dim = p.cache.head_dim;
  if (span >= (q.end + SPAN - 1) / SPAN) return;
  bring_queries(p, q, s);
  Record one[HEADS];
  attend<Kind>(p, q, span, s, one);
#pragma unroll
  for (uint32_t h = 0; h < HEADS; h++) {
    if (h >= q.heads) continue;
    const size_t number = ((size_t)q.t * p.num_heads + q.first_head + h) * p.max_spans + blockIdx.z;
    float* record = p.records + number * (dim + 2);
    if (threadIdx.x < dim) record[threadIdx.x] = one[h].sum;
    if (threadIdx.x == 0) record[dim] = one[h].weight, record[dim + 1] = one[h].largest;
  }
}

#define ATTENTION(kind)                                                                            \
  KERNEL(ATTENTION_THREADS, attention_##kind, Attention) { attention<cache_##kind>(p); }           \
  KERNEL(ATTENTION_THREADS, attention_spans_##kind, Attention) { attention_spans<cache_##kind>(p); }
ATTENTION(f32)
ATTENTION(f16)
ATTENTION(i8)
#undef ATTENTION

KERNEL(ATTENTION_THREADS, attention_join, Attention) {
  const uint32_t t = blockIdx.x, head = blockIdx.y, dim = p.cache.head_dim, i = threadIdx.x;
  if (t >= *p.step.num_tokens || i >= dim) return;
  const uint32_t end = p.step.positions[t] + 1, first = p.window != 0 && end > p.window ? end - p.window : 0;
  const uint32_t spans = (end + SPAN - 1) / SPAN - first / SPAN;
  const size_t number = (size_t)t * p.num_heads + head;
  const float* record = p.records + number * p.max_spans * (dim + 2);
  Record all = {record[i], record[dim], record[dim + 1]};
  for (uint32_t span = 1; span < spans; span++) {
    record += dim + 2;
    all = join(all, {record[i], record[dim], record[dim + 1]});
  }
  p.out[number * dim + i] = all.sum / all.weight;
}
