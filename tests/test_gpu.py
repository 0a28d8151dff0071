"""What only a GPU can show: exactness on silicon, routing tables, memory, streams, sizes past 2^31 bytes."""

import pytest
import torch

import nvfp4_moe
import runner
from nvfp4_moe import Layer, LayerWeights, Linear, LinearWeights
from reference import generate, nvfp4
from reference.layer import ReferenceLayer, Swiglu, local_ids, relative_l2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")


def bits(tensor):
    return tensor.view(torch.int16)


def random_layer(local, hidden, inter, *, num_experts, top_k, mode="bf16", seed=0):
    """A layer whose weights are made on the GPU: any codes, block scales from 2^-4 to 15."""
    g = torch.Generator(device="cuda").manual_seed(seed)

    def matrix(rows, cols):
        codes = torch.randint(0, 256, (local, rows, cols // 2), dtype=torch.uint8, device="cuda", generator=g)
        scales = torch.randint(0x18, 0x58, (local, rows, cols // 16), dtype=torch.uint8, device="cuda", generator=g)
        return codes, scales

    w13, w2 = matrix(2 * inter, hidden), matrix(hidden, inter)
    layer = Layer(
        hidden_size=hidden, intermediate_size=inter, num_experts=num_experts, num_local_experts=local, top_k=top_k,
        mode=mode, scale_policy="dynamic", swiglu_limit=10.0, device="cuda",
    )  # fmt: skip
    globals_ = torch.full((local, 2), hidden**-0.5 / 15, device="cuda")
    return layer.prepare(LayerWeights(*w13, globals_, *w2, torch.full((local,), inter**-0.5 / 15, device="cuda")))


@pytest.mark.parametrize("num_tokens", [8, 16, 32, 64, 128, 2032])
def test_every_product_of_e2m1_and_e4m3_is_exact(num_tokens):
    """One-hot rows read each weight out: column 16 s + c is code c under block scale s, all finite scales."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(127)
    rows = torch.stack([codes.roll(16 * 0), (codes + 5) % 16, 15 - codes] * 33)  # 99 rows: no multiple of a tile
    scales = torch.arange(127, dtype=torch.uint8).expand(99, 127).contiguous()
    linear = Linear(in_features=2032, out_features=99, mode="bf16", device="cuda")
    linear.prepare(LinearWeights(nvfp4.pack(rows).cuda(), scales.cuda(), torch.ones(1, device="cuda")))
    expected = nvfp4.decode_blocks(nvfp4.pack(rows), scales).T.bfloat16()
    eye = torch.eye(2032, dtype=torch.bfloat16, device="cuda")
    for first in range(0, 2032, num_tokens):
        out = linear(eye[first : first + num_tokens]).cpu()
        # -0 times 1 plus zeros is +0: compare values.
        assert torch.equal(out, expected[first : first + num_tokens])


@pytest.mark.parametrize("num_tokens", [1, 31, 33, 512, 1024, 1025, 4097, 32768, 131072])
@pytest.mark.parametrize("shard", [(16, 4, 0, 8), (256, 8, 64, 64), (96, 8, 32, 32), (384, 6, 336, 48)])
def test_routing_is_a_stable_sort(num_tokens, shard):
    """slot_to_row is the workspace's first region; one chunk holds all rows where they fit."""
    experts, top_k, first, local = shard
    layer = Layer(
        hidden_size=16, intermediate_size=16, num_experts=experts, num_local_experts=local, first_local_expert=first,
        top_k=top_k, mode="bf16", device="cuda",
    )  # fmt: skip
    zeros = [
        torch.zeros(s, dtype=torch.uint8, device="cuda")
        for s in [(local, 32, 8), (local, 32, 1), (local, 16, 8), (local, 16, 1)]
    ]
    ones = torch.ones(local, 2, device="cuda")
    layer.prepare(LayerWeights(zeros[0], zeros[1], ones, zeros[2], zeros[3], ones[:, 0].contiguous()))
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.randint(-2, experts + 2, (num_tokens, top_k), generator=generator, dtype=torch.int32).cuda()
    x = torch.zeros(num_tokens, 16, dtype=torch.bfloat16, device="cuda")
    raw = torch.full((layer.workspace_size(num_tokens) + 256,), 0xFF, dtype=torch.uint8, device="cuda")
    workspace = raw[-raw.data_ptr() % 256 :]
    layer(x, ids, workspace=workspace)
    slot_to_row = workspace[: num_tokens * top_k * 4].view(torch.int32)

    expert = ids.flatten().long() - first
    routed = (expert >= 0) & (expert < local) & (ids.flatten() >= 0) & (ids.flatten() < experts)
    order = torch.where(routed, expert, local).sort(stable=True).indices[: int(routed.sum())]
    expected = torch.full_like(slot_to_row, -1)
    expected[order] = torch.arange(len(order), dtype=torch.int32, device="cuda")
    assert torch.equal(slot_to_row, expected)


@pytest.mark.parametrize("skew", ["uniform", "one expert", "all local", "none"])
@pytest.mark.parametrize("mode", ["bf16", "nvfp4"])
def test_no_token_is_dropped_when_the_workspace_takes_several_chunks(skew, mode):
    """20000 tokens of this shape need chunks; the layer of halves is the same layer."""
    hidden, inter, experts, top_k, num_tokens = 256, 4096, 16, 6, 20000
    layer = random_layer(4, hidden, inter, num_experts=experts, top_k=top_k, mode=mode)
    generator = torch.Generator().manual_seed(3)
    ids = generate.random_ids(num_tokens, experts, top_k, generator)
    if skew == "one expert":
        ids[:] = 2
    elif skew == "all local":
        ids %= 4
    elif skew == "none":
        ids[:] = 9
    x = generate.tokens(num_tokens, hidden, generator)
    weights = generate.random_topk_weights(num_tokens, top_k, generator)
    out = runner.run(layer, x, ids, weights)
    # 2048 tokens at a time fit one chunk and use the same row tiles.
    parts = torch.cat(
        [
            runner.run(layer, x[i : i + 2048], ids[i : i + 2048], weights[i : i + 2048])
            for i in range(0, num_tokens, 2048)
        ]
    )
    assert out.isfinite().all()
    assert relative_l2(out, parts.double()) < 3e-3 if skew != "none" else not out.any()


def test_pro_under_ep8_with_8192_tokens_uses_150_megabytes():
    layer = random_layer(48, 7168, 3072, num_experts=384, top_k=6)
    assert layer.workspace_size(8192) <= 150e6
    generator = torch.Generator().manual_seed(5)
    x = generate.tokens(8192, 7168, generator).cuda()
    weights = generate.random_topk_weights(8192, 6, generator).cuda()
    for ids in (
        generate.random_ids(8192, 384, 6, generator).cuda(),
        torch.arange(6).int().expand(8192, 6).contiguous().cuda(),
    ):
        out = torch.empty_like(x)
        workspace = torch.empty(layer.workspace_size(8192), dtype=torch.uint8, device="cuda")
        torch.cuda.synchronize()
        free = torch.cuda.mem_get_info()[0]
        layer(x, ids, weights, workspace=workspace, out=out)
        torch.cuda.synchronize()
        assert torch.cuda.mem_get_info()[0] >= free, "forward took memory beyond its workspace"
        assert out.isfinite().all()


def test_rows_past_2_to_the_31_bytes():
    """x of 2.2 GB and weights of 2.3 GB: the last rows equal the same rows on their own."""
    layer = random_layer(62, 7168, 3072, num_experts=62, top_k=1)
    num_tokens = 153_600
    x = torch.randn(
        num_tokens, 7168, dtype=torch.bfloat16, device="cuda", generator=torch.Generator("cuda").manual_seed(1)
    )
    assert x.numel() * 2 > 2**31
    ids = torch.full((num_tokens, 1), -1, dtype=torch.int32, device="cuda")
    last = slice(num_tokens - 512, num_tokens)
    ids[last] = torch.arange(512, device="cuda").int()[:, None] % 62
    out = layer(x, ids)
    alone = layer(x[last].clone(), ids[last].clone())
    assert not out[: num_tokens - 512].any()
    assert relative_l2(out[last].cpu(), alone.cpu().double()) < 3e-3


@pytest.mark.parametrize("mode", ["bf16", "nvfp4"])
def test_a_hundred_runs_and_two_streams_give_the_same_bits(mode):
    layer = random_layer(16, 1024, 512, num_experts=16, top_k=4, mode=mode)
    generator = torch.Generator().manual_seed(2)
    x, ids = generate.tokens(300, 1024, generator).cuda(), generate.random_ids(300, 16, 4, generator).cuda()
    workspaces = [torch.empty(layer.workspace_size(300), dtype=torch.uint8, device="cuda") for _ in range(2)]
    first = bits(layer(x, ids, workspace=workspaces[0]))
    for _ in range(100):
        assert torch.equal(first, bits(layer(x, ids, workspace=workspaces[0])))
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    torch.cuda.synchronize()
    outs = []
    for _ in range(20):
        for stream, workspace in zip(streams, workspaces):
            with torch.cuda.stream(stream):
                outs.append(layer(x, ids, workspace=workspace))
    torch.cuda.synchronize()
    assert all(torch.equal(first, bits(out)) for out in outs)


@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_strided_views_that_start_anywhere(offset):
    layer = random_layer(4, 256, 128, num_experts=4, top_k=2)
    generator = torch.Generator().manual_seed(4)
    x, ids = generate.tokens(40, 256, generator).cuda(), generate.random_ids(40, 4, 2, generator).cuda()
    wide = torch.zeros(40, 300, dtype=torch.bfloat16, device="cuda")
    wide[:, offset : offset + 256] = x
    out = torch.zeros(40, 301, dtype=torch.bfloat16, device="cuda")
    layer(wide[:, offset : offset + 256], ids, out=out[:, offset : offset + 256])
    assert torch.equal(bits(layer(x, ids)), bits(out[:, offset : offset + 256].contiguous()))
    assert not out[:, :offset].any()
    assert not out[:, offset + 256 :].any()


def test_quantised_rows_have_the_bits_of_the_host_codec():
    """A linear with an identity weight returns its decoded operands, e2m1 * block_scale * global_scale, in bf16."""
    size = 512
    eye = torch.zeros(size, size, dtype=torch.uint8)
    eye.fill_diagonal_(2)  # code 2 is 1.0
    scales = torch.full((size, size // 16), 0x38, dtype=torch.uint8)  # 1.0
    generator = torch.Generator().manual_seed(6)
    x = (generate.tokens(300, size, generator) * torch.logspace(-6, 3, 300)[:, None]).bfloat16()
    x[5] = 0
    x[6, :16] = 0
    for global_scale in (None, 0.0078125, 0.00025141):
        linear = Linear(
            in_features=size,
            out_features=size,
            mode="nvfp4",
            scale_policy="dynamic" if global_scale is None else "static",
            device="cuda",
        )
        linear.prepare(
            LinearWeights(
                nvfp4.pack(eye).cuda(), scales.cuda(), torch.ones(1, device="cuda"), input_scale=global_scale or 0.0
            )
        )
        nvfp4_moe.reset_device_status("cuda")
        out = linear(x.cuda()).cpu()
        q = nvfp4.quantize(x, global_scale)
        blocks = nvfp4.decode_blocks(nvfp4.pack(q.codes), q.block_scale)
        assert torch.equal(out, (blocks * q.global_scale).bfloat16()), global_scale
        amax = x.float().unflatten(-1, (-1, 16)).abs().amax(-1)
        saturated = int((amax * ((1 / q.global_scale) / 6) > 448).sum())
        assert nvfp4_moe.read_device_status("cuda").saturated_blocks == saturated


@pytest.mark.parametrize("num_tokens", [1, 8, 17, 64, 129, 512])
def test_a_layer_with_different_gate_and_up_scales_and_up_first(num_tokens):
    generator = torch.Generator().manual_seed(num_tokens)
    weights = generate.random_code_weights(6, 320, 208, generator)
    weights.up_first = True
    ids = generate.random_ids(num_tokens, 9, 3, generator)
    x, topk_weights = (
        generate.tokens(num_tokens, 320, generator),
        generate.random_topk_weights(num_tokens, 3, generator),
    )
    layer = runner.make_layer(
        weights, num_experts=9, top_k=3, swiglu=Swiglu(7.0, 1.702, 1.0), first_local_expert=2, device="cuda"
    )
    reference = ReferenceLayer(weights, Swiglu(7.0, 1.702, 1.0)).forward(x, local_ids(ids, 9, 6, 2), topk_weights)
    assert relative_l2(runner.run(layer, x, ids, topk_weights), reference.out) <= 5e-3
