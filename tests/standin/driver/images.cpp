// SPDX-License-Identifier: Apache-2.0
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

#include "driver.h"

namespace standin {
namespace {

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// A fat binary begins with its magic number, version, size of this header, and size of what follows it.
size_t size_of(const void* fatbin) {
  struct {
    uint32_t magic;
    uint16_t version, header;
    uint64_t rest;
  } head;
  memcpy(&head, fatbin, sizeof head);
  return head.magic == 0xBA55ED50u ? head.header + head.rest : 0;
}

struct Pair {
  std::string name, fatbin, cubin;
};

std::vector<Pair> read_pairs() {
  std::vector<Pair> pairs;
  if (settings().images.empty()) return pairs;
  for (const auto& entry : std::filesystem::directory_iterator(settings().images)) {
    auto cubin = entry.path();
    cubin.replace_extension(".cubin");
    if (entry.path().extension() != ".fatbin" || !std::filesystem::exists(cubin)) continue;
    pairs.push_back({entry.path().stem().string(), read_file(entry.path()), read_file(cubin)});
  }
  return pairs;
}

}  // namespace

Image replacement(const void* fatbin) {
  static const std::vector<Pair> pairs = read_pairs();
  const size_t size = size_of(fatbin);
  for (const Pair& pair : pairs)
    if (size == pair.fatbin.size() && memcmp(fatbin, pair.fatbin.data(), size) == 0)
      return {pair.name, pair.cubin.data()};
  return {};
}

}  // namespace standin
