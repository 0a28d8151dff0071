// SPDX-License-Identifier: Apache-2.0
// What the library made for Python, under integer ids.
//
// Ops see integers: torch.compile traces them as constants, and exported or cached graphs keep them for other
// processes. So an id is a random number, which no other process and no later object has by chance: a dead, foreign or
// forged one is an error with a text, never another object's weights and never a pointer that is followed. An object
// with a name has an id made of the name, so that a graph that vLLM cached finds the object of that name in the next
// process.
#pragma once

#include <memory>
#include <mutex>
#include <random>
#include <shared_mutex>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensors.h"

namespace nvfp4_moe_op {

constexpr uint64_t kIdMask = (uint64_t{1} << 62) - 1;  // positive, and never 2^63 - 1, which torch takes for "no size"

inline int64_t random_id() {
  std::random_device source;
  return static_cast<int64_t>((uint64_t{source()} << 32 | source()) & kIdMask);
}

// FNV-1a: of these characters in every process and every build the same.
inline int64_t id_of(const std::string& name) {
  uint64_t hash = 0xcbf29ce484222325;
  for (const unsigned char c : name) hash = (hash ^ c) * 0x100000001b3;
  return static_cast<int64_t>(hash & kIdMask);
}

// A handle of the library, and what the op knows about it without asking the library.
template <class Known, class Handle, void (*destroy)(Handle*)>
struct Owned {
  struct Destroy {
    void operator()(Handle* handle) const { destroy(handle); }
  };

  Owned(Known known, Handle* handle) : known(std::move(known)), handle(handle) {}

  Known known;
  const std::unique_ptr<Handle, Destroy> handle;
  std::vector<Tensor> kept;  // what the handle points into
};

// All living objects of one kind. They live until they are removed AND the last call that uses them has returned.
template <class Object>
class Table {
 public:
  explicit Table(const char* noun) : noun_(noun) {}

  // Of several living objects of one name the later ones have a number too.
  template <class Known, class Handle>
  int64_t add(Known known, Handle* handle, const std::string& name = "") {
    auto entry = std::make_shared<Entry>(std::move(known), handle);
    std::unique_lock lock(mutex_);
    for (int number = 0;; ++number) {
      const int64_t id = name.empty() ? random_id() : id_of(text(noun_, " ", name, " ", number));
      if (entries_.try_emplace(id, entry).second) return id;
    }
  }

  void remove(int64_t id) {
    std::shared_ptr<Entry> last;  // destroyed after the lock is released: freeing a layer may take a while
    std::unique_lock lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) refuse_id(id);
    last = std::move(found->second);
    entries_.erase(found);
    lock.unlock();
  }

  // f(object), beside others that share it: for calls that take a const handle in the header.
  template <class F>
  auto with_shared(int64_t id, F f) const {
    const std::shared_ptr<Entry> entry = find(id);
    std::shared_lock shared(entry->use);
    return f(std::as_const(entry->object));
  }

  // f(object), alone: for all other calls.
  template <class F>
  auto with_unique(int64_t id, F f) const {
    const std::shared_ptr<Entry> entry = find(id);
    std::unique_lock alone(entry->use);
    return f(entry->object);
  }

 private:
  struct Entry {
    template <class... Parts>
    explicit Entry(Parts&&... parts) : object(std::forward<Parts>(parts)...) {}

    Object object;
    std::shared_mutex use;
  };

  std::shared_ptr<Entry> find(int64_t id) const {
    std::shared_lock lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) refuse_id(id);
    return found->second;
  }

  [[noreturn]] void refuse_id(int64_t id) const {
    refuse(noun_, id, text("no living ", noun_, " of this process has that id"),
           text("Keep the Python object that owns the ", noun_, " alive, and create one in each process."));
  }

  const char* noun_;
  mutable std::shared_mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<Entry>> entries_;
};

}  // namespace nvfp4_moe_op
