// Attention for one token at a time: the heads that share a K and V head, at most sixteen, are the rows of one tile, and a work. Eight
// warps (or four, so that a multiprocessor has twice the works at a time) are at a chunk of positions at once: each has units of sixteen of
// them for the scores and a part of a head's values for the sums.
// Order of sums: attention.cu; steps of a chunk follow one another there, too.
//
// What a decode step waits for is not bytes but a chain of loads, positions, tables, K and V, and instructions that run once. So a block
// goes from work to work, and K and V of the next are on their way while it is busy with this one (token_ring.cuh). Of the first work all that no kernel of the step writes is asked for
// before the kernel before has ended (attention.cu says why it may be). Code is short: loops that are not unrolled, one place for
// each thing.
#pragma once

#include "rope_store.cuh"
#include "tiles.cuh"
#include "token_ring.cuh"

struct TokenAttention {
  Attention attention;
  Heads heads;         // where `turns` says so
  uint8_t* tiles;      // or none: `out` as the rows of a product (tiles.cuh) and not as f32, where spans have no blocks of their own
  uint32_t tile_rows;  // how many rows that product has
  uint32_t half;       // it takes f16, or bf16
};
static_assert(sizeof(TokenAttention) == 248, "src/cuda/params.rs asserts the same size");

template <class Kind, uint32_t DIM, uint32_t WARPS>
struct AttentionToken : TokenRing<Kind, DIM, WARPS> {
  using Ring = TokenRing<Kind, DIM, WARPS>;
  using Pair = typename Kind::Pair;
  using Part = typename Ring::Part;
  using Ring::THREADS, Ring::ROWS, Ring::UNIT, Ring::CHUNK, Ring::UNITS;
  using Ring::QUERIES_AT, Ring::WEIGHTS_AT, Ring::SUMS_AT, Ring::LARGEST_AT, Ring::RING_AT, Ring::UNIT_BYTES;
  using Ring::p, Ring::shared, Ring::lane, Ring::warp;
  using Ring::token, Ring::kv_head, Ring::first_head, Ring::heads, Ring::seen, Ring::spans, Ring::newest_is_seen;
  static constexpr uint32_t STEP = DIM > 128 ? 32 : 64;
  static constexpr uint32_t STEPS = CHUNK / STEP, UNITS_OF_STEP = STEP / UNIT;
  // Units, and sixteens of values, that are a warp's.
  static constexpr uint32_t MINE = UNITS > WARPS ? UNITS / WARPS : 1;
  static constexpr uint32_t SLICES = DIM / 16 > WARPS ? DIM / 16 / WARPS : 1;

  const TokenAttention& args;

  // Of this chunk: scores, later weights; how much the sums before each step shrink. Of this span: values, weight by lane, largest
  // score. Of the spans before, joined: values, weight, largest.
  float s[MINE][2][4], shrink[STEPS][2];
  float o[SLICES][2][4], weight[2], largest[2];
  float all[SLICES][2][4], all_weight[2], all_largest[2];

  __device__ __forceinline__ AttentionToken(const TokenAttention& p, uint8_t* shared) : Ring(p.attention, shared), args(p) {}

  __device__ __forceinline__ uint32_t unit(uint32_t i) const { return warp + i * WARPS; }
  static __device__ __forceinline__ bool is_unit(uint32_t u) { return UNITS >= WARPS || u < UNITS; }
  __device__ __forceinline__ bool has_slice() const { return DIM / 16 >= WARPS || warp < DIM / 16; }

  // A head's row of the ring.
  __device__ __forceinline__ void put(uint8_t* unit, uint32_t row, const float (&x)[LANE_VALUES]) const {
    if constexpr (Kind::WIDENED) {
      store<DIM>(Kind::KIND, x, DIM, unit + row * DIM, reinterpret_cast<float*>(unit + UNIT * DIM) + row * (DIM / CACHE_GROUP));
    } else {
      put_words(unit, row, x);
    }
  }

  static __device__ __forceinline__ void put_words(uint8_t* tile, uint32_t row, const float (&x)[LANE_VALUES]) {
#pragma unroll
    for (uint32_t n = 0; n < DIM / WARP; n++) {
      const uint32_t i = n * WARP + threadIdx.x % WARP;
      *reinterpret_cast<uint16_t*>(tile + chunk_at<DIM>(row, i / 8) + i % 8 * 2) = (uint16_t)Pair::pack(x[n], 0.0f);
    }
  }

  // What `rope_store` would do, a warp a head of q, k or v, but that q and k are not written; rows of the tile that are none are
  // anything, and so is what becomes of them. The newest K and V go to the cache and, where they were asked for, to the ring. Blocks
  // of other spans turn the same q, those of other heads of the group write the same K and V.
  __device__ __forceinline__ void turn() {
    const Heads& turned = args.heads;
    float* room_to_turn = reinterpret_cast<float*>(shared + WEIGHTS_AT) + warp * DIM;
    const uint32_t own = seen.end - 1, own_chunk = own / CHUNK, all = heads + (newest_is_seen ? 2 : 0), size = p.cache.block_size;
    const Part part = Ring::part_of(seen, own_chunk);
    const uint32_t block = newest_is_seen ? this->table[own / size] : 0;
    const uint32_t before = 2 * (own_chunk * UNITS + part.first - seen.first / UNIT);
#pragma unroll 1
    for (uint32_t i = warp; i < all; i += WARPS) {
      const uint32_t of_kv = kv_head + (i - heads) * p.cache.num_kv_heads;
      const HeadOf head = head_of(turned, p.cache, token, i < heads ? first_head + i : turned.num_heads + of_kv);
      HeadValues<DIM> values;
      const float(&x)[LANE_VALUES] = values.x;
      float2 angles[LANE_VALUES / 2];
      values.read_norm(turned, p.cache.head_dim, head);
      wait_for_previous();
      values.read_values(p.cache.head_dim, head);
      read_angles<DIM>(turned, token, angles);
      values.turn(turned, p.cache.head_dim, head, angles, room_to_turn);
      if (head.is_q) {
        put_words(shared + QUERIES_AT, i, x);
        continue;
      }
      const size_t row = (size_t)(block * p.cache.num_kv_heads + kv_head) * size + own % size;
      store_row<DIM>(p.cache, Kind::KIND, x, head.is_v, row);
      if (own_chunk * 2 + head.is_v >= this->next) continue;
      const uint32_t u = own / UNIT - own_chunk * UNITS - part.first;
      put(shared + this->ring_at(this->there + before + (head.is_v ? part.units : 0) + u), own % UNIT, x);
    }
    wait_for_previous();
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
  __device__ __forceinline__ void multiply_keys(const Part& part) {
    const uint32_t at = lane_at<DIM>(0, lane / 16 * 8 + lane % 8, lane / 8 % 2), of_q = lane_at<DIM>(QUERIES_AT, lane % 16, lane / 16);
#pragma unroll
    for (uint32_t i = 0; i < MINE; i++) {
#pragma unroll
      for (uint32_t n = 0; n < 8; n++) s[i][n / 4][n % 4] = 0.0f;
      if (!part.has(unit(i))) continue;
      const uint32_t keys = this->unit_at(part, unit(i)) + at;
#pragma unroll
      for (uint32_t k = 0; k < DIM / 16; k++) {
        uint32_t a[4], b[4];
        load_matrices(a, shared + (of_q ^ k << 5));
        load_matrices(b, shared + (keys ^ k << 5));
        Pair::multiply(s[i][0], a, b[0], b[1]);
        Pair::multiply(s[i][1], a, b[2], b[3]);
      }
    }
  }

  // Scores as logarithms to base 2, minus infinity where the token does not see; tells the largest of each unit and row.
  __device__ __forceinline__ void score(const Part& part, uint32_t base) {
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
      if (!part.has(unit(i))) {
        if (is_unit(unit(i)) && lane < ROWS) told[lane * UNITS + unit(i)] = -INFINITY;
        continue;
      }
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
  __device__ __forceinline__ void weigh(const Part& part) {
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
      if (!part.has(unit(i))) continue;
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
  __device__ __forceinline__ void multiply_values(const Part& part, uint32_t base) {
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
      const uint32_t first = step * UNITS_OF_STEP, end = first + UNITS_OF_STEP;
      if (part.has(first) && part.has(end - 1)) {
#pragma unroll
        for (uint32_t u = first; u < end; u++) multiply_unit(part, u);
      } else {
#pragma unroll 1
        for (uint32_t u = max(first, part.first); u < min(end, part.first + part.units); u++) multiply_unit(part, u);
      }
    }
  }

  __device__ __forceinline__ void multiply_unit(const Part& part, uint32_t u) {
    const uint32_t at = lane_at<DIM>(0, lane % 16, lane / 16) ^ warp * SLICES << 5, values = this->unit_at(part, u) + at;
    const uint4 fragment = reinterpret_cast<const uint4*>(shared + WEIGHTS_AT)[u * WARP + lane];
    const float2 sums = reinterpret_cast<const float2*>(shared + SUMS_AT)[u * WARP + lane];
    const uint32_t weights[4] = {fragment.x, fragment.y, fragment.z, fragment.w};
    weight[0] += sums.x;
    weight[1] += sums.y;
    if (!has_slice()) return;
#pragma unroll
    for (uint32_t j = 0; j < SLICES; j++) {
      uint32_t b[4];
      load_matrices_transposed(b, shared + (values ^ j << 5));
      Pair::multiply(o[j][0], weights, b[0], b[1]);
      Pair::multiply(o[j][1], weights, b[2], b[3]);
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

  // The lane's values of row `h` of a span.
  __device__ __forceinline__ void write(float* record, uint32_t h) const {
    if (!has_slice()) return;
#pragma unroll
    for (uint32_t j = 0; j < SLICES; j++) {
#pragma unroll
      for (uint32_t n = 0; n < 4; n++) {
        const uint32_t d = (warp * SLICES + j) * 16 + lane % 4 * 2 + n / 2 * 8 + n % 2;
        if (d < p.cache.head_dim) record[d] = o[j][n / 2][2 * h + n % 2];
      }
    }
  }

  __device__ __forceinline__ float* record_of(uint32_t row, uint32_t span) const {
    const size_t of_launch = (size_t)(token - p.first_token) * p.num_heads + first_head + row;
    return p.records + (of_launch * p.max_spans + span) * (p.cache.head_dim + 2);
  }

  // This span of the token's `spans`. The block that comes last of all joins them.
  __device__ __forceinline__ void join_records(uint32_t span) {
    const uint32_t dim = p.cache.head_dim;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      if (lane / 4 + 8 * h >= heads) continue;
      float* record = record_of(lane / 4 + 8 * h, span);
      write(record, h);
      if (warp == 0 && lane % 4 == 0) record[dim] = weight[h], record[dim + 1] = largest[h];
    }
    uint32_t& before = *reinterpret_cast<uint32_t*>(shared + LARGEST_AT);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = atomicInc(&p.tickets[blockIdx.x], spans - 1);
    __syncthreads();
    if (before != spans - 1) return;
    __threadfence();
    float* out = p.out + ((size_t)token * p.num_heads + first_head) * dim;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < heads * dim; i += THREADS) out[i] = joined_records(record_of(i / dim, 0), spans, dim, i % dim);
  }

  // As f32, or as rows of a product, in pairs; heads have as many values then.
  __device__ __forceinline__ void write_all() const {
    const uint32_t dim = p.cache.head_dim;
    if (!has_slice()) return;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
      const uint32_t row = lane / 4 + 8 * h;
      if (row >= heads) continue;
#pragma unroll
      for (uint32_t n = 0; n < 2 * SLICES; n++) {
        const uint32_t d = (warp * SLICES + n / 2) * 16 + lane % 4 * 2 + n % 2 * 8;
        const float low = all[n / 2][n % 2][2 * h] / all_weight[h], high = all[n / 2][n % 2][2 * h + 1] / all_weight[h];
        if (d < dim) write_pair((first_head + row) * dim + d, d + 1 < dim, low, high);
      }
    }
  }

  // Two values of the token's row, of which the second may not be there.
  __device__ __forceinline__ void write_pair(uint32_t col, bool both, float low, float high) const {
    const uint32_t cols = p.num_heads * p.cache.head_dim;
    if (args.tiles) {
      const RowPlace place = place_of_rows(args.tile_rows, chunks_of(cols), token / ROW_TILE);
      uint8_t* const to = args.tiles + place.start + (size_t)(col / ::CHUNK) * place.apart + row_place(token, col % ::CHUNK);
      *reinterpret_cast<uint32_t*>(to) = row_pair(low, high, args.half);
      return;
    }
    float* const to = p.out + (size_t)token * cols + col;
    to[0] = low;
    if (both) to[1] = high;
  }

  // Work after work, item after item.
  __device__ __forceinline__ void run() {
    EXPECT_SHARED(RING_AT + p.ring * UNIT_BYTES);
    uint32_t n = 0, end_of_items = 0;
#pragma unroll 1
    while (true) {
      const bool begins = n == end_of_items;
      this->go_on(!begins);
      if (begins) {
        this->take_work();
        if (seen.first >= seen.end) return wait_for_previous();
        n = seen.first / CHUNK * 2;
        end_of_items = (seen.end + CHUNK - 1) / CHUNK * 2;
        if (p.turns) turn();
        else bring_queries();
        begin_all();
        begin_span();
        continue;
      }
      const uint32_t base = n / 2 * CHUNK;
      const Part part = this->take_item(n / 2);
      if (n++ % 2 == 0) {
        multiply_keys(part);
        score(part, base);
        __syncthreads();
        weigh(part);
        continue;
      }
      multiply_values(part, base);
      if ((base + CHUNK) % SPAN != 0 && n != end_of_items) continue;
      end_span();
      if (spans > 1) return join_records(blockIdx.z);
      join_span();
      begin_span();
      if (n != end_of_items) continue;
      write_all();
      if (this->work >= this->works) return;
    }
  }
};

template <class Kind, uint32_t DIM, uint32_t WARPS>
__device__ __forceinline__ void attention_token(const TokenAttention& p, uint8_t* shared) {
  // All that a kernel of the step wrote, unless the block turns its own heads.
  if (!p.attention.turns) wait_for_previous();
  AttentionToken<Kind, DIM, WARPS>(p, shared).run();
}
