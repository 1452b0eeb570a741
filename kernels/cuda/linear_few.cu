// Products of few rows, at the speed of memory: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]; sums[r, j] += the same
//   arguments, meaning and order of a sum: linear.cuh; every form of tiles.cuh; parts: a power of two, at most 8
// Launch:  grid = as many blocks as there are multiprocessors, or works if fewer; block = 512. A work is what a group of warps has:
//          `group` / parts tiles of 16 outs, all parts of their sums; `group` is the most parts of a product of the launch. With
//          a `gate` a work is one tile of both products (gate.cuh), and `group` twice their parts.
//          Shared memory: 128 KiB, and 128 bytes for each row and chunk, twice as much if `fine`.
// Bound:   memory, the stored bytes of weight once.
// Meaning: src/reference/mod.rs, `linear`, and of what becomes of rows on the way, `input_row`.
// Source:  none.
//
// A warp has one part of the sums of a tile. Its records come through a ring of its own, which is full before the kernel that writes
// the rows has ended, and begins with the next work before this one is joined. The second-level cache is asked, once, for the records
// behind a full ring, so that memory goes on while the ring waits for rows. Every block makes operands of all rows for itself, from
// what an `Input` has or from tiles: that saves a launch where rows are one or two, and costs reads of the second-level cache.
#include "gate.cuh"

struct Few {
  Linear linear;  // without `rows`, the input is made here; `split`, `partials` and `tickets` are not used
  Input input;
  float* sums;     // [num_rows, outs] of the first product, or none
  uint32_t works;
  uint32_t group;  // warps of a work
  uint32_t fine;  // each value of a row is two
  uint32_t unused;
};
static_assert(sizeof(Few) == 232, "src/cuda/params.rs asserts the same size");

// With more than one block on a multiprocessor, some have two of a launch and some none.
constexpr uint32_t FEW_WARPS = 16;
constexpr uint32_t FEW_THREADS = FEW_WARPS * WARP;
// Of a warp.
constexpr uint32_t RING_BYTES = 8192;

// One part of the sums of a tile; nothing, where there is no such work or the tile is behind the last.
struct Unit {
  const Product& product;
  bool there;
  uint32_t tile, part, begin, end;
};

// What the warp has of its group's work of this number.
__device__ __forceinline__ Unit unit_of(const Few& p, uint32_t work, uint32_t warp) {
  const Product(&products)[PRODUCTS] = p.linear.products;
  const uint32_t mine = warp % p.group, first = p.linear.gate ? 2 * mine / p.group : work >= products[1].first;
  const Product& product = products[work >= products[2].first ? 2 : first];
  const uint32_t parts = product.parts, part = warp % parts, chunks = chunks_of(product.weight.cols);
  const uint32_t tile = p.linear.gate ? work : (work - product.first) * (p.group / parts) + mine / parts;
  const bool there = work < p.works && tile * TILE_ROWS < product.weight.rows;
  return {product, there, tile, part, there ? chunks * part / parts : 0, there ? chunks * (part + 1) / parts : 0};
}

// Neighbouring works are different blocks', so that all have as much to do.
__device__ __forceinline__ uint32_t first_work(const Few& p, uint32_t warp) { return warp / p.group * gridDim.x + blockIdx.x; }
__device__ __forceinline__ uint32_t works_apart(const Few& p) { return FEW_WARPS / p.group * gridDim.x; }

// The records that a warp asks for, one after the other, of all its works.
template <class Form>
struct Asking {
  // From one record to the next of a work.
  static constexpr uint32_t APART = BLOCK_TILES * Form::RECORD;
  const Few& p;
  uint32_t work, left;
  const uint8_t* record;  // the lane's first word of it

  static __device__ __forceinline__ Asking begin(const Few& p) {
    Asking asking = {p, first_work(p, threadIdx.x / WARP), 0, nullptr};
    asking.find();
    return asking;
  }

  // The first record of this work, or of the next one that has any.
  __device__ __forceinline__ void find() {
    for (; work < p.works; work += works_apart(p)) {
      const Unit unit = unit_of(p, work, threadIdx.x / WARP);
      left = unit.end - unit.begin;
      if (left == 0) continue;
      const Tiles& w = unit.product.weight;
      const size_t number = record_number(chunks_of(w.cols), unit.tile / BLOCK_TILES, unit.begin, unit.tile % BLOCK_TILES);
      record = w.records + number * Form::RECORD + threadIdx.x % WARP * 16;
      return;
    }
  }

  __device__ __forceinline__ bool any() const { return work < p.works; }

  // So many were asked for.
  __device__ __forceinline__ void had(uint32_t count) {
    left -= count;
    if (left > 0 || !any()) return;
    work += works_apart(p);
    find();
  }

  // Copies of the next record, of which `had` is told behind that.
  __device__ __forceinline__ void next(uint8_t* to) {
#pragma unroll
    for (uint32_t at = 0; at < Form::RECORD; at += WARP * 16) {
      if (at + WARP * 16 > Form::RECORD && threadIdx.x % WARP * 16 >= Form::RECORD - at) continue;
      copy_async(to + at, record + at);
    }
    record += APART;
  }
};

// Rows in shared memory: in each chunk row after row; in a row, for each t the eight words that lanes of this t multiply.
template <bool HALF>
struct FewRows {
  uint32_t* words;
  uint32_t rows, chunks;

  __device__ __forceinline__ uint32_t rest_at() const { return chunks * rows * (CHUNK / 2); }

  __device__ __forceinline__ void put(uint32_t row, uint32_t col, float value, bool fine) const {
    const uint32_t at = ((col / CHUNK * rows + row) * 4 + col % 8 / 2) * 8 + col % CHUNK / 8;
    const uint32_t bits = row_bits(value, HALF);
    reinterpret_cast<uint16_t*>(words + at)[col % 2] = (uint16_t)bits;
    if (fine) {
      const uint32_t rest = row_bits(value - row_value(bits, HALF), HALF);
      reinterpret_cast<uint16_t*>(words + rest_at() + at)[col % 2] = (uint16_t)rest;
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
      input_row<FEW_THREADS>(p.input, row, [this, row, fine](uint32_t col, float value) { put(row, col, value, fine); });
      const uint32_t col = p.input.cols + threadIdx.x;
      if (col < chunks * CHUNK) put(row, col, 0.0f, fine);
    }
  }

  // Words from one chunk to the next.
  __device__ __forceinline__ uint32_t apart() const { return rows * (CHUNK / 2); }
};

// What a lane multiplies of a chunk, of which `from` has its eight words.
__device__ __forceinline__ void load_row(uint32_t (&out)[CHUNK / 8], const uint32_t* from) {
  const uint4 low = *reinterpret_cast<const uint4*>(from), high = *reinterpret_cast<const uint4*>(from + 4);
  out[0] = low.x, out[1] = low.y, out[2] = low.z, out[3] = low.w;
  out[4] = high.x, out[5] = high.y, out[6] = high.z, out[7] = high.w;
}

// A warp's way through its ring.
template <class Form, bool FINE>
struct FewSums {
  static constexpr uint32_t STAGES = RING_BYTES / Form::RECORD, END = STAGES * Form::RECORD;
  const FewRows<IS_HALF<Form>>& rows;
  uint8_t* const ring;
  const uint32_t lane;
  uint32_t at;  // of the record that is next

  // Adds COUNT chunks, the first of which `row` is at, and asks for as many that come behind the ring, if there are any: two kinds, as
  // what asks for nothing has no room for the instructions of what does.
  template <uint32_t COUNT, bool ASK>
  __device__ __forceinline__ void add(float (&sums)[4], const uint32_t*& row, Asking<Form>& asking) {
    typename Form::Raw raw[COUNT];
    uint32_t words[COUNT][CHUNK / 8], rest[COUNT][CHUNK / 8], places[COUNT];
    wait_copies<STAGES - COUNT>();
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) {
      raw[i] = Form::load(ring + at, lane);
      load_row(words[i], row);
      if (FINE) load_row(rest[i], row + rows.rest_at());
      places[i] = at;
      at = at + Form::RECORD == END ? 0 : at + Form::RECORD;
      row += rows.apart();
    }
    // All lanes have theirs before other records take their places.
    __syncwarp();
#pragma unroll
    for (uint32_t i = 0; i < COUNT; i++) {
      if (ASK) asking.next(ring + places[i] + lane * 16);
      commit_copies();
    }
#pragma unroll
    for (uint32_t s = 0; s < COUNT * STEPS; s++) {
      const Fragment weight = Form::fragment(raw[s / STEPS], s % STEPS);
      const uint32_t(&mine)[CHUNK / 8] = words[s / STEPS], (&left)[CHUNK / 8] = rest[s / STEPS];
      Form::Pair::multiply(sums, weight.words, mine[2 * (s % STEPS)], mine[2 * (s % STEPS) + 1]);
      if (FINE) Form::Pair::multiply(sums, weight.words, left[2 * (s % STEPS)], left[2 * (s % STEPS) + 1]);
    }
  }

  template <bool ASK>
  __device__ __forceinline__ void add(float (&sums)[4], uint32_t chunks, const uint32_t*& row, Asking<Form>& asking) {
#pragma unroll 1
    for (; chunks > 1; chunks -= 2) add<2, ASK>(sums, row, asking);
    if (chunks > 0) add<1, ASK>(sums, row, asking);
  }
};

// Adds the sums of parts `first` to `end` of a work to these.
__device__ __forceinline__ void add_parts(float (&sums)[4], const float4* joined, uint32_t first, uint32_t end) {
  for (uint32_t part = first; part < end; part++) {
    const float4 more = joined[part * WARP];
    sums[0] += more.x, sums[1] += more.y, sums[2] += more.z, sums[3] += more.w;
  }
}

template <class Form, bool FINE>
__device__ __forceinline__ void few_works(const Few& p, const FewRows<IS_HALF<Form>>& rows, Asking<Form>& asking, uint8_t* ring,
                                          float4 (&joined)[2][FEW_THREADS]) {
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  FewSums<Form, FINE> way = {rows, ring, lane, 0};
  uint32_t side = 0;
#pragma unroll 1
  for (uint32_t before = 0; before < p.works; before += works_apart(p)) {
    const Unit unit = unit_of(p, before + first_work(p, warp), warp);
    float sums[4] = {};
    // Lanes that have no row take the last one: what comes of it goes nowhere.
    const uint32_t* row = rows.words + (unit.begin * rows.rows + min(lane / 4, rows.rows - 1)) * (CHUNK / 2) + lane % 4 * 8;
#pragma unroll 1
    for (uint32_t left = unit.end - unit.begin; left > 0;) {
      const bool ask = asking.any();
      const uint32_t count = ask ? min(left, asking.left) : left;
      if (ask) {
        way.template add<true>(sums, count, row, asking);
        asking.had(count);
      } else {
        way.template add<false>(sums, count, row, asking);
      }
      left -= count;
    }
    const float4* mine = &joined[side][threadIdx.x];
    if (p.group > 1) {
      joined[side][threadIdx.x] = {sums[0], sums[1], sums[2], sums[3]};
      // Who is a work ahead writes to the other side.
      side ^= 1;
      __syncthreads();
    }
    if (unit.part > 0 || !unit.there) continue;
    const uint32_t parts = unit.product.parts;
    if (!p.linear.gate) {
      add_parts(sums, mine, 1, parts);
      store_sums(p.linear, unit.product, unit.tile * TILE_ROWS, 0, lane, sums, p.sums);
    } else if (warp % p.group == 0) {
      add_parts(sums, mine, 1, parts);
      const float4 first = mine[parts * WARP];
      float up[4] = {first.x, first.y, first.z, first.w};
      add_parts(up, mine, parts + 1, 2 * parts);
      store_gated(p.linear, gated_at(p.linear, {0, ROW_CHUNK_BYTES}, unit.tile * TILE_ROWS), 0, lane, sums, up);
    }
  }
}

// By one thread: asks the second-level cache for what rows are normalised by, which no kernel writes. Each block asks for some of it.
__device__ __forceinline__ void ask_for_norm(const Few& p) {
  constexpr uint32_t LINE = 128 / sizeof(float);
  if (p.linear.rows || p.input.kind != 1) return;
  for (uint32_t i = blockIdx.x * LINE; i < p.input.cols; i += gridDim.x * LINE) ask_for(p.input.other + i);
}

template <class Form>
__device__ __forceinline__ void linear_few(const Few& p) {
  constexpr uint32_t STAGES = RING_BYTES / Form::RECORD;
  DYNAMIC_SHARED(shared);
  __shared__ float4 joined[2][FEW_THREADS];
  uint8_t* ring = shared + threadIdx.x / WARP * RING_BYTES;
  // In front of all that the ring asks for.
  if (threadIdx.x == 0) ask_for_norm(p);
  Asking<Form> asking = Asking<Form>::begin(p);
#pragma unroll 1
  for (uint32_t i = 0; i < STAGES; i++) {
    if (asking.any()) {
      asking.next(ring + i * Form::RECORD + threadIdx.x % WARP * 16);
      asking.had(1);
    }
    commit_copies();
  }
  wait_for_previous();
  const FewRows<IS_HALF<Form>> rows = {reinterpret_cast<uint32_t*>(shared + FEW_WARPS * RING_BYTES), p.linear.num_rows,
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
