// A driver library without a card, for tests: the functions of libcuda.so that our driver calls, over the emulator. It does what
// a driver does late (what is enqueued runs when somebody waits, so that a buffer that is reused or read too early shows), and
// refuses what a driver refuses, and more: copies from memory that is not pinned, work left when memory goes, objects left behind.
//
// The environment says what card there is and what fails: FAKE_CUDA_MEMORY (bytes), FAKE_CUDA_CAPABILITY (90), FAKE_CUDA_CARDS,
// FAKE_CUDA_VERSION (13000), FAKE_CUDA_FAIL (`cuLaunchKernelEx:3`: the third call and all after it).
#include "host/emulate.h"

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

extern "C" int chrysalis_emulate(const char* name, size_t name_len, const uint32_t grid[3], const uint32_t block_size[3],
                                 const void* params, size_t params_len);

namespace fake {

enum Result : int {
  SUCCESS = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_INITIALIZED = 3,
  NO_DEVICE = 100,
  INVALID_DEVICE = 101,
  INVALID_IMAGE = 200,
  INVALID_CONTEXT = 201,
  UNSUPPORTED_PTX_VERSION = 222,
  INVALID_HANDLE = 400,
  NOT_FOUND = 500,
  NOT_READY = 600,
  LAUNCH_FAILED = 719,
  CAPTURE_UNSUPPORTED = 900,
};

struct Work {
  std::function<Result()> run;
  // What a copy reads or writes, where it is one.
  uintptr_t host = 0, device = 0;
};
using Graph = std::vector<Work>;

struct Event {
  uint64_t after = 0;  // Work that was enqueued before it.
  struct Stream* stream = nullptr;
};

struct Stream {
  std::deque<Work> queue;
  uint64_t enqueued = 0, done = 0;
  Graph* capture = nullptr;
};

struct Function {
  const emulate::Entry* entry;
  uint32_t dynamic_shared = 48 << 10;
};

struct Attribute {
  uint32_t id;
  char pad[4];
  int value;
  char rest[60];
};

struct Config {
  uint32_t grid[3], block[3], shared;
  Stream* stream;
  const Attribute* attributes;
  uint32_t num_attributes;
};

struct Driver {
  std::recursive_mutex mutex;
  bool begun = false;
  Result broken = SUCCESS;  // A failure that stays, as a card's does.
  int contexts = 0;
  std::map<uintptr_t, size_t> device, pinned;
  std::set<void*> streams, events, modules, graphs, execs;
  std::map<std::string, Function> functions;
  std::map<std::string, int> calls;
  size_t used = 0;
};

// Never destroyed: threads may end after it.
Driver& driver() {
  static Driver* one = new Driver;
  return *one;
}

thread_local bool current = false;

size_t setting(const char* name, size_t otherwise) {
  const char* value = std::getenv(name);
  return value ? std::strtoull(value, nullptr, 10) : otherwise;
}

int ptx_of_code() { return (int)setting("FAKE_CUDA_PTX", setting("FAKE_CUDA_CAPABILITY", 90)); }

[[noreturn]] void fault(const char* what) {
  std::fprintf(stderr, "fake libcuda: %s\n", what);
  std::abort();
}

// Whether FAKE_CUDA_FAIL names this call.
bool fails(const char* name) {
  const char* wish = std::getenv("FAKE_CUDA_FAIL");
  if (!wish) return false;
  const char* colon = std::strchr(wish, ':');
  const std::string wanted = colon ? std::string(wish, colon) : wish;
  if (wanted != name || ++driver().calls[name] < (colon ? std::atoi(colon + 1) : 1)) return false;
  // An allocation may fail and all else go on; a card that failed otherwise is lost.
  if (wanted != "cuMemAlloc_v2" && wanted != "cuMemHostAlloc") driver().broken = LAUNCH_FAILED;
  return true;
}

// Whether the range lies within one allocation.
bool within(const std::map<uintptr_t, size_t>& all, uintptr_t start, size_t bytes) {
  auto next = all.upper_bound(start);
  if (next == all.begin()) return false;
  const auto& [base, len] = *--next;
  return start - base <= len && bytes <= len - (start - base);
}

Result enqueue(Stream* stream, Work work) {
  if (!driver().streams.count(stream)) return INVALID_HANDLE;
  if (stream->capture) {
    stream->capture->push_back(std::move(work));
  } else {
    stream->queue.push_back(std::move(work));
    stream->enqueued++;
  }
  return SUCCESS;
}

// Runs what was enqueued, up to this count.
Result run(Stream* stream, uint64_t until) {
  while (stream->done < until) {
    Work work = std::move(stream->queue.front());
    stream->queue.pop_front();
    stream->done++;
    if (const Result result = work.run()) return driver().broken = result;
  }
  return SUCCESS;
}

// Ends the program where memory goes that an enqueued copy uses.
void expect_unused(uintptr_t start, size_t bytes, const char* what) {
  if (driver().broken) return;
  for (void* stream : driver().streams) {
    for (const Work& work : static_cast<Stream*>(stream)->queue) {
      if (work.host - start < bytes || work.device - start < bytes) fault(what);
    }
  }
}

}  // namespace fake

// Every entry: locked, refused where a test wants it, and after a failure that stays.
#define ENTRY(name, ...)                                                      \
  extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__) {   \
    using namespace fake;                                                     \
    Driver& d = driver();                                                     \
    const std::lock_guard<std::recursive_mutex> lock(d.mutex);                \
    if (fails(#name)) return d.broken ? d.broken : OUT_OF_MEMORY;
#define END }
#define NEEDS_CONTEXT                          \
  if (!current || !d.contexts) return INVALID_CONTEXT; \
  if (d.broken) return d.broken;

ENTRY(cuInit, unsigned)
  d.begun = true;
  return setting("FAKE_CUDA_CARDS", 1) ? SUCCESS : NO_DEVICE;
END

ENTRY(cuDriverGetVersion, int* version)
  *version = (int)setting("FAKE_CUDA_VERSION", 13000);
  return SUCCESS;
END

ENTRY(cuDeviceGetCount, int* count)
  if (!d.begun) return NOT_INITIALIZED;
  *count = (int)setting("FAKE_CUDA_CARDS", 1);
  return SUCCESS;
END

ENTRY(cuDeviceGet, int* device, int ordinal)
  if (ordinal < 0 || ordinal >= (int)setting("FAKE_CUDA_CARDS", 1)) return INVALID_DEVICE;
  *device = ordinal;
  return SUCCESS;
END

ENTRY(cuDeviceGetName, char* name, int len, int)
  std::snprintf(name, (size_t)len, "no card, emulated");
  return SUCCESS;
END

ENTRY(cuDeviceTotalMem_v2, size_t* bytes, int)
  *bytes = setting("FAKE_CUDA_MEMORY", 1 << 30);
  return SUCCESS;
END

ENTRY(cuDeviceGetAttribute, int* value, int attribute, int)
  const int capability = (int)setting("FAKE_CUDA_CAPABILITY", 90);
  switch (attribute) {
    case 16:  // multiprocessors
      *value = 132;
      return SUCCESS;
    case 75:
      *value = capability / 10;
      return SUCCESS;
    case 76:
      *value = capability % 10;
      return SUCCESS;
    default:
      return INVALID_VALUE;
  }
END

ENTRY(cuDevicePrimaryCtxRetain, void** context, int)
  d.contexts++;
  *context = &d;
  return SUCCESS;
END

ENTRY(cuDevicePrimaryCtxRelease_v2, int)
  if (!d.contexts) return INVALID_CONTEXT;
  if (--d.contexts == 0) {
    const size_t left = d.device.size() + d.pinned.size() + d.streams.size() + d.events.size() + d.modules.size() +
                        d.graphs.size() + d.execs.size();
    if (left) fault("objects are left behind");
  }
  return SUCCESS;
END

ENTRY(cuCtxSetCurrent, void* context)
  if (context != &d || !d.contexts) return INVALID_CONTEXT;
  current = true;
  return SUCCESS;
END

ENTRY(cuMemGetInfo_v2, size_t* free, size_t* total)
  NEEDS_CONTEXT
  *total = setting("FAKE_CUDA_MEMORY", 1 << 30);
  *free = *total - d.used;
  return SUCCESS;
END

ENTRY(cuMemAlloc_v2, uintptr_t* address, size_t bytes)
  NEEDS_CONTEXT
  if (!bytes) return INVALID_VALUE;
  if (bytes > setting("FAKE_CUDA_MEMORY", 1 << 30) - d.used) return OUT_OF_MEMORY;
  void* memory = std::aligned_alloc(512, (bytes + 511) / 512 * 512);
  if (!memory) return OUT_OF_MEMORY;
  std::memset(memory, 0xff, bytes);
  *address = (uintptr_t)memory;
  d.device[*address] = bytes;
  d.used += bytes;
  return SUCCESS;
END

ENTRY(cuMemFree_v2, uintptr_t address)
  const auto found = d.device.find(address);
  if (found == d.device.end()) return INVALID_VALUE;
  expect_unused(address, found->second, "memory of the card goes while a copy is enqueued");
  const uint8_t* bytes = (const uint8_t*)address;
  for (size_t i = 0; i < found->second; i++) {
    if (bytes[i] != 0 && !d.broken) fault("memory of the card goes unwiped");
  }
  d.used -= found->second;
  d.device.erase(found);
  std::free((void*)address);
  return SUCCESS;
END

ENTRY(cuMemHostAlloc, void** start, size_t bytes, unsigned)
  NEEDS_CONTEXT
  *start = std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
  if (!*start) return OUT_OF_MEMORY;
  std::memset(*start, 0xff, bytes);
  d.pinned[(uintptr_t)*start] = bytes;
  return SUCCESS;
END

ENTRY(cuMemFreeHost, void* start)
  const auto found = d.pinned.find((uintptr_t)start);
  if (found == d.pinned.end()) return INVALID_VALUE;
  expect_unused((uintptr_t)start, found->second, "pinned memory goes while a copy is enqueued");
  for (size_t i = 0; i < found->second; i++) {
    if (static_cast<uint8_t*>(start)[i] != 0) fault("pinned memory goes unwiped");
  }
  d.pinned.erase(found);
  std::free(start);
  return SUCCESS;
END

ENTRY(cuMemcpyHtoDAsync_v2, uintptr_t to, const void* from, size_t bytes, fake::Stream* stream)
  NEEDS_CONTEXT
  if (!within(d.pinned, (uintptr_t)from, bytes)) fault("a copy from memory that is not pinned");
  if (!bytes || !within(d.device, to, bytes)) return INVALID_VALUE;
  return enqueue(stream, {[=] { return std::memcpy((void*)to, from, bytes), SUCCESS; }, (uintptr_t)from, to});
END

ENTRY(cuMemcpyDtoDAsync_v2, uintptr_t to, uintptr_t from, size_t bytes, fake::Stream* stream)
  NEEDS_CONTEXT
  if (!bytes || !within(d.device, to, bytes) || !within(d.device, from, bytes)) return INVALID_VALUE;
  if (to < from + bytes && from < to + bytes) fault("a copy onto itself");
  return enqueue(stream, {[=] { return std::memcpy((void*)to, (const void*)from, bytes), SUCCESS; }, 0, to});
END

ENTRY(cuMemcpyDtoHAsync_v2, void* to, uintptr_t from, size_t bytes, fake::Stream* stream)
  NEEDS_CONTEXT
  if (!within(d.pinned, (uintptr_t)to, bytes)) fault("a copy to memory that is not pinned");
  if (!bytes || !within(d.device, from, bytes)) return INVALID_VALUE;
  return enqueue(stream, {[=] { return std::memcpy(to, (const void*)from, bytes), SUCCESS; }, (uintptr_t)to, from});
END

ENTRY(cuMemsetD8Async, uintptr_t to, uint8_t value, size_t bytes, fake::Stream* stream)
  NEEDS_CONTEXT
  if (!bytes || !within(d.device, to, bytes)) return INVALID_VALUE;
  return enqueue(stream, {[=] { return std::memset((void*)to, value, bytes), SUCCESS; }, 0, to});
END

ENTRY(cuStreamCreate, fake::Stream** stream, unsigned)
  NEEDS_CONTEXT
  *stream = new Stream;
  d.streams.insert(*stream);
  return SUCCESS;
END

ENTRY(cuStreamDestroy_v2, fake::Stream* stream)
  if (!d.streams.count(stream)) return INVALID_HANDLE;
  if (!stream->queue.empty() && !d.broken) fault("a stream goes while work is enqueued");
  d.streams.erase(stream);
  delete stream;
  return SUCCESS;
END

ENTRY(cuStreamSynchronize, fake::Stream* stream)
  NEEDS_CONTEXT
  if (!d.streams.count(stream)) return INVALID_HANDLE;
  if (stream->capture) return CAPTURE_UNSUPPORTED;
  return run(stream, stream->enqueued);
END

ENTRY(cuStreamBeginCapture_v2, fake::Stream* stream, int)
  NEEDS_CONTEXT
  if (!d.streams.count(stream)) return INVALID_HANDLE;
  if (stream->capture) return CAPTURE_UNSUPPORTED;
  stream->capture = new Graph;
  d.graphs.insert(stream->capture);
  return SUCCESS;
END

ENTRY(cuStreamEndCapture, fake::Stream* stream, fake::Graph** graph)
  NEEDS_CONTEXT
  if (!d.streams.count(stream) || !stream->capture) return INVALID_HANDLE;
  *graph = stream->capture;
  stream->capture = nullptr;
  return SUCCESS;
END

ENTRY(cuGraphInstantiateWithFlags, fake::Graph** exec, fake::Graph* graph, unsigned long long)
  NEEDS_CONTEXT
  if (!d.graphs.count(graph)) return INVALID_HANDLE;
  *exec = new Graph(*graph);
  d.execs.insert(*exec);
  return SUCCESS;
END

ENTRY(cuGraphDestroy, fake::Graph* graph)
  if (!d.graphs.erase(graph)) return INVALID_HANDLE;
  delete graph;
  return SUCCESS;
END

ENTRY(cuGraphExecDestroy, fake::Graph* exec)
  if (!d.execs.erase(exec)) return INVALID_HANDLE;
  delete exec;
  return SUCCESS;
END

ENTRY(cuGraphLaunch, fake::Graph* exec, fake::Stream* stream)
  NEEDS_CONTEXT
  if (!d.execs.count(exec)) return INVALID_HANDLE;
  for (const Work& work : *exec) {
    if (const Result result = enqueue(stream, work)) return result;
  }
  return SUCCESS;
END

ENTRY(cuEventCreate, fake::Event** event, unsigned)
  NEEDS_CONTEXT
  *event = new Event;
  d.events.insert(*event);
  return SUCCESS;
END

ENTRY(cuEventDestroy_v2, fake::Event* event)
  if (!d.events.erase(event)) return INVALID_HANDLE;
  delete event;
  return SUCCESS;
END

ENTRY(cuEventRecord, fake::Event* event, fake::Stream* stream)
  NEEDS_CONTEXT
  if (!d.events.count(event) || !d.streams.count(stream)) return INVALID_HANDLE;
  event->after = stream->enqueued;
  event->stream = stream;
  return SUCCESS;
END

ENTRY(cuEventQuery, fake::Event* event)
  NEEDS_CONTEXT
  if (!d.events.count(event)) return INVALID_HANDLE;
  return event->stream && event->stream->done < event->after ? NOT_READY : SUCCESS;
END

ENTRY(cuEventSynchronize, fake::Event* event)
  NEEDS_CONTEXT
  if (!d.events.count(event)) return INVALID_HANDLE;
  return event->stream ? run(event->stream, event->after) : SUCCESS;
END

ENTRY(cuModuleLoadData, void** module, const uint32_t* image)
  NEEDS_CONTEXT
  if (setting("FAKE_CUDA_VERSION", 13000) < 13000) return UNSUPPORTED_PTX_VERSION;
  // The first word of a fat binary.
  if (*image != 0xba55ed50u) return INVALID_IMAGE;
  *module = new char;
  d.modules.insert(*module);
  return SUCCESS;
END

ENTRY(cuModuleUnload, char* module)
  if (!d.modules.erase(module)) return INVALID_HANDLE;
  delete module;
  return SUCCESS;
END

ENTRY(cuModuleGetFunction, fake::Function** function, void* module, const char* name)
  NEEDS_CONTEXT
  if (!d.modules.count(module)) return INVALID_HANDLE;
  const emulate::Entry* entry = emulate::entry_of(name, std::strlen(name));
  if (!entry) return NOT_FOUND;
  *function = &d.functions.try_emplace(name, Function{entry}).first->second;
  return SUCCESS;
END

ENTRY(cuFuncGetAttribute, int* value, int attribute, fake::Function* function)
  NEEDS_CONTEXT
  // Threads of a block, and the architecture of the PTX that its code is made of.
  if (attribute != 0 && attribute != 5) return INVALID_VALUE;
  *value = attribute ? ptx_of_code() : (int)function->entry->threads;
  return SUCCESS;
END

ENTRY(cuFuncSetAttribute, fake::Function* function, int attribute, int value)
  NEEDS_CONTEXT
  if (attribute != 8 || value < 0 || (uint32_t)value > emulate::SHARED_MAX) return INVALID_VALUE;
  if ((uint32_t)value > function->dynamic_shared) function->dynamic_shared = (uint32_t)value;
  return SUCCESS;
END

ENTRY(cuFuncGetParamInfo, fake::Function* function, size_t index, size_t* offset, size_t* bytes)
  NEEDS_CONTEXT
  if (index != 0) return INVALID_VALUE;
  *offset = 0;
  *bytes = function->entry->params;
  return SUCCESS;
END

ENTRY(cuLaunchKernelEx, const fake::Config* config, fake::Function* function, void** arguments, void**)
  NEEDS_CONTEXT
  const emulate::Entry* entry = function->entry;
  for (uint32_t i = 0; i < 3; i++) {
    if (!config->grid[i] || (i && config->grid[i] > 65535)) return INVALID_VALUE;
  }
  if (config->block[0] != entry->threads || config->block[1] != 1 || config->block[2] != 1) return INVALID_VALUE;
  if (config->shared > function->dynamic_shared) return INVALID_VALUE;
  for (uint32_t i = 0; i < config->num_attributes; i++) {
    // Programmatic stream serialization.
    if (config->attributes[i].id != 6 || ptx_of_code() < 90) return INVALID_VALUE;
  }
  const uint8_t* start = static_cast<const uint8_t*>(arguments[0]);
  const std::vector<uint8_t> params(start, start + entry->params);
  const std::vector<uint32_t> grid(config->grid, config->grid + 3), block = {config->block[0], config->shared, 0};
  return enqueue(config->stream, {[=] {
    const int code = chrysalis_emulate(entry->name, std::strlen(entry->name), grid.data(), block.data(), params.data(),
                                       params.size());
    return code ? LAUNCH_FAILED : SUCCESS;
  }});
END
