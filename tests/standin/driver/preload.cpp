// SPDX-License-Identifier: Apache-2.0
// Preloaded before a program: its dlsym gives hooks for some of the driver's functions, to callers whose file is named
// in STANDIN_CALLERS only. torch finds the driver as it is.
#include <dlfcn.h>
#include <stdlib.h>

#include <cstdio>
#include <cstring>

#include "driver.h"

namespace {

using Dlsym = void*(void*, const char*);

Dlsym* find_dlsym() {
  for (const char* version : {"GLIBC_2.34", "GLIBC_2.2.5", "GLIBC_2.17"})
    if (void* found = dlvsym(RTLD_NEXT, "dlsym", version)) return reinterpret_cast<Dlsym*>(found);
  fputs("standin: no dlsym\n", stderr);
  abort();
}
Dlsym* const real_dlsym = find_dlsym();

// Is the code at this address of a file that one of the names is in?
bool is_ours(const void* address) {
  Dl_info info;
  if (!dladdr(address, &info) || !info.dli_fname) return false;
  const char* slash = strrchr(info.dli_fname, '/');
  const std::string file = slash ? slash + 1 : info.dli_fname, &names = standin::settings().callers;
  for (size_t at = 0; at <= names.size();) {
    const size_t end = std::min(names.find(',', at), names.size());
    if (end > at && file.find(names.substr(at, end - at)) != std::string::npos) return true;
    at = end + 1;
  }
  return false;
}

}  // namespace

namespace standin {

void* real_symbol(const char* name) {
  static void* const library = dlopen("libcuda.so.1", RTLD_NOW);
  void* found = library ? real_dlsym(library, name) : nullptr;
  if (!found) {
    fprintf(stderr, "standin: the driver has no %s\n", name);
    abort();
  }
  return found;
}

}  // namespace standin

// The last call is a jump, so that the caller stays the one that RTLD_NEXT asks for.
extern "C" __attribute__((visibility("default"), optimize("O2", "no-stack-protector"))) void* dlsym(
    void* handle, const char* name) noexcept {
  Dlsym* const forward = real_dlsym ? real_dlsym : find_dlsym();
  if (name[0] == 'c' && name[1] == 'u')
    if (void* found = standin::hook(name))
      if (is_ours(__builtin_return_address(0)) && forward(handle, name)) return found;
  return forward(handle, name);
}
