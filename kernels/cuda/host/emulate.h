// A card on one thread of the host, for tests: blocks one after the other, the threads of a block as fibers that change places
// at barriers and shuffles. What it offers is what the kernels use, by CUDA's names. A barrier that some threads of its block
// or warp never reach ends the program, as it hangs a card.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulate {

struct Dim3 {
  uint32_t x, y, z;
};

// Where so many threads meet. The generation counts the meetings.
struct Barrier {
  uint32_t arrived;
  uint32_t generation;
};

struct Warp {
  Barrier barrier;
  // What each lane gave in this generation and in the one before: nobody is further than one ahead.
  uint64_t given[2][32];
};

// The block that runs, and the thread of it.
struct Block {
  Dim3 index;
  uint32_t threads;
  uint32_t thread;
  // What the launch asked for, aligned as DYNAMIC_SHARED says; all ones when the block begins.
  uint8_t* shared;
  Barrier barrier;
  Warp warps[1024 / 32];
};
extern thread_local Block block;

struct Entry {
  const char* name;
  uint32_t threads;
  size_t params;
  void (*run)(const void* params);
};

// Lists a kernel in the table of all.
struct Listed {
  explicit Listed(const Entry& entry);
};

// Waits until `expected` threads have come.
void meet(Barrier& barrier, uint32_t expected);

inline void meet_block() { meet(block.barrier, block.threads); }

template <class T>
T shuffle_xor(T value, uint32_t apart) {
  static_assert(sizeof(T) <= 8);
  Warp& warp = block.warps[block.thread / 32];
  const uint32_t lane = block.thread % 32, turn = warp.barrier.generation % 2;
  std::memcpy(&warp.given[turn][lane], &value, sizeof(T));
  meet(warp.barrier, 32);
  T other;
  std::memcpy(&other, &warp.given[turn][lane ^ apart], sizeof(T));
  return other;
}

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
uint16_t float_to_bf16(float x);

template <class To, class From>
To same_bits(From x) {
  To y;
  static_assert(sizeof(x) == sizeof(y));
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

}  // namespace emulate

#define KERNEL(count, name, Params)                                                                    \
  static void name(const Params& p);                                                                   \
  static const emulate::Listed name##_listed(                                                          \
      {#name, count, sizeof(Params), [](const void* p) { name(*static_cast<const Params*>(p)); }}); \
  static void name(const Params& p)

#define __device__
#define __forceinline__ inline
#define __align__(bytes) __attribute__((aligned(bytes)))
// Threads of a block are fibers of one thread; what a block leaves is garbage to the next.
#define __shared__ static thread_local
#define DYNAMIC_SHARED(name) uint8_t* const name = emulate::block.shared
#define __syncthreads() emulate::meet_block()
#define __shfl_xor_sync(lanes, value, apart) emulate::shuffle_xor(value, apart)
#define __float_as_uint(x) emulate::same_bits<uint32_t, float>(x)
#define __uint_as_float(x) emulate::same_bits<float, uint32_t>(x)
#define threadIdx (emulate::Dim3{emulate::block.thread, 0, 0})
#define blockIdx (emulate::block.index)

struct float2 {
  float x, y;
};
struct __align__(16) float4 {
  float x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
struct __align__(16) uint4 {
  uint32_t x, y, z, w;
};

template <class T>
inline T __ldcs(const T* from) {
  return *from;
}
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
inline void atomicMax(unsigned long long* at, unsigned long long x) {
  if (x > *at) *at = x;
}
