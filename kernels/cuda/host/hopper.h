// What hopper.cuh wraps, done on the host.
#pragma once

#include "host/emulate.h"

namespace emulate {

// In `bits`: the parity of the phase that runs, who is still to arrive and how many do in a phase, and, in the upper half, the
// bytes still expected.
void mbarrier_init(uint64_t& bits, uint32_t arrivals);
void mbarrier_arrive(uint64_t& bits, uint32_t expected_bytes);
void mbarrier_wait(uint64_t& bits, uint32_t parity);

// Puts ones there and copies when somebody waits for the barrier.
void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t& bits);

// Where it lies in the block's dynamic shared memory.
uint32_t shared_place(const void* at);

// `sums` are NaN until the product was waited for, and only then `a` and what `b` tells of are read; `transposed`: rows of b are k.
void begin_product(float* sums, uint32_t columns, const uint32_t* a, uint64_t b, bool add, bool transposed, float (*value)(uint16_t));
void fence_products();
void commit_products();
void wait_products(uint32_t left);

// Whether the thread that ends, or the block, has left anything on its way.
bool thread_left_products();
bool block_left_copies();

}  // namespace emulate
