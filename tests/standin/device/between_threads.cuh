// SPDX-License-Identifier: Apache-2.0
// What threads of a CTA ask of one another's operations while they go on. Given __threadfence_block(); also compiled
// for the host, where races.cpp lets two threads meet.
#pragma once
#include "standin.h"

namespace standin {

__device__ inline uint32_t now(const uint32_t& word) { return *const_cast<const volatile uint32_t*>(&word); }
__device__ inline void set(uint32_t& word, uint32_t value) { *const_cast<volatile uint32_t*>(&word) = value; }

// ---- columns that a warp has not waited for: both ends at once

__device__ inline Columns now(const Columns& columns) {
  const uint64_t both = *reinterpret_cast<const volatile uint64_t*>(&columns);
  return {static_cast<uint32_t>(both), static_cast<uint32_t>(both >> 32)};
}
__device__ inline void set(Columns& columns, Columns value) {
  *reinterpret_cast<volatile uint64_t*>(&columns) = value.first | static_cast<uint64_t>(value.end) << 32;
}
// By the warp itself.
__device__ inline void add(Columns& all, Columns more) {
  const Columns before = now(all);
  if (before.first >= before.end) return set(all, more);
  set(all, {before.first < more.first ? before.first : more.first, before.end > more.end ? before.end : more.end});
}

// ---- the queue: one thread adds and forgets, others look

__device__ inline void enqueue(Cta& cta, const Op& op) {
  cta.ops[cta.queued] = op;
  __threadfence_block();
  set(cta.queued, cta.queued + 1);
}
__device__ inline void forget(Cta& cta) {
  set(cta.epoch, cta.epoch + 1);  // odd: until others, too, see that it is empty
  __threadfence_block();
  set(cta.queued, 0);
  __threadfence_block();
  set(cta.epoch, cta.epoch + 1);  // another: before an operation takes another's place
  __threadfence_block();
}
// The line of the first queued operation for which `of` holds, or 0.
template <class F>
__device__ uint32_t first_line(const Cta& cta, F of) {
  uint32_t epoch = now(cta.epoch);
  for (uint32_t i = 0; i < now(cta.queued); ++i) {
    __threadfence_block();
    const Op op = cta.ops[i];
    __threadfence_block();
    if (const uint32_t later = now(cta.epoch); later != epoch || later % 2) {  // maybe half of it is another's
      epoch = later, i = ~0u;
      continue;
    }
    if (of(op)) return op.line;
  }
  return 0;
}

}  // namespace standin
