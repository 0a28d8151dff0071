# SPDX-License-Identifier: Apache-2.0
"""Host time of a forward in eager mode: of one MoE layer through the plugin, the bare op, the library; of one linear.

    python tests/bench/host_time.py [--tokens 1,64,4096] [--calls 3000] [--cold]

    apply    vLLM's call of our experts until it returns, every kernel enqueued
    op       the same of `torch.ops.nvfp4_moe.moe_forward`
    library  the same of nvfp4_moe_layer_forward, less what ctypes takes for a call that does nothing
    linear   vLLM's call of our linear, in mode nvfp4, whose scratch torch allocates in each call
    given    the same op with scratch that the caller keeps, and an output made as the plugin makes it

Medians in microseconds of a layer (in bf16) and a linear as DeepSeek-V4-Flash's on one of eight ranks, measured in
turn, a few calls each, so that a change of the clock meets all of them; the device is idle at the start of each. On a
GPU they contain the driver's launches: the layer's are four up to 1024 tokens, six above. Without a GPU a stand-in
takes its place (host_time_stand_in.py), whose launches take nothing, and torch's look-up of device and stream is left
out. All runs under torch.inference_mode, as engines do.

--cold: before each call the caches are filled with something else. In an engine's eager step a layer's call comes
milliseconds after the one before, and finds neither code nor data in them.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "vllm_plugin"), str(ROOT / "tests"), str(ROOT / "tests" / "bench")]

import host_time_library
import host_time_stand_in

import fake_vllm
from nvfp4_moe import Layer, LayerWeights, Linear, ops

HIDDEN, INTER, EXPERTS, LOCAL, TOP_K = 4096, 2048, 256, 32, 6
IN_TURN = 10  # calls of one kind before the next kind's


def make_weights(device: torch.device) -> LayerWeights:
    """Zeros with global scales of 1 on a GPU; on the stand-in memory that nobody touches."""
    make, ones = (torch.zeros, torch.ones) if device.type == "cuda" else (torch.empty, torch.empty)
    u8, f32 = torch.uint8, torch.float32
    return LayerWeights(
        w13=make(LOCAL, 2 * INTER, HIDDEN // 2, dtype=u8, device=device),
        w13_block_scale=make(LOCAL, 2 * INTER, HIDDEN // 16, dtype=u8, device=device),
        w13_global_scale=ones(LOCAL, 2, dtype=f32, device=device),
        w2=make(LOCAL, HIDDEN, INTER // 2, dtype=u8, device=device),
        w2_block_scale=make(LOCAL, HIDDEN, INTER // 16, dtype=u8, device=device),
        w2_global_scale=ones(LOCAL, dtype=f32, device=device),
    )


def make_storage(made: Layer | Linear) -> torch.Tensor:
    """At a multiple of 256 bytes, as torch gives a GPU's memory, but not the host's that stands in for it."""
    op = ops.load()
    size = (op.layer_storage_size if isinstance(made, Layer) else op.linear_storage_size)(made.id)
    whole = torch.empty(size + 256, dtype=torch.uint8, device=made.device)
    return whole[-whole.data_ptr() % 256 :][:size].view(LOCAL if isinstance(made, Layer) else 1, -1)


def make_layer(weights: LayerWeights) -> Layer:
    layer = Layer(
        hidden_size=HIDDEN, intermediate_size=INTER, num_experts=EXPERTS, num_local_experts=LOCAL, top_k=TOP_K,
        mode="bf16", device=weights.w13.device,
    )  # fmt: skip
    ops.load().layer_prepare(*weights.tensors(), 0.0, 0.0, 0, make_storage(layer), layer.id)
    return layer


def make_linear(device: torch.device) -> Linear:
    """H to H, as an output projection is."""
    linear = Linear(in_features=HIDDEN, out_features=HIDDEN, mode="nvfp4", device=device)
    weight = torch.zeros(HIDDEN, HIDDEN // 2, dtype=torch.uint8, device=device)
    scale, one = torch.zeros(HIDDEN, HIDDEN // 16, dtype=torch.uint8, device=device), torch.ones(1, device=device)
    ops.load().linear_prepare(weight, scale, one, None, [], 0.01, make_storage(linear), linear.id)
    return linear


def linear_calls(linear: Linear, num_tokens: int) -> dict:
    """The plugin's call, and the op's with scratch of the caller."""
    fake_vllm.install()
    from nvfp4_moe.plugin.linear_library import Nvfp4Linear

    ours = Nvfp4Linear()
    ours.linear = linear
    x = torch.zeros(num_tokens, HIDDEN, dtype=torch.bfloat16, device=linear.device)
    workspace = torch.empty(linear.workspace_size(num_tokens), dtype=torch.uint8, device=linear.device)

    def given():
        out = x.new_empty((num_tokens, HIDDEN))
        linear.forward(x, workspace=workspace, out=out)

    return {"linear": lambda: ours(x), "given": given}


def make_inputs(layer: Layer, num_tokens: int) -> SimpleNamespace:
    """As vLLM makes them: int32 ids, an expert map, scratch in elements of the activation's type."""
    device = layer.device
    return SimpleNamespace(
        x=torch.zeros(num_tokens, HIDDEN, dtype=torch.bfloat16, device=device),
        ids=torch.arange(num_tokens * TOP_K, dtype=torch.int32, device=device).view(-1, TOP_K) % EXPERTS,
        weights=torch.full((num_tokens, TOP_K), 1 / TOP_K, device=device),
        map=torch.cat([torch.arange(LOCAL), torch.full((EXPERTS - LOCAL,), -1)]).to(device, torch.int32),
        workspace=torch.empty(-(-layer.workspace_size(num_tokens) // 2), dtype=torch.bfloat16, device=device),
        nothing=torch.empty(0, dtype=torch.bfloat16, device=device),
        out=torch.empty(num_tokens, HIDDEN, dtype=torch.bfloat16, device=device),
    )


def apply_of_the_plugin(layer: Layer, given: SimpleNamespace):
    fake_vllm.install()
    from nvfp4_moe.plugin.experts import Nvfp4MoeExperts

    experts = object.__new__(Nvfp4MoeExperts)
    experts.calibrating, experts.layer_name, experts.layer = None, "layer", layer
    arguments = dict(
        output=given.out, hidden_states=given.x, w1=None, w2=None, topk_weights=given.weights, topk_ids=given.ids,
        activation=None, global_num_experts=EXPERTS, expert_map=given.map, a1q_scale=None, a2_scale=None,
        workspace13=given.nothing, workspace2=given.workspace, expert_tokens_meta=None,
        apply_router_weight_on_input=False,
    )  # fmt: skip
    return lambda: experts.apply(**arguments)


def bare_op(layer: Layer, given: SimpleNamespace):
    op, workspace = ops.load().moe_forward.default, given.workspace.view(torch.uint8)
    return lambda: op(given.x, given.ids, given.weights, given.map, workspace, layer.id, given.out)


def library_alone(library, handle, given: SimpleNamespace, stream: int):
    """(a call, a call of the same kind that does nothing)"""
    address = given.workspace.data_ptr()
    aligned = -(-address // 256) * 256
    return library.forward(
        handle, stream, num_tokens=len(given.x), x=given.x.data_ptr(), topk_ids=given.ids.data_ptr(),
        topk_weights=given.weights.data_ptr(), expert_map=given.map.data_ptr(), num_experts_mapped=EXPERTS,
        out=given.out.data_ptr(), workspace=aligned, workspace_size=given.workspace.nbytes - (aligned - address),
    )  # fmt: skip


class Elsewhere:
    """What runs between two calls: copies larger than the second cache, and Python."""

    def __init__(self):
        self.source, self.target = (torch.empty(16 << 20, dtype=torch.uint8) for _ in range(2))
        self.document = {str(n): [n] * 3 for n in range(300)}

    def __call__(self) -> None:
        self.target.copy_(self.source)
        self.source.copy_(self.target)
        json.loads(json.dumps(self.document))


def medians(calls: dict, num_calls: int, device: torch.device, cold: bool = False) -> dict[str, float]:
    """Microseconds of each call, the calls taking turns, after a warm-up of a tenth."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    between = Elsewhere() if cold else (lambda: None)
    taken = {name: [] for name in calls}
    for turn in range(num_calls // IN_TURN + num_calls // IN_TURN // 10):
        for name, call in calls.items():
            for _ in range(IN_TURN):
                wait()
                between()
                before = time.perf_counter_ns()
                call()
                after = time.perf_counter_ns()
                if turn >= num_calls // IN_TURN // 10:
                    taken[name].append((after - before) / 1000)
    return {name: median(times) for name, times in taken.items()}


@torch.inference_mode()
def measure(device: torch.device, tokens: list[int], num_calls: int, library_path: Path, cold: bool = False) -> dict:
    """{tokens: {what: microseconds}}"""
    weights = make_weights(device)
    layer = make_layer(weights)
    stream = torch.cuda.current_stream().cuda_stream if device.type == "cuda" else 1
    library = handle = None
    if library_path.exists():
        library = host_time_library.Library(library_path)
        handle = library.make_layer(
            [tensor.data_ptr() for tensor in weights.tensors()[:6]], make_storage(layer), stream,
            hidden_size=HIDDEN, intermediate_size=INTER, num_experts=EXPERTS, num_local_experts=LOCAL, top_k=TOP_K,
        )  # fmt: skip
    found, linear = {}, make_linear(device)
    for num_tokens in tokens:
        given = make_inputs(layer, num_tokens)
        calls = {"apply": apply_of_the_plugin(layer, given), "op": bare_op(layer, given)}
        if library:
            calls["library"], calls["ctypes"] = library_alone(library, handle, given, stream)
        calls |= linear_calls(linear, num_tokens)
        times = medians(calls, num_calls, device, cold)
        if library:
            times["library"] -= times.pop("ctypes")
        found[num_tokens] = {name: round(value, 2) for name, value in times.items()}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", default="1,64,4096")
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--device", choices=("cuda", "cpu"), help="cpu: the stand-in, whose process this is")
    parser.add_argument("--op", type=Path, help="another shared object than the package's")
    parser.add_argument("--library", type=Path, default=host_time_stand_in.LIBRARY)
    parser.add_argument("--cold", action="store_true", help="with caches that hold something else before each call")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.device is None and not torch.cuda.is_available():
        cold = ["--cold"] if given.cold else []
        found = host_time_stand_in.run(["--tokens", given.tokens, "--calls", str(given.calls), *cold])
        name = "a stand-in driver"
    else:
        if given.op:
            ops.SHARED_OBJECT = given.op
        device = torch.device("cuda", 0) if given.device != "cpu" else torch.device("cpu")
        tokens = [int(count) for count in given.tokens.split(",")]
        found = measure(device, tokens, given.calls, given.library, given.cold)
        name = torch.cuda.get_device_name() if device.type == "cuda" else "a stand-in driver"
    if given.json:
        print(json.dumps(found))
        return
    print(f"host time of a forward, median us of {given.calls} calls, {name}{', cold' * given.cold}")
    for num_tokens, times in found.items():
        print(f"{num_tokens:>6} tokens  " + "  ".join(f"{what} {value:6.2f}" for what, value in times.items()))


if __name__ == "__main__":
    main()
