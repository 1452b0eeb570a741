// The tensor cores' product of sm_80 and what feeds it, each wrapped once: mma.sync.m16n8k16, ldmatrix, cp.async. Compiled for
// the host each does the same by the fragment maps of the PTX manual, so that layouts and tilings run in the tests.
//
// Fragments of a warp, with g = lane / 4 and t = lane % 4; two values of 16 bits to a register, the lower index in the lower half:
//   A [16 x 16]: a[0] = (g, 2t), a[1] = (g + 8, 2t), a[2] = (g, 2t + 8), a[3] = (g + 8, 2t + 8)   (row, k)
//   B [16 x 8]:  b[0] = (2t, g), b[1] = (2t + 8, g)                                               (k, column; the pair along k)
//   C [16 x 8]:  c[0] = (g, 2t), c[1] = (g, 2t + 1), c[2] = (g + 8, 2t), c[3] = (g + 8, 2t + 1)
//
// Products of 16-bit values are exact in f32. The emulation sums the 16 of them and c in f64, in ascending k, and rounds once; a
// card's inner order and rounding are its own (and differ between architectures), but depend on nothing except the row and the
// column themselves: no other row, column or zero of the tile shows in an output.
#pragma once

#include "common.cuh"
#ifdef CHRYSALIS_EMULATE
#include "host/tensor.h"
#endif

// Two values as f16, to nearest, ties to even, `low` in the lower half.
__device__ __forceinline__ uint32_t pack_half(float low, float high) {
#ifdef CHRYSALIS_EMULATE
  return emulate::float_to_half(low) | (uint32_t)emulate::float_to_half(high) << 16;
#else
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

// Two values of 16 bits, and what multiplies them.
struct half_pair {
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_half(low, high); }
  static __device__ __forceinline__ float unpack(uint16_t bits) { return half_to_float(bits); }
  // c += a * b
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef CHRYSALIS_EMULATE
    emulate::multiply_16816(c, a, b0, b1, emulate::half_to_float);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
  }
};

struct bf16_pair {
  static __device__ __forceinline__ uint32_t pack(float low, float high) { return pack_bf16(low, high); }
  static __device__ __forceinline__ float unpack(uint16_t bits) { return __uint_as_float((uint32_t)bits << 16); }
  static __device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef CHRYSALIS_EMULATE
    emulate::multiply_16816(c, a, b0, b1, emulate::bf16_to_float);
#else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
  }
};

// An address of shared memory as instructions take it.
#ifndef CHRYSALIS_EMULATE
__device__ __forceinline__ uint32_t shared_address(const void* at) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(at));
}
#endif

// Matrices of 8 x 8 values of 16 bits from shared memory. Lanes 8 i to 8 i + 7 name the rows of matrix i, 16 bytes each, aligned to
// 16 (with two matrices the upper lanes' addresses are ignored, with one those from lane 8 on). Register i of a lane gets (g, 2t) and
// (g, 2t + 1) of matrix i; transposed, (2t, g) and (2t + 1, g). So rows `[row][k]` become A, rows `[column][k]` become B, and
// rows `[k][column]`, transposed, become B.
__device__ __forceinline__ void load_matrices(uint32_t (&out)[4], const void* row) {
#ifdef CHRYSALIS_EMULATE
  emulate::load_matrices(out, 4, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void load_matrices(uint32_t (&out)[2], const void* row) {
#ifdef CHRYSALIS_EMULATE
  emulate::load_matrices(out, 2, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void load_matrices(uint32_t (&out)[1], const void* row) {
#ifdef CHRYSALIS_EMULATE
  emulate::load_matrices(out, 1, row, false);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(out[0]) : "r"(shared_address(row)) : "memory");
#endif
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
#ifdef CHRYSALIS_EMULATE
  emulate::load_matrices(out, 4, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&out)[2], const void* row) {
#ifdef CHRYSALIS_EMULATE
  emulate::load_matrices(out, 2, row, true);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(row))
               : "memory");
#endif
}

// Copies 16 bytes to shared memory behind the thread's back: both addresses aligned to 16. `bytes` of them are read (16 or 0), the rest
// becomes zero. They are there for this thread after `wait_copies`, for others after a barrier behind that. The emulator puts ones
// there first and copies as late as it may, so that whoever reads too early, or writes over what is still read, computes NaN; where
// threads take turns backwards, what was there when it was asked for.
__device__ __forceinline__ void copy_async(void* shared, const void* global, uint32_t bytes = 16) {
#ifdef CHRYSALIS_EMULATE
  emulate::copy_async(shared, global, 16, bytes);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
               : "memory");
#endif
}

// The same of four bytes, aligned to four.
__device__ __forceinline__ void copy_async_word(void* shared, const void* global, uint32_t bytes = 4) {
#ifdef CHRYSALIS_EMULATE
  emulate::copy_async(shared, global, 4, bytes);
#else
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
#endif
}

// Asks the second-level cache for the 128 bytes around what somebody reads soon.
__device__ __forceinline__ void ask_for(const void* global) {
#ifdef CHRYSALIS_EMULATE
  (void)global;
#else
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global) : "memory");
#endif
}

// What this thread copied since the last call becomes a group, which may be empty.
__device__ __forceinline__ void commit_copies() {
#ifdef CHRYSALIS_EMULATE
  emulate::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all of this thread's groups but the last `LEFT`.
template <uint32_t LEFT>
__device__ __forceinline__ void wait_copies() {
#ifdef CHRYSALIS_EMULATE
  emulate::wait_copies(LEFT);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory");
#endif
}
