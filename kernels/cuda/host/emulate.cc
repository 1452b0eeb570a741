// The emulator: fibers, the table of kernels, and the way in from the tests.
#include "host/emulate.h"
#include "host/hopper.h"

#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <vector>

namespace emulate {

thread_local Block block;

[[noreturn]] void next();

namespace {

constexpr size_t STACK_BYTES = 64 << 10;

struct Copy {
  void* to;
  const void* from;
  uint32_t size;
  uint32_t bytes;
  uint32_t group;
  // What was there when it was asked for.
  uint8_t read[16];
};

struct Fiber {
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  ucontext_t start;
  jmp_buf at;
  bool begun = false;
  // Copies on their way, oldest first, and the number of the group that the next one belongs to.
  std::vector<Copy> copies;
  uint32_t group = 0;
};

// Whether a fiber can go on: not before this meeting is over, and never where it has ended. Apart from fibers, as all are looked through.
struct Turn {
  const Barrier* waits;
  uint32_t generation;
  bool ended;

  bool can() const { return !ended && !(waits && waits->generation == generation); }
};

// The fibers of a block, which wait for the next one when they have ended.
struct Crew {
  std::vector<Fiber> fibers;
  std::vector<Turn> turns;
  uint32_t left;
  // Changes of place since somebody got further.
  uint32_t idle;
};
thread_local Crew* crew;

// The launch that runs.
struct Running {
  jmp_buf caller;
  const Entry* entry;
  const void* params;
  // Whether threads and blocks come from the last to the first.
  bool backwards;

  uint32_t after(uint32_t n, uint32_t count) const { return (n + (backwards ? count - 1 : 1)) % count; }
};
thread_local Running running;

// Dynamic shared memory of a block, and behind it bytes that nobody may write.
class Shared {
 public:
  explicit Shared(uint32_t bytes)
      : bytes_(bytes), len_((bytes + GUARD + SHARED_ALIGN - 1) / SHARED_ALIGN * SHARED_ALIGN),
        start_(static_cast<uint8_t*>(std::aligned_alloc(SHARED_ALIGN, len_))) {
    if (!start_) std::abort();
  }
  Shared(const Shared&) = delete;
  ~Shared() { std::free(start_); }

  uint8_t* begin() {
    std::memset(start_, 0xff, len_);
    return start_;
  }

  // Whether nobody wrote behind the end.
  bool ends() const {
    for (size_t i = bytes_; i < len_; i++) {
      if (start_[i] != 0xff) return false;
    }
    return true;
  }

 private:
  static constexpr size_t SHARED_ALIGN = 1024, GUARD = 64;
  size_t bytes_, len_;
  uint8_t* start_;
};

std::vector<Entry>& table() {
  static std::vector<Entry> entries;
  return entries;
}

void fiber_main() {
  const uint32_t thread = block.thread;
  for (;;) {
    running.entry->run(running.params);
    if (thread_left_products()) refuse("a thread ends before its products");
    Fiber& mine = crew->fibers[thread];
    crew->turns[thread].ended = true;
    mine.copies.clear();
    crew->idle = 0;
    crew->left--;
    if (_setjmp(mine.at) == 0) {
      if (crew->left == 0) _longjmp(running.caller, 1);
      next();
    }
  }
}

// Goes on with fiber `thread`; returns in nobody.
[[noreturn]] void enter(uint32_t thread) {
  block.thread = thread;
  Fiber& fiber = crew->fibers[thread];
  if (fiber.begun) _longjmp(fiber.at, 1);
  fiber.begun = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK_BYTES;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
  std::abort();
}

}  // namespace

void refuse(const char* what) {
  std::fprintf(stderr, "%s: %s, block (%u, %u, %u), thread %u\n", running.entry->name, what, block.index.x, block.index.y,
               block.index.z, block.thread);
  std::abort();
}

// Goes on with the next fiber that can. Where none can, or all have been asked twice in vain, they wait for somebody who never comes.
void next() {
  uint32_t thread = block.thread;
  const bool hope = ++crew->idle <= 2 * block.threads;
  for (uint32_t i = 0; hope && i < block.threads; i++) {
    thread = running.after(thread, block.threads);
    if (crew->turns[thread].can()) enter(thread);
  }
  refuse("a barrier that not all threads reach");
}

void pass() {
  if (_setjmp(crew->fibers[block.thread].at) == 0) next();
}

void progressed() { crew->idle = 0; }

void meet_first(uint32_t expected) {
  if (block.thread >= expected) refuse("a thread that the barrier does not await");
  meet(block.first, expected);
}

void meet(Barrier& barrier, uint32_t expected) {
  const uint32_t generation = barrier.generation;
  if (++barrier.arrived == expected) {
    barrier.arrived = 0;
    barrier.generation++;
    progressed();
    return;
  }
  Turn& mine = crew->turns[block.thread];
  mine.waits = &barrier;
  mine.generation = generation;
  pass();
  mine.waits = nullptr;
  progressed();
}

void copy_async(void* shared, const void* global, uint32_t size, uint32_t bytes) {
  if ((reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global)) % size != 0) {
    std::fprintf(stderr, "%s: a copy of %u bytes from %p to %p\n", running.entry->name, size, global, shared);
    std::abort();
  }
  std::memset(shared, 0xff, size);
  Fiber& mine = crew->fibers[block.thread];
  mine.copies.push_back({shared, global, size, bytes, mine.group, {}});
  std::memcpy(mine.copies.back().read, global, bytes);
}

void commit_copies() { crew->fibers[block.thread].group++; }

void wait_copies(uint32_t left) {
  Fiber& mine = crew->fibers[block.thread];
  size_t done = 0;
  for (; done < mine.copies.size() && mine.group - mine.copies[done].group > left; done++) {
    const Copy& copy = mine.copies[done];
    std::memset(copy.to, 0, copy.size);
    std::memcpy(copy.to, running.backwards ? copy.read : copy.from, copy.bytes);
  }
  mine.copies.erase(mine.copies.begin(), mine.copies.begin() + done);
}

const Entry* entry_of(const char* name, size_t name_len) {
  for (const Entry& entry : table()) {
    if (std::string_view(name, name_len) == entry.name) return &entry;
  }
  return nullptr;
}

Listed::Listed(const Entry& entry) { table().push_back(entry); }

void expect_shared(uint32_t bytes) {
  if (block.shared_bytes == bytes) return;
  std::fprintf(stderr, "%s lays out %u bytes of shared memory and was given %u\n", running.entry->name, bytes, block.shared_bytes);
  std::abort();
}

static float compute_half(uint16_t bits) {
  const uint32_t sign = (uint32_t)(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
  if (exponent == 31) return same_bits<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) {
    const float x = (float)fraction * 0x1p-24f;
    return sign ? -x : x;
  }
  return same_bits<float>(sign | (exponent + 112) << 23 | fraction << 13);
}

// All of them, as products of tensors ask for little else.
static const struct Halves {
  float values[1 << 16];

  Halves() {
    for (uint32_t bits = 0; bits < 1 << 16; bits++) values[bits] = compute_half((uint16_t)bits);
  }
} HALVES;

float half_to_float(uint16_t bits) { return HALVES.values[bits]; }

uint16_t float_to_half(float x) {
  const uint32_t bits = same_bits<uint32_t>(x), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000u) return 0x7fff;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00;
  if (magnitude < 0x38800000u) return sign | (uint16_t)std::nearbyintf(same_bits<float>(magnitude) * 0x1p24f);
  const uint32_t odd = magnitude >> 13 & 1;
  return sign | (uint16_t)((magnitude + 0xfff + odd - (112u << 23)) >> 13);
}

float bf16_to_float(uint16_t bits) { return same_bits<float>((uint32_t)bits << 16); }

uint16_t float_to_bf16(float x) {
  const uint32_t bits = same_bits<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
  return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulate

// Runs a kernel with block[0] threads and block[1] bytes of dynamic shared memory, from the last block and thread to the first where
// block[2] is not zero: 0, or 1 where there is none of this name, 2 where its block or its arguments have another size.
extern "C" int chrysalis_emulate(const char* name, size_t name_len, const uint32_t grid[3], const uint32_t block_size[3],
                                 const void* params, size_t params_len) {
  using namespace emulate;
  const uint32_t threads = block_size[0], shared = block_size[1];
  const Entry* entry = entry_of(name, name_len);
  if (!entry) return 1;
  if (entry->threads != threads || entry->params != params_len || threads % 32 != 0 || threads > 1024 ||
      shared > SHARED_MAX) {
    return 2;
  }
  static thread_local Crew mine;
  crew = &mine;
  running.entry = entry;
  running.params = params;
  running.backwards = block_size[2] != 0;
  if (crew->fibers.size() < threads) crew->fibers.resize(threads);
  crew->turns.resize(threads);
  Shared memory(shared);
  const uint64_t blocks = (uint64_t)grid[0] * grid[1] * grid[2];
  for (uint64_t i = 0; i < blocks; i++) {
    const uint64_t n = running.backwards ? blocks - 1 - i : i;
    block.index = {(uint32_t)(n % grid[0]), (uint32_t)(n / grid[0] % grid[1]), (uint32_t)(n / grid[0] / grid[1])};
    block.grid = {grid[0], grid[1], grid[2]};
    block.threads = threads;
    block.shared = memory.begin();
    block.shared_bytes = shared;
    block.barrier = block.first = {};
    for (uint32_t w = 0; w < threads / 32; w++) block.warps[w].barrier = {};
    crew->left = threads;
    crew->idle = 0;
    std::fill(crew->turns.begin(), crew->turns.end(), Turn{});
    if (_setjmp(running.caller) == 0) enter(running.backwards ? threads - 1 : 0);
    if (block_left_copies()) refuse("a block ends before its copies");
    if (!memory.ends()) refuse("a block wrote behind its shared memory");
  }
  return 0;
}
