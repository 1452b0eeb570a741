// Products of few rows, at the speed of memory: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]; sums[r, j] += the same
//   arguments, meaning and order of a sum: linear.cuh; every form of tiles.cuh; parts: a power of two, at most 8
// Launch:  grid = as many blocks as there are multiprocessors, or works if fewer; block = 512. A work is what a group of warps has:
//          `group` / parts tiles of 16 outs, all parts of their sums; `group` is the most parts of a product of the launch. With
//          a `gate` a work is one tile of both products (gate.cuh), and `group` twice their parts.
//          Shared memory: 128 KiB, and 128 bytes for each row and chunk, twice as much if `fine`.
// Bound:   memory, the stored bytes of weight once.
// Meaning: src/reference/mod.rs, `linear`, and of what becomes of rows on the way, `input_row`.
// Source:  none.
#include "few.cuh"

template <class Form>
__device__ __forceinline__ void linear_few(const Few& p) {
  DYNAMIC_SHARED(shared);
  __shared__ FewJoined joined;
  uint8_t* ring = shared + threadIdx.x / WARP * RING_BYTES;
  const Alone alone = {p};
  // In front of all that the ring asks for.
  if (threadIdx.x == 0) ask_for_norm(p);
  Asking<Form, Alone> asking = Asking<Form, Alone>::begin(alone);
  fill_ring(asking, ring);
  wait_for_previous();
  const FewRows<IS_HALF<Form>> rows = rows_of<Form>(p, shared + FEW_WARPS * RING_BYTES);
  rows.make(p);
  __syncthreads();
  uint32_t at = 0;
  if (p.fine) {
    few_works<Form, true>(p, rows, asking, ring, at, joined);
  } else {
    few_works<Form, false>(p, rows, asking, ring, at, joined);
  }
}

#define LINEAR(form) \
  KERNEL_EARLY(FEW_THREADS, 1, linear_few_##form, Few) { linear_few<tile_##form>(p); }
LINEAR(bf16)
LINEAR(f16)
LINEAR(q8_0)
LINEAR(q4_0)
LINEAR(q4_1)
LINEAR(q4_k)
LINEAR(f8)
LINEAR(wide)
#undef LINEAR
