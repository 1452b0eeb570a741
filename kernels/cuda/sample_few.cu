// The tokens of draws that keep few: `top_k` of 1 to 256, with or without `top_p` and `min_p`
//   of the argument (sample.cuh): x, cols; draws and keys from the first of these on
// Launch:  grid = draws, block = 1024.
// Bound:   what a multiprocessor gets from the second-level cache: 4 bytes a logit, once, and a little more.
// Meaning: src/reference/choose.rs, to the last bit. Tokens are in the order of distance and token, whoever finds them first,
//          and what is summed are whole numbers.
// Source:  none. The threads have disjoint sets of columns: within the distance in which `top_k` of them have a token there are
//          at least `top_k` tokens, and all of them in the sets of these threads. They are sorted, mostly not many more.
#include "sample.cuh"

namespace sample {

constexpr uint32_t FEW_THREADS = 1024, FEW_WARPS = FEW_THREADS / WARP;
// Tokens that are sorted, at most: four for each that is kept.
constexpr uint32_t LIST = FEW_THREADS;
// `distance << TOKEN_BITS | token`: in the order of what is kept first.
constexpr uint32_t TOKEN_BITS = 20;
static_assert(PIECE * PIECES_MAX <= 1u << TOKEN_BITS, "every token has a key");
constexpr unsigned long long NO_KEY = ~0ull;

// A row as vectors of four from its first aligned column on, and the columns beside them.
struct Row {
  const float* x;
  uint32_t head;     // columns before the vectors
  uint32_t vectors;  // vector v is of the thread v % 1024
  uint32_t beside;   // columns before and behind, fewer than a warp

  __device__ __forceinline__ float4 vector(uint32_t v) const { return reinterpret_cast<const float4*>(x + head)[v]; }
  __device__ __forceinline__ uint32_t first_of(uint32_t v) const { return head + 4 * v; }
  // The column of the n-th beside.
  __device__ __forceinline__ uint32_t column_beside(uint32_t n) const { return n < head ? n : 4 * vectors + n; }
};

__device__ __forceinline__ Row row_of(const float* x, uint32_t cols) {
  const uint32_t past = (uint32_t)(reinterpret_cast<uintptr_t>(x) / sizeof(float)) % 4;
  const uint32_t head = min((4 - past) % 4, cols), vectors = (cols - head) / 4;
  return {x, head, vectors, cols - 4 * vectors};
}

// What the tokens of a draw have in common.
struct Near {
  float max;
  float scale;
  uint32_t bound;  // distances beyond it are of no interest

  __device__ __forceinline__ uint32_t distance(float x) const { return distance_of(x, max, scale); }
  __device__ __forceinline__ unsigned long long key(float x, uint32_t token) const {
    return (unsigned long long)distance(x) << TOKEN_BITS | token;
  }
};

// Tokens that are looked at closer, in any order. More than there is room for are counted.
struct List {
  unsigned long long keys[LIST];
  uint32_t count;

  __device__ __forceinline__ void add(unsigned long long key) {
    const uint32_t at = atomicAdd(&count, 1u);
    if (at < LIST) keys[at] = key;
  }
};

// The largest value of this thread's columns, which is far from any other where it has none; `zero` is no longer that where
// one is not finite.
__device__ __forceinline__ float largest_of_mine(const Row& row, float& zero) {
  constexpr uint32_t AT_ONCE = 4;
  float largest = -INFINITY;
  const auto look = [&](float x) {
    largest = fmaxf(largest, x);
    zero = fmaf(x, 0.0f, zero);
  };
  for (uint32_t v = threadIdx.x; v < row.vectors; v += AT_ONCE * FEW_THREADS) {
    float4 held[AT_ONCE];
#pragma unroll
    for (uint32_t k = 0; k < AT_ONCE; k++) {
      // Behind the end the first one again, which changes nothing.
      const uint32_t next = v + k * FEW_THREADS;
      held[k] = row.vector(next < row.vectors ? next : v);
    }
#pragma unroll
    for (uint32_t k = 0; k < AT_ONCE; k++) {
      look(held[k].x);
      look(held[k].y);
      look(held[k].z);
      look(held[k].w);
    }
  }
  if (threadIdx.x < row.beside) look(row.x[row.column_beside(threadIdx.x)]);
  return largest;
}

// The largest value of the block's threads; nothing is kept of it where not all are finite.
__device__ __forceinline__ bool largest_of_row(float mine, bool finite, float& max) {
  __shared__ float warps[FEW_WARPS];
  static_assert(FEW_WARPS == WARP, "a lane for each warp");
  const float of_warp = warp_max(mine);
  if (threadIdx.x % WARP == 0) warps[threadIdx.x / WARP] = of_warp;
  const uint32_t all = __syncthreads_count(finite);
  max = warp_max(warps[threadIdx.x % WARP]);
  return all == FEW_THREADS;
}

// The least distance within which `top_k` threads have a token; FAR - 1 where so many do not, as what is further has no share.
__device__ __forceinline__ uint32_t bound_of(uint32_t nearest, uint32_t top_k) {
  uint32_t low = 0, bound = FAR - 1;
  while (low < bound) {
    const uint32_t middle = (low + bound) / 2;
    const uint32_t found = __syncthreads_count(nearest <= middle);
    if (found >= top_k) bound = middle;
    else low = middle + 1;
    if (found == top_k) break;
  }
  return bound;
}

// Lists all tokens within the bound. Their sets are a warp's, one after the other, and a vector of it is a lane's.
__device__ __forceinline__ void collect(List& list, const Row& row, const Near& near, uint32_t nearest) {
  __shared__ uint32_t sets[FEW_THREADS], num_sets;
  if (threadIdx.x == 0) list.count = num_sets = 0;
  __syncthreads();
  const auto look = [&](float x, uint32_t token) {
    if (near.distance(x) <= near.bound) list.add(near.key(x, token));
  };
  if (nearest <= near.bound) sets[atomicAdd(&num_sets, 1u)] = threadIdx.x;
  if (threadIdx.x < row.beside) {
    const uint32_t token = row.column_beside(threadIdx.x);
    look(row.x[token], token);
  }
  __syncthreads();
  for (uint32_t s = threadIdx.x / WARP; s < num_sets; s += FEW_WARPS) {
#pragma unroll 1
    for (uint32_t v = sets[s] + threadIdx.x % WARP * FEW_THREADS; v < row.vectors; v += WARP * FEW_THREADS) {
      const float4 held = row.vector(v);
      const uint32_t token = row.first_of(v);
      look(held.x, token);
      look(held.y, token + 1);
      look(held.z, token + 2);
      look(held.w, token + 3);
    }
  }
  __syncthreads();
}

// Lists the first `top_k` tokens alone, where within the bound there are more than the list has room for: values are equal, or
// large ones next to each other. Halves what is left of the keys until it has the last of them; each time is a pass.
__device__ __forceinline__ void collect_exactly(List& list, const float* x, uint32_t cols, const Near& near, uint32_t top_k) {
  unsigned long long low = 0, last = ((unsigned long long)near.bound + 1) << TOKEN_BITS;
  while (low < last) {
    const unsigned long long middle = (low + last) / 2;
    unsigned long long found = 0;
    for (uint32_t i = threadIdx.x; i < cols; i += FEW_THREADS) found += near.key(x[i], i) <= middle;
    if (sum_of_block<FEW_THREADS>(found) >= top_k) last = middle;
    else low = middle + 1;
  }
  if (threadIdx.x == 0) list.count = 0;
  __syncthreads();
  for (uint32_t i = threadIdx.x; i < cols; i += FEW_THREADS) {
    const unsigned long long key = near.key(x[i], i);
    if (key <= last) list.add(key);
  }
  __syncthreads();
}

// Sorts the first `count` keys; those behind, up to a power of two, are NO_KEY. Bitonic: a thread has a pair of each step.
__device__ __forceinline__ void sort(unsigned long long* keys, uint32_t count) {
  uint32_t room = 2 * WARP;
  while (room < count) room *= 2;
  for (uint32_t size = 2; size <= room; size *= 2) {
    for (uint32_t apart = size / 2; apart > 0; apart /= 2) {
      // Nearer pairs are of 64 keys that are one warp's, in this step and the one before.
      if (apart >= WARP) __syncthreads();
      else __syncwarp();
      const uint32_t low = 2 * threadIdx.x - (threadIdx.x & (apart - 1)), high = low + apart;
      if (low >= room) continue;
      const unsigned long long a = keys[low], b = keys[high];
      if ((a > b) != ((low & size) != 0)) {
        keys[low] = b;
        keys[high] = a;
      }
    }
  }
  __syncthreads();
}

KERNEL(1024, sample_few, Sample) {
  __shared__ List list;
  const Draw& draw = p.draws[blockIdx.x];
  const float* x = p.x + (size_t)draw.row * p.cols;
  const Row row = row_of(x, p.cols);
  float zero = 0.0f;
  const float mine = largest_of_mine(row, zero);
  Near near = {0.0f, draw.scale, 0};
  if (!largest_of_row(mine, zero == 0.0f, near.max)) {
    if (threadIdx.x == 0) p.keys[blockIdx.x] = NO_TOKEN;
    return;
  }
  const uint32_t nearest = near.distance(mine);
  near.bound = bound_of(nearest, draw.top_k);
  collect(list, row, near, nearest);
  if (list.count > LIST) collect_exactly(list, x, p.cols, near, draw.top_k);
  const uint32_t listed = list.count;

  // What the cuts keep. Each thread has a token: the likeliest ones first, then those that are left by ascending token.
  unsigned long long& own = list.keys[threadIdx.x];
  if (threadIdx.x >= listed) own = NO_KEY;
  __syncthreads();
  sort(list.keys, listed);
  const bool among = threadIdx.x < listed && threadIdx.x < draw.top_k;
  const uint32_t distance = (uint32_t)(own >> TOKEN_BITS), token = (uint32_t)own % (1u << TOKEN_BITS);
  unsigned long long total, before = scan<FEW_THREADS>(among ? share_of(distance, 0.0f) : 0, total);
  const bool stays = among && before < enough_of(total, draw.part);
  own = stays ? (unsigned long long)token << 32 | distance : NO_KEY;
  const uint32_t kept = __syncthreads_count(stays);
  sort(list.keys, kept);

  // The draw: the place lies in the share with which sums exceed it.
  const unsigned long long share = threadIdx.x < kept ? share_of((uint32_t)own, draw.min_p) : 0;
  before = scan<FEW_THREADS>(share, total);
  const unsigned long long place = scaled<53>(total, draw.bits);
  if (before <= place && place < before + share) p.keys[blockIdx.x] = 1ull << 32 | (0xffffffffu - (uint32_t)(own >> 32));
  if (threadIdx.x == 0 && total == 0) p.keys[blockIdx.x] = NO_TOKEN;
}

}  // namespace sample
