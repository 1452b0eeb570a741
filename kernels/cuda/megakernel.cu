// A step of few rows, or a stretch of it, as one launch: what would be launches of linear_few.cu, rope_store.cu and attention.cu, one
//   after the other, with a barrier of all blocks between them. Arguments, meaning and order of sums: theirs, to the same bits.
// Launch:  grid = as many blocks as there are multiprocessors, all at the same time (a cooperative launch); block = 512. Shared memory: the
//          rings of linear_few.cu, 128 KiB, and behind them room for the rows of the longest product, for 16 KiB of heads that turn, for
//          `attention_token` with a ring of two places.
// Bound:   memory, the stored bytes of all weights once.
// Meaning: that of each.
// Source:  persistent kernels with barriers of the grid: Xiao & Feng 2010, "Inter-Block GPU Communication via Fast Barrier
//          Synchronization"; whole steps of a decoder so: Spector et al. 2025, "Look Ma, No Bubbles!".
//
// Weights depend on nothing, so a warp's ring goes through those of all products without regard to barriers: while blocks wait for one
// another, turn heads or attend, what comes next is on its way, up to 17 MB of an H200. That is why this is one launch.
//
// What a block reads of others' it reads behind a barrier, which makes it forget what its first-level cache had.
#include "attention_token.cuh"
#include "few.cuh"
#include "rope_store.cuh"

// Elsewhere there is no room for it, or it is not written for the registers.
#if defined(CHRYSALIS_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WITH_MEGAKERNEL
#endif

enum : uint32_t { OPERATION_LINEAR = 0, OPERATION_ROPE_STORE = 1, OPERATION_ATTENTION_64 = 2, OPERATION_ATTENTION_128 = 3 };

struct Operation {
  uint32_t kind;
  // Blocks of the launch that it would be; of attention not more than there are.
  uint32_t x, y, z;
  union {
    Few linear;
    RopeStore rope_store;
    Attention attention;
  };
};
static_assert(sizeof(Operation) == 248, "src/cuda/params.rs asserts the same size");

constexpr uint32_t OPERATIONS = 128;

struct Megakernel {
  uint32_t* meeting;  // two numbers, zero before and after
  uint32_t count;     // operations
  uint32_t unused;
  Operation operations[OPERATIONS];
};
static_assert(sizeof(Megakernel) == 31760, "src/cuda/params.rs asserts the same size, and a kernel takes 32,764 bytes");

#ifdef WITH_MEGAKERNEL

// The products among operations, whose weights are asked for one after the other.
struct Products {
  static constexpr bool AHEAD = false;
  const Megakernel& p;

  __device__ __forceinline__ const Few& at(uint32_t n) const { return p.operations[n].linear; }
  __device__ __forceinline__ uint32_t end() const { return p.count; }
  __device__ __forceinline__ uint32_t from(uint32_t n) const {
    while (n < p.count && p.operations[n].kind != OPERATION_LINEAR) n++;
    return n;
  }
};

// All blocks of the launch meet, `arrivals` of them and of those that met before. What any thread wrote before, all see behind it.
__device__ __forceinline__ void meet_all(uint32_t* meeting, uint32_t arrivals) {
  __syncthreads();
  if (threadIdx.x == 0) {
#ifdef CHRYSALIS_EMULATE
    atomicAdd(meeting, 1u);
    while (*meeting < arrivals) emulate::pass_block();
#else
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(meeting) : "memory");
    uint32_t arrived;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(meeting) : "memory");
    while (arrived < arrivals);
#endif
  }
  __syncthreads();
}

// How far a thread is with weights, while its registers are attention's.
struct Left {
  const uint8_t* record;
  uint32_t step, work, left, at;
};

template <uint32_t DIM>
__device__ __forceinline__ void attend(const Operation& operation, uint8_t* room) {
  if (blockIdx.x >= operation.x * operation.y * operation.z || threadIdx.x >= AttentionToken<cache_f16, DIM>::THREADS) return;
  const BlockNumber block = {blockIdx.x % operation.x, blockIdx.x / operation.x % operation.y, blockIdx.x / operation.x / operation.y};
  attention_token<cache_f16, DIM, false>(operation.attention, block, room);
}

// A warp has a head; neighbouring ones are different blocks'.
__device__ __forceinline__ void turn_heads(const Operation& operation, uint8_t* room) {
  const RopeStore& p = operation.rope_store;
  const uint32_t warp = threadIdx.x / WARP, heads = p.num_heads + 2 * p.cache.num_kv_heads;
  float* turned = reinterpret_cast<float*>(room) + warp * ROPE_DIM_MAX;
  for (uint32_t i = warp * gridDim.x + blockIdx.x; i < operation.x * heads; i += FEW_WARPS * gridDim.x) {
    rope_store_head(p, i / heads, i % heads, turned);
  }
}

template <class Form>
__device__ __forceinline__ void megakernel(const Megakernel& p) {
  DYNAMIC_SHARED(shared);
  __shared__ float4 joined[2][FEW_THREADS];
  static_assert(sizeof(Left) * FEW_THREADS <= sizeof(joined), "there is room while nothing is joined");
  uint8_t* const ring = shared + threadIdx.x / WARP * RING_BYTES;
  uint8_t* const room = shared + FEW_WARPS * RING_BYTES;
  const Products products = {p};
  Asking<Form, Products> asking = Asking<Form, Products>::begin(products);
  fill_ring(asking, ring);
  wait_for_previous();
  uint32_t at = 0;
#pragma unroll 1
  for (uint32_t n = 0; n < p.count; n++) {
    if (n > 0) meet_all(p.meeting, n * gridDim.x);
    const Operation& operation = p.operations[n];
    if (operation.kind == OPERATION_LINEAR) {
      const Few& few = operation.linear;
      const FewRows<IS_HALF<Form>> rows = rows_of<Form>(few, shared);
      rows.make(few);
      __syncthreads();
      few_works<Form, false>(few, rows, asking, ring, at, joined);
    } else if (operation.kind == OPERATION_ROPE_STORE) {
      turn_heads(operation, room);
    } else {
      Left& left = reinterpret_cast<Left*>(joined)[threadIdx.x];
      left = {asking.record, asking.step, asking.work, asking.left, at};
      if (operation.kind == OPERATION_ATTENTION_64) attend<64>(operation, room);
      else attend<128>(operation, room);
      asking.record = left.record, asking.step = left.step, asking.work = left.work, asking.left = left.left, at = left.at;
    }
  }
  // Whoever leaves last has nobody who still waits.
  if (threadIdx.x == 0 && atomicInc(p.meeting + 1, gridDim.x - 1) == gridDim.x - 1) *p.meeting = 0;
}

#define MEGAKERNEL(form) \
  KERNEL_EARLY(FEW_THREADS, 1, megakernel_##form, Megakernel) { megakernel<tile_##form>(p); }
MEGAKERNEL(bf16)
MEGAKERNEL(f16)
MEGAKERNEL(q8_0)
MEGAKERNEL(q4_0)
MEGAKERNEL(q4_1)
MEGAKERNEL(q4_k)
MEGAKERNEL(f8)
MEGAKERNEL(wide)
#undef MEGAKERNEL
#endif
