// Two f16 in a word, computed at once. Each result is rounded once, to nearest, ties to even, also below the least normal value.
#pragma once

#include "common.cuh"

#ifdef CHRYSALIS_EMULATE
namespace emulate {

// A product of two f16 is exact in f64, and so is its sum with a third where that can matter to the rounding. On the way through
// f32 the last bit keeps that there was more.
inline uint32_t halves_of(double low, double high) {
  const auto half = [](double x) {
    float nearest = (float)x;
    if ((double)nearest != x && x - x == 0.0 && nearest - nearest == 0.0f) {
      uint32_t bits = __float_as_uint(nearest);
      if ((nearest < 0.0f ? -nearest : nearest) > (x < 0.0 ? -x : x)) bits--;
      nearest = __uint_as_float(bits | 1);
    }
    return (uint32_t)float_to_half(nearest);
  };
  return half(low) | half(high) << 16;
}

inline double half_of(uint32_t pair, uint32_t which) { return half_to_float((uint16_t)(pair >> 16 * which)); }

}  // namespace emulate
#endif

// a * b + c
__device__ __forceinline__ uint32_t fma_halves(uint32_t a, uint32_t b, uint32_t c) {
#ifdef CHRYSALIS_EMULATE
  using emulate::half_of;
  return emulate::halves_of(half_of(a, 0) * half_of(b, 0) + half_of(c, 0), half_of(a, 1) * half_of(b, 1) + half_of(c, 1));
#else
  uint32_t out;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
  return out;
#endif
}

__device__ __forceinline__ uint32_t multiply_halves(uint32_t a, uint32_t b) {
#ifdef CHRYSALIS_EMULATE
  using emulate::half_of;
  return emulate::halves_of(half_of(a, 0) * half_of(b, 0), half_of(a, 1) * half_of(b, 1));
#else
  uint32_t out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
#endif
}

__device__ __forceinline__ uint32_t add_halves(uint32_t a, uint32_t b) {
#ifdef CHRYSALIS_EMULATE
  using emulate::half_of;
  return emulate::halves_of(half_of(a, 0) + half_of(b, 0), half_of(a, 1) + half_of(b, 1));
#else
  uint32_t out;
  asm("add.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
#endif
}

// The lower or the upper of a word, twice. Machine code has it as part of what takes it.
__device__ __forceinline__ uint32_t twice_low(uint32_t pair) {
#ifdef CHRYSALIS_EMULATE
  return (pair & 0xffffu) * 0x10001u;
#else
  uint32_t out;
  asm("{.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};}" : "=r"(out) : "r"(pair));
  return out;
#endif
}
__device__ __forceinline__ uint32_t twice_high(uint32_t pair) {
#ifdef CHRYSALIS_EMULATE
  return (pair >> 16) * 0x10001u;
#else
  uint32_t out;
  asm("{.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};}" : "=r"(out) : "r"(pair));
  return out;
#endif
}

// The nearest f16 of a whole number or of one over a power of two, twice: all those in here are exact.
__device__ constexpr uint32_t twice(float x) {
  uint32_t sign = 0, exponent = 15;
  if (x < 0.0f) x = -x, sign = 0x8000;
  for (; x >= 2.0f; x /= 2.0f) exponent++;
  for (; x < 1.0f; x *= 2.0f) exponent--;
  const uint32_t half = sign | exponent << 10 | (uint32_t)((x - 1.0f) * 1024.0f);
  return half | half << 16;
}
// The same of two numbers, the lower half's first.
__device__ constexpr uint32_t pair_of(float low, float high) { return (twice(low) & 0xffffu) | (twice(high) & 0xffff0000u); }
static_assert(twice(1.0f) == 0x3c003c00u && pair_of(-1024.0f, 0.0625f) == 0x2c00e400u, "f16 of constants");
