# SPDX-License-Identifier: Apache-2.0
"""The checkpoint's input scale of one GEMM, out of one for each expert or part, some of which were never measured.

An expert that calibration never reached has NaN, 0, infinity or nothing; or a placeholder, or whatever memory held.
Such are left out and named, and the maximum over the others holds for all. The rule is that of the checkpoint reader,
rust/checkpoint/input_scale.rs.
"""

import math
from typing import NamedTuple

from .log import logger

LARGEST = 6 * 448  # of a block, times the scale, is the amax that calibration saw
MIN_SCALE = 2.0**-110
PLACEHOLDER = 1.0
"""Exporters write it where calibration never ran; its amax, 2688, is none that a calibration sees."""
DWARFS = 100.0
"""A scale this many times the largest of all that are smaller is no measurement."""


class Settled(NamedTuple):
    """The maximum over what was measured, 0 if nothing was, and what was left out: (where, why)."""

    scale: float
    left_out: list[tuple[str, str]]


def settle(stored: dict[str, float]) -> Settled:
    """`stored` says by place what decodes there."""
    seen, left_out = [], []
    for where, scale in stored.items():
        if why := unusable(scale):
            left_out.append((where, why))
        else:
            seen.append((scale, where))
    seen.sort()
    # Fewer than half, above a gap: they are the exception.
    for at in range(len(seen) // 2 + 1, len(seen)):
        largest = seen[at - 1][0]
        if seen[at][0] > DWARFS * largest:
            left_out += [
                (where, f"{scale:g}, where the largest of all others is {largest:g}") for scale, where in seen[at:]
            ]
            del seen[at:]
            break
    return Settled(seen[-1][0] if seen else 0.0, left_out)


def unusable(scale: float) -> str | None:
    """Why the scale was not measured; None if it may have been."""
    if not math.isfinite(scale * LARGEST) or scale < MIN_SCALE:
        return f"{scale:g}"
    return "1, a placeholder" if scale == PLACEHOLDER else None


def settle_and_warn(layer_name: str, tensor: str, stored: dict[str, float]) -> float:
    """The scale; the log names what was left out."""
    settled = settle(stored)
    if settled.left_out and settled.scale:
        named = "; ".join(f"{where} is {why}" for where, why in settled.left_out[:8])
        more = f"; and {len(settled.left_out) - 8} more" if len(settled.left_out) > 8 else ""
        logger.warning(
            "nvfp4_moe: %s: %s of %s%s: left out of the maximum over all, which is %.8g. Calibrate the checkpoint on "
            "more tokens, or serve with NVFP4_MOE_SCALES=calibrated.",
            layer_name,
            tensor,
            named,
            more,
            settled.scale,
        )
    return settled.scale
