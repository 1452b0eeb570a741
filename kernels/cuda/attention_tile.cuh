// A block of attention on tensor cores: `WARPS / SHARE` tiles of 16 rows, a row a head of a token; all rows of a block share a K and V
// head. `SHARE` warps work on a tile: each takes a part of a step's positions for the scores and a part of a head's values for the
// sums. Order of sums: attention.cu; it is the same for every SHARE and WARPS, and in attention_token.cuh.
#pragma once

#include "attention.cuh"
#include "cache.cuh"

// The rows of a block: row r is head `first_head + r % heads` of token `first + r / heads`, both counted from `skipped` rows on.
struct Rows {
  uint32_t first, end;  // tokens; those from `end` on are none
  uint32_t kv_head;
  uint32_t first_head, heads;
  uint32_t skipped;
};

// Those of this block, of ROWS; false where all of them are none.
template <uint32_t ROWS>
__device__ __forceinline__ bool rows_of_block(const Attention& p, Rows& rows) {
  // Later tokens see more: the longest blocks begin first, of all heads.
  const uint32_t place = blockIdx.y * gridDim.x + blockIdx.x, kv_head = place % gridDim.y;
  const uint32_t skipped = (gridDim.x - 1 - place / gridDim.y) * ROWS;
  rows = {p.first_token, end_of_tokens(p), kv_head, kv_head * p.group, p.group, skipped};
  return p.first_token + skipped / p.group < rows.end;
}

// The same number, and what follows from it is not computed before: the compiler would keep dozens of sums in registers from the
// beginning on for the few times that they are used.
__device__ __forceinline__ uint32_t computed_here(uint32_t x) {
#ifndef CHRYSALIS_EMULATE
  asm volatile("" : "+r"(x));
#endif
  return x;
}

// Of K and V there are PLACES steps, there or on their way; KEPT sixteens of the queries' values stay in registers, as many as there is
// room for.
template <class Kind, uint32_t DIM, uint32_t SHARE, uint32_t WARPS, uint32_t PLACES = 3,
          uint32_t KEPT = (DIM > 128 ? 1 : DIM > 64 ? 4 : DIM / 16)>
struct AttentionTile {
  using Pair = typename Kind::Pair;
  static constexpr uint32_t THREADS = WARPS * WARP;
  static constexpr uint32_t TILES = WARPS / SHARE;
  static constexpr uint32_t ROWS = TILES * 16;
  // Positions of a step, and of those, units of sixteen.
  static constexpr uint32_t STEP = DIM > 128 ? 32 : 64;
  static constexpr uint32_t UNITS = STEP / 16;
  // Units, and sixteens of values, that are a warp's.
  static constexpr uint32_t MINE = UNITS / SHARE;
  static constexpr uint32_t SLICES = DIM / 16 / SHARE;
  static constexpr uint32_t PLACE_BYTES = Kind::bytes(STEP, DIM);
  static constexpr uint32_t READ_AT = PLACES * PLACE_BYTES;
  static constexpr uint32_t QUERIES_AT = READ_AT + (Kind::WIDENED ? STEP * DIM * 2 : 0);
  static constexpr uint32_t SHARED_AT = QUERIES_AT + ROWS * DIM * 2;
  // What the warps of a tile tell each other: of each unit weights as a fragment, their sums by lane, the largest score of each row.
  static constexpr uint32_t WEIGHTS_BYTES = UNITS * WARP * 16, SUMS_BYTES = UNITS * WARP * 8, LARGEST_BYTES = UNITS * 16 * 4;
  static constexpr uint32_t TILE_BYTES = WEIGHTS_BYTES + SUMS_BYTES + LARGEST_BYTES;
  static constexpr uint32_t NUMBERS_AT = SHARED_AT + (SHARE > 1 ? TILES * TILE_BYTES : 0);
  static constexpr uint32_t ASIDE_AT = NUMBERS_AT + 2 * SPAN * 4;
  static_assert(PLACE_BYTES % (2 * DIM) == 0 && READ_AT % (2 * DIM) == 0 && QUERIES_AT % (2 * DIM) == 0, "for lane_at");
  static constexpr uint32_t BYTES = ASIDE_AT + 2 * THREADS * 16 + WARPS * 16;

  __device__ __forceinline__ AttentionTile(const Attention& p, const Rows& rows, uint8_t* shared)
      : p(p), rows(rows), shared(shared) {}

  const Attention& p;
  const Rows& rows;
  uint8_t* const shared;
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const uint32_t tile = warp / SHARE, part = warp % SHARE;

  // What the lane's two rows see, lane / 4 and 8 further: `x..z` and `y..w`. Nothing: 0..0. What is seldom used lies aside, as
  // registers are short.
  __device__ __forceinline__ uint4& sees() const { return reinterpret_cast<uint4*>(shared + ASIDE_AT)[threadIdx.x]; }
  // Of the spans before, joined: weights and largest scores of these rows.
  __device__ __forceinline__ float4& before() const { return reinterpret_cast<float4*>(shared + ASIDE_AT)[THREADS + threadIdx.x]; }
  // Of the rows of the warp's tile that see something, the least first and the most of the ends; of all, the most first and the
  // least of the ends.
  __device__ __forceinline__ uint4& bounds() const { return reinterpret_cast<uint4*>(shared + ASIDE_AT)[2 * THREADS + warp]; }

  uint32_t q[KEPT][4];
  // Of this step: scores, later weights. Of this span: values, weight by lane, largest score. Of the spans before, joined: values.
  float s[MINE][2][4];
  float o[SLICES][2][4], weight[2], largest[2];
  float all[SLICES][2][4];

  __device__ __forceinline__ uint8_t* told() const { return shared + SHARED_AT + tile * TILE_BYTES; }
  __device__ __forceinline__ uint32_t unit(uint32_t i) const { return part + i * SHARE; }

  // Queries, rounded to the 16 bits that multiply; rows that are none are zero.
  __device__ __forceinline__ void bring_queries() {
    const uint32_t dim = p.cache.head_dim;
    for (uint32_t i = threadIdx.x; i < ROWS * (DIM / 8); i += THREADS) {
      const uint32_t r = i / (DIM / 8), chunk = i % (DIM / 8);
      const uint32_t t = rows.first + (rows.skipped + r) / rows.heads, head = rows.first_head + (rows.skipped + r) % rows.heads;
      const float* from = p.q + ((size_t)t * p.num_heads + head) * dim + chunk * 8;
      float x[8];
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) x[n] = t < rows.end && chunk * 8 + n < dim ? from[n] : 0.0f;
      *reinterpret_cast<uint4*>(shared + QUERIES_AT + chunk_at<DIM>(r, chunk)) = {
          Pair::pack(x[0], x[1]), Pair::pack(x[2], x[3]), Pair::pack(x[4], x[5]), Pair::pack(x[6], x[7])};
    }
    meet_first<THREADS>();
#pragma unroll
    for (uint32_t k = 0; k < KEPT; k++) query(q[k], k);
  }

  // Sixteen values of the tile's queries as a fragment.
  __device__ __forceinline__ void query(uint32_t (&out)[4], uint32_t k) const {
    load_matrices(out, shared + (lane_at<DIM>(QUERIES_AT, tile * 16 + lane % 16, lane / 16) ^ k << 5));
  }

  // The lane's rows of tokens `from..to`, which are of one sequence.
  __device__ __forceinline__ void choose_rows(uint32_t from, uint32_t to) {
    uint32_t first[2], end[2], least_first = NO_ROW, least_end = NO_ROW, most_first = 0, most_end = 0;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const uint32_t r = rows.skipped + tile * 16 + lane / 4 + 8 * h, t = rows.first + r / rows.heads;
      first[h] = end[h] = 0;
      if (t >= from && t < to) {
        const Seen seen = seen_by(p, t);
        first[h] = seen.first;
        end[h] = seen.end;
        least_first = min(least_first, seen.first);
        most_end = max(most_end, seen.end);
      }
      most_first = max(most_first, first[h]);
      least_end = min(least_end, end[h]);
    }
    for (uint32_t apart = 4; apart < WARP; apart *= 2) {
      least_first = min(least_first, __shfl_xor_sync(ALL_LANES, least_first, apart));
      least_end = min(least_end, __shfl_xor_sync(ALL_LANES, least_end, apart));
      most_first = max(most_first, __shfl_xor_sync(ALL_LANES, most_first, apart));
      most_end = max(most_end, __shfl_xor_sync(ALL_LANES, most_end, apart));
    }
    sees() = {first[0], first[1], end[0], end[1]};
    if (lane == 0) bounds() = {least_first, most_end, most_first, least_end};
  }

  __device__ __forceinline__ void begin_span() {
#pragma unroll
    for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) o[j][n / 4][n % 4] = 0.0f;
    }
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) weight[h] = 0.0f, largest[h] = -INFINITY;
  }

  // s = q . k of the warp's units, over sixteens of values in ascending order.
  __device__ __forceinline__ void multiply_keys(uint32_t keys) {
    const uint32_t at = lane_at<DIM>(keys, lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] = 0.0f;
    }
#pragma unroll
    for (uint32_t k = 0; k < DIM / 16; k++) {
      uint32_t loaded[4];
      if (k >= KEPT) query(loaded, k);
      const uint32_t(&a)[4] = k < KEPT ? q[k < KEPT ? k : 0] : loaded;
#pragma unroll
      for (uint32_t i = 0; i < MINE; i++) {
        uint32_t b[4];
        load_matrices(b, shared + (at ^ k << 5) + unit(i) * 32 * DIM);
        Pair::multiply(s[i][0], a, b[0], b[1]);
        Pair::multiply(s[i][1], a, b[2], b[3]);
      }
    }
  }

  __device__ __forceinline__ void cap() {
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] = p.softcap * LOG2_E * tanhf(s[i][n / 4][n % 4]);
    }
  }

  // Minus infinity is the score of what a row does not see.
  __device__ __forceinline__ void hide(uint32_t base) {
    const uint4 rows_see = sees();
    const uint32_t first[2] = {rows_see.x, rows_see.y}, end[2] = {rows_see.z, rows_see.w};
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) {
        const uint32_t h = n % 4 / 2, position = base + unit(i) * 16 + n / 4 * 8 + lane % 4 * 2 + n % 2;
        if (position < first[h] || position >= end[h]) s[i][n / 4][n % 4] = -INFINITY;
      }
    }
  }

  // Scores as logarithms to base 2, and the largest of each of the lane's rows.
  __device__ __forceinline__ void score(uint32_t base, bool edge, float (&most)[2]) {
    const float factor = p.softcap > 0.0f ? p.scale / p.softcap : p.scale * LOG2_E;
    // Each question is asked once, not of every score.
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] *= factor;
    }
    if (p.softcap > 0.0f) cap();
    if (edge) hide(base);
    // Four chains: the largest is the same in any order.
    float largest_of[2][2] = {{-INFINITY, -INFINITY}, {-INFINITY, -INFINITY}};
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) largest_of[n / 4][n % 4 / 2] = fmaxf(largest_of[n / 4][n % 4 / 2], s[i][n / 4][n % 4]);
    }
    most[0] = fmaxf(largest_of[0][0], largest_of[1][0]), most[1] = fmaxf(largest_of[0][1], largest_of[1][1]);
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      most[h] = fmaxf(most[h], __shfl_xor_sync(ALL_LANES, most[h], 1));
      most[h] = fmaxf(most[h], __shfl_xor_sync(ALL_LANES, most[h], 2));
    }
    if constexpr (SHARE > 1) {
      float* told_largest = reinterpret_cast<float*>(told() + WEIGHTS_BYTES + SUMS_BYTES);
      if (lane % 4 == 0) {
        told_largest[part * 16 + lane / 4] = most[0];
        told_largest[part * 16 + lane / 4 + 8] = most[1];
      }
    }
  }

  // Weights relative to the largest score so far. Sums of values before are to shrink by `shrink`.
  __device__ __forceinline__ void weigh(float (&most)[2], float (&shrink)[2]) {
    if constexpr (SHARE > 1) {
      const float* told_largest = reinterpret_cast<const float*>(told() + WEIGHTS_BYTES + SUMS_BYTES);
#pragma unroll
      for (uint32_t i = 0; i < SHARE; i++) {
        most[0] = fmaxf(most[0], told_largest[i * 16 + lane / 4]);
        most[1] = fmaxf(most[1], told_largest[i * 16 + lane / 4 + 8]);
      }
    }
    float base[2];
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      most[h] = fmaxf(most[h], largest[h]);
      base[h] = most[h] == -INFINITY ? 0.0f : most[h];
      shrink[h] = power_of_two(largest[h] - base[h]);
      largest[h] = most[h];
      weight[h] *= shrink[h];
    }
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] = power_of_two(s[i][n / 4][n % 4] - base[n % 4 / 2]);
    }
  }

  // As fragments, and added up.
  __device__ __forceinline__ void pack_weights(uint32_t (&weights)[SHARE > 1 ? 1 : UNITS][4]) {
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
      float sums[2];
#pragma unroll
      for (uint32_t h = 0; h < 2; h++) {
        sums[h] = ((s[i][0][2 * h] + s[i][0][2 * h + 1]) + s[i][1][2 * h]) + s[i][1][2 * h + 1];
      }
      const uint4 fragment = {Pair::pack(s[i][0][0], s[i][0][1]), Pair::pack(s[i][0][2], s[i][0][3]),
                              Pair::pack(s[i][1][0], s[i][1][1]), Pair::pack(s[i][1][2], s[i][1][3])};
      if constexpr (SHARE > 1) {
        reinterpret_cast<uint4*>(told())[unit(i) * WARP + lane] = fragment;
        reinterpret_cast<float2*>(told() + WEIGHTS_BYTES)[unit(i) * WARP + lane] = {sums[0], sums[1]};
      } else {
        weights[i][0] = fragment.x, weights[i][1] = fragment.y, weights[i][2] = fragment.z, weights[i][3] = fragment.w;
        weight[0] += sums[0];
        weight[1] += sums[1];
      }
    }
  }

  __device__ __forceinline__ void shrink_values(const float (&shrink)[2]) {
    // Times one is left out, which it mostly is of all rows of a warp.
    if (__any_sync(ALL_LANES, shrink[0] != 1.0f || shrink[1] != 1.0f)) {
#pragma unroll
      for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
        for (uint32_t n = 0; n < 8; n++) o[j][n / 4][n % 4] *= shrink[n % 4 / 2];
      }
    }
  }

  // o += weights . v, over units in ascending order.
  __device__ __forceinline__ void multiply_values(uint32_t values, uint32_t (&weights)[SHARE > 1 ? 1 : UNITS][4]) {
    const uint32_t at = lane_at<DIM>(values, lane % 16, lane / 16) ^ part * SLICES << 5;
#pragma unroll
    for (uint32_t u = 0; u < UNITS; u++) {
      if constexpr (SHARE > 1) {
        const uint4 fragment = reinterpret_cast<const uint4*>(told())[u * WARP + lane];
        const float2 sums = reinterpret_cast<const float2*>(told() + WEIGHTS_BYTES)[u * WARP + lane];
        weights[0][0] = fragment.x, weights[0][1] = fragment.y, weights[0][2] = fragment.z, weights[0][3] = fragment.w;
        weight[0] += sums.x;
        weight[1] += sums.y;
      }
#pragma unroll
      for (uint32_t j = 0; j < SLICES; j++) {
        uint32_t b[4];
        load_matrices_transposed(b, shared + (at ^ j << 5) + u * 32 * DIM);
        Pair::multiply(o[j][0], weights[SHARE > 1 ? 0 : u], b[0], b[1]);
        Pair::multiply(o[j][1], weights[SHARE > 1 ? 0 : u], b[2], b[3]);
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

  __device__ __forceinline__ void begin_all() {
#pragma unroll
    for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) all[j][n / 4][n % 4] = 0.0f;
    }
    before() = {0.0f, 0.0f, -INFINITY, -INFINITY};
  }

  // How the spans before and this one count in those of both, by row; the weights of both.
  __device__ __forceinline__ void join_weights(Join (&joins)[2]) {
    const float4 b = before();
    joins[0] = join_of(b.z, largest[0]), joins[1] = join_of(b.w, largest[1]);
    before() = {joined(joins[0], b.x, weight[0]), joined(joins[1], b.y, weight[1]), joins[0].largest, joins[1].largest};
  }

  __device__ __forceinline__ void join_span() {
    Join joins[2];
    join_weights(joins);
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
      for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
        for (uint32_t n = 0; n < 4; n++) {
          float& x = all[j][n / 2][2 * h + n % 2];
          x = joined(joins[h], x, o[j][n / 2][2 * h + n % 2]);
        }
      }
    }
  }

  // The number of the lane's row `h` among all heads of all tokens.
  __device__ __forceinline__ uint32_t number(uint32_t h) const {
    const uint32_t r = rows.skipped + tile * 16 + lane / 4 + 8 * h;
    return (rows.first + r / rows.heads) * p.num_heads + rows.first_head + r % rows.heads;
  }

  // The lane's values of row `h`, each divided by `divisor`.
  __device__ __forceinline__ void write(float* out, uint32_t h, const float (&values)[SLICES][2][4], float divisor) const {
    const uint32_t column = computed_here(part * SLICES * 16 + lane % 4 * 2);
#pragma unroll
    for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
      for (uint32_t n = 0; n < 4; n++) {
        const uint32_t d = column + j * 16 + n / 2 * 8 + n % 2;
        if (d < p.cache.head_dim) out[d] = values[j][n / 2][2 * h + n % 2] / divisor;
      }
    }
  }

  __device__ __forceinline__ void write_record(uint32_t span) const {
    const uint32_t dim = p.cache.head_dim, first[2] = {sees().x, sees().y}, end[2] = {sees().z, sees().w};
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      if (first[h] >= (span + 1) * SPAN || end[h] <= span * SPAN) continue;
      const size_t of_launch = number(h) - p.first_token * p.num_heads;
      float* record = p.records + (of_launch * p.max_spans + span - first[h] / SPAN) * (dim + 2);
      write(record, h, o, 1.0f);
      if (part == 0 && lane % 4 == 0) record[dim] = weight[h], record[dim + 1] = largest[h];
    }
  }

  __device__ __forceinline__ void write_all() const {
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      if ((h == 0 ? sees().z : sees().w) != 0) write(p.out + (size_t)number(h) * p.cache.head_dim, h, all, h == 0 ? before().x : before().y);
    }
  }

  // Numbers of the cache's rows of span `span`, none outside of what is seen.
  __device__ __forceinline__ void number_rows(uint32_t span, uint32_t sequence, const Seen& seen) {
    uint32_t* numbers = reinterpret_cast<uint32_t*>(shared + NUMBERS_AT) + span % 2 * SPAN;
    for (uint32_t i = threadIdx.x; i < SPAN; i += THREADS) {
      const uint32_t position = span * SPAN + i;
      const bool there = position >= seen.first && position < seen.end;
      numbers[i] = there ? (uint32_t)cache_row(p.cache, p.step, sequence, position, rows.kv_head) : NO_ROW;
    }
  }

  // K of step n / 2, or V where n is odd.
  __device__ __forceinline__ void bring(uint32_t n, uint32_t place) {
    const uint32_t* numbers = reinterpret_cast<const uint32_t*>(shared + NUMBERS_AT) + n / 2 * STEP % (2 * SPAN);
    Kind::template bring<STEP, DIM, THREADS>(shared + place * PLACE_BYTES, n % 2 ? p.cache.v : p.cache.k,
                                             n % 2 ? p.cache.v_scales : p.cache.k_scales, numbers, p.cache.head_dim);
  }

  // Waits until the next of the ring is there and everybody is done with the one before, whose place then gets number `next`.
  // Where it lies.
  __device__ __forceinline__ uint32_t arrive(uint32_t& place, uint32_t next, uint32_t last) {
    wait_copies<PLACES - 2>();
    __syncthreads();
    const uint32_t there = place * PLACE_BYTES;
    if (next < last) bring(next, place == 0 ? PLACES - 1 : place - 1);
    commit_copies();
    place = place + 1 == PLACES ? 0 : place + 1;
    if constexpr (Kind::WIDENED) {
      Kind::template widen<STEP, DIM, THREADS>(shared + READ_AT, shared + there);
      __syncthreads();
      return READ_AT;
    } else {
      return there;
    }
  }

  // The rows of tokens `from..to`, which are of one sequence: all that they see, or of it span number `only`.
  __device__ __forceinline__ void attend(uint32_t from, uint32_t to, bool split, uint32_t only) {
    const uint32_t sequence = p.step.sequences[from];
    Seen seen = {seen_by(p, from).first, seen_by(p, to - 1).end};
    if (split) {
      const uint32_t span = seen.first / SPAN + only;
      if (span * SPAN >= seen.end) return;
      seen = {max(seen.first, span * SPAN), min(seen.end, (span + 1) * SPAN)};
    }
    choose_rows(from, to);
    __syncthreads();
    number_rows(seen.first / SPAN, sequence, seen);
    number_rows(seen.first / SPAN + 1, sequence, seen);
    __syncthreads();
    const uint32_t last = (seen.end + STEP - 1) / STEP * 2;
    uint32_t n = seen.first / STEP * 2, place = 0;
    for (uint32_t i = 0; i < PLACES - 1; i++) {
      if (n + i < last) bring(n + i, i);
      commit_copies();
    }
    begin_all();
    begin_span();
    for (; n < last; n += 2) {
      const uint32_t base = n / 2 * STEP, span = base / SPAN;
      const uint4 of_tile = bounds();
      const bool seen_here = base < of_tile.y && base + STEP > of_tile.x;
      const bool edge = base < of_tile.z || base + STEP > of_tile.w;
      float most[2];
      uint32_t weights[SHARE > 1 ? 1 : UNITS][4];
      const uint32_t keys = arrive(place, n + PLACES - 1, last);
      if (base % SPAN == 0 && base > seen.first) number_rows(span + 1, sequence, seen);
      if (seen_here) multiply_keys(keys), score(base, edge, most);
      if constexpr (SHARE > 1) __syncthreads();
      float shrink[2];
      if (seen_here) weigh(most, shrink), pack_weights(weights), shrink_values(shrink);
      const uint32_t values = arrive(place, n + PLACES, last);
      if (seen_here) multiply_values(values, weights);
      if ((base + STEP) % SPAN == 0 || n + 2 == last) {
        end_span();
        if (split) {
          write_record(span);
        } else {
          join_span();
          begin_span();
        }
      }
    }
    if (!split) write_all();
  }

  // One past the last token from `from` on that is of the same sequence.
  __device__ __forceinline__ uint32_t end_of_sequence(uint32_t from, uint32_t to) const {
    const uint32_t* sequences = p.step.sequences;
    uint32_t same = from, other = to;
    while (other - same > 1) {
      const uint32_t middle = same + (other - same) / 2;
      if (sequences[middle] == sequences[from]) same = middle;
      else other = middle;
    }
    return other;
  }

  __device__ __forceinline__ void run(bool split, uint32_t only) {
    EXPECT_SHARED(BYTES);
    bring_queries();
    const uint32_t to = min(rows.end, rows.first + (rows.skipped + ROWS - 1) / rows.heads + 1);
    for (uint32_t from = rows.first + rows.skipped / rows.heads; from < to;) {
      const uint32_t end = end_of_sequence(from, to);
      attend(from, end, split, only);
      from = end;
    }
  }
};
