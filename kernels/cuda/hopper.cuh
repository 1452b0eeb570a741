// Hopper's asynchronous units, each instruction wrapped once: mbarrier, bulk copies to shared memory, wgmma. They exist for
// sm_90a alone (`WITH_WGMMA`). Compiled for the host each does the same by the PTX manual, as late as it may: a copy arrives when
// somebody waits for it, a product is there when it was waited for, and until then the values of both are NaN.
//
// What the emulation cannot see: a missing `fence_products` before registers change (it asks for one before each group), the order
// in which a card sums the sixteen products of a step, and time.
#pragma once

#include "tensor.cuh"
#ifdef CHRYSALIS_EMULATE
#include "host/hopper.h"
#endif

#if defined(CHRYSALIS_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WITH_WGMMA

constexpr uint32_t WARPGROUP = 128;

// Where threads and copies meet, in shared memory. A phase ends when so many have arrived and all bytes that they expect are
// there; then the next begins. The first phase has parity 0.
struct Mbarrier {
  uint64_t bits;
};

// By one thread, before anybody uses it: `fence_mbarriers` and a barrier of the block come between.
__device__ __forceinline__ void init(Mbarrier& barrier, uint32_t arrivals) {
#ifdef CHRYSALIS_EMULATE
  emulate::mbarrier_init(barrier.bits, arrivals);
#else
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)), "r"(arrivals) : "memory");
#endif
}

__device__ __forceinline__ void fence_mbarriers() {
#ifndef CHRYSALIS_EMULATE
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

__device__ __forceinline__ void arrive(Mbarrier& barrier) {
#ifdef CHRYSALIS_EMULATE
  emulate::mbarrier_arrive(barrier.bits, 0);
#else
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier)) : "memory");
#endif
}

// Arrives, and has the phase wait for so many bytes more.
__device__ __forceinline__ void arrive_expecting(Mbarrier& barrier, uint32_t bytes) {
#ifdef CHRYSALIS_EMULATE
  emulate::mbarrier_arrive(barrier.bits, bytes);
#else
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)), "r"(bytes) : "memory");
#endif
}

// Waits for the end of the phase of this parity. Of the one before the first, 1, nobody has to wait.
__device__ __forceinline__ void wait(Mbarrier& barrier, uint32_t parity) {
#ifdef CHRYSALIS_EMULATE
  emulate::mbarrier_wait(barrier.bits, parity);
#else
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
      "@!ended bra again;\n"
      "}" ::"r"(shared_address(&barrier)),
      "r"(parity)
      : "memory");
#endif
}

// Copies to shared memory behind everybody's back; `barrier` is told. Addresses and `bytes` are multiples of 16.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes, Mbarrier& barrier) {
#ifdef CHRYSALIS_EMULATE
  emulate::copy_bulk(shared, global, bytes, barrier.bits);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(shared)),
               "l"(global), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
#endif
}

// What the launch gave of shared memory.
__device__ __forceinline__ uint32_t shared_bytes() {
#ifdef CHRYSALIS_EMULATE
  return emulate::block.shared_bytes;
#else
  uint32_t bytes;
  asm("mov.u32 %0, %%dynamic_smem_size;" : "=r"(bytes));
  return bytes;
#endif
}

// Gives registers back, or takes them, by all threads of a warpgroup: COUNT for each from here on, a multiple of 8.
template <uint32_t COUNT>
__device__ __forceinline__ void fewer_registers() {
#ifndef CHRYSALIS_EMULATE
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}
template <uint32_t COUNT>
__device__ __forceinline__ void more_registers() {
#ifndef CHRYSALIS_EMULATE
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
#endif
}

// What tells wgmma where B lies: groups of 8 columns by 8 k, 128 bytes each and each a matrix of eight rows of 16 bytes, a column
// to a row (no swizzle). `next_k` bytes further is the group of the next 8 k, `next_columns` further that of the next 8 columns.
// All multiples of 16. Two words: what is further along the same B differs in the lower one, and there is no carry.
struct Descriptor {
  uint32_t low;
  uint32_t high;
  __device__ __forceinline__ Descriptor further(uint32_t bytes) const { return {low + bytes / 16, high}; }
};
__device__ __forceinline__ Descriptor describe(const void* shared, uint32_t next_k, uint32_t next_columns) {
#ifdef CHRYSALIS_EMULATE
  const uint32_t at = emulate::shared_place(shared);
#else
  const uint32_t at = shared_address(shared);
#endif
  return {at / 16 | next_k / 16 << 16, next_columns / 16};
}

// The same of B in rows of 64 values, 128 bytes each, sixteen bytes of row r at their number ^ (r % 8) (a swizzle of 128 bytes; eight rows
// begin at a multiple of 1,024). Rows are columns, and `apart` is of no account: what is further along k lies 32 bytes further, in
// the same rows. Or rows are k (`Along::COLUMNS`): eight of them lie 1,024 bytes apart, and the next 64 columns `apart`.
__device__ __forceinline__ Descriptor describe_rows(const void* shared, uint32_t apart) {
  const Descriptor plain = describe(shared, apart, 1024);
  return {plain.low, plain.high | 1u << 30};
}

// What lies side by side in the rows of a B that `describe_rows` tells of.
enum class Along { K, COLUMNS };

// What came to shared memory by other ways than bulk copies, and before this thread, comes before what wgmma reads there.
__device__ __forceinline__ void fence_shared() {
#ifndef CHRYSALIS_EMULATE
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// What was written to these registers is not put off until products have begun, which would then be begun one after the other.
template <uint32_t N>
__device__ __forceinline__ void settle([[maybe_unused]] float (&sums)[N]) {
#ifndef CHRYSALIS_EMULATE
#pragma unroll
  for (uint32_t i = 0; i < N; i++) asm volatile("" : "+f"(sums[i])::"memory");
#endif
}

// Before the first product of a group: what was written to its registers comes before it.
__device__ __forceinline__ void fence_products() {
#ifdef CHRYSALIS_EMULATE
  emulate::fence_products();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// What was begun since the last call becomes a group.
__device__ __forceinline__ void commit_products() {
#ifdef CHRYSALIS_EMULATE
  emulate::commit_products();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits for all groups but the last LEFT.
template <uint32_t LEFT>
__device__ __forceinline__ void wait_products() {
#ifdef CHRYSALIS_EMULATE
  emulate::wait_products(LEFT);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(LEFT) : "memory");
#endif
}

// Begins sums = (add ? sums : 0) + a * b, values of the pair's type, by the 128 threads of a warpgroup: a [64, 16] in registers, b [16, N] in shared memory, sums
// [64, N]. With w = warp % 4, g = lane / 4 and t = lane % 4:
//   a[0] = rows 16 w + g, k 2 t and 2 t + 1; a[1] = row + 8; a[2] = k + 8; a[3] = both
//   sums[4 j + i] = row 16 w + g + 8 (i / 2), column 8 j + 2 t + i % 2
// Until it was waited for nobody may touch `sums`, `a` or b.
#ifdef CHRYSALIS_EMULATE
template <uint32_t N, class Pair, Along ALONG = Along::K>
void begin_product(float (&sums)[N / 2], const uint32_t (&a)[4], Descriptor b, bool add) {
  emulate::begin_product(sums, N, a, (uint64_t)b.high << 32 | b.low, add, ALONG == Along::COLUMNS, Pair::unpack);
}
#else
// Operands 10 d to 10 d + 9, and those of eight sums.
#define TEN(d) "%" #d "0, %" #d "1, %" #d "2, %" #d "3, %" #d "4, %" #d "5, %" #d "6, %" #d "7, %" #d "8, %" #d "9, "
#define EIGHT_SUMS(i)                                                                                           \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), "+f"(sums[i + 5]), \
      "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define BEGIN_PRODUCT(...)                                                                                               \
  BEGIN_PRODUCT_OF(half_pair, "f16.f16", K, "0", __VA_ARGS__) BEGIN_PRODUCT_OF(half_pair, "f16.f16", COLUMNS, "1", __VA_ARGS__) \
  BEGIN_PRODUCT_OF(bf16_pair, "bf16.bf16", K, "0", __VA_ARGS__) BEGIN_PRODUCT_OF(bf16_pair, "bf16.bf16", COLUMNS, "1", __VA_ARGS__)
#define BEGIN_PRODUCT_OF(pair, types, along, transposed, n, sums_list, a_list, low_operand, high_operand, add_operand, ...)          \
  template <>                                                                                                                         \
  __device__ __forceinline__ void begin_product<n, pair, Along::along>(float(&sums)[n / 2], const uint32_t (&a)[4], Descriptor b,     \
                                                                       bool add) {                                                    \
    asm volatile("{\n.reg .pred add;\n.reg .b64 b;\nsetp.ne.b32 add, " add_operand ", 0;\nmov.b64 b, {" low_operand ", " high_operand \
                 "};\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." types " {" sums_list "}, {" a_list                             \
                 "}, b, add, 1, 1, " transposed ";\n}"                                                                                \
                 : __VA_ARGS__                                                                                                        \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.low), "r"(b.high), "r"((uint32_t)add));                          \
  }
template <uint32_t N, class Pair, Along ALONG = Along::K>
__device__ __forceinline__ void begin_product(float (&sums)[N / 2], const uint32_t (&a)[4], Descriptor b, bool add);
BEGIN_PRODUCT(8, "%0, %1, %2, %3", "%4, %5, %6, %7", "%8", "%9", "%10", "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3]))
BEGIN_PRODUCT(32, TEN() "%10, %11, %12, %13, %14, %15", "%16, %17, %18, %19", "%20", "%21", "%22", EIGHT_SUMS(0), EIGHT_SUMS(8))
BEGIN_PRODUCT(64, TEN() TEN(1) TEN(2) "%30, %31", "%32, %33, %34, %35", "%36", "%37", "%38", EIGHT_SUMS(0), EIGHT_SUMS(8),
              EIGHT_SUMS(16), EIGHT_SUMS(24))
BEGIN_PRODUCT(128, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) "%60, %61, %62, %63", "%64, %65, %66, %67", "%68", "%69", "%70",
              EIGHT_SUMS(0), EIGHT_SUMS(8), EIGHT_SUMS(16), EIGHT_SUMS(24), EIGHT_SUMS(32), EIGHT_SUMS(40), EIGHT_SUMS(48),
              EIGHT_SUMS(56))
BEGIN_PRODUCT(256, TEN() TEN(1) TEN(2) TEN(3) TEN(4) TEN(5) TEN(6) TEN(7) TEN(8) TEN(9) TEN(10) TEN(11)
              "%120, %121, %122, %123, %124, %125, %126, %127", "%128, %129, %130, %131", "%132", "%133", "%134", EIGHT_SUMS(0),
              EIGHT_SUMS(8), EIGHT_SUMS(16), EIGHT_SUMS(24), EIGHT_SUMS(32), EIGHT_SUMS(40), EIGHT_SUMS(48), EIGHT_SUMS(56),
              EIGHT_SUMS(64), EIGHT_SUMS(72), EIGHT_SUMS(80), EIGHT_SUMS(88), EIGHT_SUMS(96), EIGHT_SUMS(104), EIGHT_SUMS(112),
              EIGHT_SUMS(120))
#undef BEGIN_PRODUCT
#undef BEGIN_PRODUCT_OF
#undef EIGHT_SUMS
#undef TEN
#endif

#endif
