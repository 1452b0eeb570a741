// Products of few rows, at the speed of memory: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]; sums[r, j] += the same
//   arguments, meaning and order of a sum: linear.cuh; every form of tiles.cuh; parts: a power of two, at most 8
// Launch:  grid = as many blocks as fit on the card at once, or works if fewer; block = 256. Works: linear.cuh's numbers, a work
//          is 8 / parts tiles of 16 outs. Shared memory: 64 KiB, and 128 bytes for each row and chunk, twice as much if `fine`.
// Bound:   memory, the stored bytes of weight once.
// Meaning: src/reference/mod.rs, `linear`, and of what becomes of rows on the way, `input_row`.
// Source:  none.
//
// A warp has one part of the sums of a tile. Its records come through a ring of its own, which is full before the kernel that writes
// the rows has ended, and begins with the next work before this one is joined. Every block makes bf16 of all rows for itself, from
// what an `Input` has or from tiles: that saves a launch where rows are one or two, and costs reads of the second-level cache.
#include "input.cuh"
#include "linear.cuh"

struct Few {
  Linear linear;  // without `rows`, the input is made here; `split`, `partials` and `tickets` are not used
  Input input;
  float* sums;    // [num_rows, outs] of the first product, or none
  uint32_t works;
  uint32_t fine;  // each value of a row is two bf16
};
static_assert(sizeof(Few) == 208, "src/cuda/params.rs asserts the same size");

constexpr uint32_t FEW_WARPS = 8;
constexpr uint32_t FEW_THREADS = FEW_WARPS * WARP;
static_assert(FEW_THREADS == INPUT_THREADS, "a block makes rows as the kernels of input.cu do");
// Of a warp.
constexpr uint32_t RING_BYTES = 8192;

// One part of the sums of a tile; nothing, where the tile is behind the last.
struct Unit {
  const Product& product;
  uint32_t tile, part, begin, end;
};

__device__ __forceinline__ Unit unit_of(const Few& p, uint32_t work, uint32_t warp) {
  const Product(&products)[PRODUCTS] = p.linear.products;
  const Product& product = products[work >= products[2].first ? 2 : work >= products[1].first ? 1 : 0];
  const uint32_t parts = product.parts, part = warp % parts, chunks = chunks_of(product.weight.cols);
  const uint32_t tile = (work - product.first) * (FEW_WARPS / parts) + warp / parts;
  const bool there = tile * TILE_ROWS < product.weight.rows;
  return {product, tile, part, there ? chunks * part / parts : 0, there ? chunks * (part + 1) / parts : 0};
}

// Asks for the records of a warp, one after the other.
template <class Form>
struct Asking {
  const Few& p;
  uint32_t warp, lane, work, left;
  const uint8_t* record;

  static __device__ __forceinline__ Asking begin(const Few& p) {
    Asking asking = {p, threadIdx.x / WARP, threadIdx.x % WARP, blockIdx.x, 0, nullptr};
    asking.find();
    return asking;
  }

  __device__ __forceinline__ void find() {
    const Unit unit = unit_of(p, work, warp);
    left = unit.end - unit.begin;
    const Tiles& w = unit.product.weight;
    const size_t number = record_number(chunks_of(w.cols), unit.tile / BLOCK_TILES, unit.begin, unit.tile % BLOCK_TILES);
    record = w.records + number * Form::RECORD;
  }

  // One group of copies, of the next record or of nothing.
  __device__ __forceinline__ void next(uint8_t* to) {
    while (left == 0 && work + gridDim.x < p.works) {
      work += gridDim.x;
      find();
    }
    if (left > 0) {
#pragma unroll
      for (uint32_t at = 0; at < Form::RECORD; at += WARP * 16) {
        if (at + lane * 16 < Form::RECORD) copy_async(to + at + lane * 16, record + at + lane * 16);
      }
      record += BLOCK_TILES * Form::RECORD;
      left--;
    }
    commit_copies();
  }
};

// Rows in shared memory: in each chunk row after row; in a row, for each t the eight words that lanes of this t multiply.
struct FewRows {
  uint32_t* words;
  uint32_t rows, chunks;

  __device__ __forceinline__ uint32_t rest_at() const { return chunks * rows * (CHUNK / 2); }

  __device__ __forceinline__ void put(uint32_t row, uint32_t col, float value, bool fine) const {
    const uint32_t at = ((col / CHUNK * rows + row) * 4 + col % 8 / 2) * 8 + col % CHUNK / 8;
    const uint32_t bits = pack_bf16(value, 0.0f) & 0xffff;
    reinterpret_cast<uint16_t*>(words + at)[col % 2] = (uint16_t)bits;
    if (fine) {
      const float rest = value - __uint_as_float(bits << 16);
      reinterpret_cast<uint16_t*>(words + rest_at() + at)[col % 2] = (uint16_t)pack_bf16(rest, 0.0f);
    }
  }

  // As tiles have them (tiles.cuh).
  __device__ __forceinline__ void take(const uint8_t* tiles, uint32_t* to) const {
    for (uint32_t i = threadIdx.x; i < chunks * rows * 8; i += FEW_THREADS) {
      const uint32_t row = i % rows, group = i / rows % 8, chunk = i / rows / 8;
      const uint4 four = *reinterpret_cast<const uint4*>(tiles + chunk * ROW_CHUNK_BYTES + group * 128 + row * 16);
      uint32_t* at = to + (chunk * rows + row) * 32 + group;
      at[0] = four.x, at[8] = four.y, at[16] = four.z, at[24] = four.w;
    }
  }

  __device__ __forceinline__ void make(const Few& p) const {
    if (p.linear.rows) {
      take(p.linear.rows, words);
      if (p.fine) take(p.linear.rest, words + rest_at());
      return;
    }
    const bool fine = p.fine;
    for (uint32_t row = 0; row < rows; row++) {
      input_row(p.input, row, [this, row, fine](uint32_t col, float value) { put(row, col, value, fine); });
      const uint32_t col = p.input.cols + threadIdx.x;
      if (col < chunks * CHUNK) put(row, col, 0.0f, fine);
    }
  }

  // What a lane multiplies of a chunk: of its row g, or nothing.
  __device__ __forceinline__ void load(uint32_t (&out)[CHUNK / 8], const uint32_t* from, uint32_t chunk, uint32_t lane) const {
    uint4 low = {}, high = {};
    if (lane / 4 < rows) {
      const uint4* at = reinterpret_cast<const uint4*>(from + ((chunk * rows + lane / 4) * 4 + lane % 4) * 8);
      low = at[0], high = at[1];
    }
    out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
    out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
  }
};

template <class Form, bool FINE>
__device__ __forceinline__ void few_works(const Few& p, const FewRows& rows, Asking<Form>& asking, uint8_t* ring,
                                          float4 (&joined)[2][FEW_THREADS]) {
  constexpr uint32_t STAGES = RING_BYTES / Form::RECORD;
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  uint32_t stage = 0, side = 0;
#pragma unroll 1
  for (uint32_t work = blockIdx.x; work < p.works; work += gridDim.x) {
    const Unit unit = unit_of(p, work, warp);
    float sums[4] = {};
#pragma unroll 1
    for (uint32_t chunk = unit.begin; chunk < unit.end; chunk++) {
      wait_copies<STAGES - 1>();
      __syncwarp();
      uint8_t* record = ring + stage * Form::RECORD;
      const typename Form::Raw raw = Form::load(record, lane);
      uint32_t words[CHUNK / 8], rest[CHUNK / 8];
      rows.load(words, rows.words, chunk, lane);
      if (FINE) rows.load(rest, rows.words + rows.rest_at(), chunk, lane);
      // All lanes have theirs before another record takes its place.
      __syncwarp();
      asking.next(record);
#pragma unroll
      for (uint32_t s = 0; s < STEPS; s++) {
        const Fragment weight = Form::fragment(raw, s);
        bf16_pair::multiply(sums, weight.words, words[2 * s], words[2 * s + 1]);
        if (FINE) bf16_pair::multiply(sums, weight.words, rest[2 * s], rest[2 * s + 1]);
      }
      stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
    const uint32_t parts = unit.product.parts;
    if (parts > 1) {
      joined[side][threadIdx.x] = {sums[0], sums[1], sums[2], sums[3]};
      __syncthreads();
      if (unit.part == 0) {
        for (uint32_t part = 1; part < parts; part++) {
          const float4 more = joined[side][threadIdx.x + part * WARP];
          sums[0] += more.x, sums[1] += more.y, sums[2] += more.z, sums[3] += more.w;
        }
      }
      // Who is a work ahead writes to the other side.
      side ^= 1;
    }
    if (unit.part == 0) store_sums(p.linear, unit.product, unit.tile * TILE_ROWS, 0, lane, sums, p.sums);
  }
}

template <class Form>
__device__ __forceinline__ void linear_few(const Few& p) {
  constexpr uint32_t STAGES = RING_BYTES / Form::RECORD;
  DYNAMIC_SHARED(shared);
  __shared__ float4 joined[2][FEW_THREADS];
  uint8_t* ring = shared + threadIdx.x / WARP * RING_BYTES;
  Asking<Form> asking = Asking<Form>::begin(p);
#pragma unroll 1
  for (uint32_t i = 0; i < STAGES; i++) asking.next(ring + i * Form::RECORD);
  wait_for_previous();
  const FewRows rows = {reinterpret_cast<uint32_t*>(shared + FEW_WARPS * RING_BYTES), p.linear.num_rows,
                        chunks_of(p.linear.products[0].weight.cols)};
  rows.make(p);
  __syncthreads();
  if (p.fine) {
    few_works<Form, true>(p, rows, asking, ring, joined);
  } else {
    few_works<Form, false>(p, rows, asking, ring, joined);
  }
}

#define LINEAR(form) \
  KERNEL_EARLY(FEW_THREADS, 2, linear_few_##form, Few) { linear_few<tile_##form>(p); }
LINEAR(bf16)
LINEAR(f16)
LINEAR(q8_0)
LINEAR(q4_0)
LINEAR(q4_1)
LINEAR(q4_k)
LINEAR(f8)
LINEAR(wide)
#undef LINEAR
