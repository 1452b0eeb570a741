// Norms of rows as a product takes them: tiles[r, :] = norm of x[r, :]; and, where there is an addition, before that
// x[r, :] += what is added, or its norm
//   x, added [rows, cols] f32; tiles, rest: as input.cu
// Launch:  block = 256. `normed_tiles_<n>`: grid = rows / n rounded up; dynamic shared memory: n rows, each `row_room` floats.
//          `normed_tiles_wide`, for rows that are too long for that: grid = rows.
// Bound:   a step of few rows: latency. Many: memory, 6 bytes a value, 14 with an addition.
// Meaning: src/reference/mod.rs, `input_row` and `add`.
// Source:  Zhang & Sennrich 2019, arXiv:1910.07467.
//
// All that a thread takes of 4,096 columns is asked for at once, the norm's weights before the kernel before has ended; rows come and
// sums go four columns at a time. The norm's sum has an order of its own (input.cuh), and a tile another: both find the row in shared
// memory. Two rows to a block fill the sectors of 32 bytes that tiles are written in, and share the weights: where blocks are enough.
#include "input_tiles.cuh"

// Columns that a block holds at once.
constexpr uint32_t PIECE = INPUT_HELD * INPUT_THREADS;

// Floats from one row to the next in shared memory: the same columns of two rows are different banks.
__device__ __forceinline__ uint32_t row_room(uint32_t cols) { return chunks_of(cols) * CHUNK + 4; }

// The rows of a block. STAGED: in shared memory, where all its threads find them; else they stay where they are.
template <uint32_t ROWS, uint32_t WIDTH, bool STAGED>
struct NormedRows {
  // Eights of columns of a piece that a thread writes.
  static constexpr uint32_t EIGHTS = PIECE * ROWS / EIGHT / INPUT_THREADS;
  const InputTiles& p;
  float* shared;

  __device__ __forceinline__ uint32_t row(uint32_t r) const { return blockIdx.x * ROWS + r; }
  // None of a row that is not there.
  __device__ __forceinline__ uint32_t cols(uint32_t r) const { return row(r) < p.num_rows ? p.input.cols : 0; }
  __device__ __forceinline__ size_t place(uint32_t r) const { return (size_t)row(r) * p.input.cols; }
  __device__ __forceinline__ float* staged(uint32_t r) const { return shared + r * row_room(p.input.cols); }
  // One of `rows`, as all threads find it.
  __device__ __forceinline__ const float* found(const float* rows, uint32_t r) const { return STAGED ? staged(r) : rows + place(r); }

  // A thread's columns of a piece: WIDTH neighbours, and as many INPUT_THREADS * WIDTH further, and so on.
  static __device__ __forceinline__ void load(float (&values)[INPUT_HELD], const float* row, uint32_t piece, uint32_t cols) {
    const uint32_t at = piece + threadIdx.x * WIDTH, left = left_from(at, cols);
#pragma unroll
    for (uint32_t k = 0; k < INPUT_HELD; k += WIDTH) load_columns<WIDTH, WIDTH>(values + k, row + at, k * INPUT_THREADS, left);
  }
  static __device__ __forceinline__ void store(float* row, const float (&values)[INPUT_HELD], uint32_t piece, uint32_t cols) {
    const uint32_t at = piece + threadIdx.x * WIDTH, left = left_from(at, cols);
#pragma unroll
    for (uint32_t k = 0; k < INPUT_HELD; k += WIDTH) store_columns<WIDTH>(row + at, values + k, k * INPUT_THREADS, left);
  }

  // Puts what is added where all threads find it.
  __device__ __forceinline__ void stage_added() const {
    for (uint32_t piece = 0; STAGED && piece < p.input.cols; piece += PIECE) {
      float held[ROWS][INPUT_HELD];
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) load(held[r], p.added.x + place(r), piece, cols(r));
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) store(staged(r), held[r], piece, cols(r));
    }
  }

  // The same with the rows, which are sums where there is an addition; `factors` are those of a norm that is added.
  __device__ __forceinline__ void stage(const float (&factors)[ROWS]) const {
    for (uint32_t piece = 0; piece < p.input.cols; piece += PIECE) {
      float held[ROWS][INPUT_HELD], more[ROWS][INPUT_HELD];
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
        load(held[r], p.input.x + place(r), piece, cols(r));
        if (p.sum) load(more[r], p.added.x + place(r), piece, cols(r));
      }
      if (p.sum && p.added.kind == 1) {
        float weights[INPUT_HELD];
        load(weights, p.added.other, piece, p.input.cols);
#pragma unroll
        for (uint32_t n = 0; n < ROWS * INPUT_HELD; n++) {
          float& value = more[n / INPUT_HELD][n % INPUT_HELD];
          value = value * factors[n / INPUT_HELD] * weights[n % INPUT_HELD];
        }
      }
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
        if (p.sum) {
#pragma unroll
          for (uint32_t k = 0; k < INPUT_HELD; k++) held[r][k] += more[r][k];
          store(p.sum + place(r), held[r], piece, cols(r));
        }
        if (STAGED) store(staged(r), held[r], piece, cols(r));
      }
    }
  }

  // Of the norm of each row: `1 / sqrt(mean(x²) + eps)`.
  __device__ __forceinline__ void find_factors(float (&factors)[ROWS], const float* rows, float eps) const {
    __shared__ float warps[INPUT_THREADS / WARP];
    float sums[ROWS] = {};
    __syncthreads();
    for (uint32_t at = threadIdx.x; at < p.input.cols; at += PIECE) {
#pragma unroll
      for (uint32_t r = 0; r < ROWS; r++) {
        float held[INPUT_HELD];
#pragma unroll
        for (uint32_t k = 0; k < INPUT_HELD; k++) {
          load_columns<1, 1>(held + k, found(rows, r) + at, k * INPUT_THREADS, left_from(at, cols(r)));
        }
#pragma unroll
        for (uint32_t k = 0; k < INPUT_HELD; k++) sums[r] = fmaf(held[k], held[k], sums[r]);
      }
    }
#pragma unroll
    for (uint32_t r = 0; r < ROWS; r++) {
      factors[r] = 1.0f / sqrtf(block_sum<INPUT_THREADS>(sums[r], warps) / (float)p.input.cols + eps);
    }
  }

  // The first of the eights that a thread writes of a piece; the others are APART. Of neighbouring rows they are the same columns.
  static constexpr uint32_t APART = INPUT_THREADS / ROWS * EIGHT;
  static __device__ __forceinline__ uint32_t eight(uint32_t piece) { return piece + threadIdx.x / ROWS * EIGHT; }

  __device__ __forceinline__ void load_weights(float (&weights)[EIGHTS][EIGHT], uint32_t piece) const {
    const uint32_t at = eight(piece), left = left_from(at, p.input.cols);
#pragma unroll
    for (uint32_t n = 0; n < EIGHTS; n++) load_columns<WIDTH, EIGHT>(weights[n], p.input.other + at, n * APART, left);
  }

  __device__ __forceinline__ void write(const float (&factors)[ROWS], const float (&weights)[EIGHTS][EIGHT], uint32_t piece) const {
    const uint32_t mine = threadIdx.x % ROWS, at = eight(piece), left = left_from(at, cols(mine));
    const uint32_t room = left_from(at, chunks_of(cols(mine)) * CHUNK);
    const float* from = found(p.input.x, mine) + at;
    float factor = factors[0];
    const RowPlace place = place_of_columns(p, row(mine), at);
#pragma unroll
    for (uint32_t r = 1; r < ROWS; r++) factor = mine == r ? factors[r] : factor;
#pragma unroll
    for (uint32_t n = 0; n < EIGHTS; n++) {
      if (n * APART >= room) break;
      float values[EIGHT];
      load_columns<WIDTH, EIGHT>(values, from, n * APART, left);
#pragma unroll
      for (uint32_t i = 0; i < EIGHT; i++) values[i] = n * APART + i < left ? values[i] * factor * weights[n][i] : 0.0f;
      put_columns(p, place.start + n * (APART / CHUNK) * (size_t)place.apart, values);
    }
  }
};

// By all threads: asks the second-level cache for weights from column `first` on.
__device__ __forceinline__ void ask_for_weights(const Input& p, uint32_t first) {
  constexpr uint32_t LINE = 128 / sizeof(float);
  for (uint32_t i = first + threadIdx.x * LINE; i < p.cols; i += INPUT_THREADS * LINE) ask_for(p.other + i);
}

template <uint32_t ROWS, uint32_t WIDTH, bool STAGED>
__device__ __forceinline__ void normed_tiles(const InputTiles& p) {
  DYNAMIC_SHARED(shared);
  EXPECT_SHARED(STAGED ? ROWS * row_room(p.input.cols) * sizeof(float) : 0);
  using Rows = NormedRows<ROWS, WIDTH, STAGED>;
  const Rows rows = {p, reinterpret_cast<float*>(shared)};
  float weights[Rows::EIGHTS][EIGHT], factors[ROWS] = {};
  // Of many blocks others have asked already, and two rows leave no registers for it.
  if (ROWS == 1) {
    rows.load_weights(weights, 0);
    ask_for_weights(p.input, PIECE);
    if (p.added.kind == 1) ask_for_weights(p.added, 0);
  }
  wait_for_previous();
  if (p.added.kind == 1) {
    rows.stage_added();
    rows.find_factors(factors, p.added.x, p.added.eps);
  }
  rows.stage(factors);
  if (ROWS > 1) rows.load_weights(weights, 0);
  rows.find_factors(factors, p.input.x, p.input.eps);
  rows.write(factors, weights, 0);
  for (uint32_t piece = PIECE; piece < p.input.cols; piece += PIECE) {
    rows.load_weights(weights, piece);
    rows.write(factors, weights, piece);
  }
}

#define NORMED(name, rows, staged)                             \
  KERNEL_EARLY(INPUT_THREADS, 2, normed_tiles_##name, InputTiles) { \
    if (in_fours(p.input.cols)) {                              \
      normed_tiles<rows, 4, staged>(p);                        \
    } else {                                                   \
      normed_tiles<rows, 1, staged>(p);                        \
    }                                                          \
  }
NORMED(1, 1, true)
NORMED(2, 2, true)
NORMED(wide, 1, false)
#undef NORMED
