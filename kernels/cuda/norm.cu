// Norms of rows as a product takes them: tiles[r, :] = norm of x[r, :]; and, where there is an addition, before that
// x[r, :] += what is added, or its norm
//   x, added [rows, cols] f32; tiles, rest: as input.cu
// Launch:  block = 256; `normed_tiles_1`: grid = rows. `normed_tiles_2`: grid = rows / 2 rounded up; dynamic shared memory: two rows,
//          each `row_room` floats.
// Bound:   a step of few rows: latency. Many: memory, 6 bytes a value, 14 with an addition.
// Meaning: src/reference/mod.rs, `input_row` and `add`.
// Source:  Zhang & Sennrich 2019, arXiv:1910.07467.
//
// All that a thread takes of 4,096 columns is asked for at once, the norm's weights before the kernel before has ended; rows come and
// sums go four columns at a time. The norm's sum has an order of its own (input.cuh), and a tile another. So a row is read again:
// from the first-level cache where a block has one, as shared memory would keep the blocks of the kernels before and behind off its
// multiprocessor. Where there are many rows a block has two, in shared memory: they fill the sectors of 32 bytes that tiles are
// written in, and share the weights.
#include "input_tiles.cuh"

// Columns that a block holds at once.
constexpr uint32_t PIECE = INPUT_HELD * INPUT_THREADS;

// Floats from one row to the next in shared memory: the same columns of two rows are different banks.
__device__ __forceinline__ uint32_t row_room(uint32_t cols) { return chunks_of(cols) * CHUNK + 4; }

// The rows of a block.
template <uint32_t ROWS, uint32_t WIDTH>
struct NormedRows {
  // Whether all threads find them in shared memory, or where they lie.
  static constexpr bool STAGED = ROWS > 1;
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

  // Of the norm of each row, where all threads find it: `1 / sqrt(mean(x²) + eps)`.
  __device__ __forceinline__ void find_factors(float (&factors)[ROWS], const float* rows, float eps) const {
    __shared__ float warps[INPUT_THREADS / WARP];
    float sums[ROWS] = {};
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
  __device__ __forceinline__ void load_values(float (&values)[EIGHTS][EIGHT], uint32_t piece) const {
    const uint32_t mine = threadIdx.x % ROWS, at = eight(piece), left = left_from(at, cols(mine));
#pragma unroll
    for (uint32_t n = 0; n < EIGHTS; n++) load_columns<WIDTH, EIGHT>(values[n], found(p.input.x, mine) + at, n * APART, left);
  }

  __device__ __forceinline__ void write(const float (&factors)[ROWS], const float (&weights)[EIGHTS][EIGHT],
                                        float (&values)[EIGHTS][EIGHT], uint32_t piece) const {
    const uint32_t mine = threadIdx.x % ROWS, at = eight(piece), left = left_from(at, cols(mine));
    const uint32_t room = left_from(at, chunks_of(cols(mine)) * CHUNK);
    float factor = factors[0];
    const RowPlace place = place_of_columns(p, row(mine), at);
#pragma unroll
    for (uint32_t r = 1; r < ROWS; r++) factor = mine == r ? factors[r] : factor;
#pragma unroll
    for (uint32_t n = 0; n < EIGHTS; n++) {
      if (n * APART >= room) break;
#pragma unroll
      for (uint32_t i = 0; i < EIGHT; i++) values[n][i] = n * APART + i < left ? values[n][i] * factor * weights[n][i] : 0.0f;
      put_columns(p, place.start + n * (APART / CHUNK) * (size_t)place.apart, values[n]);
    }
  }
};

// By all threads: asks the second-level cache for weights from column `first` on.
__device__ __forceinline__ void ask_for_weights(const Input& p, uint32_t first) {
  constexpr uint32_t LINE = 128 / sizeof(float);
  for (uint32_t i = first + threadIdx.x * LINE; i < p.cols; i += INPUT_THREADS * LINE) ask_for(p.other + i);
}

template <uint32_t ROWS, uint32_t WIDTH>
__device__ __forceinline__ void normed_tiles(const InputTiles& p) {
  using Rows = NormedRows<ROWS, WIDTH>;
  EXPECT_SHARED(Rows::STAGED ? ROWS * row_room(p.input.cols) * sizeof(float) : 0);
  Rows rows = {p, nullptr};
  if constexpr (Rows::STAGED) {
    DYNAMIC_SHARED(shared);
    rows.shared = reinterpret_cast<float*>(shared);
  }
  float weights[Rows::EIGHTS][EIGHT], values[Rows::EIGHTS][EIGHT], factors[ROWS] = {};
  // Of many blocks others have asked already, and two rows leave no registers for it.
  if (ROWS == 1) {
    rows.load_weights(weights, 0);
    ask_for_weights(p.input, PIECE);
    if (p.added.kind == 1) ask_for_weights(p.added, 0);
  }
  wait_for_previous();
  if (p.added.kind == 1) {
    rows.stage_added();
    __syncthreads();
    rows.find_factors(factors, p.added.x, p.added.eps);
  }
  rows.stage(factors);
  if (ROWS > 1) rows.load_weights(weights, 0);
  __syncthreads();
  rows.load_values(values, 0);
  rows.find_factors(factors, p.input.x, p.input.eps);
  rows.write(factors, weights, values, 0);
  for (uint32_t piece = PIECE; piece < p.input.cols; piece += PIECE) {
    rows.load_weights(weights, piece);
    rows.load_values(values, piece);
    rows.write(factors, weights, values, piece);
  }
}

#define NORMED(rows, blocks)                                               \
  KERNEL_EARLY(INPUT_THREADS, blocks, normed_tiles_##rows, InputTiles) { \
    if (in_fours(p.input.cols)) {                                        \
      normed_tiles<rows, 4>(p);                                          \
    } else {                                                             \
      normed_tiles<rows, 1>(p);                                          \
    }                                                                    \
  }
NORMED(1, 3)
NORMED(2, 2)
#undef NORMED
