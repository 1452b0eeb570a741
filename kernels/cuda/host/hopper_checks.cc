// Kernels that only tests launch: what hopper.cuh wraps, for src/cuda/hopper_checks.rs.
#include "hopper.cuh"
#include "tiles.cuh"

namespace {

constexpr uint32_t CHECK_CHUNKS = 2;

// [64, 128] * [128, N] through a ring that has room for both chunks, and a third copy where the first lay.
struct CheckProduct {
  const uint32_t* a;   // [8 steps, 128 threads, 4]
  const uint8_t* b;    // [N / 8][2 chunks] of ROW_CHUNK_BYTES
  const uint8_t* more; // 16 bytes
  float* begun;        // [128 threads, N / 2]: sums when the first chunk's products have begun
  float* half;         // the same when they were waited for, and the second chunk's not
  float* out;          // the same when all were
  uint32_t* after;     // [4], of the third copy
};

template <uint32_t N, class Pair>
void check_product(const CheckProduct& p) {
  DYNAMIC_SHARED(ring);
  constexpr uint32_t STAGE = N / ROW_TILE * ROW_CHUNK_BYTES;
  Mbarrier* full = reinterpret_cast<Mbarrier*>(ring + CHECK_CHUNKS * STAGE);
  Mbarrier* empty = full + CHECK_CHUNKS;
  if (threadIdx.x == 0) {
    for (uint32_t i = 0; i < CHECK_CHUNKS; i++) init(full[i], 1), init(empty[i], WARPGROUP);
    fence_mbarriers();
  }
  __syncthreads();
  if (threadIdx.x >= WARPGROUP) {
    if (threadIdx.x > WARPGROUP) return;
    for (uint32_t chunk = 0; chunk < CHECK_CHUNKS; chunk++) {
      wait(empty[chunk], 1);
      arrive_expecting(full[chunk], STAGE);
      for (uint32_t i = 0; i < N / ROW_TILE; i++) {
        copy_bulk(ring + chunk * STAGE + i * ROW_CHUNK_BYTES, p.b + (i * CHECK_CHUNKS + chunk) * ROW_CHUNK_BYTES, ROW_CHUNK_BYTES, full[chunk]);
      }
    }
    wait(empty[0], 0);
    arrive_expecting(full[0], 16);
    copy_bulk(ring, p.more, 16, full[0]);
    return;
  }
  uint32_t a[CHECK_CHUNKS * STEPS][4];
  for (uint32_t s = 0; s < CHECK_CHUNKS * STEPS; s++) {
    for (uint32_t i = 0; i < 4; i++) a[s][i] = p.a[(s * WARPGROUP + threadIdx.x) * 4 + i];
  }
  float sums[N / 2];
  for (uint32_t i = 0; i < N / 2; i++) sums[i] = 7.0f;
  auto write = [&](float* to) {
    for (uint32_t i = 0; i < N / 2; i++) to[threadIdx.x * (N / 2) + i] = sums[i];
  };
  for (uint32_t chunk = 0; chunk < CHECK_CHUNKS; chunk++) {
    wait(full[chunk], 0);
    fence_products();
    for (uint32_t s = 0; s < STEPS; s++) {
      begin_product<N, Pair>(sums, a[chunk * STEPS + s], describe(ring + chunk * STAGE + s * 256, 128, ROW_CHUNK_BYTES), chunk + s > 0);
    }
    commit_products();
    if (chunk == 0) write(p.begun);
  }
  wait_products<1>();
  arrive(empty[0]);
  write(p.half);
  wait_products<0>();
  write(p.out);
  wait(full[0], 1);
  if (threadIdx.x < 4) std::memcpy(&p.after[threadIdx.x], ring + 4 * threadIdx.x, 4);
}

#define CHECK_PRODUCT(n)                                                                            \
  KERNEL(160, check_product_bf16_##n, CheckProduct) { check_product<n, bf16_pair>(p); } \
  KERNEL(160, check_product_f16_##n, CheckProduct) { check_product<n, half_pair>(p); }
CHECK_PRODUCT(8)
CHECK_PRODUCT(32)
CHECK_PRODUCT(64)
CHECK_PRODUCT(128)
CHECK_PRODUCT(256)
#undef CHECK_PRODUCT

}  // namespace
