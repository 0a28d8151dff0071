# SPDX-License-Identifier: Apache-2.0
"""Mistakes planted in kernels/sm100/, and the errors of device/standin.h by which the stand-in must call them.

`Numbers`: only results show it, since each operation for itself is what one may write.
"""

from mutants import Mutant

BF16 = "bf16"
EPILOGUE, PRODUCER, DEQUANTISE = 0, 4, 6  # warps


def slow(warp: int, microseconds: int) -> dict[str, str]:
    """Operations as early as may be, beside a warp that is late each time."""
    return {"STANDIN_MODE": "early", "STANDIN_SLOW_WARP": str(warp + 1), "STANDIN_DELAY_US": str(microseconds)}


def without(name: str, file: str, statement: str, *expected: str, **more: object) -> Mutant:
    """A statement that is never reached."""
    return Mutant(name, file, statement, f"if (false) {statement}", list(expected), **more)


DESCRIPTORS = (
    Mutant("operand_stride", "layout.cuh", "uint64_t{1024 >> 4} << 32", "uint64_t{1088 >> 4} << 32", ["Numbers"]),
    Mutant("operand_swizzle", "layout.cuh", "uint64_t{2} << 61", "uint64_t{4} << 61", ["Numbers"]),
    Mutant("operand_version", "layout.cuh", "kDescriptorVersion = uint64_t{1} << 46", "kDescriptorVersion = 0",
           ["Descriptor"]),
    Mutant("scale_stride", "layout.cuh", "uint64_t{128 >> 4} << 32", "uint64_t{256 >> 4} << 32",
           ["Numbers", "NotWritten", "Poisoned"]),
    Mutant("scales_ue8m0", "layout.cuh", "return 1u << 7 | 1u << 10", "return 1u << 23 | 1u << 7 | 1u << 10",
           ["Instruction"]),
    Mutant("rows_of_64", "layout.cuh", "8u << 24", "4u << 24", ["Instruction"], mode=BF16),
)  # fmt: skip

TENSOR_MEMORY = (
    Mutant("scale_column_of_the_first_step", "mma.cuh", "(half * kTileSteps + i) * kScaleColumns, of_rows",
           "half * kTileSteps * kScaleColumns, of_rows", ["Numbers"]),
    Mutant("scale_columns_shared_by_stages", "mma.cuh", "cta_.operands() + ring_.at * shape.stage_columns",
           "cta_.operands()", ["Numbers", "NotWritten", "CopyOverScales"]),
    Mutant("scale_copy_forgotten", "mma.cuh", "int j = 0; 128 * j < n", "int j = 1; 128 * j < n", ["NotWritten"]),
    Mutant("sums_overwritten", "mma.cuh", "!is_first || i > 0);", "i > 0);", ["SumsUnread", "Numbers"]),
    Mutant("sums_not_started_anew", "mma.cuh", "!is_first || i > 0);", "true);", ["Numbers"]),
    Mutant("lanes_of_the_first_warp", "epilogue.cuh", "static_cast<uint32_t>(warp() * 32) << 16", "0u", ["Lanes"]),
    without("never_freed", "gemm.cu", "tmem_dealloc(control.tmem, kTmemColumns);", "NotFreed"),
    Mutant("not_a_power_of_two", "config.cuh", "kTmemColumns = 512", "kTmemColumns = 480", ["AllocColumns"]),
)  # fmt: skip

ORDER = (
    without("stage_reused", "load.cuh", "wait(cta_, control().empty,", "StageInUse", "Poisoned", "Numbers"),
    without("mma_before_copy", "mma.cuh", "wait(cta_, control().full,", "Poisoned", environment=slow(PRODUCER, 300)),
    without("sums_not_waited_for", "mma.cuh", "wait(cta_, control().sums_empty,", "SumsUnread", "LoadNotWaited",
            environment=slow(EPILOGUE, 20000)),
    Mutant("parity_of_sums", "epilogue.cuh", "control().sums_full, sums_.at, sums_.turn,",
           "control().sums_full, sums_.at, sums_.turn ^ 1,", ["InFlight", "Numbers", "Hang"]),
    without("stage_never_given_back", "mma.cuh", "commit(control().empty[ring_.at]);", "Hang", "StageInUse",
            "QueueFull"),
    without("sums_never_given_back", "epilogue.cuh", "arrive(cta_.control().sums_empty[sums_.at]);", "Hang"),
    without("sums_not_committed", "mma.cuh", "commit(control().sums_full[sums_.at]);", "Hang"),
    Mutant("fence_after_stage", "mma.cuh", "SM100_BARRIER_FULL);\n        fence_after();", "SM100_BARRIER_FULL);",
           ["MissingFenceAfter"]),
    Mutant("fence_before_sums_go", "epilogue.cuh", "fence_before();\n      __syncwarp();", "__syncwarp();",
           ["MissingFenceBefore"]),
    Mutant("load_not_waited_for", "ptx.cuh", 'asm volatile("tcgen05.wait::ld.sync.aligned;"', 'asm volatile(""',
           ["Refused", "LoadNotWaited"]),
)  # fmt: skip

# Mode bf16: dequantised weights in tensor memory.
PIECES = (
    without("piece_store_not_waited_for", "dequantize.cuh", "tmem_wait_store();", "StoreNotWaited", mode=BF16),
    without("piece_reused", "dequantize.cuh", "wait(cta_, control().piece_empty,", "InFlight", "Numbers", mode=BF16),
    without("piece_not_waited_for", "mma.cuh", "wait(cta_, control().piece_full,", "NotWritten", "Poisoned",
            "StoreNotWaited", mode=BF16, environment=slow(DEQUANTISE, 300)),
    Mutant("piece_column", "mma.cuh", "piece + k / 2", "piece + k / 4", ["Numbers"], mode=BF16),
)  # fmt: skip

LAYOUTS = (
    Mutant("codes_not_swizzled", "layout.cuh", "return swizzled(row, col / 2);", "return row * kLineBytes + col / 2;",
           ["Numbers"]),
    Mutant("gate_for_up", "layout.cuh", "num_slabs + slab) * halves + half) * kTileBytes",
           "num_slabs + slab) * halves + (halves - 1 - half)) * kTileBytes", ["Numbers"]),
)  # fmt: skip

MUTANTS = DESCRIPTORS + TENSOR_MEMORY + ORDER + PIECES + LAYOUTS
