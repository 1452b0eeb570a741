// E4M3, eight bits of floating point, and f32: where the architecture converts (sm_89), by its instruction, elsewhere and in the
// emulator by whole numbers. Both are exact in one way and to nearest, ties to even, with saturation at 448 in the other, so the
// bits are the same; `quant/e4m3.rs` is the host's.
#pragma once

#include "halves.cuh"

// The two values of the lower and upper byte as f16, each exactly. What is not a number stays so where the instruction is, and
// becomes 480 elsewhere.
__device__ __forceinline__ uint32_t e4m3_to_halves(uint32_t pair) {
#if !defined(CHRYSALIS_EMULATE) && __CUDA_ARCH__ >= 890
  uint32_t halves;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((uint16_t)pair));
  return halves;
#else
  // In an f16's place the exponent is 8 too low.
  const uint32_t high = __byte_perm(pair, 0, 0x1404);
  return multiply_halves((high >> 1 & 0x3f803f80u) | (high & 0x80008000u), twice(256.0f));
#endif
}

// The two values of the lower and upper byte. What is not a number stays so.
__device__ __forceinline__ float2 e4m3_to_floats(uint32_t pair) {
#if !defined(CHRYSALIS_EMULATE) && __CUDA_ARCH__ >= 890
  const uint32_t halves = e4m3_to_halves(pair);
  return {half_to_float((uint16_t)halves), half_to_float((uint16_t)(halves >> 16))};
#else
  float out[2];
#pragma unroll
  for (uint32_t i = 0; i < 2; i++) {
    const uint32_t code = pair >> 8 * i, magnitude = code & 0x7f;
    // In an f32's place the exponent is 120 too low; the product is exact, also of what was below the least normal value.
    const float x = magnitude == 0x7f ? __uint_as_float(0x7fffffffu) : __uint_as_float(magnitude << 20) * 0x1p120f;
    out[i] = __uint_as_float(__float_as_uint(x) | (code & 0x80) << 24);
  }
  return {out[0], out[1]};
#endif
}

// The code of the nearest value.
__device__ __forceinline__ uint32_t float_to_e4m3(float x) {
#if !defined(CHRYSALIS_EMULATE) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return pair & 0xff;
#else
  const uint32_t bits = __float_as_uint(x), sign = bits >> 24 & 0x80, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  const float least = fminf(__uint_as_float(magnitude), 448.0f);
  // Below 2^-6 a multiple of 2^-9: added to 2^14 it is rounded there.
  if (least < 0x1p-6f) return sign | (__float_as_uint(least + 0x1p14f) & 0xff);
  const uint32_t rounded = __float_as_uint(least) + 0x7ffff + (__float_as_uint(least) >> 20 & 1);
  return sign | ((rounded - (120u << 23)) >> 20 & 0x7f);
#endif
}
