// The asynchronous units of hopper.cuh: everything happens as late as it may.
#include "host/hopper.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

namespace emulate {

namespace {

constexpr uint32_t WARPGROUP = 128;

struct Phase {
  uint32_t parity : 1;
  uint32_t missing : 15;
  uint32_t arrivals : 15;
  uint32_t zero : 1;
  int32_t bytes;
};
static_assert(sizeof(Phase) == 8);

Phase phase_of(uint64_t bits) {
  const Phase phase = same_bits<Phase>(bits);
  if (phase.zero || phase.arrivals == 0 || phase.missing > phase.arrivals) refuse("an mbarrier that nobody has made");
  return phase;
}

void set(uint64_t& bits, Phase phase) {
  if (phase.missing == 0 && phase.bytes == 0) phase.parity ^= 1, phase.missing = phase.arrivals;
  bits = same_bits<uint64_t>(phase);
}

struct BulkCopy {
  void* to;
  const void* from;
  uint32_t bytes;
  uint64_t* barrier;
};
// Of the block that runs.
thread_local std::vector<BulkCopy> copies;

// Carries out what is on its way to this barrier.
void deliver(uint64_t& bits) {
  size_t kept = 0;
  for (const BulkCopy& copy : copies) {
    if (copy.barrier != &bits) {
      copies[kept++] = copy;
      continue;
    }
    std::memcpy(copy.to, copy.from, copy.bytes);
    Phase phase = phase_of(bits);
    phase.bytes -= (int32_t)copy.bytes;
    set(bits, phase);
  }
  if (kept < copies.size()) progressed();
  copies.resize(kept);
}

struct Product {
  float* sums;
  uint32_t columns;
  const uint32_t* a;
  uint64_t b;
  bool add;
  bool transposed;
  uint32_t group;
  float (*value)(uint16_t);  // of 16 bits
};

// Sums of products that are on their way.
struct Sums {
  float* at;
  uint32_t products;
  std::vector<float> values;
};

// A thread's part in them.
struct Part {
  std::vector<Product> products;
  std::vector<Sums> sums;
  uint32_t group = 0;
  bool fenced = false;
};
thread_local std::vector<Part> parts;
thread_local Barrier warpgroups[1024 / WARPGROUP];

Part& part_of(uint32_t thread) {
  if (parts.size() <= thread) parts.resize(1024);
  return parts[thread];
}

Sums& sums_of(Part& part, float* at) {
  for (Sums& sums : part.sums) {
    if (sums.at == at) return sums;
  }
  refuse("a product without sums");
}

// B as the descriptor tells, value (k, column).
class Columns {
 public:
  Columns(uint64_t bits, bool transposed, float (*value)(uint16_t))
      : value_(value), start_(field(bits, 0)), leading_(field(bits, 16)), stride_(field(bits, 32)), swizzled_(bits >> 62 == 1),
        transposed_(transposed) {
    if ((bits >> 46 & 0xffff) != 0 || bits >> 62 > 1) refuse("a descriptor with an offset or another swizzle");
    if (transposed && !swizzled_) refuse("a transposed descriptor without a swizzle");
  }

  float operator()(uint32_t k, uint32_t column) const {
    uint32_t at = start_;
    if (!swizzled_) {
      at += k / 8 * leading_ + column / 8 * stride_ + column % 8 * 16 + k % 8 * 2;
    } else {
      at += transposed_ ? column / 64 * leading_ + k / 8 * stride_ + k % 8 * 128 + column % 64 * 2
                        : column / 8 * stride_ + column % 8 * 128 + k * 2;
      at ^= (at >> 7 & 7) << 4;
    }
    if (at + 2 > block.shared_bytes) refuse("a descriptor of what is not in shared memory");
    uint16_t bits;
    std::memcpy(&bits, block.shared + at, 2);
    return value_(bits);
  }

 private:
  static uint32_t field(uint64_t bits, uint32_t at) { return (uint32_t)(bits >> at & 0x3fff) << 4; }

  float (*value_)(uint16_t);
  uint32_t start_, leading_, stride_;
  bool swizzled_, transposed_;
};

// Product `n` of the queue: this thread's sums.
void carry_out(Part& mine, size_t n) {
  const uint32_t warp = block.thread / 32 * 32, g = block.thread % 32 / 4, t = block.thread % 4;
  const Product& product = mine.products[n];
  float rows[2][16];
  for (uint32_t k = 0; k < 16; k++) {
    const Product& theirs = part_of(warp + 4 * g + k % 8 / 2).products[n];
    for (uint32_t half = 0; half < 2; half++) rows[half][k] = product.value((uint16_t)(theirs.a[k / 8 * 2 + half] >> k % 2 * 16));
  }
  const Columns b(product.b, product.transposed, product.value);
  Sums& sums = sums_of(mine, product.sums);
  for (uint32_t i = 0; i < product.columns / 2; i += i % 2 ? 3 : 1) {
    // Two rows of a column, of which `values` has sums side by side.
    float& low = sums.values[i];
    float& high = sums.values[i + 2];
    double first = product.add ? low : 0.0, second = product.add ? high : 0.0;
    for (uint32_t k = 0; k < 16; k++) {
      const double value = b(k, i / 4 * 8 + 2 * t + i % 2);
      first += rows[0][k] * value;
      second += rows[1][k] * value;
    }
    low = (float)first;
    high = (float)second;
  }
  sums.products--;
}

bool agree(const Product& a, const Product& b) {
  return a.columns == b.columns && a.b == b.b && a.add == b.add && a.transposed == b.transposed && a.group == b.group && a.value == b.value;
}

}  // namespace

void mbarrier_init(uint64_t& bits, uint32_t arrivals) {
  bits = same_bits<uint64_t>(Phase{0, arrivals, arrivals, 0, 0});
}

void mbarrier_arrive(uint64_t& bits, uint32_t expected_bytes) {
  Phase phase = phase_of(bits);
  if (phase.missing == 0) refuse("more arrive at an mbarrier than it awaits");
  phase.missing--;
  phase.bytes += (int32_t)expected_bytes;
  set(bits, phase);
  progressed();
}

void mbarrier_wait(uint64_t& bits, uint32_t parity) {
  while (phase_of(bits).parity == parity) {
    deliver(bits);
    if (phase_of(bits).parity == parity) pass();
  }
  progressed();
}

void copy_bulk(void* shared, const void* global, uint32_t bytes, uint64_t& bits) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global) | bytes) % 16 != 0 || bytes == 0) {
    refuse("a bulk copy that is not of whole aligned 16 bytes");
  }
  if (shared_place(shared) + bytes > block.shared_bytes) refuse("a bulk copy beyond shared memory");
  std::memset(shared, 0xff, bytes);
  copies.push_back({shared, global, bytes, &bits});
  progressed();
}

uint32_t shared_place(const void* at) {
  const size_t place = static_cast<const uint8_t*>(at) - block.shared;
  if (place >= block.shared_bytes) refuse("what is not in dynamic shared memory");
  return (uint32_t)place;
}

void begin_product(float* sums, uint32_t columns, const uint32_t* a, uint64_t b, bool add, bool transposed, float (*value)(uint16_t)) {
  Part& mine = part_of(block.thread);
  if (!mine.fenced) refuse("a product without a fence before its group");
  bool known = false;
  for (Sums& other : mine.sums) {
    if (other.at != sums) continue;
    other.products++;
    known = true;
  }
  if (!known) mine.sums.push_back({sums, 1, std::vector<float>(sums, sums + columns / 2)});
  for (uint32_t i = 0; i < columns / 2; i++) sums[i] = NAN;
  mine.products.push_back({sums, columns, a, b, add, transposed, mine.group, value});
}

void fence_products() { part_of(block.thread).fenced = true; }

void commit_products() {
  Part& mine = part_of(block.thread);
  mine.group++;
  mine.fenced = false;
}

void wait_products(uint32_t left) {
  Barrier& warpgroup = warpgroups[block.thread / WARPGROUP];
  meet(warpgroup, WARPGROUP);
  Part& mine = part_of(block.thread);
  const Part& first = part_of(block.thread / WARPGROUP * WARPGROUP);
  size_t done = 0;
  for (; done < mine.products.size() && mine.group - mine.products[done].group > left; done++) {
    if (done >= first.products.size() || !agree(first.products[done], mine.products[done])) {
      refuse("not the product of the other warps");
    }
    carry_out(mine, done);
  }
  // Nobody changes what others still read.
  meet(warpgroup, WARPGROUP);
  mine.products.erase(mine.products.begin(), mine.products.begin() + (ptrdiff_t)done);
  for (size_t i = mine.sums.size(); i-- > 0;) {
    const Sums& sums = mine.sums[i];
    if (sums.products > 0) continue;
    std::memcpy(sums.at, sums.values.data(), 4 * sums.values.size());
    mine.sums.erase(mine.sums.begin() + (ptrdiff_t)i);
  }
}

bool thread_left_products() {
  Part& mine = part_of(block.thread);
  const bool left = !mine.products.empty();
  mine = {};
  return left;
}

bool block_left_copies() {
  const bool left = !copies.empty();
  copies.clear();
  return left;
}

}  // namespace emulate
