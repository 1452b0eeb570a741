// What a block of attention for one token at a time asks for, and where it lies: K and V of one work after the other in a ring of
// units of sixteen positions, so that what few positions are left takes no more room than they, and that of the next work is on
// its way while the block is busy with this one.
#pragma once

#include "attention.cuh"
#include "cache.cuh"

template <class Kind, uint32_t DIM, uint32_t WARPS>
struct TokenRing {
  static constexpr uint32_t THREADS = WARPS * WARP, ROWS = 16, UNIT = 16;
  // Rows that a warp brings of the positions between barriers, of which K or V are 4 KiB for each warp as 16 bits.
  static constexpr uint32_t OWN = 2048 / DIM, CHUNK = OWN * WARPS, UNITS = CHUNK / UNIT;

  // The ring comes last: how long it is, the launch says. Of each unit weights as a fragment and their sums by lane, the
  // largest score of each row.
  static constexpr uint32_t UNIT_BYTES = Kind::bytes(UNIT, DIM);
  static constexpr uint32_t QUERIES_AT = Kind::WIDENED ? CHUNK * DIM * 2 : 0;
  static constexpr uint32_t WEIGHTS_AT = QUERIES_AT + ROWS * DIM * 2;
  static constexpr uint32_t SUMS_AT = WEIGHTS_AT + UNITS * WARP * 16;
  static constexpr uint32_t LARGEST_AT = SUMS_AT + UNITS * WARP * 8;
  static constexpr uint32_t RING_AT = DIM > 128 ? WEIGHTS_AT + WARPS * DIM * 4 : LARGEST_AT + ROWS * UNITS * 4;
  static_assert(LARGEST_AT + ROWS * UNITS * 4 <= RING_AT && WEIGHTS_AT + WARPS * DIM * 4 <= RING_AT,
                "room for what is weighed, or for heads that are turned while nothing is");
  static_assert((Kind::WIDENED || UNIT_BYTES % (2 * DIM) == 0) && RING_AT % (2 * DIM) == 0, "for lane_at");

  // Units of a chunk that are seen.
  struct Part {
    uint32_t first, units;
    __device__ __forceinline__ bool has(uint32_t unit) const { return unit - first < units; }
  };

  const Attention& p;
  uint8_t* const shared;
  const uint32_t tiles, works;  // of a K and V head; of the launch
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

  // What is asked for: of work `work`, which is the one that is done or, where they are `ahead`, the one behind it, items `next` to
  // `last`, which are K of chunk n / 2, or V where n is odd. Of the lane's row of the next chunk the number of its block and its slot.
  uint32_t work = blockIdx.x - gridDim.x, next = 0, last = 0, block = 0, slot = 0;
  uint32_t asked_token = 0, asked_kv_head = 0, asked_tile = 0;
  Seen asked;
  const uint32_t* table;
  bool ahead = false;
  // Of the work behind that, if there is one: its token and which it is of that, and what was read of it.
  uint32_t next_token, next_of_token, position, first_block;

  // In units of the ring: where what is asked for next will lie, and how much is free; where the next item lies that is taken, and how
  // much is the one that was, at `place`. Items that were asked for and not taken.
  uint32_t end = 0, room, there = 0, held = 0, place = 0, waiting = 0;

  // The work that is done, and whether what it sees has its own position. Spans of it, where they have blocks.
  uint32_t token, kv_head, first_head, heads;
  Seen seen;
  uint32_t spans = 1;
  bool newest_is_seen = true;

  __device__ __forceinline__ TokenRing(const Attention& p, uint8_t* shared)
      : p(p), shared(shared), tiles((p.group + ROWS - 1) / ROWS),
        works((end_of_tokens(p) - p.first_token) * p.cache.num_kv_heads * tiles), room(p.ring) {
    look_for(blockIdx.x);
  }

  static __device__ __forceinline__ Part part_of(const Seen& seen, uint32_t chunk) {
    const uint32_t first = max(seen.first, chunk * CHUNK) / UNIT, end = (min(seen.end, (chunk + 1) * CHUNK) + UNIT - 1) / UNIT;
    return {first - chunk * UNITS, end - first};
  }

  // Where a unit of the ring lies, which may be beyond its end once.
  __device__ __forceinline__ uint32_t wrap(uint32_t at) const { return at < p.ring ? at : at - p.ring; }
  __device__ __forceinline__ uint32_t ring_at(uint32_t at) const { return RING_AT + wrap(at) * UNIT_BYTES; }

  // Where unit `u` of the item that was taken is read.
  __device__ __forceinline__ uint32_t unit_at(const Part& part, uint32_t u) const {
    return Kind::WIDENED ? u * UNIT * DIM * 2 : ring_at(place + u - part.first);
  }

  // Reads what says where K and V of work `n` lie.
  __device__ __forceinline__ void look_for(uint32_t n) {
    if (n >= works) return;
    const uint32_t works_of_token = p.cache.num_kv_heads * tiles;
    next_token = p.first_token + n / works_of_token;
    next_of_token = n % works_of_token;
    position = p.step.positions[next_token];
    first_block = p.step.cu_blocks[p.turns ? next_token : p.step.sequences[next_token]];
  }

  // Of what is asked for next.
  __device__ __forceinline__ uint32_t own_position() const { return next / 2 * CHUNK + warp * OWN + lane % OWN; }
  __device__ __forceinline__ void look_up() {
    const uint32_t own = own_position(), size = p.cache.block_size;
    slot = NO_ROW;
    if (own < asked.first || own >= asked.end) return;
    block = table[own / size];
    slot = asked_kv_head * size + own % size;
  }

  // Goes to the work that was looked for: none, where it is behind the last. Its span number z, where spans have blocks of their own.
  __device__ __forceinline__ void enter() {
    work += gridDim.x, ahead = true, next = last = 0, asked = {0, 0};
    if (work >= works) return;
    asked = seen_at(p, position);
    asked_token = next_token, asked_kv_head = next_of_token / tiles, asked_tile = next_of_token % tiles;
    table = p.step.block_tables + first_block;
    if (p.records != nullptr) {
      const uint32_t begin = (asked.first / SPAN + blockIdx.z) * SPAN;
      spans = (asked.end + SPAN - 1) / SPAN - asked.first / SPAN;
      newest_is_seen = begin + SPAN >= asked.end;
      asked = {max(asked.first, begin), min(asked.end, begin + SPAN)};
      if (asked.first >= asked.end) return;
    }
    next = asked.first / CHUNK * 2;
    last = (asked.end + CHUNK - 1) / CHUNK * 2;
    look_for(work + gridDim.x);
    look_up();
  }

  // Asks for items while there is room for them, of the work behind the one that is done at most.
  __device__ __forceinline__ void ask() {
#pragma unroll 1
    while (true) {
      if (next == last) {
        if (ahead) return;
        enter();
        continue;
      }
      const Part part = part_of(asked, next / 2);
      if (part.units > room) return;
      bring(part);
      commit_copies();
      waiting++;
      room -= part.units;
      end = wrap(end + part.units);
      next++;
      if (next % 2 == 0 && next < last) look_up();
    }
  }

  // The warp's rows of the next item; that of a newest position is put there, or stored, when its work is done.
  __device__ __forceinline__ void bring(const Part& part) {
    constexpr uint32_t COUNT = OWN < UNIT ? OWN : UNIT;
    const bool values = next % 2 != 0, later = p.turns && ahead && newest_is_seen;
    const uint32_t number = slot == NO_ROW ? NO_ROW : block * (p.cache.num_kv_heads * p.cache.block_size) + slot;
    // Cached blocks of whole units lie in one piece.
    const bool pieces = p.cache.head_dim == DIM && p.cache.block_size % UNIT == 0;
    const uint8_t* from = values ? p.cache.v : p.cache.k;
    const float* scales = values ? p.cache.v_scales : p.cache.k_scales;
#pragma unroll
    for (uint32_t n = 0; n < OWN; n += COUNT) {
      const uint32_t row = warp * OWN + n, base = next / 2 * CHUNK + row;
      if (!part.has(row / UNIT)) continue;
      uint8_t* place = shared + ring_at(end + row / UNIT - part.first);
      const uint32_t own = n == 0 ? number : __shfl_sync(ALL_LANES, number, n + lane % COUNT);
      if (!pieces) {
        const bool skip = later && base + lane % COUNT + 1 == asked.end;
        Kind::template bring_own<COUNT, UNIT, DIM>(place, from, scales, skip ? LATER : own, row % UNIT, p.cache.head_dim);
        continue;
      }
      const uint32_t first = max(asked.first, base) - base, rows = min(asked.end, base + COUNT) - base;
      const SomeRows some = {first, first < rows && rows <= COUNT ? rows - first : 0, later ? asked.end - 1 - base : NO_ROW};
      const uint32_t first_row = __shfl_sync(ALL_LANES, own, first) - first;
      if (some.count == COUNT && some.later >= COUNT) {
        Kind::template bring_straight<COUNT, UNIT, DIM, true>(place, from, scales, first_row, row % UNIT, some);
      } else {
        Kind::template bring_straight<COUNT, UNIT, DIM, false>(place, from, scales, some.count > 0 ? first_row : 0, row % UNIT, some);
      }
    }
  }

  // Waits until the next item is there, if one is to be taken, and everybody is done with what was done; its place is used again.
  __device__ __forceinline__ void go_on(bool takes) {
    if (takes) {
      waiting--;
      if (waiting >= 3) wait_copies<3>();
      else if (waiting == 2) wait_copies<2>();
      else if (waiting == 1) wait_copies<1>();
      else wait_copies<0>();
    }
    __syncthreads();
    room += held;
    held = 0;
    ask();
  }

  // What was asked for becomes what is done.
  __device__ __forceinline__ void take_work() {
    token = asked_token, kv_head = asked_kv_head;
    first_head = kv_head * p.group + asked_tile * ROWS;
    heads = min(ROWS, p.group - asked_tile * ROWS);
    seen = asked;
    ahead = false;
  }

  // Behind `go_on`: the next item, which is of this chunk. Its units.
  __device__ __forceinline__ Part take_item(uint32_t chunk) {
    const Part part = part_of(seen, chunk);
    held = part.units;
    place = there;
    there = wrap(there + held);
    if constexpr (Kind::WIDENED) {
      constexpr uint32_t PIECES = UNIT * DIM / 8;
      // More at once would take registers that the sums are in.
#pragma unroll 2
      for (uint32_t i = threadIdx.x; i < part.units * PIECES; i += THREADS) {
        const uint32_t u = i / PIECES;
        Kind::template widen_eight<DIM>(shared + (part.first + u) * UNIT * DIM * 2, shared + ring_at(place + u), UNIT, i % PIECES);
      }
      __syncthreads();
    }
    return part;
  }
};
