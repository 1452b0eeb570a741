// A block of attention for one token: the heads that share a K and V head, at most sixteen, are the rows of one tile. Eight warps
// work on a chunk of positions at once: each has units of sixteen of them for the scores and a part of a head's values for the sums.
// Order of sums: attention.cu; steps of a chunk follow one another there, too.
//
// What a decode step waits for is not bytes but a chain of loads, positions, tables, K and V, and instructions that run once. So all
// but the queries and the newest K and V is asked for before the kernel before has ended (attention.cu says why it may be), and
// code is short: loops that are not unrolled, one place for each thing.
#pragma once

#include "attention.cuh"
#include "cache.cuh"

// Where queries and the newest K and V come from: memory, where `rope_store` has put them.
struct Turned {
  // Whether the threads are all of the block, or the first of it.
  static constexpr bool ALL = true;

  __device__ __forceinline__ void wait() const { wait_for_previous(); }

  // Behind `wait`: queries, as they are multiplied, and K and V of the position `newest`, if the block sees it: their row of the cache, and
  // the place of its chunk's K in the ring, where it may be too late for the first copies.
  template <class Token>
  __device__ __forceinline__ void bring(Token& token, uint32_t newest, uint32_t row, uint32_t place) const {
    if (row != NO_ROW && place < token.p.ring && token.warp < 2) {
      token.template bring<1>(token.warp, place + token.warp, token.lane == 0 ? row : LATER, newest % Token::CHUNK);
    }
    token.bring_queries();
  }
};

template <class Kind, uint32_t DIM, class Source>
struct AttentionToken {
  using Pair = typename Kind::Pair;
  static constexpr uint32_t WARPS = 8, THREADS = WARPS * WARP, ROWS = 16;
  static constexpr uint32_t STEP = DIM > 128 ? 32 : 64;
  // Positions between barriers: K or V of them are 32 KiB as 16 bits. Of those the rows that a warp brings.
  static constexpr uint32_t CHUNK = 16384 / DIM, OWN = CHUNK / WARPS;
  static constexpr uint32_t STEPS = CHUNK / STEP;
  static constexpr uint32_t UNITS = CHUNK / 16, UNITS_OF_STEP = STEP / 16;
  // Units, and sixteens of values, that are a warp's.
  static constexpr uint32_t MINE = UNITS > WARPS ? UNITS / WARPS : 1;
  static constexpr uint32_t SLICES = DIM / 16 > WARPS ? DIM / 16 / WARPS : 1;

  // The ring comes last: how long it is, the launch says. Of each unit weights as a fragment and their sums by lane, the
  // largest score of each row.
  static constexpr uint32_t PLACE_BYTES = Kind::bytes(CHUNK, DIM);
  static constexpr uint32_t QUERIES_AT = Kind::WIDENED ? CHUNK * DIM * 2 : 0;
  static constexpr uint32_t WEIGHTS_AT = QUERIES_AT + ROWS * DIM * 2;
  static constexpr uint32_t SUMS_AT = WEIGHTS_AT + UNITS * WARP * 16;
  static constexpr uint32_t LARGEST_AT = SUMS_AT + UNITS * WARP * 8;
  static constexpr uint32_t RING_AT = LARGEST_AT + (DIM > 128 ? 2 * DIM : ROWS * UNITS * 4);
  static_assert(PLACE_BYTES % (2 * DIM) == 0 && RING_AT % (2 * DIM) == 0, "for lane_at");

  const Attention& p;
  uint8_t* const shared;
  const uint32_t* const table;  // of its sequence
  const Source source;
  const uint32_t token, kv_head, first_head, heads;
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;

  // Positions that this block sees.
  Seen seen;
  // Of the ring's items, which are K of chunk n / 2, or V where n is odd: the next that is brought and the first that is none; the
  // place of the next that arrives.
  uint32_t next, last, there = 0;

  // Of this chunk: scores, later weights; how much the sums before each step shrink. Of this span: values, weight by lane, largest
  // score. Of the spans before, joined: values, weight, largest.
  float s[MINE][2][4], shrink[STEPS][2];
  float o[SLICES][2][4], weight[2], largest[2];
  float all[SLICES][2][4], all_weight[2], all_largest[2];

  __device__ __forceinline__ AttentionToken(const Attention& p, const uint32_t* table, uint32_t token, uint32_t kv_head,
                                            uint32_t first, uint8_t* shared, const Source& source)
      : p(p), shared(shared), table(table), source(source), token(token), kv_head(kv_head), first_head(kv_head * p.group + first),
        heads(min(ROWS, p.group - first)) {}

  static __device__ __forceinline__ void meet() {
    if (Source::ALL) __syncthreads();
    else meet_first<THREADS>();
  }

  __device__ __forceinline__ uint32_t unit(uint32_t i) const { return warp + i * WARPS; }
  static __device__ __forceinline__ bool is_unit(uint32_t u) { return UNITS >= WARPS || u < UNITS; }
  __device__ __forceinline__ bool has_slice() const { return DIM / 16 >= WARPS || warp < DIM / 16; }

  // The number of the cache's row of a position.
  __device__ __forceinline__ uint32_t row_of(uint32_t position) const {
    const uint32_t size = p.cache.block_size, block = position / size;
    return (table[block] * p.cache.num_kv_heads + kv_head) * size + position - block * size;
  }

  // The same of the lane's own position of a chunk; that of `newest` comes later.
  __device__ __forceinline__ uint32_t own_row(uint32_t chunk, uint32_t newest) const {
    const uint32_t position = chunk * CHUNK + warp * OWN + lane % OWN;
    if (position == newest) return LATER;
    return position >= seen.first && position < seen.end ? row_of(position) : NO_ROW;
  }

  // Rows of item `n`, `COUNT` from `first` of the chunk on.
  template <uint32_t COUNT>
  __device__ __forceinline__ void bring(uint32_t n, uint32_t place, uint32_t own, uint32_t first) {
    const bool values = n % 2 != 0;
    Kind::template bring_own<COUNT, CHUNK, DIM>(shared + RING_AT + place * PLACE_BYTES, values ? p.cache.v : p.cache.k,
                                                values ? p.cache.v_scales : p.cache.k_scales, own, first, p.cache.head_dim);
  }

  // The first of the ring, but for the row of the position `newest`, if there is one, before the kernel before has ended; and queries.
  __device__ __forceinline__ void fill_ring(uint32_t newest) {
    if (newest == NO_ROW) source.wait();
    uint32_t own = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < p.ring && next + i < last; i++) {
      if (i % 2 == 0) own = own_row((next + i) / 2, newest);
      bring<OWN>(next + i, i, own, warp * OWN);
    }
    const uint32_t place = newest / CHUNK * 2 - next;
    const uint32_t row = newest < seen.end ? row_of(newest) : NO_ROW;
    if (newest != NO_ROW) source.wait();
    source.bring(*this, newest, row, place);
    commit_copies();
    for (uint32_t i = 2; i < p.ring; i++) commit_copies();
    next += p.ring;
  }

  // Waits until the next of the ring is there and everybody is done with the one before, whose place is used again where there is
  // one (`refill`). Where it lies.
  __device__ __forceinline__ uint32_t arrive(bool refill) {
    if (p.ring == 2) wait_copies<0>();
    else wait_copies<2>();
    meet();
    const uint32_t place = RING_AT + there * PLACE_BYTES;
    if (refill) {
      if (next < last) bring<OWN>(next, there == 0 ? p.ring - 1 : there - 1, own_row(next / 2, NO_ROW), warp * OWN);
      commit_copies();
      next++;
    }
    there = there + 1 == p.ring ? 0 : there + 1;
    if constexpr (Kind::WIDENED) {
      Kind::template widen<CHUNK, DIM, THREADS>(shared, shared + place);
      meet();
      return 0;
    } else {
      return place;
    }
  }

  // Queries, rounded to the 16 bits that multiply; rows that are none are zero.
  __device__ __forceinline__ void bring_queries() {
    const uint32_t dim = p.cache.head_dim;
    const float* from = p.q + ((size_t)token * p.num_heads + first_head) * dim;
    for (uint32_t i = threadIdx.x; i < ROWS * (DIM / 8); i += THREADS) {
      const uint32_t r = i / (DIM / 8), chunk = i % (DIM / 8);
      float x[8];
      if (dim % 8 == 0) {
        const bool is = r < heads && chunk * 8 < dim;
        const float4* row = reinterpret_cast<const float4*>(from + r * dim + chunk * 8);
        const float4 low = is ? row[0] : float4{}, high = is ? row[1] : float4{};
        x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w, x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
      } else {
#pragma unroll
        for (uint32_t n = 0; n < 8; n++) x[n] = r < heads && chunk * 8 + n < dim ? from[r * dim + chunk * 8 + n] : 0.0f;
      }
      *reinterpret_cast<uint4*>(shared + QUERIES_AT + chunk_at<DIM>(r, chunk)) = {
          Pair::pack(x[0], x[1]), Pair::pack(x[2], x[3]), Pair::pack(x[4], x[5]), Pair::pack(x[6], x[7])};
    }
  }

  // s = q . k of the warp's units, over sixteens of values in ascending order.
  __device__ __forceinline__ void multiply_keys(uint32_t keys) {
    const uint32_t at = lane_at<DIM>(keys, lane / 16 * 8 + lane % 8, lane / 8 % 2), of_q = lane_at<DIM>(QUERIES_AT, lane % 16, lane / 16);
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] = 0.0f;
    }
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      uint32_t a[4];
      load_matrices(a, shared + (of_q ^ k << 5));
#pragma unroll
      for (uint32_t i = 0; i < MINE; i++) {
        if (!is_unit(unit(i))) continue;
        uint32_t b[4];
        load_matrices(b, shared + (at ^ k << 5) + unit(i) * 32 * DIM);
        Pair::multiply(s[i][0], a, b[0], b[1]);
        Pair::multiply(s[i][1], a, b[2], b[3]);
      }
    }
  }

  // Scores as logarithms to base 2, minus infinity where the token does not see; tells the largest of each unit and row.
  __device__ __forceinline__ void score(uint32_t base) {
    const float factor = p.softcap > 0.0f ? p.scale / p.softcap : p.scale * LOG2_E;
    float* told = reinterpret_cast<float*>(shared + LARGEST_AT);
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] *= factor;
    }
    // Apart, so that whoever has no cap passes over one piece of code.
    if (p.softcap > 0.0f) {
#pragma unroll
      for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
        for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] = p.softcap * LOG2_E * tanhf(s[i][n / 4][n % 4]);
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
      if (!is_unit(unit(i))) continue;
      float most[2] = {-INFINITY, -INFINITY};
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) {
        const uint32_t position = base + unit(i) * 16 + n / 4 * 8 + lane % 4 * 2 + n % 2;
        float& x = s[i][n / 4][n % 4];
        if (position < seen.first || position >= seen.end) x = -INFINITY;
        most[n % 4 / 2] = fmaxf(most[n % 4 / 2], x);
      }
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        most[h] = fmaxf(most[h], __shfl_xor_sync(ALL_LANES, most[h], 1));
        most[h] = fmaxf(most[h], __shfl_xor_sync(ALL_LANES, most[h], 2));
        if (lane % 4 == 0) told[(lane / 4 + 8 * h) * UNITS + unit(i)] = most[h];
      }
    }
  }

  // Weights relative to the largest score of all steps so far, as fragments.
  __device__ __forceinline__ void weigh() {
    const float* told = reinterpret_cast<const float*>(shared + LARGEST_AT);
    float base[STEPS][2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
      for (uint32_t step = 0; step < STEPS; step++) {
        float most = largest[h];
#pragma unroll
        for (uint32_t u = 0; u < UNITS_OF_STEP; u++) most = fmaxf(most, told[(lane / 4 + 8 * h) * UNITS + step * UNITS_OF_STEP + u]);
        base[step][h] = most == -INFINITY ? 0.0f : most;
        shrink[step][h] = power_of_two(largest[h] - base[step][h]);
        largest[h] = most;
      }
    }
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
      if (!is_unit(unit(i))) continue;
      float mine[2] = {base[0][0], base[0][1]}, sums[2];
#pragma unroll
      for (uint32_t step = 1; step < STEPS; step++) {
        if (unit(i) >= step * UNITS_OF_STEP) mine[0] = base[step][0], mine[1] = base[step][1];
      }
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] = power_of_two(s[i][n / 4][n % 4] - mine[n % 4 / 2]);
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        sums[h] = ((s[i][0][2 * h] + s[i][0][2 * h + 1]) + s[i][1][2 * h]) + s[i][1][2 * h + 1];
      }
      reinterpret_cast<uint4*>(shared + WEIGHTS_AT)[unit(i) * WARP + lane] = {
          Pair::pack(s[i][0][0], s[i][0][1]), Pair::pack(s[i][0][2], s[i][0][3]), Pair::pack(s[i][1][0], s[i][1][1]),
          Pair::pack(s[i][1][2], s[i][1][3])};
      reinterpret_cast<float2*>(shared + SUMS_AT)[unit(i) * WARP + lane] = {sums[0], sums[1]};
    }
  }

  // o += weights . v, over units in ascending order; before each step what came before it shrinks.
  __device__ __forceinline__ void multiply_values(uint32_t values, uint32_t base) {
    const uint32_t at = lane_at<DIM>(values, lane % 16, lane / 16) ^ warp * SLICES << 5;
#pragma unroll
    for (uint32_t step = 0; step < STEPS; step++) {
      if (base + (step + 1) * STEP <= seen.first || base + step * STEP >= seen.end) continue;
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        weight[h] *= shrink[step][h];
#pragma unroll
        for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
          for (uint32_t n = 0; n < 4; n++) o[j][n / 2][2 * h + n % 2] *= shrink[step][h];
        }
      }
#pragma unroll
      for (uint32_t i = 0; i < UNITS_OF_STEP; i++) {
        const uint32_t u = step * UNITS_OF_STEP + i;
        const uint4 fragment = reinterpret_cast<const uint4*>(shared + WEIGHTS_AT)[u * WARP + lane];
        const float2 sums = reinterpret_cast<const float2*>(shared + SUMS_AT)[u * WARP + lane];
        const uint32_t weights[4] = {fragment.x, fragment.y, fragment.z, fragment.w};
        weight[0] += sums.x;
        weight[1] += sums.y;
        if (!has_slice()) continue;
#pragma unroll
        for (uint32_t j = 0; j < SLICES; j++) {
          uint32_t b[4];
          load_matrices_transposed(b, shared + (at ^ j << 5) + u * 32 * DIM);
          Pair::multiply(o[j][0], weights, b[0], b[1]);
          Pair::multiply(o[j][1], weights, b[2], b[3]);
        }
      }
    }
  }

  __device__ __forceinline__ void begin_span() {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      weight[h] = 0.0f, largest[h] = -INFINITY;
#pragma unroll
      for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) o[j][h][n] = 0.0f;
      }
    }
  }

  __device__ __forceinline__ void begin_all() {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      all_weight[h] = 0.0f, all_largest[h] = -INFINITY;
#pragma unroll
      for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) all[j][h][n] = 0.0f;
      }
    }
  }

  // The weight of a row is the sum over the four lanes that have it.
  __device__ __forceinline__ void end_span() {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      weight[h] += __shfl_xor_sync(ALL_LANES, weight[h], 1);
      weight[h] += __shfl_xor_sync(ALL_LANES, weight[h], 2);
    }
  }

  __device__ __forceinline__ void join_span() {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const Join join = join_of(all_largest[h], largest[h]);
      all_weight[h] = joined(join, all_weight[h], weight[h]);
      all_largest[h] = join.largest;
#pragma unroll
      for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) {
          float& x = all[j][n / 2][2 * h + n % 2];
          x = joined(join, x, o[j][n / 2][2 * h + n % 2]);
        }
      }
    }
  }

  // The lane's values of row `h`, each divided by `divisor`.
  __device__ __forceinline__ void write(float* out, uint32_t h, const float (&values)[SLICES][2][4], float divisor) const {
    if (!has_slice()) return;
#pragma unroll
    for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
      for (uint32_t n = 0; n < 4; n++) {
        const uint32_t d = (warp * SLICES + j) * 16 + lane % 4 * 2 + n / 2 * 8 + n % 2;
        if (d < p.cache.head_dim) out[d] = values[j][n / 2][2 * h + n % 2] / divisor;
      }
    }
  }

  __device__ __forceinline__ float* record_of(uint32_t row, uint32_t span) const {
    const size_t of_launch = (size_t)(token - p.first_token) * p.num_heads + first_head + row;
    return p.records + (of_launch * p.max_spans + span) * (p.cache.head_dim + 2);
  }

  // This span of the token's `spans`. The block that comes last of all joins them.
  __device__ __forceinline__ void join_records(uint32_t span, uint32_t spans, uint32_t ticket) {
    const uint32_t dim = p.cache.head_dim;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      if (lane / 4 + 8 * h >= heads) continue;
      float* record = record_of(lane / 4 + 8 * h, span);
      write(record, h, o, 1.0f);
      if (warp == 0 && lane % 4 == 0) record[dim] = weight[h], record[dim + 1] = largest[h];
    }
    uint32_t& before = *reinterpret_cast<uint32_t*>(shared + LARGEST_AT);
    __threadfence();
    meet();
    if (threadIdx.x == 0) before = atomicInc(&p.tickets[ticket], spans - 1);
    meet();
    if (before != spans - 1) return;
    __threadfence();
    float* out = p.out + ((size_t)token * p.num_heads + first_head) * dim;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < heads * dim; i += THREADS) out[i] = joined_records(record_of(i / dim, 0), spans, dim, i % dim);
  }

  __device__ __forceinline__ void write_all() const {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const uint32_t row = lane / 4 + 8 * h;
      if (row < heads) write(p.out + ((size_t)token * p.num_heads + first_head + row) * p.cache.head_dim, h, all, all_weight[h]);
    }
  }

  // All that the token sees, or of it span number `only` where spans have blocks of their own.
  __device__ __forceinline__ void run(const Seen& sees, uint32_t only, uint32_t ticket) {
    if (Source::ALL) EXPECT_SHARED(RING_AT + p.ring * PLACE_BYTES);
    const uint32_t first_span = sees.first / SPAN, spans = (sees.end + SPAN - 1) / SPAN - first_span;
    seen = sees;
    if (p.records != nullptr) {
      if (only >= spans) return source.wait();
      seen = {max(seen.first, (first_span + only) * SPAN), min(seen.end, (first_span + only + 1) * SPAN)};
    }
    next = seen.first / CHUNK * 2;
    last = (seen.end + CHUNK - 1) / CHUNK * 2;
    const uint32_t begin = next;
    fill_ring(p.early ? sees.end - 1 : NO_ROW);
    begin_all();
    begin_span();
#pragma unroll 1
    for (uint32_t n = begin; n < last; n++) {
      const uint32_t item = arrive(n > begin), base = n / 2 * CHUNK;
      if (n % 2 == 0) {
        multiply_keys(item);
        score(base);
        meet();
        weigh();
        continue;
      }
      multiply_values(item, base);
      if ((base + CHUNK) % SPAN != 0 && n + 1 != last) continue;
      end_span();
      if (p.records != nullptr && spans > 1) return join_records(only, spans, ticket);
      join_span();
      begin_span();
    }
    write_all();
  }
};

// Which block of a launch, or what stands for one.
struct BlockNumber {
  uint32_t x, y, z;
};

// Of a token, a tile of heads and a span.
template <class Kind, uint32_t DIM, class Source>
__device__ __forceinline__ void attention_token(const Attention& p, const BlockNumber& block, uint8_t* shared, const Source& source) {
  using Token = AttentionToken<Kind, DIM, Source>;
  const uint32_t tiles = (p.group + Token::ROWS - 1) / Token::ROWS, kv_head = tiles == 1 ? block.y : block.y / tiles;
  const uint32_t t = p.first_token + block.x, first = (block.y - kv_head * tiles) * Token::ROWS;
  // All asked for at once; of a token that is none, which only graphs have, they are left from another step. Their sequences have one
  // token each.
  const Seen sees = seen_by(p, t);
  const uint32_t end = end_of_tokens(p), first_block = p.step.cu_blocks[p.early ? t : p.step.sequences[t]];
  if (t >= end) return source.wait();
  const uint32_t ticket = block.x * p.cache.num_kv_heads * tiles + block.y;
  Token(p, p.step.block_tables + first_block, t, kv_head, first, shared, source).run(sees, block.z, ticket);
}
