# SPDX-License-Identifier: Apache-2.0
"""What forward asks of the CUDA driver, seen through a stand-in libcuda: launches, in this order, and nothing else."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "target" / "release" / "libnvfp4_moe.a"
FOLDER = ROOT / "tests" / "mock_libcuda"
# The context decides the device of a NULL stream, so it is looked at, and set where it is another one.
ALLOWED = {"cuLaunchKernelEx", "cuCtxGetCurrent", "cuCtxSetCurrent"}
OWN, PORTABLE = 1, 2  # NVFP4_MOE_DEVICE_CUDA, _CUDA_PORTABLE
NVFP4, FP8 = 2, 3  # NVFP4_MOE_MODE_*
UNSUPPORTED = 77  # exit status of the program


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(device_kind, compute capability, the last mode): the program's exit status and log on such a GPU."""
    if not LIBRARY.exists():
        pytest.skip("cargo build --release comes first")
    build = tmp_path_factory.mktemp("mock")
    for name in ("libcuda.so.1", "libcuda.so"):
        subprocess.run(["cc", "-shared", "-fPIC", FOLDER / "mock.c", "-o", build / name], check=True)
    program = build / "driver_calls"
    libraries = [LIBRARY, "-lpthread", "-ldl", "-lm"]
    include = ["-std=c11", "-I", ROOT / "include"]
    subprocess.run(["cc", *include, FOLDER / "driver_calls.c", "-o", program, *libraries], check=True)

    def run(device_kind: int, capability: int = 90, last_mode: int = 0) -> tuple[int, list[str]]:
        environment = {**os.environ, "LD_LIBRARY_PATH": str(build), "MOCK_CAPABILITY": str(capability)}
        last_mode = last_mode or (FP8 if (device_kind, capability) == (OWN, 90) else NVFP4)
        arguments = [program, str(device_kind), str(last_mode)]
        done = subprocess.run(arguments, env=environment, stderr=subprocess.PIPE, text=True)
        lines = done.stderr.splitlines()
        if done.returncode == UNSUPPORTED and "has no CUDA kernels" in lines[-1]:
            pytest.skip(lines[-1])
        return done.returncode, lines

    return run


def forwards(lines: list[str]) -> dict[str, list[str]]:
    """The calls of each forward, by its title."""
    found, title = {}, None
    for line in lines:
        if line.startswith("begin "):
            title = line.removeprefix("begin ")
            found[title] = []
        elif line == "end":
            title = None
        elif title:
            found[title].append(line.removeprefix("call "))
    return found


def asked(title: str, calls: list[str]) -> set[str]:
    """What a forward asks of the driver and may not; with a shared output it may wait for that one's event."""
    may = ALLOWED | ({"cuStreamWaitEvent"} if title.startswith("shared") else set())
    return {call.split()[0] for call in calls} - may


def launched(calls: list[str]) -> list[str]:
    return [call.split()[1] for call in calls if call.startswith("cuLaunchKernelEx")]


@pytest.mark.parametrize(("device_kind", "capability"), [(OWN, 90), (OWN, 120), (PORTABLE, 90), (PORTABLE, 120)])
def test_forward_launches_and_does_nothing_else(run, device_kind, capability):
    status, lines = run(device_kind, capability)
    assert status == 0, lines[-1]
    calls = forwards(lines)
    assert calls.pop("child") == []
    assert len(calls) == (53 if (device_kind, capability) == (OWN, 90) else 33)
    for title, made in calls.items():
        assert not asked(title, made), title
        assert launched(made), title


def test_a_forked_child_is_refused_by_name(run):
    """The driver's contexts do not follow into it: calls there would fail, or hang."""
    status, lines = run(OWN)
    assert status == 0, lines[-1]
    assert forwards(lines)["child"] == []
    refusals = [line for line in lines if line.startswith("7 7 7: ")]  # NVFP4_MOE_CUDA, three times, of every layer
    assert len(refusals) > 1
    assert all("CUDA works only in the process that first used it" in refusal for refusal in refusals)


def test_few_tokens_take_few_launches(run):
    """One in mode bf16. Modes nvfp4 and fp8 quantise both inputs; portable, the activation is a kernel of its own."""
    hopper, portable = forwards(run(OWN)[1]), forwards(run(PORTABLE)[1])
    forward, linear, decoded = "forward, mode {}, {} tokens", "linear, mode {}", "quantize_rows_decoded"
    for tokens in (1, 8):
        assert "cuLaunchKernelEx few_sm90 together" in hopper[forward.format(1, tokens)]
        assert launched(hopper[forward.format(1, tokens)]) == ["few_sm90"]
    assert launched(hopper[forward.format(2, 1)]) == [
        "route_small", decoded, "gemm1_sm90_n8", decoded, "gemm2_sm90_n8", "combine"
    ]  # fmt: skip
    assert launched(hopper[forward.format(3, 1)]) == [
        "route_small", "quantize_rows_fp8", "gemm1_fp8_sm90_n8", "quantize_rows_fp8", "gemm2_fp8_sm90_n8", "combine"
    ]  # fmt: skip
    rounded = [name.replace("fp8_sm90", "rounded_sm90") for name in launched(hopper[forward.format(3, 1)])]
    assert launched(hopper["rounded " + forward.format(3, 1)]) == rounded
    bf16 = launched(hopper[forward.format(1, 512)])
    assert [bf16[0], *(name.split("_")[0] for name in bf16[1:])] == ["route_small", "gemm1", "gemm2", "combine"]
    # 64 tokens: few weight rows are spread over the multiprocessors by small row tiles.
    assert launched(hopper[linear.format(1)]) == ["linear_sm90_n8"]
    bf16, nvfp4 = "gemm_portable_bf16", "gemm_portable_nvfp4"
    assert launched(portable[forward.format(1, 1)]) == ["route_small", bf16, "swiglu_rows", bf16, "combine"]
    assert launched(portable[forward.format(2, 1)]) == [
        "route_small", "quantize_rows", nvfp4, "swiglu_rows", nvfp4, "combine"
    ]  # fmt: skip
    assert launched(portable[linear.format(1)]) == [bf16]
    assert launched(portable[linear.format(2)]) == ["quantize_rows", nvfp4]


def test_many_tokens_are_routed_in_one_launch_where_a_gpu_has_clusters(run):
    """And the first chunk's launches are those of the others, but for routing."""
    many = "forward, mode 1, 8192 tokens"
    hopper = launched(forwards(run(OWN)[1])[many])
    assert hopper[0] == "route_cluster"
    gemm1, gemm2, combine = hopper[1:4]
    assert hopper[1:] == [gemm1, gemm2, combine] * (len(hopper) // 3)
    three = ["route_count", "route_scan", "route_scatter"]
    for capability in (80, 120):
        assert launched(forwards(run(PORTABLE, capability)[1])[many])[:3] == three


def test_combine_alone_waits_for_the_shared_output(run):
    """And once, before the first of several chunks; what is launched else is as without it."""
    calls = forwards(run(OWN)[1])
    plain, shared = calls["forward, mode 1, 40000 tokens"], calls["shared, mode 1, 40000 tokens"]
    waits = [i for i, call in enumerate(shared) if call == "cuStreamWaitEvent"]
    first = launched(shared).index("combine_shared")
    assert [len(launched(shared[:at])) for at in waits] == [first]
    assert launched(plain).count("combine") > 1
    assert launched(shared) == [name.replace("combine", "combine_shared") for name in launched(plain)]


def test_experts_without_a_gate_take_the_kernels_of_plain_rows(run):
    """And their biases are prepared with them, by one launch a matrix."""
    lines = run(OWN)[1]
    hopper, ungated = forwards(lines), "ungated, mode {}, 1 tokens"
    assert launched(hopper[ungated.format(1)]) == ["route_small", "gemm2_any_sm90_n8", "gemm2_any_sm90_n8", "combine"]
    assert launched(hopper[ungated.format(3)])[2:5:2] == ["gemm2_any_fp8_sm90_n8"] * 2
    assert sum("prepare_biases" in line for line in lines) == 2 * 5
    portable = forwards(run(PORTABLE)[1])
    assert launched(portable[ungated.format(1)]) == launched(portable["forward, mode 1, 1 tokens"])


@pytest.mark.parametrize("capability", [100, 103])
def test_compute_capability_10_has_kernels_of_its_own(run, capability):
    """In mode nvfp4 GEMM1 leaves h quantised if its scale is static; in mode bf16 x is brought into lines before it."""
    status, lines = run(OWN, capability)
    assert status == 0, lines[-1]
    calls, quantize, arrange = forwards(lines), "quantize_rows_in_lines", "arrange_sm100"
    for title, made in calls.items():
        assert not asked(title, made), title
        launches = [call for call in made if call.startswith("cuLaunchKernelEx")]
        assert all(call.endswith(" overlapping") for call in launches[0 if title.startswith("linear") else 1 :]), title
    ends = "gemm_nvfp4_rows_sm100", "combine"
    assert launched(calls["static forward, mode 2, 1 tokens"]) == ["route_small", quantize, "gemm1_nvfp4_sm100", *ends]
    assert launched(calls["static ungated, mode 2, 1 tokens"]) == ["route_small", quantize, "gemm_nvfp4_sm100", *ends]
    assert launched(calls["forward, mode 2, 1 tokens"]) == [
        "route_small", quantize, "gemm1_nvfp4_rows_sm100", quantize, *ends
    ]  # fmt: skip
    ends = "gemm_bf16_rows_sm100", "combine"
    assert launched(calls["forward, mode 1, 1 tokens"]) == ["route_small", arrange, "gemm1_bf16_sm100", *ends]
    assert launched(calls["ungated, mode 1, 1 tokens"]) == ["route_small", arrange, "gemm_bf16_sm100", *ends]
    assert launched(calls["linear, mode 1"]) == [arrange, "gemm_bf16_rows_sm100"]
    assert launched(calls["linear, mode 2"]) == [quantize, "gemm_nvfp4_rows_sm100"]


def test_mode_fp8_is_refused_on_compute_capability_10(run):
    status, lines = run(OWN, 100, FP8)
    assert status == UNSUPPORTED
    assert "mode is 3 (fp8) on CUDA device 0" in lines[-1]


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_launches_overlap_where_the_gpu_can(run, capability):
    """All but routing, which a forward begins with: to overlap that gained nothing. Below 9.0 nothing overlaps."""
    calls = forwards(run(PORTABLE, capability)[1])
    calls.pop("child")
    for title, made in calls.items():
        overlapping = [call.endswith(" overlapping") for call in made if call.startswith("cuLaunchKernelEx")]
        if capability >= 90:
            first = 0 if title.startswith("linear") else 1
            assert overlapping.index(True) == first, title
            assert all(overlapping[first:]), title
        else:
            assert not any(overlapping), title


def test_12_x_quantises_h_in_gemm1_where_its_scale_is_known(run):
    """Not without a gate, and not by row scales: then a quantiser follows, as for x."""
    for capability in (120, 121):
        calls = forwards(run(OWN, capability)[1])
        one, mode = "{}, mode {}, 1 tokens", "forward, mode {}, 1 tokens"
        gemm1, gemm2 = "gemm1_nvfp4_sm120_n8", "gemm2_nvfp4_sm120_n8"
        assert launched(calls[mode.format(1)]) == [
            "route_small", "gemm1_bf16_sm120_n8", "gemm2_bf16_sm120_n8", "combine"
        ]  # fmt: skip
        assert launched(calls[mode.format(2)]) == [
            "route_small", "quantize_rows", gemm1, "quantize_rows", gemm2, "combine"
        ]  # fmt: skip
        assert launched(calls[one.format("static forward", 2)]) == [
            "route_small",
            "quantize_rows",
            gemm1,
            gemm2,
            "combine",
        ]
        assert launched(calls[one.format("ungated", 2)]) == [
            "route_small", "quantize_rows", gemm2, "quantize_rows", gemm2, "combine"
        ]  # fmt: skip
        assert launched(calls["linear, mode 2"]) == ["quantize_rows", "linear_nvfp4_sm120_n8"]


def test_12_x_refuses_mode_fp8_by_name(run):
    status, lines = run(OWN, 120, FP8)
    assert status == UNSUPPORTED
    assert "mode is 3 (fp8) for CUDA device 0 of compute capability 12.x; its kernels have none" in lines[-1]


@pytest.mark.parametrize("capability", [80, 86, 89, 110])
def test_other_gpus_run_the_portable_kernels_only(run, capability):
    """A GPU's own are refused by a text that names both capabilities and the remedy; nothing falls back by itself."""
    status, lines = run(PORTABLE, capability)
    assert status == 0, lines[-1]
    status, lines = run(OWN, capability)
    assert status == UNSUPPORTED
    assert (
        f"need compute capability 9.0, 10.x or 12.x, and CUDA device 0 has {capability // 10}.{capability % 10}"
        in lines[-1]
    )
    assert "Pass 2" in lines[-1]


def test_gpus_below_8_0_are_refused(run):
    for device_kind in (OWN, PORTABLE):
        status, lines = run(device_kind, 75)
        assert status == UNSUPPORTED
        assert "its compute capability is 7.5; the kernels need 8.0 or later" in lines[-1]
