// What every kernel builds on. A kernel is one `KERNEL(threads, name, Params)` with its body: arguments in one struct `p`,
// whose size both languages assert. Compiled by nvcc it is an `extern "C"` entry; compiled by the host's compiler, for the
// tests, an entry of the emulator's table (host/emulate.h).
//
// Nothing is contracted behind our back (`-fmad=false`): where there is an `fmaf` one is meant, where there is none there is
// none. So, but for the last bits of exp, tanh and erf, a card computes what the emulator computes.
#pragma once

#ifdef CHRYSALIS_EMULATE
#include "host/emulate.h"
#define KERNEL_EARLY(threads, blocks, name, Params) KERNEL(threads, name, Params)
// Ends the program where a launch gave another size than the kernel lays out.
#define EXPECT_SHARED(bytes) emulate::expect_shared(bytes)
__device__ __forceinline__ void wait_for_previous() {}
#else
#include <cstdint>
// Waits until every kernel asked for before has ended and what it wrote is seen. From sm_90 on a kernel may be started while the
// one before it still runs; elsewhere there is nothing to wait for.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The kernel asked for next may take its place once every block of this one has begun.
__device__ __forceinline__ void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Two or three blocks of a multiprocessor are enough, and one of 1,024 threads: left to choose, the compiler spills to save
// registers.
#define KERNEL_ENTRY(threads, blocks, name, Params, wait)                                                \
  __device__ __forceinline__ void name##_body(const Params& p);                                          \
  extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p) { \
    let_next_begin();                                                                                    \
    wait;                                                                                                \
    name##_body(p);                                                                                      \
  }                                                                                                      \
  __device__ __forceinline__ void name##_body(const Params& p)
#define KERNEL(threads, name, Params) \
  KERNEL_ENTRY(threads, threads <= 128 ? 3 : threads < 1024 ? 2 : 1, name, Params, wait_for_previous())
// Begins while the kernel before it runs: what its body does before it calls `wait_for_previous` touches nothing that a kernel
// of the step writes (attention.cu, "Early"). `blocks` of it fit on a multiprocessor.
#define KERNEL_EARLY(threads, blocks, name, Params) KERNEL_ENTRY(threads, blocks, name, Params, (void)0)
#define EXPECT_SHARED(bytes) ((void)0)
// `name` is shared memory of the size that the launch says, bytes, aligned to 1,024 as swizzled tiles want it.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(1024) uint8_t name[]
#endif

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;

// A barrier of the first COUNT threads of the block, whole warps.
template <uint32_t COUNT>
__device__ __forceinline__ void meet_first() {
#ifdef CHRYSALIS_EMULATE
  emulate::meet_first(COUNT);
#else
  asm volatile("bar.sync 1, %0;" ::"n"(COUNT) : "memory");
#endif
}

// Sum over a warp, a tree over lanes 16, 8, 4, 2 and 1 apart. Every lane gets the same bits.
__device__ __forceinline__ float warp_sum(float x) {
  for (int apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(ALL_LANES, x, apart);
  return x;
}

__device__ __forceinline__ float warp_max(float x) {
  for (int apart = 16; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, apart));
  return x;
}

// Sum over the block, or over each THREADS of it, of which this is `thread`: the sums of the warps, first to last. Every thread gets
// it. `warps` has a place for each warp.
template <uint32_t THREADS>
__device__ __forceinline__ float block_sum(float x, float* warps, uint32_t thread = threadIdx.x) {
  x = warp_sum(x);
  if (thread % WARP == 0) warps[thread / WARP] = x;
  __syncthreads();
  x = warps[0];
  for (uint32_t w = 1; w < THREADS / WARP; w++) x += warps[w];
  __syncthreads();
  return x;
}

template <uint32_t THREADS>
__device__ __forceinline__ float block_max(float x, float* warps) {
  x = warp_max(x);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = x;
  __syncthreads();
  x = warps[0];
  for (uint32_t w = 1; w < THREADS / WARP; w++) x = fmaxf(x, warps[w]);
  __syncthreads();
  return x;
}

__device__ __forceinline__ float half_to_float(uint16_t bits) {
#ifdef CHRYSALIS_EMULATE
  return emulate::half_to_float(bits);
#else
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
#endif
}

// To nearest, ties to even.
__device__ __forceinline__ uint16_t float_to_half(float x) {
#ifdef CHRYSALIS_EMULATE
  return emulate::float_to_half(x);
#else
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
#endif
}

// Two values as bf16, to nearest, ties to even, `low` in the lower half. What is not a number becomes 0x7fff.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#ifdef CHRYSALIS_EMULATE
  return emulate::float_to_bf16(low) | (uint32_t)emulate::float_to_bf16(high) << 16;
#else
  uint32_t bits;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(bits) : "f"(high), "f"(low));
  return bits;
#endif
}

// The tokens of a step. Entries from `*num_tokens` on are left from a larger step: whoever writes by token asks first.
struct Step {
  const uint32_t* num_tokens;    // one number
  const uint32_t* tokens;        // [num_tokens]
  const uint32_t* positions;     // [num_tokens]
  const uint32_t* sequences;     // [num_tokens], the sequence of each
  const uint32_t* cu_blocks;     // [num_sequences + 1]
  const uint32_t* block_tables;  // [cu_blocks[num_sequences]]
};
static_assert(sizeof(Step) == 48, "src/cuda/params.rs asserts the same size");

// The paged cache of one layer, by kind: values `[block][kv_head][slot][head_dim]`, and, where values are bytes, scales
// `[block][kv_head][slot][groups of 32]`.
struct CacheLayer {
  uint8_t* k;
  uint8_t* v;
  float* k_scales;
  float* v_scales;
  uint32_t block_size;
  uint32_t num_kv_heads;
  uint32_t head_dim;
  uint32_t kind;  // CACHE_F32 …
};
static_assert(sizeof(CacheLayer) == 48, "src/cuda/params.rs asserts the same size");

constexpr uint32_t CACHE_F32 = 0, CACHE_F16 = 1, CACHE_I8 = 2, CACHE_BF16 = 3, CACHE_F8 = 4;
constexpr uint32_t CACHE_GROUP = 32;

// Number of the head's row in the cache: its values are `head_dim` from `row * head_dim` on.
__device__ __forceinline__ size_t cache_row(const CacheLayer& cache, const Step& step, uint32_t sequence, uint32_t position,
                                            uint32_t kv_head) {
  const uint32_t block = step.block_tables[step.cu_blocks[sequence] + position / cache.block_size];
  const uint32_t slot = position % cache.block_size;
  return ((size_t)block * cache.num_kv_heads + kv_head) * cache.block_size + slot;
}
