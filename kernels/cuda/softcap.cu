// Soft cap: x[i] = cap * tanh(x[i] / cap)
//   x [len] f32
// Launch:  grid = len / 256 rounded up, block = 256.
// Bound:   memory; 8 bytes a value.
// Meaning: src/reference/mod.rs, `softcap`.
// Source:  Gemma 2, arXiv:2408.00118, section 2.
#include "common.cuh"

struct Softcap {
  float* x;
  uint64_t len;
  float cap;
  uint32_t unused;
};
static_assert(sizeof(Softcap) == 24, "src/cuda/params.rs asserts the same size");

KERNEL(256, softcap, Softcap) {
  const uint64_t i = (uint64_t)blockIdx.x * 256 + threadIdx.x;
  if (i < p.len) p.x[i] = p.cap * tanhf(p.x[i] / p.cap);
}
