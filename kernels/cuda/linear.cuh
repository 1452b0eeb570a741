// What products on tensor cores share: arguments, parts of a sum, and how parts of other blocks are joined. Used by linear_mma.cu
// (any card) and by the kernels of single architectures, so that the host asks for either in the same way.
//
// Weights are the operand with many rows (tiles.cuh), tokens the one with few columns: of a fragment of 16 x 8 sums, lane l has
// c[0] = (out g, row 2 t), c[1] = (g, 2 t + 1), c[2] = (g + 8, 2 t), c[3] = (g + 8, 2 t + 1), where g = l / 4 and t = l % 4.
//
// Order of a sum, by the matrix' shape alone: its chunks of 64 columns are cut into `parts` runs (src/cuda/products.rs, `splits`). A
// part is one chain of instructions from zero: chunk after chunk, in each step after step of sixteen columns, in each the rows,
// then, where there is one, their rest. Parts are added first to last, then the bias. Who computes which part shows nowhere.
#pragma once

#include "tensor.cuh"
#include "tiles.cuh"

// One product of a launch; all share their rows.
struct Product {
  Tiles weight;
  const float* bias;  // [weight.rows] or none
  float* out;         // [rows, weight.rows]
  uint32_t first;     // number of its first work in the launch; none reaches that of a product that is not there
  uint32_t parts;     // of each sum
};
static_assert(sizeof(Product) == 40, "src/cuda/params.rs asserts the same size");

constexpr uint32_t PRODUCTS = 3;

struct Linear {
  const uint8_t* rows;  // tiles of rows, as the form wants them (tiles.cuh)
  const uint8_t* rest;  // what rounding them left, in the same layout, or none
  float* partials;      // a slot for each work, where sums are split
  uint32_t* tickets;    // one for each work, zero before and after
  Product products[PRODUCTS];
  uint8_t* gated;  // where there is a `gate`: tiles of what it makes of the first product and the second, which are not written
  uint32_t num_rows;
  uint32_t split;  // each part of a sum is a work of its own, or a work has all of them
  uint32_t gate;   // kind of the input that the next product takes of these two (input.cuh), or zero
  uint32_t half;   // it takes f16, or bf16
};
static_assert(sizeof(Linear) == 176, "src/cuda/params.rs asserts the same size");

// What a block does: outs of a product, all parts of their sums or one, for a group of rows.
struct Work {
  const Product& product;
  uint32_t chunks;  // of a row
  uint32_t group;   // which rows, in groups as large as the kernel has them
  uint32_t block;   // which outs, in blocks as large as the kernel has them
  uint32_t part;    // the first
  uint32_t end;     // behind the last
  uint32_t slot;    // of part 0, in partials and tickets
  uint32_t slots_apart;

  // First chunk of a part.
  __device__ __forceinline__ uint32_t begin(uint32_t part) const { return chunks * part / product.parts; }
};

// Groups of rows that have a work before the next work's turn comes. So those who need the same weights run at the same time, as do
// those who need the same rows, and what they all need fits the second-level cache.
constexpr uint32_t NEAR_GROUPS = 8;

// The `place`-th of all, of so many groups of rows and works.
__device__ __forceinline__ Work work_of(const Linear& p, uint32_t place, uint32_t groups, uint32_t works) {
  const uint32_t near = NEAR_GROUPS * works;
  const uint32_t first = place / near * NEAR_GROUPS, width = min(NEAR_GROUPS, groups - first);
  const uint32_t group = first + place % near % width, number = place % near / width;
  const uint32_t which = number >= p.products[2].first ? 2 : number >= p.products[1].first ? 1 : 0;
  const Product& product = p.products[which];
  const uint32_t mine = number - product.first, apart = p.split ? product.parts : 1;
  const uint32_t part = mine % apart;
  return {product,
          chunks_of(product.weight.cols),
          group,
          mine / apart,
          part,
          p.split ? part + 1 : product.parts,
          (number - part) * groups + group,
          groups};
}

// How many works there are.
__device__ __forceinline__ uint32_t works_of(const Linear& p, uint32_t block_outs) {
  uint32_t works = 0;
  for (uint32_t i = 0; i < PRODUCTS; i++) {
    works += (p.products[i].weight.rows + block_outs - 1) / block_outs * (p.split ? p.products[i].parts : 1);
  }
  return works;
}

// That of this block, where the grid is groups of rows by works.
__device__ __forceinline__ Work work_of(const Linear& p) {
  return work_of(p, blockIdx.y * gridDim.x + blockIdx.x, gridDim.x, gridDim.y);
}

// Joins the parts that blocks have summed apart: whoever comes last gets the sums of all and true, others have done their share.
// `meet` is a barrier of the THREADS that call it; `last` is shared memory of theirs. A ticket wraps to zero behind the last.
template <uint32_t THREADS, uint32_t VALUES, class Meet>
__device__ __forceinline__ bool join_parts(const Linear& p, const Work& work, uint32_t thread, float (&sums)[VALUES],
                                           uint32_t& last, Meet meet) {
  static_assert(VALUES % 4 == 0, "slots are read and written in words of four");
  const uint32_t parts = work.product.parts;
  if (work.end - work.part == parts) return true;
  constexpr uint32_t WORDS = VALUES / 4 * THREADS;
  float4* slots = reinterpret_cast<float4*>(p.partials) + thread;
  float4* mine = slots + (size_t)(work.slot + work.part * work.slots_apart) * WORDS;
#pragma unroll
  for (uint32_t i = 0; i < VALUES / 4; i++) {
    mine[i * THREADS] = {sums[4 * i], sums[4 * i + 1], sums[4 * i + 2], sums[4 * i + 3]};
  }
  // What all have written is seen before the ticket is, and what others wrote after it.
  __threadfence();
  meet();
  if (thread == 0) last = atomicInc(&p.tickets[work.slot], parts - 1) == parts - 1;
  meet();
  if (!last) return false;
  __threadfence();
  // Words that are asked for at once: no more than registers hold.
  constexpr uint32_t HELD = VALUES > 64 ? 8 : VALUES / 4;
  const float4* other = slots + (size_t)work.slot * WORDS;
#pragma unroll
  for (uint32_t i = 0; i < VALUES / 4; i++) {
    // From the second-level cache: the first-level one knows nothing of other multiprocessors.
    const float4 x = __ldcg(other + i * THREADS);
    sums[4 * i] = x.x, sums[4 * i + 1] = x.y, sums[4 * i + 2] = x.z, sums[4 * i + 3] = x.w;
  }
#pragma unroll 1
  for (uint32_t part = 1; part < parts; part++) {
    other += (size_t)work.slots_apart * WORDS;
#pragma unroll
    for (uint32_t first = 0; first < VALUES / 4; first += HELD) {
      if (HELD < VALUES / 4) asm volatile("" ::: "memory");
      float4 held[HELD];
#pragma unroll
      for (uint32_t i = 0; i < HELD; i++) held[i] = __ldcg(other + (first + i) * THREADS);
#pragma unroll
      for (uint32_t i = 0; i < HELD; i++) {
        float* mine = &sums[4 * (first + i)];
        mine[0] += held[i].x, mine[1] += held[i].y, mine[2] += held[i].z, mine[3] += held[i].w;
      }
    }
  }
  return true;
}

// Adds the bias and writes a fragment whose first out and row these are; where there is `also`, of the same shape as what is
// written, adds it there.
__device__ __forceinline__ void store_sums(const Linear& p, const Product& product, uint32_t first_out, uint32_t first_row,
                                           uint32_t lane, const float* sums, float* also = nullptr) {
  const uint32_t outs = product.weight.rows;
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    const uint32_t out = first_out + lane / 4 + i / 2 * 8, row = first_row + lane % 4 * 2 + i % 2;
    if (out < outs && row < p.num_rows) {
      const float sum = product.bias ? sums[i] + product.bias[out] : sums[i];
      product.out[(size_t)row * outs + out] = sum;
      if (also) also[(size_t)row * outs + out] += sum;
    }
  }
}
