// A step of few rows, or a stretch of it, as one launch: what would be launches of linear_few.cu, rope_store.cu and attention.cu, one
//   after the other, with a barrier of all blocks between them. Arguments, meaning and order of sums: theirs, to the same bits.
// Launch:  grid = as many blocks as there are multiprocessors, all at the same time (a cooperative launch); block = 512. Shared memory: the
//          rings of few.cuh, 128 KiB, and behind them 16 KiB of sums that are joined, and room for the rows of the longest product and for
//          `attention_token` with a ring of two.
// Bound:   memory, the stored bytes of all weights once.
// Meaning: that of each, but that q and k are not written: of heads that are turned the only reader is the attention that turns them.
// Source:  persistent kernels with barriers of the grid: Xiao & Feng 2010, "Inter-Block GPU Communication via Fast Barrier
//          Synchronization"; whole steps of a decoder so: Spector et al. 2025, "Look Ma, No Bubbles!".
//
// Weights depend on nothing, so a warp's ring goes through those of all products without regard to barriers: while blocks wait for one
// another, turn heads or attend, what comes next is on its way, up to 17 MB of an H200. That is why this is one launch. So with K and V
// of positions before: they are asked for in front of the barrier that queries are behind (attention.cu says why they may be).
//
// What a block reads of others' it reads behind a barrier, which makes it forget what its first-level cache had.
#include "attention_token.cuh"
#include "few.cuh"
#include "rope_store.cuh"

// Elsewhere there is no room for it, or it is not written for the registers.
#if defined(CHRYSALIS_EMULATE) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WITH_MEGAKERNEL
#endif

enum : uint32_t { OPERATION_LINEAR = 0, OPERATION_ATTENTION_64 = 1, OPERATION_ATTENTION_128 = 2 };

// Of one token each, with `early`, over a cache of f16; what `rope_store` did in front of it.
struct TurnedAttention {
  Attention attention;
  Heads heads;
};
static_assert(sizeof(TurnedAttention) == 232, "src/cuda/params.rs asserts the same size");

struct Operation {
  uint32_t kind;
  // Blocks of attention as a launch, not more than there are here.
  uint32_t x, y, z;
  union {
    Few linear;
    TurnedAttention turned;
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

// Has a word read that nobody uses.
__device__ __forceinline__ void touch(uint32_t word) {
#ifdef CHRYSALIS_EMULATE
  (void)word;
#else
  asm volatile("" ::"r"(word));
#endif
}

// A barrier of all blocks, by all threads: what any of them wrote before they arrive, all see when they have waited. Behind it no thread of
// this block needs what the operation before had in shared memory.
__device__ __forceinline__ void arrive_all(uint32_t* meeting) {
  __syncthreads();
  if (threadIdx.x > 0) return;
#ifdef CHRYSALIS_EMULATE
  atomicAdd(meeting, 1u);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(meeting) : "memory");
#endif
}

// `arrivals` of all barriers so far: none, where there was none.
__device__ __forceinline__ void wait_all(uint32_t* meeting, uint32_t arrivals) {
  if (arrivals == 0) return;
  if (threadIdx.x == 0) {
#ifdef CHRYSALIS_EMULATE
    while (*meeting < arrivals) emulate::pass_block();
#else
    uint32_t arrived;
    do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(meeting) : "memory");
    while (arrived < arrivals);
#endif
  }
  __syncthreads();
}

// By one warp, while others wait: what the next operation is in need of, and arguments of later ones, which the constant cache brings line by
// line, and whose weights are asked for long before their turn.
__device__ __forceinline__ void look_ahead(const Megakernel& p, uint32_t n) {
  constexpr uint32_t FAR = 8, LINE = 64, LAST = sizeof(Operation) - sizeof(uint32_t);
  const uint32_t lane = threadIdx.x % WARP;
  if (n + FAR < p.count && lane * LINE < LAST + LINE) {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(&p.operations[n + FAR]) + min(lane * LINE, LAST);
    touch(*reinterpret_cast<const uint32_t*>(at));
  }
  if (n + 1 < p.count && p.operations[n + 1].kind == OPERATION_LINEAR && lane == 0) ask_for_norm(p.operations[n + 1].linear);
}

// How far a thread is with weights, while its registers are attention's.
struct Left {
  const uint8_t* record;
  uint32_t step, work, left, at;
};

// Heads that attention turns for itself.
template <uint32_t DIM>
struct Turning {
  static constexpr bool ALL = false;
  const Heads& heads;
  uint32_t* meeting;
  uint32_t arrivals;

  __device__ __forceinline__ void wait() const { wait_all(meeting, arrivals); }

  // Sixteen bits of each value of a warp's head, as a row of a tile.
  static __device__ __forceinline__ void put(uint8_t* tile, uint32_t row, const float (&x)[LANE_VALUES]) {
#pragma unroll
    for (uint32_t n = 0; n < DIM / WARP; n++) {
      const uint32_t i = n * WARP + threadIdx.x % WARP;
      *reinterpret_cast<uint16_t*>(tile + chunk_at<DIM>(row, i / 8) + i % 8 * 2) = float_to_half(x[n]);
    }
  }

  // A warp has a head of q, k or v; rows of the tile that are none are anything, and so is what becomes of them. The newest K and V go to the
  // cache and, where the ring has their chunk, to their row there. Blocks of other spans turn the same q, those of other heads of the
  // group write the same K and V.
  template <class Token>
  __device__ __forceinline__ void bring(Token& token, uint32_t newest, uint32_t row, uint32_t place) const {
    const CacheLayer& cache = token.p.cache;
    float* turned = reinterpret_cast<float*>(token.shared + Token::WEIGHTS_AT) + token.warp * DIM;
    static_assert(Token::WARPS * DIM * 4 <= Token::SUMS_AT - Token::WEIGHTS_AT, "there is room while nothing is weighed");
    const uint32_t all = token.heads + (row != NO_ROW ? 2 : 0);
#pragma unroll 1
    for (uint32_t i = token.warp; i < all; i += Token::WARPS) {
      const uint32_t of_kv = token.kv_head + (i - token.heads) * cache.num_kv_heads;
      const HeadOf head = head_of(heads, cache, token.token, i < token.heads ? token.first_head + i : heads.num_heads + of_kv);
      float x[LANE_VALUES];
      turn_head<DIM>(heads, cache.head_dim, token.token, head, turned, x, [] {});
      if (head.is_q) {
        put(token.shared + Token::QUERIES_AT, i, x);
        continue;
      }
      store(cache, x, head.is_v ? cache.v : cache.k, nullptr, row);
      if (place < token.p.ring) put(token.shared + Token::RING_AT + (place + head.is_v) * Token::PLACE_BYTES, newest % Token::CHUNK, x);
    }
  }
};

// Whoever has no part in it asks for weights behind its ring.
template <uint32_t DIM, class Weights>
__device__ __forceinline__ void attend(const Operation& operation, uint8_t* room, uint32_t* meeting, uint32_t arrivals,
                                       const Weights& weights) {
  using Source = Turning<DIM>;
  const Source source = {operation.turned.heads, meeting, arrivals};
  const uint32_t blocks = operation.x * operation.y * operation.z;
  if (blockIdx.x >= blocks || threadIdx.x >= AttentionToken<cache_f16, DIM, Source>::THREADS) {
    weights.ask_ahead();
    return source.wait();
  }
  const BlockNumber block = {blockIdx.x % operation.x, blockIdx.x / operation.x % operation.y, blockIdx.x / operation.x / operation.y};
  attention_token<cache_f16, DIM>(operation.turned.attention, block, room, source);
}

template <class Form>
__device__ __forceinline__ void megakernel(const Megakernel& p) {
  DYNAMIC_SHARED(shared);
  uint8_t* const ring = shared + threadIdx.x / WARP * RING_BYTES;
  // Not declared, as the emulator's other blocks would have it too.
  FewJoined& joined = *reinterpret_cast<FewJoined*>(shared + FEW_WARPS * RING_BYTES);
  static_assert(sizeof(Left) * FEW_THREADS <= sizeof(joined), "there is room while nothing is joined");
  uint8_t* const room = shared + FEW_WARPS * RING_BYTES + sizeof(joined);
  const Products products = {p};
  Asking<Form, Products> asking = Asking<Form, Products>::begin(products);
  fill_ring(asking, ring);
  wait_for_previous();
  uint32_t at = 0;
#pragma unroll 1
  for (uint32_t n = 0; n < p.count; n++) {
    const Operation& operation = p.operations[n];
    const uint32_t arrivals = n * gridDim.x;
    if (n > 0) arrive_all(p.meeting);
    if (threadIdx.x / WARP == FEW_WARPS - 1) look_ahead(p, n);
    if (operation.kind == OPERATION_LINEAR) {
      wait_all(p.meeting, arrivals);
      const Few& few = operation.linear;
      const FewRows<IS_HALF<Form>> rows = rows_of<Form>(few, room);
      rows.make(few);
      __syncthreads();
      few_works<Form, false>(few, rows, asking, ring, at, joined);
    } else {
      Left& left = reinterpret_cast<Left*>(joined)[threadIdx.x];
      left = {asking.record, asking.step, asking.work, asking.left, at};
      if (operation.kind == OPERATION_ATTENTION_64) attend<64>(operation, room, p.meeting, arrivals, asking);
      else attend<128>(operation, room, p.meeting, arrivals, asking);
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
