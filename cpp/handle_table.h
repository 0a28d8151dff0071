// Integer ids for the library's handles.
//
// Ops see integers: torch.compile traces them, and they pickle. An id is never used twice and a dead or forged one
// is an error with a text, never a pointer that is followed.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "error.h"

namespace nvfp4_moe_op {

// Ids run on over all tables, so that a linear's id is not by chance a layer's as well.
int64_t next_id();

// Entries live until they are removed AND the last call that uses them has returned.
template <class Entry>
class HandleTable {
 public:
  explicit HandleTable(const char* noun) : noun_(noun) {}

  int64_t add(std::shared_ptr<Entry> entry) {
    const int64_t id = next_id();
    std::unique_lock lock(mutex_);
    entries_.emplace(id, std::move(entry));
    return id;
  }

  std::shared_ptr<Entry> find(int64_t id) const {
    std::shared_lock lock(mutex_);
    const auto found = entries_.find(id);
    if (found == entries_.end()) refuse_id(id);
    return found->second;
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

 private:
  [[noreturn]] void refuse_id(int64_t id) const {
    refuse(noun_, id, text("no living ", noun_, " of this process has that id"),
           text("Keep the Python object that owns the ", noun_, " alive, and create one in each process."));
  }

  const char* noun_;
  mutable std::shared_mutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<Entry>> entries_;
};

// A handle of the library with its destroy function.
template <class T, void (*destroy)(T*)>
struct Destroy {
  void operator()(T* handle) const { destroy(handle); }
};
template <class T, void (*destroy)(T*)>
using Handle = std::unique_ptr<T, Destroy<T, destroy>>;

}  // namespace nvfp4_moe_op
