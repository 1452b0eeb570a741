// Kernels that only tests launch: what a lane multiplies, back in rows and columns, for src/cuda/tile_checks.rs.
#include "tiles.cuh"

namespace {

// One warp to a record. The places of a fragment are the manual's, not `place_of`.
struct CheckTiles {
  Tiles tiles;
  uint16_t* out;  // [rows to the next multiple of 64, cols to the next multiple of 64]
};

template <class Form>
void check_tiles(const CheckTiles& p) {
  const uint32_t chunks = chunks_of(p.tiles.cols), lane = threadIdx.x;
  const uint32_t tile = blockIdx.x % BLOCK_TILES, chunk = blockIdx.x / BLOCK_TILES % chunks;
  const uint32_t block = blockIdx.x / BLOCK_TILES / chunks;
  const auto raw = Form::load(p.tiles.records + record_number(chunks, block, chunk, tile) * Form::RECORD, lane);
  for (uint32_t step = 0; step < STEPS; step++) {
    const Fragment f = Form::fragment(raw, step);
    for (uint32_t i = 0; i < 8; i++) {
      const uint32_t row = (lane >> 2) + (i / 2 % 2 == 0 ? 0 : 8), col = lane % 4 * 2 + (i & 1) + (i >= 4 ? 8 : 0);
      const size_t to_row = block * BLOCK_ROWS + tile * TILE_ROWS + row;
      p.out[(to_row * chunks + chunk) * CHUNK + step * STEP + col] = (uint16_t)(f.words[i / 2] >> (i % 2 * 16));
    }
  }
}

#define CHECK_TILES(name, Form) \
  KERNEL(32, check_tiles_##name, CheckTiles) { check_tiles<Form>(p); }
CHECK_TILES(f16, tile_f16)
CHECK_TILES(bf16, tile_bf16)
CHECK_TILES(q8_0, tile_q8_0)
CHECK_TILES(q4_0, tile_q4_0)
CHECK_TILES(q4_1, tile_q4_1)
CHECK_TILES(q4_k, tile_q4_k)
CHECK_TILES(wide, tile_wide)
CHECK_TILES(f8, tile_f8)
#undef CHECK_TILES

}  // namespace
