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
  uint32_t unused;
};
static_assert(sizeof(Attention) == 152, "src/cuda/params.rs asserts the same size");

constexpr uint32_t SPAN = 256;
constexpr float LOG2_E = 1.44269504088896340736f;

// Positions that a token sees.
struct Seen {
  uint32_t first, end;
};

__device__ __forceinline__ Seen seen_by(const Attention& p, uint32_t t) {
  const uint32_t end = p.step.positions[t] + 1;
  return {p.window != 0 && end > p.window ? end - p.window : 0, end};
}

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
