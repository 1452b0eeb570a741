// What the kernels of attention share: arguments, what a token sees, and how spans are joined.
#pragma once

#include "common.cuh"

struct Attention {
  Step step;
  CacheLayer cache;
  const float* q;
  float* out;
  float* records;        // none: a block goes through all spans
  uint32_t num_heads;
  uint32_t window;       // 0: none
  uint32_t max_spans;    // of a token, at least
  uint32_t first_token;  // of this launch
  uint32_t end_token;
  float scale;
  float softcap;         // 0: none
  uint32_t ring;         // of `attention_token`: units of K and V that are there or on their way, those of two chunks at least
  uint32_t* tickets;     // of the same: one for each work, zero before and after
  uint32_t turns;        // of the same: 1 where it turns its heads, and every sequence of the step has one token
  uint32_t group;        // heads that share a K and V head
};
static_assert(sizeof(Attention) == 168, "src/cuda/params.rs asserts the same size");

constexpr uint32_t SPAN = 256;
constexpr float LOG2_E = 1.44269504088896340736f;

// 2^x, within two units of the last place; exactly 1 of 0, and 0 of minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef CHRYSALIS_EMULATE
  return std::exp2(x);
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

// Positions that a token sees.
struct Seen {
  uint32_t first, end;
};

// By a token at `position`.
__device__ __forceinline__ Seen seen_at(const Attention& p, uint32_t position) {
  const uint32_t end = position + 1;
  return {p.window != 0 && end > p.window ? end - p.window : 0, end};
}

__device__ __forceinline__ Seen seen_by(const Attention& p, uint32_t t) { return seen_at(p, p.step.positions[t]); }

// One past the last token of this launch.
__device__ __forceinline__ uint32_t end_of_tokens(const Attention& p) { return min(p.end_token, *p.step.num_tokens); }

// How the sums so far and those of the next span count in those of both: relative to the larger of their largest scores, which
// are logarithms to base 2. Nothing seen (minus infinity) counts nothing.
struct Join {
  float before, next, largest;
};

__device__ __forceinline__ Join join_of(float before, float next) {
  const float largest = fmaxf(before, next);
  return {before == -INFINITY ? 0.0f : exp2f(before - largest), next == -INFINITY ? 0.0f : exp2f(next - largest), largest};
}

__device__ __forceinline__ float joined(const Join& join, float before, float next) {
  return fmaf(next, join.next, before * join.before);
}

// Value `i` of a head whose spans have records, from `record` on, joined in ascending order and divided by the weight.
__device__ __forceinline__ float joined_records(const float* record, uint32_t spans, uint32_t dim, uint32_t i) {
  float sum = __ldcg(&record[i]), weight = __ldcg(&record[dim]), largest = __ldcg(&record[dim + 1]);
#pragma unroll 4
  for (uint32_t span = 1; span < spans; span++) {
    record += dim + 2;
    const Join join = join_of(largest, __ldcg(&record[dim + 1]));
    sum = joined(join, sum, __ldcg(&record[i]));
    weight = joined(join, weight, __ldcg(&record[dim]));
    largest = join.largest;
  }
  return sum / weight;
}
