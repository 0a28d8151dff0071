# SPDX-License-Identifier: Apache-2.0
"""Environment variables of the plugin. All are read when a layer is built, in the process that builds it."""

import os
from collections.abc import Callable
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

DISABLE = "NVFP4_MOE_DISABLE"
MODE = "NVFP4_MOE_MODE"
MXFP4_MODE = "NVFP4_MOE_MXFP4_MODE"
SCALES = "NVFP4_MOE_SCALES"
SCALES_FILE = "NVFP4_MOE_SCALES_FILE"
CALIBRATION_TOKENS = "NVFP4_MOE_CALIBRATION_TOKENS"
FP8_MAX_ERROR = "NVFP4_MOE_FP8_MAX_ERROR"
BF16_LINEARS = "NVFP4_MOE_BF16_LINEARS"

MODES = ("default", "bf16", "nvfp4", "fp8")
SCALE_POLICIES = ("static", "calibrated", "dynamic")


def disabled_reason() -> str | None:
    """The kill switch: anything but empty and 0 turns the plugin off."""
    value = os.environ.get(DISABLE, "")
    return None if value in ("", "0") else f"{DISABLE} is {value!r}. Unset it to turn the plugin on."


def mode() -> str:
    """How activations enter the GEMMs; "default" is bf16 where there are no FP4 tensor cores, nvfp4 where there are.

    fp8 is for MoE layers whose block scales are powers of two; others are refused at load, or rounded where
    `fp8_max_error` allows it. Linears are bf16 then.
    """
    return _one_of(MODE, MODES)


def mxfp4_mode() -> str:
    """The same for MoE layers whose weights came as MXFP4, which every mode takes; "default" is what mode() says."""
    return _one_of(MXFP4_MODE, MODES)


def scale_policy() -> str:
    """Where mode nvfp4 takes the global scale of the activations from."""
    return _one_of(SCALES, SCALE_POLICIES)


def scales_file() -> str | None:
    """JSON file of calibrated input scales: read if it exists, else written once every layer is calibrated."""
    return os.environ.get(SCALES_FILE) or None


def calibration_tokens() -> int:
    """Tokens of real requests that every layer sees, in bf16, before its input scales are set."""
    value = os.environ.get(CALIBRATION_TOKENS) or "4096"
    if not value.isascii() or not value.isdecimal() or int(value) == 0:
        raise ValueError(f"{CALIBRATION_TOKENS} is {value!r}; it must be a number, 1 or more. Unset it for 4096.")
    return int(value)


def fp8_max_error() -> float:
    """Mode fp8: the relative L2 error up to which experts that are not exact in e4m3 are rounded to it; 0 is never."""
    value = os.environ.get(FP8_MAX_ERROR) or "0"
    try:
        error = float(value)
    except ValueError:
        error = -1.0
    if not 0 <= error <= 1:
        raise ValueError(f"{FP8_MAX_ERROR} is {value!r}; it must be a number, 0 to 1. Unset it to round no weights.")
    if error > 0 and mode() != "fp8":
        raise ValueError(
            f"{FP8_MAX_ERROR} is {value!r}; {MODE} must be fp8 then, and is {mode()!r}. Unset one of them."
        )
    return error


def bf16_linears() -> list[str]:
    """Globs over layer names, separated by commas: NVFP4 linears to dequantise to bf16 at load."""
    return [glob.strip() for glob in os.environ.get(BF16_LINEARS, "").split(",") if glob.strip()]


def wants_bf16(layer_name: str) -> bool:
    """Is the linear on the override list?"""
    return any(fnmatchcase(layer_name, glob) for glob in bf16_linears())


VARIABLES: dict[str, Callable[[], Any]] = {
    DISABLE: disabled_reason,
    MODE: mode,
    MXFP4_MODE: mxfp4_mode,
    SCALES: scale_policy,
    SCALES_FILE: scales_file,
    CALIBRATION_TOKENS: calibration_tokens,
    FP8_MAX_ERROR: fp8_max_error,
    BF16_LINEARS: bf16_linears,
}


OF_THE_BUILD = tuple(f"NVFP4_MOE_{name}" for name in ("CUDA_HOME", "CPU_ONLY", "PYTHON_CUDA", "TORCH_CUDA"))
"""Read where the package is built, not by the plugin."""


def check() -> list[str]:
    """Refuse values that are none, before any layer is built; a sentence for each variable that nobody reads."""
    for read in VARIABLES.values():
        read()
    known = (*VARIABLES, *OF_THE_BUILD)
    unknown = sorted(name for name in os.environ if name.startswith("NVFP4_MOE_") and name not in known)
    return [f"{name} is set, and is no setting.{_meant(name, known)}" for name in unknown]


def _meant(name: str, known: tuple[str, ...]) -> str:
    ends = {setting.removeprefix("NVFP4_MOE_"): setting for setting in known}
    close = get_close_matches(name.removeprefix("NVFP4_MOE_"), ends, n=1)
    return f" Did you mean {ends[close[0]]}?" if close else f" There are {', '.join(known)}."


def register_with_vllm() -> None:
    """Make the variables known to vLLM, which hashes them into its compile cache and hands them to remote workers."""
    import vllm.envs

    vllm.envs.environment_variables.update(VARIABLES)


def _one_of(name: str, choices: tuple[str, ...]) -> str:
    value = os.environ.get(name) or choices[0]
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(choices)}. Unset it for {choices[0]}.")
    return value
