# SPDX-License-Identifier: Apache-2.0
"""The cast from MXFP4 in torch: the golden vectors, random spans against float64, and a layer of what was cast."""

import pytest
import torch

import runner
from checkpoints import make_checkpoint
from nvfp4_moe import Checkpoint, cast_mxfp4, dequantize
from reference import gates, generate, mxfp4, nvfp4
from reference.layer import Swiglu, relative_l2
from test_golden import cases

DEVICES = ("cpu", "cuda")
GOLDEN = cases("mxfp4.txt")


def octets(words: list[str], cols: int) -> torch.Tensor:
    return torch.tensor([int(word, 16) for word in words], dtype=torch.uint8).view(-1, cols)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.uint8).cpu()


@pytest.mark.parametrize("device", DEVICES)
def test_the_golden_vectors(device):
    assert len(GOLDEN) > 15
    for case in GOLDEN:
        cols = int(case["cols"][0])
        packed, scale = octets(case["packed"], cols // 2).to(device), octets(case["e8m0_scale"], cols // 32).to(device)
        if case["refused"] == ["1"]:
            with pytest.raises(ValueError, match=r"scale is (2\^-?\d+ to 2\^|NaN)"):
                cast_mxfp4(packed, scale)
            continue
        block_scale, global_scale = cast_mxfp4(packed, scale)
        assert torch.equal(bits(block_scale), octets(case["block_scale"], cols // 16)), case["case"]
        assert int(global_scale.view(torch.int32)) == int(case["global_scale"][0], 16), case["case"]


@pytest.mark.parametrize("device", DEVICES)
def test_stacks_are_cast_matrix_by_matrix_whatever_is_looked_at_together(device, monkeypatch):
    """Matrices from both ends of e8m0, over the whole span."""
    generator = torch.Generator().manual_seed(0)
    packed, scale = mxfp4.random_matrices((5, 2, 6, 128), generator, span=17)
    lowest = torch.tensor([0, 237, 100, 3, 60]).view(5, 1, 1, 1)
    scale = (lowest + torch.randint(0, 18, scale.shape, generator=generator)).to(torch.uint8)
    packed[1, 0, 2:4] = 0x80
    block_scale, global_scale = cast_mxfp4(packed.to(device), scale.to(device))
    assert (block_scale.shape, global_scale.shape) == ((5, 2, 6, 8), (5, 2))
    values = nvfp4.decode_blocks(packed, bits(block_scale)).double() * global_scale.cpu().double()[..., None, None]
    assert torch.equal(values, mxfp4.decode(packed, scale))
    monkeypatch.setattr("nvfp4_moe.mxfp4.CHUNK_BYTES", 1)
    again = cast_mxfp4(packed.to(device), scale.view(torch.float8_e8m0fnu).to(device))
    assert torch.equal(bits(again[0]), bits(block_scale))
    assert torch.equal(again[1], global_scale)


def test_what_is_refused_is_named_by_its_place():
    packed, scale = torch.full((2, 3, 1, 32), 0x22, dtype=torch.uint8), torch.full((2, 3, 1, 2), 120, dtype=torch.uint8)
    scale[1, 2, 0, 1] = 90
    with pytest.raises(ValueError, match=r"scale\[1, 2\] is 2\^-37 to 2\^-7, a factor of 2\^30; .* 2\^17"):
        cast_mxfp4(packed, scale)
    scale[1, 2, 0, 1] = 255
    with pytest.raises(ValueError, match=r"scale\[1, 2\] is NaN"):
        cast_mxfp4(packed, scale)
    with pytest.raises(ValueError, match=r"scale is of shape \[2, 3, 1, 1\]; it must have one byte for 32 of the 64"):
        cast_mxfp4(packed, scale[..., :1])


def test_the_library_decodes_what_was_cast_to_mxfp4s_values():
    packed, scale = mxfp4.random_matrices((8, 64), torch.Generator().manual_seed(1))
    block_scale, global_scale = cast_mxfp4(packed, scale)
    assert torch.equal(dequantize(packed, block_scale, float(global_scale)).double(), mxfp4.decode(packed, scale))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["bf16", "fp8"])
def test_mode_fp8_takes_a_cast_layer_exactly(mode, device):
    """MXFP4 experts within 2^11, cast on the device, against float64 of MXFP4's own values."""
    generator = torch.Generator().manual_seed(2)
    experts, hidden, inter, top_k = 4, 256, 128, 2
    weights = mxfp4.random_weights(experts, hidden, inter, generator)
    x, ids = generate.tokens(9, hidden, generator) / 16, generate.random_ids(9, experts, top_k, generator)
    topk_weights = generate.random_topk_weights(9, top_k, generator)
    cast = cast_weights(weights, device)
    layer = runner.make_layer(cast, num_experts=experts, top_k=top_k, mode=mode, device=device)
    out = layer(*(t.to(layer.device) for t in (x, ids, topk_weights))).cpu()
    wanted = mxfp4.Layer(weights).forward(x, ids.long(), topk_weights, mode)
    assert relative_l2(out, wanted.out) < gates.bound(wanted, mode, device)


def test_the_original_deepseek_v4_becomes_a_layer_in_mode_fp8(tmp_path):
    """Out of files, with every tensor decoded here."""
    make_checkpoint.main([str(tmp_path), "--format", "deepseek-v4-original"])
    checkpoint = Checkpoint(tmp_path)
    info = checkpoint.layer_info(1)
    assert (info.format, info.lossless_cast, info.w13_input_scale) == ("mxfp4", True, 0.0)
    files = mxfp4.read(tmp_path, 1, 0, info.num_experts)
    read, cast = checkpoint.read_layer(1), cast_weights(files, "cpu")
    for name in ("w13", "w13_block_scale", "w13_global_scale", "w2", "w2_block_scale", "w2_global_scale"):
        assert torch.equal(bits(getattr(read, name)), bits(getattr(cast, name))), name
    generator = torch.Generator().manual_seed(3)
    x, ids = generate.tokens(9, info.hidden_size, generator), generate.random_ids(9, info.num_experts, 2, generator)
    topk_weights = generate.random_topk_weights(9, 2, generator)
    wanted = mxfp4.Layer(files, Swiglu(info.swiglu_limit)).forward(x, ids.long(), topk_weights, "fp8")
    layer = checkpoint.make_layer(1, mode="fp8")
    assert layer.scale_block_size == 32
    out = layer(x, ids, topk_weights)
    assert relative_l2(out, wanted.out) < gates.bound(wanted, "fp8", "cpu")


def cast_weights(weights: mxfp4.Weights, device: str) -> generate.Weights:
    """As the plugin casts them: gate and up each with its own factor."""
    split = [t.unflatten(1, (2, -1)).to(device) for t in (weights.w13, weights.w13_scale)]
    w13_block_scale, w13_global_scale = cast_mxfp4(*split)
    w2_block_scale, w2_global_scale = cast_mxfp4(weights.w2.to(device), weights.w2_scale.to(device))
    scales = (w13_block_scale.flatten(1, 2), w13_global_scale, w2_block_scale, w2_global_scale)
    w13, gate_up, w2, down = (t.cpu() if t.dtype == torch.float32 else bits(t) for t in scales)
    return generate.Weights(weights.w13, w13, gate_up, weights.w2, w2, down)
