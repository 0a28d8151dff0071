# SPDX-License-Identifier: Apache-2.0
"""Faults that are planted in a model that vLLM serves in this process, with what the doctor must say.

A plant is Plant(name, command, finding, words, put): `put(model)` damages the model and returns what mends it again.
Most are a path and a patch: `patched("module:Class.attribute", wrapper)`. To add a fault, add a line to PLANTS.
"""

import functools
import importlib
import inspect
import os
import textwrap
from collections.abc import Callable
from typing import NamedTuple

import torch

Undo = Callable[[], None]


class Plant(NamedTuple):
    name: str
    command: str  # "layers", "norm" or "attention"; "sinks" is the last's part about sinks alone
    finding: str | None  # None: the doctor must find nothing
    words: str  # in the finding, or in a fact
    put: Callable[[torch.nn.Module], Undo]


def patched(path: str, wrap: Callable) -> Callable[[torch.nn.Module], Undo]:
    """Replace `module:Class.attribute` by what `wrap` makes of the original."""

    def put(_model) -> Undo:
        module, _, names = path.partition(":")
        *owners, last = names.split(".")
        owner = functools.reduce(getattr, owners, importlib.import_module(module))
        original = getattr(owner, last)
        setattr(owner, last, wrap(original))
        return lambda: setattr(owner, last, original)

    return put


def rewritten(path: str, *pieces: str) -> Callable[[torch.nn.Module], Undo]:
    """Replace pieces of the source of a function, each of which must be there once: old, new, old, new, ..."""

    def wrap(original):
        source = textwrap.dedent(inspect.getsource(original))
        for old, new in zip(pieces[::2], pieces[1::2], strict=True):
            assert source.count(old) == 1, (path, source.count(old))
            source = source.replace(old, new)
        namespace = dict(original.__globals__)
        exec(source, namespace)
        return namespace[original.__name__]

    return patched(path, wrap)


def in_module(name: str, wrap: Callable) -> Callable[[torch.nn.Module], Undo]:
    """Replace the forward of one module of the model."""

    def put(model) -> Undo:
        (module,) = [module for path, module in model.named_modules() if path == name or path.endswith(f".{name}")][:1]
        module.forward = wrap(module.forward)
        return lambda: delattr(module, "forward")

    return put


def moe_layers(model) -> list[tuple[torch.nn.Module, object]]:
    """(vLLM's layer with its parameters, our experts)"""
    found = []
    for module in model.modules():
        kernel = getattr(getattr(module, "quant_method", None), "moe_kernel", None)
        if kernel is not None and hasattr(module, "w13_weight"):
            found.append((module, kernel.fused_experts))
    assert found, "no MoE layer of ours"
    return found


def make_again(layer, experts) -> None:
    """A layer of the library's for what vLLM's has now. Under one handle, as in an engine, changes would be refused."""
    experts.handle = type(experts.handle)()
    experts.process_weights_after_loading(layer)


def prepared(change: Callable, layers: slice = slice(2, 3)) -> Callable[[torch.nn.Module], Undo]:
    """Change the loaded parameters of some layers, and hand them to the library once more: the loader is bypassed."""

    def put(model) -> Undo:
        chosen = moe_layers(model)[layers]
        saved = []
        for layer, experts in chosen:
            saved.append({name: p.data.clone() for name, p in layer.named_parameters(recurse=False)})
            change(layer, experts)
            make_again(layer, experts)

        def undo() -> None:
            for (layer, experts), before in zip(chosen, saved):
                for name, values in before.items():
                    getattr(layer, name).data.copy_(values)
                make_again(layer, experts)

        return undo

    return put


def one_byte(name: str, expert: int, byte: int) -> Callable[[torch.nn.Module], Undo]:
    """Write one of a tensor that the library reads where it lies, as it does on the CPU: past all checks."""

    def put(model) -> Undo:
        layer, _ = moe_layers(model)[2]
        place = getattr(layer, name).data.view(torch.uint8)[expert, 5, 3:4]
        before = place.clone()
        place.fill_(byte)
        return lambda: place.copy_(before)

    return put


def swap_gate_and_up(layer, _experts) -> None:
    for name in ("w13_weight", "w13_weight_scale"):
        data = getattr(layer, name).data
        bytes_ = data.view(torch.uint8)
        bytes_.copy_(torch.cat(list(reversed(bytes_.clone().chunk(2, dim=1))), dim=1))
    layer.w13_weight_scale_2.data.copy_(layer.w13_weight_scale_2.data.clone().flip(1))


def gates_scale_for_both(layer, _experts) -> None:
    layer.w13_weight_scale_2.data[:, 1] = layer.w13_weight_scale_2.data[:, 0]


def one_expert_doubled(layer, _experts) -> None:
    layer.w2_weight_scale_2.data[17] *= 2


def without_clamp(model) -> Undo:
    chosen = moe_layers(model)[2:3]
    for layer, experts in chosen:
        object.__setattr__(experts.moe_config, "swiglu_limit", 0.0)
        make_again(layer, experts)

    def undo() -> None:
        for layer, experts in chosen:
            object.__setattr__(experts.moe_config, "swiglu_limit", 10.0)
            make_again(layer, experts)

    return undo


def scale_too_small(model) -> Undo:
    """Mode nvfp4 with static scales, a thousandth of the file's; the file's own are made by nobody's calibration."""
    os.environ["NVFP4_MOE_MODE"] = "nvfp4"
    undo_layers = prepared(lambda layer, _: [p.data.mul_(1e-3) for p in (layer.w13_input_scale, layer.w2_input_scale)])(
        model
    )

    def undo() -> None:
        del os.environ["NVFP4_MOE_MODE"]
        undo_layers()

    return undo


def weights_twice(apply):
    def twice(self, **arguments):
        apply(self, **arguments | {"topk_weights": arguments["topk_weights"] ** 2})

    return twice


def next_expert(apply):
    def shifted(self, **arguments):
        ids = (arguments["topk_ids"] + 1) % arguments["global_num_experts"]
        apply(self, **arguments | {"topk_ids": ids})

    return shifted


def ids_out_of_range(apply):
    def wild(self, **arguments):
        ids = arguments["topk_ids"].clone()
        ids[-1, 0] = 100000
        apply(self, **arguments | {"topk_ids": ids})

    return wild


def nan_of_expert_17(columns: slice) -> Callable:
    """As a NaN in its weights would: of gate or up in every column, of down in its own."""

    def wrap(apply):
        def ill(self, **arguments):
            apply(self, **arguments)
            if self.layer_name.endswith("layers.2.ffn.experts"):
                arguments["output"][(arguments["topk_ids"] == 17).any(1), columns] = torch.nan

        return ill

    return wrap


def clamp_after_product(apply):
    """A torch implementation with the order that is wrong, over the library's dequantised weights."""

    def apply_wrongly(self, **arguments):
        layer = self.planted_layer
        x, ids, weights = (arguments[name] for name in ("hidden_states", "topk_ids", "topk_weights"))
        out = torch.zeros(x.shape)
        for expert in ids.unique().tolist():
            tokens, slots = (ids == expert).nonzero(as_tuple=True)
            w13 = decoded(layer.w13_weight.data[expert], layer.w13_weight_scale.data[expert])
            gate, up = (x[tokens].float() @ w13.T).chunk(2, dim=1)
            gate, up = (t * layer.w13_weight_scale_2.data[expert, half] for half, t in enumerate((gate, up)))
            hidden = (torch.nn.functional.silu(gate) * up).clamp(-10, 10)
            w2 = decoded(layer.w2_weight.data[expert], layer.w2_weight_scale.data[expert])
            out.index_add_(
                0, tokens, hidden @ w2.T * layer.w2_weight_scale_2.data[expert] * weights[tokens, slots, None]
            )
        arguments["output"].copy_(out)

    return apply_wrongly


def decoded(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    from reference import nvfp4

    return nvfp4.decode_blocks(codes.view(torch.uint8), scales.view(torch.uint8))


def steps_activation(model) -> Undo:
    """The library's layer for another family, which clamps silu(gate) instead of gate."""
    from nvfp4_moe.plugin import experts as plugin

    plugin.ACTIVATIONS["SILU"] = "swiglu_step"
    undo = prepared(lambda *_: None)(model)
    plugin.ACTIVATIONS["SILU"] = "swiglu"  # `undo` makes the layer again
    return undo


def with_layers(plant: Callable) -> Callable[[torch.nn.Module], Undo]:
    """Experts that know vLLM's parameters."""

    def put(model) -> Undo:
        for layer, experts in moe_layers(model):
            experts.planted_layer = layer
        return plant(model)

    return put


def hundredfold(model) -> Undo:
    final = [module for path, module in model.named_modules() if path.endswith("norm") and "layers" not in path][-1]
    return final.register_forward_pre_hook(lambda _, inputs: tuple(100 * each for each in inputs)).remove


def skipped(forward):
    return lambda x, *rest: (x, *rest) if rest else x


APPLY = "nvfp4_moe.plugin.experts:Nvfp4MoeExperts.apply"

LAYERS = functools.partial(Plant, command="layers")
WRONG = functools.partial(LAYERS, finding="experts-wrong")
NAN = functools.partial(LAYERS, finding="first-not-finite")

HF = "transformers.models.deepseek_v4.modeling_deepseek_v4:DeepseekV4"
SHIM = "nvfp4_moe_test_shims.deepseek_v4:RecomputedAttention.attend"
EAGER = "transformers.models.deepseek_v4.modeling_deepseek_v4:eager_attention_forward"
BLOCKS = "(position_ids + 1) // self.compress_rate"
ATTENTION = functools.partial(Plant, command="attention")
SINKS = functools.partial(Plant, command="sinks")

PLANTS = [
    NAN(
        "NaN of an expert's gate",
        words="17 alone produces it, in its gate or up",
        put=patched(APPLY, nan_of_expert_17(slice(None))),
    ),
    NAN(
        "NaN of an expert's down",
        words="17 alone produces it, in its down",
        put=patched(APPLY, nan_of_expert_17(slice(9, 10))),
    ),
    LAYERS(
        "NaN in one block scale of one expert",
        finding="weights-in-memory",
        words="layer 2: 1 of 8192 values of expert 17's w13_block_scale are not finite",
        put=one_byte("w13_weight_scale", 17, 0x7F),
    ),
    WRONG("gate and up swapped", words="gate and up are swapped", put=prepared(swap_gate_and_up)),
    WRONG("up has the gate's global scale", words="up has gate's global scale", put=prepared(gates_scale_for_both)),
    WRONG(
        "one expert's output doubled",
        words="values of its w2_global_scale are not the file's",
        put=prepared(one_expert_doubled),
    ),
    WRONG("clamp missing", words="the clamp is missing", put=without_clamp),
    WRONG("clamp after silu", words="the clamp of gate comes after silu", put=steps_activation),
    WRONG(
        "clamp after the product",
        words="the clamp comes after silu and the product",
        put=with_layers(patched(APPLY, clamp_after_product)),
    ),
    WRONG("routed weights twice", words="routed weights are applied twice", put=patched(APPLY, weights_twice)),
    WRONG("expert map off by one", words="the expert map is off by one", put=patched(APPLY, next_expert)),
    LAYERS(
        "an id out of range", finding="out-of-range-ids", words="8 expert ids", put=patched(APPLY, ids_out_of_range)
    ),
    LAYERS("input scale 1000 times too small", finding="saturation", words="blocks saturated", put=scale_too_small),
    Plant(
        "final norm skipped", "norm", "norm-misapplied", "norm gives what is off by", in_module("model.norm", skipped)
    ),
    Plant("residual scaled by 100", "norm", None, "the residual's size is innocent", hundredfold),
    ATTENTION(
        "one visible block too many",
        finding="sees-the-future",
        words="layer 2: ",
        put=rewritten(HF + "HCACompressor.forward", BLOCKS, BLOCKS + " + 1"),
    ),
    ATTENTION(
        "one visible block too few",
        finding="sees-too-little",
        words="layer 2: ",
        put=rewritten(HF + "HCACompressor.forward", BLOCKS, BLOCKS + " - 1"),
    ),
    ATTENTION(
        "a window one too wide",
        finding="sees-too-much",
        words="128 before it",
        put=rewritten(SHIM, "distance < self.window", "distance <= self.window"),
    ),
    ATTENTION(
        "inverse rotation left out",
        finding="position-matters",
        words="a rotation is left out",
        put=rewritten(HF + "Attention.forward", "cos, -sin", "torch.ones_like(cos), torch.zeros_like(sin)"),
    ),
    ATTENTION(
        "inverse rotation with the first position",
        finding="position-matters",
        words="has another position",
        put=rewritten(HF + "Attention.forward", "cos, -sin", "cos[:, :1].expand_as(cos), -sin[:, :1].expand_as(sin)"),
    ),
    SINKS(
        "sink ignored",
        finding="sink-ignored",
        words="layer 0, head 0",
        put=rewritten(EAGER, "module.sinks.", "(module.sinks - torch.inf)."),
    ),
    SINKS(
        "every head has the first one's sink",
        finding="sink-ignored",
        words="layer 0, head 1",
        put=rewritten(EAGER, "module.sinks.", "module.sinks[:1].expand_as(module.sinks)."),
    ),
    SINKS(
        "sink added twice",
        finding="sink-misapplied",
        words="it is added 2 times",
        put=rewritten(
            EAGER,
            "probs = F.softmax(combined_logits,",
            "probs = F.softmax(torch.cat([combined_logits, combined_logits[..., -1:]], dim=-1),",
            "scores = probs[..., :-1]",
            "scores = probs[..., :-2]",
        ),
    ),
    SINKS(
        "sink scaled as logits are",
        finding="sink-misapplied",
        words="in the wrong place",
        put=rewritten(EAGER, "module.sinks.", "(module.sinks * scaling)."),
    ),
    SINKS(
        "a padding head leaks",
        finding="padding-head-leaks",
        words="layer 0: garbage in 4 padding heads",
        put=rewritten(
            SHIM,
            "return out[0, first - begin :]",
            "out = out + torch.sigmoid(-self.layer.attn_sink[-1]) * x[..., : out.shape[-1]]\n"
            "    return out[0, first - begin :]",
        ),
    ),
    ATTENTION(
        "a KV entry of another request",
        finding="decode-differs",
        words="an entry of another request",
        put=rewritten(
            SHIM,
            "x = torch.stack(history).unsqueeze(0)",
            "x = torch.stack([r.flip(0) if first and n % 9 == 5 else r for n, r in enumerate(history)]).unsqueeze(0)",
        ),
    ),
]
