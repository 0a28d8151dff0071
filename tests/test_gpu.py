# SPDX-License-Identifier: Apache-2.0
"""What only a GPU can show: exactness on silicon, routing tables, memory, streams, sizes past 2^31 bytes."""

import pytest
import torch

import matrix as cases
import nvfp4_moe
import runner
from nvfp4_moe import Layer, LayerWeights, Linear, LinearWeights
from reference import generate, nvfp4
from reference.layer import ReferenceLayer, Swiglu, local_ids, relative_l2

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
DEVICES = [device for device in runner.DEVICES if device != "cpu"]
PORTABLE = "cuda-portable"


def bits(tensor):
    return tensor.view(torch.int16)


def random_layer(local, hidden, inter, *, num_experts, top_k, mode="bf16", seed=0, device="cuda", **options):
    """A layer whose weights are made on the GPU: any codes, block scales from 2^-4 to 15; in mode fp8 powers of two, in
    equal pairs."""
    g = torch.Generator(device="cuda").manual_seed(seed)

    def matrix(rows, cols):
        codes = torch.randint(0, 256, (local, rows, cols // 2), dtype=torch.uint8, device="cuda", generator=g)
        scales = torch.randint(0x18, 0x58, (local, rows, cols // 16), dtype=torch.uint8, device="cuda", generator=g)
        if mode == "fp8":
            scales = (scales[..., ::2] & 0x78).repeat_interleave(2, dim=-1)
        return codes, scales

    w13, w2 = matrix(2 * inter, hidden), matrix(hidden, inter)
    layer = Layer(
        hidden_size=hidden, intermediate_size=inter, num_experts=num_experts, num_local_experts=local, top_k=top_k,
        mode=mode, scale_policy="dynamic", swiglu_limit=10.0, device=device,
        scale_block_size=32 if mode == "fp8" else 16, **options,
    )  # fmt: skip
    globals_ = torch.full((local, 2), hidden**-0.5 / 15, device="cuda")
    return layer.prepare(LayerWeights(*w13, globals_, *w2, torch.full((local,), inter**-0.5 / 15, device="cuda")))


def zero_layer(local, *, num_experts, top_k, first=0, device="cuda"):
    """The smallest layer, for what does not depend on weights."""
    layer = Layer(
        hidden_size=16, intermediate_size=16, num_experts=num_experts, num_local_experts=local,
        first_local_expert=first, top_k=top_k, mode="bf16", device=device,
    )  # fmt: skip
    codes13, scales13, codes2, scales2 = [
        torch.zeros(shape, dtype=torch.uint8, device="cuda")
        for shape in [(local, 32, 8), (local, 32, 1), (local, 16, 8), (local, 16, 1)]
    ]
    ones = torch.ones(local, 2, device="cuda")
    return layer.prepare(LayerWeights(codes13, scales13, ones, codes2, scales2, ones[:, 0].contiguous()))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [8, 16, 32, 64, 128, 2032])
def test_every_product_of_e2m1_and_e4m3_is_exact(num_tokens, device):
    """One-hot rows read each weight out: column 16 s + c is code c under block scale s, all finite scales."""
    codes = torch.arange(16, dtype=torch.uint8).repeat(127)
    rows = torch.stack([codes.roll(16 * 0), (codes + 5) % 16, 15 - codes] * 33)  # 99 rows: no multiple of a tile
    scales = torch.arange(127, dtype=torch.uint8).expand(99, 127).contiguous()
    linear = Linear(in_features=2032, out_features=99, mode="bf16", device=device)
    linear.prepare(LinearWeights(nvfp4.pack(rows).cuda(), scales.cuda(), torch.ones(1, device="cuda")))
    expected = nvfp4.decode_blocks(nvfp4.pack(rows), scales).T.bfloat16()
    eye = torch.eye(2032, dtype=torch.bfloat16, device="cuda")
    for first in range(0, 2032, num_tokens):
        out = linear(eye[first : first + num_tokens]).cpu()
        # -0 times 1 plus zeros is +0: compare values.
        assert torch.equal(out, expected[first : first + num_tokens])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 31, 33, 200, 512, 1024, 1025, 4097, 32768, 131072])
@pytest.mark.parametrize(
    "shard",
    [(16, 4, 0, 8), (256, 8, 64, 64), (96, 8, 32, 32), (384, 6, 336, 48), (512, 12, 0, 512), (1024, 1, 0, 1024)],
)
def test_routing_is_a_stable_sort(num_tokens, shard, device):
    """slot_to_row and row_to_slot are the workspace's first regions; one chunk holds all rows where they fit."""
    experts, top_k, first, local = shard
    layer = zero_layer(local, num_experts=experts, top_k=top_k, first=first, device=device)
    num_slots = num_tokens * top_k
    generator = torch.Generator().manual_seed(num_tokens)
    ids = torch.randint(-2, experts + 2, (num_tokens, top_k), generator=generator, dtype=torch.int32).cuda()
    x = torch.zeros(num_tokens, 16, dtype=torch.bfloat16, device="cuda")
    raw = torch.full((layer.workspace_size(num_tokens) + 256,), 0xFF, dtype=torch.uint8, device="cuda")
    workspace = raw[-raw.data_ptr() % 256 :]
    layer(x, ids, workspace=workspace)
    slot_to_row = workspace[: num_slots * 4].view(torch.int32)

    expert = ids.flatten().long() - first
    routed = (expert >= 0) & (expert < local) & (ids.flatten() >= 0) & (ids.flatten() < experts)
    order = torch.where(routed, expert, local).sort(stable=True).indices[: int(routed.sum())]
    # Each expert's rows start at a multiple of the alignment; -1 fills up.
    alignment = 128 if device == PORTABLE else 1
    counts = torch.bincount(expert[order], minlength=local)
    padded = (counts + alignment - 1) // alignment * alignment
    starts, padded_starts = counts.cumsum(0) - counts, padded.cumsum(0) - padded
    rows = torch.arange(len(order), device="cuda") + (padded_starts - starts)[expert[order]]
    expected = torch.full_like(slot_to_row, -1)
    expected[order] = rows.int()
    assert torch.equal(slot_to_row, expected)
    at = (num_slots * 4 + 255) // 256 * 256
    row_to_slot = workspace[at : at + int(padded.sum()) * 4].view(torch.int32)
    expected = torch.full_like(row_to_slot, -1)
    expected[rows] = order.int()
    assert torch.equal(row_to_slot, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("skew", ["uniform", "one expert", "all local", "none"])
@pytest.mark.parametrize("mode", cases.MODES)
def test_no_token_is_dropped_when_the_workspace_takes_several_chunks(skew, mode, device):
    """20000 tokens of this shape need chunks; the layer of halves is the same layer."""
    hidden, inter, experts, top_k, num_tokens = 256, 4096, 16, 6, 20000
    layer = random_layer(4, hidden, inter, num_experts=experts, top_k=top_k, mode=mode, device=device)
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", cases.MODES)
def test_experts_that_move_need_no_new_layer(mode, device):
    """What EPLB does: slices change places, and the map says so."""
    layer = random_layer(8, 256, 128, num_experts=8, top_k=3, mode=mode, device=device)
    generator = torch.Generator().manual_seed(9)
    x = generate.tokens(50, 256, generator).cuda()
    ids = generate.random_ids(50, 8, 3, generator).cuda()
    before = layer(x, ids)
    order = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4], device="cuda")
    layer.expert_slices.copy_(layer.expert_slices[order].clone())
    assert not torch.equal(bits(layer(x, ids)), bits(before))
    expert_map = torch.empty(8, dtype=torch.int32, device="cuda")
    expert_map[order] = torch.arange(8, dtype=torch.int32, device="cuda")
    assert torch.equal(bits(layer(x, ids, expert_map=expert_map)), bits(before))


@pytest.mark.parametrize(("mode", "widest", "bound"), [("bf16", 144, 3e-3), ("fp8", 208, 6e-3)])
@pytest.mark.parametrize("num_tokens", [50, 500])
def test_every_row_tile_size_can_be_forced(num_tokens, mode, widest, bound):
    x = generate.tokens(num_tokens, 256, torch.Generator().manual_seed(1)).cuda()
    ids = generate.random_ids(num_tokens, 8, 3, torch.Generator().manual_seed(2)).cuda()
    options = dict(num_experts=8, top_k=3, mode=mode)
    chosen = random_layer(8, 256, 128, **options)(x, ids).cpu().double()
    for rows in (8, 16, 24, 32, 48, 64, 80, 96, 112, 128, 144, widest):
        forced = random_layer(8, 256, 128, tile_rows=rows, **options)
        assert relative_l2(forced(x, ids).cpu(), chosen) < bound
    with pytest.raises(RuntimeError, match=r"tile_rows is 13; it must be 0 .the library chooses. or one of .8, 16, .*"):
        random_layer(8, 256, 128, tile_rows=13, **options)


@pytest.mark.parametrize("mode", cases.MODES)
def test_pro_under_ep8_with_8192_tokens_uses_150_megabytes(mode):
    layer = random_layer(48, 7168, 3072, num_experts=384, top_k=6, mode=mode)
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", ["bf16", "nvfp4"])
def test_a_linear_waits_for_whatever_came_before(mode, device):
    """Its launch may overlap a kernel's end; copies and fills, as nodes of a graph too, it follows."""
    k, n, num_tokens = 4096, 4096, 64
    generator = torch.Generator().manual_seed(11)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator)
    scales = torch.randint(0x18, 0x58, (n, k // 16), dtype=torch.uint8, generator=generator)
    linear = Linear(in_features=k, out_features=n, mode=mode, scale_policy="dynamic", device=device)
    linear.prepare(LinearWeights(codes.cuda(), scales.cuda(), torch.full((1,), k**-0.5 / 15, device="cuda")))
    sources = [generate.tokens(num_tokens, k, generator).cuda() for _ in range(4)]
    expected = [linear(source).clone() for source in sources]
    x, outs = torch.zeros_like(sources[0]), [torch.empty_like(expected[0]) for _ in range(9)]

    def forwards():
        for i in range(4):
            x.copy_(sources[i])  # a copy between buffers
            linear(x, out=outs[i])
        for i in range(4):
            torch.mul(sources[i], 1, out=x)  # a kernel
            linear(x, out=outs[4 + i])
        x.zero_()
        linear(x, out=outs[8])

    def check():
        for i in range(8):
            assert torch.equal(bits(outs[i]), bits(expected[i % 4]))
        assert not outs[8].any()

    forwards()
    check()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        forwards()
    for out in outs:
        out.fill_(1)
    for _ in range(3):
        graph.replay()
    check()


@pytest.mark.parametrize("device", DEVICES)
def test_rows_past_2_to_the_31_bytes(device):
    """x of 2.2 GB and weights of 2.3 GB: the last rows equal the same rows on their own."""
    layer = random_layer(62, 7168, 3072, num_experts=62, top_k=1, device=device)
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


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mode", cases.MODES)
def test_a_hundred_runs_and_two_streams_give_the_same_bits(mode, device):
    layer = random_layer(16, 1024, 512, num_experts=16, top_k=4, mode=mode, device=device)
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


@pytest.mark.parametrize("device", DEVICES)
def test_two_linears_on_two_streams_do_not_share_scratch(device):
    """As vLLM runs DeepSeek-V4's wq_b beside the indexer's; in mode nvfp4 each quantises its rows into scratch."""
    k, n, num_tokens = 2048, 512, 512
    generator = torch.Generator().manual_seed(12)
    codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, generator=generator).cuda()
    scales = torch.randint(0x18, 0x58, (n, k // 16), dtype=torch.uint8, generator=generator).cuda()
    weights = LinearWeights(codes, scales, torch.full((1,), k**-0.5 / 15, device="cuda"))
    options = dict(in_features=k, out_features=n, mode="nvfp4", scale_policy="dynamic", device=device)
    linears = [Linear(**options).prepare(weights) for _ in range(2)]
    sources = [generate.tokens(num_tokens, k, generator).cuda() for _ in range(2)]
    expected = [bits(linear(source)) for linear, source in zip(linears, sources)]
    streams, outs = [torch.cuda.Stream(), torch.cuda.Stream()], ([], [])
    torch.cuda.synchronize()
    for _ in range(200):
        for linear, source, stream, out in zip(linears, sources, streams, outs):
            with torch.cuda.stream(stream):
                out.append(linear(source))
    torch.cuda.synchronize()
    assert all(torch.equal(bits(out), expected[i]) for i in range(2) for out in outs[i])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offset", [0, 1, 3, 8])
def test_strided_views_that_start_anywhere(offset, device):
    layer = random_layer(4, 256, 128, num_experts=4, top_k=2, device=device)
    generator = torch.Generator().manual_seed(4)
    x, ids = generate.tokens(40, 256, generator).cuda(), generate.random_ids(40, 4, 2, generator).cuda()
    wide = torch.zeros(40, 300, dtype=torch.bfloat16, device="cuda")
    wide[:, offset : offset + 256] = x
    out = torch.zeros(40, 301, dtype=torch.bfloat16, device="cuda")
    layer(wide[:, offset : offset + 256], ids, out=out[:, offset : offset + 256])
    assert torch.equal(bits(layer(x, ids)), bits(out[:, offset : offset + 256].contiguous()))
    assert not out[:, :offset].any()
    assert not out[:, offset + 256 :].any()


@pytest.mark.parametrize("device", DEVICES)
def test_quantised_rows_have_the_bits_of_the_host_codec(device):
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
            device=device,
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


@pytest.mark.parametrize(("num_tokens", "cols"), [(1, 16), (33, 80), (128, 256), (300, 7168)])
@pytest.mark.parametrize("global_scale", [None, 0.0078125])
def test_packed_rows_are_the_host_codecs_bytes(num_tokens, cols, global_scale):
    """Codes, 128x4 block scales with their padding columns, and global scales, as they lie in a linear's workspace."""
    policy = "dynamic" if global_scale is None else "static"
    linear = Linear(in_features=cols, out_features=1, mode="nvfp4", scale_policy=policy, device=PORTABLE)
    weight = torch.zeros(1, cols // 2, dtype=torch.uint8, device="cuda")
    block_scale = torch.zeros(1, cols // 16, dtype=torch.uint8, device="cuda")
    linear.prepare(LinearWeights(weight, block_scale, torch.ones(1, device="cuda"), input_scale=global_scale or 0.0))
    generator = torch.Generator().manual_seed(num_tokens)
    x = (generate.tokens(num_tokens, cols, generator) * torch.logspace(-3, 3, num_tokens)[:, None]).bfloat16()
    workspace = runner.poisoned(linear.workspace_size(num_tokens), dtype=torch.uint8, device="cuda")
    assert workspace.data_ptr() % 256 == 0
    linear(x.cuda(), workspace=workspace)
    ours = workspace.cpu()

    host = nvfp4_moe.quantize(x, global_scale, swizzled=True)
    assert torch.equal(ours[: host.packed.numel()].view_as(host.packed), host.packed)
    at = (host.packed.numel() + 255) // 256 * 256
    scales = ours[at : at + host.block_scale.numel()]
    blocks = (cols // 16 + 3) // 4 * 4  # padding columns are 0; the rows of padding are nobody's
    offsets = [nvfp4_moe.sf_offset(row, block, cols // 16) for row in range(num_tokens) for block in range(blocks)]
    assert torch.equal(scales[offsets], host.block_scale[offsets])
    at += (host.block_scale.numel() + 255) // 256 * 256
    expected = host.global_scale.expand(num_tokens)
    assert torch.equal(ours[at : at + 4 * num_tokens].view(torch.float32), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("num_tokens", [1, 8, 17, 64, 129, 512])
def test_a_layer_with_different_gate_and_up_scales_and_up_first(num_tokens, device):
    generator = torch.Generator().manual_seed(num_tokens)
    weights = generate.random_code_weights(6, 320, 208, generator)
    weights.up_first = True
    ids = generate.random_ids(num_tokens, 9, 3, generator)
    x, topk_weights = (
        generate.tokens(num_tokens, 320, generator),
        generate.random_topk_weights(num_tokens, 3, generator),
    )
    layer = runner.make_layer(
        weights, num_experts=9, top_k=3, swiglu=Swiglu(7.0, 1.702, 1.0), first_local_expert=2, device=device
    )
    reference = ReferenceLayer(weights, Swiglu(7.0, 1.702, 1.0)).forward(x, local_ids(ids, 9, 6, 2), topk_weights)
    assert relative_l2(runner.run(layer, x, ids, topk_weights), reference.out) <= 5e-3
