// How matrices lie on the device, and how eight neighbours of a row become f32. src/cuda/weights.rs packs them so.
//
// Values and scales are two planes, each read in whole aligned words: ggml's groups of 18, 20 or 34 bytes are not aligned, and a
// warp that reads them asks for every sector twice. Rows of values are `stride` columns apart, `cols` rounded up to 8; the
// columns between are zero. Every value is exactly the one that the stored form has (`quant::dequantize`): products and
// scales of so few bits are exact in f32, or rounded once as there.
#pragma once

#include "common.cuh"

struct Weights {
  const uint8_t* values;
  const uint8_t* scales;
  uint32_t cols;
  uint32_t stride;
};
static_assert(sizeof(Weights) == 24, "src/cuda/params.rs asserts the same size");

constexpr uint32_t RUN = 8;

__device__ __forceinline__ float bits_to_float(uint32_t bits) { return __uint_as_float(bits); }

// Each type: `Raw` is what it takes from memory for 8 columns, `load` takes it, `convert` makes the values.

struct f32 {
  struct Raw {
    float4 low, high;
  };
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    const float4* x = reinterpret_cast<const float4*>(w.values) + at / 4;
    return {__ldcs(x), __ldcs(x + 1)};
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t, float out[RUN]) {
    out[0] = raw.low.x, out[1] = raw.low.y, out[2] = raw.low.z, out[3] = raw.low.w;
    out[4] = raw.high.x, out[5] = raw.high.y, out[6] = raw.high.z, out[7] = raw.high.w;
  }
};

struct bf16 {
  using Raw = uint4;
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    return __ldcs(reinterpret_cast<const uint4*>(w.values) + at / 8);
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t, float out[RUN]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    for (int i = 0; i < 4; i++) {
      out[2 * i] = bits_to_float(words[i] << 16);
      out[2 * i + 1] = bits_to_float(words[i] & 0xffff0000u);
    }
  }
};

struct f16 {
  using Raw = uint4;
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    return __ldcs(reinterpret_cast<const uint4*>(w.values) + at / 8);
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t, float out[RUN]) {
    const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
    for (int i = 0; i < 4; i++) {
      out[2 * i] = half_to_float((uint16_t)words[i]);
      out[2 * i + 1] = half_to_float((uint16_t)(words[i] >> 16));
    }
  }
};

// Q8_0: signed bytes, an f16 scale for 32.
struct q8_0 {
  struct Raw {
    uint2 codes;
    uint16_t scale;
  };
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    const uint2 codes = __ldcs(reinterpret_cast<const uint2*>(w.values) + at / 8);
    return {codes, reinterpret_cast<const uint16_t*>(w.scales)[at / 32]};
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t, float out[RUN]) {
    const float scale = half_to_float(raw.scale);
    for (int i = 0; i < 4; i++) {
      out[i] = scale * (float)(int8_t)(raw.codes.x >> (8 * i));
      out[4 + i] = scale * (float)(int8_t)(raw.codes.y >> (8 * i));
    }
  }
};

// Q4_0: codes 0 to 15 less 8, column after column from the lowest four bits on; an f16 scale for 32.
struct q4_0 {
  struct Raw {
    uint32_t codes;
    uint16_t scale;
  };
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    const uint32_t codes = __ldcs(reinterpret_cast<const uint32_t*>(w.values) + at / 8);
    return {codes, reinterpret_cast<const uint16_t*>(w.scales)[at / 32]};
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t, float out[RUN]) {
    const float scale = half_to_float(raw.scale);
    for (int i = 0; i < 8; i++) out[i] = scale * (float)((int)(raw.codes >> (4 * i) & 15) - 8);
  }
};

// Q4_1: codes 0 to 15; an f16 scale and an f16 minimum for 32.
struct q4_1 {
  struct Raw {
    uint32_t codes;
    uint32_t scales;
  };
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    const uint32_t codes = __ldcs(reinterpret_cast<const uint32_t*>(w.values) + at / 8);
    return {codes, reinterpret_cast<const uint32_t*>(w.scales)[at / 32]};
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t, float out[RUN]) {
    const float scale = half_to_float((uint16_t)raw.scales), minimum = half_to_float((uint16_t)(raw.scales >> 16));
    for (int i = 0; i < 8; i++) out[i] = fmaf(scale, (float)(raw.codes >> (4 * i) & 15), minimum);
  }
};

// Q4_K: codes 0 to 15; for 256 the 16 bytes that are stored: an f16 scale of scales, one of minima, and six bits of each for
// each 32.
struct q4_k {
  struct Raw {
    uint32_t codes;
    uint4 scales;
  };
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    const uint32_t codes = __ldcs(reinterpret_cast<const uint32_t*>(w.values) + at / 8);
    return {codes, reinterpret_cast<const uint4*>(w.scales)[at / 256]};
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t col, float out[RUN]) {
    const uint32_t group = col % 256 / 32, shift = group % 4 * 8;
    // Bytes 0 to 3 of the twelve, 4 to 7, and 8 to 11.
    const uint32_t a = raw.scales.y >> shift, b = raw.scales.z >> shift, c = raw.scales.w >> shift;
    const uint32_t scale_code = group < 4 ? a & 63 : (c & 15) | (a >> 6 & 3) << 4;
    const uint32_t minimum_code = group < 4 ? b & 63 : (c >> 4 & 15) | (b >> 6 & 3) << 4;
    const float scale = half_to_float((uint16_t)raw.scales.x) * (float)scale_code;
    const float minimum = -(half_to_float((uint16_t)(raw.scales.x >> 16)) * (float)minimum_code);
    for (int i = 0; i < 8; i++) out[i] = fmaf(scale, (float)(raw.codes >> (4 * i) & 15), minimum);
  }
};

// Every other type: a byte a code, an f32 scale and an f32 minimum for 16. More bytes than the stored form has.
struct wide {
  struct Raw {
    uint2 codes;
    float2 scales;
  };
  static __device__ __forceinline__ Raw load(const Weights& w, size_t at) {
    const uint2 codes = __ldcs(reinterpret_cast<const uint2*>(w.values) + at / 8);
    return {codes, reinterpret_cast<const float2*>(w.scales)[at / 16]};
  }
  static __device__ __forceinline__ void convert(const Raw& raw, uint32_t, float out[RUN]) {
    for (int i = 0; i < 4; i++) {
      out[i] = fmaf(raw.scales.x, (float)(raw.codes.x >> (8 * i) & 255), raw.scales.y);
      out[4 + i] = fmaf(raw.scales.x, (float)(raw.codes.y >> (8 * i) & 255), raw.scales.y);
    }
  }
};
