// SPDX-License-Identifier: Apache-2.0
// Two threads of the host in the places of two of a CTA: one adds and forgets, the other looks. It must never see half
// of one thing and half of another.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#define __device__
static void __threadfence_block() { std::atomic_thread_fence(std::memory_order_seq_cst); }
#include "../device/between_threads.cuh"

using namespace standin;

constexpr auto kTime = std::chrono::milliseconds(400);
static Cta cta;
static std::atomic<bool> done;

// Columns of either of two places, or none.
static void change_columns() {
  for (uint32_t i = 0; !done; ++i) {
    const uint32_t first = i % 2 ? 64 : 416;
    add(cta.storing[3], {first, first + 16});
    add(cta.storing[3], {first + 16, first + 32});
    set(cta.storing[3], {0, 0});
  }
}
static bool torn_columns() {
  const Columns seen = now(cta.storing[3]);
  const bool whole = seen.first == 64 ? seen.end <= 96 : seen.first == 416 ? seen.end <= 448 : seen.end == 0;
  return !whole;
}

// Operations whose fields are all the same.
static void change_queue() {
  for (uint32_t i = 1; !done; ++i) {
    enqueue(cta, {i, i, i, i, i, i, i, i, i, i});
    if (i % 3 == 0) forget(cta);
  }
}
static bool torn_operation() {
  bool torn = false;
  first_line(cta, [&](const Op& op) {
    torn = torn || op.kind != op.line || op.d != op.line || op.flags != op.line || op.a != op.line || op.b != op.line;
    return false;
  });
  return torn;
}

template <class Change, class Torn>
static long count(Change change, Torn torn) {
  long found = 0;
  done = false;
  std::thread other(change);
  for (const auto start = std::chrono::steady_clock::now(); std::chrono::steady_clock::now() - start < kTime;)
    for (int i = 0; i < 1000; ++i) found += torn();
  done = true;
  other.join();
  return found;
}

int main() {
  const long columns = count(change_columns, torn_columns), operations = count(change_queue, torn_operation);
  printf("races: %ld columns and %ld operations were torn\n", columns, operations);
  return columns + operations != 0;
}
