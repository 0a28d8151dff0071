# SPDX-License-Identifier: Apache-2.0
"""The NVFP4 linear through the op, against float64."""

import pytest
import torch

import nvfp4_moe
import runner
from reference import gates, nvfp4
from reference.layer import Matrix, cosine, operand, relative_l2

# in_features, rows of each fused part
SHAPES = [
    (16, [1]),
    (64, [48]),
    (160, [7]),
    (288, [128, 33]),
    (1024, [1536, 512]),
    (4096, [1024, 512]),
    (7168, [1536, 576]),
    (2048, [129, 1, 300]),
]


class Problem:
    """Weights of a linear of fused parts, and its oracle."""

    def __init__(self, in_features: int, part_rows: list[int], bias: bool, seed: int = 5):
        generator = torch.Generator().manual_seed(seed)
        self.out_features = sum(part_rows)
        self.in_features, self.part_rows = in_features, part_rows
        scale = (torch.rand(len(part_rows), generator=generator) + 0.5) * (in_features**-0.5 / 15)
        self.weights = nvfp4_moe.LinearWeights(
            weight=torch.randint(0, 256, (self.out_features, in_features // 2), generator=generator, dtype=torch.uint8),
            block_scale=torch.randint(
                0x18, 0x58, (self.out_features, in_features // 16), generator=generator, dtype=torch.uint8
            ),
            global_scale=scale,
            bias=torch.randn(self.out_features, generator=generator).bfloat16() if bias else None,
            part_rows=part_rows if len(part_rows) > 1 else (),
            input_scale=5.0 / (6 * 448),
        )
        row_scale = scale.repeat_interleave(torch.tensor(part_rows))
        self.matrix = Matrix(self.weights.weight, self.weights.block_scale, row_scale)

    def make(self, mode: str, device: str = "cpu", policy: str = "static") -> nvfp4_moe.Linear:
        linear = nvfp4_moe.Linear(
            in_features=self.in_features,
            out_features=self.out_features,
            num_parts=len(self.part_rows),
            mode=mode,
            scale_policy=policy,
            device=device,
        )
        return linear.prepare(self.weights.to(linear.device))

    def reference(self, x: torch.Tensor, mode: str, policy: str = "static") -> torch.Tensor:
        y = self.matrix.times(operand(x, mode, self.weights.input_scale if policy == "static" else None))
        return y if self.weights.bias is None else y + self.weights.bias.double()


def run(linear, x):
    out = runner.poisoned(len(x), linear.out_features, device=linear.device)
    workspace = runner.poisoned(linear.workspace_size(len(x)), dtype=torch.uint8, device=linear.device)
    return linear(x.to(linear.device), out=out, workspace=workspace).cpu()


@pytest.mark.parametrize(("in_features", "part_rows"), SHAPES, ids=str)
@pytest.mark.parametrize("num_tokens", [1, 2, 17, 64])
@pytest.mark.parametrize("mode", ["bf16", "nvfp4"])
@pytest.mark.parametrize("device", runner.DEVICES)
def test_linear_matches_float64(in_features, part_rows, num_tokens, mode, device):
    problem = Problem(in_features, part_rows, bias=num_tokens % 2 == 0)
    x = torch.randn(num_tokens, in_features, generator=torch.Generator().manual_seed(num_tokens)).bfloat16()
    out = run(problem.make(mode, device), x)
    expected = problem.reference(x, mode)
    assert relative_l2(out, expected) <= gates.REL_L2
    assert cosine(out, expected) >= gates.COSINE


@pytest.mark.parametrize("device", runner.DEVICES)
def test_dynamic_scales(device):
    problem = Problem(256, [96], bias=False)
    x = (torch.randn(20, 256) * torch.logspace(-4, 4, 20)[:, None]).bfloat16()
    out = run(problem.make("nvfp4", device, "dynamic"), x)
    expected = problem.reference(x, "nvfp4", "dynamic")
    for t in range(20):
        assert relative_l2(out[t], expected[t]) <= gates.REL_L2


def test_more_dimensions_and_strides():
    problem = Problem(64, [48], bias=True)
    linear = problem.make("bf16")
    x = torch.randn(3, 5, 64).bfloat16()
    out = linear(x)
    assert out.shape == (3, 5, 48)
    assert torch.equal(out.view(15, 48), linear(x.view(15, 64)))
    wide = runner.poisoned(15, 100)
    wide[:, 9:73] = x.view(15, 64)
    assert torch.equal(linear(wide[:, 9:73]), out.view(15, 48))
    assert linear(x[:0]).shape == (0, 5, 48)
    with pytest.raises(RuntimeError, match=r"x.shape is \[30, 32\]; it must be \[T, in_features\] = \[30, 64\]"):
        linear(x.view(3, 10, 32))


def test_permuted_rows_and_repeats_keep_their_bits():
    problem = Problem(288, [128, 33], bias=True)
    for mode in ("bf16", "nvfp4"):
        linear = problem.make(mode)
        x = torch.randn(70, 288).bfloat16()
        order = torch.randperm(70)
        out = run(linear, x)
        assert torch.equal(out[order], run(linear, x[order]))
        assert torch.equal(out[3:4], run(linear, x[3:4]))


def test_calibration():
    problem = Problem(64, [48], bias=False)
    linear = problem.make("nvfp4")
    x = torch.randn(40, 64).bfloat16()
    linear.calibrate(x)
    linear.calibrate(x * 3)
    linear.calibrate(x * 2)
    scale = linear.calibrated_scale()
    assert scale == pytest.approx(float((x * 3).abs().max()) / 2688, rel=1e-6)
    linear.set_input_scale(scale)
    problem.weights.input_scale = scale
    assert relative_l2(run(linear, x), problem.reference(x, "nvfp4")) <= gates.REL_L2


def test_prepare_refuses():
    problem = Problem(64, [32, 16], bias=False)
    problem.weights.part_rows = [32, 17]
    with pytest.raises(RuntimeError, match=r"part_rows.*49|49.*part_rows"):
        problem.make("bf16")
    problem.weights.part_rows = [32, 8, 8]
    with pytest.raises(RuntimeError, match=r"len\(part_rows\) is 3; num_parts is 2"):
        problem.make("bf16")
    problem.weights.part_rows = [32, 16]
    problem.weights.bias = torch.zeros(47).bfloat16()
    with pytest.raises(RuntimeError, match=r"bias.shape is \[47\]; it must be \[out_features\] = \[48\]"):
        problem.make("bf16")


def test_quantised_operand_is_the_codecs():
    """A unit matrix shows the operand itself: out = dequantised x, to bf16."""
    weight = torch.zeros(64, 32, dtype=torch.uint8)
    for i in range(64):
        weight[i, i // 2] = 2 << (4 * (i % 2))  # the code of 1
    unit = nvfp4_moe.LinearWeights(
        weight, torch.full((64, 4), 0x38, dtype=torch.uint8), torch.ones(1), input_scale=0.004
    )
    linear = nvfp4_moe.Linear(in_features=64, out_features=64, mode="nvfp4").prepare(unit)
    x = (torch.randn(33, 64) * torch.logspace(-3, 3, 33)[:, None]).bfloat16()
    assert torch.equal(linear(x), nvfp4.dequantize(nvfp4.quantize(x, 0.004)).bfloat16())


@pytest.mark.parametrize("device", runner.DEVICES)
def test_nothing_times_factors_that_overflow_is_nothing(device):
    """The row's scale times the weight's is past f32; a row of weights that are 0 gives 0, not NaN."""
    linear = nvfp4_moe.Linear(in_features=64, out_features=32, mode="nvfp4", scale_policy="dynamic", device=device)
    weight = torch.full((32, 32), 0x22, dtype=torch.uint8)
    block_scale = torch.full((32, 4), 0x38, dtype=torch.uint8)
    block_scale[16:] = 0
    weights = nvfp4_moe.LinearWeights(weight, block_scale, torch.full((1,), 2.0**119)).to(linear.device)
    x = torch.full((3, 64), 1e38, dtype=torch.bfloat16, device=linear.device)
    out = linear.prepare(weights)(x).cpu()
    assert not out[:, 16:].any()
    assert (out[:, :16] == torch.inf).all()
