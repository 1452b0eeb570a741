// Zeroes freed KV blocks in every layer: plane[layer, blocks[i], :] = 0
//   one plane of the cache (values or scales of K or V), [layers, num_blocks, bytes]; the numbers of up to 248
//   blocks are arguments, so that no copy carries them
// Launch:  grid = (count, layers), block = 256.
// Bound:   memory; the bytes of the blocks.
// Meaning: src/reference/mod.rs, `clear_blocks`.
// Source:  none.
#include "common.cuh"

struct Clear {
  uint8_t* plane;
  uint64_t bytes;  // of a block
  uint64_t num_blocks;
  uint32_t blocks[248];
};
static_assert(sizeof(Clear) == 1016, "src/cuda/params.rs asserts the same size");

KERNEL(256, clear_blocks, Clear) {
  uint8_t* block = p.plane + (blockIdx.y * p.num_blocks + p.blocks[blockIdx.x]) * p.bytes;
  if (p.bytes % 4 == 0) {
    for (uint64_t i = threadIdx.x; i < p.bytes / 4; i += 256) reinterpret_cast<uint32_t*>(block)[i] = 0;
  } else {
    for (uint64_t i = threadIdx.x; i < p.bytes; i += 256) block[i] = 0;
  }
}
