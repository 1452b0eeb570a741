// Products on tensor cores, for any card from sm_80 on: out[r, j] = sum over i of x[r, i] * weight[j, i], + bias[j]
//   x: tiles of rows, with what rounding left of them or without; weight of any tiled form (tiles.cuh); bias, out f32
// Launch:  grid = (rows / group rounded up, works), block = 128 (`linear_stream_<form>_<rows of a group>`) or 256
//          (`linear_tiles_<form>_<operands of a row>`, shared memory as src/cuda/products.rs says).
// Bound:   `stream`: memory, the stored bytes of weight once for a group of rows, of which each warp has AHEAD records in flight.
//          `tiles`: arithmetic, 2 * rows * outs * cols operations; a warp's 32 x 64 sums read 96 KiB of shared memory for
//          each million of multiplications of the block.
// Meaning: src/reference/mod.rs, `linear`.
// Source:  none; the fragments are those of the PTX manual (tensor.cuh).
//
// Order of a sum: linear.cuh. It is the same in every kernel of this file, so a row has the same bits in any batch.
#include "linear.cuh"

// Words of a lane of a tile of rows in a chunk: group after group of eight columns. An instruction takes two.
struct RowWords {
  uint32_t words[CHUNK / 8];
};

__device__ __forceinline__ uint32_t row_word(const uint8_t* chunk, uint32_t i, uint32_t lane) {
  return reinterpret_cast<const uint32_t*>(chunk)[i * WARP + lane];
}

__device__ __forceinline__ RowWords row_words(const uint8_t* chunk, uint32_t lane) {
  RowWords row;
#pragma unroll
  for (uint32_t i = 0; i < CHUNK / 8; i++) row.words[i] = row_word(chunk, i, lane);
  return row;
}

// Few rows. A warp has a tile of 16 outs of a block of 64, one part of their sums, and TILES tiles of rows. What it multiplies
// goes straight to registers: records AHEAD chunks before they are due, asked for before the kernel that writes the rows has ended.
constexpr uint32_t STREAM_THREADS = BLOCK_TILES * WARP;
// Bytes of weights that a warp has in flight, about: 32 to 64 KiB in a multiprocessor, by the blocks that fit in it.
constexpr uint32_t STREAM_BYTES = 4096;

// The sums of chunks `begin` to `end`, the first of which `records` and `rows` are at; `ring` has the first records. A record is
// asked for when the one in its registers has been used: nothing is moved.
template <class Form, uint32_t TILES, uint32_t OPERANDS>
__device__ __forceinline__ void stream_sums(const Linear& p, typename Form::Raw (&ring)[STREAM_BYTES / Form::RECORD],
                                            const uint8_t* records, const uint8_t* (&rows)[TILES], uint32_t apart,
                                            uint32_t begin, uint32_t end, uint32_t lane, float (&sums)[4 * TILES]) {
  constexpr uint32_t AHEAD = STREAM_BYTES / Form::RECORD, APART = BLOCK_TILES * Form::RECORD;
  const int64_t to_rest = OPERANDS == 2 ? p.rest - p.rows : 0;
#pragma unroll 1
  for (uint32_t chunk = begin; chunk < end; chunk += AHEAD) {
#pragma unroll
    for (uint32_t i = 0; i < AHEAD; i++) {
      if (chunk + i >= end) break;
      RowWords words[TILES];
#pragma unroll
      for (uint32_t n = 0; n < TILES; n++) words[n] = row_words(rows[n] + i * apart, lane);
#pragma unroll
      for (uint32_t s = 0; s < STEPS; s++) {
        const Fragment weight = Form::fragment(ring[i], s);
#pragma unroll
        for (uint32_t n = 0; n < TILES; n++) {
          float(&c)[4] = reinterpret_cast<float(&)[4]>(sums[4 * n]);
          Form::Pair::multiply(c, weight.words, words[n].words[2 * s], words[n].words[2 * s + 1]);
          if (OPERANDS == 2) {
            const uint8_t* rest = rows[n] + to_rest + i * apart;
            Form::Pair::multiply(c, weight.words, row_word(rest, 2 * s, lane), row_word(rest, 2 * s + 1, lane));
          }
        }
      }
      if (chunk + i + AHEAD < end) ring[i] = Form::load(records + (AHEAD + i) * APART, lane);
    }
    records += AHEAD * APART;
#pragma unroll
    for (uint32_t n = 0; n < TILES; n++) rows[n] += AHEAD * apart;
  }
}

template <class Form, uint32_t TILES>
__device__ __forceinline__ void linear_stream(const Linear& p) {
  constexpr uint32_t AHEAD = STREAM_BYTES / Form::RECORD, APART = BLOCK_TILES * Form::RECORD;
  __shared__ uint32_t last;
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const Work work = work_of(p);
  const uint32_t begin = work.begin(work.part), end = work.begin(work.end);
  const uint8_t* records =
      work.product.weight.records + record_number(work.chunks, work.block, begin, warp) * Form::RECORD;
  typename Form::Raw ring[AHEAD] = {};
#pragma unroll
  for (uint32_t i = 0; i < AHEAD; i++) {
    if (begin + i < end) ring[i] = Form::load(records + i * APART, lane);
  }
  wait_for_previous();
  // Tiles of rows that are not there are read as the last one: their sums go nowhere.
  const uint32_t first_tile = work.group * TILES, last_tile = (p.num_rows - 1) / ROW_TILE;
  const RowPlace place = place_of_rows(p.num_rows, work.chunks, first_tile);
  const uint8_t* rows[TILES];
#pragma unroll
  for (uint32_t n = 0; n < TILES; n++) {
    const uint32_t further = min(first_tile + n, last_tile) - first_tile;
    rows[n] = p.rows + place.start + (size_t)begin * place.apart + further * ROW_CHUNK_BYTES;
  }
  float sums[4 * TILES] = {};
  if (p.rest) {
    stream_sums<Form, TILES, 2>(p, ring, records, rows, place.apart, begin, end, lane, sums);
  } else {
    stream_sums<Form, TILES, 1>(p, ring, records, rows, place.apart, begin, end, lane, sums);
  }
  if (!join_parts<STREAM_THREADS>(p, work, threadIdx.x, sums, last, [] { __syncthreads(); })) return;
#pragma unroll
  for (uint32_t n = 0; n < TILES; n++) {
    store_sums(p, work.product, work.block * BLOCK_ROWS + warp * TILE_ROWS, (first_tile + n) * ROW_TILE, lane,
               sums + 4 * n);
  }
}

// Many rows. A block has 128 outs and sixteen tiles of rows, or eight with their rests; its eight warps lie four by two over
// them. Chunks of weights and rows go through a ring in shared memory, copied STAGES - 1 chunks ahead.
constexpr uint32_t TILES_THREADS = 256;
constexpr uint32_t TILES_BLOCKS = 2;
// Tiles of weights of a warp, and tiles of rows.
constexpr uint32_t WARP_OUTS = 2;
constexpr uint32_t WARP_ROWS = 8;
constexpr uint32_t ROW_TILES = 2 * WARP_ROWS;

template <class Form, uint32_t OPERANDS>
struct TileStage {
  static constexpr uint32_t WEIGHT_BYTES = TILES_BLOCKS * BLOCK_TILES * Form::RECORD;
  static constexpr uint32_t BYTES = WEIGHT_BYTES + ROW_TILES * ROW_CHUNK_BYTES;
  // Four where a card of sm_89 has room for them, and for what the kernel declares beside them.
  static constexpr uint32_t STAGES = 4 * BYTES <= 98 * 1024 ? 4 : 3;
  // Tiles of rows of a block.
  static constexpr uint32_t TILES = ROW_TILES / OPERANDS;

  static __device__ __forceinline__ void copy_weights(const Work& work, uint8_t* stage, uint32_t chunk) {
    constexpr uint32_t HALF = WEIGHT_BYTES / TILES_BLOCKS;
    const uint32_t blocks = (work.product.weight.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    for (uint32_t at = threadIdx.x * 16; at < WEIGHT_BYTES; at += TILES_THREADS * 16) {
      const uint32_t block = min(work.block * TILES_BLOCKS + at / HALF, blocks - 1);
      const size_t record = record_number(work.chunks, block, chunk, 0) * Form::RECORD;
      copy_async(stage + at, work.product.weight.records + record + at % HALF);
    }
  }

  // Tiles that are not there stay as they are: their sums go nowhere.
  static __device__ __forceinline__ void copy_rows(const Linear& p, const Work& work, uint8_t* stage, uint32_t chunk) {
    const uint32_t tiles = (p.num_rows + ROW_TILE - 1) / ROW_TILE, first = work.group * TILES;
    const RowPlace place = place_of_rows(p.num_rows, work.chunks, first);
    const size_t begin = place.start + (size_t)chunk * place.apart;
#pragma unroll
    for (uint32_t i = 0; i < ROW_TILES * ROW_CHUNK_BYTES / (TILES_THREADS * 16); i++) {
      const uint32_t at = (i * TILES_THREADS + threadIdx.x) * 16, n = at / ROW_CHUNK_BYTES;
      const uint8_t* from = n % OPERANDS ? p.rest : p.rows;
      if (first + n / OPERANDS < tiles) {
        copy_async(stage + WEIGHT_BYTES + at, from + begin + n / OPERANDS * ROW_CHUNK_BYTES + at % ROW_CHUNK_BYTES);
      }
    }
  }
};

template <class Form, uint32_t OPERANDS>
__device__ __forceinline__ void multiply_stage(const uint8_t* stage, uint32_t lane, uint32_t warp,
                                               float (&sums)[4 * WARP_OUTS * WARP_ROWS / OPERANDS]) {
  typename Form::Raw raw[WARP_OUTS];
#pragma unroll
  for (uint32_t m = 0; m < WARP_OUTS; m++) {
    raw[m] = Form::load(stage + (warp % 4 * WARP_OUTS + m) * Form::RECORD, lane);
  }
  const uint8_t* rows = stage + TileStage<Form, OPERANDS>::WEIGHT_BYTES + warp / 4 * WARP_ROWS * ROW_CHUNK_BYTES + lane * 16;
#pragma unroll
  for (uint32_t s = 0; s < STEPS; s += 2) {
    Fragment weights[WARP_OUTS][2];
#pragma unroll
    for (uint32_t m = 0; m < WARP_OUTS; m++) {
      weights[m][0] = Form::fragment(raw[m], s);
      weights[m][1] = Form::fragment(raw[m], s + 1);
    }
#pragma unroll
    for (uint32_t n = 0; n < WARP_ROWS; n += OPERANDS) {
      uint32_t words[OPERANDS][4];
#pragma unroll
      for (uint32_t o = 0; o < OPERANDS; o++) load_matrices(words[o], rows + (n + o) * ROW_CHUNK_BYTES + s * 2 * 128);
#pragma unroll
      for (uint32_t m = 0; m < WARP_OUTS; m++) {
        float(&c)[4] = reinterpret_cast<float(&)[4]>(sums[4 * (m * WARP_ROWS / OPERANDS + n / OPERANDS)]);
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
#pragma unroll
          for (uint32_t o = 0; o < OPERANDS; o++) {
            Form::Pair::multiply(c, weights[m][k].words, words[o][2 * k], words[o][2 * k + 1]);
          }
        }
      }
    }
  }
}

template <class Form, uint32_t OPERANDS>
__device__ __forceinline__ void linear_tiles(const Linear& p) {
  using Stage = TileStage<Form, OPERANDS>;
  constexpr uint32_t VALUES = 4 * WARP_OUTS * WARP_ROWS / OPERANDS;
  DYNAMIC_SHARED(ring);
  __shared__ uint32_t last;
  const uint32_t lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const Work work = work_of(p);
  const uint32_t begin = work.begin(work.part), end = work.begin(work.end);
#pragma unroll 1
  for (uint32_t i = 0; i < Stage::STAGES - 1; i++) {
    if (begin + i < end) Stage::copy_weights(work, ring + i * Stage::BYTES, begin + i);
  }
  wait_for_previous();
#pragma unroll 1
  for (uint32_t i = 0; i < Stage::STAGES - 1; i++) {
    if (begin + i < end) Stage::copy_rows(p, work, ring + i * Stage::BYTES, begin + i);
    commit_copies();
  }
  const uint32_t first_tile = work.group * Stage::TILES + warp / 4 * (WARP_ROWS / OPERANDS);
  const bool has_rows = first_tile * ROW_TILE < p.num_rows;
  float totals[VALUES], sums[VALUES] = {};
  uint32_t stage = 0, part = work.part, part_end = work.begin(part + 1);
#pragma unroll 1
  for (uint32_t chunk = begin; chunk < end; chunk++) {
    wait_copies<Stage::STAGES - 2>();
    // All have what they copied, and nobody reads the stage before this one any more.
    __syncthreads();
    const uint32_t ahead = chunk + Stage::STAGES - 1, free = stage == 0 ? Stage::STAGES - 1 : stage - 1;
    if (ahead < end) {
      Stage::copy_weights(work, ring + free * Stage::BYTES, ahead);
      Stage::copy_rows(p, work, ring + free * Stage::BYTES, ahead);
    }
    commit_copies();
    if (has_rows) multiply_stage<Form, OPERANDS>(ring + stage * Stage::BYTES, lane, warp, sums);
    if (++stage == Stage::STAGES) stage = 0;
    if (chunk + 1 == part_end) {
#pragma unroll
      for (uint32_t i = 0; i < VALUES; i++) {
        totals[i] = part == work.part ? sums[i] : totals[i] + sums[i];
        sums[i] = 0.0f;
      }
      part_end = work.begin(++part + 1);
    }
  }
  if (!join_parts<TILES_THREADS>(p, work, threadIdx.x, totals, last, [] { __syncthreads(); })) return;
#pragma unroll
  for (uint32_t m = 0; m < WARP_OUTS; m++) {
#pragma unroll
    for (uint32_t n = 0; n < WARP_ROWS / OPERANDS; n++) {
      const uint32_t out = (work.block * TILES_BLOCKS * BLOCK_TILES + warp % 4 * WARP_OUTS + m) * TILE_ROWS;
      store_sums(p, work.product, out, (first_tile + n) * ROW_TILE, lane, totals + 4 * (m * WARP_ROWS / OPERANDS + n));
    }
  }
}

#define LINEAR(form)                                                                                            \
  KERNEL_EARLY(STREAM_THREADS, 4, linear_stream_##form##_8, Linear) { linear_stream<tile_##form, 1>(p); }      \
  KERNEL_EARLY(STREAM_THREADS, 2, linear_stream_##form##_32, Linear) { linear_stream<tile_##form, 4>(p); }     \
  KERNEL_EARLY(TILES_THREADS, 1, linear_tiles_##form##_1, Linear) { linear_tiles<tile_##form, 1>(p); }         \
  KERNEL_EARLY(TILES_THREADS, 1, linear_tiles_##form##_2, Linear) { linear_tiles<tile_##form, 2>(p); }
LINEAR(bf16)
LINEAR(f16)
LINEAR(q8_0)
LINEAR(q4_0)
LINEAR(q4_1)
LINEAR(q4_k)
LINEAR(f8)
LINEAR(wide)
#undef LINEAR
