# SPDX-License-Identifier: Apache-2.0
"""How far the runner may be from the oracle, and why.

bf16   the output is rounded once to bf16 (relative 2^-9 at most, 1.7e-3 in the mean), h as well.
nvfp4  the operands are equal bit for bit, so the same bound holds. One exception is honest: h is summed in f32 by the
       runner and in f64 here, so where the two sums fall on different sides of a bf16 rounding boundary h differs by
       one bf16 step, and where that step crosses an e2m1 or e4m3 boundary a code differs. `Result.slack` is what all
       such undecided values together can move the output; it is added to the bound.

fp8    as nvfp4, with e4m3 codes. An h that is a row's largest takes the row's scale with it, which slack covers too.
       Weights that are rounded (fp8_max_error) are the oracle's, bit for bit, so that on the CPU the same bound holds.
       On Hopper their four significant bits, where e2m1 has two, make products of eight bits. Those lose bits when they
       lie 6 binades below the largest of a sum, not 8, which is about twice as often: a gate sqrt(2) as wide. (In an
       H200's first run one of 82 cases was at 2.1e-2, and the others below 2e-2.) To the layer with its weights as they
       are the output may lose three times the stated error more, which is that of one matrix: gate, up and down are
       three, and their errors add up at most.

       Against mode bf16 the layer may lose 6 % (relative L2): a normal operand loses 2.6 %, and there are two.

       Hopper's e4m3 tensor cores keep fewer bits of a sum than f32 (DeepSeek-V3's report found about 14). A sum that is
       off by 2^-10 moves a bf16 h by one step in every fourth value, and one in 32 of those moves its code by an eighth
       of itself: the square root of 2^-10 * 2^-3 is 1.1e-2. An H100 shows 1.5e-2 at most over the matrix.

What quantising costs is another matter: an operand of normal values loses 9.5 % (relative L2) to NVFP4, whoever
computes. Two quantised activations leave a cosine of about 0.99 to the layer with exact activations: at least 0.98 is
demanded, over all tokens of a run. Against the layer before its WEIGHTS were quantised normal values give about 0.986
in mode bf16 (three quantised operands on the way) and 0.973 in mode nvfp4 (five), in float64 as well: no runner of this
format can reach the historical bar of 0.98 on such weights, so the bar is printed, and the gate is that the runner
loses nothing to the oracle. Where weights lose nothing (DeepSeek-V4's were cast from MXFP4) nvfp4 stays above the bar.
"""

from .layer import Result

REL_L2 = 5e-3
REL_L2_TENSOR_CORES_FP8 = 2e-2  # instead, in mode fp8 on Hopper
REL_L2_TENSOR_CORES_ROUNDED = 2.83e-2  # with rounded weights
COSINE = 0.99998  # in mode bf16
COSINE_ACTIVATIONS = 0.98  # either mode against exact activations, over all tokens
BAR_UNQUANTIZED = 0.98  # printed
REL_L2_FP8 = 6e-2  # mode fp8 against mode bf16
ROUNDED_WEIGHTS = 3.0  # times the stated error, of rounded weights against those that they were made of
COSINE_LOSS = 1e-4  # to the unquantised layer, below what the oracle reaches


def bound(result: Result, mode: str, device: str, *, rounded: bool = False) -> float:
    """Relative L2 to the oracle's result on the quantised operands, and on rounded weights."""
    if mode == "fp8" and device.startswith("cuda"):
        return (REL_L2_TENSOR_CORES_ROUNDED if rounded else REL_L2_TENSOR_CORES_FP8) + result.slack
    return REL_L2 + result.slack
