// SPDX-License-Identifier: Apache-2.0
// The stand-in's memory on the device, and what it tells: at the next call after an error, and at the end of the
// process.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>

#include "driver.h"

namespace standin {
namespace {

constexpr int kExitStatus = 86;  // of a process whose kernels made a mistake

struct Memory {
  CUdeviceptr tmem = 0, cta = 0, sm_columns = 0, counters = 0, status_device = 0;
  Status* status = nullptr;
  uint32_t slots = 0;
};
Memory memory;
struct Kernel {
  std::string name;
  CUmodule module;
};
std::map<uint32_t, Kernel> kernels;                             // by crc32 of the name
std::map<CUmodule, std::map<uint32_t, std::string>> places_of;  // the first line of PTX of each place in the source
std::mutex lock;
pid_t owner = 0;

uint32_t crc32(const char* text) {
  uint32_t crc = ~0u;
  for (; *text; ++text) {
    crc ^= static_cast<unsigned char>(*text);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xEDB88320u : 0);
  }
  return ~crc;
}

const char* name_of(uint32_t error) {
  static const char* const names[] = {"None",
#define NAME(name, text) #name,
                                      STANDIN_ERRORS(NAME)
#undef NAME
  };
  return error < sizeof names / sizeof *names ? names[error] : "?";
}
const char* text_of(uint32_t error) {
  static const char* const texts[] = {"",
#define TEXT(name, text) text,
                                      STANDIN_ERRORS(TEXT)
#undef TEXT
  };
  return error < sizeof texts / sizeof *texts ? texts[error] : "?";
}

// Where in the source a line of a kernel's PTX is from.
std::string place_of(uint32_t kernel, uint64_t line) {
  const auto& places = places_of[kernels[kernel].module];
  const auto after = places.upper_bound(static_cast<uint32_t>(line));
  return after == places.begin() ? "" : ", " + std::prev(after)->second;
}

void must(CUresult result, const char* call) {
  if (result == CUDA_SUCCESS) return;
  const char* text = "?";
  REAL(cuGetErrorString)(result, &text);
  fprintf(stderr, "standin: %s: %s\n", call, text);
  _exit(kExitStatus);
}
#define MUST(name, ...) must(REAL(name)(__VA_ARGS__), #name)

CUdeviceptr zeroed(size_t bytes) {
  CUdeviceptr address;
  MUST(cuMemAlloc, &address, bytes);
  MUST(cuMemsetD8, address, 0, bytes);
  return address;
}

void at_end() {
  if (getpid() != owner) return;
  static const char* const names[kCounters] = {"mma", "cp", "ld", "st", "commit", "alloc", "mma.sync", "CTAs"};
  unsigned long long counts[kCounters];
  const bool known = REAL(cuMemcpyDtoH)(counts, memory.counters, sizeof counts) == CUDA_SUCCESS;
  std::string line = known ? "counts:" : "counts: unknown, the context is gone";
  for (int i = 0; known && i < kCounters; ++i)
    line += std::string(i ? ", " : " ") + std::to_string(counts[i]) + " " + names[i];
  say(line);
  if (!failed()) return;
  fflush(nullptr);
  _exit(kExitStatus);
}

void allocate() {
  owner = getpid();
  CUdevice device;
  int processors = 0;
  MUST(cuCtxGetDevice, &device);
  MUST(cuDeviceGetAttribute, &processors, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device);
  memory.slots = processors * settings().slots_each;
  memory.tmem = zeroed(size_t(memory.slots) * kNumColumns * kNumLanes * 4);
  memory.cta = zeroed(size_t(memory.slots) * sizeof(Cta));
  memory.sm_columns = zeroed(processors * 4);
  memory.counters = zeroed(kCounters * 8);
  // Of the process rather than of the context, which may go first.
  void* page = nullptr;
  if (posix_memalign(&page, 4096, 4096) != 0) abort();
  memset(page, 0, 4096);
  MUST(cuMemHostRegister, page, 4096, CU_MEMHOSTREGISTER_DEVICEMAP);
  MUST(cuMemHostGetDevicePointer, &memory.status_device, page, 0);
  memory.status = static_cast<Status*>(page);
  atexit(at_end);
}

uint32_t cta_bytes(CUmodule module) {
  CUdeviceptr symbol;
  size_t size = 0;
  uint32_t bytes = 0;
  if (REAL(cuModuleGetGlobal)(&symbol, &size, module, "standin_cta_bytes") == CUDA_SUCCESS && size == sizeof bytes)
    MUST(cuMemcpyDtoH, &bytes, symbol, sizeof bytes);
  return bytes;
}

void read_places(CUmodule module, const std::string& name) {
  std::ifstream file(settings().images + "/" + name + ".lines");
  uint32_t line;
  for (std::string place; file >> line >> place;) places_of[module][line] = place;
}

}  // namespace

void say(const std::string& line) {
  fprintf(stderr, "standin: %s\n", line.c_str());
  if (settings().report.empty()) return;
  std::ofstream(settings().report, std::ios::app) << "standin: " << line << "\n";
}

void remember_kernel(CUmodule module, const char* name) {
  const std::lock_guard guard(lock);
  kernels[crc32(name)] = {name, module};
}

bool failed() {
  static bool told = false;
  const std::lock_guard guard(lock);
  if (memory.status == nullptr || *const_cast<const volatile uint32_t*>(&memory.status->error) == kNone) return false;
  if (told) return true;
  told = true;
  const Status s = *memory.status;
  const std::string name = kernels[s.kernel].name, place = place_of(s.kernel, s.a);
  char text[1024];
  snprintf(text, sizeof text, "error %s in %s: %s (%llu%s, %#llx, %#llx), CTA %u, thread %u", name_of(s.error),
           name.c_str(), text_of(s.error), (unsigned long long)s.a, place.c_str(), (unsigned long long)s.b,
           (unsigned long long)s.c, s.cta, s.thread);
  say(text);
  return true;
}

void configure(CUmodule module, const Image& image) {
  const std::lock_guard guard(lock);
  if (!image.name.empty()) read_places(module, image.name);
  CUdeviceptr symbol;
  size_t size = 0;
  const bool has_standin = REAL(cuModuleGetGlobal)(&symbol, &size, module, "standin_config") == CUDA_SUCCESS;
  if (image.bytes) say("module " + image.name + " replaced" + (has_standin ? "" : ", nothing in it stands in"));
  if (!has_standin) return;
  if (memory.status == nullptr) allocate();
  const Settings& s = settings();
  const Config config{reinterpret_cast<uint32_t*>(memory.tmem),
                      reinterpret_cast<Cta*>(memory.cta),
                      reinterpret_cast<uint32_t*>(memory.sm_columns),
                      reinterpret_cast<unsigned long long*>(memory.counters),
                      reinterpret_cast<Status*>(memory.status_device),
                      s.timeout_ns,
                      memory.slots,
                      s.mode,
                      s.flags,
                      s.seed,
                      s.delay_us,
                      s.slow_warp,
                      s.alloc_shift};
  if (size != sizeof config || cta_bytes(module) != sizeof(Cta)) {
    say("image " + image.name + " is of another make than this driver. Build the images again.");
    _exit(kExitStatus);
  }
  MUST(cuMemcpyHtoD, symbol, &config, sizeof config);
}

}  // namespace standin
