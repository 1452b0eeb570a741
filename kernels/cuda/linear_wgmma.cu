// Products on Hopper's tensor cores: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]
//   arguments, meaning and order of a sum: linear.cuh; every form of tiles.cuh
// Launch:  `linear_wgmma_<form>_<ROWS>`, ROWS 8, 32, 64, 128 or 256 (256 without `rest`). Up to 64: block = 160, 64 outs; above:
//          block = 384, 128 outs. Grid: groups of rows by works, as linear.cuh has it; or fewer blocks in x, of 256 rows no others where
//          sums are whole, and then each with a slot of `partials`. Shared memory: two stages and 16 bytes, or more; a stage is 128
//          bytes, a chunk of the weights and one of the rows, and of their rest where there is one. With a `gate`, above 8 rows, whole sums and no rest: works are half as many outs, of both products (gate.cuh), and up to 64 rows
//          128 bytes more for each row, above them 32 KiB.
// Bound:   memory up to some hundred rows (the stored bytes of weight once for ROWS rows), then arithmetic; above 64 rows
//          what the second-level cache gives, unless ROWS is 256.
// Meaning: src/reference/mod.rs, `linear`.
// Source:  PTX ISA 9.0, asynchronous warpgroup-level matrix multiply, and bulk copies. For sm_90a alone.
//
// One thread asks for chunks by bulk copies, into a ring of stages; warpgroups of 64 outs make operands of the codes, in registers,
// and multiply. While a chunk is multiplied the next one is made. Weights are no kernel's work: they are asked for before the
// kernel before this one has ended. Whatever else it may have read or written is touched only after rows have come, which are asked
// for when it has ended.
#include "gate.cuh"
#include "hopper.cuh"

#ifdef WITH_WGMMA

// Rows up to which there may be a rest: with more, two of them leave room for no stages. Up to as many a thread's registers hold
// two sets of sums.
constexpr uint32_t FINE_ROWS = 128, HELD_ROWS = 128;

// Of a gate, rows whose sums are in shared memory at a time, and the bytes of those of both products, twice; of one warpgroup half of all
// its sums.
constexpr uint32_t GATE_ROWS = 32;
template <uint32_t ROWS, uint32_t GROUPS>
constexpr uint32_t GATE_BYTES = (GROUPS > 1 ? 4 * GATE_ROWS : ROWS / 2) * BLOCK_ROWS * 4;

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

  // By all threads of the block; with so many bytes behind all.
  static __device__ __forceinline__ Ring make(uint8_t* shared, uint32_t operands, uint32_t behind) {
    const uint32_t stage_bytes = HEAD_BYTES + GROUPS * WEIGHT_BYTES + operands * ROW_BYTES;
    const Ring ring = {shared, stage_bytes, (shared_bytes() - LAST_BYTES - behind) / stage_bytes * stage_bytes};
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
  __device__ __forceinline__ float* behind() const { return reinterpret_cast<float*>(start + bytes + LAST_BYTES); }
};

// Asks for the chunks of a work, `place` being that of the first, by one thread; in as few copies as there can be. Of the block's first
// work weights come before the kernel before has ended.
template <class Form, uint32_t ROWS, uint32_t GROUPS>
__device__ __forceinline__ void ask(const Linear& p, const Work& work, const Ring<Form, ROWS, GROUPS>& ring, RingPlace& place,
                                    bool first_work) {
  constexpr uint32_t WEIGHT_BYTES = Ring<Form, ROWS, GROUPS>::WEIGHT_BYTES;
  // A copy has a block of outs; of a gate one of each product, or, where there is room for one, half of each.
  const bool gates = p.gate, halves = GROUPS == 1 && gates;
  const uint32_t first = halves ? work.block / 2 : gates ? work.block : work.block * GROUPS, begin_tile = halves ? work.block % 2 * 2 : 0;
  const uint32_t copies = gates ? 2 : min(GROUPS, (work.product.weight.rows + BLOCK_ROWS - 1) / BLOCK_ROWS - first);
  const uint32_t bytes = halves ? WEIGHT_BYTES / 2 : WEIGHT_BYTES, tile = work.group * (ROWS / ROW_TILE);
  const uint32_t row_bytes = min(ROWS / ROW_TILE, (p.num_rows + ROW_TILE - 1) / ROW_TILE - tile) * ROW_CHUNK_BYTES;
  const RowPlace rows = place_of_rows(p.num_rows, work.chunks, tile);
  const auto ask_weights = [&](uint32_t chunk, uint32_t at) {
    Mbarrier& full = ring.full(at);
    arrive_expecting(full, copies * bytes + (p.rest ? 2 : 1) * row_bytes);
    for (uint32_t c = 0; c < copies; c++) {
      const Product& product = gates ? p.products[c] : work.product;
      const size_t record = record_number(work.chunks, gates ? first : first + c, chunk, begin_tile);
      copy_bulk(ring.weights(at, 0) + c * bytes, product.weight.records + record * Form::RECORD, bytes, full);
    }
  };
  const auto ask_rows = [&](uint32_t chunk, uint32_t at) {
    const size_t from = rows.start + (size_t)chunk * rows.apart;
    copy_bulk(ring.rows(at, 0), p.rows + from, row_bytes, ring.full(at));
    if (p.rest) copy_bulk(ring.rows(at, 1), p.rest + from, row_bytes, ring.full(at));
  };
  uint32_t chunk = work.begin(work.part);
  const uint32_t end = work.begin(work.end);
  if (first_work) {
    uint32_t early = chunk;
    for (uint32_t at = 0; at < ring.bytes && early < end; at += ring.stage_bytes) ask_weights(early++, at);
    wait_for_previous();
    for (; chunk < early; chunk++) ask_rows(chunk, place.at), ring.next(place);
  }
  for (; chunk < end; chunk++) {
    // Nobody has used a stage in the phase before its first.
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
        begin_product<ROWS, typename Form::Pair>(sums, weights[s].words, rows.further(s * STEP_BYTES), s > 0 || add);
        begin_product<ROWS, typename Form::Pair>(sums, weights[s].words, rest.further(s * STEP_BYTES), true);
      }
      commit_products();
    } else {
      fence_products();
#pragma unroll
      for (uint32_t s = 0; s < STEPS; s++) {
        begin_product<ROWS, typename Form::Pair>(sums, weights[s].words, rows.further(s * STEP_BYTES), s > 0 || add);
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

// Writes what all parts come to: the sums of a warp, of sixteen outs and ROWS rows, of which there may be fewer.
template <uint32_t ROWS>
__device__ __forceinline__ void store_all(const Linear& p, const Product& product, uint32_t first_out, uint32_t first_row, uint32_t lane,
                                          float (&sums)[ROWS / 2]) {
  const size_t outs = product.weight.rows;
  const bool whole = first_out + TILE_ROWS <= outs && first_row + ROWS <= p.num_rows;
  const uint32_t out = first_out + lane / 4;
  if (!whole) {
#pragma unroll
    for (uint32_t n = 0; n < ROWS / ROW_TILE; n++) {
      store_sums(p, product, first_out, first_row + n * ROW_TILE, lane, &sums[4 * n]);
    }
    return;
  }
  if (product.bias) {
    const float low = product.bias[out], high = product.bias[out + 8];
#pragma unroll
    for (uint32_t i = 0; i < ROWS / 2; i++) sums[i] += i / 2 % 2 ? high : low;
  }
  float* at = product.out + (first_row + lane % 4 * 2) * outs + out;
#pragma unroll
  for (uint32_t n = 0; n < ROWS / ROW_TILE; n++, at += ROW_TILE * outs) {
    const float* mine = &sums[4 * n];
    at[0] = mine[0], at[outs] = mine[1], at[8] = mine[2], at[outs + 8] = mine[3];
  }
}

// Where the sums of parts stay that registers have no room for: a slot of each block, which the second-level cache keeps. A thread
// reads what itself has written.
template <uint32_t ROWS, uint32_t THREADS>
struct Kept {
  static constexpr uint32_t WORDS = ROWS / ROW_TILE;
  // Words that are asked for at once.
  static constexpr uint32_t AHEAD = 8;
  float4* words;

  static __device__ __forceinline__ Kept of(const Linear& p, uint32_t thread) {
    return {reinterpret_cast<float4*>(p.partials) + (size_t)blockIdx.x * WORDS * THREADS + thread};
  }

  __device__ __forceinline__ void put(const float (&sums)[ROWS / 2]) const {
#pragma unroll
    for (uint32_t n = 0; n < WORDS; n++) words[n * THREADS] = {sums[4 * n], sums[4 * n + 1], sums[4 * n + 2], sums[4 * n + 3]};
  }

  __device__ __forceinline__ void add(float (&sums)[ROWS / 2]) const {
#pragma unroll
    for (uint32_t first = 0; first < WORDS; first += AHEAD) {
      // No more is read ahead than registers hold.
      asm volatile("" ::: "memory");
      float4 before[AHEAD];
#pragma unroll
      for (uint32_t i = 0; i < AHEAD; i++) before[i] = __ldcg(words + (first + i) * THREADS);
#pragma unroll
      for (uint32_t i = 0; i < AHEAD; i++) {
        float* mine = &sums[4 * (first + i)];
        mine[0] = before[i].x + mine[0], mine[1] = before[i].y + mine[1];
        mine[2] = before[i].z + mine[2], mine[3] = before[i].w + mine[3];
      }
    }
  }
};

// Where a sum lies that is on its way to a gate, in words from its product's first: lanes that write have an out g and a row 2 t, those
// that read a row g and the outs 2 t and 2 t + 1, and in neither case two the same bank.
__device__ __forceinline__ uint32_t gate_place(uint32_t row, uint32_t out) {
  return row * BLOCK_ROWS + (out ^ (row / 2 ^ row % 2 * 2) % 4 * 8);
}

// Writes what the next product takes of the sums of a work, by two warpgroups, of which the first has those of the gate and the second
// those of what it gates. They meet in shared memory, where a warp finds a tile's words in their order.
template <class Form, uint32_t ROWS>
__device__ __forceinline__ void store_gate(const Linear& p, const Work& work, const Consumer<Form, ROWS, 2>& consumer,
                                           const float (&sums)[ROWS / 2]) {
  constexpr uint32_t ROUNDS = ROWS / GATE_ROWS, TILES = GATE_ROWS / ROW_TILE, GROUPS_HAD = 4, WORDS = GATE_ROWS * BLOCK_ROWS;
  static_assert(ROUNDS % 2 == 0, "a work begins on the side that the one before has left");
  static_assert(2 * WARPGROUP / WARP * GROUPS_HAD == TILES * (CHUNK / 8), "every warp has as many groups of eight columns");
  const uint32_t lane = consumer.lane, warp = threadIdx.x / WARP, tile = warp % TILES, first = warp / TILES * GROUPS_HAD;
  const uint32_t first_tile = work.group * (ROWS / ROW_TILE), tiles = (p.num_rows + ROW_TILE - 1) / ROW_TILE - first_tile;
  const RowPlace place = place_of_rows(p.num_rows, chunks_of(work.product.weight.rows), first_tile);
  uint8_t* to = p.gated + place.start + (size_t)work.block * place.apart + tile * ROW_CHUNK_BYTES + first * GATE_GROUP_BYTES + lane * 4;
  float* side = consumer.ring.behind();
#pragma unroll 1
  for (uint32_t round = 0; round < ROUNDS; round++) {
    float* mine = side + consumer.group * WORDS;
#pragma unroll
    for (uint32_t r = 0; r < ROUNDS; r++) {
      // Registers have no numbers that are known only then.
      if (r != round) continue;
#pragma unroll
      for (uint32_t i = 0; i < GATE_ROWS / 2; i++) {
        const uint32_t row = i / 4 * ROW_TILE + lane % 4 * 2 + i % 2, out = consumer.warp * TILE_ROWS + lane / 4 + i / 2 % 2 * 8;
        mine[gate_place(row, out)] = sums[r * (GATE_ROWS / 2) + i];
      }
    }
    // Who is a round ahead writes to the other side.
    meet_first<2 * WARPGROUP>();
    if (round * TILES + tile < tiles) {
      float2 gate[GROUPS_HAD], up[GROUPS_HAD];
#pragma unroll
      for (uint32_t k = 0; k < GROUPS_HAD; k++) {
        const float* from = side + gate_place(tile * ROW_TILE + lane / 4, (first + k) * 8 + lane % 4 * 2);
        gate[k] = *reinterpret_cast<const float2*>(from), up[k] = *reinterpret_cast<const float2*>(from + WORDS);
      }
      uint32_t words[GROUPS_HAD];
      gate_pairs(p, gate, up, words);
#pragma unroll
      for (uint32_t k = 0; k < GROUPS_HAD; k++) *reinterpret_cast<uint32_t*>(to + k * GATE_GROUP_BYTES) = words[k];
    }
    to += TILES * ROW_CHUNK_BYTES;
    side = consumer.ring.behind() + (round + 1) % 2 * 2 * WORDS;
  }
}

// The same by one warpgroup, of which two warps have the sums of a gate, sixteen outs each, and two those of what it gates. Of each pair
// one takes the first half of the rows and one the second, and gives the other's sums away.
template <class Form, uint32_t ROWS>
__device__ __forceinline__ void store_gate(const Linear& p, const Work& work, const Consumer<Form, ROWS, 1>& consumer,
                                           const float (&sums)[ROWS / 2]) {
  constexpr uint32_t TILES = ROWS / ROW_TILE, HALF = TILES / 2;
  const uint32_t lane = consumer.lane, warp = consumer.warp, first = work.group * TILES;
  const bool gates = warp < 2;
  float4* given = reinterpret_cast<float4*>(consumer.ring.behind()) + lane;
  // What is given in the work before was taken.
  meet_first<WARPGROUP>();
#pragma unroll
  for (uint32_t n = 0; n < HALF; n++) {
    const float *low = &sums[4 * n], *high = &sums[4 * (n + HALF)];
    given[(warp * HALF + n) * WARP] = gates ? float4{high[0], high[1], high[2], high[3]} : float4{low[0], low[1], low[2], low[3]};
  }
  meet_first<WARPGROUP>();
  const RowPlace place = place_of_rows(p.num_rows, chunks_of(work.product.weight.rows), first);
  uint8_t* to = gated_at(p, place, (work.block * 2 + warp % 2) * TILE_ROWS);
#pragma unroll
  for (uint32_t n = 0; n < HALF; n++) {
    const uint32_t tile = gates ? n : n + HALF;
    const float4 other = given[((warp ^ 2) * HALF + n) * WARP];
    const float others[4] = {other.x, other.y, other.z, other.w};
    float gate[4], up[4];
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
      const float mine = gates ? sums[4 * n + i] : sums[4 * (n + HALF) + i];
      gate[i] = gates ? mine : others[i], up[i] = gates ? others[i] : mine;
    }
    store_gated(p, to + tile * ROW_CHUNK_BYTES, (first + tile) * ROW_TILE, lane, gate, up);
  }
}

// Sums the parts of a work and writes what they come to, by the warpgroups that multiply.
template <class Form, uint32_t ROWS, uint32_t GROUPS>
__device__ __forceinline__ void finish(const Linear& p, const Work& work, Consumer<Form, ROWS, GROUPS>& consumer) {
  constexpr uint32_t CONSUMERS = GROUPS * WARPGROUP;
  const uint32_t thread = threadIdx.x;
  // Registers hold both the sums of a part and those of the parts before, or else memory does.
  constexpr bool HELD = ROWS <= HELD_ROWS;
  float sums[ROWS / 2] = {}, total[HELD ? ROWS / 2 : 4] = {};
  if (work.chunks == 0) wait_for_previous();
  for (uint32_t part = work.part; part < work.end && work.chunks > 0; part++) {
    consumer.sum_part(sums, work.begin(part + 1) - work.begin(part));
    if constexpr (HELD) {
#pragma unroll
      for (uint32_t i = 0; i < ROWS / 2; i++) total[i] = part == work.part ? sums[i] : total[i] + sums[i];
    } else {
      const auto kept = Kept<ROWS, CONSUMERS>::of(p, thread);
      if (part > work.part) kept.add(sums);
      if (part + 1 < work.end) kept.put(sums);
    }
  }
  float(&all)[ROWS / 2] = either<HELD>(total, sums);
  if constexpr (ROWS >= GATE_ROWS) {
    if (p.gate) return store_gate(p, work, consumer, all);
  }
  if (!join_parts<CONSUMERS>(p, work, thread, all, consumer.ring.last(), [] { meet_first<CONSUMERS>(); })) return;
  const uint32_t out = (work.block * GROUPS + consumer.group) * BLOCK_ROWS + consumer.warp * TILE_ROWS;
  store_all<ROWS>(p, work.product, out, work.group * ROWS, consumer.lane, all);
}

// Blocks take works in turn. What fills the ring is ahead by as much as it holds, also of the next work, while one is finished.
template <class Form, uint32_t ROWS, uint32_t GROUPS>
__device__ __forceinline__ void linear_wgmma(const Linear& p) {
  DYNAMIC_SHARED(shared);
  const auto ring = Ring<Form, ROWS, GROUPS>::make(shared, p.rest ? 2 : 1, p.gate ? GATE_BYTES<ROWS, GROUPS> : 0);
  constexpr uint32_t CONSUMERS = GROUPS * WARPGROUP;
  const uint32_t groups = (p.num_rows + ROWS - 1) / ROWS;
  const uint32_t works = p.gate ? p.products[0].weight.rows / (GROUPS * BLOCK_ROWS / 2) : works_of(p, GROUPS * BLOCK_ROWS);
  const uint32_t begin = blockIdx.y * gridDim.x + blockIdx.x, step = gridDim.x * gridDim.y;
  // Told that a warp has one way, the compiler has descriptors in the warp's own registers, and need not bring them there each time.
  if (__shfl_sync(ALL_LANES, threadIdx.x / WARP, 0) < CONSUMERS / WARP) {
    if (GROUPS > 1) more_registers<224>();
    const uint32_t thread = threadIdx.x;
    Consumer<Form, ROWS, GROUPS> consumer = {
        ring, p.rest != nullptr, thread / WARPGROUP, thread % WARPGROUP / WARP, thread % WARP, {0, 0}, 0, 0};
    for (uint32_t place = begin; place < groups * works; place += step) {
      finish(p, work_of(p, place, groups, works), consumer);
    }
  } else {
    if (GROUPS > 1) fewer_registers<56>();
    if (threadIdx.x > CONSUMERS) return;
    RingPlace at = {0, 0};
    for (uint32_t place = begin; place < groups * works; place += step) {
      ask(p, work_of(p, place, groups, works), ring, at, place == begin);
    }
  }
}

#define LINEAR(form)                                                                                        \
  KERNEL_EARLY(160, 3, linear_wgmma_##form##_8, Linear) { linear_wgmma<tile_##form, 8, 1>(p); }     \
  KERNEL_EARLY(160, 3, linear_wgmma_##form##_32, Linear) { linear_wgmma<tile_##form, 32, 1>(p); }   \
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
