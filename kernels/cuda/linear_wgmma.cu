// Products on Hopper's tensor cores: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]
//   arguments, meaning and order of a sum: linear.cuh; every form of tiles.cuh
// Launch:  `linear_wgmma_<form>_<ROWS>`, ROWS 8, 32, 64, 128 or 256 (256 without `rest`, and with all parts of a sum in one
//          work). Up to 64: block = 160, 64 outs; above: block = 384, 128 outs. Grid as linear.cuh has it. Shared memory: two
//          stages and 16 bytes, or more; a stage is 128 bytes, a chunk of the weights and one of the rows, and of their rest where
//          there is one.
// Bound:   memory up to some hundred rows (the stored bytes of weight once for ROWS rows), then arithmetic; above 64 rows
//          what the second-level cache gives, unless ROWS is 256.
// Meaning: src/reference/mod.rs, `linear`.
// Source:  PTX ISA 9.0, asynchronous warpgroup-level matrix multiply, and bulk copies. For sm_90a alone.
//
// One thread asks for chunks by bulk copies, into a ring of stages; warpgroups of 64 outs make bf16 of the codes, in registers,
// and multiply. While a chunk is multiplied the next one is made. Weights are no kernel's work: they are asked for before the
// kernel before this one has ended. Whatever else it may have read or written is touched only after rows have come, which are asked
// for when it has ended.
#include "hopper.cuh"
#include "linear.cuh"

#ifdef WITH_WGMMA

// Rows up to which there may be a rest: with more, two of them leave room for no stages. Up to as many a thread's registers hold
// two sets of sums.
constexpr uint32_t FINE_ROWS = 128, HELD_ROWS = 128;

// Where the next chunk lies, in bytes, for who fills the ring and who empties it.
struct RingPlace {
  uint32_t at;
  uint32_t parity;
};

template <class Form, uint32_t ROWS, uint32_t GROUPS>
struct Ring {
  static constexpr uint32_t WEIGHT_BYTES = BLOCK_TILES * Form::RECORD, ROW_BYTES = ROWS / ROW_TILE * ROW_CHUNK_BYTES;
  static constexpr uint32_t CONSUMERS = GROUPS * WARPGROUP;
  // Of a stage, before its weights: the barriers.
  static constexpr uint32_t HEAD_BYTES = 128;
  // Behind all stages: a word for `join_parts`.
  static constexpr uint32_t LAST_BYTES = 16;

  uint8_t* start;
  uint32_t stage_bytes;
  uint32_t bytes;

  // By all threads of the block.
  static __device__ __forceinline__ Ring make(uint8_t* shared, uint32_t operands) {
    const uint32_t stage_bytes = HEAD_BYTES + GROUPS * WEIGHT_BYTES + operands * ROW_BYTES;
    const Ring ring = {shared, stage_bytes, (shared_bytes() - LAST_BYTES) / stage_bytes * stage_bytes};
    if (threadIdx.x == 0) {
      for (uint32_t at = 0; at < ring.bytes; at += stage_bytes) init(ring.full(at), 1), init(ring.empty(at), CONSUMERS / WARP);
      fence_mbarriers();
    }
    __syncthreads();
    return ring;
  }

  __device__ __forceinline__ void next(RingPlace& place) const {
    place.at += stage_bytes;
    if (place.at < bytes) return;
    place = {0, place.parity ^ 1};
  }

  // The bytes of the stage are there.
  __device__ __forceinline__ Mbarrier& full(uint32_t at) const { return *reinterpret_cast<Mbarrier*>(start + at); }
  // Every warp that multiplies is done with them.
  __device__ __forceinline__ Mbarrier& empty(uint32_t at) const { return *reinterpret_cast<Mbarrier*>(start + at + 8); }
  __device__ __forceinline__ uint8_t* weights(uint32_t at, uint32_t group) const {
    return start + at + HEAD_BYTES + group * WEIGHT_BYTES;
  }
  __device__ __forceinline__ uint8_t* rows(uint32_t at, uint32_t operand) const {
    return start + at + HEAD_BYTES + GROUPS * WEIGHT_BYTES + operand * ROW_BYTES;
  }
  __device__ __forceinline__ uint32_t& last() const { return *reinterpret_cast<uint32_t*>(start + bytes); }
};

// Fills the ring, by one thread: two copies a chunk and a warpgroup, as few as there can be.
template <class Form, uint32_t ROWS, uint32_t GROUPS>
__device__ __forceinline__ void fill(const Linear& p, const Work& work, const Ring<Form, ROWS, GROUPS>& ring) {
  constexpr uint32_t WEIGHT_BYTES = Ring<Form, ROWS, GROUPS>::WEIGHT_BYTES;
  const uint32_t first = work.block * GROUPS, tile = work.group * (ROWS / ROW_TILE);
  const uint32_t groups = min(GROUPS, (work.product.weight.rows + BLOCK_ROWS - 1) / BLOCK_ROWS - first);
  const uint32_t row_bytes = min(ROWS / ROW_TILE, (p.num_rows + ROW_TILE - 1) / ROW_TILE - tile) * ROW_CHUNK_BYTES;
  const RowPlace rows = place_of_rows(p.num_rows, work.chunks, tile);
  const auto ask_weights = [&](uint32_t chunk, uint32_t at) {
    Mbarrier& full = ring.full(at);
    arrive_expecting(full, groups * WEIGHT_BYTES + (p.rest ? 2 : 1) * row_bytes);
    for (uint32_t g = 0; g < groups; g++) {
      const size_t record = record_number(work.chunks, first + g, chunk, 0);
      copy_bulk(ring.weights(at, g), work.product.weight.records + record * Form::RECORD, WEIGHT_BYTES, full);
    }
  };
  const auto ask_rows = [&](uint32_t chunk, uint32_t at) {
    const size_t from = rows.start + (size_t)chunk * rows.apart;
    copy_bulk(ring.rows(at, 0), p.rows + from, row_bytes, ring.full(at));
    if (p.rest) copy_bulk(ring.rows(at, 1), p.rest + from, row_bytes, ring.full(at));
  };
  const uint32_t begin = work.begin(work.part), end = work.begin(work.end);
  uint32_t early = begin;
  for (uint32_t at = 0; at < ring.bytes && early < end; at += ring.stage_bytes) ask_weights(early++, at);
  wait_for_previous();
  RingPlace place = {0, 0};
  for (uint32_t chunk = begin; chunk < early; chunk++) ask_rows(chunk, place.at), ring.next(place);
  for (uint32_t chunk = early; chunk < end; chunk++) {
    // The stage's first phase of emptiness ends when what was filled early is used up.
    wait(ring.empty(place.at), place.parity ^ 1);
    ask_weights(chunk, place.at);
    ask_rows(chunk, place.at);
    ring.next(place);
  }
}

// A warpgroup's way through the ring.
template <class Form, uint32_t ROWS, uint32_t GROUPS>
struct Consumer {
  const Ring<Form, ROWS, GROUPS>& ring;
  const bool fine;
  const uint32_t group, warp, lane;
  RingPlace place;
  // Where the last two chunks lie that are multiplied.
  uint32_t older, newer;

  // Waits for the next chunk and makes this lane's share of its weights.
  __device__ __forceinline__ void make(Fragment (&weights)[STEPS]) const {
    wait(ring.full(place.at), place.parity);
    const typename Form::Raw raw = Form::load(ring.weights(place.at, group) + warp * Form::RECORD, lane);
#pragma unroll
    for (uint32_t s = 0; s < STEPS; s++) weights[s] = Form::fragment(raw, s);
  }

  // Begins the products of the chunk that was made.
  __device__ __forceinline__ void multiply(float (&sums)[ROWS / 2], const Fragment (&weights)[STEPS], bool add) {
    constexpr uint32_t NEXT_K = ROW_CHUNK_BYTES / 8, STEP_BYTES = 2 * NEXT_K;
    const Descriptor rows = describe(ring.rows(place.at, 0), NEXT_K, ROW_CHUNK_BYTES);
    // Two ways from fence to group: the compiler wants no branch between them.
    if (ROWS <= FINE_ROWS && fine) {
      const Descriptor rest = describe(ring.rows(place.at, 1), NEXT_K, ROW_CHUNK_BYTES);
      fence_products();
#pragma unroll
      for (uint32_t s = 0; s < STEPS; s++) {
        begin_product<ROWS>(sums, weights[s].words, rows.further(s * STEP_BYTES), s > 0 || add);
        begin_product<ROWS>(sums, weights[s].words, rest.further(s * STEP_BYTES), true);
      }
      commit_products();
    } else {
      fence_products();
#pragma unroll
      for (uint32_t s = 0; s < STEPS; s++) {
        begin_product<ROWS>(sums, weights[s].words, rows.further(s * STEP_BYTES), s > 0 || add);
      }
      commit_products();
    }
    older = newer;
    newer = place.at;
    ring.next(place);
  }

  // Gives a chunk back.
  __device__ __forceinline__ void free(uint32_t at) const {
    __syncwarp();
    if (lane == 0) arrive(ring.empty(at));
  }

  // The sums of a part of so many chunks, one or more.
  __device__ __forceinline__ void sum_part(float (&sums)[ROWS / 2], uint32_t chunks) {
    Fragment even[STEPS], odd[STEPS];
    make(even);
    multiply(sums, even, false);
    while (--chunks > 0) {
      make(odd);
      multiply(sums, odd, true);
      wait_products<1>();
      free(older);
      if (--chunks == 0) break;
      make(even);
      multiply(sums, even, true);
      wait_products<1>();
      free(older);
    }
    wait_products<0>();
    free(newer);
  }
};

template <bool FIRST, class A, class B>
__device__ __forceinline__ auto& either(A& a, B& b) {
  if constexpr (FIRST) return a;
  else return b;
}

// Adds what `store_sums` wrote before.
__device__ __forceinline__ void add_stored(const Linear& p, const Product& product, uint32_t first_out, uint32_t first_row,
                                           uint32_t lane, float* sums) {
  const uint32_t outs = product.weight.rows;
#pragma unroll
  for (uint32_t i = 0; i < 4; i++) {
    const uint32_t out = first_out + lane / 4 + i / 2 * 8, row = first_row + lane % 4 * 2 + i % 2;
    if (out < outs && row < p.num_rows) sums[i] = product.out[(size_t)row * outs + out] + sums[i];
  }
}

// Where the sums of a warp go: sixteen outs of ROWS rows, of which there may be fewer.
template <uint32_t ROWS>
struct WarpOuts {
  static constexpr uint32_t FRAGMENTS = ROWS / ROW_TILE;
  // Fragments that are asked for at once.
  static constexpr uint32_t AHEAD = 8;

  const Linear& p;
  const Product& product;
  uint32_t out, row, lane;

  // Fragments all of whose rows and outs are there.
  __device__ __forceinline__ uint32_t whole() const {
    if (out + TILE_ROWS > product.weight.rows || row > p.num_rows) return 0;
    return min(FRAGMENTS, (p.num_rows - row) / ROW_TILE);
  }

  // Those are kept until the next part is summed in the place of their rows, in words of four, where these are aligned.
  __device__ __forceinline__ uint32_t num_kept() const { return product.weight.rows % 4 == 0 ? whole() : 0; }
  __device__ __forceinline__ float4* kept(uint32_t fragment) const {
    const size_t outs = product.weight.rows;
    return reinterpret_cast<float4*>(product.out + (row + fragment * ROW_TILE + lane / 4) * outs + out) + lane % 4;
  }

  __device__ __forceinline__ void keep(const float (&sums)[ROWS / 2]) const {
    const uint32_t num = num_kept();
    Product unfinished = product;
    unfinished.bias = nullptr;
#pragma unroll
    for (uint32_t n = 0; n < FRAGMENTS; n++) {
      const float* mine = &sums[4 * n];
      if (n < num) {
        *kept(n) = {mine[0], mine[1], mine[2], mine[3]};
      } else {
        store_sums(p, unfinished, out, row + n * ROW_TILE, lane, mine);
      }
    }
  }

  // Adds what was kept.
  __device__ __forceinline__ void add_kept(float (&sums)[ROWS / 2]) const {
    const uint32_t num = num_kept();
#pragma unroll
    for (uint32_t first = 0; first < FRAGMENTS; first += AHEAD) {
      // No more is read ahead than registers hold.
      asm volatile("" ::: "memory");
      float4 words[AHEAD];
#pragma unroll
      for (uint32_t i = 0; i < AHEAD; i++) {
        if (first + i < num) words[i] = *kept(first + i);
      }
#pragma unroll
      for (uint32_t i = 0; i < AHEAD; i++) {
        float* mine = &sums[4 * (first + i)];
        if (first + i < num) {
          mine[0] = words[i].x + mine[0], mine[1] = words[i].y + mine[1];
          mine[2] = words[i].z + mine[2], mine[3] = words[i].w + mine[3];
        } else {
          add_stored(p, product, out, row + (first + i) * ROW_TILE, lane, mine);
        }
      }
    }
    // Other lanes are done with what this one writes next.
    __syncwarp();
  }

  // Writes what all parts come to.
  __device__ __forceinline__ void store(float (&sums)[ROWS / 2]) const {
    const uint32_t num = whole();
    const size_t outs = product.weight.rows;
    if (product.bias && num > 0) {
      const float low = product.bias[out + lane / 4], high = product.bias[out + lane / 4 + 8];
#pragma unroll
      for (uint32_t i = 0; i < ROWS / 2; i++) sums[i] = i / 4 < num ? sums[i] + (i / 2 % 2 ? high : low) : sums[i];
    }
    float* at = product.out + (row + lane % 4 * 2) * outs + out + lane / 4;
#pragma unroll
    for (uint32_t n = 0; n < FRAGMENTS; n++, at += ROW_TILE * outs) {
      const float* mine = &sums[4 * n];
      if (n < num) {
        at[0] = mine[0], at[outs] = mine[1], at[8] = mine[2], at[outs + 8] = mine[3];
      } else {
        store_sums(p, product, out, row + n * ROW_TILE, lane, mine);
      }
    }
  }
};

// Sums the parts of a work and writes what they come to, by the warpgroups that multiply.
template <class Form, uint32_t ROWS, uint32_t GROUPS>
__device__ __forceinline__ void empty(const Linear& p, const Work& work, const Ring<Form, ROWS, GROUPS>& ring) {
  const uint32_t thread = threadIdx.x, lane = thread % WARP;
  Consumer<Form, ROWS, GROUPS> consumer = {
      ring, p.rest != nullptr, thread / WARPGROUP, thread % WARPGROUP / WARP, lane, {0, 0}, 0, 0};
  const uint32_t out = (work.block * GROUPS + consumer.group) * BLOCK_ROWS + consumer.warp * TILE_ROWS;
  const WarpOuts<ROWS> outs = {p, work.product, out, work.group * ROWS, lane};
  if (work.chunks == 0) {
    wait_for_previous();
    float none[ROWS / 2] = {};
    outs.store(none);
    return;
  }
  // Registers hold both the sums of a part and those of the parts before, or else the place of `out` does.
  constexpr bool HELD = ROWS <= HELD_ROWS;
  float sums[ROWS / 2], total[HELD ? ROWS / 2 : 4];
  for (uint32_t part = work.part; part < work.end; part++) {
    consumer.sum_part(sums, work.begin(part + 1) - work.begin(part));
    if constexpr (HELD) {
#pragma unroll
      for (uint32_t i = 0; i < ROWS / 2; i++) total[i] = part == work.part ? sums[i] : total[i] + sums[i];
    } else {
      if (part > work.part) outs.add_kept(sums);
      if (part + 1 < work.end) outs.keep(sums);
    }
  }
  float(&all)[ROWS / 2] = either<HELD>(total, sums);
  if constexpr (HELD) {
    constexpr uint32_t CONSUMERS = GROUPS * WARPGROUP;
    if (!join_parts<CONSUMERS>(p, work, thread, all, ring.last(), [] { meet_first<CONSUMERS>(); })) return;
  }
  outs.store(all);
}

template <class Form, uint32_t ROWS, uint32_t GROUPS>
__device__ __forceinline__ void linear_wgmma(const Linear& p) {
  DYNAMIC_SHARED(shared);
  const Work work = work_of(p);
  const auto ring = Ring<Form, ROWS, GROUPS>::make(shared, p.rest ? 2 : 1);
  constexpr uint32_t CONSUMERS = GROUPS * WARPGROUP;
  if (threadIdx.x < CONSUMERS) {
    if (GROUPS > 1) more_registers<224>();
    empty(p, work, ring);
  } else {
    if (GROUPS > 1) fewer_registers<56>();
    if (threadIdx.x == CONSUMERS) fill(p, work, ring);
  }
}

#define LINEAR(form)                                                                                        \
  KERNEL_EARLY(160, 3, linear_wgmma_##form##_8, Linear) { linear_wgmma<tile_##form, 8, 1>(p); }     \
  KERNEL_EARLY(160, 2, linear_wgmma_##form##_32, Linear) { linear_wgmma<tile_##form, 32, 1>(p); }   \
  KERNEL_EARLY(160, 2, linear_wgmma_##form##_64, Linear) { linear_wgmma<tile_##form, 64, 1>(p); }   \
  KERNEL_EARLY(384, 1, linear_wgmma_##form##_128, Linear) { linear_wgmma<tile_##form, 128, 2>(p); } \
  KERNEL_EARLY(384, 1, linear_wgmma_##form##_256, Linear) { linear_wgmma<tile_##form, 256, 2>(p); }
LINEAR(f16)
LINEAR(bf16)
LINEAR(q8_0)
LINEAR(q4_0)
LINEAR(q4_1)
LINEAR(q4_k)
LINEAR(wide)
LINEAR(f8)
#undef LINEAR

#endif
