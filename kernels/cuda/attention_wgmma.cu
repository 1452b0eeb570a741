// Attention of many tokens of a sequence on Hopper: arguments, rows of a block, order of sums and rounding are those of
// `attention_rows` (attention.cu), to the same bits
// Launch:  `attention_wgmma_<kind>_<width>`, kind f16 or bf16, width 64 or 128, heads of a multiple of eight values, blocks of the cache
//          of a multiple of sixteen positions: block = 384, the grid of `attention_rows`; dynamic shared memory:
//          AttentionWgmma::ALL_BYTES.
// Bound:   the chain of instructions that makes a warp's weights, then tensor cores.
// Meaning: src/reference/mod.rs, `attention`.
// Source:  Shah et al. 2024, arXiv:2407.08608 (who brings and who multiplies are other warps, and warpgroups take turns at the tensor
//          cores); PTX ISA 9.0, asynchronous warpgroup-level matrix multiply. For sm_90a alone.
//
// A warpgroup brings K and V through a ring, two multiply, 64 rows each. What a warpgroup begins together is the scores of a step and the
// product of the weights before and V, and while the latter is made, and the other warpgroup's, it makes the weights of the step.
#include "attention_tile.cuh"
#include "hopper.cuh"

#ifdef WITH_WGMMA

constexpr uint32_t WGMMA_ROWS_WARPS = 8, WGMMA_PLACES = 6;
// Groups of copies of a thread that are on their way when it waits for the one before.
constexpr uint32_t WGMMA_BEHIND = 3;

template <class Kind, uint32_t DIM>
struct AttentionWgmma : AttentionTile<Kind, DIM, 1, WGMMA_ROWS_WARPS, WGMMA_PLACES, DIM / 16> {
  using Tile = AttentionTile<Kind, DIM, 1, WGMMA_ROWS_WARPS, WGMMA_PLACES, DIM / 16>;
  using Pair = typename Kind::Pair;
  using Tile::STEP, Tile::UNITS, Tile::PLACE_BYTES;
  using Tile::p, Tile::rows, Tile::shared, Tile::lane, Tile::warp;
  static constexpr uint32_t GROUP_ROWS = 64, WIDE = 64;
  // Bytes of 64 values of a step's positions.
  static constexpr uint32_t WIDE_BYTES = STEP * WIDE * 2;
  // Behind the tile's: the barriers, and what registers are too few for, the block's rows and the sums of all spans.
  static constexpr uint32_t ROWS_AT = Tile::BYTES + 2 * WGMMA_PLACES * sizeof(Mbarrier), ALL_AT = ROWS_AT + 32;
  static constexpr uint32_t ALL_BYTES = ALL_AT + Tile::ROWS * DIM * sizeof(float);
  static_assert(sizeof(Rows) <= 32, "they lie there");
  static_assert(STEP == 64 && PLACE_BYTES % 1024 == 0, "for describe_rows");
  static_assert(WGMMA_PLACES > WGMMA_BEHIND + 2, "what is waited for and what is multiplied are in the ring");

  using Tile::Tile;

  // What the tokens of a block see of one sequence: `seen` by all, from step `first` to `last`.
  struct Part {
    uint32_t from, to, sequence;
    Seen seen;
    __device__ __forceinline__ uint32_t first() const { return seen.first / STEP; }
    __device__ __forceinline__ uint32_t last() const { return (seen.end + STEP - 1) / STEP; }
  };

  uint32_t weights[UNITS][4];

  // K of step n of a part is number 2 n, V 2 n + 1, behind those of the parts before.
  uint32_t number = 0;

  // Number `i` is there; everybody who multiplies is done with it.
  __device__ __forceinline__ Mbarrier& full(uint32_t i) const {
    return reinterpret_cast<Mbarrier*>(shared + Tile::BYTES)[i % WGMMA_PLACES];
  }
  __device__ __forceinline__ Mbarrier& empty(uint32_t i) const { return (&full(i))[WGMMA_PLACES]; }
  static __device__ __forceinline__ uint32_t parity(uint32_t i) { return i / WGMMA_PLACES % 2; }
  __device__ __forceinline__ uint8_t* place(uint32_t i) const { return shared + i % WGMMA_PLACES * PLACE_BYTES; }

  // By all threads of the block.
  __device__ __forceinline__ void make_barriers() const {
    if (threadIdx.x == 0) {
      for (uint32_t i = 0; i < WGMMA_PLACES; i++) init(full(i), WARPGROUP / WARP), init(empty(i), WGMMA_ROWS_WARPS);
      fence_mbarriers();
    }
    __syncthreads();
  }

  // By a warp.
  __device__ __forceinline__ void tell(Mbarrier& barrier) const {
    __syncwarp();
    if (lane == 0) arrive(barrier);
  }

  // What tokens `from..to` see, all or span number `only` of it; nothing where that is none.
  __device__ __forceinline__ Seen seen_of(uint32_t from, uint32_t to, bool split, uint32_t first_span) const {
    const Seen seen = {seen_by(p, from).first, seen_by(p, to - 1).end};
    if (!split) return seen;
    return {max(seen.first, first_span * SPAN), min(seen.end, (first_span + 1) * SPAN)};
  }

  // `use` of each part of the block's tokens, in order.
  template <class Use>
  __device__ __forceinline__ void each_part(bool split, uint32_t only, Use use) const {
    const uint32_t to = min(rows.end, rows.first + (rows.skipped + Tile::ROWS - 1) / rows.heads + 1);
    for (uint32_t from = rows.first + rows.skipped / rows.heads; from < to;) {
      const uint32_t end = this->end_of_sequence(from, to);
      const Part part = {from, end, p.step.sequences[from], seen_of(from, end, split, seen_by(p, from).first / SPAN + only)};
      if (part.seen.first < part.seen.end) use(part);
      from = end;
    }
  }

  // The first of the sixteen positions of a step that are a warp's, which are one block's.
  __device__ __forceinline__ uint32_t own_positions(uint32_t step) const { return step * STEP + warp % (WARPGROUP / WARP) * 16; }

  // Where the cache has the first of them, in bytes of K or V.
  __device__ __forceinline__ size_t own_rows(const Part& part, uint32_t step) const {
    const uint32_t position = own_positions(step);
    if (position + 16 <= part.seen.first || position >= part.seen.end) return 0;
    return cache_row(p.cache, p.step, part.sequence, position, rows.kv_head) * p.cache.head_dim * 2;
  }

  // Begins to bring a warp's rows of K or V; what is beyond a head's values, and a position that nobody sees, is zero. It is short: a
  // warp that does one thing after the other is soon slower than two that multiply.
  __device__ __forceinline__ void bring(uint8_t* to, const uint8_t* from, const Part& part, uint32_t step) const {
    constexpr uint32_t CHUNKS = DIM / 8, APART = WARP / CHUNKS;
    const uint32_t dim = p.cache.head_dim, chunk = lane % CHUNKS, first = lane / CHUNKS;
    const uint32_t seen = part.seen.end - part.seen.first, place = own_positions(step) + first - part.seen.first;
    // Of every 64 values all rows are a tile of their own.
    const uint32_t at = chunk / 8 * WIDE_BYTES + (warp % (WARPGROUP / WARP) * 16 + first) * WIDE * 2 + ((chunk % 8 ^ first) << 4);
    from += (first * dim + chunk * 8) * 2;
#pragma unroll
    for (uint32_t i = 0; i < 16; i += APART) {
      const bool there = place + i < seen && chunk * 8 < dim;
      copy_async(to + (at ^ i % 8 << 4) + i * WIDE * 2, from + i * dim * 2, there ? 16 : 0);
    }
  }

  // Brings K and V of all parts, by a warpgroup.
  __device__ __forceinline__ void bring_all(bool split, uint32_t only) {
    uint32_t begun = 0, there = 0;
    const auto bring_next = [&](const uint8_t* from, const Part& part, uint32_t step) {
      // Nobody has used a place in the phase before its first.
      wait(empty(begun), parity(begun) ^ 1);
      bring(place(begun), from, part, step);
      commit_copies();
      if (++begun - there <= WGMMA_BEHIND) return;
      wait_copies<WGMMA_BEHIND>();
      tell(full(there++));
    };
    each_part(split, only, [&](const Part& part) {
      size_t own = own_rows(part, part.first());
      for (uint32_t step = part.first(); step < part.last(); step++) {
        const size_t next = own_rows(part, step + 1);
        bring_next(p.cache.k + own, part, step);
        bring_next(p.cache.v + own, part, step);
        own = next;
      }
    });
    wait_copies<0>();
    while (there < begun) tell(full(there++));
  }

  __device__ __forceinline__ float (&scores())[STEP / 2] { return *reinterpret_cast<float(*)[STEP / 2]>(&this->s); }
  __device__ __forceinline__ float (&sums_of_values())[DIM / 2] { return *reinterpret_cast<float(*)[DIM / 2]>(&this->o); }

  // Begins s = q . k.
  __device__ __forceinline__ void begin_scores(uint32_t i) {
    const Descriptor keys = describe_rows(place(i), 16);
    fence_products();
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      begin_product<STEP, Pair>(scores(), this->q[k], keys.further(k / 4 * WIDE_BYTES + k % 4 * 32), k > 0);
    }
    commit_products();
  }

  // Begins o += weights . v.
  __device__ __forceinline__ void begin_values(uint32_t i) {
    const Descriptor values = describe_rows(place(i), WIDE_BYTES);
    fence_products();
#pragma unroll
    for (uint32_t u = 0; u < UNITS; u++) {
      begin_product<DIM, Pair, Along::COLUMNS>(sums_of_values(), weights[u], values.further(u * 16 * WIDE * 2), true);
    }
    commit_products();
  }

  // What nobody of this warpgroup sees.
  __device__ __forceinline__ void skip(uint32_t steps) {
    for (uint32_t end = number + 2 * steps; number < end; number++) {
      wait(full(number), parity(number));
      tell(empty(number));
    }
  }

  // Of the thread's values of all spans, four.
  __device__ __forceinline__ float4& of_all(uint32_t i) const {
    return reinterpret_cast<float4*>(shared + ALL_AT)[i * Tile::THREADS + threadIdx.x];
  }

  __device__ __forceinline__ void begin_all() {
    for (uint32_t i = 0; i < DIM / 8; i++) of_all(i) = {0.0f, 0.0f, 0.0f, 0.0f};
    this->before() = {0.0f, 0.0f, -INFINITY, -INFINITY};
  }

  __device__ __forceinline__ void join_span() {
    Join joins[2];
    this->join_weights(joins);
#pragma unroll
    for (uint32_t i = 0; i < DIM / 8; i++) {
      const float(&o)[4] = this->o[i / 2][i % 2];
      const float4 x = of_all(i);
      of_all(i) = {joined(joins[0], x.x, o[0]), joined(joins[0], x.y, o[1]), joined(joins[1], x.z, o[2]), joined(joins[1], x.w, o[3])};
    }
  }

  __device__ __forceinline__ void write_all() {
#pragma unroll
    for (uint32_t i = 0; i < DIM / 8; i++) {
      const float4 x = of_all(i);
      this->all[i / 2][i % 2][0] = x.x, this->all[i / 2][i % 2][1] = x.y;
      this->all[i / 2][i % 2][2] = x.z, this->all[i / 2][i % 2][3] = x.w;
    }
    Tile::write_all();
  }

  // Makes the weights of a step whose scores have been begun, and V of the step before after them. Only sums wait for the latter.
  __device__ __forceinline__ void weigh_step(uint32_t step, bool is_first) {
    const uint32_t base = step * STEP;
    wait_products<1>();
    tell(empty(number));
    if (base % SPAN == 0 && !is_first) {
      wait_products<0>();
      this->end_span();
      join_span();
      this->begin_span();
    }
    const uint4 of_tile = this->bounds();
    float most[2], shrink[2];
    this->score(base, base < of_tile.z || base + STEP > of_tile.w, most);
    this->weigh(most, shrink);
    settle(scores());
    wait_products<0>();
    if (!is_first) tell(empty(number - 1));
    this->pack_weights(weights);
    this->shrink_values(shrink);
  }

  // Steps `first..last` of a part, one or more.
  __device__ __forceinline__ void multiply_steps(uint32_t first, uint32_t last) {
    settle(sums_of_values());
    wait(full(number), parity(number));
    fence_shared();
    begin_scores(number);
    // In the place of V.
    commit_products();
    weigh_step(first, true);
    for (uint32_t step = first + 1; step < last; step++) {
      wait(full(number + 1), parity(number + 1));
      wait(full(number + 2), parity(number + 2));
      // Who brings them does not fence: that would wait for all that is on its way.
      fence_shared();
      begin_scores(number + 2);
      begin_values(number + 1);
      number += 2;
      weigh_step(step, false);
    }
    wait(full(number + 1), parity(number + 1));
    fence_shared();
    begin_values(number + 1);
    wait_products<0>();
    tell(empty(number + 1));
    number += 2;
  }

  // This warpgroup's rows of a part.
  __device__ __forceinline__ void attend(const Part& part, bool split) {
    this->choose_rows(part.from, part.to);
    __syncwarp();
    const uint32_t first_row = rows.skipped + warp / (WARPGROUP / WARP) * GROUP_ROWS;
    const uint32_t from = max(part.from, rows.first + first_row / rows.heads);
    const uint32_t to = min(part.to, rows.first + (first_row + GROUP_ROWS - 1) / rows.heads + 1);
    // Of a span what these see; nothing, in front of all, where they see none of it.
    const Seen mine = from < to ? seen_of(from, to, split, part.seen.first / SPAN) : Seen{};
    const bool any = mine.first < mine.end;
    const uint32_t first = any ? mine.first / STEP : part.first(), last = any ? (mine.end + STEP - 1) / STEP : first;
    skip(first - part.first());
    begin_all();
    this->begin_span();
    if (any) multiply_steps(first, last);
    this->end_span();
    if (split) this->write_record(part.seen.first / SPAN);
    else join_span(), write_all();
    skip(part.last() - last);
  }
};

template <class Kind, uint32_t DIM>
__device__ __forceinline__ void attention_wgmma(const Attention& p) {
  using Block = AttentionWgmma<Kind, DIM>;
  DYNAMIC_SHARED(shared);
  EXPECT_SHARED(Block::ALL_BYTES);
  Rows rows;
  if (!rows_of_block<Block::ROWS>(p, rows)) return;
  Rows& kept = *reinterpret_cast<Rows*>(shared + Block::ROWS_AT);
  if (threadIdx.x == 0) kept = rows;
  Block block(p, kept, shared);
  block.make_barriers();
  const bool split = p.records != nullptr;
  if (threadIdx.x >= Block::THREADS) {
    fewer_registers<56>();
    block.bring_all(split, blockIdx.z);
  } else {
    more_registers<224>();
    block.bring_queries();
    block.each_part(split, blockIdx.z, [&](const typename Block::Part& part) { block.attend(part, split); });
  }
}

#define ATTENTION_WGMMA(kind, width)                                                            \
  KERNEL_EARLY(384, 1, attention_wgmma_##kind##_##width, Attention) {                           \
    wait_for_previous();                                                                        \
    attention_wgmma<cache_##kind, width>(p);                                                    \
  }
ATTENTION_WGMMA(f16, 64)
ATTENTION_WGMMA(f16, 128)
ATTENTION_WGMMA(bf16, 64)
ATTENTION_WGMMA(bf16, 128)
#undef ATTENTION_WGMMA
#endif
