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

// The most that a lane can give the others at once.
constexpr size_t GIVEN_WORDS = 8;

struct Warp {
  Barrier barrier;
  // What each lane gave in this generation and in the one before: nobody is further than one ahead.
  uint64_t given[2][32][GIVEN_WORDS];
};

// The block that runs, and the thread of it.
struct Block {
  Dim3 index;
  // Blocks of the launch.
  Dim3 grid;
  uint32_t threads;
  uint32_t thread;
  // What the launch asked for, aligned as DYNAMIC_SHARED says; all ones when the block begins.
  uint8_t* shared;
  uint32_t shared_bytes;
  Barrier barrier;
  // Of the first threads alone.
  Barrier first;
  // Threads that say yes at this meeting and at the one before: nobody is further than one ahead.
  uint32_t counted[2];
  Warp warps[1024 / 32];
};
extern thread_local Block block;

struct Entry {
  const char* name;
  uint32_t threads;
  size_t params;
  void (*run)(const void* params);
};

// Of a block on sm_90, less what the driver keeps.
constexpr uint32_t SHARED_MAX = 227 << 10;

// The kernel of this name, or null.
const Entry* entry_of(const char* name, size_t name_len);

// Lists a kernel in the table of all.
struct Listed {
  explicit Listed(const Entry& entry);
};

// Ends the program: what a card would not do, or not come back from.
[[noreturn]] void refuse(const char* what);

// Lets others go on. Where nobody ever says that it `progressed`, the program ends.
void pass();
void progressed();

// Waits until `expected` threads have come.
void meet(Barrier& barrier, uint32_t expected);

// Waits until the first `expected` threads of the block have come.
void meet_first(uint32_t expected);

inline void meet_block() { meet(block.barrier, block.threads); }

// How many threads of the block say yes.
inline int count_block(bool yes) {
  uint32_t& counted = block.counted[block.barrier.generation % 2];
  if (block.barrier.arrived == 0) counted = 0;
  counted += yes;
  meet_block();
  return (int)counted;
}

inline void meet_warp() { meet(block.warps[block.thread / 32].barrier, 32); }

// What all lanes of a warp gave.
template <class T>
class Given {
 public:
  explicit Given(const uint64_t (*words)[GIVEN_WORDS]) : words_(words) {}
  T operator[](uint32_t lane) const {
    T value;
    std::memcpy(&value, words_[lane], sizeof(T));
    return value;
  }

 private:
  const uint64_t (*words_)[GIVEN_WORDS];
};

// Gives `value` to all lanes of the warp. What they gave stays until the next meeting but one.
template <class T>
Given<T> exchange(const T& value) {
  static_assert(sizeof(T) <= sizeof(uint64_t[GIVEN_WORDS]));
  Warp& warp = block.warps[block.thread / 32];
  auto& given = warp.given[warp.barrier.generation % 2];
  std::memcpy(given[block.thread % 32], &value, sizeof(T));
  meet(warp.barrier, 32);
  return Given<T>(given);
}

template <class T>
T shuffle_xor(T value, uint32_t apart) {
  return exchange(value)[(block.thread % 32) ^ apart];
}

inline bool any_of_warp(bool yes) {
  uint32_t all = yes;
  for (uint32_t apart = 1; apart < 32; apart *= 2) all |= shuffle_xor(all, apart);
  return all != 0;
}

template <class T>
T shuffle(T value, uint32_t lane) {
  return exchange(value)[lane % 32];
}

void expect_shared(uint32_t bytes);

float half_to_float(uint16_t bits);
uint16_t float_to_half(float x);
float bf16_to_float(uint16_t bits);
uint16_t float_to_bf16(float x);

// A copy to shared memory that is on its way, `bytes` of `size`, the rest zero; the thread that waits for it carries it out.
void copy_async(void* shared, const void* global, uint32_t size, uint32_t bytes);
void commit_copies();
void wait_copies(uint32_t left);

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
#define __syncthreads_count(yes) emulate::count_block(yes)
#define __threadfence() ((void)0)
#define __syncwarp() emulate::meet_warp()
#define __shfl_sync(lanes, value, lane) emulate::shuffle(value, lane)
#define __any_sync(lanes, yes) emulate::any_of_warp(yes)
#define __shfl_xor_sync(lanes, value, apart) emulate::shuffle_xor(value, apart)
#define __float_as_uint(x) emulate::same_bits<uint32_t, float>(x)
#define __uint_as_float(x) emulate::same_bits<float, uint32_t>(x)
#define threadIdx (emulate::Dim3{emulate::block.thread, 0, 0})
#define blockIdx (emulate::block.index)
#define gridDim (emulate::block.grid)

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
// Byte n of the result is that of the eight of `high`, `low` which digit n of `selector` names.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
  const uint64_t bytes = (uint64_t)high << 32 | low;
  uint32_t out = 0;
  for (uint32_t n = 0; n < 4; n++) out |= (uint32_t)(bytes >> (selector >> (4 * n) & 7) * 8 & 255) << (8 * n);
  return out;
}
inline uint32_t min(uint32_t a, uint32_t b) { return a < b ? a : b; }
inline uint32_t max(uint32_t a, uint32_t b) { return a > b ? a : b; }
// Blocks run one after the other: whatever one wrote, the next one sees.
inline uint32_t atomicInc(uint32_t* at, uint32_t most) {
  const uint32_t before = *at;
  *at = before >= most ? 0 : before + 1;
  return before;
}
template <class T>
inline T __ldcg(const T* from) {
  return *from;
}
template <class T>
inline T atomicAdd(T* at, T x) {
  const T before = *at;
  *at = before + x;
  return before;
}
// To nearest, ties to even, of what is far below 2^53.
inline unsigned long long __float2ull_rn(float x) { return (unsigned long long)std::nearbyint((double)x); }
__extension__ typedef unsigned __int128 uint128_t;
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((uint128_t)a * b >> 64); }
inline void atomicMax(unsigned long long* at, unsigned long long x) {
  if (x > *at) *at = x;
}
