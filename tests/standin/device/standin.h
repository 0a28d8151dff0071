// SPDX-License-Identifier: Apache-2.0
// What the host and the device share: the stand-in's settings, what it found, and the state of a running CTA.
#pragma once
#include <cstdint>

namespace standin {

// What a kernel can do wrong, and what a, b and c say of it. `line` is one of the PTX that was rewritten.
#define STANDIN_ERRORS(of)                                                                                             \
  of(Hang, "an mbarrier wait went without success for too long: line, address, parity") of(                            \
      NoSlot, "more CTAs run at once than there are slots: slots")                                                     \
      of(AllocColumns, "tcgen05.alloc: columns must be a power of two from 32 to 512: line, columns") of(              \
          AllocNoRoom, "tcgen05.alloc never found room on its multiprocessor: line, columns")                          \
          of(AllocAfterRelinquish, "tcgen05.alloc after relinquish_alloc_permit: line") of(                            \
              DeallocUnknown, "tcgen05.dealloc of what was not allocated so: line, address, columns")                  \
              of(NotFreed, "a CTA ended with tensor memory allocated: first column") of(                               \
                  NotCommitted, "a CTA ended with an operation that no commit follows: its line")                      \
                  of(NotOneThread, "an operation for one thread was issued by several: line, active mask") of(         \
                      NotUniform, "lanes of a warp disagree on an operand: line")                                      \
                      of(Descriptor, "shared memory descriptor: line, which rule (decode.cuh), bits") of(              \
                          Instruction, "instruction descriptor: line, which rule (decode.cuh), bits")                  \
                          of(TmemAddress, "tensor memory outside an allocation: line, address, columns") of(           \
                              SmemRange, "shared memory address out of range: line, address, limit")                   \
                              of(QueueFull, "more operations than any kernel issues before a commit: line") of(        \
                                  ForeignCommit,                                                                       \
                                  "a commit by a thread while operations of another are open: line, thread, other")    \
                                  of(BarrierAddress, "mbarrier is not aligned to 8 bytes: line, address") of(          \
                                      Lanes, "tcgen05.ld or .st of lanes that another warp owns: line, address, warp") \
                                      of(InFlight,                                                                     \
                                         "tcgen05.ld, .st or .dealloc of columns of an operation without commit: "     \
                                         "line, operation's line") of(LoadNotWaited,                                   \
                                                                      "an operation overwrites what a tcgen05.ld has " \
                                                                      "not been waited for: line, first, end")         \
                                          of(StoreNotWaited,                                                           \
                                             "an operation reads what a tcgen05.st has not been waited for: line, "    \
                                             "first, end") of(SumsUnread,                                              \
                                                              "an mma overwrites sums that nobody has loaded: line, "  \
                                                              "first column")                                          \
                                              of(NotWritten,                                                           \
                                                 "an operand in tensor memory that nothing wrote since it was "        \
                                                 "allocated: line, column") of(ScalesDiffer,                           \
                                                                               "scales differ between the four "       \
                                                                               "quarters of tensor memory: line, row") \
                                                  of(CopyOverScales,                                                   \
                                                     "tcgen05.cp over scales that an mma without commit reads: line, " \
                                                     "mma's line")                                                     \
                                                      of(MissingFenceAfter,                                            \
                                                         "tcgen05 after a wait without fence::after_thread_sync: "     \
                                                         "line, line of the wait")                                     \
                                                          of(MissingFenceBefore,                                       \
                                                             "an arrive after tcgen05.ld or .st without "              \
                                                             "fence::before_thread_sync: line, its line")              \
                                                              of(StageInUse,                                           \
                                                                 "a copy into shared memory that an operation "        \
                                                                 "without commit reads: line, operation's line")       \
                                                                  of(Poisoned,                                         \
                                                                     "an operand that was not there yet: line, 0 A 1 " \
                                                                     "B 2 scales of A 3 scales of B 4 A of mma.sync")

enum Error : uint32_t {
  kNone,
#define STANDIN_ERROR(name, text) k##name,
  STANDIN_ERRORS(STANDIN_ERROR)
#undef STANDIN_ERROR
};

// When operations of the tensor core are executed: at issue, the earliest that hardware may; at their commit, as late
// as a stand-in can; or at either, by a hash.
enum Mode : uint32_t { kEarly, kLate, kMixed };

// Rules beyond PTX's text, or that CUTLASS does not keep; ours do.
enum Flags : uint32_t {
  // Shared memory starts as poison; what a copy will write becomes poison, and A in tensor memory at its commit.
  kPoison = 1,
  kStrict = 2,  // fences around waits; scale columns of their own for each stage; sums are loaded before they go
  // At a commit, what its operations read in shared memory becomes poison, too: for kernels that give a stage back by
  // one
  // commit, and whose copies have tensor maps, so that nobody knows what they will write.
  kPoisonCommits = 4,
};

// In memory that the host reads even after a trap.
struct Status {
  uint32_t error, kernel, cta, thread;  // kernel: crc32 of its name
  uint64_t a, b, c;
};

enum Counter { kMmas, kCopies, kLoads, kStores, kCommits, kAllocs, kMmaSyncs, kCtas, kCounters };

struct Op {
  uint32_t kind;  // kMma, kCopy; + kDone when executed, but not committed
  uint32_t thread, line;
  uint32_t d, idesc, sfa, sfb, flags;
  uint64_t a, b;  // descriptors; a: an address of tensor memory with kAInTmem
};
constexpr uint32_t kMma = 1, kCopy = 2, kDone = 16;
constexpr uint32_t kAccumulate = 1, kAInTmem = 2, kKindShift = 4;  // Op::flags
enum Kind : uint32_t { kNvf4, kF16, kF8 };  // mxf4nvf4 with blocks of 16; f16 (and bf16); f8f6f4 of 8 bits

constexpr int kQueue = 256, kMaxThreads = 1024, kWarps = kMaxThreads / 32, kNumColumns = 512, kNumLanes = 128;
// NaN as f32 and bf16, no ue4m3, and no bits that data or another's poison has: before the first copy, and while one
// runs.
constexpr uint32_t kStartPoison = 0xFFFDFFFFu, kPoisonWord = 0xFFFEFFFFu;

// Columns of tensor memory, [first, end); none: first >= end.
struct alignas(8) Columns {
  uint32_t first, end;
};

// A running CTA's slot. All that it means is 0 before it begins and after it ends.
struct alignas(16) Cta {
  uint32_t claimed, left;  // threads that have ended
  uint32_t kernel, sm, shared_limit;
  uint32_t queued, epoch, relinquished;  // epoch: even, or odd while the queue is emptied
  uint32_t owner[kNumColumns / 32];      // slices of 32 columns: 0 free, else 1 + first column of the allocation
  uint32_t written[kNumColumns / 32];    // a bit a column: written since it was allocated
  uint32_t unread[4]
                 [kNumColumns / 32];  // of each quarter of the lanes, a bit a column: sums that no tcgen05.ld has read
  uint32_t loading_warps, storing_warps;     // a bit a warp: those that have columns below
  Columns loading[kWarps], storing[kWarps];  // not waited for
  uint32_t wait_line[kMaxThreads];           // of the last wait that no fence::after_thread_sync followed
  uint32_t dirty_line[kMaxThreads];          // of the last tcgen05.ld or .st that no fence::before_thread_sync followed
  uint64_t spin_start[kMaxThreads];
  Op ops[kQueue];
  alignas(16) uint32_t b[256 * 32];  // operand B of the mma in execution: decoded
  alignas(16) float b_scale[256 * 4];
};

struct Config {
  uint32_t* tmem;        // [slot][column][lane]
  Cta* cta;              // [slot]
  uint32_t* sm_columns;  // [multiprocessor] allocated
  unsigned long long* counters;
  Status* status;  // host memory, mapped
  uint64_t timeout_ns;
  uint32_t num_slots, mode, flags, seed;
  uint32_t delay_us;     // the largest random delay
  uint32_t slow_warp;    // one more than the warp that is late each time, by as much; 0: none
  uint32_t alloc_shift;  // first slice that an allocation tries, where it leaves room: addresses are not 0 then
};

}  // namespace standin
