// SPDX-License-Identifier: Apache-2.0
// Operations of the tensor core between their issue and their commit: queued, executed in order by the thread that
// issued them, and forgotten. Rules that concern several operations are here.
#pragma once
#include "between_threads.cuh"
#include "execute.cuh"

namespace standin {

__device__ inline void one_thread(const Running& it, uint32_t line) {
  const uint32_t mask = __activemask();
  // Threads that are active together need not have come by one branch; a second issuer shows as a second operation.
  if (__popc(mask) != 1) fail(it, kNotOneThread, line, mask);
}

__device__ inline void check_fence_after(const Running& it, uint32_t line) {
  const uint32_t wait = it.cta.wait_line[thread_index()];
  if (strict() && wait != 0) fail(it, kMissingFenceAfter, line, wait);
}

// Fails where a warp has not waited for its loads from, or stores to, columns that an operation overwrites or reads.
__device__ inline void check_waited(const Running& it, const uint32_t& warps, const Columns (&pending)[kWarps],
                                    const Op& op, bool also_read, uint32_t error) {
  for (uint32_t left = now(warps); left != 0; left &= left - 1) {
    const Columns columns = now(pending[__ffs(left) - 1]);
    if (columns.first >= columns.end) continue;
    if (overlap(columns, written_by(op)) || (also_read && reads(op, columns)))
      fail(it, error, op.line, columns.first, columns.end);
  }
}

// Executes what `thread` has queued and not yet executed, in order.
__device__ __noinline__ void execute(const Running& it, uint32_t thread) {
  for (uint32_t i = 0; i < it.cta.queued; ++i) {
    const Op op = it.cta.ops[i];
    if (op.thread != thread || op.kind & kDone) continue;
    if (op.kind == kMma)
      execute_mma(it, op);
    else
      execute_copy(it, op);
    it.cta.ops[i].kind = op.kind | kDone;
  }
}

__device__ inline bool run_now(uint32_t line) {
  return standin_config.mode == kEarly || (standin_config.mode == kMixed && hash(line) & 1);
}

__device__ inline void issue(const Running& it, const Op& op) {
  check_waited(it, it.cta.loading_warps, it.cta.loading, op, false, kLoadNotWaited);
  check_waited(it, it.cta.storing_warps, it.cta.storing, op, true, kStoreNotWaited);
  if (it.cta.queued >= kQueue) fail(it, kQueueFull, op.line);
  enqueue(it.cta, op);
  if (run_now(op.line)) execute(it, op.thread);
}

// What overwrites sums may begin at once: nobody may still want the old ones.
__device__ inline void overwrite_sums(const Running& it, const Op& op) {
  const Columns d = written_by(op);
  for (const auto& quarter : it.cta.unread) {
    bool all = true;
    for (uint32_t c = d.first; c < d.end; ++c) all = all && bit(quarter, c);
    if (strict() && all) fail(it, kSumsUnread, op.line, d.first);
  }
  if (standin_config.mode == kEarly) return;
  for (uint32_t c = d.first; c < d.end; ++c)
    for (uint32_t lane = 0; lane < kNumLanes; ++lane) it.cell(c, lane) = kPoisonWord;
}

// ---- what operations read in shared memory

// Calls f(matrix, rows, units) for each operand there.
template <class F>
__device__ void for_each_operand(const Running& it, const Op& op, F f) {
  if ((op.kind & ~kDone) == kCopy) {
    f(SharedMatrix(it, op.a, op.line), 32u, 1u);
    return;
  }
  if (!(op.flags & kAInTmem)) f(SharedMatrix(it, op.a, op.line), static_cast<uint32_t>(kNumLanes), 2u);
  f(SharedMatrix(it, op.b, op.line), (op.idesc >> 17 & 63) * 8, 2u);
}

// Forgets what was committed; what is given back by that becomes poison.
__device__ __noinline__ void retire(const Running& it) {
  const bool stages = standin_config.flags & kPoisonCommits;
  for (uint32_t i = 0; (poisons() || stages) && i < it.cta.queued; ++i) {
    const Op& op = it.cta.ops[i];
    if (stages)
      for_each_operand(it, op, [](const SharedMatrix& matrix, uint32_t rows, uint32_t units) {
        for (uint32_t unit = 0; unit < units; ++unit)
          for (uint32_t row = 0; row < rows; ++row) poison16(matrix.address(row, unit));
      });
    if (poisons() && op.flags & kAInTmem)
      for (uint32_t c = 0; c < kAColumns; ++c)
        for (uint32_t lane = 0; lane < kNumLanes; ++lane) it.cell((op.a & 0xFFFF) + c, lane) = kPoisonWord;
  }
  if (stages) fence_poison();
  forget(it.cta);
}

// Fails where an operation without commit reads shared memory at `address`.
__device__ inline void check_stage(const Running& it, uint32_t address, uint32_t line) {
  const uint32_t reader = first_line(it.cta, [&](const Op& op) {
    bool inside = false;
    for_each_operand(it, op, [&](const SharedMatrix& matrix, uint32_t rows, uint32_t) {
      const uint32_t begin = matrix.start / 128 * 128;  // a step begins within a row of 128 bytes
      const uint32_t end = begin + (rows / 8 - 1) * matrix.stride + (matrix.layout == 0 ? 128 : 1024);
      inside = inside || (address >= begin && address < end);
    });
    return inside;
  });
  if (reader != 0) fail(it, kStageInUse, line, reader);
}

}  // namespace standin
