// Kernels that only tests launch: what tensor.cuh wraps, one thing after the other, and e4m3.cuh, for src/cuda/tensor_checks.rs.
#include "e4m3.cuh"
#include "tensor.cuh"

namespace {

// A fragment's registers of every lane, as the test laid them out.
struct CheckMultiply {
  const uint32_t* a;  // [32, 4]
  const uint32_t* b;  // [32, 2]
  float* c;           // [32, 4]
  uint64_t is_bf16;
};

KERNEL(32, check_multiply, CheckMultiply) {
  uint32_t a[4];
  float c[4];
  for (uint32_t i = 0; i < 4; i++) a[i] = p.a[4 * threadIdx.x + i], c[i] = p.c[4 * threadIdx.x + i];
  const uint32_t b0 = p.b[2 * threadIdx.x], b1 = p.b[2 * threadIdx.x + 1];
  if (p.is_bf16) bf16_pair::multiply(c, a, b0, b1);
  else half_pair::multiply(c, a, b0, b1);
  for (uint32_t i = 0; i < 4; i++) p.c[4 * threadIdx.x + i] = c[i];
}

// Registers of every lane, from matrices that lie one behind the other: [count][8][8] values.
struct CheckLoad {
  const uint16_t* from;  // [4, 8, 8]
  uint32_t* out;         // [32, 4], of which the first `count` of each lane are written
  uint32_t count;
  uint32_t transposed;
};

template <uint32_t COUNT>
void load(const CheckLoad& p, const uint8_t* shared) {
  uint32_t out[COUNT];
  const void* row = shared + threadIdx.x % (8 * COUNT) * 16;
  if constexpr (COUNT > 1) {
    if (p.transposed) load_matrices_transposed(out, row);
    else load_matrices(out, row);
  } else {
    load_matrices(out, row);
  }
  for (uint32_t i = 0; i < COUNT; i++) p.out[4 * threadIdx.x + i] = out[i];
}

KERNEL(32, check_load, CheckLoad) {
  __shared__ __align__(16) uint8_t shared[512];
  copy_async(shared + 16 * threadIdx.x, p.from + 8 * threadIdx.x);
  commit_copies();
  wait_copies<0>();
  __syncwarp();
  if (p.count == 4) load<4>(p, shared);
  if (p.count == 2) load<2>(p, shared);
  if (p.count == 1) load<1>(p, shared);
}

// Three groups of copies: what is there before a wait, after one that leaves one, after one that leaves none.
struct CheckCopies {
  const uint32_t* from;  // [3, 4]
  uint32_t* out;         // [3, 5, 4]: at three times the three groups, a copy of no bytes, and a word and three of no bytes
};

KERNEL(32, check_copies, CheckCopies) {
  __shared__ __align__(16) uint32_t shared[32][20];
  uint32_t* mine = shared[threadIdx.x];
  for (uint32_t i = 0; i < 3; i++) {
    copy_async(mine + 4 * i, p.from + 4 * i);
    if (i == 1) copy_async(mine + 12, p.from, 0);
    for (uint32_t n = 0; i == 2 && n < 4; n++) copy_async_word(mine + 16 + n, p.from + n, n == 0 ? 4 : 0);
    commit_copies();
  }
  for (uint32_t time = 0; time < 3; time++) {
    if (time == 1) wait_copies<1>();
    if (time == 2) wait_copies<0>();
    for (uint32_t i = 0; i < 20 && threadIdx.x == 31; i++) p.out[20 * time + i] = mine[i];
  }
}

// The codes of so many numbers, and the numbers behind all codes, two at a time.
struct CheckE4m3 {
  const float* from;  // [count]
  uint32_t* codes;    // [count]
  float* values;      // [256]
  uint64_t count;
};

KERNEL(32, check_e4m3, CheckE4m3) {
  for (uint64_t i = threadIdx.x; i < p.count; i += 32) p.codes[i] = float_to_e4m3(p.from[i]);
  for (uint32_t i = threadIdx.x; i < 128; i += 32) {
    const float2 pair = e4m3_to_floats(2 * i | (2 * i + 1) << 8);
    p.values[2 * i] = pair.x;
    p.values[2 * i + 1] = pair.y;
  }
}

}  // namespace
