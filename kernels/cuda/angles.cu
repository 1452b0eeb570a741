// Rotations of a step: out[t, i] = (cos(a), sin(a)) * factor, a = positions[t] * inv_freq[i], rounded to f32
//   inv_freq [pairs] f32; out [tokens, pairs] of two f32
// Launch:  grid = tokens, block = 128. Once for a step and a set of frequencies; all layers that have them read it.
// Bound:   neither; a few thousand values a step.
// Meaning: src/reference/mod.rs, `Rope::apply`.
// Source:  Taylor series of sin and cos in f64 within a quarter turn, whole quarters taken off before (Cody & Waite 1980): the
//          next term is below 1e-13. The f32 functions of the vendor's library keep a table in local memory for large angles.
#include "common.cuh"

struct Angles {
  Step step;
  const float* inv_freq;
  float2* out;
  uint32_t pairs;
  float factor;
};
static_assert(sizeof(Angles) == 72, "src/cuda/params.rs asserts the same size");

__device__ __forceinline__ double sin_of_eighth(double r) {
  const double z = r * r;
  double x = 1.0 - z * (1.0 / 156);
  x = 1.0 - z * (1.0 / 110) * x;
  x = 1.0 - z * (1.0 / 72) * x;
  x = 1.0 - z * (1.0 / 42) * x;
  x = 1.0 - z * (1.0 / 20) * x;
  return r * (1.0 - z * (1.0 / 6) * x);
}

__device__ __forceinline__ double cos_of_eighth(double r) {
  const double z = r * r;
  double x = 1.0 - z * (1.0 / 182);
  x = 1.0 - z * (1.0 / 132) * x;
  x = 1.0 - z * (1.0 / 90) * x;
  x = 1.0 - z * (1.0 / 56) * x;
  x = 1.0 - z * (1.0 / 30) * x;
  x = 1.0 - z * (1.0 / 12) * x;
  return 1.0 - z * 0.5 * x;
}

KERNEL(128, angles, Angles) {
  const uint32_t t = blockIdx.x;
  if (t >= *p.step.num_tokens) return;
  for (uint32_t i = threadIdx.x; i < p.pairs; i += 128) {
    const double angle = (float)p.step.positions[t] * p.inv_freq[i];
    const double quarters = rint(angle * 0.63661977236758134);
    const double rest = fma(-quarters, 6.123233995736766e-17, fma(-quarters, 1.5707963267948966, angle));
    const double s = sin_of_eighth(rest), c = cos_of_eighth(rest);
    const long long quadrant = (long long)quarters & 3;
    const double sine = quadrant & 1 ? c : s, cosine = quadrant & 1 ? s : c;
    const float signed_sine = (float)(quadrant & 2 ? -sine : sine);
    const float signed_cosine = (float)(quadrant == 1 || quadrant == 2 ? -cosine : cosine);
    p.out[(size_t)t * p.pairs + i] = {signed_cosine * p.factor, signed_sine * p.factor};
  }
}
